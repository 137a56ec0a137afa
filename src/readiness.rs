//! The start-up steps that are still pending. The daemon is ready when none is left, and no longer ready once it drains.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::Instant;

/// The name of the node is known.
pub const NODE_NAMED: &str = "the name of this node (set --node)";
/// In a cluster, the API has pods of this node.
pub const OWN_POD_KNOWN: &str = "a pod of this node in the Kubernetes API (check --node)";
/// The pods are listed.
pub const PODS_KNOWN: &str = "the list of this node's pods";
/// STS has confirmed who the daemon is.
pub const OWN_IDENTITY: &str = "the daemon's own AWS identity";
/// The packet rules are in place for the first time.
pub const PACKET_RULES: &str = "the packet rules";
/// Everything that serves pods is created, and connections are accepted.
pub const START: &str = "the daemon's start";
/// The self-test passes.
pub const SELF_TEST_PASSED: &str = "the self-test";
/// The BPF programs are attached again.
pub const PROGRAMS_REPAIRED: &str = "the repair of the BPF programs";
/// The packet rules are as wanted again.
pub const RULES_REPAIRED: &str = "the repair of the packet rules";
/// STS accepts the daemon's own credentials again.
pub const OWN_CREDENTIALS: &str = "own AWS credentials that STS accepts";
/// The metadata service names the account of the daemon's own identity.
pub const OWN_ACCOUNT: &str = "a base ARN in the daemon's own AWS account";
/// STS and the metadata service do not contradict each other.
pub const ONE_ACCOUNT: &str = "STS and a metadata service that agree about this node's AWS account";
/// The API has been heard from.
pub const SIGN_OF_LIFE: &str = "contact with the Kubernetes API";
/// The daemon ends.
pub const SHUT_DOWN: &str = "the daemon to shut down";

/// Every condition of the daemon, each with its short name: the label `cause` of `rolegate_not_ready`.
pub const CONDITIONS: [(&str, &str); 14] = [
    (NODE_NAMED, "node-name"),
    (OWN_POD_KNOWN, "own-pod"),
    (PODS_KNOWN, "pod-list"),
    (OWN_IDENTITY, "own-identity"),
    (PACKET_RULES, "packet-rules"),
    (START, "start"),
    (SELF_TEST_PASSED, "self-test"),
    (PROGRAMS_REPAIRED, "bpf-programs-repair"),
    (RULES_REPAIRED, "packet-rules-repair"),
    (OWN_CREDENTIALS, "own-credentials"),
    (OWN_ACCOUNT, "own-account"),
    (ONE_ACCOUNT, "account-agreement"),
    (SIGN_OF_LIFE, "api-contact"),
    (SHUT_DOWN, "shutdown"),
];

/// The pending start-up steps. Cheap to clone.
#[derive(Clone, Debug, Default)]
pub struct Readiness(Arc<watch::Sender<BTreeSet<&'static str>>>);

/// One start-up step. If it is dropped without [`ReadinessStep::done`], it stays pending, because a step that failed is not
/// done.
#[derive(Debug)]
#[must_use = "a step that nobody finishes keeps the daemon from being ready"]
pub struct ReadinessStep {
    name: &'static str,
    readiness: Readiness,
}

impl Readiness {
    /// Adds a step that has to be done before the daemon is ready.
    pub fn step(&self, name: &'static str) -> ReadinessStep {
        self.0.send_modify(|pending| {
            pending.insert(name);
        });
        ReadinessStep { name, readiness: self.clone() }
    }

    /// Returns the pending steps. Empty means ready.
    pub fn pending(&self) -> Vec<&'static str> {
        self.0.borrow().iter().copied().collect()
    }

    /// Returns whether no step is pending.
    pub fn is_ready(&self) -> bool {
        self.0.borrow().is_empty()
    }

    /// Returns when no step is pending, which may be at once.
    pub async fn ready(&self) {
        // The channel cannot close, because `self` holds the sender.
        let _ = self.0.subscribe().wait_for(BTreeSet::is_empty).await;
    }

    /// Returns when none of these steps is pending.
    pub async fn done(&self, names: &[&str]) {
        // The channel cannot close, because `self` holds the sender.
        let _ = self.0.subscribe().wait_for(|pending| !pending.iter().any(|name| names.contains(name))).await;
    }
}

impl ReadinessStep {
    /// Marks the step as done.
    pub fn done(self) {
        self.readiness.0.send_modify(|pending| {
            pending.remove(self.name);
        });
    }
}

/// Whether the daemon's start has come to its end, for the liveness probe on the app port: kube2iam's manifests have no other
/// probe, and without it a rollout would go on while nothing is served. Cheap to clone.
#[derive(Clone, Debug)]
pub struct StartupHealth {
    readiness: Readiness,
    was_ready: Arc<AtomicBool>,
    began: Instant,
    grace: Duration,
}

impl StartupHealth {
    /// Begins now. After `grace`, the process counts as well whatever is pending.
    pub fn new(readiness: Readiness, grace: Duration) -> Self {
        Self { readiness, was_ready: Arc::default(), began: Instant::now(), grace }
    }

    /// Notes when the daemon is ready first. Runs until then.
    pub async fn follow(&self) {
        self.readiness.ready().await;
        self.was_ready.store(true, Ordering::Relaxed);
    }

    /// What is pending of a start that is under way; empty once it was ready, or the grace is over.
    pub fn pending(&self) -> Vec<&'static str> {
        if self.was_ready.load(Ordering::Relaxed) || self.began.elapsed() >= self.grace { Vec::new() } else { self.readiness.pending() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ready_when_every_step_is_done_and_a_dropped_step_is_not() {
        let readiness = Readiness::default();
        let (first, second) = (readiness.step("first"), readiness.step("second"));
        assert_eq!(readiness.pending(), ["first", "second"]);
        first.done();
        assert_eq!(readiness.pending(), ["second"]);
        drop(second);
        assert_eq!(readiness.pending(), ["second"]);
    }

    #[tokio::test(start_paused = true)]
    async fn a_start_is_over_once_ready_or_after_its_grace() {
        let readiness = Readiness::default();
        let step = readiness.step("first");
        let grace = Duration::from_secs(60);
        let (followed, left) = (StartupHealth::new(readiness.clone(), grace), StartupHealth::new(readiness.clone(), grace));
        assert_eq!(StartupHealth::new(readiness.clone(), Duration::ZERO).pending(), [""; 0]);
        let mut follow = std::pin::pin!(followed.follow());
        assert!(futures_util::poll!(follow.as_mut()).is_pending());
        assert_eq!(followed.pending(), ["first"]);
        step.done();
        follow.await;
        let _again = readiness.step("again");
        assert_eq!((followed.pending(), left.pending()), (vec![], vec!["again"]));
        tokio::time::advance(grace).await;
        assert_eq!(left.pending(), [""; 0]);
    }

    #[tokio::test]
    async fn a_wait_may_be_for_some_steps_only() {
        let readiness = Readiness::default();
        let (first, second, _other) = (readiness.step("first"), readiness.step("second"), readiness.step("other"));
        let mut waiting = std::pin::pin!(readiness.done(&["first", "second"]));
        for step in [first, second] {
            assert!(futures_util::poll!(waiting.as_mut()).is_pending());
            step.done();
        }
        assert!(futures_util::poll!(waiting.as_mut()).is_ready());
    }

    #[tokio::test]
    async fn ready_waits_for_every_step_even_those_added_later() {
        let readiness = Readiness::default();
        let (first, second) = (readiness.step("first"), readiness.step("second"));
        let mut waiting = std::pin::pin!(readiness.ready());
        first.done();
        assert!(futures_util::poll!(waiting.as_mut()).is_pending() && !readiness.is_ready());
        second.done();
        waiting.await;
        assert!(readiness.is_ready());
        let _later = readiness.step("later");
        assert!(futures_util::poll!(std::pin::pin!(readiness.ready())).is_pending() && !readiness.is_ready());
    }
}
