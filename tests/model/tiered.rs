//! Sequences with a second tier: two or three gateways on one engine that misbehaves, and gateways that are restarted.
//!
//! The rules (`rules`) do not know the tier. Each response is judged by the safety property. In addition:
//! - What a gateway gets from the tier counts as upstream's response, with its true age, only if it was stored for this
//!   key, and nothing that was told to the engine since has made it void.
//! - A proof that a gateway gets from the tier counts as the caller's, with its true age, while the gateway is in sync. It ends
//!   with each denial that the gateway knows or is told of, and is later than all of them.
//! - Only a response that is for all granted callers is stored, and only a proof that counts.
//! - Each denial, purge, change and private scope is told, and nothing else.
//! - The tier is asked for an entry only for a caller with a grant, or together with the caller's own grant.
//! - A request that can be answered from the tier is. After a restart that is so for the snapshot, too, also if the
//!   caller's own call fails.
//! - No request waits without a call anywhere for longer than a look-up and a pause may take, or until the lease of a gateway
//!   that was killed has ended. While all is well, no two gateways call upstream for the same.
//!
//! No two calls return the same list. So it is known from which call a list comes.
//!
//! - [`steps`]: what can happen.
//! - `engine`: the second tier.
//! - `link`: what a gateway has told it, and has read of it.
//! - `notices`: what gateways tell each other.
//! - `process`: a gateway.
//! - `judge`: judges what the gateways have done.

mod engine;
mod judge;
mod link;
mod notices;
mod process;
pub mod steps;

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::Notify;
use tokio::time::Instant;
use workspace_gateway::testing::cache::second_tier::Name;
use workspace_gateway::testing::cache::store::PurgeSelection;
use workspace_gateway::testing::clock::{Clock, ManualClock};
use workspace_gateway::testing::config::Config;

use super::clocks::{Clocks, Jump};
use super::domain::{
    CacheRequest, CallerId, Change, History, KeyId, Ms, RequestDirectives, RequestId, SCOPES, SECOND, ScopeId, Seconds,
    Spelling, UpstreamState, scope_of,
};
use super::driver::{Verdict, milliseconds, settings_and_config};
use super::limits::Pacing;
use super::property::Property;
use super::rules::Tally;
use super::settings::Settings;
use super::steps::Outcome;
use engine::{Engine, LEASE, NoticeId, RecordId};
use notices::{Expected, Meaning, denials, entries_voided};
use process::{Call, Folder, Process};
use steps::{Fault, GatewayId, Mode, Sequence, Step};

/// Clocks of two machines may differ by this much. So a copy may seem so much older than it is, and a little more.
const SKEW: Ms = 6 * SECOND;

/// The longest time that a request may wait for the tier, and a little more.
const LONGEST_LOOK_UP: Ms = 10;

/// The longest time that a request may wait until it looks again whether another gateway has what it needs, and the time for
/// that.
const LONGEST_PAUSE: Ms = 100 + 2 * LONGEST_LOOK_UP;

/// How long a gateway is in sync after it has read the log.
const SYNC: Ms = SECOND;

/// After so many completed calls a sequence ends: there is no other list.
const MAX_LISTS: u8 = 200;

/// Whether something selects each scope.
type Selection = [bool; SCOPES.len()];

/// A call that has just completed.
struct Completed {
    gateway: GatewayId,
    id: RequestId,
    /// Its response, if other gateways may have it.
    source: Option<Source>,
    /// What it proves.
    proof: Option<ProofSource>,
}

/// A proof.
struct ProofSource {
    caller: CallerId,
    scope: ScopeId,
    sent: Ms,
    /// The same, by the time that has really passed.
    real_sent: Ms,
}

/// A response.
struct Source {
    key: KeyId,
    list: String,
    sent: Ms,
    /// The same, by the time that has really passed.
    real_sent: Ms,
}

struct Driver {
    settings: Settings,
    config: &'static Config,
    processes: Vec<Process>,
    /// Killed ones. Their calls never end.
    killed: Vec<Process>,
    engine: Arc<Engine>,
    /// For the snapshots, if a gateway is restarted.
    folder: Option<Folder>,
    sources: HashMap<RecordId, Source>,
    places: HashMap<Name, KeyId>,
    proofs: HashMap<RecordId, ProofSource>,
    grant_places: HashMap<Name, (CallerId, ScopeId)>,
    /// What gateways have told each other.
    meanings: HashMap<NoticeId, (Meaning, Ms)>,
    /// What the process with this number must tell now.
    expected: (usize, Vec<Expected>),
    /// Whether nothing has happened that makes several gateways call upstream for the same.
    is_calm: bool,
    /// Until when, by timers, a lease may have no holder that lives.
    forsaken_until: Ms,
    /// What the engine was told to be void, and when.
    told: Vec<(Ms, Selection)>,
    history: History,
    lists: u8,
    start: Instant,
    now: Ms,
    clock: ManualClock,
    clocks: Clocks,
    /// The time that has passed for rules, but not for timers; and for the machine, while it was suspended.
    jumped: Ms,
    suspended: Ms,
    /// When the clock of the machine and the clock of the engine were set back, and by how much.
    set_back: [Vec<(Ms, Ms)>; 2],
    /// When any clock was last moved.
    last_move: Ms,
    activity: Arc<Notify>,
    tally: Tally,
    events: Vec<String>,
}

/// Runs a sequence from an empty cache. A panic of the gateway is a failure of the sequence.
pub fn run(sequence: &Sequence) -> Verdict {
    std::panic::catch_unwind(|| run_on_paused_clock(sequence)).unwrap_or_else(|panic| {
        let message = panic.downcast_ref::<String>().map(String::as_str).or(panic.downcast_ref::<&str>().copied());
        Err(format!("RULES: panicked: {}", message.unwrap_or("without a message")))
    })
}

fn run_on_paused_clock(sequence: &Sequence) -> Verdict {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap();
    runtime.block_on(async {
        let mut driver = Driver::new(sequence);
        match driver.run(&sequence.steps).await {
            Ok(()) => Ok(driver.tally),
            Err(wrong) => Err(format!("{wrong}\n{:?}{}", driver.settings, driver.events.concat())),
        }
    })
}

impl Driver {
    fn new(sequence: &Sequence) -> Self {
        let (settings, config) = settings_and_config(sequence.settings, Pacing::None);
        let has_restart = sequence.steps.iter().any(|step| matches!(step, Step::Restart(..)));
        let start = Clock::System.timer_now();
        let mut driver = Self {
            settings,
            config,
            processes: Vec::new(),
            killed: Vec::new(),
            engine: Engine::new(start),
            folder: has_restart.then(Folder::new),
            sources: HashMap::new(),
            places: HashMap::new(),
            proofs: HashMap::new(),
            grant_places: HashMap::new(),
            meanings: HashMap::new(),
            expected: (0, Vec::new()),
            is_calm: true,
            forsaken_until: 0,
            told: Vec::new(),
            history: History::new(UpstreamState::new(false)),
            lists: 0,
            start,
            now: 0,
            clock: ManualClock::running(),
            clocks: Clocks::default(),
            jumped: 0,
            suspended: 0,
            set_back: Default::default(),
            last_move: 0,
            activity: Arc::new(Notify::new()),
            tally: Tally::new(),
            events: Vec::new(),
        };
        // Views that differ would make scopes private in a way that only the gateway knows.
        (0..SCOPES.len()).for_each(|scope| driver.history.change(0, &Change::Views(scope, false)));
        (0..sequence.gateways).for_each(|gateway| {
            let process = driver.start(gateway);
            driver.processes.push(process);
        });
        driver
    }

    /// A gateway with an empty memory.
    fn start(&self, gateway: GatewayId) -> Process {
        let number = self.processes.len() + self.killed.len();
        let path = self.folder.as_ref().map(|folder| folder.path().join(gateway.to_string()));
        Process::start(number, path.as_deref(), (self.settings, self.config), &self.engine, &self.clock, &self.activity)
    }

    fn count(&mut self, rule: &'static str) {
        *self.tally.entry(rule).or_default() += 1;
    }

    fn record(&mut self, event: &str) {
        self.events.push(format!("\n{:>9} {event}", Seconds(self.now).to_string()));
    }

    /// The time that has really passed.
    fn real(&self) -> Ms {
        self.now - self.jumped + self.suspended
    }

    async fn run(&mut self, steps: &[Step]) -> Result<(), String> {
        for step in steps {
            self.pass(1).await?;
            for gateway in 0..self.processes.len() {
                self.time_out_overdue_calls(gateway).await?;
            }
            if self.lists >= MAX_LISTS {
                break;
            }
            self.record(&format!("{step:?}"));
            self.step(step).await?;
        }
        self.pass(LEASE + LONGEST_PAUSE).await
    }

    async fn step(&mut self, step: &Step) -> Result<(), String> {
        self.is_calm &= matches!(
            step,
            Step::Request { directives: RequestDirectives::None, .. }
                | Step::Fetch { .. }
                | Step::Complete { outcome: Outcome::Regular { .. }, .. }
                | Step::Read { .. }
                | Step::Pass(_)
        );
        match *step.clone().on(self.processes.len()) {
            Step::Request { gateway, key, caller, directives } => {
                self.request(gateway, key, caller, directives, false).await.map(|_| ())
            }
            Step::Unsafe { gateway, key, caller } => {
                self.request(gateway, key, caller, RequestDirectives::None, true).await.map(|_| ())
            }
            Step::Fetch { gateway, key, caller } => {
                let id = self.request(gateway, key, caller, RequestDirectives::None, false).await?;
                match self.processes[gateway].upstream.in_flight().contains(&id) {
                    true => self.complete(gateway, id, &Outcome::Regular { as_sent: false }).await,
                    false => Ok(()),
                }
            }
            Step::Complete { gateway, call, ref outcome } => {
                let in_flight = self.processes[gateway].upstream.in_flight();
                if in_flight.is_empty() {
                    return Ok(());
                }
                self.complete(gateway, in_flight[call % in_flight.len()], outcome).await
            }
            Step::Pass(span) => self.pass(span).await,
            Step::PassGrant(more) => self.pass(self.settings.grant_ttl + more).await,
            Step::Jump(jump) => self.jump(jump).await,
            Step::Change(ref change) => {
                self.history.change(self.now, change);
                Ok(())
            }
            Step::Purge { gateway, operation, project } => self.purge(gateway, operation, project).await,
            Step::Kill(gateway) => {
                self.count("killed gateway");
                self.replace(gateway).await.map(|_| ())
            }
            Step::Restart(gateway, down) => {
                self.count("restarted gateway");
                self.processes[gateway].gateway.end_snapshot().await;
                let (ended, before) = (self.now, self.replace(gateway).await?);
                self.pass(down).await?;
                let process = &mut self.processes[gateway];
                process.gateway.restore_snapshot().await;
                process.property = before.restarted(ended);
                self.observe().await
            }
            Step::Read { gateway, most, again } => self.read(gateway, most, again).await,
            Step::Engine(ref fault) => self.spoil(fault).await,
        }
    }

    /// The time by timers.
    fn timer_now(&self) -> Ms {
        self.now - self.jumped
    }

    /// Another process takes the place of one. Returns what is known of that.
    async fn replace(&mut self, gateway: GatewayId) -> Result<Property, String> {
        let process = self.start(gateway);
        let mut killed = std::mem::replace(&mut self.processes[gateway], process);
        killed.kill();
        self.forsaken_until = self.timer_now() + LEASE + LONGEST_PAUSE;
        let property = std::mem::replace(&mut killed.property, Property::new(self.settings));
        self.killed.push(killed);
        self.observe().await?;
        Ok(property)
    }

    /// The engine does something wrong, or is well again.
    async fn spoil(&mut self, fault: &Fault) -> Result<(), String> {
        match *fault {
            Fault::Mode(mode) => {
                self.engine.set_mode(mode);
                self.forsaken_until = self.timer_now() + LEASE + LONGEST_PAUSE;
                if matches!(mode, Mode::Well | Mode::Slow) {
                    self.tell_again();
                    for process in &mut self.processes {
                        self.told.extend(process.to_tell.drain(..).map(|selection| (self.now, selection)));
                    }
                }
            }
            Fault::Lose(pick) => self.engine.lose(pick),
            Fault::Flush => {
                self.engine.flush();
                // Whatever comes from before is void.
                self.told.push((self.now, [true; SCOPES.len()]));
                if matches!(self.engine.mode(), Mode::Well | Mode::Slow) {
                    self.tell_again();
                }
            }
            // Then gateways know only what they have seen themselves.
            Fault::ForgetVoided => {
                // Who has missed a notice has only the engine to know it from.
                let knows_all = |process: &Process| process.link.has_read_all() && !process.property.has_missed();
                if self.processes.iter().all(knows_all) {
                    self.engine.forget_voided();
                    self.told.clear();
                }
            }
            Fault::LoseLog => self.engine.lose_log(),
            Fault::Delay(is_delaying) => self.engine.delay(is_delaying),
            Fault::Repeat(pick, label) => self.engine.repeat(pick, label),
            Fault::Swap(one, other) => self.engine.swap(one, other),
            Fault::Clock(by) => {
                self.engine.move_clock(by);
                self.last_move = self.now;
                if by < 0 {
                    self.set_back[1].push((self.real(), by.unsigned_abs()));
                }
            }
        }
        self.observe().await
    }

    /// A clock of the machine jumps. The gateways read the time immediately.
    async fn jump(&mut self, jump: Jump) -> Result<(), String> {
        match jump {
            Jump::Suspension(by) => {
                self.clock.suspend(Duration::from_millis(by));
                self.engine.move_clock(by.cast_signed());
                self.suspended += by;
            }
            Jump::Boot(_) => unreachable!("no sequence has it"),
            Jump::WallForward(by) => self.clock.advance_wall(Duration::from_millis(by)),
            Jump::WallBack(by) => {
                self.clock.set_wall_back(Duration::from_millis(by));
                self.set_back[0].push((self.real(), by));
            }
        }
        let _ = Clock::Manual(self.clock.clone()).now();
        let (by, _) = self.clocks.jump(jump);
        self.now += by;
        self.jumped += by;
        self.last_move = self.now;
        self.processes.iter_mut().for_each(|process| process.property.jumped(by));
        self.observe().await
    }

    /// What a gateway has learnt makes records void: it tells the engine, now or when that answers again.
    fn make_void(&mut self, gateway: GatewayId, selection: Selection) {
        match self.engine.mode() {
            Mode::Well | Mode::Slow => self.told.push((self.now, selection)),
            Mode::Away | Mode::Hangs => self.processes[gateway].to_tell.push(selection),
        }
    }

    async fn purge(
        &mut self,
        gateway: GatewayId,
        operation: Option<ScopeId>,
        project: Option<ScopeId>,
    ) -> Result<(), String> {
        self.count("purge beside a second tier");
        let (operation, project) = (operation.map(|it| SCOPES[it].operation), project.map(|it| SCOPES[it].project));
        let (name, id) = (operation.map(str::to_owned), project.map(str::to_owned));
        let selected = |scope: ScopeId| {
            operation.is_none_or(|name| name == SCOPES[scope].operation)
                && project.is_none_or(|id| id == SCOPES[scope].project)
        };
        let process = &mut self.processes[gateway];
        process.gateway.purge(&PurgeSelection { operation: name, project_id: id, query: None });
        process.property.purged(self.now, selected);
        if project.is_none() {
            process.property.purged_whole(operation);
        }
        let selection = std::array::from_fn(selected);
        self.make_void(gateway, selection);
        let whole = project.is_none().then_some(operation);
        self.expect(gateway, vec![Expected::always(Meaning::Purged(selection, whole))]);
        self.observe().await
    }

    /// A client sends a request. Returns its number. If the tier can answer it, it must.
    async fn request(
        &mut self,
        gateway: GatewayId,
        key: KeyId,
        caller: CallerId,
        directives: RequestDirectives,
        is_unsafe: bool,
    ) -> Result<RequestId, String> {
        let must_be_hit = directives == RequestDirectives::None && !is_unsafe && self.can_answer(gateway, key, caller);
        let process = &mut self.processes[gateway];
        let (id, spelling, is_direct, if_none_match) = (process.next, Spelling::Plain, true, None);
        let request = CacheRequest { id, caller, key, is_unsafe, is_direct, spelling, directives, if_none_match };
        process.property.requested(request, self.now);
        process.send(request, self.start, (self.now - self.jumped, self.jumped), &self.activity);
        self.observe().await?;
        if must_be_hit {
            self.count("answered because of the second tier");
            if self.processes[gateway].waiting.contains(&id) {
                return Err(format!("RULES: the second tier has what #{id} of gateway {gateway} needs"));
            }
        }
        Ok(id)
    }

    /// Whether a request must be answered from the tier, or from what a snapshot had.
    fn can_answer(&self, gateway: GatewayId, key: KeyId, caller: CallerId) -> bool {
        let process = &self.processes[gateway];
        let place = self.places.iter().find(|(_, its)| **its == key).filter(|_| self.engine.mode() == Mode::Well);
        let record = place.and_then(|(place, _)| self.engine.holds(place));
        let in_tier = record.and_then(|record| self.sources.get(&record)).map(|source| source.sent);
        let may_have = |sent: Ms| {
            let is_young = self.now - sent + SKEW < Settings::ttl(scope_of(key));
            let may_be_refused = process.property.may_prevent_copy(key, sent.saturating_sub(SKEW), self.now);
            is_young && self.last_move < sent && !may_be_refused
        };
        process.waiting.is_empty()
            && process.upstream.in_flight().is_empty()
            && (process.property.own_proof(caller, scope_of(key), self.settings.grant_ttl, self.now).is_some()
                || self.can_borrow(process, caller, scope_of(key)))
            && in_tier.into_iter().chain(process.property.kept(key)).any(may_have)
    }

    /// Whether a gateway must use the proof of another one.
    fn can_borrow(&self, process: &Process, caller: CallerId, scope: ScopeId) -> bool {
        let place = self.grant_places.iter().find(|(_, its)| **its == (caller, scope));
        let record = place.filter(|_| self.engine.mode() == Mode::Well).and_then(|(place, _)| self.engine.holds(place));
        let proof = record.and_then(|record| self.proofs.get(&record));
        proof.is_some_and(|proof| {
            let is_young = self.now - proof.sent + SKEW < self.settings.grant_ttl;
            is_young && self.last_move < proof.sent && !process.property.knows_denial(caller)
        }) && process.property.is_in_sync(self.now + LONGEST_LOOK_UP)
    }

    /// Whether a request whose call has failed must be answered from what a snapshot had.
    fn can_be_stale(&self, gateway: GatewayId, id: RequestId) -> bool {
        let Process { property, waiting, .. } = &self.processes[gateway];
        self.last_move == 0 && waiting.contains(&id) && property.must_be_kept_for(id, SKEW, self.now)
    }

    async fn time_out_overdue_calls(&mut self, gateway: GatewayId) -> Result<(), String> {
        loop {
            let latest = (self.now - self.jumped).checked_sub(Settings::ANSWER_TIMEOUT);
            let is_overdue = |call: &&Call| latest.is_some_and(|latest| call.sent <= latest);
            let Some(call) = self.processes[gateway].calls.iter().find(is_overdue) else { return Ok(()) };
            let id = call.id;
            // For a while each gateway makes its own calls.
            self.is_calm = false;
            self.complete(gateway, id, &Outcome::TimedOut).await?;
        }
    }

    /// A call in flight completes. Its response may be stored in the tier.
    async fn complete(&mut self, gateway: GatewayId, id: RequestId, outcome: &Outcome) -> Result<(), String> {
        self.lists += 1;
        self.history.change(self.now, &Change::Catalogue(self.lists));
        let process = &mut self.processes[gateway];
        let result = process.property.answer(id, outcome, &self.history);
        let event = format!("    the call of #{id} of gateway {gateway} completes: {result:?}");
        self.expected = (process.number, denials(&process.property, id, &result, self.settings.grant_ttl, self.now));
        let request = process.property.request_of(id);
        let before: Vec<_> =
            (0..SCOPES.len()).map(|scope| (process.property.varies(scope), process.property.changed(scope))).collect();
        process.property.completed(id, self.now, &result);
        let call = process.calls.iter().position(|call| call.id == id);
        let real_sent = call.map_or(0, |call| process.calls.remove(call).real_sent);
        let after = |scope: ScopeId| (process.property.varies(scope), process.property.changed(scope));
        let voided: Selection =
            std::array::from_fn(|scope| after(scope).0 && !before[scope].0 || after(scope).1 != before[scope].1);
        let varies = after(scope_of(request.key)).0 && !before[scope_of(request.key)].0;
        let proof = process.property.proof_of(id);
        let proof = proof.map(|(caller, scope, sent)| ProofSource { caller, scope, sent, real_sent });
        self.expected.1.extend(entries_voided(&request, &result, voided[scope_of(request.key)], varies));
        let source = process.property.shared(id).map(|(key, list, sent)| Source { key, list, sent, real_sent });
        process.upstream.complete(id, result);
        self.record(&event);
        if voided.contains(&true) {
            self.make_void(gateway, voided);
        }
        let must_be_stale = matches!(outcome, Outcome::Status(500..=504)) && self.can_be_stale(gateway, id);
        self.look(Some(Completed { gateway, id, source, proof })).await?;
        if must_be_stale {
            self.count("stale because of a snapshot");
            if !self.processes[gateway].listed.contains(&id) {
                return Err(format!("RULES: the snapshot had what #{id} of gateway {gateway} needs"));
            }
        }
        Ok(())
    }

    /// Time passes. A request waits no longer for the tier than that allows.
    async fn pass(&mut self, span: Ms) -> Result<(), String> {
        let end = Clock::System.timer_now() + Duration::from_millis(span);
        loop {
            let is_over = tokio::select! {
                biased;
                () = self.activity.notified() => false,
                () = tokio::time::sleep_until(end) => true,
            };
            self.now = milliseconds(Clock::System.timer_now() - self.start) + self.jumped;
            self.observe().await?;
            if is_over {
                break;
            }
        }
        let now = self.timer_now();
        let waits = |process: &&Process| {
            let since = process.idle_since.filter(|since| now > *since + LONGEST_PAUSE);
            since.is_some() && now > self.forsaken_until
        };
        match self.processes.iter().find(waits) {
            Some(process) => Err(format!(
                "RULES: #{} of process {} waits, and no call is in flight",
                process.waiting[0], process.number
            )),
            None => Ok(()),
        }
    }

    async fn observe(&mut self) -> Result<(), String> {
        self.look(None).await
    }
}
