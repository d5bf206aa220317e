//! Hits whose head had come before, counted in series that are looked up once, when the head is remembered.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use http::StatusCode;
use prometheus::{Histogram, IntCounter};

use super::metrics::Metrics;
use super::outcome::Outcome;
use super::status::status_label;
use crate::catalogue::Operation;

/// Counts those of all operations.
pub struct Repeats {
    repeats: IntCounter,
    /// By operation.
    series: Mutex<HashMap<Arc<str>, Arc<Series>>>,
}

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
        Ok(Self { repeats, series: Mutex::default() })
    }

    /// The series of an operation.
    pub fn of(&self, metrics: &Metrics, operation: &Operation) -> Arc<Series> {
        let mut known = self.series.lock().unwrap_or_else(PoisonError::into_inner);
        let (name, hit, ok) = (&operation.name, Outcome::Hit.as_str(), status_label(StatusCode::OK));
        if let Some(series) = known.get(name) {
            return Arc::clone(series);
        }
        let series = Arc::new(Series {
            repeats: self.repeats.clone(),
            requests: metrics.requests.with_label_values(&[name, hit, ok]),
            durations: metrics.durations.with_label_values(&[name, hit]),
        });
        known.insert(Arc::clone(name), Arc::clone(&series));
        series
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
