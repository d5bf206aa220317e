//! Grants of an earlier process, from its snapshot. They count as lapsed: the caller may have been denied since. So its
//! own call goes first, and only a failure that extends grants lets it see what the earlier process had kept.

use std::time::Instant;

use super::count::STEP;
use super::{CallerScope, Grant, Grants, Renewal};

/// Which grants are from an earlier process.
#[derive(Clone, Copy, Default)]
pub(super) struct Restored {
    /// Those up to this sequence number.
    sequence: u64,
    /// When its snapshot was written.
    written: Option<Instant>,
}

impl Restored {
    /// If a grant is from an earlier process: when the snapshot was written.
    pub(super) fn written(self, grant: &Grant) -> Option<Instant> {
        self.written.filter(|_| grant.sequence <= self.sequence)
    }
}

impl Grants {
    /// Visits the grants that a failure could extend later, with the times of their last proofs. The lock is held for a
    /// few grants at a time.
    pub(crate) fn visit_proofs(&self, now: Instant, mut visit: impl FnMut(&[(CallerScope, Instant)])) {
        let mut remaining = self.tables().grants.remaining();
        loop {
            let mut proofs = Vec::with_capacity(STEP);
            let are_more = {
                let tables = self.tables();
                let longest = tables.settings.outage_grace.unwrap_or_default();
                tables.grants.visit_some(&mut remaining, STEP, |caller_scope, grant| {
                    let age = now.saturating_duration_since(grant.proved);
                    if age < longest && tables.is_in_force(caller_scope, grant) {
                        proofs.push((caller_scope.clone(), grant.proved));
                    }
                })
            };
            visit(&proofs);
            if !are_more {
                return;
            }
            std::thread::yield_now();
        }
    }

    /// Adds the grants of an earlier process, whose snapshot was written at `written`. Returns whether it has done so: not
    /// if there has been a proof or a denial already.
    pub(crate) fn restore(&self, proofs: Vec<(CallerScope, Instant)>, written: Instant) -> bool {
        let mut tables = self.tables();
        if tables.sequence != tables.restored.sequence {
            return false;
        }
        for (caller_scope, proved) in proofs {
            let sequence = tables.next_sequence();
            let caller_service = caller_scope.caller_service();
            tables.grants.insert(caller_scope, Grant { proved, sequence, renewal: Renewal::new(proved, sequence) });
            tables.caller_services.get_or_insert_with(&caller_service, || 0);
        }
        tables.restored = Restored { sequence: tables.sequence, written: Some(written) };
        true
    }

    /// The number of proofs and denials so far, which change what a snapshot would have.
    pub(crate) fn changes(&self) -> u64 {
        self.tables().sequence
    }
}
