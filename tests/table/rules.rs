//! What has to come of a cell, by the rules: a model of what is remembered, and what each question
//! makes of it. Pure, and knows nothing of the gateway.
//!
//! One caller asks, one after the other, so that this is a small part of the rules: nobody waits for
//! anybody else's call.
//!
//! `tests/model/rules.rs` states the rules a second time, and the two stay apart. That one has flights, waiters and many
//! callers on a clock, and says which calls begin and whose answer a request gets. It knows neither `Cache-Status` nor
//! `Age`, and upstream's answers only as far as sharing needs them. This one has all that a client sees of one request, for
//! every behaviour of upstream on the wire, and no flights. To derive it from the model, most of this file would have to
//! stay, as a translation. And a rule that is misunderstood would have to be misunderstood twice, in two forms, to be missed.

use std::fmt;

use super::behaviours::{Behaviour, Meaning, Relayed};
use super::states::{Before, GrantState, RequestDirectives, STALE_IF_ERROR, STALE_WHILE_REVALIDATE, State, TTL};

/// How long upstream's no counts, and how long refreshes pause after a failure.
const ERROR_TTL: u64 = 5;
const DENIAL_TTL: u64 = 2;

/// Whose bytes an answer is made of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Body {
    /// The list that was kept before.
    Old,
    /// What upstream says in this cell.
    New,
    /// The list that it gives afterwards.
    Next,
    /// What it said a second before.
    Before,
    /// The beginning of what upstream says in this cell.
    Cut,
    /// The gateway's own words, for this reason.
    Own(&'static str),
    Empty,
}

/// What a client sees, and what it costs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Answer {
    pub(super) status: u16,
    pub(super) body: Body,
    /// Without the name of the cache; empty if there is none.
    pub(super) cache_status: String,
    /// Told of whatever comes from memory, and of product lists unless they are only passed on.
    pub(super) age: Option<u64>,
    /// Whether it is an answer of upstream's with all of its headers.
    pub(super) is_upstreams: bool,
    /// How often upstream was asked, in the background too.
    pub(super) calls: usize,
}

/// What has to come of a cell.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Expectation {
    pub(super) now: Answer,
    /// What comes of the next request, without wishes and a second later, if upstream is well again.
    pub(super) then: Answer,
    /// If that is a pause: for how long it holds, and what comes of a request then.
    pub(super) later: Option<(u64, Answer)>,
}

/// What there is to know.
struct Memory {
    standing: GrantState,
    /// A refusal and how old it is.
    refusal: Option<Kept>,
    entry: Option<Entry>,
    /// Upstream's no, where that is its latest word.
    no: Option<Kept>,
    /// Whether answers can't be kept, in the slot that is shared and in the caller's own.
    marks: [Option<Mark>; 2],
    /// For how long upstream is left alone, likewise.
    backoffs: [Option<Backoff>; 2],
}

#[derive(Clone, Copy)]
struct Kept {
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
    Unkept,
}

#[derive(Clone, Copy)]
struct Backoff {
    left: u64,
    /// A success for one slot doesn't end what holds for all.
    is_of_scope: bool,
}

impl Entry {
    fn new(body: Body, age: u64, ttl: Option<u64>, has_validator: bool) -> Self {
        // Where upstream gives a lifetime, the configured window is closed.
        let stale_while_revalidate = if ttl.is_none() { STALE_WHILE_REVALIDATE } else { 0 };
        Self { body, age, ttl: ttl.unwrap_or(TTL), stale_while_revalidate, has_validator }
    }

    fn is_fresh(&self) -> bool {
        self.age < self.ttl
    }

    fn is_usable(&self) -> bool {
        self.age < self.ttl + self.stale_while_revalidate.max(STALE_IF_ERROR)
    }

    fn hit(&self, detail: &str) -> Answer {
        // What has just expired is not told to be fresh.
        let ttl = if self.is_fresh() {
            format!("{}", self.ttl - self.age)
        } else {
            format!("-{}", (self.age - self.ttl).max(1))
        };
        from_memory(200, self.body, self.age, format!("hit; ttl={ttl}{detail}"))
    }

    fn stale(&self, said: &str) -> Answer {
        from_memory(200, self.body, self.age, format!("{}{said}", self.why()))
    }

    /// The same in the gateway's own word, for a client with a wish.
    fn reason(&self, wish: RequestDirectives) -> &'static str {
        match wish {
            _ if !self.is_fresh() => "expired",
            RequestDirectives::NoCache => "client-no-cache",
            _ => "client-max-age",
        }
    }

    /// Why upstream is asked though this is kept.
    fn why(&self) -> &'static str {
        if self.is_fresh() { "fwd=request" } else { "fwd=stale" }
    }
}

/// What has to come of it if a client with a wish meets this state and this upstream.
pub(super) fn expected(behaviour: &Behaviour, state: &State, wish: RequestDirectives) -> Expectation {
    let mut memory = Memory::of(state);
    let now = memory.answer(&Upstream::New(behaviour), wish);
    memory.pass(1);
    let pause = memory.backoffs.into_iter().flatten().map(|pause| pause.left).max();
    let then = memory.answer(&Upstream::Well, RequestDirectives::Nothing);
    let later = then.cache_status.ends_with("detail=backoff").then(|| {
        let left = pause.unwrap_or_default();
        memory.pass(left);
        (left + 1, memory.answer(&Upstream::Well, RequestDirectives::Nothing))
    });
    Expectation { now, then, later }
}

/// An upstream as a question meets it.
enum Upstream<'b> {
    New(&'b Behaviour),
    /// With a product list.
    Well,
}

/// What a call has brought.
enum Brought {
    /// An answer to give to the one who asked for it, and what there is to say of it.
    Answer(Answer),
    /// It failed: the answer for those who have nothing stale, and what to say to those who have.
    Failure(Answer, String),
    /// It is to be passed on as it is.
    Relay,
}

impl Memory {
    fn of(state: &State) -> Self {
        let before = |status| Some(Kept { status, body: Body::Before, age: 1 });
        let mut memory = Self {
            standing: state.standing,
            refusal: None,
            entry: state.age.map(|age| Entry::new(Body::Old, age, None, state.has_tag)),
            no: None,
            marks: [None; 2],
            backoffs: [None; 2],
        };
        match state.before {
            Before::Nothing => {}
            Before::Failure => memory.backoffs[0] = Some(Backoff { left: ERROR_TTL - 1, is_of_scope: false }),
            Before::Negative => memory.no = before(404),
            Before::Denial => (memory.standing, memory.refusal) = (GrantState::Unknown, before(401)),
        }
        memory
    }

    fn pass(&mut self, seconds: u64) {
        for kept in self.refusal.iter_mut().chain(&mut self.no) {
            kept.age += seconds;
        }
        self.refusal = self.refusal.filter(|refusal| refusal.age < DENIAL_TTL);
        self.entry.iter_mut().for_each(|entry| entry.age += seconds);
        for pause in &mut self.backoffs {
            *pause = pause.map(|pause| Backoff { left: pause.left.saturating_sub(seconds), ..pause });
            *pause = pause.filter(|pause| pause.left > 0);
        }
    }

    /// The slot that a call is for: the shared one of those who are granted, or the caller's own.
    fn place(&self) -> usize {
        usize::from(self.standing != GrantState::Granted)
    }

    fn answer(&mut self, upstream: &Upstream<'_>, wish: RequestDirectives) -> Answer {
        if wish == RequestDirectives::NoStore {
            return self.relayed(upstream, "client-no-store");
        }
        let answer = self.product_list(upstream, wish);
        // A 304 for any product list that has an ETag, as has all that may be kept.
        let is_list = match (answer.body, upstream) {
            (Body::New, Upstream::New(new)) => matches!(new.meaning, Meaning::List { .. } | Meaning::Late),
            (body, _) => matches!(body, Body::Old | Body::Next),
        };
        if wish == RequestDirectives::IfNoneMatch && is_list && !answer.cache_status.contains("bypass") {
            return Answer { status: 304, body: Body::Empty, is_upstreams: false, ..answer };
        }
        answer
    }

    fn product_list(&mut self, upstream: &Upstream<'_>, wish: RequestDirectives) -> Answer {
        // Nothing goes before a refusal, whatever is wished.
        if let Some(refusal) = self.refusal {
            return refusal.hit(DENIAL_TTL, "denied");
        }
        let (place, is_granted) = (self.place(), self.standing == GrantState::Granted);
        let usable = self.entry.filter(Entry::is_usable);
        // What is fresh: no later no displaces it.
        if let Some(entry) = self.entry.filter(|entry| is_granted && entry.is_fresh() && wish.accepts(entry.age)) {
            return entry.hit("");
        }
        // Then upstream's latest word.
        if let Some(no) = self.no.filter(|no| is_granted && no.age < ERROR_TTL && wish.accepts(no.age)) {
            return no.hit(ERROR_TTL, "negative");
        }
        let takes_stale = wish.takes_stale() && self.no.is_none() && self.marks[place].is_none();
        let stale = usable.filter(|_| takes_stale && self.standing != GrantState::Unknown);
        // What is stale, while upstream is left alone; to a lapsed grant only after its own failure.
        if let Some(entry) = stale.filter(|_| self.backoffs[place].is_some()) {
            return entry.hit("; detail=backoff");
        }
        // What is stale, while it is asked for again, unless that must not be.
        if let Some(entry) = stale.filter(|entry| is_granted && entry.age < entry.ttl + entry.stale_while_revalidate) {
            let calls = if wish == RequestDirectives::OnlyIfCached { 0 } else { self.call(upstream, wish).1 };
            return Answer { calls, ..entry.hit("; detail=revalidating") };
        }
        if wish == RequestDirectives::OnlyIfCached {
            return own("only-if-cached", String::new(), 0);
        }
        if self.marks[place] == Some(Mark::TooLarge) {
            return self.relayed(upstream, "too-large");
        }
        // Else upstream is asked. Who has something stale waits for a while only.
        let is_late = matches!(upstream, Upstream::New(behaviour) if behaviour.meaning == Meaning::Late);
        let was = self.standing;
        let (brought, calls) = self.call(upstream, wish);
        if let Some(entry) = stale.filter(|_| is_granted && is_late) {
            return Answer { calls, ..entry.stale("; detail=stale-if-slow") };
        }
        match brought {
            Brought::Answer(answer) => Answer { calls, ..answer },
            Brought::Failure(answer, said) => match usable.filter(|_| was != GrantState::Unknown) {
                Some(entry) => Answer { calls, ..entry.stale(&said) },
                None => Answer { calls, ..answer },
            },
            Brought::Relay => {
                let relayed = self.relayed(upstream, "too-large");
                Answer { calls: calls + relayed.calls, ..relayed }
            }
        }
    }

    /// Asks upstream for the product list. What that brings, and how often it was asked.
    fn call(&mut self, upstream: &Upstream<'_>, wish: RequestDirectives) -> (Brought, usize) {
        let (place, is_granted) = (self.place(), self.standing == GrantState::Granted);
        let why = match self.entry.filter(|_| is_granted) {
            Some(entry) => entry.why(),
            None => "fwd=miss",
        };
        // Only for those who are granted, and only if upstream gave a validator.
        let asked_about = self.entry.filter(|entry| is_granted && entry.has_validator);
        let detail = match self.entry {
            _ if !is_granted => "proved",
            Some(entry) => entry.reason(wish),
            None if self.marks[place].is_some() => "uncacheable",
            None => "no-entry",
        };
        let Upstream::New(behaviour) = upstream else {
            self.keep(Entry::new(Body::Next, 0, None, false));
            let said = format!("{why}; fwd-status=200; stored; detail={detail}");
            return (Brought::Answer(answered(200, Body::Next, said, Some(0))), 1);
        };
        let status = behaviour.status;
        let body = if behaviour.body.is_empty() { Body::Empty } else { Body::New };
        let said = |detail: &str| format!("{why}; fwd-status={status}{detail}");
        let answer = |detail: &str, age| Brought::Answer(answered(status, body, said(detail), age));
        let broken = |word: &'static str| {
            Brought::Failure(own(word, format!("{why}; detail={word}"), 0), format!("; detail={word}"))
        };
        let brought = match behaviour.meaning {
            Meaning::List { ttl } => {
                self.keep(Entry::new(Body::New, 0, ttl, false));
                answer(&format!("; stored; detail={detail}"), Some(0))
            }
            Meaning::Late => {
                self.keep(Entry::new(Body::New, 0, None, false));
                answer(&format!("; stored; detail={detail}"), Some(0))
            }
            Meaning::Unkept => {
                self.standing = GrantState::Granted;
                self.marks = [Some(Mark::Unkept); 2];
                answer("; detail=cache-directives", Some(0))
            }
            Meaning::NotModified { names_another: false } if let Some(entry) = asked_about => {
                self.keep(Entry { age: 0, ..entry });
                let said = format!("{why}; fwd-status=304; stored; detail={detail}");
                Brought::Answer(answered(200, entry.body, said, Some(0)))
            }
            Meaning::NotModified { .. } => {
                self.pause(place, ERROR_TTL, false);
                broken("broken")
            }
            Meaning::NoList(why) => {
                self.marks[place] = Some(Mark::Unkept);
                answer(&format!("; detail={why}"), None)
            }
            Meaning::Denial => {
                self.standing = GrantState::Unknown;
                self.refusal = Some(Kept { status, body, age: 0 });
                answer("; detail=denied", None)
            }
            Meaning::EndlessDenial => {
                self.standing = GrantState::Unknown;
                let word = "refusal-incomplete";
                Brought::Answer(Answer { status, ..own(word, format!("{why}; detail={word}"), 0) })
            }
            Meaning::Negative if is_granted => {
                self.no = Some(Kept { status, body, age: 0 });
                answer(&format!("; stored; detail={detail}"), None)
            }
            Meaning::Negative | Meaning::Personal => answer("; detail=status", None),
            Meaning::Failure { retry_after } => {
                let is_of_scope = is_granted && (status == 429 || (status == 503 && retry_after.is_some()));
                self.pause(place, retry_after.unwrap_or(ERROR_TTL), is_of_scope);
                let said_of_stale = format!("; fwd-status={status}; detail=status");
                Brought::Failure(answered(status, body, said("; detail=status"), None), said_of_stale)
            }
            Meaning::Nothing(word) => {
                self.pause(place, ERROR_TTL, false);
                broken(word)
            }
            // It extends no grant, and a lapsed one has no backoff to go by.
            Meaning::TooLargeHead if !is_granted => match broken("broken") {
                Brought::Failure(answer, _) => Brought::Answer(answer),
                other => other,
            },
            Meaning::TooLargeHead => {
                self.pause(place, ERROR_TTL, false);
                broken("broken")
            }
            Meaning::TooLarge => {
                self.marks[place] = Some(Mark::TooLarge);
                Brought::Relay
            }
        };
        (brought, behaviour.attempts)
    }

    /// A product list is proof, and is kept.
    fn keep(&mut self, entry: Entry) {
        self.standing = GrantState::Granted;
        self.entry = Some(entry);
        self.no = None;
        self.marks = [None; 2];
        self.backoffs = self.backoffs.map(|pause| pause.filter(|pause| pause.is_of_scope));
    }

    /// Without a grant, nothing stale is given that it could matter for, unless it has lapsed.
    fn pause(&mut self, place: usize, left: u64, is_of_scope: bool) {
        self.backoffs[place] = Some(Backoff { left, is_of_scope });
    }

    /// Passes the request on as it is.
    fn relayed(&mut self, upstream: &Upstream<'_>, why: &str) -> Answer {
        let said = format!("fwd=bypass; detail={why}");
        let Upstream::New(behaviour) = upstream else {
            return Answer { calls: 1, ..answered(200, Body::Next, said, None) };
        };
        if matches!(behaviour.meaning, Meaning::Denial | Meaning::EndlessDenial) {
            self.standing = GrantState::Unknown;
        }
        let calls = behaviour.attempts;
        match behaviour.relayed {
            Relayed::Whole if behaviour.body.is_empty() => {
                Answer { calls, ..answered(behaviour.status, Body::Empty, said, None) }
            }
            Relayed::Whole => Answer { calls, ..answered(behaviour.status, Body::New, said, None) },
            Relayed::Cut => Answer { calls, ..answered(behaviour.status, Body::Cut, said, None) },
            Relayed::Failed(word) => own(word, format!("{said}; failure={word}"), calls),
        }
    }
}

impl Kept {
    fn hit(&self, ttl: u64, detail: &str) -> Answer {
        from_memory(self.status, self.body, self.age, format!("hit; ttl={}; detail={detail}", ttl - self.age))
    }
}

fn from_memory(status: u16, body: Body, age: u64, cache_status: String) -> Answer {
    Answer { status, body, cache_status, age: Some(age), is_upstreams: false, calls: 0 }
}

/// Upstream's own answer to this very request.
fn answered(status: u16, body: Body, cache_status: String, age: Option<u64>) -> Answer {
    Answer { status, body, cache_status, age, is_upstreams: true, calls: 0 }
}

/// The gateway's own words.
fn own(word: &'static str, cache_status: String, calls: usize) -> Answer {
    let status = match word {
        "first-byte" | "timeout" | "idle" | "only-if-cached" => 504,
        _ => 502,
    };
    Answer { status, body: Body::Own(word), cache_status, age: None, is_upstreams: false, calls }
}

impl fmt::Display for Answer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let body = match self.body {
            Body::Own(word) => format!("own {word}"),
            body => format!("{body:?}").to_lowercase(),
        };
        let cache_status = if self.cache_status.is_empty() { "no Cache-Status" } else { &self.cache_status };
        write!(f, "{} {body}, {cache_status}", self.status)?;
        if let Some(age) = self.age {
            write!(f, ", age {age}")?;
        }
        write!(f, ", {} asked", self.calls)
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
