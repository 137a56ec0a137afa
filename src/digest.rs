//! Digests of names and addresses, which are compared instead of the texts.
//!
//! The digests are SipHash with a random key that never leaves the process. Tenants choose the names of pods, and can try many.
//! Without the key, nobody can construct two texts with the same digest, or find out that two texts have the same digest. A
//! random collision has a probability of one in 2^64 per pair.

use std::hash::{BuildHasher as _, Hash, RandomState};
use std::net::IpAddr;
use std::num::NonZeroU64;
use std::sync::LazyLock;

static KEY: LazyLock<RandomState> = LazyLock::new(RandomState::new);

/// A keyed digest. It is never zero, so that an optional digest takes no more space.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Digest(NonZeroU64);

impl Digest {
    fn of<T: Hash + ?Sized>(value: &T) -> Self {
        Self(NonZeroU64::new(KEY.hash_one(value)).unwrap_or(NonZeroU64::MAX))
    }

    /// Returns the digest of a name, such as a UID or the name of an interface or file.
    pub fn of_name(name: &(impl AsRef<[u8]> + ?Sized)) -> Self {
        Self::of(name.as_ref())
    }

    /// Returns the digest of a pod's namespace and name.
    pub fn of_pod(namespace: &str, name: &str) -> Self {
        Self::of(&(namespace, name))
    }

    /// Returns half of the digest. That suffices to distinguish a small number of items if no decision depends on it alone.
    pub fn short(self) -> u32 {
        (self.0.get() >> 32) as u32
    }

    /// Returns the digest of an address. An IPv4 address and its IPv4-mapped IPv6 form have the same digest.
    pub fn of_ip(ip: IpAddr) -> Self {
        Self::of(&ip.to_canonical())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_digest_is_of_the_whole_value() {
        assert_eq!(Digest::of_pod("shop", "web"), Digest::of_pod("shop", "web"));
        assert_ne!(Digest::of_pod("shop", "web"), Digest::of_pod("shopw", "eb"));
        assert_ne!(Digest::of_name("web-1"), Digest::of_name("web-2"));
        assert_eq!(Digest::of_ip([10, 0, 0, 1].into()), Digest::of_ip("::ffff:10.0.0.1".parse().unwrap_or(IpAddr::from([0; 4]))));
        assert_ne!(Digest::of_ip([10, 0, 0, 1].into()), Digest::of_ip([10, 0, 0, 2].into()));
        assert_eq!(size_of::<Option<Digest>>(), 8);
    }
}
