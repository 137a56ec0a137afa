//! Redirects by other programs of the node's own metadata requests, of connections to the addresses of Pod Identity and, where BPF
//! programs send pods' connections straight to the daemon, of these connections.
//!
//! Whoever answers the node's own requests can hand the daemon foreign credentials and a foreign account. A tenant can bring that
//! about with a Service whose external IP is the metadata address: kube-proxy then redirects what the node's processes send there.
//! With a Service at the daemon's address and port, he can likewise answer pods' requests that BPF programs send there.
//! rolegate's pin and keep rules (see [`rules`](super::rules)) keep connections from being redirected by such rules where they come
//! first. The redirects are reported all the same: they are an attack or a mistake, and not every one of them comes after ours.
//! For addresses of Pod Identity, only those that do not come after ours are reported: a pod's host port applies to every address of the
//! node, and that is neither.
//!
//! Four places are searched: the table `nat` of both flavours of iptables, the tables of nftables that have NAT, the virtual services
//! of IPVS, and the addresses of interfaces. IPVS, kube-proxy's mode `ipvs`, needs no rules: it assigns the address to an interface
//! (`kube-ipvs0`), and takes the packets that arrive for it. No packet rule prevents that.

use tracing::debug;

use self::destination::Destination;
pub use self::destination::Precedence;
use super::iptables::listing::IptablesListing;
use super::iptables::program::{self, Flavour};
use super::program::run;
use super::rules::{Family, LOOPBACK, RuleSet};
use crate::advice::chain;
use crate::metadata_service::{METADATA_IPV4, METADATA_IPV6};

mod destination;
mod iptables;
mod ipvs;
mod nftables;

/// The most redirects that are described, of each kind.
const DESCRIBED: usize = 8;
const NFT: &str = "nft";

/// Redirects by other programs, in words.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ForeignRedirects {
    /// Those of the node's own metadata requests.
    pub own_requests: Vec<String>,
    /// Those of connections straight to the daemon, at its own address or at those of Pod Identity.
    pub to_daemon: Vec<String>,
}

impl ForeignRedirects {
    /// Returns how many there are.
    pub fn count(&self) -> usize {
        self.own_requests.len() + self.to_daemon.len()
    }

    fn of(&mut self, destination: Destination) -> &mut Vec<String> {
        match destination {
            Destination::Metadata(_) => &mut self.own_requests,
            Destination::Daemon(_) | Destination::PodIdentity(..) => &mut self.to_daemon,
        }
    }
}

/// Describes every redirect by another program of the node's own metadata requests, and of connections that these rules keep. Programs that
/// are missing, or may not read rules, are skipped: they read what rolegate itself can read.
pub async fn find(rules: &RuleSet, precedence: Precedence) -> ForeignRedirects {
    let metadata = Family::ALL.map(Destination::Metadata).into_iter();
    let kept = rules.kept_addresses().into_iter().map(|address| match rules.pod_identity.contains(&address) {
        true => Destination::PodIdentity(address, precedence),
        false => Destination::Daemon(address),
    });
    let destinations: Vec<_> = metadata.chain(kept).collect();
    let mut found = ForeignRedirects { own_requests: of_interfaces(), ..ForeignRedirects::default() };
    let services = tokio::fs::read_to_string(ipvs::FILE).await.unwrap_or_default();
    for destination in &destinations {
        found.of(*destination).extend(ipvs::redirects(&services, *destination));
    }
    // What iptables cannot read in its own tables was made with nft.
    let mut read_by_iptables = Vec::new();
    for family in Family::ALL {
        for flavour in Flavour::ALL {
            let program = program::of(Some(flavour), family).save;
            match run(program, &["-t", "nat"], "").await {
                Ok(text) => {
                    let listing = IptablesListing::parse(&text);
                    if flavour == Flavour::Nft && listing.unreadable.is_empty() {
                        read_by_iptables.push(family);
                    }
                    let is_exposed =
                        |destination: &&Destination| destination.family() == family && destination.is_exposed_to_iptables(flavour);
                    for destination in destinations.iter().filter(is_exposed) {
                        let rules = iptables::redirects(&listing, *destination).into_iter();
                        found.of(*destination).extend(rules.map(|rule| format!("{program}: {rule}")));
                    }
                }
                Err(error) => debug!(program, error = chain(&error), "cannot look for redirects by other programs; skipping"),
            }
        }
    }
    of_nftables(&read_by_iptables, &destinations, &mut found).await;
    [&mut found.own_requests, &mut found.to_daemon].into_iter().for_each(shorten);
    found
}

/// Sorts the descriptions, and limits their number.
fn shorten(found: &mut Vec<String>) {
    found.sort();
    found.dedup();
    let more = found.len().saturating_sub(DESCRIBED);
    found.truncate(DESCRIBED);
    if more > 0 {
        found.push(format!("{more} more"));
    }
}

/// Interfaces other than the loopback with the metadata address. On the loopback, the node's owner has put it there, for a
/// stand-in of the metadata service.
fn of_interfaces() -> Vec<String> {
    let addresses = super::named_interface_addresses().into_iter();
    let with_metadata = addresses.filter(|(name, ip)| name != LOOPBACK && (*ip == METADATA_IPV4 || *ip == METADATA_IPV6));
    with_metadata
        .map(|(name, ip)| {
            let by = if name == "kube-ipvs0" { ", which kube-proxy gave it for a Service (mode ipvs)" } else { "" };
            format!("the interface {name} of this node has the address {ip}{by}: the node's own requests do not leave the node")
        })
        .collect()
}

async fn of_nftables(read_by_iptables: &[Family], destinations: &[Destination], found: &mut ForeignRedirects) {
    let chains = match run(NFT, &["-j", "list", "chains"], "").await {
        Ok(json) => json,
        Err(error) => return debug!(program = NFT, error = chain(&error), "cannot look for redirects by other programs; skipping"),
    };
    for table in nftables::tables_with_nat(&chains, destinations) {
        let is_read = |family: &Family| table.is_of_iptables(*family);
        if read_by_iptables.iter().any(is_read) {
            continue;
        }
        // The table may have been deleted meanwhile.
        let Ok(json) = run(NFT, &["-j", "list", "table", &table.family, &table.name], "").await else { continue };
        for destination in destinations {
            let words = nftables::redirects(&json, *destination).into_iter();
            found.of(*destination).extend(words.map(|what| format!("nft, table {} {}: {what}", table.family, table.name)));
        }
    }
}
