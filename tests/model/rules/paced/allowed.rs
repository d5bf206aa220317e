//! Which responses and which waits are allowed.

use super::super::super::domain::{Failure, RequestDirectives, UpstreamResult, scope_of, service_of};
use super::super::super::driver::{ClientResponse, check_reply};
use super::super::super::limits::{Limit, asked_wait};
use super::super::super::settings::Settings;
use super::super::look_up::Action;
use super::super::{Effect, Ended, Reply, ReplyKind, Rules, Waiter};
use super::{Paced, Request, State, World, keep, waiter};

impl Request {
    pub(super) fn is_relay(&self) -> bool {
        self.is_relayed || self.request.is_unsafe || self.request.directives == RequestDirectives::NoStore
    }
}

impl Paced {
    /// A response must be one of those that are allowed.
    pub(super) fn responded(&mut self, worlds: &mut Vec<World<'_>>, response: &ClientResponse) -> Result<(), String> {
        let id = response.request.id;
        let place = self.place(id)?;
        let it = self.requests[place].clone();
        if it.state != State::Waiting {
            return Err(format!("#{id} gets a second response"));
        }
        let settings = worlds[0].rules.settings;
        let (mut kind, mut is_held) = (None, false);
        keep(worlds, |world| {
            let allowed = self.allowed(world, &it);
            let mut wrong = None;
            for reply in &allowed {
                match check_reply(response, reply, &settings) {
                    Ok(()) => {
                        kind = Some(reply.kind);
                        is_held |= matches!(reply.kind, ReplyKind::Backoff(_)) && !world.rules.has_reply(&it);
                        return Ok(());
                    }
                    Err(it) => wrong = Some(it),
                }
            }
            Err(format!("#{id}: {}, expected one of {allowed:?}", wrong.unwrap_or("no response is allowed")))
        })?;
        let kind = kind.expect("it is allowed");
        let rules = &worlds[0].rules;
        let (caller, key) = (it.request.caller, it.request.key);
        if matches!(kind, ReplyKind::Revalidating(_)) || is_held {
            self.requests[place].background = Some((rules.cache_key(caller, key), false));
        }
        let has_lapsed = rules.lapsed((caller, scope_of(key))).is_some();
        let has_entry = rules.usable(rules.cache_key(caller, key)).is_some();
        self.requests[place].state = State::Answered(kind);
        if is_held {
            self.count("stale while held");
        }
        if kind == ReplyKind::Held || it.is_relay() && response.retry_after.is_some() && response.waited > 0 {
            self.count("429 of the gateway for a quota");
            if has_lapsed && has_entry {
                self.count("no grace for a call that was held");
            }
        }
        if kind == ReplyKind::StaleOnError && self.waited(&it) >= Settings::ANSWER_TIMEOUT {
            self.count("stale after a call was held");
        }
        Ok(())
    }

    /// The responses that a request may get now.
    fn allowed(&self, world: &World<'_>, it: &Request) -> Vec<Reply> {
        let request = it.request;
        let (caller, key, directives) = (request.caller, request.key, request.directives);
        // What a rule counts or changes here must not stay.
        let mut rules = world.rules.clone();
        let mut allowed = Vec::new();
        if request.spelling.is_ambiguous() {
            return vec![Reply::new(400, None, ReplyKind::Ambiguous)];
        }
        let waited = self.waited(it);
        let may_be_held = self.may_be_held(it, &rules);
        if it.is_relay() {
            for end in world.ended.iter().filter(|end| end.call.id == request.id) {
                allowed.extend(rules.released(it, end));
            }
            // Pass-through has no part in the rules of limits.
            let kind = if request.is_unsafe { ReplyKind::PassedThrough } else { ReplyKind::Relayed };
            if waited >= Settings::ANSWER_TIMEOUT && (may_be_held || self.is_unnoticed()) {
                allowed.extend([429, 503].map(|status| Reply::new(status, None, kind)));
            }
            return allowed;
        }
        if let Action::Respond(reply) | Action::RespondAndRefresh(reply, _) = rules.action(&waiter(request)) {
            if let ReplyKind::Hit(left) = reply.kind
                && waited > 0
            {
                allowed.push(Reply { kind: ReplyKind::HitAfterProof(left), ..reply.clone() });
            }
            allowed.push(reply);
            if waited == 0 && world.ended.is_empty() {
                return allowed.into_iter().map(|reply| rules.conditional(it, reply)).collect();
            }
        }
        let stale = rules.usable(rules.cache_key(caller, key)).filter(|_| rules.has_stale(&request));
        if let Some(entry) = stale {
            if may_be_held && directives == RequestDirectives::None {
                allowed.push(Reply::of(entry, ReplyKind::Backoff(rules.left(entry))));
            }
            if waited >= rules.settings.stale_if_slow {
                allowed.push(Reply::of(entry, ReplyKind::StaleIfSlow));
            }
        }
        let mut allowed: Vec<_> = allowed.into_iter().map(|reply| rules.conditional(it, reply)).collect();
        for end in world.ended.iter().filter(|end| end.call.key == key) {
            // The requests of a caller share its call while a limit holds it back, those with a grant and those without.
            let is_own = end.call.caller == caller && directives != RequestDirectives::NoCache;
            if end.call.id == request.id || is_own || it.fetch_keys.contains(&end.call.fetch_key) {
                allowed.extend(rules.released(it, end));
            }
        }
        // Not being sent extends no grant.
        if waited >= Settings::DEADLINE {
            allowed.extend(reply_of(rules.fail(&request, false, Reply::new(504, None, ReplyKind::TimedOut))));
        }
        if may_be_held && self.was_held_too_long(it) {
            allowed.extend(reply_of(rules.fail(&request, false, Reply::new(429, None, ReplyKind::Held))));
        }
        if it.may_be_relayed && may_be_held && waited >= Settings::ANSWER_TIMEOUT {
            allowed.extend([429, 503].map(|status| Reply::new(status, None, ReplyKind::Relayed)));
        }
        // When a clock has jumped, or the caller has been proved meanwhile, the gateway may notice too late that nothing
        // holds the call back any more.
        if (self.is_unnoticed() || !it.was_granted) && may_be_held && self.was_held_too_long(it) {
            allowed.extend(reply_of(rules.fail(&request, false, Reply::new(503, None, ReplyKind::TimedOut))));
        }
        allowed
    }

    /// Whether the call of a request may have been held back for as long as it may take. It may be the call of an earlier
    /// request, which has begun before.
    fn was_held_too_long(&self, it: &Request) -> bool {
        let longest = self.settings.longest_wait() + Settings::ANSWER_TIMEOUT;
        let may_share = |other: &&Request| {
            let background = other.background.map(|(key, _)| key);
            let is_own = other.request.caller == it.request.caller && other.request.key == it.request.key;
            is_own || other.fetch_keys.iter().chain(&background).any(|key| it.fetch_keys.contains(key))
        };
        let mut others = self.requests.iter().filter(may_share).map(|other| self.waited(other));
        others.any(|waited| (Settings::ANSWER_TIMEOUT..=longest).contains(&waited))
    }

    /// Each request that still waits must have a reason.
    pub(super) fn check_waits(&mut self, worlds: &mut Vec<World<'_>>, have_arrived: bool) -> Result<(), String> {
        let waiting = (0..self.requests.len()).filter(|place| self.requests[*place].state == State::Waiting);
        for place in waiting.collect::<Vec<_>>() {
            let it = self.requests[place].clone();
            let (mut is_held, mut was_throttled) = (false, false);
            keep(worlds, |world| {
                (is_held, was_throttled) = self.check_wait(world, &it, have_arrived && it.arrived == self.now)?;
                Ok(())
            })?;
            if was_throttled {
                if it.was_throttled {
                    return Err(format!("#{} waits after a second 429", it.request.id));
                }
                self.requests[place].was_throttled = true;
                self.follow_wait(it.request.caller, service_of(it.request.key));
            }
            if is_held && !it.is_held {
                self.count("held for a quota");
            }
            let rules = &worlds[0].rules;
            let fetch_key = rules.fetch_key(&it.request);
            let is_granted = rules.is_granted((it.request.caller, scope_of(it.request.key)));
            let is_end = |end: &&Ended<'_>| end.call.key == it.request.key && is_too_large(end);
            let is_too_large = worlds.iter().any(|world| {
                let is_marked = matches!(world.rules.action(&waiter(it.request)), Action::Relay(_));
                is_marked || world.ended.iter().any(|end| is_end(&end))
            });
            let it = &mut self.requests[place];
            it.is_held = is_held;
            it.was_granted &= is_granted;
            it.may_be_relayed |= is_too_large;
            let is_other = |end: &Ended<'_>| end.call.key == it.request.key && end.call.id != it.request.id;
            it.has_left |= worlds[0].ended.iter().any(is_other);
            if !it.fetch_keys.contains(&fetch_key) {
                it.fetch_keys.push(fetch_key);
            }
        }
        Ok(())
    }

    /// Whether a limit holds a waiting request back, and whether its call has just been answered with a 429.
    ///
    /// # Errors
    /// If it must not wait.
    fn check_wait(&self, world: &World<'_>, it: &Request, has_arrived: bool) -> Result<(bool, bool), String> {
        let World { rules, ended } = world;
        let request = it.request;
        let (id, caller, key) = (request.id, request.caller, request.key);
        let waited = self.waited(it);
        let caller_scope = (caller, scope_of(key));
        let may_be_held = self.may_be_held(it, rules);
        if it.is_relay() {
            let is_under_way = rules.calls.iter().any(|call| call.id == id);
            return match is_under_way || may_be_held && waited <= Settings::ANSWER_TIMEOUT {
                true => Ok((!is_under_way, false)),
                false => Err(format!("#{id} waits to be relayed, but no limit holds it back")),
            };
        }
        if has_arrived {
            let action = rules.action(&waiter(request));
            if let Action::Respond(_) | Action::RespondAndRefresh(..) = action {
                return Err(format!("#{id} waits, expected {action:?}"));
            }
            if request.spelling.is_ambiguous() {
                return Err(format!("#{id} waits with an ambiguous token"));
            }
        }
        let longest = rules.settings.longest_wait() + if it.may_be_relayed { Settings::ANSWER_TIMEOUT } else { 0 };
        if waited > longest {
            return Err(format!("#{id} waits beyond its deadline"));
        }
        let mut calls = rules.calls.iter().filter(|call| !call.is_relay);
        let is_awaited = calls.clone().any(|call| call.key == key);
        let takes_stale = request.directives == RequestDirectives::None && rules.has_stale(&request);
        // After a jump of a clock it may join a flight whose call could be sent, but does not know it yet.
        if has_arrived && !is_awaited && takes_stale && !self.is_unnoticed() {
            return Err(format!("#{id} waits for its turn, although it may have a stale response"));
        }
        // The end of its own call ends its wait, unless the call is sent again.
        let mut was_throttled = false;
        if let Some(end) = ended.iter().find(|end| end.call.id == id && !end.call.is_relay) {
            // It may have left that call for another one.
            let is_another = |flight| flight != end.call.flight;
            let is_released = it.has_left
                || rules.calls.iter().any(|call| call.id == id && is_another(call.flight))
                || ended.iter().any(|other| other.call.key == key && is_another(other.call.flight));
            was_throttled = matches!(end.result, UpstreamResult::Complete { status: 429, .. });
            let may_go_on = end.may_repeat && may_be_held;
            if !may_go_on && !is_released && !is_too_large(end) {
                return Err(format!("#{id} still waits after its call has ended"));
            }
            was_throttled &= Limit::named_in(end.result).is_some() || asked_wait(end.result).is_some();
        }
        let is_proved = rules.is_granted(caller_scope);
        let awaits_proof = !is_proved
            && waited < rules.settings.stale_if_slow
            && calls.any(|call| (call.caller, scope_of(call.key)) == caller_scope);
        match is_awaited || awaits_proof || may_be_held || self.may_share_held_call(it, rules) {
            true => Ok((!is_awaited && !awaits_proof, was_throttled)),
            false => Err(format!("#{id} waits, but no call is in flight and no limit holds it back")),
        }
    }
}

/// Whether requests that wait for a call are relayed after it.
fn is_too_large(end: &Ended<'_>) -> bool {
    matches!(end.result, UpstreamResult::Failed(Failure::TooLarge(_))) && !end.call.is_relay
}

fn reply_of(effect: Effect) -> Option<Reply> {
    match effect {
        Effect::Answer(_, reply) => Some(reply),
        Effect::Call(_) | Effect::Relay(_) => None,
    }
}

impl Rules {
    /// Whether a request is answered from memory although no limit holds it back.
    fn has_reply(&self, it: &Request) -> bool {
        matches!(self.action(&waiter(it.request)), Action::Respond(_) | Action::RespondAndRefresh(..))
    }

    /// A client that has the list gets a 304.
    fn conditional(&mut self, it: &Request, reply: Reply) -> Reply {
        reply_of(self.answer(&it.request, reply)).expect("it is a response")
    }

    /// What a request gets of a call that has ended. Which other call it may wait for instead is not predicted.
    fn released(&mut self, it: &Request, end: &Ended<'_>) -> Option<Reply> {
        if is_too_large(end) || end.may_repeat {
            return None;
        }
        let flight = end.call.flight;
        let waiter = Waiter { flight, ..waiter(it.request) };
        let (mut effects, mut retries) = (Vec::new(), Vec::new());
        self.release(waiter, end, &mut effects, &mut retries);
        effects.pop().and_then(reply_of)
    }

    /// Whether a request has a stored response in place of a failure outside the gateway.
    pub(super) fn has_for_failure(&self, it: &Request) -> bool {
        let (caller, key) = (it.request.caller, it.request.key);
        let caller_scope = (caller, scope_of(key));
        let until = if self.is_granted(caller_scope) { Some(self.now) } else { self.lapsed(caller_scope) };
        let usable = self.usable(self.cache_key(caller, key));
        until.is_some_and(|until| usable.is_some_and(|entry| entry.sent <= until))
    }
}
