//! The interface of a second cache tier. No tier is built in.
//!
//! Records are sealed ([`crate::seal`]), so a tier can withhold or replay them, but neither read nor forge them. A tier
//! must solve what this file does not: purges, invalidations and private scopes apply to this process only, a record does
//! not say which caller got the response, and if clocks differ by more than 5 s, an older response may replace a newer
//! one.

use std::future::Future;
use std::pin::Pin;

use bytes::Bytes;

use crate::request::key::RequestKey;

/// A store of shared entries of other processes, and of this one before a restart.
pub trait SecondTier: Send + Sync {
    /// Returns the record of a key. The gateway waits at most 8 ms for it.
    fn get<'a>(&'a self, key: &'a RequestKey) -> Pin<Box<dyn Future<Output = Option<Bytes>> + Send + 'a>>;

    /// Stores a record. It must return immediately and must not block.
    fn put(&self, key: &RequestKey, record: Bytes);
}
