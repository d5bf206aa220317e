//! What an answer changes.

use super::super::settings::Settings;
use super::super::world::{Besides, Failure, Ms, SCOPES, Said, Scope, ScopeId, Version, scope_of, service_of};
use super::{Backoff, CacheKey, Call, Entry, FailedScope, Grant, Link, Mark, Negative, Rules};

/// To whom what a call has brought is given, besides the one who leads it.
#[derive(PartialEq)]
pub(super) enum Share {
    /// Nobody.
    None,
    /// The leader's caller.
    Caller,
    /// The same, if nothing has been changed in between.
    CallerIfValid,
    /// The same, and nothing else has come in between either.
    Varies,
    /// All who are granted, if nothing has come in between.
    Granted,
    /// The same, and the leader's caller in any case.
    GrantedAndCaller,
    /// A failure: the leader's caller and all who are granted, or something stale in its place.
    Failure,
}

impl Share {
    /// Whether it is what everybody has waited for, so that the other calls of the flight are not needed.
    pub(super) fn serves_all(&self) -> bool {
        matches!(self, Self::Varies | Self::Granted | Self::GrantedAndCaller)
    }
}

impl Rules {
    /// What the end of a call changes, and for whom it is.
    pub(super) fn change(&mut self, call: &Call, said: &Said) -> Share {
        // A refusal whose head has landed has answered then.
        if said.has_answered() && call.head.is_none() {
            self.answered[service_of(call.key)] = Some(self.now);
        }
        if call.is_unsafe {
            self.write(call, said);
            if said.denial() == Some(401) {
                self.refusal(call, said);
            }
            return Share::None;
        }
        if call.is_relay {
            if said.denial().is_none() {
                return Share::None;
            }
            self.refusal(call, said);
            return Share::Caller;
        }
        if said.is_failure(call.asked) {
            self.note(if matches!(said, Said::NotModified(_)) { "304 for nothing" } else { "failure" });
            if self.is_outside(call, said) || call.boarding.owner.is_none() {
                self.pause(call, said);
            } else {
                self.note("failure here");
            }
            let is_about = |entry: &&mut Entry| entry.slot == call.boarding && Some(entry.sent) == call.asked_sent;
            if matches!(said, Said::NotModified(_))
                && let Some(entry) = self.entries.iter_mut().find(is_about)
            {
                entry.is_misunderstood = true;
            }
            return Share::Failure;
        }
        if let Some(body) = said.list(call.key, call.asked) {
            return self.proof(call, &body, said);
        }
        if said.denial().is_some() {
            self.refusal(call, said);
            return Share::Caller;
        }
        match said {
            Said::Failed(Failure::TooLarge(status)) => {
                self.note("too large");
                if *status == 200 {
                    self.mark_boarding(call, true);
                }
                Share::None
            }
            Said::Failed(_) | Said::NotModified(_) => unreachable!("they are failures, refusals or lists"),
            Said::Whole { status: 200, .. } => {
                self.note("not a list");
                self.mark_boarding(call, false);
                Share::None
            }
            Said::Whole { status: status @ (400 | 404 | 405), body, .. } if call.is_plain && self.is_trusted(call) => {
                self.keep_negative(call, *status, body);
                Share::GrantedAndCaller
            }
            Said::Whole { .. } => Share::CallerIfValid,
        }
    }

    /// A request with an unsafe method was answered: who is granted, and has changed something, has what was sent for
    /// until now confirmed.
    fn write(&mut self, call: &Call, said: &Said) {
        let scope = scope_of(call.key);
        match (said.is_change(), self.is_granted((call.caller, scope))) {
            (true, true) => {
                self.note("invalidated");
                self.invalidated[scope] = Some(self.now);
            }
            (true, false) => self.note("a stranger's change"),
            (false, true) => self.note("changed nothing"),
            (false, false) => {}
        }
    }

    /// Whether what a call brings may change what others meet: it flew for its caller alone, or its caller
    /// has a grant to this moment.
    fn is_trusted(&self, call: &Call) -> bool {
        call.boarding.owner.is_some() || self.is_granted((call.caller, scope_of(call.key)))
    }

    fn mark_boarding(&mut self, call: &Call, is_too_large: bool) {
        if self.is_trusted(call) {
            self.set_mark(call, call.boarding, is_too_large);
        }
    }

    /// What a product list changes.
    fn proof(&mut self, call: &Call, body: &str, said: &Said) -> Share {
        let to = (call.caller, scope_of(call.key));
        let listed = &mut self.listed[service_of(call.key)];
        *listed = (*listed).max(Some(call.sent));
        if self.is_late(call) {
            self.note("late");
            return Share::None;
        }
        self.note("proof");
        let proved = self.proved(to).unwrap_or(0).max(call.sent);
        self.grants.retain(|grant| grant.to != to);
        self.grants.push(Grant { to, proved, suspended_by: Vec::new() });
        self.refusals.retain(|refusal| refusal.to != to);
        let slot = self.slot(call.caller, call.key);
        let tag = match said {
            Said::Whole { besides: Besides::NoStore, .. } => {
                self.note("not to be kept");
                self.set_mark(call, slot, false);
                self.mark_boarding(call, false);
                return Share::None;
            }
            Said::Whole { tag, .. } => *tag,
            _ => {
                self.note("304");
                call.asked
            }
        };
        let own = CacheKey { key: call.key, owner: Some(call.caller) };
        self.marks.retain(|mark| ![slot, call.boarding, own].contains(&mark.slot));
        self.backoffs.retain(|pause| match pause.of {
            FailedScope::CacheKey(of) | FailedScope::Failed(_, of) => of != slot && of != call.boarding,
            FailedScope::Caller(_) | FailedScope::Foul(_) | FailedScope::Scope(_) => true,
        });
        let varies = matches!(said, Said::Whole { besides: Besides::Vary, .. });
        self.keep(call, body, tag, varies);
        if varies { Share::Varies } else { Share::Granted }
    }

    /// Keeps an answer, if nothing speaks against it.
    fn keep(&mut self, call: &Call, body: &str, tag: Option<Version>, varies: bool) {
        if call.was_purged {
            return self.note("answered after a purge");
        }
        if varies {
            self.turn_private(scope_of(call.key));
        }
        if !self.is_valid(call.key, call.sent) {
            return self.note("answered after a change");
        }
        let slot = self.slot(call.caller, call.key);
        let before = self.entries.iter().position(|entry| entry.slot == slot);
        if before.is_some_and(|place| self.entries[place].sent >= call.sent) {
            return self.note("outdated");
        }
        self.negatives.retain(|negative| negative.slot != slot || negative.sent > call.sent);
        let mut entry =
            Entry { slot, body: body.to_owned(), tag, is_misunderstood: false, sent: call.sent, chain: Vec::new() };
        let before = before.map_or(Vec::new(), |place| self.entries.remove(place).chain);
        if slot.owner.is_none() {
            let link = Link { body: body.to_owned(), caller: call.caller, received: self.now };
            entry.chain = chain(before, link, call.sent);
        }
        if entry.chain.len() == 4 {
            self.note("tripped");
            let scope = scope_of(call.key);
            self.private.push(scope);
            self.entries.retain(|entry| entry.slot.owner.is_some() || scope_of(entry.slot.key) != scope);
            entry.slot.owner = Some(call.caller);
            entry.chain.clear();
            self.entries.retain(|other| other.slot != entry.slot);
        }
        self.entries.push(entry);
    }

    /// Upstream says of an operation that its answers vary on the credential.
    fn turn_private(&mut self, scope: ScopeId) {
        let Scope { operation, is_shared, .. } = SCOPES[scope];
        if !is_shared || self.private_operations.contains(&operation) {
            return;
        }
        self.note("turned private as a whole");
        self.private_operations.push(operation);
        let is_its = |key| SCOPES[scope_of(key)].operation == operation;
        self.entries.retain(|entry| entry.slot.owner.is_some() || !is_its(entry.slot.key));
    }

    /// Keeps in mind that there is no such thing, if it was one of those who share the answer that was told,
    /// and nothing newer is known.
    fn keep_negative(&mut self, call: &Call, status: u16, body: &str) {
        let slot = self.slot(call.caller, call.key);
        let is_older = self.entry(slot).is_some_and(|entry| entry.sent >= call.sent)
            || self.negatives.iter().any(|negative| negative.slot == slot && negative.sent >= call.sent);
        let is_granted = self.is_granted((call.caller, scope_of(call.key)));
        if self.settings.negative_ttl == 0 || !is_granted || call.was_purged || is_older {
            return;
        }
        if !self.is_valid(call.key, call.sent) {
            return self.note("no after a change");
        }
        self.note("negative");
        self.negatives.retain(|negative| negative.slot != slot);
        self.negatives.push(Negative { slot, status, body: body.to_owned(), sent: call.sent });
    }

    /// Whether a failure has its cause outside the gateway. That there is no way to upstream counts only while nobody
    /// has reached it.
    pub(super) fn is_outside(&self, call: &Call, said: &Said) -> bool {
        match said {
            Said::Failed(Failure::Local) => false,
            Said::Failed(Failure::Unreachable) => {
                let answered = self.answered[service_of(call.key)];
                answered.is_none_or(|answered| self.now >= answered + Settings::REACHABLE_FOR)
            }
            _ => true,
        }
    }

    /// Beside what is fresh it is the caller's own.
    fn set_mark(&mut self, call: &Call, slot: CacheKey, is_too_large: bool) {
        let is_fresh = self.usable(slot).is_some_and(|entry| self.left(entry) > 0);
        if is_fresh && slot.owner.is_none() {
            self.note("own mark");
        }
        let slot = if is_fresh { CacheKey { owner: Some(call.caller), ..slot } } else { slot };
        self.marks.retain(|mark| mark.slot != slot);
        self.marks.push(Mark { slot, is_too_large, until: self.now + Settings::MARK_TTL });
    }

    /// What a failure changes: what can be given stale is, without asking, for a while. What a client has
    /// sent besides may be what made its call fail.
    fn pause(&mut self, call: &Call, said: &Said) {
        let scope = scope_of(call.key);
        // Nothing stale is given to strangers, so that nothing of their failures is remembered.
        if !self.is_known((call.caller, scope)) || !self.is_trusted(call) {
            return;
        }
        let (status, after) = match said {
            Said::Whole { status: status @ (429 | 503), besides: Besides::RetryAfter(after), .. } => (*status, *after),
            Said::Whole { status, .. } => (*status, None),
            _ => (0, None),
        };
        let after = after.map(|after| after.min(Settings::LONGEST_PAUSE));
        let span = after.unwrap_or(self.settings.negative_ttl);
        if call.boarding.owner.is_some() {
            self.note("lone pause");
            self.set_pause(FailedScope::CacheKey(call.boarding), span);
        } else if !call.is_plain {
            self.note("foul pause");
            self.set_pause(FailedScope::Foul((call.caller, scope)), span);
        } else if status == 429 || status == 503 && after.is_some() {
            self.note(if status == 429 { "caller's pause" } else { "caller's pause by 503" });
            let is_anothers = |pause: &Backoff| match pause.of {
                FailedScope::Caller((caller, its)) => its == scope && caller != call.caller,
                FailedScope::CacheKey(_) | FailedScope::Failed(..) | FailedScope::Scope(_) | FailedScope::Foul(_) => {
                    false
                }
            };
            if self.backoffs.iter().any(|pause| pause.until > self.now && is_anothers(pause)) {
                self.note("everybody's pause");
                self.set_pause(FailedScope::Scope(scope), span);
            }
            self.set_pause(FailedScope::Caller((call.caller, scope)), span);
        } else {
            self.note("slot's pause of a caller");
            let is_anothers = |pause: &Backoff| match pause.of {
                FailedScope::Failed(caller, slot) => slot == call.boarding && caller != call.caller,
                _ => false,
            };
            if self.backoffs.iter().any(|pause| pause.until > self.now && is_anothers(pause)) {
                self.note("slot's pause");
                self.set_pause(FailedScope::CacheKey(call.boarding), span);
            }
            self.set_pause(FailedScope::Failed(call.caller, call.boarding), span);
        }
    }

    /// A shorter one doesn't end one that is longer.
    fn set_pause(&mut self, of: FailedScope, span: Ms) {
        let until = self.now + span;
        match self.backoffs.iter_mut().find(|pause| pause.of == of) {
            Some(pause) => pause.until = pause.until.max(until),
            None => self.backoffs.push(Backoff { of, until }),
        }
    }
}

/// The tripwire: the chain of those who were shown different bodies in turn.
fn chain(mut chain: Vec<Link>, new: Link, sent: Ms) -> Vec<Link> {
    let Some(last) = chain.last_mut() else { return vec![new] };
    if sent < last.received {
        return chain;
    }
    let is_same = last.body == new.body;
    if is_same {
        last.received = new.received;
    }
    if chain.iter().any(|link| link.caller == new.caller && link.body != new.body) {
        return vec![new];
    }
    if is_same {
        return chain;
    }
    if chain.len() >= 2 && chain[chain.len() - 2].body != new.body {
        chain = chain.split_off(chain.len() - 1);
    }
    chain.push(new);
    chain
}
