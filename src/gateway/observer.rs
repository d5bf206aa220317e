//! What an operator is told of: events, and how upstream is.

use std::borrow::Cow;
use std::sync::Arc;
use std::time::Duration;

use http::StatusCode;
use tokio::time::Instant;

use crate::catalogue::Service;
use crate::clock::Clock;
use crate::request::digest::Digests;
use crate::request::key::Scope;
use crate::telemetry::events::{Event, Events, NewEvent};
use crate::telemetry::failures::Failures;
use crate::telemetry::fetches::Fetches;
use crate::telemetry::health::{Health, HealthChange, Healths};
use crate::telemetry::metrics::Metrics;
use crate::telemetry::reloads::Reloads;
use crate::upstream::key_breaker::{KeyPermit, SignatureOutcome, Suspended};
use crate::upstream::{Failure, UpstreamError};

/// All that is told of the gateway's work: to Prometheus, to the log, to an operator.
pub struct Observer {
    /// What is told of keys and callers in place of them.
    pub(super) digests: Digests,
    pub(super) metrics: Arc<Metrics>,
    pub(super) reloads: Reloads,
    pub(super) fetches: Fetches,
    pub(super) events: Events,
    pub(super) failures: Failures,
    pub(super) healths: Healths,
    pub(super) started: Instant,
    pub(super) clock: Clock,
}

impl Observer {
    /// What has happened lately.
    pub fn events(&self) -> &Events {
        &self.events
    }

    /// Notes something that happens now, and logs it.
    pub fn record_event(&self, new_event: NewEvent<'_>) {
        self.events.note(new_event, self.clock.date(), self.clock.now());
    }

    /// Notes what came of a call of a caller whom upstream knows, or doesn't.
    pub(super) fn heard(&self, service: Service, result: Result<StatusCode, Failure>, is_known: bool) {
        let new_event = match self.healths.heard(service, result, is_known, self.clock.now()) {
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

    /// Has it logged that a call for a request has failed. An upload that its client has not finished is no failure of upstream.
    pub(super) fn call_failed(&self, service: Service, request_id: &str, error: &UpstreamError) {
        if matches!(error, UpstreamError::Upload(_) | UpstreamError::UploadSlow) {
            tracing::debug!(request_id, service = service.as_str(), %error, "upload not finished by the client");
            return;
        }
        self.failures.note((service, error.failure()), request_id, error, self.clock.now());
    }

    /// Logs counted events and failures that have waited long enough for a log line.
    pub fn log_due(&self) {
        self.events.log_due(self.clock.now());
        self.failures.log_due(self.clock.now());
    }

    /// Logs counted events and failures that have no log line yet, at the end of the process.
    pub fn log_rest(&self) {
        self.events.log_rest(self.clock.now());
        self.failures.log_rest();
    }

    /// Notes that upstream throttles calls, by 429 or by 503 with `Retry-After`.
    pub(super) fn throttled(&self, service: Service, status: StatusCode, scope: Option<&Scope>) {
        let does = if status == StatusCode::TOO_MANY_REQUESTS { "throttles calls" } else { "asks to retry later" };
        let what = format!("{} {does}: {status}", service.as_str());
        self.record_event(NewEvent::new(Event::Throttled, what).in_scope(scope).at(service));
    }

    /// Notes what upstream made of a signature with an access key.
    pub(super) fn signature_ended(&self, key_permit: KeyPermit, reception: SignatureOutcome) {
        if let Some(held) = key_permit.ended(reception) {
            self.key_suspended(&held);
        }
    }

    /// Notes that an access key is not used.
    pub(super) fn key_suspended(&self, held: &Suspended) {
        self.record_event(NewEvent::new(Event::KeySuspended, held.to_string()));
    }

    /// How a service is, if it has been asked.
    pub fn health(&self, service: Service) -> Option<Health> {
        self.healths.of(service)
    }

    /// How long it has been there, without the time in which the machine was suspended.
    pub fn uptime(&self) -> Duration {
        self.clock.timer_now().saturating_duration_since(self.started)
    }
}
