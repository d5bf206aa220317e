//! The metrics of the fast path: its own counter, and the series of each operation, which are looked up only once.

use std::collections::HashMap;
use std::sync::Arc;

use prometheus::IntCounter;

use crate::catalogue::Operation;
use crate::sync::Mutex;
use crate::telemetry::metrics::Metrics;
use crate::telemetry::requests::HitSeries;

pub(super) struct FastPathMetrics {
    hits: IntCounter,
    /// By operation.
    series: Mutex<HashMap<Arc<str>, Arc<HitSeries>>>,
}

impl FastPathMetrics {
    pub(super) fn new(metrics: &Metrics) -> Self {
        Self { hits: metrics.fast_path_hits.clone(), series: Mutex::default() }
    }

    pub(super) fn hit(&self) {
        self.hits.inc();
    }

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
