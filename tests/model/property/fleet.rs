//! What a process knows from other gateways of its fleet: proofs that it has borrowed, and denials that it was told of.
//!
//! A borrowed proof counts while the process is in sync, and from its real time. It ends with a denial that the process has
//! seen itself or was told of since it was looked up, and it must be later than each denial that the process knows.

use super::super::domain::{CallerId, Ms, ScopeId, service_of_scope};
use super::super::settings::Settings;
use super::{Call, Property};

/// The place of a ticket: the incarnation of the engine, and the number there.
pub type Order = ([u8; 16], u64);

/// What a denial concerns.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Denied {
    Scope(CallerId, ScopeId),
    Service(CallerId, usize),
}

impl Denied {
    fn concerns(self, caller: CallerId, scope: ScopeId) -> bool {
        match self {
            Self::Scope(denied, its) => (denied, its) == (caller, scope),
            Self::Service(denied, its) => (denied, its) == (caller, service_of_scope(scope)),
        }
    }

    pub fn caller(self) -> CallerId {
        match self {
            Self::Scope(caller, _) | Self::Service(caller, _) => caller,
        }
    }
}

/// A proof of another gateway.
pub struct Borrowed {
    pub caller: CallerId,
    pub scope: ScopeId,
    /// The time from which its age counts at least.
    pub counts_from: Ms,
    pub order: Order,
    /// When it was looked up.
    pub at: Ms,
    /// If the process that looked it up has ended: until when it was in sync.
    ended: Option<Ms>,
}

impl Borrowed {
    pub fn new(caller: CallerId, scope: ScopeId, counts_from: Ms, order: Order, at: Ms) -> Self {
        Self { caller, scope, counts_from, order, at, ended: None }
    }
}

#[derive(Default)]
pub(super) struct Fleet {
    borrowed: Vec<Borrowed>,
    /// Denials that other gateways have told, and when this one has read them.
    told: Vec<(Denied, Ms)>,
    /// The last tickets of which this process knows that a denial makes them void, and since when. A grant that it had before
    /// may stay.
    voids: Vec<(Denied, Order, Ms)>,
    /// When this process has learnt that it has missed notices.
    pub(super) missed: Option<Ms>,
    in_sync_until: Ms,
}

impl Property {
    /// The process gets a proof of another gateway.
    pub fn borrowed(&mut self, borrowed: Borrowed) {
        self.fleet.borrowed.push(borrowed);
    }

    /// The process reads that another gateway was denied.
    pub fn told_denied(&mut self, denied: Denied, at: Ms) {
        self.fleet.told.push((denied, at));
    }

    /// The process knows that a denial makes records void, up to this ticket.
    pub fn knows_void(&mut self, denied: Denied, order: Order, at: Ms) {
        self.fleet.voids.push((denied, order, at));
    }

    pub fn has_missed(&self) -> bool {
        self.fleet.missed.is_some()
    }

    pub fn missed(&mut self, at: Ms) {
        self.fleet.missed = Some(at);
    }

    pub fn in_sync_until(&mut self, until: Ms) {
        self.fleet.in_sync_until = self.fleet.in_sync_until.max(until);
    }

    pub fn is_in_sync(&self, at: Ms) -> bool {
        at < self.fleet.in_sync_until
    }

    /// Whether the process knows of any denial of a caller, its own or another one.
    pub fn knows_denial(&self, caller: CallerId) -> bool {
        let own = self.calls.iter().any(|call| {
            call.request.caller == caller && call.answered(Ms::MAX).is_some_and(|(_, result)| result.denial().is_some())
        });
        let voids = self.fleet.voids.iter().map(|(denied, ..)| *denied);
        own || self.fleet.missed.is_some()
            || self.fleet.told.iter().map(|(denied, _)| *denied).chain(voids).any(|denied| denied.caller() == caller)
    }

    /// Whether a caller has never had a proof here, its own or a borrowed one.
    pub fn is_stranger(&self, caller: CallerId) -> bool {
        let is_proof = |call: &Call| call.request.caller == caller && call.list(Ms::MAX).is_some();
        !self.calls.iter().chain(self.earlier.iter().map(|earlier| &earlier.call)).any(is_proof)
            && !self.fleet.borrowed.iter().any(|borrowed| borrowed.caller == caller)
    }

    /// Whether another gateway has told by then of a denial that ends a proof of this process: it counts whatever the times
    /// were at the other gateway.
    pub(super) fn is_told_since(&self, caller: CallerId, scope: ScopeId, sent: Ms, by: Ms) -> bool {
        self.fleet.told.iter().any(|(denied, at)| denied.concerns(caller, scope) && (sent..=by).contains(at))
    }

    /// Whether notices were missed that may have been about an own proof.
    pub(super) fn has_missed_since(&self, sent: Ms, by: Ms) -> bool {
        self.fleet.missed.is_some_and(|missed| (sent..=by).contains(&missed))
    }

    /// The latest proof that is borrowed, in sync, within `lifetime`.
    pub(super) fn borrowed_proof(&self, caller: CallerId, scope: ScopeId, lifetime: Ms, at: Ms) -> Option<Ms> {
        let valid = self.valid(caller, scope, at).filter(|_| self.is_in_sync(at));
        let is_live = |borrowed: &&Borrowed| {
            borrowed.ended.is_none() && borrowed.counts_from + lifetime > at && !self.has_missed_since(borrowed.at, at)
        };
        valid.filter(is_live).map(|borrowed| borrowed.counts_from).max()
    }

    /// Borrowed proofs that no denial has ended.
    fn valid(&self, caller: CallerId, scope: ScopeId, at: Ms) -> impl Iterator<Item = &Borrowed> {
        self.fleet.borrowed.iter().filter(move |borrowed| {
            let is_own = (borrowed.caller, borrowed.scope) == (caller, scope);
            is_own
                && borrowed.at <= at
                && !self.is_told_since(caller, scope, borrowed.at, at)
                && !self.is_denied_here(borrowed, at)
                && !self.fleet.voids.iter().any(|(denied, (incarnation, number), known)| {
                    let is_of_order = *incarnation == borrowed.order.0 && *number >= borrowed.order.1;
                    let is_before = is_of_order && *known <= borrowed.at;
                    denied.concerns(caller, scope) && is_before
                })
        })
    }

    /// Whether a call of this process was denied since a proof was looked up.
    fn is_denied_here(&self, borrowed: &Borrowed, at: Ms) -> bool {
        let earlier = self.earlier.iter().map(|earlier| &earlier.call);
        self.calls.iter().chain(earlier).filter(|call| call.request.caller == borrowed.caller).any(|call| {
            let denied = call.answered(at).filter(|(answered, _)| *answered >= borrowed.at);
            denied.is_some_and(|(_, result)| self.concerns(call, result, borrowed.scope))
        })
    }

    /// If a failure of the caller's own call extends a grant that counts as lapsed: until when a response may have been sent
    /// that the grant gives access to.
    pub(super) fn lapsed_until(&self, caller: CallerId, scope: ScopeId, at: Ms) -> Option<Ms> {
        let grant = self.settings.grant_ttl;
        let missed = self.fleet.missed.unwrap_or(Ms::MAX);
        let borrowed = self.valid(caller, scope, at).filter(|it| it.counts_from + Settings::OUTAGE_GRACE > at);
        let borrowed = borrowed.map(|it| {
            let in_sync = it.ended.unwrap_or(self.fleet.in_sync_until.max(it.at));
            let until = if it.at <= missed { missed } else { Ms::MAX };
            (it.counts_from + grant).min(in_sync).min(until)
        });
        let own = self.calls.iter().filter(|call| {
            let is_own = (call.request.caller, super::scope_of(call.request.key)) == (caller, scope);
            let is_proof = !call.is_relay && !call.is_void && call.sent + Settings::OUTAGE_GRACE > at;
            is_own && is_proof && call.list(at).is_some() && !self.is_denied_since(call, at)
        });
        let own = own.filter(|call| call.sent <= missed).map(|call| (call.sent + grant).min(missed));
        borrowed.chain(own).max()
    }

    /// The process ends. What it had borrowed counts as lapsed in the next one.
    pub(super) fn end_borrowed(&mut self, at: Ms) {
        let Fleet { borrowed, voids, in_sync_until, .. } = &mut self.fleet;
        for it in borrowed {
            it.ended = it.ended.or(Some((*in_sync_until).max(it.at).min(at)));
        }
        voids.clear();
        *in_sync_until = 0;
    }
}
