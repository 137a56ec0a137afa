//! The rate above the full pace.

use super::*;

const RISING: StsLimits = StsLimits { rate: 20, max_rate: 100, concurrency: 16 };

/// Places for so many pods, of which those that get their turn are answered after `latency`; the time until all are.
async fn all_answered(gate: &Gate, cause: CallCause, pods: usize, latency: Duration) -> Duration {
    let began = Instant::now();
    let requests = (0..pods).map(|_| {
        let (_, turn) = place(gate, cause);
        async move {
            let permit = turn.await.unwrap().unwrap();
            tokio::time::sleep(latency).await;
            permit.answered(&role("web"), &ok());
        }
    });
    futures_util::future::join_all(requests).await;
    began.elapsed()
}

const LATENCY: Duration = Duration::from_millis(150);

#[tokio::test(start_paused = true)]
async fn while_sts_answers_quickly_the_rate_rises_to_its_bound() {
    let gate = gate(RISING);
    // At 20 a second, after 40 at once, these take 18 s.
    let took = all_answered(&gate, CallCause::Demand, 400, LATENCY).await;
    assert!(took < Duration::from_secs(7), "{took:?}");
    // All the time at 100 a second, and no faster.
    let took = all_answered(&gate, CallCause::Demand, 400, LATENCY).await;
    assert!((Duration::from_millis(3500)..Duration::from_secs(6)).contains(&took), "{took:?}");
    // What is fetched ahead has its part of it.
    let took = all_answered(&gate, CallCause::Prefetch, 400, LATENCY).await;
    assert!(took < Duration::from_secs(7), "{took:?}");
    assert!(gate.lock().pace.concurrency() > 16);
}

#[tokio::test(start_paused = true)]
async fn slow_answers_raise_nothing() {
    let gate = gate(RISING);
    all_answered(&gate, CallCause::Demand, 100, Duration::from_secs(2)).await;
    assert_eq!(gate.lock().pace.concurrency(), 16);
}

#[tokio::test(start_paused = true)]
async fn what_is_not_needed_for_a_minute_is_given_back() {
    let gate = gate(RISING);
    all_answered(&gate, CallCause::Demand, 400, LATENCY).await;
    pass(60_000).await;
    assert!(!gate.is_slow());
    assert_eq!(gate.lock().pace.concurrency(), 16);
}

#[tokio::test(start_paused = true)]
async fn a_throttling_ends_the_raised_part_at_once_and_for_an_hour() {
    let gate = gate(RISING);
    all_answered(&gate, CallCause::Demand, 400, LATENCY).await;
    ask(&gate, CallCause::Demand, "web", &throttled()).await;
    assert_eq!(gate.lock().pace.concurrency(), 8, "half of the full pace, not of the raised one");
    // The pace comes back to the full one, and no further.
    for _ in 0..3 {
        let took = all_answered(&gate, CallCause::Demand, 400, LATENCY).await;
        assert!(took >= Duration::from_secs(17), "{took:?}");
    }
    for _ in 0..80 {
        pass(60_000).await;
        gate.is_slow();
    }
    all_answered(&gate, CallCause::Demand, 400, LATENCY).await;
    let took = all_answered(&gate, CallCause::Demand, 400, LATENCY).await;
    assert!(took < Duration::from_secs(7), "{took:?} after an hour");
}

#[tokio::test(start_paused = true)]
async fn a_rate_that_may_not_rise_does_not() {
    let gate = gate(StsLimits { max_rate: 20, ..RISING });
    let took = all_answered(&gate, CallCause::Demand, 400, LATENCY).await;
    assert!(took >= Duration::from_secs(17), "{took:?}");
}
