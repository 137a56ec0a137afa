//! The attachments by file and by address: pure data, bounded.

use std::collections::HashMap;
use std::hash::{BuildHasher as _, BuildHasherDefault, Hasher, RandomState};
use std::net::IpAddr;
use std::sync::Arc;

use super::attachment::Attachment;

/// A map whose keys are digests already. The digests are keyed by the process, so nobody can choose two names or addresses of
/// one digest.
type ByDigest<T> = HashMap<u64, T, BuildHasherDefault<Digest>>;

/// The hash of a digest is the digest.
#[derive(Debug, Default)]
struct Digest(u64);

impl Hasher for Digest {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        // Only `write_u64` is called for these keys; this is as right, and slower.
        self.0 = bytes.iter().fold(self.0, |hash, byte| hash.rotate_left(8) ^ u64::from(*byte));
    }

    fn write_u64(&mut self, digest: u64) {
        self.0 = digest;
    }
}

/// The attachments of all result files.
#[derive(Debug)]
pub(super) struct Table {
    /// By the digest of the file's name, which is longer than all else that is kept of the file. `None`: it is ignored.
    files: ByDigest<Option<Arc<Attachment>>>,
    /// By the digest of the address: 24 bytes each instead of 48.
    by_ip: ByDigest<Claimants>,
    digests: RandomState,
    used: usize,
    room: usize,
}

/// Which attachments name an address, the one written last first.
#[derive(Debug)]
enum Claimants {
    One(Arc<Attachment>),
    #[allow(clippy::box_collection, reason = "hardly an address has several, and each would pay for the vector's size")]
    Several(Box<Vec<Arc<Attachment>>>),
}

/// What a change did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Change {
    /// An attachment came, went or changed.
    pub(super) is_news: bool,
    /// Another file was forgotten for lack of room.
    pub(super) is_full: bool,
}

impl Table {
    /// An empty table with room for so many files.
    pub(super) fn new(room: usize) -> Self {
        Self { files: ByDigest::default(), by_ip: ByDigest::default(), digests: RandomState::new(), used: 0, room }
    }

    /// An empty table that can be compared with this one.
    pub(super) fn empty(&self) -> Self {
        Self { digests: self.digests.clone(), ..Self::new(self.room) }
    }

    /// Whether both tables hold the same attachments.
    pub(super) fn is_same(&self, other: &Self) -> bool {
        self.used == other.used
            && self.files.iter().all(|(digest, attachment)| {
                attachment.is_none() || other.files.get(digest).is_some_and(|found| found.as_deref() == attachment.as_deref())
            })
    }

    /// How many attachments there are.
    pub(super) fn used(&self) -> usize {
        self.used
    }

    /// How many files are ignored.
    pub(super) fn ignored(&self) -> usize {
        self.files.len() - self.used
    }

    /// The attachments that name this address, the one written last first.
    pub(super) fn of(&self, ip: IpAddr) -> &[Arc<Attachment>] {
        let attachments = match self.by_ip.get(&self.digests.hash_one(ip)) {
            None => &[],
            Some(Claimants::One(attachment)) => std::slice::from_ref(attachment),
            Some(Claimants::Several(attachments)) => attachments.as_slice(),
        };
        // Of an address with the same digest they say nothing.
        if attachments.iter().all(|attachment| attachment.ips().contains(&ip)) { attachments } else { &[] }
    }

    /// Remembers what a file says now; `None` for a file that is ignored.
    pub(super) fn put(&mut self, file: &[u8], attachment: Option<Attachment>) -> Change {
        let digest = self.digests.hash_one(file);
        let before = self.files.get(&digest);
        if before.is_some_and(|before| before.as_deref() == attachment.as_ref()) {
            return Change::default();
        }
        let is_full = before.is_none() && self.files.len() >= self.room;
        if is_full {
            if attachment.is_none() {
                return Change { is_news: false, is_full };
            }
            self.forget_one();
        }
        let removed = self.remove_digest(digest);
        let attachment = attachment.map(Arc::new);
        if let Some(attachment) = &attachment {
            self.used += 1;
            for ip in attachment.ips() {
                self.by_ip
                    .entry(self.digests.hash_one(ip))
                    .and_modify(|claimants| claimants.add(attachment))
                    .or_insert_with(|| Claimants::One(attachment.clone()));
            }
        }
        let is_news = removed || attachment.is_some() || is_full;
        self.files.insert(digest, attachment);
        Change { is_news, is_full }
    }

    /// Forgets a file; whether it was an attachment.
    pub(super) fn remove(&mut self, file: &[u8]) -> bool {
        self.remove_digest(self.digests.hash_one(file))
    }

    fn remove_digest(&mut self, digest: u64) -> bool {
        let Some(Some(attachment)) = self.files.remove(&digest) else { return false };
        self.used -= 1;
        for ip in attachment.ips() {
            let ip = self.digests.hash_one(ip);
            if self.by_ip.get_mut(&ip).is_some_and(|claimants| claimants.remove(&attachment)) {
                self.by_ip.remove(&ip);
            }
        }
        true
    }

    /// Makes room: an ignored file goes first, then the one that was written first. Files that are never removed are older
    /// than those of the pods that live.
    fn forget_one(&mut self) {
        let age = |attachment: &Option<Arc<Attachment>>| attachment.as_ref().map(|attachment| attachment.written());
        let oldest = self.files.iter().min_by_key(|(_, attachment)| age(attachment)).map(|(digest, _)| *digest);
        if let Some(oldest) = oldest {
            self.remove_digest(oldest);
        }
    }
}

impl Claimants {
    fn add(&mut self, attachment: &Arc<Attachment>) {
        let mut all = match self {
            Self::One(one) => vec![one.clone()],
            Self::Several(all) => std::mem::take(all.as_mut()),
        };
        let place = all.partition_point(|other| other.written() > attachment.written());
        all.insert(place, attachment.clone());
        *self = Self::Several(Box::new(all));
    }

    /// Whether nothing is left.
    fn remove(&mut self, attachment: &Arc<Attachment>) -> bool {
        match self {
            Self::One(one) => Arc::ptr_eq(one, attachment),
            Self::Several(all) => {
                all.retain(|other| !Arc::ptr_eq(other, attachment));
                if let [one] = all.as_slice() {
                    *self = Self::One(one.clone());
                    return false;
                }
                all.is_empty()
            }
        }
    }
}
