//! How fast a node sends requests to STS: a token bucket whose rate follows what STS answers.
//!
//! Throttling and outages concern everybody, and slow the whole gate: each one that was met at the present pace halves it, and each
//! answer of STS, and time, give a part of it back. Refusals are answers and slow nothing. Neither do failures of the daemon's
//! own identity. Any other failure may be that of one account, which its owner can cause. It counts when roles of two accounts
//! meet one, with no answer between them; where STS was not heard about another account for long, those of two roles are enough.
//!
//! Above the full pace the rate rises while STS answers quickly and requests wait, up to [`Limits::max_rate`]. The raised part
//! returns within a minute when it is not needed. It ends at the first throttling, and stays away for an hour: the quota is that
//! of the account, and other nodes have met the same.

use std::hash::{DefaultHasher, Hash, Hasher as _};
use std::time::Duration;

use tokio::time::Instant;

use super::Limits;
use crate::credentials::{AssumeRoleError, jitter};
use crate::role::RoleArn;

/// The slowest pace, as a part of the full one: with 20 requests a second, one in 3 seconds.
pub(super) const SLOWEST: f64 = 1.0 / 64.0;
/// The pace, as a part of the full one, below which what has time gives way.
const SLOW: f64 = 0.25;
/// What one answer gives back of the pace: little, so that a node whose STS throttles goes on leaving it to those that end soon.
const RECOVERY: f64 = 1.0 / 64.0;
/// The time in which all of the pace comes back by itself, in which an answer about an account is one of lately, and for which
/// nothing is raised after a throttling.
pub(super) const FORGIVEN: Duration = Duration::from_secs(3600);
/// What one quick answer adds above the full pace. With the default rate of 20, one request a second more for each answer: 80
/// answers, about two seconds, lead to 100 requests a second.
const RAISE: f64 = 0.05;
/// An answer that takes longer is no sign that STS has room.
const QUICK: Duration = Duration::from_secs(1);
/// The time in which the raised part of the pace is lost where nothing raises it.
const RAISED_FOR: Duration = Duration::from_secs(60);

/// The rate, and what is known of STS.
#[derive(Debug)]
pub(super) struct Pace {
    limits: Limits,
    /// Requests that may be made at once; below zero, there is longer to wait.
    tokens: f64,
    counted_at: Instant,
    /// From [`SLOWEST`] to 1, and above 1 where it is raised.
    pace: f64,
    /// Nothing is raised before.
    may_rise_at: Instant,
    /// Grows when the pace is lowered: what was begun before says nothing of the new pace.
    epoch: u64,
    /// Whose failure was the last that may be one account's alone; none since an answer.
    suspect: Option<Whose>,
    /// The accounts that STS answered about last, and when: two that differ.
    answered: [Option<(u64, Instant)>; 2],
    /// What lowered the pace, until STS answers.
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

/// A part of a number, rounded down.
#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, clippy::cast_precision_loss, reason = "a small number and a part of it")]
pub(super) fn part(of: usize, part: f64) -> usize {
    (of as f64 * part) as usize
}

impl Pace {
    /// The full pace, with all tokens saved up.
    pub(super) fn new(limits: Limits) -> Self {
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

    /// The highest pace, as a multiple of the full one.
    fn highest(&self) -> f64 {
        (f64::from(self.limits.max_rate) / f64::from(self.limits.rate.max(1))).max(1.0)
    }

    /// Tokens that can be saved up: the raised part of the rate saves none.
    pub(super) fn most(&self) -> f64 {
        (2.0 * f64::from(self.limits.rate) * self.pace.min(1.0)).max(1.0)
    }

    /// Accounts for the time since this was called last.
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

    /// How long it is until there are so many tokens; `None` where there are.
    pub(super) fn until(&self, needed: f64) -> Option<Duration> {
        let short = needed - self.tokens;
        // Less than a request in a million seconds is a matter of rounding.
        (short > 1e-6).then(|| Duration::from_secs_f64(short / (f64::from(self.limits.rate) * self.pace)) + Duration::from_millis(1))
    }

    /// A request is made.
    pub(super) fn take(&mut self) {
        self.tokens -= 1.0;
    }

    /// A request that was to be made did not reach STS.
    pub(super) fn give_back(&mut self) {
        self.tokens = (self.tokens + 1.0).min(self.most());
    }

    /// Requests that may be under way at once: at least one.
    pub(super) fn concurrency(&self) -> usize {
        part(self.limits.concurrency, self.pace).max(1)
    }

    /// What keeps the gate from its full pace, where STS has not answered since.
    pub(super) fn trouble(&self) -> Option<AssumeRoleError> {
        self.trouble.clone()
    }

    /// Whether so little is let in that it is for those who need it soon.
    pub(super) fn is_slow(&self) -> bool {
        self.pace < SLOW
    }

    pub(super) fn epoch(&self) -> u64 {
        self.epoch
    }

    /// STS answered about a role, to a request of `epoch`, after `took`; `is_waited_for` where more requests wait.
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

    /// STS failed for a request of `epoch`, about a role.
    pub(super) fn failed(&mut self, role: &RoleArn, epoch: u64, error: &AssumeRoleError) {
        match error {
            AssumeRoleError::IdentityUnknown(_) => self.give_back(),
            // Whoever renews the daemon's credentials does so for all pods.
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
        self.may_rise_at = Instant::now() + FORGIVEN.mul_f64(1.0 + jitter::fraction() / 4.0);
        // What was saved up is gone, and up to one more, so that nodes do not come back together.
        self.tokens = self.tokens.min(0.0) - jitter::fraction();
        self.trouble = Some(error.clone());
    }

    /// STS answered about a role of this account.
    fn heard_about(&mut self, account: u64, now: Instant) {
        self.suspect = None;
        let [last, before] = self.answered;
        let before = if last.is_some_and(|(other, _)| other != account) { last } else { before };
        self.answered = [Some((account, now)), before];
    }

    /// Whether this failure, after the one before it, is everybody's.
    fn is_outage(&mut self, whose: Whose, now: Instant) -> bool {
        let Some(before) = self.suspect.replace(whose) else {
            return false;
        };
        let lately = |at: Instant| now.saturating_duration_since(at) < FORGIVEN;
        let others = self.answered.iter().flatten().any(|(account, at)| *account != whose.account && lately(*at));
        before.account != whose.account || (before.role != whose.role && !others)
    }
}
