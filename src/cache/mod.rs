//! The cache: stored entries, their freshness, the grants of the callers that may see them, and the flights that fetch
//! them.
//!
//! Nothing here uses an HTTP client. Only [`store`] uses moka, and only [`flights`] waits.

pub(crate) mod admission;
pub(crate) mod backoffs;
pub(crate) mod body;
mod cache_key;
pub(crate) mod divergence;
pub(crate) mod entry;
pub(crate) mod entry_fields;
pub(crate) mod fleet_sync;
pub(crate) mod flights;
pub(crate) mod freshness;
pub(crate) mod grants;
pub(crate) mod known_callers;
pub(crate) mod lifetime;
pub(crate) mod link;
pub(crate) mod lru_map;
pub(crate) mod miss;
pub(crate) mod record;
pub(crate) mod revocations;
pub(crate) mod second_tier;
pub(crate) mod staleness;
pub(crate) mod store;
pub(crate) mod unstorable;
