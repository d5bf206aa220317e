//! Metrics whose values other parts of the gateway have: what is in use, the queues before upstream, the memory budget
//! and the log. They are read when metrics are shown, so that they cost nothing otherwise.

use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use prometheus::{IntCounter, IntGauge, IntGaugeVec};
use strum::VariantArray;

use super::conditions::{Cause, Condition, Severity};
use super::logs;
use super::metrics::Metrics;
use crate::budget::{Budget, Purpose};
use crate::cache::staleness::{Answers, StaleAnswers};
use crate::cache::store::StoreUsage;
use crate::catalogue::QuotaPolicy;
use crate::sync::Mutex;

/// What the store, the grants and the flights hold at a moment.
pub struct InUse {
    pub store: StoreUsage,
    pub grants: usize,
    /// Requests that wait for a flight that another one began.
    pub waiting: usize,
    pub is_bypassing: bool,
    pub fleet: Option<FleetGauges>,
}

/// The state of the engine of a fleet.
pub struct FleetGauges {
    /// Whether it is not in use.
    pub is_lost: bool,
    /// How many notices it has not received.
    pub to_tell: usize,
    pub is_in_sync: bool,
    /// For how long this gateway has not been in sync.
    pub sync_age: Duration,
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

/// The limits of one policy of a service.
pub struct QuotaUsage {
    pub service: &'static str,
    pub policy: QuotaPolicy,
    /// The calls that upstream accepts in a window. `None` if no limit is known.
    pub calls: Option<u32>,
    /// The calls that may be sent now, of the limit with the fewest.
    pub remaining: Option<u32>,
    /// The calls that limits hold back.
    pub waiting: usize,
}

/// What is known about the answers of an operation, and its ttl in force.
pub struct StalenessMetrics {
    pub operation: Arc<str>,
    pub answers: Answers,
    pub ttl: Duration,
}

impl Metrics {
    pub fn watch(&self, usage: impl Fn() -> InUse + Send + Sync + 'static) {
        self.add_source(move |metrics| {
            let InUse { store, grants, waiting, is_bypassing, fleet } = usage();
            set(&metrics.entries, store.entries);
            set(&metrics.entries_bytes, store.bytes);
            set(&metrics.uncacheable_keys, store.uncacheable);
            set(&metrics.private_scopes, store.private_scopes);
            set(&metrics.grants, grants);
            set(&metrics.coalesced_waiters, waiting);
            set(&metrics.bypassing, u8::from(is_bypassing));
            if let Some(FleetGauges { is_lost, to_tell, is_in_sync, sync_age }) = fleet {
                set(&metrics.fleet_lost, u8::from(is_lost));
                set(&metrics.fleet_to_tell, to_tell);
                set(&metrics.fleet_in_sync, u8::from(is_in_sync));
                metrics.fleet_sync_age.set(sync_age.as_secs_f64());
            }
            raise(&metrics.log_lines_dropped, logs::dropped());
        });
    }

    /// There is a series for each cause and severity, so that none appears or vanishes.
    pub(crate) fn watch_conditions(&self, conditions: impl Fn() -> Vec<Condition> + Send + Sync + 'static) {
        self.add_source(move |metrics| {
            let conditions = conditions();
            for (&cause, &severity) in Cause::VARIANTS
                .iter()
                .flat_map(|cause| Severity::VARIANTS.iter().map(move |severity| (cause, severity)))
            {
                let is_present = conditions.iter().any(|it| (it.cause, it.severity) == (cause, severity));
                let gauge = metrics.condition.with_label_values(&[cause.into_str(), severity.into_str()]);
                set(&gauge, u8::from(is_present));
            }
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

    pub fn watch_quotas(&self, usage: impl Fn() -> Vec<QuotaUsage> + Send + Sync + 'static) {
        self.add_source(move |metrics| {
            for QuotaUsage { service, policy, calls, remaining, waiting } in usage() {
                let labels = [service, policy.into_str()];
                for (gauge, value) in [(&metrics.quota_calls, calls), (&metrics.quota_remaining, remaining)] {
                    gauge.with_label_values(&labels).set(value.map_or(f64::NAN, f64::from));
                }
                set(&metrics.quota_waiting.with_label_values(&labels), waiting);
            }
        });
    }

    /// The values are those of the last finished estimate: NaN before the first one. Showing metrics may start a new
    /// estimate, which the next call shows.
    pub fn watch_staleness(&self, known: impl Fn() -> Vec<StalenessMetrics> + Send + Sync + 'static) {
        let shown: Mutex<HashSet<Arc<str>>> = Mutex::default();
        self.add_source(move |metrics| {
            let (known, mut shown) = (known(), shown.lock());
            let families = [
                &metrics.stale_answers_ratio,
                &metrics.stale_answers_ratio_lower,
                &metrics.stale_answers_ratio_upper,
                &metrics.changes_per_hour,
                &metrics.ttl_seconds,
            ];
            // A reload may have removed operations.
            shown.retain(|name| {
                let stays = known.iter().any(|known| known.operation == *name);
                if !stays {
                    // This fails only if there is no such series.
                    families.iter().for_each(|family| drop(family.remove_label_values(&[&**name])));
                }
                stays
            });
            for StalenessMetrics { operation, answers, ttl } in known {
                let of_stale = |of: fn(StaleAnswers) -> f64| answers.stale.map_or(f64::NAN, of);
                let values = [
                    of_stale(|stale| stale.ratio),
                    of_stale(|stale| stale.lower),
                    of_stale(|stale| stale.upper),
                    answers.changes_per_hour.unwrap_or(f64::NAN),
                    ttl.as_secs_f64(),
                ];
                for (family, value) in families.iter().zip(values) {
                    family.with_label_values(&[&*operation]).set(value);
                }
                shown.insert(operation);
            }
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
