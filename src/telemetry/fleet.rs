//! Counts what is done with the engine of a fleet.

use std::time::Duration;

use super::metrics::Metrics;
use super::outcome::ClaimResult;
use crate::cache::second_tier::{NoticeKind, RecordKind};
use crate::fleet::{Fault, LookUpResult, StoreResult, TellResult};

impl Metrics {
    /// Counts a look-up in the engine.
    pub(crate) fn fleet_looked_up(&self, result: LookUpResult, took: Duration) {
        self.fleet_lookups.with_label_values(&[result.into_str()]).inc();
        if result != LookUpResult::Skipped {
            self.fleet_lookup_durations.with_label_values(&[result.into_str()]).observe(took.as_secs_f64());
        }
    }

    /// Counts a record for the engine.
    pub(crate) fn fleet_stored(&self, kind: RecordKind, result: StoreResult) {
        self.fleet_stores.with_label_values(&[kind.into_str(), result.into_str()]).inc();
    }

    /// Counts a notice for other gateways.
    pub(crate) fn fleet_told(&self, kind: NoticeKind, result: TellResult) {
        self.fleet_told.with_label_values(&[kind.into_str(), result.into_str()]).inc();
    }

    /// Counts a loss of notices.
    pub(crate) fn fleet_missed(&self) {
        self.fleet_missed.inc();
    }

    /// Counts a link to the engine that has ended.
    pub(crate) fn fleet_faulted(&self, fault: Fault) {
        self.fleet_faults.with_label_values(&[fault.into_str()]).inc();
    }

    /// Counts a call that could be made for all gateways.
    pub(crate) fn fleet_claimed(&self, result: ClaimResult) {
        self.fleet_claims.with_label_values(&[result.into_str()]).inc();
    }
}
