//! The fleet in `/status`: the engine that gateways share, and whether this one knows what the others have told.

use serde::Serialize;

use super::counts::{Counts, by, gauge};
use crate::telemetry::metrics::Metrics;
use crate::telemetry::series::Series;

#[derive(Serialize)]
pub(super) struct FleetSummary {
    /// `in-use`, `slow`, `full`, `starting`, or why there is no connection.
    state: &'static str,
    /// What the names of all keys in the engine begin with: the name of the fleet, and an id of its secret.
    keys: String,
    /// Whether this gateway knows what the others have told. Otherwise it does not rely on what they have proved.
    in_sync: bool,
    /// For how long it has not been in sync.
    sync_age_seconds: f64,
    /// Denials, purges, invalidations and private scopes that the engine has not been told yet.
    to_tell: u64,
    /// How often notices of other gateways were lost.
    missed: u64,
    lookups: Counts,
    /// Of all look-ups since the start that were sent. `None` if there was none.
    mean_lookup_seconds: Option<f64>,
    /// The calls that gateways make for each other.
    claims: Counts,
    told: Counts,
    stores: Counts,
    faults: Counts,
}

impl FleetSummary {
    pub(super) fn of(metrics: &Metrics, state: &'static str, keys: &str) -> Self {
        let times = Series::of(&metrics.fleet_lookup_durations).histogram(&[], "result", |_| true);
        Self {
            state,
            keys: keys.to_owned(),
            in_sync: metrics.fleet_in_sync.get() == 1,
            sync_age_seconds: metrics.fleet_sync_age.get(),
            to_tell: gauge(&metrics.fleet_to_tell),
            missed: metrics.fleet_missed.get(),
            lookups: by(&metrics.fleet_lookups, "result"),
            mean_lookup_seconds: (times.count > 0).then(|| times.sum / times.count as f64),
            claims: by(&metrics.fleet_claims, "result"),
            told: by(&metrics.fleet_told, "result"),
            stores: by(&metrics.fleet_stores, "result"),
            faults: by(&metrics.fleet_faults, "cause"),
        }
    }
}
