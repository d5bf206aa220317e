//! What an answer changes, and who is given it.

use super::super::script::Begun;
use super::super::steps::Settings;
use super::super::world::{Failure, Ms, RequestId, Said, scope_of};
use super::{Call, ELECTIONS, Effect, Entry, Grant, How, Link, Mark, Refusal, Reply, Rules, Slot, Waiting};

/// Longer refusals are not remembered.
const LONGEST_REFUSAL: usize = 8 * 1024;

/// To whom what a call has brought is given, besides the one who leads it.
#[derive(PartialEq)]
enum Share {
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
    /// Calls end at the same moment, in this order: first everything changes, then those aboard are
    /// released. `seen` are the calls that began then, in order.
    pub fn land(&mut self, landed: &[(RequestId, Said)], seen: &[Begun]) -> Result<Vec<Effect>, String> {
        let mut ended = Vec::new();
        for (id, said) in landed {
            let place = self.calls.iter().position(|call| call.id == *id).expect("it is in the air");
            let call = self.calls.remove(place);
            let share = self.change(&call, said);
            ended.push((call, said, share));
        }
        let (mut effects, mut again) = (Vec::new(), Vec::new());
        for (call, said, share) in &ended {
            self.release(call, said, share, &mut effects, &mut again);
        }
        effects.extend(self.go_again(again, seen)?);
        Ok(effects)
    }

    /// What the end of a call changes, and for whom it is.
    fn change(&mut self, call: &Call, said: &Said) -> Share {
        match said {
            Said::Whole { status: status @ (401 | 403), body, no_store } => {
                // Nobody reads what is streamed, so that it can't be said again.
                self.denial(call, *status, Some(body).filter(|_| !call.is_relay && !no_store));
                Share::Caller
            }
            _ if call.is_relay => Share::None,
            _ if said.is_failure() => {
                self.note("failure");
                Share::Failure
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
            Said::Failed(_) => unreachable!("other failures are failures"),
            Said::Whole { body, no_store, .. } if said.is_list() => self.proof(call, body, *no_store),
            Said::Whole { status: 200, .. } => {
                self.note("not a list");
                self.mark_boarding(call, false);
                Share::None
            }
            Said::Whole { status: 400 | 404 | 405, .. } if call.is_plain && self.is_trusted(call) => {
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
    fn proof(&mut self, call: &Call, body: &str, no_store: bool) -> Share {
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
        if no_store {
            self.note("not to be kept");
            self.set_mark(slot, false);
            self.mark_boarding(call, false);
            return Share::None;
        }
        self.marks.retain(|mark| mark.slot != slot && mark.slot != call.boarding);
        self.keep(call, slot, body);
        Share::Granted
    }

    /// Keeps an answer, if nothing speaks against it.
    fn keep(&mut self, call: &Call, slot: Slot, body: &str) {
        if call.was_purged {
            return self.note("answered after a purge");
        }
        let before = self.entries.iter().position(|entry| entry.slot == slot);
        if before.is_some_and(|place| self.entries[place].sent >= call.sent) {
            return self.note("outdated");
        }
        let mut entry = Entry { slot, body: body.to_owned(), sent: call.sent, chain: Vec::new() };
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

    /// Gives those aboard what the call has brought, if they may have it; the others go again.
    fn release(
        &mut self,
        call: &Call,
        said: &Said,
        share: &Share,
        effects: &mut Vec<Effect>,
        again: &mut Vec<Waiting>,
    ) {
        let scope = scope_of(call.key);
        let has_turned_private = call.boarding.owner.is_none() && self.is_private(scope);
        let (aboard, elsewhere) = self.waiting.drain(..).partition(|request| request.aboard == call.id);
        self.waiting = elsewhere;
        for request in aboard {
            let leads = request.id == call.id;
            let is_callers = request.caller == call.caller;
            let is_granted = self.is_granted((request.caller, scope));
            let may_share = is_granted && !call.was_purged && !has_turned_private;
            let is_given = leads
                || match share {
                    Share::None => false,
                    Share::Caller => is_callers,
                    Share::Granted => may_share,
                    Share::GrantedAndCaller => may_share || is_callers,
                    Share::Failure => is_granted || is_callers,
                };
            if !is_given {
                if *share == Share::Granted {
                    self.note("withheld at release");
                }
                again.push(request);
                continue;
            }
            if let Said::Failed(Failure::TooLarge(_)) = said {
                let Waiting { id, caller, key, is_plain, .. } = request;
                self.relay(request, call.boarding);
                effects.push(Effect::Relay(Begun { id, caller, key, is_plain }));
                continue;
            }
            let how = match (leads, call.is_relay) {
                (true, true) => How::Relayed,
                (true, false) => How::Led,
                (false, _) => How::Followed,
            };
            let reply = match said {
                Said::Whole { status, body, .. } => Reply { status: *status, body: Some(body.clone()), how },
                Said::Failed(Failure::Timeout) => Reply { status: 504, body: None, how },
                Said::Failed(_) => Reply { status: 502, body: None, how },
            };
            if *share != Share::Failure {
                if how == How::Followed {
                    self.note("followed");
                }
                effects.push(Effect::Answer(request.id, reply));
                continue;
            }
            let is_throttled = reply.status == 429;
            // What a client sends besides may be what made its call fail.
            let effect = self.fail(&request, is_callers && call.is_plain, reply);
            let is_stale = matches!(&effect, Effect::Answer(_, Reply { how: How::Stale, .. }));
            // It may be the leader alone who has asked too often. But not everyone tries in turn.
            let is_others = is_throttled && !is_stale && !is_callers;
            if is_others && request.elections < ELECTIONS {
                self.note("throttled leader");
                again.push(request);
                continue;
            }
            if is_others {
                self.note("throttled in turn");
            }
            effects.push(effect);
        }
    }

    /// What a request is given when a call has failed it: something stale, if it may have that.
    pub(super) fn fail(&mut self, request: &Waiting, is_own: bool, failure: Reply) -> Effect {
        let to = (request.caller, scope_of(request.key));
        let is_granted = self.is_granted(to);
        let is_excused = self.is_excused(to) && is_own;
        let stale = self.young(self.slot(request.caller, request.key), Settings::STALE_IF_ERROR);
        let reply = match stale {
            Some(body) if is_granted || is_excused => {
                self.note(if is_granted { "stale for a grant" } else { "stale by grace" });
                Reply { status: 200, body: Some(body), how: How::Stale }
            }
            _ => failure,
        };
        Effect::Answer(request.id, reply)
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
