//! How many grants live. It is asked with each scrape of the metrics, and hits need the lock meanwhile: it must not be held
//! for longer than a few grants take.

use std::time::Instant;

use super::{CallerScope, Grant, GrantTables, Grants};

/// How many grants are counted at most while the lock is held: some 10 microseconds.
const COUNTED_AT_ONCE: usize = 128;

impl Grants {
    /// How many grants live at a moment. They are counted in steps, and the lock is released after each. So a grant that is
    /// used or made meanwhile may be counted twice or not at all.
    pub(crate) fn live(&self, now: Instant) -> usize {
        self.live_in_steps(now, |_| ())
    }

    /// The same; `after_step` is told after each step how many grants were visited while the lock was held.
    pub(super) fn live_in_steps(&self, now: Instant, mut after_step: impl FnMut(usize)) -> usize {
        let (mut live, mut remaining) = (0, self.tables().grants.remaining());
        loop {
            let mut visited = 0;
            let are_more = {
                let tables = self.tables();
                tables.grants.visit_some(&mut remaining, COUNTED_AT_ONCE, |caller_scope, grant| {
                    visited += 1;
                    live += usize::from(tables.lives(caller_scope, grant, now));
                })
            };
            after_step(visited);
            if !are_more {
                return live;
            }
            // Whoever waits for the lock has it next.
            std::thread::yield_now();
        }
    }
}

impl GrantTables {
    /// Whether a grant lives at a moment, and has been neither ended nor suspended.
    fn lives(&self, caller_scope: &CallerScope, grant: &Grant, now: Instant) -> bool {
        let account = caller_scope.account();
        now.saturating_duration_since(grant.proved) < self.terms.grant_ttl
            && self.accounts.peek(&account).is_some_and(|ended| grant.made > *ended)
            && !self.is_suspended(&account, grant.made)
    }
}
