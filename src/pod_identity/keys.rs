//! The keys of the cluster's service account issuer.
//!
//! [`KeyRefresher`] fetches them every few minutes, and when a token names a key that is not known; [`IssuerKeys`] is the read side.
//! A single task fetches, so there is one request at a time. Tokens with unknown keys cause at most one fetch per [`LEAST_BETWEEN`]. A pod
//! whose tokens caused fetches that changed nothing must wait, and longer each time. A token waits for at most [`PATIENCE`].
//!
//! If the API is not available, the known keys stay in use for as long as that lasts. A key that is missing from a new key set is no
//! longer used.

mod api;
mod demands;
mod known;
mod refresh;
mod set;
mod source;

pub use api::ApiKeySource;
pub use demands::{KeyRequester, LEAST_BETWEEN};
pub use known::{IssuerKeys, PATIENCE, TrustedIssuer};
pub use refresh::{KeyRefresher, REFRESH_EVERY, issuer_keys};
pub use set::{DocumentError, KeySet, MAX_DOCUMENT, issuer_of};
pub use source::{KeySource, KeySourceError};

#[cfg(test)]
pub(crate) mod tests;
