//! Offline verification of Kubernetes service account tokens, for the protocol of EKS Pod Identity: a pod sends its own token, and
//! rolegate checks it against the public keys of the cluster's issuer. No request goes to the API for a token.
//!
//! - [`token`]: one token against one set of keys, at one time; pure
//! - [`keys`]: the issuer's keys, fetched from the API and kept up to date
//! - [`verifier`]: both together, and a cache of verified tokens
//! - `addresses`: the addresses on the node at which pods ask
//!
//! A verified token says which pod it was issued to, not who sent it. The caller compares its [`token::Claims`] with the pod that
//! the connection comes from: a token of one pod must be worthless to another one.

pub(crate) mod addresses;
pub mod keys;
pub mod token;
pub mod verifier;
