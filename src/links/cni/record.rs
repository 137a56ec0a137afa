//! A compact form of an attachment: one record for each address of a pod. An attachment with more than two interfaces has
//! several records per address.

use std::cmp::Reverse;
use std::net::IpAddr;

use jiff::Timestamp;

use super::attachment::Attachment;
use crate::digest::Digest;
use crate::sorted::Keyed;

/// A pod as a CNI result names it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RecordedPod {
    /// The digest of the pod's UID ([`Digest::of_name`]); runtimes before 2021 do not record it.
    pub uid: Option<Digest>,
    /// The digest of the pod's namespace and name ([`Digest::of_pod`]).
    pub name: Digest,
}

/// Records that a result file assigns an address to a pod. Names are kept only as digests, to be compared with those of
/// existing pods and interfaces.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AttachmentRecord {
    pub(super) ip: Digest,
    pub(super) file: Digest,
    pod: RecordedPod,
    interfaces: [Option<Digest>; 2],
    written: u64,
    mac: Option<[u8; 6]>,
    /// The part of the interface list in this record: 0 for the first two interfaces of the attachment, 1 for the next two, and
    /// so on.
    part: u8,
}

impl Keyed for AttachmentRecord {
    /// Sorts the records of an address by the time of writing, the latest first.
    type Key = (Digest, Reverse<u64>, Digest, u8);

    fn key(&self) -> Self::Key {
        (self.ip, Reverse(self.written), self.file, self.part)
    }
}

impl AttachmentRecord {
    /// Returns the records of an attachment.
    pub(super) fn all_of(file: Digest, attachment: &Attachment) -> Vec<Self> {
        let Attachment { namespace, pod, uid, host_interfaces, ips, mac, written } = attachment;
        let pod = RecordedPod { uid: uid.as_ref().map(Digest::of_name), name: Digest::of_pod(namespace, pod) };
        let mut parts: Vec<[Option<Digest>; 2]> =
            host_interfaces.chunks(2).map(|names| [names.first(), names.get(1)].map(|name| name.map(Digest::of_name))).collect();
        if parts.is_empty() {
            parts.push([None; 2]);
        }
        let of_ip = |ip: &IpAddr| {
            let ip = Digest::of_ip(*ip);
            let record = move |(part, interfaces)| Self { ip, file, pod, interfaces, written: *written, mac: *mac, part };
            (0..).zip(parts.clone()).map(record)
        };
        ips.iter().flat_map(of_ip).collect()
    }

    /// Returns the digest of the file's name, which all records of an attachment share.
    pub fn file(&self) -> Digest {
        self.file
    }

    /// Returns the pod, with its UID as the runtime knows it.
    pub fn pod(&self) -> RecordedPod {
        self.pod
    }

    /// Returns the digests of the names of the node's interfaces that the plugins created or used ([`Digest::of_name`]).
    pub fn host_interfaces(&self) -> impl Iterator<Item = Digest> {
        self.interfaces.into_iter().flatten()
    }

    /// Returns the hardware address of the pod's own interface; `None` if the plugin does not report it.
    pub fn mac(&self) -> Option<[u8; 6]> {
        self.mac
    }

    /// Returns when the file was last written, by the node's clock. This is when the pod was attached.
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
