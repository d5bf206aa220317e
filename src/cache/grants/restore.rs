//! Grants of an earlier process, from its snapshot. They count as lapsed: the caller may have been denied since. So its
//! own call goes first, and only a failure that extends grants lets it see what the earlier process had kept.

use std::time::Instant;

use super::count::STEP;
use super::{Basis, CallerScope, Grant, Grants, ServiceGrants};

/// The last proof of a caller in a scope, for another process.
#[derive(Clone, Debug)]
pub(crate) struct RestoredProof {
    pub(crate) caller_scope: CallerScope,
    /// When the request of the proof was sent.
    pub(crate) proved: Instant,
    /// The grant covers nothing later than this.
    pub(crate) covers_until: Option<Instant>,
}

impl Grants {
    /// Visits the grants that a failure could extend later. The lock is held for a few grants at a time.
    pub(crate) fn visit_proofs(&self, now: Instant, mut visit: impl FnMut(&[RestoredProof])) {
        let mut remaining = self.tables().grants.remaining();
        loop {
            let mut proofs = Vec::with_capacity(STEP);
            let are_more = {
                let tables = self.tables();
                let longest = tables.settings.outage_grace.unwrap_or_default();
                tables.grants.visit_some(&mut remaining, STEP, |caller_scope, grant| {
                    let age = now.saturating_duration_since(grant.proved);
                    if age < longest && tables.is_in_force(caller_scope, grant) {
                        let (caller_scope, proved) = (caller_scope.clone(), grant.proved);
                        // The end of being in sync may be still to come.
                        let covers_until = grant.basis.covers_until(self.sync()).map(|until| until.min(now));
                        proofs.push(RestoredProof { caller_scope, proved, covers_until });
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
    ///
    /// If the snapshot has more proofs than these, [`Self::lose_track`] must be called.
    pub(crate) fn restore(&self, proofs: Vec<RestoredProof>, written: Instant) -> bool {
        let mut tables = self.tables();
        if tables.sequence > 0 {
            return false;
        }
        for RestoredProof { caller_scope, proved, covers_until } in proofs {
            if tables.grants.peek(&caller_scope).is_some_and(|known| known.proved >= proved) {
                continue;
            }
            let sequence = tables.next_sequence();
            let caller_service = caller_scope.caller_service();
            let basis = Basis::Lapsed { covers_until: covers_until.map_or(written, |until| until.min(written)) };
            tables.grants.insert(caller_scope, Grant { basis, ..Grant::new(proved, sequence) });
            let new = || ServiceGrants { ended: 0, latest: sequence };
            tables.caller_services.get_or_insert_with(&caller_service, new).latest = sequence;
        }
        true
    }

    /// A snapshot has proofs that are not known here. So the next denial is a revocation, whoever the caller is.
    pub(crate) fn lose_track(&self) {
        let mut tables = self.tables();
        tables.grants.lose_track();
        tables.caller_services.lose_track();
    }

    /// A number that grows with each proof and each denial.
    pub(crate) fn changes(&self) -> u64 {
        self.tables().sequence
    }
}
