//! What upstream is asked per minute in the steady state: by a realistic mix of callers on their own, by the
//! same callers each with a cache of its own, and by the gateway that answers them all.
//!
//! `cargo bench --bench calls` plays two and a half hours on a clock that jumps from one event to the next,
//! which takes seconds, and prints a table of the last two. The dice fall the same way each time; only
//! lives are a little shorter or longer than they were the time before, as the gateway has them.

#![allow(missing_docs, clippy::expect_used)]

use std::collections::{BTreeMap, HashMap, HashSet};
use std::process::ExitCode;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::request::Parts;
use http::{Request, Response, StatusCode};
use http_body_util::{BodyExt, Empty};
use humantime::format_duration;
use rand::rngs::SmallRng;
use rand::{RngExt, SeedableRng};
use tokio::task::JoinSet;
use tokio::time::sleep;
use workspace_gateway::testing::budget::Account;
use workspace_gateway::testing::catalogue::{Origin, Service};
use workspace_gateway::testing::clock::Clock;
use workspace_gateway::testing::config::{Config, Override};
use workspace_gateway::testing::gateway::{Connection, Gateway};
use workspace_gateway::testing::random::Random;
use workspace_gateway::testing::request::key::{RequestKey, Scope};
use workspace_gateway::testing::stream::StreamBody;
use workspace_gateway::testing::upstream::client::FetchContext;
use workspace_gateway::testing::upstream::{PendingResponse, Upstream, UpstreamResponse};

const PROJECTS: usize = 3;
const WARM_UP: Duration = Duration::from_secs(30 * 60);
const STEADY: Duration = Duration::from_secs(2 * 60 * 60);
/// How long upstream takes.
const LATENCY: Duration = Duration::from_millis(300);
/// How many products a question has that is asked page by page.
const PRODUCTS: usize = 250;
const PAGE: usize = 100;

/// What a project's callers ask, the most popular first: the n-th is asked 1/n as often as the first.
const QUESTIONS: [&str; 12] = [
    "/v2/PROJECT/products?os_type=Windows",
    "/v2/PROJECT/products?os_type=Linux",
    "/v2/PROJECT/products",
    "/v1/PROJECT/product?os_type=Windows",
    "/v2/PROJECT/products?availability_zone=cn-north-4a&os_type=Windows",
    "/v2/PROJECT/products?charge_mode=1&os_type=Windows",
    "/v2/PROJECT/products/sharer?charge_mode=1",
    "/v2/PROJECT/products?availability_zone=cn-north-4c&os_type=Linux",
    "/v1/PROJECT/product?package_type=general",
    "/v2/PROJECT/products?architecture=arm",
    "/v2/PROJECT/products?package_type=agile",
    "/v2/PROJECT/products?product_id=workspace.k.xlarge.2.linux",
];

/// What a pipeline asks, page by page until one is empty.
const PAGED: [&str; 2] =
    ["/v2/PROJECT/products?os_type=Windows&status=normal", "/v2/PROJECT/products?os_type=Linux&status=normal"];

/// A kind of callers.
struct Kind {
    name: &'static str,
    what: &'static str,
    habit: Habit,
    /// How many there are in each project.
    callers: usize,
}

enum Habit {
    Poll,
    AskAtRandom,
    PageThrough,
}

const KINDS: [Kind; 3] = [
    Kind {
        name: "dashboards",
        what: "poll their 3 questions every 10 s; a token a day",
        habit: Habit::Poll,
        callers: 15,
    },
    Kind {
        name: "applications",
        what: "ask one every 30 s, at random; a token a day",
        habit: Habit::AskAtRandom,
        callers: 20,
    },
    Kind {
        name: "pipelines",
        what: "page through 2 lists every 10 min, at random; a token a run",
        habit: Habit::PageThrough,
        callers: 5,
    },
];

fn main() -> ExitCode {
    if !std::env::args().any(|argument| argument == "--bench") {
        println!("nothing to test here: cargo bench --bench calls runs it");
        return ExitCode::SUCCESS;
    }
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build();
    if runtime.expect("a runtime").block_on(play()) { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

async fn play() -> bool {
    let given = |path, value: &str| Override { path, value: value.to_owned(), origin: "bench".to_owned() };
    let config = Config::from_layers("calls", "", &[given(&["region"], "cn-north-4")]).expect("the defaults are valid");
    let ttl = config.settings.cache.ttl.0;
    let begun = Clock::System.now();
    let ledger = Arc::new(Mutex::new(Ledger::new(begun + WARM_UP, ttl, config.settings.grants.grant_ttl.0)));
    let upstream = Arc::new(Services { ledger: Arc::clone(&ledger) });
    let gateway = Gateway::before(upstream, &config, Clock::System, Random::System).expect("a gateway");
    let mut asking = JoinSet::new();
    for project in 0..PROJECTS {
        for (kind, Kind { callers, .. }) in KINDS.iter().enumerate() {
            for number in 0..*callers {
                let dice = SmallRng::seed_from_u64((project << 16 | kind << 8 | number) as u64);
                let client =
                    Client { gateway: Arc::clone(&gateway), ledger: Arc::clone(&ledger), project, kind, number, dice };
                asking.spawn(client.go_on());
            }
        }
    }
    sleep(WARM_UP + STEADY).await;
    asking.shutdown().await;
    let page = gateway.metrics().encode().expect("metrics");
    let additional = page.lines().filter_map(|line| line.strip_prefix("workspace_gateway_additional_calls_total{"));
    let additional: u64 = additional.filter_map(|line| line.rsplit(' ').next()?.parse::<u64>().ok()).sum();
    println!("additional calls, while another caller's was slow or had failed: {additional}");
    lock(&ledger).print(ttl) && additional == 0
}

/// One caller.
struct Client {
    gateway: Arc<Gateway>,
    ledger: Arc<Mutex<Ledger>>,
    project: usize,
    kind: usize,
    number: usize,
    dice: SmallRng,
}

impl Client {
    /// Asks as its kind does until it is stopped.
    async fn go_on(mut self) {
        let connection = self.gateway.connection(([127, 0, 0, 1], 8080).into(), [127, 0, 0, 1].into());
        let token = format!("{}-{}-{}", self.kind, self.project, self.number);
        let favourites = [0; 3].map(|_| self.some_question());
        // They were not all begun at once.
        sleep(Duration::from_millis(self.dice.random_range(0..10_000))).await;
        for run in 0.. {
            match KINDS[self.kind].habit {
                Habit::Poll => {
                    for question in favourites {
                        self.ask(&connection, &token, question).await;
                    }
                    sleep(Duration::from_secs(10)).await;
                }
                Habit::AskAtRandom => {
                    self.wait_about(Duration::from_secs(30)).await;
                    let question = self.some_question();
                    self.ask(&connection, &token, question).await;
                }
                Habit::PageThrough => {
                    self.wait_about(Duration::from_secs(600)).await;
                    let token = format!("{token}-{run}");
                    for list in PAGED {
                        let mut offset = 0;
                        while self.ask(&connection, &token, &format!("{list}&limit={PAGE}&offset={offset}")).await {
                            offset += PAGE;
                        }
                    }
                }
            }
        }
    }

    /// Until the next of events that come at random, as often as this on average.
    async fn wait_about(&mut self, mean: Duration) {
        let share: f64 = self.dice.random_range(f64::EPSILON..1.0);
        sleep(mean.mul_f64(-share.ln())).await;
    }

    fn some_question(&mut self) -> &'static str {
        let weights = || (1..=QUESTIONS.len()).map(|rank| 1.0 / rank as f64);
        let mut point = self.dice.random_range(0.0..weights().sum::<f64>());
        let hit = weights().position(|weight| {
            point -= weight;
            point < 0.0
        });
        QUESTIONS[hit.unwrap_or(0)]
    }

    /// Asks, and says whether there were products.
    async fn ask(&mut self, connection: &Connection, token: &str, question: &str) -> bool {
        let target = question.replace("PROJECT", &format!("{:032x}", self.project));
        lock(&self.ledger).asked(self.kind, token, &target);
        let request = Request::get(target).header("host", "gateway").header("x-auth-token", token);
        let request = request.body(Empty::<Bytes>::new()).expect("a request");
        let (head, body) = self.gateway.handle(request, connection).await.into_parts();
        let body = body.collect().await.expect("a whole answer").to_bytes();
        let at_once = head.headers["cache-status"].to_str().is_ok_and(|status| status.contains("; hit"));
        lock(&self.ledger).answered(self.kind, head.status, at_once);
        !body.starts_with(br#"{"products":[]"#)
    }
}

/// Both services: they answer everybody.
struct Services {
    ledger: Arc<Mutex<Ledger>>,
}

impl Upstream for Services {
    fn ask<'a>(
        &'a self,
        key: &'a RequestKey,
        context: FetchContext,
        _: &'a Account,
    ) -> PendingResponse<'a, UpstreamResponse> {
        lock(&self.ledger)
            .called(key, context.credential.token().and_then(|token| token.to_str().ok()).expect("a token"));
        let offset = key.query().split('&').find_map(|pair| pair.strip_prefix("offset=")?.parse().ok()).unwrap_or(0);
        let products = if offset < PRODUCTS { r#"{"product_id":"workspace.x86.ultimate.large2"}"# } else { "" };
        let body = format!(r#"{{"products":[{products}],"total_count":{PRODUCTS}}}"#);
        Box::pin(async move {
            sleep(LATENCY).await;
            Ok(UpstreamResponse::read(Response::new(Bytes::from(body))))
        })
    }

    fn relay<'a>(
        &'a self,
        _: Service,
        _: &'a Origin,
        _: &'a Parts,
        _: StreamBody,
    ) -> PendingResponse<'a, Response<StreamBody>> {
        unreachable!("everything that is asked is understood")
    }
}

/// What is counted of a kind of callers.
#[derive(Clone, Copy, Default)]
struct Counts {
    /// Their requests: what upstream would be asked if there were no gateway.
    asked: usize,
    /// What it would be asked if each token had a cache of its own.
    per_token: usize,
    /// Requests that were answered from memory.
    at_once: usize,
    /// The gateway's calls: by callers who had no grant, for answers that were getting old, and for such as
    /// there never were.
    proofs: usize,
    refreshes: usize,
    misses: usize,
}

impl Counts {
    fn add(&mut self, other: &Self) {
        self.asked += other.asked;
        self.per_token += other.per_token;
        self.at_once += other.at_once;
        self.proofs += other.proofs;
        self.refreshes += other.refreshes;
        self.misses += other.misses;
    }

    fn calls(&self) -> usize {
        self.proofs + self.refreshes + self.misses
    }
}

struct Ledger {
    /// Before that nothing counts.
    from: Instant,
    ttl: Duration,
    grant_ttl: Duration,
    counts: [Counts; KINDS.len()],
    wrong: BTreeMap<u16, usize>,
    /// What the caches of single tokens have, and since when.
    per_token: HashMap<(String, String), Instant>,
    /// When upstream was last asked by a token in an operation of a project.
    proved: HashMap<(String, Scope), Instant>,
    known: HashSet<RequestKey>,
}

impl Ledger {
    fn new(from: Instant, ttl: Duration, grant_ttl: Duration) -> Self {
        let (counts, wrong) = (Default::default(), BTreeMap::new());
        let (per_token, proved, known) = (HashMap::new(), HashMap::new(), HashSet::new());
        Self { from, ttl, grant_ttl, counts, wrong, per_token, proved, known }
    }

    /// What is counted of a kind now.
    fn of(&mut self, kind: usize) -> Option<&mut Counts> {
        (Clock::System.now() >= self.from).then(|| &mut self.counts[kind])
    }

    fn asked(&mut self, kind: usize, token: &str, target: &str) {
        let (now, ttl) = (Clock::System.now(), self.ttl);
        let kept = self.per_token.entry((token.to_owned(), target.to_owned()));
        let mut is_new = false;
        let since = kept.or_insert_with(|| {
            is_new = true;
            now
        });
        if is_new || now.saturating_duration_since(*since) >= ttl {
            *since = now;
            is_new = true;
        }
        if let Some(counts) = self.of(kind) {
            counts.asked += 1;
            counts.per_token += usize::from(is_new);
        }
    }

    fn answered(&mut self, kind: usize, status: StatusCode, at_once: bool) {
        if status != StatusCode::OK {
            *self.wrong.entry(status.as_u16()).or_default() += 1;
        }
        if let Some(counts) = self.of(kind) {
            counts.at_once += usize::from(at_once);
        }
    }

    /// Upstream is asked.
    fn called(&mut self, key: &RequestKey, token: &str) {
        let (now, grant_ttl) = (Clock::System.now(), self.grant_ttl);
        let before = self.proved.insert((token.to_owned(), key.scope().clone()), now);
        let is_granted = before.is_some_and(|before| now.saturating_duration_since(before) < grant_ttl);
        let is_new = self.known.insert(key.clone());
        let kind = token.split('-').next().and_then(|kind| kind.parse().ok()).expect("the token of a kind");
        let Some(counts) = self.of(kind) else { return };
        match (is_granted, is_new) {
            (false, _) => counts.proofs += 1,
            (true, false) => counts.refreshes += 1,
            (true, true) => counts.misses += 1,
        }
    }

    fn print(&self, ttl: Duration) -> bool {
        let callers: usize = KINDS.iter().map(|kind| kind.callers).sum();
        println!(
            "{PROJECTS} projects of {callers} callers, in each {} questions of which the n-th is asked 1/n as often",
            QUESTIONS.len()
        );
        println!(
            "as the first, and {} lists in {} pages; upstream takes {LATENCY:?}; settings by default",
            PAGED.len(),
            PRODUCTS / PAGE + 2
        );
        println!("calls to upstream per minute, {} long:\n", format_duration(STEADY));
        println!(
            "{:<14}{:>8}{:>13}{:>17}{:>10}   of these: {:>8}{:>11}{:>8}   from memory",
            "", "callers", "no gateway", "cache per token", "gateway", "proofs", "refreshes", "misses"
        );
        let mut all = Counts::default();
        for (kind, counts) in KINDS.iter().zip(&self.counts) {
            print_line(kind.name, kind.callers * PROJECTS, counts);
            all.add(counts);
        }
        print_line("all", callers * PROJECTS, &all);
        println!();
        for Kind { name, what, .. } in &KINDS {
            println!("{name} {what}");
        }
        println!("a cache per token keeps its answers for {}, as the gateway does", format_duration(ttl));
        for (status, count) in &self.wrong {
            println!("FAILED: {count} answers of status {status}");
        }
        let helps = all.calls() < all.per_token && all.per_token < all.asked;
        if !helps {
            println!("FAILED: the gateway is to ask less than a cache per token does, and that less than all callers");
        }
        self.wrong.is_empty() && helps
    }
}

fn print_line(name: &str, callers: usize, counts: &Counts) {
    let minutes = STEADY.as_secs_f64() / 60.0;
    let rate = |count: usize| count as f64 / minutes;
    println!(
        "{name:<14}{callers:>8}{:>13.1}{:>17.1}{:>10.1}{:>22.1}{:>11.1}{:>8.1}{:>12.1} %",
        rate(counts.asked),
        rate(counts.per_token),
        rate(counts.calls()),
        rate(counts.proofs),
        rate(counts.refreshes),
        rate(counts.misses),
        counts.at_once as f64 / counts.asked as f64 * 100.0,
    );
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
