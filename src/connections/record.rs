//! A record of which limits closed connections recently, and of which sources, for the log and for `rolegate explain`.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tracing::warn;

use super::source::{Source, SourceKey};
use crate::advice::join;
use crate::pods::Pod;
use crate::recent_refusals::{Recent, RecentRefusals};

/// A limit of connections.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Limit {
    /// The number of connections of all sources together.
    All,
    /// The last places, which are reserved for sources with few connections.
    Room,
    /// The last places, which are reserved for namespaces with few connections.
    Namespace,
    /// The number of connections of one source.
    Source,
    /// The number of connections of addresses that belong to no known pod.
    Unknown,
    /// An address that no pod is known to have gave its place to another such address.
    Displaced,
    /// New connections of one source.
    SourceRate,
    /// New connections of addresses that belong to no known pod.
    UnknownRate,
    /// Connections whose control group is not known yet.
    Cgroup,
}

/// A port that has limits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Port {
    /// The pods' one.
    Metadata,
    /// The operators' one.
    Metrics,
}

impl Limit {
    /// The stable name: a metric's label.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::All => "limit",
            Self::Room => "room",
            Self::Namespace => "namespace-room",
            Self::Source => "source-limit",
            Self::Unknown => "unknown-limit",
            Self::Displaced => "displaced",
            Self::SourceRate => "source-rate",
            Self::UnknownRate => "unknown-rate",
            Self::Cgroup => "cgroup-limit",
        }
    }

    /// What happened, and what the operator can do.
    fn explanation(self, port: Port) -> (&'static str, &'static str) {
        const REUSE: &str = "reuse connections, or raise the limit with the flag of the same name";
        match (port, self) {
            (Port::Metrics, _) => {
                ("the metrics port limits the connections and requests of each client", "scrape it from fewer places, or less often")
            }
            (_, Self::All) => {
                ("--limits-connections is reached on this node", "find the pods with the most connections, or raise the limit")
            }
            (_, Self::Room) => {
                ("most of --limits-connections is used on this node, and the rest is reserved for pods with fewer connections", REUSE)
            }
            (_, Self::Namespace) => {
                ("most of --limits-connections is used on this node, and the rest is reserved for namespaces with fewer connections", REUSE)
            }
            (_, Self::Source) => {
                ("the address has --limits-connections-per-pod connections open, and none was closed within a second", REUSE)
            }
            (_, Self::SourceRate) => ("the address connects more often than --limits-connection-rate", REUSE),
            (_, Self::Cgroup) => (
                "too many connections from control groups that are not known yet",
                "many pods with hostNetwork may be starting at once, or a container creates control groups: look for privileged pods",
            ),
            (_, Self::Unknown | Self::Displaced | Self::UnknownRate) => (
                "addresses that belong to no known pod of this node connect too often, or have too many connections",
                "many pods may be starting at once, or a pod forges source addresses: look for pods with NET_RAW",
            ),
        }
    }
}

impl Port {
    fn name(self) -> &'static str {
        match self {
            Self::Metadata => "app",
            Self::Metrics => "metrics",
        }
    }
}

/// Connections of one source that one limit closed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Bite {
    /// Where.
    pub port: Port,
    /// Which limit.
    pub limit: Limit,
    /// How many connections.
    pub connections: u64,
    /// The time since the last of them.
    pub ago: Duration,
}

impl std::fmt::Display for Bite {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let (port, limit, ago) = (self.port.name(), self.limit.name(), humantime::format_duration(Duration::from_secs(self.ago.as_secs())));
        let (cause, advice) = self.limit.explanation(self.port);
        let text = join(cause, Some(advice));
        write!(f, "{} connections of this pod to the {port} port were closed, the last one {ago} ago ({limit}): {text}", self.connections)
    }
}

/// The record; cheap to clone.
#[derive(Clone, Debug, Default)]
pub(crate) struct ConnectionRecord(Arc<Mutex<RecentRefusals<(Who, Port, Limit)>>>);

/// All unknown addresses share one entry, because forged addresses could fill the record and the log.
type Who = Option<SourceKey>;

impl ConnectionRecord {
    /// Records that a limit closed a connection of this source, and logs it, at most once a minute for the same limit and source.
    pub(crate) fn closed(&self, source: &Source, port: Port, limit: Limit) {
        let Some(connections) = self.note(source, port, limit) else { return };
        let (cause, advice) = match (source, limit, port) {
            (Source::Node, Limit::Source, Port::Metadata) => (
                "connections that no packet rule redirected use all the places of the node, and none was closed within a second",
                "find what on the node connects to the app port, such as frequent probes",
            ),
            _ => limit.explanation(port),
        };
        let (limit, port) = (limit.name(), port.name());
        match source {
            Source::Pod(pod) => {
                warn!(
                    event = "connection-limit", port, limit, namespace = %pod.namespace, pod = %pod.name, connections, advice,
                    "closed connections of a pod: {cause}"
                );
            }
            Source::HostNetwork(uid) => {
                warn!(
                    event = "connection-limit", port, limit, uid = %uid.0, connections, advice,
                    "closed connections of a pod in the node's network: {cause}"
                );
            }
            Source::Cgroup(id) => {
                warn!(
                    event = "connection-limit", port, limit, cgroup = %id, connections, advice,
                    "closed connections of processes in the node's network: {cause}"
                );
            }
            Source::Disputed(ip) => {
                warn!(event = "connection-limit", port, limit, source = %ip, connections, advice, "closed connections: {cause}");
            }
            Source::Unknown(ip, network) => {
                warn!(event = "connection-limit", port, limit, source = %ip, %network, connections, advice, "closed connections: {cause}");
            }
            Source::Node => {
                warn!(event = "connection-limit", port, limit, connections, advice, "closed connections of the node itself: {cause}")
            }
        }
    }

    /// Adds it to the record. Returns the number of connections for the log line, if one is due.
    fn note(&self, source: &Source, port: Port, limit: Limit) -> Option<u64> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).note((source.key().ok(), port, limit))
    }

    /// Returns which limits closed connections of this pod recently, the latest first. Those that were counted for its addresses are
    /// among them.
    pub(crate) fn of(&self, pod: &Pod) -> Vec<Bite> {
        let is_of_pod = |key: &SourceKey| match key {
            SourceKey::Pod(uid) => *uid == pod.uid,
            SourceKey::Disputed(ip) => pod.ips.contains(ip),
            SourceKey::Node | SourceKey::Cgroup(_) => false,
        };
        let record = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let of_pod = record.recent().filter(|((who, ..), _)| who.as_ref().is_some_and(is_of_pod));
        let mut bites: Vec<_> =
            of_pod.map(|((_, port, limit), Recent { count, ago })| Bite { port: *port, limit: *limit, connections: count, ago }).collect();
        bites.sort_by_key(|bite| (bite.ago, bite.limit.name()));
        bites
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::log_once::LOG_EVERY;
    use crate::recent_refusals::REMEMBERED;

    #[tokio::test(start_paused = true)]
    async fn a_limit_is_logged_once_a_minute_for_each_pod_and_forgotten_later() {
        let record = ConnectionRecord::default();
        let (web, db) = (Source::pod("shop", "web"), Source::pod("shop", "db"));
        let note = |source, limit| record.note(source, Port::Metadata, limit);
        assert_eq!([note(&web, Limit::Source), note(&web, Limit::Source), note(&web, Limit::Source)], [Some(1), None, None]);
        assert_eq!([note(&db, Limit::Source), note(&web, Limit::SourceRate)], [Some(1), Some(1)], "each pod and each limit has its line");
        tokio::time::advance(LOG_EVERY).await;
        assert_eq!(note(&web, Limit::Source), Some(3), "with those that the line before did not count");
        let Source::Pod(pod) = &web else { return };
        let pod = Pod { ips: vec![[10, 0, 0, 1].into()], ..Pod::clone(pod) };
        let bites = |_| record.of(&pod).into_iter().map(|bite| (bite.limit, bite.connections, bite.ago)).collect::<Vec<_>>();
        assert_eq!(bites(()), [(Limit::Source, 4, Duration::ZERO), (Limit::SourceRate, 1, LOG_EVERY)]);
        let other = Pod { uid: crate::pods::PodUid("shop/other".into()), ..pod.clone() };
        assert_eq!(record.of(&other), []);
        record.closed(&Source::Disputed([10, 0, 0, 1].into()), Port::Metadata, Limit::Source);
        assert_eq!(record.of(&other).len(), 1, "by its address");
        let pod = Pod { ips: Vec::new(), ..pod };
        let bites = |_| record.of(&pod).into_iter().map(|bite| (bite.limit, bite.connections, bite.ago)).collect::<Vec<_>>();
        tokio::time::advance(REMEMBERED - Duration::from_secs(1)).await;
        assert_eq!(bites(()).len(), 1);
        tokio::time::advance(REMEMBERED).await;
        assert_eq!(bites(()), []);
        assert_eq!((note(&web, Limit::Source), bites(())[0].1), (Some(1), 1), "it begins anew");
    }

    #[tokio::test(start_paused = true)]
    async fn invented_addresses_do_not_fill_the_log() {
        let record = ConnectionRecord::default();
        let lines = (0..5000_u32).filter_map(|last| {
            let source = Source::unknown(std::net::IpAddr::from(last.to_be_bytes()));
            record.note(&source, Port::Metadata, Limit::Unknown)
        });
        assert_eq!(lines.count(), 1);
    }
}
