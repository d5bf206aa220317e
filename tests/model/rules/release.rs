//! Who gets the result of a call.

use super::super::domain::{CacheRequest, Failure, UpstreamResult, scope_of};
use super::settle::Recipients;
use super::{Call, Effect, Ended, MAX_ELECTIONS, Reply, ReplyKind, Rules, Waiter};

impl Rules {
    /// Gives a request the result of a call, if it may have it. Otherwise the request looks up again.
    pub(super) fn release(
        &mut self,
        mut waiter: Waiter,
        end: &Ended<'_>,
        effects: &mut Vec<Effect>,
        retries: &mut Vec<Waiter>,
    ) {
        let Ended { call, result, recipients, may_repeat, is_external, .. } = end;
        let scope = scope_of(call.key);
        let has_turned_private = call.fetch_key.owner.is_none() && self.is_private(scope);
        let caller = waiter.request.caller;
        let leads = waiter.leads(call);
        let is_callers = caller == call.caller;
        let is_granted = self.is_granted((caller, scope));
        let is_valid = self.is_valid(call.key, call.sent);
        let may_share = is_granted && !call.was_purged && !has_turned_private && is_valid;
        let is_given = leads
            || match recipients {
                Recipients::None => false,
                Recipients::Caller => is_callers,
                Recipients::CallerIfValid => is_callers && is_valid,
                Recipients::Varies => is_callers && may_share,
                Recipients::Granted => may_share,
                Recipients::GrantedAndCaller => may_share || is_callers && is_valid,
                Recipients::Failure => is_granted || is_callers,
            };
        if !is_given {
            if *recipients == Recipients::Granted {
                self.count("list withheld at release");
            }
            if is_granted && !is_valid {
                self.count("new lookup after an invalidation");
            }
            retries.push(waiter);
            return;
        }
        if let UpstreamResult::Failed(Failure::TooLarge(_)) = result {
            effects.push(Effect::Relay(self.relay(waiter, call.fetch_key)));
            return;
        }
        let reply = reply(call, result, leads);
        if *recipients != Recipients::Failure {
            if reply.kind == ReplyKind::Collapsed {
                self.count("collapsed");
            }
            if reply.kind == ReplyKind::Collapsed && self.calls.iter().any(|other| waiter.leads(other)) {
                self.count("served by another call of the flight");
            }
            let effect = self.answer(&waiter.request, reply);
            effects.push(effect);
            return;
        }
        let is_throttled = reply.status == 429;
        let extends = is_callers && *is_external;
        let effect = self.fail(&waiter.request, extends, reply);
        let is_stale = matches!(&effect, Effect::Answer(_, Reply { kind: ReplyKind::StaleOnError, .. }));
        let goes_again = !is_stale && !is_callers && waiter.elections < MAX_ELECTIONS;
        if goes_again && *may_repeat && !waiter.has_repeated {
            self.count("repeated after 5xx");
            (waiter.has_repeated, waiter.is_repeat_due) = (true, true);
            retries.push(waiter);
            return;
        }
        // A 429 may concern the leader alone. But not every waiter retries in turn.
        if goes_again && is_throttled {
            self.count("new leader after 429");
            retries.push(waiter);
            return;
        }
        if is_throttled && !is_stale && !is_callers {
            self.count("429 for all waiters");
        }
        effects.push(effect);
    }

    /// The response to a request whose call has failed: a stale entry, if it may have one. An extended grant shows no
    /// entry that was sent for after its regular end.
    pub(super) fn fail(&mut self, request: &CacheRequest, extends: bool, failure: Reply) -> Effect {
        let CacheRequest { caller, key, .. } = *request;
        let caller_scope = (caller, scope_of(key));
        let is_granted = self.is_granted(caller_scope);
        let until = if is_granted { Some(self.now) } else { self.lapsed(caller_scope).filter(|_| extends) };
        let usable = self.usable(self.cache_key(caller, key));
        let is_newer = until.is_some_and(|until| usable.is_some_and(|entry| entry.sent > until));
        let stale = usable.filter(|entry| until.is_some_and(|until| entry.sent <= until));
        let stale = stale.map(|entry| Reply::of(entry, ReplyKind::StaleOnError));
        if is_newer {
            self.count("entry newer than the lapsed grant");
        }
        let reply = match stale {
            Some(reply) => {
                self.count(if is_granted { "stale on error by grant" } else { "stale on error by grace" });
                reply
            }
            None => failure,
        };
        self.answer(request, reply)
    }
}

fn reply(call: &Call, result: &UpstreamResult, leads: bool) -> Reply {
    let kind = match (leads, call.is_relay) {
        (true, true) if call.is_unsafe => ReplyKind::PassedThrough,
        (true, true) => ReplyKind::Relayed,
        (true, false) => ReplyKind::Fetched,
        (false, _) => ReplyKind::Collapsed,
    };
    match result {
        UpstreamResult::Complete { status, body, etag, .. } => {
            let etag = etag.filter(|_| result.list(call.key, None).is_some());
            Reply { etag, ..Reply::new(*status, Some(body.clone()), kind) }
        }
        UpstreamResult::NotModified(_) if call.is_relay => Reply::new(304, Some(String::new()), kind),
        UpstreamResult::NotModified(_) => match result.list(call.key, call.validator) {
            Some(body) => Reply { etag: call.validator, ..Reply::new(200, Some(body), kind) },
            None => Reply::new(502, None, kind),
        },
        UpstreamResult::Failed(Failure::Refused(status)) => Reply::new(*status, None, kind),
        UpstreamResult::Failed(Failure::Timeout) => Reply::new(504, None, kind),
        UpstreamResult::Failed(Failure::Local) => Reply::new(503, None, kind),
        UpstreamResult::Failed(_) => Reply::new(502, None, kind),
    }
}
