//! The node's own view of its pods: the kernel's links combined with the CNI results.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use tokio::sync::watch;

use super::cni::{AttachmentRecord, Results};
use super::witness::{Attached, RecordedPod, Sight, Witness};
use super::{Link, LinkKind, Links};

/// The minimum interval between two announcements. Each one wakes all waiting tasks, and pods can cause changes without end.
const ANNOUNCEMENT_INTERVAL: Duration = Duration::from_millis(20);

/// The node's view of its pods; cheap to clone.
#[derive(Clone, Debug)]
pub struct NodeView {
    links: Links,
    results: Results,
    /// The time of the node's last boot; `None` if it is not known.
    booted: Option<Timestamp>,
    changed: Arc<watch::Sender<u64>>,
}

impl NodeView {
    /// Creates a view of these two. CNI results from before `booted` are left over from before the node's last boot.
    pub fn new(links: Links, results: Results, booted: Option<Timestamp>) -> Self {
        Self { links, results, booted, changed: Arc::new(watch::Sender::new(0)) }
    }

    /// Announces changes for the lifetime of the process: the first change at once, and always the last one. Those in between
    /// are announced together.
    pub async fn keep(self) {
        let (mut links, mut results) = (self.links.changes(), self.results.changes());
        loop {
            // If one source has ended, the other one still sends changes.
            tokio::select! {
                Ok(()) = links.changed() => {}
                Ok(()) = results.changed() => {}
                else => std::future::pending::<()>().await,
            }
            self.changed.send_replace(self.generation());
            // Further changes are announced after this pause.
            tokio::time::sleep(ANNOUNCEMENT_INTERVAL).await;
        }
    }

    /// Returns the link that a result names for its pod, if that link exists and `seen` leads to it. Otherwise, the result is a
    /// leftover of a deleted pod and proves nothing.
    fn link_of(&self, attachment: &AttachmentRecord, seen: Link) -> Option<Link> {
        if self.booted.is_some_and(|booted| attachment.written() < booted) {
            return None;
        }
        let mut interfaces = attachment.host_interfaces().filter_map(|name| self.links.named(name));
        match seen.kind {
            LinkKind::Own => interfaces.any(|interface| interface == seen.interface).then_some(seen),
            LinkKind::Bridge { moved, .. } => {
                let port = interfaces.find(|interface| self.is_port(seen.interface, *interface))?;
                let kind = LinkKind::Bridge { mac: attachment.mac(), port: Some(port), moved };
                Some(Link { interface: seen.interface, kind })
            }
            // The kernel's route does not distinguish pods, but the interface of this pod exists.
            LinkKind::Shared => {
                interfaces.any(|interface| self.links.is_free_pair(interface) && interface != seen.interface).then_some(seen)
            }
        }
    }
}

impl Witness for NodeView {
    fn generation(&self) -> u64 {
        // Both only grow, so their sum changes with each of them.
        self.links.generation().wrapping_add(self.results.generation())
    }

    fn at(&self, ip: IpAddr) -> Sight {
        let link = self.links.of(ip).link();
        let mut last = None;
        let records = self.results.of(ip);
        let attached = records.iter().filter_map(|record| {
            // An attachment with many interfaces has several consecutive records.
            if last == Some(record.file()) {
                return None;
            }
            let link = self.link_of(record, link?)?;
            last = Some(record.file());
            Some(Attached { pod: record.pod(), link })
        });
        Sight { link, appeared: link.and_then(|link| self.links.appeared(link)), attached: attached.collect() }
    }

    fn has_record(&self, ip: IpAddr) -> bool {
        self.results.look(ip, |attachments| !attachments.is_empty())
    }

    fn recorded(&self, ip: IpAddr) -> Vec<RecordedPod> {
        self.results.look(ip, |attachments| attachments.iter().map(AttachmentRecord::pod).collect())
    }

    fn behind(&self, ip: IpAddr) -> Option<u32> {
        self.links.behind(ip)
    }

    fn is_port(&self, bridge: u32, port: u32) -> bool {
        self.links.master_of(port) == Some(bridge)
    }

    fn keep(&self, is_kept: &dyn Fn(IpAddr) -> bool) {
        self.links.keep_only(is_kept);
    }

    fn remove_leftovers(&self, is_over: &dyn Fn(IpAddr, u32) -> bool) {
        self.links.remove_leftovers(&|ip, port| !self.has_record(ip) && is_over(ip, port));
    }

    fn has_records(&self) -> bool {
        self.results.count() > 0
    }

    fn has_bridges(&self) -> bool {
        self.links.has_bridges()
    }

    fn catch_up(&self) {
        self.links.catch_up();
    }

    fn changes(&self) -> watch::Receiver<u64> {
        self.changed.subscribe()
    }
}
