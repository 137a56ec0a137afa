//! What identifies the pod that sent a request.

use std::net::IpAddr;
use std::sync::Arc;

/// What identifies the pod that sent a request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Identifier {
    /// The address of the connection's peer, which is the pod's own.
    Address(IpAddr),
    /// The UID by which the kubelet knows the pod, from the control group of the process that connected: the pod is in the node's
    /// network.
    HostNetwork(Arc<str>),
}
