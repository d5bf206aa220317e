//! How the limits of a service are learnt from responses, and how they end.

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::limit::{Limit, LimitChange, MAX_AGE, Source};
use super::limiter::Limiter;
use super::service::{MAX_WINDOW, Pause, ServiceLimits};
use super::told::ToldLimit;
use super::{Draw, HoldCause};
use crate::catalogue::{Quota, QuotaPolicy};

impl ServiceLimits {
    /// Learns from what a response says of limits. `refused`: it is a 429, with its `Retry-After`.
    pub(super) fn learn(
        &mut self,
        draw: &Draw,
        taken: Instant,
        told: &[ToldLimit],
        refused: Option<Option<Duration>>,
        now: Instant,
    ) -> Vec<LimitChange> {
        // A limit that upstream does not name concerns the caller, as far as the gateway can know.
        let policy_of = |limit: &ToldLimit| limit.policy.unwrap_or(QuotaPolicy::User);
        // Which limits have refused the call: those that the text names, else those with nothing left, else the first.
        let is_named = |limit: &ToldLimit| limit.has_refused;
        let is_used_up = |limit: &ToldLimit| limit.remaining == Some(0);
        let has_refused = |index: usize, limit: &ToldLimit| match () {
            () if told.iter().any(is_named) => is_named(limit),
            () if told.iter().any(is_used_up) => is_used_up(limit),
            () => index == 0,
        };
        if refused.is_some() {
            self.forget(draw, taken);
            for (index, limit) in told.iter().enumerate().filter(|(index, limit)| has_refused(*index, limit)) {
                let is_first = !told[..index].iter().any(|earlier| policy_of(earlier) == policy_of(limit));
                // Upstream has not counted it, whoever made it.
                let counting = self.counting(draw).filter(|(policy, _)| is_first && *policy == policy_of(limit));
                counting.for_each(|(_, counting)| counting.limiter.take_back(taken, draw.share));
            }
        }
        let mut changes = Vec::new();
        for (index, limit) in told.iter().enumerate() {
            let policy = policy_of(limit);
            if !told[..index].iter().any(|earlier| policy_of(earlier) == policy) {
                let refused = refused.filter(|_| has_refused(index, limit));
                changes.extend(self.learn_one(draw, policy, limit, refused, now));
            }
        }
        changes
    }

    pub(super) fn learn_one(
        &mut self,
        draw: &Draw,
        policy: QuotaPolicy,
        told: &ToldLimit,
        refused: Option<Option<Duration>>,
        now: Instant,
    ) -> Option<LimitChange> {
        let caller = draw.caller?;
        let setting = self.setting(policy, draw.api.as_ref());
        if setting == Some(None) {
            return None;
        }
        let quota = told.quota.map(|quota| Quota { calls: quota.calls.max(1), window: quota.window.min(MAX_WINDOW) });
        if policy.is_shared() && !draw.is_proved {
            // It changes nothing for others.
            if let (Some(retry_after), Some(quota)) = (refused, quota) {
                let pause = retry_after.unwrap_or(quota.window).min(quota.window);
                let pause = Pause { policy, cause: HoldCause::Met, until: now + pause };
                self.pause(caller, false, pause, now);
            }
            return None;
        }
        let history = std::mem::take(&mut self.history);
        let slot = match policy {
            QuotaPolicy::Ip => Some(&mut self.ip),
            QuotaPolicy::Api => None,
            QuotaPolicy::User | QuotaPolicy::App => Some(self.caller_limits(caller, draw.is_proved, now).slot(policy)),
        };
        let mut changed = None;
        let is_new = |limit: &Option<Limit>| limit.is_none();
        let new = |quota: Quota| {
            let counts = |it: &Draw| match policy {
                QuotaPolicy::Ip => true,
                QuotaPolicy::Api => it.api == draw.api,
                QuotaPolicy::User | QuotaPolicy::App => it.caller == draw.caller,
            };
            let mut limiter = Limiter::new(quota);
            history.iter().filter(|(_, it)| counts(it)).for_each(|(sent, it)| limiter.add(*sent, it.share));
            limiter.expire(now);
            let only = policy.is_shared().then_some(caller);
            let source = Source::Learnt { only, last_refusal: now, last_held: now };
            Limit::new(limiter, source)
        };
        let limit = match (slot, quota) {
            (Some(slot), quota) => {
                if is_new(slot) {
                    *slot = quota.map(new);
                    changed = quota.map(|quota| LimitChange::Learnt(policy, quota));
                }
                slot.as_mut()
            }
            (None, quota) => match &draw.api {
                Some(api) => {
                    if !self.apis.contains_key(api)
                        && let Some(quota) = quota
                    {
                        self.apis.insert(Arc::clone(api), new(quota));
                        changed = Some(LimitChange::Learnt(policy, quota));
                    }
                    self.apis.get_mut(api)
                }
                None => None,
            },
        };
        if let Some(limit) = limit {
            // What another gateway tells may be of an earlier time.
            let is_later = match limit.source {
                Source::Learnt { last_refusal, .. } => now >= last_refusal,
                Source::Configured => true,
            };
            if let Some(quota) = quota.filter(|quota| *quota != limit.limiter.quota() && is_later)
                && setting.is_none()
            {
                limit.limiter.set_quota(quota);
                changed = Some(LimitChange::Changed(policy, quota));
            }
            limit.untold.is_changed |= changed.is_some();
            limit.learn(draw, told, refused, now);
        }
        self.history = history;
        changed
    }

    /// Removes limits that have ended, and callers without limits.
    pub(super) fn clean_up(&mut self, now: Instant) -> Vec<LimitChange> {
        let mut ended = Vec::new();
        let mut check = |policy: QuotaPolicy, api: Option<&Arc<str>>, limit: &Limit| {
            let has_ended = limit.has_ended(now);
            if has_ended {
                ended.push(LimitChange::Ended(policy, limit.limiter.quota(), api.cloned()));
            }
            !has_ended
        };
        self.ip = self.ip.take().filter(|limit| check(QuotaPolicy::Ip, None, limit));
        self.apis.retain(|api, limit| check(QuotaPolicy::Api, Some(api), limit));
        self.callers.retain(|_, limits| {
            limits.user = limits.user.take().filter(|limit| check(QuotaPolicy::User, None, limit));
            limits.app = limits.app.take().filter(|limit| check(QuotaPolicy::App, None, limit));
            limits.paused = limits.paused.filter(|pause| pause.until > now);
            let is_idle = now.saturating_duration_since(limits.last_used) > MAX_AGE;
            !is_idle && (limits.user.is_some() || limits.app.is_some() || limits.paused.is_some())
        });
        ended
    }
}
