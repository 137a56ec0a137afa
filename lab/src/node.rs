//! A Kubernetes node with pods, made of Linux network namespaces.
//!
//! ```text
//!   pod 10.42.0.2 ── eth0 ═ veth1 ─┐
//!                                  node 10.42.0.1 ── imds ═ eth0 ── imds 169.254.169.254
//!   pod 10.42.0.3 ── eth0 ═ veth2 ─┘   (on lo, forwards)            (with_imds only)
//! ```
//!
//! Pods may also share a bridge, as the CNI plugin of that name has it ([`Node::add_bridge`]):
//!
//! ```text
//!   pod 10.42.128.2 ── eth0 ═ veth3 ─┐
//!                                    cni0 10.42.128.1/24 on the node
//!   pod 10.42.128.3 ── eth0 ═ veth4 ─┘
//! ```
//!
//! None of these namespaces has a route out, so no packet to the metadata address can leave the machine. They have no
//! names either: each is kept alive by a file descriptor of this process, and the kernel takes it away, with its
//! interfaces and rules, when the process ends, however it ends. Nothing is global, so any number of nodes with the
//! same addresses live side by side.
//!
//! Needs root, or a kernel that lets users make user namespaces ([`reexec_in_user_namespace_if_needed`]), and the
//! programs `ip` (iproute2) and `nsenter` (util-linux). Tests begin with [`available_or_skip`].
#![forbid(unsafe_code)]

pub mod bpf;
mod cgroup;
mod error;
mod netns;
mod privilege;
#[cfg(test)]
mod tests;

use std::collections::HashSet;
use std::net::{Ipv4Addr, Ipv6Addr};
use std::ops::Deref;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

pub use cgroup::{Cgroup, Cgroups};
pub use error::{NodeError, Unavailable};
pub use netns::Netns;
pub use privilege::{find_program, in_user_namespace, programs_or_skip, reexec_in_user_namespace_if_needed, skip};

/// The node's own address, on its `lo`.
pub const NODE_IP: Ipv4Addr = Ipv4Addr::new(10, 42, 0, 1);
/// The node's own IPv6 address, on its `lo`.
pub const NODE_IP6: Ipv6Addr = Ipv6Addr::new(0xfd00, 0x42, 0, 0, 0, 0, 0, 1);
/// The metadata service's address.
pub const IMDS_IP: Ipv4Addr = Ipv4Addr::new(169, 254, 169, 254);
/// The metadata service's IPv6 address.
pub const IMDS_IP6: Ipv6Addr = Ipv6Addr::new(0xfd00, 0xec2, 0, 0, 0, 0, 0, 0x254);

/// The node's interface towards the `imds` namespace.
const IMDS_INTERFACE: &str = "imds";
/// The address of the node's end of every veth, which is the next hop of the default IPv6 route. The node's address on `lo`
/// cannot be the next hop, because neighbour discovery answers only for addresses of the interface itself.
const GATEWAY_IP6: &str = "fe80::1";
/// The third byte of the addresses behind a node's bridge, which are 10.42.128.0/24 and fd00:42::8000/120.
const BRIDGE_NET: u8 = 128;
/// The maximum length of a network interface's name.
const INTERFACE_NAME_MAX: usize = 15;

/// A node: a namespace that has [`NODE_IP`] and [`NODE_IP6`], forwards packets, and has pods on veths.
#[derive(Debug)]
pub struct Node {
    ns: Arc<Netns>,
    imds: Option<Netns>,
    claims: Arc<Claims>,
}

/// The properties of a pod.
#[derive(Debug, Clone, Copy)]
pub struct PodOptions<'a> {
    /// For messages only; two pods may share a name.
    pub name: &'a str,
    /// The prefix of the name of the node's end of the veth (`veth`, `eni`, `vlan`, `cali`). A number follows.
    pub interface_prefix: &'a str,
    /// An address in 10.42.0.0/16 that no living pod has, for example one that a dropped pod had. The IPv6 address follows from
    /// it. `None` means the next address that no pod has had.
    pub ip: Option<Ipv4Addr>,
    /// The bridge whose port the node's end of the veth becomes. `None` means that the pod is attached to the node alone, and
    /// has routes.
    pub bridge: Option<&'a Bridge>,
}

/// A bridge of the node, the next hop of the pods attached to it.
#[derive(Debug)]
pub struct Bridge {
    /// Its name.
    pub name: String,
    /// Its address.
    pub ip: Ipv4Addr,
    /// Its IPv6 address.
    pub ip6: Ipv6Addr,
}

/// A pod: a namespace whose `eth0` has the pod's addresses and whose default route is the node.
///
/// Dropping it removes its veth at once, even if sockets that were created inside are still open, so that its address can be
/// given to another pod.
#[derive(Debug)]
pub struct PodNs {
    /// The name that it was created with.
    pub name: String,
    /// Its address on `eth0`.
    pub ip: Ipv4Addr,
    /// Its IPv6 address on `eth0`.
    pub ip6: Ipv6Addr,
    ns: Netns,
    interface: String,
    node: Arc<Netns>,
    claims: Arc<Claims>,
}

/// The addresses and interface names of one node's pods.
#[derive(Debug, Default)]
struct Claims(Mutex<ClaimsState>);

#[derive(Debug, Default)]
struct ClaimsState {
    interfaces: u32,
    ever: HashSet<Ipv4Addr>,
    now: HashSet<Ipv4Addr>,
}

impl Default for PodOptions<'_> {
    fn default() -> Self {
        Self { name: "pod", interface_prefix: "veth", ip: None, bridge: None }
    }
}

impl Node {
    /// Creates a node without a metadata service. Reverse path filters are off, as in an unconfigured kernel.
    ///
    /// # Errors
    /// If the namespace cannot be created or set up.
    pub fn new() -> Result<Self, NodeError> {
        let ns = Netns::new("node")?;
        ns.write_sysctl("net/ipv4/ip_forward", "1")?;
        ns.write_sysctl("net/ipv6/conf/all/forwarding", "1")?;
        ns.ip_batch(&format!("addr add {NODE_IP}/32 dev lo\naddr add {NODE_IP6}/128 dev lo nodad\n"))?;
        Ok(Self { ns: Arc::new(ns), imds: None, claims: Arc::default() })
    }

    /// Creates a node with a metadata service's namespace behind it, which has [`IMDS_IP`] and [`IMDS_IP6`]. The node reaches
    /// it, and unless a rule prevents it so do its pods, with their own addresses.
    ///
    /// To set a hop limit of 1 on its answers, as EC2 does by default: `node.imds().unwrap().sh("ip route change default via
    /// 10.42.0.1 dev eth0 onlink hoplimit 1")`.
    ///
    /// # Errors
    /// If a namespace cannot be created or set up.
    pub fn with_imds() -> Result<Self, NodeError> {
        let mut node = Self::new()?;
        let imds = Netns::new("imds")?;
        node.ns.ip_batch(&format!(
            "link add {IMDS_INTERFACE} type veth peer name eth0 netns {path}\n\
             addr add {GATEWAY_IP6}/64 dev {IMDS_INTERFACE} nodad\n\
             link set {IMDS_INTERFACE} up\n\
             route add {IMDS_IP}/32 dev {IMDS_INTERFACE} src {NODE_IP}\n\
             route add {IMDS_IP6}/128 dev {IMDS_INTERFACE} src {NODE_IP6}\n",
            path = imds.path(),
        ))?;
        imds.ip_batch(&format!(
            "addr add {IMDS_IP}/32 dev eth0\n\
             addr add {IMDS_IP6}/128 dev eth0 nodad\n\
             link set eth0 up\n\
             route add default via {NODE_IP} dev eth0 onlink\n\
             route add default via {GATEWAY_IP6} dev eth0\n",
        ))?;
        node.ns.wait_for_link(IMDS_INTERFACE)?;
        imds.wait_for_link("eth0")?;
        node.imds = Some(imds);
        Ok(node)
    }

    /// The node's own namespace.
    pub fn ns(&self) -> &Netns {
        &self.ns
    }

    /// The metadata service's namespace, if there is one.
    pub fn imds(&self) -> Option<&Netns> {
        self.imds.as_ref()
    }

    /// The node's address.
    pub fn ip(&self) -> Ipv4Addr {
        NODE_IP
    }

    /// The node's IPv6 address.
    pub fn ip6(&self) -> Ipv6Addr {
        NODE_IP6
    }

    /// Adds a pod with the next address (10.42.0.2, 10.42.0.3, …; fd00:42::2, fd00:42::3, …).
    ///
    /// # Errors
    /// See [`Node::add_pod_with`].
    pub fn add_pod(&self, name: &str) -> Result<PodNs, NodeError> {
        self.add_pod_with(PodOptions { name, ..PodOptions::default() })
    }

    /// Adds a bridge for pods, with the first address of a network of its own. A node can have only one.
    ///
    /// # Errors
    /// If there is one already, or it cannot be created.
    pub fn add_bridge(&self, name: &str) -> Result<Bridge, NodeError> {
        let [a, b, ..] = NODE_IP.octets();
        let (ip, _) = self.claims.claim(Some(Ipv4Addr::new(a, b, BRIDGE_NET, 1)), 0)?;
        let bridge = Bridge { name: name.to_owned(), ip, ip6: ip6_of(ip) };
        self.ns.ip_batch(&format!(
            "link add {name} type bridge\n\
             addr add {ip}/24 dev {name}\n\
             addr add {ip6}/120 dev {name} nodad\n\
             link set {name} up\n",
            ip6 = bridge.ip6,
        ))?;
        Ok(bridge)
    }

    /// Adds a pod.
    ///
    /// # Errors
    /// If the address is not in 10.42.0.0/16, is the node's or a living pod's, if the interface's name would be too long, or if
    /// the namespace cannot be created or set up.
    pub fn add_pod_with(&self, options: PodOptions<'_>) -> Result<PodNs, NodeError> {
        let (ip, number) = self.claims.claim(options.ip, if options.bridge.is_some() { BRIDGE_NET } else { 0 })?;
        let ip6 = ip6_of(ip);
        // From here on, a failure drops the pod, which releases the claim.
        let pod = PodNs {
            name: options.name.to_owned(),
            ip,
            ip6,
            ns: Netns::new(options.name).inspect_err(|_| self.claims.release(ip))?,
            interface: format!("{}{number}", options.interface_prefix),
            node: Arc::clone(&self.ns),
            claims: Arc::clone(&self.claims),
        };
        let interface = &pod.interface;
        if interface.len() > INTERFACE_NAME_MAX {
            return Err(NodeError::InterfaceName(interface.clone()));
        }
        // In this order, both ends are up when the routes that need them are added.
        let path = pod.ns.path();
        let made = format!("link add {interface} type veth peer name eth0 netns {path}\n");
        if let Some(bridge) = options.bridge {
            self.ns.ip_batch(&format!("{made}link set {interface} master {} up\n", bridge.name))?;
            pod.ns.ip_batch(&format!(
                "addr add {ip}/24 dev eth0\n\
                 addr add {ip6}/120 dev eth0 nodad\n\
                 link set eth0 up\n\
                 route add default via {} dev eth0\n\
                 route add default via {} dev eth0\n",
                bridge.ip, bridge.ip6,
            ))?;
            self.ns.wait_for_link(&bridge.name)?;
            return pod.when_up();
        }
        self.ns.ip_batch(&format!(
            "{made}addr add {GATEWAY_IP6}/64 dev {interface} nodad\n\
             link set {interface} up\n\
             route add {ip}/32 dev {interface}\n\
             route add {ip6}/128 dev {interface}\n",
        ))?;
        pod.ns.ip_batch(&format!(
            "addr add {ip}/32 dev eth0\n\
             addr add {ip6}/128 dev eth0 nodad\n\
             link set eth0 up\n\
             route add {NODE_IP} dev eth0 scope link\n\
             route add default via {NODE_IP} dev eth0\n\
             route add default via {GATEWAY_IP6} dev eth0\n",
        ))?;
        pod.when_up()
    }
}

impl PodNs {
    /// Returns the pod when both ends of its veth are operational.
    fn when_up(self) -> Result<Self, NodeError> {
        self.node.wait_for_link(&self.interface)?;
        self.ns.wait_for_link("eth0")?;
        Ok(self)
    }

    /// The pod's namespace.
    pub fn ns(&self) -> &Netns {
        &self.ns
    }

    /// The name of the node's end of the pod's veth. PREROUTING sees it as the input interface, unless it is a port of a
    /// bridge: then PREROUTING sees the bridge.
    pub fn host_interface(&self) -> &str {
        &self.interface
    }
}

impl Deref for PodNs {
    type Target = Netns;

    fn deref(&self) -> &Netns {
        &self.ns
    }
}

impl Drop for PodNs {
    fn drop(&mut self) {
        // The namespace disappears with its last socket, and only later, by a kernel worker. Deleting the veth takes effect
        // before this returns. If its creation failed, there is no veth, which is no error.
        if let Err(error) = self.node.ip_batch(&format!("link del {}\n", self.interface)) {
            tracing::debug!(pod = %self.name, %error, "cannot delete the pod's veth");
        }
        self.claims.release(self.ip);
    }
}

impl Claims {
    fn state(&self) -> MutexGuard<'_, ClaimsState> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Claims an address, and a number that no other interface of the node has. Without a wanted address, claims the first free
    /// one whose third byte is `net` or more.
    fn claim(&self, wanted: Option<Ipv4Addr>, net: u8) -> Result<(Ipv4Addr, u32), NodeError> {
        let mut state = self.state();
        let ip = match wanted {
            Some(ip) => ip,
            None => (u16::from_be_bytes([net, 2])..u16::MAX)
                .map(|host| {
                    let [high, low] = host.to_be_bytes();
                    Ipv4Addr::new(10, 42, high, low)
                })
                .find(|ip| !state.ever.contains(ip))
                .ok_or(NodeError::Address { ip: NODE_IP, why: "every address of 10.42.0.0/16 was given away" })?,
        };
        if ip.octets()[..2] != NODE_IP.octets()[..2] {
            return Err(NodeError::Address { ip, why: "it is outside of 10.42.0.0/16" });
        }
        if ip == NODE_IP || state.now.contains(&ip) {
            return Err(NodeError::Address { ip, why: "the node or a living pod has it" });
        }
        state.ever.insert(ip);
        state.now.insert(ip);
        state.interfaces += 1;
        Ok((ip, state.interfaces))
    }

    fn release(&self, ip: Ipv4Addr) {
        self.state().now.remove(&ip);
    }
}

/// The IPv6 address that corresponds to one in 10.42.0.0/16.
fn ip6_of(ip: Ipv4Addr) -> Ipv6Addr {
    let [.., high, low] = ip.octets();
    Ipv6Addr::new(0xfd00, 0x42, 0, 0, 0, 0, 0, u16::from_be_bytes([high, low]))
}

/// Checks whether namespaces can be created here, by creating some (about 60 ms).
///
/// # Errors
/// The reason, worded for a skipped test.
pub fn available() -> Result<(), Unavailable> {
    for program in ["ip", "nsenter"] {
        if find_program(program).is_none() {
            return Err(Unavailable::Program(program));
        }
    }
    Node::new()?.add_pod("probe")?;
    Ok(())
}

/// Returns `true` if namespaces can be created here. Otherwise calls [`skip`] and returns `false`.
pub fn available_or_skip() -> bool {
    available().map_err(skip).is_ok()
}
