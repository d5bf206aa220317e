//! Runs a sequence: the gateway, its clients and the scripted upstream on a runtime whose clock stands
//! still unless a step moves it, and the model beside them. After each step both must agree on what
//! happened.
//!
//! Nothing here waits in real time, and nothing runs at the same time as anything else: one thread,
//! and each step goes on until no task can.

mod story;

use std::net::SocketAddr;
use std::sync::{Arc, Mutex, OnceLock};
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::response;
use http::{Request, Response};
use http_body_util::{BodyExt, Empty};
use tokio::task::{AbortHandle, yield_now};
use workspace_gateway::cache::store::Selection;
use workspace_gateway::clock::Clock;
use workspace_gateway::config::Config;
use workspace_gateway::gateway::{Connection, Gateway};

use super::property::Property;
use super::rules::{Effect, Rules, Tally};
use super::script::{Begun, Script, X_NUMBER, trail};
use super::settings::Settings;
use super::steps::{Edge, Outcome, Pass, Sequence, Step};
use super::world::{History, KEYS, Ms, Question, RequestId, SCOPES, Scope, Seconds, Truth, scope_of, token};
use crate::support;
pub use story::Done;
use story::{Event, agree};

/// How often the driver steps aside before a step is over. Each time the runtime runs tasks until none
/// can run, or until it has run some sixty: far more than there are, a few times over.
const TURNS: usize = 4;

/// What has happened since one looked last: calls, relayed requests, answers.
struct News {
    begun: Vec<Begun>,
    relayed: Vec<Begun>,
    done: Vec<Done>,
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
    lingers: bool,
    next: RequestId,
    clients: Vec<(RequestId, AbortHandle)>,
    done: Arc<Mutex<Vec<Done>>>,
    story: Vec<(Ms, Event)>,
}

/// How often each rule had a say in a sequence, or what was wrong.
pub type Verdict = Result<Tally, String>;

/// Runs a sequence from an empty cache to the last answer.
pub fn run(sequence: &Sequence) -> Verdict {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap();
    runtime.block_on(async {
        let (settings, config) = &settings_and_configs()[sequence.settings];
        let mut driver = Driver::new(*settings, config, Truth::new(sequence.views_differ), sequence.lingers);
        let told = match driver.play(&sequence.steps).await {
            Ok(()) => return Ok(driver.rules.tally),
            Err(wrong) => format!("{wrong}\n{settings:?}"),
        };
        let story = driver.story.iter().map(|(at, event)| format!("\n{:>9} {event}", Seconds(*at).to_string()));
        Err(told + &story.collect::<String>())
    })
}

/// Read once: a file with all settings is more work than a whole sequence.
fn settings_and_configs() -> &'static [(Settings, Config)] {
    static ALL: OnceLock<Vec<(Settings, Config)>> = OnceLock::new();
    ALL.get_or_init(|| {
        let config = |settings: Settings| support::config("http://w.test", "http://a.test", &settings.to_toml());
        Settings::all().into_iter().map(|settings| (settings, config(settings))).collect()
    })
}

impl Driver {
    fn new(settings: Settings, config: &Config, truth: Truth, lingers: bool) -> Self {
        let script = Arc::new(Script::default());
        let upstream: Arc<Script> = Arc::clone(&script);
        Self {
            gateway: Gateway::before(upstream, config, Clock::System).unwrap(),
            connection: Arc::new(Connection::new(SocketAddr::from(([127, 0, 0, 1], 8080)))),
            script,
            rules: Rules::new(settings),
            property: Property::new(settings),
            history: History::new(truth),
            began: Clock::System.now(),
            now: 0,
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
            Step::Ask { key, callers, is_plain, wish, has } => {
                let mut effects = Vec::new();
                for &caller in callers {
                    let id = self.next;
                    self.next += 1;
                    let question = Question { id, caller, key: *key, is_plain: *is_plain, wish: *wish, has: *has };
                    self.come_in(question);
                    effects.extend(self.rules.ask(question));
                }
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

    /// The operator purges.
    async fn purge(&mut self, operation: Option<&str>, project: Option<&str>) -> Result<(), String> {
        let (name, id) = (operation.map(str::to_owned), project.map(str::to_owned));
        self.gateway.purge(&Selection { operation: name, project_id: id, query: None });
        let is_selected = |scope| {
            let Scope { operation: its_operation, project: its_project, .. } = SCOPES[scope];
            operation.is_none_or(|name| name == its_operation) && project.is_none_or(|id| id == its_project)
        };
        self.rules.purge(is_selected);
        self.property.purged(self.now, is_selected);
        self.expect(Vec::new()).await
    }

    /// A client sends a request and reads the answer.
    fn come_in(&mut self, request: Question) {
        self.tell(Event::Asked(request));
        self.property.asked(request, self.now);
        let (gateway, connection) = (Arc::clone(&self.gateway), Arc::clone(&self.connection));
        let (done, began, arrived) = (Arc::clone(&self.done), self.began, self.now);
        let asked = Request::get(KEYS[request.key].1)
            .header("host", "gateway.test")
            .header("x-auth-token", token(request.caller))
            .header(X_NUMBER, request.id);
        let mut asked = asked.body(Empty::<Bytes>::new()).unwrap();
        asked.headers_mut().extend(trail(request.is_plain));
        for (name, value) in request.headers() {
            asked.headers_mut().insert(name, value.parse().unwrap());
        }
        // What comes over the wire, but for the number, which is the script's and not the client's.
        let mut seen = asked.headers().clone();
        seen.remove(X_NUMBER);
        let head = gateway.fingerprint(format!("{} {seen:?}", asked.uri()).as_bytes());
        let client = tokio::spawn(async move {
            let mut text = Vec::new();
            let (head, body) = match gateway.repeat(&head, &connection, &mut text) {
                Some((body, _)) => (read_head(&text), body),
                None => {
                    connection.hears(Some(head));
                    let (head, body) = gateway.handle(asked, &connection).await.into_parts();
                    (head, body.collect().await.unwrap().to_bytes())
                }
            };
            let at = Ms::try_from((Clock::System.now() - began).as_millis()).unwrap();
            let text = |name| head.headers.get(name).map_or("", |value| value.to_str().unwrap()).to_owned();
            let done_with = Done {
                request,
                arrived,
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
        let effects = self.rules.land(&landed, &news.begun).map_err(|wrong| format!("RULES: {wrong}"))?;
        self.compare(effects, &news)
    }

    /// Time passes.
    async fn pass(&mut self, span: Ms) -> Result<(), String> {
        if span > 0 {
            tokio::time::sleep(Duration::from_millis(span)).await;
            self.now += span;
        }
        let effects = self.rules.pass(self.now);
        self.expect(effects).await
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
        let done = std::mem::take(&mut *self.done.lock().unwrap());
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
