#![allow(clippy::unwrap_used, reason = "a test says loudly what failed")]
use super::*;
use crate::pods::tests::pod;
use crate::pods::{Lookup, Objection, pods};

const MAX: Duration = Duration::from_secs(900);

#[tokio::test(start_paused = true)]
async fn a_silent_api_ends_readiness_first_and_unconfirmed_claims_later() {
    let (writer, pods) = pods();
    writer.write(|index| index.apply(pod("a", "10.0.0.1")));
    let (metrics, readiness) = (Metrics::new(), Readiness::default());
    let watching = bound_staleness(pods.clone(), metrics.clone(), readiness.clone(), MAX);
    let checking = async {
        let is_served = || matches!(pods.by_ip("10.0.0.1".parse().unwrap()), Lookup::Found(..));
        let second = Duration::from_secs(1);
        tokio::time::sleep(MAX / 2 - second).await;
        assert!(readiness.is_ready() && is_served());
        tokio::time::sleep(2 * second).await;
        assert!(!readiness.is_ready() && is_served());
        tokio::time::sleep(MAX / 2 - 2 * second).await;
        assert!(is_served());
        tokio::time::sleep(2 * second).await;
        assert!(matches!(pods.by_ip("10.0.0.1".parse().unwrap()), Lookup::Objected(_, Objection::Stale)));
        // Changes arrive again, and more of them may follow.
        metrics.watch_alive();
        tokio::time::sleep(2 * second).await;
        assert!(readiness.is_ready());
        tokio::time::sleep(10 * second).await;
        assert!(!is_served());
        // The watch does this after a bookmark or a complete list.
        pods.set_stale(false);
        assert!(is_served());
        tokio::time::sleep(MAX - 14 * second).await;
        assert!(is_served());
        tokio::time::sleep(4 * second).await;
        assert!(!is_served(), "the period starts over");
    };
    tokio::select! {
        () = checking => {}
        () = watching => {}
    }
}
