//! When the share of stale answers is estimated, and who sees it. `cache/staleness.rs` makes the estimate.
//!
//! An estimate must not be made on a thread of the async runtime, nor while metrics are written: they show the last
//! one that is finished.

use std::sync::{Arc, Weak};

use super::Gateway;
use crate::cache::staleness::{EstimateUse, OperationStaleness};
use crate::catalogue::Operation;
use crate::telemetry::sources::StalenessMetrics;

impl Gateway {
    /// What is known about each operation, with the ttl in force (before `ttl_jitter`). It starts new estimates of those
    /// that are older than a minute. They are seen by the next call.
    pub fn staleness(&self) -> Vec<(Arc<Operation>, OperationStaleness)> {
        let (active, staleness, now) = (self.active(), self.memory.store.staleness(), self.clock.now());
        let known = |operation: &Arc<Operation>| (Arc::clone(operation), staleness.of_operation(operation, now));
        let operations = active.catalogue.operations();
        self.refresh_each(operations, EstimateUse::Display);
        operations.iter().map(known).collect()
    }

    /// Makes a new estimate of each operation, unless the last one is younger than a minute. It blocks the thread: for
    /// tests.
    pub fn estimate_staleness(&self) {
        let (active, now) = (self.active(), self.clock.now());
        let operations = active.catalogue.operations();
        operations.iter().for_each(|operation| self.memory.store.staleness().refresh(operation, now));
    }

    /// Starts an estimate of an operation if the last one is older than a minute, or than ten minutes if its ttl does
    /// not depend on it.
    pub(super) fn refresh_staleness(&self, operation: &Arc<Operation>) {
        self.refresh_each(std::slice::from_ref(operation), EstimateUse::Fetch);
    }

    /// Starts the estimates that are due. They are made one after another in a thread for blocking work.
    fn refresh_each(&self, operations: &[Arc<Operation>], estimate_use: EstimateUse) {
        // Without a runtime, there are no requests either.
        if tokio::runtime::Handle::try_current().is_err() {
            return;
        }
        let (store, now) = (&self.memory.store, self.clock.now());
        let is_due = |operation: &&Arc<Operation>| store.staleness().begin_refresh(operation, estimate_use, now);
        let due: Vec<_> = operations.iter().filter(is_due).cloned().collect();
        if !due.is_empty() {
            let store = Arc::clone(store);
            let refresh = move || due.iter().for_each(|operation| store.staleness().refresh(operation, now));
            drop(self.machine.workers.run(refresh));
        }
    }

    /// Shows the estimates in the metrics.
    pub(super) fn watch_staleness(self: &Arc<Self>) {
        let gateway: Weak<Self> = Arc::downgrade(self);
        self.observer.metrics.watch_staleness(move || {
            let known = gateway.upgrade().map(|gateway| gateway.staleness()).unwrap_or_default();
            let shown = |(operation, known): (Arc<Operation>, OperationStaleness)| StalenessMetrics {
                operation: Arc::clone(&operation.name),
                answers: known.all,
                ttl: known.ttl,
            };
            known.into_iter().map(shown).collect()
        });
    }
}
