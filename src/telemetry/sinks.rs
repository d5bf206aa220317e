//! Where completed requests go: to the metrics and to the access log.

use std::sync::Arc;

use super::access_log;
use super::completed::CompletedRequest;
use super::metrics::Metrics;
use super::requests::HitSeries;

pub struct Sinks {
    metrics: Arc<Metrics>,
}

impl Sinks {
    pub fn new(metrics: Arc<Metrics>) -> Self {
        Self { metrics }
    }

    pub(crate) fn metrics(&self) -> &Metrics {
        &self.metrics
    }

    /// Whether a sink needs the description of a request that begins now.
    pub(crate) fn need_description(&self) -> bool {
        access_log::is_on()
    }

    pub(super) fn begin(&self) {
        self.metrics.in_flight.inc();
    }

    /// `series` count a hit on the fast path.
    pub(super) fn end(&self, request: &CompletedRequest<'_>, series: Option<&HitSeries>) {
        self.metrics.completed(request, series);
        access_log::write(request);
    }
}
