//! What happens to a request: it is answered, relayed, joins a flight, or starts a call.

use super::super::domain::{CacheRequest, RequestDirectives, scope_of};
use super::super::scripted_upstream::UpstreamRequest;
use super::super::settings::Settings;
use super::memory::{accepts, takes_stale};
use super::{
    BackoffTarget, CacheKey, Call, Effect, Flight, FlightId, MAX_ELECTIONS, Negative, Reply, ReplyKind, Rules, Waiter,
};

#[derive(Debug)]
pub(super) enum Action {
    Respond(Reply),
    /// Respond now, and start a call in the background.
    RespondAndRefresh(Reply, CacheKey),
    Relay(CacheKey),
    Lead(CacheKey),
    Join(FlightId),
    Solo(CacheKey),
    /// Wait for a call that may prove the caller.
    WaitForProof,
}

impl Action {
    pub(super) fn starts_call(&self) -> bool {
        matches!(self, Self::RespondAndRefresh(..) | Self::Lead(_) | Self::Solo(_))
    }
}

impl Rules {
    /// What happens to a request that looks up again. It may have waited in a flight so long that it cannot wait for a
    /// proof.
    pub(super) fn next_action(&self, waiter: &mut Waiter) -> Action {
        match self.action(waiter) {
            Action::WaitForProof if waiter.arrived + self.settings.stale_if_slow <= self.now => {
                (waiter.proof_was_slow, waiter.had_no_stale) = (true, true);
                self.action(waiter)
            }
            action => action,
        }
    }

    /// What happens to a request that arrives.
    pub(super) fn action(&self, waiter: &Waiter) -> Action {
        let Waiter { request, .. } = waiter;
        let CacheRequest { caller, key, directives, .. } = *request;
        let caller_scope = (caller, scope_of(key));
        let fetch_key = self.fetch_key(request);
        if directives == RequestDirectives::NoStore || request.is_unsafe {
            return Action::Relay(fetch_key);
        }
        if let Some(refusal) =
            self.refusals.iter().find(|refusal| refusal.caller_scope == caller_scope && refusal.until > self.now)
        {
            return Action::Respond(Reply::new(refusal.status, Some(refusal.body.clone()), ReplyKind::Denied));
        }
        // Shared flights and flights of a single caller have separate limits.
        let is_shared = fetch_key.owner.is_none();
        let has_same_bounds = |flight: &&Flight| flight.is_open && flight.cache_key.owner.is_none() == is_shared;
        let open: Vec<_> = self.flights.iter().filter(has_same_bounds).collect();
        let flight = open.iter().find(|flight| flight.cache_key == fetch_key);
        if let Some(mut reply) = self.reply_from_memory(request) {
            if let ReplyKind::Hit(left) = reply.kind
                && (waiter.proof_waits > 0 || waiter.proof_was_slow)
            {
                reply.kind = ReplyKind::HitAfterProof(left);
            }
            let is_refreshed = matches!(reply.kind, ReplyKind::Revalidating(_))
                && directives != RequestDirectives::OnlyIfCached
                && flight.is_none()
                && open.len() < self.settings.max_flights;
            return if is_refreshed { Action::RespondAndRefresh(reply, fetch_key) } else { Action::Respond(reply) };
        }
        if directives == RequestDirectives::OnlyIfCached {
            return Action::Respond(Reply::new(504, None, ReplyKind::NotCached));
        }
        if let Some(mark) = self.mark(fetch_key, caller) {
            return if mark.is_too_large { Action::Relay(fetch_key) } else { Action::Solo(fetch_key) };
        }
        if self.calls_alone(waiter, fetch_key) {
            return Action::Solo(fetch_key);
        }
        if self.waits_for_proof(waiter, flight.map(|flight| flight.id)) {
            return Action::WaitForProof;
        }
        match flight {
            Some(flight) if self.followers(is_shared) < self.settings.max_waiters => Action::Join(flight.id),
            None if open.len() < self.settings.max_flights => Action::Lead(fetch_key),
            _ => Action::Solo(fetch_key),
        }
    }

    /// Whether a request makes a call of its own, whatever others do.
    pub(super) fn calls_alone(&self, waiter: &Waiter, fetch_key: CacheKey) -> bool {
        waiter.elections > MAX_ELECTIONS
            || waiter.request.directives == RequestDirectives::NoCache
            || self.mark(fetch_key, waiter.request.caller).is_some()
    }

    /// The cache key of the flight for a request: shared, or the caller's own if it has no grant.
    pub(super) fn fetch_key(&self, request: &CacheRequest) -> CacheKey {
        let CacheRequest { caller, key, .. } = *request;
        if self.is_granted((caller, scope_of(key))) {
            self.cache_key(caller, key)
        } else {
            CacheKey { key, owner: Some(caller) }
        }
    }

    /// The response from memory. A background call may follow.
    pub(super) fn reply_from_memory(&self, request: &CacheRequest) -> Option<Reply> {
        let CacheRequest { caller, key, directives, .. } = *request;
        let cache_key = self.cache_key(caller, key);
        let caller_scope = (caller, scope_of(key));
        if !self.is_granted(caller_scope) {
            // A caller without a grant whose own call failed just before need not call again immediately.
            let own = CacheKey { key, owner: Some(caller) };
            let is_backing_off = self.is_backing_off(&BackoffTarget::CacheKey(own));
            let until = self.lapsed(caller_scope).filter(|_| is_backing_off && takes_stale(directives))?;
            let entry = self.usable(cache_key).filter(|entry| entry.sent <= until)?;
            return Some(Reply::of(entry, ReplyKind::Backoff(self.left(entry))));
        }
        let entry = self.usable(cache_key);
        if let Some(entry) = entry
            && self.left(entry) > 0
            && accepts(directives, self.age(entry), self.left(entry))
        {
            return Some(Reply::of(entry, ReplyKind::Hit(self.left(entry))));
        }
        let is_current =
            |negative: &&Negative| negative.cache_key == cache_key && self.is_valid(cache_key.key, negative.sent);
        if let Some(negative) = self.negatives.iter().find(is_current) {
            let age = self.now - negative.sent;
            let left = self.settings.negative_ttl.cast_signed() - age.cast_signed();
            if left > 0 && accepts(directives, age, left) {
                return Some(Reply::new(negative.status, Some(negative.body.clone()), ReplyKind::Negative(left)));
            }
        }
        let entry = entry.filter(|entry| takes_stale(directives) && self.may_be_stale(entry, caller))?;
        let left = self.left(entry);
        if self.is_backing_off_for(caller, cache_key) {
            return Some(Reply::of(entry, ReplyKind::Backoff(left)));
        }
        let is_revalidated = left + self.settings.stale_while_revalidate.cast_signed() > 0;
        is_revalidated.then(|| Reply::of(entry, ReplyKind::Revalidating(left)))
    }

    /// Whether a request may take a stale entry in place of waiting.
    pub(super) fn has_stale(&self, request: &CacheRequest) -> bool {
        let CacheRequest { caller, key, directives, .. } = *request;
        let entry = self.usable(self.cache_key(caller, key));
        let is_granted = self.is_granted((caller, scope_of(key)));
        let may_be_given = |entry| self.left(entry) > 0 || self.may_be_stale(entry, caller);
        is_granted && takes_stale(directives) && entry.is_some_and(may_be_given)
    }

    pub(super) fn perform(&mut self, mut waiter: Waiter, action: Action) -> Vec<Effect> {
        (waiter.stale_if_slow, waiter.could_not_call) = (None, false);
        match action {
            Action::Respond(reply) => {
                self.count(rule_of(reply.kind));
                let CacheRequest { caller, key, .. } = waiter.request;
                if matches!(reply.kind, ReplyKind::Backoff(_)) && !self.is_granted((caller, scope_of(key))) {
                    self.count("hit during a backoff by grace");
                }
                return vec![self.answer(&waiter.request, reply)];
            }
            Action::RespondAndRefresh(reply, cache_key) => {
                self.count(rule_of(reply.kind));
                self.count("background refresh");
                let call = self.start_flight(&mut waiter, cache_key, true);
                return vec![self.answer(&waiter.request, reply), Effect::Call(call)];
            }
            Action::Relay(cache_key) => {
                self.count(match waiter.request {
                    CacheRequest { is_unsafe: true, .. } => "unsafe method relayed",
                    CacheRequest { directives: RequestDirectives::NoStore, .. } => "relayed because of no-store",
                    _ => "relayed because of a mark",
                });
                return vec![Effect::Relay(self.relay(waiter, cache_key))];
            }
            Action::WaitForProof => {
                self.count("wait for a proof");
                (waiter.awaits_proof, waiter.proof_wait_began) = (true, self.now);
                self.waiters.push(waiter);
                return Vec::new();
            }
            Action::Join(_) | Action::Lead(_) | Action::Solo(_) => {}
        }
        self.count_reason(&waiter.request);
        if self.has_stale(&waiter.request) && !waiter.had_no_stale {
            waiter.stale_if_slow = Some(waiter.arrived + self.settings.stale_if_slow);
        }
        let mut effects = Vec::new();
        match action {
            Action::Join(flight) => {
                self.count("joined a flight");
                if !self.waiters.iter().any(|waiter| waiter.flight == flight) {
                    self.count("joined a flight without waiters");
                }
                waiter.flight = flight;
            }
            Action::Lead(cache_key) | Action::Solo(cache_key) => {
                let is_open = matches!(action, Action::Lead(_));
                let is_alone = self.calls_alone(&waiter, cache_key);
                let own = self.flights.iter().find(|flight| flight.is_open && flight.cache_key == cache_key);
                let is_proof = !is_alone && self.leads_proof(&waiter, own.map(|flight| flight.id));
                self.count(if is_open { "led a flight" } else { "solo flight" });
                if !is_open && waiter.elections > MAX_ELECTIONS {
                    self.count("solo flight after too many leaders");
                }
                effects.push(Effect::Call(self.start_flight(&mut waiter, cache_key, is_open)));
                self.calls.last_mut().expect("it has started").is_proof = is_proof;
            }
            Action::Respond(_) | Action::RespondAndRefresh(..) | Action::Relay(_) | Action::WaitForProof => {
                unreachable!("handled above")
            }
        }
        if waiter.stale_if_slow.is_some_and(|end| end <= self.now) {
            effects.extend(self.reach_stale_if_slow(waiter));
        } else {
            self.waiters.push(waiter);
        }
        effects
    }

    /// Counts why upstream is called although there is an entry.
    fn count_reason(&mut self, request: &CacheRequest) {
        let CacheRequest { caller, key, directives, .. } = *request;
        let Some(entry) = self.usable(self.cache_key(caller, key)) else { return };
        let may_be_stale = self.may_be_stale(entry, caller);
        match directives {
            _ if !self.is_granted((caller, scope_of(key))) => {}
            RequestDirectives::NoCache => self.count("no-cache"),
            _ if !takes_stale(directives) => self.count("request directives not met"),
            _ if !may_be_stale => self.count("stale entry overruled"),
            _ => {}
        }
    }

    pub(super) fn relay(&mut self, mut waiter: Waiter, cache_key: CacheKey) -> UpstreamRequest {
        (waiter.deadline, waiter.stale_if_slow) = (None, None);
        waiter.flight = self.new_flight(&waiter.request, cache_key, false);
        let call = self.start_call(&waiter, cache_key, waiter.flight, true);
        self.waiters.push(waiter);
        call
    }

    fn start_flight(&mut self, waiter: &mut Waiter, cache_key: CacheKey, is_open: bool) -> UpstreamRequest {
        waiter.flight = self.new_flight(&waiter.request, cache_key, is_open);
        let call = self.start_call(waiter, cache_key, waiter.flight, false);
        waiter.is_repeat_due = false;
        call
    }

    pub(super) fn new_flight(&mut self, request: &CacheRequest, cache_key: CacheKey, is_open: bool) -> FlightId {
        let id = self.next_flight;
        self.next_flight += 1;
        self.flights.push(Flight { id, cache_key, is_open, callers: vec![request.caller] });
        id
    }

    /// Starts a call. It is conditional if the caller is granted and there is an entry.
    pub(super) fn start_call(
        &mut self,
        waiter: &Waiter,
        fetch_key: CacheKey,
        flight: FlightId,
        is_relay: bool,
    ) -> UpstreamRequest {
        let is_repeat = waiter.is_repeat_due && !is_relay;
        let CacheRequest { id, caller, key, is_direct, is_unsafe, .. } = waiter.request;
        let may_be_conditional = self.is_granted((caller, scope_of(key))) && !is_relay;
        // A renewal is made for its caller alone, and revalidates the entry that all see.
        let stored = if may_be_conditional { self.cache_key(caller, key) } else { fetch_key };
        let revalidated = self.entry(stored).filter(|entry| may_be_conditional && !entry.had_wrong_304);
        let validator = revalidated.and_then(|entry| entry.etag);
        let entry_sent = revalidated.map(|entry| entry.sent);
        if validator.is_some() {
            self.count("conditional request");
        }
        if entry_sent.is_some_and(|sent| !self.is_valid(key, sent)) && validator.is_some() {
            self.count("revalidated after an invalidation");
        }
        let (sent, timer_sent, was_purged, is_late) = (self.now, self.now, false, false);
        self.calls.push(Call {
            id,
            flight,
            caller,
            key,
            is_direct,
            is_unsafe,
            is_relay,
            fetch_key,
            validator,
            entry_sent,
            sent,
            timer_sent,
            was_purged,
            is_late,
            is_repeat,
            is_proof: false,
            is_renewal: false,
            head: None,
        });
        UpstreamRequest { id, caller, key, is_direct, is_unsafe, validator }
    }

    /// The request has waited for `stale_if_slow`.
    pub(super) fn reach_stale_if_slow(&mut self, mut waiter: Waiter) -> Option<Effect> {
        let CacheRequest { caller, key, .. } = waiter.request;
        let may_have = self.has_stale(&waiter.request);
        let Some(entry) = self.usable(self.cache_key(caller, key)).filter(|_| may_have) else {
            self.count("slow without a usable entry");
            (waiter.stale_if_slow, waiter.had_no_stale) = (None, true);
            self.waiters.push(waiter);
            return None;
        };
        let reply = Reply::of(entry, ReplyKind::StaleIfSlow);
        self.count("stale if slow");
        Some(self.answer(&waiter.request, reply))
    }

    /// The request has reached its deadline.
    pub(super) fn time_out(&mut self, waiter: &Waiter) -> Effect {
        self.count("deadline");
        let Waiter { request, flight, .. } = waiter;
        let waited = self.now - waiter.arrived;
        debug_assert!((Settings::DEADLINE..=self.settings.longest_wait()).contains(&waited), "{waiter:?}");
        let is_matching = |call: &Call| call.flight == *flight && call.caller == request.caller;
        if self.calls.iter().any(|call| is_matching(call) && call.head.is_some()) {
            self.count("deadline after the head of a refusal");
        }
        // The call may not have had upstream's whole time, so this extends no grant.
        self.fail(&waiter.request, false, Reply::new(504, None, ReplyKind::TimedOut))
    }
}

/// The name in the tally.
fn rule_of(kind: ReplyKind) -> &'static str {
    match kind {
        ReplyKind::Denied => "denied hit",
        ReplyKind::Negative(_) => "negative hit",
        ReplyKind::Backoff(_) => "hit during a backoff",
        ReplyKind::Revalidating(_) => "stale while revalidated",
        ReplyKind::HitAfterProof(_) => "hit after a proof",
        ReplyKind::NotCached => "only-if-cached without an entry",
        _ => "hit",
    }
}
