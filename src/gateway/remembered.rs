//! The gateway's side of the fast path: what it remembers of a head, and whether that can be answered now.
//!
//! The result of reading a head depends on the active config and on the local address of the connection. So a
//! remembered look-up is valid while both are the same. Signed requests must not be remembered, because signatures
//! expire.

use std::net::SocketAddr;
use std::sync::{Arc, Weak};

use super::{ActiveConfig, CacheRequest, Connection, Gateway, Lookup};
use crate::budget::ConnectionClass;
use crate::config::Mode;
use crate::fast_path::{FastPath, Hit, HitSource, RequestTracker};
use crate::request::caller::Credential;
use crate::request::fingerprint::Fingerprint;
use crate::telemetry::record::RequestRecord;

/// Requests with a larger key, in bytes, are not remembered, to save memory.
const MAX_KEY_SIZE: usize = 512;

/// The result of reading a head.
pub struct RememberedLookup {
    lookup: Arc<Lookup>,
    /// The active config with which it was read.
    active: Weak<ActiveConfig>,
    /// The local address of its connection.
    local: SocketAddr,
}

impl Gateway {
    /// Lets the fast path remember a request that was a hit.
    pub(super) fn remember(
        &self,
        head: Fingerprint,
        request: &CacheRequest,
        record: &RequestRecord,
        connection: &Connection,
    ) {
        let CacheRequest { active, credential: Credential::Token(_), lookup, .. } = request else { return };
        if lookup.key.size() <= MAX_KEY_SIZE {
            let operation = lookup.key.operation();
            let (lookup, active) = (Arc::clone(lookup), Arc::downgrade(active));
            let lookup = RememberedLookup { lookup, active, local: connection.local };
            self.fast_path.remember(head, lookup, operation, record.heading().cloned());
        }
    }
}

impl AsRef<RequestTracker> for Connection {
    fn as_ref(&self) -> &RequestTracker {
        &self.tracker
    }
}

impl HitSource for Gateway {
    type Lookup = RememberedLookup;
    type Connection = Connection;

    fn fast_path(&self) -> &FastPath<RememberedLookup> {
        &self.fast_path
    }

    fn hit(&self, lookup: &RememberedLookup, connection: &Connection) -> Option<Hit> {
        if !self.is_in_force(&lookup.active) || lookup.local != connection.local || self.mode() == Mode::Bypass {
            return None;
        }
        let now = self.clock.now();
        let entry = self.memory.fresh(&lookup.lookup, now)?;
        entry.hit(now);
        // A caller with a grant is known.
        connection.account.raise(ConnectionClass::Known, Some(lookup.lookup.caller_scope.caller));
        Some(Hit { entry, now, request_id: self.request_ids.next(), client: connection.peer })
    }
}
