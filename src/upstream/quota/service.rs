//! The limits of one service: which ones are in force, whom they bind, and what upstream's responses teach about them.
//! Pure: the time is an argument.

use std::cmp::Reverse;
use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::limit::{Limit, LimitChange, Source};
use super::{Draw, Hold, HoldCause, LimitKind, LimitState, Share};
use crate::catalogue::{ConfiguredQuota, Quota, QuotaPolicy};
use crate::random::HashMap;
use crate::request::caller::Caller;

/// The longest window of a learnt limit. Upstream's may be longer.
pub(super) const MAX_WINDOW: Duration = Duration::from_secs(5 * 60);
/// Calls are remembered for limits that are not known yet: as many, and for [`MAX_WINDOW`].
const MAX_HISTORY: usize = 4096;
/// How often responses that say nothing of limits remove those that have ended.
const CLEAN_UP_INTERVAL: Duration = Duration::from_secs(60);
/// The most callers with limits of their own.
const MAX_CALLERS: usize = 4096;

/// Until when the lists of one caller are held back.
#[derive(Clone, Copy, Debug)]
pub(super) struct Pause {
    pub(super) policy: QuotaPolicy,
    pub(super) cause: HoldCause,
    pub(super) until: Instant,
}

#[derive(Debug)]
pub(super) struct CallerLimits {
    pub(super) user: Option<Limit>,
    pub(super) app: Option<Limit>,
    /// Until when the calls of this caller alone are held. It has met a limit that does not bind others yet, or one that
    /// upstream has not named.
    pub(super) paused: Option<Pause>,
    is_proved: bool,
    pub(super) last_used: Instant,
}

#[derive(Debug, Default)]
pub(super) struct ServiceLimits {
    configured: Vec<ConfiguredQuota>,
    pub(super) ip: Option<Limit>,
    pub(super) apis: HashMap<Arc<str>, Limit>,
    pub(super) callers: HashMap<Caller, CallerLimits>,
    /// The latest calls, oldest first.
    pub(super) history: VecDeque<(Instant, Draw)>,
    /// The limits that have ended, if no event says so yet. Only learnt limits end, and each response empties this.
    pub(super) ended: Vec<LimitChange>,
    /// When a response has last removed what has ended.
    cleaned_up: Option<Instant>,
}

impl ServiceLimits {
    pub(super) fn configure(&mut self, configured: Vec<ConfiguredQuota>) {
        if self.configured == configured {
            return;
        }
        let is_learnt = |limit: &Limit| matches!(limit.source, Source::Learnt { .. });
        self.ip = self.ip.take().filter(is_learnt);
        self.apis.retain(|_, limit| is_learnt(limit));
        for caller in self.callers.values_mut() {
            caller.user = caller.user.take().filter(is_learnt);
            caller.app = caller.app.take().filter(is_learnt);
        }
        self.configured = configured;
        for quota in self.configured.clone() {
            let is_for = |api: &Arc<str>| quota.operation.as_ref().is_none_or(|operation| operation == api);
            match (quota.policy, quota.quota) {
                (QuotaPolicy::Ip, quota) => self.ip = quota.map(Limit::configured),
                (QuotaPolicy::Api, _) => self.apis.retain(|api, _| !is_for(api)),
                (QuotaPolicy::User | QuotaPolicy::App, _) => {
                    self.callers.values_mut().for_each(|caller| *caller.slot(quota.policy) = None);
                }
            }
        }
    }

    /// What is configured for a limit. `Some(None)`: that there is none.
    pub(super) fn setting(&self, policy: QuotaPolicy, api: Option<&Arc<str>>) -> Option<Option<Quota>> {
        let is_for = |it: &&ConfiguredQuota| {
            it.policy == policy && it.operation.as_ref().is_none_or(|operation| api == Some(operation))
        };
        // What is configured for one operation goes before what is configured for all.
        self.configured.iter().filter(is_for).max_by_key(|it| it.operation.is_some()).map(|it| it.quota)
    }

    /// Creates the limits that are configured for each API and each caller.
    pub(super) fn create_configured(&mut self, draw: &Draw, now: Instant) {
        if let Some(api) = &draw.api
            && !self.apis.contains_key(api)
            && let Some(Some(quota)) = self.setting(QuotaPolicy::Api, Some(api))
        {
            self.apis.insert(Arc::clone(api), Limit::configured(quota));
        }
        let Some(caller) = draw.caller else { return };
        for policy in [QuotaPolicy::User, QuotaPolicy::App] {
            if let Some(Some(quota)) = self.setting(policy, None) {
                let slot = self.caller_limits(caller, draw.is_proved, now).slot(policy);
                slot.get_or_insert_with(|| Limit::configured(quota));
            }
        }
    }

    /// Holds a caller's calls until a time.
    pub(super) fn pause(&mut self, caller: Caller, is_proved: bool, pause: Pause, now: Instant) {
        let paused = &mut self.caller_limits(caller, is_proved, now).paused;
        if paused.is_none_or(|known| known.until < pause.until) {
            *paused = Some(pause);
        }
    }

    pub(super) fn caller_limits(&mut self, caller: Caller, is_proved: bool, now: Instant) -> &mut CallerLimits {
        if !self.callers.contains_key(&caller) && self.callers.len() >= MAX_CALLERS {
            let oldest = self.callers.iter().min_by_key(|(_, limits)| (limits.is_proved, limits.last_used));
            if let Some(oldest) = oldest.map(|(caller, _)| *caller) {
                self.callers.remove(&oldest);
            }
        }
        let new = || CallerLimits { user: None, app: None, paused: None, is_proved, last_used: now };
        let limits = self.callers.entry(caller).or_insert_with(new);
        limits.is_proved |= is_proved;
        limits.last_used = now.max(limits.last_used);
        limits
    }

    /// All limits that count a call, whether they bind it or not.
    pub(super) fn counting<'l>(&'l mut self, draw: &Draw) -> impl Iterator<Item = (QuotaPolicy, &'l mut Limit)> {
        let Self { ip, apis, callers, .. } = self;
        let api = draw.api.as_ref().and_then(|api| apis.get_mut(api));
        let (user, app) = match draw.caller.and_then(|caller| callers.get_mut(&caller)) {
            Some(limits) => (limits.user.as_mut(), limits.app.as_mut()),
            None => (None, None),
        };
        let all = [
            (QuotaPolicy::Api, api),
            (QuotaPolicy::User, user),
            (QuotaPolicy::App, app),
            (QuotaPolicy::Ip, ip.as_mut()),
        ];
        all.into_iter().filter_map(|(policy, limit)| Some((policy, limit?)))
    }

    /// The limit that holds a call back the longest, if `ahead` other calls are sent before it. `None` if it may be sent
    /// now.
    pub(super) fn hold(&mut self, draw: &Draw, kind: LimitKind, ahead: u32, now: Instant) -> Option<Hold> {
        let paused = draw.caller.and_then(|caller| self.callers.get(&caller)?.paused);
        let paused = paused.filter(|it| it.until > now && kind == LimitKind::Own && draw.share != Share::Relayed);
        let mut longest = paused.map(|Pause { policy, cause, until }| Hold { policy, cause, until, left: until - now });
        for (policy, limit) in self.counting(draw) {
            limit.limiter.expire(now);
            if limit.kind_for(policy, draw) != Some(kind) || limit.has_ended(now) {
                continue;
            }
            let until = limit.free_at(draw, policy.is_shared(), ahead, now);
            if until > now && longest.is_none_or(|longest| until > longest.until) {
                let cause = HoldCause::Limit(limit.limiter.quota());
                longest = Some(Hold { policy, cause, until, left: until - now });
            }
        }
        longest
    }

    /// Notes that limits of a kind hold back a call that waits.
    pub(super) fn note_held(&mut self, draw: &Draw, kind: LimitKind, now: Instant) {
        for (policy, limit) in self.counting(draw) {
            let until = limit.free_at(draw, policy.is_shared(), 0, now);
            if limit.kind_for(policy, draw) == Some(kind) && !limit.has_ended(now) && until > now {
                limit.held(draw, until, now);
            }
        }
    }

    /// The limits that have ended by now, and that no event has told yet. They are looked for once a minute.
    pub(super) fn ended_by(&mut self, now: Instant) -> Vec<LimitChange> {
        if self.cleaned_up.is_none_or(|at| now.saturating_duration_since(at) >= CLEAN_UP_INTERVAL) {
            self.cleaned_up = Some(now);
            let ended = self.clean_up(now);
            self.ended.extend(ended);
        }
        std::mem::take(&mut self.ended)
    }

    /// Whether a limit of all callers may hold back the call.
    pub(super) fn has_shared_limit(&mut self, draw: &Draw, now: Instant) -> bool {
        let is_in_force = |policy: QuotaPolicy, limit: &Limit| {
            limit.kind_for(policy, draw) == Some(LimitKind::Shared) && !limit.has_ended(now)
        };
        self.counting(draw).any(|(policy, limit)| is_in_force(policy, limit))
    }

    /// Counts a call that is sent now. Returns whether lists may have left room for it.
    pub(super) fn take(&mut self, draw: &Draw, now: Instant) -> bool {
        self.create_configured(draw, now);
        let mut had_room_left = false;
        for (_, limit) in self.counting(draw) {
            had_room_left |= limit.take(draw, now);
        }
        while self.history.front().is_some_and(|(sent, _)| now.saturating_duration_since(*sent) > MAX_WINDOW) {
            self.history.pop_front();
        }
        if self.history.len() == MAX_HISTORY {
            self.history.pop_front();
        }
        self.history.push_back((now, draw.clone()));
        had_room_left
    }

    /// A call that was counted is not sent.
    pub(super) fn give_back(&mut self, draw: &Draw, taken: Instant) {
        for (_, limit) in self.counting(draw) {
            limit.limiter.take_back(taken, draw.share);
        }
        self.forget(draw, taken);
    }

    pub(super) fn forget(&mut self, draw: &Draw, taken: Instant) {
        if let Some(index) = self.history.iter().rposition(|(sent, it)| *sent == taken && it == draw) {
            self.history.remove(index);
        }
    }

    /// The limits in force. Of those of single callers, the one with the fewest calls left of each kind.
    pub(super) fn states(&mut self, now: Instant) -> Vec<LimitState> {
        let ended = self.clean_up(now);
        self.ended.extend(ended);
        let mut states = Vec::new();
        let mut state = |policy: QuotaPolicy, api: Option<&Arc<str>>, limit: &mut Limit| {
            limit.limiter.expire(now);
            states.push(LimitState {
                policy,
                operation: api.cloned(),
                quota: limit.limiter.quota(),
                used: limit.limiter.used(),
                remaining: limit.limiter.remaining(now),
                free_in: limit.limiter.free_at(0, now).saturating_duration_since(now),
                is_configured: matches!(limit.source, Source::Configured),
                binds_all: !matches!(limit.source, Source::Learnt { only: Some(_), .. }),
            });
        };
        self.ip.iter_mut().for_each(|limit| state(QuotaPolicy::Ip, None, limit));
        self.apis.iter_mut().for_each(|(api, limit)| state(QuotaPolicy::Api, Some(api), limit));
        for policy in [QuotaPolicy::User, QuotaPolicy::App] {
            let limits = self.callers.values_mut().filter_map(|limits| limits.slot(policy).as_mut());
            let free = |limit: &Limit| (limit.limiter.remaining(now), Reverse(limit.limiter.free_at(0, now)));
            if let Some(fewest) = limits.min_by_key(|limit| free(limit)) {
                state(policy, None, fewest);
            }
        }
        states.sort_by(|one, other| (one.policy, &one.operation).cmp(&(other.policy, &other.operation)));
        states
    }
}

impl CallerLimits {
    /// The limit of a policy that is not shared.
    pub(super) fn slot(&mut self, policy: QuotaPolicy) -> &mut Option<Limit> {
        match policy {
            QuotaPolicy::App => &mut self.app,
            QuotaPolicy::Api | QuotaPolicy::User | QuotaPolicy::Ip => &mut self.user,
        }
    }
}
