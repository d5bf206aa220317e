//! What a request meets, and where it goes.

use super::super::script::Begun;
use super::super::settings::Settings;
use super::super::world::{CacheRequest, RequestDirectives, scope_of};
use super::memory::{meets, takes_stale};
use super::{CacheKey, Call, ELECTIONS, Effect, FailedScope, Flight, FlightId, How, Negative, Reply, Rules, Waiting};

#[derive(Debug)]
pub(super) enum ProxyRoute {
    Answered(Reply),
    /// Answered, while a call begins that it doesn't wait for.
    Refreshed(Reply, CacheKey),
    Relay(CacheKey),
    Lead(CacheKey),
    Follow(FlightId),
    Solo(CacheKey),
}

impl ProxyRoute {
    pub(super) fn begins_a_call(&self) -> bool {
        matches!(self, Self::Refreshed(..) | Self::Lead(_) | Self::Solo(_))
    }
}

impl Rules {
    /// What a request meets that has gone again so often.
    pub(super) fn way(&self, question: &CacheRequest, elections: u32) -> ProxyRoute {
        let CacheRequest { caller, key, wish, .. } = *question;
        let to = (caller, scope_of(key));
        let boarding = self.boarding(question);
        if wish == RequestDirectives::NoStore || question.is_unsafe {
            return ProxyRoute::Relay(boarding);
        }
        if let Some(refusal) = self.refusals.iter().find(|refusal| refusal.to == to && refusal.until > self.now) {
            return ProxyRoute::Answered(Reply::new(refusal.status, Some(refusal.body.clone()), How::Refused));
        }
        // Shared and lone flights have bounds of their own.
        let is_shared = boarding.owner.is_none();
        let is_alike = |flight: &&Flight| flight.is_open && flight.slot.owner.is_none() == is_shared;
        let open: Vec<_> = self.flights.iter().filter(is_alike).collect();
        let flight = open.iter().find(|flight| flight.slot == boarding);
        if let Some(reply) = self.remembered(question) {
            let is_refreshed = matches!(reply.how, How::Revalidating(_))
                && wish != RequestDirectives::OnlyIfCached
                && flight.is_none()
                && open.len() < self.settings.max_flights;
            return if is_refreshed { ProxyRoute::Refreshed(reply, boarding) } else { ProxyRoute::Answered(reply) };
        }
        if wish == RequestDirectives::OnlyIfCached {
            return ProxyRoute::Answered(Reply::new(504, None, How::NotCached));
        }
        if let Some(mark) = self.mark(boarding, caller) {
            return if mark.is_too_large { ProxyRoute::Relay(boarding) } else { ProxyRoute::Solo(boarding) };
        }
        if elections > ELECTIONS || wish == RequestDirectives::NoCache {
            return ProxyRoute::Solo(boarding);
        }
        match flight {
            Some(flight) if self.followers(is_shared) < self.settings.max_waiters => ProxyRoute::Follow(flight.id),
            None if open.len() < self.settings.max_flights => ProxyRoute::Lead(boarding),
            _ => ProxyRoute::Solo(boarding),
        }
    }

    /// Which flight a request boards: that of all, or one of its caller's own.
    pub(super) fn boarding(&self, question: &CacheRequest) -> CacheKey {
        let CacheRequest { caller, key, .. } = *question;
        if self.is_granted((caller, scope_of(key))) {
            self.slot(caller, key)
        } else {
            CacheKey { key, owner: Some(caller) }
        }
    }

    /// What is given without asking, though perhaps upstream is asked afterwards.
    pub(super) fn remembered(&self, question: &CacheRequest) -> Option<Reply> {
        let CacheRequest { caller, key, wish, .. } = *question;
        let slot = self.slot(caller, key);
        let to = (caller, scope_of(key));
        if !self.is_granted(to) {
            // Whose own attempt has failed just before need not try again at once.
            let own = CacheKey { key, owner: Some(caller) };
            let is_backing_off = self.is_backing_off(&FailedScope::CacheKey(own));
            let until = self.lapsed(to).filter(|_| is_backing_off && takes_stale(wish))?;
            let entry = self.usable(slot).filter(|entry| entry.sent <= until)?;
            return Some(Reply::of(entry, How::Backoff(self.left(entry))));
        }
        let entry = self.usable(slot);
        if let Some(entry) = entry
            && self.left(entry) > 0
            && meets(wish, self.age(entry), self.left(entry))
        {
            return Some(Reply::of(entry, How::Hit(self.left(entry))));
        }
        let is_it = |negative: &&Negative| negative.slot == slot && self.is_valid(slot.key, negative.sent);
        if let Some(negative) = self.negatives.iter().find(is_it) {
            let age = self.now - negative.sent;
            let left = self.settings.negative_ttl.cast_signed() - age.cast_signed();
            if left > 0 && meets(wish, age, left) {
                return Some(Reply::new(negative.status, Some(negative.body.clone()), How::Negative(left)));
            }
        }
        let entry = entry.filter(|entry| takes_stale(wish) && self.may_be_stale(entry, caller))?;
        let left = self.left(entry);
        if self.is_paused_for(caller, slot) {
            return Some(Reply::of(entry, How::Backoff(left)));
        }
        let is_revalidated = left + self.settings.stale_while_revalidate.cast_signed() > 0;
        is_revalidated.then(|| Reply::of(entry, How::Revalidating(left)))
    }

    /// Whether a request would rather take something stale than wait on.
    fn has_stale(&self, question: &CacheRequest) -> bool {
        let CacheRequest { caller, key, wish, .. } = *question;
        let entry = self.usable(self.slot(caller, key));
        let is_granted = self.is_granted((caller, scope_of(key)));
        let may_be_given = |entry| self.left(entry) > 0 || self.may_be_stale(entry, caller);
        is_granted && takes_stale(wish) && entry.is_some_and(may_be_given)
    }

    /// A request goes its way.
    pub(super) fn go(&mut self, mut request: Waiting, way: ProxyRoute) -> Vec<Effect> {
        (request.stale_if_slow, request.was_unable) = (None, false);
        match way {
            ProxyRoute::Answered(reply) => {
                self.note(word(reply.how));
                let CacheRequest { caller, key, .. } = request.question;
                if matches!(reply.how, How::Backoff(_)) && !self.is_granted((caller, scope_of(key))) {
                    self.note("paused by grace");
                }
                return vec![self.answer(&request.question, reply)];
            }
            ProxyRoute::Refreshed(reply, slot) => {
                self.note(word(reply.how));
                self.note("refreshed");
                let begun = self.begin(&mut request, slot, true);
                return vec![self.answer(&request.question, reply), Effect::Call(begun)];
            }
            ProxyRoute::Relay(slot) => {
                self.note(match request.question {
                    CacheRequest { is_unsafe: true, .. } => "passed through",
                    CacheRequest { wish: RequestDirectives::NoStore, .. } => "relayed by wish",
                    _ => "relayed at once",
                });
                return vec![Effect::Relay(self.relay(request, slot))];
            }
            ProxyRoute::Follow(_) | ProxyRoute::Lead(_) | ProxyRoute::Solo(_) => {}
        }
        self.note_why(&request.question);
        if self.has_stale(&request.question) && !request.is_resigned {
            request.stale_if_slow = Some(request.arrived + self.settings.stale_if_slow);
        }
        let mut effects = Vec::new();
        match way {
            ProxyRoute::Follow(flight) => {
                self.note("boarded");
                if !self.waiting.iter().any(|request| request.aboard == flight) {
                    self.note("boarded what nobody waits for");
                }
                request.aboard = flight;
            }
            ProxyRoute::Lead(slot) | ProxyRoute::Solo(slot) => {
                let is_open = matches!(way, ProxyRoute::Lead(_));
                self.note(if is_open { "led" } else { "solo" });
                if !is_open && request.elections > ELECTIONS {
                    self.note("solo after elections");
                }
                effects.push(Effect::Call(self.begin(&mut request, slot, is_open)));
            }
            ProxyRoute::Answered(_) | ProxyRoute::Refreshed(..) | ProxyRoute::Relay(_) => unreachable!("it is gone"),
        }
        if request.stale_if_slow.is_some_and(|end| end <= self.now) {
            effects.extend(self.tire(request));
        } else {
            self.waiting.push(request);
        }
        effects
    }

    /// Why upstream is asked for what could be given.
    fn note_why(&mut self, question: &CacheRequest) {
        let CacheRequest { caller, key, wish, .. } = *question;
        let Some(entry) = self.usable(self.slot(caller, key)) else { return };
        let may_be_stale = self.may_be_stale(entry, caller);
        match wish {
            _ if !self.is_granted((caller, scope_of(key))) => {}
            RequestDirectives::NoCache => self.note("asked by wish"),
            _ if !takes_stale(wish) => self.note("not as wished"),
            _ if !may_be_stale => self.note("spoken against"),
            _ => {}
        }
    }

    /// A request goes on as it is.
    pub(super) fn relay(&mut self, mut request: Waiting, slot: CacheKey) -> Begun {
        (request.deadline, request.stale_if_slow) = (None, None);
        request.aboard = self.new_flight(&request.question, slot, false);
        let begun = self.depart(&request, slot, request.aboard, true);
        self.waiting.push(request);
        begun
    }

    /// A request begins a flight.
    fn begin(&mut self, request: &mut Waiting, slot: CacheKey, is_open: bool) -> Begun {
        request.aboard = self.new_flight(&request.question, slot, is_open);
        let begun = self.depart(request, slot, request.aboard, false);
        request.is_repeat_due = false;
        begun
    }

    fn new_flight(&mut self, question: &CacheRequest, slot: CacheKey, is_open: bool) -> FlightId {
        let id = self.next_flight;
        self.next_flight += 1;
        self.flights.push(Flight { id, slot, is_open, callers: vec![question.caller] });
        id
    }

    /// A call begins. Who is granted asks about what is there.
    pub(super) fn depart(&mut self, request: &Waiting, boarding: CacheKey, flight: FlightId, is_relay: bool) -> Begun {
        let is_repeat = request.is_repeat_due && !is_relay;
        let CacheRequest { id, caller, key, is_plain, is_unsafe, .. } = request.question;
        let may_ask = self.is_granted((caller, scope_of(key))) && !is_relay;
        let about = self.entry(boarding).filter(|entry| may_ask && !entry.is_misunderstood);
        let asked = about.and_then(|entry| entry.tag);
        let asked_sent = about.map(|entry| entry.sent);
        if asked.is_some() {
            self.note("asked about");
        }
        if asked_sent.is_some_and(|sent| !self.is_valid(key, sent)) && asked.is_some() {
            self.note("asked to confirm");
        }
        let (sent, timer_sent, was_purged, is_late) = (self.now, self.now, false, false);
        self.calls.push(Call {
            id,
            flight,
            caller,
            key,
            is_plain,
            is_unsafe,
            is_relay,
            boarding,
            asked,
            asked_sent,
            sent,
            timer_sent,
            was_purged,
            is_late,
            is_repeat,
            head: None,
        });
        Begun { id, caller, key, is_plain, is_unsafe, asked }
    }

    /// A request has waited for as long as its patience goes.
    pub(super) fn tire(&mut self, mut request: Waiting) -> Option<Effect> {
        let CacheRequest { caller, key, .. } = request.question;
        let may_have = self.has_stale(&request.question);
        let Some(entry) = self.usable(self.slot(caller, key)).filter(|_| may_have) else {
            self.note("patient for nothing");
            (request.stale_if_slow, request.is_resigned) = (None, true);
            self.waiting.push(request);
            return None;
        };
        let reply = Reply::of(entry, How::StaleIfSlow);
        self.note("stale-if-slow");
        Some(self.answer(&request.question, reply))
    }

    /// The time of a request is up.
    pub(super) fn time_out(&mut self, request: &Waiting) -> Effect {
        self.note("out of time");
        let Waiting { question, aboard, .. } = request;
        let is_its = |call: &Call| call.flight == *aboard && call.caller == question.caller;
        if self.calls.iter().any(|call| is_its(call) && call.head.is_some()) {
            self.note("out of time after a head");
        }
        debug_assert!(request.deadline == Some(request.arrived + Settings::DEADLINE));
        // Upstream may not have had its whole time: that extends no grant.
        self.fail(&request.question, false, Reply::new(504, None, How::TimedOut))
    }
}

/// What is noted of an answer from memory.
fn word(how: How) -> &'static str {
    match how {
        How::Refused => "refused from memory",
        How::Negative(_) => "negative from memory",
        How::Backoff(_) => "backoff",
        How::Revalidating(_) => "given while revalidated",
        How::NotCached => "not cached",
        _ => "hit",
    }
}
