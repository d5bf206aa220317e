//! What an operator sees: metrics, events, the log, and the record of a request that the access log and the request
//! metrics are made from.
//!
//! Labels and log fields come from enums and from the catalogue, never from a request. So nothing that a client sends
//! can add a metric series or show a credential.

pub(crate) mod calls;
pub(crate) mod condition_tracker;
pub(crate) mod conditions;
pub(crate) mod events;
pub(crate) mod failures;
mod families;
mod fleet;
pub(crate) mod health;
pub(crate) mod history;
pub(crate) mod hit_series;
pub(crate) mod logs;
pub(crate) mod metrics;
pub(crate) mod outcome;
pub(crate) mod record;
pub(crate) mod savings;
pub(crate) mod series;
pub(crate) mod sources;
mod status;
