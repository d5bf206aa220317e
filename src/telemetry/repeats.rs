//! Hits whose head had come before, counted in series that are looked up once, when the head is remembered.

use std::time::Duration;

use http::StatusCode;
use prometheus::{Histogram, IntCounter};

use super::metrics::Metrics;
use super::outcome::Outcome;
use super::status::status_label;

/// Counts those of all operations.
pub struct Repeats(IntCounter);

/// Counts those of one operation.
pub struct Series {
    repeats: IntCounter,
    requests: IntCounter,
    durations: Histogram,
}

impl Repeats {
    /// None so far.
    ///
    /// # Errors
    /// If they are counted there already.
    pub fn new(metrics: &Metrics) -> prometheus::Result<Self> {
        let repeats = IntCounter::new(
            "workspace_gateway_repeated_hits_total",
            "Hits that cost least: their head had come before, byte for byte, and was not read again. A rise: clients \
             that repeat themselves. Far fewer than all hits: they put something else into each request (a date, a \
             trace, an id), or speak HTTP/2.",
        )?;
        metrics.register(Box::new(repeats.clone()))?;
        Ok(Self(repeats))
    }

    /// The series of an operation.
    pub fn of(&self, metrics: &Metrics, operation: &str) -> Series {
        let (hit, ok) = (Outcome::Hit.as_str(), status_label(StatusCode::OK));
        Series {
            repeats: self.0.clone(),
            requests: metrics.requests.with_label_values(&[operation, hit, ok]),
            durations: metrics.durations.with_label_values(&[operation, hit]),
        }
    }
}

impl Series {
    /// Counts one that is over.
    pub(super) fn count(&self, took: Duration) {
        self.repeats.inc();
        self.requests.inc();
        self.durations.observe(took.as_secs_f64());
    }
}
