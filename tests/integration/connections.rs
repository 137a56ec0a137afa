//! Those who take more than their share: neither the others nor the node's own probes lose by it.

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

/// How many of these the daemon has not closed.
fn open(connections: &[TcpStream]) -> usize {
    let is_open = |mut connection: &TcpStream| {
        connection.set_nonblocking(true).unwrap();
        connection.read(&mut [0]).is_err_and(|error| error.kind() == ErrorKind::WouldBlock)
    };
    connections.iter().filter(|connection| is_open(connection)).count()
}

/// `None`: the connection was closed without an answer.
fn health(world: &World, from: IpAddr) -> Option<Response> {
    player::request(connect(from, world.daemon.metrics_address()).unwrap(), "GET", "/healthz", &[("Connection", "close")]).ok()
}

#[test]
fn whoever_holds_the_metrics_port_keeps_neither_the_node_nor_others_from_it() {
    let world = World::start();
    let address = world.daemon.metrics_address();
    let greedy = hold(ip(50), address, 100);
    // Connections are taken in order: once this is answered, the fate of those before it is known.
    assert_eq!(world.daemon.get(None, "/healthz").unwrap().status, 200);
    assert_eq!(open(&greedy), 8);
    assert_eq!(health(&world, ip(51)).map(|answer| answer.status), Some(200), "one source's limit is not another's");
    assert!(health(&world, ip(50)).is_none());

    let gang: Vec<_> = (60..70).flat_map(|last| hold(ip(last), address, 8)).collect();
    assert_eq!(world.daemon.get(None, "/healthz").unwrap().status, 200, "the node has room of its own");
    assert_eq!(open(&greedy) + open(&gang), 64);
    assert!(health(&world, ip(51)).is_none());

    drop((greedy, gang));
    world.eventually(|world| health(world, ip(50)).map(|answer| answer.status), |status| *status == Some(200));
}

#[test]
fn a_pod_that_takes_all_connections_leaves_the_others_theirs() {
    let world = World::start();
    let held = hold(ip(2), world.daemon.metadata_address(), 200);
    world.document(ip(3), "db-role");
    assert_eq!(world.metric(r#"rolegate_connections_refused_total{reason="source-limit"}"#), 72.0);
    assert_eq!(open(&held), 128);
    drop(held);
    world.eventually(|world| world.metric("rolegate_connections"), |open| *open == 0.0);
    world.document(ip(2), "web-role");
}

#[test]
fn a_pod_that_connects_again_and_again_is_refused_early_and_no_other_is() {
    let world = World::start_with(|setup| setup.argument("--limits-connection-rate=5"));
    let answered = (0..100).filter(|_| {
        let stream = world.connect(ip(2));
        player::request(stream, "GET", "/latest/meta-data/", &[("Host", "169.254.169.254"), ("Connection", "close")]).is_ok()
    });
    let answered = answered.count();
    assert!((10..100).contains(&answered), "{answered}");
    let refused = world.metric(r#"rolegate_connections_refused_total{reason="source-rate"}"#);
    assert_eq!(refused, (100 - answered) as f64);
    world.document(ip(3), "db-role");
}

#[test]
fn a_pod_that_asks_and_never_reads_is_not_waited_for() {
    let world = World::start();
    let stream = world.connect(ip(2));
    SockRef::from(&stream).set_recv_buffer_size(4096).unwrap();
    world.eventually(|world| world.metric("rolegate_connections"), |open| *open == 1.0);
    let requests = "GET /latest/meta-data/ HTTP/1.1\r\nHost: 169.254.169.254\r\n\r\n".repeat(1000);
    let stuck_since = Mutex::new(Instant::now());
    std::thread::scope(|scope| {
        // Until the daemon takes nothing any more, which is when it cannot write.
        scope.spawn(|| {
            while (&stream).write(requests.as_bytes()).is_ok_and(|count| count == requests.len()) {
                *stuck_since.lock().unwrap() = Instant::now();
            }
        });
        // What it does itself: the pod's end may hear of it much later, as nothing goes through any more.
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
