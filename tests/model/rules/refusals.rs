//! What a refusal changes, at its head and at the end of its body.
//!
//! A refusal counts from its head on. At the head, waiters of other callers look up again; requests of the refused
//! caller wait for the body. A 401 suspends the other grants of its caller in the service until its body has arrived.
//! The body tells whether the credential itself is refused.

use super::super::domain::{ExtraHeader, Ms, RequestId, UpstreamResult, scope_of, service_of, service_of_scope};
use super::super::settings::Settings;
use super::settle::Recipients;
use super::{Call, CallerScope, Effect, FlightId, Refusal, Rules, Waiter};

/// Longer bodies are not remembered.
const MAX_REFUSAL_SIZE: usize = 8 * 1024;

#[derive(Clone, Copy)]
pub(super) struct Head {
    completed: Ms,
    status: u16,
    /// Whether a call that was sent later had already proved the caller there.
    was_proved_later: bool,
    /// Whether its flight waited for no other call.
    was_last: bool,
}

impl Head {
    pub(super) fn was_last(&self) -> bool {
        self.was_last
    }
}

impl Rules {
    /// Whether the head of a refusal may arrive separately: once for each call, and not for a relayed one.
    pub fn may_have_head(&self, id: RequestId) -> bool {
        self.calls.iter().find(|call| call.id == id).is_some_and(|call| !call.is_relay && call.head.is_none())
    }

    /// The head of a refusal arrives. `started` has the requests whose calls started at that moment, in order.
    pub fn deliver_head(
        &mut self,
        id: RequestId,
        result: &UpstreamResult,
        started: &[RequestId],
    ) -> Result<Vec<Effect>, String> {
        self.count("head of a refusal");
        let index = self.calls.iter().position(|call| call.id == id).expect("the call is in flight");
        let mut call = self.calls.remove(index);
        self.answered[service_of(call.key)] = Some(self.now);
        let was_last = self.ends_flight(&call, &Recipients::Caller);
        let mut retries = Vec::new();
        if was_last {
            self.close_flight(&call, &mut retries);
        }
        call.head =
            Some(Head { was_last, ..self.apply_refusal_head(&call, result.denial().expect("it is a refusal")) });
        let is_shared = call.fetch_key.owner.is_none();
        self.calls.insert(index, call);
        let counted = retries.iter().map(|waiter| (waiter.request.id, Some(is_shared))).collect();
        self.continue_waiters(retries, counted, started)
    }

    /// Closes a flight: no request can join it. Waiters of other callers look up again. Those of the refused caller
    /// wait for the body, and take no stale entry.
    fn close_flight(&mut self, call: &Call, retries: &mut Vec<Waiter>) {
        self.flights.iter_mut().filter(|flight| flight.id == call.flight).for_each(|flight| flight.is_open = false);
        for mut waiter in std::mem::take(&mut self.waiters) {
            let is_aboard = waiter.flight == call.flight;
            if is_aboard && waiter.request.caller != call.caller {
                self.count("released at the head of a refusal");
                retries.push(waiter);
                continue;
            }
            if is_aboard {
                waiter.stale_if_slow = None;
            }
            self.waiters.push(waiter);
        }
    }

    /// A refusal arrives as a whole, or its body arrives after its head.
    pub(super) fn refusal(&mut self, call: &Call, result: &UpstreamResult) {
        let status = result.denial().expect("it is a refusal");
        let head = call.head.unwrap_or_else(|| self.apply_refusal_head(call, status));
        let (body, may_be_remembered) = match result {
            UpstreamResult::Complete { body, extra_header, .. } => {
                (Some(body), !call.is_relay && *extra_header != ExtraHeader::NoStore)
            }
            _ => (None, false),
        };
        if body.is_none() {
            let after_head = call.head.is_some();
            self.count(if after_head { "incomplete refusal after its head" } else { "incomplete refusal" });
        }
        self.end_suspension(call, head, result.denies_credential());
        // A proof that was sent later overrules this refusal.
        let caller_scope = (call.caller, scope_of(call.key));
        let is_latest = !head.was_proved_later && self.proved(caller_scope).is_none_or(|proved| proved <= call.sent);
        let body = body.filter(|body| may_be_remembered && is_latest && body.len() <= MAX_REFUSAL_SIZE);
        if let Some(body) = body {
            self.refusals.retain(|refusal| refusal.caller_scope != caller_scope);
            let until = head.completed + Settings::DENIAL_TTL;
            self.refusals.push(Refusal { caller_scope, until, status, body: body.clone() });
        }
    }

    /// Applies the head of a refusal. The response to an unsafe method counts only if it is about the credential.
    pub(super) fn apply_refusal_head(&mut self, call: &Call, status: u16) -> Head {
        let caller_scope = (call.caller, scope_of(call.key));
        let proved = self.proved(caller_scope);
        self.count(if proved.is_some() { "denial of a grant" } else { "denial" });
        if !call.is_unsafe {
            self.grants.retain(|grant| grant.caller_scope != caller_scope);
            let is_late = |other: &Call| (other.caller, scope_of(other.key)) == caller_scope && other.sent <= call.sent;
            self.calls.iter_mut().filter(|other| is_late(other)).for_each(|other| other.is_late = true);
        }
        let mut suspended = 0;
        if status == 401 {
            for grant in self.grants.iter_mut().filter(|grant| is_in_service(call, grant.caller_scope)) {
                grant.suspended_by.push(call.flight);
                suspended += 1;
            }
        }
        if suspended > 0 && !call.is_relay {
            self.count("suspended grants");
        }
        let was_proved_later = proved.is_some_and(|proved| proved > call.sent);
        Head { completed: self.now, status, was_proved_later, was_last: false }
    }

    /// Ends the suspension by a 401. If the credential is refused, the grants that its caller held in the service at
    /// the head end. Otherwise they count again.
    fn end_suspension(&mut self, call: &Call, head: Head, is_of_credential: bool) {
        if head.status != 401 {
            return;
        }
        let is_matching = |by: &[FlightId]| by.contains(&call.flight);
        if is_of_credential {
            let before = self.grants.len();
            self.grants.retain(|grant| !is_matching(&grant.suspended_by));
            if self.grants.len() < before {
                self.count("denial in other scopes");
            }
            let is_late =
                |other: &Call| is_in_service(call, (other.caller, scope_of(other.key))) && other.sent <= call.sent;
            self.calls.iter_mut().filter(|other| is_late(other)).for_each(|other| other.is_late = true);
            return;
        }
        let mut came_back = false;
        for grant in self.grants.iter_mut().filter(|grant| is_matching(&grant.suspended_by)) {
            grant.suspended_by.retain(|by| *by != call.flight);
            came_back |= grant.suspended_by.is_empty();
        }
        if came_back && call.head.is_some() {
            self.count("suspended grant restored");
        }
    }

    /// Whether a call proves nothing, because a call of its caller that was sent no earlier was refused.
    pub(super) fn is_late(&mut self, call: &Call) -> bool {
        let caller_scope = (call.caller, scope_of(call.key));
        let suspends = |other: &Call| {
            let is_401 = other.head.is_some_and(|head| head.status == 401);
            is_401 && is_in_service(other, caller_scope) && other.sent >= call.sent
        };
        if !call.is_late && self.calls.iter().any(suspends) {
            self.count("late proof during a suspension of grants");
            return true;
        }
        call.is_late
    }
}

/// Whether a caller and scope are of a call's caller and service.
fn is_in_service(call: &Call, (caller, scope): CallerScope) -> bool {
    caller == call.caller && service_of_scope(scope) == service_of(call.key)
}
