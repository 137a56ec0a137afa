#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test says loudly what failed")]
use tokio::time::{Instant, sleep};

use super::*;

/// Returns how long the drain takes with this connection open.
async fn drain_with<F: Future<Output = ()> + Send + 'static>(connection: impl FnOnce(Drain) -> F) -> Duration {
    let drain = Drain::default();
    drain.track(connection(drain.clone()));
    drain.begin();
    let began = Instant::now();
    timeout(Duration::from_secs(60), drain.finish()).await.expect("every connection ends");
    began.elapsed()
}

#[tokio::test(start_paused = true)]
async fn a_drain_without_connections_finishes_at_once() {
    let drain = Drain::default();
    assert!(!drain.has_begun());
    drain.begin();
    assert!(drain.has_begun());
    drain.begun().await;
    let began = Instant::now();
    timeout(Duration::from_secs(60), drain.finish()).await.expect("there is nothing to wait for");
    assert_eq!(began.elapsed(), Duration::ZERO);
}

#[tokio::test(start_paused = true)]
async fn a_connection_that_ends_by_itself_is_awaited() {
    assert_eq!(drain_with(|_| sleep(Duration::from_millis(300))).await, Duration::from_millis(300));
}

#[tokio::test(start_paused = true)]
async fn an_idle_connection_is_closed_after_the_last_requests_period() {
    assert_eq!(drain_with(|drain| async move { drain.closing().await }).await, LAST_REQUESTS);
}

#[tokio::test(start_paused = true)]
async fn a_request_in_progress_is_finished() {
    let busy = |drain: Drain| async move {
        drain.closing().await;
        sleep(Duration::from_secs(8)).await;
    };
    assert_eq!(drain_with(busy).await, LAST_REQUESTS + Duration::from_secs(8));
}

#[tokio::test(start_paused = true)]
async fn a_hanging_connection_is_dropped_at_the_deadline() {
    assert_eq!(drain_with(|drain| async move { drain.forced().await }).await, LAST_REQUESTS + DEADLINE);
}

#[tokio::test(start_paused = true)]
async fn a_connection_that_panics_does_not_block_the_drain() {
    assert_eq!(drain_with(|_| async { panic!("intended by the test") }).await, Duration::ZERO);
}
