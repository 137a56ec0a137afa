//! Which protocols workloads use to get credentials, in bounded memory that namespaces share fairly.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use super::CredentialProtocol;
use super::places::{Counted, Places};
use super::workload::Workload;

/// The requests of a workload in one protocol.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct ProtocolUse {
    /// All requests, refused ones too.
    pub(super) requests: u64,
    /// The requests that were answered with credentials.
    pub(super) credentials: u64,
    /// When the last request came, since the beginning of the recording.
    pub(super) last: Duration,
}

/// What is counted for one workload.
#[derive(Clone, Debug, Default)]
struct WorkloadUse(Arc<SharedUse>);

#[derive(Debug, Default)]
struct SharedUse {
    /// In the order of [`CredentialProtocol::ALL`].
    by_protocol: [UseCounters; CredentialProtocol::ALL.len()],
    /// Whether the workload has lost its place: nothing that is counted here is reported any more.
    is_displaced: AtomicBool,
}

#[derive(Debug, Default)]
struct UseCounters {
    requests: AtomicU64,
    credentials: AtomicU64,
    /// Milliseconds since the beginning of the recording.
    last: AtomicU64,
}

/// Counts the requests of one workload in one protocol, without a lookup.
#[derive(Clone, Debug)]
pub(crate) struct UseMeter {
    shared: WorkloadUse,
    protocol: CredentialProtocol,
}

impl UseMeter {
    fn counters(&self) -> &UseCounters {
        &self.shared.0.by_protocol[self.protocol as usize]
    }

    fn requested(&self, now: Duration) {
        let UseCounters { requests, last, .. } = self.counters();
        requests.fetch_add(1, Ordering::Relaxed);
        last.store(u64::try_from(now.as_millis()).unwrap_or(u64::MAX), Ordering::Relaxed);
    }

    /// Counts a request that is answered with credentials. Returns whether the workload still has its place; if not, nothing is counted.
    pub(super) fn answered_at(&self, now: Duration) -> bool {
        let has_place = !self.shared.0.is_displaced.load(Ordering::Relaxed);
        if has_place {
            self.requested(now);
            self.counters().credentials.fetch_add(1, Ordering::Relaxed);
        }
        has_place
    }
}

/// The protocols in use, by workload.
#[derive(Debug, Default)]
pub(super) struct Uses {
    places: Places<WorkloadUse>,
}

impl Counted for WorkloadUse {
    fn total(&self) -> u64 {
        self.0.by_protocol.iter().map(|used| used.requests.load(Ordering::Relaxed)).sum()
    }

    fn displaced(&self) {
        self.0.is_displaced.store(true, Ordering::Relaxed);
    }
}

impl UseCounters {
    fn read(&self) -> ProtocolUse {
        // Counted after the request, so read before it: never more than the requests.
        let credentials = self.credentials.load(Ordering::Acquire);
        let requests = self.requests.load(Ordering::Acquire);
        let last = Duration::from_millis(self.last.load(Ordering::Relaxed));
        ProtocolUse { requests, credentials: credentials.min(requests), last }
    }
}

impl Uses {
    /// Counts a request.
    pub(super) fn requested(&mut self, workload: Workload, protocol: CredentialProtocol, now: Duration) {
        if let Some(shared) = self.places.enter(workload, 1).cloned() {
            UseMeter { shared, protocol }.requested(now);
        }
    }

    /// Returns what counts the requests of a workload; `None` if it has no place.
    pub(super) fn meter(&mut self, workload: &Workload, protocol: CredentialProtocol) -> Option<UseMeter> {
        let shared = self.places.known(workload)?.clone();
        Some(UseMeter { shared, protocol })
    }

    /// Counts that a request, which was counted before, was answered with credentials.
    pub(super) fn answered(&mut self, workload: Workload, protocol: CredentialProtocol) {
        // The workload may have lost its place meanwhile, and got another one.
        if let Some(meter) = self.meter(&workload, protocol) {
            let UseCounters { requests, credentials, .. } = meter.counters();
            if credentials.load(Ordering::Relaxed) < requests.load(Ordering::Relaxed) {
                credentials.fetch_add(1, Ordering::Release);
            }
        }
    }

    /// Returns the protocols that each workload used.
    pub(super) fn all(&self) -> Vec<(Workload, CredentialProtocol, ProtocolUse)> {
        let of = |(workload, WorkloadUse(shared)): (Workload, WorkloadUse)| {
            let uses = CredentialProtocol::ALL.into_iter().zip(shared.by_protocol.each_ref().map(UseCounters::read));
            let used = uses.filter(|(_, used)| used.requests > 0);
            used.map(move |((protocol, _), used)| (workload.clone(), protocol, used)).collect::<Vec<_>>()
        };
        self.places.all().into_iter().flat_map(of).collect()
    }

    /// Returns the number of requests that are not in [`Self::all`], because too many workloads sent some.
    pub(super) fn left_out(&self) -> u64 {
        self.places.left_out()
    }
}

#[cfg(test)]
mod tests {
    use super::super::places::MAX_WORKLOADS;
    use super::*;

    fn workload(namespace: &str, name: &str) -> Workload {
        Workload { namespace: namespace.into(), kind: "Deployment".into(), name: name.into() }
    }

    #[test]
    fn a_workload_has_a_count_for_each_protocol() {
        let (mut uses, web) = (Uses::default(), workload("shop", "web"));
        for second in 1..=3 {
            uses.requested(web.clone(), CredentialProtocol::Imdsv2, Duration::from_secs(second));
        }
        uses.answered(web.clone(), CredentialProtocol::Imdsv2);
        uses.requested(web.clone(), CredentialProtocol::PodIdentity, Duration::from_secs(9));
        uses.answered(workload("shop", "unheard-of"), CredentialProtocol::Imdsv1);
        let wanted = [
            (web.clone(), CredentialProtocol::Imdsv2, ProtocolUse { requests: 3, credentials: 1, last: Duration::from_secs(3) }),
            (web, CredentialProtocol::PodIdentity, ProtocolUse { requests: 1, credentials: 0, last: Duration::from_secs(9) }),
        ];
        assert_eq!(uses.all(), wanted);
    }

    #[test]
    fn a_flood_of_workloads_never_displaces_those_of_other_namespaces() {
        let (mut uses, web) = (Uses::default(), workload("shop", "web"));
        uses.requested(web.clone(), CredentialProtocol::Imdsv1, Duration::ZERO);
        for number in 0..2 * MAX_WORKLOADS {
            uses.requested(workload("hostile", &number.to_string()), CredentialProtocol::Imdsv2, Duration::ZERO);
        }
        let all = uses.all();
        assert!(all.iter().any(|(workload, ..)| *workload == web));
        assert_eq!((all.len(), uses.left_out()), (MAX_WORKLOADS, MAX_WORKLOADS as u64 + 1));
    }
}
