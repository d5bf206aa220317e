//! What is remembered: entries, how long they are fresh, who may see them, and the flights that fetch
//! them.
//!
//! Nothing here knows an HTTP client, nothing but [`store`] knows moka, and only [`flights`] waits.

pub mod admission;
mod body;
pub mod entry;
pub mod flights;
pub mod freshness;
pub(crate) mod generations;
pub mod grants;
pub mod known_callers;
pub mod lifetime;
pub mod miss;
pub mod pauses;
pub mod store;
pub mod tripwire;
pub mod unstorable;
