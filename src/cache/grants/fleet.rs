//! What other gateways of the fleet tell: proofs, which make borrowed grants, and denials, which end grants of all
//! kinds.
//!
//! A borrowed grant is live only while this process is in sync with the fleet ([`FleetSync`]). Otherwise a denial may
//! have been told that is not known here. So the grant counts as lapsed, like one of an earlier process: the caller's
//! own call goes first. A proof of this process replaces it.
//!
//! The clocks of two gateways cannot be compared exactly. So a told denial counts whatever the time of a proof.

#[cfg(test)]
mod tests;

use std::sync::Arc;
use std::time::Instant;

use super::renewal::Renewal;
use super::{Basis, CallerScope, Grant, Grants, Standing};
use crate::cache::fleet_sync::FleetSync;
use crate::catalogue::Service;
use crate::request::caller::Caller;

impl Grants {
    /// Those of a gateway in a fleet.
    pub(crate) fn in_fleet(self, sync: Arc<FleetSync>) -> Self {
        Self { sync: Some(sync), ..self }
    }

    /// In sync until this time, or longer if that is known.
    pub(crate) fn extend_sync(&self, until: Instant) {
        self.sync.iter().for_each(|sync| sync.extend(until));
    }

    /// Takes a proof of another gateway, whose request was sent at `proved`. Returns whether the caller now has a
    /// better grant: one that is live or covers more, or that rests on a later proof.
    ///
    /// `is_valid` says whether, since the proof was looked up, no denial that concerns it has become known here and
    /// [`Self::lapse_all`] was not called. It runs while the grants are locked, so that no denial can come between. So
    /// it must not use the grants, nor wait for a lock whose holder uses them.
    pub(crate) fn borrow(
        &self,
        caller_scope: &CallerScope,
        proved: Instant,
        is_valid: impl FnOnce() -> bool,
        now: Instant,
    ) -> bool {
        let proved = proved.min(now);
        let mut tables = self.tables();
        if tables.stored_denial(caller_scope, now).is_some() || tables.is_late(caller_scope, proved) {
            return false;
        }
        let (settings, sync) = (tables.settings, self.sync());
        let sequence = tables.sequence + 1;
        // The caller's pace is not known before its first request here.
        // Out of sync, nobody knows whether the caller was denied since the proof.
        let at = if sync.is_some_and(|sync| sync.is_in_sync(now)) { now } else { proved };
        let borrowed = Grant { proved, sequence, basis: Basis::Borrowed { at }, renewal: Renewal::new(now, sequence) };
        let value = |grant: &Grant| (grant.standing(&settings, sync, now), grant.proved);
        let is_better = match tables.grant(caller_scope) {
            Some(known) => value(&borrowed) > value(known),
            None => borrowed.standing(&settings, sync, now) > Standing::Over,
        };
        if !is_better || !is_valid() {
            return false;
        }
        tables.sequence = sequence;
        tables.add(caller_scope.clone(), borrowed);
        true
    }

    /// Another gateway's call in this scope was denied. Ends the caller's grant, whatever it rests on. Calls of this
    /// process that are in flight prove nothing any more. Returns whether there was a grant.
    ///
    /// The gateway goes on repeating a refusal of a call of its own.
    pub(crate) fn told_denied(&self, caller_scope: &CallerScope, now: Instant) -> bool {
        let mut tables = self.tables();
        // A snapshot that is restored later may be from before.
        tables.next_sequence();
        if let Some(calls) = tables.calls.get_mut(caller_scope) {
            calls.denied = calls.denied.max(Some(now));
        }
        let had_grant = tables.grants.remove(caller_scope).is_some();
        let was_removed = tables.grants.may_have_removed(caller_scope);
        self.record_denial(had_grant || was_removed, tables);
        had_grant
    }

    /// The credential of the caller was refused in a call of another gateway. As [`Self::told_denied`], in all scopes of
    /// the service.
    pub(crate) fn told_refused(&self, caller: Caller, service: Service, now: Instant) -> bool {
        let mut tables = self.tables();
        let sequence = tables.next_sequence();
        if let Some(calls) = tables.service_calls.get_mut(&(caller, service)) {
            calls.denied = calls.denied.max(Some(now));
        }
        let mut had_grants = false;
        if let Some(grants) = tables.caller_services.get(&(caller, service)) {
            had_grants = grants.are_any();
            grants.ended = sequence;
        }
        let were_removed = tables.caller_services.may_have_removed(&(caller, service));
        self.record_denial(had_grants || were_removed, tables);
        had_grants
    }

    /// What other gateways have told may have been lost. So all grants count as lapsed until the next proof, and cover
    /// nothing later than `now`. Calls that are in flight prove nothing any more.
    ///
    /// Hits wait for this: about 2 ms for 100,000 grants in a build without optimizations.
    pub(crate) fn lapse_all(&self, now: Instant) {
        let mut tables = self.tables();
        tables.all_lapsed = tables.all_lapsed.max(Some(now));
        for grant in tables.grants.values_mut() {
            let covers_until = grant.basis.covers_until(self.sync()).map_or(now, |until| until.min(now));
            grant.basis = Basis::Lapsed { covers_until };
        }
        drop(tables);
        self.revocations.add_for_process();
    }
}
