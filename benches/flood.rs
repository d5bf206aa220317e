//! A flood of requests: a million distinct tokens that upstream refuses, a million that it accepts, and a million
//! distinct requests of one caller. Then all loads of `loads/` run for some seconds.
//!
//! The memory must stay within the configured limits and a fixed overhead. A legitimate caller must get correct hits
//! all the time. `cargo bench --bench flood` prints a table, and fails otherwise. `-- --requests 100000` makes the
//! phases shorter.
//!
//! The gateway is a process of its own. It is observed from outside: sockets, log, metrics and `/proc`.

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

/// The configured limits, `cache.max_size` and `grants.max_grants`, and the bytes of a grant. They are so small that a
/// phase exceeds them many times.
const CACHE: usize = 32 * MIB;
const GRANTS: usize = 50_000;
const GRANT: usize = 256;
/// The memory that the program may use besides: its code, its connections, and what the allocator does not return.
const OVERHEAD: usize = 48 * MIB;
/// The memory budget for the loads, `limits.memory`.
const BUDGET: usize = 32 * MIB;

/// The duration of the loads, and the divisor of their connection counts.
const LOADED: Duration = Duration::from_secs(10);
const LOADED_ONE_IN: usize = 4;

const CONNECTIONS: usize = 64;
/// Requests that are written at once on a connection, to keep the gateway busy.
const PIPELINED: usize = 16;
/// A documented length of tokens. Every tenth token has it; the others are short.
const LONG_TOKEN: usize = 4_800;
/// The interval of the legitimate caller's requests, the required share of hits, and the longest accepted time of a
/// response on this busy machine.
const PACE: Duration = Duration::from_millis(5);
const HITS_IN_PERCENT: usize = 95;
const MAX_LATENCY: Duration = Duration::from_secs(2);
/// The same while the loads run, which use most of two cores.
const LOADED_MAX_LATENCY: Duration = Duration::from_secs(10);

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().collect();
    if !arguments.iter().any(|argument| argument == "--bench") {
        println!("not a test: run cargo bench --bench flood");
        return ExitCode::SUCCESS;
    }
    let flag = arguments.iter().position(|argument| argument == "--requests");
    let requests = flag.map_or(1_000_000, |flag| arguments[flag + 1].parse().expect("--requests NUMBER"));
    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    if runtime.block_on(run(requests)) { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// The token and query of a phase's n-th request, and whether upstream accepts it.
#[derive(Clone, Copy)]
struct Phase {
    name: &'static str,
    request: fn(usize) -> (String, String),
    is_good: bool,
}

const PHASES: [Phase; 3] = [
    Phase { name: "refused tokens", request: |n| (token("bad", n), "os_type=Windows".to_owned()), is_good: false },
    Phase { name: "valid tokens", request: |n| (token("good", n), "os_type=Windows".to_owned()), is_good: true },
    Phase { name: "queries", request: |n| ("good-client".to_owned(), format!("offset={}", n + 1)), is_good: true },
];

fn token(kind: &str, number: usize) -> String {
    let length = if number.is_multiple_of(10) { LONG_TOKEN } else { 0 };
    format!("{kind}-{number:-<length$}")
}

fn head(token: &str, query: &str) -> String {
    format!("GET /v2/p/products?{query} HTTP/1.1\r\nhost: gateway\r\nx-auth-token: {token}\r\n\r\n")
}

const REFUSAL: &str = r#"{"error_code":"APIGW.0307","error_msg":"Incorrect IAM authentication information: decrypt token fail","request_id":"5d2fc7b35a32a2ec7e2a4de7b5b0b8d7"}"#;

/// The list for a query. It is short, so that most of an entry's memory is overhead. Lengths differ, so that an entry
/// does not simply reuse another one's memory.
fn list(query: &str) -> String {
    let count = 1 + query.bytes().map(usize::from).sum::<usize>() % 4;
    let product = r#"{"product_id":"workspace.x86.ultimate.large2","flavor_id":"s3.xlarge.2","type":"BASE","cpu":"4","memory":"8192","architecture":"x86","system_disk_type":"SAS","system_disk_size":"80","charge_mode":"1"},"#;
    let products = product.repeat(count);
    format!(r#"{{"products":[{}],"total_count":{count},"asked":"{query}"}}"#, products.trim_end_matches(','))
}

/// Serves both services: lists for tokens that begin with `good`, 401 for all others.
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
                    wire.write(&format!("HTTP/1.1 {status}\r\ndate: Mon, 01 Sep 2025 08:00:00 GMT\r\n\
                        content-type: application/json;charset=utf8\r\nserver: api-gateway\r\n\
                        x-request-id: 5d2fc7b35a32a2ec7e2a4de7b5b0b8d7\r\n\
                        strict-transport-security: max-age=31536000; includeSubdomains;\r\n\
                        x-frame-options: SAMEORIGIN\r\nx-content-type-options: nosniff\r\nx-xss-protection: 1; mode=block;\r\ncontent-length: {}\r\n\r\n{body}", body.len())).await;
                }
            });
        }
    });
    address
}

async fn run(requests: usize) -> bool {
    let gateway = Gateway::start(upstream().await);
    let samples = Samples::default();
    // On its own thread, so that the flood's tasks do not delay it.
    std::thread::spawn({
        let (samples, address) = (Arc::clone(&samples), gateway.proxy);
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        move || runtime.block_on(send_steadily(address, &samples))
    });
    println!("{requests} requests a phase on {CONNECTIONS} connections; MiB of memory, milliseconds of latency");
    println!(
        "         phase  seconds    per s   at 25, 50, 75, 100 %   peak   entries   MiB   grants      requests   not hit   p50   p99   worst"
    );
    let mut passed = true;
    for phase in PHASES {
        let failures = flood(phase, requests, &gateway, &samples).await;
        failures.iter().for_each(|failure| println!("FAILED: {failure}"));
        passed &= failures.is_empty();
    }
    let failures = load(&gateway, &samples).await;
    failures.iter().for_each(|failure| println!("FAILED: {failure}"));
    passed && failures.is_empty()
}

/// The measurements of a phase.
struct Measured {
    name: &'static str,
    begun: Instant,
    requests: usize,
    /// MiB of memory at each quarter of the phase.
    quarters: Vec<usize>,
    /// The largest allowed memory, in MiB.
    bound: usize,
    /// The longest accepted time of a legitimate response.
    max_latency: Duration,
}

/// Runs all loads at once.
async fn load(gateway: &Gateway, samples: &Samples) -> Vec<String> {
    samples.lock().expect("not poisoned").clear();
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
    report(
        Measured { name: "loads", begun, requests, quarters, bound, max_latency: LOADED_MAX_LATENCY },
        gateway,
        samples,
    )
    .await
}

/// Runs a phase and returns its failures.
async fn flood(phase: Phase, requests: usize, gateway: &Gateway, samples: &Samples) -> Vec<String> {
    let mut failures = Vec::new();
    samples.lock().expect("not poisoned").clear();
    let begun = Clock::System.now();
    let next = Arc::new(AtomicUsize::new(0));
    let mut flooding = JoinSet::new();
    for _ in 0..CONNECTIONS {
        flooding.spawn(send_all(phase, requests, Arc::clone(&next), gateway.proxy));
    }
    let mut quarters = Vec::new();
    while !flooding.is_empty() {
        tokio::select! {
            Some(one) = flooding.join_next() => failures.extend(one.expect("no panic").err()),
            () = tokio::time::sleep(Duration::from_millis(20)) => {
                if quarters.len() < 3 && next.load(Ordering::Relaxed) >= requests * (quarters.len() + 1) / 4 {
                    quarters.push(gateway.memory("VmRSS"));
                }
            }
        }
    }
    quarters.push(gateway.memory("VmRSS"));
    let bound = (CACHE + GRANTS * GRANT + OVERHEAD) / MIB;
    let measured = Measured { name: phase.name, begun, requests, quarters, bound, max_latency: MAX_LATENCY };
    failures.extend(report(measured, gateway, samples).await);
    failures
}

/// Prints a row of the table, and returns the failures.
async fn report(measured: Measured, gateway: &Gateway, samples: &Samples) -> Vec<String> {
    let Measured { name, begun, requests, quarters, bound, max_latency } = measured;
    let mut failures = Vec::new();
    let seconds = Clock::System.now().saturating_duration_since(begun).as_secs_f64();
    let peak = gateway.memory("VmHWM");
    let metrics = gateway.metrics().await;
    let mut samples = std::mem::take(&mut *samples.lock().expect("not poisoned"));
    samples.sort_unstable_by_key(|sample| sample.took);
    let count = samples.len();
    let misses = samples.iter().filter(|answer| !answer.hit).count();
    let took = |percent: usize| samples.get((count * percent / 100).min(count.saturating_sub(1))).map(|a| a.took);
    let [p50, p99, worst] = [50, 99, 100].map(|percent| took(percent).unwrap_or(HANG).as_secs_f64() * 1e3);
    println!(
        "{:>14}{seconds:>9.1}{:>9.0}{:>23}{peak:>7}{:>10}{:>6.0}{:>9}{count:>14}{misses:>10}{p50:>6.1}{p99:>6.1}{worst:>8.1}",
        name,
        requests as f64 / seconds,
        format!("{quarters:?}"),
        metrics("entries"),
        metrics("entries_bytes") / MIB as f64,
        metrics("grants"),
    );

    if peak > bound {
        failures.push(format!("{peak} MiB of memory, {bound} MiB are allowed"));
    }
    failures.extend(samples.iter().find_map(|sample| sample.wrong.clone()));
    if misses * 100 > count * (100 - HITS_IN_PERCENT) || took(100).is_none_or(|worst| worst > max_latency) {
        failures.push("the legitimate caller had too few hits, or a hit took too long".to_owned());
    }
    failures
}

/// The part of a phase on one connection. The first wrong response is an error.
async fn send_all(phase: Phase, requests: usize, next: Arc<AtomicUsize>, address: SocketAddr) -> Result<(), String> {
    let mut wire = Wire::connect(address).await;
    loop {
        let begin = next.fetch_add(PIPELINED, Ordering::Relaxed);
        let batch: Vec<_> = (begin..requests.min(begin + PIPELINED)).map(phase.request).collect();
        if batch.is_empty() {
            return Ok(());
        }
        wire.write(&batch.iter().map(|(token, query)| head(token, query)).collect::<String>()).await;
        for (_, query) in batch {
            let (head, body) = wire.read().await.unwrap_or_default();
            let (status, expected) = if phase.is_good { ("200", list(&query)) } else { ("401", REFUSAL.to_owned()) };
            if head.get(9..12) != Some(status) || body != expected {
                return Err(format!("{}, {query}: {head}{body}", phase.name));
            }
        }
    }
}

/// A response to the legitimate caller.
struct Sample {
    took: Duration,
    hit: bool,
    wrong: Option<String>,
}

type Samples = Arc<Mutex<Vec<Sample>>>;

/// The legitimate caller: repeats a request until a response is wrong or missing.
async fn send_steadily(address: SocketAddr, samples: &Samples) {
    let mut wire = Wire::connect(address).await;
    let mut is_right = true;
    while is_right {
        let sent = Clock::System.now();
        wire.write(&head("good-caller", "os_type=Linux")).await;
        let (head, body) = wire.read().await.unwrap_or_default();
        let took = Clock::System.now().saturating_duration_since(sent);
        is_right = head.get(9..12) == Some("200") && body == list("os_type=Linux");
        let wrong = (!is_right).then(|| format!("the legitimate caller got {head}{body}"));
        let sample = Sample { took, hit: head.contains("workspace-gateway; hit"), wrong };
        samples.lock().expect("not poisoned").push(sample);
        tokio::time::sleep(PACE).await;
    }
}

/// The gateway's process. It is killed when this is dropped.
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
        // The same on every machine: each worker has its own allocator arena, with its fragmentation.
        command.env("TOKIO_WORKER_THREADS", "2");
        let process = command.stderr(Stdio::piped()).spawn().expect("the gateway starts");
        let nowhere = SocketAddr::from(([0, 0, 0, 0], 0));
        // Created first, so that the process is killed whatever happens next.
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

    /// Reads the gauges. 0 for a gauge that does not exist.
    async fn metrics(&self) -> impl Fn(&str) -> f64 {
        let mut wire = Wire::connect(self.metrics).await;
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
