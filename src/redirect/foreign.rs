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
//!
//! Tenants decide how many rules there are: each port of a Service makes several. What is too large to be read is not searched, and is
//! reported as such. What is read may be large as well, so it is parsed on a thread of its own.

use std::fs::File;
use std::io::{BufRead as _, BufReader};
use std::panic::resume_unwind;
use std::sync::Arc;

use tracing::debug;

use self::destination::Destination;
pub use self::destination::Precedence;
use super::iptables::listing::IptablesListing;
use super::iptables::program::{self, Flavour};
use super::program::search;
use super::rules::{Family, LOOPBACK, RuleSet};
use super::{RedirectError, is_permission_error};
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
    /// What may have more of them.
    pub unsearched: Vec<Unsearched>,
}

/// Rules of other programs that cannot be searched.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Unsearched {
    /// The program that lists them, and the table.
    pub what: String,
    /// The stable name of the reason.
    pub reason: &'static str,
    /// The reason in words.
    pub error: String,
}

impl Unsearched {
    /// Returns what cannot be searched; `None` for rules that do not exist, or that this node has no program for.
    fn new(what: impl Into<String>, error: &RedirectError) -> Option<Self> {
        let reason = match error {
            RedirectError::TooLarge { .. } => "too-large",
            RedirectError::Hung { .. } => "hung",
            RedirectError::Unreadable { .. } => "unreadable",
            RedirectError::Failed { message, .. } if !is_absent(message) => "failed",
            _ => return None,
        };
        Some(Self { what: what.into(), reason, error: chain(error) })
    }
}

/// Returns whether a program's message says that there is nothing to search, or that this process may not read it.
fn is_absent(message: &str) -> bool {
    is_permission_error(message) || ["No such file", "does not exist", "not supported"].iter().any(|words| message.contains(words))
}

impl ForeignRedirects {
    /// Returns how many there are.
    pub fn count(&self) -> usize {
        self.own_requests.len() + self.to_daemon.len()
    }

    /// Keeps the redirects of an earlier search where this one found none and is incomplete: they may be in what was not searched.
    #[must_use]
    pub fn or_as_in(mut self, earlier: Self) -> Self {
        if !self.unsearched.is_empty() {
            for (found, before) in [(&mut self.own_requests, earlier.own_requests), (&mut self.to_daemon, earlier.to_daemon)] {
                if found.is_empty() {
                    *found = before;
                }
            }
        }
        self
    }

    /// Notes that rules cannot be searched.
    fn skip(&mut self, program: &'static str, what: impl Into<String>, error: &RedirectError) {
        debug!(program, error = chain(error), "cannot look for redirects by other programs; skipping");
        self.unsearched.extend(Unsearched::new(what, error));
    }

    fn add(&mut self, found: Vec<(Destination, String)>) {
        for (destination, redirect) in found {
            self.of(destination).push(redirect);
        }
    }

    fn of(&mut self, destination: Destination) -> &mut Vec<String> {
        match destination {
            Destination::Metadata(_) => &mut self.own_requests,
            Destination::Daemon(_) | Destination::PodIdentity(..) => &mut self.to_daemon,
        }
    }
}

/// Describes every redirect by another program of the node's own metadata requests, and of connections that these rules keep. Programs that
/// are missing, or may not read rules, are skipped: they read what rolegate itself can read. Rules that are too large to be read are named.
pub async fn find(rules: &RuleSet, precedence: Precedence) -> ForeignRedirects {
    let metadata = Family::ALL.map(Destination::Metadata).into_iter();
    let kept = rules.kept_addresses().into_iter().map(|address| match rules.pod_identity.contains(&address) {
        true => Destination::PodIdentity(address, precedence),
        false => Destination::Daemon(address),
    });
    let destinations: Arc<[Destination]> = metadata.chain(kept).collect();
    let mut found = ForeignRedirects { own_requests: of_interfaces(), ..ForeignRedirects::default() };
    found.add(of_ipvs(&destinations).await);
    // What iptables cannot read in its own tables was made with nft.
    let mut read_by_iptables = Vec::new();
    for family in Family::ALL {
        for flavour in Flavour::ALL {
            let program = program::of(Some(flavour), family).save;
            match search(program, &["-t", "nat"]).await {
                Ok(text) => {
                    let (redirects, is_read) = of_iptables(text, program, family, flavour, &destinations).await;
                    found.add(redirects);
                    if flavour == Flavour::Nft && is_read {
                        read_by_iptables.push(family);
                    }
                }
                Err(error) => {
                    // nft would need more memory for the same rules.
                    if flavour == Flavour::Nft && matches!(error, RedirectError::TooLarge { .. }) {
                        read_by_iptables.push(family);
                    }
                    found.skip(program, format!("{program}, table nat"), &error);
                }
            }
        }
    }
    of_nftables(&read_by_iptables, &destinations, &mut found).await;
    [&mut found.own_requests, &mut found.to_daemon].into_iter().for_each(shorten);
    found.unsearched.sort();
    found
}

async fn of_ipvs(destinations: &Arc<[Destination]>) -> Vec<(Destination, String)> {
    let destinations = destinations.clone();
    aside(move || {
        let Ok(file) = File::open(ipvs::FILE) else { return Vec::new() };
        let services = BufReader::new(file).lines().map_while(Result::ok).filter_map(|line| ipvs::service(&line));
        let redirects = |service| destinations.iter().filter_map(move |one| Some((*one, ipvs::redirect(service, *one)?)));
        services.flat_map(redirects).collect()
    })
    .await
}

/// Returns the redirects in a listing of the table `nat`, and whether the program could read the whole table.
async fn of_iptables(
    text: String,
    program: &'static str,
    family: Family,
    flavour: Flavour,
    destinations: &Arc<[Destination]>,
) -> (Vec<(Destination, String)>, bool) {
    let destinations = destinations.clone();
    aside(move || {
        let listing = IptablesListing::parse(&text);
        drop(text);
        let is_exposed = |destination: &&Destination| destination.family() == family && destination.is_exposed_to_iptables(flavour);
        let redirects = |destination: &Destination| {
            let rules = iptables::redirects(&listing, *destination).into_iter();
            rules.map(|rule| (*destination, format!("{program}: {rule}"))).collect::<Vec<_>>()
        };
        (destinations.iter().filter(is_exposed).flat_map(redirects).collect(), listing.unreadable.is_empty())
    })
    .await
}

/// Runs a computation that may take long on a thread of its own. Its panic continues in the caller.
async fn aside<T: Default + Send + 'static>(compute: impl FnOnce() -> T + Send + 'static) -> T {
    match tokio::task::spawn_blocking(compute).await.map_err(tokio::task::JoinError::try_into_panic) {
        Ok(result) => result,
        Err(Ok(panic)) => resume_unwind(panic),
        // The runtime ends.
        Err(Err(_)) => T::default(),
    }
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

async fn of_nftables(read_by_iptables: &[Family], destinations: &Arc<[Destination]>, found: &mut ForeignRedirects) {
    let chains = match search(NFT, &["-j", "list", "chains"]).await {
        Ok(json) => json,
        Err(error) => return found.skip(NFT, "nft, all tables", &error),
    };
    let of_chains = destinations.clone();
    let tables = match aside(move || Some(nftables::tables_with_nat(&chains, &of_chains))).await {
        Some(Ok(tables)) => tables,
        Some(Err(message)) => return found.skip(NFT, "nft, all tables", &RedirectError::Unreadable { program: NFT, message }),
        None => return,
    };
    for table in tables {
        if read_by_iptables.iter().any(|family| table.is_of_iptables(*family)) {
            continue;
        }
        let name = format!("nft, table {} {}", table.family, table.name);
        match search(NFT, &["-j", "list", "table", &table.family, &table.name]).await {
            Ok(json) => {
                let destinations = destinations.clone();
                let redirects = aside(move || Some(nftables::redirects(json, &destinations))).await;
                match redirects {
                    Some(Ok(redirects)) => found.add(redirects.into_iter().map(|(to, what)| (to, format!("{name}: {what}"))).collect()),
                    Some(Err(message)) => found.skip(NFT, name, &RedirectError::Unreadable { program: NFT, message }),
                    None => {}
                }
            }
            // The table may have been deleted meanwhile.
            Err(error) => found.skip(NFT, name, &error),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A table that grows beyond what can be searched must not end the alert of the redirect in it.
    #[test]
    fn a_redirect_stays_known_while_the_search_is_incomplete() {
        let too_large = RedirectError::TooLarge { program: NFT, message: "it is too large".to_owned() };
        let before =
            ForeignRedirects { own_requests: vec!["a".to_owned()], to_daemon: vec!["b".to_owned()], ..ForeignRedirects::default() };
        let mut incomplete = ForeignRedirects { to_daemon: vec!["c".to_owned()], ..ForeignRedirects::default() };
        incomplete.skip(NFT, "nft, table ip kube-proxy", &too_large);
        let found = incomplete.or_as_in(before.clone());
        assert_eq!((&found.own_requests, &found.to_daemon, found.count()), (&vec!["a".to_owned()], &vec!["c".to_owned()], 2));
        assert_eq!(ForeignRedirects::default().or_as_in(before), ForeignRedirects::default(), "a complete search counts");
    }

    #[test]
    fn only_what_exists_and_cannot_be_searched_is_unknown() {
        let reason = |error| Unsearched::new("x", &error).map(|one| one.reason);
        let (program, message) = (NFT, String::new());
        assert_eq!(reason(RedirectError::TooLarge { program, message: message.clone() }), Some("too-large"));
        assert_eq!(reason(RedirectError::Hung { program, patience: std::time::Duration::ZERO }), Some("hung"));
        assert_eq!(reason(RedirectError::Unreadable { program, message: message.clone() }), Some("unreadable"));
        assert_eq!(reason(RedirectError::Failed { program, message }), Some("failed"));
        for message in [
            "iptables-save v1.8.9 (legacy): Cannot initialize: Permission denied (you must be root)",
            "iptables-legacy-save v1.8.9 (legacy): Cannot initialize: Table does not exist (do you need to insmod?)",
            "iptables-nft-save: Failed to initialize nft: Protocol not supported",
            "Error: No such file or directory; list table ip x",
            "Operation not permitted (you must be root)",
        ] {
            assert_eq!(reason(RedirectError::Failed { program, message: message.to_owned() }), None, "{message}");
        }
        assert_eq!(reason(RedirectError::Program { program, source: std::io::ErrorKind::NotFound.into() }), None);
    }
}
