//! What the fast path counts: its hits, and in series that are looked up once, what is counted of every hit.

use std::collections::HashMap;
use std::sync::Arc;

use prometheus::IntCounter;

use crate::catalogue::Operation;
use crate::sync::Mutex;
use crate::telemetry::hit_series::HitSeries;
use crate::telemetry::metrics::Metrics;

/// Counts the hits of the fast path.
pub(super) struct FastPathMetrics {
    hits: IntCounter,
    /// By operation.
    series: Mutex<HashMap<Arc<str>, Arc<HitSeries>>>,
}

impl FastPathMetrics {
    /// None so far.
    ///
    /// # Errors
    /// If they are counted there already.
    pub(super) fn new(metrics: &Metrics) -> prometheus::Result<Self> {
        let hits = IntCounter::new(
            "workspace_gateway_fast_path_hits_total",
            "Hits on the fast path: HTTP/1 requests whose head had come before, byte for byte, so that it was not read \
             again. They are counted as hits in workspace_gateway_requests_total, too. A rise: clients that repeat \
             themselves. Far fewer than all hits: clients put something else into each request (a date, a trace, an \
             id), speak HTTP/2, or listen.fast_path is false.",
        )?;
        metrics.register(Box::new(hits.clone()))?;
        Ok(Self { hits, series: Mutex::default() })
    }

    /// Counts a hit.
    pub(super) fn hit(&self) {
        self.hits.inc();
    }

    /// The series of an operation.
    pub(super) fn series(&self, metrics: &Metrics, operation: &Operation) -> Arc<HitSeries> {
        let mut known = self.series.lock();
        if let Some(series) = known.get(&operation.name) {
            return Arc::clone(series);
        }
        let series = Arc::new(HitSeries::new(metrics, operation));
        known.insert(Arc::clone(&operation.name), Arc::clone(&series));
        series
    }
}
