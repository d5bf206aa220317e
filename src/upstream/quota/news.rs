//! What the gateways of a fleet tell each other of upstream's limits. Pure: the time is an argument.
//!
//! Upstream counts the calls of an API, a user or an application over all gateways, and those of a source address for each
//! gateway. Of the former, a gateway tells what it learns, and that it uses the limit. Only responses to proved callers
//! are told.
//!
//! - A refusal at one gateway holds back the calls of all, for as long as those of the gateway that tells it.
//! - Then each gateway sends an equal part of the quota in a window: of those that have used it lately. So gateways that
//!   know of each other do not exceed a quota of at least one call for each of them, however much each wants to send. What
//!   one of them does not use of its part is not used, until it counts as idle.
//! - A call is never delayed to ask another gateway. Calls that are sent before a hint arrives may be refused.
//!
//! The number of a configured limit is that of one gateway already, and is not divided.

use std::fmt;
use std::sync::Arc;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use super::limit::{Limit, LimitChange, Source};
use super::service::ServiceLimits;
use super::told::ToldLimit;
use super::untold::{What, interval};
use super::{Draw, Share};
use crate::catalogue::{Quota, QuotaPolicy};
use crate::request::caller::Caller;
use crate::upstream::key_breaker::ProcessId;

/// How long a hint may take.
const DELAY: Duration = Duration::from_secs(1);

/// What a call of one gateway has shown about a limit.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct LimitNews {
    /// Which gateway tells it.
    pub(super) process: ProcessId,
    policy: QuotaPolicy,
    /// The name of the operation, with [`QuotaPolicy::Api`].
    api: Option<String>,
    caller: [u8; 32],
    quota: Quota,
    what: What,
}

impl Limit {
    fn news(&mut self, caller: Caller, now: Instant) -> Option<What> {
        let quota = self.limiter.quota();
        let untold = std::mem::take(&mut self.untold);
        (self.untold.used, self.untold.met) = (untold.used, untold.met);
        self.limiter.expire(now);
        let what = if untold.is_met {
            let until = self.limiter.free_at(0, now);
            // Each of many refusals in a window moves the time a little.
            let is_known = |(told, by): (Instant, Caller)| by == caller && until <= told + quota.window / 4;
            (until > now && !self.untold.met.is_some_and(is_known)).then(|| {
                self.untold.met = Some((until, caller));
                What::Met { is_refusal: untold.is_refusal, wait: until - now }
            })
        } else {
            untold.is_changed.then_some(What::Learnt)
        };
        let is_due = || {
            let is_learnt = matches!(self.source, Source::Learnt { .. });
            let told_lately = self.untold.used.is_some_and(|at| now.saturating_duration_since(at) < interval(quota));
            is_learnt && !told_lately && self.limiter.used() > 0
        };
        let what = what.or_else(|| is_due().then_some(What::Used))?;
        self.untold.used = Some(now);
        Some(what)
    }
}

impl fmt::Debug for LimitNews {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Without the caller.
        write!(f, "LimitNews({} {} {:?})", self.policy.into_str(), self.quota, self.what)
    }
}

impl LimitNews {
    pub(crate) fn operation(&self) -> Option<Arc<str>> {
        self.api.as_deref().map(Arc::from)
    }
}

impl ServiceLimits {
    /// What the other gateways should know after a response to a call.
    pub(super) fn news(&mut self, draw: &Draw, process: ProcessId, now: Instant) -> Vec<LimitNews> {
        // Anyone can invent tokens.
        let Some(caller) = draw.caller.filter(|_| draw.is_proved) else { return Vec::new() };
        let counting = self.counting(draw).filter(|(policy, _)| *policy != QuotaPolicy::Ip);
        let news = counting.filter_map(|(policy, limit)| {
            let what = limit.news(caller, now)?;
            let api = draw.api.as_ref().filter(|_| policy == QuotaPolicy::Api).map(|api| api.to_string());
            let (caller, quota) = (caller.to_sealed(), limit.limiter.quota());
            Some(LimitNews { process, policy, api, caller, quota, what })
        });
        news.collect()
    }

    /// Learns what another gateway has told at a time, as if its call had been a call of this gateway then.
    pub(super) fn told(&mut self, news: &LimitNews, at: Instant, now: Instant) -> Vec<LimitChange> {
        let LimitNews { process, policy, quota, what, .. } = *news;
        let has_ended = now.saturating_duration_since(at) > 2 * interval(quota).min(super::limit::MAX_AGE);
        if policy == QuotaPolicy::Ip || quota.window.is_zero() || has_ended {
            return Vec::new();
        }
        let caller = Caller::from_sealed(news.caller);
        let api = news.operation();
        let draw = Draw { caller: Some(caller), api, share: Share::Known, is_proved: true, has_client: false };
        let mut changes = Vec::new();
        if what != What::Used {
            self.create_configured(&draw, at);
            let (is_refusal, wait) = match what {
                What::Met { is_refusal, wait } => (is_refusal, Some(wait).filter(|wait| !wait.is_zero())),
                What::Learnt | What::Used => (false, None),
            };
            let refused = wait.filter(|_| is_refusal);
            let remaining = wait.filter(|_| !is_refusal).map(|_| 0);
            let told = ToldLimit {
                has_refused: refused.is_some(),
                policy: Some(policy),
                quota: Some(quota),
                remaining,
                reset: wait,
            };
            changes.extend(self.learn_one(&draw, policy, &told, refused.map(Some), at));
        }
        if let Some((_, limit)) = self.counting(&draw).find(|(counting, _)| *counting == policy) {
            // It is not told on.
            (limit.untold.is_changed, limit.untold.is_met, limit.untold.is_refusal) = (false, false, false);
            if let Source::Learnt { last_held, .. } = &mut limit.source {
                *last_held = at.max(*last_held);
                limit.limiter.add_user(process, at + 2 * interval(limit.limiter.quota()) + DELAY);
            }
        }
        changes
    }
}

#[cfg(test)]
mod tests;
