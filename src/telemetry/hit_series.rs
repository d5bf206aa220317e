//! The series that count the hits of one operation. They are looked up once, so that a hit does no look-up by label.

use std::time::Duration;

use http::StatusCode;
use prometheus::{Histogram, IntCounter};

use super::metrics::Metrics;
use super::outcome::Outcome;
use super::status::status_label;
use crate::catalogue::Operation;

pub struct HitSeries {
    requests: IntCounter,
    durations: Histogram,
}

impl HitSeries {
    pub fn new(metrics: &Metrics, operation: &Operation) -> Self {
        let (name, hit, ok) = (&*operation.name, Outcome::Hit.into_str(), status_label(StatusCode::OK));
        Self {
            requests: metrics.requests.with_label_values(&[name, hit, ok]),
            durations: metrics.durations.with_label_values(&[name, hit]),
        }
    }

    /// Counts a hit whose response has ended.
    pub(super) fn count(&self, took: Duration) {
        self.requests.inc();
        self.durations.observe(took.as_secs_f64());
    }
}
