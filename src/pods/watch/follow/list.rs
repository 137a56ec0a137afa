//! The part of a list that has arrived.

use std::collections::HashSet;
use std::hash::{DefaultHasher, Hash as _, Hasher as _};

use super::super::objects::{Object, ObjectMeta};

/// The part of a list that has arrived.
pub(super) struct PartialList<T> {
    pub(super) objects: Vec<Box<T>>,
    pub(super) unreadable: Vec<ObjectMeta>,
    /// Whether there are also objects of which not even a UID can be read.
    pub(super) incomplete: bool,
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
