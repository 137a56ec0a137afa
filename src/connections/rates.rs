//! How often a source may connect.

use std::collections::HashMap;
use std::hash::Hash;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

use super::record::Limit;
use super::source::{Source, SourceKey};
use crate::shares::Network;

/// Number of sources to remember. Beyond it, sources that have not connected recently are forgotten.
const MAX_BUCKETS: usize = 4096;
/// Interval at which sources that can be forgotten are removed.
const PRUNE_AGAIN: Duration = Duration::from_secs(1);
/// How much an unknown network may have used recently and still connect, while all unknown networks together connect too often.
const FEW_LATELY: f64 = 8.0;

/// Limits how often each source may connect, or send requests: `per_second` on average, with bursts of twice that number.
///
/// All unknown networks together have twice that rate, and each of them no more than a known source. The last quarter is reserved
/// for networks that have hardly connected recently.
#[derive(Debug)]
pub(crate) struct Rates {
    rate: Rate,
    common: Rate,
    known: Mutex<Buckets<SourceKey>>,
    unknown: Mutex<(Option<RateBucket>, Buckets<Network>)>,
}

#[derive(Clone, Copy, Debug)]
struct Rate {
    per_second: f64,
    burst: f64,
}

/// What a source has left, as of a time.
#[derive(Clone, Copy, Debug)]
struct RateBucket {
    left: f64,
    at: Instant,
}

#[derive(Debug)]
struct Buckets<K> {
    of: HashMap<K, RateBucket>,
    pruned: Option<Instant>,
}

impl<K> Default for Buckets<K> {
    fn default() -> Self {
        Self { of: HashMap::new(), pruned: None }
    }
}

impl Rate {
    fn refilled(self, bucket: Option<RateBucket>, now: Instant) -> RateBucket {
        let left = bucket.map_or(self.burst, |bucket| (bucket.left + (now - bucket.at).as_secs_f64() * self.per_second).min(self.burst));
        RateBucket { left, at: now }
    }

    /// Returns the bucket of `key`, refilled; `None` if there are too many buckets to add this one.
    fn bucket<'a, K: Eq + Hash>(&self, buckets: &'a mut Buckets<K>, key: K, now: Instant) -> Option<&'a mut RateBucket> {
        let is_full = |buckets: &Buckets<K>| buckets.of.len() >= MAX_BUCKETS && !buckets.of.contains_key(&key);
        if is_full(buckets) {
            // A scan of all of them for each forged address would be the most expensive part of a flood.
            if buckets.pruned.is_none_or(|at| now - at >= PRUNE_AGAIN) {
                buckets.pruned = Some(now);
                buckets.of.retain(|_, bucket| self.refilled(Some(*bucket), now).left < self.burst);
            }
            if is_full(buckets) {
                return None;
            }
        }
        let bucket = buckets.of.entry(key).or_insert(RateBucket { left: self.burst, at: now });
        *bucket = self.refilled(Some(*bucket), now);
        Some(bucket)
    }
}

impl Rates {
    /// Creates rates of so many a second for each source.
    pub(crate) fn new(per_second: u32) -> Self {
        let per_second = f64::from(per_second);
        let rate = |times: f64| Rate { per_second: times * per_second, burst: times * 2.0 * per_second };
        Self { rate: rate(1.0), common: rate(2.0), known: Mutex::default(), unknown: Mutex::default() }
    }

    /// Returns whether this source may connect now, or which limit it exceeds. Counts the connection if it may. The node itself
    /// may always connect.
    pub(crate) fn admits(&self, source: &Source) -> Result<(), Limit> {
        match source.key() {
            Ok(SourceKey::Node) => Ok(()),
            Ok(key) => self.admits_known(key),
            Err((_, network)) => self.admits_unknown(network),
        }
    }

    fn admits_known(&self, key: SourceKey) -> Result<(), Limit> {
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        // There are not that many pods on a node.
        let Some(bucket) = self.rate.bucket(&mut known, key, Instant::now()) else { return Ok(()) };
        if bucket.left < 1.0 {
            return Err(Limit::SourceRate);
        }
        bucket.left -= 1.0;
        Ok(())
    }

    fn admits_unknown(&self, of: Network) -> Result<(), Limit> {
        let now = Instant::now();
        let mut unknown = self.unknown.lock().unwrap_or_else(PoisonError::into_inner);
        let (common, networks) = &mut *unknown;
        let common = common.insert(self.common.refilled(*common, now));
        let mut network = self.rate.bucket(networks, of, now);
        let left = network.as_ref().map_or(self.rate.burst, |network| network.left);
        let is_quiet = left + FEW_LATELY >= self.rate.burst;
        if left < 1.0 || common.left < 1.0 || (common.left < self.common.burst / 4.0 && !is_quiet) {
            return Err(Limit::UnknownRate);
        }
        common.left -= 1.0;
        if let Some(network) = &mut network {
            network.left -= 1.0;
        }
        Ok(())
    }

    /// Returns how long a request of this source must wait. Counts it at once, so that the next one waits longer. The node itself
    /// never waits.
    pub(crate) fn delay(&self, source: &Source) -> Duration {
        let now = Instant::now();
        match source.key() {
            Ok(SourceKey::Node) => Duration::ZERO,
            Ok(key) => {
                let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
                self.rate.bucket(&mut known, key, now).map_or(Duration::ZERO, |bucket| self.rate.reserve(bucket))
            }
            Err((_, network)) => {
                let mut unknown = self.unknown.lock().unwrap_or_else(PoisonError::into_inner);
                self.rate.bucket(&mut unknown.1, network, now).map_or(Duration::ZERO, |bucket| self.rate.reserve(bucket))
            }
        }
    }
}

impl Rate {
    /// Takes one token from the bucket, even if it is empty. The debt is bounded, so that requests that were given up do not add
    /// up.
    fn reserve(self, bucket: &mut RateBucket) -> Duration {
        bucket.left = (bucket.left - 1.0).max(-self.burst);
        Duration::from_secs_f64((-bucket.left / self.per_second).max(0.0))
    }
}

#[cfg(test)]
mod tests {
    use std::net::IpAddr;

    use super::*;

    fn taken(rates: &Rates, source: &Source) -> usize {
        (0..100).filter(|_| rates.admits(source).is_ok()).count()
    }

    fn unknown(bits: u128) -> Source {
        Source::unknown(IpAddr::from(std::net::Ipv6Addr::from_bits(bits)))
    }

    #[tokio::test(start_paused = true)]
    async fn a_pod_that_connects_again_and_again_is_slowed_and_no_other_is() {
        let rates = Rates::new(10);
        let (web, db) = (Source::pod("shop", "web"), Source::pod("shop", "db"));
        assert_eq!((taken(&rates, &web), rates.admits(&web)), (20, Err(Limit::SourceRate)));
        assert_eq!(taken(&rates, &db), 20);
        tokio::time::advance(Duration::from_millis(1500)).await;
        assert_eq!(taken(&rates, &web), 15);
        tokio::time::advance(Duration::from_secs(3600)).await;
        assert_eq!(taken(&rates, &web), 20);
        assert_eq!(taken(&rates, &Source::Node), 100, "the node itself is not limited");
    }

    /// Node.js opens a connection for each request that is under way.
    #[tokio::test(start_paused = true)]
    async fn a_burst_of_a_pod_is_within_the_default() {
        let rates = Rates::new(crate::config::LimitsConfig::default().connection_rate);
        let web = Source::pod("shop", "web");
        assert!((0..200).all(|_| rates.admits(&web).is_ok()));
    }

    #[tokio::test(start_paused = true)]
    async fn invented_addresses_share_one_rate_and_leave_a_quarter_to_others() {
        let rates = Rates::new(100);
        let flood = |network: u128| (0..1100).filter(|last| rates.admits(&unknown((network << 64) + last)).is_ok()).count();
        assert_eq!(flood(1), 200, "a network has no more than a pod");
        assert!((95..=105).contains(&flood(2)), "of 400 for all of them, the last 100 are for others");
        assert_eq!(rates.admits(&unknown(1 << 64)).unwrap_err(), Limit::UnknownRate);
        for newcomer in 10..20 {
            assert_eq!(rates.admits(&unknown(newcomer << 64)), Ok(()), "{newcomer}");
        }
        assert!(flood(3) < 20);
        assert_eq!(taken(&rates, &Source::pod("shop", "web")), 100, "pods have nothing to do with it");
    }

    #[tokio::test(start_paused = true)]
    async fn all_addresses_behind_a_port_have_one_rate() {
        let rates = Rates::new(100);
        let behind = |port, last: u32| Source::Unknown(IpAddr::from(last.to_be_bytes()), Network::Port(port));
        assert_eq!((0..5000).filter(|last| rates.admits(&behind(1, *last)).is_ok()).count(), 200);
        assert!((0..100).all(|port| rates.admits(&behind(10 + port, port)).is_ok()), "new pods connect");
    }

    #[tokio::test(start_paused = true)]
    async fn the_record_of_sources_is_bounded_and_forgets_the_quiet_ones() {
        let rates = Rates::new(1000);
        for network in 0..2 * MAX_BUCKETS as u128 {
            let _ = rates.admits(&unknown(network << 64));
        }
        let remembered = || rates.unknown.lock().unwrap_or_else(PoisonError::into_inner).1.of.len();
        assert_eq!(remembered(), MAX_BUCKETS);
        tokio::time::advance(Duration::from_secs(5)).await;
        assert_eq!(rates.admits(&unknown(u128::MAX)), Ok(()));
        assert_eq!(remembered(), 1);
    }

    #[tokio::test(start_paused = true)]
    async fn requests_beyond_the_rate_wait_for_their_turn() {
        let rates = Rates::new(10);
        for source in [Source::pod("shop", "web"), unknown(1)] {
            let delays: Vec<_> = (0..23).map(|_| rates.delay(&source).as_millis()).collect();
            assert_eq!((delays[..20].iter().sum::<u128>(), &delays[20..]), (0, &[100, 200, 300][..]));
            assert!((0..1000).all(|_| rates.delay(&source) <= Duration::from_secs(2)), "what was given up does not add up");
        }
        assert_eq!(rates.delay(&Source::Node), Duration::ZERO);
    }
}
