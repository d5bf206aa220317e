//! Reads the machine's clocks. No other code may read them: it gets the time as an argument or from a [`Clock`], so
//! that tests can move the time.
//!
//! There are three times. Each has its own type, so that they are not mixed up:
//!
//! - [`Clock::now`], a [`std::time::Instant`], is for rules: the age of an entry or a proof, the end of a denial or a
//!   backoff, the order of requests. It includes the time during which the machine was suspended.
//! - [`Clock::timer_now`], a [`tokio::time::Instant`], is for timers and measured durations. It stops while the machine
//!   is suspended, like the runtime's timers.
//! - [`Clock::date`], a [`SystemTime`], is the wall clock, for signatures and for dates in headers and logs.
//!
//! [`Clock::moment`] is for records that another process reads.
//!
//! The first is the second plus a skew that never decreases (`clock/skew.rs`). An `Instant` of the first kind must not
//! be used for a timer or compared with the second kind. `clippy.toml` forbids `from_std` and `into_std` elsewhere, but
//! not `into`.

mod manual;
mod moment;
mod skew;
mod system;

use std::time::{Instant, SystemTime};

pub use self::manual::ManualClock;
pub(crate) use self::moment::Moment;

/// The source of the time.
#[derive(Clone, Debug, Default)]
pub enum Clock {
    /// The machine's clocks. The monotonic clock is that of the runtime: if a test pauses it, rules and timers show the
    /// same time.
    #[default]
    System,
    /// Clocks that a test moves.
    Manual(ManualClock),
}

impl Clock {
    /// The current time for rules. The difference of two values is at least the time that has passed on
    /// `CLOCK_BOOTTIME` (with a precision of 1 ms) and on the wall clock (minus a drift of up to 30 s). A step back of
    /// the wall clock changes nothing.
    ///
    /// Each call reads the clocks, so that the first request after a suspension sees the right time.
    pub fn now(&self) -> Instant {
        match self {
            Self::System => system::now(),
            Self::Manual(clock) => clock.now(),
        }
    }

    /// The current time for timers and measured durations: the runtime's monotonic clock, which stops during a
    /// suspension.
    pub fn timer_now(&self) -> tokio::time::Instant {
        match self {
            Self::System => system::timer_now(),
            Self::Manual(clock) => clock.timer_now(),
        }
    }

    /// The wall clock, for signatures, headers and logs.
    pub fn date(&self) -> SystemTime {
        match self {
            Self::System => system::date(),
            Self::Manual(clock) => clock.date(),
        }
    }

    /// The current time in a form that another process can compare with its own. `None` if the wall clock shows a time
    /// before 1970.
    pub(crate) fn moment(&self) -> Option<Moment> {
        let wall = self.date().duration_since(SystemTime::UNIX_EPOCH).ok()?;
        let boot = match self {
            Self::System => system::boot_time(),
            Self::Manual(clock) => clock.boot_time(),
        };
        Some(Moment { boot, wall })
    }
}
