//! The machine's clocks. Nothing else reads them.
//!
//! What the readings come to is the same for the whole process. Hits only read it: three clocks and three atomics. The lock
//! is taken where a clock has moved by more than a millisecond against the others. Each hit reads them once.

use std::sync::LazyLock;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};
use std::time::{Duration, Instant, SystemTime};

use super::skew::{ClockReading, DRIFT, Skew};
use crate::sync::Mutex;

/// Differences between clocks below this are not looked into, in nanoseconds: the clocks are read one after the other.
const TOLERANCE: i64 = 1_000_000;

/// How often the clocks are read anew where something held up the reading.
const TRIES: usize = 8;

static CLOCKS: LazyLock<Clocks> = LazyLock::new(Clocks::new);

/// What is known of the machine's clocks.
struct Clocks {
    monotonic: Instant,
    boot: Option<i64>,
    wall: i64,
    skew: Mutex<Skew>,
    // Copies of `skew` for those who do not take the lock. The total is written before and read after the other two: whoever
    // finds a jump taken over finds it in the total, too.
    total: AtomicU64,
    suspended: AtomicI64,
    lowest: AtomicI64,
}

impl Clocks {
    fn new() -> Self {
        Self {
            monotonic: monotonic(),
            boot: boot(),
            wall: wall(),
            skew: Mutex::default(),
            total: AtomicU64::new(0),
            suspended: AtomicI64::new(0),
            lowest: AtomicI64::new(0),
        }
    }

    fn now(&self) -> Instant {
        // The monotonic clock is read last: a thread that is held up in between underestimates the suspension, never the
        // other way round.
        let (boot, wall) = (self.boot(), wall().saturating_sub(self.wall));
        let now = runtime();
        let boot = boot.unwrap_or_else(|| self.since(now));
        let suspended = boot.saturating_sub(self.since(now)).saturating_sub(self.suspended.load(Ordering::Acquire));
        let ahead = wall.saturating_sub(boot).saturating_sub(self.lowest.load(Ordering::Acquire));
        if suspended > TOLERANCE || !(-TOLERANCE..=DRIFT).contains(&ahead) {
            self.look_closely();
        }
        now + Duration::from_nanos(self.total.load(Ordering::Acquire))
    }

    /// Reads the clocks as if at one moment, and takes over what has changed.
    #[cold]
    fn look_closely(&self) {
        let mut skew = self.skew.lock();
        for _ in 0..TRIES {
            let before = self.boot().unwrap_or_else(|| self.since(monotonic()));
            let wall = wall().saturating_sub(self.wall);
            let monotonic = self.since(monotonic());
            let after = self.boot().unwrap_or(monotonic);
            // Whatever held this up, a suspension perhaps, lies between the readings, and would count as a step of the wall clock.
            if after.saturating_sub(before) < TOLERANCE {
                skew.observe(ClockReading { monotonic, boot: before, wall });
                break;
            }
        }
        self.total.store(skew.total(), Ordering::Release);
        self.suspended.store(skew.suspended, Ordering::Release);
        self.lowest.store(skew.lowest, Ordering::Release);
    }

    /// `CLOCK_BOOTTIME` since the beginning, if there is one.
    fn boot(&self) -> Option<i64> {
        boot().map(|boot| boot.saturating_sub(self.boot.unwrap_or(boot)))
    }

    /// How long a moment of the monotonic clock is after the beginning.
    fn since(&self, moment: Instant) -> i64 {
        match moment.checked_duration_since(self.monotonic) {
            Some(after) => nanoseconds(after),
            None => -nanoseconds(self.monotonic.saturating_duration_since(moment)),
        }
    }
}

pub(super) fn now() -> Instant {
    CLOCKS.now()
}

#[allow(clippy::disallowed_methods)]
pub(super) fn timer_now() -> tokio::time::Instant {
    tokio::time::Instant::now()
}

#[allow(clippy::disallowed_methods)]
pub(super) fn date() -> SystemTime {
    SystemTime::now()
}

/// The runtime's clock, which a test may have paused.
#[allow(clippy::disallowed_methods)]
fn runtime() -> Instant {
    timer_now().into_std()
}

/// The monotonic clock itself.
#[allow(clippy::disallowed_methods)]
fn monotonic() -> Instant {
    Instant::now()
}

/// `CLOCK_BOOTTIME` in nanoseconds, if the system has it.
fn boot() -> Option<i64> {
    #[cfg(target_os = "linux")]
    let boot = nix::time::clock_gettime(nix::time::ClockId::CLOCK_BOOTTIME).ok().map(|boot| nanoseconds(boot.into()));
    #[cfg(not(target_os = "linux"))]
    let boot = None;
    boot
}

/// The wall clock in nanoseconds since 1970.
fn wall() -> i64 {
    match date().duration_since(SystemTime::UNIX_EPOCH) {
        Ok(after) => nanoseconds(after),
        Err(before) => -nanoseconds(before.duration()),
    }
}

/// Saturates after 292 years.
fn nanoseconds(duration: Duration) -> i64 {
    i64::try_from(duration.as_nanos()).unwrap_or(i64::MAX)
}
