//! What a refusal changes: at its head, and at the end of its body.
//!
//! A refusal counts from its head on. Waiters of other callers go again at the head. Requests of the refused caller
//! wait for the body. A 401 suspends its caller's other grants in the service until the body has landed: it tells
//! whether the credential itself is refused.

use super::super::settings::Settings;
use super::super::world::{Besides, Ms, RequestId, Said, scope_of, service_of, service_of_scope};
use super::landing::Share;
use super::{Call, CallerScope, Effect, FlightId, Refusal, Rules, Waiting};

/// Longer refusals are not remembered.
const LONGEST_REFUSAL: usize = 8 * 1024;

/// The head of a refusal.
#[derive(Clone, Copy)]
pub(super) struct Head {
    landed: Ms,
    status: u16,
    /// Whether its caller had been proved there by what was sent later.
    was_proved_later: bool,
    /// Whether it was the last answer that its flight waited for.
    was_last: bool,
}

impl Head {
    /// Whether it was the last answer that its flight waited for.
    pub(super) fn was_last(&self) -> bool {
        self.was_last
    }
}

impl Rules {
    /// Whether the head of a refusal may land for a call: what is relayed lands as a whole, and a head lands once.
    pub fn may_have_head(&self, id: RequestId) -> bool {
        self.calls.iter().find(|call| call.id == id).is_some_and(|call| !call.is_relay && call.head.is_none())
    }

    /// The head of a refusal lands. `seen` are the requests whose calls began at that moment, in order.
    pub fn land_head(&mut self, id: RequestId, said: &Said, seen: &[RequestId]) -> Result<Vec<Effect>, String> {
        self.note("refused at the head");
        let place = self.calls.iter().position(|call| call.id == id).expect("it is in the air");
        let mut call = self.calls.remove(place);
        self.answered[service_of(call.key)] = Some(self.now);
        let was_last = self.ends_flight(&call, &Share::Caller);
        let mut again = Vec::new();
        if was_last {
            self.close(&call, &mut again);
        }
        call.head = Some(Head { was_last, ..self.denied(&call, said.denial().expect("it is a refusal")) });
        self.calls.insert(place, call);
        let counted: Vec<_> = again.iter().map(|request| request.question.id).collect();
        self.go_on(again, &counted, seen)
    }

    /// Closes a flight: nobody can join it any more. Waiters of other callers go again. Those of the refused caller wait
    /// for the body, and take nothing stale instead.
    fn close(&mut self, call: &Call, again: &mut Vec<Waiting>) {
        self.flights.iter_mut().filter(|flight| flight.id == call.flight).for_each(|flight| flight.is_open = false);
        for mut request in std::mem::take(&mut self.waiting) {
            let is_aboard = request.aboard == call.flight;
            if is_aboard && request.question.caller != call.caller {
                self.note("released at the head");
                again.push(request);
                continue;
            }
            if is_aboard {
                request.stale_if_slow = None;
            }
            self.waiting.push(request);
        }
    }

    /// A refusal lands as a whole, or its body does after its head.
    pub(super) fn refusal(&mut self, call: &Call, said: &Said) {
        let status = said.denial().expect("it is a refusal");
        let head = call.head.unwrap_or_else(|| self.denied(call, status));
        let (body, may_be_said_again) = match said {
            Said::Whole { body, besides, .. } => (Some(body), !call.is_relay && *besides != Besides::NoStore),
            _ => (None, false),
        };
        if body.is_none() {
            let after_head = call.head.is_some();
            self.note(if after_head { "body without an end after a head" } else { "refusal without an end" });
        }
        self.end_suspension(call, head, said.denies_credential());
        // Who was proved by what was sent later is not refused because of this one.
        let to = (call.caller, scope_of(call.key));
        let is_latest = !head.was_proved_later && self.proved(to).is_none_or(|proved| proved <= call.sent);
        let body = body.filter(|body| may_be_said_again && is_latest && body.len() <= LONGEST_REFUSAL);
        if let Some(body) = body {
            self.refusals.retain(|refusal| refusal.to != to);
            let until = head.landed + Settings::DENIAL_TTL;
            self.refusals.push(Refusal { to, until, status, body: body.clone() });
        }
    }

    /// What the head of a refusal changes. What is said to an unsafe method is about writing, unless it is about the
    /// credential.
    fn denied(&mut self, call: &Call, status: u16) -> Head {
        let to = (call.caller, scope_of(call.key));
        let proved = self.proved(to);
        self.note(if proved.is_some() { "denial of a grant" } else { "denial" });
        if !call.is_unsafe {
            self.grants.retain(|grant| grant.to != to);
            let is_late = |other: &Call| (other.caller, scope_of(other.key)) == to && other.sent <= call.sent;
            self.calls.iter_mut().filter(|other| is_late(other)).for_each(|other| other.is_late = true);
        }
        let mut suspended = 0;
        if status == 401 {
            for grant in self.grants.iter_mut().filter(|grant| is_in_service(call, grant.to)) {
                grant.suspended_by.push(call.flight);
                suspended += 1;
            }
        }
        if suspended > 0 && !call.is_relay {
            self.note("suspended");
        }
        let was_proved_later = proved.is_some_and(|proved| proved > call.sent);
        Head { landed: self.now, status, was_proved_later, was_last: false }
    }

    /// Ends what a 401 has suspended: if the credential is refused, the grants that its caller held in the service when
    /// the head landed end. Otherwise they count again.
    fn end_suspension(&mut self, call: &Call, head: Head, is_of_credential: bool) {
        if head.status != 401 {
            return;
        }
        let is_its = |by: &[FlightId]| by.contains(&call.flight);
        if is_of_credential {
            let before = self.grants.len();
            self.grants.retain(|grant| !is_its(&grant.suspended_by));
            if self.grants.len() < before {
                self.note("denial elsewhere");
            }
            let is_late =
                |other: &Call| is_in_service(call, (other.caller, scope_of(other.key))) && other.sent <= call.sent;
            self.calls.iter_mut().filter(|other| is_late(other)).for_each(|other| other.is_late = true);
            return;
        }
        let mut came_back = false;
        for grant in self.grants.iter_mut().filter(|grant| is_its(&grant.suspended_by)) {
            grant.suspended_by.retain(|by| *by != call.flight);
            came_back |= grant.suspended_by.is_empty();
        }
        if came_back && call.head.is_some() {
            self.note("came back");
        }
    }

    /// Whether a call proves nothing, because its caller has been refused by a call that was sent no earlier.
    pub(super) fn is_late(&mut self, call: &Call) -> bool {
        let caller_scope = (call.caller, scope_of(call.key));
        let suspends = |other: &Call| {
            let is_401 = other.head.is_some_and(|head| head.status == 401);
            is_401 && is_in_service(other, caller_scope) && other.sent >= call.sent
        };
        if !call.is_late && self.calls.iter().any(suspends) {
            self.note("late while suspended");
            return true;
        }
        call.is_late
    }
}

/// Whether something is of a call's caller, and of the service that was called.
fn is_in_service(call: &Call, (caller, scope): CallerScope) -> bool {
    caller == call.caller && service_of_scope(scope) == service_of(call.key)
}
