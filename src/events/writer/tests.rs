#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test says loudly what failed")]
use std::collections::VecDeque;
use std::sync::Mutex;

use serde_json::{Value, json};
use tokio::sync::Notify;
use tokio::time::{advance, timeout};

use super::*;
use crate::events::Reporter;
use crate::events::ledger::{FORBIDDEN_AGAIN, FORGET_AFTER, MAX_ENTRIES, SERIES_EVERY};
use crate::events::tests::pod;
use crate::pods::{PodsWriter, pods};
use crate::policy::Denial;

const NO_ROLE: EventCause = EventCause::Denied(Denial::NoRole);

/// An API that returns scripted responses and otherwise accepts every write.
#[derive(Clone, Debug, Default)]
struct Fake {
    answers: Arc<Mutex<VecDeque<u16>>>,
    sent: Arc<Mutex<Vec<(String, Value)>>>,
    heard: Arc<Notify>,
    /// If set, responses wait for this notification.
    held: Option<Arc<Notify>>,
}

impl Fake {
    async fn answer(&self, what: String, body: Vec<u8>) -> Result<(), WriteRefusal> {
        self.sent.lock().unwrap().push((what, serde_json::from_slice(&body).unwrap()));
        self.heard.notify_one();
        if let Some(held) = &self.held {
            held.notified().await;
        }
        let code = self.answers.lock().unwrap().pop_front().unwrap_or(200);
        let refusal = || WriteRefusal { code: Some(code), namespace_ends: false, retry_after: Duration::ZERO, text: code.to_string() };
        if code == 200 { Ok(()) } else { Err(refusal()) }
    }
}

impl EventsApi for Fake {
    async fn create(&self, namespace: &str, event: Vec<u8>) -> Result<(), WriteRefusal> {
        self.answer(format!("create in {namespace}"), event).await
    }

    async fn amend(&self, namespace: &str, name: &str, patch: Vec<u8>) -> Result<(), WriteRefusal> {
        self.answer(format!("amend {namespace}/{name}"), patch).await
    }
}

struct Bed {
    api: Fake,
    reporter: Reporter,
    index: PodsWriter,
    metrics: Metrics,
    _running: tokio::task::JoinHandle<()>,
}

impl Bed {
    fn start(api: Fake, here: impl IntoIterator<Item = Pod>) -> Self {
        let (index, pods) = pods();
        here.into_iter().for_each(|pod| index.write(|index| index.apply(pod)));
        let metrics = Metrics::new();
        let (reporter, records) = Reporter::new(metrics.clone());
        let clock = Clock::following_tokio("2026-01-01T00:00:00Z".parse().unwrap());
        let writer = Writer { api: api.clone(), node: "node-a".to_owned(), pods, records, clock, metrics: metrics.clone() };
        Self { api, reporter, index, metrics, _running: tokio::spawn(writer.run()) }
    }

    fn tell(&self, name: &str, cause: EventCause) {
        self.reporter.tell(&Arc::new(pod(name)), cause);
    }

    fn sent(&self) -> Vec<(String, Value)> {
        self.api.sent.lock().unwrap().clone()
    }

    /// Waits until this many writes were sent.
    async fn wait_for(&self, count: usize) {
        let enough = async {
            while self.sent().len() < count {
                self.api.heard.notified().await;
            }
        };
        timeout(Duration::from_secs(24 * 3600), enough).await.unwrap_or_else(|_| panic!("{count} are not sent: {:#?}", self.sent()));
    }

    /// Advances the clock, and lets the writer do its work in between.
    async fn pass(&self, time: Duration) {
        tokio::time::sleep(time).await;
    }

    fn counted(&self, outcome: &str) -> u32 {
        let text = String::from_utf8(self.metrics.render()).unwrap();
        let start = format!(r#"rolegate_events_total{{outcome="{outcome}"}} "#);
        text.lines().find_map(|line| line.strip_prefix(&start)).map_or(0, |count| count.parse().unwrap())
    }
}

#[tokio::test(start_paused = true)]
async fn repeats_of_a_pod_become_one_event_and_a_series() {
    let bed = Bed::start(Fake::default(), [pod("web")]);
    bed.tell("web", NO_ROLE);
    bed.wait_for(1).await;
    for _ in 0..49 {
        bed.tell("web", NO_ROLE);
    }
    bed.pass(SERIES_EVERY - Duration::from_secs(1)).await;
    assert_eq!(bed.sent().len(), 1);
    bed.wait_for(2).await;
    let [(created, event), (amended, patch)] = &bed.sent()[..] else { panic!("two") };
    assert_eq!((&**created, &event["reason"], &event["series"]), ("create in shop", &json!("RoleDenied"), &Value::Null));
    assert_eq!(*amended, format!("amend shop/{}", event["metadata"]["name"].as_str().unwrap()));
    assert_eq!(*patch, json!({ "series": { "count": 50, "lastObservedTime": "2026-01-01T00:00:00.000000Z" } }));
    bed.pass(FORGET_AFTER + Duration::from_secs(1)).await;
    assert_eq!(bed.sent().len(), 2, "nothing is written without another repeat");
    assert_eq!((bed.counted("written"), bed.counted("suppressed")), (2, 49));
    bed.tell("web", NO_ROLE);
    bed.wait_for(3).await;
    assert!(bed.sent()[2].0.starts_with("create"), "after a quiet period the cause counts as new");
}

#[tokio::test(start_paused = true)]
async fn a_deleted_pod_gets_no_events() {
    let bed = Bed::start(Fake::default(), [pod("web")]);
    bed.tell("gone", NO_ROLE);
    bed.tell("web", NO_ROLE);
    bed.wait_for(1).await;
    assert_eq!(bed.sent()[0].1["regarding"]["name"], "web");
    // A pod that is deleted while it is remembered.
    bed.tell("web", NO_ROLE);
    bed.index.write(|index| index.delete(&pod("web").uid));
    bed.pass(FORGET_AFTER).await;
    assert_eq!((bed.sent().len(), bed.counted("dropped")), (1, 1));
}

#[tokio::test(start_paused = true)]
async fn records_are_accepted_while_the_api_does_not_respond() {
    let held = Arc::new(Notify::new());
    let bed = Bed::start(Fake { held: Some(held.clone()), ..Fake::default() }, [pod("web"), pod("db")]);
    bed.tell("web", NO_ROLE);
    bed.wait_for(1).await;
    for _ in 0..10 {
        for _ in 0..1000 {
            bed.tell("db", NO_ROLE);
        }
        bed.pass(Duration::from_millis(1)).await;
    }
    assert_eq!((bed.counted("dropped"), bed.counted("suppressed")), (0, 9999));
    assert_eq!(bed.sent().len(), 1, "one write at a time");
    held.notify_one();
    bed.wait_for(2).await;
    assert_eq!(bed.sent()[1].1["series"]["count"], 10_000);
}

#[tokio::test(start_paused = true)]
async fn a_namespace_that_fills_the_ledger_gives_way_and_is_counted() {
    let held = Arc::new(Notify::new());
    let flood: Vec<_> = (0..MAX_ENTRIES).map(|number| Pod { namespace: "flood".to_owned(), ..pod(&format!("flood-{number}")) }).collect();
    let here = flood.iter().cloned().chain([pod("web"), pod("db")]);
    let bed = Bed::start(Fake { held: Some(held.clone()), ..Fake::default() }, here);
    for some in flood.chunks(100) {
        some.iter().for_each(|pod| bed.reporter.tell(&Arc::new(pod.clone()), NO_ROLE));
        bed.pass(Duration::from_millis(1)).await;
    }
    // The Event that is being written is not lost, but the next one is.
    for (name, dropped) in [("web", 0), ("db", 1)] {
        bed.tell(name, NO_ROLE);
        bed.pass(Duration::from_millis(1)).await;
        assert_eq!(bed.counted("dropped"), dropped, "{name}");
    }
    for (number, name) in ["flood-0", "web", "flood-2", "db"].into_iter().enumerate() {
        bed.wait_for(number + 1).await;
        assert_eq!(bed.sent()[number].1["regarding"]["name"], name);
        held.notify_one();
    }
}

#[tokio::test(start_paused = true)]
async fn the_api_response_decides_on_retries() {
    for (answer, tries, outcome) in [
        (500, 2, "failed"),
        (429, 2, "failed"),
        (401, 2, "failed"),
        (403, 2, "failed"),
        (409, 1, "written"),
        (404, 1, "dropped"),
        (422, 1, "failed"),
    ] {
        let bed = Bed::start(Fake::default(), [pod("web")]);
        bed.api.answers.lock().unwrap().push_back(answer);
        bed.tell("web", NO_ROLE);
        bed.pass(FORBIDDEN_AGAIN + Duration::from_secs(1)).await;
        let sent = bed.sent();
        assert_eq!(sent.len(), tries, "{answer}: {sent:#?}");
        assert_eq!(bed.counted(outcome), 1, "{answer}");
        if let [first, second] = &sent[..] {
            assert_eq!(first, second, "{answer}: the retry is identical");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn host_network_pods_get_one_event_when_first_seen() {
    let host = |name: &str, role: Option<&str>| Pod { host_network: true, role: role.map(str::to_owned), ..pod(name) };
    let bed = Bed::start(Fake::default(), [host("agent", Some("web-role")), host("plain", None), pod("web")]);
    bed.wait_for(1).await;
    let event = &bed.sent()[0].1;
    assert_eq!((&event["reason"], &event["regarding"]["name"]), (&json!("HostNetworkNotServed"), &json!("agent")));
    bed.index.write(|index| index.apply(host("late", Some("web-role"))));
    bed.wait_for(2).await;
    assert_eq!(bed.sent()[1].1["regarding"]["name"], "late");
    // Changes to other pods do not matter.
    for _ in 0..5 {
        bed.index.write(|index| index.apply(pod("web")));
        bed.pass(FORGET_AFTER).await;
    }
    assert_eq!((bed.sent().len(), bed.counted("suppressed")), (2, 0));
}

#[tokio::test(start_paused = true)]
async fn the_event_of_a_host_network_pod_says_what_happens_to_it() {
    use crate::config::{ExemptPods, HostNetworkConfig, HostNetworkMode};
    use crate::pods::{HostNetworkRules, OwnPodName};
    let host = |name: &str| Pod { host_network: true, role: Some("web-role".to_owned()), service_account: name.to_owned(), ..pod(name) };
    let namespace = pod("agent").namespace;
    for (mode, expected) in [
        (HostNetworkMode::Serve, &[("cni", "host-network-exempt: ")][..]),
        (HostNetworkMode::Deny, &[("agent", "host-network: the pod has hostNetwork, and this cluster"), ("cni", "host-network-exempt: ")]),
        (HostNetworkMode::Ignore, &[("agent", "host-network: the pod names a role"), ("cni", "host-network: the pod names a role")]),
    ] {
        let bed = Bed::start(Fake::default(), []);
        let exempt = vec![ExemptPods::OfAccount { namespace: namespace.clone(), name: "cni".to_owned() }];
        bed.index.write(|index| {
            index.set_host_network(HostNetworkRules::new(HostNetworkConfig { pods: mode, exempt }, OwnPodName::default(), true));
            index.reset([host("agent"), host("cni")]);
        });
        bed.wait_for(expected.len()).await;
        bed.pass(FORGET_AFTER).await;
        let mut told: Vec<_> =
            bed.sent().into_iter().map(|(_, event)| (event["regarding"]["name"].clone(), event["note"].clone())).collect();
        told.sort_by_key(|(name, _)| name.to_string());
        assert_eq!(told.len(), expected.len(), "{mode:?}: {told:?}");
        for ((name, note), (pod, start)) in told.iter().zip(expected) {
            assert!(name == pod && note.as_str().unwrap().starts_with(start), "{mode:?}: {name} {note}");
        }
    }
}

/// The permission may be added long after the start.
#[tokio::test(start_paused = true)]
async fn host_network_pods_get_events_once_permission_is_added() {
    let api = Fake::default();
    api.answers.lock().unwrap().extend([403, 403, 403]);
    let host = Pod { host_network: true, role: Some("web-role".to_owned()), ..pod("agent") };
    let bed = Bed::start(api, [host]);
    bed.wait_for(1).await;
    for _ in 0..8 {
        advance(FORGET_AFTER).await;
        bed.index.write(|index| index.apply(pod("web")));
        bed.pass(Duration::from_secs(2)).await;
    }
    assert_eq!((bed.counted("failed"), bed.counted("written")), (3, 1));
}
