//! How old an answer is and whether it may still be given (RFC 9111 §4.2). Pure: now is an argument.

use std::time::{Duration, Instant};

/// When an answer was asked for, how old it was by then, and how long it stays fresh.
#[derive(Clone, Copy, Debug)]
pub struct Life {
    /// When the request was sent. Counting from here, not from the answer's arrival, never makes an
    /// answer look younger than it is.
    pub sent: Instant,
    /// The `Age` that upstream gave it.
    pub initial_age: Duration,
    /// How long it is fresh, from age zero.
    pub ttl: Duration,
    /// How much longer it may be given when upstream fails.
    pub stale_if_error: Duration,
}

/// Whether an answer may be given without asking upstream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Freshness {
    /// It may, for as long as `left`.
    Fresh {
        /// How long it may still be given.
        left: Duration,
    },
    /// Only when upstream has been asked and has failed.
    Stale,
    /// Not at all.
    Gone,
}

impl Life {
    /// How old the answer is at a moment.
    pub fn age(&self, now: Instant) -> Duration {
        self.initial_age.saturating_add(now.saturating_duration_since(self.sent))
    }

    /// Whether the answer is fresh at a moment. At the very end of its life it is not.
    pub fn freshness(&self, now: Instant) -> Freshness {
        let age = self.age(now);
        if age < self.ttl {
            Freshness::Fresh { left: self.ttl - age }
        } else if age < self.ttl.saturating_add(self.stale_if_error) {
            Freshness::Stale
        } else {
            Freshness::Gone
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::Clock;

    const SECOND: Duration = Duration::from_secs(1);

    fn life(initial_age: Duration, ttl: u32, stale_if_error: u32) -> Life {
        let sent = Clock::System.now();
        Life { sent, initial_age, ttl: ttl * SECOND, stale_if_error: stale_if_error * SECOND }
    }

    #[test]
    fn an_answer_is_fresh_until_its_ttl_and_not_a_moment_longer() {
        let life = life(Duration::ZERO, 10, 5);
        for (age, freshness) in [
            (0, Freshness::Fresh { left: 10 * SECOND }),
            (9, Freshness::Fresh { left: SECOND }),
            (10, Freshness::Stale),
            (14, Freshness::Stale),
            (15, Freshness::Gone),
        ] {
            assert_eq!(life.freshness(life.sent + age * SECOND), freshness, "{age}");
        }
    }

    #[test]
    fn the_age_upstream_gave_counts() {
        let young = life(4 * SECOND, 10, 0);
        assert_eq!(young.age(young.sent + SECOND), 5 * SECOND);
        assert_eq!(young.freshness(young.sent + 6 * SECOND), Freshness::Gone);
        let ancient = life(Duration::MAX, 10, 10);
        assert_eq!(ancient.freshness(ancient.sent + SECOND), Freshness::Gone);
    }

    #[test]
    fn a_ttl_of_zero_is_never_fresh() {
        let life = life(Duration::ZERO, 0, 0);
        assert_eq!(life.freshness(life.sent), Freshness::Gone);
    }
}
