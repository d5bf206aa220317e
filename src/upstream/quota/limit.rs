//! One limit of a service: where it comes from, whom it binds, and when it ends. Pure: the time is an argument.
//!
//! A limit that is not configured is learnt from a refusal, or from what upstream says of it in other responses:
//!
//! - A `user` or `app` limit binds the caller that met it.
//! - An `api` or `ip` limit counts the calls of all callers. When one proved caller has met it, it binds that caller and
//!   all callers that are not proved. When a second proved caller has met it, it binds everybody.
//! - It ends after two windows in which it has neither been met nor held back a call. After [`MAX_AGE`] without a
//!   refusal it ends in any case, because upstream may have lifted it.

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::limiter::Limiter;
use super::told::ToldLimit;
use super::untold::Untold;
use super::{Draw, LimitKind, Share};
use crate::catalogue::{Quota, QuotaPolicy};
use crate::request::caller::Caller;

/// A learnt limit without a refusal ends after this time.
pub(super) const MAX_AGE: Duration = Duration::from_secs(60 * 60);

/// How long lists leave room for a relayed request after its turn has come. If it still waits then, it is held back again.
const RELAY_GRACE: Duration = Duration::from_secs(1);

/// Where a limit comes from.
#[derive(Clone, Debug)]
pub(super) enum Source {
    Configured,
    Learnt {
        /// The proved caller that met it first. `None` if upstream has refused two of them.
        only: Option<Caller>,
        last_refusal: Instant,
        last_held: Instant,
    },
}

#[derive(Clone, Debug)]
pub(super) struct Limit {
    pub(super) limiter: Limiter,
    pub(super) source: Source,
    /// Until when a product list for a client of a known caller was last held back. Until a window after that, relayed
    /// requests get at most half.
    list_held_until: Option<Instant>,
    /// Until when a relayed request was last held back. Until [`RELAY_GRACE`] after that, lists get at most the other half.
    /// `None` if a relayed request has been sent since.
    relay_held_until: Option<Instant>,
    /// What the other gateways of the fleet do not know yet.
    pub(super) untold: Untold,
}

/// What upstream has changed.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum LimitChange {
    Learnt(QuotaPolicy, Quota),
    Changed(QuotaPolicy, Quota),
    /// With the operation of an `api` limit.
    Ended(QuotaPolicy, Quota, Option<Arc<str>>),
}

impl Limit {
    pub(super) fn configured(quota: Quota) -> Self {
        Self::new(Limiter::new(quota), Source::Configured)
    }

    pub(super) fn new(limiter: Limiter, source: Source) -> Self {
        Self { limiter, source, list_held_until: None, relay_held_until: None, untold: Untold::default() }
    }

    /// Whether the limit holds back such a call, and then whom else.
    pub(super) fn kind_for(&self, policy: QuotaPolicy, draw: &Draw) -> Option<LimitKind> {
        match self.source {
            _ if !policy.is_shared() => Some(LimitKind::Own),
            Source::Learnt { only: Some(only), .. } if draw.caller == Some(only) => Some(LimitKind::Own),
            Source::Learnt { only: Some(_), .. } if draw.is_proved => None,
            Source::Configured | Source::Learnt { .. } => Some(LimitKind::Shared),
        }
    }

    pub(super) fn has_ended(&self, now: Instant) -> bool {
        let Source::Learnt { last_refusal, last_held, .. } = self.source else { return false };
        let since = |at: Instant| now.saturating_duration_since(at);
        since(last_refusal.max(last_held)) > 2 * self.limiter.quota().window || since(last_refusal) > MAX_AGE
    }

    /// When a call may be sent. It is `now` or earlier if it may be sent now.
    pub(super) fn free_at(&self, draw: &Draw, is_shared: bool, ahead: u32, now: Instant) -> Instant {
        let until =
            |held_until: Option<Instant>, more| held_until.map(|until| until + more).filter(|until| now < *until);
        // Then the next call is looked at again. Those after it may still have to share.
        let capped = |at: Instant, until| if ahead == 0 { at.min(until) } else { at };
        match draw.share {
            Share::Known | Share::Unknown => {
                let free = match draw.share {
                    Share::Unknown if is_shared => self.limiter.free_at_for_unknown(ahead, now),
                    _ => self.limiter.free_at(ahead, now),
                };
                match until(self.relay_held_until, RELAY_GRACE) {
                    Some(until) => free.max(capped(self.limiter.free_at_for_lists(ahead, now), until)),
                    None => free,
                }
            }
            // It is counted, and held back only so that product lists get their half.
            Share::Relayed => match until(self.list_held_until, self.limiter.quota().window) {
                Some(until) => capped(self.limiter.free_at_for_relayed(ahead, now), until),
                None => now,
            },
        }
    }

    /// Counts a call that is sent now. Returns whether it is a relayed request, and lists may have left room for one.
    pub(super) fn take(&mut self, draw: &Draw, now: Instant) -> bool {
        self.limiter.expire(now);
        self.limiter.add(now, draw.share);
        draw.share == Share::Relayed && self.relay_held_until.take().is_some()
    }

    pub(super) fn held(&mut self, draw: &Draw, until: Instant, now: Instant) {
        if let Source::Learnt { last_held, .. } = &mut self.source {
            *last_held = now;
        }
        match draw.share {
            Share::Known if draw.has_client => self.list_held_until = Some(until),
            Share::Relayed => self.relay_held_until = Some(until),
            Share::Known | Share::Unknown => {}
        }
    }

    pub(super) fn learn(&mut self, draw: &Draw, told: &ToldLimit, refused: Option<Option<Duration>>, now: Instant) {
        if let Source::Learnt { only, last_refusal, last_held } = &mut self.source {
            if refused.is_some() {
                if *only != draw.caller {
                    *only = None;
                }
                // What another gateway tells may be of an earlier time.
                (*last_refusal, *last_held) = (now.max(*last_refusal), now.max(*last_held));
            } else {
                // Upstream still has this limit.
                *last_held = now.max(*last_held);
            }
        }
        if refused.is_some() || told.remaining == Some(0) {
            self.untold.is_met = true;
            self.untold.is_refusal |= refused.is_some();
        }
        match refused {
            Some(retry_after) => {
                self.limiter.expire(now);
                match retry_after.or(told.reset).filter(|wait| !wait.is_zero()) {
                    Some(retry_after) => self.limiter.block(retry_after, now),
                    None => _ = self.limiter.refused_unexpectedly(now),
                }
            }
            None if told.remaining == Some(0) => match told.reset {
                Some(reset) => self.limiter.block(reset, now),
                None => _ = self.limiter.refused_unexpectedly(now),
            },
            None => {}
        }
    }
}
