//! Counts one call to upstream, in whatever way it ends.

use std::time::Duration;

use http::StatusCode;

use super::metrics::Metrics;
use super::status::status_label;
use super::traces::CallSpan;
use crate::catalogue::Service;
use crate::upstream::Failure;

impl Metrics {
    /// Begins a call. `span` is its span, if that is exported.
    pub(crate) fn upstream_call(&self, service: Service, span: Option<CallSpan>) -> UpstreamCall<'_> {
        self.upstream_in_flight.with_label_values(&[service.as_str()]).inc();
        UpstreamCall { metrics: self, service, span, ended: false }
    }
}

/// A call to upstream that has no answer yet.
pub(crate) struct UpstreamCall<'m> {
    metrics: &'m Metrics,
    service: Service,
    span: Option<CallSpan>,
    ended: bool,
}

impl UpstreamCall<'_> {
    pub(crate) fn ended(mut self, result: Result<StatusCode, Failure>, took: Duration) {
        self.ended = true;
        let service = self.service.as_str();
        self.count(result.map_or_else(Into::into, status_label));
        self.metrics.upstream_durations.with_label_values(&[service]).observe(took.as_secs_f64());
        if let Some(span) = self.span.take() {
            span.ended(result);
        }
    }

    fn count(&self, status: &'static str) {
        self.metrics.upstream_requests.with_label_values(&[self.service.as_str(), status]).inc();
    }
}

impl Drop for UpstreamCall<'_> {
    fn drop(&mut self) {
        if !self.ended {
            self.count("abandoned");
        }
        self.metrics.upstream_in_flight.with_label_values(&[self.service.as_str()]).dec();
    }
}
