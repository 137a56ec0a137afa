//! Sessions of target roles: one flight makes both calls.

use super::*;
use crate::credentials::chain::ChainCall;
use crate::credentials::tests::{chained_pod, chained_request};

fn partner() -> RoleRequest {
    chained_request("web", "partner")
}

/// The steps of one flight that succeeds.
fn both(source: &str) -> [(String, Option<String>); 2] {
    [("web".to_owned(), None), ("partner".to_owned(), Some(source.to_owned()))]
}

async fn ask(sessions: &Sessions<FakeSts>) -> Landing {
    sessions.get(&partner(), &chained_pod("web", "partner")).await
}

#[tokio::test(start_paused = true)]
async fn callers_share_one_flight_of_two_calls_and_get_the_second_session() {
    let (sessions, sts) = sessions();
    sts.hold();
    let callers: Vec<_> = (0..100)
        .map(|_| {
            let sessions = sessions.clone();
            tokio::spawn(async move { ask(&sessions).await })
        })
        .collect();
    settle().await;
    sts.release();
    for answer in join_all(callers).await {
        assert_eq!(key(&answer.unwrap()), "ASIA2");
    }
    assert_eq!(sts.steps(), both("ASIA1"));
    // The session of the source role serves no pod, not even one that has this role.
    assert_eq!(key(&sessions.ask(&request("web")).await), "ASIA3");
    assert_eq!(key(&sessions.ask(&request("partner")).await), "ASIA4");
    assert_eq!(key(&ask(&sessions).await), "ASIA2");
}

#[tokio::test(start_paused = true)]
async fn both_calls_count_against_the_rate() {
    let sts = FakeSts::new();
    let limits = StsLimits { rate: 1, max_rate: 1, concurrency: 10 };
    let sessions = Sessions::new(sts.clone(), CacheSettings { limits, ..SETTINGS }, sts.clock(), Metrics::new());
    let began = Instant::now();
    // A burst of two calls is free.
    ask(&sessions).await.unwrap();
    assert_eq!((began.elapsed(), sts.calls()), (Duration::ZERO, 2));
    sessions.get(&chained_request("db", "partner"), &chained_pod("db", "partner")).await.unwrap();
    assert!((Duration::from_millis(1900)..Duration::from_millis(2100)).contains(&began.elapsed()), "{:?}", began.elapsed());
    assert_eq!(sts.calls(), 4);
}

#[tokio::test(start_paused = true)]
async fn a_failed_second_call_is_retried_with_the_same_source_session() {
    let (sessions, sts) = sessions();
    let failed = || Answer::Error(AssumeRoleError::Failed { message: "500".to_owned() });
    sts.will(Answer::Session(900)).will(failed());
    assert_eq!(key(&ask(&sessions).await), "ASIA3");
    let [source, target] = both("ASIA1");
    assert_eq!(sts.steps(), [source, target.clone(), target]);
}

#[tokio::test(start_paused = true)]
async fn a_refused_target_is_remembered_and_the_source_session_is_not_kept() {
    let (sessions, sts) = sessions();
    sts.for_role("partner", Answer::Error(denied()));
    let refused = |landing: Landing| landing.unwrap_err().refused_call();
    assert_eq!(refused(ask(&sessions).await), Some(ChainCall::Target));
    assert_eq!(refused(ask(&sessions).await), Some(ChainCall::Target));
    assert_eq!(sts.steps(), both("ASIA1"), "the refusal is remembered");
    pass(31).await;
    sts.for_role("partner", Answer::Session(HOUR));
    assert_eq!(key(&ask(&sessions).await), "ASIA4");
    assert_eq!(sts.steps()[2..], both("ASIA3"), "a new flight makes both calls");
}

#[tokio::test(start_paused = true)]
async fn without_the_source_role_there_is_no_second_call() {
    for (answer, name, refused) in [
        (Answer::Error(denied()), "denied", Some(ChainCall::Source)),
        (Answer::Error(AssumeRoleError::Throttled), "throttled", None),
        // It would expire before the second call arrives.
        (Answer::Session(3), "failed", None),
    ] {
        let (sessions, sts) = sessions();
        sts.for_role("web", answer);
        let error = ask(&sessions).await.unwrap_err();
        assert_eq!((error.name(), error.refused_call()), (name, refused));
        assert!(sts.steps().iter().all(|(role, _)| role == "web"), "{name}: {:?}", sts.steps());
    }
}

#[tokio::test(start_paused = true)]
async fn a_flight_that_nobody_needs_any_more_ends_between_its_calls() {
    let (sessions, sts) = sessions();
    sts.hold();
    let caller = tokio::spawn({
        let sessions = sessions.clone();
        async move { ask(&sessions).await }
    });
    settle().await;
    caller.abort();
    settle().await;
    sessions.forget(&[Arc::new(partner())]).await;
    sessions.clean().await;
    sts.release();
    settle().await;
    assert_eq!(sts.steps(), both("x")[..1]);
}

#[tokio::test(start_paused = true)]
async fn a_renewal_makes_both_calls_and_keeps_the_earlier_session_if_one_is_refused() {
    let (sessions, sts) = sessions();
    ask(&sessions).await.unwrap();
    pass(2000).await;
    sts.for_role("web", Answer::Error(denied()));
    let caller = Caller::of(&chained_pod("web", "partner"));
    assert_eq!(sessions.ahead(&partner(), std::slice::from_ref(&caller)).await, Ahead::UnderWay);
    settle().await;
    assert_eq!(key(&ask(&sessions).await), "ASIA2");
    assert_eq!(sts.steps()[2..], both("x")[..1]);
    sts.for_role("web", Answer::Session(900));
    pass(31).await;
    sessions.ahead(&partner(), &[caller]).await;
    settle().await;
    assert_eq!(key(&ask(&sessions).await), "ASIA5");
    assert_eq!(sts.steps()[3..], both("ASIA4"));
}
