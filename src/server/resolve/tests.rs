use std::collections::HashMap;
use std::io;
use std::net::SocketAddr;
use std::os::unix::fs::MetadataExt as _;
use std::sync::Mutex;
use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpSocket};
use tokio::task::JoinHandle;

use super::super::Redirected;
use super::*;
use crate::cgroup::{CgroupId, PodCgroups, RedirectedSockets};
use crate::config::{HostNetworkConfig, HostNetworkMode, LimitsConfig};
use crate::connections::ConnectionRecord;
use crate::drain::Drain;
use crate::handover::AcceptQueue;
use crate::metrics::Metrics;
use crate::pods::{HostNetworkRules, OwnPodName, Pod, PodUid, PodsWriter, pods};
use crate::proxy::tests::{pod, proxy_of};
use crate::server::Service;

const LIMIT: Duration = Duration::from_secs(20);
const AGENT: &str = "0b7d2c1e-4c1a-4a57-9f0e-000000000001";
const LOGS: &str = "0b7d2c1e-4c1a-4a57-9f0e-000000000002";
const WEB: &str = "0b7d2c1e-4c1a-4a57-9f0e-000000000003";
const TOKEN: &str = "PUT /latest/api/token HTTP/1.1\r\nHost: 169.254.169.254\r\nX-aws-ec2-metadata-token-ttl-seconds: 60\r\n\r\n";
const METADATA: &str = "169.254.169.254:80";

/// The kernel's records, by the client's address and port.
#[derive(Debug, Default)]
struct FakeSockets {
    records: Mutex<HashMap<SocketAddr, RedirectedSocket>>,
    /// Every client without a record has this one.
    default: Mutex<Option<RedirectedSocket>>,
    fails: Mutex<bool>,
}

impl RedirectedSockets for FakeSockets {
    fn find(&self, peer: SocketAddr, local: SocketAddr) -> io::Result<Option<RedirectedSocket>> {
        assert!(peer.is_ipv4() && local.is_ipv4(), "not mapped to IPv6: {peer} {local}");
        if *self.fails.lock().unwrap() {
            return Err(io::Error::from(io::ErrorKind::PermissionDenied));
        }
        Ok(self.records.lock().unwrap().get(&peer).copied().or(*self.default.lock().unwrap()))
    }
}

/// A node whose kernel redirects connections to its daemon, on loopback.
struct Node {
    sockets: Arc<FakeSockets>,
    writer: PodsWriter,
    metrics: Metrics,
    directory: tempfile::TempDir,
    address: SocketAddr,
    task: JoinHandle<()>,
}

impl Drop for Node {
    fn drop(&mut self) {
        self.task.abort();
    }
}

fn host(name: &str, uid: &str) -> Pod {
    Pod { uid: PodUid(uid.into()), host_network: true, ..pod(name, "127.0.0.1", None) }
}

impl Node {
    async fn new(limits: LimitsConfig) -> Self {
        let (writer, pods) = pods();
        let config = HostNetworkConfig { pods: HostNetworkMode::Serve, exempt: Vec::new() };
        writer.write(|index| {
            index.set_host_network(HostNetworkRules::new(config, OwnPodName::default(), true));
            index.reset([host("agent", AGENT), host("logs", LOGS), Pod { uid: PodUid(WEB.into()), ..pod("web", "127.0.0.2", None) }]);
        });
        let directory = tempfile::tempdir().unwrap();
        let root = directory.path().join("kubepods");
        std::fs::create_dir(&root).unwrap();
        let (sockets, metrics) = (Arc::new(FakeSockets::default()), Metrics::new());
        let redirected = Redirected::new(sockets.clone(), PodCgroups::new(root));
        let server = Server::new(proxy_of(pods), false, limits, metrics.clone(), Drain::default(), ConnectionRecord::default());
        let server = Arc::new(server.with_redirected(Some(redirected)));
        // As the daemon's own, which serves both families.
        let listener = TcpListener::bind("[::]:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let task = tokio::spawn(async move { server.serve(listener, Service::Metadata, &AcceptQueue::default()).await });
        Self { sockets, writer, metrics, directory, address: ([127, 0, 0, 1], port).into(), task }
    }

    /// Creates a control group of a pod.
    fn cgroup(&self, path: &str) -> CgroupId {
        let path = self.directory.path().join("kubepods").join(path);
        std::fs::create_dir_all(&path).unwrap();
        CgroupId(std::fs::metadata(path).unwrap().ino())
    }

    /// Connects from this address, with a record of the kernel if there is one.
    async fn connect(&self, from: [u8; 4], record: Option<RedirectedSocket>) -> TcpStream {
        let socket = TcpSocket::new_v4().unwrap();
        socket.bind((from, 0).into()).unwrap();
        // The kernel has the record before the connection is established.
        if let Some(record) = record {
            self.sockets.records.lock().unwrap().insert(socket.local_addr().unwrap(), record);
        }
        socket.connect(self.address).await.unwrap()
    }

    /// Requests a token on a new connection. Returns the status; 0 if the connection was closed without an answer.
    async fn status(&self, from: [u8; 4], record: Option<RedirectedSocket>) -> u16 {
        status_on(&mut self.connect(from, record).await).await
    }

    fn counted(&self, name: &str, reason: &str) -> u64 {
        let line = format!(r#"{name}{{reason="{reason}"}} "#);
        let metrics = String::from_utf8(self.metrics.render()).unwrap();
        metrics.lines().find_map(|found| found.strip_prefix(&line)).map_or(0, |count| count.parse().unwrap())
    }

    fn refused(&self, reason: &str) -> u64 {
        self.counted("rolegate_connections_refused_total", reason)
    }
}

async fn status_on(stream: &mut TcpStream) -> u16 {
    let read = async {
        if stream.write_all(TOKEN.as_bytes()).await.is_err() {
            return 0;
        }
        let mut response = String::new();
        loop {
            // A whole response, so that another request can follow.
            if let Some((head, body)) = response.split_once("\r\n\r\n") {
                let length = head.lines().find_map(|line| line.to_lowercase().strip_prefix("content-length: ").map(str::to_owned));
                if body.len() >= length.map_or(0, |length| length.parse().unwrap()) {
                    return head[9..12].parse().unwrap();
                }
            }
            let mut bytes = [0; 1024];
            match stream.read(&mut bytes).await {
                Ok(0) | Err(_) => return 0,
                Ok(read) => response.push_str(std::str::from_utf8(&bytes[..read]).unwrap()),
            }
        }
    };
    tokio::time::timeout(LIMIT, read).await.unwrap()
}

fn socket(cgroup: CgroupId, is_in_host_network: bool) -> Option<RedirectedSocket> {
    Some(RedirectedSocket { cgroup, process: cgroup, is_in_host_network, destination: METADATA.parse().unwrap() })
}

const HOST: [u8; 4] = [127, 0, 0, 1];
const POD: [u8; 4] = [127, 0, 0, 2];

#[tokio::test]
async fn connections_are_served_by_the_kernels_record_alone() {
    let node = Node::new(LimitsConfig::default()).await;
    let (agent, logs) = (node.cgroup(&format!("burstable/pod{AGENT}")), node.cgroup(&format!("pod{LOGS}/container/nested")));
    let web = node.cgroup(&format!("besteffort/pod{WEB}/container"));
    // One address, and control groups that are read at the first request and known from then on.
    for _ in 0..2 {
        for (from, record) in [(HOST, socket(agent, true)), (HOST, socket(logs, true)), (POD, socket(web, false))] {
            assert_eq!(node.status(from, record).await, 200, "{record:?}");
        }
    }
    // Without a record, a connection must have come through NAT, as before. On loopback, it is taken for a probe.
    assert_eq!(node.status(POD, None).await, 404);
    let mut health = node.connect(HOST, None).await;
    health.write_all(b"GET /healthz HTTP/1.1\r\nHost: a\r\n\r\n").await.unwrap();
    let mut head = [0; 12];
    health.read_exact(&mut head).await.unwrap();
    assert_eq!(&head[9..], b"200", "the kubelet's probe");
    let elsewhere = RedirectedSocket { destination: "10.0.0.1:80".parse().unwrap(), ..socket(web, false).unwrap() };
    assert_eq!(node.status(POD, Some(elsewhere)).await, 404, "a record of something else");
    let mapped = RedirectedSocket { destination: "[::ffff:169.254.169.254]:80".parse().unwrap(), ..socket(web, false).unwrap() };
    assert_eq!(node.status(POD, Some(mapped)).await, 200);
}

#[tokio::test]
async fn contradictions_and_unknown_control_groups_are_refused() {
    let node = Node::new(LimitsConfig::default()).await;
    let agent = node.cgroup(&format!("burstable/pod{AGENT}"));
    let nobody = node.cgroup("burstable/pod0b7d2c1e-4c1a-4a57-9f0e-0000000000ff");
    // A pod's process with the address of another pod: known before the connection, and not.
    for _ in 0..2 {
        assert_eq!(node.status(POD, socket(agent, false)).await, 500);
    }
    for (record, status) in [(socket(CgroupId(u64::MAX), true), 500), (socket(CgroupId(u64::MAX), false), 500), (socket(nobody, true), 500)]
    {
        assert_eq!(node.status(HOST, record).await, status, "{record:?}");
        assert_eq!(node.status(POD, record).await, status, "{record:?}");
    }
}

#[tokio::test]
async fn a_record_that_cannot_be_read_closes_the_connection() {
    let node = Node::new(LimitsConfig::default()).await;
    let agent = node.cgroup(&format!("burstable/pod{AGENT}"));
    *node.sockets.fails.lock().unwrap() = true;
    for _ in 0..2 {
        assert_eq!(node.status(HOST, socket(agent, true)).await, 0);
    }
    assert_eq!(node.refused("record-unreadable"), 2);
    *node.sockets.fails.lock().unwrap() = false;
    assert_eq!(node.status(HOST, socket(agent, true)).await, 200);
    // Neither does a hierarchy that cannot be read, for control groups that are not known.
    std::fs::remove_dir_all(node.directory.path().join("kubepods")).unwrap();
    for (from, in_host) in [(HOST, true), (POD, false)] {
        assert_eq!(node.status(from, socket(CgroupId(u64::MAX), in_host)).await, 0);
    }
    assert_eq!(node.refused("cgroups-unreadable"), 2);
    assert_eq!(node.status(HOST, socket(agent, true)).await, 200);
}

/// All pods in the node's network have one address, which is the node's.
#[tokio::test]
async fn limits_count_each_pod_in_the_nodes_network_for_itself() {
    let limits = LimitsConfig { connections_per_pod: 4, idle_timeout: Duration::from_secs(60), ..LimitsConfig::default() };
    let node = Node::new(limits).await;
    let (agent, logs) = (node.cgroup(&format!("pod{AGENT}/container")), node.cgroup(&format!("pod{LOGS}/container")));
    let nobody = node.cgroup("pod0b7d2c1e-4c1a-4a57-9f0e-0000000000ff");
    let mut of_logs = node.connect(HOST, socket(logs, true)).await;
    assert_eq!(status_on(&mut of_logs).await, 200);
    let mut open = Vec::new();
    for _ in 0..5 {
        let mut stream = node.connect(HOST, socket(agent, true)).await;
        assert_eq!(status_on(&mut stream).await, 200);
        open.push(stream);
    }
    // The fifth took the place of an idle one of the same pod. The oldest on this address is that of another pod.
    assert_eq!(node.counted("rolegate_connections_ended_total", "made-room"), 1);
    assert_eq!(status_on(&mut of_logs).await, 200);
    // A pod that the API has not told of yet has limits of its own, too.
    node.writer.write(|index| index.apply(host("late", "0b7d2c1e-4c1a-4a57-9f0e-0000000000ff")));
    assert_eq!(node.status(HOST, socket(nobody, true)).await, 200);
}
