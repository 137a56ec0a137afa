use std::os::unix::fs::MetadataExt as _;
use std::sync::Mutex;

use super::super::ledger::Noted;
use super::*;
use crate::config::{HostNetworkConfig, HostNetworkMode};
use crate::pods::{HostNetworkRules, OwnPodName, PodUid, PodsWriter, pods};

const OWN: &str = "0b7d2c1e-4c1a-4a57-9f0e-00000000000a";
const CNI: &str = "0b7d2c1e-4c1a-4a57-9f0e-000000000001";
const AGENT: &str = "0b7d2c1e-4c1a-4a57-9f0e-000000000002";
const EXPORTER: &str = "0b7d2c1e-4c1a-4a57-9f0e-000000000003";
const STATIC: &str = "0b7d2c1e-4c1a-4a57-9f0e-000000000004";
const HASH: &str = "0123456789abcdef0123456789abcdef";

/// The kernel's counts; `None` if they cannot be read.
#[derive(Debug)]
struct FakeKernel(Mutex<Option<HashMap<CgroupId, u64>>>);

impl PassedConnections for FakeKernel {
    fn passed(&self) -> io::Result<HashMap<CgroupId, u64>> {
        self.0.lock().unwrap().clone().ok_or_else(|| io::ErrorKind::PermissionDenied.into())
    }
}

struct Node {
    directory: tempfile::TempDir,
    writer: PodsWriter,
    kernel: Arc<FakeKernel>,
    used: NodeRoleUse,
    recorded: HashMap<CgroupId, u64>,
}

fn host(name: &str, uid: &str) -> Pod {
    Pod { uid: PodUid(uid.into()), host_network: true, service_account: name.to_owned(), ..Pod::for_test("kube-system", name) }
}

impl Node {
    fn new(mode: HostNetworkMode) -> Self {
        let account = ExemptPods::OfAccount { namespace: "kube-system".to_owned(), name: "aws-node".to_owned() };
        let config = HostNetworkConfig { pods: mode, exempt: vec![account] };
        let own = OwnPodName { uid: Some(OWN.to_owned()), name: None };
        let (writer, pods) = pods();
        let fixed = Pod { static_uid: Some(HASH.into()), ..host("etcd", STATIC) };
        let all = [host("rolegate", OWN), host("aws-node", CNI), host("agent", AGENT), host("exporter", EXPORTER), fixed];
        writer.write(|index| {
            index.set_host_network(HostNetworkRules::new(config, own, true));
            index.reset(all);
        });
        let directory = tempfile::tempdir().unwrap();
        let root = directory.path().join("kubepods");
        std::fs::create_dir(&root).unwrap();
        let kernel = Arc::new(FakeKernel(Mutex::new(Some(HashMap::new()))));
        let used = NodeRoleUse { pods, cgroups: PodCgroups::new(root), kernel: kernel.clone(), recorder: Recorder::on("node-a") };
        Self { directory, writer, kernel, used, recorded: HashMap::new() }
    }

    /// Creates the control group of a pod.
    fn cgroup(&self, uid: &str) -> CgroupId {
        let path = self.directory.path().join(format!("kubepods/burstable/pod{uid}"));
        std::fs::create_dir_all(&path).unwrap();
        CgroupId(std::fs::metadata(path).unwrap().ino())
    }

    fn passed(&self, counts: &[(CgroupId, u64)]) {
        *self.kernel.0.lock().unwrap() = Some(counts.iter().copied().collect());
    }

    /// Reads the counts, and returns what has been recorded so far.
    async fn found(&mut self) -> Vec<(String, String, u64)> {
        self.used.record(&mut self.recorded).await.unwrap();
        let mut found = Vec::new();
        for (workload, tallies) in self.used.recorder.recorded().findings {
            for tally in tallies {
                assert_eq!(tally.noted, Noted::UsesNodeRole);
                found.push((workload.name.to_string(), tally.subject.to_string(), tally.count));
            }
        }
        found.sort();
        found
    }
}

fn row(name: &str, subject: &str, count: u64) -> (String, String, u64) {
    (name.to_owned(), subject.to_owned(), count)
}

#[tokio::test]
async fn only_pods_that_would_lose_the_node_role_are_recorded() {
    let mut node = Node::new(HostNetworkMode::Ignore);
    // The exporter did not connect, and a pod that the API does not show is not known.
    let groups = [OWN, CNI, AGENT, HASH, "0b7d2c1e-4c1a-4a57-9f0e-00000000000f"].map(|uid| node.cgroup(uid));
    node.cgroup(EXPORTER);
    node.passed(&groups.map(|group| (group, 3)));
    assert_eq!(node.found().await, [row("agent", "kube-system/agent", 3), row("etcd", "static-pods", 3)]);
}

#[tokio::test]
async fn pods_that_are_served_or_denied_do_not_use_the_node_role() {
    for mode in [HostNetworkMode::Serve, HostNetworkMode::Deny] {
        let mut node = Node::new(mode);
        let agent = node.cgroup(AGENT);
        // From the time before the mode was changed.
        node.passed(&[(agent, 3)]);
        assert_eq!(node.found().await, [], "{mode:?}");
    }
}

#[tokio::test]
async fn each_connection_is_recorded_once() {
    let mut node = Node::new(HostNetworkMode::Ignore);
    let agent = node.cgroup(AGENT);
    let wanted = |count| [row("agent", "kube-system/agent", count)];
    for (passed, recorded) in [(2, 2), (2, 2), (5, 5)] {
        node.passed(&[(agent, passed)]);
        assert_eq!(node.found().await, wanted(recorded));
    }
    // The kernel has forgotten the pod, and counted it anew since.
    node.passed(&[(agent, 1)]);
    assert_eq!(node.found().await, wanted(6));
    node.passed(&[]);
    assert_eq!(node.found().await, wanted(6));
    node.passed(&[(agent, 1)]);
    assert_eq!(node.found().await, wanted(7));
}

#[tokio::test]
async fn a_pod_is_recorded_once_the_api_shows_it_and_stays_when_it_is_gone() {
    let mut node = Node::new(HostNetworkMode::Ignore);
    node.writer.write(|index| index.reset([host("exporter", EXPORTER)]));
    let agent = node.cgroup(AGENT);
    node.passed(&[(agent, 2)]);
    assert_eq!(node.found().await, []);
    node.writer.write(|index| index.apply(host("agent", AGENT)));
    assert_eq!(node.found().await, [row("agent", "kube-system/agent", 2)]);
    node.writer.write(|index| index.reset([]));
    assert_eq!(node.found().await, [row("agent", "kube-system/agent", 2)]);
}

#[tokio::test(start_paused = true)]
async fn counts_that_cannot_be_read_are_read_again() {
    let node = Node::new(HostNetworkMode::Ignore);
    let agent = node.cgroup(AGENT);
    *node.kernel.0.lock().unwrap() = None;
    let Node { used, kernel, directory: _directory, writer: _writer, .. } = node;
    used.record(&mut HashMap::new()).await.unwrap_err();
    let recorder = used.recorder.clone();
    let task = tokio::spawn(used.run());
    tokio::time::sleep(READ_EVERY).await;
    assert!(recorder.recorded().findings.is_empty());
    *kernel.0.lock().unwrap() = Some(HashMap::from([(agent, 1)]));
    while recorder.recorded().findings.is_empty() {
        assert!(!task.is_finished());
        tokio::time::sleep(READ_EVERY).await;
    }
    task.abort();
}
