//! The workload of a pod: what an operator calls it, and what stays when its pods are replaced.

use super::clean::is_kind;
use crate::pods::{Pod, PodOwner};
use crate::text::is_object_name;

/// The characters of the hash in the name of a ReplicaSet (`SafeEncodeString` of Kubernetes `apimachinery`).
const HASH: &str = "bcdfghjklmnpqrstvwxz2456789";
/// The longest hash: the digits of a 32-bit number.
const MAX_HASH: usize = 10;
/// The fewest digits in which the name of a CronJob's Job ends: the minutes since 1970.
const MIN_MINUTES: usize = 8;
/// The kind of a pod that no controller manages.
const BARE: &str = "Pod";

/// The pods of one controller.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct Workload {
    /// The namespace.
    pub(crate) namespace: Box<str>,
    /// The kind.
    pub(crate) kind: Box<str>,
    /// The name.
    pub(crate) name: Box<str>,
}

impl Workload {
    /// Returns the workload of a pod on this node. An owner whose kind or name has not the form of one counts as none: whoever
    /// creates a pod may write anything there.
    pub(super) fn of(pod: &Pod, node: &str) -> Self {
        let owner = pod.owner.as_deref().filter(|owner| is_kind(&owner.kind) && is_object_name(&owner.name));
        let (kind, name) = owner.map_or((BARE, &*pod.name), |owner| controller(owner, &pod.name, node));
        Self { namespace: pod.namespace.as_str().into(), kind: kind.into(), name: name.into() }
    }
}

/// Returns the kind and the name of the controller that stays when pods are replaced.
fn controller<'a>(PodOwner { kind, name }: &'a PodOwner, pod: &'a str, node: &str) -> (&'a str, &'a str) {
    let split = name.rsplit_once('-').filter(|(head, _)| !head.is_empty());
    match (&**kind, split) {
        ("ReplicaSet", Some((deployment, hash))) if (1..=MAX_HASH).contains(&hash.len()) && hash.chars().all(|c| HASH.contains(c)) => {
            ("Deployment", deployment)
        }
        ("Job", Some((cron_job, minutes))) if minutes.len() >= MIN_MINUTES && minutes.bytes().all(|byte| byte.is_ascii_digit()) => {
            ("CronJob", cron_job)
        }
        // The kubelet names a static pod after its node.
        ("Node", _) => {
            (BARE, pod.strip_suffix(node).and_then(|rest| rest.strip_suffix('-')).filter(|name| !name.is_empty()).unwrap_or(pod))
        }
        _ => (kind, name),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn workload(pod: &str, owner: Option<(&str, &str)>) -> String {
        let owner = owner.map(|(kind, name)| Box::new(PodOwner { kind: kind.into(), name: name.into() }));
        let Workload { namespace, kind, name } = Workload::of(&Pod { owner, ..Pod::for_test("shop", pod) }, "node-a.internal");
        assert_eq!(&*namespace, "shop");
        format!("{kind}/{name}")
    }

    #[test]
    fn a_workload_is_what_stays_when_pods_are_replaced() {
        for (pod, kind, owner, wanted) in [
            ("web-7d4b9c6f5-x2x9z", "ReplicaSet", "web-7d4b9c6f5", "Deployment/web"),
            ("web-x2x9z", "ReplicaSet", "web-blue", "ReplicaSet/web-blue"),
            ("web-x2x9z", "ReplicaSet", "web", "ReplicaSet/web"),
            ("db-0", "StatefulSet", "db", "StatefulSet/db"),
            ("agent-x", "DaemonSet", "agent", "DaemonSet/agent"),
            ("import-x", "Job", "import-2024", "Job/import-2024"),
            ("night-x", "Job", "night-29012345", "CronJob/night"),
            ("proxy-node-a.internal", "Node", "node-a.internal", "Pod/proxy"),
            ("flow-1", "Workflow", "flow", "Workflow/flow"),
        ] {
            assert_eq!(workload(pod, Some((kind, owner))), wanted);
        }
        assert_eq!(workload("bare", None), "Pod/bare");
    }

    #[test]
    fn an_owner_that_is_no_name_counts_as_none() {
        for (kind, name) in [("Set\nX", "a"), ("Set", "a\u{1b}[31m"), ("", ""), ("Set", "=1+1"), ("ReplicaSet", &"x".repeat(300))] {
            assert_eq!(workload("bare", Some((kind, name))), "Pod/bare", "{kind:?} {name:?}");
        }
    }
}
