//! Where completed requests go: to the metrics, their exemplars, the access log, and as spans to the exporter.

use std::sync::Arc;

use super::access_log;
use super::completed::CompletedRequest;
use super::metrics::Metrics;
use super::requests::HitSeries;
use super::traces::Tracer;
use crate::clock::Clock;

pub struct Sinks {
    metrics: Arc<Metrics>,
    /// `None` if no spans are exported.
    tracer: Option<Arc<Tracer>>,
    clock: Clock,
}

impl Sinks {
    pub(crate) fn new(metrics: Arc<Metrics>, tracer: Option<Arc<Tracer>>, clock: Clock) -> Self {
        Self { metrics, tracer, clock }
    }

    pub(crate) fn metrics(&self) -> &Metrics {
        &self.metrics
    }

    pub(crate) fn tracer(&self) -> Option<&Arc<Tracer>> {
        self.tracer.as_ref()
    }

    /// Whether a sink needs the description of each request that begins now. The exporter needs those of some.
    pub(super) fn need_description(&self) -> bool {
        access_log::is_on() || self.metrics.exemplars.are_wanted()
    }

    /// Whether a sink may need the description of a request.
    pub(crate) fn may_need_description(&self) -> bool {
        self.need_description() || self.tracer.is_some()
    }

    pub(super) fn begin(&self) {
        self.metrics.in_flight.inc();
    }

    /// `series` count a hit on the fast path.
    pub(super) fn end(&self, request: &CompletedRequest<'_>, series: Option<&HitSeries>) {
        self.metrics.completed(request, series);
        self.metrics.exemplars.keep(request, || self.clock.date());
        access_log::write(request);
        if let Some(tracer) = &self.tracer {
            tracer.completed(request);
        }
    }
}
