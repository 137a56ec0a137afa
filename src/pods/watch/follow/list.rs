//! Lists: page by page, and the part of a list that has arrived.

use std::collections::HashSet;
use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::ops::ControlFlow;

use tracing::debug;

use super::super::objects::{Object, ObjectMeta};
use super::super::unreadable::UnreadableReason;
use super::{Follow, Selection, WatchEvent};
use crate::kubernetes::client::encode;
use crate::kubernetes::failure::RequestFailure;

/// How many lists in a row with an object without a readable UID are discarded. The next one is taken without that object.
const NAMELESS_LISTS: u8 = 2;
/// How many lists in a row with an earlier version than the highest seen are discarded. The next one counts as a new history.
pub(super) const EARLIER_LISTS: u8 = 2;

/// The part of a list that has arrived.
pub(super) struct PartialList<T> {
    pub(super) objects: Vec<Box<T>>,
    pub(super) unreadable: Vec<ObjectMeta>,
    /// Whether there are also objects of which not even a UID can be read.
    incomplete: bool,
    /// Digests of the UIDs in both lists, so that a new object is not compared with thousands of others.
    uids: HashSet<u64>,
}

impl<T> Default for PartialList<T> {
    fn default() -> Self {
        Self { objects: Vec::new(), unreadable: Vec::new(), incomplete: false, uids: HashSet::new() }
    }
}

impl<T: Object> PartialList<T> {
    /// Adds an object.
    pub(super) fn add(&mut self, object: T) {
        self.uids.insert(digest(object.metadata().uid.as_deref()));
        self.objects.push(Box::new(object));
    }

    /// Adds an object of which only the metadata can be read.
    pub(super) fn add_unreadable(&mut self, metadata: ObjectMeta) {
        self.uids.insert(digest(metadata.uid.as_deref()));
        self.unreadable.push(metadata);
    }

    /// Removes the object with this UID.
    pub(super) fn forget(&mut self, uid: Option<&str>) {
        if self.uids.contains(&digest(uid)) {
            self.objects.retain(|object| object.metadata().uid.as_deref() != uid);
            self.unreadable.retain(|metadata| metadata.uid.as_deref() != uid);
        }
    }
}

fn digest(uid: Option<&str>) -> u64 {
    let mut hasher = DefaultHasher::new();
    uid.hash(&mut hasher);
    hasher.finish()
}

impl<T: Object, F: FnMut(WatchEvent<'_, T>) -> ControlFlow<()>> Follow<'_, T, F> {
    /// Lists in pages. After a page that took too long to arrive, lists again in smaller pages.
    pub(super) async fn list(&mut self) -> Result<ControlFlow<()>, RequestFailure> {
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
    pub(super) fn listed(&mut self, list: PartialList<T>, version: String) -> Result<ControlFlow<()>, RequestFailure> {
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
}
