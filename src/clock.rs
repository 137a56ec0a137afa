//! The wall clock.

use std::fmt;
use std::time::Duration;

use jiff::Timestamp;
use tokio::time::Instant;

/// The longest interval between checks of the wall clock while something is scheduled for a wall clock time. The clock may be
/// set, or the machine may sleep.
pub const CLOCK_EVERY: Duration = Duration::from_secs(10);

/// The wall clock, injected so that expiry can be tested.
#[derive(Clone)]
pub struct Clock(std::sync::Arc<dyn Fn() -> Timestamp + Send + Sync>);

impl Clock {
    /// Returns the system's clock.
    #[expect(clippy::disallowed_methods, reason = "the only place that reads the system's clock")]
    pub fn system() -> Self {
        Self(std::sync::Arc::new(Timestamp::now))
    }

    /// Returns a clock that starts at `start` and advances with tokio's clock, which tests can pause and advance.
    pub fn following_tokio(start: Timestamp) -> Self {
        let began = Instant::now();
        Self(std::sync::Arc::new(move || start + began.elapsed()))
    }

    /// Returns the current wall clock time.
    pub fn now(&self) -> Timestamp {
        (self.0)()
    }
}

impl fmt::Debug for Clock {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Clock({})", self.now())
    }
}
