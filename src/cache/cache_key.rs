//! The key of an entry and of a flight: what is asked for, and who may see the response.

use std::sync::Arc;

use crate::request::caller::Caller;
use crate::request::key::RequestKey;

/// The key of an entry and of a flight.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct CacheKey {
    /// The only caller that may see the entry. `None` if it is shared by all callers with a grant.
    pub owner: Option<Caller>,
    pub key: Arc<RequestKey>,
}

impl CacheKey {
    /// The key for the same request that belongs to one caller.
    pub fn of(&self, caller: Caller) -> Self {
        Self { owner: Some(caller), key: Arc::clone(&self.key) }
    }
}
