//! When look-ups are sent to the engine: not while it is slow. Pure.

/// So many look-ups of requests in a row without an answer in time open the breaker.
pub(super) const MISSES: u32 = 3;
/// So many probes in a row with an answer in time close it; twice as many each time that it opens soon again.
const PROBES: u32 = 2;
const MAX_PROBES: u32 = 32;
/// After so many look-ups in time it has not opened soon again.
const GOOD: u32 = 100;

/// Look-ups of requests never try the engine. The task that keeps the link does.
#[derive(Default)]
pub(super) struct Breaker {
    missed: u32,
    answered: u32,
    is_open: bool,
    probes: u32,
    good: u32,
    openings: u32,
}

impl Breaker {
    pub(super) fn is_open(&self) -> bool {
        self.is_open
    }

    /// A look-up was not answered in time. Returns whether this has opened the breaker.
    pub(super) fn missed(&mut self) -> bool {
        (self.missed, self.answered) = (self.missed + 1, 0);
        let opens = self.missed >= MISSES && !self.is_open;
        if opens {
            self.is_open = true;
            self.openings = if self.good >= GOOD { 0 } else { self.openings };
            self.probes = PROBES.checked_shl(self.openings).map_or(MAX_PROBES, |probes| probes.min(MAX_PROBES));
            (self.openings, self.good) = ((self.openings + 1).min(MAX_PROBES), 0);
        }
        opens
    }

    /// A look-up was answered in time.
    pub(super) fn answered(&mut self) {
        self.missed = 0;
        self.good = self.good.saturating_add(1);
    }

    /// A probe was answered. Returns whether this has closed the breaker.
    pub(super) fn tried(&mut self, is_in_time: bool) -> bool {
        self.answered = if is_in_time { self.answered + 1 } else { 0 };
        let closes = self.is_open && self.answered >= self.probes;
        if closes {
            (self.is_open, self.missed, self.answered) = (false, 0, 0);
        }
        closes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn open(breaker: &mut Breaker) {
        assert!(!breaker.missed() && !breaker.missed() && breaker.missed());
    }

    #[test]
    fn three_misses_in_a_row_open_it_and_two_probes_in_a_row_close_it() {
        let mut breaker = Breaker::default();
        assert!(!breaker.missed() && !breaker.missed());
        breaker.answered();
        open(&mut breaker);
        assert!(breaker.is_open());
        // Those that were sent before it opened.
        assert!(!breaker.missed());
        breaker.answered();
        assert!(!breaker.tried(true) && !breaker.tried(false) && !breaker.tried(true));
        assert!(breaker.tried(true) && !breaker.is_open());
        open(&mut breaker);
    }

    #[test]
    fn an_engine_that_is_slow_again_and_again_is_tried_longer() {
        let mut breaker = Breaker::default();
        for probes in [2, 4, 8, 16, 32, 32] {
            open(&mut breaker);
            assert_eq!((1..=64).find(|_| breaker.tried(true)), Some(probes));
        }
        (0..GOOD).for_each(|_| breaker.answered());
        open(&mut breaker);
        assert_eq!((1..=64).find(|_| breaker.tried(true)), Some(2));
    }
}
