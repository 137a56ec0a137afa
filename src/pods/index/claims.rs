//! Resolves the claims to an address, by the rules of [`super`].

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::Arc;

use super::named::Named;
use super::{Claims, Index, Pod, PodUid};
use crate::digest::Digest;

impl Index {
    /// Returns whether an address is the node's own.
    pub fn is_node(&self, ip: IpAddr) -> bool {
        self.node.contains(ip) || self.node.ips.is_empty() && self.host_ips.contains(&ip)
    }

    /// Returns which pods claim this address.
    pub fn by_ip(&self, ip: IpAddr) -> Claims {
        if self.is_node(ip) { Claims::None } else { self.claims(ip, self.by_ip.get(&ip)) }
    }

    /// Returns which pods claim this address, and whether the node's view of this generation was found to agree with that.
    pub(in crate::pods) fn by_ip_at(&self, ip: IpAddr, generation: u64) -> (Claims, bool) {
        if self.is_node(ip) {
            return (Claims::None, false);
        }
        let named = self.by_ip.get(&ip);
        let claims = self.claims(ip, named);
        // The view agreed with the only claim at that time. The claim can pass to another pod only through a change of the pods
        // that name the address, and each such change discards the agreement.
        let agrees = matches!(claims, Claims::One(_)) && named.is_some_and(|named| named.agrees_at(generation));
        (claims, agrees)
    }

    /// Records that the node's view of this generation agrees with the only claim to this address, or that no view does.
    pub(in crate::pods) fn set_agreed_at(&self, ip: IpAddr, generation: Option<u64>) {
        if let Some(named) = self.by_ip.get(&ip) {
            named.set_agreed_at(generation);
        }
    }

    fn claims(&self, ip: IpAddr, named: Option<&Named>) -> Claims {
        let named = named.map_or(&[][..], Named::uids);
        let readable = named.iter().filter_map(|uid| self.pods.get(uid)).map(|held| &held.pod);
        // A pod that has finished or begun to terminate stays so, even if the rest of its state cannot be read.
        let unreadable = self.unreadable.values().filter_map(|unreadable| unreadable.last.as_ref());
        let claims = readable.chain(unreadable).filter(|pod| pod.claims(ip, self.now));
        let (terminating, running): (Vec<_>, Vec<_>) = claims.partition(|pod| pod.terminating);
        let standing = match running.is_empty() {
            false => running,
            // The address may have been given to the pod that cannot be read.
            true if self.is_any_address_possible() => Vec::new(),
            true => terminating,
        };
        if let Some(pod) = standing.iter().find(|pod| self.unreadable.contains_key(&pod.uid)) {
            return Claims::Unreadable((*pod).clone());
        }
        match standing.as_slice() {
            [] => Claims::None,
            [pod] => Claims::One((*pod).clone()),
            pods => Claims::Ambiguous(pods.iter().map(|pod| (*pod).clone()).collect()),
        }
    }

    /// Returns the readable pod with this name, if it may have addresses and, where a UID is given, has this UID.
    pub(in crate::pods) fn that_may_claim(&self, uid: Option<Digest>, name: Digest) -> Option<Arc<Pod>> {
        let pod = &self.pods.get(self.by_name.get(&name)?)?.pod;
        let is_it = uid.is_none_or(|uid| uid == pod.uid.digest());
        (is_it && pod.may_claim(self.now)).then(|| pod.clone())
    }

    /// Returns whether the readable pod whose UID has this digest may have addresses. Checks all pods.
    pub(in crate::pods) fn may_claim(&self, uid: Digest) -> bool {
        self.with_addresses().any(|pod| pod.uid.digest() == uid)
    }

    /// Returns whether an unreadable pod may have any address. A pod that was terminating in its last readable state gets no
    /// new address.
    fn is_any_address_possible(&self) -> bool {
        let may_have_any = |last: &Arc<Pod>| last.may_claim(self.now) && !last.terminating && last.ips.is_empty();
        self.incomplete || self.unreadable.values().any(|unreadable| unreadable.last.as_ref().is_none_or(may_have_any))
    }

    /// Returns the addresses that more than one pod claims.
    pub fn ambiguous(&self) -> Vec<(IpAddr, Vec<Arc<Pod>>)> {
        let named_by_several = self.by_ip.iter().filter(|(_, named)| named.uids().len() > 1).map(|(ip, _)| *ip);
        let several = named_by_several.filter_map(|ip| match self.by_ip(ip) {
            Claims::Ambiguous(pods) => Some((ip, pods)),
            Claims::None | Claims::One(_) | Claims::Unreadable(_) => None,
        });
        several.collect()
    }

    /// Sets the addresses for which the API has confirmed the claims of several pods.
    pub fn set_confirmed(&mut self, confirmed: HashMap<IpAddr, Vec<PodUid>>) {
        self.confirmed = confirmed;
    }

    /// Returns whether the API has confirmed the claims of these pods.
    pub fn is_confirmed(&self, ip: IpAddr, pods: &[Arc<Pod>]) -> bool {
        let confirmed = self.confirmed.get(&ip);
        confirmed.is_some_and(|uids| uids.len() == pods.len() && pods.iter().all(|pod| uids.contains(&pod.uid)))
    }
}
