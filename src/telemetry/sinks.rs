//! Where completed requests go: to the metrics and their exemplars, to the counts of their callers, to the access log and to
//! the live tail.

use std::sync::Arc;

use super::access_log;
use super::callers::{CallerCounts, CallerTable};
use super::completed::CompletedRequest;
use super::metrics::Metrics;
use super::requests::HitSeries;
use super::tail::Tail;
use crate::clock::Clock;

pub struct Sinks {
    metrics: Arc<Metrics>,
    callers: CallerTable,
    tail: Arc<Tail>,
    clock: Clock,
}

impl Sinks {
    pub fn new(metrics: Arc<Metrics>, clock: Clock) -> Self {
        let (callers, tail) = (CallerTable::new(clock.timer_now()), Arc::new(Tail::new(clock.clone())));
        Self { metrics, callers, tail, clock }
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

    /// Whether a sink needs the description of a request that begins now.
    pub(crate) fn need_description(&self) -> bool {
        access_log::is_on() || self.metrics.exemplars.are_wanted() || self.tail.is_read()
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
    }
}
