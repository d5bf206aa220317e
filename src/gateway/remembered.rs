//! What the fast path remembers of a head, and when that still holds.
//!
//! Reading a head depends on the settings in force and on the address that the connection came in by. So a lookup holds
//! while both are the same. Signed requests are not remembered, because a signature is valid for a while only.

use std::net::SocketAddr;
use std::sync::{Arc, Weak};

use super::{ActiveConfig, CacheRequest, Connection, Gateway, Lookup};
use crate::budget::ConnectionClass;
use crate::config::Mode;
use crate::fast_path::{FastPath, Hit, HitSource, RequestTracker};
use crate::request::caller::Credential;
use crate::request::fingerprint::Fingerprint;
use crate::telemetry::record::RequestRecord;

/// Keys of more bytes are not remembered: the memory is better spent on others.
const MAX_KEY: usize = 512;

/// What reading a head has told.
pub struct RememberedLookup {
    lookup: Arc<Lookup>,
    /// The settings by which it was read.
    active: Weak<ActiveConfig>,
    /// The address by which its connection came in.
    local: SocketAddr,
}

impl Gateway {
    /// Has the fast path remember what a request asked that was a hit.
    pub(super) fn remember(
        &self,
        head: Fingerprint,
        request: &CacheRequest,
        record: &RequestRecord,
        connection: &Connection,
    ) {
        let CacheRequest { active, credential: Credential::Token(_), lookup, .. } = request else { return };
        if lookup.key.size() <= MAX_KEY {
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
        entry.hit();
        // Its caller has a grant.
        connection.account.raise(ConnectionClass::Known, Some(lookup.lookup.caller_scope.caller));
        Some(Hit { entry, now, request_id: self.request_ids.next(), client: connection.peer })
    }
}
