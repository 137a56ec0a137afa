//! What is kept of an attachment, in as little as it takes: there is one record for each address of a pod. One with more than
//! two interfaces has several.

use std::cmp::Reverse;
use std::net::IpAddr;

use jiff::Timestamp;

use super::attachment::Attachment;
use crate::digest::Digest;
use crate::sorted::Keyed;

/// That a pod has an address by a result file. Names are kept as digests alone, which are compared with those of the pods and
/// interfaces that are there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AttachmentRecord {
    pub(super) ip: Digest,
    pub(super) file: Digest,
    uid: Option<Digest>,
    pod: Digest,
    interfaces: [Option<Digest>; 2],
    written: u64,
    mac: Option<[u8; 6]>,
    /// Which interfaces these are: the first two of the attachment, the next two and so on.
    part: u8,
}

impl Keyed for AttachmentRecord {
    /// The one of an address that was written last comes first.
    type Key = (Digest, Reverse<u64>, Digest, u8);

    fn key(&self) -> Self::Key {
        (self.ip, Reverse(self.written), self.file, self.part)
    }
}

impl AttachmentRecord {
    /// The records of an attachment.
    pub(super) fn all_of(file: Digest, attachment: &Attachment) -> Vec<Self> {
        let Attachment { namespace, pod, uid, host_interfaces, ips, mac, written } = attachment;
        let (uid, pod) = (uid.as_ref().map(Digest::of_name), Digest::of_pod(namespace, pod));
        let mut parts: Vec<[Option<Digest>; 2]> =
            host_interfaces.chunks(2).map(|names| [names.first(), names.get(1)].map(|name| name.map(Digest::of_name))).collect();
        if parts.is_empty() {
            parts.push([None; 2]);
        }
        let of_ip = |ip: &IpAddr| {
            let ip = Digest::of_ip(*ip);
            let record = move |(part, interfaces)| Self { ip, file, uid, pod, interfaces, written: *written, mac: *mac, part };
            (0..).zip(parts.clone()).map(record)
        };
        ips.iter().flat_map(of_ip).collect()
    }

    /// The digest of the name of the file, which is the same for all records of an attachment.
    pub fn file(&self) -> Digest {
        self.file
    }

    /// The digest of the pod's UID ([`Digest::of_name`]), as the runtime knows it; `None` where it does not pass it on.
    pub fn uid(&self) -> Option<Digest> {
        self.uid
    }

    /// The digest of the pod's namespace and name ([`Digest::of_pod`]).
    pub fn pod(&self) -> Digest {
        self.pod
    }

    /// The digests of the names of the node's interfaces that the plugins created or used ([`Digest::of_name`]).
    pub fn host_interfaces(&self) -> impl Iterator<Item = Digest> {
        self.interfaces.into_iter().flatten()
    }

    /// The hardware address of the pod's own interface; `None` where the plugin does not say.
    pub fn mac(&self) -> Option<[u8; 6]> {
        self.mac
    }

    /// When the file was last written: when the pod was attached, by the node's clock.
    pub fn written(&self) -> Timestamp {
        Timestamp::from_nanosecond(i128::from(self.written)).unwrap_or(Timestamp::MAX)
    }

    pub(super) fn age(&self) -> u64 {
        self.written
    }
}

#[cfg(test)]
#[test]
fn a_record_is_small() {
    assert_eq!(size_of::<AttachmentRecord>(), 64);
}
