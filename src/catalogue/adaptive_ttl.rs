//! An adaptive TTL: the limits within which the gateway chooses how long responses of an operation are fresh, and the
//! share of stale answers that it aims at. Data only: the choice is made elsewhere.

use std::time::Duration;

/// For an operation whose ttl is chosen from the measured share of stale answers.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct AdaptiveTtl {
    /// The largest share of stale answers, from 0 to 1.
    pub max_stale: f64,
    /// The shortest ttl.
    pub min: Duration,
    /// The longest ttl.
    pub max: Duration,
}
