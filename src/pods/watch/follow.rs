//! Lists and watches of one selection of objects, for ever.
//!
//! A list is had as the beginning of a watch where the server does that (Kubernetes 1.32 and later: `sendInitialEvents`),
//! and page by page where not. A watch goes on where the last one ended; when the server has not kept what came since, the
//! list begins anew. A list is given out when it is complete. Each object is decoded by itself: one that cannot be is
//! skipped, and does not stop the others. <https://kubernetes.io/docs/reference/using-api/api-concepts/>

use std::borrow::Cow;
use std::collections::HashSet;
use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::ops::ControlFlow;
use std::time::Duration;

use serde::Deserialize;
use serde_json::value::RawValue;
use tokio::time::Instant;
use tracing::{debug, warn};

use super::client::{Answer, Client, encode};
use super::failure::{Backoff, Failure, Status, jitter};
use super::lines::{Line, Lines};
use super::objects::{Metadata, Object, OnlyMetadata};
use crate::metrics::Metrics;

/// Objects in one page of a list: small, because a page is in memory whole.
const PAGE_SIZE: u32 = 50;
/// How long the server is asked to keep a watch, and how much of that differs from watch to watch.
const WATCH_SECONDS: (f64, f64) = (270.0, 40.0);
/// A watch on which nothing comes for so long is dead: bookmarks come each minute, also where nothing happens.
const WATCH_SILENCE: Duration = Duration::from_secs(90);
/// The same while a list comes.
const LIST_SILENCE: Duration = Duration::from_secs(30);
/// A watch that ends within this time, with nothing sent, has not worked.
const SHORTEST_WATCH: Duration = Duration::from_secs(1);
/// How often a list may show an earlier state than was known before it is taken for a new history.
const EARLIER_LISTS: u8 = 2;

/// Which objects.
#[derive(Clone, Debug)]
pub(super) struct Selection {
    /// Their plural, as metrics and the log name them.
    pub(super) resource: &'static str,
    /// Where the API has them.
    pub(super) path: String,
    /// The field selector.
    pub(super) fields: String,
    /// The annotations that are read of them. The others are let go as soon as an object is decoded.
    pub(super) annotations: Vec<String>,
}

/// What becomes known.
#[derive(Debug)]
pub(super) enum Event<'a, T> {
    /// Something was heard of the API.
    Alive,
    /// These are all of them, as of a version. `new_history` says that versions began anew. Each is an allocation of its own,
    /// so that what is taken out makes room for what it becomes.
    Listed { objects: Vec<Box<T>>, version: Option<u64>, new_history: bool },
    /// One is there, or is different now.
    Applied(T),
    /// One is gone for good.
    Deleted(Metadata),
    /// One has changed, and what it is now cannot be read.
    Unreadable(Metadata),
    /// It did not work; it is tried again.
    Failed(&'a Failure),
}

/// Follows a selection. The state lives as long as the following.
pub(super) struct Follow<'a, T, F> {
    client: &'a Client,
    metrics: &'a Metrics,
    selection: &'a Selection,
    take: F,
    /// The version that the next watch goes on from; without one, a list is needed.
    position: Option<String>,
    /// The list that is coming in.
    listing: Option<Listing<T>>,
    /// The highest version seen.
    highest: Option<u64>,
    earlier_lists: u8,
    /// Whether this server sends them.
    bookmarks: bool,
    backoff: Backoff,
}

/// A list that comes as events.
struct Listing<T> {
    objects: Vec<Box<T>>,
    /// Digests of the UIDs in it, so that one that is new need not be looked for among thousands.
    uids: HashSet<u64>,
}

impl<T> Default for Listing<T> {
    fn default() -> Self {
        Self { objects: Vec::new(), uids: HashSet::new() }
    }
}

impl<T: Object> Listing<T> {
    fn add(&mut self, object: T) {
        self.uids.insert(digest(object.metadata().uid.as_deref()));
        self.objects.push(Box::new(object));
    }

    fn forget(&mut self, uid: Option<&str>) {
        if self.uids.contains(&digest(uid)) {
            self.objects.retain(|object| object.metadata().uid.as_deref() != uid);
        }
    }
}

fn digest(uid: Option<&str>) -> u64 {
    let mut hasher = DefaultHasher::new();
    uid.hash(&mut hasher);
    hasher.finish()
}

#[derive(Deserialize)]
struct WatchLine<'a> {
    #[serde(rename = "type", borrow)]
    kind: Cow<'a, str>,
    #[serde(borrow)]
    object: &'a RawValue,
}

#[derive(Deserialize)]
struct Page<'a> {
    metadata: PageMetadata,
    // Null where there are none, by some servers.
    #[serde(borrow)]
    items: Option<Vec<&'a RawValue>>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct PageMetadata {
    resource_version: String,
    #[serde(default)]
    r#continue: Option<String>,
}

/// Follows until `take` says that it is enough.
pub(super) async fn follow<T: Object>(
    client: &Client,
    metrics: &Metrics,
    selection: &Selection,
    take: impl FnMut(Event<'_, T>) -> ControlFlow<()>,
) {
    let mut follow = Follow {
        client,
        metrics,
        selection,
        take,
        position: None,
        listing: None,
        highest: None,
        earlier_lists: 0,
        bookmarks: false,
        backoff: Backoff::default(),
    };
    while follow.once().await.is_continue() {}
}

impl<T: Object, F: FnMut(Event<'_, T>) -> ControlFlow<()>> Follow<'_, T, F> {
    /// One list or one watch, and the pause that its failure asks for.
    async fn once(&mut self) -> ControlFlow<()> {
        let worked = match self.position.clone() {
            None if self.client.streams_lists() => self.watch(None).await,
            None => self.list().await,
            Some(position) => self.watch(Some(&position)).await,
        };
        self.listing = None;
        let failure = match worked {
            Ok(flow) => return flow,
            Err(Failure::Status(status)) if status.code == 410 => Failure::Expired,
            Err(failure) => failure,
        };
        let Selection { resource, fields, .. } = self.selection;
        match &failure {
            Failure::Expired => {
                self.position = None;
                debug!(resource, fields, "{failure}; listing anew");
            }
            _ => {
                self.metrics.watch_failed(resource);
                warn!(resource, fields, error = %failure, "the Kubernetes API was asked in vain; it is asked again, and what is known is used");
            }
        }
        (self.take)(Event::Failed(&failure))?;
        tokio::time::sleep(self.backoff.pause(&failure)).await;
        ControlFlow::Continue(())
    }

    /// A list in pages. They all show the state of the first one.
    async fn list(&mut self) -> Result<ControlFlow<()>, Failure> {
        let Selection { path, fields, .. } = self.selection;
        let first = format!("{path}?limit={PAGE_SIZE}&fieldSelector={}", encode(fields));
        let mut target = first.clone();
        let (mut objects, mut body) = (Vec::new(), Vec::new());
        loop {
            self.client.ask_into(&target, &mut body).await?;
            if (self.take)(Event::Alive).is_break() {
                return Ok(ControlFlow::Break(()));
            }
            let page: Page<'_> = serde_json::from_slice(&body).map_err(|_| Failure::Malformed("a list that cannot be read"))?;
            objects.extend(page.items.unwrap_or_default().into_iter().filter_map(|item| self.decode_lean(item).ok()).map(Box::new));
            match page.metadata.r#continue.filter(|token| !token.is_empty()) {
                Some(token) => target = format!("{first}&continue={}", encode(&token)),
                None => return self.listed(objects, page.metadata.resource_version),
            }
        }
    }

    fn listed(&mut self, objects: Vec<Box<T>>, version: String) -> Result<ControlFlow<()>, Failure> {
        let number = version.parse().ok();
        let earlier = matches!((number, self.highest), (Some(number), Some(highest)) if number < highest);
        if earlier && self.earlier_lists < EARLIER_LISTS {
            self.earlier_lists += 1;
            return Err(Failure::Earlier);
        }
        self.earlier_lists = 0;
        self.highest = if earlier { number } else { self.highest.max(number) };
        self.position = Some(version);
        Ok((self.take)(Event::Listed { objects, version: number, new_history: earlier }))
    }

    /// A watch from a version, or one that begins with a list.
    async fn watch(&mut self, from: Option<&str>) -> Result<ControlFlow<()>, Failure> {
        let mut answer = match (self.client.ask(&self.watch_target(from)).await, from) {
            (Ok(answer), _) => answer,
            (Err(failure), None) if matches!(failure.code(), Some(400 | 422)) => {
                self.client.without_streaming_lists();
                return Ok(ControlFlow::Continue(()));
            }
            (Err(failure), _) => return Err(failure),
        };
        if (self.take)(Event::Alive).is_break() {
            return Ok(ControlFlow::Break(()));
        }
        self.listing = from.is_none().then(Listing::default);
        let outcome = self.read(&mut answer).await;
        // Whatever a list of this kind that never ends is due to, one in pages is another way.
        if self.listing.is_some() && matches!(outcome, Ok(ControlFlow::Continue(())) | Err(Failure::Silent)) {
            self.client.without_streaming_lists();
        }
        outcome
    }

    fn watch_target(&self, from: Option<&str>) -> String {
        let Selection { path, fields, .. } = self.selection;
        let seconds = WATCH_SECONDS.0 + WATCH_SECONDS.1 * jitter();
        let start = match from {
            Some(version) => format!("resourceVersion={}", encode(version)),
            None => "sendInitialEvents=true&resourceVersionMatch=NotOlderThan".to_owned(),
        };
        format!("{path}?watch=true&allowWatchBookmarks=true&timeoutSeconds={seconds:.0}&fieldSelector={}&{start}", encode(fields))
    }

    async fn read(&mut self, answer: &mut Answer) -> Result<ControlFlow<()>, Failure> {
        let began = Instant::now();
        let mut lines = Lines::default();
        let mut heard = false;
        loop {
            let silence = if self.listing.is_some() { LIST_SILENCE } else { WATCH_SILENCE };
            let bytes = match answer.bytes(silence).await {
                Ok(Some(bytes)) => bytes,
                Ok(None) if !heard && began.elapsed() < SHORTEST_WATCH => return Err(Failure::Ended),
                Ok(None) => break,
                // A server without bookmarks has nothing to say where nothing happens.
                Err(Failure::Silent) if !self.bookmarks && self.listing.is_none() => break,
                Err(failure) => return Err(failure),
            };
            heard = true;
            if (self.take)(Event::Alive).is_break() {
                return Ok(ControlFlow::Break(()));
            }
            for line in lines.take(&bytes) {
                if self.line(line)?.is_break() {
                    return Ok(ControlFlow::Break(()));
                }
            }
        }
        self.backoff.reset();
        Ok(ControlFlow::Continue(()))
    }

    fn line(&mut self, line: Line) -> Result<ControlFlow<()>, Failure> {
        let parsed = match &line {
            Line::Whole(text) => serde_json::from_slice::<WatchLine<'_>>(text).ok(),
            Line::TooLong => None,
        };
        let Some(WatchLine { kind, object }) = parsed else {
            self.undecodable(None);
            return Ok(ControlFlow::Continue(()));
        };
        if kind == "ERROR" {
            return Err(Failure::Status(serde_json::from_str::<Status>(object.get()).unwrap_or_default()));
        }
        if self.listing.is_none() {
            self.backoff.reset();
        }
        let event = match &*kind {
            "ADDED" | "MODIFIED" => match self.decode_lean(object) {
                Ok(object) => Event::Applied(object),
                Err(Some(metadata)) => Event::Unreadable(*metadata),
                Err(None) => return Ok(ControlFlow::Continue(())),
            },
            "DELETED" => match self.decode::<OnlyMetadata>(object) {
                Ok(object) => Event::Deleted(object.metadata),
                Err(_) => return Ok(ControlFlow::Continue(())),
            },
            "BOOKMARK" => match self.decode::<OnlyMetadata>(object) {
                Ok(object) => return self.bookmark(object.metadata),
                Err(_) => return Ok(ControlFlow::Continue(())),
            },
            _ => {
                self.undecodable(None);
                return Ok(ControlFlow::Continue(()));
            }
        };
        Ok(self.event(event))
    }

    fn event(&mut self, event: Event<'_, T>) -> ControlFlow<()> {
        let metadata = match &event {
            Event::Applied(object) => object.metadata(),
            Event::Deleted(metadata) | Event::Unreadable(metadata) => metadata,
            Event::Alive | Event::Listed { .. } | Event::Failed(_) => return (self.take)(event),
        };
        if let Some(list) = &mut self.listing {
            // Changes while the list comes are part of it.
            list.forget(metadata.uid.as_deref());
            if let Event::Applied(object) = event {
                list.add(object);
            }
            return ControlFlow::Continue(());
        }
        // One that comes late, or again, does not take the watch back.
        let number = metadata.version();
        if number.is_none() || number >= self.highest {
            self.position = metadata.resource_version.clone().or(self.position.take());
        }
        self.highest = self.highest.max(number);
        (self.take)(event)
    }

    fn bookmark(&mut self, metadata: Metadata) -> Result<ControlFlow<()>, Failure> {
        let ends_list = metadata.annotation("k8s.io/initial-events-end") == Some("true");
        let number = metadata.version();
        let Some(version) = metadata.resource_version else {
            return Ok(ControlFlow::Continue(()));
        };
        match self.listing.take() {
            Some(list) if ends_list => {
                self.backoff.reset();
                return self.listed(list.objects, version);
            }
            Some(list) => self.listing = Some(list),
            // The API's data was restored from an earlier state, and what we wait for may be long in coming.
            None if matches!((number, self.highest), (Some(number), Some(highest)) if number < highest) => return Err(Failure::Expired),
            None => {
                self.bookmarks = true;
                self.highest = self.highest.max(number);
                self.position = Some(version);
            }
        }
        Ok(ControlFlow::Continue(()))
    }

    /// An object of the selection, with no more of it than is read.
    fn decode_lean(&self, object: &RawValue) -> Result<T, Option<Box<Metadata>>> {
        let mut object: T = self.decode(object)?;
        object.metadata_mut().keep_annotations(&self.selection.annotations);
        Ok(object)
    }

    /// An object, or what can be said of one that is not what we take it for.
    fn decode<O: Object>(&self, object: &RawValue) -> Result<O, Option<Box<Metadata>>> {
        serde_json::from_str(object.get()).map_err(|_| {
            let metadata = serde_json::from_str(object.get()).ok().map(|object: OnlyMetadata| Box::new(object.metadata));
            self.undecodable(metadata.as_deref());
            metadata
        })
    }

    fn undecodable(&self, metadata: Option<&Metadata>) {
        let resource = self.selection.resource;
        self.metrics.watch_undecodable(resource);
        let name = |of: fn(&Metadata) -> &Option<String>| metadata.and_then(|metadata| of(metadata).as_deref()).unwrap_or_default();
        let (namespace, name) = (name(|metadata| &metadata.namespace), name(|metadata| &metadata.name));
        warn!(
            resource,
            namespace,
            name,
            "the Kubernetes API sent an object that cannot be read; it is left out, and a pod whose state is not known is refused"
        );
    }
}

#[cfg(test)]
mod tests;
