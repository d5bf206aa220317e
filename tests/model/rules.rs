//! The sharing rules, in plain and slow code: lists that are searched from end to end.
//!
//! Written from the rules alone and sharing nothing with the gateway, not even its words for durations.
//! It says what must follow from each thing that happens: which requests are answered and how, and which
//! calls begin. This file has what there is and what can happen to it; `memory` what is remembered, `way`
//! what a request meets, `landing` what an answer changes, `release` who is given it.
//!
//! One thing it doesn't foretell: in which order those who wait for the same flight wake up. Who of them
//! is first to call upstream is taken as seen, if that may be.

mod landing;
mod memory;
mod release;
mod way;

use std::collections::BTreeMap;

use super::script::Begun;
use super::settings::Settings;
use super::world::{CallerId, KeyId, Ms, Question, RequestId, Said, ScopeId, Version, scope_of};
use way::Way;

/// How often a request goes again for a flight that others may board. After that it flies alone.
const ELECTIONS: u32 = 3;

/// A caller in a scope.
type Grantee = (CallerId, ScopeId);

/// Where an answer is kept and a flight boarded: a key, and whose it is if not everybody's.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Slot {
    key: KeyId,
    owner: Option<CallerId>,
}

struct Grant {
    to: Grantee,
    proved: Ms,
}

struct Refusal {
    to: Grantee,
    until: Ms,
    status: u16,
    body: String,
}

struct Entry {
    slot: Slot,
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
    slot: Slot,
    status: u16,
    body: String,
    sent: Ms,
}

struct Mark {
    slot: Slot,
    is_too_large: bool,
    until: Ms,
}

/// Upstream is not asked for what can be given stale.
struct Pause {
    of: Paused,
    until: Ms,
}

#[derive(PartialEq)]
enum Paused {
    Slot(Slot),
    Caller(Grantee),
    /// Those of a caller whose call has failed in a way that may be of its own making.
    Foul(Grantee),
    Scope(ScopeId),
}

/// A call in the air. It is known by the request that has brought it about.
struct Call {
    id: RequestId,
    caller: CallerId,
    key: KeyId,
    is_plain: bool,
    /// Whether the request went on as it was.
    is_relay: bool,
    boarding: Slot,
    /// The list it asks about.
    asked: Option<Version>,
    /// When that had been sent for.
    asked_sent: Option<Ms>,
    sent: Ms,
    /// Whether it can be boarded: not if it flies solo, or was there before a purge.
    is_open: bool,
    was_purged: bool,
    is_late: bool,
}

/// A request that waits for a call, its own or another's.
#[derive(Clone, Debug)]
struct Waiting {
    question: Question,
    arrived: Ms,
    /// When its time is up; what is streamed has none.
    deadline: Option<Ms>,
    /// When it takes something stale instead, if it may.
    patience: Option<Ms>,
    /// Whether it wasn't to have any, when that time came.
    is_resigned: bool,
    elections: u32,
    aboard: RequestId,
}

/// How a request was answered.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum How {
    /// From memory: with what is fresh for so long.
    Hit(i64),
    /// With what says that there is no such thing.
    Negative(i64),
    /// With what has been stale for so long, for upstream is not to be asked.
    Paused(i64),
    /// The same, for somebody else does ask.
    Revalidating(i64),
    /// With something stale in place of a failure.
    Stale,
    /// With something stale rather than have it wait on.
    Patience,
    /// With a refusal that was remembered.
    Refused,
    /// With what its own call brought.
    Led,
    /// With what another's call brought.
    Followed,
    /// Streamed from upstream.
    Relayed,
    /// With nothing but that its time was up.
    TimedOut,
    /// With nothing but that there is nothing.
    NotCached,
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
    marks: Vec<Mark>,
    pauses: Vec<Pause>,
    calls: Vec<Call>,
    waiting: Vec<Waiting>,
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
            marks: Vec::new(),
            pauses: Vec::new(),
            calls: Vec::new(),
            waiting: Vec::new(),
            tally: Tally::new(),
        }
    }

    fn note(&mut self, rule: &'static str) {
        *self.tally.entry(rule).or_default() += 1;
    }

    /// A request is answered. Who has the list is not sent it again, except where nobody looks at it.
    fn answer(&mut self, question: &Question, reply: Reply) -> Effect {
        let is_known = reply.tag.is_some() && reply.tag == question.has && reply.how != How::Relayed;
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
        let aboard = |call: &&Call| self.waiting.iter().filter(|request| request.aboard == call.id).count();
        self.calls.iter().max_by_key(aboard).map(|call| call.id)
    }

    /// A call that has been in the air for longer than anyone waits.
    pub fn overdue(&self) -> Option<RequestId> {
        let is_overdue = |call: &&Call| call.sent + Settings::ANSWER_TIMEOUT <= self.now;
        self.calls.iter().find(is_overdue).map(|call| call.id)
    }

    /// Requests without an answer.
    pub fn waiting(&self) -> Vec<RequestId> {
        self.waiting.iter().map(|request| request.question.id).collect()
    }

    /// The moments to come at which something ends, in their order.
    pub fn moments(&self) -> Vec<Ms> {
        let Settings { grant_ttl, stale_while_revalidate, stale_if_error, error_ttl, .. } = self.settings;
        let grants = self.grants.iter();
        let mut moments: Vec<Ms> = grants
            .flat_map(|grant| [grant.proved + grant_ttl, grant.proved + Settings::OUTAGE_GRACE])
            .chain(self.refusals.iter().map(|refusal| refusal.until))
            .chain(self.entries.iter().flat_map(|entry| {
                let end = entry.sent + Settings::ttl(scope_of(entry.slot.key));
                [end, end + stale_while_revalidate, end + stale_if_error]
            }))
            .chain(self.negatives.iter().map(|negative| negative.sent + error_ttl))
            .chain(self.marks.iter().map(|mark| mark.until))
            .chain(self.pauses.iter().map(|pause| pause.until))
            .chain(self.waiting.iter().filter_map(|request| request.deadline))
            .chain(self.waiting.iter().filter_map(|request| request.patience))
            .filter(|moment| *moment > self.now)
            .collect();
        moments.sort_unstable();
        moments.dedup();
        moments
    }

    /// A request comes in.
    pub fn ask(&mut self, question: Question) -> Vec<Effect> {
        let arrived = self.now;
        let deadline = Some(arrived + Settings::ANSWER_TIMEOUT);
        let request = Waiting {
            question,
            arrived,
            deadline,
            patience: None,
            is_resigned: false,
            elections: 0,
            aboard: question.id,
        };
        let way = self.way(&question, 0);
        self.go(request, way)
    }

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

    /// Requests go again that a landed call had nothing for. `seen` are the calls that began, in order.
    fn go_again(&mut self, requests: Vec<Waiting>, seen: &[Begun]) -> Result<Vec<Effect>, String> {
        // Those who have yet to wake may still count as waiting when the first of them boards again.
        let crowd = self.followers(true).max(self.followers(false)) + requests.len();
        let turn = |request: &Waiting| seen.iter().position(|begun| begun.id == request.question.id);
        let (mut callers, others): (Vec<_>, Vec<_>) = requests.into_iter().partition(|request| turn(request).is_some());
        callers.sort_by_key(turn);
        let mut effects = Vec::new();
        for mut request in callers {
            request.elections += 1;
            let way = match self.way(&request.question, request.elections) {
                Way::Follow(_) if crowd >= self.settings.max_waiters => Way::Solo(self.boarding(&request.question)),
                way if way.begins_a_call() => way,
                way => return Err(format!("#{} began a call, but {way:?} was its way", request.question.id)),
            };
            self.note("elected");
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

    /// Time passes, and with it that of those who wait.
    pub fn pass(&mut self, to: Ms) -> Vec<Effect> {
        let mut effects = Vec::new();
        let end = |request: &Waiting| request.patience.unwrap_or(Ms::MAX).min(request.deadline.unwrap_or(Ms::MAX));
        while let Some(next) = (0..self.waiting.len()).min_by_key(|&place| end(&self.waiting[place]))
            && end(&self.waiting[next]) <= to
        {
            let request = self.waiting.remove(next);
            self.now = end(&request);
            let is_tired = request.patience == Some(self.now);
            effects.extend(if is_tired { self.tire(request) } else { Some(self.time_out(&request)) });
        }
        self.now = to;
        effects
    }

    /// A client hangs up. Its call, if it leads one, goes on; what is streamed for it doesn't.
    pub fn hang_up(&mut self, id: RequestId) {
        self.note("hung up");
        self.calls.retain(|call| call.id != id || !call.is_relay);
        self.waiting.retain(|request| request.question.id != id);
    }

    /// The operator purges some scopes.
    pub fn purge(&mut self, selected: impl Fn(ScopeId) -> bool) {
        self.note("purged");
        self.entries.retain(|entry| !selected(scope_of(entry.slot.key)));
        self.negatives.retain(|negative| !selected(scope_of(negative.slot.key)));
        self.marks.retain(|mark| !selected(scope_of(mark.slot.key)));
        self.private.retain(|scope| !selected(*scope));
        self.pauses.retain(|pause| match pause.of {
            Paused::Slot(slot) => !selected(scope_of(slot.key)),
            Paused::Caller((_, scope)) | Paused::Foul((_, scope)) | Paused::Scope(scope) => !selected(scope),
        });
        for call in &mut self.calls {
            call.is_open = false;
            call.was_purged = true;
        }
    }
}
