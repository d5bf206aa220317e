//! The gauges of what is in use, read when Prometheus asks.

use prometheus::IntGauge;
use prometheus::core::{Collector, Desc};
use prometheus::proto::MetricFamily;

use super::metrics::Metrics;
use crate::cache::store::StoreUsage;

impl Metrics {
    /// Adds the gauges of what is in use, which are read when Prometheus asks.
    ///
    /// # Errors
    /// If they were added before.
    pub fn watch(&self, usage: impl Fn() -> InUse + Send + Sync + 'static) -> prometheus::Result<()> {
        let gauges: Vec<(IntGauge, GaugeReader)> = vec![
            (
                IntGauge::new(
                    "workspace_gateway_entries",
                    "Entries in the cache, fresh or not. A rise: more different questions.",
                )?,
                |usage| usage.store.entries,
            ),
            (
                IntGauge::new(
                    "workspace_gateway_entries_bytes",
                    "Bytes that entries hold, estimated. Near cache.max_size, entries are evicted.",
                )?,
                |usage| usage.store.bytes,
            ),
            (
                IntGauge::new(
                    "workspace_gateway_uncacheable_keys",
                    "Questions whose answers could not be kept lately, so that nobody waits for another's. A rise: \
                     see workspace_gateway_unstored_responses_total.",
                )?,
                |usage| usage.store.uncacheable,
            ),
            (
                IntGauge::new(
                    "workspace_gateway_private_scopes",
                    "Operations in a project in which nothing is shared, because callers were given different answers \
                     to one question; an operation that is private in all projects counts once. Anything but 0: set sharing = \"caller\" for the operation, or find out why.",
                )?,
                |usage| usage.store.private_scopes as u64,
            ),
            (
                IntGauge::new(
                    "workspace_gateway_grants",
                    "Callers that may be answered from memory, each in one operation and project. Counted in steps, so \
                     grants that are used or made at that moment may be counted twice or not at all. Near half of \
                     grants.max_grants, the least recently used may have to be proved again.",
                )?,
                |usage| usage.grants as u64,
            ),
            (
                IntGauge::new(
                    "workspace_gateway_coalesced_waiters",
                    "Requests that wait for an upstream call another request began. A rise: a stampede that upstream \
                     is spared.",
                )?,
                |usage| usage.waiting as u64,
            ),
            (
                IntGauge::new(
                    "workspace_gateway_bypassing",
                    "Whether the cache is switched off (mode): 1, or 0. A rise: somebody has, and nothing is answered from \
                     memory until it is switched on again.",
                )?,
                |usage| u64::from(usage.is_bypassing),
            ),
        ];
        self.register(Box::new(InUseGauges { gauges, usage }))
    }
}

/// What is in use at a moment.
#[derive(Default)]
pub struct InUse {
    /// What is kept.
    pub store: StoreUsage,
    /// How many grants live.
    pub grants: usize,
    /// How many requests wait for a flight that another began.
    pub waiting: usize,
    /// Whether the cache is switched off.
    pub is_bypassing: bool,
}

/// What a gauge shows of what is in use.
type GaugeReader = fn(&InUse) -> u64;

/// The gauges of what is in use.
struct InUseGauges<F> {
    gauges: Vec<(IntGauge, GaugeReader)>,
    usage: F,
}

impl<F: Fn() -> InUse + Send + Sync> Collector for InUseGauges<F> {
    fn desc(&self) -> Vec<&Desc> {
        self.gauges.iter().flat_map(|(gauge, _)| gauge.desc()).collect()
    }

    fn collect(&self) -> Vec<MetricFamily> {
        let usage = (self.usage)();
        for (gauge, read) in &self.gauges {
            gauge.set(i64::try_from(read(&usage)).unwrap_or(i64::MAX));
        }
        self.gauges.iter().flat_map(|(gauge, _)| gauge.collect()).collect()
    }
}
