//! Compares two witnesses: the API's claims to an address, and what the node itself sees.
//!
//! The API says which pod has an address. It may be out of date or unreachable, and anyone who may write pods' status can forge
//! its claims. The node sees which link leads to the address, and what the CNI plugins recorded. If the two contradict each
//! other, no pod is served. If the CNI record names a pod that the API knows on this node, the record decides.

use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI64, Ordering};
use std::time::Duration;

use jiff::Timestamp;

use super::index::{Claims, Index, Pod};
use super::pins::{Comparison, Pins};
use crate::digest::Digest;
use crate::links::Link;
use crate::links::witness::{Attached, Sight, Witness};

/// How long after a pod's network namespace the interface that leads to it may appear. The interface is created with the
/// namespace; the remainder allows for the kernel's notification, which may be read late.
const INTERFACE_DELAY: Duration = Duration::from_secs(30);

/// The reason why the claim of a pod to an address is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Objection {
    /// A link other than the pinned one leads to the address, or none does.
    LinkChanged,
    /// A CNI result assigns the address to another pod.
    OtherPodAttached,
    /// All known containers of the pod started before the node's last boot.
    BeforeBoot,
    /// The API has been silent for too long, and the node itself does not confirm the claim.
    Stale,
    /// The process that connected from the address is in the control group of another pod.
    OtherPodConnected,
    /// A process of the pod connected from the node's network, and the pod is not in that network.
    NotInHostNetwork,
}

impl Objection {
    /// Returns the stable name: a metric's label, and the reason in the log.
    pub fn name(self) -> &'static str {
        match self {
            Self::LinkChanged => "link-changed",
            Self::OtherPodAttached => "cni-result-conflict",
            Self::BeforeBoot => "before-boot",
            Self::Stale => "api-stale",
            Self::OtherPodConnected => "cgroup-conflict",
            Self::NotInHostNetwork => "not-in-host-network",
        }
    }
}

/// The node's own knowledge of its pods.
#[derive(Debug)]
pub(super) struct NodeWitness {
    witness: Arc<dyn Witness>,
    pins: Pins,
    /// The time of the node's last boot, in seconds since 1970, rounded down; `i64::MIN` if it is not known.
    booted: AtomicI64,
    /// Whether the API has been silent for longer than the operator allows.
    stale: AtomicBool,
}

/// What the node sees at an address, and the generation of that view.
#[derive(Debug)]
pub(super) struct AddressView {
    generation: u64,
    sight: Sight,
}

/// An address as judged by both witnesses.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Judged {
    /// The API's claims stand.
    Claims(Claims),
    /// The API assigns the address to this pod, and the node's view contradicts that.
    Objected(Arc<Pod>, Objection),
}

impl NodeWitness {
    pub(super) fn new(witness: Arc<dyn Witness>, booted: Option<Timestamp>) -> Self {
        let booted = AtomicI64::new(booted.map_or(i64::MIN, Timestamp::as_second));
        Self { witness, pins: Pins::default(), booted, stale: AtomicBool::new(false) }
    }

    pub(super) fn witness(&self) -> &Arc<dyn Witness> {
        &self.witness
    }

    pub(super) fn pins(&self) -> &Pins {
        &self.pins
    }

    pub(super) fn set_stale(&self, stale: bool) {
        self.stale.store(stale, Ordering::Relaxed);
    }

    /// Returns the result if nothing has changed since the last comparison, or if the node's view cannot change it.
    pub(super) fn known(&self, index: &Index, ip: IpAddr) -> Option<Judged> {
        let (claims, agrees) = index.by_ip_at(ip, self.witness.generation());
        let is_known = match &claims {
            Claims::One(_) => agrees && !self.is_stale(),
            // Nothing that the node sees makes a pod readable, or gives it one of the node's addresses.
            Claims::Unreadable(_) => true,
            Claims::None => index.is_node(ip) || !self.witness.has_record(ip),
            Claims::Ambiguous(_) => false,
        };
        is_known.then_some(Judged::Claims(claims))
    }

    /// Returns what the node sees at an address. It may query the kernel, so do not lock the index meanwhile.
    pub(super) fn view(&self, ip: IpAddr) -> AddressView {
        // Read first, so that a change during the comparison makes its generation outdated.
        let generation = self.witness.generation();
        AddressView { generation, sight: self.witness.at(ip) }
    }

    /// Returns whether nothing has changed since the view was taken.
    pub(super) fn is_current(&self, view: &AddressView) -> bool {
        self.witness.generation() == view.generation
    }

    /// Compares what the API says about an address with what the node sees there.
    pub(super) fn judge(&self, index: &Index, ip: IpAddr, AddressView { generation, sight }: &AddressView) -> Judged {
        let claims = index.by_ip(ip);
        if matches!(claims, Claims::Unreadable(_)) || index.is_node(ip) {
            return Judged::Claims(claims);
        }
        let claimant = if let Claims::One(pod) = &claims { Some(pod.clone()) } else { None };
        let (claims, expected) = match compare(index, claims, &sight.attached, ip) {
            Ok(compared) => compared,
            Err(pod) => return Judged::Objected(pod, Objection::OtherPodAttached),
        };
        let Claims::One(pod) = claims else {
            return Judged::Claims(claims);
        };
        let booted = self.booted.load(Ordering::Relaxed);
        if expected.is_none() && pod.sandbox.started.is_some_and(|started| started.as_second() < booted) {
            return Judged::Objected(pod, Objection::BeforeBoot);
        }
        // Another living pod's own link leads to the address: the API is behind, or a pod's status was forged.
        if expected.is_none()
            && let Some(link) = sight.link
            && self.pins.is_of_another(&pod.uid, link, |uid| index.may_claim(uid))
        {
            return Judged::Objected(pod, Objection::LinkChanged);
        }
        // The interface is younger than the pod's network: the API is behind, and the address belongs to the next pod.
        if expected.is_none() && !self.pins.has(&pod.uid, ip) && self.is_younger(sight, &pod) {
            return Judged::Objected(pod, Objection::LinkChanged);
        }
        // The address may have changed hands since the last contact with the API.
        if self.is_stale() && expected.is_none() && !self.pins.is_exclusive(&pod.uid, ip) {
            return Judged::Objected(pod, Objection::Stale);
        }
        let is_port = |bridge, port| self.witness.is_port(bridge, port);
        let comparison = self.pins.compare(&pod, ip, sight.link, expected, is_port);
        // If the node's record decides for another pod, the claim is compared each time.
        if claimant.is_some_and(|claimant| claimant.uid == pod.uid) {
            index.set_agreed_at(ip, (comparison == Comparison::Same).then_some(*generation));
        }
        match comparison {
            Comparison::Changed => Judged::Objected(pod, Objection::LinkChanged),
            Comparison::Same => Judged::Claims(Claims::One(pod)),
        }
    }

    /// Returns whether the interface that leads to a pod's address appeared well after the pod's network namespace. Both times
    /// are by the node's clock; returns false if either is not known.
    fn is_younger(&self, sight: &Sight, pod: &Pod) -> bool {
        let booted = self.booted.load(Ordering::Relaxed);
        let (Some(appeared), Some(since)) = (sight.appeared, pod.sandbox.since) else { return false };
        let seconds = |time: Duration| i64::try_from(time.as_secs()).unwrap_or(i64::MAX);
        booted != i64::MIN && booted.saturating_add(seconds(appeared)) > since.as_second().saturating_add(seconds(INTERFACE_DELAY))
    }

    /// Sets the time of the node's last boot by its current clock. If the clock was ahead when the process started, it has been
    /// corrected since, so the earliest time is kept.
    pub(super) fn booted_at(&self, booted: Timestamp) {
        self.booted.fetch_min(booted.as_second(), Ordering::Relaxed);
    }

    pub(super) fn is_stale(&self) -> bool {
        self.stale.load(Ordering::Relaxed)
    }
}

/// Returns the claims to an address, corrected by the CNI results for it, and the link that a result names for the pod. The error
/// is the pod that the API names, if the results name another pod to which the API does not assign the address.
fn compare(index: &Index, claims: Claims, attached: &[Attached], ip: IpAddr) -> Result<(Claims, Option<Link>), Arc<Pod>> {
    // A result that names the same pod as the API confirms it, whatever other results are left over.
    if let Claims::One(pod) = &claims
        && let Some(attached) = attached.iter().find(|attached| pod.is_recorded(&attached.pod))
    {
        return Ok((claims, Some(attached.link)));
    }
    // A result with the same name and another UID is no evidence, because runtimes and the API use different UIDs for a static
    // pod.
    let is_named_alike = |attached: &&Attached| match &claims {
        Claims::One(pod) => attached.pod.name == Digest::of_pod(&pod.namespace, &pod.name),
        Claims::None | Claims::Ambiguous(_) | Claims::Unreadable(_) => false,
    };
    let mut attached = attached.iter().filter(|attached| !is_named_alike(attached));
    // More than one result is no evidence either, because some are left over from earlier pods.
    let (Some(attached), None) = (attached.next(), attached.next()) else {
        return Ok((claims, None));
    };
    if let Claims::Ambiguous(pods) = &claims
        && let Some(pod) = pods.iter().find(|pod| pod.is_recorded(&attached.pod))
    {
        return Ok((Claims::One(pod.clone()), Some(attached.link)));
    }
    let known = index.that_may_claim(attached.pod.uid, attached.pod.name);
    // The kubelet reports a pod's address later than the CNI plugin records it.
    if let Some(pod) = known.filter(|pod| pod.ips.is_empty() || pod.ips.contains(&ip)) {
        return Ok((Claims::One(pod), Some(attached.link)));
    }
    match claims {
        Claims::One(pod) => Err(pod),
        claims => Ok((claims, None)),
    }
}

#[cfg(test)]
mod tests;
