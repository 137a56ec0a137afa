//! Offline verification of Kubernetes service account tokens, for the protocol of EKS Pod Identity: a pod sends its own token, and
//! rolegate verifies it with the public keys of the cluster's issuer. A token causes no request to the API, unless its key is unknown.
//!
//! - [`token`]: verifies one token with one set of keys at one time; pure
//! - [`keys`]: the issuer's keys, fetched from the API and kept up to date
//! - [`verifier`]: combines both, and caches verified tokens
//! - [`review`]: lets the API server confirm verified tokens, if that is turned on
//! - `render`: the patch that `rolegate pod-identity render` prints
//! - `addresses`: the addresses on the node to which pods connect
//!
//! A verified token says which pod it was issued to, not who sent it. The caller compares its [`token::Claims`] with the pod that
//! the connection comes from: the token of one pod must be of no use to another one.

pub(crate) mod addresses;
pub mod keys;
pub(crate) mod render;
pub mod review;
pub mod token;
mod token_cache;
pub mod verifier;

/// The path of the credentials (`AWS_CONTAINER_CREDENTIALS_FULL_URI` of EKS Pod Identity).
pub(crate) const CREDENTIALS_PATH: &str = "/v1/credentials";
