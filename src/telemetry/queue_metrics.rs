//! The gauges of the queues before upstream, read when Prometheus asks.

use std::collections::BTreeMap;

use prometheus::core::{Collector, Desc};
use prometheus::proto::MetricFamily;
use prometheus::{IntGaugeVec, Opts};

use super::metrics::Metrics;

/// The calls of one kind, of one class of callers, to one service at a moment. What there are several of is added up.
pub struct QueueUsage {
    /// What kind of calls.
    pub kind: &'static str,
    /// To which service.
    pub service: &'static str,
    /// Of which class of callers.
    pub class: &'static str,
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
    pub fn watch_queues(&self, read: impl Fn() -> Vec<QueueUsage> + Send + Sync + 'static) -> prometheus::Result<()> {
        let gauges = |name, help, labels: [&str; 2]| IntGaugeVec::new(Opts::new(name, help), &labels);
        let calls = gauges(
            "workspace_gateway_upstream_calls",
            "Calls to upstream that are not over; of kind `relay`, until their answer's body ends. Near \
             upstream.max_calls, others wait for their turn.",
            ["service", "kind"],
        )?;
        let queued = gauges(
            "workspace_gateway_upstream_calls_queued",
            "Calls to upstream that wait for their turn. A rise: upstream is slower, one caller asks for more than \
             upstream.max_calls_per_caller at a time, or callers that no product list has proved for more than half of \
             upstream.max_calls.",
            ["service", "kind"],
        )?;
        let calls_by_class = gauges(
            "workspace_gateway_upstream_calls_by_class",
            "Calls to upstream that are not over, by the class of their caller: `proved`, `relayed` (answered well otherwise) \
             or `unknown`, or `half-closed` if the client has closed its sending side. A rise of `unknown`: invented or \
             expired tokens, or requests without a credential.",
            ["kind", "class"],
        )?;
        let queued_by_class = gauges(
            "workspace_gateway_upstream_calls_queued_by_class",
            "Calls to upstream that wait for their turn, by the class of their caller. A rise of `proved`: upstream.max_calls \
             is too low, or upstream too slow, for the callers that there are.",
            ["kind", "class"],
        )?;
        self.register(Box::new(QueueMetrics { gauges: [calls, queued, calls_by_class, queued_by_class], read }))
    }
}

struct QueueMetrics<F> {
    /// Calls and queued calls by service, and both by class.
    gauges: [IntGaugeVec; 4],
    read: F,
}

impl<F: Fn() -> Vec<QueueUsage> + Send + Sync> Collector for QueueMetrics<F> {
    fn desc(&self) -> Vec<&Desc> {
        self.gauges.iter().flat_map(Collector::desc).collect()
    }

    fn collect(&self) -> Vec<MetricFamily> {
        let mut sums: BTreeMap<(usize, [&str; 2]), usize> = BTreeMap::new();
        for usage in (self.read)() {
            let (by_service, by_class) = ([usage.service, usage.kind], [usage.kind, usage.class]);
            for (gauge, labels) in [by_service, by_service, by_class, by_class].into_iter().enumerate() {
                *sums.entry((gauge, labels)).or_default() +=
                    if gauge % 2 == 0 { usage.under_way } else { usage.queued };
            }
        }
        for ((gauge, labels), calls) in sums {
            self.gauges[gauge].with_label_values(&labels).set(i64::try_from(calls).unwrap_or(i64::MAX));
        }
        self.gauges.iter().flat_map(Collector::collect).collect()
    }
}
