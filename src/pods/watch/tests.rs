#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test says loudly what failed")]
use std::net::{Ipv4Addr, TcpListener};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use rolegate_lab::kube::{KubeApi, PodBuilder, Resource, Verb, namespace, service_account};
use serde_json::Value;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use super::objects::OnlyMetadata;
use super::*;
use crate::config::ApiConfig;
use crate::kubernetes::client::connect;
use crate::kubernetes::failure::RequestFailure;
use crate::pods::{Lookup, PodContext, pods};
use crate::readiness::Readiness;

/// A running watch of `node-a`.
struct Running {
    api: KubeApi,
    pods: Pods,
    metrics: Metrics,
    task: tokio::task::JoinHandle<()>,
}

impl Drop for Running {
    fn drop(&mut self) {
        self.task.abort();
    }
}

fn lab() -> KubeApi {
    let _ = rustls::crypto::ring::default_provider().install_default();
    KubeApi::start(TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap()).unwrap()
}

async fn watch(url: String, writer: PodsWriter, pods: Pods, needs: Needs) -> PodWatch {
    let _ = rustls::crypto::ring::default_provider().install_default();
    PodWatch {
        client: connect(&ApiConfig { server: Some(url), ..ApiConfig::default() }).await.unwrap(),
        node: "node-a".to_owned(),
        node_addresses: Box::new(NodeAddresses::default),
        now: Box::new(|| "2026-01-01T00:00:00Z".parse().unwrap()),
        annotations: AnnotationKeys {
            role: "iam.amazonaws.com/role".to_owned(),
            target_role: "iam.amazonaws.com/target-role".to_owned(),
            external_id: "iam.amazonaws.com/external-id".to_owned(),
            allowed_roles: "iam.amazonaws.com/allowed-roles".to_owned(),
        },
        writer,
        pods,
        needs,
        token_audience: None,
        metrics: Metrics::new(),
    }
}

async fn run(api: KubeApi, needs: Needs) -> Running {
    let (writer, pods) = pods();
    let watch = watch(api.url(), writer, pods.clone(), needs).await;
    let metrics = watch.metrics.clone();
    let task = tokio::spawn(watch.run(Readiness::default().step("the first list")));
    Running { api, pods, metrics, task }
}

impl Running {
    /// Waits until the context of the pod at an address is as wanted, and returns it.
    async fn context(&self, ip: &str, wanted: impl Fn(&PodContext) -> bool) -> PodContext {
        let wait = Duration::from_secs(20);
        match self.pods.wait_for_ip(ip.parse().unwrap(), wait, |_, context| wanted(context)).await {
            Lookup::Found(_, context) if wanted(&context) => context,
            other => panic!("{other:?}"),
        }
    }

    fn count(&self, metric: &str) -> u32 {
        let text = String::from_utf8(self.metrics.render()).unwrap();
        let value = text.lines().find_map(|line| line.strip_prefix(metric)?.strip_prefix(' '));
        value.map_or(0, |value| value.parse().unwrap())
    }
}

fn put(api: &KubeApi, pod: PodBuilder) {
    api.apply(Resource::Pods, pod.node("node-a").build());
}

const ACCOUNTS: Needs = Needs { namespaces: false, service_accounts: true, owners: false };

#[tokio::test]
async fn service_accounts_are_read_for_pods_without_a_role() {
    let api = lab();
    let annotations = [("iam.amazonaws.com/role", "shop"), ("eks.amazonaws.com/role-arn", "arn:aws:iam::1:role/shop")];
    api.apply(Resource::ServiceAccounts, service_account("shop", "seller", &annotations));
    put(&api, PodBuilder::new("shop", "web").ip("10.42.0.2").service_account("seller"));
    put(&api, PodBuilder::new("shop", "own").ip("10.42.0.3").service_account("other").annotation("iam.amazonaws.com/role", "own"));
    put(&api, PodBuilder::new("shop", "late").ip("10.42.0.4").service_account("late"));
    put(&api, PodBuilder::new("shop", "host").service_account("system").host_network(true));
    let running = run(api, ACCOUNTS).await;
    let known = running.context("10.42.0.2", |context| context.service_account.is_some()).await;
    let account = known.service_account.unwrap();
    assert_eq!((account.role.as_deref(), account.eks_role.as_deref()), (Some("shop"), Some("arn:aws:iam::1:role/shop")));
    assert!(!known.service_account_forbidden);
    running.api.apply(Resource::ServiceAccounts, service_account("shop", "late", &[]));
    running.context("10.42.0.4", |context| context.service_account.is_some()).await;
    running.api.apply(Resource::ServiceAccounts, service_account("shop", "seller", &[]));
    running.context("10.42.0.2", |context| context.service_account.as_ref().is_some_and(|account| account.role.is_none())).await;
    running.api.delete(Resource::ServiceAccounts, Some("shop"), "seller");
    running.context("10.42.0.2", |context| context.service_account.is_none()).await;
    let requests = running.api.requests();
    let of_accounts = requests.iter().filter(|request| request.path == "/api/v1/namespaces/shop/serviceaccounts");
    let mut asked: Vec<_> = of_accounts.filter_map(|request| request.query("fieldSelector")).collect();
    asked.sort_unstable();
    asked.dedup();
    assert_eq!(asked, ["metadata.name=late", "metadata.name=seller"], "no other account is requested");
    assert_eq!(requests.iter().filter(|request| request.path == "/api/v1/namespaces").count(), 0);
}

fn may_read_accounts(api: &KubeApi, may: bool) {
    for verb in [Verb::List, Verb::Watch] {
        if may { api.allow(verb, "serviceaccounts") } else { api.deny(verb, "serviceaccounts") }
    }
}

#[tokio::test]
async fn a_forbidden_service_account_is_marked_and_retried() {
    let api = lab();
    may_read_accounts(&api, false);
    api.apply(Resource::ServiceAccounts, service_account("shop", "seller", &[]));
    put(&api, PodBuilder::new("shop", "web").ip("10.42.0.2").service_account("seller"));
    let running = run(api, ACCOUNTS).await;
    let known = running.context("10.42.0.2", |context| context.service_account_forbidden).await;
    assert_eq!(known.service_account, None);
    may_read_accounts(&running.api, true);
    let known = running.context("10.42.0.2", |context| context.service_account.is_some()).await;
    assert!(!known.service_account_forbidden);
}

#[tokio::test]
async fn newly_forbidden_service_accounts_stay_known_and_block_no_others() {
    let api = lab();
    api.apply(Resource::ServiceAccounts, service_account("shop", "seller", &[("iam.amazonaws.com/role", "shop")]));
    put(&api, PodBuilder::new("shop", "web").ip("10.42.0.2").service_account("seller"));
    let running = run(api, ACCOUNTS).await;
    running.context("10.42.0.2", |context| context.service_account.is_some()).await;
    may_read_accounts(&running.api, false);
    running.api.cut_connections();
    let known = running.context("10.42.0.2", |context| context.service_account_forbidden).await;
    assert_eq!(known.service_account.unwrap().role.as_deref(), Some("shop"), "what is known still holds");
    // A new pod with a forbidden account is refused, and neither pod affects the other.
    running.api.apply(Resource::ServiceAccounts, service_account("shop", "late", &[]));
    put(&running.api, PodBuilder::new("shop", "late").ip("10.42.0.3").service_account("late"));
    let known = running.context("10.42.0.3", |context| context.service_account_forbidden).await;
    assert_eq!(known.service_account, None);
    running.context("10.42.0.2", |context| context.service_account.is_some()).await;
    may_read_accounts(&running.api, true);
    running.context("10.42.0.3", |context| context.service_account.is_some() && !context.service_account_forbidden).await;
    running.api.apply(Resource::ServiceAccounts, service_account("shop", "seller", &[("iam.amazonaws.com/role", "other")]));
    let is_new = |context: &PodContext| context.service_account.as_ref().is_some_and(|account| account.role.as_deref() == Some("other"));
    running.context("10.42.0.2", is_new).await;
}

#[tokio::test]
async fn owners_come_with_pods_where_they_are_needed() {
    for owners in [false, true] {
        let api = lab();
        put(&api, PodBuilder::new("shop", "web").ip("10.42.0.2").owner("StatefulSet", "web"));
        let running = run(api, Needs { owners, ..Needs::default() }).await;
        running.context("10.42.0.2", |_| true).await;
        let Lookup::Found(pod, _) = running.pods.by_ip("10.42.0.2".parse().unwrap()) else { panic!("it is known") };
        assert_eq!(pod.owner.as_ref().map(|owner| (&*owner.kind, &*owner.name)), owners.then_some(("StatefulSet", "web")));
    }
}

/// Everybody who creates a pod may write the annotation.
#[tokio::test]
async fn an_ordinary_pod_never_takes_the_identity_of_a_static_pod() {
    const HASH: &str = "6a1f0c5e7b2d4938a0c1e2f3d4b5a697";
    let api = lab();
    let pod = |namespace: &str, name: &str| PodBuilder::new(namespace, name).uid(name).host_network(true);
    let mirror = |pod: PodBuilder| pod.annotation("kubernetes.io/config.hash", HASH).annotation("kubernetes.io/config.mirror", HASH);
    put(&api, mirror(pod("team", "f0000000-0000-4000-8000-000000000001")));
    put(&api, mirror(pod("team", "f0000000-0000-4000-8000-000000000002").owner("Node", "node-b")));
    put(&api, PodBuilder::new("team", "last").ip("10.42.0.2"));
    let running = run(api, Needs::default()).await;
    running.context("10.42.0.2", |_| true).await;
    assert_eq!(running.pods.by_uid(HASH), Lookup::Unknown);
    for uid in ["f0000000-0000-4000-8000-000000000001", "f0000000-0000-4000-8000-000000000002"] {
        assert!(matches!(running.pods.by_uid(uid), Lookup::Found(pod, _) if &*pod.uid.0 == uid), "{uid}");
    }
    // The object of the static pod itself is found beside them, and keeps no owner in memory.
    put(&running.api, mirror(pod("kube-system", "etcd").owner("Node", "node-a")));
    put(&running.api, PodBuilder::new("team", "later").ip("10.42.0.3"));
    running.context("10.42.0.3", |_| true).await;
    let Lookup::Found(found, _) = running.pods.by_uid(HASH) else { panic!("it is not known") };
    assert_eq!((found.name.as_str(), &found.owner), ("etcd", &None));
}

#[tokio::test]
async fn namespaces_are_known_with_both_of_their_lists() {
    let api = lab();
    let annotations = [("iam.amazonaws.com/allowed-roles", "[]"), ("iam.amazonaws.com/permitted", ".*")];
    api.apply(Resource::Namespaces, namespace("shop", &annotations));
    put(&api, PodBuilder::new("shop", "web").ip("10.42.0.2"));
    let running = run(api, Needs { namespaces: true, ..Needs::default() }).await;
    let known = running.context("10.42.0.2", |context| context.namespace.is_some()).await.namespace.unwrap();
    assert_eq!((known.allowed_roles.as_deref(), known.permitted.as_deref()), (Some("[]"), Some(".*")));
    // A repeated earlier state does not replace the current one.
    let old = running.api.get(Resource::Namespaces, None, "shop").unwrap();
    running.api.apply(Resource::Namespaces, namespace("shop", &[]));
    let is_bare = |context: &PodContext| context.namespace.as_ref().is_some_and(|namespace| namespace.permitted.is_none());
    running.context("10.42.0.2", is_bare).await;
    running.api.inject_raw_event(Resource::Namespaces, &serde_json::json!({ "type": "MODIFIED", "object": old }).to_string());
    running.api.apply(Resource::Namespaces, namespace("shop", &[("iam.amazonaws.com/allowed-roles", "[]")]));
    let is_new = |context: &PodContext| context.namespace.as_ref().is_some_and(|namespace| namespace.allowed_roles.is_some());
    assert!(is_bare(&running.context("10.42.0.2", is_new).await));
    running.api.delete(Resource::Namespaces, None, "shop");
    running.context("10.42.0.2", |context| context.namespace.is_none()).await;
}

#[tokio::test]
async fn an_unresolved_conflict_is_queried_again_but_not_soon() {
    let api = lab();
    api.deny(Verb::List, "pods");
    put(&api, PodBuilder::new("shop", "a").ip("10.42.0.2"));
    put(&api, PodBuilder::new("shop", "b").ip("10.42.0.2"));
    let running = run(api, Needs::default()).await;
    let mut pods = running.pods.clone();
    let unanswered = r#"rolegate_ambiguous_addresses_total{outcome="unanswered"}"#;
    while running.count(unanswered) == 0 {
        pods.changed().await;
    }
    let asked = |running: &Running| running.api.requests().iter().filter(|request| request.verb == Some(Verb::List)).count();
    assert_eq!(asked(&running), 2);
    assert!(matches!(pods.by_ip("10.42.0.2".parse().unwrap()), Lookup::Ambiguous(_)), "both are refused meanwhile");
    // Other changes do not cause a query.
    put(&running.api, PodBuilder::new("shop", "c").ip("10.42.0.3"));
    running.context("10.42.0.3", |_| true).await;
    assert_eq!(asked(&running), 2);
    running.api.allow(Verb::List, "pods");
    tokio::time::pause();
    tokio::time::advance(ambiguous::ASK_AGAIN).await;
    tokio::time::resume();
    while running.count(r#"rolegate_ambiguous_addresses_total{outcome="confirmed"}"#) == 0 {
        pods.changed().await;
    }
    assert_eq!(asked(&running), 4);
    assert_eq!(running.count(unanswered), 1);
}

#[tokio::test]
async fn a_pod_that_reports_the_nodes_address_does_not_get_it() {
    let api = lab();
    put(&api, PodBuilder::new("shop", "liar").host_ip("10.0.0.10").ip("10.0.0.10"));
    put(&api, PodBuilder::new("shop", "web").host_ip("10.0.0.10").ip("10.42.0.2"));
    let running = run(api, Needs::default()).await;
    running.context("10.42.0.2", |_| true).await;
    assert_eq!(running.pods.by_ip("10.0.0.10".parse().unwrap()), Lookup::Unknown);
}

#[tokio::test]
async fn a_response_that_is_no_pod_list_changes_nothing() {
    for answer in [
        "{}",
        r#"{"kind":"PodList","items":[]}"#,
        r#"{"kind":"PodList","metadata":{"resourceVersion":""},"items":[]}"#,
        r#"{"kind":"List","metadata":{"resourceVersion":"9"},"items":[]}"#,
    ] {
        let server = tokio::net::TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let url = format!("http://{}", server.local_addr().unwrap());
        let answering = tokio::spawn(async move {
            loop {
                let (mut stream, _) = server.accept().await.unwrap();
                let _ = stream.read(&mut [0; 4096]).await;
                let head = format!("HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: {}\r\n\r\n", answer.len());
                let _ = stream.write_all((head + answer).as_bytes()).await;
            }
        });
        let (writer, pods) = pods();
        let watch = watch(url, writer, pods.clone(), Needs::default()).await;
        let mut objects: Vec<PodObject> = Vec::new();
        for name in ["a", "b"] {
            let pod = PodBuilder::new("shop", name).node("node-a").uid(name).ip("10.42.0.2").build();
            objects.push(serde_json::from_value(pod).unwrap());
        }
        objects.into_iter().for_each(|object| watch.apply(object));
        let metrics = watch.metrics.clone();
        let settling = tokio::spawn(async move { watch.settle_ambiguous_addresses().await });
        let mut changes = pods.clone();
        let unanswered = async {
            while !String::from_utf8(metrics.render()).unwrap().contains(r#"outcome="unanswered"} 1"#) {
                changes.changed().await;
            }
        };
        tokio::time::timeout(Duration::from_secs(20), unanswered).await.unwrap_or_else(|_| panic!("{answer} is no answer"));
        assert!(matches!(pods.by_ip("10.42.0.2".parse().unwrap()), Lookup::Ambiguous(_)), "{answer}");
        settling.abort();
        answering.abort();
    }
}

/// Sets up two pods at one address. At first, the API does not answer queries about them; later, it reports a state of one pod
/// that the watch did not deliver.
async fn ask_again_about(changed: Value) -> Running {
    let api = lab();
    put(&api, PodBuilder::new("shop", "web").ip("10.42.0.2"));
    put(&api, PodBuilder::new("shop", "odd").ip("10.42.0.2"));
    api.deny(Verb::List, "pods");
    let running = run(api, Needs::default()).await;
    let mut pods = running.pods.clone();
    while running.count(r#"rolegate_ambiguous_addresses_total{outcome="unanswered"}"#) == 0 {
        pods.changed().await;
    }
    running.api.hold_events(Resource::Pods, "odd");
    running.api.apply(Resource::Pods, changed);
    running.api.allow(Verb::List, "pods");
    tokio::time::pause();
    tokio::time::advance(ambiguous::ASK_AGAIN).await;
    tokio::time::resume();
    while running.count(r#"rolegate_ambiguous_addresses_total{outcome="settled"}"#) == 0 {
        pods.changed().await;
    }
    running
}

#[tokio::test]
async fn pods_of_any_size_can_be_queried() {
    // Larger than the maximum size of a response.
    let large = PodBuilder::new("shop", "odd").node("node-a").ip("10.42.0.3").annotation("notes", &"<".repeat(6 << 20));
    let running = ask_again_about(large.build()).await;
    running.context("10.42.0.2", |_| true).await;
    running.context("10.42.0.3", |_| true).await;
}

#[tokio::test]
async fn an_unreadable_claimant_blocks_its_address() {
    let mut odd = PodBuilder::new("shop", "odd").node("node-a").ip("10.42.0.2").build();
    odd["spec"]["hostNetwork"] = "perhaps".into();
    let running = ask_again_about(odd).await;
    assert!(matches!(running.pods.by_ip("10.42.0.2".parse().unwrap()), Lookup::Unreadable(pod) if pod.name == "odd"));
}

#[tokio::test(start_paused = true)]
async fn the_nodes_addresses_are_kept_if_they_cannot_be_read() {
    let (writer, pods) = pods();
    let read = Arc::new(AtomicU32::new(0));
    let node_addresses = {
        let read = read.clone();
        move || match read.fetch_add(1, Ordering::Relaxed) {
            1 => NodeAddresses::default(),
            // An address that is gone stays gone if others were read.
            2 => NodeAddresses { ips: ["10.0.0.11".parse().unwrap()].into(), loopback: false },
            _ => NodeAddresses { ips: ["10.0.0.10", "10.0.0.11"].map(|ip| ip.parse().unwrap()).into(), loopback: false },
        }
    };
    let watch = PodWatch {
        node_addresses: Box::new(node_addresses),
        ..watch("http://127.0.0.1:1".to_owned(), writer, pods.clone(), Needs::default()).await
    };
    let watching = tokio::spawn(async move { watch.watch_node_addresses().await });
    for (times, is_node) in [(1, true), (2, true), (3, false)] {
        while read.load(Ordering::Relaxed) < times {
            tokio::time::sleep(Duration::from_secs(1)).await;
        }
        let began = tokio::time::Instant::now();
        pods.wait_for_ip("10.0.0.10".parse().unwrap(), Duration::from_millis(1), |_, _| true).await;
        assert_eq!(began.elapsed() == Duration::ZERO, is_node, "read {times} times: requests from the node's address do not wait");
    }
    watching.abort();
}

#[tokio::test(start_paused = true)]
async fn a_terminating_pods_claim_ends_without_further_events() {
    let (writer, pods) = pods();
    let clock = crate::clock::Clock::following_tokio("2026-01-01T00:00:00Z".parse().unwrap());
    let now = clock.clone();
    let watch = PodWatch {
        now: Box::new(move || now.now()),
        ..watch("http://127.0.0.1:1".to_owned(), writer, pods.clone(), Needs::default()).await
    };
    let pod = |name: &str, end: &str| PodBuilder::new("shop", name).node("node-a").uid(name).ip("10.42.0.2").terminating_at(end).build();
    let is_found = || matches!(pods.by_ip("10.42.0.2".parse().unwrap()), Lookup::Found(..));
    watch.apply(serde_json::from_value(pod("old", "2025-12-31T23:59:30Z")).unwrap());
    assert!(!is_found(), "its time was over before it was seen");
    watch.apply(serde_json::from_value(pod("web", "2026-01-01T00:00:30Z")).unwrap());
    let (watch, pods_now) = (Arc::new(watch), pods.clone());
    let ending = tokio::spawn({
        let watch = watch.clone();
        async move { watch.end_claims().await }
    });
    tokio::time::sleep(Duration::from_millis(59_900)).await;
    assert!(is_found(), "in its grace period, and half a minute beyond");
    let generation = pods_now.generation();
    tokio::time::sleep(Duration::from_millis(200)).await;
    assert!(!is_found());
    assert_eq!(pods_now.generation(), generation + 1, "earlier decisions are repeated");
    // A pod that arrives while no claim is due to end.
    watch.apply(serde_json::from_value(pod("next", "2026-01-01T00:01:00Z")).unwrap());
    tokio::time::sleep(Duration::from_secs(29)).await;
    assert!(is_found());
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert!(!is_found());
    ending.abort();
}

fn listed(objects: Vec<OnlyMetadata>, version: u64) -> WatchEvent<'static, OnlyMetadata> {
    let objects = objects.into_iter().map(Box::new).collect();
    WatchEvent::Listed { objects, unreadable: Vec::new(), version: Some(version), new_history: false, incomplete: false }
}

#[test]
fn late_events_change_nothing() {
    let object = |version: u64, role: &str| -> OnlyMetadata {
        let annotations = serde_json::json!({ "role": role });
        let metadata = serde_json::json!({ "name": "seller", "resourceVersion": version.to_string(), "annotations": annotations });
        serde_json::from_value(serde_json::json!({ "metadata": metadata })).unwrap()
    };
    let metadata = |version: u64| object(version, "").metadata;
    let mut latest = None;
    // The result in words: the object's current state, `gone`, or `same`.
    let mut change = |event: WatchEvent<'_, OnlyMetadata>| match context::change(event, "seller", &mut latest) {
        None => "same".to_owned(),
        Some(None) => "gone".to_owned(),
        Some(Some(metadata)) => metadata.annotation("role").unwrap().to_owned(),
    };
    assert_eq!(change(listed(vec![object(5, "first")], 10)), "first");
    assert_eq!(change(WatchEvent::Applied(object(9, "earlier"))), "same");
    assert_eq!(change(WatchEvent::Deleted(metadata(9))), "same");
    assert_eq!(change(WatchEvent::Unreadable(metadata(9))), "same");
    assert_eq!(change(WatchEvent::Applied(object(12, "second"))), "second");
    assert_eq!(change(WatchEvent::Applied(object(11, "earlier"))), "same");
    assert_eq!(change(WatchEvent::Deleted(metadata(14))), "gone");
    assert_eq!(change(WatchEvent::Applied(object(13, "earlier"))), "same", "it does not come back");
    assert_eq!(change(WatchEvent::Applied(object(15, "third"))), "third");
    assert_eq!(change(WatchEvent::Unreadable(metadata(16))), "gone");
    assert_eq!(change(listed(vec![], 20)), "gone");
    assert_eq!(change(WatchEvent::Applied(object(19, "earlier"))), "same");
    assert_eq!(change(WatchEvent::Alive), "same");
    let mut other = object(30, "other");
    other.metadata.name = Some("another".to_owned());
    assert_eq!(change(WatchEvent::Applied(other)), "same");
    assert_eq!(change(WatchEvent::Applied(object(21, "fourth"))), "fourth", "another object's version does not count");
}

#[tokio::test]
async fn the_context_of_deleted_pods_is_not_used_for_the_next() {
    let api = lab();
    let role = [("iam.amazonaws.com/role", "shop"), ("iam.amazonaws.com/permitted", ".*")];
    let pod = |name: &str, ip: &str| PodBuilder::new("shop", name).ip(ip).service_account("seller");
    api.apply(Resource::Namespaces, namespace("shop", &role));
    api.apply(Resource::ServiceAccounts, service_account("shop", "seller", &role));
    put(&api, pod("web", "10.42.0.2"));
    let running = run(api, Needs { namespaces: true, service_accounts: true, owners: false }).await;
    running.context("10.42.0.2", |context| context.namespace.is_some() && context.service_account.is_some()).await;
    // While no pod needs them, they are not watched and may change in any way.
    running.api.delete(Resource::Pods, Some("shop"), "web");
    let mut pods = running.pods.clone();
    let known = |pods: &Pods| {
        let context = pods.context("shop", "seller");
        (context.namespace.is_some(), context.service_account.is_some())
    };
    tokio::time::timeout(Duration::from_secs(20), async {
        while known(&pods) != (false, false) {
            pods.changed().await;
        }
    })
    .await
    .expect("neither object is known");
    // The API does not answer about them when the next pod appears.
    for resource in ["namespaces", "serviceaccounts"] {
        [Verb::List, Verb::Watch].into_iter().for_each(|verb| running.api.deny(verb, resource));
    }
    put(&running.api, pod("next", "10.42.0.3"));
    let context = running.context("10.42.0.3", |context| context.service_account_forbidden).await;
    assert_eq!((context.namespace, context.service_account), (None, None), "nothing of the earlier context remains");
}

#[tokio::test]
async fn only_a_complete_list_and_a_bookmark_make_the_state_current() {
    let (writer, pods) = pods();
    let watch = watch("http://127.0.0.1:1".to_owned(), writer, pods.clone(), Needs::default()).await;
    let metadata = || serde_json::from_value::<ObjectMeta>(serde_json::json!({ "uid": "1" })).unwrap();
    let list =
        || WatchEvent::Listed { objects: Vec::new(), unreadable: Vec::new(), version: Some(1), new_history: false, incomplete: false };
    for (event, is_current) in [
        (WatchEvent::Alive, false),
        (WatchEvent::Failed(&RequestFailure::Silent), false),
        (WatchEvent::Deleted(metadata()), false),
        (WatchEvent::Unreadable(metadata()), false),
        (WatchEvent::UpToDate, true),
        (list(), true),
    ] {
        pods.set_stale(true);
        let described = format!("{event:?}");
        watch.take(event, &mut None);
        assert_eq!(pods.is_stale(), !is_current, "{described}");
    }
}

#[tokio::test(start_paused = true)]
async fn empty_responses_are_no_sign_of_life() {
    let (writer, pods) = pods();
    let watch = watch("http://127.0.0.1:1".to_owned(), writer, pods.clone(), Needs::default()).await;
    let metadata = || serde_json::from_value::<ObjectMeta>(serde_json::json!({ "uid": "1" })).unwrap();
    for (event, is_heard) in
        [(WatchEvent::Alive, false), (WatchEvent::Failed(&RequestFailure::Silent), false), (WatchEvent::Deleted(metadata()), true)]
    {
        tokio::time::advance(Duration::from_secs(60)).await;
        watch.take(event, &mut None);
        assert_eq!(watch.metrics.watch_silence() < Duration::from_secs(1), is_heard);
    }
}
