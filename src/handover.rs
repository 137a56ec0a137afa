//! The listening socket of the pods goes from the daemon that has it to the one that follows it, so that a rolling update
//! loses no connection.
//!
//! Two sockets at one port (`SO_REUSEPORT`) have a queue each: the newcomer is given connections as soon as it listens,
//! before it knows its pods, and what is in the queue of the one that goes is reset. One socket that both hold has one queue.
//! The daemon that serves *offers* it at a Unix socket; a newcomer *takes* it there (`SCM_RIGHTS`, unix(7)), accepts from it
//! when it can serve, and offers it in turn. It closes with the last process that holds it.
//!
//! The connection that the socket came by stays open while both accept, so that each knows of the other: who knows that
//! somebody else accepts from the queue need not empty it before it ends.

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

use crate::log_once::Changes;
use crate::unix_socket::{self, PathState, PlaceError};

mod listeners;

/// What comes with the socket: the version of this exchange.
const GIVEN: u8 = 1;
/// What the newcomer says when it accepts.
const ACCEPTS: u8 = 2;
/// Time to be given the socket: a daemon that is stopped or hangs must not keep the next one from its start.
const TAKE_TIMEOUT: Duration = Duration::from_secs(2);
/// Between two looks at whether somebody offers the socket.
const LOOK_AGAIN: Duration = Duration::from_secs(2);
/// Newcomers at one time.
const MAX_NEWCOMERS: usize = 16;

/// Why the socket was not taken over.
#[derive(Debug, thiserror::Error)]
pub(crate) enum HandoverError {
    /// The path is not to be trusted.
    #[error(transparent)]
    Path(#[from] PlaceError),
    /// Who is there is not this user.
    #[error("who offers a socket there has the user id {0}, and not the daemon's")]
    OtherUser(u32),
    /// Nothing came.
    #[error("the daemon there gave no socket in {} seconds", TAKE_TIMEOUT.as_secs())]
    TimedOut,
    /// What came is not what was asked for.
    #[error("what was offered there is not this daemon's socket: {0}")]
    Wrong(String),
    /// The exchange failed.
    #[error("it could not be taken: {0}")]
    Io(#[from] io::Error),
}

/// How many other daemons accept from the same queue; cheap to clone.
#[derive(Clone, Debug, Default)]
pub(crate) struct AcceptQueue(Arc<AtomicUsize>);

/// That one more does, until dropped.
#[derive(Debug)]
struct Other(AcceptQueue);

impl AcceptQueue {
    /// Whether what is left in the queue is taken by somebody else.
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

/// The socket of a daemon that serves, and that daemon.
#[derive(Debug)]
pub(crate) struct TakenOver {
    /// It listens, and nothing was accepted from it yet.
    pub socket: StdListener,
    /// Who gave it.
    pub giver: Giver,
}

/// The daemon that gave the socket, for as long as it accepts.
#[derive(Debug)]
pub(crate) struct Giver(UnixStream);

impl Giver {
    /// Returns when it accepts no more.
    pub(crate) async fn gone(&mut self) {
        // It sends nothing more: whatever comes is the end.
        let _ = self.0.read_u8().await;
    }

    /// Tells it that this daemon accepts, too.
    pub(crate) async fn accepting(&mut self) {
        // One that is gone need not know.
        let _ = self.0.write_u8(ACCEPTS).await;
    }
}

/// Asks who offers a socket at `path` for the one that listens on `wanted`; `None` where nobody does.
pub(crate) async fn take(path: &Path, wanted: SocketAddr) -> Result<Option<TakenOver>, HandoverError> {
    unix_socket::check_directory(path)?;
    if unix_socket::look(path)? == PathState::Nothing {
        return Ok(None);
    }
    let taken = async {
        let stream = match UnixStream::connect(path).await {
            Ok(stream) => stream,
            // What a daemon that has ended left behind.
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

/// Offers the socket at `path`, for as long as this is polled. `giver` is who gave it to us. Where nobody can be asked at the
/// path any more, because a daemon that offered it after us has ended, it is offered again. Meanwhile, other sockets that listen
/// on the same port are reported.
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
        // The first time it is ours to offer, whoever did before.
        if std::mem::take(&mut first) || !is_offered(&path, offered.as_ref().map(|(_, inode)| *inode)).await {
            match unix_socket::check_directory(&path).and_then(|()| unix_socket::place(&path)) {
                Ok(placed) => {
                    info!(event = "handover-offered", path = %path.display(), "offering the pods' socket to the next daemon");
                    offered = Some(placed);
                    failure.forget();
                }
                Err(error) => {
                    let error = error.to_string();
                    if failure.is_new(error.clone()) {
                        warn!(
                            event = "handover-offer-failed", %error,
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
                "too many processes ask for the pods' socket at the same time; closing the connection of the latest one"
            ),
            Err(error) => {
                warn!(event = "handover-accept-failed", %error, "cannot accept a connection at --handover-socket; retrying");
                tokio::time::sleep(LOOK_AGAIN).await;
            }
        }
    }
}

/// Gives the socket to one newcomer, and stays with it until it ends.
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
    // One that looks whether the socket is offered says nothing, and is gone.
    if let Ok(ACCEPTS) = stream.read_u8().await {
        info!(event = "handover-shared", "another daemon now accepts pods' connections as well");
        let other = queue.join();
        let _ = stream.read_u8().await;
        drop(other);
        info!(event = "handover-shared-ended", "the other daemon no longer accepts pods' connections");
    }
}

/// Whether somebody can be asked at the path: we ourselves, or another.
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

/// The one descriptor of one message.
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
        (0, ..) => Err(io::Error::other("the daemon there ended before it gave anything")),
        _ => Err(io::Error::other("the daemon there gives its socket in another way; is it of another version?")),
    }
}

/// The socket, if it is what this daemon would have made for itself.
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
        let has = address.map_or_else(|| "no address of IP".to_owned(), |address| address.to_string());
        return wrong(&format!("it has {has}, and {wanted} is wanted"));
    }
    if wanted.is_ipv6() && wanted.ip().is_unspecified() && socket.only_v6()? {
        return wrong("it takes no connections of IPv4");
    }
    if !listeners::has(inode) {
        return wrong("it is of another network");
    }
    socket.set_nonblocking(true)?;
    Ok(socket.into())
}

#[cfg(test)]
mod tests;
