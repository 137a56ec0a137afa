use std::collections::BTreeSet;
use std::time::Duration;

use super::*;
use crate::pods::index::Index;
use crate::pods::{Identifier, Lookup, Objection, PodName, PodUid, Pods, PodsWriter, pods};

const HASH: &str = "0123456789abcdef0123456789abcdef";
const WAIT: Duration = Duration::from_secs(2);

fn config(mode: HostNetworkMode) -> HostNetworkConfig {
    let account = ExemptPods::OfAccount { namespace: "kube-system".to_owned(), name: "aws-node".to_owned() };
    HostNetworkConfig { pods: mode, exempt: vec![account, ExemptPods::Static] }
}

fn rules(mode: HostNetworkMode) -> HostNetworkRules {
    let own = OwnPodName { uid: Some("kube-system/rolegate".to_owned()), name: None };
    HostNetworkRules::new(config(mode), own, true)
}

fn host(namespace: &str, name: &str) -> Pod {
    Pod { host_network: true, service_account: name.to_owned(), role: Some("role".to_owned()), ..Pod::for_test(namespace, name) }
}

/// A static pod, as the API shows it.
fn mirror(name: &str) -> Pod {
    Pod { static_uid: Some(HASH.into()), service_account: String::new(), ..host("kube-system", name) }
}

fn served() -> (PodsWriter, Pods) {
    let (writer, pods) = pods();
    writer.write(|index| index.set_host_network(rules(HostNetworkMode::Serve)));
    (writer, pods)
}

#[test]
fn the_treatment_depends_on_the_mode_the_exemptions_and_the_programs() {
    use HostNetworkTreatment::{Denied, Exempt, Ignored, Served};
    let pods =
        [host("kube-system", "aws-node"), mirror("etcd"), host("kube-system", "rolegate"), host("team", "aws-node"), host("team", "agent")];
    for (mode, expected) in [
        (HostNetworkMode::Serve, [Exempt, Exempt, Exempt, Served, Served]),
        (HostNetworkMode::Deny, [Exempt, Exempt, Exempt, Denied, Denied]),
        (HostNetworkMode::Ignore, [Ignored, Ignored, Exempt, Ignored, Ignored]),
    ] {
        assert_eq!(pods.each_ref().map(|pod| rules(mode).treatment(pod)), expected, "{mode:?}");
        let without = HostNetworkRules::new(config(mode), OwnPodName::default(), false);
        assert!(pods.iter().all(|pod| without.treatment(pod) == Ignored), "nothing redirects them");
    }
    assert!(HostNetworkRules::default().treatment(&pods[4]).is_left_alone());
}

#[test]
fn the_daemons_own_pod_is_known_by_its_uid_or_else_by_its_name() {
    let own = |uid: Option<&str>, name: Option<(&str, &str)>| OwnPodName {
        uid: uid.map(str::to_owned),
        name: name.map(|(namespace, name)| (namespace.to_owned(), name.to_owned())),
    };
    let pod = host("kube-system", "rolegate");
    assert!(own(Some("kube-system/rolegate"), None).is(&pod));
    assert!(own(None, Some(("kube-system", "rolegate"))).is(&pod));
    for other in [
        own(None, None),
        own(Some("other"), Some(("kube-system", "rolegate"))),
        own(None, Some(("team", "rolegate"))),
        own(None, Some(("kube-system", "rolegate-2"))),
    ] {
        assert!(!other.is(&pod), "{other:?}");
    }
}

#[test]
fn only_living_pods_in_the_nodes_network_are_found_by_their_uid() {
    let (writer, pods) = served();
    let ended = Pod { terminating: true, claims_until: Some("2026-01-01T00:00:00Z".parse().unwrap()), ..host("team", "ended") };
    let terminating = Pod { terminating: true, claims_until: Some("2026-01-01T00:01:00Z".parse().unwrap()), ..host("team", "terminating") };
    writer.write(|index| {
        index.end_claims("2026-01-01T00:00:30Z".parse().unwrap());
        index.reset([
            host("team", "agent"),
            Pod { finished: true, ..host("team", "finished") },
            ended,
            terminating,
            Pod::for_test("team", "web"),
        ]);
    });
    let found = |name: &str| pods.by_uid(&format!("team/{name}"));
    for name in ["agent", "terminating"] {
        assert!(matches!(found(name), Lookup::Found(pod, _) if pod.name == name), "{name}");
    }
    for name in ["finished", "ended", "nobody"] {
        assert_eq!(found(name), Lookup::Unknown, "{name}");
    }
    assert!(matches!(found("web"), Lookup::Objected(pod, Objection::NotInHostNetwork) if pod.name == "web"));
    let agent = PodName { uid: PodUid("team/agent".into()), namespace: "team".to_owned(), name: "agent".to_owned() };
    writer.write(|index| index.unreadable_at(agent, None));
    assert!(matches!(found("agent"), Lookup::Unreadable(pod) if pod.name == "agent"));
    writer.write(|index| index.delete(&PodUid("team/agent".into())));
    assert_eq!(found("agent"), Lookup::Unknown);
}

/// The kubelet knows a static pod by the hash of its manifest, and the API by another UID.
#[test]
fn a_static_pod_is_found_by_the_uid_of_the_kubelet_alone() {
    let (writer, pods) = served();
    writer.write(|index| index.reset([mirror("etcd"), host("team", "agent")]));
    assert!(matches!(pods.by_uid(HASH), Lookup::Found(pod, _) if pod.name == "etcd"));
    assert_eq!(pods.by_uid("kube-system/etcd"), Lookup::Unknown, "no process is in a control group of that name");
    // Anybody may create an object that looks like a mirror.
    writer.write(|index| index.apply(Pod { namespace: "team".to_owned(), uid: PodUid("forged".into()), ..mirror("forged") }));
    assert_eq!(pods.by_uid(HASH), Lookup::Unknown);
    // A mirror with the UID of another pod is not that pod.
    writer.write(|index| index.apply(Pod { static_uid: Some("team/agent".into()), ..mirror("second") }));
    assert!(matches!(pods.by_uid("team/agent"), Lookup::Found(pod, _) if pod.name == "agent"));
}

#[test]
fn only_served_pods_are_followed_and_prefetched() {
    for (mode, expected) in
        [(HostNetworkMode::Serve, &["agent", "web"][..]), (HostNetworkMode::Deny, &["web"]), (HostNetworkMode::Ignore, &["web"])]
    {
        let (writer, pods) = pods();
        let finished = Pod { finished: true, ..host("batch", "job") };
        writer.write(|index| {
            index.set_host_network(rules(mode));
            index.reset([host("team", "agent"), host("kube-system", "aws-node"), finished, Pod::for_test("shop", "web")]);
        });
        let names: BTreeSet<_> = pods.that_may_ask().1.into_iter().map(|(pod, _)| pod.name.clone()).collect();
        assert_eq!(names.iter().map(String::as_str).collect::<Vec<_>>(), expected, "{mode:?}");
        let namespaces: Vec<_> = pods.namespaces_to_follow().into_iter().collect();
        let expected: &[&str] = if mode == HostNetworkMode::Serve { &["shop", "team"] } else { &["shop"] };
        assert_eq!(namespaces, expected, "{mode:?}");
        // None of them claims an address.
        assert_eq!(writer.write(|index| index.with_addresses().count()), 1);
        let mut names: Vec<_> = pods.in_host_network().iter().map(|pod| pod.name.clone()).collect();
        names.sort();
        assert_eq!(names, ["agent", "aws-node"]);
    }
}

#[test]
fn rules_that_are_set_later_count_all_pods_again() {
    let mut index = Index::default();
    index.reset([Pod { role: None, ..host("team", "agent") }, Pod::for_test("shop", "web")]);
    index.set_host_network(rules(HostNetworkMode::Serve));
    assert_eq!((index.namespaces_of_pods().len(), index.service_accounts_of_pods().len()), (2, 2));
    index.set_host_network(rules(HostNetworkMode::Deny));
    assert_eq!((index.namespaces_of_pods().len(), index.service_accounts_of_pods().len()), (1, 1));
    index.delete(&PodUid("team/agent".into()));
    assert_eq!(index.namespaces().len(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_pod_that_asks_before_the_api_knows_it_is_waited_for() {
    let (writer, pods) = served();
    let agent = Identifier::HostNetwork("team/agent".into());
    let waits = tokio::spawn({
        let (pods, agent) = (pods.clone(), agent.clone());
        async move { pods.wait_for(&agent, WAIT, |_, _| true).await }
    });
    tokio::time::sleep(Duration::from_millis(10)).await;
    assert!(!waits.is_finished());
    writer.write(|index| index.apply(host("team", "agent")));
    assert!(matches!(waits.await.unwrap(), Lookup::Found(pod, _) if pod.name == "agent"));
    let began = tokio::time::Instant::now();
    let nobody = Identifier::HostNetwork("team/nobody".into());
    assert_eq!(pods.wait_for(&nobody, WAIT, |_, _| true).await, Lookup::Unknown);
    assert_eq!(began.elapsed(), WAIT);
    // The network of a pod does not change.
    writer.write(|index| index.apply(Pod::for_test("team", "web")));
    let web = Identifier::HostNetwork("team/web".into());
    assert!(matches!(pods.wait_for(&web, WAIT, |_, _| true).await, Lookup::Objected(_, Objection::NotInHostNetwork)));
    assert_eq!(began.elapsed(), WAIT);
}

/// One container that connects again and again must not keep others from waiting.
#[tokio::test(start_paused = true)]
async fn requests_of_unknown_pods_wait_in_bounded_numbers_for_each_uid() {
    let (writer, pods) = served();
    let wait = |uid: &str| {
        let (pods, uid) = (pods.clone(), Identifier::HostNetwork(uid.into()));
        tokio::spawn(async move { pods.wait_for(&uid, WAIT, |_, _| true).await })
    };
    let many: Vec<_> = (0..100).map(|_| wait("team/greedy")).collect();
    tokio::time::sleep(Duration::from_millis(10)).await;
    let turned_away = many.iter().filter(|waits| waits.is_finished()).count();
    assert_eq!((turned_away, pods.waits_turned_away()), (36, 36), "64 of one pod may wait");
    let other = wait("team/agent");
    tokio::time::sleep(Duration::from_millis(10)).await;
    writer.write(|index| index.apply(host("team", "agent")));
    assert!(matches!(other.await.unwrap(), Lookup::Found(..)));
}
