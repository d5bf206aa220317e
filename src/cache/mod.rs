//! What is remembered: entries, how long they are fresh, and the flights that fetch them.
//!
//! Nothing here knows an HTTP client, and nothing but [`store`] knows moka.

pub mod admission;
pub mod entry;
pub mod flights;
pub mod freshness;
pub mod store;
