//! How long limits of upstream hold calls back. The time that a call waits for a slot does not count. Pure: the time is an
//! argument.
//!
//! Calls wait in groups: first those of one caller, then those of an operation in the queue of a class. A limit holds back a
//! group or nothing of it, so each group has a clock that runs while it is held back.

use std::time::{Duration, Instant};

use crate::catalogue::QuotaPolicy;

/// Runs while a limit holds a group of calls back.
#[derive(Debug, Default)]
pub(super) struct HoldClock {
    /// Until it stopped last.
    total: Duration,
    running_since: Option<Instant>,
    /// The limit that holds the group back, or has held it back last.
    policy: Option<QuotaPolicy>,
}

/// How long one call has been held back.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct QuotaWait {
    /// In the groups that it has left.
    total: Duration,
    policy: Option<QuotaPolicy>,
    /// What the clock of its group said when it joined it.
    joined: Duration,
}

/// The calls that a limit holds back at a moment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct HeldCalls {
    pub(crate) policy: QuotaPolicy,
    pub(crate) calls: usize,
}

impl HoldClock {
    /// Starts, or goes on, if a limit holds the group back, and stops if none does.
    pub(super) fn set(&mut self, holding: Option<QuotaPolicy>, now: Instant) {
        self.total = self.read(now);
        self.running_since = holding.map(|_| now);
        self.policy = holding.or(self.policy);
    }

    fn read(&self, now: Instant) -> Duration {
        self.total + self.running_since.map_or(Duration::ZERO, |since| now.saturating_duration_since(since))
    }

    /// The limit that holds the group back.
    pub(super) fn holding(&self) -> Option<QuotaPolicy> {
        self.policy.filter(|_| self.running_since.is_some())
    }
}

impl QuotaWait {
    pub(super) fn join(&mut self, clock: &HoldClock, now: Instant) {
        self.joined = clock.read(now);
    }

    pub(super) fn leave(&mut self, clock: &HoldClock, now: Instant) {
        let held = clock.read(now).saturating_sub(self.joined);
        if !held.is_zero() {
            self.total += held;
            self.policy = clock.policy;
        }
    }

    /// Adds the wait of the same call in another place.
    pub(super) fn add(&mut self, other: Self) {
        self.total += other.total;
        self.policy = self.policy.or(other.policy);
    }

    /// How long the call has been held back. `clock`: that of its group.
    pub(super) fn so_far(mut self, clock: Option<&HoldClock>, now: Instant) -> Self {
        if let Some(clock) = clock {
            self.leave(clock, now);
        }
        self
    }

    /// How long the call has been held back, and by which limit last. `None` if it has not been held back.
    pub(super) fn by(self) -> Option<(QuotaPolicy, Duration)> {
        Some((self.policy?, self.total))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::Clock;

    #[test]
    fn a_call_waits_for_a_quota_only_while_its_group_is_held_back() {
        let (start, second) = (Clock::System.now(), Duration::from_secs(1));
        let (mut own, mut shared) = (HoldClock::default(), HoldClock::default());
        own.set(Some(QuotaPolicy::User), start);
        let mut wait = QuotaWait::default();
        wait.join(&own, start + second);
        assert_eq!(wait.so_far(Some(&own), start + second).by(), None, "it has not waited yet");
        assert_eq!(wait.so_far(Some(&own), start + 2 * second).by(), Some((QuotaPolicy::User, second)));
        // Later it waits for a slot.
        own.set(None, start + 3 * second);
        wait.leave(&own, start + 9 * second);
        wait.join(&shared, start + 9 * second);
        assert_eq!(wait.so_far(Some(&shared), start + 20 * second).by(), Some((QuotaPolicy::User, 2 * second)));
        // Then for another limit.
        shared.set(Some(QuotaPolicy::Ip), start + 20 * second);
        shared.set(Some(QuotaPolicy::Ip), start + 21 * second);
        wait.leave(&shared, start + 25 * second);
        assert_eq!(wait.so_far(None, start + 30 * second).by(), Some((QuotaPolicy::Ip, 7 * second)));
    }
}
