//! The second tier as a part of memory: what is where, how it is sealed, and what all gateways are told. `second_tier.rs`
//! uses it in a fetch.
//!
//! Each notice voids one set of records: the entries that one purge can select, that are in one scope, or that are private,
//! and the grants of one caller in a scope or a service. So a notice about one set never hides an earlier one about another.
//! What is void only in the engine has sets of its own: it must not hide what gateways have to forget, too.

use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use super::hint::Hint;
use super::message::Message;
use super::scope_record::{ScopeRecord, operation_meaning, scope_meaning};
use crate::cache::grants::CallerScope;
use crate::cache::record;
use crate::cache::second_tier::{Lease, Name, Notice, NoticeKind, Order, Place, SecondTier, Ticket};
use crate::cache::store::{PrivateName, PurgeSelection};
use crate::catalogue::{Operation, Origin, Service};
use crate::clock::{Clock, Moment};
use crate::config::fleet::FleetConfig;
use crate::fleet::{Extent, FleetSecret};
use crate::random::Random;
use crate::request::caller::Caller;
use crate::request::key::{RequestKey, Scope};
use crate::seal::{Sealer, Unreadable};

/// How long a request waits for a second tier at most.
pub(super) const LONGEST_LOOK_UP: Duration = Duration::from_millis(8);

/// By how much clocks of two machines may differ.
const MAX_SKEW: Duration = Duration::from_secs(5);

/// A second tier, and the key to its records.
pub(super) struct Tier {
    pub(super) store: Arc<dyn SecondTier>,
    pub(super) names: Names,
    pub(super) time_limit: Duration,
    /// Whether proofs are shared, too.
    pub(super) shares_grants: bool,
}

/// The names of records and sets, and the key to what is sealed.
#[derive(Clone)]
pub(super) struct Names {
    pub(super) sealer: Arc<Sealer>,
}

/// Who has sent a 401 or 403.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum DeniedBy {
    Upstream,
    /// Something between this gateway and upstream. Other gateways may reach upstream without it, so they keep their grants.
    /// But no gateway gives a grant by an older proof any more.
    Intermediary,
}

/// When a record was written.
#[derive(Serialize, Deserialize)]
pub(super) struct Written {
    pub(super) moment: Moment,
    /// What the clock of the tier showed, as the time since 1970.
    pub(super) tier: Duration,
}

/// A lease. It is released when this is dropped.
pub(super) struct HeldLease {
    lease: Option<Lease>,
    store: Arc<dyn SecondTier>,
}

impl HeldLease {
    pub(super) fn new(lease: Lease, store: &Arc<dyn SecondTier>) -> Self {
        Self { lease: Some(lease), store: Arc::clone(store) }
    }

    /// The lease, which somebody else releases.
    pub(super) fn take(&mut self) -> Option<Lease> {
        self.lease.take()
    }
}

impl Drop for HeldLease {
    fn drop(&mut self) {
        self.lease.take().into_iter().for_each(|lease| self.store.release(lease, None));
    }
}

impl Tier {
    /// Tells all gateways of a purge. To be called before the purge.
    pub(super) fn purged(&self, selection: &PurgeSelection) {
        let (set, message) = (self.names.selection(selection), Message::Purged(selection.into()));
        self.tell(set, NoticeKind::Entries, &message, Box::default());
    }

    /// Tells all gateways that the entries of a scope must be validated.
    pub(super) fn invalidated(&self, scope: &Scope) {
        let message = Message::Invalidated(ScopeRecord::new(scope, scope_meaning(scope)));
        self.tell(self.names.scope(scope), NoticeKind::Entries, &message, Box::default());
    }

    /// Tells all gateways that callers do not share responses any more.
    pub(super) fn private(&self, name: &PrivateName) {
        let (set, record) = match name {
            PrivateName::Scope(scope) => {
                (self.names.private_scope(scope), ScopeRecord::new(scope, scope_meaning(scope)))
            }
            PrivateName::Operation(operation) => (
                self.names.private_operation(operation),
                ScopeRecord::of_operation(&operation.name, operation_meaning(operation)),
            ),
        };
        self.tell(set, NoticeKind::Entries, &Message::Private(record), Box::default());
    }

    /// Tells all gateways that a caller was denied in a scope. If it is not known here, only if another one knows it.
    pub(super) fn denied(&self, caller_scope: &CallerScope, is_known: bool, by: DeniedBy) {
        let CallerScope { caller, scope } = caller_scope;
        let message = match by {
            DeniedBy::Upstream => {
                let scope = ScopeRecord::new(scope, scope_meaning(scope));
                Message::Denied { caller: caller.to_sealed(), scope }
            }
            DeniedBy::Intermediary => Message::EngineVoid,
        };
        let known: &[Name] = if is_known { &[] } else { &[self.names.grant(caller_scope)] };
        self.tell(self.names.denied(caller_scope, by), NoticeKind::Grants, &message, known.into());
    }

    /// Tells all gateways that the credential of a caller was refused. If it is not known here, only if another one knows it.
    pub(super) fn refused(
        &self,
        caller: Caller,
        (service, origin): (Service, &Origin),
        (scope, is_known): (Option<&Scope>, bool),
        by: DeniedBy,
    ) {
        let service = service_name(service, origin);
        let message = match by {
            DeniedBy::Upstream => Message::Refused { caller: caller.to_sealed(), service: &service },
            DeniedBy::Intermediary => Message::EngineVoid,
        };
        // While its first proof is under way elsewhere, there is only the lease for that.
        let proving = scope.map(|scope| self.names.grant(&CallerScope { caller, scope: scope.clone() }));
        let marker = self.names.marker(caller, &service);
        let known = if is_known { Box::default() } else { proving.into_iter().chain([marker]).collect() };
        self.tell(self.names.refused(caller, &service, by), NoticeKind::Grants, &message, known);
    }

    fn tell(&self, set: Name, kind: NoticeKind, message: &Message<'_>, if_known: Box<[Name]>) {
        if kind != NoticeKind::Grants || self.shares_grants {
            self.store.tell(self.names.notice(Some(set), kind, message, if_known));
        }
    }

    pub(super) fn place(&self, key: &RequestKey) -> Place {
        self.names.entry_place(key)
    }
}

impl Names {
    /// # Errors
    /// If the system has no randomness.
    pub(super) fn new(config: &FleetConfig, random: &Random) -> io::Result<Self> {
        Ok(Self { sealer: Arc::new(Sealer::new(config.secret.as_bytes(), &[], random)?) })
    }

    /// What the engine's part needs of it.
    pub(super) fn fleet_secret(self) -> FleetSecret {
        FleetSecret {
            id: self.sealer.name("fleet", b""),
            everything: Box::new(move |kind, extent| self.everything(kind, extent)),
        }
    }

    /// A notice that voids everything of a kind.
    fn everything(&self, kind: NoticeKind, extent: Extent) -> Notice {
        let message = match (extent, kind) {
            (Extent::Engine, _) => Message::EngineVoid,
            (Extent::Gateways, NoticeKind::Grants) => Message::AllGrants,
            (Extent::Gateways, NoticeKind::Entries | NoticeKind::Hint) => Message::AllEntries,
        };
        self.notice(Some(self.all(kind, extent)), kind, &message, Box::default())
    }

    /// A hint for all gateways.
    pub(super) fn hint(&self, hint: Hint) -> Notice {
        self.notice(None, NoticeKind::Hint, &Message::Hint(hint), Box::default())
    }

    /// A notice. If it cannot be sealed, no gateway can read it, and so each of them takes everything for void.
    fn notice(&self, voids: Option<Name>, kind: NoticeKind, message: &Message<'_>, if_known: Box<[Name]>) -> Notice {
        let content = message.encode().unwrap_or_default();
        let sealed = self.sealer.seal(&notice_context(voids), &content).unwrap_or_default();
        Notice { voids, kind, sealed: sealed.into(), if_known }
    }

    pub(super) fn open_notice<'n>(&self, voids: Option<Name>, sealed: &'n mut [u8]) -> Result<&'n [u8], Unreadable> {
        self.sealer.open(&notice_context(voids), sealed).map(|content| &*content)
    }

    /// The place of an entry. Its sets are what a purge can select, its scope, and what can become private.
    pub(super) fn entry_place(&self, key: &RequestKey) -> Place {
        let scope = key.scope();
        let (operation, project_id) = (&*scope.operation().name, scope.project_id());
        let selection = |operation: Option<&str>, project_id: Option<&str>, query: Option<&str>| {
            self.selection(&PurgeSelection {
                operation: operation.map(str::to_owned),
                project_id: project_id.map(str::to_owned),
                query: query.map(str::to_owned),
            })
        };
        let query = Some(key.query());
        let sets = Box::new([
            self.all(NoticeKind::Entries, Extent::Gateways),
            self.all(NoticeKind::Entries, Extent::Engine),
            selection(Some(operation), None, None),
            selection(Some(operation), None, query),
            selection(None, Some(project_id), None),
            selection(Some(operation), Some(project_id), None),
            selection(Some(operation), Some(project_id), query),
            self.scope(scope),
            self.private_scope(scope),
            self.private_operation(scope.operation()),
        ]);
        Place { record: self.sealer.name("entry", &record::name(key)), sets }
    }

    /// The place of a grant.
    pub(super) fn grant_place(&self, caller_scope: &CallerScope) -> Place {
        let CallerScope { caller, scope } = caller_scope;
        let service = service_of(scope);
        let all = [Extent::Gateways, Extent::Engine].map(|extent| self.all(NoticeKind::Grants, extent));
        let denied = [DeniedBy::Upstream, DeniedBy::Intermediary]
            .map(|by| [self.denied(caller_scope, by), self.refused(*caller, &service, by)]);
        let sets = all.into_iter().chain(denied.into_iter().flatten()).collect();
        Place { record: self.grant(caller_scope), sets }
    }

    /// The place of what trials of an access key have shown, and the name of the lease for a trial. `own_upstream`: the name
    /// of the service if it is an operator's own upstream.
    pub(super) fn access_key_place(&self, id: &str, own_upstream: Option<&str>) -> Place {
        let own_upstream = own_upstream.unwrap_or_default();
        let parts = [&(id.len() as u64).to_le_bytes()[..], id.as_bytes(), own_upstream.as_bytes()].concat();
        Place { record: self.sealer.name("access key", &parts), sets: Box::default() }
    }

    /// A name that exists if a gateway has a grant of the caller in the service.
    pub(super) fn marker(&self, caller: Caller, service: &str) -> Name {
        self.sealer.name("known in", &of_service(caller, service))
    }

    fn all(&self, kind: NoticeKind, extent: Extent) -> Name {
        let label = match extent {
            Extent::Gateways => "all",
            Extent::Engine => "all in the engine",
        };
        self.sealer.name(label, if kind == NoticeKind::Grants { b"grants" } else { b"entries" })
    }

    fn selection(&self, PurgeSelection { operation, project_id, query }: &PurgeSelection) -> Name {
        if (operation, project_id, query) == (&None, &None, &None) {
            return self.all(NoticeKind::Entries, Extent::Gateways);
        }
        let part = |part: &Option<String>| match part {
            Some(text) => [&[1][..], &(text.len() as u64).to_le_bytes(), text.as_bytes()].concat(),
            None => vec![0],
        };
        self.sealer.name("purge", &[part(operation), part(project_id), part(query)].concat())
    }

    fn scope(&self, scope: &Scope) -> Name {
        self.sealer.name("scope", &record::scope_name(scope))
    }

    fn private_scope(&self, scope: &Scope) -> Name {
        self.sealer.name("private scope", &record::scope_name(scope))
    }

    fn private_operation(&self, operation: &Operation) -> Name {
        self.sealer.name("private operation", operation.meaning().as_bytes())
    }

    fn grant(&self, caller_scope: &CallerScope) -> Name {
        self.sealer.name("grant", &in_scope(caller_scope))
    }

    fn denied(&self, caller_scope: &CallerScope, by: DeniedBy) -> Name {
        let label = match by {
            DeniedBy::Upstream => "denied",
            DeniedBy::Intermediary => "denied on the way",
        };
        self.sealer.name(label, &in_scope(caller_scope))
    }

    fn refused(&self, caller: Caller, service: &str, by: DeniedBy) -> Name {
        let label = match by {
            DeniedBy::Upstream => "refused",
            DeniedBy::Intermediary => "refused on the way",
        };
        self.sealer.name(label, &of_service(caller, service))
    }

    /// Opens a record.
    pub(super) fn open(&self, context: &[u8], sealed: &Bytes) -> Result<(Written, Bytes), Unreadable> {
        let mut sealed = sealed.to_vec();
        let content = self.sealer.open(context, &mut sealed)?;
        let (written, record) = postcard::take_from_bytes(content).map_err(|_| Unreadable::Damaged)?;
        Ok((written, Bytes::copy_from_slice(record)))
    }

    /// Seals a record.
    pub(super) fn seal(&self, context: &[u8], written: &Written, record: &[u8]) -> Option<Bytes> {
        let content = postcard::to_extend(written, Vec::with_capacity(record.len() + 64)).ok()?;
        self.sealer.seal(context, &[&content, record].concat()).map(Bytes::from)
    }
}

/// When a record is written, by the clocks of this process, the machine and the tier. `None` if the wall clock shows a time
/// before 1970.
pub(super) fn written(ticket: &Ticket, clock: &Clock) -> Option<(Instant, Written)> {
    // In this order: if the machine is suspended between the two, ages are too high, not too low.
    let moment = clock.moment()?;
    let now = clock.now();
    Some((now, Written { moment, tier: ticket.time + now.saturating_duration_since(ticket.drawn) }))
}

/// The time since a record was written. No clock of another process is exact.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Passed {
    /// For the age of an entry or a proof.
    pub(super) longest: Duration,
    /// For the latest time at which an entry may have been sent.
    pub(super) certain: Duration,
}

/// `None` if the record seems to be from the future.
pub(super) fn passed_since(written: &Written, time: Duration, clock: &Clock) -> Option<Passed> {
    let on_tier = match time.checked_sub(written.tier) {
        Some(passed) => passed,
        // Not from the future.
        None => MAX_SKEW.checked_sub(written.tier - time).map(|_| Duration::ZERO)?,
    };
    let now = clock.moment()?;
    let longest = written.moment.until(&now)?.max(on_tier);
    // Another node of the tier may answer now. A ticket's time is also a bit earlier than when the ticket came.
    let certain = written.moment.certain_until(&now).min(on_tier.saturating_sub(MAX_SKEW));
    Some(Passed { longest, certain })
}

fn in_scope(CallerScope { caller, scope }: &CallerScope) -> Vec<u8> {
    [&caller.to_sealed()[..], &record::scope_name(scope)].concat()
}

fn of_service(caller: Caller, service: &str) -> Vec<u8> {
    [&caller.to_sealed()[..], service.as_bytes()].concat()
}

/// A service, and where it is: the name for all gateways.
pub(super) fn service_name(service: Service, origin: &Origin) -> String {
    format!("{} {origin}", service.as_str())
}

pub(super) fn service_of(scope: &Scope) -> String {
    service_name(scope.operation().service, scope.origin())
}

/// What a record is, and where it belongs.
pub(super) fn entry_context(key: &RequestKey, Order { incarnation, number }: Order) -> Vec<u8> {
    [&b"entry"[..], &incarnation, &number.to_le_bytes(), &record::name(key)].concat()
}

/// The same for a grant.
pub(super) fn grant_context(caller_scope: &CallerScope, Order { incarnation, number }: Order) -> Vec<u8> {
    [&b"grant"[..], &incarnation, &number.to_le_bytes(), &in_scope(caller_scope)].concat()
}

/// The same for what trials of an access key have shown.
pub(super) fn access_key_context(place: &Place, Order { incarnation, number }: Order) -> Vec<u8> {
    [&b"access key"[..], &incarnation, &number.to_le_bytes(), &place.record].concat()
}

fn notice_context(voids: Option<Name>) -> Vec<u8> {
    [&b"notice"[..], voids.as_ref().map_or(&[][..], |set| &set[..])].concat()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::ManualClock;

    const SECOND: Duration = Duration::from_secs(1);

    /// What has passed since a record, after these times on the gateway's clocks and on that of the tier.
    fn passed(here: u32, on_tier: u32) -> [Duration; 2] {
        let manual = ManualClock::of_boot([1; 16]);
        let clock = Clock::Manual(manual.clone());
        let written = Written { moment: clock.moment().unwrap(), tier: 100 * SECOND };
        manual.advance(here * SECOND);
        let Passed { longest, certain } = passed_since(&written, (100 + on_tier) * SECOND, &clock).unwrap();
        [certain, longest]
    }

    #[test]
    fn the_slower_clock_bounds_what_has_certainly_passed() {
        assert_eq!(passed(60, 60), [55 * SECOND, 60 * SECOND]);
        assert_eq!(passed(60, 20), [15 * SECOND, 60 * SECOND]);
        assert_eq!(passed(20, 60), [20 * SECOND, 60 * SECOND]);
        assert_eq!(passed(0, 3), [Duration::ZERO, 3 * SECOND]);
    }
}
