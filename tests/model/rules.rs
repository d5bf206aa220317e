//! The sharing rules, in plain and slow code: lists that are searched from end to end.
//!
//! Written from the rules alone and sharing nothing with the gateway, not even its words for durations.
//! It says what must follow from each thing that happens: which requests are answered and how, and which
//! calls begin. This file has what there is and what can happen to it; `memory` what is remembered, `way`
//! what a request meets, `landing` what an answer changes, `refusal` what a refusal changes, `release` who is
//! given what a call has brought, `relief` who makes another call.
//!
//! `tests/table/rules.rs` states a part of the same rules again, for one caller whose requests follow one another: what a
//! client sees of each, to the last word of `Cache-Status`. It is not derived from this. Two independent statements find
//! each other's mistakes, and neither could be left out: that one has no flights, and this one has no headers.
//!
//! One thing it doesn't foretell: in which order those who wait for the same flight wake up. Who of them
//! is first to call upstream is taken as seen, if that may be.

mod landing;
mod memory;
mod refusal;
mod release;
mod relief;
mod way;

use std::collections::BTreeMap;

use super::script::Begun;
use super::settings::Settings;
use super::world::{
    CacheRequest, CallerId, KeyId, Ms, RequestId, SCOPES, SERVICES, Said, Scope, ScopeId, Version, scope_of,
};
use landing::Share;
use refusal::Head;
use way::ProxyRoute;

/// How often a request goes again for a flight that others may board. After that it flies alone.
const ELECTIONS: u32 = 3;

/// A caller in a scope.
type CallerScope = (CallerId, ScopeId);

/// Where an answer is kept and a flight boarded: a key, and whose it is if not everybody's.
#[derive(Clone, Copy, Debug, PartialEq)]
struct CacheKey {
    key: KeyId,
    owner: Option<CallerId>,
}

struct Grant {
    to: CallerScope,
    proved: Ms,
    /// The flights of calls that were refused with a 401, of which only the head has landed.
    suspended_by: Vec<FlightId>,
}

struct Refusal {
    to: CallerScope,
    until: Ms,
    status: u16,
    body: String,
}

struct Entry {
    slot: CacheKey,
    body: String,
    /// Upstream's tag of it.
    tag: Option<Version>,
    /// Whether upstream has answered a question about it with a 304 about something else.
    is_misunderstood: bool,
    sent: Ms,
    chain: Vec<Link>,
}

/// Who was given which body, as the tripwire sees it.
#[derive(Clone)]
struct Link {
    body: String,
    caller: CallerId,
    received: Ms,
}

/// That there is no such thing. It stands beside the entry.
struct Negative {
    slot: CacheKey,
    status: u16,
    body: String,
    sent: Ms,
}

struct Mark {
    slot: CacheKey,
    is_too_large: bool,
    until: Ms,
}

/// Upstream is not asked for what can be given stale.
struct Backoff {
    of: FailedScope,
    until: Ms,
}

#[derive(PartialEq)]
enum FailedScope {
    CacheKey(CacheKey),
    /// Those of a caller whose call for that slot has failed.
    Failed(CallerId, CacheKey),
    Caller(CallerScope),
    /// Those of a caller whose call has failed in a way that may be of its own making.
    Foul(CallerScope),
    Scope(ScopeId),
}

/// What requests wait for: one call, or up to three of different callers.
struct Flight {
    id: FlightId,
    slot: CacheKey,
    /// Whether it can be joined: not if it is for one request alone, or was there before a purge.
    is_open: bool,
    /// Who has made calls for it.
    callers: Vec<CallerId>,
}

type FlightId = usize;

/// How many calls a flight has at most.
const CALLS: usize = 3;

/// A call in the air. It is known by the request that has brought it about; of two, the first is meant.
struct Call {
    id: RequestId,
    flight: FlightId,
    caller: CallerId,
    key: KeyId,
    is_plain: bool,
    is_unsafe: bool,
    /// Whether the request went on as it was.
    is_relay: bool,
    boarding: CacheKey,
    /// The list it asks about.
    asked: Option<Version>,
    /// When that had been sent for.
    asked_sent: Option<Ms>,
    sent: Ms,
    /// The same for timers: by so much later as clocks have jumped since.
    timer_sent: Ms,
    was_purged: bool,
    is_late: bool,
    /// Whether it repeats one that upstream has failed.
    is_repeat: bool,
    /// If it was refused and the body of the refusal is still to come.
    head: Option<Head>,
}

/// A request that waits for a call, its own or another's.
#[derive(Clone, Debug)]
struct Waiting {
    question: CacheRequest,
    /// As timers count, as are the next two: a jump of a clock moves them.
    arrived: Ms,
    /// When its time is up; what is streamed has none.
    deadline: Option<Ms>,
    /// When it takes something stale instead, if it may.
    stale_if_slow: Option<Ms>,
    /// Whether it wasn't to have any, when that time came.
    is_resigned: bool,
    elections: u32,
    /// Whether it has gone again because upstream failed another's call, and whether its next call is that repetition.
    has_repeated: bool,
    is_repeat_due: bool,
    /// Whether it could not make another call for its flight when that was due. It need not do so later.
    was_unable: bool,
    aboard: FlightId,
}

/// How a request was answered.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum How {
    /// From memory: with what is fresh for so long.
    Hit(i64),
    /// With what says that there is no such thing.
    Negative(i64),
    /// With what has been stale for so long, for upstream is not to be asked.
    Backoff(i64),
    /// The same, for somebody else does ask.
    Revalidating(i64),
    /// With something stale in place of a failure.
    Stale,
    /// With something stale rather than have it wait on.
    StaleIfSlow,
    /// With a refusal that was remembered.
    Refused,
    /// With what its own call brought.
    Led,
    /// With what another's call brought.
    Followed,
    /// Streamed from upstream.
    Relayed,
    /// The same, and none of the operations was asked.
    PassedThrough,
    /// With nothing but that its time was up.
    TimedOut,
    /// With nothing but that there is nothing.
    NotCached,
    /// With nothing but that it may be read in more than one way.
    Ambiguous,
}

#[derive(Clone, Debug, PartialEq)]
pub struct Reply {
    pub status: u16,
    /// None where the gateway says in its own words what is wrong.
    pub body: Option<String>,
    /// Upstream's tag of a list.
    pub tag: Option<Version>,
    pub how: How,
}

impl Reply {
    /// What is not about a list.
    fn new(status: u16, body: Option<String>, how: How) -> Self {
        Self { status, body, tag: None, how }
    }

    /// The list of an entry.
    fn of(entry: &Entry, how: How) -> Self {
        Self { status: 200, body: Some(entry.body.clone()), tag: entry.tag, how }
    }
}

/// A call that has ended, and for whom its result is.
struct Ended<'s> {
    call: Call,
    said: &'s Said,
    share: Share,
    /// Whether it ends its flight, and not only the wait of its own request.
    ends_flight: bool,
    /// Whether another caller's call may not fail, for upstream has answered such a call meanwhile.
    may_repeat: bool,
    /// If it has failed: whether the cause lies outside the gateway.
    is_outside: bool,
}

impl Waiting {
    /// Whether a call is this request's own.
    fn leads(&self, call: &Call) -> bool {
        call.id == self.question.id && call.flight == self.aboard
    }
}

/// What must follow.
#[derive(Debug, PartialEq)]
pub enum Effect {
    Answer(RequestId, Reply),
    Call(Begun),
    Relay(Begun),
}

/// How often each rule had a say.
pub type Tally = BTreeMap<&'static str, usize>;

pub struct Rules {
    settings: Settings,
    now: Ms,
    grants: Vec<Grant>,
    refusals: Vec<Refusal>,
    entries: Vec<Entry>,
    negatives: Vec<Negative>,
    private: Vec<ScopeId>,
    private_operations: Vec<&'static str>,
    /// When something was changed last.
    invalidated: [Option<Ms>; SCOPES.len()],
    marks: Vec<Mark>,
    backoffs: Vec<Backoff>,
    flights: Vec<Flight>,
    next_flight: FlightId,
    calls: Vec<Call>,
    waiting: Vec<Waiting>,
    /// When each service last answered, other than with a failure.
    answered: [Option<Ms>; SERVICES],
    /// When the latest list that each service has answered well had been sent.
    listed: [Option<Ms>; SERVICES],
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
            waiting: Vec::new(),
            answered: [None; SERVICES],
            listed: [None; SERVICES],
            tally: Tally::new(),
        }
    }

    fn note(&mut self, rule: &'static str) {
        *self.tally.entry(rule).or_default() += 1;
    }

    /// A request is answered. Who has the list is not sent it again, except where nobody looks at it.
    fn answer(&mut self, question: &CacheRequest, reply: Reply) -> Effect {
        let is_known = reply.tag.is_some() && reply.tag == question.has;
        let is_known = is_known && !matches!(reply.how, How::Relayed | How::PassedThrough);
        if !is_known {
            return Effect::Answer(question.id, reply);
        }
        self.note("known to the client");
        Effect::Answer(question.id, Reply { status: 304, body: Some(String::new()), ..reply })
    }

    /// Calls in the air.
    pub fn in_the_air(&self) -> Vec<RequestId> {
        self.calls.iter().map(|call| call.id).collect()
    }

    /// The call that most requests wait for.
    pub fn fullest(&self) -> Option<RequestId> {
        let aboard = |call: &&Call| self.waiting.iter().filter(|request| request.aboard == call.flight).count();
        self.calls.iter().max_by_key(aboard).map(|call| call.id)
    }

    /// A call that has been in the air for longer than anyone waits.
    pub fn overdue(&self) -> Option<RequestId> {
        let is_overdue = |call: &&Call| call.timer_sent + Settings::ANSWER_TIMEOUT <= self.now;
        self.calls.iter().find(is_overdue).map(|call| call.id)
    }

    /// Requests without an answer.
    pub fn waiting(&self) -> Vec<RequestId> {
        self.waiting.iter().map(|request| request.question.id).collect()
    }

    /// The moments to come at which something ends, in their order.
    pub fn moments(&self) -> Vec<Ms> {
        let Settings { grant_ttl, stale_while_revalidate, stale_if_error, negative_ttl, .. } = self.settings;
        let grants = self.grants.iter();
        let mut moments: Vec<Ms> = grants
            .flat_map(|grant| [grant.proved + grant_ttl, grant.proved + Settings::OUTAGE_GRACE])
            .chain(self.refusals.iter().map(|refusal| refusal.until))
            .chain(self.entries.iter().flat_map(|entry| {
                let end = entry.sent + Settings::ttl(scope_of(entry.slot.key));
                [end, end + stale_while_revalidate, end + stale_if_error]
            }))
            .chain(self.negatives.iter().map(|negative| negative.sent + negative_ttl))
            .chain(self.marks.iter().map(|mark| mark.until))
            .chain(self.backoffs.iter().map(|pause| pause.until))
            .chain(self.waiting.iter().filter_map(|request| request.deadline))
            .chain(self.waiting.iter().filter_map(|request| request.stale_if_slow))
            .chain(self.calls.iter().map(|call| call.timer_sent + self.settings.stale_if_slow))
            .filter(|moment| *moment > self.now)
            .collect();
        moments.sort_unstable();
        moments.dedup();
        moments
    }

    /// A request comes in.
    pub fn ask(&mut self, question: CacheRequest) -> Result<Vec<Effect>, String> {
        if question.spelling.is_ambiguous() {
            self.note("ambiguous");
            return Ok(vec![Effect::Answer(question.id, Reply::new(400, None, How::Ambiguous))]);
        }
        let arrived = self.now;
        let deadline = Some(arrived + Settings::DEADLINE);
        let request = Waiting {
            question,
            arrived,
            deadline,
            stale_if_slow: None,
            is_resigned: false,
            elections: 0,
            has_repeated: false,
            is_repeat_due: false,
            was_unable: false,
            aboard: FlightId::MAX,
        };
        let way = self.way(&question, 0);
        let mut effects = self.go(request, way);
        // The flight that it has joined may have been slow for long.
        effects.extend(self.relieve(&[question.id])?);
        Ok(effects)
    }

    /// Calls end at the same moment, in this order: first everything changes, then the waiters are released.
    /// `seen` are the requests whose calls began at that moment, in order.
    pub fn land(&mut self, landed: &[(RequestId, Said)], seen: &[RequestId]) -> Result<Vec<Effect>, String> {
        let mut ended = Vec::new();
        for (id, said) in landed {
            let place = self.calls.iter().position(|call| call.id == *id).expect("it is in the air");
            let call = self.calls.remove(place);
            let is_outside = self.is_outside(&call, said);
            let share = self.change(&call, said);
            let may_repeat = said.is_server_error() && !call.is_repeat && self.is_listed_since(&call);
            let ends_flight = self.ends_flight(&call, &share);
            if ends_flight {
                self.flights.retain(|flight| flight.id != call.flight);
            }
            ended.push(Ended { call, said, share, ends_flight, may_repeat, is_outside });
        }
        let (mut effects, mut again) = (Vec::new(), Vec::new());
        let mut counted = Vec::new();
        for request in std::mem::take(&mut self.waiting) {
            let own = ended.iter().find(|ended| request.leads(&ended.call));
            let end =
                own.or_else(|| ended.iter().find(|ended| ended.ends_flight && ended.call.flight == request.aboard));
            match end {
                Some(end) => {
                    // One whose own call this is counts among no followers.
                    counted.extend(own.is_none().then_some(request.question.id));
                    self.release(request, end, &mut effects, &mut again);
                }
                None => self.waiting.push(request),
            }
        }
        effects.extend(self.go_on(again, &counted, seen)?);
        Ok(effects)
    }

    /// What follows at the moment at which calls end, or their heads come: requests go again, and others make calls for flights
    /// that are slow. These may do so before the others go again, and then count among those who wait no more.
    /// `counted` are the followers until then.
    fn go_on(&mut self, again: Vec<Waiting>, counted: &[RequestId], seen: &[RequestId]) -> Result<Vec<Effect>, String> {
        let mut effects = self.relieve_seen(seen);
        effects.extend(self.go_again(again, seen, (counted, effects.len()))?);
        effects.extend(self.relieve(seen)?);
        Ok(effects)
    }

    /// Whether a call that has landed ends its flight: what it has brought is for all, or nothing else is to come. After
    /// the head of a refusal only its body is.
    fn ends_flight(&self, call: &Call, share: &Share) -> bool {
        let is_due = self.flights.iter().any(|flight| flight.id == call.flight);
        let is_other = |other: &Call| other.flight == call.flight && other.id != call.id && other.head.is_none();
        let is_last = match call.head {
            Some(head) => head.was_last(),
            None => !self.calls.iter().any(is_other),
        };
        is_due && (is_last || share.serves_all())
    }

    /// Requests go again that a landed call had nothing for. `seen` are the requests whose calls began, in order. `counted` are
    /// the followers until now, of whom others are answered; `others` are so many that make calls for their flights.
    fn go_again(
        &mut self,
        requests: Vec<Waiting>,
        seen: &[RequestId],
        (counted, others): (&[RequestId], usize),
    ) -> Result<Vec<Effect>, String> {
        let mut yet_to_wake = counted.len() + others;
        let turn = |request: &Waiting| seen.iter().position(|begun| *begun == request.question.id);
        let (mut callers, others): (Vec<_>, Vec<_>) = requests.into_iter().partition(|request| turn(request).is_some());
        callers.sort_by_key(turn);
        let mut effects = Vec::new();
        for mut request in callers {
            request.elections += 1;
            yet_to_wake -= usize::from(counted.contains(&request.question.id));
            let boarding = self.boarding(&request.question);
            let way = match self.way(&request.question, request.elections) {
                // Those who have yet to wake may still count as waiting.
                ProxyRoute::Follow(_)
                    if self.followers(boarding.owner.is_none()) + yet_to_wake >= self.settings.max_waiters =>
                {
                    ProxyRoute::Solo(boarding)
                }
                way if way.begins_a_call() => way,
                // It joins a flight that is slow, and makes another call for it.
                ProxyRoute::Follow(flight) if self.is_slow(flight) => ProxyRoute::Follow(flight),
                way => return Err(format!("#{} began a call, but {way:?} was its way", request.question.id)),
            };
            if way.begins_a_call() {
                self.note("elected");
            }
            effects.extend(self.go(request, way));
        }
        for mut request in others {
            request.elections += 1;
            match self.way(&request.question, request.elections) {
                way if way.begins_a_call() => {
                    return Err(format!("#{} began no call, but {way:?} was its way", request.question.id));
                }
                way => effects.extend(self.go(request, way)),
            }
        }
        Ok(effects)
    }

    /// The next moment at which a request may begin a call, though nothing has happened to it.
    pub fn next_turn(&self) -> Option<Ms> {
        let slow = self.calls.iter().map(|call| call.timer_sent + self.settings.stale_if_slow);
        let stale_if_slow = self.waiting.iter().filter_map(|request| request.stale_if_slow);
        slow.chain(stale_if_slow).filter(|moment| *moment > self.now).min()
    }

    /// Time passes, and with it that of those who wait. No further than to the next turn.
    pub fn pass(&mut self, to: Ms, seen: &[RequestId]) -> Result<Vec<Effect>, String> {
        let mut effects = Vec::new();
        let end = |request: &Waiting| request.stale_if_slow.unwrap_or(Ms::MAX).min(request.deadline.unwrap_or(Ms::MAX));
        while let Some(next) = (0..self.waiting.len()).min_by_key(|&place| end(&self.waiting[place]))
            && end(&self.waiting[next]) <= to
        {
            let request = self.waiting.remove(next);
            self.now = end(&request);
            let is_tired = request.stale_if_slow == Some(self.now);
            effects.extend(if is_tired { self.tire(request) } else { Some(self.time_out(&request)) });
        }
        self.now = to;
        effects.extend(self.relieve(seen)?);
        Ok(effects)
    }

    /// A clock jumps: so much time passes for rules and none for timers. Nothing follows of itself.
    pub fn jump(&mut self, by: Ms, name: &'static str) {
        self.note(name);
        self.now += by;
        self.calls.iter_mut().for_each(|call| call.timer_sent += by);
        for request in &mut self.waiting {
            request.arrived += by;
            request.deadline = request.deadline.map(|deadline| deadline + by);
            request.stale_if_slow = request.stale_if_slow.map(|stale_if_slow| stale_if_slow + by);
        }
    }

    /// A client hangs up. Its call, if it leads one, goes on; what is streamed for it doesn't, unless its method
    /// is unsafe.
    pub fn hang_up(&mut self, id: RequestId) {
        self.note("hung up");
        self.calls.retain(|call| call.id != id || !call.is_relay || call.is_unsafe);
        self.waiting.retain(|request| request.question.id != id);
    }

    /// The operator purges an operation, a project, an operation in a project, or everything. What holds for a whole
    /// operation is lifted only with all of it.
    pub fn purge(&mut self, operation: Option<&str>, project: Option<&str>) {
        self.note("purged");
        let is_operation = |its: &str| operation.is_none_or(|name| name == its);
        let selected = |scope: ScopeId| {
            let Scope { operation: its_operation, project: its_project, .. } = SCOPES[scope];
            is_operation(its_operation) && project.is_none_or(|id| id == its_project)
        };
        if project.is_none() {
            self.private_operations.retain(|its| !is_operation(its));
        } else if self.private_operations.iter().any(|its| is_operation(its)) {
            self.note("private after a purge");
        }
        self.entries.retain(|entry| !selected(scope_of(entry.slot.key)));
        self.negatives.retain(|negative| !selected(scope_of(negative.slot.key)));
        self.marks.retain(|mark| !selected(scope_of(mark.slot.key)));
        self.private.retain(|scope| !selected(*scope));
        self.backoffs.retain(|pause| match pause.of {
            FailedScope::CacheKey(slot) | FailedScope::Failed(_, slot) => !selected(scope_of(slot.key)),
            FailedScope::Caller((_, scope)) | FailedScope::Foul((_, scope)) | FailedScope::Scope(scope) => {
                !selected(scope)
            }
        });
        self.flights.iter_mut().for_each(|flight| flight.is_open = false);
        self.calls.iter_mut().for_each(|call| call.was_purged = true);
    }
}
