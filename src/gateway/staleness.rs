//! When the share of stale answers is estimated, and who sees it. `cache/staleness.rs` makes the estimate.

use std::sync::{Arc, Weak};
use std::time::Duration;

use super::Gateway;
use crate::cache::staleness::OperationStaleness;
use crate::catalogue::Operation;
use crate::telemetry::sources::StalenessMetrics;

impl Gateway {
    /// What is known about each operation, and the ttl in force (before `ttl_jitter`). It makes an estimate if the last
    /// one is older than a minute, which usually takes milliseconds.
    pub fn staleness(&self) -> Vec<(Arc<Operation>, OperationStaleness, Duration)> {
        let (active, staleness, now) = (self.active(), self.memory.store.staleness(), self.clock.now());
        let known = |operation: &Arc<Operation>| {
            let known = staleness.of_operation(operation, now);
            (Arc::clone(operation), known, staleness.ttl(operation, now))
        };
        active.catalogue.operations().iter().map(known).collect()
    }

    /// Makes an estimate in a thread of its own if the last one is older than a minute. The chosen ttl depends on it.
    pub(super) fn refresh_staleness(self: &Arc<Self>, operation: &Arc<Operation>) {
        let now = self.clock.now();
        if self.memory.store.staleness().begin_refresh(operation, now) {
            let (store, operation) = (Arc::clone(&self.memory.store), Arc::clone(operation));
            tokio::task::spawn_blocking(move || store.staleness().refresh(&operation, now));
        }
    }

    /// Shows the estimates in the metrics.
    pub(super) fn watch_staleness(self: &Arc<Self>) {
        let gateway: Weak<Self> = Arc::downgrade(self);
        self.observer.metrics.watch_staleness(move || {
            let known = gateway.upgrade().map(|gateway| gateway.staleness()).unwrap_or_default();
            let shown = |(operation, known, ttl): (Arc<Operation>, OperationStaleness, Duration)| StalenessMetrics {
                operation: Arc::clone(&operation.name),
                answers: known.all,
                ttl,
            };
            known.into_iter().map(shown).collect()
        });
    }
}
