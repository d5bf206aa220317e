//! The only place that reads the machine's clock. Everything else is told what time it is, so tests
//! can let five minutes pass at once.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime};

/// Where "now" comes from.
#[derive(Clone, Debug, Default)]
pub enum Clock {
    /// The machine's monotonic clock, by way of the runtime: where a test pauses that, rules and timers
    /// agree on the time.
    #[default]
    System,
    /// A clock that stands still until it is moved.
    Manual(ManualClock),
}

impl Clock {
    /// The present moment.
    #[allow(clippy::disallowed_methods)]
    pub fn now(&self) -> Instant {
        match self {
            Self::System => tokio::time::Instant::now().into_std(),
            Self::Manual(clock) => *clock.0.lock().unwrap_or_else(PoisonError::into_inner),
        }
    }

    /// The date of the present moment, for headers.
    #[allow(clippy::disallowed_methods)]
    pub fn date(&self) -> SystemTime {
        let machine = SystemTime::now();
        match self {
            Self::System => machine,
            Self::Manual(_) => machine + self.now().saturating_duration_since(Self::System.now()),
        }
    }
}

/// A clock for tests; clones show the same time.
#[derive(Clone, Debug)]
pub struct ManualClock(Arc<Mutex<Instant>>);

impl ManualClock {
    /// Lets time pass.
    pub fn advance(&self, by: Duration) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) += by;
    }
}

impl Default for ManualClock {
    fn default() -> Self {
        Self(Arc::new(Mutex::new(Clock::System.now())))
    }
}
