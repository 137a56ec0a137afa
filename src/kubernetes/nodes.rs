//! The internal addresses of a node, from its Node object.

use std::net::IpAddr;

use k8s_openapi::api::core::v1::Node;

use super::client::{Client, encode};
use crate::advice::Advise as _;

/// The reason why a node's addresses are unknown; its text contains the advice.
#[derive(Debug, thiserror::Error)]
pub enum NodeError {
    /// The API refused the request; a retry will not help.
    #[error("{0}")]
    Refused(String),
    /// The API could not be reached; a retry may help.
    #[error("{0}")]
    NotReached(String),
}

/// Returns the internal addresses of a node.
pub async fn node_addresses(client: &Client, node: &str) -> Result<Vec<IpAddr>, NodeError> {
    let target = format!("/api/v1/nodes/{}", encode(node));
    let answer = client.get(&target).await.map_err(|error| match error.code() {
        Some(code) if (400..500).contains(&code) && code != 429 => NodeError::Refused(error.with_advice()),
        _ => NodeError::NotReached(error.with_advice()),
    })?;
    let object: Node = serde_json::from_slice(&answer).map_err(|_| NodeError::Refused("the node's object cannot be read".to_owned()))?;
    let addresses = object.status.and_then(|status| status.addresses).unwrap_or_default();
    let internal = addresses.iter().filter(|address| address.type_ == "InternalIP");
    Ok(internal.filter_map(|address| address.address.parse().ok()).collect())
}
