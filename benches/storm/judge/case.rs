//! A response that is judged, and which conditions of upstream can have affected it.

use std::time::{Duration, Instant};

use bytes::Bytes;
use http::{HeaderMap, StatusCode};

use super::super::cache_status::{CacheStatus, Source};
use super::super::client::Exchange;
use super::super::settings::{ANSWER_TIMEOUT, NOTICE, RETRY_AFTER};
use super::super::world::{Condition, Journal, Timeline};

/// The longest time of a call, including the queue.
pub(super) const LONGEST_CALL: Duration = ANSWER_TIMEOUT.saturating_mul(2);

/// A response that is judged.
pub(super) struct Case<'a> {
    pub(super) exchange: &'a Exchange,
    pub(super) status: StatusCode,
    pub(super) headers: &'a HeaderMap,
    pub(super) body: &'a Bytes,
    pub(super) cache_status: &'a CacheStatus,
    pub(super) source: Source,
    pub(super) journal: &'a Journal,
    /// Whether it is the gateway's own error.
    pub(super) is_own: bool,
}

impl Case<'_> {
    pub(super) fn begun(&self) -> Instant {
        self.exchange.begun
    }

    pub(super) fn decided(&self) -> Instant {
        self.exchange.decided
    }

    pub(super) fn token_states(&self) -> &Timeline<bool> {
        &self.journal.token_states[self.exchange.caller]
    }

    /// Whether such a condition of upstream, at most this long before the request, can have affected the response.
    pub(super) fn was(&self, before: Duration, like: impl Fn(Condition) -> bool) -> bool {
        self.journal.was(self.exchange.gateway, ago(self.begun(), before + NOTICE), self.decided(), like)
    }

    /// Whether the request may have waited for calls until its deadline. In a fleet it may wait for calls of other
    /// gateways, one after the other, that are slow or retried for upstream's throttling.
    pub(super) fn has_waited(&self) -> bool {
        let links = &self.journal.links;
        let from = ago(self.begun(), LONGEST_CALL + NOTICE);
        let is_fleet = links.len() > 1 && self.cache_status.detail.as_deref() == Some("deadline");
        let is_slow_elsewhere = || links.iter().flat_map(|link| link.within(from, self.decided())).any(is_slow);
        self.was(LONGEST_CALL, is_slow) || is_fleet && (self.was_throttled() || is_slow_elsewhere())
    }

    /// Whether upstream has throttled this caller so shortly before that the gateway may send no call.
    pub(super) fn was_throttled(&self) -> bool {
        self.was(RETRY_AFTER + LONGEST_CALL, |condition| self.gets(condition, 429))
    }

    /// Whether upstream treats this caller so.
    pub(super) fn concerns(&self, condition: Condition) -> bool {
        !matches!(condition, Condition::ThrottlingOne(caller) if caller != self.exchange.caller)
    }

    /// Whether upstream answers this caller with this status.
    pub(super) fn gets(&self, condition: Condition, status: u16) -> bool {
        match condition {
            Condition::Failing(failure) => failure.as_u16() == status,
            Condition::Throttling | Condition::ThrottlingOne(_) => status == 429 && self.concerns(condition),
            _ => false,
        }
    }
}

pub(super) fn ago(moment: Instant, span: Duration) -> Instant {
    moment.checked_sub(span).unwrap_or(moment)
}

/// Whether connections or responses are cut off.
pub(super) fn breaks(condition: Condition) -> bool {
    matches!(
        condition,
        Condition::Resetting | Condition::Truncating | Condition::Dead | Condition::CutOff | Condition::Exhausted
    )
}

pub(super) fn is_slow(condition: Condition) -> bool {
    matches!(condition, Condition::Slow | Condition::Stuck | Condition::CutOff | Condition::Exhausted)
}
