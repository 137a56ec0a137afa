//! Pods in the node's network, which their control group identifies, and the second witness of all others.

use super::*;
use crate::cgroup::CgroupOwner;
use crate::config::{ExemptPods, HostNetworkConfig, HostNetworkMode};
use crate::events::EventCause;
use crate::pods::{HostNetworkRules, HostNetworkTreatment, OwnPodName};

const NODE_IP: &str = "10.0.0.100";
const DOCUMENT: &str = "/latest/meta-data/iam/security-credentials/";

/// A node with two pods in its network and one in a network of its own.
fn host_node(mode: HostNetworkMode) -> Node {
    let account = ExemptPods::OfAccount { namespace: "default".to_owned(), name: "cni".to_owned() };
    let config = HostNetworkConfig { pods: mode, exempt: vec![account] };
    let node = node(TokenMode::Required, &[WEB, DB]);
    node.writer.write(|index| {
        index.set_host_network(HostNetworkRules::new(config, OwnPodName::default(), true));
        index.set_node(crate::pods::NodeAddresses { ips: [NODE_IP.parse().unwrap()].into(), loopback: true });
        for (name, role) in [("agent", Some("agent")), ("logs", Some("logs")), ("plain", None)] {
            index.apply(host(name, role));
        }
        index.apply(Pod { service_account: "cni".to_owned(), ..host("cni", Some("web")) });
    });
    node
}

fn host(name: &str, role: Option<&str>) -> Pod {
    Pod { host_network: true, ..pod(name, NODE_IP, role) }
}

fn process(uid: &str, is_in_host_network: bool) -> Option<ConnectedProcess> {
    let owner = CgroupOwner { pod: uid.into(), container: None };
    Some(ConnectedProcess { owner: Some(owner), is_in_host_network })
}

/// A connection from this address, by this process.
fn by(at: &str, process: Option<ConnectedProcess>) -> Origin {
    let mut origin = Origin::new(at.parse().unwrap(), Hosts::default());
    origin.process = process;
    origin
}

/// A connection from the node's network, by a process of this pod.
fn from_host(name: &str) -> Origin {
    by(NODE_IP, process(&format!("uid-of-{name}"), true))
}

/// A connection from this address, by a process of this pod.
fn from_pod(at: &str, name: &str) -> Origin {
    by(at, process(&format!("uid-of-{name}"), false))
}

impl Node {
    async fn token_on(&self, origin: &Origin) -> String {
        let answer = self.ask_on(origin, "PUT", "/latest/api/token", &[(TTL, "60")]).await;
        assert_eq!(answer.status, 200, "{answer:?}");
        answer.body
    }

    async fn get_on(&self, origin: &Origin, target: &str) -> Answer {
        let token = self.token_on(origin).await;
        self.ask_on(origin, "GET", target, &[(TOKEN, &token)]).await
    }

    fn denials(&self, reason: &str) -> u64 {
        let metrics = String::from_utf8(self.proxy.metrics.render()).unwrap();
        let line = format!(r#"rolegate_denials_total{{reason="{reason}"}} "#);
        metrics.lines().find_map(|found| found.strip_prefix(&line)).map_or(0, |count| count.parse().unwrap())
    }

    fn told_to(&self) -> Vec<(String, EventCause)> {
        let mut records = self.records.lock().unwrap();
        std::iter::from_fn(|| records.try_recv().ok()).map(|record| (record.pod.name.clone(), record.cause)).collect()
    }
}

#[tokio::test(start_paused = true)]
async fn two_pods_on_one_address_get_their_own_roles() {
    let node = host_node(HostNetworkMode::Serve);
    for (name, role) in [("agent", "agent"), ("logs", "logs"), ("agent", "agent")] {
        let origin = from_host(name);
        let list = node.get_on(&origin, LIST).await;
        assert_eq!((list.status, list.body.as_str()), (200, role));
        let document = node.get_on(&origin, &format!("{DOCUMENT}{role}")).await;
        assert!(document.status == 200 && document.body.contains(&format!("ASIA-{role}")), "{document:?}");
        assert!(!origin.is_over());
    }
    let origin = from_host("agent");
    assert_eq!(node.get_on(&origin, &format!("{DOCUMENT}logs")).await.status, 404, "not the role of another pod");
    let plain = node.get_on(&from_host("plain"), LIST).await;
    assert_eq!((plain.status, node.denials("no-role")), (404, 1), "and never the node's");
}

#[tokio::test(start_paused = true)]
async fn a_token_of_one_pod_does_not_work_for_another_on_the_same_address() {
    let node = host_node(HostNetworkMode::Serve);
    let (agent, logs) = (from_host("agent"), from_host("logs"));
    let token = node.token_on(&agent).await;
    assert_eq!(node.ask_on(&agent, "GET", LIST, &[(TOKEN, &token)]).await.status, 200);
    let another = from_host("agent");
    assert_eq!(node.ask_on(&another, "GET", LIST, &[(TOKEN, &token)]).await.status, 200, "another connection of the pod");
    assert_eq!(node.ask_on(&logs, "GET", LIST, &[(TOKEN, &token)]).await.status, 401);
    assert_eq!(node.denials("token"), 1);
}

#[tokio::test(start_paused = true)]
async fn a_connection_stays_with_its_pod() {
    let node = host_node(HostNetworkMode::Serve);
    let agent = from_host("agent");
    let token = node.token_on(&agent).await;
    node.writer.write(|index| index.delete(&PodUid("uid-of-agent".into())));
    let answer = node.ask_on(&agent, "GET", LIST, &[(TOKEN, &token)]).await;
    assert_eq!((answer.status, node.denials("unknown-pod")), (404, 1));
}

#[tokio::test(start_paused = true)]
async fn no_other_process_in_the_nodes_network_gets_anything() {
    let node = host_node(HostNetworkMode::Serve);
    node.writer.write(|index| index.apply(Pod { finished: true, ..host("finished", Some("agent")) }));
    for (name, reason, status) in [
        // Neither an unknown pod nor a finished one falls back to the address.
        ("nobody", "unknown-pod", 404),
        ("finished", "unknown-pod", 404),
        // A process of a pod that entered the node's network.
        ("web-1", "not-in-host-network", 500),
    ] {
        let answer = node.ask_on(&from_host(name), "GET", LIST, &[]).await;
        assert_eq!((answer.status, node.denials(reason) > 0), (status, true), "{name}");
        let token = node.ask_on(&from_host(name), "PUT", "/latest/api/token", &[(TTL, "60")]).await;
        assert_eq!(token.status, 500, "{name}: an SDK must not take it for a service without tokens");
    }
    let no_pod = || by("10.0.0.1", Some(ConnectedProcess { owner: None, is_in_host_network: true }));
    assert_eq!(node.ask_on(&no_pod(), "GET", LIST, &[]).await.status, 500, "whatever its address");
    assert_eq!(node.denials("unknown-cgroup"), 1);
    let told = node.told_to();
    assert_eq!(told.len(), 2);
    assert!(told.iter().all(|(name, cause)| name == "web-1" && *cause == EventCause::Objected(Objection::NotInHostNetwork)), "{told:?}");
    assert_eq!(node.sts.calls.load(Ordering::SeqCst), 0);
}

/// The first request of a pod may come before the API has told of it.
#[tokio::test(start_paused = true)]
async fn a_pod_that_becomes_known_is_waited_for() {
    let node = Arc::new(host_node(HostNetworkMode::Serve));
    let asks = tokio::spawn({
        let node = node.clone();
        async move { node.get_on(&from_host("late"), LIST).await }
    });
    tokio::time::sleep(WAIT / 2).await;
    assert!(!asks.is_finished());
    node.writer.write(|index| index.apply(host("late", Some("agent"))));
    let answer = asks.await.unwrap();
    assert_eq!((answer.status, answer.body.as_str()), (200, "agent"));
}

#[tokio::test(start_paused = true)]
async fn a_pods_address_and_its_control_group_must_agree() {
    let node = host_node(HostNetworkMode::Serve);
    let own = from_pod("10.0.0.1", "web-1");
    assert_eq!(node.get_on(&own, LIST).await.body, "web");
    for other in ["db-1", "agent", "nobody"] {
        let origin = from_pod("10.0.0.1", other);
        for (method, target, headers) in [("PUT", "/latest/api/token", &[(TTL, "60")][..]), ("GET", LIST, &[])] {
            let answer = node.ask_on(&origin, method, target, headers).await;
            assert_eq!(answer.status, 500, "{other}: {answer:?}");
        }
        assert!(origin.is_over(), "the connection ends");
    }
    assert_eq!(node.denials("cgroup-conflict"), 6);
    let told = node.told_to();
    assert!(told.iter().all(|(name, cause)| name == "web-1" && *cause == EventCause::Objected(Objection::OtherPodConnected)), "{told:?}");
    // A process in the control group of no pod, from the address of a pod.
    let no_pod = by("10.0.0.1", Some(ConnectedProcess { owner: None, is_in_host_network: false }));
    assert_eq!(node.ask_on(&no_pod, "GET", LIST, &[]).await.status, 500);
    // A pod in the node's network, from the address of another pod.
    assert_eq!(node.ask_on(&from_host("agent"), "GET", LIST, &[]).await.status, 401, "it is itself");
    assert_eq!(node.get_on(&from_pod("10.0.0.2", "db-1"), LIST).await.body, "db", "others are served");
}

#[tokio::test(start_paused = true)]
async fn a_static_pod_has_the_uid_of_its_manifest() {
    let node = host_node(HostNetworkMode::Serve);
    let hash = "0123456789abcdef0123456789abcdef";
    node.writer.write(|index| {
        index.apply(Pod { static_uid: Some(hash.into()), ..host("proxy", Some("agent")) });
        index.apply(Pod { static_uid: Some(hash.replace('0', "1").into()), ..pod("static", "10.0.0.3", Some("web")) });
    });
    let origin = by(NODE_IP, process(hash, true));
    assert_eq!(node.get_on(&origin, LIST).await.body, "agent");
    let origin = by("10.0.0.3", process(&hash.replace('0', "1"), false));
    assert_eq!(node.get_on(&origin, LIST).await.body, "web");
    let answer = node.ask_on(&from_pod("10.0.0.3", "static"), "GET", LIST, &[]).await;
    assert_eq!(answer.status, 500, "no control group has the UID of the API");
}

#[tokio::test(start_paused = true)]
async fn denied_pods_get_a_token_and_nothing_else() {
    let node = host_node(HostNetworkMode::Deny);
    let origin = from_host("agent");
    for target in [LIST, "/latest/meta-data/iam/security-credentials/agent", "/latest/meta-data/placement/region", "/latest/meta-data/"] {
        let answer = node.get_on(&origin, target).await;
        assert_eq!((answer.status, answer.body.as_str()), (404, ""), "{target}");
    }
    assert_eq!(node.denials("host-network"), 4);
    let cause = EventCause::HostNetwork(HostNetworkTreatment::Denied);
    assert!(node.told_to().iter().all(|(name, told)| name == "agent" && *told == cause));
    assert!(node.counted(r#"rolegate_pod_refusals_total{namespace="default",reason="host-network"} 4"#));
    assert_eq!(node.get_on(&from_pod("10.0.0.1", "web-1"), LIST).await.body, "web", "other pods are served");
    assert_eq!(node.sts.calls.load(Ordering::SeqCst), 0);
}

/// The kernel takes the exemption in a moment later. The next connection must not come here again.
#[tokio::test(start_paused = true)]
async fn exempt_and_ignored_pods_are_told_to_try_again_on_another_connection() {
    for (mode, name) in [(HostNetworkMode::Serve, "cni"), (HostNetworkMode::Deny, "cni"), (HostNetworkMode::Ignore, "agent")] {
        let node = host_node(mode);
        for (method, target, headers) in [("PUT", "/latest/api/token", &[(TTL, "60")][..]), ("GET", LIST, &[])] {
            let origin = from_host(name);
            assert_eq!(node.ask_on(&origin, method, target, headers).await.status, 500, "{mode:?}");
            assert!(origin.is_over());
        }
        assert_eq!((node.denials("host-network-exempt"), node.told_to()), (2, Vec::new()), "{mode:?}");
        assert_eq!(node.sts.calls.load(Ordering::SeqCst), 0);
    }
}

/// While STS is asked, the pod ends.
#[tokio::test(start_paused = true)]
async fn a_pod_that_ended_meanwhile_gets_no_credentials() {
    let node = host_node(HostNetworkMode::Serve);
    let writer = node.writer.clone();
    *node.sts.meanwhile.lock().unwrap() =
        Some(Box::new(move || writer.write(|index| index.apply(Pod { finished: true, ..host("agent", Some("agent")) }))));
    let answer = node.get_on(&from_host("agent"), &format!("{DOCUMENT}agent")).await;
    assert_eq!((answer.status, answer.body.as_str(), node.denials("changed")), (500, "", 1));
}
