//! How many calls the answers of each operation took.

use prometheus::{IntCounterVec, Opts};

use super::metrics::Metrics;
use crate::catalogue::Operation;

/// Counts them.
pub(crate) struct Fetches(IntCounterVec);

impl Fetches {
    /// None so far.
    ///
    /// # Errors
    /// If they are counted there already.
    pub(crate) fn new(metrics: &Metrics) -> prometheus::Result<Self> {
        let help = "Calls made for an operation's answers: to fill the cache, to ask for a stale answer again, and for \
                    callers without a grant; not what is forwarded as it is. Requests answered, less these, are the \
                    calls that upstream was spared. A rise: new questions or callers, entries evicted, or answers \
                    that can't be kept.";
        let fetches = IntCounterVec::new(Opts::new("workspace_gateway_fetches_total", help), &["operation"])?;
        metrics.register(Box::new(fetches.clone()))?;
        Ok(Self(fetches))
    }

    /// From zero on for these, so that the first one makes a rate.
    pub(crate) fn begin(&self, operations: &[std::sync::Arc<Operation>]) {
        operations.iter().for_each(|operation| drop(self.0.with_label_values(&[&*operation.name])));
    }

    /// Counts one.
    pub(crate) fn count(&self, operation: &Operation) {
        self.0.with_label_values(&[&*operation.name]).inc();
    }
}
