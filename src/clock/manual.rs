//! Clocks for tests. A test can move all of them or a single one. Between moves they stand still or run like the
//! machine's.

use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use super::skew::{ClockReading, Skew};
use super::system;
use crate::sync::{Mutex, MutexGuard};

/// Clones show the same time. The time for rules is computed as for the machine's clocks: a jump counts when
/// [`Clock::now`] is called next.
///
/// [`Clock::now`]: super::Clock::now
#[derive(Clone, Debug)]
pub struct ManualClock {
    monotonic: Instant,
    wall: SystemTime,
    runs: bool,
    /// The id of the boot. `None`: other processes cannot compare `CLOCK_BOOTTIME`.
    boot_id: Option<[u8; 16]>,
    state: Arc<Mutex<(ClockReading, Skew)>>,
}

impl ManualClock {
    /// Clocks that run: they show the machine's time plus the moves.
    pub fn running() -> Self {
        Self { runs: true, ..Self::default() }
    }

    /// Clocks that run: they show the runtime's time, and the wall clock begins with this date. They are those of a boot
    /// with this id.
    pub fn running_from(wall: SystemTime, id: [u8; 16]) -> Self {
        Self { runs: true, wall, boot_id: Some(id), ..Self::default() }
    }

    /// The clocks of a boot with this id. They stand still.
    pub fn of_boot(id: [u8; 16]) -> Self {
        Self { boot_id: Some(id), ..Self::default() }
    }

    /// Moves all clocks forward.
    pub fn advance(&self, by: Duration) {
        let by = nanoseconds(by);
        self.set(|clocks| {
            clocks.monotonic += by;
            clocks.boot += by;
            clocks.wall += by;
        });
    }

    /// Moves only `CLOCK_BOOTTIME` forward.
    pub fn advance_boot(&self, by: Duration) {
        self.set(|clocks| clocks.boot += nanoseconds(by));
    }

    /// Moves only the wall clock forward.
    pub fn advance_wall(&self, by: Duration) {
        self.set(|clocks| clocks.wall += nanoseconds(by));
    }

    /// Moves only the wall clock back.
    pub fn set_wall_back(&self, by: Duration) {
        self.set(|clocks| clocks.wall -= nanoseconds(by));
    }

    /// Simulates a suspension: it moves `CLOCK_BOOTTIME` and the wall clock forward, and leaves the monotonic clock.
    pub fn suspend(&self, by: Duration) {
        self.set(|clocks| {
            clocks.boot += nanoseconds(by);
            clocks.wall += nanoseconds(by);
        });
    }

    pub(super) fn now(&self) -> Instant {
        let mut state = self.state();
        let (moved, skew) = &mut *state;
        let reading = self.reading(*moved);
        skew.observe(reading);
        self.monotonic + duration(reading.monotonic) + Duration::from_nanos(skew.total())
    }

    #[allow(clippy::disallowed_methods)]
    pub(super) fn timer_now(&self) -> tokio::time::Instant {
        tokio::time::Instant::from_std(self.monotonic + duration(self.shown().monotonic))
    }

    pub(super) fn date(&self) -> SystemTime {
        let wall = self.shown().wall;
        if wall < 0 { self.wall - Duration::from_nanos(wall.unsigned_abs()) } else { self.wall + duration(wall) }
    }

    /// `CLOCK_BOOTTIME` begins with the clock.
    pub(super) fn boot_time(&self) -> Option<([u8; 16], Duration)> {
        let boot = u64::try_from(self.shown().boot).ok()?;
        self.boot_id.map(|id| (id, Duration::from_nanos(boot)))
    }

    fn shown(&self) -> ClockReading {
        let moved = self.state().0;
        self.reading(moved)
    }

    /// The reading of clocks that were moved by `moved`.
    #[allow(clippy::disallowed_methods)]
    fn reading(&self, moved: ClockReading) -> ClockReading {
        if !self.runs {
            return moved;
        }
        let passed = nanoseconds(system::timer_now().into_std().saturating_duration_since(self.monotonic));
        let ClockReading { monotonic, boot, wall } = moved;
        ClockReading { monotonic: monotonic + passed, boot: boot + passed, wall: wall + passed }
    }

    fn set(&self, change: impl FnOnce(&mut ClockReading)) {
        change(&mut self.state().0);
    }

    fn state(&self) -> MutexGuard<'_, (ClockReading, Skew)> {
        self.state.lock()
    }
}

#[allow(clippy::disallowed_methods)]
impl Default for ManualClock {
    fn default() -> Self {
        Self {
            monotonic: system::timer_now().into_std(),
            wall: system::date(),
            runs: false,
            boot_id: None,
            state: Arc::default(),
        }
    }
}

fn duration(nanoseconds: i64) -> Duration {
    Duration::from_nanos(nanoseconds.unsigned_abs())
}

fn nanoseconds(duration: Duration) -> i64 {
    i64::try_from(duration.as_nanos()).unwrap_or(i64::MAX)
}
