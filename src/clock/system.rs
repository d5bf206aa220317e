//! Reads the machine's clocks. No other file may read them.
//!
//! The skew is one value for the whole process. A hit reads three clocks and three atomics, once. The lock is taken
//! only if a clock has moved by more than 1 ms relative to the others.

use std::sync::LazyLock;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};
use std::time::{Duration, Instant, SystemTime};

use super::skew::{ClockReading, DRIFT, Skew};
use crate::sync::Mutex;

/// Differences between clocks up to this are ignored, in nanoseconds, because the clocks are read one after the other.
const TOLERANCE: i64 = 1_000_000;

/// How many times the clocks are read if the thread is interrupted between the readings.
const TRIES: usize = 8;

static CLOCKS: LazyLock<Clocks> = LazyLock::new(Clocks::new);

struct Clocks {
    monotonic: Instant,
    boot: Option<i64>,
    wall: i64,
    skew: Mutex<Skew>,
    // Copies of fields of `skew`, to read without the lock. The total is written before the other two and read after
    // them. So a thread that reads a new value of the other two also reads the new total.
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
        // The monotonic clock is read last. A thread that is interrupted between the readings underestimates the
        // suspension, and never overestimates it.
        let (boot, wall) = (self.boot(), wall().saturating_sub(self.wall));
        let now = runtime();
        let boot = boot.unwrap_or_else(|| self.since(now));
        let suspended = boot.saturating_sub(self.since(now)).saturating_sub(self.suspended.load(Ordering::Acquire));
        let ahead = wall.saturating_sub(boot).saturating_sub(self.lowest.load(Ordering::Acquire));
        if suspended > TOLERANCE || !(-TOLERANCE..=DRIFT).contains(&ahead) {
            self.update_skew();
        }
        now + Duration::from_nanos(self.total.load(Ordering::Acquire))
    }

    /// Reads the clocks within 1 ms, and updates the skew.
    #[cold]
    fn update_skew(&self) {
        let mut skew = self.skew.lock();
        for _ in 0..TRIES {
            let before = self.boot().unwrap_or_else(|| self.since(monotonic()));
            let wall = wall().saturating_sub(self.wall);
            let monotonic = self.since(monotonic());
            let after = self.boot().unwrap_or(monotonic);
            // An interruption between the readings, for example a suspension, would count as a step of the wall clock.
            if after.saturating_sub(before) < TOLERANCE {
                skew.observe(ClockReading { monotonic, boot: before, wall });
                break;
            }
        }
        self.total.store(skew.total(), Ordering::Release);
        self.suspended.store(skew.suspended, Ordering::Release);
        self.lowest.store(skew.lowest, Ordering::Release);
    }

    /// `CLOCK_BOOTTIME` since the start, in nanoseconds. `None` if the system does not have it.
    fn boot(&self) -> Option<i64> {
        boot().map(|boot| boot.saturating_sub(self.boot.unwrap_or(boot)))
    }

    /// The time from the start to `time` on the monotonic clock, in nanoseconds.
    fn since(&self, time: Instant) -> i64 {
        match time.checked_duration_since(self.monotonic) {
            Some(after) => nanoseconds(after),
            None => -nanoseconds(self.monotonic.saturating_duration_since(time)),
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

/// The runtime's clock. A test may have paused it.
#[allow(clippy::disallowed_methods)]
fn runtime() -> Instant {
    timer_now().into_std()
}

/// The monotonic clock, not the runtime's.
#[allow(clippy::disallowed_methods)]
fn monotonic() -> Instant {
    Instant::now()
}

/// `CLOCK_BOOTTIME` in nanoseconds. `None` if the system does not have it.
fn boot() -> Option<i64> {
    #[cfg(target_os = "linux")]
    let boot = nix::time::clock_gettime(nix::time::ClockId::CLOCK_BOOTTIME).ok().map(|boot| nanoseconds(boot.into()));
    #[cfg(not(target_os = "linux"))]
    let boot = None;
    boot
}

/// The id of this boot, and `CLOCK_BOOTTIME`.
pub(super) fn boot_time() -> Option<([u8; 16], Duration)> {
    static BOOT_ID: LazyLock<Option<[u8; 16]>> = LazyLock::new(|| {
        let text = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").ok()?;
        Some(u128::from_str_radix(&text.trim().replace('-', ""), 16).ok()?.to_be_bytes())
    });
    let boot = u64::try_from(boot()?).ok()?;
    BOOT_ID.map(|id| (id, Duration::from_nanos(boot)))
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
