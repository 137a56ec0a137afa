//! A record of requests that were recently turned away, for the log and for `rolegate explain`.

use std::time::Duration;

use tracing::warn;

use super::waiter::{Member, RequestWaiter};
use crate::pods::index::Pod;
use crate::recent_refusals::{Recent, RecentRefusals as Recently};

/// Requests of one pod that were answered without waiting, or before the wait was over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TurnedAwayRequests {
    /// The number of requests.
    pub requests: u64,
    /// The time since the last of them.
    pub ago: Duration,
}

impl std::fmt::Display for TurnedAwayRequests {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let ago = humantime::format_duration(Duration::from_secs(self.ago.as_secs()));
        write!(
            f,
            "{} requests of this pod were answered without waiting for missing data, the last one {ago} ago (pod-wait-limit), because too \
             many requests of this pod or its namespace were waiting",
            self.requests
        )
    }
}

#[derive(Debug, Default)]
pub(super) struct WaitingRecord {
    all: u64,
    /// All unknown addresses share one entry (`None`), because they could be invented to fill the record and the log.
    of: Recently<Option<Member>>,
}

impl WaitingRecord {
    /// Counts a request that got no place or lost it. Logs it, at most once a minute per pod or address.
    pub(super) fn turned_away(&mut self, waiter: &RequestWaiter) {
        let Some(requests) = self.note(waiter) else { return };
        match waiter {
            RequestWaiter::Pod(pod) => warn!(
                event = "pod-wait-limit", namespace = %pod.namespace, pod = %pod.name, requests,
                "too many requests of this pod or its namespace are waiting for data from the Kubernetes API; answering some with the data \
                 at hand (they may be refused); check how often the pods of this namespace request credentials"
            ),
            RequestWaiter::Disputed(ip) => warn!(
                event = "pod-wait-limit", source = %ip, requests,
                "too many requests are waiting from addresses that several pods claim; refusing some immediately; look \
                 for request-refused and identity-objection of this source"
            ),
            RequestWaiter::HostNetwork(uid) => warn!(
                event = "pod-wait-limit", uid = %uid.0, requests,
                "too many requests are waiting from pods in the node's network that the Kubernetes API has not reported yet; refusing \
                 some immediately; check the connection to the API server"
            ),
            RequestWaiter::Unknown(ip, network) => warn!(
                event = "pod-wait-limit", source = %ip, %network, requests,
                "too many requests are waiting from addresses of no known pod; refusing some immediately; check which pod sends from this \
                 address: it may be forging source addresses"
            ),
        }
    }

    /// Records a request. Returns how many requests a log line should count, if one is due.
    fn note(&mut self, waiter: &RequestWaiter) -> Option<u64> {
        self.all += 1;
        self.of.note(waiter.known().ok().map(|(_, member)| member))
    }

    /// Returns how many requests were counted since the start.
    pub(super) fn all(&self) -> u64 {
        self.all
    }

    /// Returns the record of a pod and its addresses.
    pub(super) fn of(&self, pod: &Pod) -> Option<TurnedAwayRequests> {
        let members = std::iter::once(Member::Pod(pod.uid.clone())).chain(pod.ips.iter().map(|ip| Member::Disputed(*ip)));
        let recent = members.filter_map(|member| self.of.of(&Some(member)));
        recent.fold(None, |before, Recent { count, ago }| {
            let before = before.unwrap_or(TurnedAwayRequests { requests: 0, ago });
            Some(TurnedAwayRequests { requests: before.requests + count, ago: ago.min(before.ago) })
        })
    }
}

#[cfg(test)]
mod tests {
    use std::net::IpAddr;

    use super::*;
    use crate::log_once::LOG_EVERY;
    use crate::pods::Identifier;
    use crate::pods::tests::pod;
    use crate::recent_refusals::REMEMBERED;

    #[tokio::test(start_paused = true)]
    async fn each_pod_is_logged_once_a_minute_and_unknown_addresses_share_it() {
        let mut record = WaitingRecord::default();
        let (web, db) = (pod("web", "10.0.0.1"), pod("db", "10.0.0.2"));
        let mut note = |waiter: &RequestWaiter| record.note(waiter);
        let of = |pod: &Pod| RequestWaiter::Pod(std::sync::Arc::new(pod.clone()));
        assert_eq!([note(&of(&web)), note(&of(&web)), note(&of(&db))], [Some(1), None, Some(1)]);
        let disputed = RequestWaiter::Disputed(IpAddr::from([10, 0, 0, 1]));
        assert_eq!(note(&disputed), Some(1));
        let invented = (0..5000_u32).filter_map(|number| {
            note(&RequestWaiter::of(&Identifier::Address(IpAddr::from(number.to_be_bytes())), &crate::pods::Lookup::Unknown))
        });
        assert_eq!(invented.count(), 1);
        tokio::time::advance(LOG_EVERY).await;
        assert_eq!(note(&of(&web)), Some(2), "includes the request since the last line");
        assert_eq!(record.all(), 5 + 5000);
        assert_eq!(record.of(&web), Some(TurnedAwayRequests { requests: 4, ago: Duration::ZERO }), "includes those of its address");
        assert_eq!(record.of(&db), Some(TurnedAwayRequests { requests: 1, ago: LOG_EVERY }));
        assert_eq!(record.of(&pod("other", "10.0.0.3")), None);
        tokio::time::advance(REMEMBERED).await;
        assert_eq!(record.of(&web), None);
    }
}
