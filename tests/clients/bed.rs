//! A node with the daemon and its rules, moto as its STS, three pods, and behind them a metadata service that would reveal
//! everything to anyone who reached it.

use std::net::{IpAddr, SocketAddr};
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::Duration;

use rolegate_lab::daemon::Daemon;
use rolegate_lab::imds::Imds;
use rolegate_lab::kube::{KubeApi, PodBuilder, Resource};
use rolegate_lab::node::{IMDS_IP, NODE_IP, Netns, Node, PodNs, available_or_skip, programs_or_skip, skip};
use rolegate_lab::player;
use serde_json::Value;
use tempfile::TempDir;
use tokio::runtime::Runtime;

use crate::kit;
use crate::moto::{Issued, Moto, session_arn};

/// moto's account ID.
pub(crate) const ACCOUNT: &str = "123456789012";
/// The metadata service's address, as pods use it.
pub(crate) const METADATA: SocketAddr = SocketAddr::new(IpAddr::V4(IMDS_IP), 80);
/// The path of the role list.
pub(crate) const LIST: &str = "/latest/meta-data/iam/security-credentials/";
/// The timeout of a connection.
pub(crate) const PATIENCE: Duration = Duration::from_secs(10);

/// Setting up a bed takes seconds, so tests that run at the same time share one. The last of them tears it down.
static SHARED: Mutex<Weak<Bed>> = Mutex::new(Weak::new());

/// The node and everything on it.
#[derive(Debug)]
pub(crate) struct Bed {
    // Dropped in this order: clients before the servers that they use.
    /// The daemon.
    pub(crate) daemon: Daemon,
    /// Its STS.
    pub(crate) moto: Moto,
    /// Two pods with different roles.
    pub(crate) pods: [Pod; 2],
    /// A pod without a role.
    pub(crate) without_role: PodNs,
    /// The metadata service behind the node.
    pub(crate) imds: Imds,
    /// The node.
    pub(crate) node: Node,
    home: TempDir,
    _api: KubeApi,
    _runtime: Runtime,
}

/// A pod with a role.
#[derive(Debug)]
pub(crate) struct Pod {
    /// Its namespace.
    pub(crate) ns: PodNs,
    /// The name of its role.
    pub(crate) role: &'static str,
}

impl Pod {
    /// The ARN of the pod's session at STS.
    pub(crate) fn session_arn(&self) -> String {
        session_arn(self.role, &self.ns.name)
    }
}

impl Bed {
    /// Returns the bed that other tests use now, or a new one. Returns `None` and reports why if this machine cannot have one.
    pub(crate) fn shared() -> Option<Arc<Bed>> {
        if !available_or_skip() || !programs_or_skip(&["iptables", "iptables-restore", "bash", "timeout"]) {
            return None;
        }
        if let Some(reason) = kit::missing("python") {
            skip(reason);
            return None;
        }
        let mut shared = SHARED.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(bed) = shared.upgrade() {
            return Some(bed);
        }
        let node = Node::with_imds().unwrap();
        if let Err(error) = node.ns().sh("iptables -t nat -S") {
            skip(format!("this kernel has no NAT rules: {error}"));
            return None;
        }
        let bed = Arc::new(Bed::new(node));
        *shared = Arc::downgrade(&bed);
        Some(bed)
    }

    fn new(node: Node) -> Bed {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
        let guard = runtime.enter();
        let api = KubeApi::start(node.ns().tcp_listener((NODE_IP, 0).into()).unwrap()).unwrap();
        let imds = Imds::start(node.imds().unwrap().tcp_listener(METADATA).unwrap()).unwrap();
        drop(guard);
        // As lenient as a metadata service can be.
        imds.set_tokens_required(false);
        let pods = [("web-7d4b9c6f5-x2x4z", "team-a-web"), ("worker-0", "team-b-worker")]
            .map(|(name, role)| Pod { ns: node.add_pod(name).unwrap(), role });
        let without_role = node.add_pod("bystander").unwrap();
        for Pod { ns, role } in &pods {
            let arn = format!("arn:aws:iam::{ACCOUNT}:role/{role}");
            api.apply(Resource::Pods, object(ns).annotation("iam.amazonaws.com/role", &arn).build());
        }
        api.apply(Resource::Pods, object(&without_role).build());
        let moto = Moto::start(&node, &pods.each_ref().map(|pod| pod.role));
        let daemon = moto.setup(&node, &api).argument("--iptables").start().unwrap();
        daemon.wait_ready(Some(node.ns())).unwrap();
        let home = tempfile::tempdir().unwrap();
        let bed = Bed { daemon, moto, pods, without_role, imds, node, home, _api: api, _runtime: runtime };
        // On a busy machine, moto takes longer to start a session than an SDK waits.
        for pod in &bed.pods {
            bed.credentials(pod);
        }
        bed
    }

    /// Returns an empty directory.
    pub(crate) fn home(&self) -> &Path {
        self.home.path()
    }

    /// Returns the document that the pod gets, read without an SDK.
    pub(crate) fn credentials(&self, pod: &Pod) -> Value {
        let token = token(&pod.ns);
        let stream = pod.ns.connect(METADATA, PATIENCE).unwrap();
        let document =
            player::request(stream, "GET", &format!("{LIST}{}", pod.role), &[("X-aws-ec2-metadata-token", token.as_str())]).unwrap();
        assert_eq!(document.status, 200, "{}", self.daemon.log());
        serde_json::from_slice(&document.body).unwrap()
    }

    /// Returns the sessions that STS issued for the pod.
    pub(crate) fn issued_for(&self, pod: &Pod) -> Vec<Issued> {
        let mut issued = self.moto.issued(&self.node);
        issued.retain(|issued| issued.arn == pod.session_arn());
        issued
    }

    /// Fails if these bytes, which `pod` received, contain anything of the node's.
    #[track_caller]
    pub(crate) fn assert_nothing_of_the_node(&self, pod: &Netns, bytes: &[u8]) {
        let text = String::from_utf8_lossy(bytes);
        assert_eq!(Imds::node_credentials_leaked_in(bytes), None, "{pod:?}: {text}");
        for secret in [&self.moto.node_access_key_id, &self.moto.node_secret_access_key] {
            assert!(!text.contains(secret.as_str()), "{pod:?}: {text}");
        }
    }
}

/// Requests an IMDSv2 token.
pub(crate) fn token(client: &Netns) -> String {
    try_token(client).unwrap()
}

/// Requests an IMDSv2 token. Returns `None` if the daemon refuses.
pub(crate) fn try_token(client: &Netns) -> Option<String> {
    let stream = client.connect(METADATA, PATIENCE).unwrap();
    let answer = player::request(stream, "PUT", "/latest/api/token", &[("X-aws-ec2-metadata-token-ttl-seconds", "60")]).unwrap();
    (answer.status == 200).then(|| answer.text())
}

/// Fails if the metadata service received a request other than the daemon's own for the base set.
#[track_caller]
pub(crate) fn assert_untouched(imds: &Imds) {
    let others: Vec<_> = imds.requests().into_iter().filter(|request| !request.is_for_base()).collect();
    assert!(others.is_empty(), "{others:#?}");
}

fn object(pod: &PodNs) -> PodBuilder {
    PodBuilder::new("team-a", &pod.name).ip(&pod.ip.to_string())
}
