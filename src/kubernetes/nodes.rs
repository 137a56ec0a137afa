//! The internal addresses of a node, as its object has them.

use std::net::IpAddr;

use k8s_openapi::api::core::v1::Node;

use super::client::{Client, encode};

/// Why a node's address is not known.
#[derive(Debug, thiserror::Error)]
pub enum NodeError {
    /// The API answered, and will not answer better when asked again.
    #[error("{0}")]
    Refused(String),
    /// It may answer later.
    #[error("{0}")]
    NotReached(String),
}

/// The internal addresses of a node, as its object says them.
pub async fn node_addresses(client: &Client, node: &str) -> Result<Vec<IpAddr>, NodeError> {
    let target = format!("/api/v1/nodes/{}", encode(node));
    let answer = client.get(&target).await.map_err(|error| match error.code() {
        Some(code) if (400..500).contains(&code) && code != 429 => NodeError::Refused(error.to_string()),
        _ => NodeError::NotReached(error.to_string()),
    })?;
    let object: Node = serde_json::from_slice(&answer).map_err(|_| NodeError::Refused("the node's object cannot be read".to_owned()))?;
    let addresses = object.status.and_then(|status| status.addresses).unwrap_or_default();
    let internal = addresses.iter().filter(|address| address.type_ == "InternalIP");
    Ok(internal.filter_map(|address| address.address.parse().ok()).collect())
}
