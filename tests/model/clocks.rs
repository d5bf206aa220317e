//! The clocks of the machine in the model: what a jump of one clock means for the rules.
//!
//! Timers use the monotonic clock, which never jumps. Rules use the time that has passed on `CLOCK_BOOTTIME` or on the
//! wall clock, whichever is more.

use super::domain::{Ms, SECOND};

/// The wall clock may run ahead of `CLOCK_BOOTTIME` by this much (ms) before the difference counts as time.
const DRIFT: i64 = 30_000;

/// A change of one or two of the clocks. For timers no time passes.
#[derive(Clone, Copy, Debug)]
pub enum Jump {
    /// The machine is suspended: both clocks advance.
    Suspension(Ms),
    /// Only `CLOCK_BOOTTIME` advances.
    Boot(Ms),
    /// Only the wall clock is set forward.
    WallForward(Ms),
    /// Only the wall clock is set back.
    WallBack(Ms),
}

impl Jump {
    pub fn by(&mut self) -> &mut Ms {
        match self {
            Self::Suspension(by) | Self::Boot(by) | Self::WallForward(by) | Self::WallBack(by) => by,
        }
    }

    /// The same jump by one second, for shrinking.
    pub fn simpler(mut self) -> Option<Self> {
        let by = self.by();
        (*by > SECOND).then(|| *by = SECOND)?;
        Some(self)
    }
}

/// How far the wall clock is ahead of `CLOCK_BOOTTIME` (ms), and the minimum since a difference last counted.
#[derive(Default)]
pub struct Clocks {
    ahead: i64,
    least: i64,
}

impl Clocks {
    /// The time that passes for the rules, and the name of the rule for the tally.
    pub fn jump(&mut self, jump: Jump) -> (Ms, &'static str) {
        let signed = |by: Ms| i64::try_from(by).expect("a jump is a few minutes at most");
        let (passed, name) = match jump {
            Jump::Suspension(by) => (by, "suspension of the machine"),
            Jump::Boot(by) => {
                self.ahead -= signed(by);
                (by, "jump of the boot clock")
            }
            Jump::WallBack(by) => {
                self.ahead -= signed(by);
                (0, "step back of the wall clock")
            }
            Jump::WallForward(by) => {
                self.ahead += signed(by);
                match self.ahead - self.least {
                    gained if gained > DRIFT => {
                        self.least = self.ahead;
                        (gained.unsigned_abs(), "jump of the wall clock")
                    }
                    _ => (0, "drift of the wall clock"),
                }
            }
        };
        self.least = self.least.min(self.ahead);
        (passed, name)
    }
}
