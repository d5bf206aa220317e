//! Runs a sequence: the gateway, its clients, the scripted upstream, and the model beside them. The clock of the
//! runtime advances only in steps. After each step, gateway and model must agree on what happened.
//!
//! Nothing here waits in real time, and nothing runs in parallel. There is one thread, and a step lasts until no task
//! can run.

mod client;
mod events;
mod pacing;

use std::sync::{Arc, LazyLock, Mutex, OnceLock};
use std::time::Duration;

use tokio::sync::Notify;
use tokio::task::{AbortHandle, yield_now};
use tokio::time::Instant;
use workspace_gateway::testing::cache::store::PurgeSelection;
use workspace_gateway::testing::clock::{Clock, ManualClock};
use workspace_gateway::testing::config::Config;
use workspace_gateway::testing::gateway::{Connection, Gateway};

use super::clocks::{Clocks, Jump};
use super::domain::{
    CacheRequest, History, Ms, RequestDirectives, RequestId, SCOPES, Scope, ScopeId, Seconds, Spelling, UpstreamResult,
    UpstreamState, scope_of,
};
use super::limits::{LIMITS, Pacing};
use super::property::Property;
use super::rules::paced::{Happened, Paced};
use super::rules::{Effect, Rules, Tally};
use super::scripted_upstream::{ScriptedUpstream, UpstreamRequest, random};
use super::settings::Settings;
use super::steps::{Edge, Outcome, Pass, Sequence, Step};
use crate::support;
pub use client::{milliseconds, send};
pub use events::ClientResponse;
use events::Event;
pub use events::check_reply;

/// How often the driver yields before a step is over. At each yield the runtime runs tasks until none can run, or about
/// sixty of them. That is several times more than there are.
pub const TURNS: usize = 4;

/// The end of a sequence after which the model cannot say what must follow.
const AMBIGUOUS: &str = "what must follow is not known";

/// What has happened since the last look.
struct Observed {
    started: Vec<UpstreamRequest>,
    relayed: Vec<UpstreamRequest>,
    responses: Vec<ClientResponse>,
}

impl Observed {
    /// The requests whose calls started, in order.
    fn started_ids(&self) -> Vec<RequestId> {
        self.started.iter().map(|call| call.id).collect()
    }
}

struct Driver {
    gateway: Arc<Gateway>,
    connection: Arc<Connection>,
    upstream: Arc<ScriptedUpstream>,
    /// In place of `paced`, if no limit of upstream holds calls back.
    rules: Rules,
    paced: Option<Paced>,
    property: Property,
    settings: Settings,
    history: History,
    start: Instant,
    now: Ms,
    clock: ManualClock,
    clocks: Clocks,
    /// The time that has passed for rules, but not for timers.
    jumped: Ms,
    ignores_deadline: bool,
    next: RequestId,
    clients: Vec<(RequestId, AbortHandle)>,
    responses: Arc<Mutex<Vec<ClientResponse>>>,
    /// Notified when a call starts, a request is relayed, or a client gets a response.
    activity: Arc<Notify>,
    events: Vec<(Ms, Event)>,
}

/// How often each rule applied in a sequence, or the failure.
pub type Verdict = Result<Tally, String>;

/// Runs a sequence from an empty cache to the last response. A panic of the gateway or of the model is a failure of the
/// sequence: the seed and the shrunk sequence are reported as for any other.
pub fn run(sequence: &Sequence) -> Verdict {
    std::panic::catch_unwind(|| run_on_paused_clock(sequence)).unwrap_or_else(|panic| {
        let message = panic.downcast_ref::<String>().map(String::as_str).or(panic.downcast_ref::<&str>().copied());
        Err(format!("RULES: panicked: {}", message.unwrap_or("without a message")))
    })
}

fn run_on_paused_clock(sequence: &Sequence) -> Verdict {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap();
    runtime.block_on(async {
        let (settings, config) = settings_and_config(sequence.settings, sequence.pacing);
        let mut driver = Driver::new(settings, config, sequence);
        let report = match driver.run(&sequence.steps).await {
            Ok(()) => return Ok(driver.tally()),
            // The sequence ends early: the property was checked up to here.
            Err(wrong) if wrong == AMBIGUOUS => return Ok(driver.tally()),
            Err(wrong) => format!("{wrong}\n{settings:?}, {:?}", sequence.pacing),
        };
        let events = driver.events.iter().map(|(at, event)| format!("\n{:>9} {event}", Seconds(*at).to_string()));
        Err(report + &events.collect::<String>())
    })
}

/// Parsing a complete configuration takes longer than a sequence, so each is parsed once.
pub fn settings_and_config(index: usize, pacing: Pacing) -> (Settings, &'static Config) {
    type Configs = [OnceLock<Config>; 1 + LIMITS.len()];
    static ALL: LazyLock<Vec<(Settings, Configs)>> =
        LazyLock::new(|| Settings::all().into_iter().map(|settings| (settings, Configs::default())).collect());
    let (settings, configs) = &ALL[index];
    let place = LIMITS.iter().position(|limit| pacing.configured() == Some(*limit)).map_or(0, |place| 1 + place);
    let text = || settings.to_toml() + &pacing.to_toml();
    (*settings, configs[place].get_or_init(|| support::config("http://w.test", "http://a.test", &text())))
}

impl Driver {
    fn new(settings: Settings, config: &Config, sequence: &Sequence) -> Self {
        let activity = Arc::new(Notify::new());
        let upstream = Arc::new(ScriptedUpstream::new(Arc::clone(&activity)));
        let called: Arc<ScriptedUpstream> = Arc::clone(&upstream);
        let clock = ManualClock::running();
        let gateway_clock = Clock::Manual(clock.clone());
        let gateway = Gateway::with_upstream(called, config, gateway_clock, random()).unwrap();
        let connection = gateway.connection(([127, 0, 0, 1], 8080).into(), [127, 0, 0, 1].into());
        Self {
            gateway,
            connection: Arc::new(connection),
            upstream,
            rules: Rules::new(settings),
            paced: sequence.pacing.is_active().then(|| Paced::new(settings, sequence.pacing)),
            property: Property::new(settings),
            settings,
            history: History::new(UpstreamState::new(sequence.views_differ)),
            start: Clock::System.timer_now(),
            now: 0,
            clock,
            clocks: Clocks::default(),
            jumped: 0,
            ignores_deadline: sequence.ignores_deadline,
            next: 0,
            clients: Vec::new(),
            responses: Arc::default(),
            activity,
            events: Vec::new(),
        }
    }

    fn record(&mut self, event: Event) {
        self.events.push((self.now, event));
    }

    fn rules(&self) -> &Rules {
        self.paced.as_ref().map_or(&self.rules, Paced::rules)
    }

    fn tally(&self) -> Tally {
        self.paced.as_ref().map_or_else(|| self.rules.tally.clone(), Paced::tally)
    }

    /// Requests without a response.
    fn waiting(&self) -> Vec<RequestId> {
        self.paced.as_ref().map_or_else(|| self.rules.waiting(), Paced::waiting)
    }

    fn is_private(&self, scope: ScopeId) -> bool {
        self.paced.as_ref().map_or_else(|| self.rules.is_private(scope), |paced| paced.is_private(scope))
    }

    async fn run(&mut self, steps: &[Step]) -> Result<(), String> {
        for step in steps {
            self.pass(1).await?;
            self.time_out_overdue_calls().await?;
            self.record(Event::Step(step.clone()));
            self.step(step).await?;
        }
        self.rest().await?;
        while let Some(&id) = self.rules().in_flight().first() {
            self.pass(1).await?;
            self.complete(&[(id, &Outcome::Regular { as_sent: false })]).await?;
            self.rest().await?;
        }
        match self.waiting().first() {
            Some(id) => Err(format!("RULES: #{id} waits, and no call is in flight")),
            None => Ok(()),
        }
    }

    async fn step(&mut self, step: &Step) -> Result<(), String> {
        match step {
            Step::Requests { key, callers, is_direct, varies_spelling, directives, if_none_match } => {
                let mut requests = Vec::new();
                for &caller in callers {
                    let id = self.next;
                    self.next += 1;
                    let spelling = if *varies_spelling { Spelling::of(id) } else { Spelling::Plain };
                    let (key, is_direct, directives, if_none_match) = (*key, *is_direct, *directives, *if_none_match);
                    let request = CacheRequest {
                        id,
                        caller,
                        key,
                        is_unsafe: false,
                        is_direct,
                        spelling,
                        directives,
                        if_none_match,
                    };
                    self.send_request(request);
                    requests.push(request);
                }
                self.receive(&requests).await?;
            }
            Step::UnsafeRequest { key, caller } => {
                let (id, caller, key, directives) = (self.next, *caller, *key, RequestDirectives::None);
                self.next += 1;
                let spelling = Spelling::Plain;
                let request = CacheRequest {
                    id,
                    caller,
                    key,
                    is_unsafe: true,
                    is_direct: true,
                    spelling,
                    directives,
                    if_none_match: None,
                };
                self.send_request(request);
                self.receive(&[request]).await?;
            }
            Step::Complete(ends) => {
                let mut in_flight = self.rules().in_flight();
                let mut chosen = Vec::new();
                for (pick, outcome) in ends {
                    if !in_flight.is_empty() {
                        chosen.push((in_flight.remove(pick % in_flight.len()), outcome));
                    }
                }
                self.complete(&chosen).await?;
            }
            Step::Head(pick, outcome) => {
                let in_flight = self.rules().in_flight();
                if !in_flight.is_empty() {
                    self.deliver_head(in_flight[pick % in_flight.len()], outcome).await?;
                }
            }
            Step::Series { outcome, purges } => {
                for _ in 0..6 {
                    let Some(id) = self.rules().most_awaited() else { break };
                    if *purges {
                        self.purge(None, None).await?;
                    }
                    self.complete(&[(id, outcome)]).await?;
                    self.pass(1).await?;
                }
            }
            Step::Pass(Pass::Span(span)) => self.pass(*span).await?,
            Step::Pass(Pass::Until(pick, edge)) => {
                let expiry_times = self.paced.as_ref().map_or_else(|| self.rules.expiry_times(), Paced::expiry_times);
                if !expiry_times.is_empty() {
                    // One millisecond passes before the next step.
                    let milliseconds_early = match edge {
                        Edge::Before => 2,
                        Edge::At => 1,
                        Edge::After => 0,
                    };
                    let to = expiry_times[pick % expiry_times.len()].saturating_sub(milliseconds_early);
                    self.pass(to.saturating_sub(self.now)).await?;
                }
            }
            Step::Jump(jump) => self.jump(*jump).await?,
            Step::Change(change) => {
                self.history.change(self.now, change);
            }
            Step::Disconnect(pick) => {
                let waiting = self.waiting();
                if !waiting.is_empty() {
                    let id = waiting[pick % waiting.len()];
                    self.record(Event::Disconnected(id));
                    self.rules.disconnect(id);
                    self.paced.iter_mut().for_each(|paced| paced.disconnect(id));
                    let client = self.clients.iter().find(|(client, _)| *client == id);
                    client.expect("a waiting client has sent its request").1.abort();
                    self.expect(Vec::new()).await?;
                    self.upstream.forget();
                }
            }
            Step::Purge { operation, project } => {
                let operation = operation.map(|scope| SCOPES[scope].operation);
                self.purge(operation, project.map(|scope| SCOPES[scope].project)).await?;
            }
        }
        Ok(())
    }

    /// A clock jumps. The gateway reads the time immediately: otherwise a second jump could undo the first unnoticed.
    async fn jump(&mut self, jump: Jump) -> Result<(), String> {
        match jump {
            Jump::Suspension(by) => self.clock.suspend(Duration::from_millis(by)),
            Jump::Boot(by) => self.clock.advance_boot(Duration::from_millis(by)),
            Jump::WallForward(by) => self.clock.advance_wall(Duration::from_millis(by)),
            Jump::WallBack(by) => self.clock.set_wall_back(Duration::from_millis(by)),
        }
        let _ = Clock::Manual(self.clock.clone()).now();
        let (by, rule) = self.clocks.jump(jump);
        self.now += by;
        self.jumped += by;
        self.rules.jump(by, rule);
        self.paced.iter_mut().for_each(|paced| paced.jump(by, rule));
        self.property.jumped(by);
        self.expect(Vec::new()).await
    }

    async fn purge(&mut self, operation: Option<&str>, project: Option<&str>) -> Result<(), String> {
        let (name, id) = (operation.map(str::to_owned), project.map(str::to_owned));
        self.gateway.purge(&PurgeSelection { operation: name, project_id: id, query: None });
        let is_selected = |scope| {
            let Scope { operation: scope_operation, project: scope_project, .. } = SCOPES[scope];
            operation.is_none_or(|name| name == scope_operation) && project.is_none_or(|id| id == scope_project)
        };
        self.rules.purge(operation, project);
        self.paced.iter_mut().for_each(|paced| paced.purge(operation, project));
        self.property.purged(self.now, is_selected);
        if project.is_none() {
            self.property.purged_whole(operation);
        }
        self.expect(Vec::new()).await
    }

    /// A client sends a request and reads the response.
    fn send_request(&mut self, request: CacheRequest) {
        self.record(Event::Request(request));
        self.property.requested(request, self.now);
        let (responses, activity) = (Arc::clone(&self.responses), Arc::clone(&self.activity));
        let deliver = move |response| {
            responses.lock().unwrap().push(response);
            activity.notify_one();
        };
        let gateway = (&self.gateway, &self.connection);
        let client = client::send(gateway, request, self.start, self.now - self.jumped, deliver);
        self.clients.push((request.id, client));
    }

    /// Requests have been sent.
    async fn receive(&mut self, requests: &[CacheRequest]) -> Result<(), String> {
        if self.paced.is_some() {
            return self.follow(Happened::Requests(requests)).await;
        }
        let mut effects = Vec::new();
        for request in requests {
            effects.extend(self.rules.receive(*request).map_err(|wrong| format!("RULES: {wrong}"))?);
        }
        self.expect(effects).await
    }

    /// The result of a call in flight. Only in sequences in which calls are held back, upstream names its limits.
    fn result_of(&self, id: RequestId, outcome: &Outcome) -> UpstreamResult {
        match outcome {
            Outcome::Throttled(_) if self.paced.is_none() => {
                self.property.answer(id, &Outcome::Status(429), &self.history)
            }
            // Here the gateway follows none by waiting.
            Outcome::RetryAfter(429, Some(after)) if self.paced.is_none() => {
                let outcome = Outcome::RetryAfter(429, Some(after + Settings::ANSWER_TIMEOUT));
                self.property.answer(id, &outcome, &self.history)
            }
            outcome => self.property.answer(id, outcome, &self.history),
        }
    }

    /// Calls in flight complete at the same moment. The model checks which requests start calls then; it does not
    /// predict them.
    async fn complete(&mut self, ends: &[(RequestId, &Outcome)]) -> Result<(), String> {
        let mut completed = Vec::new();
        for &(id, outcome) in ends {
            let result = self.result_of(id, outcome);
            self.record(Event::Completed(id, result.clone()));
            if !self.upstream.complete(id, result.clone()) {
                return Err(format!("RULES: the call of #{id} was cancelled"));
            }
            self.property.completed(id, self.now, &result);
            completed.push((id, result));
        }
        if self.paced.is_some() {
            return self.follow(Happened::Completed(&completed)).await;
        }
        let observed = self.observe().await?;
        let effects =
            self.rules.complete(&completed, &observed.started_ids()).map_err(|wrong| format!("RULES: {wrong}"))?;
        self.compare(effects, &observed)
    }

    /// The head of a refusal arrives for a call in flight. Any other response completes the call.
    async fn deliver_head(&mut self, id: RequestId, outcome: &Outcome) -> Result<(), String> {
        let result = self.result_of(id, outcome);
        if !self.rules().may_have_head(id) || result.denial().is_none() {
            return self.complete(&[(id, outcome)]).await;
        }
        self.record(Event::HeadDelivered(id, result.clone()));
        if !self.upstream.deliver_head(id, result.clone()) {
            return Err(format!("RULES: the call of #{id} was cancelled"));
        }
        self.property.head_delivered(id, self.now, &result);
        if self.paced.is_some() {
            return self.follow(Happened::Head(id, &result)).await;
        }
        let observed = self.observe().await?;
        let effects =
            self.rules.deliver_head(id, &result, &observed.started_ids()).map_err(|wrong| format!("RULES: {wrong}"))?;
        self.compare(effects, &observed)
    }

    /// Time passes, in steps of the moments at which a call may start.
    async fn pass(&mut self, span: Ms) -> Result<(), String> {
        if self.paced.is_some() {
            return self.pass_paced(span).await;
        }
        let end = self.now + span;
        loop {
            let next = self.rules.next_call_time().map_or(end, |time| time.min(end));
            if next > self.now {
                tokio::time::sleep(Duration::from_millis(next - self.now)).await;
                self.now = next;
            }
            let observed = self.observe().await?;
            let effects =
                self.rules.pass(self.now, &observed.started_ids()).map_err(|wrong| format!("RULES: {wrong}"))?;
            self.compare(effects, &observed)?;
            if self.now == end {
                return Ok(());
            }
        }
    }

    /// Ends the calls that the gateway's HTTP client would have timed out by now.
    async fn time_out_overdue_calls(&mut self) -> Result<(), String> {
        while !self.ignores_deadline
            && let Some(id) = self.rules().overdue()
        {
            self.complete(&[(id, &Outcome::TimedOut)]).await?;
        }
        Ok(())
    }

    /// Checks that exactly these effects happen.
    async fn expect(&mut self, effects: Vec<Effect>) -> Result<(), String> {
        if self.paced.is_some() {
            return self.follow(Happened::Other).await;
        }
        let observed = self.observe().await?;
        self.compare(effects, &observed)
    }

    /// Runs all tasks until none can run. Checks the property before the model is compared.
    async fn observe(&mut self) -> Result<Observed, String> {
        for _ in 0..TURNS {
            yield_now().await;
        }
        let (started, relayed) = self.upstream.take_started();
        for &call in &started {
            self.record(Event::Started(call));
        }
        for &request in &relayed {
            self.record(Event::Relayed(request));
            self.property.relayed(request, self.now, &self.history);
        }
        let mut responses = std::mem::take(&mut *self.responses.lock().unwrap());
        responses.iter_mut().for_each(|response| response.at += self.jumped);
        self.events.extend(responses.iter().map(|response| (response.at, Event::Response(response.clone()))));
        for response in &responses {
            self.property.check(response, &self.history, self.is_private(scope_of(response.request.key)))?;
        }
        Ok(Observed { started, relayed, responses })
    }

    /// Checks the calls that have started. Only after the model is it known whether callers still share their calls.
    fn check_started(&mut self, observed: &Observed) -> Result<(), String> {
        for &call in &observed.started {
            let is_private = self.is_private(scope_of(call.key));
            let may_have_waited = self.paced.is_some();
            self.property.started(call, is_private, may_have_waited, self.now, &self.history)?;
        }
        Ok(())
    }

    /// The time by timers.
    fn timer_now(&self) -> Ms {
        milliseconds(Clock::System.timer_now() - self.start)
    }

    /// Compares what happened with what the model expects.
    fn compare(&mut self, effects: Vec<Effect>, observed: &Observed) -> Result<(), String> {
        self.check_started(observed)?;
        let (mut calls, mut relays, mut replies) = (Vec::new(), Vec::new(), Vec::new());
        for effect in effects {
            match effect {
                Effect::Call(call) => calls.push(call),
                Effect::Relay(request) => relays.push(request),
                Effect::Answer(id, reply) => replies.push((id, reply)),
            }
        }
        let Observed { started, relayed, responses } = observed;
        // The model does not predict the order of calls.
        calls.sort_by_key(|call| started.iter().position(|other| other.id == call.id));
        if calls != *started {
            return Err(format!("RULES: expected the calls {calls:?}, got {started:?}"));
        }
        if relays.iter().any(|request| !relayed.contains(request)) || relays.len() != relayed.len() {
            return Err(format!("RULES: expected to relay {relays:?}, got {relayed:?}"));
        }
        for response in responses {
            let id = response.request.id;
            let Some(index) = replies.iter().position(|(replied, _)| *replied == id) else {
                return Err(format!("RULES: #{id} got a response, expected it to wait"));
            };
            let (_, reply) = replies.swap_remove(index);
            check_reply(response, &reply, &self.settings)
                .map_err(|wrong| format!("RULES: #{id}: {wrong}, expected {reply:?}"))?;
        }
        match replies.first() {
            Some((id, reply)) => Err(format!("RULES: #{id} still waits, expected {reply:?}")),
            None if self.rules.is_ambiguous => Err(AMBIGUOUS.to_owned()),
            None => Ok(()),
        }
    }
}
