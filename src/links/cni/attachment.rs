//! One pod's attachment to one network, as a result file describes it.

use std::net::IpAddr;

/// A pod's attachment to a network: the pod's identity, its addresses on the network, and its interfaces.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Attachment {
    /// The pod's namespace.
    pub(super) namespace: String,
    /// The pod's name.
    pub(super) pod: String,
    /// The UID that the kubelet gave to the runtime; `None` if the runtime does not pass it on. For a static pod this is not
    /// the UID of its mirror pod in the API, but that of the annotation `kubernetes.io/config.hash`.
    pub(super) uid: Option<String>,
    /// The node's interfaces that the plugins created or used: a bridge, the node's end of a veth pair, or both. Empty if the
    /// plugin names none.
    pub(super) host_interfaces: Vec<String>,
    /// The pod's addresses on this network: at least one, without duplicates.
    pub(super) ips: Vec<IpAddr>,
    /// The hardware address of the pod's own interface; `None` if the plugin does not report it.
    pub(super) mac: Option<[u8; 6]>,
    /// When the file was last written, in nanoseconds since 1970 by the node's clock. This is when the pod was attached.
    pub(super) written: u64,
}
