//! Turns changes of objects into the events of one watch.

use std::sync::Arc;

use serde_json::Value;
use tokio::sync::mpsc;

use super::documents::{Key, at_version};
use super::objects::Resource;
use super::selector::Selector;

/// A change of one object.
#[derive(Debug, Clone)]
pub(super) struct Change {
    /// The version of the change: the object's version after it or, for a deletion, the last one.
    pub(super) version: u64,
    /// The version at which watches receive the change, which is later if it was withheld.
    pub(super) published: u64,
    pub(super) resource: Resource,
    pub(super) key: Key,
    pub(super) previous: Option<Arc<Value>>,
    pub(super) current: Option<Arc<Value>>,
}

/// An open watch.
#[derive(Debug)]
pub(super) struct Watch {
    pub(super) resource: Resource,
    pub(super) selector: Selector,
    /// The watch receives the changes after this version.
    pub(super) after: u64,
    /// Whether the watch resumes from a version that its client has seen. Such a client has not seen withheld changes. Any
    /// other watch begins with a list that contains them.
    pub(super) resumed: bool,
    /// Whether the client asked for bookmarks.
    pub(super) bookmarks: bool,
    pub(super) sender: mpsc::UnboundedSender<Item>,
}

/// What a watch receives.
#[derive(Debug)]
pub(super) enum Item {
    Event(&'static str, Arc<Value>),
    Bookmark { version: u64, initial_end: bool },
    Raw(String),
}

/// Where a watch begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Start {
    /// With the existing objects, as ADDED events, followed by a bookmark if `mark_end`.
    Everything { mark_end: bool },
    /// With the next change.
    Now,
    /// With the first change after this version.
    After(u64),
}

impl Watch {
    /// Sends the event that a change means for this watch, if any. An object that starts to match the selector is added; one
    /// that stops to match is deleted. Sending fails only if the client is gone.
    pub(super) fn send(&self, change: &Change) {
        let at = if self.resumed { change.published } else { change.version };
        if change.resource != self.resource || at <= self.after {
            return;
        }
        let matching = |object: &Option<Arc<Value>>| {
            let object = object.as_ref();
            object.filter(|o| self.selector.matches(o)).cloned()
        };
        let item = match (matching(&change.previous), matching(&change.current)) {
            (None, None) => return,
            (None, Some(current)) => Item::Event("ADDED", current),
            (Some(_), Some(current)) => Item::Event("MODIFIED", current),
            (Some(previous), None) => Item::Event("DELETED", Arc::new(at_version(&previous, change.version))),
        };
        let _ = self.sender.send(item);
    }

    pub(super) fn bookmark(&self, version: u64, initial_end: bool) {
        if self.bookmarks {
            let _ = self.sender.send(Item::Bookmark { version, initial_end });
        }
    }
}
