//! Logs the namespaces whose Events were dropped for lack of room.

use std::collections::HashSet;

use tracing::warn;

use crate::log_once::{EachKey, LOG_EVERY, WhenFull};
use crate::pods::Pod;
use crate::shares::Full;

/// The maximum number of remembered namespaces: more than have pods on a node.
const MAX_NAMESPACES: usize = 1024;

/// Recently dropped Events, by namespace.
#[derive(Debug)]
pub(super) struct DroppedEvents(EachKey<String>);

impl Default for DroppedEvents {
    fn default() -> Self {
        Self(EachKey::new(LOG_EVERY, MAX_NAMESPACES, WhenFull::ForgetAll))
    }
}

impl DroppedEvents {
    /// Counts a dropped Event on a pod, and logs it at most once a minute per namespace.
    pub(super) fn dropped(&mut self, pod: &Pod, why: Full) {
        let Some(events) = self.note(&pod.namespace) else { return };
        let (namespace, pod) = (&pod.namespace, &pod.name);
        match why {
            Full::Member => warn!(
                event = "event-dropped", %namespace, %pod, reason = "pod-limit", events,
                "pods of this namespace were refused for too many different reasons lately; dropping further Events on them; check what \
                 changes the annotations of this pod"
            ),
            Full::All => warn!(
                event = "event-dropped", %namespace, %pod, reason = "namespace-share", events,
                "too many Events on pods of this node, and this namespace has the most; dropping some of its Events; check the log for why \
                 its pods are refused"
            ),
        }
    }

    /// Counts a dropped Event. Returns the number of Events for the log line, if one is due.
    fn note(&mut self, namespace: &str) -> Option<u64> {
        self.0.count(namespace.to_owned())
    }

    /// Forgets namespaces that have no pods here.
    pub(super) fn retain(&mut self, namespaces: &HashSet<&str>) {
        self.0.retain(|namespace| namespaces.contains(&**namespace));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn each_namespace_is_logged_once_a_minute_while_it_has_pods() {
        let mut dropped = DroppedEvents::default();
        assert_eq!(["shop", "shop", "other"].map(|namespace| dropped.note(namespace)), [Some(1), None, Some(1)]);
        tokio::time::advance(LOG_EVERY).await;
        assert_eq!(dropped.note("shop"), Some(2), "includes the Event since the last line");
        dropped.retain(&HashSet::from(["other"]));
        assert_eq!((dropped.0.len(), dropped.note("shop")), (1, Some(1)));
    }
}
