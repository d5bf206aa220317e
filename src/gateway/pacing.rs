//! What the gateway does with upstream's limits: it learns them from responses, reports changes, and tells clients when
//! to retry. The ledger itself is [`crate::upstream::quota`].

use std::time::Duration;

use http::header::{Entry, RETRY_AFTER};
use http::{HeaderValue, Response};

use super::fetcher::{Fetcher, seconds};
use super::observer::Observer;
use crate::cache::backoffs;
use crate::catalogue::QuotaPolicy;
use crate::clock::Clock;
use crate::telemetry::events::{Event, NewEvent};
use crate::upstream::gate::Permit;
use crate::upstream::quota::{Lesson, LimitChange};

/// Learns from what a response says of limits. Of its body only the beginning of a 429's counts. A changed limit may
/// release lists and relayed requests.
pub(super) fn learn<B: AsRef<[u8]>>(
    fetcher: &Fetcher,
    permit: &Permit,
    response: &Response<B>,
    observer: &Observer,
    clock: &Clock,
) {
    let retry_after = backoffs::unbounded_retry_after(response.headers(), clock.date());
    let (status, headers, body) = (response.status(), response.headers(), response.body().as_ref());
    let Lesson { changes, refused_by } = permit.learn((status, headers, body), retry_after);
    changes.iter().for_each(|change| observer.limit_changed(permit, change));
    if !changes.is_empty() {
        fetcher.limits_changed();
    }
    if let Some(policy) = refused_by {
        observer.metrics.quota_refused(policy, "upstream");
    }
}

/// How long upstream asks to wait, if it is longer than nothing.
pub(super) fn retry_after<B>(response: &Response<B>, clock: &Clock) -> Option<Duration> {
    backoffs::unbounded_retry_after(response.headers(), clock.date()).filter(|span| !span.is_zero())
}

/// Adds to a 429 without `Retry-After` when the limit allows the next call.
pub(super) fn add_retry_after<B>(response: &mut Response<B>, wait: Option<Duration>) {
    if let (Some(wait), Entry::Vacant(field)) = (wait, response.headers_mut().entry(RETRY_AFTER)) {
        field.insert(HeaderValue::from(seconds(wait)));
    }
}

impl Observer {
    /// Records that a limit has been learnt, has changed or has ended.
    fn limit_changed(&self, permit: &Permit, change: &LimitChange) {
        let service = permit.service();
        // Another call may have met a limit that has ended.
        let (what, policy, quota, operation) = match change {
            LimitChange::Learnt(policy, quota) => ("limits calls", policy, quota, permit.operation()),
            LimitChange::Changed(policy, quota) => ("has changed its limit", policy, quota, permit.operation()),
            LimitChange::Ended(policy, quota, operation) => {
                ("no longer limits calls", policy, quota, operation.as_ref())
            }
        };
        let operation = operation.filter(|_| *policy == QuotaPolicy::Api);
        let of = operation.map(|operation| format!(" of {operation}")).unwrap_or_default();
        let what = format!("{} {what}: policy {}{of}, {quota}", service.as_str(), policy.into_str());
        self.record_event(NewEvent::new(Event::Quota, what).at(service));
    }
}
