//! When a grant is renewed ahead of its end, so that its caller does not wait for the next proof. Pure: the time is an
//! argument.
//!
//! A hit renews the grant if the caller's next request could come after its end. How soon that is follows from the
//! caller's pace: the longest time between two of its requests in the scope since the last proof. A caller that polls
//! every ten seconds is renewed at one of its last requests before the end, and so costs little more than without
//! renewal. The lead of grants that were proved together is spread.
//!
//! After a renewal that proved nothing, no other one begins for a while. The time doubles with each failure in a row.

use std::time::{Duration, Instant};

use strum::{IntoStaticStr, VariantArray};

use super::{CallerScope, GrantPolicy, Grants};

/// The part of a grant's lifetime in which it may be renewed, at most.
const MAX_SHARE: u32 = 5;

/// The shortest lead is this part of the longest one: a renewal must have its answer before the grant ends.
const MIN_LEAD_SHARE: u32 = 4;

/// How long no renewal begins after one that proved nothing. Doubled after each further one, up to the longest.
const FIRST_BACKOFF: Duration = Duration::from_secs(5);
const LONGEST_BACKOFF: Duration = Duration::from_secs(60);

#[derive(Clone, Copy, Debug)]
pub(crate) struct RenewalPolicy {
    /// The longest lead. Zero: grants are not renewed ahead.
    pub max_lead: Duration,
    /// By how many percent of the lead renewals are spread.
    pub jitter: u8,
}

/// Whether a caller may be answered from memory, and whether its grant should be renewed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum GrantUse {
    NotGranted,
    Granted,
    RenewalDue,
}

/// How a renewal has ended. The label of a metric.
#[derive(Clone, Copy, Debug, PartialEq, Eq, IntoStaticStr, VariantArray)]
#[strum(const_into_str, serialize_all = "kebab-case")]
pub enum RenewalResult {
    /// The grant has a later end.
    Proved,
    /// No proof: the call failed, or upstream refused it or answered with something else.
    Failed,
}

/// The caller's pace and the backoff of its renewals.
#[derive(Debug)]
pub(super) struct Renewal {
    last_used: Instant,
    /// In milliseconds.
    longest_gap: u32,
    /// A number from 0 to 255 that differs between grants that were proved together.
    spread: u8,
    backoff: Option<Box<RenewalBackoff>>,
}

#[derive(Debug)]
struct RenewalBackoff {
    until: Instant,
    failures: u32,
}

impl Renewal {
    /// `sequence`: the number of the proof.
    pub(super) fn new(proved: Instant, sequence: u64) -> Self {
        // Multiples of the golden ratio are spread evenly, however many there are (Fibonacci hashing).
        let spread = (sequence.wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 56) as u8;
        Self { last_used: proved, longest_gap: 0, spread, backoff: None }
    }

    /// Records a request of the caller. Returns whether the grant, which ends at `end`, should be renewed now.
    fn is_due(&mut self, end: Instant, now: Instant, grant_ttl: Duration, policy: RenewalPolicy) -> bool {
        let gap = now.saturating_duration_since(self.last_used).as_millis();
        self.longest_gap = self.longest_gap.max(u32::try_from(gap).unwrap_or(u32::MAX));
        self.last_used = now.max(self.last_used);
        let max_lead = policy.max_lead.min(grant_ttl / MAX_SHARE);
        let left = end.saturating_duration_since(now);
        // Most requests end here.
        if left > 2 * max_lead || max_lead.is_zero() {
            return false;
        }
        let pace = Duration::from_millis(u64::from(self.longest_gap));
        let lead = (pace + pace / 2).clamp(max_lead / MIN_LEAD_SHARE, max_lead);
        let jitter = lead * u32::from(policy.jitter) * u32::from(self.spread) / (100 * 256);
        left <= lead + jitter && self.backoff.as_ref().is_none_or(|backoff| backoff.until <= now)
    }
}

impl Grants {
    /// Records that a caller has sent a request in a scope.
    pub(crate) fn use_grant(&self, caller_scope: &CallerScope, now: Instant) -> GrantUse {
        let mut tables = self.tables();
        if tables.stored_denial(caller_scope, now).is_some() {
            return GrantUse::NotGranted;
        }
        let settings = tables.settings;
        let Some(grant) = tables.grant(caller_scope) else { return GrantUse::NotGranted };
        if now.saturating_duration_since(grant.proved) >= settings.grant_ttl {
            return GrantUse::NotGranted;
        }
        let end = grant.proved + settings.grant_ttl;
        match grant.renewal.is_due(end, now, settings.grant_ttl, settings.renewal) {
            true => GrantUse::RenewalDue,
            false => GrantUse::Granted,
        }
    }

    /// Whether a grant ends so soon that a renewal is still of use.
    pub(crate) fn ends_soon(&self, caller_scope: &CallerScope, now: Instant) -> bool {
        let mut tables = self.tables();
        let GrantPolicy { grant_ttl, renewal, .. } = tables.settings;
        let longest = 2 * renewal.max_lead.min(grant_ttl / MAX_SHARE);
        let Some(grant) = tables.grant(caller_scope) else { return true };
        (grant.proved + grant_ttl).saturating_duration_since(now) <= longest
    }

    /// Makes the next renewal wait: one has begun, or must not begin now. It does not count as a failure.
    pub(crate) fn postpone_renewal(&self, caller_scope: &CallerScope, now: Instant) {
        self.back_off(caller_scope, 0, FIRST_BACKOFF, now);
    }

    /// Makes the next renewal wait after one that has proved nothing. `retry_after` is upstream's wish.
    pub(crate) fn renewal_failed(&self, caller_scope: &CallerScope, retry_after: Option<Duration>, now: Instant) {
        self.back_off(caller_scope, 1, retry_after.unwrap_or_default(), now);
    }

    fn back_off(&self, caller_scope: &CallerScope, failures: u32, at_least: Duration, now: Instant) {
        let mut tables = self.tables();
        let Some(grant) = tables.grant(caller_scope) else { return };
        let backoff = grant.renewal.backoff.get_or_insert_with(|| Box::new(RenewalBackoff { until: now, failures: 0 }));
        backoff.failures += failures;
        let doubled = match backoff.failures {
            0 => Duration::ZERO,
            failures => FIRST_BACKOFF.saturating_mul(1 << (failures - 1).min(8)).min(LONGEST_BACKOFF),
        };
        backoff.until = backoff.until.max(now + doubled.max(at_least));
    }
}
