//! Counts completed requests. The series of hits are looked up once for each operation, so that a hit does no look-up by
//! label.

use std::sync::OnceLock;
use std::time::Duration;

use http::StatusCode;
use prometheus::{Histogram, IntCounter};

use super::completed::CompletedRequest;
use super::metrics::Metrics;
use super::outcome::Outcome;
use super::status::status_label;
use crate::catalogue::Operation;

/// The series that count the hits of one operation.
pub struct HitSeries {
    requests: IntCounter,
    /// The requests that got a 304. Looked up with the first one, because the metrics must not show a series without
    /// requests.
    not_modified: OnceLock<IntCounter>,
    durations: Histogram,
}

impl HitSeries {
    pub fn new(metrics: &Metrics, operation: &Operation) -> Self {
        Self {
            requests: requests(metrics, &operation.name, StatusCode::OK),
            not_modified: OnceLock::new(),
            durations: metrics.durations.with_label_values(&[&operation.name, Outcome::Hit.into_str()]),
        }
    }

    /// Counts a hit whose response has ended. Its status is 200 or 304.
    pub(super) fn count(&self, metrics: &Metrics, operation: &str, status: Option<StatusCode>, took: Duration) {
        let not_modified = || requests(metrics, operation, StatusCode::NOT_MODIFIED);
        match status {
            Some(StatusCode::NOT_MODIFIED) => self.not_modified.get_or_init(not_modified).inc(),
            _ => self.requests.inc(),
        }
        self.durations.observe(took.as_secs_f64());
    }
}

impl Metrics {
    /// Counts a completed request.
    pub(super) fn completed(&self, request: &CompletedRequest<'_>, series: Option<&HitSeries>) {
        self.in_flight.dec();
        let CompletedRequest { operation, outcome, miss, status, took, .. } = *request;
        if let Some(miss) = miss {
            self.misses.with_label_values(&[operation, miss.into_str()]).inc();
        }
        if let Some(series) = series {
            return series.count(self, operation, status, took);
        }
        self.request(operation, outcome, status, took);
    }

    pub(super) fn request(&self, operation: &str, outcome: Outcome, status: Option<StatusCode>, took: Duration) {
        let (result, status) = (outcome.into_str(), status.map_or("none", status_label));
        self.requests.with_label_values(&[operation, result, status]).inc();
        self.durations.with_label_values(&[operation, result]).observe(took.as_secs_f64());
    }
}

fn requests(metrics: &Metrics, operation: &str, status: StatusCode) -> IntCounter {
    metrics.requests.with_label_values(&[operation, Outcome::Hit.into_str(), status_label(status)])
}
