//! What an operator sees: metrics, one log line per request, and the record both are made of.
//!
//! Labels and log fields come from enums and from the catalogue, never from a request, so nothing a
//! client sends can add a metric series or show a credential.

pub mod benefit;
mod budget;
pub mod calls;
pub mod events;
pub mod failures;
pub mod fetches;
pub mod figures;
pub mod health;
pub mod hit_series;
pub mod in_use;
pub mod lanes;
pub mod logs;
pub mod metrics;
pub mod outcome;
pub mod record;
pub mod reloads;
mod status;
