//! Where the issuer's documents come from.

use std::borrow::Cow;

use bytes::Bytes;
use futures_util::future::BoxFuture;

use super::set::DocumentError;
use crate::advice::Advise;
use crate::kubernetes::client::RequestError;

/// A source of the issuer's documents.
pub trait KeySource: Send + Sync + 'static {
    /// Fetches the key set.
    fn keys(&self) -> BoxFuture<'_, Result<Bytes, KeySourceError>>;

    /// Fetches the configuration document, which names the issuer.
    fn configuration(&self) -> BoxFuture<'_, Result<Bytes, KeySourceError>>;
}

/// The reason why the issuer's keys could not be fetched.
#[derive(Debug, thiserror::Error)]
pub enum KeySourceError {
    /// The API did not return the document.
    #[error(transparent)]
    Request(#[from] RequestError),
    /// The document is not usable.
    #[error(transparent)]
    Document(#[from] DocumentError),
    /// The source took too long.
    #[error("the issuer's documents did not arrive in time")]
    Slow,
}

impl Advise for KeySourceError {
    fn advice(&self) -> Option<Cow<'static, str>> {
        match self {
            Self::Request(error) if error.code() == Some(403) => {
                Some("bind the ClusterRole system:service-account-issuer-discovery to rolegate's service account".into())
            }
            Self::Request(error) => error.advice(),
            Self::Document(_) => Some("check what the API server returns for /openid/v1/jwks and /.well-known/openid-configuration".into()),
            Self::Slow => None,
        }
    }
}
