//! A time that another process can compare with its own: after a restart, or on another machine. Pure.

use std::time::Duration;

use serde::{Deserialize, Serialize};

/// The largest difference allowed between the wall clocks of two machines, or of one machine before and after a reboot.
const MAX_SKEW: Duration = Duration::from_secs(5);

/// What the clocks of a machine show at one time.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Moment {
    /// The id of the boot, and `CLOCK_BOOTTIME`. `None` if the system does not have them.
    pub(super) boot: Option<([u8; 16], Duration)>,
    /// The time since 1970 on the wall clock.
    pub(super) wall: Duration,
}

impl Moment {
    /// At least the time that has passed until `later`. Within one boot it is the larger one of `CLOCK_BOOTTIME` and the
    /// wall clock. Otherwise only the wall clock is known, and [`MAX_SKEW`] is added. `None` if that shows that this
    /// moment is in the future.
    pub(crate) fn until(&self, later: &Self) -> Option<Duration> {
        let on_wall = later.wall.checked_sub(self.wall);
        if let (Some((boot, begin)), Some((same_boot, end))) = (self.boot, later.boot)
            && boot == same_boot
        {
            return end.checked_sub(begin).map(|on_boot| on_boot.max(on_wall.unwrap_or_default()));
        }
        match on_wall {
            Some(passed) => passed.checked_add(MAX_SKEW),
            None => MAX_SKEW.checked_sub(self.wall - later.wall),
        }
    }

    /// The time that has certainly passed until `later`. Within one boot it is that of `CLOCK_BOOTTIME`. Otherwise only the
    /// wall clock is known, and [`MAX_SKEW`] is subtracted.
    pub(crate) fn certain_until(&self, later: &Self) -> Duration {
        match (self.boot, later.boot) {
            (Some((boot, begin)), Some((same_boot, end))) if boot == same_boot => end.saturating_sub(begin),
            _ => later.wall.saturating_sub(self.wall).saturating_sub(MAX_SKEW),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn moment(boot: Option<(u8, u32)>, wall: u32) -> Moment {
        Moment { boot: boot.map(|(id, seconds)| ([id; 16], seconds * SECOND)), wall: wall * SECOND }
    }

    #[test]
    fn an_age_is_never_less_than_the_time_that_has_passed() {
        let written = moment(Some((1, 100)), 10_000);
        for (read, seconds) in [
            // The same boot: the larger time counts, and a wall clock that was set back changes nothing.
            (moment(Some((1, 160)), 10_060), Some(60)),
            (moment(Some((1, 160)), 10_500), Some(500)),
            (moment(Some((1, 160)), 9_000), Some(60)),
            // CLOCK_BOOTTIME never goes back. So this is another machine with a copied id.
            (moment(Some((1, 99)), 10_500), None),
            // Another boot or machine: wall clocks may differ by 5 s.
            (moment(Some((2, 7)), 10_060), Some(65)),
            (moment(None, 10_060), Some(65)),
            (moment(Some((2, 7)), 10_000), Some(5)),
            (moment(Some((2, 7)), 9_997), Some(2)),
            (moment(Some((2, 7)), 9_995), Some(0)),
            (moment(Some((2, 7)), 9_994), None),
        ] {
            assert_eq!(written.until(&read), seconds.map(|seconds| seconds * SECOND), "{read:?}");
        }
    }

    #[test]
    fn what_has_certainly_passed_is_never_more_than_the_time_that_has_passed() {
        let written = moment(Some((1, 100)), 10_000);
        for (read, seconds) in [
            // The same boot, whatever the wall clock shows.
            (moment(Some((1, 160)), 10_060), 60),
            (moment(Some((1, 160)), 10_500), 60),
            (moment(Some((1, 160)), 9_000), 60),
            (moment(Some((1, 99)), 10_500), 0),
            // Another boot or machine: wall clocks may differ by 5 s.
            (moment(Some((2, 7)), 10_060), 55),
            (moment(None, 10_060), 55),
            (moment(Some((2, 7)), 10_004), 0),
            (moment(Some((2, 7)), 9_994), 0),
        ] {
            assert_eq!(written.certain_until(&read), seconds * SECOND, "{read:?}");
        }
    }
}
