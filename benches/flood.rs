//! A flood: a million distinct tokens that upstream refuses, a million that it accepts, and a million
//! distinct questions of one caller, thrown at the real program; then, for some seconds, all loads of `loads/`. Its memory has to stay within what is
//! configured and a fixed overhead, and a good caller has to be given right answers from memory meanwhile.
//!
//! `cargo bench --bench flood` prints a table and fails if it isn't so; `-- --requests 100000` makes the
//! phases shorter. Nothing here looks into the gateway: it is a process of its own, known by its sockets,
//! its log, its metrics and what Linux says of its memory.

#![allow(missing_docs, clippy::expect_used)]

mod loads;
mod wire;

use std::io::{BufRead, BufReader};
use std::net::SocketAddr;
use std::process::{Child, Command, ExitCode, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use loads::Running;
use loads::client::Target;
use tokio::net::TcpListener;
use tokio::task::JoinSet;
use wire::{HANG, Wire};
use workspace_gateway::testing::clock::Clock;

const MIB: usize = 1 << 20;

/// What is configured, small enough for a phase to overrun it many times: `cache.max_size`, and
/// `grants.max_grants` with what one takes.
const CACHE: usize = 32 * MIB;
const GRANTS: usize = 50_000;
const GRANT: usize = 256;
/// What the program may take besides: itself, its connections, and what the allocator doesn't give back.
const OVERHEAD: usize = 48 * MIB;
/// What the loads may make it hold besides, `limits.memory`.
const BUDGET: usize = 32 * MIB;

/// How long the loads last, and one in how many of their connections there are.
const LOADED: Duration = Duration::from_secs(10);
const LOADED_ONE_IN: usize = 4;

const CONNECTIONS: usize = 64;
/// Requests written at once on a connection, so that the gateway is never idle for want of them.
const PIPELINED: usize = 16;
/// A documented length of tokens, which every tenth has; the others are as long as their number.
const LONG_TOKEN: usize = 4_800;
/// How often the good caller asks, how many of its answers have to be hits, and how long it waits for
/// one on a machine that is busy with all of this.
const PACE: Duration = Duration::from_millis(5);
const HITS_IN_PERCENT: usize = 95;
const PATIENCE: Duration = Duration::from_secs(2);
/// How long beside the loads, which take most of two cores themselves.
const LOADED_PATIENCE: Duration = Duration::from_secs(10);

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().collect();
    if !arguments.iter().any(|argument| argument == "--bench") {
        println!("nothing to test here: cargo bench --bench flood runs it");
        return ExitCode::SUCCESS;
    }
    let flag = arguments.iter().position(|argument| argument == "--requests");
    let requests = flag.map_or(1_000_000, |flag| arguments[flag + 1].parse().expect("--requests NUMBER"));
    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    if runtime.block_on(run(requests)) { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// What a phase asks by its n-th request, token and query, and whether that has an answer.
#[derive(Clone, Copy)]
struct Phase {
    name: &'static str,
    asks: fn(usize) -> (String, String),
    is_good: bool,
}

const PHASES: [Phase; 3] = [
    Phase { name: "refused tokens", asks: |n| (token("bad", n), "os_type=Windows".to_owned()), is_good: false },
    Phase { name: "valid tokens", asks: |n| (token("good", n), "os_type=Windows".to_owned()), is_good: true },
    Phase { name: "questions", asks: |n| ("good-asker".to_owned(), format!("offset={}", n + 1)), is_good: true },
];

fn token(kind: &str, number: usize) -> String {
    let length = if number.is_multiple_of(10) { LONG_TOKEN } else { 0 };
    format!("{kind}-{number:-<length$}")
}

fn question(token: &str, query: &str) -> String {
    format!("GET /v2/p/products?{query} HTTP/1.1\r\nhost: gateway\r\nx-auth-token: {token}\r\n\r\n")
}

const REFUSAL: &str = r#"{"error_code":"APIGW.0307","error_msg":"Incorrect IAM authentication information: decrypt token fail","request_id":"5d2fc7b35a32a2ec7e2a4de7b5b0b8d7"}"#;

/// The answer to a query, whoever asks. Short, for that is where most of an entry's memory isn't its text;
/// of different lengths, or each entry would fit where another was.
fn list(query: &str) -> String {
    let count = 1 + query.bytes().map(usize::from).sum::<usize>() % 4;
    let product = r#"{"product_id":"workspace.x86.ultimate.large2","flavor_id":"s3.xlarge.2","type":"BASE","cpu":"4","memory":"8192","architecture":"x86","system_disk_type":"SAS","system_disk_size":"80","charge_mode":"1"},"#;
    let products = product.repeat(count);
    format!(r#"{{"products":[{}],"total_count":{count},"asked":"{query}"}}"#, products.trim_end_matches(','))
}

/// Serves both services: product lists to tokens that begin with `good`, refusals to all others.
async fn upstream() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let address = listener.local_addr().expect("an address");
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            tokio::spawn(async move {
                let mut wire = Wire::new(stream);
                while let Some((head, _)) = wire.read().await {
                    let query = head.split(['?', ' ']).nth(2).unwrap_or_default();
                    let is_good = head.contains("\r\nx-auth-token: good");
                    let status = if is_good { "200 OK" } else { "401 Unauthorized" };
                    let body = if is_good { list(query) } else { REFUSAL.to_owned() };
                    // Headers as captured from the real API gateway.
                    wire.write(&format!("HTTP/1.1 {status}\r\ndate: Mon, 01 Sep 2025 08:00:00 GMT\r\ncontent-type: application/json;charset=utf8\r\nserver: api-gateway\r\nx-request-id: 5d2fc7b35a32a2ec7e2a4de7b5b0b8d7\r\nstrict-transport-security: max-age=31536000; includeSubdomains;\r\nx-frame-options: SAMEORIGIN\r\nx-content-type-options: nosniff\r\nx-xss-protection: 1; mode=block;\r\ncontent-length: {}\r\n\r\n{body}", body.len())).await;
                }
            });
        }
    });
    address
}

async fn run(requests: usize) -> bool {
    let gateway = Gateway::start(upstream().await);
    let answers = Answers::default();
    // On a thread of its own, or it would wait for the flood on this side, too.
    std::thread::spawn({
        let (answers, address) = (Arc::clone(&answers), gateway.proxy);
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        move || runtime.block_on(ask_steadily(address, &answers))
    });
    println!("{requests} requests a phase on {CONNECTIONS} connections; MiB of memory, milliseconds of latency");
    println!(
        "         phase  seconds    per s   at 25, 50, 75, 100 %   peak   entries   MiB   grants   good: asked   not hit   p50   p99   worst"
    );
    let mut passed = true;
    for phase in PHASES {
        let failures = flood(phase, requests, &gateway, &answers).await;
        failures.iter().for_each(|failure| println!("FAILED: {failure}"));
        passed &= failures.is_empty();
    }
    let failures = load(&gateway, &answers).await;
    failures.iter().for_each(|failure| println!("FAILED: {failure}"));
    passed && failures.is_empty()
}

/// What a phase has come to.
struct Course {
    name: &'static str,
    begun: Instant,
    requests: usize,
    /// MiB of memory, now and then.
    quarters: Vec<usize>,
    /// MiB that it may take at most.
    bound: usize,
    /// How long the good caller may wait.
    stale_if_slow: Duration,
}

/// Has all loads come at once.
async fn load(gateway: &Gateway, answers: &Answers) -> Vec<String> {
    answers.lock().expect("nobody panics with it").clear();
    let begun = Clock::System.now();
    let loads = Running::begin_all(&Target { address: gateway.proxy, tls: None }, LOADED_ONE_IN);
    let mut quarters = Vec::new();
    for _ in 0..4 {
        tokio::time::sleep(LOADED / 4).await;
        quarters.push(gateway.memory("VmRSS"));
    }
    let requests = loads.iter().map(Running::placed).sum();
    drop(loads);
    let bound = (CACHE + GRANTS * GRANT + OVERHEAD + BUDGET) / MIB;
    tell(Course { name: "loads", begun, requests, quarters, bound, stale_if_slow: LOADED_PATIENCE }, gateway, answers)
        .await
}

/// Runs a phase and tells what is not as it should be.
async fn flood(phase: Phase, requests: usize, gateway: &Gateway, answers: &Answers) -> Vec<String> {
    let mut failures = Vec::new();
    answers.lock().expect("nobody panics with it").clear();
    let begun = Clock::System.now();
    let next = Arc::new(AtomicUsize::new(0));
    let mut flooding = JoinSet::new();
    for _ in 0..CONNECTIONS {
        flooding.spawn(ask_all(phase, requests, Arc::clone(&next), gateway.proxy));
    }
    let mut quarters = Vec::new();
    while !flooding.is_empty() {
        tokio::select! {
            Some(one) = flooding.join_next() => failures.extend(one.expect("nothing panics there").err()),
            () = tokio::time::sleep(Duration::from_millis(20)) => {
                if quarters.len() < 3 && next.load(Ordering::Relaxed) >= requests * (quarters.len() + 1) / 4 {
                    quarters.push(gateway.memory("VmRSS"));
                }
            }
        }
    }
    quarters.push(gateway.memory("VmRSS"));
    let bound = (CACHE + GRANTS * GRANT + OVERHEAD) / MIB;
    let course = Course { name: phase.name, begun, requests, quarters, bound, stale_if_slow: PATIENCE };
    failures.extend(tell(course, gateway, answers).await);
    failures
}

/// Prints a line of figures, and tells what is not as it should be.
async fn tell(course: Course, gateway: &Gateway, answers: &Answers) -> Vec<String> {
    let Course { name, begun, requests, quarters, bound, stale_if_slow } = course;
    let mut failures = Vec::new();
    let seconds = Clock::System.now().saturating_duration_since(begun).as_secs_f64();
    let peak = gateway.memory("VmHWM");
    let metrics = gateway.metrics().await;
    let mut answers = std::mem::take(&mut *answers.lock().expect("nobody panics with it"));
    answers.sort_unstable_by_key(|answer| answer.took);
    let asked = answers.len();
    let misses = answers.iter().filter(|answer| !answer.hit).count();
    let took = |percent: usize| answers.get((asked * percent / 100).min(asked.saturating_sub(1))).map(|a| a.took);
    let [p50, p99, worst] = [50, 99, 100].map(|percent| took(percent).unwrap_or(HANG).as_secs_f64() * 1e3);
    println!(
        "{:>14}{seconds:>9.1}{:>9.0}{:>23}{peak:>7}{:>10}{:>6.0}{:>9}{asked:>14}{misses:>10}{p50:>6.1}{p99:>6.1}{worst:>8.1}",
        name,
        requests as f64 / seconds,
        format!("{quarters:?}"),
        metrics("entries"),
        metrics("entries_bytes") / MIB as f64,
        metrics("grants"),
    );

    if peak > bound {
        failures.push(format!("it took {peak} MiB, and may take {bound}"));
    }
    failures.extend(answers.iter().find_map(|answer| answer.wrong.clone()));
    if misses * 100 > asked * (100 - HITS_IN_PERCENT) || took(100).is_none_or(|worst| worst > stale_if_slow) {
        failures.push("the good caller had too few hits, or waited too long for one".to_owned());
    }
    failures
}

/// One connection's part of a phase; the first wrong answer is an error.
async fn ask_all(phase: Phase, requests: usize, next: Arc<AtomicUsize>, address: SocketAddr) -> Result<(), String> {
    let mut wire = Wire::to(address).await;
    loop {
        let begin = next.fetch_add(PIPELINED, Ordering::Relaxed);
        let asked: Vec<_> = (begin..requests.min(begin + PIPELINED)).map(phase.asks).collect();
        if asked.is_empty() {
            return Ok(());
        }
        wire.write(&asked.iter().map(|(token, query)| question(token, query)).collect::<String>()).await;
        for (_, query) in asked {
            let (head, body) = wire.read().await.unwrap_or_default();
            let (status, due) = if phase.is_good { ("200", list(&query)) } else { ("401", REFUSAL.to_owned()) };
            if head.get(9..12) != Some(status) || body != due {
                return Err(format!("{}, {query}: {head}{body}", phase.name));
            }
        }
    }
}

/// What the good caller was answered.
struct Answer {
    took: Duration,
    hit: bool,
    wrong: Option<String>,
}

type Answers = Arc<Mutex<Vec<Answer>>>;

/// The good caller: asks one question again and again, until an answer is wrong or there is none.
async fn ask_steadily(address: SocketAddr, answers: &Answers) {
    let mut wire = Wire::to(address).await;
    let mut right = true;
    while right {
        let asked = Clock::System.now();
        wire.write(&question("good-caller", "os_type=Linux")).await;
        let (head, body) = wire.read().await.unwrap_or_default();
        let took = Clock::System.now().saturating_duration_since(asked);
        right = head.get(9..12) == Some("200") && body == list("os_type=Linux");
        let wrong = (!right).then(|| format!("the good caller was answered {head}{body}"));
        let answer = Answer { took, hit: head.contains("workspace-gateway; hit"), wrong };
        answers.lock().expect("nobody panics with it").push(answer);
        tokio::time::sleep(PACE).await;
    }
}

/// The gateway, as a process that ends with this value.
struct Gateway {
    process: Child,
    proxy: SocketAddr,
    metrics: SocketAddr,
}

impl Gateway {
    fn start(upstream: SocketAddr) -> Self {
        let file = concat!(env!("CARGO_TARGET_TMPDIR"), "/flood.toml");
        let settings = format!("[cache]\nmax_size = \"{CACHE}B\"\nttl = \"1h\"\n[grants]\nmax_grants = {GRANTS}\n");
        let settings = format!("{settings}[limits]\nmemory = \"{BUDGET}B\"\n{}", loads::settings());
        std::fs::write(file, settings).expect("a configuration file");
        let mut command = Command::new(env!("CARGO_BIN_EXE_workspace-gateway"));
        command.args(["serve", "--config", file, "--listen", "127.0.0.1:0", "--metrics-listen", "127.0.0.1:0"]);
        command.args(["--admin-listen", "127.0.0.1:0", "--mode", "cache", "--workspace-url"]);
        command.args([&format!("http://{upstream}"), "--appstream-url", &format!("http://{upstream}")]);
        // The same on every machine: each worker allocates from an arena of its own, and leaves its gaps.
        command.env("TOKIO_WORKER_THREADS", "2");
        let process = command.stderr(Stdio::piped()).spawn().expect("the gateway starts");
        let nowhere = SocketAddr::from(([0, 0, 0, 0], 0));
        // First of all, so that it is killed whatever happens next.
        let mut gateway = Self { process, proxy: nowhere, metrics: nowhere };
        let mut log = BufReader::new(gateway.process.stderr.take().expect("it is piped"));
        let mut line = String::new();
        while !line.contains(" proxy=") {
            line.clear();
            assert!(log.read_line(&mut line).expect("its log is text") > 0, "it ended before it was ready");
        }
        let field = |name| line.split_once(name).and_then(|(_, rest)| rest.split_whitespace().next()?.parse().ok());
        gateway.proxy = field(" proxy=").expect("where clients connect");
        gateway.metrics = field(" metrics=").expect("where metrics are");
        // It writes a line for each request, and would wait for someone to read it.
        std::thread::spawn(move || std::io::copy(&mut log, &mut std::io::sink()));
        gateway
    }

    /// MiB of its memory, as `/proc/PID/status` calls them: `VmRSS` now, `VmHWM` at most so far.
    fn memory(&self, name: &str) -> usize {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.process.id())).expect("it runs");
        let value = status.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':')?.strip_suffix("kB"));
        value.and_then(|value| value.trim().parse::<usize>().ok()).expect("a number of kB") / 1024
    }

    /// Its gauges; 0 for one that it doesn't have.
    async fn metrics(&self) -> impl Fn(&str) -> f64 {
        let mut wire = Wire::to(self.metrics).await;
        wire.write("GET /metrics HTTP/1.1\r\nhost: gateway\r\n\r\n").await;
        let text = wire.read().await.expect("metrics").1.to_owned();
        move |name: &str| {
            let series = format!("workspace_gateway_{name} ");
            text.lines().find_map(|line| line.strip_prefix(&series)?.parse().ok()).unwrap_or(0.0)
        }
    }
}

impl Drop for Gateway {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}
