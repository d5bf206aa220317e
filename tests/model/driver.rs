//! Runs a sequence: the gateway, its clients and the scripted upstream on a runtime whose clock stands
//! still unless a step moves it, and the model beside them. After each step both must agree on what
//! happened.
//!
//! Nothing here waits in real time, and nothing runs at the same time as anything else: one thread,
//! and each step goes on until no task can.

mod story;

use std::future::poll_fn;
use std::sync::{Arc, LazyLock, Mutex, OnceLock};
use std::time::Duration;

use bytes::Bytes;
use http::response;
use http::{Method, Request, Response};
use http_body_util::{BodyExt, Empty};
use tokio::task::{AbortHandle, yield_now};
use tokio::time::Instant;
use workspace_gateway::testing::cache::store::PurgeSelection;
use workspace_gateway::testing::clock::{Clock, ManualClock};
use workspace_gateway::testing::config::Config;
use workspace_gateway::testing::fast_path::{Responder, ResponderState};
use workspace_gateway::testing::gateway::{Connection, Gateway};

use super::clocks::{Clocks, Jump};
use super::property::Property;
use super::rules::{Effect, Rules, Tally};
use super::script::{Begun, Script, X_NUMBER, random, trail};
use super::settings::Settings;
use super::steps::{Edge, Outcome, Pass, Sequence, Step};
use super::world::{
    CacheRequest, History, KEYS, Ms, RequestDirectives, RequestId, SCOPES, Scope, Seconds, Spelling, Truth, scope_of,
};
use crate::support;
pub use story::Done;
use story::{Event, agree};

/// How often the driver steps aside before a step is over. Each time the runtime runs tasks until none
/// can run, or until it has run some sixty: far more than there are, a few times over.
const TURNS: usize = 4;

/// A connection by which the next request may come.
const FREE: ResponderState = ResponderState { is_free: true, is_closing: false };

/// What has happened since one looked last: calls, relayed requests, answers.
struct News {
    begun: Vec<Begun>,
    relayed: Vec<Begun>,
    done: Vec<Done>,
}

impl News {
    /// The requests whose calls began, in order.
    fn seen(&self) -> Vec<RequestId> {
        self.begun.iter().map(|begun| begun.id).collect()
    }
}

struct Driver {
    gateway: Arc<Gateway>,
    connection: Arc<Connection>,
    script: Arc<Script>,
    rules: Rules,
    property: Property,
    history: History,
    began: Instant,
    now: Ms,
    clock: ManualClock,
    clocks: Clocks,
    /// How much time has passed for rules that timers have not seen.
    jumped: Ms,
    lingers: bool,
    next: RequestId,
    clients: Vec<(RequestId, AbortHandle)>,
    done: Arc<Mutex<Vec<Done>>>,
    story: Vec<(Ms, Event)>,
}

/// How often each rule had a say in a sequence, or what was wrong.
pub type Verdict = Result<Tally, String>;

/// Runs a sequence from an empty cache to the last answer. A panic of the gateway or of the model is a failure of the
/// sequence: the seed and the smallest sequence are then reported as for any other.
pub fn run(sequence: &Sequence) -> Verdict {
    std::panic::catch_unwind(|| play(sequence)).unwrap_or_else(|panic| {
        let message = panic.downcast_ref::<String>().map(String::as_str).or(panic.downcast_ref::<&str>().copied());
        Err(format!("RULES: panicked: {}", message.unwrap_or("without a message")))
    })
}

fn play(sequence: &Sequence) -> Verdict {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap();
    runtime.block_on(async {
        let (settings, config) = settings_and_config(sequence.settings);
        let mut driver = Driver::new(settings, config, Truth::new(sequence.views_differ), sequence.lingers);
        let told = match driver.play(&sequence.steps).await {
            Ok(()) => return Ok(driver.rules.tally),
            Err(wrong) => format!("{wrong}\n{settings:?}"),
        };
        let story = driver.story.iter().map(|(at, event)| format!("\n{:>9} {event}", Seconds(*at).to_string()));
        Err(told + &story.collect::<String>())
    })
}

/// Reading a file with all settings is more work than a whole sequence, so each is read once.
fn settings_and_config(index: usize) -> (Settings, &'static Config) {
    static ALL: LazyLock<Vec<(Settings, OnceLock<Config>)>> =
        LazyLock::new(|| Settings::all().into_iter().map(|settings| (settings, OnceLock::new())).collect());
    let (settings, config) = &ALL[index];
    (*settings, config.get_or_init(|| support::config("http://w.test", "http://a.test", &settings.to_toml())))
}

impl Driver {
    fn new(settings: Settings, config: &Config, truth: Truth, lingers: bool) -> Self {
        let script = Arc::new(Script::default());
        let upstream: Arc<Script> = Arc::clone(&script);
        let clock = ManualClock::running();
        let shown = Clock::Manual(clock.clone());
        let gateway = Gateway::before(upstream, config, shown, random()).unwrap();
        let connection = gateway.connection(([127, 0, 0, 1], 8080).into(), [127, 0, 0, 1].into());
        Self {
            gateway,
            connection: Arc::new(connection),
            script,
            rules: Rules::new(settings),
            property: Property::new(settings),
            history: History::new(truth),
            began: Clock::System.timer_now(),
            now: 0,
            clock,
            clocks: Clocks::default(),
            jumped: 0,
            lingers,
            next: 0,
            clients: Vec::new(),
            done: Arc::default(),
            story: Vec::new(),
        }
    }

    fn tell(&mut self, event: Event) {
        self.story.push((self.now, event));
    }

    async fn play(&mut self, steps: &[Step]) -> Result<(), String> {
        for step in steps {
            self.pass(1).await?;
            self.keep_deadlines().await?;
            self.tell(Event::Step(step.clone()));
            self.step(step).await?;
        }
        while let Some(&id) = self.rules.in_the_air().first() {
            self.pass(1).await?;
            self.land(&[(id, &Outcome::Truth { as_sent: false })]).await?;
        }
        match self.rules.waiting().first() {
            Some(id) => Err(format!("#{id} waits for nothing")),
            None => Ok(()),
        }
    }

    async fn step(&mut self, step: &Step) -> Result<(), String> {
        match step {
            Step::Ask { key, callers, is_plain, is_odd, wish, has } => {
                let mut effects = Vec::new();
                for &caller in callers {
                    let id = self.next;
                    self.next += 1;
                    let spelling = if *is_odd { Spelling::of(id) } else { Spelling::Plain };
                    let (key, is_plain, wish, has) = (*key, *is_plain, *wish, *has);
                    let question = CacheRequest { id, caller, key, is_unsafe: false, is_plain, spelling, wish, has };
                    self.come_in(question);
                    effects.extend(self.rules.ask(question).map_err(|wrong| format!("RULES: {wrong}"))?);
                }
                self.expect(effects).await?;
            }
            Step::Write { key, caller } => {
                let (id, caller, key, wish) = (self.next, *caller, *key, RequestDirectives::Nothing);
                self.next += 1;
                let spelling = Spelling::Plain;
                let question =
                    CacheRequest { id, caller, key, is_unsafe: true, is_plain: true, spelling, wish, has: None };
                self.come_in(question);
                let effects = self.rules.ask(question).map_err(|wrong| format!("RULES: {wrong}"))?;
                self.expect(effects).await?;
            }
            Step::Land(ends) => {
                let mut air = self.rules.in_the_air();
                let mut chosen = Vec::new();
                for (pick, outcome) in ends {
                    if !air.is_empty() {
                        chosen.push((air.remove(pick % air.len()), outcome));
                    }
                }
                self.land(&chosen).await?;
            }
            Step::Head(pick, outcome) => {
                let air = self.rules.in_the_air();
                if !air.is_empty() {
                    self.land_head(air[pick % air.len()], outcome).await?;
                }
            }
            Step::Series { outcome, purges } => {
                for _ in 0..6 {
                    let Some(id) = self.rules.fullest() else { break };
                    if *purges {
                        self.purge(None, None).await?;
                    }
                    self.land(&[(id, outcome)]).await?;
                    self.pass(1).await?;
                }
            }
            Step::Pass(Pass::Span(span)) => self.pass(*span).await?,
            Step::Pass(Pass::Until(pick, edge)) => {
                let moments = self.rules.moments();
                if !moments.is_empty() {
                    // Whatever the next step does, it does a millisecond later.
                    let early = match edge {
                        Edge::Before => 2,
                        Edge::At => 1,
                        Edge::After => 0,
                    };
                    let to = moments[pick % moments.len()].saturating_sub(early);
                    self.pass(to.saturating_sub(self.now)).await?;
                }
            }
            Step::Jump(jump) => self.jump(*jump).await?,
            Step::Change(change) => {
                self.history.change(self.now, change);
            }
            Step::HangUp(pick) => {
                let waiting = self.rules.waiting();
                if !waiting.is_empty() {
                    let id = waiting[pick % waiting.len()];
                    self.tell(Event::HungUp(id));
                    self.rules.hang_up(id);
                    let client = self.clients.iter().find(|(client, _)| *client == id);
                    client.expect("who waits has come in").1.abort();
                    self.expect(Vec::new()).await?;
                    self.script.forget();
                }
            }
            Step::Purge { operation, project } => {
                let operation = operation.map(|scope| SCOPES[scope].operation);
                self.purge(operation, project.map(|scope| SCOPES[scope].project)).await?;
            }
        }
        Ok(())
    }

    /// A clock jumps. Who asks for the time sees it: nobody could tell a jump from one that another has undone.
    async fn jump(&mut self, jump: Jump) -> Result<(), String> {
        match jump {
            Jump::Suspension(by) => self.clock.suspend(Duration::from_millis(by)),
            Jump::Boot(by) => self.clock.advance_boot(Duration::from_millis(by)),
            Jump::WallForward(by) => self.clock.advance_wall(Duration::from_millis(by)),
            Jump::WallBack(by) => self.clock.set_wall_back(Duration::from_millis(by)),
        }
        let _ = Clock::Manual(self.clock.clone()).now();
        let (by, name) = self.clocks.jump(jump);
        self.now += by;
        self.jumped += by;
        self.rules.jump(by, name);
        self.property.jumped(by);
        self.expect(Vec::new()).await
    }

    /// The operator purges.
    async fn purge(&mut self, operation: Option<&str>, project: Option<&str>) -> Result<(), String> {
        let (name, id) = (operation.map(str::to_owned), project.map(str::to_owned));
        self.gateway.purge(&PurgeSelection { operation: name, project_id: id, query: None });
        let is_selected = |scope| {
            let Scope { operation: its_operation, project: its_project, .. } = SCOPES[scope];
            operation.is_none_or(|name| name == its_operation) && project.is_none_or(|id| id == its_project)
        };
        self.rules.purge(operation, project);
        self.property.purged(self.now, is_selected);
        if project.is_none() {
            self.property.purged_whole(operation);
        }
        self.expect(Vec::new()).await
    }

    /// A client sends a request and reads the answer.
    fn come_in(&mut self, request: CacheRequest) {
        self.tell(Event::Lookup(request));
        self.property.asked(request, self.now);
        let (gateway, connection) = (Arc::clone(&self.gateway), Arc::clone(&self.connection));
        let (done, began, arrived) = (Arc::clone(&self.done), self.began, self.now - self.jumped);
        let method = match request.id % 3 {
            _ if !request.is_unsafe => Method::GET,
            0 => Method::POST,
            1 => Method::DELETE,
            _ => Method::from_bytes(b"PURGE").unwrap(),
        };
        let asked = Request::builder()
            .method(method)
            .uri(KEYS[request.key].1)
            .version(request.spelling.version())
            .header("host", "gateway.test")
            .header(X_NUMBER, request.id);
        let mut asked = asked.body(Empty::<Bytes>::new()).unwrap();
        for (name, value) in request.spelling.fields(request.caller) {
            asked.headers_mut().append(name, value.parse().unwrap());
        }
        asked.headers_mut().extend(trail(request.is_plain));
        for (name, value) in request.headers() {
            asked.headers_mut().insert(name, value.parse().unwrap());
        }
        // What comes over the wire, but for the number, which is the script's and not the client's.
        let mut seen = asked.headers().clone();
        seen.remove(X_NUMBER);
        let bytes = format!("GET {} {:?}\r\n{seen:?}\r\n\r\n", asked.uri(), asked.version());
        let client = tokio::spawn(async move {
            let mut responder = Responder::new(Arc::clone(&gateway), Arc::clone(&connection));
            let is_known = !request.is_unsafe && responder.take(bytes.as_bytes(), FREE);
            let (head, body) = if is_known {
                let mut response = Vec::new();
                poll_fn(|context| responder.poll_write(&mut response, context)).await.unwrap();
                let end = response.windows(4).position(|bytes| bytes == b"\r\n\r\n").unwrap();
                (read_head(&response[..end]), Bytes::copy_from_slice(&response[end + 4..]))
            } else {
                let (head, body) = gateway.handle(asked, &connection).await.into_parts();
                (head, body.collect().await.unwrap().to_bytes())
            };
            let at = Ms::try_from((Clock::System.timer_now() - began).as_millis()).unwrap();
            let text = |name| head.headers.get(name).map_or("", |value| value.to_str().unwrap()).to_owned();
            let done_with = Done {
                request,
                waited: at - arrived,
                at,
                status: head.status.as_u16(),
                body: String::from_utf8(body.to_vec()).unwrap(),
                cache_status: text("cache-status"),
                has_cookie: !text("set-cookie").is_empty(),
            };
            done.lock().unwrap().push(done_with);
        });
        self.clients.push((request.id, client.abort_handle()));
    }

    /// Calls in the air end at the same moment. Who then begins others is for the model to judge, not to
    /// foretell.
    async fn land(&mut self, ends: &[(RequestId, &Outcome)]) -> Result<(), String> {
        let mut landed = Vec::new();
        for &(id, outcome) in ends {
            let said = self.property.answer(id, outcome, &self.history);
            self.tell(Event::Landed(id, said.clone()));
            if !self.script.land(id, said.clone()) {
                return Err(format!("RULES: the call of #{id} was given up"));
            }
            self.property.landed(id, self.now, &said);
            landed.push((id, said));
        }
        let news = self.news().await?;
        let effects = self.rules.land(&landed, &news.seen()).map_err(|wrong| format!("RULES: {wrong}"))?;
        self.compare(effects, &news)
    }

    /// Of a call in the air the head of a refusal lands. If there is none to come, the call ends.
    async fn land_head(&mut self, id: RequestId, outcome: &Outcome) -> Result<(), String> {
        let said = self.property.answer(id, outcome, &self.history);
        if !self.rules.may_have_head(id) || said.denial().is_none() {
            return self.land(&[(id, outcome)]).await;
        }
        self.tell(Event::HeadLanded(id, said.clone()));
        if !self.script.land_head(id, said.clone()) {
            return Err(format!("RULES: the call of #{id} was given up"));
        }
        self.property.head_landed(id, self.now, &said);
        let news = self.news().await?;
        let effects = self.rules.land_head(id, &said, &news.seen()).map_err(|wrong| format!("RULES: {wrong}"))?;
        self.compare(effects, &news)
    }

    /// Time passes, from one moment at which a call may begin to the next.
    async fn pass(&mut self, span: Ms) -> Result<(), String> {
        let end = self.now + span;
        loop {
            let next = self.rules.next_turn().map_or(end, |turn| turn.min(end));
            if next > self.now {
                tokio::time::sleep(Duration::from_millis(next - self.now)).await;
                self.now = next;
            }
            let news = self.news().await?;
            let effects = self.rules.pass(self.now, &news.seen()).map_err(|wrong| format!("RULES: {wrong}"))?;
            self.compare(effects, &news)?;
            if self.now == end {
                return Ok(());
            }
        }
    }

    /// Ends the calls that the gateway's HTTP client would have given up by now.
    async fn keep_deadlines(&mut self) -> Result<(), String> {
        while !self.lingers
            && let Some(id) = self.rules.overdue()
        {
            self.land(&[(id, &Outcome::TimedOut)]).await?;
        }
        Ok(())
    }

    /// Sees that this happens and nothing else.
    async fn expect(&mut self, effects: Vec<Effect>) -> Result<(), String> {
        let news = self.news().await?;
        self.compare(effects, &news)
    }

    /// Lets everything run that can, and judges what comes of it before the model has a word.
    async fn news(&mut self) -> Result<News, String> {
        for _ in 0..TURNS {
            yield_now().await;
        }
        let (begun, relayed) = self.script.news();
        for &call in &begun {
            self.tell(Event::Began(call));
        }
        for &request in &relayed {
            self.tell(Event::Relayed(request));
            self.property.relayed(request, self.now, &self.history);
        }
        let mut done = std::mem::take(&mut *self.done.lock().unwrap());
        done.iter_mut().for_each(|done| done.at += self.jumped);
        self.story.extend(done.iter().map(|done| (done.at, Event::Done(done.clone()))));
        for done in &done {
            self.property.check(done, &self.history, self.rules.is_private(scope_of(done.request.key)))?;
        }
        Ok(News { begun, relayed, done })
    }

    /// Holds what happened against what had to.
    fn compare(&mut self, effects: Vec<Effect>, news: &News) -> Result<(), String> {
        // Only now is it known whether callers still share their calls.
        for &call in &news.begun {
            let is_private = self.rules.is_private(scope_of(call.key));
            self.property.begun(call, is_private, self.now, &self.history)?;
        }
        let (mut calls, mut relays, mut answers) = (Vec::new(), Vec::new(), Vec::new());
        for effect in effects {
            match effect {
                Effect::Call(call) => calls.push(call),
                Effect::Relay(request) => relays.push(request),
                Effect::Answer(id, reply) => answers.push((id, reply)),
            }
        }
        let News { begun, relayed, done } = news;
        // In which order they began is told by what was seen.
        calls.sort_by_key(|call| begun.iter().position(|seen| seen.id == call.id));
        if calls != *begun {
            return Err(format!("RULES: the calls {calls:?} had to begin, and {begun:?} did"));
        }
        if relays.iter().any(|request| !relayed.contains(request)) || relays.len() != relayed.len() {
            return Err(format!("RULES: {relays:?} had to be relayed, and {relayed:?} were"));
        }
        for done in done {
            let id = done.request.id;
            let Some(place) = answers.iter().position(|(answered, _)| *answered == id) else {
                return Err(format!("RULES: #{id} was answered, and had to wait"));
            };
            let (_, reply) = answers.swap_remove(place);
            agree(done, &reply).map_err(|wrong| format!("RULES: #{id} had to be answered {reply:?}: {wrong}"))?;
        }
        match answers.first() {
            Some((id, reply)) => Err(format!("RULES: #{id} had to be answered {reply:?}, and waits")),
            None => Ok(()),
        }
    }
}

/// The head of an answer that was given as text.
fn read_head(text: &[u8]) -> response::Parts {
    let mut lines = std::str::from_utf8(text).unwrap().lines();
    let status = lines.next().unwrap().split(' ').nth(1).unwrap();
    let fields = lines.filter_map(|line| line.split_once(": "));
    let response =
        fields.fold(Response::builder().status(status), |response, (name, value)| response.header(name, value));
    response.body(()).unwrap().into_parts().0
}
