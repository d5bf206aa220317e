//! The sharing rules, in plain and slow code: lists that are searched from end to end.
//!
//! They are written from the description of the rules. They share nothing with the gateway, not even its duration
//! types. For each event they say what must follow: which requests are answered and how, and which calls start. This
//! file has the state and the events. The other files:
//! - `memory`: reads what is stored.
//! - `proofs`: when a grant is renewed, and who waits for its caller's proof.
//! - `look_up`: decides what happens to a request.
//! - `settle`: what a response changes.
//! - `refusals`: what a refusal changes.
//! - `release`: who gets the result of a call.
//! - `additional_calls`: who makes another call while a flight is slow.
//! - `paced`: the same rules while limits of upstream hold calls back.
//!
//! `tests/table/rules.rs` states a part of the same rules again: what one client with consecutive requests sees,
//! including all of `Cache-Status`. It is not derived from this. Two independent statements find each other's mistakes,
//! and neither can replace the other: that one has no flights, and this one has no headers.
//!
//! The model does not predict the order in which the waiters of a flight wake up. It takes from the gateway which of
//! them starts a call, and checks that this is allowed.

mod additional_calls;
mod look_up;
mod memory;
pub mod paced;
mod proofs;
mod refusals;
mod release;
mod settle;

use std::collections::BTreeMap;

use super::domain::{
    CacheRequest, CallerId, KeyId, Ms, RequestId, SCOPES, SERVICES, Scope, ScopeId, UpstreamResult, Version, scope_of,
};
use super::scripted_upstream::UpstreamRequest;
use super::settings::Settings;
use look_up::Action;
use refusals::Head;
use settle::Recipients;

/// How often a request joins another flight. After that it makes its own call.
const MAX_ELECTIONS: u32 = 3;

type CallerScope = (CallerId, ScopeId);

/// What an entry is stored under: a key, and its owner if it is private.
#[derive(Clone, Copy, Debug, PartialEq)]
struct CacheKey {
    key: KeyId,
    owner: Option<CallerId>,
}

#[derive(Clone, PartialEq)]
struct Grant {
    caller_scope: CallerScope,
    proved: Ms,
    /// Flights refused with a 401 of which only the head has arrived.
    suspended_by: Vec<FlightId>,
    /// The caller's latest request in the scope, and the longest time between two of them since the proof.
    last_used: Ms,
    longest_gap: Ms,
    /// No renewal begins before.
    no_renewal_until: Ms,
    failed_renewals: u32,
}

#[derive(Clone, PartialEq)]
struct Refusal {
    caller_scope: CallerScope,
    until: Ms,
    status: u16,
    body: String,
}

#[derive(Clone, PartialEq)]
struct Entry {
    cache_key: CacheKey,
    body: String,
    /// As upstream sent it.
    etag: Option<Version>,
    /// Whether upstream has answered a revalidation with a 304 that names another list.
    had_wrong_304: bool,
    sent: Ms,
    observations: Vec<Observation>,
}

/// Which caller got which body: the input of divergence detection.
#[derive(Clone, PartialEq)]
struct Observation {
    body: String,
    caller: CallerId,
    received: Ms,
}

/// A negative response. It is stored beside the entry.
#[derive(Clone, PartialEq)]
struct Negative {
    cache_key: CacheKey,
    status: u16,
    body: String,
    sent: Ms,
}

#[derive(Clone, PartialEq)]
struct Mark {
    cache_key: CacheKey,
    is_too_large: bool,
    until: Ms,
}

/// Upstream is not called for what can be given stale.
#[derive(Clone, PartialEq)]
struct Backoff {
    target: BackoffTarget,
    until: Ms,
}

#[derive(Clone, PartialEq)]
enum BackoffTarget {
    CacheKey(CacheKey),
    /// A cache key, for a caller whose call for it has failed.
    CallerKey(CallerId, CacheKey),
    Caller(CallerScope),
    /// A scope, for a caller whose failed call sent more than its key.
    NotKeyOnly(CallerScope),
    Scope(ScopeId),
}

/// What requests wait for: one call, or up to three of different callers.
#[derive(Clone)]
struct Flight {
    id: FlightId,
    cache_key: CacheKey,
    /// Whether requests can join: not if it is for one request only, or started before a purge.
    is_open: bool,
    /// The callers of its calls.
    callers: Vec<CallerId>,
}

type FlightId = usize;

/// The maximum number of calls of a flight.
const MAX_CALLS: usize = 3;

/// A call in flight, identified by the request that started it. If that has started two, the first is meant.
#[derive(Clone)]
struct Call {
    id: RequestId,
    flight: FlightId,
    caller: CallerId,
    key: KeyId,
    is_direct: bool,
    is_unsafe: bool,
    /// Whether the request was relayed.
    is_relay: bool,
    fetch_key: CacheKey,
    /// The list named in `If-None-Match`.
    validator: Option<Version>,
    /// When the entry to revalidate was sent for.
    entry_sent: Option<Ms>,
    sent: Ms,
    /// For timers: later by the jumps of clocks since then.
    timer_sent: Ms,
    was_purged: bool,
    is_late: bool,
    /// Whether it repeats a call that failed with a 5xx.
    is_repeat: bool,
    /// Whether the caller's other requests in the scope wait for it.
    is_proof: bool,
    is_renewal: bool,
    /// The head of a refusal whose body has not arrived.
    head: Option<Head>,
}

/// A request that waits for its own call or for another's.
#[derive(Clone, Debug)]
struct Waiter {
    request: CacheRequest,
    /// By timers, as are the next two: a jump of a clock moves them.
    arrived: Ms,
    /// A relayed request has none.
    deadline: Option<Ms>,
    /// When the request takes a stale entry, if it may.
    stale_if_slow: Option<Ms>,
    /// Whether there was no stale entry for it at that time.
    had_no_stale: bool,
    elections: u32,
    /// Whether it looked up again after a 5xx of another caller's call, and whether its next call is the repetition.
    has_repeated: bool,
    is_repeat_due: bool,
    /// Whether it could not make an additional call when one was due. Then it need not make one later.
    could_not_call: bool,
    /// How many proofs of its caller it has waited for, whether it waits for one, and whether that took too long.
    proof_waits: u32,
    awaits_proof: bool,
    proof_wait_began: Ms,
    proof_was_slow: bool,
    flight: FlightId,
}

#[derive(Clone, Copy, Debug, PartialEq)]
pub enum ReplyKind {
    /// From the cache. These five have the remaining freshness in ms, which is negative for a stale entry.
    Hit(i64),
    /// The same, after a wait for the caller's proof.
    HitAfterProof(i64),
    /// A negative response.
    Negative(i64),
    /// Stale, during a backoff.
    Backoff(i64),
    /// Stale, while it is revalidated.
    Revalidating(i64),
    /// Stale, in place of a failure.
    StaleOnError,
    /// Stale, because upstream is slow.
    StaleIfSlow,
    /// A remembered denial.
    Denied,
    /// The result of its own call.
    Fetched,
    /// The result of another's call.
    Collapsed,
    /// Streamed from upstream.
    Relayed,
    /// The same, because the method is unsafe.
    PassedThrough,
    /// 504 at the deadline.
    TimedOut,
    /// 429, because a limit of upstream has held the call back.
    Held,
    /// 504 for `only-if-cached`.
    NotCached,
    /// 400 because of the spelling of the token.
    Ambiguous,
}

#[derive(Clone, Debug, PartialEq)]
pub struct Reply {
    pub status: u16,
    /// `None` is an error in the words of the gateway.
    pub body: Option<String>,
    /// Upstream's `ETag` of a list.
    pub etag: Option<Version>,
    pub kind: ReplyKind,
}

impl Reply {
    fn new(status: u16, body: Option<String>, kind: ReplyKind) -> Self {
        Self { status, body, etag: None, kind }
    }

    fn of(entry: &Entry, kind: ReplyKind) -> Self {
        Self { status: 200, body: Some(entry.body.clone()), etag: entry.etag, kind }
    }
}

/// A call that has ended, and the recipients of its result.
#[derive(Clone)]
struct Ended<'s> {
    call: Call,
    result: &'s UpstreamResult,
    recipients: Recipients,
    /// Whether it ends its flight, and not only the wait of its own request.
    ends_flight: bool,
    /// Whether another caller may repeat the call, because upstream has answered a later call.
    may_repeat: bool,
    /// For a failure: whether the cause is outside the gateway.
    is_external: bool,
}

impl Waiter {
    /// Whether a call is this request's own.
    fn leads(&self, call: &Call) -> bool {
        call.id == self.request.id && call.flight == self.flight
    }

    /// The time of a wait for a proof does not count for the deadline.
    fn end_proof_wait(&mut self, now: Ms) {
        self.deadline = self.deadline.map(|deadline| deadline + (now - self.proof_wait_began));
    }

    /// A wait for a proof is no wait for a flight.
    fn look_up_again(&mut self) {
        if !std::mem::take(&mut self.awaits_proof) {
            self.elections += 1;
        }
    }
}

/// What must follow from an event.
#[derive(Debug, PartialEq)]
pub enum Effect {
    Answer(RequestId, Reply),
    Call(UpstreamRequest),
    Relay(UpstreamRequest),
}

impl Effect {
    fn call(&self) -> Option<RequestId> {
        match self {
            Self::Call(call) => Some(call.id),
            Self::Answer(..) | Self::Relay(_) => None,
        }
    }
}

/// How often each rule applied.
pub type Tally = BTreeMap<&'static str, usize>;

#[derive(Clone)]
pub struct Rules {
    settings: Settings,
    now: Ms,
    grants: Vec<Grant>,
    refusals: Vec<Refusal>,
    entries: Vec<Entry>,
    negatives: Vec<Negative>,
    private: Vec<ScopeId>,
    private_operations: Vec<&'static str>,
    /// The last invalidation of each scope.
    invalidated: [Option<Ms>; SCOPES.len()],
    marks: Vec<Mark>,
    backoffs: Vec<Backoff>,
    flights: Vec<Flight>,
    next_flight: FlightId,
    calls: Vec<Call>,
    waiters: Vec<Waiter>,
    /// When each service last answered, other than with a failure.
    answered: [Option<Ms>; SERVICES],
    /// When the latest call was sent to which each service has returned a list.
    listed: [Option<Ms>; SERVICES],
    /// Whether what follows depends on which of two waiters woke up first, and nothing shows which one did.
    pub is_ambiguous: bool,
    pub tally: Tally,
}

impl Rules {
    pub fn new(settings: Settings) -> Self {
        Self {
            settings,
            now: 0,
            grants: Vec::new(),
            refusals: Vec::new(),
            entries: Vec::new(),
            negatives: Vec::new(),
            private: Vec::new(),
            private_operations: Vec::new(),
            invalidated: [None; SCOPES.len()],
            marks: Vec::new(),
            backoffs: Vec::new(),
            flights: Vec::new(),
            next_flight: 0,
            calls: Vec::new(),
            waiters: Vec::new(),
            answered: [None; SERVICES],
            listed: [None; SERVICES],
            is_ambiguous: false,
            tally: Tally::new(),
        }
    }

    fn count(&mut self, rule: &'static str) {
        *self.tally.entry(rule).or_default() += 1;
    }

    /// Answers a request. A client that has the list gets a 304, unless the request was relayed.
    fn answer(&mut self, request: &CacheRequest, reply: Reply) -> Effect {
        let is_known = reply.etag.is_some() && reply.etag == request.if_none_match;
        let is_known = is_known && !matches!(reply.kind, ReplyKind::Relayed | ReplyKind::PassedThrough);
        if !is_known {
            return Effect::Answer(request.id, reply);
        }
        self.count("304 to the client");
        Effect::Answer(request.id, Reply { status: 304, body: Some(String::new()), ..reply })
    }

    pub fn in_flight(&self) -> Vec<RequestId> {
        self.calls.iter().map(|call| call.id).collect()
    }

    /// The call that most requests wait for.
    pub fn most_awaited(&self) -> Option<RequestId> {
        let waiter_count = |call: &&Call| self.waiters.iter().filter(|waiter| waiter.flight == call.flight).count();
        self.calls.iter().max_by_key(waiter_count).map(|call| call.id)
    }

    /// A call past the timeout of the gateway's HTTP client.
    pub fn overdue(&self) -> Option<RequestId> {
        let is_overdue = |call: &&Call| call.timer_sent + Settings::ANSWER_TIMEOUT <= self.now;
        self.calls.iter().find(is_overdue).map(|call| call.id)
    }

    /// Requests without a response.
    pub fn waiting(&self) -> Vec<RequestId> {
        self.waiters.iter().map(|waiter| waiter.request.id).collect()
    }

    /// All future times at which something expires, in order.
    pub fn expiry_times(&self) -> Vec<Ms> {
        let Settings { grant_ttl, stale_while_revalidate, stale_if_error, negative_ttl, .. } = self.settings;
        let grants = self.grants.iter();
        let mut expiry_times: Vec<Ms> = grants
            .flat_map(|grant| [grant.proved + grant_ttl, grant.proved + Settings::OUTAGE_GRACE])
            .chain(self.refusals.iter().map(|refusal| refusal.until))
            .chain(self.entries.iter().flat_map(|entry| {
                let end = entry.sent + Settings::ttl(scope_of(entry.cache_key.key));
                [end, end + stale_while_revalidate, end + stale_if_error]
            }))
            .chain(self.negatives.iter().map(|negative| negative.sent + negative_ttl))
            .chain(self.marks.iter().map(|mark| mark.until))
            .chain(self.backoffs.iter().map(|backoff| backoff.until))
            .chain(self.waiters.iter().filter_map(|waiter| waiter.deadline))
            .chain(self.waiters.iter().filter_map(|waiter| waiter.stale_if_slow))
            .chain(self.waiters.iter().filter_map(|waiter| self.proof_wait_end(waiter)))
            .chain(self.calls.iter().map(|call| call.timer_sent + self.settings.stale_if_slow))
            .chain(self.renewal_times())
            .filter(|time| *time > self.now)
            .collect();
        expiry_times.sort_unstable();
        expiry_times.dedup();
        expiry_times
    }

    pub fn receive(&mut self, request: CacheRequest) -> Result<Vec<Effect>, String> {
        if request.spelling.is_ambiguous() {
            self.count("ambiguous token");
            return Ok(vec![Effect::Answer(request.id, Reply::new(400, None, ReplyKind::Ambiguous))]);
        }
        let arrived = self.now;
        let deadline = Some(arrived + Settings::DEADLINE);
        let waiter = Waiter {
            request,
            arrived,
            deadline,
            stale_if_slow: None,
            had_no_stale: false,
            elections: 0,
            has_repeated: false,
            is_repeat_due: false,
            could_not_call: false,
            proof_waits: 0,
            awaits_proof: false,
            proof_wait_began: 0,
            proof_was_slow: false,
            flight: FlightId::MAX,
        };
        let is_renewal_due = self.use_grant(&request);
        let action = self.action(&waiter);
        let renewal = (is_renewal_due && matches!(&action, Action::Respond(Reply { kind: ReplyKind::Hit(_), .. })))
            .then(|| self.renew(&waiter))
            .flatten();
        let mut effects = self.perform(waiter, action);
        effects.extend(renewal.map(Effect::Call));
        // The flight that it has joined may be slow already.
        effects.extend(self.make_additional_calls(&[request.id])?);
        Ok(effects)
    }

    /// Calls complete at the same moment, in this order. First all state changes, then the waiters are released.
    /// `started` has the requests whose calls started at that moment, in order.
    pub fn complete(
        &mut self,
        completed: &[(RequestId, UpstreamResult)],
        started: &[RequestId],
    ) -> Result<Vec<Effect>, String> {
        let mut ended = Vec::new();
        for (id, result) in completed {
            let index = self.calls.iter().position(|call| call.id == *id).expect("the call is in flight");
            let call = self.calls.remove(index);
            let is_external = self.is_external(&call, result);
            let recipients = self.settle(&call, result);
            self.end_renewal(&call, result);
            let may_repeat = result.is_server_error() && !call.is_repeat && self.is_listed_since(&call);
            let ends_flight = self.ends_flight(&call, &recipients);
            if ends_flight {
                self.flights.retain(|flight| flight.id != call.flight);
            }
            ended.push(Ended { call, result, recipients, ends_flight, may_repeat, is_external });
        }
        let (mut effects, mut retries) = (Vec::new(), Vec::new());
        let mut counted = Vec::new();
        for mut waiter in std::mem::take(&mut self.waiters) {
            if waiter.awaits_proof {
                if self.proof(&waiter.request).is_none() {
                    waiter.proof_waits += 1;
                    waiter.end_proof_wait(self.now);
                    counted.push((waiter.request.id, None));
                    retries.push(waiter);
                } else {
                    self.waiters.push(waiter);
                }
                continue;
            }
            let own = ended.iter().find(|ended| waiter.leads(&ended.call));
            let end =
                own.or_else(|| ended.iter().find(|ended| ended.ends_flight && ended.call.flight == waiter.flight));
            match end {
                Some(end) => {
                    // The leader of this call is not counted as a waiter of another.
                    let is_shared = end.call.fetch_key.owner.is_none();
                    counted.extend(own.is_none().then_some((waiter.request.id, Some(is_shared))));
                    self.release(waiter, end, &mut effects, &mut retries);
                }
                None => self.waiters.push(waiter),
            }
        }
        effects.extend(self.continue_waiters(retries, counted, started)?);
        Ok(effects)
    }

    /// After calls have completed, or heads have arrived: requests look up again, and waiters make additional calls for
    /// slow flights. A waiter that makes an additional call counts as waiting until then: for the requests whose calls
    /// started before its own. `counted` has the waiters that are released, and whether they waited for a shared flight;
    /// `None` if they waited for a proof.
    fn continue_waiters(
        &mut self,
        retries: Vec<Waiter>,
        mut counted: Vec<(RequestId, Option<bool>)>,
        started: &[RequestId],
    ) -> Result<Vec<Effect>, String> {
        let mut effects = self.make_observed_calls(started);
        counted.extend(effects.iter().filter_map(Effect::call).map(|id| (id, Some(true))));
        effects.extend(self.look_up_again(retries, started, &counted)?);
        effects.extend(self.make_additional_calls(started)?);
        Ok(effects)
    }

    /// Whether a completed call ends its flight: its result is for all, or no other call is open. After the head of a
    /// refusal only its body is open.
    fn ends_flight(&self, call: &Call, recipients: &Recipients) -> bool {
        let is_due = self.flights.iter().any(|flight| flight.id == call.flight);
        let is_other = |other: &Call| other.flight == call.flight && other.id != call.id && other.head.is_none();
        let is_last = match call.head {
            Some(head) => head.was_last(),
            None => !self.calls.iter().any(is_other),
        };
        is_due && (is_last || recipients.serves_all())
    }

    /// Looks up again the requests that got nothing from a completed call. `started` has the requests whose calls
    /// started, in order. `counted` has the waiters until now, and whether they waited for a shared flight. Some of them
    /// are answered, and some make additional calls.
    fn look_up_again(
        &mut self,
        waiters: Vec<Waiter>,
        started: &[RequestId],
        counted: &[(RequestId, Option<bool>)],
    ) -> Result<Vec<Effect>, String> {
        let position_of = |id: RequestId| started.iter().position(|started| *started == id);
        let position = |waiter: &Waiter| position_of(waiter.request.id);
        let (mut callers, others): (Vec<_>, Vec<_>) =
            waiters.into_iter().partition(|waiter| position(waiter).is_some());
        callers.sort_by_key(position);
        let retrying = callers.len() + others.len();
        let mut effects = Vec::new();
        for mut waiter in callers {
            waiter.look_up_again();
            let (caller, fetch_key) = (waiter.request.caller, self.fetch_key(&waiter.request));
            let is_shared = fetch_key.owner.is_none();
            // Whether a waiter has started its call by now, and so woken up.
            let is_awake = |id: RequestId| position_of(id).is_some_and(|at| Some(at) <= position(&waiter));
            let not_awake = |is_counted: fn(Option<bool>, bool) -> bool| {
                counted.iter().filter(|(id, shared)| is_counted(*shared, is_shared) && !is_awake(*id)).count()
            };
            // They still count in the flights for which they waited, or count already in the one that they look up.
            let (before, any) = (not_awake(|shared, is_shared| shared == Some(is_shared)), not_awake(|_, _| true));
            let action = match self.next_action(&mut waiter) {
                Action::Join(flight)
                    if self.followers(is_shared) + if self.is_slow_for(caller, flight) { before } else { any }
                        >= self.settings.max_waiters =>
                {
                    Action::Solo(fetch_key)
                }
                action if action.starts_call() => action,
                // Others may have begun to wait for the proof before it.
                Action::WaitForProof if self.proof_waiters() + retrying >= self.settings.max_waiters => {
                    self.action(&Waiter { proof_was_slow: true, ..waiter.clone() })
                }
                // It joins a slow flight and makes an additional call for it.
                Action::Join(flight) if self.is_slow_for(caller, flight) => Action::Join(flight),
                action => return Err(format!("#{} started a call, expected {action:?}", waiter.request.id)),
            };
            if action.starts_call() {
                self.count("new leader");
            }
            let id = waiter.request.id;
            effects.extend(self.perform(waiter, action));
            // It makes its additional call at once, and then no longer counts as waiting for those that come later.
            effects.extend(self.make_observed_calls(&[id]));
        }
        for mut waiter in others {
            waiter.look_up_again();
            match self.next_action(&mut waiter) {
                // No more may wait for its caller's flight, so it has looked up before that began.
                Action::Solo(_) if self.may_wait_instead(&waiter) => {
                    effects.extend(self.perform(waiter, Action::WaitForProof));
                }
                action if action.starts_call() => {
                    return Err(format!("#{} started no call, expected {action:?}", waiter.request.id));
                }
                Action::Join(flight) if self.may_wait_instead(&waiter) => {
                    self.count("ambiguous order");
                    self.is_ambiguous = true;
                    effects.extend(self.perform(waiter, Action::Join(flight)));
                }
                action => effects.extend(self.perform(waiter, action)),
            }
        }
        Ok(effects)
    }

    /// The next time at which a request may start a call without another event.
    pub fn next_call_time(&self) -> Option<Ms> {
        let slow = self.calls.iter().map(|call| call.timer_sent + self.settings.stale_if_slow);
        let stale_if_slow = self.waiters.iter().filter_map(|waiter| waiter.stale_if_slow);
        let proofs = self.waiters.iter().filter_map(|waiter| self.proof_wait_end(waiter));
        slow.chain(stale_if_slow).chain(proofs).filter(|time| *time > self.now).min()
    }

    /// Time passes, at most until the next such time. `started` is as above.
    pub fn pass(&mut self, until: Ms, started: &[RequestId]) -> Result<Vec<Effect>, String> {
        // The waiters in flights of one caller and in shared flights, before the first of them leaves at this moment.
        let (mut effects, mut before) = (Vec::new(), None);
        let end = |waiter: &Waiter| waiter.stale_if_slow.unwrap_or(Ms::MAX).min(waiter.deadline.unwrap_or(Ms::MAX));
        while let Some(next) = (0..self.waiters.len()).min_by_key(|&index| end(&self.waiters[index]))
            && end(&self.waiters[next]) <= until
        {
            if end(&self.waiters[next]) == until && before.is_none() {
                before = Some([false, true].map(|are_shared| self.followers(are_shared)));
            }
            let waiter = self.waiters.remove(next);
            self.now = end(&waiter);
            let is_slow = waiter.stale_if_slow == Some(self.now);
            effects.extend(if is_slow { self.reach_stale_if_slow(waiter) } else { Some(self.time_out(&waiter)) });
        }
        self.now = until;
        effects.extend(self.end_proof_waits(started, before.unwrap_or_default())?);
        effects.extend(self.make_additional_calls(started)?);
        Ok(effects)
    }

    /// A clock jumps: time passes for rules, but not for timers. Nothing follows immediately.
    pub fn jump(&mut self, by: Ms, name: &'static str) {
        self.count(name);
        self.now += by;
        self.calls.iter_mut().for_each(|call| call.timer_sent += by);
        for waiter in &mut self.waiters {
            waiter.arrived += by;
            waiter.proof_wait_began += by;
            waiter.deadline = waiter.deadline.map(|deadline| deadline + by);
            waiter.stale_if_slow = waiter.stale_if_slow.map(|stale_if_slow| stale_if_slow + by);
        }
    }

    /// A client disconnects. A call that it leads continues. A relayed call is cancelled, unless its method is unsafe.
    pub fn disconnect(&mut self, id: RequestId) {
        self.count("client disconnected");
        self.calls.retain(|call| call.id != id || !call.is_relay || call.is_unsafe);
        self.waiters.retain(|waiter| waiter.request.id != id);
    }

    /// Purges an operation, a project, an operation in a project, or everything. Only a purge of a whole operation
    /// makes a private operation shared again.
    pub fn purge(&mut self, operation: Option<&str>, project: Option<&str>) {
        self.count("purge");
        let is_operation = |its: &str| operation.is_none_or(|name| name == its);
        let selected = |scope: ScopeId| {
            let Scope { operation: scope_operation, project: scope_project, .. } = SCOPES[scope];
            is_operation(scope_operation) && project.is_none_or(|id| id == scope_project)
        };
        if project.is_none() {
            self.private_operations.retain(|its| !is_operation(its));
        } else if self.private_operations.iter().any(|its| is_operation(its)) {
            self.count("private operation after a purge of a project");
        }
        self.entries.retain(|entry| !selected(scope_of(entry.cache_key.key)));
        self.negatives.retain(|negative| !selected(scope_of(negative.cache_key.key)));
        self.marks.retain(|mark| !selected(scope_of(mark.cache_key.key)));
        self.private.retain(|scope| !selected(*scope));
        self.backoffs.retain(|backoff| match backoff.target {
            BackoffTarget::CacheKey(cache_key) | BackoffTarget::CallerKey(_, cache_key) => {
                !selected(scope_of(cache_key.key))
            }
            BackoffTarget::Caller((_, scope)) | BackoffTarget::NotKeyOnly((_, scope)) | BackoffTarget::Scope(scope) => {
                !selected(scope)
            }
        });
        self.flights.iter_mut().for_each(|flight| flight.is_open = false);
        self.calls.iter_mut().for_each(|call| call.was_purged = true);
    }
}
