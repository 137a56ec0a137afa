//! The wall clock.

use std::fmt;
use std::time::Duration;

use jiff::Timestamp;
use tokio::time::Instant;

/// The longest time between two looks at the wall clock while something is to happen at a time of it: it may be set, or the
/// machine may sleep.
pub const CLOCK_EVERY: Duration = Duration::from_secs(10);

/// The wall clock, injected so that expiry can be tested.
#[derive(Clone)]
pub struct Clock(std::sync::Arc<dyn Fn() -> Timestamp + Send + Sync>);

impl Clock {
    /// The system's clock.
    #[expect(clippy::disallowed_methods, reason = "this is the one place that asks the system")]
    pub fn system() -> Self {
        Self(std::sync::Arc::new(Timestamp::now))
    }

    /// A clock that begins at `start` and goes on as tokio's does, which a test can pause and advance.
    pub fn following_tokio(start: Timestamp) -> Self {
        let began = Instant::now();
        Self(std::sync::Arc::new(move || start + began.elapsed()))
    }

    /// Returns the time of the wall clock.
    pub fn now(&self) -> Timestamp {
        (self.0)()
    }
}

impl fmt::Debug for Clock {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Clock({})", self.now())
    }
}
