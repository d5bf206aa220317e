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
}

/// Whether an answer may be given without asking upstream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Freshness {
    /// It may, for as long as `left`.
    Fresh {
        /// How long it may still be given.
        left: Duration,
    },
    /// It may not.
    Expired,
}

impl Life {
    /// How old the answer is at a moment.
    pub fn age(&self, now: Instant) -> Duration {
        self.initial_age.saturating_add(now.saturating_duration_since(self.sent))
    }

    /// Whether the answer is fresh at a moment. At the very end of its life it is not.
    pub fn freshness(&self, now: Instant) -> Freshness {
        match self.ttl.checked_sub(self.age(now)) {
            Some(left) if !left.is_zero() => Freshness::Fresh { left },
            _ => Freshness::Expired,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::Clock;

    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn an_answer_is_fresh_until_its_ttl_and_not_a_moment_longer() {
        let sent = Clock::System.now();
        let life = Life { sent, initial_age: Duration::ZERO, ttl: 10 * SECOND };
        assert_eq!(life.freshness(sent), Freshness::Fresh { left: 10 * SECOND });
        assert_eq!(life.freshness(sent + 9 * SECOND), Freshness::Fresh { left: SECOND });
        assert_eq!(life.freshness(sent + 10 * SECOND), Freshness::Expired);
        assert_eq!(life.freshness(sent + 11 * SECOND), Freshness::Expired);
    }

    #[test]
    fn the_age_upstream_gave_counts() {
        let sent = Clock::System.now();
        let life = Life { sent, initial_age: 4 * SECOND, ttl: 10 * SECOND };
        assert_eq!(life.age(sent + SECOND), 5 * SECOND);
        assert_eq!(life.freshness(sent + 6 * SECOND), Freshness::Expired);
        let ancient = Life { initial_age: Duration::MAX, ..life };
        assert_eq!(ancient.freshness(sent + SECOND), Freshness::Expired);
    }

    #[test]
    fn a_ttl_of_zero_is_never_fresh() {
        let sent = Clock::System.now();
        let life = Life { sent, initial_age: Duration::ZERO, ttl: Duration::ZERO };
        assert_eq!(life.freshness(sent), Freshness::Expired);
    }
}
