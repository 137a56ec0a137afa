#![allow(clippy::unwrap_used, reason = "a test says loudly what failed")]
use std::sync::Weak;

use tokio::task::JoinHandle;
use tokio::time::advance;

use super::*;
use crate::credentials::AssumeRoleError;
use crate::credentials::cache::{CacheSettings, LEAST_REMAINING};
use crate::credentials::gate::StsLimits;
use crate::credentials::tests::{Answer, FakeSts, HOUR, denied, settle};
use crate::metrics::Metrics;
use crate::pods::{PodsWriter, pods};
use crate::policy::Rules;
use crate::policy::node::NodeIdentity;
use crate::role::CallerIdentity;

const NODE: &str = "arn:aws:sts::111122223333:assumed-role/nodes/i-0";
const MINUTE: u64 = 60;

/// A node with a refresh that follows its pods.
struct Node {
    sts: FakeSts,
    sessions: Arc<Sessions<FakeSts>>,
    writer: PodsWriter,
    pods: Pods,
    policy: Arc<Policy>,
    identity: NodeIdentity,
    task: JoinHandle<()>,
}

struct Options {
    prefetch: bool,
    spread: Duration,
    known: bool,
    rules: Rules,
    /// Pods that were running before the daemon.
    before: Vec<Pod>,
}

impl Default for Options {
    fn default() -> Self {
        let rules = Rules { base: Some("arn:aws:iam::111122223333:role/".parse().unwrap()), ..Rules::default() };
        Self { prefetch: true, spread: Duration::from_secs(600), known: true, rules, before: Vec::new() }
    }
}

async fn node() -> Node {
    node_with(Options::default()).await
}

async fn node_with(options: Options) -> Node {
    let sts = FakeSts::new();
    let identity = NodeIdentity::default();
    let policy = Arc::new(Policy::new(options.rules, identity.clone()).unwrap());
    let (writer, pods) = pods();
    let limits = StsLimits { rate: 20, max_rate: 100, concurrency: 16 };
    let settings = CacheSettings { error_ttl: Duration::from_secs(30), timeout: Duration::from_secs(5), limits };
    let sessions = Sessions::new(sts.clone(), settings, sts.clock(), Metrics::new());
    writer.write(|index| index.reset(options.before));
    let refresh = Refresh {
        pods: pods.clone(),
        policy: policy.clone(),
        sessions: sessions.clone(),
        prefetch: options.prefetch,
        spread: options.spread,
    };
    let task = tokio::spawn(refresh.run());
    let node = Node { sts, sessions, writer, pods, policy, identity, task };
    if options.known {
        node.knows_itself();
    }
    settle().await;
    node
}

fn pod(name: &str, role: &str) -> Pod {
    Pod { role: (!role.is_empty()).then(|| role.to_owned()), ..Pod::for_test("default", name) }
}

/// Advances the clock in steps, so that tasks run when they are due.
async fn pass(seconds: u64) {
    for _ in 0..seconds {
        advance(Duration::from_secs(1)).await;
        settle().await;
    }
}

impl Node {
    fn knows_itself(&self) {
        self.identity.set_caller(NODE.parse::<CallerIdentity>().unwrap());
    }

    async fn apply(&self, pod: Pod) {
        self.writer.write(|index| index.apply(pod));
        settle().await;
    }

    async fn delete(&self, name: &str) {
        self.writer.write(|index| index.delete(&pod(name, "").uid));
        settle().await;
    }

    /// Returns the request that the policy allows to a pod.
    fn request(&self, pod: &Pod) -> RoleRequest {
        match self.policy.decide(pod, &PodContext::default()) {
            Decision::Allow { request, .. } => request,
            Decision::Deny(denial) => panic!("{denial}"),
        }
    }

    /// Requests a pod's session, which must be returned without waiting.
    async fn ask(&self, pod: &Pod) -> Result<Arc<Credentials>, AssumeRoleError> {
        let began = Instant::now();
        let landing = self.sessions.get(&self.request(pod), pod).await;
        assert_eq!(began.elapsed(), Duration::ZERO, "a pod waited");
        landing
    }

    /// Returns a weak reference to a pod's credentials.
    async fn held(&self, pod: &Pod) -> Weak<Credentials> {
        Arc::downgrade(&self.ask(pod).await.unwrap())
    }

    /// Asserts that the credentials were dropped without time passing.
    fn is_wiped(&self, held: &Weak<Credentials>) {
        assert!(held.upgrade().is_none(), "the credentials are still held");
    }

    fn left(&self, credentials: &Credentials) -> Duration {
        credentials.expires_at.duration_since(self.sts.clock().now()).unsigned_abs()
    }
}

#[tokio::test(start_paused = true)]
async fn a_pods_session_is_fetched_before_it_is_requested() {
    let node = node().await;
    node.apply(pod("web", "web")).await;
    assert_eq!(node.sts.calls(), 1);
    let first = node.ask(&pod("web", "web")).await.unwrap();
    assert!(Arc::ptr_eq(&first, &node.ask(&pod("web", "web")).await.unwrap()));
    assert_eq!(node.sts.calls(), 1);
}

#[tokio::test(start_paused = true)]
async fn denied_pods_cause_no_requests() {
    let node = node().await;
    node.apply(pod("plain", "")).await;
    node.apply(pod("bad", "no role")).await;
    node.apply(Pod { finished: true, ..pod("finished", "web") }).await;
    node.apply(Pod { host_network: true, ..pod("host", "web") }).await;
    pass(5 * MINUTE).await;
    assert_eq!(node.sts.calls(), 0);
}

#[tokio::test(start_paused = true)]
async fn sessions_of_served_pods_in_the_nodes_network_are_fetched_ahead() {
    use crate::config::{ExemptPods, HostNetworkConfig, HostNetworkMode};
    use crate::pods::{HostNetworkRules, OwnPodName};
    let node = node().await;
    let exempt = vec![ExemptPods::OfAccount { namespace: "default".to_owned(), name: "cni".to_owned() }];
    let rules = HostNetworkRules::new(HostNetworkConfig { pods: HostNetworkMode::Serve, exempt }, OwnPodName::default(), true);
    node.writer.write(|index| index.set_host_network(rules));
    let host = Pod { host_network: true, ..pod("host", "web") };
    node.apply(host.clone()).await;
    node.apply(Pod { host_network: true, service_account: "cni".to_owned(), ..pod("cni", "db") }).await;
    pass(MINUTE).await;
    assert_eq!(node.sts.requests(), [node.request(&host)]);
}

#[tokio::test(start_paused = true)]
async fn prefetching_starts_when_the_daemons_identity_is_known() {
    let node = node_with(Options { known: false, ..Options::default() }).await;
    node.apply(pod("web", "web")).await;
    node.apply(pod("own", "nodes")).await;
    pass(MINUTE).await;
    assert_eq!(node.sts.calls(), 0);
    node.knows_itself();
    settle().await;
    assert_eq!(node.sts.requests(), [node.request(&pod("web", "web"))], "no request for the node's own role");
}

#[tokio::test(start_paused = true)]
async fn fetches_for_earlier_pods_are_spread_and_a_request_goes_first() {
    let before: Vec<_> = (0..100).map(|number| pod(&format!("pod-{number}"), "web")).collect();
    let node = node_with(Options { before: before.clone(), ..Options::default() }).await;
    assert!(node.sts.calls() <= 3, "{} at once", node.sts.calls());
    node.ask(&before[50]).await.unwrap();
    let mut calls = node.sts.calls();
    for minute in 0..10 {
        pass(MINUTE).await;
        let more = node.sts.calls() - calls;
        calls = node.sts.calls();
        assert!(more <= 30, "{more} in minute {minute}");
    }
    assert_eq!(calls, 100);
}

#[tokio::test(start_paused = true)]
async fn a_session_is_renewed_at_half_its_life_and_no_pod_waits() {
    let node = node().await;
    node.apply(pod("web", "web")).await;
    let mut times = Vec::new();
    for _ in 0..4 * 3600 {
        let credentials = node.ask(&pod("web", "web")).await.unwrap();
        assert!(node.left(&credentials) > LEAST_REMAINING);
        pass(1).await;
        times = node.sts.calls_for("web");
    }
    let pauses: Vec<_> = times.windows(2).map(|pair| (pair[1] - pair[0]).as_secs()).collect();
    assert!((7..=12).contains(&pauses.len()), "{pauses:?}");
    assert!(pauses.iter().all(|pause| (18 * 60..=30 * 60 + 2).contains(pause)), "{pauses:?}");
    assert!(pauses.iter().any(|pause| pause != &pauses[0]), "the pauses have no jitter: {pauses:?}");
}

#[tokio::test(start_paused = true)]
async fn long_and_short_sessions_are_renewed_at_half_their_life() {
    for seconds in [900, 12 * HOUR] {
        let node = node().await;
        node.sts.always(Answer::Session(seconds));
        node.apply(pod("web", "web")).await;
        let half = seconds as u64 / 2;
        pass(half * 3 / 5 - 1).await;
        assert_eq!(node.sts.calls(), 1);
        pass(half * 2 / 5 + 2).await;
        assert_eq!(node.sts.calls(), 2, "{seconds}");
        node.task.abort();
    }
}

#[tokio::test(start_paused = true)]
async fn without_prefetch_only_requested_sessions_are_renewed() {
    let node = node_with(Options { prefetch: false, ..Options::default() }).await;
    node.apply(pod("web", "web")).await;
    node.apply(pod("db", "db")).await;
    pass(MINUTE).await;
    assert_eq!(node.sts.calls(), 0);
    node.ask(&pod("web", "web")).await.unwrap();
    pass(31 * MINUTE).await;
    assert_eq!((node.sts.calls_for("web").len(), node.sts.calls()), (2, 2));
}

#[tokio::test(start_paused = true)]
async fn a_deleted_pods_session_is_forgotten() {
    let node = node().await;
    node.apply(pod("web", "web")).await;
    let held = node.held(&pod("web", "web")).await;
    assert!(held.upgrade().is_some());
    node.delete("web").await;
    node.is_wiped(&held);
    pass(2 * 3600).await;
    assert_eq!(node.sts.calls(), 1);
}

#[tokio::test(start_paused = true)]
async fn sessions_of_finished_and_of_denied_pods_are_forgotten() {
    let node = node().await;
    for (name, changed) in [
        ("finished", Pod { finished: true, ..pod("finished", "web") }),
        ("denied", Pod { role: Some("no role".to_owned()), ..pod("denied", "web") }),
    ] {
        node.apply(pod(name, "web")).await;
        let held = node.held(&pod(name, "web")).await;
        node.apply(changed).await;
        node.is_wiped(&held);
    }
    // A terminating pod still works.
    node.apply(pod("leaving", "web")).await;
    let held = node.held(&pod("leaving", "web")).await;
    node.apply(Pod { terminating: true, ..pod("leaving", "web") }).await;
    assert!(held.upgrade().is_some());
    pass(31 * MINUTE).await;
    assert_eq!(node.sts.calls(), 4);
}

/// A finalizer may keep the object for days.
#[tokio::test(start_paused = true)]
async fn an_ended_pods_session_is_forgotten_though_its_object_stays() {
    let node = node().await;
    let until = node.sts.clock().now() + Duration::from_secs(MINUTE);
    node.apply(Pod { terminating: true, claims_until: Some(until), ..pod("stuck", "web") }).await;
    let held = node.held(&pod("stuck", "web")).await;
    pass(MINUTE).await;
    node.writer.write(|index| index.end_claims(until));
    settle().await;
    node.is_wiped(&held);
    pass(3600).await;
    assert_eq!(node.sts.calls(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_shared_session_is_forgotten_with_its_last_pod() {
    let mut options = Options::default();
    options.rules.sessions.scope = crate::config::session::SessionScope::Role;
    options.rules.sessions.name = crate::config::session::SessionTemplate::of(crate::config::session::Placeholder::Role);
    let node = node_with(options).await;
    node.apply(pod("one", "web")).await;
    node.apply(pod("two", "web")).await;
    assert_eq!(node.sts.calls(), 1);
    let held = node.held(&pod("one", "web")).await;
    node.delete("one").await;
    assert!(held.upgrade().is_some());
    // One pod is deleted and another is added in one change.
    node.writer.write(|index| index.reset([pod("three", "web")]));
    settle().await;
    assert!(held.upgrade().is_some());
    assert_eq!(node.sts.calls(), 1);
    node.delete("three").await;
    node.is_wiped(&held);
}

#[tokio::test(start_paused = true)]
async fn a_changed_role_is_fetched_and_the_old_session_forgotten() {
    let node = node().await;
    node.apply(pod("web", "old")).await;
    let held = node.held(&pod("web", "old")).await;
    node.apply(pod("web", "new")).await;
    node.is_wiped(&held);
    node.ask(&pod("web", "new")).await.unwrap();
    pass(35 * MINUTE).await;
    assert_eq!((node.sts.calls_for("old").len(), node.sts.calls_for("new").len()), (1, 2));
}

#[tokio::test(start_paused = true)]
async fn a_pod_deleted_during_the_request_to_sts_leaves_no_session() {
    let node = node().await;
    node.sts.hold();
    node.apply(pod("web", "web")).await;
    assert_eq!(node.sts.calls(), 1);
    node.delete("web").await;
    node.sts.release();
    settle().await;
    assert!(node.sessions.standing(&node.request(&pod("web", "web"))).await.is_none());
    pass(2 * 3600).await;
    assert_eq!(node.sts.calls(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_denial_during_the_request_to_sts_ends_the_session() {
    let mut options = Options::default();
    options.rules.restrictions = crate::config::Restrictions::Enforce;
    let node = node_with(options).await;
    let namespace =
        |allowed: &str| crate::pods::Namespace { name: "default".to_owned(), allowed_roles: Some(allowed.to_owned()), permitted: None };
    node.sts.hold();
    node.apply(pod("web", "web")).await;
    assert_eq!(node.sts.calls(), 0, "the pod's namespace is not known yet");
    node.writer.write(|index| index.apply_namespace(namespace(r#"["*"]"#)));
    settle().await;
    assert_eq!(node.sts.calls(), 1);
    let request = node.sts.requests().remove(0);
    node.writer.write(|index| index.apply_namespace(namespace("[]")));
    settle().await;
    node.sts.release();
    settle().await;
    assert!(node.sessions.standing(&request).await.is_none());
    pass(2 * 3600).await;
    assert_eq!(node.sts.calls(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_queued_request_is_withdrawn_with_its_pod() {
    let node = node().await;
    node.sts.hold();
    for number in 0..30 {
        node.apply(pod(&format!("pod-{number}"), "web")).await;
    }
    // Prefetches may use three quarters of the concurrency.
    assert_eq!(node.sts.calls(), 12);
    for number in 0..30 {
        node.delete(&format!("pod-{number}")).await;
    }
    node.sts.release();
    pass(MINUTE).await;
    assert_eq!(node.sts.calls(), 12);
}

#[tokio::test(start_paused = true)]
async fn a_session_that_no_local_pod_needs_is_forgotten() {
    let node = node().await;
    // Requested by a pod that was deleted before it was followed.
    let held = node.held(&pod("gone", "web")).await;
    pass(3 * MINUTE).await;
    node.is_wiped(&held);
    assert_eq!(node.sts.calls(), 1);
}

/// No pod waits or lacks credentials: sessions last one hour, and have at least half an hour left when the outage begins.
#[tokio::test(start_paused = true)]
async fn no_pod_notices_an_outage_of_forty_minutes() {
    let names: Vec<_> = (0..50).map(|number| format!("pod-{number}")).collect();
    for (begins, lasts) in [(0, 40), (19, 40), (23, 36), (29, 30)] {
        let node = node().await;
        for name in &names {
            node.apply(pod(name, name)).await;
        }
        pass(5 + begins * MINUTE).await;
        let before = node.sts.calls();
        assert!(begins > 17 || before == 50, "{before}");
        node.sts.always(Answer::Error(AssumeRoleError::Unreachable { message: "no answer".to_owned() }));
        for _ in 0..lasts {
            pass(MINUTE).await;
            for name in &names {
                node.ask(&pod(name, name)).await.unwrap();
            }
        }
        let tried = node.sts.calls() - before;
        assert!(tried < 400, "{tried} calls");
        node.sts.always(Answer::Session(HOUR));
        pass(5 * MINUTE).await;
        for name in &names {
            let credentials = node.ask(&pod(name, name)).await.unwrap();
            assert!(node.left(&credentials) > LEAST_REMAINING, "{name} was renewed soon after");
        }
        node.task.abort();
    }
}

/// A session is retried at half of its remaining life, more often near its end, and served until then.
#[tokio::test(start_paused = true)]
async fn a_throttled_session_is_retried_more_often_near_its_end() {
    let node = node().await;
    node.apply(pod("web", "web")).await;
    node.sts.always(Answer::Error(AssumeRoleError::Throttled));
    for _ in 0..3590 {
        pass(1).await;
        node.ask(&pod("web", "web")).await.unwrap();
    }
    let times = node.sts.calls_for("web");
    let pauses: Vec<_> = times.windows(2).skip(1).map(|pair| (pair[1] - pair[0]).as_secs()).collect();
    // After two early retries, it is clear that STS throttles this node.
    assert!(pauses.iter().any(|pause| *pause > 5 * 60), "{pauses:?}");
    assert!(pauses[pauses.len() - 1] < 60, "{pauses:?}");
    assert!((8..=60).contains(&pauses.len()), "{pauses:?}");
}

/// Whenever the session is renewed, a single throttled request does not reduce the promised remaining lifetime.
#[tokio::test(start_paused = true)]
async fn a_renewal_throttled_once_always_leaves_over_25_minutes() {
    for _ in 0..5 {
        let node = node().await;
        for number in 0..10 {
            node.apply(pod(&format!("pod-{number}"), &format!("role-{number}"))).await;
        }
        for round in 0..90 {
            if round == 17 {
                node.sts.will(Answer::Error(AssumeRoleError::Throttled));
            }
            pass(MINUTE).await;
            for number in 0..10 {
                let credentials = node.ask(&pod(&format!("pod-{number}"), &format!("role-{number}"))).await.unwrap();
                assert!(node.left(&credentials) > LEAST_REMAINING, "{:?} are left", node.left(&credentials));
            }
        }
        node.task.abort();
    }
}

/// After long throttling, due sessions are retried soon after STS responds again, not only when their pauses end.
#[tokio::test(start_paused = true)]
async fn deferred_renewals_are_made_soon_after_throttling_ends() {
    let node = node().await;
    for number in 0..30 {
        node.apply(pod(&format!("pod-{number}"), &format!("role-{number}"))).await;
    }
    pass(17 * MINUTE).await;
    node.sts.always(Answer::Error(AssumeRoleError::Throttled));
    pass(15 * MINUTE).await;
    node.sts.always(Answer::Session(HOUR));
    // The time until one is tried, plus the time until that is noticed.
    pass(10 * MINUTE).await;
    for number in 0..30 {
        let credentials = node.ask(&pod(&format!("pod-{number}"), &format!("role-{number}"))).await.unwrap();
        assert!(node.left(&credentials) > LEAST_REMAINING, "{:?} are left", node.left(&credentials));
    }
}

/// Failures that the owner of another account may cause affect only the roles of that account.
#[tokio::test(start_paused = true)]
async fn roles_of_an_account_without_sts_in_this_region_slow_no_other() {
    let node = node().await;
    let error = crate::credentials::sts::tests::answered(403, "RegionDisabledException");
    for number in 0..30 {
        let role = format!("arn:aws:iam::444455556666:role/theirs-{number}");
        node.sts.for_role(&format!("theirs-{number}"), Answer::Error(error.clone()));
        node.apply(pod(&format!("theirs-{number}"), &role)).await;
        node.apply(pod(&format!("ours-{number}"), &format!("ours-{number}"))).await;
    }
    pass(10).await;
    for _ in 0..90 {
        pass(MINUTE).await;
        for number in 0..30 {
            let credentials = node.ask(&pod(&format!("ours-{number}"), &format!("ours-{number}"))).await.unwrap();
            assert!(node.left(&credentials) > LEAST_REMAINING);
        }
    }
    // Many pods with failing roles appear at once, together with one healthy pod.
    for number in 30..70 {
        node.sts.for_role(&format!("theirs-{number}"), Answer::Error(error.clone()));
    }
    node.writer.write(|index| {
        for number in 30..70 {
            index.apply(pod(&format!("theirs-{number}"), &format!("arn:aws:iam::444455556666:role/theirs-{number}")));
        }
    });
    pass(1).await;
    let (began, ours) = (Instant::now(), pod("ours-new", "ours-new"));
    node.sessions.get(&node.request(&ours), &ours).await.unwrap();
    assert!(began.elapsed() < Duration::from_secs(1), "{:?}", began.elapsed());
}

/// On a throttled node, a session with time left is not requested before one without.
#[tokio::test(start_paused = true)]
async fn while_sts_throttles_a_renewal_with_time_left_gives_way() {
    let node = node().await;
    node.apply(pod("web", "web")).await;
    // Another role fails, so that the session itself has no failure.
    node.sts.for_role("other", Answer::Error(AssumeRoleError::Throttled));
    for number in 0..10 {
        node.apply(pod(&format!("other-{number}"), "other")).await;
    }
    pass(35 * MINUTE).await;
    assert_eq!(node.sts.calls_for("web").len(), 1, "renewed at half of its life");
    node.ask(&pod("web", "web")).await.unwrap();
    pass(25 * MINUTE).await;
    assert!(node.sts.calls_for("web").len() > 1, "not renewed before its expiry");
    node.ask(&pod("web", "web")).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn an_hour_of_throttling_is_not_made_worse() {
    let node = node().await;
    node.sts.always(Answer::Error(AssumeRoleError::Throttled));
    for number in 0..50 {
        node.apply(pod(&format!("pod-{number}"), &format!("role-{number}"))).await;
    }
    pass(3600).await;
    let calls = node.sts.calls();
    // The slowest pace is one request in 3.2 seconds.
    assert!((30..=1125).contains(&calls), "{calls} in an hour, for 50 roles");
    node.sts.always(Answer::Session(HOUR));
    pass(6 * MINUTE).await;
    for number in 0..50 {
        let pod = pod(&format!("pod-{number}"), &format!("role-{number}"));
        node.ask(&pod).await.unwrap();
    }
}

#[tokio::test(start_paused = true)]
async fn a_broken_role_does_not_affect_others() {
    for error in [denied(), AssumeRoleError::Failed { message: "broken".to_owned() }] {
        let node = node().await;
        node.sts.for_role("role-0", Answer::Error(error));
        for number in 0..50 {
            node.apply(pod(&format!("pod-{number}"), &format!("role-{number}"))).await;
        }
        pass(5).await;
        for _ in 0..90 {
            pass(MINUTE).await;
            for number in 1..50 {
                let credentials = node.ask(&pod(&format!("pod-{number}"), &format!("role-{number}"))).await.unwrap();
                assert!(node.left(&credentials) > LEAST_REMAINING);
            }
        }
        let calls = node.sts.calls_for("role-0").len();
        assert!((2..=40).contains(&calls), "{calls} for the broken one");
        // A new pod's session is fetched at once.
        node.apply(pod("new", "new")).await;
        node.ask(&pod("new", "new")).await.unwrap();
        node.task.abort();
    }
}

/// Every pod is checked again, but only changed pods are decided again.
#[tokio::test(start_paused = true)]
async fn a_change_of_one_pod_decides_no_other_pod_again() {
    let before: Vec<_> = (0..1000).map(|number| pod(&format!("pod-{number}"), "web")).collect();
    let node = node_with(Options { before, prefetch: false, ..Options::default() }).await;
    let mut follower = Follower::new(Refresh {
        pods: node.pods.clone(),
        policy: node.policy.clone(),
        sessions: node.sessions.clone(),
        prefetch: false,
        spread: Duration::ZERO,
    });
    assert_eq!(follower.look().await, 1000);
    assert_eq!(follower.look().await, 0);
    node.writer.write(|index| index.apply(pod("pod-7", "db")));
    assert_eq!(follower.look().await, 1);
    node.identity.set_caller(NODE.replace("i-0", "i-1").parse::<CallerIdentity>().unwrap());
    assert_eq!(follower.look().await, 1000, "the node's identity changed");
    assert_eq!(follower.wanted.len(), 1000);
}

mod crowd;
