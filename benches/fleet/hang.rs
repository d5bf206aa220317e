//! Measures what requests wait while the engine of a fleet hangs: 20,000 requests at a gateway whose engine is suspended, and
//! at the same time 20,000 at one without a fleet. Half of them are hits in memory, the others go upstream.
//!
//! `cargo bench --bench fleet` takes about 25 seconds, and needs redis-server on the PATH. It fails if a figure is beyond its
//! limit. There are four rounds. Counts must be within their limits in each. Of times the best round counts, because other
//! processes of the machine can only add to them. The gateways are real ones, without sockets to clients. Upstream is simulated.

#![allow(missing_docs, clippy::expect_used)]

use std::io::{BufRead, BufReader};
use std::net::TcpListener;
use std::path::PathBuf;
use std::process::{Child, Command, ExitCode, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use http::request::Parts;
use http::{HeaderValue, Request, Response, StatusCode};
use http_body_util::{BodyExt, Empty};
use rustix::process::{Pid, Signal, kill_process};
use tokio::task::JoinSet;
use tokio::time::{MissedTickBehavior, interval, sleep, timeout};
use workspace_gateway::testing::budget::Charge;
use workspace_gateway::testing::catalogue::{Origin, Service};
use workspace_gateway::testing::clock::Clock;
use workspace_gateway::testing::config::{Config, Override};
use workspace_gateway::testing::gateway::{Connection, Gateway};
use workspace_gateway::testing::random::Random;
use workspace_gateway::testing::request::key::RequestKey;
use workspace_gateway::testing::stream::StreamBody;
use workspace_gateway::testing::upstream::client::FetchContext;
use workspace_gateway::testing::upstream::{PendingResponse, Upstream, UpstreamResponse};

/// The same allocator as the program's.
#[cfg(all(target_os = "linux", target_env = "gnu"))]
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

const LISTS: &str = "/v2/00000000000000000000000000000001/products";
/// The time of an upstream call.
const LATENCY: Duration = Duration::from_millis(20);
/// So many requests at each gateway, half of them hits.
const REQUESTS: usize = 20_000;
/// Requests that go upstream and arrive together, before the others: more than may wait for the engine.
const AT_ONCE: usize = 160;
/// So many hits, and so many other requests, arrive in each millisecond.
const IN_A_TICK: usize = 2;
const CALLERS: usize = 64;
/// `fleet.budget`, by default.
const BUDGET: Duration = Duration::from_millis(5);
const ROUNDS: usize = 4;

/// The limits of issue "second tier": differences to the gateway without a fleet, in ms. 0.2 ms is the noise of a median.
const MEDIAN: f64 = 0.2;
const SLOWEST: f64 = 10.0;
/// How many requests may wait for the engine, and how long, in ms.
const WAITING: f64 = 128.0;
const LONGEST_WAIT: f64 = 8.0;
/// When the engine must be in use again, in ms.
const BACK: f64 = 1000.0;

fn main() -> ExitCode {
    if !std::env::args().any(|argument| argument == "--bench") {
        println!("not a test: run cargo bench --bench fleet");
        return ExitCode::SUCCESS;
    }
    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    if runtime.block_on(run()) { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// Returns whether all figures are within their limits.
async fn run() -> bool {
    let engine = Engine::start();
    let fleet = format!(
        "[fleet]\nengine = \"redis://127.0.0.1:{}\"\nsecret = \"{}\"\n",
        engine.port,
        "0123456789abcdef".repeat(2)
    );
    let (alone, member) = (Arc::new(World::new("")), Arc::new(World::new(&fleet)));
    tokio::spawn(Arc::clone(&member.gateway).keep_fleet());
    member.until(LOST, |lost| lost < 1.0).await;
    for world in [&alone, &member] {
        for caller in 0..CALLERS {
            world.ask(caller, "hit").await;
        }
        world.clear();
    }
    member.until(STORED, |stored| stored >= 1.0).await;

    println!(
        "{ROUNDS} rounds with {REQUESTS} requests at a gateway whose engine hangs, and at one without a fleet; upstream takes {} ms",
        LATENCY.as_millis()
    );
    let mut judge = Judge::default();
    let mut rounds = Vec::new();
    for round in 0..ROUNDS {
        rounds.push(measure(&engine, [&alone, &member], round, &mut judge).await);
    }
    let best = |figure: fn(&Round) -> [f64; 2]| {
        rounds.iter().map(figure).min_by(|a, b| (a[1] - a[0]).total_cmp(&(b[1] - b[0]))).unwrap_or_default()
    };
    judge.compare("hits, median (ms)", best(|round| round.hits), MEDIAN);
    judge.compare("other requests, median (ms)", best(|round| round.others), MEDIAN);
    judge.compare("all, 99.9th percentile (ms)", best(|round| round.slowest), SLOWEST);
    judge.at_most(
        "mean wait for the engine, with timers in time (ms)",
        best(|round| [0.0, round.wait])[1],
        LONGEST_WAIT,
    );
    judge.at_most("in use again after (ms)", best(|round| [0.0, round.back])[1], BACK);
    !judge.has_failed
}

/// The times of a round, in ms. Of two, the first is without a fleet.
struct Round {
    hits: [f64; 2],
    others: [f64; 2],
    slowest: [f64; 2],
    wait: f64,
    back: f64,
}

async fn measure(engine: &Engine, worlds: [&Arc<World>; 2], round: usize, judge: &mut Judge) -> Round {
    let [_, member] = worlds;
    let before = [LATE, WAITED].map(|series| member.metric(series));
    engine.signal(Signal::Stop);
    let too_late = load(worlds, round).await;
    let late = member.metric(LATE) - before[0];
    let wait = (member.metric(WAITED) - before[1]) / late.max(1.0) * 1e3 - too_late;
    engine.signal(Signal::Cont);
    let begun = Clock::System.timer_now();
    member.until(LOST, |lost| lost < 1.0).await;
    let back = millis(Clock::System.timer_now() - begun);

    let answers = || worlds.iter().flat_map(|world| world.lock().iter().map(|time| time.is_right).collect::<Vec<_>>());
    judge.at_most("wrong answers", answers().filter(|is_right| !is_right).count() as f64, 0.0);
    judge.at_most("missing answers", (2 * REQUESTS - answers().count()) as f64, 0.0);
    judge.at_most("requests that wait for the engine", late, WAITING);
    // Else nothing was measured.
    judge.at_least("requests that wait for the engine", late, 3.0);
    let hits = worlds.map(|world| at(&world.times(|time| time.is_hit), 0.5));
    let others = worlds.map(|world| at(&world.times(|time| !time.is_hit), 0.5));
    let slowest = worlds.map(|world| at(&world.times(|_| true), 0.999));
    worlds.iter().for_each(|world| world.clear());
    Round { hits, others, slowest, wait, back }
}

/// Sends the same requests to both gateways, at the same times. Returns by how much timers that were set with the first
/// requests have been late on average, in ms: the processors are busy then.
async fn load([alone, member]: [&Arc<World>; 2], round: usize) -> f64 {
    let mut requests = JoinSet::new();
    let mut send = |number: usize, is_hit: bool| {
        // Each is the first one in half of the cases.
        let order = if number.is_multiple_of(2) { [alone, member] } else { [member, alone] };
        for world in order {
            let world = Arc::clone(world);
            requests.spawn(async move {
                let list = if is_hit { "hit".to_owned() } else { format!("{round}-{number}") };
                world.ask(number % CALLERS, &list).await;
            });
        }
    };
    let mut left = [REQUESTS / 2, REQUESTS / 2 - AT_ONCE];
    (0..AT_ONCE).for_each(|number| send(number, false));
    let timers: Vec<_> = (0..AT_ONCE).map(|_| tokio::spawn(lateness())).collect();
    let mut number = AT_ONCE;
    let mut ticks = interval(Duration::from_millis(1));
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    while left != [0, 0] {
        ticks.tick().await;
        for (left, is_hit) in left.iter_mut().zip([true, false]) {
            for _ in 0..IN_A_TICK.min(*left) {
                send(number, is_hit);
                (number, *left) = (number + 1, *left - 1);
            }
        }
    }
    requests.join_all().await;
    let mut too_late = 0.0;
    for timer in timers {
        too_late += timer.await.expect("a timer") / AT_ONCE as f64;
    }
    too_late
}

/// By how much a timer with the budget of a look-up is late, in ms.
async fn lateness() -> f64 {
    let begun = Clock::System.timer_now();
    sleep(BUDGET).await;
    millis(Clock::System.timer_now() - begun - BUDGET)
}

const LOST: &str = "workspace_gateway_fleet_lost";
const STORED: &str = "workspace_gateway_fleet_stores_total{kind=\"entry\",result=\"stored\"}";
const LATE: &str = "workspace_gateway_fleet_lookup_seconds_count{result=\"late\"}";
const WAITED: &str = "workspace_gateway_fleet_lookup_seconds_sum{result=\"late\"}";

/// How long a request took.
struct Time {
    is_hit: bool,
    is_right: bool,
    took: Duration,
}

/// A gateway, and what its requests took.
struct World {
    gateway: Arc<Gateway>,
    connection: Connection,
    times: Mutex<Vec<Time>>,
}

impl World {
    fn new(settings: &str) -> Self {
        let settings =
            format!("region = \"cn-north-4\"\n[upstream]\nmax_calls = 1000\nmax_calls_per_caller = 500\n{settings}");
        let config = Config::from_layers("fleet", &settings, &[] as &[Override]).expect("valid settings");
        let gateway = Gateway::with_upstream(Arc::new(Services), &config, Clock::System, Random::System);
        let gateway = gateway.expect("a gateway");
        let connection = gateway.connection(([127, 0, 0, 1], 8080).into(), [127, 0, 0, 1].into());
        Self { gateway, connection, times: Mutex::default() }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Vec<Time>> {
        self.times.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn clear(&self) {
        self.lock().clear();
    }

    async fn ask(&self, caller: usize, list: &str) {
        let begun = Clock::System.timer_now();
        let request = Request::get(format!("{LISTS}?product_id={list}")).header("host", "gateway");
        let request = request.header("x-auth-token", format!("caller-{caller}")).body(Empty::<Bytes>::new());
        let response = self.gateway.handle(request.expect("a request"), &self.connection).await;
        let (head, body) = response.into_parts();
        let body = body.collect().await.expect("a complete response").to_bytes();
        let took = Clock::System.timer_now() - begun;
        let is_right = head.status == StatusCode::OK && body == answer(list);
        self.lock().push(Time { is_hit: list == "hit", is_right, took });
    }

    /// In ms, sorted.
    fn times(&self, selects: impl Fn(&Time) -> bool) -> Vec<f64> {
        let mut times: Vec<_> = self.lock().iter().filter(|time| selects(time)).map(|time| millis(time.took)).collect();
        times.sort_by(f64::total_cmp);
        times
    }

    fn metric(&self, series: &str) -> f64 {
        let text = self.gateway.metrics().encode().expect("metrics");
        let value = text.lines().find_map(|line| line.strip_prefix(series)?.trim().parse().ok());
        value.unwrap_or_default()
    }

    async fn until(&self, series: &str, is_reached: impl Fn(f64) -> bool) {
        let waiting = async {
            while !is_reached(self.metric(series)) {
                sleep(Duration::from_millis(1)).await;
            }
        };
        timeout(Duration::from_secs(20), waiting).await.expect("it takes less than 20 s");
    }
}

/// What upstream answers.
fn answer(list: &str) -> Bytes {
    format!("{{\"products\":[\"{list}\"],\"total_count\":1}}").into()
}

/// Upstream. It accepts every token.
struct Services;

impl Upstream for Services {
    fn fetch_list<'a>(
        &'a self,
        key: &'a RequestKey,
        _: FetchContext,
        _: Charge,
    ) -> PendingResponse<'a, UpstreamResponse> {
        let list = key.query().split_once("product_id=").map_or("", |(_, list)| list);
        let list = list.split('&').next().unwrap_or_default();
        Box::pin(async move {
            sleep(LATENCY).await;
            let mut response = Response::new(answer(list));
            response.headers_mut().insert("content-type", HeaderValue::from_static("application/json"));
            Ok(UpstreamResponse::read(response))
        })
    }

    fn relay<'a>(
        &'a self,
        _: Service,
        _: &'a Origin,
        _: &'a Parts,
        _: StreamBody,
    ) -> PendingResponse<'a, Response<StreamBody>> {
        unreachable!("no request is relayed")
    }
}

/// Debian's Redis. It ends when it is dropped.
struct Engine {
    process: Child,
    port: u16,
    folder: PathBuf,
}

impl Engine {
    fn start() -> Self {
        let port = TcpListener::bind("127.0.0.1:0").and_then(|listener| listener.local_addr()).expect("a port").port();
        let folder = std::env::temp_dir().join(format!("workspace-gateway-bench-fleet-{}", std::process::id()));
        std::fs::create_dir_all(&folder).expect("a folder");
        let mut command = Command::new("redis-server");
        command.args(["--bind", "127.0.0.1", "--save", "", "--appendonly", "no", "--port", &port.to_string(), "--dir"]);
        command.arg(&folder).stdout(Stdio::piped());
        let mut engine = Self { process: command.spawn().expect("redis-server is on the PATH"), port, folder };
        let mut lines = BufReader::new(engine.process.stdout.take().expect("its log")).lines().map_while(Result::ok);
        assert!(lines.any(|line| line.contains("Ready to accept connections")), "it has ended");
        std::thread::spawn(move || lines.for_each(drop));
        engine
    }

    fn signal(&self, signal: Signal) {
        let id = i32::try_from(self.process.id()).ok().and_then(Pid::from_raw);
        kill_process(id.expect("a process"), signal).expect("it runs");
    }
}

impl Drop for Engine {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
        let _ = std::fs::remove_dir_all(&self.folder);
    }
}

/// Prints figures, and whether they are within their limits.
#[derive(Default)]
struct Judge {
    has_failed: bool,
}

impl Judge {
    fn check(&mut self, what: &str, figures: &str, is_within: bool, limit: f64) {
        let verdict = if is_within { "" } else { "   FAILED" };
        self.has_failed |= !is_within;
        println!("  {what:<50}{figures:>36}   limit {limit}{verdict}");
    }

    fn compare(&mut self, what: &str, [without, with]: [f64; 2], limit: f64) {
        let difference = with - without;
        let figures = format!("{without:.3} without, {with:.3} with: {difference:+.3}");
        self.check(what, &figures, difference <= limit, limit);
    }

    fn at_most(&mut self, what: &str, figure: f64, limit: f64) {
        self.check(what, &format!("{figure:.2}"), figure <= limit, limit);
    }

    fn at_least(&mut self, what: &str, figure: f64, limit: f64) {
        self.check(what, &format!("at least: {figure:.2}"), figure >= limit, limit);
    }
}

fn millis(time: Duration) -> f64 {
    time.as_secs_f64() * 1e3
}

/// The value below which this share is.
fn at(sorted: &[f64], share: f64) -> f64 {
    let place = (sorted.len() as f64 * share) as usize;
    sorted.get(place.min(sorted.len().saturating_sub(1))).copied().unwrap_or_default()
}
