//! The series in which the hits of one operation are counted, looked up once.

use std::time::Duration;

use http::StatusCode;
use prometheus::{Histogram, IntCounter};

use super::metrics::Metrics;
use super::outcome::Outcome;
use super::status::status_label;
use crate::catalogue::Operation;

/// Counts the hits of one operation.
pub struct HitSeries {
    requests: IntCounter,
    durations: Histogram,
}

impl HitSeries {
    /// The series of an operation.
    pub fn new(metrics: &Metrics, operation: &Operation) -> Self {
        let (name, hit, ok) = (&*operation.name, Outcome::Hit.into_str(), status_label(StatusCode::OK));
        Self {
            requests: metrics.requests.with_label_values(&[name, hit, ok]),
            durations: metrics.durations.with_label_values(&[name, hit]),
        }
    }

    /// Counts one that is over.
    pub(super) fn count(&self, took: Duration) {
        self.requests.inc();
        self.durations.observe(took.as_secs_f64());
    }
}
