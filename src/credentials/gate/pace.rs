//! The rate of a node's requests to STS: a token bucket whose rate follows STS's responses.
//!
//! Throttling and outages concern all roles, and slow the whole gate. Each of them halves the pace, if its request was made at
//! the present pace; each response of STS, and time, restore a part of it. Refusals are responses and do not slow the gate, and
//! neither do failures of the daemon's own identity. Any other failure may concern one account only, whose owner can cause it. It
//! counts if roles of two accounts fail with no response in between. If STS has not answered for another account in the last
//! hour, failures of two roles are enough.
//!
//! The rate rises above the full pace while STS answers quickly and requests wait, up to [`StsLimits::max_rate`]. When it is not
//! needed any more, it falls back within a minute. At the first throttling it falls back at once, and does not rise again for an
//! hour: the quota is shared by the account, so other nodes are throttled as well.

use std::hash::{DefaultHasher, Hash, Hasher as _};
use std::time::Duration;

use tokio::time::Instant;

use super::call::StsLimits;
use crate::backoff::fraction;
use crate::credentials::AssumeRoleError;
use crate::role::RoleArn;

/// The slowest pace, as a part of the full one: with 20 requests a second, one in 3 seconds.
pub(super) const SLOWEST: f64 = 1.0 / 64.0;
/// The fraction of the full pace below which requests that can wait give way to others.
const SLOW: f64 = 0.25;
/// The part of the pace that one response restores. It is small, so that a throttled node continues to reserve its rate for
/// sessions close to expiry.
const RECOVERY: f64 = 1.0 / 64.0;
/// The time in which the full pace is restored without responses; within which a response for an account counts as recent; and
/// for which the rate does not rise after throttling.
pub(super) const FORGIVEN: Duration = Duration::from_secs(3600);
/// The part of the full pace that one quick response adds. With the default rate of 20, each response adds one request a second:
/// 80 responses, about two seconds, lead to 100 requests a second.
const RAISE: f64 = 0.05;
/// A response that takes longer does not show that STS has spare capacity.
const QUICK: Duration = Duration::from_secs(1);
/// The time in which the raised part of the pace falls back if nothing raises it.
const RAISED_FOR: Duration = Duration::from_secs(60);

/// The rate, and what is known about STS.
#[derive(Debug)]
pub(super) struct Pace {
    limits: StsLimits,
    /// Requests that may be made at once; a negative value means a longer wait.
    tokens: f64,
    counted_at: Instant,
    /// From [`SLOWEST`] to 1, and above 1 where it is raised.
    pace: f64,
    /// The pace may not rise before this time.
    may_rise_at: Instant,
    /// Grows when the pace is lowered. Requests from before say nothing about the new pace.
    epoch: u64,
    /// The role of the last failure that may concern one account only; reset by a response.
    suspect: Option<Whose>,
    /// The two different accounts for which STS answered most recently, and when.
    answered: [Option<(u64, Instant)>; 2],
    /// The error that lowered the pace; reset by a response.
    trouble: Option<AssumeRoleError>,
}

/// A role and its account, by their hashes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Whose {
    account: u64,
    role: u64,
}

impl Whose {
    fn of(role: &RoleArn) -> Self {
        Self { account: hash(role.account()), role: hash(role) }
    }
}

fn hash(of: impl Hash) -> u64 {
    let mut hasher = DefaultHasher::new();
    of.hash(&mut hasher);
    hasher.finish()
}

/// Returns a fraction of a number, rounded down.
#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, clippy::cast_precision_loss, reason = "a small number and a part of it")]
pub(super) fn part(of: usize, part: f64) -> usize {
    (of as f64 * part) as usize
}

impl Pace {
    /// Creates a bucket at the full pace, with all tokens.
    pub(super) fn new(limits: StsLimits) -> Self {
        let now = Instant::now();
        Self {
            limits,
            tokens: 2.0 * f64::from(limits.rate),
            counted_at: now,
            pace: 1.0,
            may_rise_at: now,
            epoch: 0,
            suspect: None,
            answered: [None; 2],
            trouble: None,
        }
    }

    /// Returns the highest pace, as a multiple of the full one.
    fn highest(&self) -> f64 {
        (f64::from(self.limits.max_rate) / f64::from(self.limits.rate.max(1))).max(1.0)
    }

    /// Returns the capacity of the bucket. The raised part of the rate does not add to it.
    pub(super) fn most(&self) -> f64 {
        (2.0 * f64::from(self.limits.rate) * self.pace.min(1.0)).max(1.0)
    }

    /// Refills the bucket for the time since the last call.
    pub(super) fn count(&mut self, now: Instant) {
        let passed = now.saturating_duration_since(self.counted_at).as_secs_f64();
        self.counted_at = now;
        let before = self.pace;
        self.pace = if before <= 1.0 {
            (before + passed / FORGIVEN.as_secs_f64()).min(1.0)
        } else {
            (before - (self.highest() - 1.0) * passed / RAISED_FOR.as_secs_f64()).max(1.0)
        };
        let on_average = f64::midpoint(before, self.pace);
        self.tokens = (self.tokens + passed * f64::from(self.limits.rate) * on_average).min(self.most());
    }

    /// Returns the time until `needed` tokens are available; `None` if they are available now.
    pub(super) fn until(&self, needed: f64) -> Option<Duration> {
        let short = needed - self.tokens;
        // A rate below one request in a million seconds is a rounding error.
        (short > 1e-6).then(|| Duration::from_secs_f64(short / (f64::from(self.limits.rate) * self.pace)) + Duration::from_millis(1))
    }

    /// Takes the token of a request.
    pub(super) fn take(&mut self) {
        self.tokens -= 1.0;
    }

    /// Returns the token of a request that did not reach STS.
    pub(super) fn give_back(&mut self) {
        self.tokens = (self.tokens + 1.0).min(self.most());
    }

    /// Returns how many requests may be in flight: at least one.
    pub(super) fn concurrency(&self) -> usize {
        part(self.limits.concurrency, self.pace).max(1)
    }

    /// Returns the error that lowered the pace, if STS has not answered since.
    pub(super) fn trouble(&self) -> Option<AssumeRoleError> {
        self.trouble.clone()
    }

    /// Whether the pace is so low that it is reserved for requests that cannot wait.
    pub(super) fn is_slow(&self) -> bool {
        self.pace < SLOW
    }

    pub(super) fn epoch(&self) -> u64 {
        self.epoch
    }

    /// Records that STS answered a request of `epoch` for a role after `took`; `is_waited_for` says whether more requests wait.
    pub(super) fn answered(&mut self, role: &RoleArn, epoch: u64, took: Duration, is_waited_for: bool) {
        let now = Instant::now();
        self.heard_about(Whose::of(role).account, now);
        if epoch != self.epoch {
            return;
        }
        self.trouble = None;
        if self.pace < 1.0 {
            self.pace = (self.pace + RECOVERY).min(1.0);
        } else if is_waited_for && took < QUICK && self.may_rise_at <= now {
            self.pace = (self.pace + RAISE).min(self.highest());
        }
    }

    /// Records that STS failed for a request of `epoch` for a role.
    pub(super) fn failed(&mut self, role: &RoleArn, epoch: u64, error: &AssumeRoleError) {
        match error {
            AssumeRoleError::IdentityUnknown(_) => self.give_back(),
            // A renewal of the daemon's credentials serves all pods.
            AssumeRoleError::OwnIdentity { .. } => {}
            _ if epoch != self.epoch => {}
            AssumeRoleError::Throttled => self.slow_down(error),
            _ => {
                if self.is_outage(Whose::of(role), Instant::now()) {
                    self.slow_down(error);
                }
            }
        }
    }

    fn slow_down(&mut self, error: &AssumeRoleError) {
        self.epoch += 1;
        self.pace = (self.pace.min(1.0) / 2.0).max(SLOWEST);
        // Not at the same time on every node.
        self.may_rise_at = Instant::now() + FORGIVEN.mul_f64(1.0 + fraction() / 4.0);
        // Clears the saved tokens, minus up to one more at random, so that nodes do not retry in step.
        self.tokens = self.tokens.min(0.0) - fraction();
        self.trouble = Some(error.clone());
    }

    /// Records that STS answered for a role of this account.
    fn heard_about(&mut self, account: u64, now: Instant) {
        self.suspect = None;
        let [last, before] = self.answered;
        let before = if last.is_some_and(|(other, _)| other != account) { last } else { before };
        self.answered = [Some((account, now)), before];
    }

    /// Whether this failure, together with the one before it, concerns all accounts.
    fn is_outage(&mut self, whose: Whose, now: Instant) -> bool {
        let Some(before) = self.suspect.replace(whose) else {
            return false;
        };
        let lately = |at: Instant| now.saturating_duration_since(at) < FORGIVEN;
        let others = self.answered.iter().flatten().any(|(account, at)| *account != whose.account && lately(*at));
        before.account != whose.account || (before.role != whose.role && !others)
    }
}
