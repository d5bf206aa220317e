//! The gauges of the queues before upstream, read when Prometheus asks.

use prometheus::core::{Collector, Desc};
use prometheus::proto::MetricFamily;
use prometheus::{IntGaugeVec, Opts};

use super::metrics::Metrics;

/// The calls of one kind to one service at a moment.
pub struct Lane {
    /// What kind of calls.
    pub kind: &'static str,
    /// To which service.
    pub service: &'static str,
    /// How many have been let through and are not over.
    pub under_way: usize,
    /// How many wait for their turn.
    pub queued: usize,
}

impl Metrics {
    /// Adds the gauges of all lanes.
    ///
    /// # Errors
    /// If they were added before.
    pub fn watch_lanes(&self, read: impl Fn() -> Vec<Lane> + Send + Sync + 'static) -> prometheus::Result<()> {
        let gauges = |name, help| IntGaugeVec::new(Opts::new(name, help), &["service", "kind"]);
        let under_way = gauges(
            "workspace_gateway_upstream_calls",
            "Calls to upstream that are not over; of kind `relay`, until their answer's body ends. Near \
             upstream.max_calls, others wait for their turn.",
        )?;
        let queued = gauges(
            "workspace_gateway_upstream_calls_queued",
            "Calls to upstream that wait for their turn. A rise: upstream is slower, one caller asks for more than \
             upstream.max_calls_per_caller at a time, or callers without a grant for more than half of \
             upstream.max_calls.",
        )?;
        self.register(Box::new(Lanes { under_way, queued, read }))
    }
}

struct Lanes<F> {
    under_way: IntGaugeVec,
    queued: IntGaugeVec,
    read: F,
}

impl<F: Fn() -> Vec<Lane> + Send + Sync> Collector for Lanes<F> {
    fn desc(&self) -> Vec<&Desc> {
        [&self.under_way, &self.queued].into_iter().flat_map(Collector::desc).collect()
    }

    fn collect(&self) -> Vec<MetricFamily> {
        for lane in (self.read)() {
            let labels = [lane.service, lane.kind];
            let value = |calls| i64::try_from(calls).unwrap_or(i64::MAX);
            self.under_way.with_label_values(&labels).set(value(lane.under_way));
            self.queued.with_label_values(&labels).set(value(lane.queued));
        }
        [&self.under_way, &self.queued].into_iter().flat_map(Collector::collect).collect()
    }
}
