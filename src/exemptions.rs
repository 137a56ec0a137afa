//! Keeps the pods exempt that must reach the real metadata service, such as CNI plugins: the kernel's programs leave their control
//! groups alone.
//!
//! The set is that of the living pods in the node's network that the settings leave alone, and the daemon's own pod. A pod is exempt
//! as soon as the Kubernetes API shows it and its control group exists. Nothing is changed before the API has sent a complete list:
//! what an earlier daemon exempted stays exempt while the API cannot be reached.

use std::collections::BTreeSet;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::oneshot;
use tokio::time::Instant;
use tracing::{debug, error, info, warn};

use crate::backoff::{Backoff, spread};
use crate::cgroup::{CgroupId, HostNetworkExemptions, PodCgroups, in_background};
use crate::log_once::Condition;
use crate::metrics::Metrics;
use crate::pods::Pods;

/// The shortest time between two updates, however often pods change.
const UPDATE_AGAIN: Duration = Duration::from_millis(50);
/// How soon a control group is looked for again that does not exist yet. The kubelet creates it before it pulls images.
const LOOK_AGAIN: Backoff = Backoff::new(Duration::from_millis(100), Duration::from_secs(5));
/// The pauses after failures.
const RETRY: Backoff = Backoff::new(Duration::from_millis(500), Duration::from_secs(30));
/// How often the control groups, and what the kernel has, are checked if nothing changes.
const CHECK_EVERY: Duration = Duration::from_secs(30);

/// Follows the pods of this node, and exempts some.
#[derive(Debug)]
pub(crate) struct Exemptions {
    /// The pods of this node.
    pub pods: Pods,
    /// Their control groups.
    pub cgroups: PodCgroups,
    /// The kernel's programs.
    pub kernel: Arc<dyn HostNetworkExemptions>,
    /// Counts updates.
    pub metrics: Metrics,
}

/// What the last update came to.
#[derive(Debug, Default)]
struct Updates {
    /// What the kernel had after the last update.
    applied: Option<BTreeSet<CgroupId>>,
    /// Consecutive failures.
    failures: u32,
    /// Consecutive updates that missed a control group.
    looks: u32,
    failing: Condition,
    own_missing: Condition,
}

/// The control groups to exempt.
#[derive(Debug, Default)]
struct Wanted {
    found: BTreeSet<CgroupId>,
    /// How many pods have no control group yet.
    missing: usize,
}

impl Exemptions {
    /// Runs until the process ends. Reports to `first` once the first update has been tried.
    pub(crate) async fn run(self, first: oneshot::Sender<()>) {
        let (mut first, mut updates, mut pods) = (Some(first), Updates::default(), self.pods.clone());
        while !self.pods.is_listed() {
            pods.changed().await;
        }
        loop {
            let pause = self.update(&mut updates).await;
            if let Some(first) = first.take() {
                // Nobody may wait for it any more.
                let _ = first.send(());
            }
            let updated = Instant::now();
            tokio::select! {
                () = pods.changed() => {
                    updates.looks = 0;
                    tokio::time::sleep_until(updated + UPDATE_AGAIN).await;
                }
                () = tokio::time::sleep(pause) => {}
            }
        }
    }

    /// Tells the kernel what is exempt now. Returns when to look again even if no pod changes.
    async fn update(&self, updates: &mut Updates) -> Duration {
        let result = match self.wanted(updates).await {
            Ok(Wanted { found, missing }) => self.apply(found, updates).await.map(|()| missing),
            Err(error) => Err(error),
        };
        match result {
            Ok(missing) => {
                updates.failures = 0;
                if updates.failing.ends() {
                    info!(event = "host-network-exemptions-recovered", "the exemptions of pods in the node's network are up to date again");
                }
                if missing == 0 {
                    updates.looks = 0;
                    return CHECK_EVERY;
                }
                updates.looks = updates.looks.saturating_add(1);
                LOOK_AGAIN.pause(updates.looks - 1)
            }
            Err(error) => {
                self.metrics.exemptions_updated(false);
                if updates.failing.begins() {
                    error!(
                        event = "host-network-exemptions-failed", %error,
                        "cannot update which pods in the node's network reach the real metadata service; retrying, keeping the last state; \
                         new pods of --host-network-exempt, such as CNI plugins, are refused until then; check the daemon's \
                         capabilities, and that the node's cgroup2 file system is mounted in its container"
                    );
                } else {
                    debug!(%error, "still cannot update the exemptions of pods in the node's network");
                }
                updates.failures = updates.failures.saturating_add(1);
                spread(RETRY.pause(updates.failures - 1))
            }
        }
    }

    async fn wanted(&self, updates: &Updates) -> io::Result<Wanted> {
        let (rules, pods) = (self.pods.host_network_rules(), self.pods.in_host_network());
        let left_alone = pods.iter().filter(|pod| rules.treatment(pod).is_left_alone()).map(|pod| pod.uid_of_kubelet().to_owned());
        // The daemon may start before the API knows that it did.
        let uids: BTreeSet<String> = left_alone.chain(rules.own_uid().map(str::to_owned)).collect();
        let is_own_missing = rules.own_uid().is_none() && !pods.iter().any(|pod| rules.is_own(pod));
        if is_own_missing && updates.own_missing.begins() {
            warn!(
                event = "own-pod-not-exempt",
                "the daemon's own pod is not known, so its own requests may be redirected to itself; set POD_NAME and POD_NAMESPACE \
                 from metadata.name and metadata.namespace"
            );
        }
        let mut wanted = Wanted::default();
        for uid in uids {
            match self.cgroups.of_pod(&uid).await? {
                Some(id) => {
                    wanted.found.insert(id);
                }
                None => wanted.missing += 1,
            }
        }
        Ok(wanted)
    }

    async fn apply(&self, found: BTreeSet<CgroupId>, updates: &mut Updates) -> io::Result<()> {
        // Always called, even if nothing changed here: another daemon may have changed the kernel's list, which `exempt` compares with
        // this one. If it fails, `updates.applied` keeps its value.
        let (kernel, pods) = (self.kernel.clone(), found.clone());
        in_background(move || kernel.exempt(&pods)).await?;
        if updates.applied.as_ref() == Some(&found) {
            return Ok(());
        }
        self.metrics.exemptions_updated(true);
        self.metrics.exempt_pods(found.len());
        info!(
            event = "host-network-exemptions",
            pods = found.len(),
            "updated which pods in the node's network reach the real metadata service"
        );
        updates.applied = Some(found);
        Ok(())
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test says loudly what failed")]
mod tests;
