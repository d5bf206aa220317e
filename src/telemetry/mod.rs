//! What an operator sees: metrics, one log line per request, and the record both are made of.
//!
//! Labels and log fields come from enums and from the catalogue, never from a request, so nothing a
//! client sends can add a metric series or show a credential.

mod budget;
pub(crate) mod calls;
pub(crate) mod events;
pub(crate) mod failures;
pub(crate) mod fetches;
pub(crate) mod health;
pub(crate) mod hit_series;
pub(crate) mod in_use;
pub(crate) mod logs;
pub(crate) mod metrics;
pub(crate) mod metrics_snapshot;
pub(crate) mod outcome;
pub(crate) mod queue_metrics;
pub(crate) mod record;
pub(crate) mod reloads;
pub(crate) mod savings;
mod status;
