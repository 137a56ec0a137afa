//! Redirects of connections to the daemon by rules of other programs, and the tenant's pod that they lead to.

use std::io::ErrorKind;
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream};
use std::time::{Duration, Instant};

use rolegate::redirect::rules::RuleSet;

use crate::bed::{PATIENCE, Pod};
use crate::kinds::Kind;
use crate::pod_identity::{ADDRESSES, OF_NODE};

/// The port on which the tenant's pod poses as rolegate.
pub(crate) const TENANT_PORT: u16 = 8080;
/// The programs that these tests need.
pub(crate) const PROGRAMS: [&str; 6] = ["nft", "conntrack", "iptables-nft", "ip6tables-nft", "iptables-legacy", "ip6tables-legacy"];

/// What another program does to redirect connections, for both families.
pub(crate) struct Redirect {
    pub(crate) name: &'static str,
    /// The flavour of iptables, if it is one of iptables.
    pub(crate) flavour: Option<&'static str>,
    /// The script that adds the rules.
    pub(crate) add: String,
}

impl Redirect {
    /// Whether rolegate's rules of this kind come first: those of nftables before all, those of iptables before those in their own set of
    /// tables.
    pub(crate) fn comes_after(&self, kind: &Kind) -> bool {
        kind.name == "nft" || self.flavour.is_some_and(|flavour| kind.name == format!("iptables-{flavour}"))
    }
}

/// Returns these rules with those of Pod Identity at its default addresses.
pub(crate) fn with_pod_identity(rules: RuleSet) -> RuleSet {
    let pod_identity = ADDRESSES.into_iter().chain([OF_NODE]).map(|text| text.parse().unwrap()).collect();
    RuleSet { pod_identity, ..rules }
}

/// The script that removes the rules that keep connections.
pub(crate) fn without_keep_rules(kind: &Kind) -> String {
    let of_iptables = |flavour: &str| {
        let flush = |program: &str, chain: &str| format!("{program}-{flavour} -w 30 -t nat -F {chain}\n");
        ["iptables", "ip6tables"].map(|program| flush(program, "ROLEGATE-KEEP-IN") + &flush(program, "ROLEGATE-KEEP-OUT")).concat()
    };
    match kind.name {
        "nft" => "nft flush chain inet rolegate keep_incoming && nft flush chain inet rolegate keep_outgoing".to_owned(),
        "iptables-nft" => of_iptables("nft"),
        _ => of_iptables("legacy"),
    }
}

/// The tenant's listeners, at the addresses of its pod.
pub(crate) struct Tenant([TcpListener; 2]);

impl Tenant {
    pub(crate) fn new(pod: &Pod) -> Self {
        Self([IpAddr::from(pod.ip), pod.ip6.into()].map(|ip| {
            let listener = pod.tcp_listener(SocketAddr::new(ip, TENANT_PORT)).unwrap();
            listener.set_nonblocking(true).unwrap();
            listener
        }))
    }

    /// Waits for a connection to the IPv4 listener.
    pub(crate) fn accept(&self, case: &str) -> TcpStream {
        let deadline = Instant::now() + PATIENCE;
        loop {
            match self.0[0].accept() {
                Ok((stream, _)) => return stream,
                Err(error) => assert!(error.kind() == ErrorKind::WouldBlock && Instant::now() < deadline, "{case}: {error}"),
            }
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// The number of connections that arrived here since the last call.
    pub(crate) fn connections(&self) -> usize {
        self.0.iter().map(|listener| std::iter::from_fn(|| listener.accept().ok()).count()).sum()
    }
}
