//! The quota ledger: it counts every call to upstream against the limits that the call draws from, and says when the
//! next one may be sent. Which call is next is decided in [`super::gate`].
//!
//! ```text
//! limit     one limit: whom it binds, when it ends     limiter   its sliding log of send times
//! service   the limits of a service                     learn     how they are learnt
//! told      what a response says of limits         news      what the gateways of a fleet tell each other
//! untold    what of it they do not know yet
//! ```
//!
//! Pacing changes when calls are sent, never what may be shown.

mod learn;
mod limit;
mod limiter;
mod news;
mod service;
#[cfg(test)]
mod tests;
pub(crate) mod told;
mod untold;

use std::sync::Arc;
use std::time::{Duration, Instant};

use http::{HeaderMap, StatusCode};

pub(crate) use self::limit::LimitChange;
pub(crate) use self::news::LimitNews;
use self::service::{Pause, ServiceLimits};
use crate::catalogue::{ConfiguredQuota, Quota, QuotaPolicy, Service};
use crate::random::HashMap;
use crate::request::caller::Caller;
use crate::sync::{Mutex, MutexGuard};
use crate::upstream::key_breaker::ProcessId;

/// Who makes a call, as far as shares of a limit depend on it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Share {
    /// A known caller asks for a product list, or the gateway renews, refreshes or keeps one.
    Known,
    /// An unknown caller asks for a product list, or sends a request that is relayed.
    Unknown,
    /// A relayed request of a known caller.
    Relayed,
}

impl Share {
    const COUNT: usize = 3;
}

/// What decides which limits a call draws from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Draw {
    /// `None` without a credential that the gateway knows: then no limit of a caller applies.
    pub(crate) caller: Option<Caller>,
    /// The name of the operation. `None` for a request that is not one's.
    pub(crate) api: Option<Arc<str>>,
    pub(crate) share: Share,
    /// Whether a product list has proved the caller within the last hour.
    pub(crate) is_proved: bool,
    /// Whether a client waits for the call. Lists of the other calls take nothing from relayed requests.
    pub(crate) has_client: bool,
}

/// Whom a limit holds back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum LimitKind {
    /// One caller.
    Own,
    /// All callers.
    Shared,
}

/// Why a call is held back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HoldCause {
    /// A limit is used up.
    Limit(Quota),
    /// The caller has met a limit of all callers that binds nobody else, so that it is not known for certain.
    Met,
    /// Upstream has asked this caller to wait, and has named no limit.
    Asked,
}

/// What holds a call back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Hold {
    /// [`QuotaPolicy::User`] if upstream has named no limit.
    pub policy: QuotaPolicy,
    pub cause: HoldCause,
    /// The call can be sent then at the earliest.
    pub until: Instant,
    /// The time from now until then.
    pub left: Duration,
}

/// What a response has taught.
#[derive(Clone, Debug, Default)]
pub(crate) struct Lesson {
    pub(crate) changes: Vec<LimitChange>,
    /// The limit that a 429 names.
    pub(crate) refused_by: Option<QuotaPolicy>,
    /// For the other gateways of the fleet.
    pub(crate) news: Vec<LimitNews>,
}

/// A limit in force, for operators.
#[derive(Clone, Debug, PartialEq)]
pub struct LimitState {
    pub policy: QuotaPolicy,
    pub operation: Option<Arc<str>>,
    pub quota: Quota,
    /// The calls that count now. Fewer than the quota's may have used it up, if others use it too.
    pub used: u32,
    /// The calls that can be sent now.
    pub remaining: u32,
    /// How long it is until the next call can be sent. Zero if one can be sent now.
    pub free_in: Duration,
    pub is_configured: bool,
    /// Whether it binds proved callers that have not met it.
    pub binds_all: bool,
}

/// The limits of all services. Their locks are held for the time of a decision only.
#[derive(Default)]
pub(crate) struct Ledger {
    /// `None` without a fleet.
    process: Option<ProcessId>,
    services: Mutex<HashMap<Service, SharedLimits>>,
}

/// The limits of one service, from which two gates draw.
#[derive(Clone, Default)]
pub(crate) struct SharedLimits(Arc<Mutex<ServiceLimits>>);

/// The limits of one service while no other gate can count a call. What is free stays free until this is dropped.
pub(crate) struct LockedLimits<'l>(MutexGuard<'l, ServiceLimits>);

impl SharedLimits {
    pub(crate) fn lock(&self) -> LockedLimits<'_> {
        LockedLimits(self.0.lock())
    }
}

impl LockedLimits<'_> {
    /// Like [`Ledger::hold`], for a call that waits if it is held back.
    pub(crate) fn hold_call(&mut self, draw: &Draw, kind: LimitKind, ahead: u32, now: Instant) -> Option<Hold> {
        let hold = self.0.hold(draw, kind, ahead, now);
        if hold.is_some() {
            self.0.note_held(draw, kind, now);
        }
        hold
    }

    /// Whether a limit of all callers may hold back the call.
    pub(crate) fn has_shared_limit(&mut self, draw: &Draw, now: Instant) -> bool {
        self.0.has_shared_limit(draw, now)
    }

    /// Counts a call that is sent now. The caller has checked that it may be, and has kept the lock since. Returns
    /// whether lists may have left room for it, and may be sent earlier from now on.
    pub(crate) fn take(&mut self, draw: &Draw, now: Instant) -> bool {
        self.0.take(draw, now)
    }
}

impl Ledger {
    /// `process`: if it belongs to a fleet.
    pub(crate) fn new(process: Option<ProcessId>) -> Self {
        Self { process, services: Mutex::default() }
    }

    /// The limits of a service. They are the same as long as the ledger exists.
    pub(crate) fn limits(&self, service: Service) -> SharedLimits {
        self.services.lock().entry(service).or_default().clone()
    }

    /// The limits that are configured from now on.
    pub(crate) fn configure(&self, configured: &[ConfiguredQuota]) {
        let known: Vec<_> = self.services.lock().keys().copied().collect();
        let named = configured.iter().map(|quota| quota.service);
        for service in known.into_iter().chain(named) {
            let of_service = configured.iter().filter(|quota| quota.service == service).cloned().collect();
            self.limits(service).lock().0.configure(of_service);
        }
    }

    /// Which limit of a kind holds a call back, and until when, if `ahead` other calls are sent before it. `None` if it
    /// may be sent now.
    pub(crate) fn hold(
        &self,
        service: Service,
        draw: &Draw,
        kind: LimitKind,
        ahead: u32,
        now: Instant,
    ) -> Option<Hold> {
        self.limits(service).lock().0.hold(draw, kind, ahead, now)
    }

    /// A call that was counted is not sent.
    pub(crate) fn give_back(&self, service: Service, draw: &Draw, taken: Instant) {
        self.limits(service).lock().0.give_back(draw, taken);
    }

    /// Learns from a response. `body` is read only if it is a 429.
    pub(crate) fn learn(
        &self,
        service: Service,
        (draw, taken): (&Draw, Instant),
        (status, headers, body): (StatusCode, &HeaderMap, &[u8]),
        retry_after: Option<Duration>,
        now: Instant,
    ) -> Lesson {
        let is_refusal = status == StatusCode::TOO_MANY_REQUESTS;
        let told = told::told_limits(headers, if is_refusal { body } else { b"" });
        let limits = self.limits(service);
        let mut limits = limits.0.lock();
        if !is_refusal && told.is_empty() {
            let changes = limits.ended_by(now);
            return Lesson { changes, refused_by: None, news: self.news(&mut limits, draw, now) };
        }
        let refused = is_refusal.then_some(retry_after);
        let mut changes = std::mem::take(&mut limits.ended);
        changes.extend(limits.clean_up(now));
        changes.extend(limits.learn(draw, taken, &told, refused, now));
        let refused_by = told.iter().find_map(|told| told.policy).filter(|_| is_refusal);
        Lesson { changes, refused_by, news: self.news(&mut limits, draw, now) }
    }

    fn news(&self, limits: &mut ServiceLimits, draw: &Draw, now: Instant) -> Vec<LimitNews> {
        self.process.map(|process| limits.news(draw, process, now)).unwrap_or_default()
    }

    /// Learns what another gateway has told of a limit at this time.
    pub(crate) fn told(&self, service: Service, news: &LimitNews, at: Instant, now: Instant) -> Vec<LimitChange> {
        if self.process == Some(news.process) {
            return Vec::new();
        }
        let limits = self.limits(service);
        let mut limits = limits.0.lock();
        limits.told(news, at, now)
    }

    /// Holds the lists of a caller for as long as upstream has asked for.
    pub(crate) fn pause(&self, service: Service, draw: &Draw, span: Duration, now: Instant) {
        if let Some(caller) = draw.caller {
            let pause = Pause { policy: QuotaPolicy::User, cause: HoldCause::Asked, until: now + span };
            let limits = self.limits(service);
            limits.0.lock().pause(caller, draw.is_proved, pause, now);
        }
    }

    /// The limits in force.
    pub(crate) fn states(&self, now: Instant) -> Vec<(Service, Vec<LimitState>)> {
        let mut services: Vec<_> =
            self.services.lock().iter().map(|(service, limits)| (*service, limits.clone())).collect();
        services.sort_by_key(|(service, _)| service.as_str());
        services.into_iter().map(|(service, limits)| (service, limits.0.lock().states(now))).collect()
    }
}
