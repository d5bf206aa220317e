//! Who is given what a call has brought.

use super::super::world::{Failure, Question, Said, scope_of};
use super::landing::Share;
use super::{Call, ELECTIONS, Effect, How, Reply, Rules, Waiting};

impl Rules {
    /// Gives those aboard what the call has brought, if they may have it; the others go again.
    pub(super) fn release(
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
            let Question { id, caller, .. } = request.question;
            let leads = id == call.id;
            let is_callers = caller == call.caller;
            let is_granted = self.is_granted((caller, scope));
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
                effects.push(Effect::Relay(self.relay(request, call.boarding)));
                continue;
            }
            let reply = reply(call, said, leads);
            if *share != Share::Failure {
                if reply.how == How::Followed {
                    self.note("followed");
                }
                let effect = self.answer(&request.question, reply);
                effects.push(effect);
                continue;
            }
            let is_throttled = reply.status == 429;
            // What a client sends besides may be what made its call fail.
            let effect = self.fail(&request.question, is_callers && call.is_plain, reply);
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
    pub(super) fn fail(&mut self, question: &Question, is_own: bool, failure: Reply) -> Effect {
        let Question { caller, key, .. } = *question;
        let to = (caller, scope_of(key));
        let is_granted = self.is_granted(to);
        let is_excused = self.is_excused(to) && is_own;
        let stale = self.usable(self.slot(caller, key)).map(|entry| Reply::of(entry, How::Stale));
        let reply = match stale {
            Some(reply) if is_granted || is_excused => {
                self.note(if is_granted { "stale for a grant" } else { "stale by grace" });
                reply
            }
            _ => failure,
        };
        self.answer(question, reply)
    }
}

/// What a call has brought.
fn reply(call: &Call, said: &Said, leads: bool) -> Reply {
    let how = match (leads, call.is_relay) {
        (true, true) => How::Relayed,
        (true, false) => How::Led,
        (false, _) => How::Followed,
    };
    match said {
        Said::Whole { status, body, tag, .. } => {
            let tag = tag.filter(|_| said.list(call.key, None).is_some());
            Reply { tag, ..Reply::new(*status, Some(body.clone()), how) }
        }
        Said::NotModified(_) if call.is_relay => Reply::new(304, Some(String::new()), how),
        Said::NotModified(_) => match said.list(call.key, call.asked) {
            Some(body) => Reply { tag: call.asked, ..Reply::new(200, Some(body), how) },
            None => Reply::new(502, None, how),
        },
        Said::Failed(Failure::Timeout) => Reply::new(504, None, how),
        Said::Failed(_) => Reply::new(502, None, how),
    }
}
