//! The attachments by address: pure data, bounded.

use std::collections::HashSet;
use std::net::IpAddr;

use super::attachment::Attachment;
use super::record::AttachmentRecord;
use crate::digest::Digest;
use crate::sorted::Sorted;

/// The attachments of all result files.
#[derive(Debug)]
pub(super) struct AttachmentTable {
    /// In the order of addresses. The records of a file are searched linearly: reading the file takes longer than that.
    records: Sorted<AttachmentRecord>,
    /// The number of files that the records come from.
    used: usize,
    /// Files that were ignored.
    ignored: HashSet<Digest>,
    room: usize,
}

/// The effect of a change.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Change {
    /// An attachment was added, removed or changed.
    pub(super) is_news: bool,
    /// Another file was forgotten for lack of room.
    pub(super) is_full: bool,
}

impl AttachmentTable {
    /// Creates an empty table with room for this many files.
    pub(super) fn new(room: usize) -> Self {
        Self { records: Sorted::default(), used: 0, ignored: HashSet::new(), room }
    }

    /// Creates an empty table with the same room.
    pub(super) fn empty(&self) -> Self {
        Self::new(self.room)
    }

    /// Returns whether both tables hold the same attachments.
    pub(super) fn is_same(&self, other: &Self) -> bool {
        self.records == other.records
    }

    /// Returns the number of attachments.
    pub(super) fn used(&self) -> usize {
        self.used
    }

    /// Returns the number of ignored files.
    pub(super) fn ignored(&self) -> usize {
        self.ignored.len()
    }

    /// Returns the records that name this address, the most recently written first.
    pub(super) fn of(&self, ip: IpAddr) -> &[AttachmentRecord] {
        self.records.all_with(&Digest::of_ip(ip), |record| record.ip)
    }

    /// Stores the current content of a file; `None` for a file that is ignored.
    pub(super) fn put(&mut self, file: &[u8], attachment: Option<&Attachment>) -> Change {
        let file = Digest::of_name(file);
        let now: Sorted<AttachmentRecord> =
            attachment.map(|attachment| AttachmentRecord::all_of(file, attachment)).into_iter().flatten().collect();
        let has_records = self.records.iter().any(|record| record.file == file);
        let is_known = has_records || self.ignored.contains(&file);
        if is_known && self.records.iter().filter(|record| record.file == file).eq(now.iter()) {
            return Change::default();
        }
        let is_full = !is_known && self.used + self.ignored.len() >= self.room;
        if is_full {
            if attachment.is_none() {
                return Change { is_news: false, is_full };
            }
            self.forget_one();
        }
        let is_news = has_records || attachment.is_some() || is_full;
        if is_known {
            self.forget(file);
        }
        if attachment.is_some() {
            self.used += 1;
            for record in now {
                self.records.insert(record);
            }
        } else {
            self.ignored.insert(file);
        }
        Change { is_news, is_full }
    }

    /// Forgets a file. Returns whether it was an attachment.
    pub(super) fn remove(&mut self, file: &[u8]) -> bool {
        self.forget(Digest::of_name(file))
    }

    fn forget(&mut self, file: Digest) -> bool {
        if self.ignored.remove(&file) {
            return false;
        }
        let before = self.records.len();
        self.records.retain(|record| record.file != file);
        let was_there = self.records.len() < before;
        self.used -= usize::from(was_there);
        was_there
    }

    /// Makes room: an ignored file goes first, then the least recently written one. Leftover files are older than those of
    /// running pods.
    fn forget_one(&mut self) {
        let oldest = || self.records.iter().min_by_key(|record| record.age()).map(|record| record.file);
        if let Some(file) = self.ignored.iter().next().copied().or_else(oldest) {
            self.forget(file);
        }
    }
}
