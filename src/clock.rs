//! The only place that reads the machine's clocks. Everything else is told what time it is, so tests
//! can let five minutes pass at once.
//!
//! There are three times, and each has a type of its own, so that they are not compared by accident:
//!
//! - [`Clock::now`], a [`std::time::Instant`], is for rules: how old an answer or a proof is, how long a denial or a backoff
//!   lasts, what was sent before what. It includes the time in which the machine was suspended.
//! - [`Clock::timer_now`], a [`tokio::time::Instant`], is for timers and measured durations. It stands still while the machine
//!   is suspended, as the runtime's timers do.
//! - [`Clock::date`], a [`SystemTime`], is the wall clock: for signatures and for dates in headers and logs.
//!
//! The first is the second plus a skew that never decreases (`clock/skew.rs`). No `Instant` of the first kind may reach a
//! timer, and the two are never compared; `clippy.toml` forbids `from_std` and `into_std` elsewhere, but not `into`.

mod manual;
mod skew;
mod system;

use std::time::{Instant, SystemTime};

pub use self::manual::ManualClock;

/// Where "now" comes from.
#[derive(Clone, Debug, Default)]
pub enum Clock {
    /// The machine's clocks; the monotonic one by way of the runtime: where a test pauses that, rules and timers
    /// agree on the time.
    #[default]
    System,
    /// Clocks that stand still until they are moved.
    Manual(ManualClock),
}

impl Clock {
    /// The present moment, for rules. The time between two of them is at least what has passed on `CLOCK_BOOTTIME` (to the
    /// millisecond) and on the wall clock (less 30 s of drift); a wall clock that is set back changes nothing.
    ///
    /// Each call reads the clocks: the first request after a suspension sees it.
    pub fn now(&self) -> Instant {
        match self {
            Self::System => system::now(),
            Self::Manual(clock) => clock.now(),
        }
    }

    /// The present moment for timers and measured durations: the runtime's monotonic clock, without suspension.
    pub fn timer_now(&self) -> tokio::time::Instant {
        match self {
            Self::System => system::timer_now(),
            Self::Manual(clock) => clock.timer_now(),
        }
    }

    /// The date of the present moment by the wall clock, for signatures, headers and logs.
    pub fn date(&self) -> SystemTime {
        match self {
            Self::System => system::date(),
            Self::Manual(clock) => clock.date(),
        }
    }
}
