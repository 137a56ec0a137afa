//! Lists and watches one selection of objects until the caller has enough.
//!
//! The list comes as the beginning of a watch where the server supports that (`sendInitialEvents`, Kubernetes 1.32 and later), and
//! otherwise page by page. A watch continues from the last version seen. A new list is needed when the server no longer has the
//! changes since that version, and when a change cannot be read, since it may have been a deletion. A list is reported when it is
//! complete. Each object is decoded separately: one that cannot be decoded is reported by its metadata, and the others are not
//! affected. <https://kubernetes.io/docs/reference/using-api/api-concepts/>

use std::borrow::Cow;
use std::ops::ControlFlow;
use std::time::Duration;

use serde::Deserialize;
use serde_json::value::RawValue;
use tokio::time::Instant;
use tracing::{debug, warn};

use self::list::PartialList;
use super::fields::Annotation;
use super::fields::{self, INITIAL_EVENTS_END};
use super::lines::{Line, Lines};
use super::objects::{self, Object, ObjectMeta, OnlyMetadata};
use super::pauses::WatchPauses;
use super::unreadable::{Reports, UnreadableReason};
use crate::advice::{Advise as _, chain};
use crate::backoff::fraction;
use crate::kubernetes::client::{Client, encode};
use crate::kubernetes::failure::{FailureKind, RequestFailure, Status};
use crate::kubernetes::fields::Field;
use crate::kubernetes::filter::{Document, Excerpt, Filter};
use crate::kubernetes::response::ApiResponse;
use crate::log_once::Holder;
use crate::metrics::Metrics;

mod list;

/// Objects in one page of a list. Few, because an object may be about 10 MB of JSON, and each page has a time limit.
pub(super) const PAGE_SIZE: u32 = 20;
/// Seconds for which the server is asked to keep a watch, and the random part that is added.
const WATCH_SECONDS: (f64, f64) = (270.0, 40.0);
/// A watch that is silent for this long is dead: the server sends a bookmark each minute even if nothing changes.
const WATCH_SILENCE: Duration = Duration::from_secs(90);
/// A list of which nothing arrives for this long is dead.
const LIST_SILENCE: Duration = Duration::from_secs(30);
/// A watch that ends sooner than this counts as failed.
const LIVING_WATCH: Duration = Duration::from_secs(5);
/// How many watches in a row from one version may bring nothing. After that, the server may not have the version yet, because its
/// data was restored from an earlier state. A list shows the state that it has.
const FRUITLESS_WATCHES: u8 = 2;

/// How many lists in a row with an object without a readable UID are discarded. The next one is taken without that object.
const NAMELESS_LISTS: u8 = 2;
/// How many lists in a row with an earlier version than the highest seen are discarded. The next one counts as a new history.
const EARLIER_LISTS: u8 = 2;

/// Selects objects of the API.
#[derive(Clone, Debug)]
pub(super) struct Selection {
    /// The plural of the resource, for metrics and the log.
    pub(super) resource: &'static str,
    /// The path of the resource in the API.
    pub(super) path: String,
    /// The field selector.
    pub(super) fields: String,
    /// The annotations that are used. The others are dropped as soon as an object is decoded.
    pub(super) annotations: Vec<Annotation>,
    /// Whether all owners are used. Otherwise, those of static pods are.
    pub(super) owners: bool,
}

/// News of a selection.
#[derive(Debug)]
pub(super) enum WatchEvent<'a, T> {
    /// The API responded. This is no news about objects: an error may follow, or it is the first page of a list that never ends.
    Alive,
    /// All changes up to now have been reported: the API sent a bookmark.
    UpToDate,
    /// All objects as of a version. Only the metadata of the `unreadable` ones could be read. `new_history` means that versions
    /// restarted, for example after a restore; `incomplete` that there are also objects without a readable UID. Each object is
    /// boxed, so that its memory is free again once it is converted.
    Listed { objects: Vec<Box<T>>, unreadable: Vec<ObjectMeta>, version: Option<u64>, new_history: bool, incomplete: bool },
    /// An object was added or changed.
    Applied(T),
    /// An object was deleted.
    Deleted(ObjectMeta),
    /// An object changed, and its new state cannot be read.
    Unreadable(ObjectMeta),
    /// A list or watch failed; it is retried.
    Failed(&'a RequestFailure),
}

/// Follows a selection, and holds the state that outlasts a single list or watch.
pub(super) struct Follow<'a, T, F> {
    client: &'a Client,
    metrics: &'a Metrics,
    selection: &'a Selection,
    /// The fields that are read: of a line of a watch, and of a page of a list.
    fields: &'a (Field, Field),
    take: F,
    /// The version from which the next watch continues; `None` if a list is needed.
    position: Option<String>,
    /// The list that a watch has begun to send.
    listing: Option<PartialList<T>>,
    /// The highest version seen.
    highest: Option<u64>,
    earlier_lists: u8,
    /// Lists with an object without a UID.
    nameless_lists: u8,
    /// Watches in a row from one version that brought nothing.
    fruitless: u8,
    /// Whether the server accepted the current watch, and whether that watch brought anything.
    begun: bool,
    heard: bool,
    /// Whether this server sends bookmarks.
    bookmarks: bool,
    /// Objects in a page of a list.
    page_size: u32,
    backoff: WatchPauses,
    failures: Holder<'a, (&'static str, FailureKind)>,
    reports: Reports,
}

#[derive(Deserialize)]
struct WatchLine<'a> {
    #[serde(rename = "type", borrow)]
    kind: Cow<'a, str>,
    #[serde(borrow)]
    object: &'a RawValue,
}

/// Follows a selection until `take` breaks.
pub(super) async fn follow<T: Object>(
    client: &Client,
    metrics: &Metrics,
    selection: &Selection,
    take: impl FnMut(WatchEvent<'_, T>) -> ControlFlow<()>,
) {
    let fields = (objects::line::<T>(&selection.annotations), objects::page::<T>(&selection.annotations));
    let mut follow = Follow {
        client,
        metrics,
        selection,
        fields: &fields,
        take,
        position: None,
        listing: None,
        highest: None,
        earlier_lists: 0,
        nameless_lists: 0,
        fruitless: 0,
        begun: false,
        heard: false,
        bookmarks: false,
        page_size: PAGE_SIZE,
        backoff: WatchPauses::default(),
        failures: client.failures().holder(),
        reports: Reports::default(),
    };
    while follow.once().await.is_continue() {}
}

impl<T: Object, F: FnMut(WatchEvent<'_, T>) -> ControlFlow<()>> Follow<'_, T, F> {
    /// Runs one list or one watch. After a failure, reports it and waits for the backoff.
    async fn once(&mut self) -> ControlFlow<()> {
        (self.begun, self.heard) = (false, false);
        let worked = match self.position.clone() {
            None if self.client.streams_lists() => self.watch(None).await,
            None => self.list().await,
            Some(position) => self.watch(Some(&position)).await,
        };
        self.listing = None;
        if self.position.is_some() {
            self.judge(&worked);
        }
        let failure = match worked {
            Ok(flow) => return flow,
            Err(RequestFailure::Status(status)) if status.code == 410 => RequestFailure::Expired,
            Err(failure) => failure,
        };
        let Selection { resource, fields, .. } = self.selection;
        let is_gone = matches!(failure, RequestFailure::Expired | RequestFailure::Lost);
        if is_gone {
            self.position = None;
            debug!(resource, fields, error = %failure, "cannot continue the watch; listing again");
        } else {
            self.metrics.watch_failed(resource);
            if self.failures.begins((resource, failure.kind())) {
                warn!(
                    event = "watch-failed",
                    resource,
                    fields,
                    error = chain(&failure),
                    advice = failure.advice().as_deref(),
                    "a watch of the Kubernetes API failed; retrying, serving from the last known state; if it persists, check the \
                     connection to the API server"
                );
            } else {
                debug!(resource, fields, error = %failure, "Kubernetes watch failed again; retrying");
            }
        }
        (self.take)(WatchEvent::Failed(&failure))?;
        tokio::time::sleep(self.backoff.pause(&failure, self.begun || is_gone)).await;
        ControlFlow::Continue(())
    }

    /// Drops the position after a watch from it that shows that a list is needed.
    fn judge(&mut self, worked: &Result<ControlFlow<()>, RequestFailure>) {
        let failure = worked.as_ref().err();
        // Servers answer a version that is ahead of theirs with one of these.
        let is_refused = matches!(failure.and_then(RequestFailure::code), Some(400 | 422 | 504));
        if self.heard {
            self.fruitless = 0;
        } else if self.begun || matches!(failure, Some(RequestFailure::Silent)) {
            self.fruitless += 1;
        }
        if is_refused || self.fruitless >= FRUITLESS_WATCHES {
            let Selection { resource, fields, .. } = self.selection;
            debug!(resource, fields, "watches from the last resource version bring no events; listing again");
            (self.fruitless, self.position) = (0, None);
            // So that a loop of lists and fruitless watches slows down.
            self.begun = true;
        }
    }

    /// Lists in pages. After a page that took too long to arrive, lists again in smaller pages.
    async fn list(&mut self) -> Result<ControlFlow<()>, RequestFailure> {
        let listed = self.list_in_pages().await;
        if matches!(listed, Err(RequestFailure::Slow)) && self.page_size > 1 {
            self.page_size = (self.page_size / 4).max(1);
            let Selection { resource, fields, .. } = self.selection;
            debug!(resource, fields, size = self.page_size, "reading a page of the list took too long; restarting with smaller pages");
        }
        listed
    }

    /// Lists in pages of one size. All pages show the state at the time of the first one.
    async fn list_in_pages(&mut self) -> Result<ControlFlow<()>, RequestFailure> {
        let Selection { path, fields, .. } = self.selection;
        let first = format!("{path}?limit={}&fieldSelector={}", self.page_size, encode(fields));
        let mut target = first.clone();
        let mut list = PartialList::default();
        loop {
            let mut answer = self.client.ask_filtered(&target, &self.fields.1).await?;
            while let Some(items) = answer.items().await? {
                for item in items {
                    match self.decode_lean(&item.json, item.truncated.then_some(UnreadableReason::TooLarge)) {
                        Ok(object) => list.objects.push(Box::new(object)),
                        Err(Some(metadata)) => list.unreadable.push(*metadata),
                        // This may be a known pod, which would count as deleted if the object were skipped.
                        Err(None) => list.incomplete = true,
                    }
                }
            }
            if (self.take)(WatchEvent::Alive).is_break() {
                return Ok(ControlFlow::Break(()));
            }
            let page = answer.page()?;
            match page.continue_token() {
                Some(token) => target = format!("{first}&continue={}", encode(token)),
                None => return self.listed(list, page.version().to_owned()),
            }
        }
    }

    /// Reports a complete list, unless its version or its gaps ask for another list first.
    fn listed(&mut self, list: PartialList<T>, version: String) -> Result<ControlFlow<()>, RequestFailure> {
        if version.is_empty() {
            return Err(RequestFailure::Malformed("a list without a version"));
        }
        let number = version.parse().ok();
        let earlier = matches!((number, self.highest), (Some(number), Some(highest)) if number < highest);
        if earlier && self.earlier_lists < EARLIER_LISTS {
            self.earlier_lists += 1;
            return Err(RequestFailure::Earlier);
        }
        if list.incomplete && self.nameless_lists < NAMELESS_LISTS {
            self.nameless_lists += 1;
            return Err(RequestFailure::Lost);
        }
        (self.earlier_lists, self.nameless_lists) = (0, 0);
        self.highest = if earlier { number } else { self.highest.max(number) };
        self.position = Some(version);
        self.fruitless = 0;
        self.backoff.listed();
        let PartialList { objects, unreadable, incomplete, .. } = list;
        Ok((self.take)(WatchEvent::Listed { objects, unreadable, version: number, new_history: earlier, incomplete }))
    }

    /// Watches from a version; without one, the watch begins with a list.
    async fn watch(&mut self, from: Option<&str>) -> Result<ControlFlow<()>, RequestFailure> {
        let mut answer = match (self.client.ask(&self.watch_target(from)).await, from) {
            (Ok(answer), _) => answer,
            (Err(failure), None) if matches!(failure.code(), Some(400 | 422)) => {
                self.client.without_streaming_lists();
                return Ok(ControlFlow::Continue(()));
            }
            (Err(failure), _) => return Err(failure),
        };
        if (self.take)(WatchEvent::Alive).is_break() {
            return Ok(ControlFlow::Break(()));
        }
        self.begun = true;
        self.listing = from.is_none().then(PartialList::default);
        let began = Instant::now();
        let outcome = self.read(&mut answer, began).await;
        if began.elapsed() >= LIVING_WATCH {
            self.backoff.lived();
            self.failures.end_all();
        } else if from.is_some() && self.heard {
            self.backoff.brought();
        }
        // A streamed list that never ends, for whatever reason, is replaced by a list in pages. There, an unreadable object is not
        // a lost change.
        let is_endless = match &outcome {
            Ok(ControlFlow::Continue(()))
            | Err(RequestFailure::Silent | RequestFailure::Lost | RequestFailure::Slow | RequestFailure::TooLarge) => true,
            Err(RequestFailure::Ended) => self.heard,
            _ => false,
        };
        if self.listing.is_some() && is_endless {
            self.client.without_streaming_lists();
        }
        outcome
    }

    fn watch_target(&self, from: Option<&str>) -> String {
        let Selection { path, fields, .. } = self.selection;
        let seconds = WATCH_SECONDS.0 + WATCH_SECONDS.1 * fraction();
        let start = match from {
            Some(version) => format!("resourceVersion={}", encode(version)),
            None => "sendInitialEvents=true&resourceVersionMatch=NotOlderThan".to_owned(),
        };
        format!("{path}?watch=true&allowWatchBookmarks=true&timeoutSeconds={seconds:.0}&fieldSelector={}&{start}", encode(fields))
    }

    async fn read(&mut self, answer: &mut ApiResponse, began: Instant) -> Result<ControlFlow<()>, RequestFailure> {
        let mut lines = Lines::of(&self.fields.0);
        loop {
            let silence = if self.listing.is_some() { LIST_SILENCE } else { WATCH_SILENCE };
            let bytes = match answer.bytes(silence).await {
                Ok(Some(bytes)) => bytes,
                Ok(None) if began.elapsed() < LIVING_WATCH => return Err(RequestFailure::Ended),
                Ok(None) => return Ok(ControlFlow::Continue(())),
                // A server without bookmarks is silent while nothing changes.
                Err(RequestFailure::Silent) if !self.bookmarks && self.listing.is_none() => return Ok(ControlFlow::Continue(())),
                Err(failure) => return Err(failure),
            };
            if (self.take)(WatchEvent::Alive).is_break() {
                return Ok(ControlFlow::Break(()));
            }
            for line in lines.take(&bytes) {
                if self.line(line)?.is_break() {
                    return Ok(ControlFlow::Break(()));
                }
            }
            lines.check()?;
        }
    }

    fn line(&mut self, line: Line) -> Result<ControlFlow<()>, RequestFailure> {
        let Line::Read(Excerpt { json, truncated }) = line else { return self.lost() };
        let identity;
        let (WatchLine { kind, object }, flaw) = match serde_json::from_slice(&json) {
            Ok(line) => (line, truncated.then_some(UnreadableReason::TooLarge)),
            // The used fields are malformed, but the identifying ones may be valid.
            Err(_) => {
                identity = identity_of(&json);
                match serde_json::from_str(&identity) {
                    Ok(line) => (line, Some(UnreadableReason::Malformed)),
                    Err(_) => return self.lost(),
                }
            }
        };
        let object = object.get().as_bytes();
        if kind == "ERROR" {
            return Err(RequestFailure::Status(serde_json::from_slice::<Status>(object).unwrap_or_default()));
        }
        self.heard = true;
        let unreadable = |metadata: Option<Box<ObjectMeta>>| metadata.ok_or(RequestFailure::Lost);
        let event = match &*kind {
            "ADDED" | "MODIFIED" => match self.decode_lean(object, flaw) {
                Ok(object) => WatchEvent::Applied(object),
                Err(metadata) => WatchEvent::Unreadable(*unreadable(metadata)?),
            },
            // Only the metadata of a deleted object is needed.
            "DELETED" => match self.decode::<OnlyMetadata>(object, None) {
                Ok(object) => WatchEvent::Deleted(object.metadata),
                Err(metadata) => WatchEvent::Deleted(*unreadable(metadata)?),
            },
            "BOOKMARK" => match serde_json::from_slice::<OnlyMetadata>(object) {
                Ok(object) => return self.bookmark(object.metadata),
                Err(_) => {
                    self.undecodable(None, UnreadableReason::Malformed);
                    return Ok(ControlFlow::Continue(()));
                }
            },
            _ => {
                let metadata = ObjectMeta::of_any(object);
                self.undecodable(metadata.as_ref(), UnreadableReason::Malformed);
                WatchEvent::Unreadable(metadata.ok_or(RequestFailure::Lost)?)
            }
        };
        Ok(self.event(event))
    }

    /// Fails the watch after an unreadable line: it may have been the deletion of any object.
    fn lost(&mut self) -> Result<ControlFlow<()>, RequestFailure> {
        self.undecodable(None, UnreadableReason::Malformed);
        Err(RequestFailure::Lost)
    }

    fn event(&mut self, event: WatchEvent<'_, T>) -> ControlFlow<()> {
        let metadata = match &event {
            WatchEvent::Applied(object) => object.metadata(),
            WatchEvent::Deleted(metadata) | WatchEvent::Unreadable(metadata) => metadata,
            WatchEvent::Alive | WatchEvent::UpToDate | WatchEvent::Listed { .. } | WatchEvent::Failed(_) => return (self.take)(event),
        };
        if let Some(list) = &mut self.listing {
            // Changes that arrive during the list are part of it.
            list.forget(metadata.uid.as_deref());
            match event {
                WatchEvent::Applied(object) => list.add(object),
                WatchEvent::Unreadable(metadata) => list.add_unreadable(metadata),
                _ => {}
            }
            return ControlFlow::Continue(());
        }
        // A late or repeated event does not move the position back.
        let number = metadata.version();
        if number.is_none() || number >= self.highest {
            self.position = metadata.resource_version.clone().or(self.position.take());
        }
        self.highest = self.highest.max(number);
        (self.take)(event)
    }

    fn bookmark(&mut self, metadata: ObjectMeta) -> Result<ControlFlow<()>, RequestFailure> {
        let ends_list = metadata.annotation(INITIAL_EVENTS_END) == Some("true");
        let number = metadata.version();
        let Some(version) = metadata.resource_version else {
            return Ok(ControlFlow::Continue(()));
        };
        match self.listing.take() {
            Some(list) if ends_list => return self.listed(list, version),
            Some(list) => self.listing = Some(list),
            // The API's data was restored from an earlier state, so the next event may be a long time away.
            None if matches!((number, self.highest), (Some(number), Some(highest)) if number < highest) => {
                return Err(RequestFailure::Expired);
            }
            None => {
                self.bookmarks = true;
                self.highest = self.highest.max(number);
                self.position = Some(version);
                return Ok((self.take)(WatchEvent::UpToDate));
            }
        }
        Ok(ControlFlow::Continue(()))
    }

    /// Decodes an object of the selection, without the annotations that are not used.
    fn decode_lean(&mut self, object: &[u8], flaw: Option<UnreadableReason>) -> Result<T, Option<Box<ObjectMeta>>> {
        let mut object: T = self.decode(object, flaw)?;
        let metadata = object.metadata_mut();
        metadata.keep_annotations(&self.selection.annotations);
        if !self.selection.owners {
            metadata.owner.take_if(|owner| !owner.is_a_node());
        }
        Ok(object)
    }

    /// Decodes an object. Fails for one that cannot be decoded or has a known `flaw`, with its metadata if that has a UID.
    fn decode<O: Object>(&mut self, object: &[u8], flaw: Option<UnreadableReason>) -> Result<O, Option<Box<ObjectMeta>>> {
        if flaw.is_none()
            && let Ok(decoded) = serde_json::from_slice::<O>(object)
            && decoded.metadata().uid.is_some()
        {
            return Ok(decoded);
        }
        let metadata = ObjectMeta::of_any(object);
        self.undecodable(metadata.as_ref(), flaw.unwrap_or(UnreadableReason::Malformed));
        Err(metadata.map(Box::new))
    }

    fn undecodable(&mut self, metadata: Option<&ObjectMeta>, why: UnreadableReason) {
        self.metrics.watch_undecodable(self.selection.resource);
        self.reports.report(self.selection.resource, metadata, why);
    }
}

/// Returns the fields that identify the object of a line, as JSON.
fn identity_of(line: &[u8]) -> String {
    match Filter::once(&fields::identity_of_line(), line) {
        Document::Complete(identity) => String::from_utf8_lossy(&identity.json).into_owned(),
        Document::Empty | Document::Broken => String::new(),
    }
}

#[cfg(test)]
mod tests;
