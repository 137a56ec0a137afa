//! The objects, their history and the open watches: the counterpart of etcd and the watch cache of a real server.

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::ops::Bound;
use std::sync::Arc;

use serde_json::Value;
use tokio::sync::mpsc;

use super::documents::{Key, complete, merge, now, uid_of};
use super::objects::Resource;
use super::selector::Selector;
use super::status::ApiError;
use super::subscription::{Change, Item, Start, Watch};

/// The number of changes that are kept before the oldest are dropped, as by a compaction.
const HISTORY: usize = 20_000;

type Objects = BTreeMap<Key, Arc<Value>>;

#[derive(Debug)]
pub(super) struct Store {
    /// The version of the latest change. 0 means "any" in the protocol and is never used.
    version: u64,
    /// The oldest version from which a watch or a page can still continue.
    compacted: u64,
    objects: BTreeMap<Resource, Objects>,
    history: VecDeque<Change>,
    holds: BTreeSet<(Resource, String)>,
    held: Vec<Change>,
    watches: BTreeMap<u64, Watch>,
    last_watch: u64,
}

/// The state that a list shows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Snapshot {
    Latest,
    /// The state at a version, from the key after the given one.
    At(u64, Option<Key>),
}

/// A page of a list.
#[derive(Debug)]
pub(super) struct Page {
    pub(super) version: u64,
    pub(super) items: Vec<Arc<Value>>,
    /// The last key of this page, if there are more.
    pub(super) more: Option<Key>,
    /// The number of objects after this page. Unknown if a selector was given, as on a real server.
    pub(super) remaining: Option<usize>,
}

impl Store {
    pub(super) fn new() -> Store {
        Store {
            version: 1,
            compacted: 1,
            objects: BTreeMap::new(),
            history: VecDeque::new(),
            holds: BTreeSet::new(),
            held: Vec::new(),
            watches: BTreeMap::new(),
            last_watch: 0,
        }
    }

    pub(super) fn version(&self) -> u64 {
        self.version
    }

    /// Takes a version for a change that is stored elsewhere.
    pub(super) fn next_version(&mut self) -> u64 {
        self.version += 1;
        self.version
    }

    pub(super) fn get(&self, resource: Resource, key: &Key) -> Option<&Arc<Value>> {
        self.objects.get(&resource)?.get(key)
    }

    /// Creates or replaces an object. An object with another UID replaces the old one by deletion and creation.
    pub(super) fn apply(&mut self, resource: Resource, mut object: Value) -> Arc<Value> {
        let key = complete(resource, &mut object);
        let mut previous = self.get(resource, &key).cloned();
        let uid = &object["metadata"]["uid"];
        if previous.as_ref().is_some_and(|old| !uid.is_null() && old["metadata"]["uid"] != *uid) {
            self.delete(resource, &key);
            previous = None;
        }
        self.version += 1;
        let version = self.version;
        let metadata = &mut object["metadata"];
        if metadata["uid"].is_null() {
            metadata["uid"] = match &previous {
                Some(old) => old["metadata"]["uid"].clone(),
                None => uid_of(version).into(),
            };
        }
        if metadata["creationTimestamp"].is_null() {
            metadata["creationTimestamp"] = match &previous {
                Some(old) => old["metadata"]["creationTimestamp"].clone(),
                None => now().into(),
            };
        }
        metadata["resourceVersion"] = version.to_string().into();
        let object = Arc::new(object);
        let objects = self.objects.entry(resource).or_default();
        objects.insert(key.clone(), Arc::clone(&object));
        self.changed(Change { version, published: version, resource, key, previous, current: Some(Arc::clone(&object)) });
        object
    }

    /// Merges `patch` into an object (RFC 7386). If the patch has a resource version, it must be the current one.
    pub(super) fn patch(&mut self, resource: Resource, key: &Key, patch: &Value) -> Result<Arc<Value>, ApiError> {
        let Some(current) = self.get(resource, key).cloned() else {
            return Err(ApiError::not_found(resource.info(), &key.1));
        };
        let expected = &patch["metadata"]["resourceVersion"];
        if !expected.is_null() && *expected != current["metadata"]["resourceVersion"] {
            return Err(ApiError::conflict(resource.info(), &key.1));
        }
        let mut object = Value::clone(&current);
        merge(&mut object, patch);
        if object == *current {
            return Ok(current);
        }
        Ok(self.apply(resource, object))
    }

    pub(super) fn delete(&mut self, resource: Resource, key: &Key) -> bool {
        let objects = self.objects.entry(resource).or_default();
        let Some(previous) = objects.remove(key) else {
            return false;
        };
        self.version += 1;
        let version = self.version;
        self.changed(Change { version, published: version, resource, key: key.clone(), previous: Some(previous), current: None });
        true
    }

    fn changed(&mut self, change: Change) {
        let name = (change.resource, change.key.1.clone());
        if self.holds.contains(&name) {
            self.held.push(change);
        } else {
            self.publish(change);
        }
    }

    fn publish(&mut self, change: Change) {
        for watch in self.watches.values() {
            watch.send(&change);
        }
        self.history.push_back(change);
        if self.history.len() > HISTORY
            && let Some(oldest) = self.history.pop_front()
        {
            self.compacted = oldest.published;
        }
    }

    pub(super) fn hold(&mut self, resource: Resource, name: &str) {
        self.holds.insert((resource, name.to_owned()));
    }

    /// Publishes withheld changes. Each change keeps its own version, which lists have already shown. It is published at a
    /// later version, so that no client that resumes a watch can miss it.
    pub(super) fn release(&mut self, resource: Resource, name: &str) {
        self.holds.remove(&(resource, name.to_owned()));
        let held = std::mem::take(&mut self.held);
        for mut change in held {
            if change.resource != resource || change.key.1 != name {
                self.held.push(change);
                continue;
            }
            self.version += 1;
            change.published = self.version;
            self.publish(change);
        }
    }

    /// Discards the history before the current version.
    pub(super) fn compact(&mut self) {
        self.compacted = self.version;
        self.history.clear();
    }

    /// Returns a page of at most `limit` objects.
    pub(super) fn list(&self, resource: Resource, selector: &Selector, snapshot: &Snapshot, limit: usize) -> Result<Page, ApiError> {
        let (version, after) = match snapshot {
            Snapshot::Latest => (self.version, None),
            Snapshot::At(version, after) => (*version, after.as_ref()),
        };
        let objects = self.objects_at(resource, version)?;
        let start = after.map_or(Bound::Unbounded, Bound::Excluded);
        let mut matching = objects.range::<Key, _>((start, Bound::Unbounded)).filter(|(_, object)| selector.matches(object));
        let mut items = Vec::new();
        let mut last = None;
        for (key, object) in matching.by_ref().take(limit) {
            items.push(Arc::clone(object));
            last = Some(key.clone());
        }
        let remaining = matching.count();
        Ok(Page {
            version,
            items,
            more: last.filter(|_| remaining > 0),
            remaining: (remaining > 0 && !selector.selects()).then_some(remaining),
        })
    }

    /// Returns the objects as they were at `version`.
    fn objects_at(&self, resource: Resource, version: u64) -> Result<Cow<'_, Objects>, ApiError> {
        if version > self.version {
            return Err(ApiError::too_new(version, self.version));
        }
        if version < self.compacted {
            return Err(ApiError::too_old(version, self.compacted));
        }
        // The changes of one object are in order: the withheld ones are last.
        let published = self.history.iter().rev().take_while(|change| change.published > version);
        let later = self.held.iter().rev().chain(published);
        let mut later = later.filter(|change| change.version > version && change.resource == resource).peekable();
        let current = self.objects.get(&resource);
        if later.peek().is_none() {
            return Ok(current.map_or_else(|| Cow::Owned(Objects::new()), Cow::Borrowed));
        }
        let mut objects = current.cloned().unwrap_or_default();
        for change in later {
            match &change.previous {
                Some(previous) => objects.insert(change.key.clone(), Arc::clone(previous)),
                None => objects.remove(&change.key),
            };
        }
        Ok(Cow::Owned(objects))
    }

    /// Opens a watch, and returns its number and what it receives.
    pub(super) fn watch(
        &mut self,
        resource: Resource,
        selector: Selector,
        start: Start,
        bookmarks: bool,
    ) -> Result<(u64, mpsc::UnboundedReceiver<Item>), ApiError> {
        let (sender, receiver) = mpsc::unbounded_channel();
        let after = match start {
            Start::After(version) => version,
            Start::Everything { .. } | Start::Now => self.version,
        };
        if after < self.compacted {
            return Err(ApiError::too_old(after, self.compacted));
        }
        let resumed = matches!(start, Start::After(_));
        let watch = Watch { resource, selector, after, resumed, bookmarks, sender };
        if let Start::Everything { mark_end } = start {
            let objects = self.objects.get(&resource).into_iter().flatten();
            for (_, object) in objects.filter(|(_, object)| watch.selector.matches(object)) {
                let _ = watch.sender.send(Item::Event("ADDED", Arc::clone(object)));
            }
            if mark_end {
                watch.bookmark(self.version, true);
            }
        }
        for change in &self.history {
            watch.send(change);
        }
        self.last_watch += 1;
        self.watches.insert(self.last_watch, watch);
        Ok((self.last_watch, receiver))
    }

    pub(super) fn close_watch(&mut self, watch: u64) {
        self.watches.remove(&watch);
    }

    pub(super) fn close_watches(&mut self) {
        self.watches.clear();
    }

    pub(super) fn watches(&self, resource: Resource) -> usize {
        self.of(resource).count()
    }

    /// Sends a bookmark to every watch of the resource that allows it.
    pub(super) fn bookmark_all(&self, resource: Resource) {
        for watch in self.of(resource) {
            watch.bookmark(self.version, false);
        }
    }

    pub(super) fn bookmark(&self, watch: u64) {
        if let Some(watch) = self.watches.get(&watch) {
            watch.bookmark(self.version, false);
        }
    }

    pub(super) fn send_raw(&self, resource: Resource, line: &str) {
        for watch in self.of(resource) {
            let _ = watch.sender.send(Item::Raw(line.to_owned()));
        }
    }

    fn of(&self, resource: Resource) -> impl Iterator<Item = &Watch> {
        let watches = self.watches.values();
        watches.filter(move |watch| watch.resource == resource)
    }
}
