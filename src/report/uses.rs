//! Which protocols workloads use to get credentials, in bounded memory that namespaces share fairly.

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

/// What a workload used, in the order of [`CredentialProtocol::ALL`].
type ByProtocol = [ProtocolUse; CredentialProtocol::ALL.len()];

/// The protocols in use, by workload.
#[derive(Debug, Default)]
pub(super) struct Uses {
    places: Places<ByProtocol>,
}

impl Counted for ByProtocol {
    fn total(&self) -> u64 {
        self.iter().map(|used| used.requests).sum()
    }
}

impl Uses {
    /// Counts a request.
    pub(super) fn requested(&mut self, workload: Workload, protocol: CredentialProtocol, now: Duration) {
        if let Some(uses) = self.places.enter(workload, 1) {
            let used = &mut uses[protocol as usize];
            (used.requests, used.last) = (used.requests.saturating_add(1), now);
        }
    }

    /// Counts that a request, which was counted before, was answered with credentials.
    pub(super) fn answered(&mut self, workload: Workload, protocol: CredentialProtocol) {
        if let Some(entered) = self.places.known(&workload) {
            let used = &mut entered[protocol as usize];
            // The workload may have lost its place meanwhile, and got another one.
            used.credentials = used.credentials.saturating_add(1).min(used.requests);
        }
    }

    /// Returns the protocols that each workload used.
    pub(super) fn all(&self) -> Vec<(Workload, CredentialProtocol, ProtocolUse)> {
        let of = |(workload, uses): (Workload, ByProtocol)| {
            let used = CredentialProtocol::ALL.into_iter().zip(uses).filter(|(_, used)| used.requests > 0);
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
