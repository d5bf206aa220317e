//! The expected result of a cell: a model of what is stored, and what a request makes of it. It is pure and does not
//! use the gateway.
//!
//! It has one client with consecutive requests, so it is a small part of the rules: no request waits for another's
//! call.
//!
//! `tests/model/rules.rs` states the rules a second time, and the two stay separate. That one has flights, waiters and
//! many callers on a clock. It says which calls start and whose response a request gets, without `Cache-Status` and
//! `Age`. This one has all that a client sees of one request, for every behaviour of upstream on the wire, without
//! flights. Deriving this one from the other would keep most of this file as a translation. Two separate statements
//! also find a misunderstood rule, unless it is misunderstood twice.

use std::fmt;

use super::behaviours::{Behaviour, Meaning, Relayed};
use super::states::{Before, GrantState, RequestDirectives, STALE_IF_ERROR, STALE_WHILE_REVALIDATE, State, TTL};

/// Seconds: `negative_ttl` and `backoff`.
const ERROR_TTL: u64 = 5;
const DENIAL_TTL: u64 = 2;

/// The source of a body.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Body {
    /// The list that was stored before.
    Old,
    /// Upstream's response in this cell.
    New,
    /// Upstream's list after recovery.
    Next,
    /// Upstream's response a second before.
    Before,
    /// The beginning of upstream's response in this cell.
    Cut,
    /// An error of the gateway with this reason.
    Own(&'static str),
    Empty,
}

/// What a client sees, and the number of upstream calls.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Response {
    pub(super) status: u16,
    pub(super) body: Body,
    /// Without the name of the cache; empty if there is no such header.
    pub(super) cache_status: String,
    /// In seconds. Present on a response from memory and on a product list that is not relayed.
    pub(super) age: Option<u64>,
    /// Whether it is upstream's response with all of its headers.
    pub(super) is_from_upstream: bool,
    /// Including background calls.
    pub(super) calls: usize,
}

/// The expected result of a cell.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Expectation {
    pub(super) now: Response,
    /// The response to the next request, a second later, without request directives, after upstream has recovered.
    pub(super) then: Response,
    /// If that is a hit during a backoff: the end of the backoff in seconds, and the response then.
    pub(super) later: Option<(u64, Response)>,
}

struct Memory {
    grant_state: GrantState,
    refusal: Option<Stored>,
    entry: Option<Entry>,
    /// A negative response, if it is newer than the entry.
    negative: Option<Stored>,
    /// Uncacheable marks of the shared cache key and of the caller's own.
    marks: [Option<Mark>; 2],
    /// Backoffs of the shared cache key and of the caller's own.
    backoffs: [Option<Backoff>; 2],
}

#[derive(Clone, Copy)]
struct Stored {
    status: u16,
    body: Body,
    age: u64,
}

#[derive(Clone, Copy)]
struct Entry {
    body: Body,
    age: u64,
    ttl: u64,
    stale_while_revalidate: u64,
    has_validator: bool,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Mark {
    TooLarge,
    NoStore,
}

#[derive(Clone, Copy)]
struct Backoff {
    left: u64,
    /// A success for one cache key does not end a backoff of the scope.
    is_of_scope: bool,
}

impl Entry {
    fn new(body: Body, age: u64, ttl: Option<u64>, has_validator: bool) -> Self {
        // If upstream sends a lifetime, the configured window does not apply.
        let stale_while_revalidate = if ttl.is_none() { STALE_WHILE_REVALIDATE } else { 0 };
        Self { body, age, ttl: ttl.unwrap_or(TTL), stale_while_revalidate, has_validator }
    }

    fn is_fresh(&self) -> bool {
        self.age < self.ttl
    }

    fn is_usable(&self) -> bool {
        self.age < self.ttl + self.stale_while_revalidate.max(STALE_IF_ERROR)
    }

    fn hit(&self, detail: &str) -> Response {
        // An entry that has just expired must not look fresh.
        let ttl = if self.is_fresh() {
            format!("{}", self.ttl - self.age)
        } else {
            format!("-{}", (self.age - self.ttl).max(1))
        };
        from_memory(200, self.body, self.age, format!("hit; ttl={ttl}{detail}"))
    }

    fn stale(&self, cache_status: &str) -> Response {
        from_memory(200, self.body, self.age, format!("{}{cache_status}", self.forward_reason()))
    }

    /// The reason of a miss in `Cache-Status`.
    fn miss_reason(&self, directives: RequestDirectives) -> &'static str {
        match directives {
            _ if !self.is_fresh() => "expired",
            RequestDirectives::NoCache => "client-no-cache",
            _ => "client-max-age",
        }
    }

    /// Why upstream is called although there is an entry.
    fn forward_reason(&self) -> &'static str {
        if self.is_fresh() { "fwd=request" } else { "fwd=stale" }
    }
}

/// The expected result for a client with these request directives.
pub(super) fn expected(behaviour: &Behaviour, state: &State, directives: RequestDirectives) -> Expectation {
    let mut memory = Memory::of(state);
    let now = memory.response(&Upstream::New(behaviour), directives);
    memory.pass(1);
    let longest_backoff = memory.backoffs.into_iter().flatten().map(|backoff| backoff.left).max();
    let then = memory.response(&Upstream::Recovered, RequestDirectives::None);
    let later = then.cache_status.ends_with("detail=backoff").then(|| {
        let left = longest_backoff.unwrap_or_default();
        memory.pass(left);
        (left + 1, memory.response(&Upstream::Recovered, RequestDirectives::None))
    });
    Expectation { now, then, later }
}

enum Upstream<'b> {
    New(&'b Behaviour),
    /// Sends a product list.
    Recovered,
}

enum CallResult {
    /// A response for the request.
    Response(Response),
    /// A failure: the response without a stale entry, and the `Cache-Status` for a stale one.
    Failure(Response, String),
    /// The response must be relayed.
    Relay,
}

impl Memory {
    fn of(state: &State) -> Self {
        let before = |status| Some(Stored { status, body: Body::Before, age: 1 });
        let mut memory = Self {
            grant_state: state.grant_state,
            refusal: None,
            entry: state.age.map(|age| Entry::new(Body::Old, age, None, state.has_tag)),
            negative: None,
            marks: [None; 2],
            backoffs: [None; 2],
        };
        match state.before {
            Before::None => {}
            Before::Failure => memory.backoffs[0] = Some(Backoff { left: ERROR_TTL - 1, is_of_scope: false }),
            Before::Negative => memory.negative = before(404),
            Before::Denial => (memory.grant_state, memory.refusal) = (GrantState::Unknown, before(401)),
        }
        memory
    }

    fn pass(&mut self, seconds: u64) {
        for stored in self.refusal.iter_mut().chain(&mut self.negative) {
            stored.age += seconds;
        }
        self.refusal = self.refusal.filter(|refusal| refusal.age < DENIAL_TTL);
        self.entry.iter_mut().for_each(|entry| entry.age += seconds);
        for backoff in &mut self.backoffs {
            *backoff = backoff.map(|backoff| Backoff { left: backoff.left.saturating_sub(seconds), ..backoff });
            *backoff = backoff.filter(|backoff| backoff.left > 0);
        }
    }

    /// The cache key of a call: the shared one for granted callers, or the caller's own.
    fn key_index(&self) -> usize {
        usize::from(self.grant_state != GrantState::Granted)
    }

    fn response(&mut self, upstream: &Upstream<'_>, directives: RequestDirectives) -> Response {
        if directives == RequestDirectives::NoStore {
            return self.relayed(upstream, "client-no-store");
        }
        let response = self.product_list(upstream, directives);
        // Every storable product list has an `ETag`, so it can be answered 304.
        let is_list = match (response.body, upstream) {
            (Body::New, Upstream::New(new)) => matches!(new.meaning, Meaning::List { .. } | Meaning::Late),
            (body, _) => matches!(body, Body::Old | Body::Next),
        };
        if directives == RequestDirectives::IfNoneMatch && is_list && !response.cache_status.contains("bypass") {
            return Response { status: 304, body: Body::Empty, is_from_upstream: false, ..response };
        }
        response
    }

    fn product_list(&mut self, upstream: &Upstream<'_>, directives: RequestDirectives) -> Response {
        // A refusal comes first, whatever the request directives.
        if let Some(refusal) = self.refusal {
            return refusal.hit(DENIAL_TTL, "denied");
        }
        let (key_index, is_granted) = (self.key_index(), self.grant_state == GrantState::Granted);
        let usable = self.entry.filter(Entry::is_usable);
        // A fresh entry. A newer negative response does not replace it.
        if let Some(entry) = self.entry.filter(|entry| is_granted && entry.is_fresh() && directives.accepts(entry.age))
        {
            return entry.hit("");
        }
        // A negative response.
        if let Some(negative) =
            self.negative.filter(|negative| is_granted && negative.age < ERROR_TTL && directives.accepts(negative.age))
        {
            return negative.hit(ERROR_TTL, "negative");
        }
        let takes_stale = directives.takes_stale() && self.negative.is_none() && self.marks[key_index].is_none();
        let stale = usable.filter(|_| takes_stale && self.grant_state != GrantState::Unknown);
        // A stale entry during a backoff. For a lapsed grant only after a failure of its own call.
        if let Some(entry) = stale.filter(|_| self.backoffs[key_index].is_some()) {
            return entry.hit("; detail=backoff");
        }
        // A stale entry while it is revalidated.
        if let Some(entry) = stale.filter(|entry| is_granted && entry.age < entry.ttl + entry.stale_while_revalidate) {
            let calls =
                if directives == RequestDirectives::OnlyIfCached { 0 } else { self.call(upstream, directives).1 };
            return Response { calls, ..entry.hit("; detail=revalidating") };
        }
        if directives == RequestDirectives::OnlyIfCached {
            return own_error("only-if-cached", String::new(), 0);
        }
        if self.marks[key_index] == Some(Mark::TooLarge) {
            return self.relayed(upstream, "too-large");
        }
        // Otherwise upstream is called. A request that may take a stale entry waits only for a while.
        let is_late = matches!(upstream, Upstream::New(behaviour) if behaviour.meaning == Meaning::Late);
        let previous_grant_state = self.grant_state;
        let (result, calls) = self.call(upstream, directives);
        if let Some(entry) = stale.filter(|_| is_granted && is_late) {
            return Response { calls, ..entry.stale("; detail=stale-if-slow") };
        }
        match result {
            CallResult::Response(response) => Response { calls, ..response },
            CallResult::Failure(response, cache_status) => {
                match usable.filter(|_| previous_grant_state != GrantState::Unknown) {
                    Some(entry) => Response { calls, ..entry.stale(&cache_status) },
                    None => Response { calls, ..response },
                }
            }
            CallResult::Relay => {
                let relayed = self.relayed(upstream, "too-large");
                Response { calls: calls + relayed.calls, ..relayed }
            }
        }
    }

    /// Calls upstream for the product list. Returns the result and the number of requests.
    fn call(&mut self, upstream: &Upstream<'_>, directives: RequestDirectives) -> (CallResult, usize) {
        let (key_index, is_granted) = (self.key_index(), self.grant_state == GrantState::Granted);
        let forward_reason = match self.entry.filter(|_| is_granted) {
            Some(entry) => entry.forward_reason(),
            None => "fwd=miss",
        };
        // Only for granted callers, and only if upstream sent a validator.
        let validated = self.entry.filter(|entry| is_granted && entry.has_validator);
        let detail = match self.entry {
            _ if !is_granted => "proved",
            Some(entry) => entry.miss_reason(directives),
            None if self.marks[key_index].is_some() => "uncacheable",
            None => "no-entry",
        };
        let Upstream::New(behaviour) = upstream else {
            self.store(Entry::new(Body::Next, 0, None, false));
            let cache_status = format!("{forward_reason}; fwd-status=200; stored; detail={detail}");
            return (CallResult::Response(from_upstream(200, Body::Next, cache_status, Some(0))), 1);
        };
        let status = behaviour.status;
        let body = if behaviour.body.is_empty() { Body::Empty } else { Body::New };
        let cache_status = |detail: &str| format!("{forward_reason}; fwd-status={status}{detail}");
        let response = |detail: &str, age| CallResult::Response(from_upstream(status, body, cache_status(detail), age));
        let broken = |reason: &'static str| {
            CallResult::Failure(
                own_error(reason, format!("{forward_reason}; detail={reason}"), 0),
                format!("; detail={reason}"),
            )
        };
        let result = match behaviour.meaning {
            Meaning::List { ttl } => {
                self.store(Entry::new(Body::New, 0, ttl, false));
                response(&format!("; stored; detail={detail}"), Some(0))
            }
            Meaning::Late => {
                self.store(Entry::new(Body::New, 0, None, false));
                response(&format!("; stored; detail={detail}"), Some(0))
            }
            Meaning::NoStore => {
                self.grant_state = GrantState::Granted;
                self.marks = [Some(Mark::NoStore); 2];
                response("; detail=cache-directives", Some(0))
            }
            Meaning::NotModified { names_another: false } if let Some(entry) = validated => {
                self.store(Entry { age: 0, ..entry });
                let cache_status = format!("{forward_reason}; fwd-status=304; stored; detail={detail}");
                CallResult::Response(from_upstream(200, entry.body, cache_status, Some(0)))
            }
            Meaning::NotModified { .. } => {
                self.back_off(key_index, ERROR_TTL, false);
                broken("broken")
            }
            Meaning::NotAList(forward_reason) => {
                self.marks[key_index] = Some(Mark::NoStore);
                response(&format!("; detail={forward_reason}"), None)
            }
            Meaning::Denial => {
                self.grant_state = GrantState::Unknown;
                self.refusal = Some(Stored { status, body, age: 0 });
                response("; detail=denied", None)
            }
            Meaning::IncompleteDenial => {
                self.grant_state = GrantState::Unknown;
                let reason = "refusal-incomplete";
                CallResult::Response(Response {
                    status,
                    ..own_error(reason, format!("{forward_reason}; detail={reason}"), 0)
                })
            }
            Meaning::Negative if is_granted => {
                self.negative = Some(Stored { status, body, age: 0 });
                response(&format!("; stored; detail={detail}"), None)
            }
            Meaning::Negative | Meaning::CallerOnly => response("; detail=status", None),
            Meaning::Failure { retry_after } => {
                let is_of_scope = is_granted && (status == 429 || (status == 503 && retry_after.is_some()));
                self.back_off(key_index, retry_after.unwrap_or(ERROR_TTL), is_of_scope);
                let stale_status = format!("; fwd-status={status}; detail=status");
                CallResult::Failure(from_upstream(status, body, cache_status("; detail=status"), None), stale_status)
            }
            Meaning::NoResponse(reason) => {
                self.back_off(key_index, ERROR_TTL, false);
                broken(reason)
            }
            // This extends no grant, so a lapsed grant has no backoff.
            Meaning::TooLargeHead if !is_granted => match broken("broken") {
                CallResult::Failure(response, _) => CallResult::Response(response),
                other => other,
            },
            Meaning::TooLargeHead => {
                self.back_off(key_index, ERROR_TTL, false);
                broken("broken")
            }
            Meaning::TooLarge => {
                self.marks[key_index] = Some(Mark::TooLarge);
                CallResult::Relay
            }
        };
        (result, behaviour.attempts)
    }

    /// A product list proves the caller and is stored.
    fn store(&mut self, entry: Entry) {
        self.grant_state = GrantState::Granted;
        self.entry = Some(entry);
        self.negative = None;
        self.marks = [None; 2];
        self.backoffs = self.backoffs.map(|backoff| backoff.filter(|backoff| backoff.is_of_scope));
    }

    fn back_off(&mut self, key_index: usize, left: u64, is_of_scope: bool) {
        self.backoffs[key_index] = Some(Backoff { left, is_of_scope });
    }

    fn relayed(&mut self, upstream: &Upstream<'_>, forward_reason: &str) -> Response {
        let cache_status = format!("fwd=bypass; detail={forward_reason}");
        let Upstream::New(behaviour) = upstream else {
            return Response { calls: 1, ..from_upstream(200, Body::Next, cache_status, None) };
        };
        if matches!(behaviour.meaning, Meaning::Denial | Meaning::IncompleteDenial) {
            self.grant_state = GrantState::Unknown;
        }
        let calls = behaviour.attempts;
        match behaviour.relayed {
            Relayed::Complete if behaviour.body.is_empty() => {
                Response { calls, ..from_upstream(behaviour.status, Body::Empty, cache_status, None) }
            }
            Relayed::Complete => Response { calls, ..from_upstream(behaviour.status, Body::New, cache_status, None) },
            Relayed::Cut => Response { calls, ..from_upstream(behaviour.status, Body::Cut, cache_status, None) },
            Relayed::Failed(reason) => own_error(reason, format!("{cache_status}; failure={reason}"), calls),
        }
    }
}

impl Stored {
    fn hit(&self, ttl: u64, detail: &str) -> Response {
        from_memory(self.status, self.body, self.age, format!("hit; ttl={}; detail={detail}", ttl - self.age))
    }
}

fn from_memory(status: u16, body: Body, age: u64, cache_status: String) -> Response {
    Response { status, body, cache_status, age: Some(age), is_from_upstream: false, calls: 0 }
}

/// Upstream's response to this request.
fn from_upstream(status: u16, body: Body, cache_status: String, age: Option<u64>) -> Response {
    Response { status, body, cache_status, age, is_from_upstream: true, calls: 0 }
}

/// An error of the gateway.
fn own_error(reason: &'static str, cache_status: String, calls: usize) -> Response {
    let status = match reason {
        "first-byte" | "timeout" | "idle" | "only-if-cached" => 504,
        _ => 502,
    };
    Response { status, body: Body::Own(reason), cache_status, age: None, is_from_upstream: false, calls }
}

impl fmt::Display for Response {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let body = match self.body {
            Body::Own(reason) => format!("own {reason}"),
            body => format!("{body:?}").to_lowercase(),
        };
        let cache_status = if self.cache_status.is_empty() { "no Cache-Status" } else { &self.cache_status };
        write!(f, "{} {body}, {cache_status}", self.status)?;
        if let Some(age) = self.age {
            write!(f, ", age {age}")?;
        }
        write!(f, ", calls {}", self.calls)
    }
}

impl fmt::Display for Expectation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "    {}\n    then {}", self.now, self.then)?;
        match &self.later {
            Some((seconds, later)) => write!(f, "\n    after {seconds} s {later}"),
            None => Ok(()),
        }
    }
}
