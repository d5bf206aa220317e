//! Counts the live grants, for each scrape of the metrics. The lock must be held only for a few grants at a time,
//! because hits need it, too.

use std::time::Instant;

use super::{CallerScope, Grant, GrantTables, Grants};
use crate::cache::fleet_sync::FleetSync;

/// The number of grants that are counted while the lock is held. This takes about 10 microseconds.
pub(super) const STEP: usize = 128;

impl Grants {
    /// The number of live grants. They are counted in steps, and the lock is released after each step. So a grant that
    /// is used or made during the count may be counted twice or not at all.
    pub(crate) fn live(&self, now: Instant) -> usize {
        self.live_in_steps(now, |_| ())
    }

    /// The same. After each step, it calls `after_step` with the number of grants of this step.
    pub(super) fn live_in_steps(&self, now: Instant, mut after_step: impl FnMut(usize)) -> usize {
        let (mut live, mut remaining) = (0, self.tables().grants.remaining());
        loop {
            let mut visited = 0;
            let are_more = {
                let tables = self.tables();
                tables.grants.visit_some(&mut remaining, STEP, |caller_scope, grant| {
                    visited += 1;
                    live += usize::from(tables.is_live(caller_scope, grant, self.sync(), now));
                })
            };
            after_step(visited);
            if !are_more {
                return live;
            }
            // Lets a thread that waits for the lock have it next.
            std::thread::yield_now();
        }
    }
}

impl GrantTables {
    /// Whether a grant has not lapsed and was neither ended nor suspended.
    fn is_live(&self, caller_scope: &CallerScope, grant: &Grant, sync: Option<&FleetSync>, now: Instant) -> bool {
        grant.is_live(self.settings.grant_ttl, sync, now) && self.is_in_force(caller_scope, grant)
    }

    /// Whether a grant was neither ended nor suspended.
    pub(super) fn is_in_force(&self, caller_scope: &CallerScope, grant: &Grant) -> bool {
        let caller_service = caller_scope.caller_service();
        self.caller_services.peek(&caller_service).is_some_and(|grants| grant.sequence > grants.ended)
            && (self.suspensions == 0
                || !self.service_calls.get(&caller_service).is_some_and(|calls| calls.suspend(grant.sequence)))
    }
}
