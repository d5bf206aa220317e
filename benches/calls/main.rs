//! Counts the upstream calls per minute of a realistic mix of callers in three cases: without a gateway, with a cache
//! for each token, and with the gateway. Counts the requests that wait although their caller is active, the calls of a
//! client that sends many requests at once, and the renewals while upstream fails. Compares the calls of a fleet of ten
//! gateways, each of which gets a tenth of the requests, with those of one gateway.
//!
//! `cargo bench --bench calls` simulates two and a half hours in seconds, on a clock that jumps from event to event. It
//! prints a table of the last two hours. The requests are the same in each run. Only the gateway's TTL jitter differs.

#![allow(missing_docs, clippy::expect_used)]

mod engine;
#[path = "../support/metrics.rs"]
mod metrics;

use std::collections::{BTreeMap, HashMap, HashSet};
use std::process::ExitCode;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use bytes::Bytes;
use engine::Engine;
use http::request::Parts;
use http::{Request, Response, StatusCode};
use http_body_util::{BodyExt, Empty};
use humantime::format_duration;
use metrics::sum_of;
use rand::rngs::SmallRng;
use rand::{RngExt, SeedableRng};
use tokio::task::JoinSet;
use tokio::time::sleep;
use workspace_gateway::testing::budget::Charge;
use workspace_gateway::testing::cache::second_tier::SecondTier;
use workspace_gateway::testing::catalogue::{Origin, Service};
use workspace_gateway::testing::clock::Clock;
use workspace_gateway::testing::config::{Config, Override};
use workspace_gateway::testing::gateway::{Connection, Gateway};
use workspace_gateway::testing::random::Random;
use workspace_gateway::testing::request::key::{RequestKey, Scope};
use workspace_gateway::testing::stream::StreamBody;
use workspace_gateway::testing::upstream::client::FetchContext;
use workspace_gateway::testing::upstream::{PendingResponse, Upstream, UpstreamError, UpstreamResponse};

const PROJECTS: usize = 3;
const WARM_UP: Duration = Duration::from_secs(30 * 60);
const STEADY: Duration = Duration::from_secs(2 * 60 * 60);
/// The time of an upstream call.
const LATENCY: Duration = Duration::from_millis(300);
/// The number of products of a list that is read page by page.
const PRODUCTS: usize = 250;
const PAGE: usize = 100;
/// A caller that has sent a request in a scope within this time should not wait there.
const ACTIVE: Duration = Duration::from_secs(60);

/// The limits beyond which the bench fails: calls per minute, the share of requests that wait although their caller is
/// active, in percent, and renewals in an outage of ten minutes.
const MAX_CALLS: f64 = 44.5;
const MAX_WAITS: f64 = 0.5;
const MAX_RENEWALS: usize = 15;

/// A fleet of so many gateways must send at most so many times the calls of one gateway.
const FLEET: usize = 10;
const MAX_SHARE: f64 = 1.3;
/// Records are sealed with it.
const SECRET: [u8; 32] = [7; 32];
/// What becomes of fetches: the metric's labels.
const CLAIMS: [&str; 5] = ["alone", "led", "took-over", "answered", "dropped"];
/// Requests that wait only for the engine take less.
const LOOK_UP: Duration = Duration::from_millis(10);

/// The lists that a Terraform run reads at once. Each has two pages. They are in three scopes.
const DATA_SOURCES: usize = 11;

/// The requests of a project's callers. The n-th is sent 1/n as often as the first.
const TARGETS: [&str; 12] = [
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

/// The lists that a pipeline reads page by page, until a page is empty.
const PAGED: [&str; 2] =
    ["/v2/PROJECT/products?os_type=Windows&status=normal", "/v2/PROJECT/products?os_type=Linux&status=normal"];

/// A kind of callers.
struct Kind {
    name: &'static str,
    description: &'static str,
    habit: Habit,
    /// For each project.
    callers: usize,
}

enum Habit {
    Poll,
    Random,
    PageThrough,
}

const KINDS: [Kind; 3] = [
    Kind {
        name: "dashboards",
        description: "send their 3 requests every 10 s; a token a day",
        habit: Habit::Poll,
        callers: 15,
    },
    Kind {
        name: "applications",
        description: "send a request every 30 s, at random; a token a day",
        habit: Habit::Random,
        callers: 20,
    },
    Kind {
        name: "pipelines",
        description: "page through 2 lists every 10 min, at random; a token a run",
        habit: Habit::PageThrough,
        callers: 5,
    },
];

fn main() -> ExitCode {
    if !std::env::args().any(|argument| argument == "--bench") {
        println!("not a test: run cargo bench --bench calls");
        return ExitCode::SUCCESS;
    }
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build();
    let passes = runtime.expect("a runtime").block_on(async {
        let results = [compare().await, run_terraform().await, fail_for_ten_minutes().await];
        results.iter().all(|passes| *passes)
    });
    if passes { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// A gateway with the settings by default, in front of both services.
fn gateway(config: &Config, ledger: &Arc<Mutex<Ledger>>) -> Arc<Gateway> {
    let upstream = Arc::new(Services { ledger: Arc::clone(ledger) });
    Gateway::with_upstream(upstream, config, Clock::System, Random::System).expect("a gateway")
}

/// Gateways of a fleet. They stay in sync: nothing becomes void.
fn fleet(config: &Config, ledger: &Arc<Mutex<Ledger>>, engine: &Arc<Engine>) -> Vec<Arc<Gateway>> {
    let member = || {
        let upstream = Arc::new(Services { ledger: Arc::clone(ledger) });
        let tier = (Arc::clone(engine) as Arc<dyn SecondTier>, SECRET);
        let gateway = Gateway::with_second_tier(upstream, tier, config, Clock::System, Random::System);
        let gateway = gateway.expect("a gateway");
        gateway.extend_sync(Clock::System.now() + 2 * (WARM_UP + STEADY));
        gateway
    };
    (0..FLEET).map(|_| member()).collect()
}

fn settings(text: &str) -> Config {
    let region = Override { path: &["region"], value: "cn-north-4".into(), origin: "bench".to_owned() };
    Config::from_layers("calls", text, &[region]).expect("valid settings")
}

/// A client with a gateway of its own, and their ledger.
fn lone_client(config: &Config) -> (Client, Arc<Mutex<Ledger>>) {
    let ledger = Arc::new(Mutex::new(Ledger::new(Clock::System.now(), Duration::ZERO, Duration::ZERO)));
    let gateway = gateway(config, &ledger);
    let client = Client::new(&[gateway], &ledger, (0, 2, 0), 0);
    (client, ledger)
}

/// A new token reads all pages of all data sources at once, while the entries are fresh.
async fn run_terraform() -> bool {
    let lists = ["/v2/PROJECT/products", "/v2/PROJECT/products/sharer", "/v1/PROJECT/product"];
    let targets: Vec<String> = (0..DATA_SOURCES)
        .map(|number| format!("{}?product_id=source-{number}", lists[number % lists.len()]))
        .flat_map(|list| [list.clone(), format!("{list}&offset={PAGE}")])
        .collect();
    let (mut client, ledger) = lone_client(&settings(""));
    for target in &targets {
        client.send("2-warm", target).await;
    }
    let before = lock(&ledger).calls;
    let mut requests = JoinSet::new();
    for target in targets {
        let mut client = Client::new(&client.gateways, &ledger, (0, 2, 0), 0);
        requests.spawn(async move { client.send("2-new", &target).await });
    }
    requests.join_all().await;
    let calls = lock(&ledger).calls - before;
    println!(
        "\n{DATA_SOURCES} data sources, {} requests at once, new token, warm cache: {calls} calls",
        2 * DATA_SOURCES
    );
    if calls != lists.len() {
        println!("FAILED: one call for each of the {} scopes is enough", lists.len());
    }
    calls == lists.len()
}

/// A caller sends 100 requests per second for ten minutes, and 10,000 per second while its grant can be renewed.
/// Upstream refuses connections all the time. The entry stays fresh, so that the requests are hits.
async fn fail_for_ten_minutes() -> bool {
    let config = settings("[cache]\nttl = \"1h\"\n");
    let (mut client, ledger) = lone_client(&config);
    client.send("2-caller", TARGETS[0]).await;
    lock(&ledger).refuses = true;
    let (begun, grant_ttl) = (Clock::System.now(), config.settings.grants.grant_ttl.0);
    loop {
        let passed = Clock::System.now() - begun;
        if passed > Duration::from_secs(600) {
            break;
        }
        let left = grant_ttl.saturating_sub(passed);
        let is_due = !left.is_zero() && left < Duration::from_secs(9);
        // Timers have a resolution of 1 ms.
        let requests = if is_due { 10 } else { 1 };
        sleep(Duration::from_millis(if is_due { 1 } else { 10 })).await;
        for _ in 0..requests {
            client.send("2-caller", TARGETS[0]).await;
        }
    }
    let page = client.gateways[0].metrics().encode().expect("metrics");
    let renewals = sum_of::<usize>(&page, "workspace_gateway_renewals_total{");
    println!("upstream refuses connections for ten minutes, 100 to 10,000 hits/s of one caller: {renewals} renewals");
    if renewals > MAX_RENEWALS {
        println!("FAILED: at most {MAX_RENEWALS} renewals");
    }
    renewals <= MAX_RENEWALS
}

/// One gateway, and a fleet that gets the same requests.
async fn compare() -> bool {
    let (one, one_passes) = simulate(None).await;
    let engine = Engine::new();
    let (fleet, fleet_passes) = simulate(Some(&engine)).await;
    let share = fleet / one;
    println!("\n{FLEET} gateways with one engine send {share:.3} times the calls of one gateway, at most {MAX_SHARE}");
    let is_quiet = engine.voided.load(Ordering::Relaxed) == 0;
    let passes = share <= MAX_SHARE && is_quiet;
    if !passes {
        println!("FAILED: too many calls, or something has become void");
    }
    one_passes && fleet_passes && passes
}

/// Returns the calls per minute, and whether all is as it must be. With an engine, requests go to gateways of a fleet in
/// turn, at random.
async fn simulate(engine: Option<&Arc<Engine>>) -> (f64, bool) {
    let config = settings("");
    let ttl = config.settings.cache.ttl.fallback(config.settings.cache.ttl);
    let begun = Clock::System.now();
    let ledger = Arc::new(Mutex::new(Ledger::new(begun + WARM_UP, ttl, config.settings.grants.grant_ttl.0)));
    let gateways = match engine {
        Some(engine) => fleet(&config, &ledger, engine),
        None => vec![gateway(&config, &ledger)],
    };
    let mut clients = JoinSet::new();
    for project in 0..PROJECTS {
        for (kind, Kind { callers, .. }) in KINDS.iter().enumerate() {
            for number in 0..*callers {
                let seed = (project << 16 | kind << 8 | number) as u64;
                clients.spawn(Client::new(&gateways, &ledger, (project, kind, number), seed).run());
            }
        }
    }
    sleep(WARM_UP + STEADY).await;
    clients.shutdown().await;
    let pages: Vec<String> = gateways.iter().map(|gateway| gateway.metrics().encode().expect("metrics")).collect();
    let sum = |prefix: &str| pages.iter().map(|page| sum_of::<usize>(page, prefix)).sum::<usize>();
    let additional = sum("workspace_gateway_additional_calls_total{");
    println!(
        "\n{} with {} calls in all:",
        if engine.is_some() { "A fleet" } else { "One gateway" },
        lock(&ledger).calls
    );
    println!("additional calls while another call was slow or had failed: {additional}");
    let renewals = sum("workspace_gateway_renewals_total{");
    println!("renewals: {renewals}");
    if engine.is_some() {
        let claims = CLAIMS.map(|claim| {
            let count = sum(&format!("workspace_gateway_fleet_claims_total{{result=\"{claim}\"}}"));
            format!("{count} {claim}")
        });
        println!("fetches: {}", claims.join(", "));
    }
    let (per_minute, passes) = lock(&ledger).print(ttl, engine.is_some());
    (per_minute, passes && additional == 0)
}

/// A gateway, and a connection to it.
struct Way {
    gateway: Arc<Gateway>,
    connection: Connection,
}

struct Client {
    gateways: Vec<Arc<Gateway>>,
    ways: Vec<Way>,
    /// Picks a gateway for each request.
    balancer: SmallRng,
    ledger: Arc<Mutex<Ledger>>,
    project: usize,
    kind: usize,
    number: usize,
    dice: SmallRng,
}

impl Client {
    fn new(
        gateways: &[Arc<Gateway>],
        ledger: &Arc<Mutex<Ledger>>,
        (project, kind, number): (usize, usize, usize),
        seed: u64,
    ) -> Self {
        let way = |gateway: &Arc<Gateway>| Way {
            gateway: Arc::clone(gateway),
            connection: gateway.connection(([127, 0, 0, 1], 8080).into(), [127, 0, 0, 1].into()),
        };
        let [dice, balancer] = [seed, !seed].map(SmallRng::seed_from_u64);
        let (ways, ledger) = (gateways.iter().map(way).collect(), Arc::clone(ledger));
        Self { gateways: gateways.to_vec(), ways, balancer, ledger, project, kind, number, dice }
    }

    /// Sends the requests of its kind until it is aborted.
    async fn run(mut self) {
        let token = format!("{}-{}-{}", self.kind, self.project, self.number);
        let favourites = [0; 3].map(|_| self.random_target());
        // Clients do not start all at once.
        sleep(Duration::from_millis(self.dice.random_range(0..10_000))).await;
        for run in 0.. {
            match KINDS[self.kind].habit {
                Habit::Poll => {
                    for target in favourites {
                        self.send(&token, target).await;
                    }
                    sleep(Duration::from_secs(10)).await;
                }
                Habit::Random => {
                    self.wait_about(Duration::from_secs(30)).await;
                    let target = self.random_target();
                    self.send(&token, target).await;
                }
                Habit::PageThrough => {
                    self.wait_about(Duration::from_secs(600)).await;
                    let token = format!("{token}-{run}");
                    for list in PAGED {
                        let mut offset = 0;
                        while self.send(&token, &format!("{list}&limit={PAGE}&offset={offset}")).await {
                            offset += PAGE;
                        }
                    }
                }
            }
        }
    }

    /// Waits for a random time with this mean (exponential distribution).
    async fn wait_about(&mut self, mean: Duration) {
        let share: f64 = self.dice.random_range(f64::EPSILON..1.0);
        sleep(mean.mul_f64(-share.ln())).await;
    }

    fn random_target(&mut self) -> &'static str {
        let weights = || (1..=TARGETS.len()).map(|rank| 1.0 / rank as f64);
        let mut point = self.dice.random_range(0.0..weights().sum::<f64>());
        let hit = weights().position(|weight| {
            point -= weight;
            point < 0.0
        });
        TARGETS[hit.unwrap_or(0)]
    }

    /// Sends a request. Returns whether the list has products.
    async fn send(&mut self, token: &str, target: &str) -> bool {
        let target = target.replace("PROJECT", &format!("{:032x}", self.project));
        let was_active = lock(&self.ledger).record_request(self.kind, token, &target);
        let begun = Clock::System.now();
        let request = Request::get(target).header("host", "gateway").header("x-auth-token", token);
        let request = request.body(Empty::<Bytes>::new()).expect("a request");
        let way = &self.ways[self.balancer.random_range(0..self.ways.len())];
        let (head, body) = way.gateway.handle(request, &way.connection).await.into_parts();
        let body = body.collect().await.expect("a complete response").to_bytes();
        // Time passes only while a request waits.
        let has_waited = Clock::System.now() > begun + LOOK_UP;
        lock(&self.ledger).record_response(self.kind, head.status, has_waited, was_active);
        !body.starts_with(br#"{"products":[]"#)
    }
}

/// Both services. They accept every token.
struct Services {
    ledger: Arc<Mutex<Ledger>>,
}

impl Upstream for Services {
    fn fetch_list<'a>(
        &'a self,
        key: &'a RequestKey,
        context: FetchContext,
        _: Charge,
    ) -> PendingResponse<'a, UpstreamResponse> {
        lock(&self.ledger)
            .record_call(key, context.credential.token().and_then(|token| token.to_str().ok()).expect("a token"));
        let offset = key.query().split('&').find_map(|pair| pair.strip_prefix("offset=")?.parse().ok()).unwrap_or(0);
        let products = if offset < PRODUCTS { r#"{"product_id":"workspace.x86.ultimate.large2"}"# } else { "" };
        let body = format!(r#"{{"products":[{products}],"total_count":{PRODUCTS}}}"#);
        Box::pin(async move {
            if lock(&self.ledger).refuses {
                return Err(UpstreamError::Connect("upstream: connection refused".to_owned()));
            }
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
        unreachable!("all requests are for lists")
    }
}

/// The counts of a kind of callers.
#[derive(Clone, Copy, Default)]
struct Counts {
    /// Requests of clients: the upstream calls without a gateway.
    requests: usize,
    /// The upstream calls if each token had its own cache.
    per_token: usize,
    hits: usize,
    /// Requests that waited for upstream, though their caller had sent a request in that scope within the last minute.
    waits_when_active: usize,
    /// The gateway's calls: for callers without a grant, for stale entries, and for missing entries.
    proofs: usize,
    refreshes: usize,
    misses: usize,
}

impl Counts {
    fn add(&mut self, other: &Self) {
        self.requests += other.requests;
        self.per_token += other.per_token;
        self.hits += other.hits;
        self.waits_when_active += other.waits_when_active;
        self.proofs += other.proofs;
        self.refreshes += other.refreshes;
        self.misses += other.misses;
    }

    fn calls(&self) -> usize {
        self.proofs + self.refreshes + self.misses
    }
}

struct Ledger {
    /// The end of the warm-up. Nothing is counted before.
    from: Instant,
    ttl: Duration,
    grant_ttl: Duration,
    counts: [Counts; KINDS.len()],
    /// Responses with another status than 200.
    failures: BTreeMap<u16, usize>,
    /// The entries of the caches for each token, and when they were stored.
    per_token: HashMap<(String, String), Instant>,
    /// When a token's last call in a scope was sent.
    proved: HashMap<(String, Scope), Instant>,
    known: HashSet<RequestKey>,
    calls: usize,
    /// Whether the services refuse connections.
    refuses: bool,
    /// When a token's last request in a scope was sent. The scope is the path.
    active: HashMap<(String, String), Instant>,
}

impl Ledger {
    fn new(from: Instant, ttl: Duration, grant_ttl: Duration) -> Self {
        let (counts, failures) = (Default::default(), BTreeMap::new());
        let (per_token, proved, known, active) = (HashMap::new(), HashMap::new(), HashSet::new(), HashMap::new());
        let (calls, refuses) = (0, false);
        Self { from, ttl, grant_ttl, counts, failures, per_token, proved, known, calls, refuses, active }
    }

    /// The counts of a kind, after the warm-up.
    fn counts(&mut self, kind: usize) -> Option<&mut Counts> {
        (Clock::System.now() >= self.from).then(|| &mut self.counts[kind])
    }

    /// Returns whether the token was active in the scope within the last minute.
    fn record_request(&mut self, kind: usize, token: &str, target: &str) -> bool {
        let (now, ttl) = (Clock::System.now(), self.ttl);
        let entry = self.per_token.entry((token.to_owned(), target.to_owned()));
        let mut is_new = false;
        let since = entry.or_insert_with(|| {
            is_new = true;
            now
        });
        if is_new || now.saturating_duration_since(*since) >= ttl {
            *since = now;
            is_new = true;
        }
        if let Some(counts) = self.counts(kind) {
            counts.requests += 1;
            counts.per_token += usize::from(is_new);
        }
        let path = target.split('?').next().unwrap_or_default();
        let before = self.active.insert((token.to_owned(), path.to_owned()), now);
        before.is_some_and(|before| now.saturating_duration_since(before) <= ACTIVE)
    }

    fn record_response(&mut self, kind: usize, status: StatusCode, has_waited: bool, was_active: bool) {
        if status != StatusCode::OK {
            *self.failures.entry(status.as_u16()).or_default() += 1;
        }
        if let Some(counts) = self.counts(kind) {
            counts.hits += usize::from(!has_waited);
            counts.waits_when_active += usize::from(has_waited && was_active);
        }
    }

    fn record_call(&mut self, key: &RequestKey, token: &str) {
        self.calls += 1;
        let (now, grant_ttl) = (Clock::System.now(), self.grant_ttl);
        let before = self.proved.insert((token.to_owned(), key.scope().clone()), now);
        let is_granted = before.is_some_and(|before| now.saturating_duration_since(before) < grant_ttl);
        let is_new = self.known.insert(key.clone());
        let kind = token.split('-').next().and_then(|kind| kind.parse().ok()).expect("the token of a kind");
        let Some(counts) = self.counts(kind) else { return };
        match (is_granted, is_new) {
            (false, _) => counts.proofs += 1,
            (true, false) => counts.refreshes += 1,
            (true, true) => counts.misses += 1,
        }
    }

    fn print(&self, ttl: Duration, is_fleet: bool) -> (f64, bool) {
        let callers: usize = KINDS.iter().map(|kind| kind.callers).sum();
        println!(
            "{PROJECTS} projects of {callers} callers, in each {} requests of which the n-th is sent 1/n as often",
            TARGETS.len()
        );
        println!(
            "as the first, and {} lists in {} pages; upstream takes {LATENCY:?}; settings by default",
            PAGED.len(),
            PRODUCTS / PAGE + 2
        );
        println!("upstream calls per minute, over {}:\n", format_duration(STEADY));
        println!(
            "{:<14}{:>8}{:>13}{:>17}{:>10}   of these: {:>8}{:>11}{:>8}          hits",
            "", "callers", "no gateway", "cache per token", "gateway", "proofs", "refreshes", "misses"
        );
        let mut all = Counts::default();
        for (kind, counts) in KINDS.iter().zip(&self.counts) {
            print_line(kind.name, kind.callers * PROJECTS, counts);
            all.add(counts);
        }
        print_line("all", callers * PROJECTS, &all);
        let waits = all.waits_when_active as f64 / all.requests as f64 * 100.0;
        println!(
            "\nwaited, though their caller was active in that scope within the last minute: {waits:.3} % of requests"
        );
        let per_minute = all.calls() as f64 / STEADY.as_secs_f64() * 60.0;
        let is_within_limits = waits <= MAX_WAITS && (per_minute <= MAX_CALLS || is_fleet);
        if !is_within_limits {
            println!("FAILED: at most {MAX_WAITS} % may wait, and at most {MAX_CALLS} calls per minute");
        }
        for Kind { name, description, .. } in &KINDS {
            println!("{name} {description}");
        }
        println!("a cache per token has the same TTL as the gateway, {}", format_duration(ttl));
        for (status, count) in &self.failures {
            println!("FAILED: {count} responses with status {status}");
        }
        let saves_calls = all.calls() < all.per_token && all.per_token < all.requests;
        if !saves_calls {
            println!(
                "FAILED: the gateway must send fewer calls than a cache per token, and that fewer than no gateway"
            );
        }
        (per_minute, self.failures.is_empty() && saves_calls && is_within_limits)
    }
}

fn print_line(name: &str, callers: usize, counts: &Counts) {
    let minutes = STEADY.as_secs_f64() / 60.0;
    let rate = |count: usize| count as f64 / minutes;
    println!(
        "{name:<14}{callers:>8}{:>13.1}{:>17.1}{:>10.1}{:>22.1}{:>11.1}{:>8.1}{:>12.1} %",
        rate(counts.requests),
        rate(counts.per_token),
        rate(counts.calls()),
        rate(counts.proofs),
        rate(counts.refreshes),
        rate(counts.misses),
        counts.hits as f64 / counts.requests as f64 * 100.0,
    );
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
