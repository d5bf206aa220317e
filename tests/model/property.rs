//! The safety property, judged from the history alone: the states of upstream and the calls that it got. It does not
//! use what the gateway or the model store.
//!
//! For every product list served, there is a moment within the last `grant_ttl` at which upstream would have proved
//! this caller in this scope, and no denial has come since. If the caller's own call has failed, `outage_grace` counts
//! in place of `grant_ttl`. The list was upstream's response to this key, sent for within its ttl, or within the stale
//! windows for a valid reason. A denial counts from its head on. Until its body has arrived, a 401 denies all grants of
//! its caller in the service.
//!
//! What other processes have got counts, too, if this one has it from a second tier or from a snapshot (`kept`). So do
//! their proofs and denials, if this one knows them (`fleet`).
//!
//! No call is made twice: of the callers that may share a response, one calls at a time.

mod fleet;
mod kept;

use super::domain::{
    CacheRequest, CallerId, ExtraHeader, Failure, History, KeyId, Ms, RequestId, UpstreamResult, Version,
};
use super::domain::{
    RequestDirectives, SCOPES, ScopeId, UpstreamState, is_list, scope_of, service_of, service_of_scope,
};
use super::driver::ClientResponse;
use super::limits::LIMITS;
use super::scripted_upstream::UpstreamRequest;
use super::settings::Settings;
use super::steps::Outcome;
use fleet::Fleet;
pub use fleet::{Borrowed, Denied};
pub use kept::Copy;
use kept::EarlierCall;

/// How often a request waits for the call of another at most.
const MAX_ELECTIONS: usize = 4;

/// The maximum number of calls for a key, while upstream is slow for some callers only.
const MAX_CALLS: usize = 3;

/// A call to upstream, the state of upstream when it was sent, and its end.
struct Call {
    request: UpstreamRequest,
    /// Whether the request was relayed. Such a response is not read as a whole, so it proves nothing.
    is_relay: bool,
    /// Whether its response is for all granted callers, and whether it may run beside another call.
    is_shared: bool,
    may_be_alone: bool,
    sent: Ms,
    /// For timers: later by the jumps of clocks since then.
    timer_sent: Ms,
    state: UpstreamState,
    /// A refusal whose head arrived before its body.
    head: Option<(Ms, UpstreamResult)>,
    end: Option<(Ms, UpstreamResult)>,
    /// How many calls were answered before, some perhaps at the same moment.
    answer_order: usize,
    /// Whether its caller was granted when it ended.
    was_proved: bool,
    /// Whether it proves nothing: its caller was denied when it ended, or was proved again while this proof was denied.
    is_void: bool,
}

impl Call {
    fn new(request: UpstreamRequest, is_relay: bool, sent: Ms, state: UpstreamState) -> Self {
        let (is_shared, may_be_alone) = (false, is_relay);
        let (head, end, answer_order, was_proved, is_void) = (None, None, 0, false, false);
        let timer_sent = sent;
        Self {
            request,
            is_relay,
            is_shared,
            may_be_alone,
            sent,
            timer_sent,
            state,
            head,
            end,
            answer_order,
            was_proved,
            is_void,
        }
    }

    /// When its head arrived, if that was by then, and the result so far.
    fn answered(&self, by: Ms) -> Option<(Ms, &UpstreamResult)> {
        let (at, head) = self.head.as_ref().or(self.end.as_ref())?;
        let result = self.end.as_ref().map_or(head, |(_, result)| result);
        (*at <= by).then_some((*at, result))
    }

    /// Whether only its head has arrived.
    fn lacks_body(&self) -> bool {
        self.head.is_some() && self.end.is_none()
    }

    fn completed(&self, by: Ms) -> Option<(Ms, &UpstreamResult)> {
        self.end.as_ref().filter(|(completed, _)| *completed <= by).map(|(completed, result)| (*completed, result))
    }

    /// The list that it has returned by then.
    fn list(&self, by: Ms) -> Option<String> {
        self.completed(by).and_then(|(_, result)| result.list(self.request.key, self.request.validator))
    }

    fn has_failed(&self, since: Ms, by: Ms) -> bool {
        let end = self.completed(by).filter(|(completed, _)| *completed >= since && !self.is_relay);
        end.is_some_and(|(_, result)| result.is_failure(self.request.validator))
    }
}

/// A request, and when it arrived. For timers that is later by the jumps of clocks since then.
struct Arrived {
    request: CacheRequest,
    at: Ms,
    timer_at: Ms,
}

pub struct Property {
    settings: Settings,
    calls: Vec<Call>,
    earlier: Vec<EarlierCall>,
    copies: Vec<Copy>,
    requests: Vec<Arrived>,
    purged: [Option<Ms>; SCOPES.len()],
    /// The same, by when the purge was told, if another gateway has told it: a copy of a later call may be used.
    copies_since: [Option<Ms>; SCOPES.len()],
    last_purge: Option<Ms>,
    /// The last change by a granted caller.
    changed: [Option<Ms>; SCOPES.len()],
    /// Operations whose responses vary on the credential, as upstream has told a granted caller.
    varying: Vec<&'static str>,
    fleet: Fleet,
}

impl Property {
    pub fn new(settings: Settings) -> Self {
        let (calls, earlier, copies) = (Vec::new(), Vec::new(), Vec::new());
        let (requests, varying) = (Vec::new(), Vec::new());
        let (purged, changed) = ([None; SCOPES.len()], [None; SCOPES.len()]);
        Self {
            settings,
            calls,
            earlier,
            copies,
            requests,
            purged,
            copies_since: [None; SCOPES.len()],
            last_purge: None,
            changed,
            varying,
            fleet: Fleet::default(),
        }
    }

    /// A clock jumps: this much time passes for rules, but not for timers.
    pub fn jumped(&mut self, by: Ms) {
        self.calls.iter_mut().for_each(|call| call.timer_sent += by);
        self.requests.iter_mut().for_each(|arrived| arrived.timer_at += by);
    }

    pub fn requested(&mut self, request: CacheRequest, at: Ms) {
        self.requests.push(Arrived { request, at, timer_at: at });
    }

    pub fn purged(&mut self, at: Ms, selected: impl Fn(ScopeId) -> bool) {
        self.last_purge = Some(at);
        for scope in (0..SCOPES.len()).filter(|scope| selected(*scope)) {
            (self.purged[scope], self.copies_since[scope]) = (Some(at), Some(at));
        }
    }

    /// Another gateway has told of a purge at `told`.
    pub fn told_purged(&mut self, told: Ms, at: Ms, selected: impl Fn(ScopeId) -> bool) {
        self.last_purge = Some(at);
        for scope in (0..SCOPES.len()).filter(|scope| selected(*scope)) {
            self.purged[scope] = Some(at);
            self.copies_since[scope] = self.copies_since[scope].max(Some(told));
        }
    }

    /// A purge of whole operations.
    pub fn purged_whole(&mut self, operation: Option<&str>) {
        self.varying.retain(|varying| operation.is_some_and(|name| name != *varying));
    }

    /// Checks a call that starts: not for `only-if-cached`, and not beside another call that could be shared.
    /// `may_have_waited`: a call that starts after its request has arrived may have waited for its turn since.
    pub fn started(
        &mut self,
        request: UpstreamRequest,
        is_private: bool,
        may_have_waited: bool,
        sent: Ms,
        history: &History,
    ) -> Result<(), String> {
        let UpstreamRequest { id, caller, key, validator, .. } = request;
        let Arrived { request: CacheRequest { directives, spelling, .. }, at: arrived, .. } =
            self.requests[id as usize];
        if spelling.is_ambiguous() {
            return Err(format!("PROPERTY: #{id} starts a call with an ambiguous token"));
        }
        if directives == RequestDirectives::OnlyIfCached {
            return Err(format!("PROPERTY: #{id} starts a call in spite of only-if-cached"));
        }
        let is_proved = self.is_proved(caller, scope_of(key), self.settings.grant_ttl, sent);
        if validator.is_some() && !is_proved {
            return Err(format!("PROPERTY: #{id} sends a conditional request, but caller {caller} has no valid proof"));
        }
        let is_shared = is_proved && !is_private;
        let may_be_alone = directives == RequestDirectives::NoCache
            || self.has_waited_enough(key, arrived, sent)
            || self.is_marked(key, sent)
            || self.ends_soon(caller, scope_of(key), sent)
            || may_have_waited && arrived < sent;
        let is_bounded = self.settings.max_flights.min(self.settings.max_waiters) < 100;
        let others: Vec<&Call> = self
            .calls
            .iter()
            .filter(|call| {
                let is_open = self.last_purge.is_none_or(|purge| purge < call.sent) && !call.may_be_alone;
                let is_due = call.answered(sent).is_none();
                call.request.key == key && is_due && call.is_shared && is_open && !self.is_superseded(call)
            })
            .collect();
        let may_run_beside = |another: &&&Call| {
            another.request.caller != caller
                && another.timer_sent + self.settings.stale_if_slow <= sent
                && self.is_listed_since(another, sent)
        };
        let is_additional = others.len() < MAX_CALLS && others.iter().all(|another| may_run_beside(&another));
        if let Some(another) = others.first()
            && is_shared
            && !(may_be_alone || is_bounded || is_additional)
        {
            return Err(format!(
                "PROPERTY: #{id} starts a call beside that of #{}, which could be shared",
                another.request.id
            ));
        }
        let call = Call::new(request, false, sent, history.now().clone());
        self.calls.push(Call { is_shared, may_be_alone, ..call });
        Ok(())
    }

    /// Whether the grant of a caller ends so soon that a call may renew it, beside others for the same key.
    pub fn ends_soon(&self, caller: CallerId, scope: ScopeId, at: Ms) -> bool {
        let (_, longest) = self.settings.renewal_leads();
        let most = self.settings.grant_ttl.saturating_sub(longest);
        longest > 0 && !self.is_proved(caller, scope, most, at)
    }

    /// Whether upstream has returned a list that was sent for after a call to the same service.
    fn is_listed_since(&self, call: &Call, by: Ms) -> bool {
        let service = service_of(call.request.key);
        let mut others = self.calls.iter().filter(|other| service_of(other.request.key) == service && !other.is_relay);
        others.any(|other| other.sent > call.sent && other.list(by).is_some())
    }

    /// Whether another call has answered all waiters of this one.
    fn is_superseded(&self, call: &Call) -> bool {
        let ends_wait = |result: &UpstreamResult, other: &Call| {
            result.list(other.request.key, other.request.validator).is_some()
                || matches!(result, UpstreamResult::Complete { status: 400 | 404 | 405, .. })
        };
        self.calls.iter().filter(|other| other.request.key == call.request.key && other.is_shared).any(|other| {
            other.end.as_ref().is_some_and(|(completed, result)| *completed >= call.sent && ends_wait(result, other))
        })
    }

    /// Whether the cause of a failed call is outside the gateway. An unreachable upstream counts only if no call has
    /// reached it lately.
    fn is_external(&self, call: &Call) -> bool {
        match &call.end {
            Some((_, UpstreamResult::Failed(Failure::Local))) => false,
            Some((completed, UpstreamResult::Failed(Failure::Unreachable))) => !self.calls.iter().any(|other| {
                let answered = other
                    .answered(*completed)
                    .filter(|(at, result)| result.is_answer() && *completed < at + Settings::REACHABLE_FOR);
                let is_before = answered.is_some() && other.answer_order < call.answer_order;
                service_of(other.request.key) == service_of(call.request.key) && is_before
            }),
            _ => true,
        }
    }

    pub fn relayed(&mut self, request: UpstreamRequest, sent: Ms, history: &History) {
        self.calls.push(Call::new(request, true, sent, history.now().clone()));
    }

    pub fn completed(&mut self, id: RequestId, at: Ms, result: &UpstreamResult) {
        let index = self
            .calls
            .iter()
            .position(|call| call.request.id == id && call.end.is_none())
            .expect("the call has started");
        let UpstreamRequest { caller, key, .. } = self.calls[index].request;
        // Other calls may end at the same moment with a denial, so the order counts.
        let grant_ttl = self.settings.grant_ttl;
        let was_proved = self.is_proved(caller, scope_of(key), grant_ttl, at);
        let was_proved_here = self.own_proof(caller, scope_of(key), grant_ttl, at).is_some();
        let answer_order = self.answered_calls();
        let call = &mut self.calls[index];
        (call.end, call.was_proved) = (Some((at, result.clone())), was_proved);
        if call.head.is_none() {
            call.answer_order = answer_order;
        }
        let call = &self.calls[index];
        self.calls[index].is_void = self.is_denied_since(call, at) || self.has_missed_since(call.sent, at);
        let is_proof = result.list(key, self.calls[index].request.validator).is_some();
        if is_proof && !self.calls[index].is_void && !self.calls[index].is_relay {
            let is_same_caller_scope =
                |call: &Call| (call.request.caller, scope_of(call.request.key)) == (caller, scope_of(key));
            let places = 0..self.calls.len();
            let replaced: Vec<usize> = places
                .filter(|&other| is_same_caller_scope(&self.calls[other]) && self.calls[other].end.is_some())
                .filter(|&other| self.is_denied_since(&self.calls[other], at))
                .collect();
            replaced.into_iter().for_each(|other| self.calls[other].is_void = true);
        }
        let call = &self.calls[index];
        let (is_unsafe, is_relay, sent) = (call.request.is_unsafe, call.is_relay, call.sent);
        let scope = scope_of(key);
        if is_unsafe && was_proved_here && result.is_change() {
            self.changed[scope] = Some(at);
        }
        let varies = matches!(result, UpstreamResult::Complete { status: 200, extra_header: ExtraHeader::Vary, .. })
            && !is_relay;
        let is_after_purge = self.last_purge.is_none_or(|purge| sent > purge);
        if varies && is_after_purge && !self.calls[index].is_void {
            self.varying.push(SCOPES[scope].operation);
        }
    }

    /// The head of a refusal arrives. It counts from now on.
    pub fn head_delivered(&mut self, id: RequestId, at: Ms, result: &UpstreamResult) {
        let answer_order = self.answered_calls();
        let call = self
            .calls
            .iter_mut()
            .find(|call| call.request.id == id && call.end.is_none())
            .expect("the call has started");
        (call.head, call.answer_order) = (Some((at, result.clone())), answer_order);
    }

    fn answered_calls(&self) -> usize {
        self.calls.iter().filter(|call| call.answered(Ms::MAX).is_some()).count()
    }

    /// How upstream ends a call.
    pub fn answer(&self, id: RequestId, outcome: &Outcome, history: &History) -> UpstreamResult {
        let call =
            self.calls.iter().find(|call| call.request.id == id && call.end.is_none()).expect("the call has started");
        let UpstreamRequest { caller, key, validator, .. } = call.request;
        if let Some((_, head)) = &call.head {
            return body(head, outcome, caller, history.now().answer(caller, key, validator));
        }
        let regular = |state: &UpstreamState| state.answer(caller, key, validator);
        let complete = || history.now().answer(caller, key, None);
        let error =
            |status| UpstreamResult::complete(status, format!(r#"{{"error_code":"{status}","caller":{caller}}}"#));
        match *outcome {
            Outcome::Regular { as_sent: true } => regular(&call.state),
            Outcome::Regular { as_sent: false } => regular(history.now()),
            Outcome::NoStore => complete().with(ExtraHeader::NoStore),
            Outcome::Vary => complete().with(ExtraHeader::Vary),
            Outcome::Intermediary => error(403).with(ExtraHeader::Intermediary),
            Outcome::LongRefusal => complete().lengthened(),
            Outcome::ErrorWith200 => UpstreamResult::complete(
                200,
                format!(r#"{{"error_code":"WKS.00211401","error_msg":"to caller {caller}"}}"#),
            ),
            Outcome::Status(status) if call.request.is_unsafe => UpstreamResult::complete(status, ""),
            Outcome::Status(status) => error(status),
            Outcome::Throttled(limit) => LIMITS[limit].refusal(caller),
            Outcome::RetryAfter(status, after) => error(status).with(ExtraHeader::RetryAfter(after)),
            // A conditional call gets the tag of another list.
            Outcome::NotModified => {
                let another = validator.map(|validator| Version { catalogue: validator.catalogue + 10, ..validator });
                UpstreamResult::NotModified(another)
            }
            Outcome::RefusedByService => refused_by_service(caller),
            Outcome::ConnectionRefused => UpstreamResult::Failed(Failure::Connect),
            Outcome::Unreachable => UpstreamResult::Failed(Failure::Unreachable),
            Outcome::Local => UpstreamResult::Failed(Failure::Local),
            Outcome::TimedOut => UpstreamResult::Failed(Failure::Timeout),
            // A relayed response is never too large.
            Outcome::TooLarge if call.is_relay => regular(history.now()),
            Outcome::TooLarge => complete().too_large(),
        }
    }

    /// Judges a response, unless it was sent from upstream directly to this request.
    pub fn check(&self, response: &ClientResponse, history: &History, is_private: bool) -> Result<(), String> {
        match (response.list(), response.status) {
            (None, 400) if response.request.spelling.is_ambiguous() => Ok(()),
            (..) if response.request.spelling.is_ambiguous() => {
                Err(format!("PROPERTY: #{} has an ambiguous token and is not rejected", response.request.id))
            }
            (Some(list), _) => self.check_list(response, list, history, is_private),
            (None, 400..=428 | 430..=499) => self.check_error(response, is_private),
            (None, _) => Ok(()),
        }
    }

    /// An error that depends on the caller is only for that caller. A negative response is for granted callers, and
    /// comes from a granted caller.
    fn check_error(&self, response: &ClientResponse, is_private: bool) -> Result<(), String> {
        let ClientResponse { at, status, .. } = *response;
        let CacheRequest { id, caller, key, .. } = response.request;
        let grant = self.settings.grant_ttl;
        let is_negative = matches!(status, 400 | 404 | 405);
        let lifetime = if is_negative { self.settings.negative_ttl } else { Settings::DENIAL_TTL };
        let is_from_upstream = self.calls.iter().any(|call| {
            let UpstreamRequest { caller: leader, key: call_key, is_direct, .. } = call.request;
            let Some((completed, result)) = call.completed(at) else { return false };
            let is_same = match result {
                UpstreamResult::Complete { status: call_status, body, .. } => {
                    *call_status == status && *body == response.body
                }
                // In the words of the gateway.
                UpstreamResult::Failed(Failure::Refused(call_status)) => *call_status == status && !response.is_hit(),
                _ => false,
            };
            let is_match = scope_of(call_key) == scope_of(key) && is_same;
            let since = match call.answered(at) {
                _ if is_negative => call.sent,
                // A refusal counts from its head on.
                answered => answered.map_or(completed, |(answered, _)| answered),
            };
            let is_recent =
                call.request.id == id || if response.is_hit() { since + lifetime > at } else { completed == at };
            let may_be_shared = is_negative && is_direct && call_key == key && !is_private && !call.is_relay;
            is_match && is_recent && (leader == caller || may_be_shared && call.was_proved)
        });
        let has_proof = || self.is_proved(caller, scope_of(key), grant, at);
        if is_from_upstream && (!(is_negative && response.is_hit()) || has_proof()) {
            return Ok(());
        }
        Err(format!("PROPERTY: #{id} got an error that upstream has not sent to caller {caller}"))
    }

    fn check_list(
        &self,
        response: &ClientResponse,
        list: String,
        history: &History,
        is_private: bool,
    ) -> Result<(), String> {
        let ClientResponse { waited, at, .. } = *response;
        let CacheRequest { id, caller, key, directives, .. } = response.request;
        let scope = scope_of(key);
        let is_own =
            |call: &Call| call.is_relay && call.completed(at).is_some() || call.list(at).as_ref() == Some(&list);
        if self.calls.iter().rfind(|call| call.request.id == id).is_some_and(is_own) {
            return Ok(());
        }

        // Calls that failed at this moment, if that is why the list was served, or the time that a call may take is over.
        // The request may wait for the call of an earlier one.
        let longest = Settings::ANSWER_TIMEOUT + self.settings.longest_wait();
        let mut requests = self.requests.iter().filter(|it| it.request.key == key && !response.is_hit());
        let is_out_of_time = waited >= Settings::ANSWER_TIMEOUT
            || requests.any(|it| (Settings::ANSWER_TIMEOUT..=longest).contains(&(at - it.timer_at)));
        let mut failed_now = self.calls.iter().filter(|call| call.request.key == key && call.has_failed(at, at));
        let has_failed = is_out_of_time || failed_now.clone().next().is_some();
        let own_failed_now = is_out_of_time || failed_now.any(|call| call.request.caller == caller);
        // Calls that failed within the longest backoff.
        let failures = self.calls.iter().filter(|call| call.has_failed(at.saturating_sub(Settings::MAX_BACKOFF), at));
        let is_own_key = |call: &Call| (call.request.caller, call.request.key) == (caller, key);
        let is_backing_off = response.detail() == Some("backoff");

        // The caller must be granted, not denied since, and accepted by upstream in that time. Only a failure of the
        // caller's own call outside the gateway extends a grant. The extended grant covers no list that was sent for
        // after its regular end.
        let mut own_failures = failures.filter(|call| is_own_key(call) && self.is_external(call));
        let has_own_failure = own_failures.any(|call| is_backing_off || call.has_failed(at, at));
        let grant = self.settings.grant_ttl;
        let is_extended = has_own_failure && self.settings.serves_on_outage;
        let is_granted = self.is_proved(caller, scope, grant, at);
        let extended_proof = self.proof(caller, scope, Settings::OUTAGE_GRACE, at).filter(|_| is_extended);
        let earlier_proof = self.earlier_proof(caller, scope, at).filter(|_| is_extended);
        let lapsed_until = self.lapsed_until(caller, scope, at).filter(|_| is_extended);
        let extended_until = extended_proof.map(|proved| proved + grant).max(earlier_proof).max(lapsed_until);
        let (lifetime, sent_until) = match extended_until {
            _ if is_granted => (grant, at),
            Some(until) => (Settings::OUTAGE_GRACE, until),
            None => {
                return Err(format!("PROPERTY: #{id} was served a list, but caller {caller} has no valid proof"));
            }
        };
        if !history.since(at.saturating_sub(lifetime)).any(|state| state.proves(caller, scope)) {
            return Err(format!(
                "PROPERTY: #{id} was served a list, but upstream would not have proved caller {caller}"
            ));
        }

        // The list must be upstream's response to this key, to this caller if it is private, and young enough.
        let ttl = Settings::ttl(scope);
        let (is_allowed, stale_window) = match response.detail() {
            Some("revalidating") => (response.is_hit(), self.settings.stale_while_revalidate),
            // Why no call was sent is no matter of this property.
            Some("backoff") => (response.is_hit(), self.settings.stale()),
            Some("stale-if-slow") => (waited >= self.settings.stale_if_slow, self.settings.stale()),
            _ if response.is_hit() => (true, 0),
            _ => (true, if has_failed { self.settings.stale() } else { 0 }),
        };
        if !is_allowed {
            return Err(format!("PROPERTY: #{id} was served a stale list without a reason"));
        }
        let meets_directives = match directives {
            RequestDirectives::NoCache => own_failed_now,
            RequestDirectives::NoStore => false,
            RequestDirectives::None
            | RequestDirectives::MaxAge(_)
            | RequestDirectives::MinFresh(_)
            | RequestDirectives::OnlyIfCached => true,
        };
        if !meets_directives {
            return Err(format!("PROPERTY: #{id} was served a list that is older than the request"));
        }
        let max_age = match directives {
            RequestDirectives::MaxAge(max_age) if !has_failed => max_age + 1,
            _ => Ms::MAX,
        };
        let earlier = self.earlier.iter().filter(|earlier| earlier.has_response).map(|earlier| &earlier.call);
        let is_from_upstream = self.calls.iter().chain(earlier).any(|call| {
            let is_young = call.sent + (ttl + stale_window).min(max_age) > at;
            let arrived_now =
                !response.is_hit() && matches!(call.completed(at), Some((completed, _)) if completed == at);
            let is_for_all = !(is_private || self.varies(scope)) || call.request.caller == caller;
            // In the moment of the change the order is not known.
            let is_after_change = self.changed[scope].is_none_or(|change| call.sent > change || at == change);
            let is_storable = !matches!(
                call.completed(at),
                Some((_, UpstreamResult::Complete { extra_header: ExtraHeader::NoStore, .. }))
            );
            let is_after_purge = self.purged[scope].is_none_or(|purge| call.sent >= purge);
            let may_be_source = call.request.key == key
                && !call.is_relay
                && is_for_all
                && is_storable
                && is_after_purge
                && is_after_change;
            let is_before_limit = call.sent <= sent_until;
            may_be_source && is_before_limit && (is_young || arrived_now) && call.list(at).as_ref() == Some(&list)
        });
        let is_from_tier = self.copies.iter().any(|copy| {
            let is_young = copy.counts_from + (ttl + stale_window).min(max_age) > at;
            let is_known_void = self.copies_since[scope].is_some_and(|purge| copy.sent < purge)
                || self.changed[scope].is_some_and(|change| copy.sent <= change && at != change)
                || is_private
                || self.varies(scope);
            (copy.key, &copy.list) == (key, &list) && copy.sent <= sent_until && is_young && !is_known_void
        });
        if !(is_from_upstream || is_from_tier) {
            return Err(format!(
                "PROPERTY: #{id} was served a list that upstream has not sent within the allowed time"
            ));
        }
        Ok(())
    }

    /// Whether upstream has proved a caller within `lifetime`, and has not denied it since.
    pub fn is_proved(&self, caller: CallerId, scope: ScopeId, lifetime: Ms, at: Ms) -> bool {
        self.proof(caller, scope, lifetime, at).is_some()
    }

    /// When the latest proof of a caller within `lifetime` was sent that upstream has not denied since. A 401 denies all
    /// grants of the caller in the service, unless it is the service's own.
    fn proof(&self, caller: CallerId, scope: ScopeId, lifetime: Ms, at: Ms) -> Option<Ms> {
        let borrowed = self.borrowed_proof(caller, scope, lifetime.min(self.settings.grant_ttl), at);
        self.own_proof(caller, scope, lifetime, at).max(borrowed)
    }

    /// The same, of the calls of this process only.
    pub fn own_proof(&self, caller: CallerId, scope: ScopeId, lifetime: Ms, at: Ms) -> Option<Ms> {
        let is_proof = |call: &&Call| {
            let is_own = (call.request.caller, scope_of(call.request.key)) == (caller, scope);
            let is_valid = !call.is_relay && !call.is_void && call.sent + lifetime > at && call.list(at).is_some();
            is_own && is_valid && !self.is_denied_since(call, at) && !self.has_missed_since(call.sent, at)
        };
        self.calls.iter().filter(is_proof).map(|call| call.sent).max()
    }

    /// Whether upstream has denied since then what a call proves. The denied call was sent no earlier, or was answered
    /// later. The response to an unsafe method counts only if it is about the credential. A 401 without its body counts
    /// as such.
    fn is_denied_since(&self, proof: &Call, at: Ms) -> bool {
        let UpstreamRequest { caller, key, .. } = proof.request;
        self.is_told_since(caller, scope_of(key), proof.sent, at)
            || self.calls.iter().filter(|call| call.request.caller == caller).any(|call| {
                let Some((answered, result)) = call.answered(at) else { return false };
                self.concerns(call, result, scope_of(key))
                    && (call.answer_order > proof.answer_order || answered > proof.sent && call.sent >= proof.sent)
            })
    }

    /// Whether the result of a call is a denial that ends the grant of its caller in a scope.
    fn concerns(&self, call: &Call, result: &UpstreamResult, scope: ScopeId) -> bool {
        let Some(status) = result.denial() else { return false };
        let is_in_scope = scope_of(call.request.key) == scope && !call.request.is_unsafe;
        let is_in_service = service_of(call.request.key) == service_of_scope(scope);
        let is_of_credential = if call.lacks_body() { status == 401 } else { result.denies_credential() };
        is_in_scope || is_in_service && is_of_credential
    }

    /// Another gateway has told of a change, or this one has made one for a caller with a borrowed proof.
    pub fn told_changed(&mut self, scope: ScopeId, at: Ms) {
        self.changed[scope] = Some(at);
    }

    /// Another gateway has told that the responses of an operation vary on the credential.
    pub fn told_varying(&mut self, operation: &'static str) {
        self.varying.push(operation);
    }

    /// Whether enough calls for a key have been answered while a request waited that it may make its own.
    fn has_waited_enough(&self, key: KeyId, arrived: Ms, at: Ms) -> bool {
        let answered = |call: &&Call| call.answered(at).is_some_and(|(answered, _)| answered >= arrived);
        self.calls.iter().filter(|call| call.request.key == key).filter(answered).count() >= MAX_ELECTIONS
    }

    /// Whether there was a response lately that must not be stored.
    fn is_marked(&self, key: KeyId, at: Ms) -> bool {
        self.calls.iter().filter(|call| call.request.key == key).filter_map(|call| call.completed(at)).any(
            |(completed, result)| {
                let is_unstorable = match result {
                    UpstreamResult::Complete { status: 200, body, extra_header, .. } => {
                        *extra_header == ExtraHeader::NoStore || !is_list(body)
                    }
                    UpstreamResult::Failed(failure) => *failure == Failure::TooLarge(200),
                    _ => false,
                };
                is_unstorable && completed + Settings::MARK_TTL > at
            },
        )
    }
}

/// The service's own 401. It is about the request, not about the credential.
fn refused_by_service(caller: CallerId) -> UpstreamResult {
    UpstreamResult::complete(401, format!(r#"{{"error_code":"WKS.00211302","caller":{caller}}}"#))
}

/// How a refusal ends after its head: with its body, or incomplete. `regular` is the regular response now.
fn body(head: &UpstreamResult, outcome: &Outcome, caller: CallerId, regular: UpstreamResult) -> UpstreamResult {
    match outcome {
        Outcome::ConnectionRefused | Outcome::Unreachable | Outcome::Local | Outcome::TimedOut | Outcome::TooLarge => {
            head.clone().without_end()
        }
        Outcome::RefusedByService => head.clone().with_body_of(refused_by_service(caller)),
        _ if regular.denial() == head.denial() => head.clone().with_body_of(regular),
        _ => head.clone(),
    }
}
