//! Who is given what a call has brought.

use super::super::world::{CacheRequest, Failure, Said, scope_of};
use super::landing::Share;
use super::{Call, ELECTIONS, Effect, Ended, How, Reply, Rules, Waiting};

impl Rules {
    /// Gives a request what a call has brought, if it may have it; otherwise it goes again.
    pub(super) fn release(
        &mut self,
        mut request: Waiting,
        end: &Ended<'_>,
        effects: &mut Vec<Effect>,
        again: &mut Vec<Waiting>,
    ) {
        let Ended { call, said, share, may_repeat, is_outside, .. } = end;
        let scope = scope_of(call.key);
        let has_turned_private = call.boarding.owner.is_none() && self.is_private(scope);
        let caller = request.question.caller;
        let leads = request.leads(call);
        let is_callers = caller == call.caller;
        let is_granted = self.is_granted((caller, scope));
        let is_valid = self.is_valid(call.key, call.sent);
        let may_share = is_granted && !call.was_purged && !has_turned_private && is_valid;
        let is_given = leads
            || match share {
                Share::None => false,
                Share::Caller => is_callers,
                Share::CallerIfValid => is_callers && is_valid,
                Share::Varies => is_callers && may_share,
                Share::Granted => may_share,
                Share::GrantedAndCaller => may_share || is_callers && is_valid,
                Share::Failure => is_granted || is_callers,
            };
        if !is_given {
            if *share == Share::Granted {
                self.note("withheld at release");
            }
            if is_granted && !is_valid {
                self.note("goes again after a change");
            }
            again.push(request);
            return;
        }
        if let Said::Failed(Failure::TooLarge(_)) = said {
            effects.push(Effect::Relay(self.relay(request, call.boarding)));
            return;
        }
        let reply = reply(call, said, leads);
        if *share != Share::Failure {
            if reply.how == How::Followed {
                self.note("followed");
            }
            if reply.how == How::Followed && self.calls.iter().any(|other| request.leads(other)) {
                self.note("served by another call");
            }
            let effect = self.answer(&request.question, reply);
            effects.push(effect);
            return;
        }
        let is_throttled = reply.status == 429;
        let extends = is_callers && *is_outside;
        let effect = self.fail(&request.question, extends, reply);
        let is_stale = matches!(&effect, Effect::Answer(_, Reply { how: How::Stale, .. }));
        let goes_again = !is_stale && !is_callers && request.elections < ELECTIONS;
        if goes_again && *may_repeat && !request.has_repeated {
            self.note("repeated");
            (request.has_repeated, request.is_repeat_due) = (true, true);
            again.push(request);
            return;
        }
        // It may be the leader alone who has asked too often. But not everyone tries in turn.
        if goes_again && is_throttled {
            self.note("throttled leader");
            again.push(request);
            return;
        }
        if is_throttled && !is_stale && !is_callers {
            self.note("throttled in turn");
        }
        effects.push(effect);
    }

    /// What a request is given when a call has failed it: something stale, if it may have that. A lapsed grant that is
    /// extended shows nothing that was sent later than its regular end.
    pub(super) fn fail(&mut self, question: &CacheRequest, extends: bool, failure: Reply) -> Effect {
        let CacheRequest { caller, key, .. } = *question;
        let to = (caller, scope_of(key));
        let is_granted = self.is_granted(to);
        let until = if is_granted { Some(self.now) } else { self.lapsed(to).filter(|_| extends) };
        let usable = self.usable(self.slot(caller, key));
        let is_newer = until.is_some_and(|until| usable.is_some_and(|entry| entry.sent > until));
        let stale = usable.filter(|entry| until.is_some_and(|until| entry.sent <= until));
        let stale = stale.map(|entry| Reply::of(entry, How::Stale));
        if is_newer {
            self.note("newer than the grant");
        }
        let reply = match stale {
            Some(reply) => {
                self.note(if is_granted { "stale for a grant" } else { "stale by grace" });
                reply
            }
            None => failure,
        };
        self.answer(question, reply)
    }
}

/// What a call has brought.
fn reply(call: &Call, said: &Said, leads: bool) -> Reply {
    let how = match (leads, call.is_relay) {
        (true, true) if call.is_unsafe => How::PassedThrough,
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
        Said::Failed(Failure::Refused(status)) => Reply::new(*status, None, how),
        Said::Failed(Failure::Timeout) => Reply::new(504, None, how),
        Said::Failed(Failure::Local) => Reply::new(503, None, how),
        Said::Failed(_) => Reply::new(502, None, how),
    }
}
