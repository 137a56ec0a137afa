//! Rates above the full pace.

use super::*;

const RISING: StsLimits = StsLimits { rate: 20, max_rate: 100, concurrency: 16 };

/// Queues requests of `pods` pods, responds to each permit after `latency`, and returns the time until all are done.
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
async fn the_rate_rises_to_its_limit_while_sts_responds_quickly() {
    let gate = gate(RISING);
    // At 20 per second, after a burst of 40, these would take 18 seconds.
    let took = all_answered(&gate, CallCause::Demand, 400, LATENCY).await;
    assert!(took < Duration::from_secs(7), "{took:?}");
    // At a constant 100 per second, and no faster.
    let took = all_answered(&gate, CallCause::Demand, 400, LATENCY).await;
    assert!((Duration::from_millis(3500)..Duration::from_secs(6)).contains(&took), "{took:?}");
    // Prefetches have their share of the raised rate.
    let took = all_answered(&gate, CallCause::Prefetch, 400, LATENCY).await;
    assert!(took < Duration::from_secs(7), "{took:?}");
    assert!(gate.lock().pace.concurrency() > 16);
}

#[tokio::test(start_paused = true)]
async fn slow_responses_do_not_raise_the_rate() {
    let gate = gate(RISING);
    all_answered(&gate, CallCause::Demand, 100, Duration::from_secs(2)).await;
    assert_eq!(gate.lock().pace.concurrency(), 16);
}

#[tokio::test(start_paused = true)]
async fn a_raised_rate_falls_back_after_an_idle_minute() {
    let gate = gate(RISING);
    all_answered(&gate, CallCause::Demand, 400, LATENCY).await;
    pass(60_000).await;
    assert!(!gate.is_slow());
    assert_eq!(gate.lock().pace.concurrency(), 16);
}

#[tokio::test(start_paused = true)]
async fn throttling_ends_the_raised_rate_at_once_for_an_hour() {
    let gate = gate(RISING);
    all_answered(&gate, CallCause::Demand, 400, LATENCY).await;
    ask(&gate, CallCause::Demand, "web", &throttled()).await;
    assert_eq!(gate.lock().pace.concurrency(), 8, "half of the full pace, not of the raised one");
    // The pace recovers to the full one, and no further.
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
