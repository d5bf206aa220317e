//! What an answer changes.

use super::super::settings::Settings;
use super::super::world::{Besides, Failure, Ms, Said, Version, scope_of};
use super::{Call, Entry, Grant, Link, Mark, Negative, Pause, Paused, Refusal, Rules, Slot};

/// Longer refusals are not remembered.
const LONGEST_REFUSAL: usize = 8 * 1024;

/// To whom what a call has brought is given, besides the one who leads it.
#[derive(PartialEq)]
pub(super) enum Share {
    /// Nobody.
    None,
    /// The leader's caller.
    Caller,
    /// All who are granted, if nothing has come in between.
    Granted,
    /// The same, and the leader's caller in any case.
    GrantedAndCaller,
    /// A failure: the leader's caller and all who are granted, or something stale in its place.
    Failure,
}

impl Rules {
    /// What the end of a call changes, and for whom it is.
    pub(super) fn change(&mut self, call: &Call, said: &Said) -> Share {
        if call.is_relay {
            return match said {
                // Nobody reads what is streamed, so that it can't be said again.
                Said::Whole { status: status @ (401 | 403), .. } => {
                    self.denial(call, *status, None);
                    Share::Caller
                }
                _ => Share::None,
            };
        }
        if said.is_failure(call.asked) {
            self.note(if matches!(said, Said::NotModified(_)) { "304 for nothing" } else { "failure" });
            self.pause(call, said);
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
        match said {
            Said::Whole { status: status @ (401 | 403), body, besides, .. } => {
                self.denial(call, *status, Some(body).filter(|_| *besides != Besides::NoStore));
                Share::Caller
            }
            Said::Failed(Failure::TooLarge(status)) => {
                self.note("too large");
                match status {
                    401 | 403 => self.denial(call, *status, None),
                    200 => self.mark_boarding(call, true),
                    _ => {}
                }
                Share::None
            }
            Said::Failed(_) | Said::NotModified(_) => unreachable!("they are failures or lists"),
            Said::Whole { status: 200, .. } => {
                self.note("not a list");
                self.mark_boarding(call, false);
                Share::None
            }
            Said::Whole { status: status @ (400 | 404 | 405), body, .. } if call.is_plain && self.is_trusted(call) => {
                self.keep_negative(call, *status, body);
                Share::GrantedAndCaller
            }
            Said::Whole { .. } => Share::Caller,
        }
    }

    /// Whether what a call brings may change what others meet: it flew for its caller alone, or its caller
    /// has a grant to this moment.
    fn is_trusted(&self, call: &Call) -> bool {
        call.boarding.owner.is_some() || self.is_granted((call.caller, scope_of(call.key)))
    }

    fn mark_boarding(&mut self, call: &Call, is_too_large: bool) {
        if self.is_trusted(call) {
            self.set_mark(call.boarding, is_too_large);
        }
    }

    /// What a product list changes.
    fn proof(&mut self, call: &Call, body: &str, said: &Said) -> Share {
        let to = (call.caller, scope_of(call.key));
        if call.is_late {
            self.note("late");
            return Share::None;
        }
        self.note("proof");
        let proved = self.proved(to).unwrap_or(0).max(call.sent);
        self.grants.retain(|grant| grant.to != to);
        self.grants.push(Grant { to, proved });
        self.refusals.retain(|refusal| refusal.to != to);
        let slot = self.slot(call.caller, call.key);
        let tag = match said {
            Said::Whole { besides: Besides::NoStore, .. } => {
                self.note("not to be kept");
                self.set_mark(slot, false);
                self.mark_boarding(call, false);
                return Share::None;
            }
            Said::Whole { tag, .. } => *tag,
            _ => {
                self.note("304");
                call.asked
            }
        };
        self.marks.retain(|mark| mark.slot != slot && mark.slot != call.boarding);
        self.pauses.retain(|pause| pause.of != Paused::Slot(slot) && pause.of != Paused::Slot(call.boarding));
        self.keep(call, slot, body, tag);
        Share::Granted
    }

    /// Keeps an answer, if nothing speaks against it.
    fn keep(&mut self, call: &Call, slot: Slot, body: &str, tag: Option<Version>) {
        if call.was_purged {
            return self.note("answered after a purge");
        }
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

    /// Keeps in mind that there is no such thing, if it was one of those who share the answer that was told,
    /// and nothing newer is known.
    fn keep_negative(&mut self, call: &Call, status: u16, body: &str) {
        let slot = self.slot(call.caller, call.key);
        let is_older = self.entry(slot).is_some_and(|entry| entry.sent >= call.sent)
            || self.negatives.iter().any(|negative| negative.slot == slot && negative.sent >= call.sent);
        let is_granted = self.is_granted((call.caller, scope_of(call.key)));
        if self.settings.error_ttl == 0 || !is_granted || call.was_purged || is_older {
            return;
        }
        self.note("negative");
        self.negatives.retain(|negative| negative.slot != slot);
        self.negatives.push(Negative { slot, status, body: body.to_owned(), sent: call.sent });
    }

    /// What a refusal changes.
    fn denial(&mut self, call: &Call, status: u16, body: Option<&String>) {
        let to = (call.caller, scope_of(call.key));
        let proved = self.proved(to);
        self.note(if proved.is_some() { "denial of a grant" } else { "denial" });
        self.grants.retain(|grant| grant.to != to);
        // Who was proved by what was sent later is not refused because of this one.
        let body = body.filter(|body| body.len() <= LONGEST_REFUSAL);
        if let Some(body) = body
            && proved.is_none_or(|proved| proved <= call.sent)
        {
            self.refusals.retain(|refusal| refusal.to != to);
            let until = self.now + Settings::DENIAL_TTL;
            self.refusals.push(Refusal { to, until, status, body: body.to_owned() });
        }
        for other in &mut self.calls {
            other.is_late |= (other.caller, scope_of(other.key)) == to && other.sent <= call.sent;
        }
    }

    fn set_mark(&mut self, slot: Slot, is_too_large: bool) {
        self.marks.retain(|mark| mark.slot != slot);
        self.marks.push(Mark { slot, is_too_large, until: self.now + Settings::MARK_TTL });
    }

    /// What a failure changes: what can be given stale is, without asking, for a while. What a client has
    /// sent besides may be what made its call fail.
    fn pause(&mut self, call: &Call, said: &Said) {
        let scope = scope_of(call.key);
        // Nothing stale is given to strangers, so that nothing of their failures is remembered.
        let is_known = self.is_known((call.caller, scope)) && self.is_trusted(call);
        if !is_known || (!call.is_plain && !self.is_granted((call.caller, scope))) {
            return;
        }
        let (status, after) = match said {
            Said::Whole { status: status @ (429 | 503), besides: Besides::RetryAfter(after), .. } => (*status, *after),
            Said::Whole { status, .. } => (*status, None),
            _ => (0, None),
        };
        let after = after.map(|after| after.min(Settings::LONGEST_PAUSE));
        let span = after.unwrap_or(self.settings.error_ttl);
        if call.boarding.owner.is_some() && call.is_plain {
            self.note("lone pause");
            self.set_pause(Paused::Slot(call.boarding), span);
        } else if !call.is_plain {
            self.note("foul pause");
            self.set_pause(Paused::Foul((call.caller, scope)), span);
        } else if status == 429 {
            self.note("caller's pause");
            let is_anothers = |pause: &Pause| match pause.of {
                Paused::Caller((caller, its)) => its == scope && caller != call.caller,
                Paused::Slot(_) | Paused::Scope(_) | Paused::Foul(_) => false,
            };
            if self.pauses.iter().any(|pause| pause.until > self.now && is_anothers(pause)) {
                self.note("everybody's pause");
                self.set_pause(Paused::Scope(scope), span);
            }
            self.set_pause(Paused::Caller((call.caller, scope)), span);
        } else if status == 503 && after.is_some() {
            self.note("scope's pause");
            self.set_pause(Paused::Scope(scope), span);
        } else {
            self.note("slot's pause");
            self.set_pause(Paused::Slot(call.boarding), span);
        }
    }

    /// A shorter one doesn't end one that is longer.
    fn set_pause(&mut self, of: Paused, span: Ms) {
        let until = self.now + span;
        match self.pauses.iter_mut().find(|pause| pause.of == of) {
            Some(pause) => pause.until = pause.until.max(until),
            None => self.pauses.push(Pause { of, until }),
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
