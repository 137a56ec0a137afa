//! Redirects of the node's own metadata requests by other programs.
//!
//! Whoever answers the node's own requests can hand the daemon foreign credentials and a foreign account. A tenant can bring that
//! about with a Service whose external IP is the metadata address: kube-proxy then redirects what the node's processes send there.
//! rolegate's pin (see [`rules`](super::rules)) keeps connections from being redirected by such rules where it comes first. They
//! are reported all the same: they are an attack or a mistake, and not every one of them comes after the pin.
//!
//! Three places are searched: the table `nat` of both flavours of iptables, the tables of nftables that have NAT for the node's own
//! packets, and the addresses of interfaces. IPVS, kube-proxy's mode `ipvs`, needs no rules: it assigns the address to an interface
//! (`kube-ipvs0`), and takes the packets before they leave. No packet rule prevents that.

use tracing::debug;

use super::iptables::listing::IptablesListing;
use super::iptables::program::{self, Flavour};
use super::program::run;
use super::rules::{Family, LOOPBACK};
use crate::advice::chain;
use crate::metadata_service::{METADATA_IPV4, METADATA_IPV6};

mod iptables;
mod nftables;

/// The most redirects that are described.
const DESCRIBED: usize = 8;
const NFT: &str = "nft";

/// Describes every redirect of the node's own metadata requests by another program. Programs that are missing, or may not read
/// rules, are skipped: they read what rolegate itself can read.
pub async fn find() -> Vec<String> {
    let mut found = of_interfaces();
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
                    found.extend(iptables::redirects(&listing, family).into_iter().map(|rule| format!("{program}: {rule}")));
                }
                Err(error) => debug!(program, error = chain(&error), "cannot look for redirects of the node's own requests; skipping"),
            }
        }
    }
    found.extend(of_nftables(&read_by_iptables).await);
    found.sort();
    found.dedup();
    let more = found.len().saturating_sub(DESCRIBED);
    found.truncate(DESCRIBED);
    if more > 0 {
        found.push(format!("{more} more"));
    }
    found
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

async fn of_nftables(read_by_iptables: &[Family]) -> Vec<String> {
    let chains = match run(NFT, &["-j", "list", "chains"], "").await {
        Ok(json) => json,
        Err(error) => {
            debug!(program = NFT, error = chain(&error), "cannot look for redirects of the node's own requests; skipping");
            return Vec::new();
        }
    };
    let mut found = Vec::new();
    for table in nftables::tables_with_own_nat(&chains) {
        let is_read = |family: &Family| table.is_of_iptables(*family);
        if read_by_iptables.iter().any(is_read) {
            continue;
        }
        // The table may have been deleted meanwhile.
        if let Ok(json) = run(NFT, &["-j", "list", "table", &table.family, &table.name], "").await {
            found.extend(nftables::redirects(&json).into_iter().map(|what| format!("nft, table {} {}: {what}", table.family, table.name)));
        }
    }
    found
}
