//! The figures of the memory budget, read when Prometheus asks.

use std::sync::Arc;

use prometheus::core::{Collector, Desc};
use prometheus::proto::MetricFamily;
use prometheus::{IntCounter, IntGauge, IntGaugeVec, Opts};
use strum::VariantArray;

use super::metrics::Metrics;
use crate::budget::{Budget, Purpose};

impl Metrics {
    /// Adds the figures of a budget.
    ///
    /// # Errors
    /// If they were added before.
    pub fn watch_budget(&self, budget: Arc<Budget>) -> prometheus::Result<()> {
        let limit = IntGauge::new(
            "workspace_gateway_memory_budget_bytes",
            "Bytes that the gateway holds for clients at most, the cache apart: limits.memory, or what follows from the \
             memory limit of its cgroup. A rise: the settings have changed.",
        )?;
        let used = IntGaugeVec::new(
            Opts::new(
                "workspace_gateway_memory_used_bytes",
                "Bytes of the memory budget that are in use, by purpose. Near workspace_gateway_memory_budget_bytes, \
                 connections are closed and requests are refused.",
            ),
            &["purpose"],
        )?;
        let refused = IntCounter::new(
            "workspace_gateway_memory_refusals_total",
            "Times that the memory budget had no room. A rise: clients send or leave unread more than the gateway may \
             hold; look at workspace_gateway_memory_used_bytes for what.",
        )?;
        self.register(Box::new(BudgetUsage { budget, limit, used, refused }))
    }
}

struct BudgetUsage {
    budget: Arc<Budget>,
    limit: IntGauge,
    used: IntGaugeVec,
    refused: IntCounter,
}

impl Collector for BudgetUsage {
    fn desc(&self) -> Vec<&Desc> {
        let mut desc = self.limit.desc();
        desc.extend(self.used.desc());
        desc.extend(self.refused.desc());
        desc
    }

    fn collect(&self) -> Vec<MetricFamily> {
        let bytes = |bytes| i64::try_from(bytes).unwrap_or(i64::MAX);
        self.limit.set(bytes(self.budget.limit()));
        for &purpose in Purpose::VARIANTS {
            self.used.with_label_values(&[purpose.into_str()]).set(bytes(self.budget.used_for(purpose)));
        }
        let news = (self.budget.refused() as u64).saturating_sub(self.refused.get());
        self.refused.inc_by(news);
        let mut families = self.limit.collect();
        families.extend(self.used.collect());
        families.extend(self.refused.collect());
        families
    }
}
