//! Service account tokens: parsed, and verified against the issuer's keys.
//!
//! A token is a JSON Web Signature in compact form (RFC 7515) with the claims that kube-apiserver writes (Kubernetes documentation,
//! "Managing Service Accounts", "Bound service account tokens"). The functions here are pure: keys, expectations and time are
//! parameters.
//!
//! 1. [`UnverifiedToken::parse`] checks the sizes, the three parts and the JSON of the first two. Its result gives no access to an
//!    identity.
//! 2. [`UnverifiedToken::check`] compares issuer, audience and time. It can only refuse a token, and
//!    runs first, so that a token of another cluster does not cause a fetch of keys.
//! 3. [`UnverifiedToken::verify`] checks the signature and the remaining claims, and returns the [`Claims`].
//!
//! The key decides the algorithm. The header of the token only names a key of the set, and must name the algorithm of that key.
//! Keys in the token itself (`jwk`, `jku`, `x5c`, `x5u`) are never read.

mod bearer;
mod claims;
mod error;
mod json;
mod jws;
mod key;
mod payload;

pub(crate) use bearer::TokenDigest;
pub use bearer::{BearerToken, MAX_TOKEN};
pub use claims::{Claims, NodeClaim, UnprovenClaims};
pub use error::{TokenError, TokenErrorKind};
pub(crate) use json::is_strict_object;
pub use jws::{Expected, LEEWAY, UnverifiedToken};
pub(crate) use key::Jwk;
pub use key::{Algorithm, MAX_KEY_ID, PublicKey, UnusableKey};

#[cfg(test)]
mod tests;
