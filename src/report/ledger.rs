//! The findings of requests, in bounded memory that namespaces share fairly.
//!
//! A workload has one place, and a limit for each kind of finding. What a pod sends can fill the places of its own workload
//! alone.

use std::time::Duration;

use super::places::{Counted, Places};
use super::workload::Workload;
use crate::policy::Denial;

/// The subject of findings of one kind that are over its limit.
const OTHERS: &str = "(others)";

/// What was found in a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Noted {
    /// No session token; the subject is the client.
    WithoutToken,
    /// Metadata of this set; the subject is the path.
    Metadata(&'static str),
    /// A role that namespace restrictions would refuse; the subject is its ARN.
    Role(Denial),
    /// A role that is refused; the subject is its ARN, or the text that names it.
    Denied(Denial),
    /// Another refusal with this reason; the subject is what was asked for.
    Refused(&'static str),
    /// A pod in the node's network connected to the real metadata service; the subject is the item that would exempt it.
    UsesNodeRole,
}

impl Noted {
    /// How many findings of the same kind a workload may have.
    fn most(self) -> usize {
        match self {
            Self::WithoutToken | Self::Role(_) | Self::Denied(_) | Self::UsesNodeRole => 4,
            Self::Metadata(_) => 16,
            Self::Refused(_) => 8,
        }
    }
}

/// The requests with one finding.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Tally {
    pub(super) noted: Noted,
    pub(super) subject: Box<str>,
    pub(super) count: u64,
    /// When the last one came, since the beginning of the recording.
    pub(super) last: Duration,
}

/// The findings by workload.
#[derive(Debug, Default)]
pub(super) struct Ledger {
    places: Places<Vec<Tally>>,
}

impl Counted for Vec<Tally> {
    fn total(&self) -> u64 {
        self.iter().map(|tally| tally.count).sum()
    }
}

impl Ledger {
    /// Counts a finding that `count` requests or connections showed.
    pub(super) fn note(&mut self, workload: Workload, noted: Noted, subject: &str, count: u64, now: Duration) {
        let Some(tallies) = self.places.enter(workload, count) else { return };
        let is_same_kind = |tally: &Tally| std::mem::discriminant(&tally.noted) == std::mem::discriminant(&noted);
        let is_known = tallies.iter().any(|tally| tally.noted == noted && *tally.subject == *subject);
        let of_kind = tallies.iter().filter(|tally| is_same_kind(tally) && *tally.subject != *OTHERS).count();
        let (is_same, subject): (&dyn Fn(&Tally) -> bool, &str) = if is_known || of_kind < noted.most() {
            (&|tally| tally.noted == noted && *tally.subject == *subject, subject)
        } else {
            (&|tally| is_same_kind(tally) && *tally.subject == *OTHERS, OTHERS)
        };
        match tallies.iter_mut().find(|tally| is_same(tally)) {
            Some(tally) => (tally.count, tally.last) = (tally.count.saturating_add(count), now),
            None => tallies.push(Tally { noted, subject: subject.into(), count, last: now }),
        }
    }

    /// Returns all findings.
    pub(super) fn all(&self) -> Vec<(Workload, Vec<Tally>)> {
        self.places.all()
    }

    /// Returns how many findings are not kept because too many workloads had some.
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

    fn subjects(ledger: &Ledger, of: &Workload) -> Vec<(String, u64)> {
        let all = ledger.all();
        let tallies = all.iter().find(|(workload, _)| workload == of).map(|(_, tallies)| tallies.clone()).unwrap_or_default();
        tallies.into_iter().map(|tally| (tally.subject.into(), tally.count)).collect()
    }

    #[test]
    fn one_workload_fills_only_its_own_limits() {
        let (mut ledger, own) = (Ledger::default(), workload("shop", "web"));
        ledger.note(own.clone(), Noted::Metadata("node-info"), "meta-data/mac", 1, Duration::ZERO);
        for number in 0..1000 {
            ledger.note(own.clone(), Noted::WithoutToken, &format!("client/{number}"), 1, Duration::from_secs(number));
        }
        ledger.note(own.clone(), Noted::WithoutToken, "client/0", 1, Duration::from_secs(1000));
        let wanted = [("meta-data/mac", 1), ("client/0", 2), ("client/1", 1), ("client/2", 1), ("client/3", 1), (OTHERS, 996)];
        assert_eq!(subjects(&ledger, &own), wanted.map(|(subject, count)| (subject.to_owned(), count)));
        assert_eq!(ledger.left_out(), 0);
    }

    #[test]
    fn a_flood_of_workloads_never_displaces_those_of_other_namespaces() {
        let mut ledger = Ledger::default();
        for number in 0..40 {
            ledger.note(workload("shop", &format!("w{number}")), Noted::WithoutToken, "curl/8", 1, Duration::ZERO);
        }
        for number in 0..3 * MAX_WORKLOADS {
            ledger.note(workload("hostile", &format!("w{number}")), Noted::WithoutToken, "curl/8", 1, Duration::ZERO);
        }
        let all = ledger.all();
        assert_eq!(all.iter().filter(|(workload, _)| &*workload.namespace == "shop").count(), 40);
        assert_eq!(all.len(), MAX_WORKLOADS);
        assert_eq!(ledger.left_out(), (2 * MAX_WORKLOADS + 40) as u64);
        ledger.note(workload("late", "w"), Noted::WithoutToken, "curl/8", 1, Duration::ZERO);
        assert_eq!(subjects(&ledger, &workload("late", "w")).len(), 1);
    }

    #[test]
    fn refusals_with_other_reasons_are_counted_apart() {
        let (mut ledger, own) = (Ledger::default(), workload("shop", "web"));
        ledger.note(own.clone(), Noted::Denied(Denial::NotAllowedOnNode), "role", 1, Duration::ZERO);
        ledger.note(own.clone(), Noted::Denied(Denial::NodeRole), "role", 1, Duration::ZERO);
        ledger.note(own.clone(), Noted::Refused("path"), "user-data", 1, Duration::ZERO);
        assert_eq!(ledger.all()[0].1.len(), 3);
    }
}
