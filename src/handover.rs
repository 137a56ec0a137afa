//! Hands the pod-facing listening socket from the running daemon to its successor, so that a rolling update loses no
//! connection.
//!
//! Two sockets at one port (`SO_REUSEPORT`) have separate queues: the successor would get connections as soon as it listens,
//! before it knows its pods, and connections in the queue of the terminating daemon would be reset. A socket that both
//! processes hold has one queue. The running daemon *offers* its socket at a Unix socket; a newcomer *takes* it from there
//! (`SCM_RIGHTS`, unix(7)), accepts from it once it can serve, and offers it in turn. The socket closes with the last process
//! that holds it.
//!
//! The connection that transferred the socket stays open while both daemons accept, so that each knows about the other: a
//! daemon that knows that another one accepts from the queue need not empty it before it ends.

use std::borrow::Cow;
use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::net::{SocketAddr, TcpListener as StdListener};
use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage, SendFlags};
use rustix::process::geteuid;
use socket2::{Protocol, Socket, Type};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, Interest};
use tokio::net::{UnixListener, UnixStream};
use tokio::task::JoinSet;
use tokio::time::timeout;
use tracing::{info, warn};

use crate::advice::{Advise, chain};
use crate::log_once::Changes;
use crate::unix_socket::{self, PathState, PlaceError};

mod listeners;

/// The byte that accompanies the socket: the version of this protocol.
const GIVEN: u8 = 1;
/// The byte that a newcomer sends when it accepts connections.
const ACCEPTS: u8 = 2;
/// Time limit for receiving the socket: a daemon that is stopped or hangs must not keep its successor from starting.
const TAKE_TIMEOUT: Duration = Duration::from_secs(2);
/// The interval between checks of whether the socket is still offered.
const LOOK_AGAIN: Duration = Duration::from_secs(2);
/// The maximum number of concurrent newcomers.
const MAX_NEWCOMERS: usize = 16;

/// The reason why the socket was not taken over.
#[derive(Debug, thiserror::Error)]
pub(crate) enum HandoverError {
    /// The path is not trustworthy.
    #[error(transparent)]
    Path(#[from] PlaceError),
    /// The offering process runs as another user.
    #[error("the process that offers the socket has the user ID {0}, not the daemon's")]
    OtherUser(u32),
    /// The socket did not arrive in time.
    #[error("the other daemon did not hand over its socket within {} seconds", TAKE_TIMEOUT.as_secs())]
    TimedOut,
    /// The received descriptor is not the requested socket.
    #[error("the offered socket cannot be used: {0}")]
    Wrong(String),
    /// The exchange failed.
    #[error("cannot take the socket")]
    Io(#[from] io::Error),
}

impl Advise for HandoverError {
    fn advice(&self) -> Option<Cow<'static, str>> {
        match self {
            Self::Path(error) => error.advice(),
            Self::OtherUser(_) | Self::TimedOut | Self::Wrong(_) | Self::Io(_) => {
                Some("check that both daemons have the same user, version and --app-port".into())
            }
        }
    }
}

/// The number of other daemons that accept from the same queue; cheap to clone.
#[derive(Clone, Debug, Default)]
pub(crate) struct AcceptQueue(Arc<AtomicUsize>);

/// Counts one other daemon until dropped.
#[derive(Debug)]
struct Other(AcceptQueue);

impl AcceptQueue {
    /// Returns whether another daemon accepts the connections that are left in the queue.
    pub(crate) fn is_shared(&self) -> bool {
        self.0.load(Ordering::SeqCst) > 0
    }

    fn join(&self) -> Other {
        self.0.fetch_add(1, Ordering::SeqCst);
        Other(self.clone())
    }
}

impl Drop for Other {
    fn drop(&mut self) {
        self.0.0.fetch_sub(1, Ordering::SeqCst);
    }
}

/// A socket taken over from a running daemon, and the connection to that daemon.
#[derive(Debug)]
pub(crate) struct TakenOver {
    /// The listening socket, from which nothing has been accepted yet.
    pub socket: StdListener,
    /// The daemon that gave it.
    pub giver: Giver,
}

/// The daemon that gave the socket, for as long as it accepts connections.
#[derive(Debug)]
pub(crate) struct Giver(UnixStream);

impl Giver {
    /// Returns when that daemon has stopped accepting connections.
    pub(crate) async fn gone(&mut self) {
        // It sends nothing more, so any result means that it has ended.
        let _ = self.0.read_u8().await;
    }

    /// Notifies that daemon that this one accepts connections, too.
    pub(crate) async fn accepting(&mut self) {
        // If it has ended, it need not be notified.
        let _ = self.0.write_u8(ACCEPTS).await;
    }
}

/// Requests the socket that listens on `wanted` from the daemon that offers one at `path`; `None` if no daemon does.
pub(crate) async fn take(path: &Path, wanted: SocketAddr) -> Result<Option<TakenOver>, HandoverError> {
    unix_socket::check_directory(path)?;
    if unix_socket::look(path)? == PathState::Nothing {
        return Ok(None);
    }
    let taken = async {
        let stream = match UnixStream::connect(path).await {
            Ok(stream) => stream,
            // A leftover of a daemon that has ended.
            Err(error) if matches!(error.kind(), io::ErrorKind::ConnectionRefused | io::ErrorKind::NotFound) => return Ok(None),
            Err(error) => return Err(error.into()),
        };
        let user = stream.peer_cred()?.uid();
        if user != geteuid().as_raw() {
            return Err(HandoverError::OtherUser(user));
        }
        let given = stream.async_io(Interest::READABLE, || receive(&stream)).await?;
        let socket = check(given, wanted)?;
        Ok(Some(TakenOver { socket, giver: Giver(stream) }))
    };
    timeout(TAKE_TIMEOUT, taken).await.unwrap_or(Err(HandoverError::TimedOut))
}

/// Offers the socket at `path` for as long as this is polled. `giver` is the daemon that gave it to this one. If the path stops
/// answering because a daemon that offered the socket later has ended, this one offers it again. Meanwhile, other sockets that
/// listen on the same port are reported.
pub(crate) async fn offer(path: PathBuf, socket: OwnedFd, queue: AcceptQueue, giver: Option<Giver>) {
    let socket = Arc::new(socket);
    tokio::join!(listeners::watch(socket.clone()), keep_offered(path, socket, queue, giver));
}

async fn keep_offered(path: PathBuf, socket: Arc<OwnedFd>, queue: AcceptQueue, giver: Option<Giver>) {
    let mut others = JoinSet::new();
    if let Some(mut giver) = giver {
        let other = queue.join();
        others.spawn(async move {
            giver.gone().await;
            drop(other);
        });
    }
    let (mut offered, mut failure, mut first) = (None::<(UnixListener, u64)>, Changes::default(), true);
    loop {
        // The first time, this daemon takes over the path from any earlier one.
        if std::mem::take(&mut first) || !is_offered(&path, offered.as_ref().map(|(_, inode)| *inode)).await {
            match unix_socket::check_directory(&path).and_then(|()| unix_socket::place(&path)) {
                Ok(placed) => {
                    info!(event = "handover-offered", path = %path.display(), "offering the pods' socket to the next daemon");
                    offered = Some(placed);
                    failure.forget();
                }
                Err(error) => {
                    let text = chain(&error);
                    if failure.is_new(text.clone()) {
                        warn!(
                            event = "handover-offer-failed",
                            error = text,
                            advice = error.advice().as_deref(),
                            "cannot offer the pods' socket at --handover-socket; retrying; until it succeeds, pods' connections may fail \
                             during an update"
                        );
                    }
                }
            }
        }
        let accept = async {
            match &offered {
                Some((listener, _)) => give_to_all(listener, &socket, &queue, &mut others).await,
                None => std::future::pending().await,
            }
        };
        let _ = timeout(LOOK_AGAIN, accept).await;
    }
}

async fn give_to_all(listener: &UnixListener, socket: &Arc<OwnedFd>, queue: &AcceptQueue, others: &mut JoinSet<()>) {
    loop {
        while others.try_join_next().is_some() {}
        match listener.accept().await {
            Ok((stream, _)) if others.len() < MAX_NEWCOMERS => {
                let (socket, queue) = (socket.clone(), queue.clone());
                others.spawn(async move { give(stream, &socket, &queue).await });
            }
            Ok(_) => warn!(
                event = "handover-busy",
                "too many processes ask for the pods' socket at the same time; closing the connection of the latest one; if this persists, find what connects to --handover-socket"
            ),
            Err(error) => {
                warn!(event = "handover-accept-failed", %error, "cannot accept a connection at --handover-socket; retrying");
                tokio::time::sleep(LOOK_AGAIN).await;
            }
        }
    }
}

/// Gives the socket to one newcomer, and keeps the connection until the newcomer ends.
async fn give(mut stream: UnixStream, socket: &OwnedFd, queue: &AcceptQueue) {
    match stream.peer_cred() {
        Ok(peer) if peer.uid() == geteuid().as_raw() => {}
        Ok(peer) => {
            return warn!(
                event = "handover-refused",
                user = peer.uid(),
                "a process of another user asked for the pods' socket; refusing it; find out what runs as this user and has access to \
                 --handover-socket"
            );
        }
        Err(error) => {
            return warn!(
                event = "handover-refused", %error,
                "cannot determine the user of the process that asked for the pods' socket; refusing it"
            );
        }
    }
    if stream.async_io(Interest::WRITABLE, || send(&stream, socket)).await.is_err() {
        return;
    }
    // A client that only checks whether the socket is offered sends nothing and closes the connection.
    if let Ok(ACCEPTS) = stream.read_u8().await {
        info!(event = "handover-shared", "another daemon now accepts pods' connections as well");
        let other = queue.join();
        let _ = stream.read_u8().await;
        drop(other);
        info!(event = "handover-shared-ended", "the other daemon no longer accepts pods' connections");
    }
}

/// Returns whether a daemon, this one or another, answers at the path.
async fn is_offered(path: &Path, own: Option<u64>) -> bool {
    let is_ours = own.is_some() && unix_socket::inode(path) == own;
    is_ours || (matches!(unix_socket::look(path), Ok(PathState::Socket)) && UnixStream::connect(path).await.is_ok())
}

fn send(stream: &UnixStream, socket: &OwnedFd) -> io::Result<()> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    let fds = [socket.as_fd()];
    if !control.push(SendAncillaryMessage::ScmRights(&fds)) {
        return Err(io::Error::other("no room for a descriptor"));
    }
    rustix::net::sendmsg(stream, &[IoSlice::new(&[GIVEN])], &mut control, SendFlags::NOSIGNAL)?;
    Ok(())
}

/// Receives one message with exactly one descriptor.
fn receive(stream: &UnixStream) -> io::Result<OwnedFd> {
    let (mut byte, mut space) = ([0; 1], [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))]);
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let message = rustix::net::recvmsg(stream, &mut [IoSliceMut::new(&mut byte)], &mut control, RecvFlags::CMSG_CLOEXEC)?;
    let mut fds = Vec::new();
    for message in control.drain() {
        if let RecvAncillaryMessage::ScmRights(given) = message {
            fds.extend(given);
        }
    }
    match (message.bytes, byte[0], fds.pop(), fds.is_empty()) {
        (1, GIVEN, Some(fd), true) => Ok(fd),
        (0, ..) => Err(io::Error::other("the other daemon ended before it handed over its socket")),
        _ => Err(io::Error::other("the other daemon hands over its socket in an unknown format; it may be another version")),
    }
}

/// Returns the socket if it is like the one that this daemon would have created itself.
fn check(given: OwnedFd, wanted: SocketAddr) -> Result<StdListener, HandoverError> {
    let wrong = |what: &str| Err(HandoverError::Wrong(what.to_owned()));
    let inode = std::fs::File::from(given.try_clone()?).metadata()?.ino();
    let socket = Socket::from(given);
    let is_tcp = socket.r#type().is_ok_and(|kind| kind == Type::STREAM) && socket.protocol().is_ok_and(|p| p == Some(Protocol::TCP));
    if !is_tcp || !socket.is_listener()? {
        return wrong("it does not listen for TCP connections");
    }
    let address = socket.local_addr()?.as_socket();
    if address != Some(wanted) {
        let Some(address) = address else { return wrong("it is not bound to an IP address") };
        return wrong(&format!("it is bound to {address} instead of {wanted}"));
    }
    if wanted.is_ipv6() && wanted.ip().is_unspecified() && socket.only_v6()? {
        return wrong("it does not accept IPv4 connections");
    }
    if !listeners::has(inode) {
        return wrong("it is in another network namespace");
    }
    socket.set_nonblocking(true)?;
    Ok(socket.into())
}

#[cfg(test)]
mod tests;
