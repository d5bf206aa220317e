//! What a response changes.

use super::super::domain::{
    ExtraHeader, Failure, Ms, SCOPES, Scope, ScopeId, UpstreamResult, Version, scope_of, service_of,
};
use super::super::settings::Settings;
use super::{Backoff, BackoffTarget, CacheKey, Call, Entry, Grant, Mark, Negative, Observation, Rules};

/// Who gets the result of a call, besides its leader.
#[derive(Clone, PartialEq)]
pub(super) enum Recipients {
    None,
    /// The leader's caller.
    Caller,
    /// The same, unless the scope was invalidated.
    CallerIfValid,
    /// The same, unless anything else prevents sharing.
    Varies,
    /// All granted callers, unless anything prevents sharing.
    Granted,
    /// The same, and the leader's caller unless the scope was invalidated.
    GrantedAndCaller,
    /// A failure: the leader's caller and all granted callers, or a stale entry in its place.
    Failure,
}

impl Recipients {
    /// Whether it serves all waiters, so that the other calls of the flight are not needed.
    pub(super) fn serves_all(&self) -> bool {
        matches!(self, Self::Varies | Self::Granted | Self::GrantedAndCaller)
    }
}

impl Rules {
    /// Applies the end of a call. Returns who gets its result.
    pub(super) fn settle(&mut self, call: &Call, result: &UpstreamResult) -> Recipients {
        // A refusal counts as an answer from its head on.
        if result.is_answer() && call.head.is_none() {
            self.answered[service_of(call.key)] = Some(self.now);
        }
        if call.is_unsafe {
            self.settle_unsafe(call, result);
            if result.denial() == Some(401) {
                self.refusal(call, result);
            }
            return Recipients::None;
        }
        if call.is_relay {
            if result.denial().is_none() {
                return Recipients::None;
            }
            self.refusal(call, result);
            return Recipients::Caller;
        }
        if result.is_failure(call.validator) {
            self.count(if matches!(result, UpstreamResult::NotModified(_)) { "unexpected 304" } else { "failure" });
            if self.is_external(call, result) || call.fetch_key.owner.is_none() {
                self.back_off(call, result);
            } else {
                self.count("failure inside the gateway");
            }
            let is_validated = |entry: &&mut Entry| {
                let is_it = entry.cache_key == call.fetch_key || call.is_renewal && entry.cache_key.key == call.key;
                is_it && Some(entry.sent) == call.entry_sent
            };
            if matches!(result, UpstreamResult::NotModified(_))
                && let Some(entry) = self.entries.iter_mut().find(is_validated)
            {
                entry.had_wrong_304 = true;
            }
            return Recipients::Failure;
        }
        if let Some(body) = result.list(call.key, call.validator) {
            return self.settle_proof(call, &body, result);
        }
        if result.denial().is_some() {
            self.refusal(call, result);
            return Recipients::Caller;
        }
        match result {
            UpstreamResult::Failed(Failure::TooLarge(status)) => {
                self.count("response too large");
                if *status == 200 {
                    self.mark_fetch_key(call, true);
                }
                Recipients::None
            }
            UpstreamResult::Failed(_) | UpstreamResult::NotModified(_) => {
                unreachable!("handled above: failures, refusals and lists")
            }
            UpstreamResult::Complete { status: 200, .. } => {
                self.count("not a product list");
                self.mark_fetch_key(call, false);
                Recipients::None
            }
            UpstreamResult::Complete { status: status @ (400 | 404 | 405), body, .. }
                if call.is_direct && self.is_trusted(call) =>
            {
                self.store_negative(call, *status, body);
                Recipients::GrantedAndCaller
            }
            UpstreamResult::Complete { .. } => Recipients::CallerIfValid,
        }
    }

    /// An unsafe method was answered. If a granted caller has changed something, the entries of the scope must be
    /// confirmed.
    fn settle_unsafe(&mut self, call: &Call, result: &UpstreamResult) {
        let scope = scope_of(call.key);
        match (result.is_change(), self.is_granted((call.caller, scope))) {
            (true, true) => {
                self.count("invalidation");
                self.invalidated[scope] = Some(self.now);
            }
            (true, false) => self.count("change by a caller without a grant"),
            (false, true) => self.count("unsafe method without a change"),
            (false, false) => {}
        }
    }

    /// Whether the result of a call may change what others see: the call was for its caller only, or its caller is
    /// granted now.
    fn is_trusted(&self, call: &Call) -> bool {
        call.fetch_key.owner.is_some() || self.is_granted((call.caller, scope_of(call.key)))
    }

    fn mark_fetch_key(&mut self, call: &Call, is_too_large: bool) {
        if self.is_trusted(call) {
            self.set_mark(call, call.fetch_key, is_too_large);
        }
    }

    /// Applies a product list.
    fn settle_proof(&mut self, call: &Call, body: &str, result: &UpstreamResult) -> Recipients {
        let caller_scope = (call.caller, scope_of(call.key));
        let listed = &mut self.listed[service_of(call.key)];
        *listed = (*listed).max(Some(call.sent));
        if self.is_late(call) {
            self.count("late proof");
            return Recipients::None;
        }
        self.count("proof");
        // Whichever call has proved the caller, its other requests need not wait longer.
        let proves = |other: &&mut Call| (other.caller, scope_of(other.key)) == caller_scope;
        self.calls.iter_mut().filter(proves).for_each(|other| other.is_proof = false);
        let proved = self.proved(caller_scope).unwrap_or(0).max(call.sent);
        self.grants.retain(|grant| grant.caller_scope != caller_scope);
        self.grants.push(Grant {
            caller_scope,
            proved,
            suspended_by: Vec::new(),
            last_used: proved,
            longest_gap: 0,
            no_renewal_until: 0,
            failed_renewals: 0,
        });
        self.refusals.retain(|refusal| refusal.caller_scope != caller_scope);
        let cache_key = self.cache_key(call.caller, call.key);
        let etag = match result {
            UpstreamResult::Complete { extra_header: ExtraHeader::NoStore, .. } => {
                self.count("no-store response");
                self.set_mark(call, cache_key, false);
                self.mark_fetch_key(call, false);
                return Recipients::None;
            }
            UpstreamResult::Complete { etag, .. } => *etag,
            _ => {
                self.count("304");
                call.validator
            }
        };
        let own = CacheKey { key: call.key, owner: Some(call.caller) };
        self.marks.retain(|mark| ![cache_key, call.fetch_key, own].contains(&mark.cache_key));
        self.backoffs.retain(|backoff| match backoff.target {
            BackoffTarget::CacheKey(of) | BackoffTarget::CallerKey(_, of) => of != cache_key && of != call.fetch_key,
            BackoffTarget::Caller(_) | BackoffTarget::NotKeyOnly(_) | BackoffTarget::Scope(_) => true,
        });
        let varies = matches!(result, UpstreamResult::Complete { extra_header: ExtraHeader::Vary, .. });
        self.store(call, body, etag, varies);
        if varies { Recipients::Varies } else { Recipients::Granted }
    }

    /// Stores a response, if nothing prevents it.
    fn store(&mut self, call: &Call, body: &str, etag: Option<Version>, varies: bool) {
        if call.was_purged {
            return self.count("response sent for before a purge");
        }
        if varies {
            self.turn_private(scope_of(call.key));
        }
        if !self.is_valid(call.key, call.sent) {
            return self.count("response sent for before an invalidation");
        }
        let cache_key = self.cache_key(call.caller, call.key);
        let before = self.entries.iter().position(|entry| entry.cache_key == cache_key);
        if before.is_some_and(|index| self.entries[index].sent >= call.sent) {
            return self.count("older than the entry");
        }
        self.negatives.retain(|negative| negative.cache_key != cache_key || negative.sent > call.sent);
        let mut entry = Entry {
            cache_key,
            body: body.to_owned(),
            etag,
            had_wrong_304: false,
            sent: call.sent,
            observations: Vec::new(),
        };
        let before = before.map_or(Vec::new(), |index| self.entries.remove(index).observations);
        if cache_key.owner.is_none() {
            let observation = Observation { body: body.to_owned(), caller: call.caller, received: self.now };
            entry.observations = observe(before, observation, call.sent);
        }
        if entry.observations.len() == 4 {
            self.count("scope turned private");
            let scope = scope_of(call.key);
            self.private.push(scope);
            self.entries.retain(|entry| entry.cache_key.owner.is_some() || scope_of(entry.cache_key.key) != scope);
            entry.cache_key.owner = Some(call.caller);
            entry.observations.clear();
            self.entries.retain(|other| other.cache_key != entry.cache_key);
        }
        self.entries.push(entry);
    }

    /// Upstream says that the responses of an operation vary on the credential.
    fn turn_private(&mut self, scope: ScopeId) {
        let Scope { operation, is_shared, .. } = SCOPES[scope];
        if !is_shared || self.private_operations.contains(&operation) {
            return;
        }
        self.count("operation turned private");
        self.private_operations.push(operation);
        let is_matching = |key| SCOPES[scope_of(key)].operation == operation;
        self.entries.retain(|entry| entry.cache_key.owner.is_some() || !is_matching(entry.cache_key.key));
    }

    /// Stores a negative response, if its caller is granted and nothing newer is known.
    fn store_negative(&mut self, call: &Call, status: u16, body: &str) {
        let cache_key = self.cache_key(call.caller, call.key);
        let is_older = self.entry(cache_key).is_some_and(|entry| entry.sent >= call.sent)
            || self.negatives.iter().any(|negative| negative.cache_key == cache_key && negative.sent >= call.sent);
        let is_granted = self.is_granted((call.caller, scope_of(call.key)));
        if call.is_renewal || self.settings.negative_ttl == 0 || !is_granted || call.was_purged || is_older {
            return;
        }
        if !self.is_valid(call.key, call.sent) {
            return self.count("negative response sent for before an invalidation");
        }
        self.count("negative response stored");
        self.negatives.retain(|negative| negative.cache_key != cache_key);
        self.negatives.push(Negative { cache_key, status, body: body.to_owned(), sent: call.sent });
    }

    /// Whether the cause of a failure is outside the gateway. An unreachable upstream counts only if no call has
    /// reached it lately.
    pub(super) fn is_external(&self, call: &Call, result: &UpstreamResult) -> bool {
        match result {
            UpstreamResult::Failed(Failure::Local) => false,
            UpstreamResult::Failed(Failure::Unreachable) => {
                let answered = self.answered[service_of(call.key)];
                answered.is_none_or(|answered| self.now >= answered + Settings::REACHABLE_FOR)
            }
            _ => true,
        }
    }

    /// While there is a fresh entry, the mark is the caller's own.
    fn set_mark(&mut self, call: &Call, cache_key: CacheKey, is_too_large: bool) {
        let is_fresh = self.usable(cache_key).is_some_and(|entry| self.left(entry) > 0);
        if is_fresh && cache_key.owner.is_none() {
            self.count("mark of a single caller");
        }
        if call.is_renewal && !is_fresh && cache_key.owner.is_none() {
            self.count("mark by a renewal");
        }
        let cache_key =
            if is_fresh || call.is_renewal { CacheKey { owner: Some(call.caller), ..cache_key } } else { cache_key };
        self.marks.retain(|mark| mark.cache_key != cache_key);
        self.marks.push(Mark { cache_key, is_too_large, until: self.now + Settings::MARK_TTL });
    }

    /// Applies a failure: for a while, upstream is not called for what can be given stale. A call that sent more than
    /// its key may have caused its own failure.
    fn back_off(&mut self, call: &Call, result: &UpstreamResult) {
        let scope = scope_of(call.key);
        // A caller without a grant gets nothing stale, so its failures are not remembered.
        if !self.is_known((call.caller, scope)) || !self.is_trusted(call) {
            return;
        }
        let (status, after) = match result {
            UpstreamResult::Complete {
                status: status @ (429 | 503),
                extra_header: ExtraHeader::RetryAfter(after),
                ..
            } => (*status, *after),
            UpstreamResult::Complete { status, .. } => (*status, None),
            _ => (0, None),
        };
        let after = after.map(|after| after.min(Settings::MAX_BACKOFF));
        let duration = after.unwrap_or(self.settings.negative_ttl);
        if call.is_renewal {
            self.set_backoff(BackoffTarget::NotKeyOnly((call.caller, scope)), duration);
        }
        if call.fetch_key.owner.is_some() {
            self.count("backoff of an owned cache key");
            self.set_backoff(BackoffTarget::CacheKey(call.fetch_key), duration);
        } else if !call.is_direct {
            self.count("backoff of a call with more than its key");
            self.set_backoff(BackoffTarget::NotKeyOnly((call.caller, scope)), duration);
        } else if status == 429 || status == 503 && after.is_some() {
            self.count(if status == 429 { "backoff of a caller" } else { "backoff of a caller after 503" });
            let is_of_another = |backoff: &Backoff| match backoff.target {
                BackoffTarget::Caller((caller, its)) => its == scope && caller != call.caller,
                BackoffTarget::CacheKey(_)
                | BackoffTarget::CallerKey(..)
                | BackoffTarget::Scope(_)
                | BackoffTarget::NotKeyOnly(_) => false,
            };
            if self.backoffs.iter().any(|backoff| backoff.until > self.now && is_of_another(backoff)) {
                self.count("backoff of a scope");
                self.set_backoff(BackoffTarget::Scope(scope), duration);
            }
            self.set_backoff(BackoffTarget::Caller((call.caller, scope)), duration);
        } else {
            self.count("backoff of a cache key for a caller");
            let is_of_another = |backoff: &Backoff| match backoff.target {
                BackoffTarget::CallerKey(caller, cache_key) => cache_key == call.fetch_key && caller != call.caller,
                _ => false,
            };
            if self.backoffs.iter().any(|backoff| backoff.until > self.now && is_of_another(backoff)) {
                self.count("backoff of a cache key");
                self.set_backoff(BackoffTarget::CacheKey(call.fetch_key), duration);
            }
            self.set_backoff(BackoffTarget::CallerKey(call.caller, call.fetch_key), duration);
        }
    }

    /// A shorter backoff does not end a longer one.
    fn set_backoff(&mut self, target: BackoffTarget, duration: Ms) {
        let until = self.now + duration;
        match self.backoffs.iter_mut().find(|backoff| backoff.target == target) {
            Some(backoff) => backoff.until = backoff.until.max(until),
            None => self.backoffs.push(Backoff { target, until }),
        }
    }
}

/// Divergence detection: the callers that got different bodies in turn.
fn observe(mut observations: Vec<Observation>, new: Observation, sent: Ms) -> Vec<Observation> {
    let Some(last) = observations.last_mut() else { return vec![new] };
    if sent < last.received {
        return observations;
    }
    let is_same = last.body == new.body;
    if is_same {
        last.received = new.received;
    }
    if observations.iter().any(|observation| observation.caller == new.caller && observation.body != new.body) {
        return vec![new];
    }
    if is_same {
        return observations;
    }
    if observations.len() >= 2 && observations[observations.len() - 2].body != new.body {
        observations = observations.split_off(observations.len() - 1);
    }
    observations.push(new);
    observations
}
