//! The verdict of a running gateway on a request that is looked up: what this caller gets now, in one sentence. A pure
//! function of what is known.

use std::time::Duration;

use super::{LOOKED_UP, second_tier_of, seconds, wait_for_quota};
use crate::cache::grants::GrantState;
use crate::cache::miss::Miss;
use crate::explain::{Verdict, VerdictAction};
use crate::gateway::{Answer, Inspection};
use crate::telemetry::outcome::Outcome;

/// `only_if_cached`: whether the request forbids a call for it. `longest`: how long a request waits for a limit of upstream
/// at most.
pub(super) fn verdict(known: &Inspection, only_if_cached: bool, longest: Duration) -> Verdict {
    match known.answer {
        Answer::FromMemory { outcome: Outcome::Denied, status, left, .. } => {
            let left = seconds(left);
            let sentence = format!(
                "refused with {} from memory: upstream has refused this caller, and the gateway repeats that for \
                 another {left}",
                status.as_u16()
            );
            Verdict::refused(status.as_u16(), Outcome::Denied.into_str(), sentence)
        }
        Answer::FromMemory { outcome, status, age, left } => {
            let what = match outcome {
                Outcome::Negative => format!("upstream's {} of {} ago", status.as_u16(), seconds(age)),
                _ => format!("an entry of {}", seconds(age)),
            };
            let state = match outcome {
                Outcome::Revalidating if only_if_cached => ", which is stale".to_owned(),
                Outcome::Revalidating => ", which is stale and is refreshed in the background".to_owned(),
                Outcome::Backoff => format!(", which is stale, because {}", why_no_call(known)),
                _ => format!(", fresh for {} more", seconds(left)),
            };
            let caller = match known.grant_state {
                GrantState::Granted => "this caller has a grant",
                _ => "the grant of this caller had not lapsed when the entry was requested",
            };
            let sentence = format!("answered from memory: {what}{state}; {caller}");
            Verdict { action: VerdictAction::FromMemory { result: outcome.into_str() }, sentence }
        }
        Answer::NotCached => {
            let sentence = "refused with 504: the request has only-if-cached, and there is nothing in memory for this \
                            caller";
            Verdict::refused(504, "only-if-cached", sentence.to_owned())
        }
        Answer::Relayed => {
            let sentence = "relayed unchanged and not stored: a recent response to this request was too large to store";
            Verdict::relayed("too-large", sentence.to_owned())
        }
        Answer::Call { miss, has_stale } => {
            let why = match miss {
                Miss::NoEntry => "nothing is stored for this request",
                Miss::Expired => "the entry has expired",
                Miss::NeedsConfirmation => "the entry was invalidated, so upstream must confirm it",
                Miss::NoGrant => "this caller has no grant yet, so its own call must prove it",
                Miss::GrantLapsed => "the grant of this caller has lapsed, so its own call must prove it again",
                Miss::Private => "callers get different responses here, and nothing is stored for this one",
                Miss::Uncacheable => "a recent response to this request could not be stored",
                Miss::ClientNoCache => "the request has no-cache or max-age=0",
                Miss::ClientMaxAge => "the entry is older than the max-age of the request",
                Miss::ClientMinFresh => "the entry is fresh for less than the min-fresh of the request",
            };
            let stale = if has_stale { "; if the call fails or is slow, it gets the stale entry" } else { "" };
            let is_looked_up = second_tier_of(known).is_some_and(|text| text == LOOKED_UP);
            let tier = if is_looked_up && miss != Miss::ClientNoCache {
                "; if another gateway of the fleet has stored it, there is no call"
            } else {
                ""
            };
            let quota = known.hold.as_ref().map(|hold| format!("; {}", wait_for_quota(hold, Some(longest))));
            let sentence = format!("a call to upstream: {why}{stale}{tier}{}", quota.unwrap_or_default());
            Verdict { action: VerdictAction::Upstream { reason: miss.into_str() }, sentence }
        }
    }
}

/// Why a stale entry is served without a call.
fn why_no_call(known: &Inspection) -> &'static str {
    match (&known.grant_state, &known.hold) {
        (GrantState::Granted, Some(_)) if !known.is_backing_off => "a call would wait for a quota of upstream",
        (GrantState::Granted, _) => "the gateway backs off after a failure of upstream",
        _ => "the call that could prove this caller again has failed",
    }
}
