//! Metrics whose values other parts of the gateway have: what is in use, the queues before upstream, the memory budget
//! and the log. They are read when metrics are shown, so that they cost nothing otherwise.

use std::collections::BTreeMap;
use std::sync::Arc;

use prometheus::{IntCounter, IntGauge, IntGaugeVec};
use strum::VariantArray;

use super::logs;
use super::metrics::Metrics;
use crate::budget::{Budget, Purpose};
use crate::cache::store::StoreUsage;

/// What the store, the grants and the flights hold at a moment.
pub struct InUse {
    pub store: StoreUsage,
    pub grants: usize,
    /// Requests that wait for a flight that another one began.
    pub waiting: usize,
    pub is_bypassing: bool,
}

/// The calls of one kind, of one class of callers, to one service at a moment. Several of these are added up.
pub struct QueueUsage {
    pub kind: &'static str,
    pub service: &'static str,
    pub class: &'static str,
    /// Calls that have a call slot.
    pub under_way: usize,
    /// Calls that wait for one.
    pub queued: usize,
}

impl Metrics {
    pub fn watch(&self, usage: impl Fn() -> InUse + Send + Sync + 'static) {
        self.add_source(move |metrics| {
            let InUse { store, grants, waiting, is_bypassing } = usage();
            set(&metrics.entries, store.entries);
            set(&metrics.entries_bytes, store.bytes);
            set(&metrics.uncacheable_keys, store.uncacheable);
            set(&metrics.private_scopes, store.private_scopes);
            set(&metrics.grants, grants);
            set(&metrics.coalesced_waiters, waiting);
            set(&metrics.bypassing, u8::from(is_bypassing));
            raise(&metrics.log_lines_dropped, logs::dropped());
        });
    }

    pub fn watch_queues(&self, usage: impl Fn() -> Vec<QueueUsage> + Send + Sync + 'static) {
        self.add_source(move |metrics| {
            let usage = usage();
            set_sums(&metrics.upstream_calls, usage.iter().map(|it| ([it.service, it.kind], it.under_way)));
            set_sums(&metrics.upstream_calls_queued, usage.iter().map(|it| ([it.service, it.kind], it.queued)));
            set_sums(&metrics.upstream_calls_by_class, usage.iter().map(|it| ([it.kind, it.class], it.under_way)));
            set_sums(&metrics.upstream_calls_queued_by_class, usage.iter().map(|it| ([it.kind, it.class], it.queued)));
        });
    }

    pub fn watch_budget(&self, budget: Arc<Budget>) {
        self.add_source(move |metrics| {
            set(&metrics.memory_budget_bytes, budget.limit());
            for &purpose in Purpose::VARIANTS {
                let used = metrics.memory_used_bytes.with_label_values(&[purpose.into_str()]);
                set(&used, budget.used_for(purpose));
            }
            raise(&metrics.memory_refusals, budget.refused() as u64);
        });
    }
}

fn set(gauge: &IntGauge, value: impl TryInto<i64>) {
    gauge.set(value.try_into().unwrap_or(i64::MAX));
}

/// Sets each series to the sum of the values that have its labels.
fn set_sums(gauges: &IntGaugeVec, values: impl Iterator<Item = ([&'static str; 2], usize)>) {
    let mut sums: BTreeMap<_, usize> = BTreeMap::new();
    values.for_each(|(labels, value)| *sums.entry(labels).or_default() += value);
    sums.into_iter().for_each(|(labels, sum)| set(&gauges.with_label_values(&labels), sum));
}

/// Raises a counter to a total.
fn raise(counter: &IntCounter, total: u64) {
    counter.inc_by(total.saturating_sub(counter.get()));
}
