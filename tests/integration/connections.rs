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
    let held = hold(ip(2), world.daemon.metadata_address(), 300);
    world.document(ip(3), "db-role");
    // 128 are open, 128 more wait for a second, and the others are closed at once.
    world.eventually(|world| world.metric(r#"rolegate_connections_refused_total{reason="source-limit"}"#), |count| *count >= 44.0);
    let open = world.eventually(|_| open(&held), |open| *open <= 128);
    assert!(open <= 128, "{open}");
    let is_about_the_pod = |line: &&str| line.contains("connection-limit") && line.contains(r#""pod":"web""#) && line.contains("shop");
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
