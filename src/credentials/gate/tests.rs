#![allow(clippy::unwrap_used, reason = "a test says loudly what failed")]
use tokio::time::{advance, timeout};

use super::*;
use crate::role::RoleArn;

const LIMITS: StsLimits = StsLimits { rate: 10, max_rate: 10, concurrency: 4 };

fn gate(limits: StsLimits) -> Gate {
    Gate::new(limits, Metrics::new())
}

fn role(name: &str) -> RoleArn {
    format!("arn:aws:iam::111122223333:role/{name}").parse().unwrap()
}

fn ok() -> Result<(), AssumeRoleError> {
    Ok(())
}

fn failed() -> Result<(), AssumeRoleError> {
    Err(AssumeRoleError::Unreachable { message: "no answer".to_owned() })
}

fn throttled() -> Result<(), AssumeRoleError> {
    Err(AssumeRoleError::Throttled)
}

/// Returns the permit, if the turn has come.
fn come(turn: &mut oneshot::Receiver<TurnResult>) -> Option<StsPermit> {
    turn.try_recv().ok()?.ok()
}

fn pod(namespace: &str, name: &str) -> Arc<Caller> {
    let uid = crate::pods::PodUid(format!("uid-of-{namespace}-{name}").into());
    Arc::new(Caller { uid, namespace: namespace.into(), name: name.into() })
}

/// Queues a request for a new session of this pod.
fn apply(gate: &Gate, cause: CallCause, caller: &Arc<Caller>) -> Result<(Ticket, oneshot::Receiver<TurnResult>), TurnedAwayCall> {
    gate.queue(&Application { cause, left: None, callers: std::slice::from_ref(caller), is_new: true })
}

/// Queues a request. A renewal is for a session with time left; other causes are for the new session of a pod that has no other.
fn place(gate: &Gate, cause: CallCause) -> (Ticket, oneshot::Receiver<TurnResult>) {
    static PODS: std::sync::atomic::AtomicU64 = std::sync::atomic::AtomicU64::new(0);
    if cause == CallCause::Renewal {
        return renewal(gate, Duration::from_secs(1800));
    }
    let number = PODS.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
    apply(gate, cause, &pod("default", &number.to_string())).unwrap()
}

/// Queues the renewal of a session with this much time left.
fn renewal(gate: &Gate, left: Duration) -> (Ticket, oneshot::Receiver<TurnResult>) {
    gate.queue(&Application { cause: CallCause::Renewal, left: Some(left), callers: &[], is_new: false }).unwrap()
}

/// Runs the runtime's tasks, without time passing.
async fn settle() {
    for _ in 0..20 {
        tokio::task::yield_now().await;
    }
}

async fn pass(millis: u64) {
    advance(Duration::from_millis(millis)).await;
    settle().await;
}

/// Makes one request, with this response, and returns how long it waited for its turn.
async fn ask(gate: &Gate, cause: CallCause, name: &str, answer: &Result<(), AssumeRoleError>) -> Duration {
    let began = Instant::now();
    let (_, turn) = place(gate, cause);
    turn.await.unwrap().unwrap().answered(&role(name), answer);
    began.elapsed()
}

#[tokio::test(start_paused = true)]
async fn requests_in_flight_are_limited() {
    let gate = gate(LIMITS);
    let mut turns: Vec<_> = (0..6).map(|_| place(&gate, CallCause::Demand).1).collect();
    let mut permits: Vec<_> = turns.iter_mut().filter_map(come).collect();
    assert_eq!(permits.len(), 4);
    permits.pop();
    assert_eq!(turns.iter_mut().filter_map(come).collect::<Vec<_>>().len(), 1, "one permit was returned, so one is granted");
    drop(permits);
    // A permit whose caller gave up is returned.
    assert!(turns.iter_mut().any(|turn| come(turn).is_some()));
}

#[tokio::test(start_paused = true)]
async fn the_rate_is_limited_and_the_burst_is_twice_the_rate() {
    let gate = gate(StsLimits { rate: 10, max_rate: 10, concurrency: 1000 });
    let mut turns: Vec<_> = (0..60).map(|_| place(&gate, CallCause::Demand).1).collect();
    let begun = |turns: &mut Vec<oneshot::Receiver<TurnResult>>| {
        turns.retain_mut(|turn| come(turn).is_none());
        60 - turns.len()
    };
    assert_eq!(begun(&mut turns), 20);
    for (second, expected) in [(1, 30), (2, 40), (3, 50)] {
        // One timer each, with a millisecond of rounding.
        for _ in 0..1001 {
            pass(1).await;
        }
        let count = begun(&mut turns);
        assert!((expected - 1..=expected).contains(&count), "{count} after {second} s");
    }
}

#[tokio::test(start_paused = true)]
async fn pods_that_wait_go_first_and_renewals_last() {
    let gate = gate(StsLimits { rate: 1000, max_rate: 1000, concurrency: 1 });
    let (_, first) = place(&gate, CallCause::Renewal);
    let mut running = Some(first.await.unwrap().unwrap());
    let mut turns = [CallCause::Renewal, CallCause::Prefetch, CallCause::Demand, CallCause::Renewal, CallCause::Demand]
        .map(|cause| (cause, place(&gate, cause).1));
    let mut order = Vec::new();
    while order.len() < turns.len() {
        running.take();
        let (cause, permit) = turns.iter_mut().find_map(|(cause, turn)| Some((*cause, come(turn)?))).unwrap();
        order.push(cause);
        running = Some(permit);
    }
    assert_eq!(order, [CallCause::Demand, CallCause::Demand, CallCause::Prefetch, CallCause::Renewal, CallCause::Renewal]);
}

#[tokio::test(start_paused = true)]
async fn a_queued_request_that_a_pod_waits_for_is_raised() {
    let gate = gate(StsLimits { rate: 1000, max_rate: 1000, concurrency: 1 });
    let running = place(&gate, CallCause::Demand).1.await.unwrap().unwrap();
    let (_, mut first) = place(&gate, CallCause::Prefetch);
    let (ticket, mut second) = place(&gate, CallCause::Renewal);
    gate.raise(ticket, &pod("other", "asks"));
    drop(running);
    assert!(come(&mut first).is_none());
    assert_eq!(come(&mut second).unwrap().cause(), CallCause::Demand);
}

#[tokio::test(start_paused = true)]
async fn a_withdrawn_request_leaves_the_queue_and_notifies_its_waiter() {
    let gate = gate(StsLimits { rate: 1000, max_rate: 1000, concurrency: 1 });
    let running = place(&gate, CallCause::Demand).1.await.unwrap().unwrap();
    for cause in [CallCause::Prefetch, CallCause::Demand, CallCause::Renewal] {
        let (withdrawn, turn) = place(&gate, cause);
        gate.withdraw(withdrawn);
        assert_eq!(turn.await.unwrap().unwrap_err(), NotAsked::Superseded, "{cause:?}");
        assert_eq!(gate.0.metrics.sts_queue(cause.name()).get(), 0, "{cause:?}");
    }
    let (_, mut next) = place(&gate, CallCause::Prefetch);
    drop(running);
    assert!(come(&mut next).is_some());
}

#[tokio::test(start_paused = true)]
async fn prefetches_leave_room_for_new_pods() {
    let gate = gate(StsLimits { rate: 100, max_rate: 100, concurrency: 4 });
    let mut ahead: Vec<_> = (0..4).map(|_| place(&gate, CallCause::Prefetch).1).collect();
    let under_way: Vec<_> = ahead.iter_mut().filter_map(come).collect();
    assert_eq!(under_way.len(), 3);
    assert!(come(&mut place(&gate, CallCause::Demand).1).is_some());

    let gate = self::gate(StsLimits { rate: 10, max_rate: 10, concurrency: 1000 });
    let mut ahead: Vec<_> = (0..60).map(|_| place(&gate, CallCause::Renewal).1).collect();
    assert_eq!(ahead.iter_mut().filter_map(come).count(), 11, "half of the burst is left");
    let mut turns: Vec<_> = (0..60).map(|_| place(&gate, CallCause::Demand).1).collect();
    assert_eq!(turns.iter_mut().filter_map(come).count(), 9);
}

#[tokio::test(start_paused = true)]
async fn the_session_that_expires_first_goes_first() {
    let gate = gate(StsLimits { rate: 1000, max_rate: 1000, concurrency: 1 });
    let first = place(&gate, CallCause::Demand).1.await.unwrap().unwrap();
    let ends = |minutes: u64| Duration::from_secs(minutes * 60);
    let (mut late, mut soon) = (renewal(&gate, ends(30)).1, renewal(&gate, ends(5)).1);
    drop(first);
    let soon = come(&mut soon).expect("it expires first");
    assert!(come(&mut late).is_none());
    drop(soon);
    assert!(come(&mut late).is_some());
}

#[tokio::test(start_paused = true)]
async fn throttling_slows_the_gate_and_responses_restore_it() {
    let gate = gate(LIMITS);
    for _ in 0..7 {
        ask(&gate, CallCause::Demand, "web", &throttled()).await;
    }
    assert_eq!(gate.trouble(), Some(AssumeRoleError::Throttled));
    // The pace is halved until it is one request in 3.2 seconds. The saved tokens are gone, and a random part of one more.
    let slow = ask(&gate, CallCause::Demand, "web", &ok()).await;
    assert!((Duration::from_secs(3)..Duration::from_secs(14)).contains(&slow), "{slow:?}");
    assert_eq!(gate.trouble(), None);
    let began = Instant::now();
    for _ in 0..40 {
        ask(&gate, CallCause::Demand, "web", &ok()).await;
    }
    assert!(began.elapsed() < Duration::from_secs(24), "{:?}", began.elapsed());
}

#[tokio::test(start_paused = true)]
async fn requests_that_were_throttled_together_count_once() {
    let gate = gate(LIMITS);
    let turns: Vec<_> = (0..4).map(|_| place(&gate, CallCause::Demand).1).collect();
    for turn in turns {
        turn.await.unwrap().unwrap().answered(&role("web"), &throttled());
    }
    let waited = ask(&gate, CallCause::Demand, "web", &ok()).await;
    assert!(waited <= Duration::from_millis(410), "{waited:?}: at half of the pace, from up to one below nothing");
}

#[tokio::test(start_paused = true)]
async fn an_outage_slows_the_gate_and_one_broken_role_does_not() {
    let gate = gate(LIMITS);
    for _ in 0..20 {
        ask(&gate, CallCause::Demand, "broken", &failed()).await;
    }
    assert_eq!(gate.trouble(), None);
    pass(2000).await;
    assert_eq!(ask(&gate, CallCause::Demand, "web", &ok()).await, Duration::ZERO);
    // Failures of one role between responses for others never count.
    for _ in 0..5 {
        ask(&gate, CallCause::Demand, "broken", &failed()).await;
        ask(&gate, CallCause::Demand, "web", &ok()).await;
    }
    assert_eq!(gate.trouble(), None);
    ask(&gate, CallCause::Demand, "broken", &failed()).await;
    ask(&gate, CallCause::Demand, "web", &failed()).await;
    assert_eq!(gate.trouble().unwrap().name(), "unreachable");
    assert!(ask(&gate, CallCause::Demand, "web", &ok()).await > Duration::ZERO);
}

#[tokio::test(start_paused = true)]
async fn refusals_slow_nothing() {
    let gate = gate(LIMITS);
    for number in 0..15 {
        let denied: Result<(), _> = Err(AssumeRoleError::Denied { message: "no".to_owned() });
        let invalid: Result<(), _> = Err(AssumeRoleError::Invalid { message: "no".to_owned() });
        let refusal = if number % 2 == 0 { denied } else { invalid };
        assert_eq!(ask(&gate, CallCause::Demand, &format!("role-{number}"), &refusal).await, Duration::ZERO);
    }
    assert_eq!(gate.trouble(), None);
}

#[tokio::test(start_paused = true)]
async fn the_pace_recovers_with_time_alone() {
    let gate = gate(LIMITS);
    for _ in 0..8 {
        ask(&gate, CallCause::Demand, "web", &throttled()).await;
    }
    pass(3600 * 1000).await;
    for _ in 0..20 {
        assert_eq!(ask(&gate, CallCause::Demand, "web", &ok()).await, Duration::ZERO);
    }
}

#[tokio::test(start_paused = true)]
async fn a_request_that_panics_frees_its_place() {
    let gate = gate(StsLimits { rate: 1000, max_rate: 1000, concurrency: 1 });
    let permit = place(&gate, CallCause::Demand).1.await.unwrap().unwrap();
    let broken = tokio::spawn(async move {
        let _permit = permit;
        panic!("the test wants it");
    });
    assert!(broken.await.is_err());
    assert!(timeout(Duration::from_secs(1), place(&gate, CallCause::Demand).1).await.unwrap().unwrap().is_ok());
}

async fn ask_about(gate: &Gate, account: &str, name: &str, answer: &Result<(), AssumeRoleError>) {
    let role: RoleArn = format!("arn:aws:iam::{account}:role/{name}").parse().unwrap();
    place(gate, CallCause::Demand).1.await.unwrap().unwrap().answered(&role, answer);
}

const OURS: &str = "111122223333";
const THEIRS: &str = "444455556666";

#[tokio::test(start_paused = true)]
async fn failures_of_one_account_slow_nothing_while_others_work() {
    let gate = gate(LIMITS);
    ask_about(&gate, OURS, "web", &ok()).await;
    for number in 0..40 {
        ask_about(&gate, THEIRS, &format!("role-{number}"), &failed()).await;
    }
    assert_eq!(gate.trouble(), None);
    ask_about(&gate, OURS, "web", &failed()).await;
    assert_eq!(gate.trouble().unwrap().name(), "unreachable", "both accounts");
}

#[tokio::test(start_paused = true)]
async fn an_outage_is_recognized_if_all_roles_are_of_one_account() {
    let gate = gate(LIMITS);
    ask_about(&gate, THEIRS, "old", &ok()).await;
    for number in 0..10 {
        ask_about(&gate, OURS, &format!("role-{number}"), &ok()).await;
    }
    pass(pace::FORGIVEN.as_millis().try_into().unwrap()).await;
    ask_about(&gate, OURS, "role-1", &failed()).await;
    assert_eq!(gate.trouble(), None);
    ask_about(&gate, OURS, "role-2", &failed()).await;
    assert_eq!(gate.trouble().unwrap().name(), "unreachable");
}

#[tokio::test(start_paused = true)]
async fn an_unknown_own_identity_costs_no_turn_and_slows_nothing() {
    let gate = gate(LIMITS);
    let unknown: Result<(), _> = Err(AssumeRoleError::IdentityUnknown(Box::new(AssumeRoleError::Throttled)));
    let own: Result<(), _> = Err(AssumeRoleError::OwnIdentity { message: "expired".to_owned(), advice: "".into() });
    for number in 0..100 {
        assert_eq!(ask(&gate, CallCause::Demand, &format!("role-{number}"), &unknown).await, Duration::ZERO);
    }
    for number in 0..20 {
        assert_eq!(ask(&gate, CallCause::Demand, &format!("role-{number}"), &own).await, Duration::ZERO);
    }
    assert!(ask(&gate, CallCause::Demand, "web", &ok()).await > Duration::ZERO, "the requests to STS took tokens");
    assert_eq!(gate.trouble(), None);
}

#[tokio::test(start_paused = true)]
async fn a_renewal_close_to_expiry_goes_before_prefetches() {
    let gate = gate(StsLimits { rate: 1000, max_rate: 1000, concurrency: 1 });
    let first = place(&gate, CallCause::Demand).1.await.unwrap().unwrap();
    let mut prefetch = place(&gate, CallCause::Prefetch).1;
    let mut waits = place(&gate, CallCause::Demand).1;
    // The renewal is queued with enough time left, and waits until it is close to expiry.
    let mut renewal = renewal(&gate, NEARLY_ENDED + Duration::from_secs(60)).1;
    drop(first);
    let demand = come(&mut waits).expect("a pod waits");
    pass(59 * 1000).await;
    let other = place(&gate, CallCause::Demand).1;
    drop(demand);
    let other = other.await.unwrap().unwrap();
    pass(2 * 1000).await;
    drop(other);
    let renewal = come(&mut renewal).expect("the session is close to expiry");
    assert!(come(&mut prefetch).is_none());
    drop(renewal);
    assert!(come(&mut prefetch).is_some());
}

#[tokio::test(start_paused = true)]
async fn a_retry_counts_as_a_request() {
    let gate = gate(LIMITS);
    for _ in 0..20 {
        ask(&gate, CallCause::Demand, "web", &ok()).await;
    }
    let permit = place(&gate, CallCause::Demand).1.await.unwrap().unwrap();
    let began = Instant::now();
    permit.again().await.unwrap().unwrap();
    assert!(began.elapsed() >= Duration::from_millis(100), "{:?}", began.elapsed());
}

mod fair;
mod rising;
