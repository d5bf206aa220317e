//! When a grant is renewed ahead of its end, so that its caller does not wait for the next proof. Pure: the time is an
//! argument.
//!
//! A hit renews the grant if the caller's next request could come after its end. That follows from the caller's pace:
//! the longest time between two of its requests in the scope since the last proof. So a caller that polls every ten
//! seconds is renewed at its last request before the end, which costs little more than no renewal. The leads of grants
//! that were proved together are spread.
//!
//! After a renewal that proved nothing, no other one begins for a while. The time doubles with each failure in a row.

use std::time::{Duration, Instant};

use strum::{IntoStaticStr, VariantArray};

use super::{Basis, CallerScope, Grant, GrantPolicy, Grants};
#[cfg(doc)]
use crate::cache::revocations::Revocations;

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
    Granted {
        /// It stays so until this time, unless grants end early ([`Revocations::revision`]).
        until: Instant,
    },
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
    longest_gap: Duration,
    /// A number from 0 to 255 that differs between grants that were proved together.
    spread: u8,
    backoff: Option<Box<RenewalBackoff>>,
}

#[derive(Debug)]
struct RenewalBackoff {
    until: Instant,
    failures: u32,
}

/// How long no further call is made ahead of need after this number of failures in a row.
pub(crate) fn backoff_after(failures: u32) -> Duration {
    match failures {
        0 => Duration::ZERO,
        failures => FIRST_BACKOFF.saturating_mul(1 << (failures - 1).min(8)).min(LONGEST_BACKOFF),
    }
}

impl Renewal {
    /// `sequence`: the number of the proof.
    pub(super) fn new(proved: Instant, sequence: u64) -> Self {
        // Multiples of the golden ratio are spread evenly, however many there are (Fibonacci hashing).
        let spread = (sequence.wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 56) as u8;
        Self { last_used: proved, longest_gap: Duration::ZERO, spread, backoff: None }
    }

    /// Records a request of the caller.
    fn record_use(&mut self, now: Instant) {
        self.longest_gap = self.longest_gap.max(now.saturating_duration_since(self.last_used));
        self.last_used = self.last_used.max(now);
    }

    /// Whether a grant that ends after `left` should be renewed now.
    fn is_due(&self, left: Duration, policy: GrantPolicy, now: Instant) -> bool {
        let max_lead = policy.max_lead();
        let lead = self.longest_gap.clamp(max_lead / MIN_LEAD_SHARE, max_lead);
        let jitter = lead * u32::from(policy.renewal.jitter) * u32::from(self.spread) / (100 * 256);
        left <= lead + jitter && self.backoff.as_ref().is_none_or(|backoff| backoff.until <= now)
    }
}

impl GrantPolicy {
    /// The longest lead, without jitter.
    fn max_lead(&self) -> Duration {
        self.renewal.max_lead.min(self.grant_ttl / MAX_SHARE)
    }

    /// The age of a grant from which it may be renewed, whatever its caller's pace and its jitter.
    pub(super) fn first_renewal(&self) -> Duration {
        self.grant_ttl - 2 * self.max_lead()
    }
}

impl Grants {
    /// Records that a caller has sent a request in a scope.
    pub(crate) fn use_grant(&self, caller_scope: &CallerScope, now: Instant) -> GrantUse {
        let mut tables = self.tables();
        if tables.stored_denial(caller_scope, now).is_some() {
            return GrantUse::NotGranted;
        }
        let first_renewal = tables.first_renewal;
        let Some(grant) = tables.live(caller_scope, self.sync(), now) else { return GrantUse::NotGranted };
        let age = now.saturating_duration_since(grant.proved);
        grant.renewal.record_use(now);
        // Most requests end here.
        if age < first_renewal {
            // Being in sync can end at any time.
            let until = if matches!(grant.basis, Basis::Own) { grant.proved + first_renewal } else { now };
            return GrantUse::Granted { until };
        }
        let policy = tables.settings;
        let is_due = |grant: &mut Grant| grant.renewal.is_due(policy.grant_ttl - age, policy, now);
        match tables.grant(caller_scope).is_some_and(is_due) {
            true => GrantUse::RenewalDue,
            false => GrantUse::Granted { until: now },
        }
    }

    /// When the latest proof was sent, and the lifetime of the grant, which may have ended. `None` if the grant has
    /// lapsed for another reason than its age.
    pub(crate) fn lifetime(&self, caller_scope: &CallerScope, now: Instant) -> Option<(Instant, Duration)> {
        let mut tables = self.tables();
        let grant_ttl = tables.settings.grant_ttl;
        let grant = tables.grant(caller_scope).filter(|grant| grant.basis.is_sound(self.sync(), now));
        grant.map(|grant| (grant.proved, grant_ttl))
    }

    /// Whether a grant ends so soon that a renewal is still of use.
    pub(crate) fn ends_soon(&self, caller_scope: &CallerScope, now: Instant) -> bool {
        let mut tables = self.tables();
        let first_renewal = tables.first_renewal;
        let Some(grant) = tables.live(caller_scope, self.sync(), now) else { return true };
        now.saturating_duration_since(grant.proved) >= first_renewal
    }

    /// Makes the next renewal wait: one has begun, or must not begin now. It does not count as a failure.
    pub(crate) fn postpone_renewal(&self, caller_scope: &CallerScope, now: Instant) {
        self.back_off(caller_scope, 0, FIRST_BACKOFF, now);
    }

    /// Makes the next renewal wait after one that has proved nothing. `retry_after` is what upstream asks for.
    pub(crate) fn renewal_failed(&self, caller_scope: &CallerScope, retry_after: Option<Duration>, now: Instant) {
        self.back_off(caller_scope, 1, retry_after.unwrap_or_default(), now);
    }

    fn back_off(&self, caller_scope: &CallerScope, failures: u32, at_least: Duration, now: Instant) {
        let mut tables = self.tables();
        let Some(grant) = tables.grant(caller_scope) else { return };
        let backoff = grant.renewal.backoff.get_or_insert_with(|| Box::new(RenewalBackoff { until: now, failures: 0 }));
        backoff.failures += failures;
        backoff.until = backoff.until.max(now + backoff_after(backoff.failures).max(at_least));
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use http::{HeaderMap, HeaderValue};

    use super::*;
    use crate::catalogue::Catalogue;
    use crate::clock::Clock;
    use crate::request::caller::Callers;
    use crate::request::key::RequestKey;

    const SECOND: Duration = Duration::from_secs(1);
    const POLICY: GrantPolicy = GrantPolicy {
        grant_ttl: Duration::from_secs(300),
        denial_ttl: SECOND,
        outage_grace: None,
        renewal: RenewalPolicy { max_lead: Duration::from_secs(40), jitter: 0 },
        max_grants: 1_000,
    };

    fn caller_scope(token: &str) -> CallerScope {
        let catalogue = Catalogue::for_tests(Vec::new());
        let (operation, project_id) = catalogue.operation("/v2/p/products").unwrap();
        let key = RequestKey::read(&catalogue, operation, project_id, None, &HeaderMap::new(), false).unwrap();
        let caller = Callers::new([0; 32]).of_token(&HeaderValue::from_str(token).unwrap());
        CallerScope { caller, scope: key.scope().clone() }
    }

    /// The seconds after the proof at which a caller that sends a request at each of `times` is to be renewed.
    fn due(policy: GrantPolicy, times: impl IntoIterator<Item = u32>) -> Vec<u32> {
        let (grants, me, start) =
            (Arc::new(Grants::new(policy, Arc::default())), caller_scope("a"), Clock::System.now());
        grants.begin_call(me.clone(), start).proved(start);
        let is_due = |second: &u32| grants.use_grant(&me, start + *second * SECOND) == GrantUse::RenewalDue;
        times.into_iter().filter(is_due).collect()
    }

    #[test]
    fn a_grant_is_renewed_when_the_next_request_could_come_after_its_end() {
        let every = |seconds: usize| (0..300).step_by(seconds);
        assert_eq!(due(POLICY, every(15)), [285]);
        assert_eq!(due(POLICY, every(1)), (290..300).collect::<Vec<_>>(), "at least a quarter of the longest lead");
        assert_eq!(due(POLICY, [100, 258, 259, 260, 299]), [260, 299], "at most the longest lead");
        assert_eq!(due(POLICY, [0, 20, 30, 275, 290, 300]), [275, 290], "the longest time between two requests counts");
    }

    #[test]
    fn the_lead_is_at_most_a_fifth_of_the_lifetime_and_zero_switches_renewals_off() {
        let short = GrantPolicy { grant_ttl: 100 * SECOND, ..POLICY };
        assert_eq!(due(short, [50, 79, 80, 99, 100]), [80, 99]);
        let renewal = RenewalPolicy { max_lead: Duration::ZERO, ..POLICY.renewal };
        assert_eq!(due(GrantPolicy { renewal, ..POLICY }, 0..300), Vec::<u32>::new());
    }

    #[test]
    fn the_renewals_of_grants_that_were_proved_together_are_spread() {
        let renewal = RenewalPolicy { jitter: 50, ..POLICY.renewal };
        let (grants, start) =
            (Arc::new(Grants::new(GrantPolicy { renewal, ..POLICY }, Arc::default())), Clock::System.now());
        let callers: Vec<_> = (0..100).map(|number| caller_scope(&number.to_string())).collect();
        for caller in &callers {
            grants.begin_call(caller.clone(), start).proved(start);
        }
        let is_due = |caller: &&CallerScope, tenths: u32| {
            grants.use_grant(caller, start + 290 * SECOND - tenths * SECOND / 10) == GrantUse::RenewalDue
        };
        // Every caller polls each second. Their leads are from 10 to 15 s.
        for second in 0..280 {
            for caller in &callers {
                grants.use_grant(caller, start + second * SECOND);
            }
        }
        for (tenths, expected) in [(51, 0..=0), (40, 15..=25), (25, 45..=55), (10, 75..=85), (0, 100..=100)] {
            let due = callers.iter().filter(|caller| is_due(caller, tenths)).count();
            assert!(expected.contains(&due), "{due} at {tenths} tenths of a second");
        }
    }

    #[test]
    fn the_backoff_of_renewals_doubles_from_5_to_60_seconds_and_ends_with_a_proof() {
        let renewal = RenewalPolicy { max_lead: Duration::from_secs(10_000), jitter: 0 };
        let policy = GrantPolicy { grant_ttl: Duration::from_secs(50_000), renewal, ..POLICY };
        let (grants, me, start) =
            (Arc::new(Grants::new(policy, Arc::default())), caller_scope("a"), Clock::System.now());
        grants.begin_call(me.clone(), start).proved(start);
        let mut now = start + 48_000 * SECOND;
        let is_due = |now| grants.use_grant(&me, now) == GrantUse::RenewalDue;
        for (retry_after, seconds) in
            [(None, 5), (None, 10), (Some(7), 20), (Some(59), 59), (None, 60), (None, 60), (Some(3), 60)]
        {
            assert!(is_due(now));
            grants.postpone_renewal(&me, now);
            grants.renewal_failed(&me, retry_after.map(|seconds| seconds * SECOND), now);
            now += seconds * SECOND;
            assert!(!is_due(now - SECOND / 10), "{seconds} s");
        }
        assert!(is_due(now));
        grants.begin_call(me.clone(), now).proved(now);
        now += 48_000 * SECOND;
        grants.renewal_failed(&me, None, now);
        assert!(!is_due(now + 4 * SECOND) && is_due(now + 5 * SECOND));
    }
}
