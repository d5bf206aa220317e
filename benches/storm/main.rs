//! A storm: 200 clients over real sockets (every fifth in HTTP/2). Upstream is in turn healthy, slow, stuck, failing,
//! throttling, resetting and dead. Tokens are revoked and restored, and the catalogue changes. Each response is judged
//! by upstream's states and by what the gateway guarantees.
//!
//! Nobody reads the gateway's log. After a minute its clocks are moved. Then the loads of `benches/loads` run for some
//! seconds beside the clients; for a part of that time the gateway has no free descriptors. It may then refuse
//! requests, be late and close connections. Complete responses must still be correct, and nothing may stay in use.
//!
//! Then the clients move between the four gateways of a fleet (`fleet.rs`): with one engine, and with Sentinel. This needs
//! redis-server and redis-cli on the PATH.
//!
//! `cargo bench --bench storm` prints the number of responses of each kind. It fails if a response is wrong, late or
//! missing, or if the gateway has more resources in use at the end than at the beginning. Flags: `-- --seconds 10`,
//! `--fleet-seconds 60`, `--sentinel-seconds 60`, `--clients 50`, `--seed 7`. A part with 0 seconds is left out. The
//! seed fixes the injected faults and the requests, but not their timing.
//!
//! ```text
//! world         callers, resources, states of upstream   gateway    the gateway's process
//! faults        changes of upstream                      client     sends requests
//! cache_status  parses `Cache-Status`                    judge      judges responses
//! settings      the gateways' settings                   report     the results
//! lifetimes     how long entries and grants are used     engines    the fleets' engines
//! fleet         the parts with a fleet
//! endpoint      a gateway as its clients see it          mortal     the gateway that is killed
//! network       connections of the clients
//! ```

#![allow(missing_docs, clippy::expect_used)]

mod cache_status;
mod client;
mod endpoint;
#[path = "../support/engine.rs"]
mod engine;
mod engines;
mod faults;
mod fleet;
mod gateway;
mod judge;
mod lifetimes;
#[path = "../support/limits.rs"]
mod limits;
#[path = "../loads/mod.rs"]
mod loads;
#[path = "../support/metrics.rs"]
mod metrics;
mod mortal;
mod network;
mod report;
mod settings;
mod world;

use std::process::ExitCode;
use std::str::FromStr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use rand::SeedableRng;
use rand::rngs::SmallRng;
use tokio::sync::watch;
use tokio::task::JoinSet;
use workspace_gateway::testing::catalogue::Service;
use workspace_gateway::testing::clock::Clock;
use workspace_gateway::testing::simulator::Simulator;

use client::Client;
use endpoint::Endpoint;
use fleet::FleetStorm;
use gateway::{Gateway, InUse};
use judge::Judge;
use loads::Running;
use loads::client::Target;
use report::Report;
use settings::ALONE;
use world::{Journal, World};

/// The same allocator as the program's.
#[cfg(all(target_os = "linux", target_env = "gnu"))]
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

/// Long enough for each fault once.
const WARM_UP: Duration = Duration::from_secs(20);
/// How long it may take until nothing is in use.
const QUIET: Duration = Duration::from_secs(20);
/// The duration of the loads, and the divisor of their connection counts.
const LOADED: Duration = Duration::from_secs(10);
const LOADED_ONE_IN: usize = 4;
/// How long the gateway has no free descriptors.
const EXHAUSTED: Duration = Duration::from_secs(3);
/// The required number of responses while the loads run. Measured on two busy cores: 8,388.
const MIN_RESPONSES: usize = 500;
/// The time after each move of a clock, and the required number of hits in it.
const MOVED: Duration = Duration::from_secs(4);
const MIN_HITS: usize = 50;
/// The number of parts in which memory is measured, and the interval of samples. Waiting requests take several MiB for
/// a second or two, so a single sample says little.
const PARTS: u32 = 6;
const SAMPLE_INTERVAL: Duration = Duration::from_millis(100);
/// The largest share of additional calls, in percent.
const MAX_ADDITIONAL: u64 = 2;

/// The largest growth of memory from the first to the last part, in percent. In a run of three minutes, medians of 10 s
/// differed by up to 4 % and single samples by 28 %.
const MAX_GROWTH: usize = 10;

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().collect();
    if let Some(flag) = arguments.iter().position(|argument| argument == gateway::FLAG) {
        gateway::serve(&arguments[flag + 1]);
        return ExitCode::SUCCESS;
    }
    if !arguments.iter().any(|argument| argument == "--bench") {
        println!("not a test: run cargo bench --bench storm");
        return ExitCode::SUCCESS;
    }
    let storm = Storm {
        seconds: number(&arguments, "--seconds", 60),
        clients: number(&arguments, "--clients", 200),
        seed: number(&arguments, "--seed", 1),
    };
    let fleet = |flag, with_sentinel| FleetStorm {
        with_sentinel,
        seconds: number(&arguments, flag, 24),
        clients: storm.clients / 2,
        seed: storm.seed,
    };
    let fleets = [fleet("--fleet-seconds", false), fleet("--sentinel-seconds", true)];
    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    let passes = runtime.block_on(async {
        let mut passes = storm.seconds == 0 || storm.run().await;
        for fleet in fleets.iter().filter(|fleet| fleet.seconds > 0) {
            passes &= fleet.run().await;
        }
        passes
    });
    if passes { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

fn number<T: FromStr>(arguments: &[String], flag: &str, default: T) -> T {
    let at = arguments.iter().position(|argument| argument == flag);
    let given = at.map(|at| arguments.get(at + 1).and_then(|text| text.parse().ok()));
    given.map_or(default, |given| given.unwrap_or_else(|| panic!("{flag} NUMBER")))
}

struct Storm {
    seconds: u64,
    clients: usize,
    seed: u64,
}

impl Storm {
    async fn run(&self) -> bool {
        let simulator = Simulator::start().await.expect("a simulator");
        let urls = [Service::Workspace, Service::AppStream].map(|service| simulator.url(service));
        let mut gateway = Gateway::start(&settings::toml(&urls, &ALONE));
        let gateways: Arc<[Endpoint]> = Arc::new([Endpoint::new(gateway.address, None)]);
        let world = Arc::new(World::new(simulator));
        let journal = Arc::new(Mutex::new(Journal::new(&world, gateways.len(), Clock::System.now())));
        let judge = Judge::new(Arc::clone(&world), Arc::clone(&journal), &gateways, ALONE);
        let judge = Arc::new(Mutex::new((judge, Report::default())));

        // What is created with the first requests must not count as a leak.
        let mut first = Client::new(0, Arc::clone(&world), &gateways, SmallRng::seed_from_u64(self.seed));
        for _ in 0..20 {
            first.exchange().await;
        }
        drop(first);
        let before = wait_until_idle(&world, &mut gateway, None).await;

        let (stop, stopped) = watch::channel(false);
        let faults = faults::inject(Arc::clone(&world), Arc::clone(&journal), self.seed, stopped.clone());
        let injecting = tokio::spawn(faults);
        let mut clients = JoinSet::new();
        for number in 0..self.clients {
            let dice = SmallRng::seed_from_u64(self.seed << 16 | number as u64);
            let client = Client::new(number, Arc::clone(&world), &gateways, dice);
            clients.spawn(run_client(client, Arc::clone(&judge), stopped.clone()));
        }

        // With the same requests as later, so that memory has reached its usual size.
        tokio::time::sleep(WARM_UP).await;
        let mut memory = Vec::new();
        for _ in 0..PARTS {
            memory.push(median_memory(&gateway, Duration::from_secs(self.seconds) / PARTS).await);
        }
        let moved = move_clocks(&mut gateway, &judge).await;
        // Without the calls for the loads.
        let (calls, counts) = (world.simulator.request_count(), gateway.counts());
        let responses = lock(&judge).1.responses();
        lock(&judge).0.expect_loads(Clock::System.now());
        let target = Target { address: gateway.address, tls: None };
        let loads = Running::begin_all(&target, LOADED_ONE_IN);
        tokio::time::sleep(LOADED - EXHAUSTED).await;
        gateway.apply(gateway::NO_DESCRIPTORS);
        tokio::time::sleep(EXHAUSTED).await;
        gateway.apply(gateway::DESCRIPTORS);
        let placed = loads.iter().map(Running::placed).sum::<usize>();
        drop(loads);
        stop.send_replace(true);
        while let Some(ended) = clients.join_next().await {
            ended.expect("no client panics");
        }
        injecting.await.expect("no panic");
        let after = wait_until_idle(&world, &mut gateway, Some(before)).await;

        let (_, report) = &mut *lock(&judge);
        println!("{} clients for {} s after {WARM_UP:?} to warm up, seed {}", self.clients, self.seconds, self.seed);
        print_conditions(&lock(&journal));
        report.print();
        println!("{calls} upstream calls for {responses} responses before the loads");
        let [additional, fetches, dropped_lines] = counts;
        println!(
            "{additional} of {fetches} calls for lists ({:.2} %) were additional",
            additional as f64 * 100.0 / fetches as f64
        );
        println!(
            "{placed} units of load in {LOADED:?}; {responses} responses before the loads, {} later",
            report.responses() - responses
        );
        println!("{dropped_lines} log lines were dropped");
        for (clock, hits) in &moved {
            println!("{clock}: {hits} hits in {MOVED:?}");
        }
        let (first, last) = (memory[0], memory[memory.len() - 1]);
        let mib = memory.iter().map(|&bytes| format!("{:.1}", bytes as f64 / f64::from(1 << 20)));
        let share = last as f64 / first as f64;
        println!(
            "memory after the warm-up, medians of {PARTS} parts: {} MiB, {share:.2} times as much",
            mib.collect::<Vec<_>>().join(", ")
        );
        println!("in use before: {before}\nin use after:  {after}");
        let failures = [
            (report.responses() - responses < MIN_RESPONSES).then(|| "too few responses beside the loads".to_owned()),
            moved.iter().any(|(_, hits)| *hits < MIN_HITS).then(|| "too few hits after a clock was moved".to_owned()),
            (dropped_lines == 0).then(|| "the log was never stalled".to_owned()),
            (report.wrongs > 0).then(|| format!("{} wrong responses", report.wrongs)),
            (last * 100 > first * (100 + MAX_GROWTH)).then(|| "memory grows".to_owned()),
            (additional * 100 > fetches * MAX_ADDITIONAL).then(|| "too many additional calls".to_owned()),
            (!after.is_back_at(&before)).then(|| "something is still in use".to_owned()),
        ];
        failures.iter().flatten().for_each(|failure| println!("FAILED: {failure}"));
        failures.iter().all(Option::is_none)
    }
}

/// The median of the gateway's memory during a span, in bytes.
async fn median_memory(gateway: &Gateway, span: Duration) -> usize {
    let mut samples = Vec::new();
    for _ in 0..(span.as_millis() / SAMPLE_INTERVAL.as_millis()).max(1) {
        tokio::time::sleep(SAMPLE_INTERVAL).await;
        samples.push(gateway.memory());
    }
    samples.sort_unstable();
    samples[samples.len() / 2]
}

/// Moves the gateway's clocks one after the other. Returns the name of each move and the number of hits after it.
async fn move_clocks(gateway: &mut Gateway, judge: &Mutex<(Judge, Report)>) -> Vec<(&'static str, usize)> {
    let mut moved = Vec::new();
    for clock in [gateway::WALL_BACK, gateway::WALL_AHEAD, gateway::BOOT_AHEAD] {
        if clock == gateway::WALL_BACK {
            gateway.apply(clock);
        } else {
            lock(judge).0.expect_jump();
            gateway.apply(clock);
            lock(judge).0.expect_nothing_from_before(0, Clock::System.now());
        }
        let before = lock(judge).0.hits();
        tokio::time::sleep(MOVED).await;
        moved.push((clock, lock(judge).0.hits() - before));
    }
    moved
}

async fn run_client(mut client: Client, judge: Arc<Mutex<(Judge, Report)>>, stopped: watch::Receiver<bool>) {
    while !*stopped.borrow() {
        client.think().await;
        let exchange = client.exchange().await;
        let (judge, report) = &mut *lock(&judge);
        let verdict = judge.judge(&exchange);
        report.count(&exchange, verdict, &client.world);
    }
}

/// Waits until the gateway has no more in use than before, or until the use is constant. Upstream is shut down
/// meanwhile, so that pooled connections to it do not count.
async fn wait_until_idle(world: &World, gateway: &mut Gateway, before: Option<InUse>) -> InUse {
    world.simulator.shut_down().await;
    let begun = Clock::System.now();
    let mut last = gateway.in_use();
    loop {
        tokio::time::sleep(Duration::from_millis(500)).await;
        let now = gateway.in_use();
        let is_idle = before.map_or(now == last, |before| now.is_back_at(&before));
        if is_idle || Clock::System.now().saturating_duration_since(begun) > QUIET {
            world.simulator.restart().expect("the addresses are reserved");
            return now;
        }
        last = now;
    }
}

fn print_conditions(journal: &Journal) {
    let mut counts = std::collections::BTreeMap::<_, usize>::new();
    journal.condition.all().for_each(|condition| *counts.entry(condition.name()).or_default() += 1);
    let condition: Vec<_> = counts.iter().map(|(name, count)| format!("{count} × {name}")).collect();
    let grant_states: usize = journal.token_states.iter().map(|token_states| token_states.all().count() - 1).sum();
    println!("upstream: {}", condition.join(", "));
    println!("{} versions of the catalogue, {grant_states} tokens revoked or restored", journal.versions.all().count());
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
