//! What other ways would do with the same pods and the same quota: kube2iam's, and one call for each request. Both are models,
//! of their rules alone.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap, HashSet};
use std::time::Duration;

use crate::chance::Chance;
use crate::fleet::{ASKS_AGAIN, ASKS_EVERY, BOOT, PODS, ROLES, window};
use crate::sts::{Calls, Quota};

/// How long sessions are kept, and for whom.
#[derive(Clone, Copy, PartialEq)]
pub(crate) enum Way {
    /// A session of 15 minutes for a node and role, fetched when a pod asks; a failure is not remembered.
    Kube2iam,
    /// Nothing is kept.
    CallPerRequest,
}

/// What was seen in a cold start and in a throttled hour.
pub(crate) struct Seen {
    pub(crate) cold: Calls,
    pub(crate) cold_without: usize,
    pub(crate) steady: Calls,
    pub(crate) throttled: Calls,
    pub(crate) throttled_without: usize,
}

pub(crate) const HOUR: Duration = Duration::from_secs(3600);
/// The cold start, as it is looked at.
pub(crate) const COLD: Duration = Duration::from_secs(900);
const KEPT: Duration = Duration::from_secs(900);

/// A cold start, an hour of calm, and an hour with `share` of what was called in that.
pub(crate) fn simulate(way: Way, nodes: usize, quota: f64, throttled_to: f64) -> Seen {
    let mut chance = Chance::new(3);
    let mut asks: BinaryHeap<Reverse<(Duration, usize)>> =
        (0..nodes * PODS).map(|pod| Reverse((BOOT.mul_f64(chance.fraction()), pod))).collect();
    let roles: Vec<usize> = (0..nodes * PODS).map(|_| chance.below(ROLES)).collect();
    let mut kept: HashMap<(usize, usize), Duration> = HashMap::new();
    let mut quota = Quota::new(quota, window(nodes), Duration::ZERO);
    let mut seen =
        Seen { cold: Calls::default(), cold_without: 0, steady: Calls::default(), throttled: Calls::default(), throttled_without: 0 };
    let (mut cold_without, mut throttled_without) = (HashSet::new(), HashSet::new());
    let mut is_throttled = false;
    while let Some(Reverse((now, pod))) = asks.pop()
        && now < COLD + HOUR * 2
    {
        if !is_throttled && now >= COLD + HOUR {
            is_throttled = true;
            quota = Quota::new(throttled_to, window(nodes), now);
        }
        let key = (pod / PODS, roles[pod]);
        let is_kept = way == Way::Kube2iam && kept.get(&key).is_some_and(|until| now < *until);
        let is_given = is_kept || {
            let is_answered = quota.take(now);
            let (calls, since) = match now {
                now if now < COLD => (&mut seen.cold, Duration::ZERO),
                now if now < COLD + HOUR => (&mut seen.steady, COLD),
                _ => (&mut seen.throttled, COLD + HOUR),
            };
            calls.count(now - since, is_answered);
            if is_answered {
                kept.insert(key, now + KEPT);
            } else if now < COLD {
                cold_without.insert(pod);
            } else if now >= COLD + HOUR {
                throttled_without.insert(pod);
            }
            is_answered
        };
        let pause = if is_given { ASKS_EVERY.mul_f64(chance.between(0.5, 1.5)) } else { ASKS_AGAIN };
        asks.push(Reverse((now + pause, pod)));
    }
    seen.cold_without = cold_without.len();
    seen.throttled_without = throttled_without.len();
    seen
}
