//! The machine's clocks, as the model sees them: what each jump of a single clock means for rules.
//!
//! Timers go by the monotonic clock, which never jumps. Rules go by the time that has passed on `CLOCK_BOOTTIME` or on the
//! wall clock, whichever is more.

use super::world::{Ms, SECOND};

/// By how much the wall clock may run ahead of `CLOCK_BOOTTIME` before that counts as time.
const DRIFT: i64 = 30_000;

/// A change of one or two of the clocks, in which no timer sees any time pass.
#[derive(Clone, Copy, Debug)]
pub enum Jump {
    /// A suspension: both go ahead.
    Suspension(Ms),
    /// `CLOCK_BOOTTIME` alone goes ahead.
    Boot(Ms),
    /// The wall clock alone is set forward.
    WallForward(Ms),
    /// The wall clock alone is set back.
    WallBack(Ms),
}

impl Jump {
    pub fn by(&mut self) -> &mut Ms {
        match self {
            Self::Suspension(by) | Self::Boot(by) | Self::WallForward(by) | Self::WallBack(by) => by,
        }
    }

    /// The same by a second, to be tried in its place.
    pub fn simpler(mut self) -> Option<Self> {
        let by = self.by();
        (*by > SECOND).then(|| *by = SECOND)?;
        Some(self)
    }
}

/// By how much the wall clock is ahead of `CLOCK_BOOTTIME`, and the least that it has been since it last counted.
#[derive(Default)]
pub struct Clocks {
    ahead: i64,
    least: i64,
}

impl Clocks {
    /// How much time a jump is for rules, and what to call that.
    pub fn jump(&mut self, jump: Jump) -> (Ms, &'static str) {
        let signed = |by: Ms| i64::try_from(by).expect("a few minutes");
        let (passed, name) = match jump {
            Jump::Suspension(by) => (by, "suspension"),
            Jump::Boot(by) => {
                self.ahead -= signed(by);
                (by, "jump of the boot clock")
            }
            Jump::WallBack(by) => {
                self.ahead -= signed(by);
                (0, "step back")
            }
            Jump::WallForward(by) => {
                self.ahead += signed(by);
                match self.ahead - self.least {
                    gained if gained > DRIFT => {
                        self.least = self.ahead;
                        (gained.unsigned_abs(), "jump of the wall clock")
                    }
                    _ => (0, "drift"),
                }
            }
        };
        self.least = self.least.min(self.ahead);
        (passed, name)
    }
}
