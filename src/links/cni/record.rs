//! What is kept of an attachment, in as little as it takes: there is one record for each address of a pod.

use std::cmp::Reverse;
use std::net::IpAddr;

use jiff::Timestamp;

use super::attachment::Attachment;
use crate::links::digest::Digest;
use crate::links::sorted::Keyed;
use crate::netlink::Mac;

/// That a pod has an address by a result file. Names are kept as digests alone, which are compared with those of the pods and
/// interfaces that are there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Record {
    pub(super) ip: Digest,
    pub(super) file: Digest,
    uid: Option<Digest>,
    pod: Digest,
    interfaces: Interfaces,
    written: u64,
    mac: Option<Mac>,
}

/// The digests of interfaces' names: nearly always one, which needs no memory of its own.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Interfaces {
    One(Digest),
    Any(Box<[Digest]>),
}

impl Keyed for Record {
    /// The one of an address that was written last comes first.
    type Key = (Digest, Reverse<u64>, Digest);

    fn key(&self) -> Self::Key {
        (self.ip, Reverse(self.written), self.file)
    }
}

impl Record {
    /// The records of an attachment, one for each of its addresses.
    pub(super) fn all_of(file: Digest, attachment: &Attachment) -> Vec<Self> {
        let interfaces = match attachment.host_interfaces.as_slice() {
            [interface] => Interfaces::One(Digest::of_name(interface)),
            interfaces => Interfaces::Any(interfaces.iter().map(Digest::of_name).collect()),
        };
        let record = |ip: &IpAddr| Self {
            ip: Digest::of_ip(*ip),
            file,
            uid: attachment.uid.as_ref().map(Digest::of_name),
            pod: Digest::of_pod(&attachment.namespace, &attachment.pod),
            interfaces: interfaces.clone(),
            written: attachment.written,
            mac: attachment.mac,
        };
        attachment.ips.iter().map(record).collect()
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
    pub fn host_interfaces(&self) -> &[Digest] {
        match &self.interfaces {
            Interfaces::One(interface) => std::slice::from_ref(interface),
            Interfaces::Any(interfaces) => interfaces,
        }
    }

    /// The hardware address of the pod's own interface; `None` where the plugin does not say.
    pub fn mac(&self) -> Option<Mac> {
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
    assert_eq!(size_of::<Record>(), 64);
}
