//! Where completed requests go: to the metrics and their exemplars, to the counts of their callers, to the access log, to
//! the live tail, and as spans to the exporter.

use std::sync::Arc;

use super::access_log;
use super::callers::{CallerCounts, CallerTable};
use super::completed::CompletedRequest;
use super::metrics::Metrics;
use super::requests::HitSeries;
use super::tail::Tail;
use super::traces::Tracer;
use crate::clock::Clock;

pub struct Sinks {
    metrics: Arc<Metrics>,
    callers: CallerTable,
    tail: Arc<Tail>,
    /// `None` if no spans are exported.
    tracer: Option<Arc<Tracer>>,
    clock: Clock,
}

impl Sinks {
    pub(crate) fn new(metrics: Arc<Metrics>, tracer: Option<Arc<Tracer>>, clock: Clock) -> Self {
        let (callers, tail) = (CallerTable::new(clock.timer_now()), Arc::new(Tail::new(clock.clone())));
        Self { metrics, callers, tail, tracer, clock }
    }

    pub(crate) fn metrics(&self) -> &Metrics {
        &self.metrics
    }

    pub(crate) fn callers(&self) -> &CallerTable {
        &self.callers
    }

    pub(crate) fn tail(&self) -> &Arc<Tail> {
        &self.tail
    }

    pub(crate) fn tracer(&self) -> Option<&Arc<Tracer>> {
        self.tracer.as_ref()
    }

    /// Whether a sink needs the description of each request that begins now.
    pub(super) fn describe_all(&self) -> bool {
        access_log::is_on() || self.tail.is_read()
    }

    /// Whether a sink needs the description of a request that is sampled.
    pub(super) fn describe_sampled(&self) -> bool {
        self.metrics.exemplars.are_wanted() || self.tracer.is_some()
    }

    /// Whether a sink may need the description of a request.
    pub(crate) fn may_need_description(&self) -> bool {
        self.describe_all() || self.describe_sampled()
    }

    pub(super) fn begin(&self) {
        self.metrics.in_flight.inc();
    }

    /// `series` count a hit on the fast path.
    pub(super) fn end(
        &self,
        request: &CompletedRequest<'_>,
        series: Option<&HitSeries>,
        caller: Option<&CallerCounts>,
    ) {
        self.metrics.completed(request, series);
        self.metrics.exemplars.keep(request, || self.clock.date());
        if let Some(caller) = caller {
            self.callers.count(caller, request);
        }
        access_log::write(request);
        self.tail.send(request);
        if let Some(tracer) = &self.tracer {
            tracer.completed(request);
        }
    }
}
