//! Tests of pods that use more connections than their share: neither other pods nor the node's own probes are affected.

use std::io::{ErrorKind, Read as _, Write as _};
use std::net::{IpAddr, Shutdown, SocketAddr, TcpStream};
use std::sync::Mutex;
use std::time::{Duration, Instant};

use rolegate_lab::player::{self, Response};
use socket2::SockRef;

use crate::world::{PATIENCE, World, connect, ip};

fn hold(from: IpAddr, to: SocketAddr, count: usize) -> Vec<TcpStream> {
    (0..count).map(|_| connect(from, to).unwrap()).collect()
}

/// Returns how many of these connections the daemon has not closed.
fn open(connections: &[TcpStream]) -> usize {
    let is_open = |mut connection: &TcpStream| {
        connection.set_nonblocking(true).unwrap();
        connection.read(&mut [0]).is_err_and(|error| error.kind() == ErrorKind::WouldBlock)
    };
    connections.iter().filter(|connection| is_open(connection)).count()
}

/// Requests `/healthz`. `None` means that the connection was closed without an answer.
fn health(world: &World, from: IpAddr) -> Option<Response> {
    player::request(connect(from, world.daemon.metrics_address()).unwrap(), "GET", "/healthz", &[("Connection", "close")]).ok()
}

#[test]
fn a_pod_that_holds_the_metrics_port_blocks_neither_node_nor_others() {
    let world = World::start();
    let address = world.daemon.metrics_address();
    let greedy = hold(ip(50), address, 100);
    // Connections are accepted in order: once this one is answered, all before it have been accepted or closed.
    assert_eq!(world.daemon.get(None, "/healthz").unwrap().status, 200);
    assert_eq!(open(&greedy), 8);
    assert_eq!(health(&world, ip(51)).map(|answer| answer.status), Some(200), "each source has a limit of its own");
    assert!(health(&world, ip(50)).is_none());
    let refused = |reason| world.daemon.metric(None, &format!("rolegate_metrics_port_refused_total{{reason=\"{reason}\"}}")).unwrap_or(0.0);
    assert_eq!(refused("unknown-limit") + refused("unknown-rate"), 92.0 + 1.0);

    let gang: Vec<_> = (60..70).flat_map(|last| hold(ip(last), address, 8)).collect();
    assert_eq!(world.daemon.get(None, "/healthz").unwrap().status, 200, "the node has places of its own");
    world.eventually(|_| open(&greedy) + open(&gang), |open| *open <= 64);
    assert_eq!(
        health(&world, ip(51)).map(|answer| answer.status),
        Some(200),
        "the source with the most connections makes room for one with none"
    );

    let of_pod = hold(ip(2), address, 8);
    assert_eq!(world.daemon.get(None, "/healthz").unwrap().status, 200);
    assert_eq!(open(&of_pod), 4, "pods of this node have places of their own");

    drop((greedy, gang));
    world.eventually(|world| health(world, ip(50)).map(|answer| answer.status), |status| *status == Some(200));
}

#[test]
fn a_pod_that_takes_all_connections_leaves_others_their_own() {
    let world = World::start();
    let mut held = hold(ip(2), world.daemon.metadata_address(), 300);
    world.document(ip(3), "db-role");
    // 128 are open, 128 more wait until these are idle, and the others are closed at once. On a slow machine, all may have found a place.
    let refused = |world: &World| world.metric(r#"rolegate_connections_refused_total{reason="source-limit"}"#);
    let deadline = Instant::now() + PATIENCE;
    while refused(&world) < 1.0 {
        assert!(Instant::now() < deadline, "{}", world.daemon.log());
        held.extend(hold(ip(2), world.daemon.metadata_address(), 200));
    }
    // Those that came before the kernel had answered whose address it is are counted by the address, and have as many places.
    world.eventually(|_| open(&held), |open| *open <= 2 * 128);
    let is_about_the_pod =
        |line: &&str| line.contains("connection-limit") && line.contains(r#""pod":"web""#) && line.contains("source-limit");
    let lines = |world: &World| world.daemon.log().lines().filter(is_about_the_pod).count();
    world.eventually(lines, |count| *count > 0);
    assert_eq!(lines(&world), 1, "{}", world.daemon.log());
    let question = connect(IpAddr::from([127, 0, 0, 1]), world.daemon.metrics_address()).unwrap();
    let headers = [("Host", "localhost"), ("x-rolegate-explain", "1"), ("Connection", "close")];
    let report = player::request(question, "GET", "/explain?namespace=shop&pod=web", &headers).unwrap().text();
    assert!(report.contains("source-limit"), "{report}");
    drop(held);
    world.eventually(|world| world.metric("rolegate_connections"), |open| *open == 0.0);
    world.document(ip(2), "web-role");
}

#[test]
fn only_a_pod_that_reconnects_too_often_is_refused_early() {
    let world = World::start_with(|setup| setup.argument("--limits-connection-rate=5"));
    let answered = (0..100).filter(|_| {
        let stream = world.connect(ip(2));
        player::request(stream, "GET", "/latest/meta-data/", &[("Host", "169.254.169.254"), ("Connection", "close")]).is_ok()
    });
    let answered = answered.count();
    assert!((10..100).contains(&answered), "{answered}");
    let refused = |world: &World| world.metric(r#"rolegate_connections_refused_total{reason="source-rate"}"#);
    world.eventually(refused, |count| *count >= (100 - answered) as f64);
    assert_eq!(refused(&world), (100 - answered) as f64);
    world.document(ip(3), "db-role");
}

#[test]
fn the_daemon_does_not_wait_for_a_pod_that_never_reads() {
    let world = World::start();
    let stream = world.connect(ip(2));
    SockRef::from(&stream).set_recv_buffer_size(4096).unwrap();
    world.eventually(|world| world.metric("rolegate_connections"), |open| *open == 1.0);
    let requests = "GET /latest/meta-data/ HTTP/1.1\r\nHost: 169.254.169.254\r\n\r\n".repeat(1000);
    let stuck_since = Mutex::new(Instant::now());
    std::thread::scope(|scope| {
        // Sends until the daemon reads nothing more, because it cannot write.
        scope.spawn(|| {
            while (&stream).write(requests.as_bytes()).is_ok_and(|count| count == requests.len()) {
                *stuck_since.lock().unwrap() = Instant::now();
            }
        });
        // Looks at the daemon's end: the pod's end may learn of it much later, because no packets get through.
        let deadline = Instant::now() + PATIENCE;
        while world.metric("rolegate_connections") != 0.0 && Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(20));
        }
        let waited = stuck_since.lock().unwrap().elapsed();
        stream.shutdown(Shutdown::Both).unwrap_or_default();
        // The kernel alone would take 15 seconds.
        assert!(waited < Duration::from_secs(10), "the connection was kept for {waited:?}");
    });
}

const ENDED_TIMEOUT: &str = r#"rolegate_connections_ended_total{reason="timeout"}"#;
const ENDED_IDLE: &str = r#"rolegate_connections_ended_total{reason="idle"}"#;

/// Waits until the daemon closes a connection.
fn wait_for_end(mut stream: &TcpStream) {
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    let ended = stream.read(&mut [0; 1]);
    assert!(
        matches!(&ended, Ok(0)) || ended.as_ref().is_err_and(|error| error.kind() == ErrorKind::ConnectionReset),
        "the connection is open: {ended:?}"
    );
}

/// Makes a request on a connection that is kept, and returns the status.
pub(crate) fn status_on(mut stream: &TcpStream, token: &str) -> String {
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    let request = format!("GET /latest/meta-data/iam/info HTTP/1.1\r\nHost: 169.254.169.254\r\nX-aws-ec2-metadata-token: {token}\r\n\r\n");
    stream.write_all(request.as_bytes()).unwrap();
    let mut answer = Vec::new();
    while !answer.ends_with(b"}") {
        let mut bytes = [0; 1024];
        let count = stream.read(&mut bytes).unwrap();
        assert!(count > 0, "{}", String::from_utf8_lossy(&answer));
        answer.extend_from_slice(&bytes[..count]);
    }
    String::from_utf8_lossy(&answer[9..12]).into_owned()
}

/// Pollers ask every five seconds on one connection, and must find it open.
#[test]
fn a_kept_connection_outlives_the_head_timeout_and_a_slow_head_does_not() {
    let world = World::start_with(|setup| setup.argument("--limits-head-timeout=200ms"));
    let token = world.new_token(ip(2)).text();
    let (kept, silent) = (world.connect(ip(2)), world.connect(ip(2)));
    assert_eq!(status_on(&kept, &token), "200");
    // Each of these ends after the head timeout, counted from its first byte.
    for round in 0..3 {
        let (new, old) = (world.connect(ip(2)), world.connect(ip(2)));
        assert_eq!(status_on(&old, &token), "200");
        for mut slow in [&new, &old] {
            slow.write_all(b"GET / HTTP/1.1\r\nHost: ").unwrap();
        }
        wait_for_end(&new);
        wait_for_end(&old);
        assert_eq!(world.metric(ENDED_TIMEOUT), f64::from(2 * (round + 1)));
        assert_eq!(status_on(&kept, &token), "200", "in round {round}");
    }
    assert_eq!(status_on(&silent, &token), "200", "one that was opened ahead of its first request");
    assert_eq!(world.metric(ENDED_IDLE), 0.0);
}

#[test]
fn a_slow_head_ends_however_often_a_byte_of_it_arrives() {
    let world = World::start_with(|setup| setup.argument("--limits-head-timeout=500ms"));
    let mut stream = world.connect(ip(2));
    let deadline = Instant::now() + PATIENCE;
    let head = b"GET / HTTP/1.1\r\nX: ".iter().copied().chain(std::iter::repeat(b'x'));
    let ended = head.take_while(|_| Instant::now() < deadline).any(|byte| {
        std::thread::sleep(Duration::from_millis(20));
        stream.write_all(&[byte]).is_err()
    });
    assert!(ended);
    assert_eq!(world.metric(ENDED_TIMEOUT), 1.0);
}

#[test]
fn an_idle_connection_ends_after_the_idle_timeout() {
    let world = World::start_with(|setup| setup.argument("--limits-idle-timeout=300ms").argument("--limits-head-timeout=1m"));
    let token = world.new_token(ip(2)).text();
    let (kept, silent) = (world.connect(ip(2)), world.connect(ip(2)));
    assert_eq!(status_on(&kept, &token), "200");
    wait_for_end(&kept);
    wait_for_end(&silent);
    assert_eq!((world.metric(ENDED_IDLE), world.metric(ENDED_TIMEOUT)), (2.0, 0.0));
}

/// The idle timeout is long, so that what idle connections take must not depend on it.
#[test]
fn pods_that_keep_all_connections_idle_shut_nobody_out() {
    let world = World::start_with(|setup| setup.argument("--limits-connections=32").argument("--limits-idle-timeout=1h"));
    let token = world.new_token(ip(2)).text();
    let held = hold(ip(2), world.daemon.metadata_address(), 8);
    held.iter().for_each(|stream| assert_eq!(status_on(stream, &token), "200"));
    let unknown = hold(ip(77), world.daemon.metadata_address(), 64);
    // All of them are idle. Each of these takes the place of one.
    let own: Vec<_> = (0..12)
        .map(|_| {
            let stream = world.connect(ip(2));
            assert_eq!(status_on(&stream, &token), "200");
            stream
        })
        .collect();
    for _ in 0..12 {
        world.document(ip(3), "db-role");
    }
    drop((held, unknown, own));
}
