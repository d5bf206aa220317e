//! What an operator sees: metrics, events, the log, and the record of a request. When the request has ended, the record
//! goes to the sinks: the request metrics, the counts of its caller, the access log, the live tail, and as a span to the
//! exporter.
//!
//! Labels and log fields come from enums and from the catalogue, never from a request. So nothing that a client sends
//! can add a metric series or show a credential.

mod access_log;
pub(crate) mod callers;
pub(crate) mod calls;
pub(crate) mod completed;
pub(crate) mod condition_tracker;
pub(crate) mod conditions;
pub(crate) mod events;
mod exemplars;
pub(crate) mod failures;
mod families;
mod fields;
mod fleet;
pub(crate) mod health;
pub(crate) mod history;
pub(crate) mod logs;
pub(crate) mod metrics;
pub(crate) mod open_metrics;
pub(crate) mod outcome;
pub(crate) mod record;
pub(crate) mod requests;
pub(crate) mod savings;
pub(crate) mod series;
pub(crate) mod sinks;
pub(crate) mod sources;
mod status;
pub(crate) mod tail;
mod text;
pub(crate) mod traces;
