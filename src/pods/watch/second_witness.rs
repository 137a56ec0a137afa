//! Tasks that keep the second witness up to date: the pins of pods' links, and the time since the last contact with the API.

use std::time::Duration;

use jiff::Timestamp;
use tracing::{info, warn};

use crate::clock::CLOCK_EVERY;
use crate::log_once::Condition;
use crate::metrics::Metrics;
use crate::pods::Pods;
use crate::readiness::{Readiness, ReadinessStep, SIGN_OF_LIFE};

/// The minimum interval between two passes over all pods, because changes often come in groups.
const PIN_AGAIN: Duration = Duration::from_millis(50);
/// The interval between checks of the API's silence.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// Pods that a log line names.
const EXAMPLES: usize = 3;

/// Pins pods' addresses to their links, and reports pods that could forge those of others. Never returns.
pub(crate) async fn keep_pins(mut pods: Pods, metrics: Metrics, booted: impl Fn() -> Option<Timestamp>) {
    let mut seen = pods.witness_changes();
    let forgeable = Condition::default();
    loop {
        if let Some(booted) = booted() {
            pods.booted_at(booted);
        }
        let may_forge = pods.pin().await;
        metrics.pods_that_may_forge(may_forge.len());
        if !may_forge.is_empty() && forgeable.begins() {
            let mut examples: Vec<_> = may_forge.iter().map(|pod| format!("{}/{}", pod.namespace, pod.name)).collect();
            examples.sort();
            examples.truncate(EXAMPLES);
            warn!(
                event = "net-raw-on-bridge",
                pods = may_forge.len(),
                examples = examples.join(", "),
                "pods on a bridge may have the capability NET_RAW; they can disrupt other pods and, unless --cni-results is set, get the \
                 credentials of a pod that has not sent a packet yet; drop NET_RAW from pods, or use a CNI plugin that routes to each pod"
            );
        }
        tokio::select! {
            () = pods.changed() => {}
            Ok(()) = seen.changed() => {}
            () = tokio::time::sleep(CLOCK_EVERY) => {}
        }
        tokio::time::sleep(PIN_AGAIN).await;
    }
}

/// Monitors how long the API has been silent about pods: no complete list, no change and no bookmark. After half of `max`, the
/// daemon is not ready; after all of it, pods are served only if the node itself confirms their claims, until the watch is up to
/// date again. Never returns.
pub(crate) async fn bound_staleness(pods: Pods, metrics: Metrics, readiness: Readiness, max: Duration) {
    let (mut silent, mut stale): (Option<ReadinessStep>, bool) = (None, false);
    loop {
        let silence = metrics.watch_silence();
        if silence >= max / 2 && silent.is_none() {
            warn!(
                event = "api-silent",
                seconds = silence.as_secs(),
                "no contact with the Kubernetes API for half of --max-staleness; not ready, serving from the last known state; check the \
                 connection to the API server"
            );
            silent = Some(readiness.step(SIGN_OF_LIFE));
        }
        if silence < max / 2
            && let Some(step) = silent.take()
        {
            step.done();
        }
        if silence >= max && !stale {
            stale = true;
            pods.set_stale(true);
            warn!(
                event = "api-stale",
                seconds = silence.as_secs(),
                "no contact with the Kubernetes API for --max-staleness; refusing pods whose addresses nothing on this node confirms; \
                 check the connection to the API server"
            );
        } else if stale && !pods.is_stale() {
            // The watch cleared the flag: changes in the meantime are known.
            stale = false;
            info!(event = "api-heard-again", "the pods of this node are up to date again; serving all of them");
        }
        tokio::time::sleep(LOOK_EVERY).await;
    }
}

#[cfg(test)]
mod tests;
