//! Computes the age of an entry, and whether the gateway may answer with it (RFC 9111 §4.2, RFC 5861). Pure: the time
//! is an argument.

use std::time::{Duration, Instant};

/// How long an entry may be used, and when. A zero means never.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Lifetime {
    /// The freshness lifetime, counted from age zero.
    pub ttl: Duration,
    /// How long after `ttl` the stale entry may be used while the gateway revalidates it.
    pub stale_while_revalidate: Duration,
    /// How long after `ttl` the stale entry may be used if upstream fails.
    pub stale_if_error: Duration,
}

/// What the age and the freshness of an entry are computed from.
#[derive(Clone, Copy, Debug)]
pub struct FreshnessInfo {
    /// When the request was sent. Counting from here, not from the time of the response, never makes an entry look
    /// younger than it is.
    pub sent: Instant,
    /// The age that the response had already, according to upstream.
    pub initial_age: Duration,
    pub lifetime: Lifetime,
}

/// Whether the gateway may answer with an entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Freshness {
    /// Yes, without a call to upstream.
    Fresh {
        /// The remaining freshness lifetime.
        left: Duration,
    },
    /// Yes, while the gateway revalidates it.
    WhileRevalidate,
    /// Only if a call to upstream has failed or is too slow.
    IfError,
    /// No.
    Gone,
}

impl FreshnessInfo {
    pub fn age(&self, now: Instant) -> Duration {
        self.initial_age.saturating_add(now.saturating_duration_since(self.sent))
    }

    /// How long the entry is fresh, from when its request was sent.
    pub fn fresh_for(&self) -> Duration {
        self.lifetime.ttl.saturating_sub(self.initial_age)
    }

    /// The state at `now`. When the age is equal to `ttl`, the entry is no longer fresh.
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

    /// The remaining freshness lifetime in seconds, as the `ttl` of RFC 9211 §2.3. Negative if the entry is stale.
    pub fn seconds_left(&self, now: Instant) -> i64 {
        let (ttl, age) = (self.lifetime.ttl, self.age(now));
        let seconds = |span: Duration| i64::try_from(span.as_secs()).unwrap_or(i64::MAX);
        match age.checked_sub(ttl) {
            None => seconds(ttl - age),
            // Rounded away from zero: a stale entry must not show 0.
            Some(over) => -seconds(over + Duration::from_nanos(999_999_999)).max(1),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::Clock;

    const SECOND: Duration = Duration::from_secs(1);

    fn info(initial_age: Duration, [ttl, stale_while_revalidate, stale_if_error]: [u32; 3]) -> FreshnessInfo {
        let [ttl, stale_while_revalidate, stale_if_error] =
            [ttl, stale_while_revalidate, stale_if_error].map(|seconds| seconds * SECOND);
        let lifetime = Lifetime { ttl, stale_while_revalidate, stale_if_error };
        FreshnessInfo { sent: Clock::System.now(), initial_age, lifetime }
    }

    #[test]
    fn an_entry_is_fresh_until_its_ttl_and_no_longer() {
        let info = info(Duration::ZERO, [10, 3, 5]);
        for (age, freshness, left) in [
            (0, Freshness::Fresh { left: 10 * SECOND }, 10),
            (9, Freshness::Fresh { left: SECOND }, 1),
            (10, Freshness::WhileRevalidate, -1),
            (12, Freshness::WhileRevalidate, -2),
            (13, Freshness::IfError, -3),
            (14, Freshness::IfError, -4),
            (15, Freshness::Gone, -5),
        ] {
            let now = info.sent + age * SECOND;
            assert_eq!((info.freshness(now), info.seconds_left(now)), (freshness, left), "{age}");
        }
        let half = SECOND / 2;
        assert_eq!((info.seconds_left(info.sent + half), info.seconds_left(info.sent + 12 * SECOND + half)), (9, -3));
    }

    #[test]
    fn the_longer_stale_window_counts() {
        let info = info(Duration::ZERO, [10, 5, 0]);
        let at = |second: u32| info.freshness(info.sent + second * SECOND);
        assert_eq!((at(14), at(15)), (Freshness::WhileRevalidate, Freshness::Gone));
    }

    #[test]
    fn the_age_from_upstream_counts() {
        let young = info(4 * SECOND, [10, 0, 0]);
        assert_eq!(young.age(young.sent + SECOND), 5 * SECOND);
        assert_eq!(young.freshness(young.sent + 6 * SECOND), Freshness::Gone);
        let ancient = info(Duration::MAX, [10, 10, 10]);
        assert_eq!(ancient.freshness(ancient.sent + SECOND), Freshness::Gone);
        assert!(ancient.seconds_left(ancient.sent) < 0);
    }

    #[test]
    fn a_ttl_of_zero_is_never_fresh() {
        let info = info(Duration::ZERO, [0, 0, 0]);
        assert_eq!(info.freshness(info.sent), Freshness::Gone);
    }
}
