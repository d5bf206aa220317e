//! The sharing rules, in plain and slow code: lists that are searched from end to end.
//!
//! Written from the rules alone and sharing nothing with the gateway, not even its words for durations.
//! It says what must follow from each thing that happens: which requests are answered and how, and which
//! calls begin. This file has what is remembered and what a request meets; `landing` has what an answer
//! changes and who is given it.
//!
//! One thing it doesn't foretell: in which order those who wait for the same flight wake up. Who of them
//! is first to call upstream is taken as seen, if that may be.

mod landing;

use std::collections::BTreeMap;

use super::script::Begun;
use super::steps::Settings;
use super::world::{CallerId, KeyId, Ms, RequestId, SCOPES, ScopeId, scope_of};

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

struct Mark {
    slot: Slot,
    is_too_large: bool,
    until: Ms,
}

/// A call in the air. It is known by the request that leads it.
struct Call {
    id: RequestId,
    caller: CallerId,
    key: KeyId,
    is_plain: bool,
    /// Whether the request went on as it was.
    is_relay: bool,
    boarding: Slot,
    sent: Ms,
    /// Whether it can be boarded: not if it flies solo, or was there before a purge.
    is_open: bool,
    was_purged: bool,
    is_late: bool,
}

/// A request that waits for a call, its own or another's.
#[derive(Clone, Debug)]
struct Waiting {
    id: RequestId,
    caller: CallerId,
    key: KeyId,
    is_plain: bool,
    /// When its time is up; what is streamed has none.
    deadline: Option<Ms>,
    elections: u32,
    aboard: RequestId,
}

/// How a request was answered.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum How {
    Hit,
    Stale,
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
}

#[derive(Clone, Debug, PartialEq)]
pub struct Reply {
    pub status: u16,
    /// None where the gateway says in its own words what is wrong.
    pub body: Option<String>,
    pub how: How,
}

/// What must follow.
#[derive(Debug, PartialEq)]
pub enum Effect {
    Answer(RequestId, Reply),
    Call(Begun),
    Relay(Begun),
}

/// What a request meets.
#[derive(Debug)]
enum Way {
    Answered(Reply),
    Relay(Slot),
    Lead(Slot),
    Follow(RequestId),
    Solo(Slot),
}

/// How often each rule had a say.
pub type Tally = BTreeMap<&'static str, usize>;

pub struct Rules {
    settings: Settings,
    now: Ms,
    grants: Vec<Grant>,
    refusals: Vec<Refusal>,
    entries: Vec<Entry>,
    private: Vec<ScopeId>,
    marks: Vec<Mark>,
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
            private: Vec::new(),
            marks: Vec::new(),
            calls: Vec::new(),
            waiting: Vec::new(),
            tally: Tally::new(),
        }
    }

    fn note(&mut self, rule: &'static str) {
        *self.tally.entry(rule).or_default() += 1;
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
        self.waiting.iter().map(|request| request.id).collect()
    }

    /// Whether callers are shown nothing in a scope but what is their own.
    pub fn is_private(&self, scope: ScopeId) -> bool {
        !SCOPES[scope].is_shared || self.private.contains(&scope)
    }

    /// The moments to come at which something ends, in their order.
    pub fn moments(&self) -> Vec<Ms> {
        let grants = self.grants.iter();
        let mut moments: Vec<Ms> = grants
            .flat_map(|grant| [grant.proved + self.settings.grant_ttl, grant.proved + Settings::OUTAGE_GRACE])
            .chain(self.refusals.iter().map(|refusal| refusal.until))
            .chain(self.entries.iter().flat_map(|entry| {
                let end = entry.sent + Settings::ttl(scope_of(entry.slot.key));
                [end, end + Settings::STALE_IF_ERROR]
            }))
            .chain(self.marks.iter().map(|mark| mark.until))
            .chain(self.waiting.iter().filter_map(|request| request.deadline))
            .filter(|moment| *moment > self.now)
            .collect();
        moments.sort_unstable();
        moments.dedup();
        moments
    }

    // What is remembered.

    fn proved(&self, to: Grantee) -> Option<Ms> {
        self.grants.iter().find(|grant| grant.to == to).map(|grant| grant.proved)
    }

    fn is_granted(&self, to: Grantee) -> bool {
        self.proved(to).is_some_and(|proved| self.now < proved + self.settings.grant_ttl)
    }

    fn is_excused(&self, to: Grantee) -> bool {
        self.settings.serves_in_outage
            && self.proved(to).is_some_and(|proved| self.now < proved + Settings::OUTAGE_GRACE)
    }

    /// Where the answer to a key is kept for a caller, as things stand.
    fn slot(&self, caller: CallerId, key: KeyId) -> Slot {
        Slot { key, owner: self.is_private(scope_of(key)).then_some(caller) }
    }

    fn entry(&self, slot: Slot) -> Option<&Entry> {
        self.entries.iter().find(|entry| entry.slot == slot)
    }

    /// An answer in a slot that is not older than its ttl, or than so much more.
    fn young(&self, slot: Slot, more: Ms) -> Option<String> {
        let entry = self.entry(slot)?;
        let is_young = self.now - entry.sent < Settings::ttl(scope_of(slot.key)) + more;
        is_young.then(|| entry.body.clone())
    }

    fn mark(&self, slot: Slot) -> Option<&Mark> {
        self.marks.iter().find(|mark| mark.slot == slot && mark.until > self.now)
    }

    /// How many wait for another's call: those of shared flights, or of lone ones.
    fn followers(&self, are_shared: bool) -> usize {
        let follows = |request: &&Waiting| request.aboard != request.id;
        let calls = self.waiting.iter().filter(follows).map(|request| self.call(request.aboard));
        calls.filter(|call| call.boarding.owner.is_none() == are_shared).count()
    }

    fn call(&self, id: RequestId) -> &Call {
        self.calls.iter().find(|call| call.id == id).expect("who waits, waits for a call in the air")
    }

    // What a request meets.

    fn way(&self, caller: CallerId, key: KeyId, elections: u32) -> Way {
        let to = (caller, scope_of(key));
        if let Some(refusal) = self.refusals.iter().find(|refusal| refusal.to == to && refusal.until > self.now) {
            let (status, body) = (refusal.status, Some(refusal.body.clone()));
            return Way::Answered(Reply { status, body, how: How::Refused });
        }
        let slot = self.slot(caller, key);
        let is_granted = self.is_granted(to);
        if is_granted && let Some(body) = self.young(slot, 0) {
            return Way::Answered(Reply { status: 200, body: Some(body), how: How::Hit });
        }
        let boarding = if is_granted { slot } else { Slot { key, owner: Some(caller) } };
        if let Some(mark) = self.mark(boarding) {
            return if mark.is_too_large { Way::Relay(boarding) } else { Way::Solo(boarding) };
        }
        if elections > ELECTIONS {
            return Way::Solo(boarding);
        }
        // Shared and lone flights have bounds of their own.
        let is_shared = boarding.owner.is_none();
        let is_alike = |call: &&Call| call.is_open && call.boarding.owner.is_none() == is_shared;
        let open: Vec<_> = self.calls.iter().filter(is_alike).collect();
        match open.iter().find(|call| call.boarding == boarding) {
            Some(flight) if self.followers(is_shared) < self.settings.max_waiters => Way::Follow(flight.id),
            None if open.len() < self.settings.max_flights => Way::Lead(boarding),
            _ => Way::Solo(boarding),
        }
    }

    /// A request goes its way.
    fn go(&mut self, mut request: Waiting, way: Way) -> Option<Effect> {
        let Waiting { id, caller, key, is_plain, .. } = request;
        let begun = Begun { id, caller, key, is_plain };
        match way {
            Way::Answered(reply) => {
                self.note(if reply.how == How::Refused { "refused from memory" } else { "hit" });
                Some(Effect::Answer(id, reply))
            }
            Way::Follow(flight) => {
                self.note("boarded");
                request.aboard = flight;
                self.waiting.push(request);
                None
            }
            Way::Relay(boarding) => {
                self.note("relayed at once");
                self.relay(request, boarding);
                Some(Effect::Relay(begun))
            }
            Way::Lead(boarding) | Way::Solo(boarding) => {
                let is_open = matches!(way, Way::Lead(_));
                self.note(if is_open { "led" } else { "solo" });
                if !is_open && request.elections > ELECTIONS {
                    self.note("solo after elections");
                }
                self.depart(request, boarding, is_open, false);
                Some(Effect::Call(begun))
            }
        }
    }

    /// A request goes on as it is.
    fn relay(&mut self, mut request: Waiting, boarding: Slot) {
        request.deadline = None;
        self.depart(request, boarding, false, true);
    }

    /// A call begins.
    fn depart(&mut self, mut request: Waiting, boarding: Slot, is_open: bool, is_relay: bool) {
        let Waiting { id, caller, key, is_plain, .. } = request;
        let (sent, was_purged, is_late) = (self.now, false, false);
        self.calls.push(Call { id, caller, key, is_plain, is_relay, boarding, sent, is_open, was_purged, is_late });
        request.aboard = id;
        self.waiting.push(request);
    }

    /// A request comes in.
    pub fn ask(&mut self, request: Begun) -> Option<Effect> {
        let Begun { id, caller, key, is_plain } = request;
        let deadline = Some(self.now + Settings::ANSWER_TIMEOUT);
        let request = Waiting { id, caller, key, is_plain, deadline, elections: 0, aboard: id };
        let way = self.way(caller, key, 0);
        self.go(request, way)
    }

    /// Requests go again that a landed call had nothing for. `seen` are the calls that began, in order.
    fn go_again(&mut self, requests: Vec<Waiting>, seen: &[Begun]) -> Result<Vec<Effect>, String> {
        // Those who have yet to wake may still count as waiting when the first of them boards again.
        let crowd = self.followers(true).max(self.followers(false)) + requests.len();
        let turn = |request: &Waiting| seen.iter().position(|begun| begun.id == request.id);
        let (mut callers, others): (Vec<_>, Vec<_>) = requests.into_iter().partition(|request| turn(request).is_some());
        callers.sort_by_key(turn);
        let mut effects = Vec::new();
        for mut request in callers {
            request.elections += 1;
            let way = match self.way(request.caller, request.key, request.elections) {
                Way::Follow(_) if crowd >= self.settings.max_waiters => Way::Solo(self.boarding(&request)),
                way @ (Way::Lead(_) | Way::Solo(_)) => way,
                way => return Err(format!("#{} began a call, but {way:?} was its way", request.id)),
            };
            self.note("elected");
            effects.extend(self.go(request, way));
        }
        for mut request in others {
            request.elections += 1;
            match self.way(request.caller, request.key, request.elections) {
                way @ (Way::Lead(_) | Way::Solo(_)) => {
                    return Err(format!("#{} began no call, but {way:?} was its way", request.id));
                }
                way => effects.extend(self.go(request, way)),
            }
        }
        Ok(effects)
    }

    fn boarding(&self, request: &Waiting) -> Slot {
        let is_granted = self.is_granted((request.caller, scope_of(request.key)));
        if is_granted {
            self.slot(request.caller, request.key)
        } else {
            Slot { key: request.key, owner: Some(request.caller) }
        }
    }

    // What else happens.

    /// Time passes, and with it that of those who wait.
    pub fn pass(&mut self, to: Ms) -> Vec<Effect> {
        let mut effects = Vec::new();
        let end = |request: &Waiting| request.deadline.unwrap_or(Ms::MAX);
        while let Some(next) = (0..self.waiting.len()).min_by_key(|&place| end(&self.waiting[place]))
            && end(&self.waiting[next]) <= to
        {
            let request = self.waiting.remove(next);
            self.now = end(&request);
            self.note("out of time");
            // Whose call it has waited for is known of its own, and of those that fly for a slot of its
            // own. The flight of a shared one is taken for another's.
            let call = self.call(request.aboard);
            let is_own = call.id == request.id || call.boarding.owner.is_some();
            let failure = Reply { status: 504, body: None, how: How::TimedOut };
            effects.push(self.fail(&request, is_own, failure));
        }
        self.now = to;
        effects
    }

    /// A client hangs up. Its call, if it leads one, goes on; what is streamed for it doesn't.
    pub fn hang_up(&mut self, id: RequestId) {
        self.note("hung up");
        self.calls.retain(|call| call.id != id || !call.is_relay);
        self.waiting.retain(|request| request.id != id);
    }

    /// The operator purges some scopes.
    pub fn purge(&mut self, selected: impl Fn(ScopeId) -> bool) {
        self.note("purged");
        self.entries.retain(|entry| !selected(scope_of(entry.slot.key)));
        self.marks.retain(|mark| !selected(scope_of(mark.slot.key)));
        self.private.retain(|scope| !selected(*scope));
        for call in &mut self.calls {
            call.is_open = false;
            call.was_purged = true;
        }
    }
}
