//! The listeners of Pod Identity, and the node's addresses for them.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use anyhow::Context as _;
use tracing::info;

use super::listener::PodListener;
use crate::config::PodIdentityConfig;
use crate::pod_identity::addresses;

/// A listener of Pod Identity.
#[derive(Debug)]
pub(super) struct IdentityListener {
    /// The socket.
    pub(super) listener: PodListener,
    /// Where the socket is handed to the next daemon.
    pub(super) handover_socket: Option<PathBuf>,
}

/// Assigns the addresses to the node and listens on them. Without Pod Identity, removes the addresses of an earlier daemon.
pub(super) async fn listen(config: Option<&PodIdentityConfig>, handover_socket: Option<&Path>) -> anyhow::Result<Vec<IdentityListener>> {
    let Some(config) = config else {
        addresses::withdraw();
        return Ok(Vec::new());
    };
    addresses::place(&config.assigned()).context("--pod-identity")?;
    let mut listeners = Vec::new();
    for address in config.listen_addresses() {
        let handover_socket = handover_socket.map(|path| handover_path(path, address));
        let listener = PodListener::find_for_pod_identity(address, handover_socket.as_deref()).await?;
        info!(event = "pod-identity-listening", address = %listener.address()?, "serving credentials for service account tokens at this address");
        listeners.push(IdentityListener { listener, handover_socket });
    }
    Ok(listeners)
}

/// Returns the path of the Unix socket that hands over the listener of an address. It is beside that of the app port.
fn handover_path(app_port: &Path, address: SocketAddr) -> PathBuf {
    let mut path = app_port.as_os_str().to_owned();
    path.push(format!("-{}-{}", address.ip(), address.port()));
    path.into()
}
