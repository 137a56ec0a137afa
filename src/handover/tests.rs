use std::fs;
use std::net::TcpStream;
use std::os::fd::AsFd as _;

use super::*;
use crate::advice::chain;

fn listener() -> (StdListener, SocketAddr) {
    let socket = StdListener::bind(("127.0.0.1", 0)).unwrap();
    socket.set_nonblocking(true).unwrap();
    let address = socket.local_addr().unwrap();
    (socket, address)
}

struct Bed {
    _directory: tempfile::TempDir,
    path: PathBuf,
}

impl Bed {
    fn new() -> Bed {
        let directory = tempfile::tempdir().unwrap();
        Bed { path: directory.path().join("handover"), _directory: directory }
    }

    /// Offers a descriptor until dropped.
    fn offer(&self, fd: impl std::os::fd::AsFd, giver: Option<Giver>) -> (JoinSet<()>, AcceptQueue) {
        let (mut offers, queue) = (JoinSet::new(), AcceptQueue::default());
        offers.spawn(offer(self.path.clone(), fd.as_fd().try_clone_to_owned().unwrap(), queue.clone(), giver));
        (offers, queue)
    }

    async fn offered_instead_of(&self, before: Option<u64>) -> Option<u64> {
        eventually(|| unix_socket::inode(&self.path).is_some() && unix_socket::inode(&self.path) != before).await;
        unix_socket::inode(&self.path)
    }

    async fn refused(&self, fd: impl std::os::fd::AsFd, wanted: SocketAddr) -> String {
        let (_offers, _) = self.offer(fd, None);
        self.offered_instead_of(None).await;
        let error = take(&self.path, wanted).await.unwrap_err().to_string();
        fs::remove_file(&self.path).unwrap();
        error
    }
}

async fn eventually(is_so: impl Fn() -> bool) {
    let waited = timeout(Duration::from_secs(20), async {
        while !is_so() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    });
    waited.await.expect("the condition was never met");
}

#[tokio::test]
async fn the_socket_outlives_its_giver_and_loses_no_connection() {
    let bed = Bed::new();
    assert!(take(&bed.path, ([127, 0, 0, 1], 1).into()).await.unwrap().is_none(), "no daemon offers the socket");
    let (first, address) = listener();
    let (offers, queue) = bed.offer(&first, None);
    bed.offered_instead_of(None).await;
    let _waiting = TcpStream::connect(address).unwrap();
    let TakenOver { socket, mut giver } = take(&bed.path, address).await.unwrap().unwrap();
    assert!(!queue.is_shared(), "the newcomer does not accept yet");
    giver.accepting().await;
    eventually(|| queue.is_shared()).await;
    drop((first, offers));
    giver.gone().await;
    socket.accept().expect("the connection that was already queued");
    let _new = TcpStream::connect(address).unwrap();
    socket.accept().unwrap();
    assert!(take(&bed.path, address).await.unwrap().is_none(), "the leftover of the first daemon does not answer");
}

#[tokio::test]
async fn each_daemon_knows_whether_another_live_one_accepts() {
    let bed = Bed::new();
    let (socket, address) = listener();
    let (first, queue_of_first) = bed.offer(&socket, None);
    let inode = bed.offered_instead_of(None).await;
    drop(take(&bed.path, address).await.unwrap());
    let mut taken = take(&bed.path, address).await.unwrap().unwrap();
    taken.giver.accepting().await;
    let (second, queue_of_second) = bed.offer(&taken.socket, Some(taken.giver));
    let inode = bed.offered_instead_of(inode).await;
    eventually(|| queue_of_first.is_shared() && queue_of_second.is_shared()).await;
    drop(second);
    eventually(|| !queue_of_first.is_shared()).await;
    // The socket file at the path belongs to a daemon that has ended; the remaining daemon offers again.
    bed.offered_instead_of(inode).await;
    eventually_taken(&bed, address).await;
    drop(first);
    eventually(|| !queue_of_second.is_shared()).await;
}

async fn eventually_taken(bed: &Bed, address: SocketAddr) {
    let taken = timeout(Duration::from_secs(20), async {
        while take(&bed.path, address).await.unwrap().is_none() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    });
    taken.await.expect("no daemon offers the socket");
}

#[tokio::test]
async fn only_the_socket_that_is_wanted_is_taken() {
    let bed = Bed::new();
    let (socket, address) = listener();
    let other = SocketAddr::new(address.ip(), address.port() ^ 1);
    let error = bed.refused(&socket, other).await;
    assert!(error.contains(&format!("it is bound to {address} instead of {other}")), "{error}");
    let error = bed.refused(&socket, SocketAddr::new([0, 0, 0, 0].into(), address.port())).await;
    assert!(error.contains("instead of"), "{error}");
    let not_tcp = "it does not listen for TCP connections";
    let connected = TcpStream::connect(address).unwrap();
    let datagram = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
    let of_unix = std::os::unix::net::UnixListener::bind(bed.path.with_extension("other")).unwrap();
    for (what, fd) in [("connected", connected.as_fd()), ("datagram", datagram.as_fd()), ("of Unix", of_unix.as_fd())] {
        let error = bed.refused(fd, address).await;
        assert!(error.contains(not_tcp), "{what}: {error}");
    }
    let file = tempfile::tempfile().unwrap();
    let error = bed.refused(&file, address).await;
    assert!(error.contains("it does not listen"), "a file: {error}");
}

#[tokio::test]
async fn an_ipv6_only_socket_is_not_taken_for_dual_stack() {
    let socket = Socket::new(socket2::Domain::IPV6, Type::STREAM, None).unwrap();
    socket.set_only_v6(true).unwrap();
    socket.bind(&SocketAddr::from((std::net::Ipv6Addr::UNSPECIFIED, 0)).into()).unwrap();
    socket.listen(1).unwrap();
    let wanted = socket.local_addr().unwrap().as_socket().unwrap();
    let error = Bed::new().refused(&socket, wanted).await;
    assert!(error.contains("does not accept IPv4"), "{error}");
}

#[tokio::test(start_paused = true)]
async fn a_hanging_daemon_does_not_block_its_successor() {
    let bed = Bed::new();
    let _hangs = unix_socket::place(&bed.path).unwrap();
    assert!(matches!(take(&bed.path, ([127, 0, 0, 1], 1).into()).await, Err(HandoverError::TimedOut)));
}

#[tokio::test]
async fn an_unknown_protocol_is_rejected() {
    let bed = Bed::new();
    let (listener, _) = unix_socket::place(&bed.path).unwrap();
    for (said, expected) in [(&b""[..], "ended before"), (&[GIVEN], "unknown format"), (b"HTTP", "unknown format")] {
        let (taken, ()) = tokio::join!(take(&bed.path, ([127, 0, 0, 1], 1).into()), async {
            let (mut stream, _) = listener.accept().await.unwrap();
            stream.write_all(said).await.unwrap();
        });
        let error = chain(&taken.unwrap_err());
        assert!(error.contains(expected), "{said:?}: {error}");
    }
}

#[tokio::test]
async fn an_untrusted_path_is_not_connected_to() {
    let bed = Bed::new();
    fs::write(&bed.path, "").unwrap();
    assert!(matches!(take(&bed.path, ([127, 0, 0, 1], 1).into()).await, Err(HandoverError::Path(PlaceError::Foreign(_)))));
    let shared = Path::new("/tmp/rolegate-handover");
    assert!(matches!(take(shared, ([127, 0, 0, 1], 1).into()).await, Err(HandoverError::Path(PlaceError::Exposed(_)))));
}
