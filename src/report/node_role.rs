//! Records which pods in the node's network use the real metadata service, which gives out the node's role. The kernel's programs count
//! their connections by control group.
//!
//! Only pods that would lose the node's role with another `--host-network-pods` are recorded: none that `--host-network-exempt` names,
//! and not the daemon's own.

use std::collections::HashMap;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use tracing::{debug, info, warn};

use super::recorder::Recorder;
use crate::cgroup::{CgroupId, PassedConnections, PodCgroups, in_background};
use crate::config::ExemptPods;
use crate::log_once::Condition;
use crate::pods::{HostNetworkTreatment, Pod, Pods};

/// How often the counts are read. A pod that ends sooner than that after its connection is missed.
const READ_EVERY: Duration = Duration::from_secs(2);

/// Follows the counts of the kernel's programs.
#[derive(Debug)]
pub(crate) struct NodeRoleUse {
    /// The pods of this node.
    pub(crate) pods: Pods,
    /// Their control groups.
    pub(crate) cgroups: PodCgroups,
    /// The kernel's counts.
    pub(crate) kernel: Arc<dyn PassedConnections>,
    /// Receives what was found.
    pub(crate) recorder: Recorder,
}

impl NodeRoleUse {
    /// Runs until the process ends.
    pub(crate) async fn run(self) {
        let (mut recorded, failing) = (HashMap::new(), Condition::default());
        loop {
            match self.record(&mut recorded).await {
                Ok(()) if failing.ends() => {
                    info!(event = "node-role-use-recovered", "the use of the node's role by pods is recorded again");
                }
                Ok(()) => {}
                Err(error) if failing.begins() => warn!(
                    event = "node-role-use-unreadable", %error,
                    "cannot read which pods in the node's network use the node's role, so the migration report may lack some; retrying; \
                     check the daemon's capabilities, and that the node's cgroup2 file system is mounted in its container"
                ),
                Err(error) => debug!(%error, "still cannot read which pods in the node's network use the node's role"),
            }
            tokio::time::sleep(READ_EVERY).await;
        }
    }

    /// Records the connections that are new. `recorded` has the counts that were recorded already.
    async fn record(&self, recorded: &mut HashMap<CgroupId, u64>) -> io::Result<()> {
        let pods = self.that_use_the_node_role();
        if pods.is_empty() {
            return Ok(());
        }
        let kernel = self.kernel.clone();
        let passed = in_background(move || kernel.passed()).await?;
        // The kernel forgets pods that have been idle for long.
        recorded.retain(|pod, _| passed.contains_key(pod));
        if passed.iter().all(|(pod, count)| recorded.get(pod) == Some(count)) {
            return Ok(());
        }
        for (pod, exempt_as) in pods {
            let Some(id) = self.cgroups.of_pod(pod.uid_of_kubelet()).await? else { continue };
            let count = passed.get(&id).copied().unwrap_or_default();
            let former = recorded.insert(id, count).filter(|former| *former <= count).unwrap_or_default();
            if count > former {
                self.recorder.used_node_role(&pod, exempt_as, count - former);
            }
        }
        Ok(())
    }

    /// Returns the pods that may use the node's role only because the settings leave all pods in the node's network alone, and the item of
    /// `--host-network-exempt` that would name each.
    fn that_use_the_node_role(&self) -> Vec<(Arc<Pod>, String)> {
        let rules = self.pods.host_network_rules();
        let is_one = |pod: &Arc<Pod>| rules.treatment(pod) == HostNetworkTreatment::Ignored && rules.exemption(pod).is_none();
        self.pods.in_host_network().into_iter().filter(is_one).map(|pod| (pod.clone(), exemption_of(&pod))).collect()
    }
}

/// Returns the item of `--host-network-exempt` that names the pod and as few others as possible.
fn exemption_of(pod: &Pod) -> String {
    ExemptPods::naming(&pod.namespace, &pod.service_account, pod.static_uid.is_some()).to_string()
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test says loudly what failed")]
mod tests;
