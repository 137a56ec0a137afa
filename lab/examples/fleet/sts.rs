//! STS as a whole account sees it: a quota of calls in a second, and an answer after a while. It stands behind the cache where
//! the SDK does, and tries again as the SDK does.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use rolegate::credentials::{AssumeRole, AssumeRoleError, Clock, Credentials};
use rolegate::policy::RoleRequest;
use tokio::time::Instant;

use crate::chance::Chance;

/// Attempts of the SDK for one request, the first included, as in the daemon's client.
const ATTEMPTS: u32 = 3;
/// Time of all attempts together: `--sts-timeout`.
pub(crate) const TIMEOUT: Duration = Duration::from_secs(5);
/// How long sessions last.
pub(crate) const SESSION: jiff::SignedDuration = jiff::SignedDuration::from_secs(3600);

/// What the SDK has for second attempts, what one costs, and what an answer to a first one brings back (its standard way).
const TOKENS: u32 = 500;
const COST: u32 = 5;
const BROUGHT: u32 = 1;

/// One account's STS, on tokio's clock; cheap to clone.
#[derive(Clone)]
pub(crate) struct Sts(Arc<Inner>);

/// The SDK of one node.
pub(crate) struct Client {
    sts: Sts,
    tokens: Mutex<u32>,
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
    fn call(&self) -> (Duration, bool, f64) {
        let (now, phase) = (crate::fleet::since_start(), crate::fleet::since_phase());
        let mut state = self.lock();
        let is_answered = state.quota.take(now);
        state.calls.count(phase, is_answered);
        let latency = if is_answered { state.chance.between(60.0, 160.0) } else { state.chance.between(5.0, 20.0) };
        (Duration::from_secs_f64(latency / 1000.0), is_answered, state.chance.fraction())
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, State> {
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Client {
    pub(crate) fn new(sts: Sts) -> Self {
        Self { sts, tokens: Mutex::new(TOKENS) }
    }

    /// Whether there may be one more attempt.
    fn pay(&self) -> bool {
        let mut tokens = self.tokens.lock().unwrap_or_else(PoisonError::into_inner);
        let left = tokens.checked_sub(COST);
        *tokens = left.unwrap_or(*tokens);
        left.is_some()
    }

    fn bring_back(&self, brought: u32) {
        let mut tokens = self.tokens.lock().unwrap_or_else(PoisonError::into_inner);
        *tokens = (*tokens + brought).min(TOKENS);
    }
}

impl AssumeRole for Client {
    async fn assume_role(&self, request: &RoleRequest) -> Result<Credentials, AssumeRoleError> {
        let began = Instant::now();
        for attempt in 0..ATTEMPTS {
            let (latency, is_answered, chance) = self.sts.call();
            tokio::time::sleep(latency).await;
            if is_answered {
                self.bring_back(if attempt == 0 { BROUGHT } else { COST });
                let now = self.sts.0.clock.now();
                let key = format!("ASIA{}", request.session_name().as_str());
                return Ok(Credentials::new(key, "s".repeat(40).into(), "t".repeat(800).into(), now, now + SESSION));
            }
            // The SDK's standard way: up to 1 s before the second attempt, up to 2 s before the third.
            let pause = Duration::from_secs(1 << attempt).mul_f64(chance);
            if attempt + 1 == ATTEMPTS || began.elapsed() + pause > TIMEOUT || !self.pay() {
                break;
            }
            tokio::time::sleep(pause).await;
        }
        Err(AssumeRoleError::Throttled)
    }
}
