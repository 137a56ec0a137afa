//! The listeners of Pod Identity, the addresses that they need, and what distinguishes the clients in the node's network.
//!
//! Another program may have one of the ports. The daemon then serves everything else, and retries.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use anyhow::Context as _;
use tracing::{debug, info, warn};

use super::listener::{self, PodListener};
use crate::advice::chain;
use crate::cgroup::{PodCgroups, in_background};
use crate::config::{IdentityEndpoint, PodIdentityConfig};
use crate::netlink::sock_diag::KernelSockets;
use crate::pod_identity::addresses;
use crate::redirect::bpf::cgroups::PodsCgroup;
use crate::server::HostClients;

/// The pause between attempts to find the control group of all pods.
const FIND_AGAIN: Duration = Duration::from_secs(10);
/// The pause between attempts to listen on a port that another program has.
const LISTEN_AGAIN: Duration = Duration::from_secs(1);

/// A listener of Pod Identity.
#[derive(Debug)]
pub(super) struct IdentityListener {
    address: SocketAddr,
    /// What the address is for.
    pub(super) endpoint: IdentityEndpoint,
    /// `None` while another program has the port.
    listener: Option<PodListener>,
    /// The path of the Unix socket that hands the listener over to the next daemon.
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
    for (address, endpoint) in config.listen_addresses() {
        let handover_socket = handover_socket.map(|path| handover_path(path, address));
        let listener = match PodListener::find_for_pod_identity(address, endpoint.flag(), handover_socket.as_deref()).await {
            Ok(listener) => {
                report(&listener, endpoint)?;
                Some(listener)
            }
            Err(error) if listener::is_in_use(&error) => {
                warn!(
                    event = "pod-identity-address-in-use", %address, flag = endpoint.flag(),
                    "another program listens on this address of Pod Identity; retrying, serving pods at the other addresses; if it \
                     persists, find the program with 'ss --listening --tcp --processes' on the node"
                );
                None
            }
            Err(error) => return Err(error),
        };
        listeners.push(IdentityListener { address, endpoint, listener, handover_socket });
    }
    Ok(listeners)
}

/// Returns what distinguishes clients in the node's network; `None` if the kernel cannot be asked. The control groups of pods are set later.
pub(super) fn host_clients(cgroups: Arc<OnceLock<PodCgroups>>) -> Option<HostClients> {
    match KernelSockets::open() {
        Ok(sockets) => Some(HostClients::new(Arc::new(sockets), cgroups)),
        Err(error) => {
            warn!(
                event = "socket-owners-unreadable", %error,
                "cannot ask the kernel for the control groups of clients in the node's network; these clients share one limit for \
                 connections, and only tokens identify them; check that the kernel has sock_diag (CONFIG_INET_DIAG)"
            );
            None
        }
    }
}

/// Finds the control group of all pods. It exists once the kubelet has run.
pub(super) async fn find_pods_cgroup(given: Option<PathBuf>, cgroups: Arc<OnceLock<PodCgroups>>) {
    let mut is_news = true;
    loop {
        let given = given.clone();
        match in_background(move || Ok(PodsCgroup::find(given.as_deref()))).await {
            Ok(Ok(pods)) => {
                debug!(cgroup = %pods.path.display(), "found the control group of all pods");
                // Nobody else sets it.
                let _ = cgroups.set(PodCgroups::new(pods.path));
                return std::future::pending().await;
            }
            Ok(Err(error)) if std::mem::take(&mut is_news) => info!(
                event = "pods-cgroup-not-found",
                reason = chain(&error),
                "cannot see the control groups of pods, so only tokens tell pods with hostNetwork apart; trying again; to let the daemon \
                 see them, mount the node's /sys/fs/cgroup into its container, as daemonset/pod-identity does"
            ),
            Ok(Err(error)) => debug!(error = chain(&error), "still cannot see the control groups of pods"),
            Err(error) => debug!(%error, "cannot look for the control group of all pods"),
        }
        tokio::time::sleep(FIND_AGAIN).await;
    }
}

impl IdentityListener {
    /// Returns the listener. If another program has the port, waits until it is free.
    pub(super) async fn listener(&mut self) -> anyhow::Result<PodListener> {
        loop {
            if let Some(listener) = self.listener.take() {
                return Ok(listener);
            }
            tokio::time::sleep(LISTEN_AGAIN).await;
            match PodListener::find_for_pod_identity(self.address, self.endpoint.flag(), self.handover_socket.as_deref()).await {
                Ok(listener) => {
                    report(&listener, self.endpoint)?;
                    self.listener = Some(listener);
                }
                Err(error) if listener::is_in_use(&error) => {}
                Err(error) => return Err(error),
            }
        }
    }
}

fn report(listener: &PodListener, endpoint: IdentityEndpoint) -> anyhow::Result<()> {
    let (address, flag) = (listener.address()?, endpoint.flag());
    match endpoint {
        IdentityEndpoint::Pods | IdentityEndpoint::HostNetwork => {
            info!(event = "pod-identity-listening", %address, flag, "serving credentials for service account tokens at this address");
        }
        IdentityEndpoint::RelativeUri => {
            info!(event = "pod-identity-listening", %address, flag, "serving credentials without a token at this address");
        }
    }
    Ok(())
}

/// Returns the path of the Unix socket that hands over the listener of an address. It is beside that of the app port.
fn handover_path(app_port: &Path, address: SocketAddr) -> PathBuf {
    let mut path = app_port.as_os_str().to_owned();
    path.push(format!("-{}-{}", address.ip(), address.port()));
    path.into()
}
