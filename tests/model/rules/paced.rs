//! The rules while limits of upstream hold calls back.
//!
//! Nothing here counts calls to say when each is sent. What a response changes is as exact as without limits. When a
//! call is sent, and whether a request waits for it or gets a stale response, is taken from the gateway, and must be
//! allowed:
//! - A response from memory, from a call that ends at this moment, or at the deadline.
//! - A stale response in place of a call, to a granted caller that a limit may hold back.
//! - A 429 of the gateway, when a limit may have held the call back for as long as it may take. It changes nothing.
//! - A wait, if a call that may answer the request is in flight, or if a limit may hold the request back (`limits`).
//!
//! Under which cache key a call was looked up is not always known, because it may have been held back for long. So there
//! may be several worlds: states of memory of which one is that of the gateway. What happens must be allowed in one of
//! them, and those in which it is not are given up.

mod allowed;
mod limits;

use super::super::domain::{CacheRequest, Ms, RequestDirectives, RequestId, UpstreamResult, service_of};
use super::super::driver::ClientResponse;
use super::super::limits::{Limit, Pacing, asked_wait};
use super::super::scripted_upstream::UpstreamRequest;
use super::super::settings::Settings;
use super::look_up::Action;
use super::settle::Recipients;
use super::{CacheKey, Ended, FlightId, Reply, ReplyKind, Rules, Tally, Waiter, scope_of};
use limits::{Asked, Known, Sent};

/// More worlds than that occur rarely. Then the sequence ends early.
const MAX_WORLDS: usize = 32;

/// What has happened before the gateway was looked at.
pub enum Happened<'e> {
    Requests(&'e [CacheRequest]),
    Completed(&'e [(RequestId, UpstreamResult)]),
    /// The head of a refusal.
    Head(RequestId, &'e UpstreamResult),
    /// Time has passed, or a client has disconnected, or there was a purge.
    Other,
}

/// What the gateway has done since.
pub struct Seen<'e> {
    pub started: &'e [UpstreamRequest],
    pub relayed: &'e [UpstreamRequest],
    pub responses: &'e [ClientResponse],
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum State {
    Waiting,
    Answered(ReplyKind),
    Disconnected,
}

/// A request and what is known of its wait.
#[derive(Clone, Debug)]
struct Request {
    request: CacheRequest,
    /// By timers: a jump of a clock moves it.
    arrived: Ms,
    state: State,
    /// Whether its caller was granted all the time. A call that waits stays in the class in which it began.
    was_granted: bool,
    /// The cache keys under which it may have looked up last.
    fetch_keys: Vec<CacheKey>,
    /// The key of a call that may be made for it in the background, and whether that is a renewal.
    background: Option<(CacheKey, bool)>,
    is_relayed: bool,
    /// Whether it may wait to be relayed, because the response is too large.
    may_be_relayed: bool,
    is_held: bool,
    /// Whether it may have left its call for another one, because a call for the same key has ended.
    has_left: bool,
    /// Whether it has made its call after it had left another one. So that call may go on after the request's deadline.
    began_late: bool,
    /// Whether a client's request has started its call, which may be repeated after a 429.
    may_be_repeated: bool,
    /// Whether it waits after a 429 to its call, and whether its call has been repeated after that.
    was_throttled: bool,
    is_repeated: bool,
}

/// A possible state of the gateway's memory, and the calls that have ended at this moment.
#[derive(Clone)]
struct World<'e> {
    rules: Rules,
    ended: Vec<Ended<'e>>,
}

/// Under which cache keys a call in flight may have been looked up.
struct Candidates {
    flight: FlightId,
    fetch_keys: Vec<CacheKey>,
}

pub struct Paced {
    settings: Settings,
    worlds: Vec<Rules>,
    requests: Vec<Request>,
    candidates: Vec<Candidates>,
    next_flight: FlightId,
    configured: Option<Limit>,
    known: Vec<Known>,
    asked: Vec<Asked>,
    sent: Vec<Sent>,
    /// Until then, by timers, the gateway may not have noticed that a clock has jumped.
    unnoticed_until: Ms,
    now: Ms,
    jumped: Ms,
    /// Whether there are too many worlds.
    pub is_ambiguous: bool,
    tally: Tally,
}

impl Paced {
    pub fn new(settings: Settings, pacing: Pacing) -> Self {
        Self {
            settings,
            worlds: vec![Rules::new(settings)],
            requests: Vec::new(),
            candidates: Vec::new(),
            next_flight: 0,
            configured: pacing.configured(),
            known: Vec::new(),
            asked: Vec::new(),
            sent: Vec::new(),
            unnoticed_until: 0,
            now: 0,
            jumped: 0,
            is_ambiguous: false,
            tally: Tally::new(),
        }
    }

    fn count(&mut self, rule: &'static str) {
        *self.tally.entry(rule).or_default() += 1;
    }

    /// One of the worlds. They differ in backoffs and marks only.
    pub fn rules(&self) -> &Rules {
        &self.worlds[0]
    }

    pub fn tally(&self) -> Tally {
        let mut tally = self.rules().tally.clone();
        self.tally.iter().for_each(|(rule, times)| *tally.entry(rule).or_default() += times);
        tally
    }

    /// Requests without a response.
    pub fn waiting(&self) -> Vec<RequestId> {
        let waiting = self.requests.iter().filter(|it| it.state == State::Waiting);
        waiting.map(|it| it.request.id).collect()
    }

    /// All future times at which something expires, in order.
    pub fn expiry_times(&self) -> Vec<Ms> {
        let waiting = self.requests.iter().filter(|it| it.state == State::Waiting);
        let stale_if_slow = self.rules().settings.stale_if_slow;
        let ends = waiting.flat_map(|it| {
            [it.arrived + stale_if_slow, it.arrived + Settings::ANSWER_TIMEOUT, it.arrived + Settings::DEADLINE]
        });
        let mut times = self.rules().expiry_times();
        times.extend(ends.chain(self.release_times()).filter(|time| *time > self.now));
        times.sort_unstable();
        times.dedup();
        times
    }

    pub fn is_private(&self, scope: usize) -> bool {
        self.worlds.iter().all(|rules| rules.is_private(scope))
    }

    pub fn purge(&mut self, operation: Option<&str>, project: Option<&str>) {
        self.worlds.iter_mut().for_each(|rules| rules.purge(operation, project));
    }

    pub fn jump(&mut self, by: Ms, name: &'static str) {
        self.worlds.iter_mut().for_each(|rules| rules.jump(by, name));
        self.requests.iter_mut().for_each(|it| it.arrived += by);
        self.now += by;
        self.jumped += by;
        self.note_jump();
    }

    pub fn disconnect(&mut self, id: RequestId) {
        self.worlds.iter_mut().for_each(|rules| rules.disconnect(id));
        self.request_mut(id).state = State::Disconnected;
    }

    fn request_mut(&mut self, id: RequestId) -> &mut Request {
        self.requests.iter_mut().find(|it| it.request.id == id).expect("the request has arrived")
    }

    fn place(&self, id: RequestId) -> Result<usize, String> {
        let place = self.requests.iter().position(|it| it.request.id == id);
        place.ok_or_else(|| format!("#{id} is not known"))
    }

    /// Follows the gateway.
    ///
    /// # Errors
    /// If it has done something that the rules do not allow, or has not done what they demand.
    pub fn follow(&mut self, now: Ms, event: &Happened<'_>, seen: &Seen<'_>) -> Result<(), String> {
        self.now = now;
        let mut worlds: Vec<World<'_>> = std::mem::take(&mut self.worlds)
            .into_iter()
            .map(|rules| World { rules: Rules { now, ..rules }, ended: Vec::new() })
            .collect();
        match event {
            Happened::Requests(requests) => requests.iter().for_each(|request| self.receive(&mut worlds, *request)),
            Happened::Completed(completed) => {
                for (id, result) in *completed {
                    worlds = self.complete(worlds, *id, result);
                }
            }
            Happened::Head(id, result) => worlds.iter_mut().for_each(|world| world.rules.refuse(*id, result)),
            Happened::Other => {}
        }
        let followed = self.follow_in(&mut worlds, event, seen);
        for World { rules, .. } in worlds {
            if !self.worlds.iter().any(|other| other.has_same_memory(&rules)) {
                self.worlds.push(rules);
            }
        }
        if self.worlds.len() > MAX_WORLDS {
            self.count("ambiguous order");
            self.is_ambiguous = true;
        }
        followed
    }

    fn follow_in(&mut self, worlds: &mut Vec<World<'_>>, event: &Happened<'_>, seen: &Seen<'_>) -> Result<(), String> {
        for call in seen.started {
            self.started(worlds, call)?;
        }
        for call in seen.relayed {
            self.relayed(worlds, call)?;
        }
        for response in seen.responses {
            self.responded(worlds, response)?;
        }
        self.check_waits(worlds, matches!(event, Happened::Requests(_)))
    }

    fn receive(&mut self, worlds: &mut [World<'_>], request: CacheRequest) {
        let CacheRequest { id, caller, key, directives, spelling, .. } = request;
        if spelling.is_ambiguous() {
            self.count("ambiguous token");
        }
        let is_due = worlds.iter_mut().map(|world| !spelling.is_ambiguous() && world.rules.use_grant(&request));
        let is_due = is_due.fold(false, |one, other| one | other);
        let rules = &worlds[0].rules;
        let is_hit = matches!(rules.action(&waiter(request)), Action::Respond(Reply { kind: ReplyKind::Hit(_), .. }));
        let mut background = None;
        if is_due && is_hit && directives != RequestDirectives::OnlyIfCached {
            background = Some((CacheKey { key, owner: Some(caller) }, true));
            worlds.iter_mut().for_each(|world| world.rules.postpone_renewal((caller, scope_of(key))));
        }
        let fetch_keys = vec![worlds[0].rules.fetch_key(&request)];
        let arrived = self.now;
        debug_assert!(self.place(id).is_err());
        self.requests.push(Request {
            request,
            arrived,
            state: State::Waiting,
            was_granted: worlds[0].rules.is_granted((caller, scope_of(key))),
            fetch_keys,
            background,
            is_relayed: false,
            may_be_relayed: false,
            is_held: false,
            has_left: false,
            began_late: false,
            may_be_repeated: false,
            was_throttled: false,
            is_repeated: false,
        });
    }

    /// A call ends. Each cache key under which it may have been looked up makes a world.
    fn complete<'e>(&mut self, worlds: Vec<World<'e>>, id: RequestId, result: &'e UpstreamResult) -> Vec<World<'e>> {
        let call = worlds[0].rules.calls.iter().find(|call| call.id == id).expect("the call is in flight");
        let (flight, caller, service) = (call.flight, call.caller, service_of(call.key));
        let place = self.candidates.iter().position(|it| it.flight == flight).expect("the call has started");
        let Candidates { fetch_keys, .. } = self.candidates.remove(place);
        // A 429 may be followed by a repetition. Then it changes nothing.
        let it = self.request_mut(id).clone();
        let is_throttled = matches!(result, UpstreamResult::Complete { status: 429, .. });
        let may_repeat = is_throttled && it.may_be_repeated;
        // It must be, if upstream says when, and nothing else holds the call back until then.
        let is_soon = asked_wait(result).is_some_and(|after| self.waited(&it) + after < Settings::ANSWER_TIMEOUT);
        let may_wait = it.state == State::Waiting && !it.was_throttled && !it.has_left;
        let must_repeat = may_repeat && is_soon && may_wait && !self.may_be_held(&it, &worlds[0].rules);
        self.learn(flight, caller, service, result);
        let mut after = Vec::new();
        for world in worlds {
            for fetch_key in &fetch_keys {
                let World { mut rules, mut ended } = world.clone();
                let index = rules.calls.iter().position(|call| call.flight == flight).expect("it is in flight");
                let mut call = rules.calls.remove(index);
                call.fetch_key = *fetch_key;
                if may_repeat && !rules.has_for_failure(&it) {
                    let mut rules = rules.clone();
                    let mut ended = ended.clone();
                    rules.answered[service] = Some(self.now);
                    let (call, recipients, is_external) = (call.clone(), Recipients::None, true);
                    ended.push(Ended { call, result, recipients, ends_flight: false, may_repeat, is_external });
                    after.push(World { rules, ended });
                    if must_repeat {
                        continue;
                    }
                }
                let is_external = rules.is_external(&call, result);
                let recipients = rules.settle(&call, result);
                rules.end_renewal(&call, result);
                let (ends_flight, may_repeat) = (true, false);
                ended.push(Ended { call, result, recipients, ends_flight, may_repeat, is_external });
                after.push(World { rules, ended });
            }
        }
        after
    }

    /// A call starts.
    fn started(&mut self, worlds: &mut Vec<World<'_>>, call: &UpstreamRequest) -> Result<(), String> {
        let UpstreamRequest { id, caller, key, is_direct, .. } = *call;
        let place = self.place(id)?;
        let it = self.requests[place].clone();
        let Request { request, arrived, state, background, was_throttled, is_repeated, has_left, .. } = it;
        if (caller, key, is_direct) != (request.caller, request.key, request.is_direct) {
            return Err(format!("#{id} starts a call for another request: {call:?}"));
        }
        let rules = &worlds[0].rules;
        let now_key = rules.fetch_key(&request);
        let (fetch_keys, is_renewal) = match (state, background) {
            (_, Some((fetch_key, is_renewal))) => (vec![fetch_key], is_renewal),
            (State::Answered(kind), None) if !kind.has_waited() => {
                return Err(format!("#{id} starts a call after its response"));
            }
            _ => {
                let mut fetch_keys = self.requests[place].fetch_keys.clone();
                if !fetch_keys.contains(&now_key) {
                    fetch_keys.push(now_key);
                }
                (fetch_keys, false)
            }
        };
        let is_waiting = state == State::Waiting;
        let longest = rules.settings.longest_wait() + if is_waiting { 0 } else { Settings::ANSWER_TIMEOUT };
        if self.now > arrived + longest {
            return Err(format!("#{id} starts a call after its deadline"));
        }
        let says_when = |result: &UpstreamResult| Limit::named_in(result).is_some() || asked_wait(result).is_some();
        let names_limit = |end: &Ended<'_>| end.call.id == id && says_when(end.result);
        if worlds[0].ended.iter().any(names_limit) {
            return Err(format!("#{id} is sent again without a wait after a 429"));
        }
        // If it has left that call, it makes another one for its own reasons.
        let is_other = |end: &Ended<'_>| end.call.key == key && end.call.id != id;
        if was_throttled && !has_left && !worlds[0].ended.iter().any(is_other) {
            if is_repeated {
                return Err(format!("#{id} is sent again for a second time after a 429"));
            }
            if matches!(state, State::Answered(_)) && !it.began_late {
                return Err(format!("#{id} is sent again after its response"));
            }
            self.requests[place].is_repeated = true;
            self.count("repeated after a 429");
        }
        self.check_limits(id, caller, service_of(key))?;
        let is_background = background.is_some();
        let flight = self.next_flight;
        self.next_flight += 1;
        keep(worlds, |world| {
            let rules = &mut world.rules;
            if !is_renewal && let Action::Respond(reply) = rules.action(&waiter(request)) {
                return Err(format!("#{id} starts a call, expected {reply:?}"));
            }
            let expected = rules.start_call(&waiter(request), fetch_keys[0], flight, false);
            rules.calls.last_mut().expect("it has started").is_renewal = is_renewal;
            if expected == *call { Ok(()) } else { Err(format!("expected the call {expected:?}, got {call:?}")) }
        })?;
        self.requests[place].may_be_repeated = !is_background;
        if is_background {
            self.count(if is_renewal { "renewal" } else { "background refresh" });
            self.requests[place].background = None;
        }
        self.requests[place].began_late |= has_left;
        (self.requests[place].is_held, self.requests[place].has_left) = (false, false);
        self.sent.push(Sent::new(flight, &request, self.now));
        self.candidates.push(Candidates { flight, fetch_keys });
        Ok(())
    }

    /// A request is relayed.
    fn relayed(&mut self, worlds: &mut Vec<World<'_>>, call: &UpstreamRequest) -> Result<(), String> {
        let id = call.id;
        let place = self.place(id)?;
        let request = self.requests[place].request;
        if self.requests[place].state != State::Waiting {
            return Err(format!("#{id} is relayed after its response"));
        }
        let fetch_key = worlds[0].rules.fetch_key(&request);
        let flight = self.next_flight;
        self.next_flight += 1;
        keep(worlds, |world| {
            let relay = world.rules.start_call(&waiter(request), fetch_key, flight, true);
            if relay == *call { Ok(()) } else { Err(format!("expected to relay {relay:?}, got {call:?}")) }
        })?;
        // A relayed request is not sent again.
        (self.requests[place].is_relayed, self.requests[place].may_be_repeated) = (true, false);
        self.sent.push(Sent::new(flight, &request, self.now));
        self.candidates.push(Candidates { flight, fetch_keys: vec![fetch_key] });
        Ok(())
    }

    /// How long a request has waited, by timers.
    fn waited(&self, it: &Request) -> Ms {
        self.now - it.arrived
    }
}

impl ReplyKind {
    /// Whether the request has waited for a call before this response, so that the call may still be made.
    fn has_waited(self) -> bool {
        matches!(
            self,
            Self::StaleOnError
                | Self::StaleIfSlow
                | Self::TimedOut
                | Self::Held
                | Self::Collapsed
                | Self::HitAfterProof(_)
        )
    }
}

/// A request that looks up, as the other rules see it.
fn waiter(request: CacheRequest) -> Waiter {
    Waiter {
        request,
        arrived: 0,
        deadline: None,
        stale_if_slow: None,
        had_no_stale: false,
        elections: super::MAX_ELECTIONS,
        has_repeated: true,
        is_repeat_due: false,
        could_not_call: false,
        proof_waits: 0,
        awaits_proof: false,
        proof_wait_began: 0,
        proof_was_slow: false,
        flight: FlightId::MAX,
    }
}

/// Gives up the worlds in which something is not allowed.
///
/// # Errors
/// If it is allowed in none. Says why it is not allowed in the first.
fn keep(
    worlds: &mut Vec<World<'_>>,
    mut allows: impl FnMut(&mut World<'_>) -> Result<(), String>,
) -> Result<(), String> {
    let mut first = None;
    let mut left = Vec::new();
    for mut world in worlds.drain(..) {
        match allows(&mut world) {
            Ok(()) => left.push(world),
            Err(wrong) => _ = first.get_or_insert((wrong, world)),
        }
    }
    *worlds = left;
    match first {
        Some((wrong, world)) if worlds.is_empty() => {
            worlds.push(world);
            Err(wrong)
        }
        _ => Ok(()),
    }
}

impl Rules {
    /// The head of a refusal arrives. Who looks up again is not predicted.
    fn refuse(&mut self, id: RequestId, result: &UpstreamResult) {
        self.count("head of a refusal");
        let index = self.calls.iter().position(|call| call.id == id).expect("the call is in flight");
        let mut call = self.calls.remove(index);
        self.answered[service_of(call.key)] = Some(self.now);
        call.head = Some(self.apply_refusal_head(&call, result.denial().expect("it is a refusal")));
        self.calls.insert(index, call);
    }

    /// Whether nothing that follows can show a difference. The calls in flight are the same in all worlds.
    fn has_same_memory(&self, other: &Self) -> bool {
        let backoffs = |it: &Self| it.backoffs.iter().filter(|it| it.until > self.now).cloned().collect::<Vec<_>>();
        let marks = |it: &Self| it.marks.iter().filter(|it| it.until > self.now).cloned().collect::<Vec<_>>();
        self.grants == other.grants
            && self.refusals == other.refusals
            && self.entries == other.entries
            && self.negatives == other.negatives
            && self.private == other.private
            && self.private_operations == other.private_operations
            && marks(self) == marks(other)
            && backoffs(self) == backoffs(other)
    }
}
