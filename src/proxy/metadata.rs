//! The metadata that pods are given: values of a [table](mod@table), read by the daemon ahead of any request.
//!
//! A pod's request is a look into memory. It never makes a question to the real service, so it cannot shape one, and a
//! service that is slow or down slows nobody: what was read before is given on. Only what changes all the time is read
//! while somebody asks for it, by the same background work.

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
mod upstream;

use table::{GROUPS, Group, Names, Set};
use upstream::{Upstream, UpstreamError};

/// How long a request waits for a value that was never read yet: less than the most hurried SDK.
const FIRST_WAIT: Duration = Duration::from_millis(400);
/// What nobody asked for in this time is not read any more, where it is read only while asked for.
const ASKED: Duration = Duration::from_secs(120);
/// Turns after which such a value is too old to be given.
const TURNS: u32 = 6;
/// Pauses after failures.
const RETRY: Duration = Duration::from_secs(1);
const RETRY_AT_MOST: Duration = Duration::from_secs(60);
/// Values of a directory whose names the service tells.
const MAX_NAMES: usize = 256;

/// What was read of one group.
#[derive(Clone, Debug)]
struct Read {
    values: Arc<BTreeMap<String, Bytes>>,
    /// Whether some of them could not be read.
    partial: bool,
    at: Instant,
}

/// Which pods may read what.
#[derive(Debug)]
pub struct Access {
    /// What every pod may.
    pub everybody: &'static [Set],
    /// The namespaces whose pods may read everything.
    pub node_info: Patterns,
}

impl Access {
    /// What every pod may read by a profile, and all of it the pods of these namespaces.
    pub fn new(profile: MetadataProfile, node_info: Patterns) -> Self {
        let everybody: &[Set] = match profile {
            MetadataProfile::None => &[],
            MetadataProfile::Base => &[Set::Base],
            MetadataProfile::NodeInfo => &ALL,
        };
        Self { everybody, node_info }
    }

    /// What pods of a namespace may read.
    pub fn of(&self, namespace: &str) -> &'static [Set] {
        if self.node_info.find(namespace).is_some() { &ALL } else { self.everybody }
    }

    /// What somebody may read.
    pub fn of_somebody(&self) -> Vec<Set> {
        if self.node_info.count() > 0 { ALL.to_vec() } else { self.everybody.to_vec() }
    }
}

const ALL: [Set; 2] = [Set::Base, Set::NodeInfo];

/// What a path is to a pod.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum MetadataLookup {
    /// A value, or the listing of a directory.
    Text(Bytes),
    /// Nothing that this pod may read.
    Nothing,
    /// Something, and it could not be read.
    Unavailable,
}

/// The values as they were read; cheap to clone.
#[derive(Clone, Debug)]
pub struct MetadataValues(Arc<SharedValues>);

#[derive(Debug)]
struct SharedValues {
    /// One for each group; `None` until it was read.
    read: watch::Sender<[Option<Read>; GROUPS.len()]>,
    /// When each was last asked for.
    asked: watch::Sender<[Option<Instant>; GROUPS.len()]>,
    /// The sets that are read at all.
    sets: Vec<Set>,
}

impl MetadataValues {
    /// Nothing read yet; only values of these sets ever will be.
    pub fn new(sets: Vec<Set>) -> Self {
        let (read, asked) = (std::array::from_fn(|_| None), [None; GROUPS.len()]);
        Self(Arc::new(SharedValues { read: watch::Sender::new(read), asked: watch::Sender::new(asked), sets }))
    }

    /// What a path below the version is, to a pod that may read `sets`. `own` are paths that it has beside these, of which
    /// only the names are listed.
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
        // Where not everything is known, there may be more than is seen.
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

    /// Reads for ever what is to be read, from the real service at this authority.
    pub async fn keep(self, authority: String, metrics: Metrics) {
        let upstream = Upstream::new(authority);
        let read = (0..GROUPS.len()).filter(|at| self.0.sets.contains(&GROUPS[*at].set));
        join_all(read.map(|at| self.keep_group(at, &upstream, &metrics))).await;
        // Where nothing is to be read, that goes on for ever, too.
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
            // What changes all the time is not given on as if it had just been read.
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

/// What was read, where it is not too old to be given.
fn current<'a>(group: &Group, read: Option<&'a Read>) -> Option<&'a Read> {
    read.filter(|read| !group.while_asked || read.at.elapsed() < group.every * TURNS)
}

/// The values of a group. One that the service cannot give is what it was `earlier`, and the failure is told with the others;
/// a service that does not answer ends it.
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
            match tree.names {
                Names::Leaves if table::is_name(&name) => reading.value(format!("{directory}/{name}")).await?,
                Names::Interfaces(leaves) => {
                    let Some(mac) = name.strip_suffix('/').filter(|name| table::is_mac(name)) else { continue };
                    let directory = format!("{directory}/{mac}");
                    let there = reading.names(&directory).await?;
                    for leaf in leaves.iter().filter(|leaf| there.iter().any(|name| name == *leaf)) {
                        reading.value(format!("{directory}/{leaf}")).await?;
                    }
                }
                Names::Leaves => {}
            }
        }
    }
    Ok((reading.values, reading.failure))
}

/// A group that is being read.
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

    /// The names in a directory. Where they cannot be had, those below it are what they were.
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
