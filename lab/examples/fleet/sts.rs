//! STS as a whole account sees it: a quota of calls in a second, and an answer after a while. It stands behind the cache where
//! the SDK does, which asks once for each question, as in the daemon.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use rolegate::clock::Clock;
use rolegate::credentials::{AssumeRole, AssumeRoleError, Credentials};
use rolegate::policy::RoleRequest;

use crate::chance::Chance;

/// `--sts-timeout`.
pub(crate) const TIMEOUT: Duration = Duration::from_secs(5);
/// How long sessions last.
pub(crate) const SESSION: jiff::SignedDuration = jiff::SignedDuration::from_secs(3600);

/// One account's STS, on tokio's clock; cheap to clone.
#[derive(Clone)]
pub(crate) struct Sts(Arc<Inner>);

/// The SDK of one node.
pub(crate) struct Client {
    sts: Sts,
}

struct Inner {
    clock: Clock,
    state: Mutex<State>,
}

struct State {
    quota: Quota,
    chance: Chance,
    calls: Calls,
}

/// Calls that are answered in a second, and those of so many seconds at once; what is over it is throttled, and costs nothing
/// of it. With a part of the fleet it is more seconds: a hundredth of it does in 100 seconds what all do in one.
pub(crate) struct Quota {
    rate: f64,
    seconds: usize,
    left: f64,
    counted_at: Duration,
}

/// The calls of one time, by seconds.
#[derive(Default)]
pub(crate) struct Calls {
    seconds: Vec<u32>,
    throttled: u64,
}

impl Quota {
    pub(crate) fn new(rate: f64, seconds: usize, now: Duration) -> Self {
        Self { rate, seconds, left: rate * seconds as f64, counted_at: now }
    }

    /// Whether one more call is answered.
    pub(crate) fn take(&mut self, now: Duration) -> bool {
        self.left = (self.left + (now - self.counted_at).as_secs_f64() * self.rate).min(self.rate * self.seconds as f64);
        self.counted_at = now;
        let is_answered = self.left >= 1.0;
        if is_answered {
            self.left -= 1.0;
        }
        is_answered
    }
}

impl Calls {
    pub(crate) fn count(&mut self, since: Duration, is_answered: bool) {
        let second = usize::try_from(since.as_secs()).unwrap_or(usize::MAX);
        if self.seconds.len() <= second {
            self.seconds.resize(second + 1, 0);
        }
        self.seconds[second] += 1;
        self.throttled += u64::from(!is_answered);
    }

    /// The most calls per second, over so many seconds together.
    pub(crate) fn peak(&self, seconds: usize) -> f64 {
        let sums = (0..self.seconds.len()).map(|at| self.seconds[at..].iter().take(seconds).sum::<u32>());
        f64::from(sums.max().unwrap_or(0)) / seconds as f64
    }

    pub(crate) fn total(&self) -> u64 {
        self.seconds.iter().map(|calls| u64::from(*calls)).sum()
    }

    pub(crate) fn throttled(&self) -> u64 {
        self.throttled
    }
}

impl Sts {
    pub(crate) fn new(rate: f64, seconds: usize, clock: Clock) -> Self {
        let state = State { quota: Quota::new(rate, seconds, Duration::ZERO), chance: Chance::new(1), calls: Calls::default() };
        Self(Arc::new(Inner { clock, state: Mutex::new(state) }))
    }

    pub(crate) fn set_quota(&self, rate: f64, now: Duration) {
        let mut state = self.lock();
        state.quota = Quota::new(rate, state.quota.seconds, now);
    }

    /// What was called since this was asked last.
    pub(crate) fn take_calls(&self) -> Calls {
        std::mem::take(&mut self.lock().calls)
    }

    /// One HTTP call: how long its answer takes, and whether it is a session.
    fn call(&self) -> (Duration, bool) {
        let (now, phase) = (crate::fleet::since_start(), crate::fleet::since_phase());
        let mut state = self.lock();
        let is_answered = state.quota.take(now);
        state.calls.count(phase, is_answered);
        let latency = if is_answered { state.chance.between(60.0, 160.0) } else { state.chance.between(5.0, 20.0) };
        (Duration::from_secs_f64(latency / 1000.0), is_answered)
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, State> {
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Client {
    pub(crate) fn new(sts: Sts) -> Self {
        Self { sts }
    }
}

impl AssumeRole for Client {
    async fn assume_role(&self, request: &RoleRequest, _: Option<&Credentials>) -> Result<Credentials, AssumeRoleError> {
        let (latency, is_answered) = self.sts.call();
        tokio::time::sleep(latency).await;
        if !is_answered {
            return Err(AssumeRoleError::Throttled);
        }
        let now = self.sts.0.clock.now();
        let key = format!("ASIA{}", request.session_name().as_str());
        Ok(Credentials::new(key, "s".repeat(40).into(), "t".repeat(800).into(), now, now + SESSION))
    }
}
