//! What the gateway reports: metrics, events, the health of upstream, and logged failures. It decides nothing.

use std::borrow::Cow;
use std::sync::Arc;
use std::time::Duration;

use http::header::USER_AGENT;
use http::request::Parts;
use http::{HeaderMap, HeaderValue, StatusCode};
use tokio::sync::mpsc;
use tokio::time::Instant;

use crate::cache::second_tier::{NoticeKind, RecordKind};
use crate::catalogue::{Catalogue, QuotaPolicy, Service};
use crate::clock::Clock;
use crate::fleet::{Fault, LookUpResult, StoreResult, TellResult, Watcher};
use crate::request::caller::{Caller, Credential};
use crate::request::decide::{Decision, is_for_none};
use crate::request::digest::Digests;
use crate::request::key::Scope;
use crate::request::rejection::Rejection;
use crate::sync::Mutex;
use crate::telemetry::callers::{CallerCounts, CallerRow};
use crate::telemetry::condition_tracker::ConditionTracker;
use crate::telemetry::events::{Event, Events, NewEvent};
use crate::telemetry::failures::Failures;
use crate::telemetry::health::{Health, HealthChange, Healths};
use crate::telemetry::history::{History, Sample, Totals};
use crate::telemetry::metrics::Metrics;
use crate::telemetry::sinks::Sinks;
use crate::telemetry::tail::Tail;
use crate::telemetry::traces::Span;
use crate::upstream::key_breaker::Suspended;
use crate::upstream::quota::LimitChange;
use crate::upstream::{Failure, UpstreamError};

pub struct Observer {
    /// Digests stand for keys and callers in logs and headers.
    pub(super) digests: Digests,
    pub(super) metrics: Arc<Metrics>,
    pub(super) sinks: Arc<Sinks>,
    /// The spans to export, until the exporter takes them.
    pub(super) spans: Mutex<Option<mpsc::Receiver<Span>>>,
    pub(super) events: Events,
    pub(super) failures: Failures,
    pub(super) healths: Healths,
    pub(super) history: Mutex<History>,
    pub(super) conditions: ConditionTracker,
    pub(super) started: Instant,
    pub(super) clock: Clock,
}

impl Observer {
    /// The live tail of completed requests.
    pub(crate) fn tail(&self) -> &Arc<Tail> {
        self.sinks.tail()
    }

    /// At most so many callers with their counts, and how many have counts.
    pub(crate) fn caller_rows(&self, limit: usize) -> (Vec<CallerRow>, usize) {
        self.sinks.callers().rows(limit, self.clock.timer_now())
    }

    /// The counts of a caller whose request has come with these headers. `None` without a caller.
    pub(super) fn caller_counts(
        &self,
        identity: Option<&(Credential, Caller)>,
        headers: &HeaderMap,
    ) -> Option<Arc<CallerCounts>> {
        let (credential, caller) = identity?;
        let access_key = credential.signed().map(|signed| signed.key.id());
        let agent = headers.get(USER_AGENT).map(HeaderValue::as_bytes).filter(|agent| !agent.is_empty());
        let id = || self.digests.of_caller(*caller);
        Some(self.sinks.callers().seen(*caller, id, access_key, agent, self.clock.timer_now()))
    }

    pub fn events(&self) -> &Events {
        &self.events
    }

    /// The spans to export. Only once; `None` if spans are not exported.
    pub(crate) fn take_spans(&self) -> Option<mpsc::Receiver<Span>> {
        self.spans.lock().take()
    }

    /// Records an event, and logs it.
    pub fn record_event(&self, new_event: NewEvent<'_>) {
        self.events.note(new_event, self.clock.date(), self.clock.now());
    }

    /// Counts the result of a call for the health of its service. `is_known`: whether upstream knows the caller.
    pub(super) fn record_health(&self, service: Service, result: Result<StatusCode, Failure>, is_known: bool) {
        let new_event = match self.healths.record(service, result, is_known, self.clock.now()) {
            None => return,
            Some(HealthChange::Fails(_)) => {
                let failure = match result {
                    Ok(status) => Cow::Owned(status.to_string()),
                    Err(failure) => Cow::Borrowed(failure.describe()),
                };
                NewEvent::new(Event::Outage, format!("{} is failing: {failure}", service.as_str()))
            }
            Some(HealthChange::Recovers { after, failures }) => {
                NewEvent::new(Event::Recovery, format!("{} answers again", service.as_str())).after(after, failures)
            }
        };
        self.record_event(new_event.at(service));
    }

    /// Logs a failed call. An upload that the client did not complete is no failure of upstream.
    pub(super) fn call_failed(&self, service: Service, request_id: &str, error: &UpstreamError) {
        if matches!(error, UpstreamError::Upload(_) | UpstreamError::UploadSlow) {
            tracing::debug!(request_id, service = service.as_str(), %error, "client did not complete the request body");
            return;
        }
        let (failure, now) = (error.failure(), self.clock.now());
        match failure {
            Failure::Local => self.conditions.failed_here(service, error.to_string(), now),
            failure if failure.is_inside() => {}
            _ => self.conditions.call_failed(service, error.to_string()),
        }
        self.failures.note((service, failure), request_id, error, now);
    }

    /// The configuration was read again and refused for this reason, or is valid.
    pub(crate) fn reloaded(&self, refused: Option<String>) -> bool {
        self.conditions.reload(refused, self.clock.now())
    }

    /// Adds a sample to the history of the last hour.
    pub fn take_sample(&self) {
        let totals = Totals::of(&self.metrics);
        self.history.lock().take(totals, self.clock.now());
    }

    /// The samples with a greater number than this one, and the seconds since the start on their time scale.
    pub(crate) fn samples_after(&self, number: u32) -> (Vec<Sample>, f64) {
        let history = self.history.lock();
        (history.after(number), history.age(self.clock.now()))
    }

    /// Logs counted events and failures whose log line is due.
    pub fn log_due(&self) {
        self.events.log_due(self.clock.now());
        self.failures.log_due(self.clock.now());
    }

    /// Logs counted events and failures that have no log line yet. Called at the end of the process.
    pub fn log_rest(&self) {
        self.events.log_rest(self.clock.now());
        self.failures.log_rest();
    }

    /// Records that upstream throttles calls, by 429 or by 503 with `Retry-After`.
    pub(super) fn throttled(&self, service: Service, status: StatusCode, scope: Option<&Scope>) {
        self.conditions.throttled(service, self.clock.now());
        let does = if status == StatusCode::TOO_MANY_REQUESTS { "throttles calls" } else { "asks to retry later" };
        let what = format!("{} {does}: {status}", service.as_str());
        self.record_event(NewEvent::new(Event::Throttled, what).in_scope(scope).at(service));
    }

    /// Records that a limit has been learnt, has changed or has ended.
    pub(super) fn limit_changed(&self, service: Service, operation: Option<&Arc<str>>, change: &LimitChange) {
        // Another call may have met a limit that has ended.
        let (what, policy, quota, operation) = match change {
            LimitChange::Learnt(policy, quota) => ("limits calls", policy, quota, operation),
            LimitChange::Changed(policy, quota) => ("has changed its limit", policy, quota, operation),
            LimitChange::Ended(policy, quota, operation) => {
                ("no longer limits calls", policy, quota, operation.as_ref())
            }
        };
        let operation = operation.filter(|_| *policy == QuotaPolicy::Api);
        let of = operation.map(|operation| format!(" of {operation}")).unwrap_or_default();
        let what = format!("{} {what}: policy {}{of}, {quota}", service.as_str(), policy.into_str());
        self.record_event(NewEvent::new(Event::Quota, what).at(service));
    }

    /// Records which operation a request for none almost is. The event has the operation's template, not the path.
    pub(super) fn near_miss(&self, catalogue: &Catalogue, head: &Parts, decision: &Result<Decision, Rejection>) {
        if is_for_none(decision)
            && let Some(near) = catalogue.near_miss(&head.method, head.uri.path())
        {
            let service = near.operation.service;
            self.record_event(NewEvent::new(Event::NearMiss, format!("a request is {near}")).at(service));
        }
    }

    pub(super) fn key_suspended(&self, suspended: &Suspended) {
        self.record_event(NewEvent::new(Event::KeySuspended, suspended.to_string()));
    }

    /// `None` if the service has not been called yet.
    pub fn health(&self, service: Service) -> Option<Health> {
        self.healths.of(service)
    }

    /// The time since the start, without the time in which the machine was suspended.
    pub fn uptime(&self) -> Duration {
        self.clock.timer_now().saturating_duration_since(self.started)
    }
}

impl Watcher for Observer {
    fn looked_up(&self, result: LookUpResult, took: Duration) {
        self.metrics.fleet_looked_up(result, took);
    }

    fn stored(&self, kind: RecordKind, result: StoreResult) {
        self.metrics.fleet_stored(kind, result);
    }

    fn told(&self, kind: NoticeKind, result: TellResult) {
        self.metrics.fleet_told(kind, result);
    }

    fn missed(&self) {
        self.metrics.fleet_missed();
        let what = "notices of other gateways were lost: all entries were removed, and all callers are proved again";
        self.record_event(NewEvent::new(Event::FleetMissed, what));
    }

    fn faulted(&self, fault: Fault) {
        self.metrics.fleet_faulted(fault);
    }

    fn changed(&self, state: Result<String, (Fault, String)>) {
        self.record_event(match state {
            Ok(keys) => NewEvent::new(Event::Fleet, format!("the engine of the fleet is in use: its keys are {keys}…")),
            Err((fault, details)) => {
                let state = if fault == Fault::Full { "accepts nothing new" } else { "is not in use" };
                let what = format!("the engine of the fleet {state} ({}): {}", fault.into_str(), fault.describe());
                NewEvent::new(Event::FleetLost, what).with_error(&details)
            }
        });
    }
}
