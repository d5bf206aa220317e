//! When look-ups are sent to the engine: not while it is slow. Pure.

/// So many look-ups in a row without an answer in time open the breaker.
const MISSES: u32 = 3;
/// So many answers about its role in a row with an answer in time close it.
const ANSWERS: u32 = 2;

/// Look-ups never test the engine. The task that keeps the link does.
#[derive(Default)]
pub(super) struct Breaker {
    missed: u32,
    answered: u32,
    is_open: bool,
}

impl Breaker {
    pub(super) fn is_open(&self) -> bool {
        self.is_open
    }

    /// A look-up was not answered in time. Returns whether this has opened the breaker.
    pub(super) fn missed(&mut self) -> bool {
        (self.missed, self.answered) = (self.missed + 1, 0);
        let opens = self.missed >= MISSES && !self.is_open;
        self.is_open |= opens;
        opens
    }

    /// A look-up was answered in time.
    pub(super) fn answered(&mut self) {
        self.missed = 0;
    }

    /// The engine has answered outside of look-ups. Returns whether this has closed the breaker.
    pub(super) fn answered_role(&mut self, is_in_time: bool) -> bool {
        self.answered = if is_in_time { self.answered + 1 } else { 0 };
        let closes = self.is_open && self.answered >= ANSWERS;
        if closes {
            *self = Self::default();
        }
        closes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn three_misses_in_a_row_open_it_and_two_answers_in_a_row_close_it() {
        let mut breaker = Breaker::default();
        assert!(!breaker.missed() && !breaker.missed());
        breaker.answered();
        assert!(!breaker.missed() && !breaker.missed() && !breaker.is_open());
        assert!(breaker.missed() && breaker.is_open());
        // Those that were sent before it opened.
        assert!(!breaker.missed());
        breaker.answered();
        assert!(!breaker.answered_role(true) && !breaker.answered_role(false) && !breaker.answered_role(true));
        assert!(breaker.answered_role(true) && !breaker.is_open());
        assert!(!breaker.missed() && !breaker.missed() && breaker.missed());
    }
}
