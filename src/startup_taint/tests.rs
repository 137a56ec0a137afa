#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test says loudly what failed")]
use std::sync::{Arc, Mutex};

use tokio::time::{Instant, advance, sleep};

use super::*;
use crate::tasks::Tasks;

const KEY: &str = "example.com/rolegate";

/// A node's object at an API that returns scripted responses.
#[derive(Clone, Debug, Default)]
struct Fake(Arc<Mutex<State>>);

#[derive(Debug, Default)]
struct State {
    taints: Vec<Value>,
    version: u64,
    /// The time and content of each request.
    reads: Vec<(Instant, Freshness)>,
    patches: Vec<(Instant, Value)>,
    /// Scripted failures of reads and of patches.
    read_codes: Vec<u16>,
    patch_codes: Vec<u16>,
    retry_after: Duration,
    /// Taints that another client adds between a read and a patch, one each time.
    intruders: Vec<Value>,
    without_version: bool,
    /// A readiness step that becomes pending between a read and a patch.
    unready: Option<(Readiness, &'static str)>,
}

fn taint(key: &str, effect: &str) -> Value {
    json!({ "key": key, "value": "true", "effect": effect })
}

impl Fake {
    fn with(taints: &[Value]) -> Self {
        let fake = Self::default();
        fake.set(taints);
        fake
    }

    fn state<T>(&self, change: impl FnOnce(&mut State) -> T) -> T {
        change(&mut self.0.lock().unwrap())
    }

    fn set(&self, taints: &[Value]) {
        self.state(|state| (state.taints, state.version) = (taints.to_vec(), state.version + 1));
    }

    fn taints(&self) -> Vec<Value> {
        self.state(|state| state.taints.clone())
    }

    fn reads(&self) -> usize {
        self.state(|state| state.reads.len())
    }

    fn patches(&self) -> usize {
        self.state(|state| state.patches.len())
    }
}

fn refusal(code: u16, retry_after: Duration) -> NodeRefusal {
    NodeRefusal { code: Some(code), retry_after, text: code.to_string() }
}

impl NodesApi for Fake {
    async fn read(&self, node: &str, freshness: Freshness) -> Result<Vec<u8>, NodeRefusal> {
        assert_eq!(node, "node-a");
        self.state(|state| {
            state.reads.push((Instant::now(), freshness));
            if !state.read_codes.is_empty() {
                return Err(refusal(state.read_codes.remove(0), state.retry_after));
            }
            let version = if state.without_version { Value::Null } else { state.version.to_string().into() };
            let mut object = json!({ "metadata": { "name": "node-a", "resourceVersion": version }, "spec": {}, "status": {} });
            if state.without_version {
                object["metadata"].as_object_mut().unwrap().remove("resourceVersion");
            }
            if !state.taints.is_empty() {
                object["spec"]["taints"] = state.taints.clone().into();
            }
            if !state.intruders.is_empty() {
                let intruder = state.intruders.remove(0);
                state.taints.push(intruder);
                state.version += 1;
            }
            if let Some((readiness, step)) = state.unready.take() {
                // Never done, as when the daemon ends.
                drop(readiness.step(step));
            }
            Ok(object.to_string().into_bytes())
        })
    }

    async fn patch(&self, node: &str, patch: Vec<u8>) -> Result<(), NodeRefusal> {
        assert_eq!(node, "node-a");
        let patch: Value = serde_json::from_slice(&patch).unwrap();
        self.state(|state| {
            state.patches.push((Instant::now(), patch.clone()));
            if !state.patch_codes.is_empty() {
                return Err(refusal(state.patch_codes.remove(0), state.retry_after));
            }
            if patch["metadata"]["resourceVersion"].as_str() != Some(&*state.version.to_string()) {
                return Err(refusal(409, Duration::ZERO));
            }
            state.taints = patch["spec"]["taints"].as_array().unwrap().clone();
            state.version += 1;
            Ok(())
        })
    }
}

/// The running task, and the handles that control it.
struct Running {
    fake: Fake,
    readiness: Readiness,
    metrics: Metrics,
    _tasks: Tasks,
}

impl Running {
    /// Starts the task with a daemon that is ready.
    fn start(fake: Fake) -> Self {
        Self::start_with(fake, Readiness::default())
    }

    fn start_with(fake: Fake, readiness: Readiness) -> Self {
        let (metrics, mut tasks) = (Metrics::new(), Tasks::default());
        let taint = StartupTaint {
            api: fake.clone(),
            node: "node-a".to_owned(),
            key: KEY.to_owned(),
            readiness: readiness.clone(),
            metrics: metrics.clone(),
        };
        tasks.spawn("start-up taint", taint.run());
        Self { fake, readiness, metrics, _tasks: tasks }
    }

    /// Advances the clock, and lets the task do its work.
    async fn passes(&self, time: Duration) {
        sleep(time).await;
    }

    fn counted(&self, outcome: &str) -> u64 {
        let text = String::from_utf8(self.metrics.render()).unwrap();
        let start = format!("rolegate_startup_taint_looks_total{{outcome=\"{outcome}\"}} ");
        text.lines().find_map(|line| line.strip_prefix(&start)).map_or(0, |count| count.parse().unwrap())
    }
}

const MOMENT: Duration = Duration::from_millis(1);

#[tokio::test(start_paused = true)]
async fn nothing_is_read_or_removed_before_start_up_is_complete() {
    let readiness = Readiness::default();
    let steps = ["the daemon's start", "the list of this node's pods", "the packet rule"].map(|name| readiness.step(name));
    let running = Running::start_with(Fake::with(&[taint(KEY, "NoSchedule")]), readiness);
    for step in steps {
        running.passes(LOOK_EVERY * 2).await;
        assert_eq!((running.fake.reads(), running.fake.taints().len()), (0, 1));
        step.done();
    }
    running.passes(MOMENT).await;
    assert_eq!((running.fake.taints(), running.counted("removed")), (vec![], 1));
}

#[tokio::test(start_paused = true)]
async fn every_taint_with_the_key_is_removed_and_others_stay() {
    let mut other = taint("node.kubernetes.io/not-ready", "NoExecute");
    other["timeAdded"] = "2026-01-02T03:04:05Z".into();
    let others = [other, json!({ "key": "example.com/rolegate-gpu", "effect": "NoSchedule" }), json!({ "key": "example.com" })];
    let mut bare = json!({ "key": KEY, "effect": "NoExecute" });
    bare["timeAdded"] = "2026-01-02T03:04:05Z".into();
    let all = [others[0].clone(), taint(KEY, "NoSchedule"), others[1].clone(), bare, others[2].clone()];
    let running = Running::start(Fake::with(&all));
    running.passes(MOMENT).await;
    assert_eq!((running.fake.taints(), running.fake.patches()), (others.to_vec(), 1));
    let patch = running.fake.state(|state| state.patches[0].1.clone());
    assert_eq!(patch, json!({ "metadata": { "resourceVersion": "1" }, "spec": { "taints": others } }), "nothing else is written");
}

#[tokio::test(start_paused = true)]
async fn a_concurrent_change_is_kept_and_the_removal_retried_at_once() {
    let fake = Fake::with(&[taint(KEY, "NoSchedule")]);
    let intruders = [taint("a", "NoExecute"), taint("b", "NoExecute")];
    fake.state(|state| state.intruders = intruders.to_vec());
    let running = Running::start(fake);
    running.passes(MOMENT).await;
    assert_eq!(running.fake.taints(), intruders);
    assert_eq!((running.counted("conflict"), running.counted("removed"), running.counted("failed")), (2, 1, 0));
    assert!(running.fake.state(|state| state.reads.iter().all(|(_, freshness)| *freshness == Freshness::Now)));
}

#[tokio::test(start_paused = true)]
async fn a_node_that_keeps_changing_is_retried_after_a_pause() {
    let fake = Fake::with(&[taint(KEY, "NoSchedule")]);
    fake.state(|state| state.patch_codes = vec![409; 7]);
    let running = Running::start(fake);
    running.passes(MOMENT).await;
    assert_eq!((running.fake.patches(), running.counted("failed")), (5, 1), "a pause follows");
    running.passes(FIRST_PAUSE).await;
    assert_eq!((running.fake.taints(), running.counted("removed")), (vec![], 1));
}

#[tokio::test(start_paused = true)]
async fn failures_are_retried_with_pauses_that_grow_to_a_limit() {
    let fake = Fake::with(&[taint(KEY, "NoSchedule")]);
    fake.state(|state| state.read_codes = [vec![403; 6], vec![503; 6]].concat());
    let running = Running::start(fake);
    running.passes(LAST_PAUSE * 12).await;
    let (at, freshness): (Vec<_>, Vec<_>) = running.fake.state(|state| state.reads.iter().copied().unzip());
    let pauses: Vec<_> = at.windows(2).map(|pair| pair[1] - pair[0]).collect();
    assert!(pauses[0] >= FIRST_PAUSE.mul_f64(0.7) && pauses[0] <= FIRST_PAUSE + MOMENT, "{pauses:?}");
    assert!(pauses[3] > pauses[0] * 4 && pauses[6] > pauses[3] * 4, "{pauses:?}");
    assert!(pauses[8..12].iter().all(|pause| (LAST_PAUSE.mul_f64(0.7)..=LAST_PAUSE + MOMENT).contains(pause)), "{pauses:?}");
    assert!(freshness[..13].iter().all(|freshness| *freshness == Freshness::Now));
    assert_eq!((running.counted("forbidden"), running.counted("failed"), running.counted("removed")), (6, 6, 1));
    assert_eq!(running.fake.taints(), Vec::<Value>::new());
}

#[tokio::test(start_paused = true)]
async fn retry_after_is_honoured_within_limits() {
    for (asked, within) in [(20, 20..=21), (100_000, 120..=121)] {
        let fake = Fake::with(&[taint(KEY, "NoSchedule")]);
        fake.state(|state| (state.patch_codes, state.retry_after) = (vec![429], Duration::from_secs(asked)));
        let running = Running::start(fake);
        running.passes(Duration::from_secs(200)).await;
        let pause = running.fake.state(|state| state.patches[1].0 - state.patches[0].0);
        assert!(within.contains(&pause.as_secs()), "{pause:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_taint_that_returns_is_removed_by_rare_and_cheap_checks() {
    let running = Running::start(Fake::with(&[]));
    running.passes(MOMENT).await;
    for _ in 0..20 {
        assert_eq!(running.fake.taints(), Vec::<Value>::new());
        running.fake.set(&[taint(KEY, "NoExecute"), taint("a", "NoSchedule")]);
        running.passes(LOOK_EVERY.mul_f64(1.25) + MOMENT).await;
        assert_eq!(running.fake.taints(), [taint("a", "NoSchedule")]);
        running.fake.set(&[]);
    }
    let (at, freshness): (Vec<_>, Vec<_>) = running.fake.state(|state| state.reads.iter().copied().unzip());
    let pauses: Vec<_> = at.windows(2).map(|pair| pair[1] - pair[0]).collect();
    assert!(pauses.iter().all(|pause| *pause >= LOOK_EVERY.mul_f64(0.75)), "{pauses:?}");
    assert!(
        pauses.iter().max().unwrap().as_secs() - pauses.iter().min().unwrap().as_secs() > 30,
        "nodes do not send requests at the same time: {pauses:?}"
    );
    assert_eq!(freshness[0], Freshness::Now);
    assert!(freshness[1..].iter().all(|freshness| *freshness == Freshness::Remembered));
}

/// The API server's cache may be stale: the patch then conflicts, and the node's current state is read.
#[tokio::test(start_paused = true)]
async fn a_stale_cache_of_the_node_does_no_harm() {
    let running = Running::start(Fake::with(&[]));
    running.passes(MOMENT).await;
    running.fake.set(&[taint(KEY, "NoSchedule")]);
    running.fake.state(|state| state.intruders = vec![taint("a", "NoExecute")]);
    running.passes(LOOK_EVERY.mul_f64(1.25) + MOMENT).await;
    assert_eq!((running.fake.taints(), running.counted("conflict")), (vec![taint("a", "NoExecute")], 1));
    let freshness: Vec<_> = running.fake.state(|state| state.reads[1..3].iter().map(|(_, freshness)| *freshness).collect());
    assert_eq!(freshness, [Freshness::Remembered, Freshness::Now]);
}

#[tokio::test(start_paused = true)]
async fn nothing_is_removed_while_the_daemon_is_no_longer_ready() {
    let running = Running::start(Fake::with(&[]));
    running.passes(MOMENT).await;
    let step = running.readiness.step("a self-test");
    running.fake.set(&[taint(KEY, "NoSchedule")]);
    running.passes(LOOK_EVERY * 5).await;
    assert_eq!((running.fake.reads(), running.fake.taints().len()), (1, 1));
    step.done();
    running.passes(MOMENT).await;
    assert_eq!(running.fake.taints(), Vec::<Value>::new());
}

#[tokio::test(start_paused = true)]
async fn a_daemon_that_ends_between_read_and_patch_leaves_the_taint() {
    let (fake, readiness) = (Fake::with(&[taint(KEY, "NoSchedule")]), Readiness::default());
    fake.state(|state| state.unready = Some((readiness.clone(), "the end of the daemon")));
    let running = Running::start_with(fake, readiness);
    running.passes(LOOK_EVERY * 2).await;
    assert_eq!((running.fake.reads(), running.fake.patches(), running.fake.taints().len()), (1, 0, 1));
}

#[tokio::test(start_paused = true)]
async fn a_node_without_a_version_is_not_patched() {
    let fake = Fake::with(&[taint(KEY, "NoSchedule")]);
    fake.state(|state| state.without_version = true);
    let running = Running::start(fake);
    running.passes(MOMENT).await;
    assert_eq!((running.fake.patches(), running.counted("failed")), (0, 1));
    running.fake.state(|state| state.without_version = false);
    advance(FIRST_PAUSE).await;
    running.passes(MOMENT).await;
    assert_eq!(running.fake.taints(), Vec::<Value>::new());
}

#[test]
fn taints_are_formatted_like_kubectls() {
    let object = json!({
        "metadata": { "resourceVersion": "7" },
        "spec": { "taints": [taint(KEY, "NoSchedule"), { "key": KEY, "effect": "NoExecute" }] },
    });
    let removal = removal(object.to_string().as_bytes(), KEY).unwrap().unwrap();
    assert_eq!(removal.taints, ["example.com/rolegate=true:NoSchedule", "example.com/rolegate:NoExecute"]);
}
