//! What is remembered: entries, how long they are fresh, who may see them, and the flights that fetch
//! them.
//!
//! Nothing here knows an HTTP client, nothing but [`store`] knows moka, and only [`flights`] waits.

pub(crate) mod admission;
pub(crate) mod backoffs;
mod body;
pub(crate) mod divergence;
pub(crate) mod entry;
pub(crate) mod flights;
pub(crate) mod freshness;
pub(crate) mod generations;
pub(crate) mod grants;
pub(crate) mod known_callers;
pub(crate) mod lifetime;
pub(crate) mod miss;
pub(crate) mod second_tier;
pub(crate) mod store;
pub(crate) mod unstorable;
