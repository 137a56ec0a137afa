use std::os::unix::fs::MetadataExt as _;
use std::path::PathBuf;
use std::sync::Mutex;

use super::*;
use crate::config::{ExemptPods, HostNetworkConfig, HostNetworkMode};
use crate::pods::{HostNetworkRules, OwnPodName, Pod, PodUid, PodsWriter, pods};

const OWN: &str = "0b7d2c1e-4c1a-4a57-9f0e-00000000000a";
const CNI: &str = "0b7d2c1e-4c1a-4a57-9f0e-000000000001";
const AGENT: &str = "0b7d2c1e-4c1a-4a57-9f0e-000000000002";
const HASH: &str = "0123456789abcdef0123456789abcdef";
const LIMIT: Duration = Duration::from_secs(20);

/// The kernel's programs: what they were told last, and whether they refuse it.
#[derive(Debug, Default)]
struct FakeKernel {
    exempt: Mutex<Option<BTreeSet<CgroupId>>>,
    calls: Mutex<usize>,
    refuses: Mutex<bool>,
}

impl HostNetworkExemptions for FakeKernel {
    fn exempt(&self, pods: &BTreeSet<CgroupId>) -> io::Result<()> {
        *self.calls.lock().unwrap() += 1;
        if *self.refuses.lock().unwrap() {
            return Err(io::Error::from(io::ErrorKind::PermissionDenied));
        }
        *self.exempt.lock().unwrap() = Some(pods.clone());
        Ok(())
    }
}

struct Node {
    directory: tempfile::TempDir,
    writer: PodsWriter,
    kernel: Arc<FakeKernel>,
    metrics: Metrics,
    first: oneshot::Receiver<()>,
    task: tokio::task::JoinHandle<()>,
}

impl Drop for Node {
    fn drop(&mut self) {
        self.task.abort();
    }
}

fn host(name: &str, uid: &str) -> Pod {
    Pod { uid: PodUid(uid.into()), host_network: true, service_account: name.to_owned(), ..Pod::for_test("kube-system", name) }
}

impl Node {
    fn new(mode: HostNetworkMode) -> Self {
        let account = ExemptPods::OfAccount { namespace: "kube-system".to_owned(), name: "aws-node".to_owned() };
        let config = HostNetworkConfig { pods: mode, exempt: vec![account, ExemptPods::Static] };
        let own = OwnPodName { uid: Some(OWN.to_owned()), name: None };
        let (writer, pods) = pods();
        writer.write(|index| index.set_host_network(HostNetworkRules::new(config, own, true)));
        let directory = tempfile::tempdir().unwrap();
        let root = directory.path().join("kubepods");
        std::fs::create_dir(&root).unwrap();
        let (kernel, metrics) = (Arc::new(FakeKernel::default()), Metrics::new());
        let (sender, first) = oneshot::channel();
        let exemptions = Exemptions { pods, cgroups: PodCgroups::new(root), kernel: kernel.clone(), metrics: metrics.clone() };
        Self { directory, writer, kernel, metrics, first, task: tokio::spawn(exemptions.run(sender)) }
    }

    fn path(&self, uid: &str) -> PathBuf {
        self.directory.path().join(format!("kubepods/burstable/pod{uid}"))
    }

    /// Creates the control group of a pod, with one of a container in it.
    fn cgroup(&self, uid: &str) -> CgroupId {
        std::fs::create_dir_all(self.path(uid).join("container")).unwrap();
        CgroupId(std::fs::metadata(self.path(uid)).unwrap().ino())
    }

    async fn exempt(&self, expected: &[CgroupId]) {
        let expected: BTreeSet<_> = expected.iter().copied().collect();
        let is_exempt = || self.kernel.exempt.lock().unwrap().as_ref() == Some(&expected);
        let reached = async {
            while !is_exempt() {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        let found = tokio::time::timeout(LIMIT, reached).await;
        assert!(found.is_ok(), "{:?} instead of {expected:?}", self.kernel.exempt.lock().unwrap());
    }

    /// Waits until a line is among the metrics, which are counted after the kernel was told.
    async fn counts(&self, line: &str) {
        let reached = async {
            while !self.counted(line) {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        tokio::time::timeout(LIMIT, reached).await.unwrap();
    }

    fn counted(&self, line: &str) -> bool {
        String::from_utf8(self.metrics.render()).unwrap().lines().any(|found| found == line)
    }
}

#[tokio::test]
async fn nothing_changes_before_the_pods_are_listed() {
    let mut node = Node::new(HostNetworkMode::Serve);
    let own = node.cgroup(OWN);
    // An event of the watch before the list.
    node.writer.write(|index| index.apply(host("aws-node", CNI)));
    tokio::time::timeout(Duration::from_millis(200), &mut node.first).await.unwrap_err();
    assert_eq!(*node.kernel.calls.lock().unwrap(), 0, "an earlier daemon's exemptions stay");
    node.writer.write(|index| index.reset([]));
    node.exempt(&[own]).await;
    tokio::time::timeout(LIMIT, &mut node.first).await.unwrap().unwrap();
}

#[tokio::test]
async fn exempt_pods_and_the_daemons_own_are_exempt_once_their_cgroup_exists() {
    for mode in [HostNetworkMode::Serve, HostNetworkMode::Deny] {
        let node = Node::new(mode);
        let (own, agent) = (node.cgroup(OWN), node.cgroup(AGENT));
        let etcd = Pod { static_uid: Some(HASH.into()), service_account: String::new(), ..host("etcd", "api-uid-of-etcd") };
        let in_pod_network = Pod { host_network: false, ..host("aws-node", AGENT) };
        node.writer.write(|index| index.reset([host("aws-node", CNI), etcd]));
        node.exempt(&[own]).await;
        let etcd = node.cgroup(HASH);
        node.exempt(&[own, etcd]).await;
        let cni = node.cgroup(CNI);
        node.exempt(&[own, etcd, cni]).await;
        node.counts("rolegate_host_network_exempt_pods 3").await;
        // Another service account, and a pod in a network of its own.
        node.writer.write(|index| {
            index.apply(host("agent", AGENT));
            index.delete(&PodUid(CNI.into()));
        });
        node.exempt(&[own, etcd]).await;
        node.writer.write(|index| {
            index.apply(in_pod_network);
            index.apply(host("aws-node", CNI));
        });
        node.exempt(&[own, etcd, cni]).await;
        assert_ne!(cni, agent);
        node.writer.write(|index| index.apply(Pod { finished: true, ..host("aws-node", CNI) }));
        node.exempt(&[own, etcd]).await;
    }
}

#[tokio::test]
async fn every_pod_in_the_nodes_network_is_left_alone_if_they_are_ignored() {
    let node = Node::new(HostNetworkMode::Ignore);
    let (own, agent, cni) = (node.cgroup(OWN), node.cgroup(AGENT), node.cgroup(CNI));
    node.writer.write(|index| index.reset([host("agent", AGENT), host("aws-node", CNI)]));
    node.exempt(&[own, agent, cni]).await;
}

#[tokio::test]
async fn a_control_group_that_is_gone_is_no_longer_exempt() {
    let node = Node::new(HostNetworkMode::Serve);
    let (own, _) = (node.cgroup(OWN), node.cgroup(CNI));
    node.writer.write(|index| index.reset([host("aws-node", CNI)]));
    node.exempt(&[own, node.cgroup(CNI)]).await;
    std::fs::remove_dir_all(node.path(CNI)).unwrap();
    node.writer.write(|index| index.apply(Pod { terminating: true, ..host("aws-node", CNI) }));
    node.exempt(&[own]).await;
}

#[tokio::test]
async fn failures_are_retried_and_keep_what_was_exempt() {
    let mut node = Node::new(HostNetworkMode::Serve);
    let (own, cni) = (node.cgroup(OWN), node.cgroup(CNI));
    *node.kernel.refuses.lock().unwrap() = true;
    node.writer.write(|index| index.reset([host("aws-node", CNI)]));
    tokio::time::timeout(LIMIT, &mut node.first).await.unwrap().unwrap();
    assert!(node.counted(r#"rolegate_host_network_exemption_updates_total{outcome="failed"} 1"#), "the start does not wait for it");
    assert_eq!(*node.kernel.exempt.lock().unwrap(), None);
    *node.kernel.refuses.lock().unwrap() = false;
    node.exempt(&[own, cni]).await;
    // The hierarchy disappears, and comes back.
    let (hidden, shown) = (node.directory.path().join("hidden"), node.directory.path().join("kubepods"));
    std::fs::rename(&shown, &hidden).unwrap();
    let calls = *node.kernel.calls.lock().unwrap();
    node.writer.write(|index| index.apply(host("agent", AGENT)));
    let failed = async {
        while !node.counted(r#"rolegate_host_network_exemption_updates_total{outcome="failed"} 2"#) {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(LIMIT, failed).await.unwrap();
    assert_eq!(*node.kernel.calls.lock().unwrap(), calls, "the kernel keeps what it has");
    std::fs::rename(&hidden, &shown).unwrap();
    node.writer.write(|index| index.delete(&PodUid(CNI.into())));
    node.exempt(&[own]).await;
}

/// A pod's author can change its status as often as they like.
#[tokio::test]
async fn many_changes_of_pods_cause_few_updates() {
    let node = Node::new(HostNetworkMode::Serve);
    let own = node.cgroup(OWN);
    node.writer.write(|index| index.reset([]));
    node.exempt(&[own]).await;
    for number in 0..200 {
        node.writer.write(|index| index.apply(Pod { role: Some(number.to_string()), ..Pod::for_test("shop", "web") }));
        tokio::task::yield_now().await;
    }
    let cni = node.cgroup(CNI);
    node.writer.write(|index| index.apply(host("aws-node", CNI)));
    node.exempt(&[own, cni]).await;
    // Those that change something.
    node.counts(r#"rolegate_host_network_exemption_updates_total{outcome="written"} 2"#).await;
    let calls = *node.kernel.calls.lock().unwrap();
    assert!((2..100).contains(&calls), "{calls} calls for 201 changes");
}

/// Two daemons overlap, and the other one removes what it does not want.
#[tokio::test]
async fn what_another_daemon_changes_is_repaired() {
    let node = Node::new(HostNetworkMode::Serve);
    let (own, cni) = (node.cgroup(OWN), node.cgroup(CNI));
    node.writer.write(|index| index.reset([host("aws-node", CNI)]));
    node.exempt(&[own, cni]).await;
    *node.kernel.exempt.lock().unwrap() = Some([cni].into());
    // A change of another pod.
    node.writer.write(|index| index.apply(Pod::for_test("shop", "web")));
    node.exempt(&[own, cni]).await;
}
