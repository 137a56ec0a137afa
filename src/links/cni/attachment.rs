//! One pod's attachment to one network, as a result file describes it.

use std::net::IpAddr;

use jiff::Timestamp;

/// A pod's attachment to a network: who it is, which addresses it has there, and by which interfaces.
///
/// All names share one allocation: a node has one attachment or more for each of its pods, for as long as the pods live.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Attachment {
    /// Namespace, pod, UID (empty where unknown), interface, network and then the host's interfaces, each ended by a NUL.
    names: Box<str>,
    ips: Ips,
    mac: Option<[u8; 6]>,
    written: u64,
}

/// Nearly always one address, or one of each family.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Ips {
    One(IpAddr),
    Several(Box<[IpAddr]>),
}

/// The fields of an attachment, before they are packed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Fields<'a> {
    pub(super) namespace: &'a str,
    pub(super) pod: &'a str,
    pub(super) uid: Option<&'a str>,
    pub(super) if_name: &'a str,
    pub(super) network: &'a str,
    pub(super) host_interfaces: Vec<&'a str>,
    pub(super) ips: Vec<IpAddr>,
    pub(super) mac: Option<[u8; 6]>,
    /// Nanoseconds since 1970.
    pub(super) written: u64,
}

impl Fields<'_> {
    /// Packs the fields; `None` where there is no address, or a name contains a NUL.
    pub(super) fn pack(&self) -> Option<Attachment> {
        let fixed = [self.namespace, self.pod, self.uid.unwrap_or_default(), self.if_name, self.network];
        let all = fixed.iter().chain(&self.host_interfaces);
        if all.clone().any(|name| name.contains('\0')) {
            return None;
        }
        let names = all.flat_map(|name| [*name, "\0"]).collect::<String>().into_boxed_str();
        let ips = match self.ips.as_slice() {
            [] => return None,
            [ip] => Ips::One(*ip),
            ips => Ips::Several(ips.into()),
        };
        Some(Attachment { names, ips, mac: self.mac, written: self.written })
    }
}

impl Attachment {
    fn name(&self, place: usize) -> &str {
        self.names.split_terminator('\0').nth(place).unwrap_or_default()
    }

    /// The pod's namespace.
    pub fn namespace(&self) -> &str {
        self.name(0)
    }

    /// The pod's name.
    pub fn pod(&self) -> &str {
        self.name(1)
    }

    /// The UID that the kubelet gave to the runtime; `None` where the runtime does not pass it on. For a static pod this is
    /// not the UID of its mirror pod in the API, but that of the annotation `kubernetes.io/config.hash`.
    pub fn uid(&self) -> Option<&str> {
        Some(self.name(2)).filter(|uid| !uid.is_empty())
    }

    /// The name of the pod's interface in the pod, such as `eth0`.
    pub fn if_name(&self) -> &str {
        self.name(3)
    }

    /// The name of the network.
    pub fn network(&self) -> &str {
        self.name(4)
    }

    /// The interfaces of the node that the plugins created or used: a bridge, the node's end of a veth pair, or both. Empty
    /// where the plugin names none.
    pub fn host_interfaces(&self) -> impl Iterator<Item = &str> {
        self.names.split_terminator('\0').skip(5)
    }

    /// The pod's addresses on this network, at least one.
    pub fn ips(&self) -> &[IpAddr] {
        match &self.ips {
            Ips::One(ip) => std::slice::from_ref(ip),
            Ips::Several(ips) => ips,
        }
    }

    /// The hardware address of the pod's own interface; `None` where the plugin does not say.
    pub fn mac(&self) -> Option<[u8; 6]> {
        self.mac
    }

    /// When the file was last written: when the pod was attached, by the node's clock.
    pub fn written(&self) -> Timestamp {
        Timestamp::from_nanosecond(i128::from(self.written)).unwrap_or(Timestamp::MAX)
    }
}
