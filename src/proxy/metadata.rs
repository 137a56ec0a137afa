//! The metadata that pods may read: values of a [table](mod@table), which the daemon reads ahead of any request.
//!
//! A pod's request is answered from memory. It never causes a request to the real service, so it cannot shape one. While the service
//! is slow or down, pods get the last known values at once. Values that may change at any time are read in the background while
//! somebody asks for them.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::join_all;
use tokio::sync::watch;
use tokio::time::Instant;
use tracing::{info, warn};

use crate::backoff::Backoff;
use crate::config::MetadataProfile;
use crate::log_once::Condition;
use crate::metrics::Metrics;
use crate::policy::patterns::Patterns;

pub(crate) mod table;
pub(crate) mod upstream;

use table::{GROUPS, Group, Names, Set};
use upstream::{Upstream, UpstreamError};

/// How long a request waits for a value that has never been read. The shortest timeout of an SDK is longer.
const FIRST_WAIT: Duration = Duration::from_millis(400);
/// How long values that are read only while somebody asks for them are read after a request.
const ASKED: Duration = Duration::from_secs(120);
/// Readings after which such a value is too old to be served.
const TURNS: u32 = 6;
/// Pauses after failures.
const RETRY: Duration = Duration::from_secs(1);
const RETRY_AT_MOST: Duration = Duration::from_secs(60);
/// The most names that are taken from a listing of the service.
const MAX_NAMES: usize = 256;

/// What was read of one group.
#[derive(Clone, Debug)]
struct Read {
    values: Arc<BTreeMap<String, Bytes>>,
    /// Whether some of them could not be read.
    partial: bool,
    at: Instant,
}

/// What each pod may read.
#[derive(Debug)]
pub struct Access {
    /// What every pod may read.
    pub everybody: &'static [Set],
    /// The namespaces whose pods may read the whole table.
    pub node_info: Patterns,
}

impl Access {
    /// Creates the access that a profile gives to every pod. Pods of these namespaces may read the whole table.
    pub fn new(profile: MetadataProfile, node_info: Patterns) -> Self {
        let everybody: &[Set] = match profile {
            MetadataProfile::None => &[],
            MetadataProfile::Base => &[Set::Base],
            MetadataProfile::NodeInfo => &ALL,
        };
        Self { everybody, node_info }
    }

    /// Returns what pods of a namespace may read.
    pub fn of(&self, namespace: &str) -> &'static [Set] {
        if self.node_info.find(namespace).is_some() { &ALL } else { self.everybody }
    }

    /// Returns what any pod may read.
    pub fn of_somebody(&self) -> Vec<Set> {
        if self.node_info.count() > 0 { ALL.to_vec() } else { self.everybody.to_vec() }
    }
}

const ALL: [Set; 2] = [Set::Base, Set::NodeInfo];

/// What a pod finds at a path.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum MetadataLookup {
    /// A value, or the listing of a directory.
    Text(Bytes),
    /// Nothing that this pod may read.
    Nothing,
    /// Something that could not be read yet.
    Unavailable,
}

/// The values that were read; cheap to clone.
#[derive(Clone, Debug)]
pub struct MetadataValues(Arc<SharedValues>);

#[derive(Debug)]
struct SharedValues {
    /// One entry for each group; `None` until the group was read.
    read: watch::Sender<[Option<Read>; GROUPS.len()]>,
    /// When each was last asked for.
    asked: watch::Sender<[Option<Instant>; GROUPS.len()]>,
    /// The sets that are read.
    sets: Vec<Set>,
}

impl MetadataValues {
    /// Creates an empty collection. Only values of these sets are ever read.
    pub fn new(sets: Vec<Set>) -> Self {
        let (read, asked) = (std::array::from_fn(|_| None), [None; GROUPS.len()]);
        Self(Arc::new(SharedValues { read: watch::Sender::new(read), asked: watch::Sender::new(asked), sets }))
    }

    /// Returns what a pod that may read `sets` finds at a path below the version. `own` are more paths of the pod, which appear in
    /// listings only.
    pub async fn find(&self, path: &str, sets: &[Set], own: &[String]) -> MetadataLookup {
        let may = |group: &Group| sets.contains(&group.set) && self.0.sets.contains(&group.set);
        let wanted: Vec<usize> = (0..GROUPS.len()).filter(|at| may(&GROUPS[*at]) && GROUPS[*at].has(path)).collect();
        for at in wanted.iter().copied().filter(|at| GROUPS[*at].while_asked) {
            self.0.asked.send_modify(|asked| asked[at] = Some(Instant::now()));
        }
        let mut reads = self.0.read.subscribe();
        let all_read = |reads: &[Option<Read>; GROUPS.len()]| wanted.iter().all(|at| current(&GROUPS[*at], reads[*at].as_ref()).is_some());
        let read = match tokio::time::timeout(FIRST_WAIT, reads.wait_for(all_read)).await {
            Ok(Ok(reads)) => reads.clone(),
            _ => self.0.read.borrow().clone(),
        };
        let known: Vec<&Read> = wanted.iter().filter_map(|at| current(&GROUPS[*at], read[*at].as_ref())).collect();
        if let Some(value) = known.iter().find_map(|read| read.values.get(path)) {
            return MetadataLookup::Text(value.clone());
        }
        // As long as not everything is known, there may be more.
        if known.len() < wanted.len() || known.iter().any(|read| read.partial) {
            return MetadataLookup::Unavailable;
        }
        let paths = known.iter().flat_map(|read| read.values.keys()).chain(own).map(String::as_str);
        table::listing(path, paths).map_or(MetadataLookup::Nothing, |listing| MetadataLookup::Text(Bytes::from(listing)))
    }

    /// As if this one value of the base set were all that was read.
    #[cfg(test)]
    pub(super) fn set_for_test(&self, path: &str, value: &'static str) {
        let values = Arc::new(BTreeMap::from([(path.to_owned(), Bytes::from_static(value.as_bytes()))]));
        self.0.read.send_modify(|reads| reads[0] = Some(Read { values, partial: false, at: Instant::now() }));
    }

    /// Reads the values from the real service at this authority, forever.
    pub async fn keep(self, authority: String, metrics: Metrics) {
        let upstream = Upstream::new(authority);
        let read = (0..GROUPS.len()).filter(|at| self.0.sets.contains(&GROUPS[*at].set));
        join_all(read.map(|at| self.keep_group(at, &upstream, &metrics))).await;
        // If there is nothing to read, this never returns either.
        std::future::pending().await
    }

    async fn keep_group(&self, at: usize, upstream: &Upstream, metrics: &Metrics) {
        let group = &GROUPS[at];
        let backoff = Backoff::new(RETRY, if group.while_asked { group.every } else { RETRY_AT_MOST });
        let (mut failures, failing) = (0_u32, Condition::default());
        loop {
            if group.while_asked {
                let is_asked = |asked: &[Option<Instant>; GROUPS.len()]| asked[at].is_some_and(|asked| asked.elapsed() < ASKED);
                // The sender lives in `self`.
                let _ = self.0.asked.subscribe().wait_for(is_asked).await;
            }
            // Old notices must not be served as if they had just been read.
            let earlier = self.0.read.borrow()[at].as_ref().filter(|_| !group.while_asked).map(|read| read.values.clone());
            let read = match read_group(group, upstream, earlier.as_deref()).await {
                Ok((values, failure)) => {
                    let read = Read { values: Arc::new(values), partial: failure.is_some(), at: Instant::now() };
                    self.0.read.send_modify(|reads| reads[at] = Some(read));
                    failure.map_or(Ok(()), Err)
                }
                Err(error) => Err(error),
            };
            match read {
                Ok(()) => {
                    metrics.metadata_read("ok");
                    failures = 0;
                    if failing.ends() {
                        info!(event = "metadata-read-again", group = group.name, "the metadata service responds again");
                    }
                    tokio::time::sleep(group.every).await;
                }
                Err(error) => {
                    metrics.metadata_read("failed");
                    if failing.begins() {
                        warn!(
                            event = "metadata-read-failed", group = group.name, %error,
                            "cannot read from the metadata service; retrying, serving the last known values; check that the daemon can \
                             reach --metadata-addr, or use --metadata-profile=none"
                        );
                    }
                    tokio::time::sleep(backoff.pause(failures)).await;
                    failures = failures.saturating_add(1);
                }
            }
        }
    }
}

/// Returns what was read, unless it is too old to be served.
fn current<'a>(group: &Group, read: Option<&'a Read>) -> Option<&'a Read> {
    read.filter(|read| !group.while_asked || read.at.elapsed() < group.every * TURNS)
}

/// Reads the values of a group. A value that the service cannot give stays what it was `earlier`, and the failure is returned with
/// the values. A service that does not answer ends the reading.
async fn read_group(
    group: &Group,
    upstream: &Upstream,
    earlier: Option<&BTreeMap<String, Bytes>>,
) -> Result<(BTreeMap<String, Bytes>, Option<UpstreamError>), UpstreamError> {
    let mut reading = Reading { upstream, earlier, values: BTreeMap::new(), failure: None };
    for leaf in group.leaves {
        reading.value((*leaf).to_owned()).await?;
    }
    for tree in group.trees {
        let directory = tree.path;
        for name in reading.names(directory).await? {
            match &tree.names {
                Names::Leaves if table::is_name(&name) => reading.value(format!("{directory}/{name}")).await?,
                Names::Interfaces(interface) => {
                    let Some(mac) = name.strip_suffix('/').filter(|name| table::is_mac(name)) else { continue };
                    let directory = format!("{directory}/{mac}");
                    let there = reading.names(&directory).await?;
                    for leaf in interface.leaves.iter().filter(|leaf| there.iter().any(|name| name == *leaf)) {
                        reading.value(format!("{directory}/{leaf}")).await?;
                    }
                    let is_listed = |by_address: &str| there.iter().any(|name| name.strip_suffix('/') == Some(by_address));
                    for by_address in interface.by_address.iter().filter(|by_address| is_listed(by_address)) {
                        let directory = format!("{directory}/{by_address}");
                        for name in reading.names(&directory).await?.into_iter().filter(|name| table::is_address(name)) {
                            reading.value(format!("{directory}/{name}")).await?;
                        }
                    }
                }
                Names::Leaves => {}
            }
        }
    }
    Ok((reading.values, reading.failure))
}

/// The reading of a group.
struct Reading<'a> {
    upstream: &'a Upstream,
    earlier: Option<&'a BTreeMap<String, Bytes>>,
    values: BTreeMap<String, Bytes>,
    failure: Option<UpstreamError>,
}

impl Reading<'_> {
    async fn value(&mut self, path: String) -> Result<(), UpstreamError> {
        let value = match self.upstream.get(&path).await {
            Ok(value) => value,
            Err(error) if error.is_of_service() => return Err(error),
            Err(error) => {
                self.failure = Some(error);
                self.earlier.and_then(|earlier| earlier.get(&path)).cloned()
            }
        };
        if let Some(value) = value {
            self.values.insert(path, value);
        }
        Ok(())
    }

    /// Reads the names in a directory. If that fails, the values below it stay what they were.
    async fn names(&mut self, directory: &str) -> Result<Vec<String>, UpstreamError> {
        match names(directory, self.upstream).await {
            Ok(names) => Ok(names),
            Err(error) if error.is_of_service() => Err(error),
            Err(error) => {
                let below = |path: &str| path.strip_prefix(directory).is_some_and(|rest| rest.starts_with('/'));
                let earlier = self.earlier.into_iter().flatten().filter(|(path, _)| below(path));
                self.values.extend(earlier.map(|(path, value)| (path.clone(), value.clone())));
                self.failure = Some(error);
                Ok(Vec::new())
            }
        }
    }
}

async fn names(directory: &str, upstream: &Upstream) -> Result<Vec<String>, UpstreamError> {
    let listing = upstream.get(&format!("{directory}/")).await?.unwrap_or_default();
    let text = std::str::from_utf8(&listing).map_err(|_| UpstreamError::Malformed)?;
    Ok(text.lines().take(MAX_NAMES).map(str::to_owned).collect())
}

#[cfg(test)]
mod tests;
