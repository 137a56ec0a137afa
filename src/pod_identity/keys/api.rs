//! The issuer's documents from the Kubernetes API.

use bytes::Bytes;
use futures_util::FutureExt as _;
use futures_util::future::BoxFuture;

use super::set::MAX_DOCUMENT;
use super::source::{KeySource, KeySourceError};
use crate::kubernetes::client::Client;

const KEYS: &str = "/openid/v1/jwks";
const CONFIGURATION: &str = "/.well-known/openid-configuration";
/// The API server answers 406 to a request for keys that accepts only `application/json`.
const KEYS_TYPE: &str = "application/jwk-set+json, application/json";
const CONFIGURATION_TYPE: &str = "application/json";

/// Reads the documents from the API server. This requires the ClusterRole `system:service-account-issuer-discovery`, which Kubernetes
/// binds to all service accounts (`system:serviceaccounts`) by default.
#[derive(Debug)]
pub struct ApiKeySource(Client);

impl ApiKeySource {
    /// Creates a source that uses this client.
    pub fn new(client: Client) -> Self {
        Self(client)
    }

    async fn document(&self, target: &str, media_type: &str) -> Result<Bytes, KeySourceError> {
        Ok(self.0.get_document(target, media_type, MAX_DOCUMENT).await?.into())
    }
}

impl KeySource for ApiKeySource {
    fn keys(&self) -> BoxFuture<'_, Result<Bytes, KeySourceError>> {
        self.document(KEYS, KEYS_TYPE).boxed()
    }

    fn configuration(&self) -> BoxFuture<'_, Result<Bytes, KeySourceError>> {
        self.document(CONFIGURATION, CONFIGURATION_TYPE).boxed()
    }
}

#[cfg(test)]
mod tests;
