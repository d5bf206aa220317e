//! How old an answer is and whether it may still be given (RFC 9111 §4.2, RFC 5861). Pure: now is an
//! argument.

use std::time::{Duration, Instant};

/// How long an answer may be given, and under what conditions. All are counted so that a zero means
/// never.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Lifetime {
    /// How long it is fresh, from age zero.
    pub ttl: Duration,
    /// How much longer it may be given while upstream is asked again.
    pub stale_while_revalidate: Duration,
    /// How much longer than its `ttl` it may be given when upstream fails.
    pub stale_if_error: Duration,
}

/// When an answer was asked for, how old it was by then, and how long it may be given.
#[derive(Clone, Copy, Debug)]
pub struct Life {
    /// When the request was sent. Counting from here, not from the answer's arrival, never makes an
    /// answer look younger than it is.
    pub sent: Instant,
    /// How old upstream says it was.
    pub initial_age: Duration,
    /// How long it may be given.
    pub lifetime: Lifetime,
}

/// Whether an answer may be given without asking upstream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Freshness {
    /// It may, for as long as `left`.
    Fresh {
        /// How long it may still be given.
        left: Duration,
    },
    /// It may, while upstream is asked again.
    WhileRevalidate,
    /// Only when upstream has been asked and has failed, or is too slow.
    IfError,
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
        let Lifetime { ttl, stale_while_revalidate, stale_if_error } = self.lifetime;
        let age = self.age(now);
        if age < ttl {
            Freshness::Fresh { left: ttl - age }
        } else if age < ttl.saturating_add(stale_while_revalidate) {
            Freshness::WhileRevalidate
        } else if age < ttl.saturating_add(stale_if_error) {
            Freshness::IfError
        } else {
            Freshness::Gone
        }
    }

    /// For how many seconds the answer stays fresh, as RFC 9211 tells it: below zero, for how many it
    /// has not been.
    pub fn seconds_left(&self, now: Instant) -> i64 {
        let (ttl, age) = (self.lifetime.ttl, self.age(now));
        let seconds = |span: Duration| i64::try_from(span.as_secs()).unwrap_or(i64::MAX);
        match age.checked_sub(ttl) {
            None => seconds(ttl - age),
            // What has just expired is not fresh, and is not told to be.
            Some(over) => -seconds(over + Duration::from_nanos(999_999_999)).max(1),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::Clock;

    const SECOND: Duration = Duration::from_secs(1);

    fn life(initial_age: Duration, [ttl, stale_while_revalidate, stale_if_error]: [u32; 3]) -> Life {
        let [ttl, stale_while_revalidate, stale_if_error] =
            [ttl, stale_while_revalidate, stale_if_error].map(|seconds| seconds * SECOND);
        let lifetime = Lifetime { ttl, stale_while_revalidate, stale_if_error };
        Life { sent: Clock::System.now(), initial_age, lifetime }
    }

    #[test]
    fn an_answer_is_fresh_until_its_ttl_and_not_a_moment_longer() {
        let life = life(Duration::ZERO, [10, 3, 5]);
        for (age, freshness, left) in [
            (0, Freshness::Fresh { left: 10 * SECOND }, 10),
            (9, Freshness::Fresh { left: SECOND }, 1),
            (10, Freshness::WhileRevalidate, -1),
            (12, Freshness::WhileRevalidate, -2),
            (13, Freshness::IfError, -3),
            (14, Freshness::IfError, -4),
            (15, Freshness::Gone, -5),
        ] {
            let now = life.sent + age * SECOND;
            assert_eq!((life.freshness(now), life.seconds_left(now)), (freshness, left), "{age}");
        }
        let half = SECOND / 2;
        assert_eq!((life.seconds_left(life.sent + half), life.seconds_left(life.sent + 12 * SECOND + half)), (9, -3));
    }

    #[test]
    fn the_longer_window_counts() {
        let life = life(Duration::ZERO, [10, 5, 0]);
        let at = |second: u32| life.freshness(life.sent + second * SECOND);
        assert_eq!((at(14), at(15)), (Freshness::WhileRevalidate, Freshness::Gone));
    }

    #[test]
    fn the_age_upstream_gave_counts() {
        let young = life(4 * SECOND, [10, 0, 0]);
        assert_eq!(young.age(young.sent + SECOND), 5 * SECOND);
        assert_eq!(young.freshness(young.sent + 6 * SECOND), Freshness::Gone);
        let ancient = life(Duration::MAX, [10, 10, 10]);
        assert_eq!(ancient.freshness(ancient.sent + SECOND), Freshness::Gone);
        assert!(ancient.seconds_left(ancient.sent) < 0);
    }

    #[test]
    fn a_ttl_of_zero_is_never_fresh() {
        let life = life(Duration::ZERO, [0, 0, 0]);
        assert_eq!(life.freshness(life.sent), Freshness::Gone);
    }
}
