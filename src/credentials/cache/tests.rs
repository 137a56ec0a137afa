#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test says loudly what failed")]

use futures_util::future::join_all;
use tokio::time::advance;

use super::held::HeldSession;
use super::*;
use crate::credentials::tests::{Answer, FakeSts, HOUR, denied, pod, request, settle};

mod chain;

const ERROR_TTL: Duration = Duration::from_secs(30);
const SETTINGS: CacheSettings = CacheSettings {
    error_ttl: ERROR_TTL,
    timeout: Duration::from_secs(60),
    limits: StsLimits { rate: 1000, max_rate: 1000, concurrency: 1000 },
};

/// A cache over an STS that responds at once, on tokio's clock.
fn sessions() -> (Arc<Sessions<FakeSts>>, FakeSts) {
    let sts = FakeSts::new();
    let clock = sts.clock();
    (Sessions::new(sts.clone(), SETTINGS, clock, Metrics::new()), sts)
}

impl Sessions<FakeSts> {
    /// Requests a session as the one pod that has this role.
    async fn ask(&self, request: &RoleRequest) -> Landing {
        self.get(request, &pod(request.role().name())).await
    }
}

async fn pass(seconds: u64) {
    advance(Duration::from_secs(seconds)).await;
}

fn key(landing: &Landing) -> &str {
    match landing {
        Ok(credentials) => &credentials.access_key_id,
        Err(error) => panic!("{error}"),
    }
}

#[tokio::test(start_paused = true)]
async fn a_thousand_callers_share_one_call_and_its_credentials() {
    let (sessions, sts) = sessions();
    sts.hold();
    let callers: Vec<_> = (0..1000)
        .map(|_| {
            let sessions = sessions.clone();
            tokio::spawn(async move { sessions.ask(&request("web")).await })
        })
        .collect();
    settle().await;
    assert!(callers.iter().all(|caller| !caller.is_finished()));
    sts.release();
    let answers: Vec<_> = join_all(callers).await.into_iter().map(|answer| answer.unwrap().unwrap()).collect();
    assert_eq!(sts.calls(), 1);
    assert!(answers.iter().all(|answer| Arc::ptr_eq(answer, &answers[0])));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn callers_on_many_threads_share_one_call() {
    let (sessions, sts) = sessions();
    let callers = (0..1000).map(|_| {
        let sessions = sessions.clone();
        tokio::spawn(async move { sessions.ask(&request("web")).await })
    });
    let answers: Vec<_> = join_all(callers.collect::<Vec<_>>()).await.into_iter().map(|answer| answer.unwrap().unwrap()).collect();
    assert_eq!(sts.calls(), 1);
    assert!(answers.iter().all(|answer| Arc::ptr_eq(answer, &answers[0])));
}

#[tokio::test(start_paused = true)]
async fn callers_that_all_found_no_session_start_one_call() {
    let (sessions, sts) = sessions();
    let key = request("web");
    let caller = Caller::of(&pod("web"));
    let flights = join_all((0..1000).map(|_| sessions.board(&key, &caller))).await;
    let flights: Vec<_> = flights.into_iter().map(Result::unwrap).collect();
    assert!(flights.iter().all(|flight| Arc::ptr_eq(flight, &flights[0])));
    settle().await;
    assert_eq!(sts.calls(), 1);
}

#[tokio::test(start_paused = true)]
async fn the_first_caller_may_give_up() {
    let (sessions, sts) = sessions();
    sts.hold();
    let ask = || {
        let sessions = sessions.clone();
        tokio::spawn(async move { sessions.ask(&request("web")).await })
    };
    let first = ask();
    settle().await;
    assert_eq!(sts.calls(), 1);
    let others = [ask(), ask()];
    settle().await;
    first.abort();
    assert!(first.await.unwrap_err().is_cancelled());
    sts.release();
    for other in others {
        assert_eq!(key(&other.await.unwrap()), "ASIA1");
    }
    assert_eq!(sts.calls(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_call_that_all_callers_have_left_is_not_repeated() {
    let (sessions, sts) = sessions();
    sts.hold();
    let caller = tokio::spawn({
        let sessions = sessions.clone();
        async move { sessions.ask(&request("web")).await }
    });
    settle().await;
    caller.abort();
    let _ = caller.await;
    sts.release();
    assert_eq!(key(&sessions.ask(&request("web")).await), "ASIA1");
    assert_eq!(sts.calls(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_fresh_session_is_served_without_a_call() {
    let (sessions, sts) = sessions();
    let first = sessions.ask(&request("web")).await.unwrap();
    // 25 minutes and one second are left.
    pass(35 * 60 - 1).await;
    assert!(Arc::ptr_eq(&first, &sessions.ask(&request("web")).await.unwrap()));
    assert_eq!(sts.calls(), 1);
}

#[tokio::test(start_paused = true)]
async fn below_25_minutes_a_new_session_is_requested_and_served() {
    let (sessions, sts) = sessions();
    assert_eq!(key(&sessions.ask(&request("web")).await), "ASIA1");
    pass(35 * 60).await;
    assert_eq!(key(&sessions.ask(&request("web")).await), "ASIA2");
    assert_eq!(key(&sessions.ask(&request("web")).await), "ASIA2");
    assert_eq!(sts.calls(), 2);
}

#[tokio::test(start_paused = true)]
async fn each_key_has_its_own_session() {
    let (sessions, sts) = sessions();
    assert_eq!(key(&sessions.ask(&request("web")).await), "ASIA1");
    assert_eq!(key(&sessions.ask(&request("db")).await), "ASIA2");
    assert_eq!(key(&sessions.ask(&request("web")).await), "ASIA1");
    assert_eq!(sts.requests(), [request("web"), request("db")], "the requests differ from the decisions");
}

#[tokio::test(start_paused = true)]
async fn a_failure_is_cached_for_a_while_and_then_retried() {
    let (sessions, sts) = sessions();
    let invalid = || AssumeRoleError::Invalid { message: "no".to_owned() };
    sts.will(Answer::Error(denied())).will(Answer::Error(invalid()));
    assert_eq!(sessions.ask(&request("web")).await.unwrap_err(), denied());
    pass(29).await;
    for _ in 0..100 {
        assert_eq!(sessions.ask(&request("web")).await.unwrap_err(), denied());
    }
    assert_eq!(sts.calls(), 1);
    pass(1).await;
    assert_eq!(sessions.ask(&request("web")).await.unwrap_err(), invalid());
    assert_eq!(sts.calls(), 2);
    // The second consecutive failure is remembered for longer, minus jitter.
    pass(44).await;
    assert_eq!(sessions.ask(&request("web")).await.unwrap_err(), invalid());
    assert_eq!(sts.calls(), 2);
    pass(16).await;
    assert_eq!(key(&sessions.ask(&request("web")).await), "ASIA3");
}

/// The gate's pace limits these requests instead.
#[tokio::test(start_paused = true)]
async fn continued_throttling_is_not_remembered_for_longer() {
    let (sessions, sts) = sessions();
    sts.always(Answer::Error(AssumeRoleError::Throttled));
    for calls in 1..8 {
        assert_eq!(sessions.ask(&request("web")).await.unwrap_err(), AssumeRoleError::Throttled);
        assert_eq!(sts.calls(), calls);
        pass(30).await;
    }
}

#[tokio::test(start_paused = true)]
async fn an_unknown_own_identity_is_not_remembered() {
    let (sessions, sts) = sessions();
    sts.will(Answer::Error(AssumeRoleError::IdentityUnknown(Box::new(AssumeRoleError::Throttled))));
    let error = sessions.ask(&request("web")).await.unwrap_err();
    assert_eq!(error.name(), "identity-unknown");
    assert!(sessions.ask(&request("web")).await.is_ok(), "the identity is known");
}

#[tokio::test(start_paused = true)]
async fn all_waiters_of_a_failed_call_get_its_error_without_a_retry() {
    let (sessions, sts) = sessions();
    sts.will(Answer::Error(denied())).hold();
    let callers: Vec<_> = (0..100)
        .map(|_| {
            let sessions = sessions.clone();
            tokio::spawn(async move { sessions.ask(&request("web")).await })
        })
        .collect();
    settle().await;
    sts.release();
    for caller in callers {
        assert_eq!(caller.await.unwrap().unwrap_err(), denied());
    }
    assert_eq!(sts.calls(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_role_that_fails_or_hangs_does_not_affect_another() {
    let (sessions, sts) = sessions();
    sts.will(Answer::Error(denied()));
    assert!(sessions.ask(&request("broken")).await.is_err());
    assert_eq!(key(&sessions.ask(&request("web")).await), "ASIA2");
    sts.hold();
    let hanging = tokio::spawn({
        let sessions = sessions.clone();
        async move { sessions.ask(&request("hanging")).await }
    });
    settle().await;
    assert_eq!(key(&sessions.ask(&request("web")).await), "ASIA2");
    assert!(sessions.ask(&request("broken")).await.is_err());
    assert!(!hanging.is_finished());
    sts.release();
    assert_eq!(key(&hanging.await.unwrap()), "ASIA3");
}

#[tokio::test(start_paused = true)]
async fn after_a_failed_renewal_the_session_is_served_until_expiry() {
    let (sessions, sts) = sessions();
    sts.will(Answer::Session(HOUR)).always(Answer::Error(denied()));
    assert_eq!(key(&sessions.ask(&request("web")).await), "ASIA1");
    pass(35 * 60).await;
    // In steps that do not coincide with the retries, until six seconds before expiry.
    for second in 0..25 * 60 - 5 {
        assert_eq!(key(&sessions.ask(&request("web")).await), "ASIA1", "{second} s after it stopped being fresh");
        pass(1).await;
    }
    // At 0, then after 30 seconds, 45 to 60, 90 to 120, and every 3 to 4 minutes.
    assert!((9..=12).contains(&sts.calls()), "{} calls", sts.calls());
    assert_eq!(sessions.ask(&request("web")).await.unwrap_err(), denied(), "five seconds before its expiry");
    pass(60).await;
    assert_eq!(sessions.ask(&request("web")).await.unwrap_err(), denied(), "after its expiry");
}

#[tokio::test(start_paused = true)]
async fn a_renewal_that_succeeds_after_failures_replaces_the_session() {
    let (sessions, sts) = sessions();
    sts.will(Answer::Session(HOUR)).will(Answer::Error(denied())).will(Answer::Error(denied()));
    assert_eq!(key(&sessions.ask(&request("web")).await), "ASIA1");
    for _ in 0..2 {
        pass(36 * 60 / 2).await;
    }
    assert_eq!(key(&sessions.ask(&request("web")).await), "ASIA1");
    pass(30).await;
    assert_eq!(key(&sessions.ask(&request("web")).await), "ASIA1", "kept after a second failure");
    settle().await;
    pass(60).await;
    assert_eq!(key(&sessions.ask(&request("web")).await), "ASIA1", "no caller waits for a third");
    settle().await;
    assert_eq!(key(&sessions.ask(&request("web")).await), "ASIA4");
    assert_eq!(sts.calls(), 4);
}

#[tokio::test(start_paused = true)]
async fn a_session_that_expires_during_its_renewal_is_not_served() {
    let (sessions, sts) = sessions();
    sts.will(Answer::Session(HOUR)).will(Answer::Error(denied()));
    sessions.ask(&request("web")).await.unwrap();
    pass(60 * 60 - 10).await;
    sts.hold();
    let caller = tokio::spawn({
        let sessions = sessions.clone();
        async move { sessions.ask(&request("web")).await }
    });
    settle().await;
    assert_eq!(sts.calls(), 2);
    pass(6).await;
    sts.release();
    assert_eq!(caller.await.unwrap().unwrap_err(), denied());
    assert_eq!(sessions.ask(&request("web")).await.unwrap_err(), denied());
    assert_eq!(sts.calls(), 2);
}

#[tokio::test(start_paused = true)]
async fn a_valid_session_is_served_while_its_renewal_hangs() {
    let (sessions, sts) = sessions();
    sessions.ask(&request("web")).await.unwrap();
    pass(40 * 60).await;
    sts.hold();
    for _ in 0..3 {
        let began = Instant::now();
        assert_eq!(key(&sessions.ask(&request("web")).await), "ASIA1");
        assert_eq!(began.elapsed(), PATIENCE_WITH_EARLIER);
    }
    assert_eq!(sts.calls(), 2, "one call is in flight");
    sts.release();
    settle().await;
    assert_eq!(key(&sessions.ask(&request("web")).await), "ASIA2");
    assert_eq!(sts.calls(), 2);
}

#[tokio::test(start_paused = true)]
async fn a_caller_gets_the_renewal_if_the_session_expires_meanwhile() {
    let (sessions, sts) = sessions();
    sessions.ask(&request("web")).await.unwrap();
    // Just before the session becomes unusable.
    advance(Duration::from_millis(60 * 60 * 1000 - 5200)).await;
    sts.hold();
    let caller = tokio::spawn({
        let sessions = sessions.clone();
        async move { sessions.ask(&request("web")).await }
    });
    settle().await;
    advance(PATIENCE_WITH_EARLIER * 2).await;
    settle().await;
    assert!(!caller.is_finished());
    sts.release();
    assert_eq!(key(&caller.await.unwrap()), "ASIA2");
}

#[tokio::test(start_paused = true)]
async fn an_expired_session_is_never_served() {
    let (sessions, sts) = sessions();
    sts.will(Answer::Session(HOUR)).will(Answer::Error(denied()));
    sessions.ask(&request("web")).await.unwrap();
    pass(61 * 60).await;
    assert_eq!(sessions.ask(&request("web")).await.unwrap_err(), denied());
    pass(30).await;
    assert_eq!(key(&sessions.ask(&request("web")).await), "ASIA3");
}

#[tokio::test(start_paused = true)]
async fn a_short_session_is_renewed_at_half_its_life() {
    let (sessions, sts) = sessions();
    sts.will(Answer::Session(900));
    assert_eq!(key(&sessions.ask(&request("web")).await), "ASIA1");
    pass(449).await;
    assert_eq!(key(&sessions.ask(&request("web")).await), "ASIA1");
    pass(1).await;
    assert_eq!(key(&sessions.ask(&request("web")).await), "ASIA2");
    assert_eq!(sts.calls(), 2);
}

#[tokio::test(start_paused = true)]
async fn credentials_that_are_expired_on_arrival_are_a_failure() {
    for seconds in [-HOUR, 0, 5] {
        let (sessions, sts) = sessions();
        sts.will(Answer::Session(seconds));
        let error = sessions.ask(&request("web")).await.unwrap_err();
        assert!(matches!(error, AssumeRoleError::Expired { .. }), "{error}");
        // Like every failure, it is remembered for a while.
        assert_eq!(sessions.ask(&request("web")).await.unwrap_err(), error);
        pass(29).await;
        assert_eq!(sessions.ask(&request("web")).await.unwrap_err(), error);
        assert_eq!(sts.calls(), 1, "{seconds}");
        pass(1).await;
        assert_eq!(key(&sessions.ask(&request("web")).await), "ASIA2");
    }
}

#[tokio::test(start_paused = true)]
async fn a_renewal_expired_on_arrival_keeps_the_session() {
    let (sessions, sts) = sessions();
    sts.will(Answer::Session(HOUR)).will(Answer::Session(-1));
    sessions.ask(&request("web")).await.unwrap();
    pass(40 * 60).await;
    assert_eq!(key(&sessions.ask(&request("web")).await), "ASIA1");
    assert_eq!(key(&sessions.ask(&request("web")).await), "ASIA1");
    assert_eq!(sts.calls(), 2);
}

#[tokio::test(start_paused = true)]
async fn a_call_that_panics_is_an_error_and_the_next_one_works() {
    let (sessions, sts) = sessions();
    sts.will(Answer::Panic).hold();
    let callers: Vec<_> = (0..10)
        .map(|_| {
            let sessions = sessions.clone();
            tokio::spawn(async move { sessions.ask(&request("web")).await })
        })
        .collect();
    settle().await;
    sts.release();
    for caller in callers {
        let error = caller.await.unwrap().unwrap_err();
        assert!(matches!(&error, AssumeRoleError::Failed { message } if message.contains("without an answer")), "{error}");
    }
    assert_eq!(sts.calls(), 1);
    assert_eq!(key(&sessions.ask(&request("web")).await), "ASIA2");
}

#[tokio::test(start_paused = true)]
async fn a_renewal_that_panics_keeps_the_session() {
    let (sessions, sts) = sessions();
    sts.will(Answer::Session(HOUR)).will(Answer::Panic).will(Answer::Error(denied()));
    sessions.ask(&request("web")).await.unwrap();
    pass(40 * 60).await;
    assert_eq!(key(&sessions.ask(&request("web")).await), "ASIA1", "the call panicked");
    assert_eq!(key(&sessions.ask(&request("web")).await), "ASIA1", "the next one failed");
    assert_eq!(sts.calls(), 3);
}

#[tokio::test(start_paused = true)]
async fn debug_output_shows_no_secret() {
    let (sessions, _) = sessions();
    let credentials = sessions.ask(&request("web")).await.unwrap();
    let shown = format!("{credentials:?}");
    assert!(shown.contains("ASIA1") && !shown.contains("secret\"") && !shown.contains("token\""), "{shown}");
}

#[tokio::test(start_paused = true)]
async fn a_valid_session_is_served_in_time_while_its_renewal_is_slow() {
    let (sessions, sts) = sessions();
    assert_eq!(key(&sessions.ask(&request("web")).await), "ASIA1");
    pass(36 * 60).await;
    sts.hold();
    let began = Instant::now();
    assert_eq!(key(&sessions.ask(&request("web")).await), "ASIA1");
    assert_eq!(began.elapsed(), PATIENCE_WITH_EARLIER);
    assert_eq!(sts.calls(), 2);
    sts.release();
    settle().await;
    assert_eq!(key(&sessions.ask(&request("web")).await), "ASIA2");
    assert_eq!(sts.calls(), 2);
}

#[tokio::test(start_paused = true)]
async fn metrics_count_held_and_late_served_sessions() {
    let (sessions, sts) = sessions();
    let told = |line: &str| String::from_utf8(sessions.metrics.render()).unwrap().lines().any(|told| told == line);
    assert!(told("rolegate_sessions 0") && !String::from_utf8(sessions.metrics.render()).unwrap().contains("\nrolegate_session_earliest"));
    sessions.ask(&request("web")).await.unwrap();
    pass(600).await;
    sessions.ask(&request("db")).await.unwrap();
    assert!(told("rolegate_sessions 2") && told("rolegate_session_earliest_expiry_seconds 3000"));
    assert!(told("rolegate_sessions_served_late_total 0"));
    sts.always(Answer::Error(denied()));
    pass(26 * 60).await;
    sessions.ask(&request("web")).await.unwrap();
    assert!(told("rolegate_sessions_served_late_total 1"));
    pass(25 * 60).await;
    assert!(told("rolegate_sessions 1") && told("rolegate_session_earliest_expiry_seconds 0"), "one has expired without a replacement");
    sts.always(Answer::Session(HOUR));
    pass(10 * 60).await;
    sessions.ask(&request("web")).await.unwrap();
    sessions.ask(&request("db")).await.unwrap();
    assert!(told("rolegate_sessions 2") && told("rolegate_session_earliest_expiry_seconds 3600"));
}

#[tokio::test(start_paused = true)]
async fn a_caller_times_out_and_the_next_gets_the_result() {
    let (sessions, sts) = sessions();
    sts.hold();
    let began = Instant::now();
    let error = sessions.ask(&request("web")).await.unwrap_err();
    assert_eq!((began.elapsed(), error.name()), (SETTINGS.timeout, "unreachable"));
    sts.release();
    settle().await;
    assert_eq!(key(&sessions.ask(&request("web")).await), "ASIA1");
    assert_eq!(sts.calls(), 1);
}

#[tokio::test(start_paused = true)]
async fn no_caller_waits_for_a_renewal_ahead_of_need() {
    let (sessions, sts) = sessions();
    sessions.ask(&request("web")).await.unwrap();
    pass(30 * 60).await;
    sts.hold();
    assert_eq!(sessions.ahead(&request("web"), &[Caller::of(&pod("web"))]).await, Ahead::UnderWay);
    settle().await;
    for _ in 0..60 {
        let began = Instant::now();
        assert_eq!(key(&sessions.ask(&request("web")).await), "ASIA1");
        assert_eq!(began.elapsed(), Duration::ZERO);
        pass(1).await;
    }
    assert_eq!(sts.calls(), 2);
}

fn lost() -> Answer {
    Answer::Error(AssumeRoleError::Unreachable { message: "connection reset".to_owned() })
}

#[tokio::test(start_paused = true)]
async fn one_lost_connection_does_not_affect_a_pod() {
    let (sessions, sts) = sessions();
    sts.will(lost());
    assert_eq!(key(&sessions.ask(&request("web")).await), "ASIA2");
    sts.will(lost()).will(lost());
    assert_eq!(sessions.ask(&request("db")).await.unwrap_err().name(), "unreachable");
    assert_eq!(sts.calls(), 4, "one retry and no more");
    // Retries, throttled requests and renewals of held sessions are not repeated.
    pass(30).await;
    sts.will(lost());
    assert_eq!(sessions.ask(&request("db")).await.unwrap_err().name(), "unreachable");
    assert_eq!(sts.calls(), 5);
    sts.will(Answer::Error(AssumeRoleError::Throttled));
    assert_eq!(sessions.ask(&request("other")).await.unwrap_err().name(), "throttled");
    assert_eq!(sts.calls(), 6);
    pass(36 * 60).await;
    sts.will(lost());
    assert_eq!(key(&sessions.ask(&request("web")).await), "ASIA2");
    settle().await;
    assert_eq!(sts.calls(), 7);
}

#[tokio::test(start_paused = true)]
async fn a_session_that_is_too_long_is_requested_again_at_once() {
    let (sessions, sts) = sessions();
    sts.will(Answer::Error(AssumeRoleError::TooLong { message: "no".to_owned() }));
    assert_eq!(key(&sessions.ask(&request("web")).await), "ASIA2");
    let told = String::from_utf8(sessions.metrics.render()).unwrap();
    for outcome in ["too-long", "ok"] {
        let line = format!("rolegate_sts_requests_total{{cause=\"demand\",outcome=\"{outcome}\"}} 1");
        assert!(told.lines().any(|told| told == line), "{line} is not in {told}");
    }
}

#[tokio::test(start_paused = true)]
async fn an_unknown_own_identity_is_no_failure_of_the_session() {
    let (sessions, sts) = sessions();
    for _ in 0..5 {
        sts.will(Answer::Error(AssumeRoleError::IdentityUnknown(Box::new(AssumeRoleError::Throttled))));
        assert_eq!(sessions.ask(&request("web")).await.unwrap_err().name(), "identity-unknown");
        sts.will(Answer::Error(AssumeRoleError::IdentityUnknown(Box::new(AssumeRoleError::Throttled))));
        sessions.ahead(&request("web"), &[Caller::of(&pod("web"))]).await;
        settle().await;
    }
    sts.will(Answer::Error(denied()));
    assert_eq!(sessions.ask(&request("web")).await.unwrap_err(), denied());
    // Remembered like a first failure.
    pass(30).await;
    assert!(sessions.ask(&request("web")).await.is_ok());
}

#[tokio::test(start_paused = true)]
async fn a_caller_raises_the_queued_renewal_of_an_expiring_session() {
    let sts = FakeSts::new();
    let settings = CacheSettings { limits: StsLimits { rate: 1000, max_rate: 1000, concurrency: 1 }, ..SETTINGS };
    let sessions = Sessions::new(sts.clone(), settings, sts.clock(), Metrics::new());
    sts.will(Answer::Session(HOUR));
    sessions.ask(&request("web")).await.unwrap();
    pass(57 * 60).await;
    sts.will(Answer::Error(AssumeRoleError::Throttled));
    assert_eq!(key(&sessions.ask(&request("web")).await), "ASIA1");
    pass(60).await;
    // The retried renewal is queued behind another request, and a caller requests the session.
    sts.hold();
    sessions.ahead(&request("other"), &[Caller::of(&pod("other"))]).await;
    assert_eq!(sessions.ahead(&request("web"), &[Caller::of(&pod("web"))]).await, Ahead::UnderWay);
    let waiting = |cause: CallCause| sessions.metrics.sts_queue(cause.name()).get();
    assert_eq!((waiting(CallCause::Renewal), waiting(CallCause::Demand)), (1, 0));
    assert_eq!(key(&sessions.ask(&request("web")).await), "ASIA1");
    assert_eq!((waiting(CallCause::Renewal), waiting(CallCause::Demand)), (0, 1));
}

#[tokio::test(start_paused = true)]
async fn a_held_session_ends_when_it_is_replaced_or_forgotten() {
    let (sessions, _) = sessions();
    let (web, now) = (request("web"), |sessions: &Sessions<FakeSts>| (Instant::now(), sessions.now()));
    let served = |held: &HeldSession| {
        let (at, by_wall) = now(&sessions);
        held.credentials(at, by_wall).map(|credentials| credentials.access_key_id.clone())
    };
    assert!(sessions.held(&web).await.is_none(), "it was never requested");
    let first = sessions.ask(&web).await;
    let held = sessions.held(&web).await.unwrap();
    let before = sessions.generation();
    assert_eq!(served(&held).as_deref(), Some(key(&first)));
    drop(first);
    // It is renewed ahead of need.
    sessions.ahead(&web, &[Caller::of(&pod("web"))]).await;
    settle().await;
    sessions.clean().await;
    assert_ne!(sessions.generation(), before);
    assert_eq!(served(&held), None, "what was held does not keep the credentials");
    let held = sessions.held(&web).await.unwrap();
    let before = sessions.generation();
    assert!(served(&held).is_some());
    sessions.forget(&[Arc::new(web.clone())]).await;
    assert_ne!(sessions.generation(), before);
    assert_eq!(served(&held), None);
    assert!(sessions.held(&web).await.is_none());
}

#[tokio::test(start_paused = true)]
async fn a_held_session_ends_before_its_credentials() {
    let (sessions, _) = sessions();
    let web = request("web");
    sessions.ask(&web).await.unwrap();
    let held = sessions.held(&web).await.unwrap();
    let life = Duration::from_secs(HOUR.unsigned_abs());
    advance(life - LEAST_REMAINING - Duration::from_secs(1)).await;
    assert!(held.credentials(Instant::now(), sessions.now()).is_some());
    // Either clock ends it: the wall clock may have been set, and the other one stops while the machine sleeps.
    assert!(held.credentials(Instant::now() + Duration::from_secs(1), sessions.now()).is_none());
    assert!(held.credentials(Instant::now(), sessions.now() + Duration::from_secs(1)).is_none());
}
