//! The ports: taken from the daemon before where it gives its own, else bound; and when what comes in is accepted.

use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener as StdListener};
use std::path::Path;
use std::time::Duration;

use anyhow::Context as _;
use socket2::{Domain, SockRef, Socket, Type};
use tokio::net::TcpListener;
use tracing::{debug, info, warn};

use super::failure::Failure;
use crate::advice::{Advise as _, chain};
use crate::config::{self, IdentityEndpoint, ServerConfig};
use crate::handover::{self, Giver, TakenOver};

/// Connections that the kernel keeps for us until they are accepted.
const BACKLOG: i32 = 1024;
/// Bytes of a connection's buffer in the kernel, each way; it takes twice as much for its own bookkeeping (socket(7)). A head has at
/// most 16 KiB, and answers are smaller.
const SOCKET_BUFFER: usize = 16 * 1024;
/// Between two looks at a port that somebody else has.
const LOOK_AGAIN: Duration = Duration::from_millis(250);

/// The pod-facing port, before anything is accepted.
#[derive(Debug)]
pub(super) enum PodListener {
    /// Ours alone, as far as is known: it listens, and is accepted from as soon as may be.
    Own(StdListener),
    /// Another daemon listens at this port on a socket of its own. The kernel would give us half of its connections, so ours
    /// is bound, but does not listen before they can be served. The last field is the flag that sets the address.
    Beside(Socket, SocketAddr, &'static str),
    /// The socket of a daemon that serves on: who is not accepted here is accepted there.
    Shared(TakenOver),
}

impl PodListener {
    /// Binds the app port. See [`Self::bind`].
    pub(super) async fn find(config: &ServerConfig) -> anyhow::Result<Self> {
        let (socket, wanted) = unbound(config.address, config.port)?;
        Self::bind(socket, wanted, "--app-port", config.handover_socket.as_deref()).await
    }

    /// Binds an address of Pod Identity, which this flag chooses, even if the node does not have it yet. See [`Self::bind`].
    pub(super) async fn find_for_pod_identity(
        address: SocketAddr,
        flag: &'static str,
        handover_socket: Option<&Path>,
    ) -> anyhow::Result<Self> {
        let (socket, wanted) = unbound(Some(address.ip()), address.port())?;
        match address {
            SocketAddr::V4(_) => socket.set_freebind_v4(true)?,
            SocketAddr::V6(_) => socket.set_freebind_v6(true)?,
        }
        Self::bind(socket, wanted, flag, handover_socket).await
    }

    /// Binds a port. Without `--handover-socket`, no other process can listen on it while this daemon does. With it,
    /// other processes of the same user can, so that the next daemon can start even if the handover fails.
    async fn bind(socket: Socket, wanted: SocketAddr, flag: &'static str, handover_socket: Option<&Path>) -> anyhow::Result<Self> {
        socket.set_reuse_address(true)?;
        let Some(path) = handover_socket else {
            // Never with SO_REUSEPORT: the kernel would give some of the pods' connections to any other process of this user,
            // usually root, that binds the same port with it.
            bind(&socket, wanted, flag)?;
            listen(&socket, wanted, flag)?;
            return Ok(Self::Own(socket.into()));
        };
        if wanted.port() != 0 {
            match handover::take(path, wanted).await {
                Ok(Some(taken)) => {
                    bound_memory(&SockRef::from(&taken.socket));
                    info!(event = "handover-received", path = %path.display(), "took over the pods' socket from the running daemon");
                    return Ok(Self::Shared(taken));
                }
                Ok(None) => {}
                Err(error) => not_taken(path, &error),
            }
        }
        let others = listens(wanted);
        // The kernel allows it among sockets of one effective user, all of them with this option (socket(7)).
        socket.set_reuse_port(true)?;
        bind(&socket, wanted, flag).map_err(|error| not_shared(error, flag))?;
        if others {
            warn!(
                event = "handover-missing", address = %wanted, flag,
                "another daemon listens on this address for pods and did not hand over its socket; waiting until this daemon can serve, then \
                 listening too; pods' connections may fail during the switch; check that both daemons have the same --handover-socket"
            );
            return Ok(Self::Beside(socket, wanted, flag));
        }
        listen(&socket, wanted, flag)?;
        Ok(Self::Own(socket.into()))
    }

    /// Where it is.
    pub(super) fn address(&self) -> io::Result<SocketAddr> {
        match self {
            Self::Own(socket) => socket.local_addr(),
            Self::Beside(_, wanted, _) => Ok(*wanted),
            Self::Shared(taken) => taken.socket.local_addr(),
        }
    }

    /// Listens as soon as nobody else does: connections then wait for us. Returns when that is done.
    pub(super) async fn listen_when_alone(&mut self) -> anyhow::Result<()> {
        let Self::Beside(socket, wanted, flag) = self else { return std::future::pending().await };
        while listens(*wanted) {
            tokio::time::sleep(LOOK_AGAIN).await;
        }
        listen(socket, *wanted, flag)?;
        info!(event = "app-port-acquired", address = %wanted, flag, "no other process listens on this address for pods any more; listening on it");
        *self = Self::Own(socket.try_clone()?.into());
        Ok(())
    }

    /// The listener, when connections are to be accepted from it: at once where nobody else does, else when this daemon is
    /// `able` to serve, or the other is gone.
    pub(super) async fn open(mut self, able: impl Future<Output = ()>) -> anyhow::Result<(TcpListener, Option<Giver>)> {
        let mut able = std::pin::pin!(able);
        tokio::select! {
            biased;
            () = &mut able => {}
            alone = self.alone() => alone?,
        }
        let (socket, giver) = match self {
            Self::Own(socket) => (socket, None),
            Self::Beside(socket, wanted, flag) => {
                listen(&socket, wanted, flag)?;
                (socket.into(), None)
            }
            Self::Shared(TakenOver { socket, mut giver }) => {
                giver.accepting().await;
                (socket, Some(giver))
            }
        };
        Ok((TcpListener::from_std(socket)?, giver))
    }

    /// Returns when nobody else accepts.
    async fn alone(&mut self) -> anyhow::Result<()> {
        match self {
            Self::Own(_) => Ok(()),
            Self::Beside(..) => self.listen_when_alone().await,
            Self::Shared(taken) => {
                taken.giver.gone().await;
                info!(event = "handover-previous-daemon-gone", "the previous daemon no longer accepts connections; accepting them now");
                Ok(())
            }
        }
    }
}

fn not_taken(path: &Path, error: &handover::HandoverError) {
    warn!(
        event = "handover-take-failed", path = %path.display(), error = chain(&error), advice = error.advice().as_deref(),
        "cannot take over the pods' socket through --handover-socket; opening a new socket; pods' connections may fail during the switch"
    );
}

/// Explains why a daemon that may share its port cannot bind it.
fn not_shared(error: anyhow::Error, flag: &str) -> anyhow::Error {
    if is_in_use(&error) {
        let cause = format!("the port of {flag} is in use by another program, or by a daemon without --handover-socket");
        error.context(Failure::new(cause, "stop that program or daemon first"))
    } else {
        error
    }
}

/// The port of operators.
pub(super) fn listen_for_operators(address: Option<IpAddr>, port: u16) -> anyhow::Result<TcpListener> {
    let (socket, wanted) = unbound(address, port)?;
    socket.set_reuse_address(true)?;
    bind(&socket, wanted, "--metrics-port")?;
    listen(&socket, wanted, "--metrics-port")?;
    Ok(TcpListener::from_std(socket.into())?)
}

/// Listens on the metrics port once the previous daemon, or another program, releases it.
pub(super) async fn wait_for_operators(address: Option<IpAddr>, port: u16) -> TcpListener {
    warn!(
        event = "metrics-port-in-use",
        port,
        "the previous daemon or another program uses the metrics port; retrying until it is free; with --probe-socket, 'rolegate probe' \
         works meanwhile"
    );
    loop {
        tokio::time::sleep(LOOK_AGAIN).await;
        if let Ok(listener) = listen_for_operators(address, port) {
            info!(event = "metrics-port-acquired", port, "the metrics port is free; listening on it");
            return listener;
        }
    }
}

/// Whether a port is in use, of all that [`listen_for_operators`] may fail for.
pub(super) fn is_in_use(error: &anyhow::Error) -> bool {
    error.downcast_ref::<io::Error>().is_some_and(|error| error.kind() == io::ErrorKind::AddrInUse)
}

/// A socket, and what it is to be bound to. Without an address, all of them: IPv6 and IPv4 in one where the node has IPv6.
fn unbound(address: Option<IpAddr>, port: u16) -> anyhow::Result<(Socket, SocketAddr)> {
    let wanted = config::listen_address(address, port);
    let socket = match Socket::new(Domain::for_address(wanted), Type::STREAM, None) {
        Ok(socket) => socket,
        // A kernel without IPv6.
        Err(_) if address.is_none() => return unbound(Some(Ipv4Addr::UNSPECIFIED.into()), port),
        Err(error) => return Err(error).context("cannot create a socket"),
    };
    if address.is_none() && socket.set_only_v6(false).is_err() {
        return unbound(Some(Ipv4Addr::UNSPECIFIED.into()), port);
    }
    socket.set_nonblocking(true)?;
    bound_memory(&SockRef::from(&socket));
    Ok((socket, wanted))
}

/// Bounds what the kernel keeps for each connection that is accepted here: bytes that the daemon has not read yet, and answers
/// that the peer has not taken. A peer that only sends must not use up the daemon's memory, to which the kernel's counts.
fn bound_memory(socket: &SockRef<'_>) {
    for bounded in [socket.set_recv_buffer_size(SOCKET_BUFFER), socket.set_send_buffer_size(SOCKET_BUFFER)] {
        if let Err(error) = bounded {
            debug!(%error, "cannot limit the socket buffers of connections");
        }
    }
}

fn bind(socket: &Socket, wanted: SocketAddr, flag: &str) -> anyhow::Result<()> {
    socket.bind(&wanted.into()).with_context(|| cannot_listen(wanted, flag))
}

fn listen(socket: &Socket, wanted: SocketAddr, flag: &str) -> anyhow::Result<()> {
    socket.listen(BACKLOG).with_context(|| cannot_listen(wanted, flag))
}

fn cannot_listen(wanted: SocketAddr, flag: &str) -> Failure {
    let port = wanted.port();
    let cause = if wanted.ip().is_unspecified() {
        format!("cannot listen on port {port}")
    } else {
        format!("cannot listen on {} port {port}", wanted.ip())
    };
    // The port of the relative URI is fixed.
    let change = if flag == IdentityEndpoint::RelativeUri.flag() { "remove" } else { "choose another" };
    Failure::new(cause, format!("{change} {flag}, or stop the program that uses the port"))
}

/// Whether somebody listens there: with SO_REUSEADDR, and without SO_REUSEPORT, a port can be bound unless somebody listens
/// (socket(7)).
pub(super) fn listens(address: SocketAddr) -> bool {
    let tried = unbound(Some(address.ip()), address.port()).and_then(|(socket, _)| {
        if address.is_ipv6() && address.ip().is_unspecified() {
            socket.set_only_v6(false)?;
        }
        socket.set_reuse_address(true)?;
        Ok(socket.bind(&address.into())?)
    });
    address.port() != 0 && tried.is_err_and(|error| is_in_use(&error))
}

#[cfg(test)]
mod tests;
