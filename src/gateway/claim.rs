//! The claim of a fetch to its call: with a second tier, one gateway calls upstream for all of them. The others look again
//! until it has an answer, and make the call themselves if it does not come.
//!
//! A claim is only for efficiency. Which responses count, and for whom, does not depend on it.

use std::time::{Duration, Instant};

use tokio::time::sleep;

use super::CacheRequest;
use super::fetch_result::{FetchPurpose, FetchResult};
use super::memory::Memory;
use super::observer::Observer;
use super::second_tier::Consulted;
use super::tier::HeldLease;
use crate::cache::admission::Verdict;
use crate::cache::flights::Leader;
use crate::cache::grants::Proof;
use crate::cache::second_tier::{Lease, LeaseState, Ticket};
use crate::cache::store::CacheKey;
use crate::cache::unstorable::Unstorable;
use crate::clock::Clock;
use crate::telemetry::outcome::ClaimResult;

/// While another gateway makes the call: how long until the next look-up, for the first ones and for all later ones.
const FIRST_PAUSE: Duration = Duration::from_millis(30);
const FIRST_PAUSES: u32 = 10;
const PAUSE: Duration = Duration::from_millis(100);

/// How long other gateways make their own calls after one without a response for others.
const AFTER_FAILURE: Duration = Duration::from_secs(1);
const AFTER_UNSTORABLE: Duration = Duration::from_secs(60);

/// What a fetch is allowed to do.
pub(super) enum Claimed {
    /// No call is needed: the requests look up again.
    Answered,
    /// Nobody waits for it any more, or another gateway makes the call and no client waits for this one.
    Dropped { is_abandoned: bool },
    /// It makes the call.
    Call(Claim),
}

/// The claim of a call.
#[derive(Default)]
pub(super) struct Claim {
    /// For what upstream answers, if the tier accepts it.
    ticket: Option<Ticket>,
    held: Option<HeldLease>,
}

/// A fetch that has not been sent, and the parts that its claim depends on.
pub(super) struct Claimant<'f> {
    pub(super) memory: &'f Memory,
    pub(super) observer: &'f Observer,
    pub(super) clock: &'f Clock,
    pub(super) request: &'f CacheRequest,
    pub(super) purpose: FetchPurpose,
    /// Whether all requests of the flight have a grant.
    pub(super) is_for_all: bool,
}

impl Claimant<'_> {
    /// Looks up in the second tier, and waits while another gateway makes the call.
    pub(super) async fn claim(&self, leader: &Leader<CacheKey, FetchResult>) -> Claimed {
        let Self { memory, observer, clock, request, purpose, is_for_all } = *self;
        let Some(tier) = &memory.second_tier else { return Claimed::Call(Claim::default()) };
        let mut followed: Option<(Instant, tokio::time::Instant)> = None;
        let mut pauses = 0;
        loop {
            let is_shared = leader.key().is_some();
            let tier_use = tier.plan(memory, request, purpose, (is_shared, is_for_all), clock.now());
            let Consulted { is_answered, ticket, lease } =
                tier.consult(memory, observer, clock, request, &tier_use).await;
            let held = match lease {
                LeaseState::Held(lease) => Some(HeldLease::new(lease, &tier.store)),
                LeaseState::None | LeaseState::Here | LeaseState::Elsewhere | LeaseState::Unshared => None,
            };
            if is_answered {
                observer.metrics.fleet_claimed(ClaimResult::Answered);
                return Claimed::Answered;
            }
            if lease != LeaseState::Elsewhere {
                observer.metrics.fleet_claimed(match (&held, followed) {
                    (None, _) => ClaimResult::Alone,
                    (Some(_), None) => ClaimResult::Led,
                    (Some(_), Some(_)) => ClaimResult::TookOver,
                });
                return Claimed::Call(Claim { ticket, held });
            }
            let has_client = !matches!(purpose, FetchPurpose::Renewal | FetchPurpose::Refresh | FetchPurpose::KeepWarm)
                || leader.is_joined();
            if !has_client {
                observer.metrics.fleet_claimed(ClaimResult::Dropped);
                return Claimed::Dropped { is_abandoned: false };
            }
            let (sent, begun) = *followed.get_or_insert_with(|| {
                // For the requests it is as if the call had been sent here.
                leader.mark_sent();
                (clock.now(), clock.timer_now())
            });
            if clock.timer_now() - begun >= request.active.stale_if_slow {
                leader.mark_slow(sent);
            }
            pauses += 1;
            tokio::select! {
                biased;
                () = leader.abandoned() => {
                    observer.metrics.fleet_claimed(ClaimResult::Dropped);
                    return Claimed::Dropped { is_abandoned: true };
                }
                () = sleep(if pauses <= FIRST_PAUSES { FIRST_PAUSE } else { PAUSE }) => {}
            }
        }
    }
}

impl Claim {
    /// Stores what a call has brought, which was sent at `sent`, and releases the lease.
    pub(super) fn end(self, memory: &Memory, request: &CacheRequest, ended: EndedClaim, clock: &Clock) {
        let Self { ticket, mut held } = self;
        let mut lease = held.as_mut().and_then(HeldLease::take);
        let Some(tier) = &memory.second_tier else { return };
        if let Some(ticket) = &ticket {
            // First the grant: others may use the entry as soon as it is there.
            let is_of_grant = |lease: &Lease| lease.name == tier.names.grant_place(&request.lookup.caller_scope).record;
            if ended.is_proved {
                let (of_grant, of_entry): (Option<Lease>, _) = match lease {
                    Some(of_grant) if is_of_grant(&of_grant) => (Some(of_grant), None),
                    of_entry => (None, of_entry),
                };
                lease = tier.store_grant(request, ended.sent, ticket, of_grant, clock).or(of_entry);
            }
            if ended.is_stored {
                lease = tier.store_record(memory, request, ticket, lease, clock);
            }
        }
        if let Some(lease) = lease {
            tier.store.release(lease, ended.unshared);
        }
    }
}

/// How a call has ended, for other gateways.
pub(super) struct EndedClaim {
    pub(super) sent: Instant,
    pub(super) is_proved: bool,
    pub(super) is_stored: bool,
    /// How long they make their own calls, if it has no response for others.
    pub(super) unshared: Option<Duration>,
}

impl EndedClaim {
    pub(super) fn of(sent: Instant, result: &FetchResult, is_stored: bool) -> Self {
        let FetchResult::Sent { response, .. } = result else {
            return Self { sent, is_proved: false, is_stored: false, unshared: None };
        };
        let is_proved = response.as_ref().is_ok_and(|fetched| fetched.proof.is_some_and(|proof| proof != Proof::Late));
        let unshared = match response {
            Ok(fetched) => match fetched.verdict {
                // Only this response came too late. The next one may be stored.
                Verdict::Proof(_) if fetched.not_stored.is_some_and(Unstorable::is_overtaken) => None,
                Verdict::Proof(_) | Verdict::InvalidBody(_) => Some(AFTER_UNSTORABLE),
                Verdict::Negative | Verdict::Failure => Some(AFTER_FAILURE),
                // It is about the caller: another gateway's call may have another caller.
                Verdict::Denial | Verdict::Personal | Verdict::Throttled => None,
            },
            Err(_) => Some(AFTER_FAILURE),
        };
        Self { sent, is_proved, is_stored, unshared }
    }
}
