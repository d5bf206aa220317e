//! The quotas that upstream enforces: which calls it accepts, and what its responses say of its limits. It is pure: the
//! time is an argument. So the simulator, tests and benches in simulated time can all use it.
//!
//! All quotas are independent. A call is refused if one of them is exceeded, and then counts for none. The refusal
//! names the first exceeded quota in the order api, user, app, ip.
//!
//! ```text
//! counter  the calls in a window, fixed or sliding    record  the accepted and refused calls of a quota
//! told     the text and the headers
//! ```

mod counter;
mod record;
#[cfg(test)]
mod tests;
mod told;

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::HeaderMap;

use super::errors::{self, ErrorReply};
use crate::catalogue::{Quota, QuotaPolicy, Service};
use counter::Counter;
pub use counter::QuotaWindow;
pub use record::{QuotaRecord, QuotaResult, RecordedCall};
pub use told::{DebugHeaders, QuotaAnswers, RefusalText};

/// The number of APIs or users of one quota whose counters are kept, even if they have no calls in the window.
const MAX_IDLE_COUNTERS: usize = 10_000;

/// A quota of upstream.
#[derive(Clone, Debug, PartialEq)]
pub struct EnforcedQuota {
    /// The service whose calls it counts. `None`: those of all services, together.
    pub service: Option<Service>,
    pub policy: QuotaPolicy,
    pub quota: Quota,
    pub window: QuotaWindow,
    pub answers: QuotaAnswers,
}

impl EnforcedQuota {
    /// A quota of all services. Its refusals name the limit, and there are no headers.
    pub fn new(policy: QuotaPolicy, quota: Quota, window: QuotaWindow) -> Self {
        Self { service: None, policy, quota, window, answers: QuotaAnswers::default() }
    }

    fn is_for(&self, service: Service) -> bool {
        self.service.is_none_or(|own| own == service)
    }
}

/// What quotas count of a call.
#[derive(Clone, Copy, Debug)]
pub struct QuotaCall<'a> {
    pub service: Service,
    /// The name of an API.
    pub api: &'a str,
    /// `None` if upstream does not know the user: quotas of users do not count the call.
    pub user: Option<&'a str>,
    /// The same for applications.
    pub app: Option<&'a str>,
}

impl<'a> QuotaCall<'a> {
    /// Whose calls a policy counts together with this one.
    fn counted_as(&self, policy: QuotaPolicy) -> Option<&'a str> {
        match policy {
            QuotaPolicy::Api => Some(self.api),
            QuotaPolicy::User => self.user,
            QuotaPolicy::App => self.app,
            QuotaPolicy::Ip => Some(ADDRESS),
        }
    }
}

/// All calls come from one address.
const ADDRESS: &str = "";

/// A quota in force, and what it has counted.
struct QuotaInForce {
    enforced: EnforcedQuota,
    /// By API, user or application.
    counters: HashMap<Arc<str>, Counter>,
    record: QuotaRecord,
}

impl QuotaInForce {
    fn counter(&mut self, name: &str, now: Instant) -> (Arc<str>, &mut Counter) {
        let EnforcedQuota { quota: Quota { window, .. }, window: kind, .. } = self.enforced;
        let key = match self.counters.get_key_value(name) {
            Some((key, _)) => Arc::clone(key),
            None => {
                if self.counters.len() >= MAX_IDLE_COUNTERS {
                    self.counters.retain(|_, counter| {
                        counter.forget(window, kind, now);
                        counter.used() > 0
                    });
                }
                Arc::from(name)
            }
        };
        let counter = self.counters.entry(Arc::clone(&key)).or_default();
        counter.forget(window, kind, now);
        (key, counter)
    }

    fn state(&mut self, name: &str, now: Instant) -> QuotaState {
        let EnforcedQuota { policy, quota, window, answers, .. } = self.enforced;
        let (_, counter) = self.counter(name, now);
        let remaining = quota.calls.saturating_sub(counter.used());
        QuotaState { policy, quota, remaining, reset: counter.reset(quota, window, now), answers }
    }

    fn accept(&mut self, name: &str, now: Instant) {
        let (name, counter) = self.counter(name, now);
        counter.add(1, now);
        self.record.add(RecordedCall { at: now, name, result: QuotaResult::Accepted });
    }

    fn refuse(&mut self, name: &str, now: Instant) {
        let (name, _) = self.counter(name, now);
        self.record.add(RecordedCall { at: now, name, result: QuotaResult::Refused });
    }

    fn use_elsewhere(&mut self, name: &str, calls: u32, now: Instant) {
        let calls = calls.min(self.state(name, now).remaining);
        let (name, counter) = self.counter(name, now);
        counter.add(calls, now);
        self.record.add(RecordedCall { at: now, name, result: QuotaResult::Elsewhere(calls) });
    }
}

/// The quotas in force.
///
/// Calls must be counted in the order of time. A time before that of the last call counts as that of the last call.
#[derive(Default)]
pub struct Quotas {
    /// In the order of their policies.
    in_force: Vec<QuotaInForce>,
    latest: Option<Instant>,
}

impl Quotas {
    /// Begins or changes the quota of this policy and service.
    ///
    /// A changed quota keeps its record, and the calls that it has counted in the window. A longer window does not
    /// count what the shorter one has forgotten.
    ///
    /// # Panics
    /// If the quota accepts no call, or has no window.
    pub fn set(&mut self, enforced: EnforcedQuota) {
        assert!(enforced.quota.calls > 0 && !enforced.quota.window.is_zero(), "no quota: {:?}", enforced.quota);
        let EnforcedQuota { service, policy, .. } = enforced;
        let is_same = |other: &&mut QuotaInForce| (other.enforced.service, other.enforced.policy) == (service, policy);
        if let Some(same) = self.in_force.iter_mut().find(is_same) {
            same.enforced = enforced;
            return;
        }
        let index = self.in_force.partition_point(|other| other.enforced.policy <= policy);
        let new = QuotaInForce { enforced, counters: HashMap::new(), record: QuotaRecord::default() };
        self.in_force.insert(index, new);
    }

    /// Ends all quotas and forgets their records.
    pub fn clear(&mut self) {
        self.in_force.clear();
    }

    pub fn is_empty(&self) -> bool {
        self.in_force.is_empty()
    }

    /// Counts a call if all quotas accept it.
    pub fn call(&mut self, call: &QuotaCall<'_>, now: Instant) -> QuotaVerdict {
        let now = self.in_order(now);
        let mut matching: Vec<_> = self
            .in_force
            .iter_mut()
            .filter(|quota| quota.enforced.is_for(call.service))
            .filter_map(|quota| Some((call.counted_as(quota.enforced.policy)?, quota)))
            .collect();
        let states: Vec<_> = matching.iter_mut().map(|(name, quota)| quota.state(name, now)).collect();
        if let Some(first) = states.iter().position(|state| state.remaining == 0) {
            let (name, quota) = &mut matching[first];
            quota.refuse(name, now);
            return QuotaVerdict { refused_by: Some(states[first]), states };
        }
        let accept = |(name, quota): (_, &mut QuotaInForce)| {
            quota.accept(name, now);
            quota.state(name, now)
        };
        QuotaVerdict { refused_by: None, states: matching.into_iter().map(accept).collect() }
    }

    /// Others use up to this many calls of the quotas of this policy for this service: only what remains. `name` is the
    /// API, the user or the application. It is not used for `ip`.
    pub fn use_quota(&mut self, service: Service, policy: QuotaPolicy, name: &str, calls: u32, now: Instant) {
        let now = self.in_order(now);
        let name = if policy == QuotaPolicy::Ip { ADDRESS } else { name };
        for quota in self.in_force.iter_mut().filter(|quota| quota.enforced.policy == policy) {
            if quota.enforced.is_for(service) {
                quota.use_elsewhere(name, calls, now);
            }
        }
    }

    /// What the quota of this policy and service has accepted and refused since it began.
    pub fn record(&self, service: Option<Service>, policy: QuotaPolicy) -> Option<&QuotaRecord> {
        let is_same = |quota: &&QuotaInForce| (quota.enforced.service, quota.enforced.policy) == (service, policy);
        self.in_force.iter().find(is_same).map(|quota| &quota.record)
    }

    fn in_order(&mut self, now: Instant) -> Instant {
        let now = self.latest.map_or(now, |latest| latest.max(now));
        self.latest = Some(now);
        now
    }
}

/// What remains of a quota.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct QuotaState {
    pub policy: QuotaPolicy,
    pub quota: Quota,
    pub remaining: u32,
    /// If nothing remains, how long until the quota accepts a call again. Else, how long until more remains: until the
    /// end of a fixed window, or until the oldest call leaves a sliding one. Longer than zero.
    pub reset: Duration,
    answers: QuotaAnswers,
}

/// Whether a call was accepted, and what its response says of the limits.
#[derive(Clone, Debug, Default)]
pub struct QuotaVerdict {
    /// The first exceeded quota. The call is a 429.
    pub refused_by: Option<QuotaState>,
    /// All quotas that count the call, in the order of their policies, as they are after it.
    pub states: Vec<QuotaState>,
}

impl QuotaVerdict {
    pub fn is_accepted(&self) -> bool {
        self.refused_by.is_none()
    }

    /// The headers of the response that are about limits. `asked`: the request has `X-Apig-Mode: debug`.
    pub fn headers(&self, asked: bool) -> HeaderMap {
        told::headers(&self.states, self.refused_by.as_ref(), asked)
    }

    /// The body of the 429. Empty if the call was accepted.
    pub fn body(&self, request_id: &str) -> Bytes {
        self.refusal().map_or_else(Bytes::new, |refusal| refusal.body(request_id))
    }

    pub(super) fn refusal(&self) -> Option<ErrorReply> {
        let refused_by = self.refused_by?;
        Some(match refused_by.answers.text {
            RefusalText::Limit => errors::throttled(told::text(refused_by.policy, refused_by.quota)),
            RefusalText::Plain => errors::THROTTLED,
            RefusalText::Nothing => errors::SILENT,
        })
    }
}
