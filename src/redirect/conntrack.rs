//! Connections that were opened to the metadata service before the rules.
//!
//! The kernel asks the rules of NAT about the first packet of a connection only. Its entry in the connection table is where
//! the answer is kept, so that one without it goes on past a new rule, for days. The guard rejects its packets; with the
//! entry gone its next packet meets the rules as a first one, and the client hears at once that it has to connect again.
//!
//! Facts: conntrack(8). It exits with 1 where there was nothing to delete.

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};

use super::program::run;
use super::rules::{Family, Targets};
use super::{RedirectError, interface_addresses};

const CONNTRACK: &str = "conntrack";
/// What the program says where there is nothing to delete.
const NOTHING: &str = "0 flow entries have been deleted";

/// A connection's entry, as far as it says whether the connection is to go on.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Entry {
    /// `tcp` or `udp`.
    protocol: &'static str,
    /// Who opened it.
    source: IpAddr,
    /// To whom.
    destination: IpAddr,
    /// Who answers.
    answers: SocketAddr,
}

/// Forgets the connections of pods to the metadata service that do not lead to the daemon, and returns how many they were.
/// Those that lead to it stay, and so do those of the node's own processes.
///
/// # Errors
/// If the program is missing or refuses. The guard holds all the same.
pub async fn forget_earlier(targets: Targets) -> Result<u64, RedirectError> {
    let own: BTreeSet<_> = interface_addresses().into_iter().collect();
    let mut forgotten = 0;
    for family in Family::ALL {
        let metadata = family.metadata().to_string();
        let listed = conntrack(&["-L", "-f", name(family), "--orig-dst", &metadata]).await?;
        let earlier: BTreeSet<_> = listed.lines().filter_map(Entry::read).filter(|entry| entry.is_earlier(targets, &own)).collect();
        for entry in earlier {
            forgotten += entry.delete(family).await?;
        }
    }
    Ok(forgotten)
}

impl Entry {
    /// Reads one line of the list: the protocol, then the connection as it was opened, then as it is answered, each as
    /// `src=… dst=… sport=… dport=…`. `None` for other protocols.
    fn read(line: &str) -> Option<Self> {
        let protocol = ["tcp", "udp"].into_iter().find(|protocol| line.split_whitespace().next() == Some(protocol))?;
        let values =
            |key: &'static str| line.split_whitespace().filter_map(move |word| word.split_once('=')).filter(move |(k, _)| *k == key);
        let nth = |key, n: usize| values(key).nth(n).map(|(_, value)| value);
        let answers = SocketAddr::new(nth("src", 1)?.parse().ok()?, nth("sport", 1)?.parse().ok()?);
        Some(Self { protocol, source: nth("src", 0)?.parse().ok()?, destination: nth("dst", 0)?.parse().ok()?, answers })
    }

    fn is_earlier(&self, targets: Targets, own: &BTreeSet<IpAddr>) -> bool {
        let to_daemon = self.answers == SocketAddr::from(targets.ipv4) || targets.ipv6.is_some_and(|ipv6| self.answers == ipv6.into());
        let to_metadata = Family::ALL.into_iter().any(|family| self.destination == family.metadata());
        to_metadata && !own.contains(&self.source) && !(self.protocol == "tcp" && to_daemon)
    }

    /// Deletes all that are like it: what they differ in says nothing about whether they are to go on.
    async fn delete(&self, family: Family) -> Result<u64, RedirectError> {
        let (source, destination) = (self.source.to_string(), self.destination.to_string());
        let (answers, port) = (self.answers.ip().to_string(), self.answers.port().to_string());
        let from_to = ["-D", "-f", name(family), "-p", self.protocol, "--orig-src", &source, "--orig-dst", &destination];
        let answered = ["--reply-src", &answers, "--reply-port-src", &port];
        match conntrack(&[from_to.as_slice(), &answered].concat()).await {
            // It prints each that it deletes.
            Ok(deleted) => Ok(deleted.lines().filter(|line| Self::read(line).is_some()).count() as u64),
            // It ended by itself.
            Err(RedirectError::Refused { message, .. }) if message.contains(NOTHING) => Ok(0),
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

async fn conntrack(arguments: &[&str]) -> Result<String, RedirectError> {
    run(CONNTRACK, arguments, "").await.map_err(|error| match error {
        RedirectError::Program { reason, .. } => RedirectError::Conntrack { reason },
        error => error,
    })
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test says loudly what failed")]
mod tests {
    use super::*;

    const TARGETS: (&str, &str) = ("10.0.0.1:8181", "[fd00::1]:8181");

    fn targets() -> Targets {
        Targets { ipv4: TARGETS.0.parse().unwrap(), ipv6: Some(TARGETS.1.parse().unwrap()), refuse_direct: true }
    }

    fn is_earlier(line: &str) -> Option<bool> {
        let own = BTreeSet::from(["10.0.0.1".parse().unwrap(), "fd00::1".parse().unwrap()]);
        Entry::read(line).map(|entry| entry.is_earlier(targets(), &own))
    }

    #[test]
    fn a_pods_connection_to_the_service_itself_is_an_earlier_one() {
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
    fn one_that_leads_to_another_proxy_is_an_earlier_one() {
        for answers in ["src=10.0.0.1 dst=10.1.0.2 sport=8282", "src=10.0.0.7 dst=10.1.0.2 sport=8181"] {
            let entry = format!("tcp 6 9 ESTABLISHED src=10.1.0.2 dst=169.254.169.254 sport=4 dport=80 {answers} dport=4 use=1");
            assert_eq!(is_earlier(&entry), Some(true), "{answers}");
        }
    }

    #[test]
    fn what_leads_to_the_daemon_and_what_is_the_nodes_own_is_not() {
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

    #[test]
    fn what_is_no_entry_of_tcp_or_udp_is_passed_over() {
        for line in
            ["", "tcp", "icmp 1 29 src=10.1.0.2 dst=169.254.169.254 type=8 code=0 id=1 src=169.254.169.254 dst=10.1.0.2 type=0 code=0 id=1"]
        {
            assert_eq!(is_earlier(line), None, "{line:?}");
        }
    }
}
