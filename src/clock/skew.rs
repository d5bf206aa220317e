//! Computes the skew: how far the time for rules is ahead of the runtime's clock. It is the sum of the suspensions and
//! of the forward steps of the wall clock. Pure: it reads no clock.
//!
//! The monotonic clock stops while the machine is suspended. `CLOCK_BOOTTIME` does not (`clock_gettime(2)`). While a
//! virtual machine is paused, both may stop, and only the wall clock is corrected afterwards. So a forward step of the
//! wall clock counts as time that has passed.
//!
//! The step is measured from the lowest offset between the wall clock and `CLOCK_BOOTTIME` since the previous step. So
//! slow drift and several small steps add up. A clock that is set back and then forward again counts as a step.

/// How far the wall clock may run ahead of `CLOCK_BOOTTIME` before the difference counts, in nanoseconds: 30 s.
pub(super) const DRIFT: i64 = 30_000_000_000;

/// The values of the clocks at one time, in nanoseconds since a common start.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct ClockReading {
    /// The monotonic clock. It stops during a suspension.
    pub monotonic: i64,
    /// `CLOCK_BOOTTIME`, or the monotonic clock if the system does not have it.
    pub boot: i64,
    pub wall: i64,
}

/// The skew and what it is computed from, in nanoseconds. Initially all clocks show 0.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Skew {
    /// The sum of the suspensions.
    pub suspended: i64,
    /// The sum of the forward steps of the wall clock.
    stepped: i64,
    /// The lowest offset of the wall clock from `boot` since the last step.
    pub lowest: i64,
}

impl Skew {
    /// Updates the skew with a reading. The total never decreases.
    pub(super) fn observe(&mut self, reading: ClockReading) {
        self.suspended = self.suspended.max(reading.boot.saturating_sub(reading.monotonic));
        let offset = reading.wall.saturating_sub(reading.boot);
        let ahead = offset.saturating_sub(self.lowest);
        if ahead > DRIFT {
            self.stepped = self.stepped.saturating_add(ahead);
            self.lowest = offset;
        } else {
            self.lowest = self.lowest.min(offset);
        }
    }

    /// The time to add to the monotonic clock.
    pub(super) fn total(&self) -> u64 {
        self.suspended.saturating_add(self.stepped).unsigned_abs()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const SECOND: i64 = 1_000_000_000;

    /// A change of the clocks between two readings, in seconds.
    #[derive(Clone, Copy, Debug)]
    enum Step {
        Pass(i64),
        Suspend(i64),
        Wall(i64),
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            (0..100i64).prop_map(Step::Pass),
            (0..5000i64).prop_map(Step::Suspend),
            (-40..40i64).prop_map(Step::Wall),
            (-5000..5000i64).prop_map(Step::Wall),
        ]
    }

    fn readings(steps: &[Step]) -> Vec<ClockReading> {
        let mut at = ClockReading::default();
        let mut all = vec![at];
        for step in steps {
            let (monotonic, boot, wall) = match *step {
                Step::Pass(by) => (by, by, by),
                Step::Suspend(by) => (0, by, by),
                Step::Wall(by) => (0, 0, by),
            };
            at.monotonic += monotonic * SECOND;
            at.boot += boot * SECOND;
            at.wall += wall * SECOND;
            all.push(at);
        }
        all
    }

    /// The time for rules at each reading.
    fn times(readings: &[ClockReading]) -> Vec<i64> {
        let mut skew = Skew::default();
        let time = |reading: &ClockReading| {
            skew.observe(*reading);
            reading.monotonic + i64::try_from(skew.total()).unwrap()
        };
        readings.iter().map(time).collect()
    }

    fn total(steps: &[Step]) -> i64 {
        let readings = readings(steps);
        (times(&readings).last().unwrap() - readings.last().unwrap().monotonic) / SECOND
    }

    proptest! {
        #[test]
        fn an_age_is_never_below_what_passed_on_the_boot_clock_or_on_the_wall_clock_less_the_drift(
            steps in prop::collection::vec(step(), 1..40),
        ) {
            let readings = readings(&steps);
            let times = times(&readings);
            for (end, until) in readings.iter().enumerate() {
                for (begin, since) in readings.iter().enumerate().take(end) {
                    let age = times[end] - times[begin];
                    prop_assert!(age >= until.boot - since.boot);
                    prop_assert!(age >= until.wall - since.wall - DRIFT);
                    prop_assert!(age - (until.monotonic - since.monotonic) >= 0, "the skew decreases");
                }
            }
        }

        #[test]
        fn steps_back_and_small_drift_change_nothing(
            steps in prop::collection::vec((0..100i64, 0..2i64), 1..15),
            back in 0..5000i64,
        ) {
            let mut all = vec![Step::Wall(-back)];
            all.extend(steps.iter().flat_map(|(pass, drift)| [Step::Pass(*pass), Step::Wall(*drift)]));
            prop_assert_eq!(total(&all), 0);
        }
    }

    #[test]
    fn the_time_for_rules_follows_suspensions_and_forward_steps() {
        let cases: &[(&str, &[Step], i64)] = &[
            ("suspended", &[Step::Suspend(3600)], 3600),
            ("wall forward", &[Step::Wall(3600)], 3600),
            ("wall back", &[Step::Wall(-3600)], 0),
            ("wall back, then forward", &[Step::Wall(-3600), Step::Wall(3600)], 3600),
            ("wall forward, back, forward", &[Step::Wall(3600), Step::Wall(-3600), Step::Wall(3600)], 7200),
            ("drift", &[Step::Wall(20)], 0),
            ("drift to the bound", &[Step::Wall(30)], 0),
            ("slow drift beyond the bound", &[Step::Wall(10), Step::Pass(9), Step::Wall(10), Step::Wall(11)], 31),
            ("drift after a step", &[Step::Wall(3600), Step::Wall(30)], 3600),
            ("suspended twice", &[Step::Suspend(60), Step::Pass(5), Step::Suspend(60)], 120),
        ];
        for (name, steps, expected) in cases {
            assert_eq!(total(steps), *expected, "{name}");
        }
    }

    #[test]
    fn extreme_readings_cause_no_overflow() {
        for wall in [i64::MIN, i64::MAX] {
            let mut skew = Skew::default();
            skew.observe(ClockReading { monotonic: 1, boot: i64::MAX, wall });
            skew.observe(ClockReading { monotonic: 2, boot: i64::MAX, wall: i64::MAX });
            assert!(skew.total() >= i64::MAX.unsigned_abs() - 2);
        }
    }
}
