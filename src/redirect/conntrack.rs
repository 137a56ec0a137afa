//! Ends connections to the metadata service that were opened before the rules were installed, and those to the daemon's
//! addresses that another program redirected before the keep rules were installed.
//!
//! The kernel evaluates NAT rules for the first packet of a connection only and keeps the result in the connection table. A
//! connection that was opened before a rule can therefore bypass it for days. The guard rejects the packets of such a
//! connection. Once its entry is deleted, its next packet is evaluated as a first packet, and the client learns at once that it
//! has to reconnect.
//!
//! A pod can open tens of thousands of connections, each with an entry of its own. Entries are therefore read one by one, and deleted by
//! source and responder, however many there are, within one deadline: the rules are not reconciled until the deletion ends.
//!
//! Facts: conntrack(8). It exits with 1 if there was nothing to delete.

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use tokio::time::{Instant, timeout_at};

use super::program::each_line;
use super::rules::{Family, RuleSet, Targets};
use super::{RedirectError, interface_addresses};

const CONNTRACK: &str = "conntrack";
/// The deadline for the whole deletion.
const DEADLINE: Duration = Duration::from_secs(10);
/// The most commands of one family. No more of them run within the deadline, and a pod that forges source addresses could make any number
/// necessary.
const MOST: usize = 10_000;
/// The program's message if there is nothing to delete.
const NOTHING: &str = "0 flow entries have been deleted";

/// A set of entries that is deleted with one command.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Earlier {
    protocol: &'static str,
    source: IpAddr,
    destination: IpAddr,
    answers: IpAddr,
    /// The port that the connection was opened to, if connections to other ports are kept.
    opened_to: Option<u16>,
    /// The responder's port, if another port of the same address is the daemon's.
    port: Option<u16>,
}

/// The parts of a connection's entry that decide whether the connection is kept.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct ConntrackEntry {
    /// `tcp` or `udp`.
    protocol: &'static str,
    /// The address that opened the connection.
    source: IpAddr,
    /// The address and port that the connection was opened to.
    destination: SocketAddr,
    /// The responder: the address and port that replies come from.
    answers: SocketAddr,
}

/// Deletes the entries of pods' connections to the metadata service that do not lead to the daemon, and returns how many there
/// were. Connections that lead to the daemon stay, and so do those of the node's own processes. Where connections straight to the daemon
/// must not be redirected, the entries of those that are redirected are deleted as well. Without targets, nothing is deleted.
///
/// # Errors
/// If the program is missing, fails, or takes too long. The guard still rejects the packets of these connections.
pub async fn forget_earlier(rules: &RuleSet) -> Result<u64, RedirectError> {
    let Some(targets) = rules.targets else { return Ok(0) };
    let own: BTreeSet<_> = interface_addresses().into_iter().collect();
    let deadline = Instant::now() + DEADLINE;
    let mut forgotten = 0;
    for family in Family::ALL {
        let metadata = family.metadata().to_string();
        let mut found = BTreeSet::new();
        let keep = |found: &mut BTreeSet<Earlier>, entry: Option<Earlier>| {
            if found.len() < MOST {
                found.extend(entry);
            }
        };
        let listing = ["-L", "-f", name(family), "--orig-dst", &metadata];
        conntrack(&listing, deadline, forgotten, |line| keep(&mut found, earlier(line, targets, &own))).await?;
        for daemon in rules.kept_addresses().into_iter().filter(|address| Family::of(address.ip()) == family) {
            let (ip, port) = (daemon.ip().to_string(), daemon.port().to_string());
            let listing = ["-L", "-f", name(family), "-p", "tcp", "--orig-dst", &ip, "--orig-port-dst", &port];
            conntrack(&listing, deadline, forgotten, |line| keep(&mut found, redirected(line, daemon))).await?;
        }
        let is_cut = found.len() >= MOST;
        for earlier in found {
            forgotten += earlier.delete(family, deadline, forgotten).await?;
        }
        if is_cut {
            return Err(RedirectError::ConntrackSlow { deadline: DEADLINE, forgotten });
        }
    }
    Ok(forgotten)
}

/// Returns what is to be deleted because of an entry of a listing.
fn earlier(line: &str, targets: Targets, own: &BTreeSet<IpAddr>) -> Option<Earlier> {
    let is_target = |ip: IpAddr| {
        targets.ipv4.is_some_and(|ipv4| ip == IpAddr::V4(*ipv4.ip())) || targets.ipv6.is_some_and(|ipv6| ip == IpAddr::V6(*ipv6.ip()))
    };
    let entry = ConntrackEntry::read(line).filter(|entry| entry.is_earlier(targets, own));
    entry.map(|ConntrackEntry { protocol, source, destination, answers }| {
        let port = is_target(answers.ip()).then_some(answers.port());
        Earlier { protocol, source, destination: destination.ip(), answers: answers.ip(), opened_to: None, port }
    })
}

/// Returns what is to be deleted because of an entry of a listing that was opened to the daemon and leads elsewhere.
fn redirected(line: &str, daemon: SocketAddr) -> Option<Earlier> {
    let entry =
        ConntrackEntry::read(line).filter(|entry| entry.protocol == "tcp" && entry.destination == daemon && entry.answers != daemon);
    entry.map(|ConntrackEntry { protocol, source, destination, answers }| Earlier {
        protocol,
        source,
        destination: destination.ip(),
        answers: answers.ip(),
        opened_to: Some(destination.port()),
        port: Some(answers.port()),
    })
}

impl ConntrackEntry {
    /// Parses one line of the listing: the protocol, the original direction, and the reply direction, each as `src=… dst=…
    /// sport=… dport=…`. Returns `None` for other protocols.
    fn read(line: &str) -> Option<Self> {
        let protocol = ["tcp", "udp"].into_iter().find(|protocol| line.split_whitespace().next() == Some(protocol))?;
        let values =
            |key: &'static str| line.split_whitespace().filter_map(move |word| word.split_once('=')).filter(move |(k, _)| *k == key);
        let nth = |key, n: usize| values(key).nth(n).map(|(_, value)| value);
        let answers = SocketAddr::new(nth("src", 1)?.parse().ok()?, nth("sport", 1)?.parse().ok()?);
        let destination = SocketAddr::new(nth("dst", 0)?.parse().ok()?, nth("dport", 0)?.parse().ok()?);
        Some(Self { protocol, source: nth("src", 0)?.parse().ok()?, destination, answers })
    }

    fn is_earlier(&self, targets: Targets, own: &BTreeSet<IpAddr>) -> bool {
        let to_daemon =
            targets.ipv4.is_some_and(|ipv4| self.answers == ipv4.into()) || targets.ipv6.is_some_and(|ipv6| self.answers == ipv6.into());
        let to_metadata = Family::ALL.into_iter().any(|family| self.destination.ip() == family.metadata());
        to_metadata && !own.contains(&self.source) && !(self.protocol == "tcp" && to_daemon)
    }
}

impl Earlier {
    /// Deletes the entries, and returns how many there were.
    async fn delete(&self, family: Family, deadline: Instant, before: u64) -> Result<u64, RedirectError> {
        let [source, destination, answers] = [self.source, self.destination, self.answers].map(|ip| ip.to_string());
        let [opened_to, port] = [self.opened_to, self.port].map(|port| port.map(|port| port.to_string()));
        let mut arguments = vec!["-D", "-f", name(family), "-p", self.protocol, "--orig-src", &source, "--orig-dst", &destination];
        arguments.extend(opened_to.iter().flat_map(|port| ["--orig-port-dst", port.as_str()]));
        arguments.extend(["--reply-src", &answers]);
        arguments.extend(port.iter().flat_map(|port| ["--reply-port-src", port.as_str()]));
        let mut deleted = 0;
        // conntrack prints each entry that it deletes.
        let count = |line: &str| deleted += u64::from(ConntrackEntry::read(line).is_some());
        match conntrack(&arguments, deadline, before, count).await {
            Ok(()) => Ok(deleted),
            // The connection ended by itself.
            Err(RedirectError::Failed { message, .. }) if message.contains(NOTHING) => Ok(0),
            Err(error) => Err(error),
        }
    }
}

const fn name(family: Family) -> &'static str {
    match family {
        Family::V4 => "ipv4",
        Family::V6 => "ipv6",
    }
}

async fn conntrack(arguments: &[&str], deadline: Instant, forgotten: u64, see: impl FnMut(&str) + Send) -> Result<(), RedirectError> {
    let ran = timeout_at(deadline, each_line(CONNTRACK, arguments, see)).await;
    ran.unwrap_or(Err(RedirectError::ConntrackSlow { deadline: DEADLINE, forgotten })).map_err(|error| match error {
        RedirectError::Program { source, .. } => RedirectError::Conntrack { source },
        error => error,
    })
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test says loudly what failed")]
mod tests {
    use super::*;
    use crate::redirect::rules::DirectConnections;

    const TARGETS: (&str, &str) = ("10.0.0.1:8181", "[fd00::1]:8181");

    fn targets() -> Targets {
        Targets { ipv4: TARGETS.0.parse().ok(), ipv6: Some(TARGETS.1.parse().unwrap()), direct: DirectConnections::Dropped }
    }

    fn is_earlier(line: &str) -> Option<bool> {
        let own = BTreeSet::from(["10.0.0.1".parse().unwrap(), "fd00::1".parse().unwrap()]);
        ConntrackEntry::read(line).map(|entry| entry.is_earlier(targets(), &own))
    }

    #[test]
    fn a_direct_connection_to_the_service_is_earlier() {
        let entry = "tcp      6 431999 ESTABLISHED src=10.1.0.2 dst=169.254.169.254 sport=40000 dport=80 src=169.254.169.254 dst=10.1.0.2 \
                     sport=80 dport=40000 [ASSURED] mark=0 use=1";
        assert_eq!(is_earlier(entry), Some(true));
        let unanswered = "udp      17 29 src=10.1.0.2 dst=169.254.169.254 sport=35975 dport=53 [UNREPLIED] src=169.254.169.254 dst=10.1.0.2 \
                          sport=53 dport=35975 mark=0 use=1";
        assert_eq!(is_earlier(unanswered), Some(true));
        let masqueraded = "tcp 6 9 ESTABLISHED src=10.1.0.2 dst=169.254.169.254 sport=40000 dport=80 src=169.254.169.254 dst=10.0.0.1 \
                           sport=80 dport=40000 [ASSURED] mark=0 use=1";
        assert_eq!(is_earlier(masqueraded), Some(true));
        let ipv6 =
            "tcp 6 9 ESTABLISHED src=fd01::2 dst=fd00:ec2::254 sport=1 dport=80 src=fd00:ec2::254 dst=fd01::2 sport=80 dport=1 use=1";
        assert_eq!(is_earlier(ipv6), Some(true));
    }

    #[test]
    fn a_connection_to_another_proxy_is_earlier() {
        for answers in ["src=10.0.0.1 dst=10.1.0.2 sport=8282", "src=10.0.0.7 dst=10.1.0.2 sport=8181"] {
            let entry = format!("tcp 6 9 ESTABLISHED src=10.1.0.2 dst=169.254.169.254 sport=4 dport=80 {answers} dport=4 use=1");
            assert_eq!(is_earlier(&entry), Some(true), "{answers}");
        }
    }

    #[test]
    fn connections_to_the_daemon_and_of_the_node_are_not_earlier() {
        let served =
            "tcp 6 9 ESTABLISHED src=10.1.0.2 dst=169.254.169.254 sport=4 dport=80 src=10.0.0.1 dst=10.1.0.2 sport=8181 dport=4 use=1";
        assert_eq!(is_earlier(served), Some(false));
        let served6 = "tcp 6 9 ESTABLISHED src=fd01::2 dst=fd00:ec2::254 sport=4 dport=80 src=fd00::1 dst=fd01::2 sport=8181 dport=4 use=1";
        assert_eq!(is_earlier(served6), Some(false));
        let own =
            "tcp 6 9 ESTABLISHED src=10.0.0.1 dst=169.254.169.254 sport=4 dport=80 src=169.254.169.254 dst=10.0.0.1 sport=80 dport=4 use=1";
        assert_eq!(is_earlier(own), Some(false));
        let elsewhere = "tcp 6 9 ESTABLISHED src=10.1.0.2 dst=10.9.0.1 sport=4 dport=80 src=10.9.0.1 dst=10.1.0.2 sport=80 dport=4 use=1";
        assert_eq!(is_earlier(elsewhere), Some(false));
    }

    /// However many connections a pod has opened, few commands delete them, and none deletes a connection that the daemon
    /// serves.
    #[test]
    fn entries_that_differ_only_in_ports_are_deleted_together() {
        let mut listed = String::new();
        for port in 1..2000 {
            listed += &format!(
                "udp 17 29 src=10.1.0.2 dst=169.254.169.254 sport=9 dport={port} src=169.254.169.254 dst=10.1.0.2 sport={port} dport=9 use=1\n"
            );
        }
        for answers in ["10.0.0.1 dst=10.1.0.2 sport=8181", "10.0.0.1 dst=10.1.0.2 sport=8282", "169.254.169.254 dst=10.1.0.2 sport=80"] {
            listed += &format!("tcp 6 9 ESTABLISHED src=10.1.0.2 dst=169.254.169.254 sport=4 dport=80 src={answers} dport=4 use=1\n");
        }
        let found: BTreeSet<_> = listed.lines().filter_map(|line| earlier(line, targets(), &BTreeSet::new())).collect();
        let said: Vec<_> = found.iter().map(|one| (one.protocol, one.answers.to_string(), one.port)).collect();
        let [service, daemon] = ["169.254.169.254", "10.0.0.1"].map(str::to_owned);
        assert_eq!(said, [("tcp", daemon, Some(8282)), ("tcp", service.clone(), None), ("udp", service, None)]);
    }

    #[test]
    fn connections_to_the_daemon_that_lead_elsewhere_are_found() {
        let daemon: SocketAddr = TARGETS.0.parse().unwrap();
        let entry = |dport: u16, answers: &str| {
            format!(
                "tcp 6 9 ESTABLISHED src=10.1.0.2 dst=10.0.0.1 sport=4 dport={dport} src={answers} dst=10.1.0.2 sport=8080 dport=4 use=1\n"
            )
        };
        let served =
            "tcp 6 9 ESTABLISHED src=10.1.0.3 dst=10.0.0.1 sport=4 dport=8181 src=10.0.0.1 dst=10.1.0.3 sport=8181 dport=4 use=1\n";
        let listed = entry(8181, "10.42.0.7") + served + &entry(8182, "10.42.0.7");
        let found: Vec<_> = listed.lines().filter_map(|line| redirected(line, daemon)).collect();
        let said = found.iter().map(|one| (one.source.to_string(), one.answers.to_string(), one.opened_to, one.port));
        assert_eq!(said.collect::<Vec<_>>(), [("10.1.0.2".to_owned(), "10.42.0.7".to_owned(), Some(8181), Some(8080))]);
    }

    #[test]
    fn entries_of_other_protocols_are_ignored() {
        for line in
            ["", "tcp", "icmp 1 29 src=10.1.0.2 dst=169.254.169.254 type=8 code=0 id=1 src=169.254.169.254 dst=10.1.0.2 type=0 code=0 id=1"]
        {
            assert_eq!(is_earlier(line), None, "{line:?}");
        }
    }
}
