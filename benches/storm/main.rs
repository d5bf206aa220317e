//! A storm: two hundred clients over real sockets (every fifth by HTTP/2), and an upstream that is healthy,
//! slow, stuck, failing, throttling, resetting and dead by turns, while callers are revoked and restored
//! and the catalogue changes. Every single answer is judged by what was true and by what the gateway
//! promises.
//!
//! All the time nobody reads the gateway's log. After a minute its clocks are moved. Then the loads of `benches/loads` are
//! beside the clients for some seconds, in which it also has no descriptors for a while. The gateway may then refuse
//! requests, be late and close connections. What it does answer has to be as true as before, and nothing may be left in use.
//!
//! `cargo bench --bench storm` prints how many answers of each kind there were and fails if one was wrong,
//! late or missing, or if the gateway has more in use afterwards than before. `-- --seconds 10`,
//! `--clients 50` and `--seed 7` change what their names say. (The seed fixes what is done, not what comes of
//! it: the machine has a part in that.)
//!
//! ```text
//! world      who asks for what, and what was true when       gateway    in a process of its own
//! conductor  makes the weather                               client     asks
//! told       what the gateway says of an answer              judge      what may be answered
//! settings   what the gateway is told                        report     what came of it
//! ```

#![allow(missing_docs, clippy::expect_used)]

mod client;
mod conductor;
mod gateway;
mod judge;
#[path = "../loads/mod.rs"]
mod loads;
mod report;
mod settings;
mod told;
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
use gateway::{Gateway, InUse};
use judge::Judge;
use loads::Running;
use loads::client::Target;
use report::Report;
use world::{Journal, World};

/// The program's.
#[cfg(all(target_os = "linux", target_env = "gnu"))]
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

/// Long enough for every kind of weather once.
const WARM_UP: Duration = Duration::from_secs(20);
/// How long everything that is still under way may take to end.
const QUIET: Duration = Duration::from_secs(20);
/// How long the loads are beside the clients, and one in how many of their connections.
const LOADED: Duration = Duration::from_secs(10);
const LOADED_ONE_IN: usize = 4;
/// How long the gateway has no descriptors meanwhile.
const EXHAUSTED: Duration = Duration::from_secs(3);
/// How many answers there have to be at least meanwhile. (Two cores, busy with other work: 8,388.)
const LEAST_ANSWERS: usize = 500;
/// How long the answers are watched after each move of a clock of the gateway, and how many have to be hits meanwhile.
const MOVED: Duration = Duration::from_secs(4);
const LEAST_HITS: usize = 50;
/// In how many parts memory is looked at, and how often. Requests that wait for a slow upstream take several MiB for a
/// second or two, so one look says little.
const PARTS: u32 = 6;
const LOOK: Duration = Duration::from_millis(100);
/// How many calls in a hundred may be additional ones.
const MORE_CALLS: u64 = 2;

/// How much more memory may be in use in the last part than in the first, in percent. In a run of
/// three minutes the medians of 10 s differed by up to 4 %, and single looks by 28 %.
const MORE_MEMORY: usize = 10;

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().collect();
    if let Some(flag) = arguments.iter().position(|argument| argument == gateway::FLAG) {
        gateway::serve(&arguments[flag + 1]);
        return ExitCode::SUCCESS;
    }
    if !arguments.iter().any(|argument| argument == "--bench") {
        println!("nothing to test here: cargo bench --bench storm runs it");
        return ExitCode::SUCCESS;
    }
    let storm = Storm {
        seconds: number(&arguments, "--seconds", 60),
        clients: number(&arguments, "--clients", 200),
        seed: number(&arguments, "--seed", 1),
    };
    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    if runtime.block_on(storm.run()) { ExitCode::SUCCESS } else { ExitCode::FAILURE }
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
        let settings = settings::toml(&simulator.url(Service::Workspace), &simulator.url(Service::AppStream));
        let mut gateway = Gateway::start(&settings);
        let world = Arc::new(World::new(simulator));
        let journal = Arc::new(Mutex::new(Journal::new(&world, Clock::System.now())));
        let judge = Arc::new(Mutex::new((Judge::new(Arc::clone(&world), Arc::clone(&journal)), Report::default())));

        // Whatever is only there once something has been asked is not to be taken for a leak.
        let mut first = Client::new(0, Arc::clone(&world), gateway.address, SmallRng::seed_from_u64(self.seed));
        for _ in 0..20 {
            first.ask().await;
        }
        drop(first);
        let before = calm_down(&world, &mut gateway, None).await;

        let (stop, stopped) = watch::channel(false);
        let conductor = conductor::conduct(Arc::clone(&world), Arc::clone(&journal), self.seed, stopped.clone());
        let conducting = tokio::spawn(conductor);
        let mut asking = JoinSet::new();
        for number in 0..self.clients {
            let dice = SmallRng::seed_from_u64(self.seed << 16 | number as u64);
            let client = Client::new(number, Arc::clone(&world), gateway.address, dice);
            asking.spawn(go_on_asking(client, Arc::clone(&judge), stopped.clone()));
        }

        // The same as what follows, so that all memory that it takes is taken.
        tokio::time::sleep(WARM_UP).await;
        let mut memory = Vec::new();
        for _ in 0..PARTS {
            memory.push(median_memory(&gateway, Duration::from_secs(self.seconds) / PARTS).await);
        }
        let moved = move_clocks(&mut gateway, &judge).await;
        // Its own calls, and not those of the loads.
        let (calls, counts) = (world.simulator.request_count(), gateway.counts());
        let answers = lock(&judge).1.answers();
        lock(&judge).0.expect_loads(Clock::System.now());
        let target = Target { address: gateway.address, tls: None };
        let loads = Running::begin_all(&target, LOADED_ONE_IN);
        tokio::time::sleep(LOADED - EXHAUSTED).await;
        gateway.undergoes(gateway::NO_DESCRIPTORS);
        tokio::time::sleep(EXHAUSTED).await;
        gateway.undergoes(gateway::DESCRIPTORS);
        let placed = loads.iter().map(Running::placed).sum::<usize>();
        drop(loads);
        stop.send_replace(true);
        while let Some(ended) = asking.join_next().await {
            ended.expect("no client panics");
        }
        conducting.await.expect("the conductor doesn't panic");
        let after = calm_down(&world, &mut gateway, Some(before)).await;

        let (_, report) = &mut *lock(&judge);
        println!("{} clients for {} s after {WARM_UP:?} to warm up, seed {}", self.clients, self.seconds, self.seed);
        tell_weather(&lock(&journal));
        report.print();
        println!("upstream was asked {calls} times for {answers} answers before the loads");
        let [additional, fetches, dropped_lines] = counts;
        println!(
            "{additional} of {fetches} calls for lists ({:.2} %) were additional ones, while upstream answered others",
            additional as f64 * 100.0 / fetches as f64
        );
        println!(
            "the loads had {placed} units in place in {LOADED:?}; {answers} answers by then, {} after",
            report.answers() - answers
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
            (report.answers() - answers < LEAST_ANSWERS).then(|| "too few answers beside the loads".to_owned()),
            moved.iter().any(|(_, hits)| *hits < LEAST_HITS).then(|| "too few hits after a clock was moved".to_owned()),
            (dropped_lines == 0).then(|| "its log was never stalled".to_owned()),
            (report.wrongs > 0).then(|| format!("{} wrong answers", report.wrongs)),
            (last * 100 > first * (100 + MORE_MEMORY)).then(|| "it takes more and more memory".to_owned()),
            (additional * 100 > fetches * MORE_CALLS).then(|| "too many additional calls".to_owned()),
            (!after.is_back_at(&before)).then(|| "something is still in use".to_owned()),
        ];
        failures.iter().flatten().for_each(|failure| println!("FAILED: {failure}"));
        failures.iter().all(Option::is_none)
    }
}

/// Bytes of the gateway's memory: the median of what it has in so long.
async fn median_memory(gateway: &Gateway, span: Duration) -> usize {
    let mut looks = Vec::new();
    for _ in 0..(span.as_millis() / LOOK.as_millis()).max(1) {
        tokio::time::sleep(LOOK).await;
        looks.push(gateway.memory());
    }
    looks.sort_unstable();
    looks[looks.len() / 2]
}

/// Moves one clock of the gateway after the other. Gives what each was, and how many hits there were after it.
async fn move_clocks(gateway: &mut Gateway, judge: &Mutex<(Judge, Report)>) -> Vec<(&'static str, usize)> {
    let mut moved = Vec::new();
    for clock in [gateway::WALL_BACK, gateway::WALL_AHEAD, gateway::BOOT_AHEAD] {
        if clock == gateway::WALL_BACK {
            gateway.undergoes(clock);
        } else {
            lock(judge).0.expect_jump();
            gateway.undergoes(clock);
            lock(judge).0.expect_nothing_from_before(Clock::System.now());
        }
        let before = lock(judge).0.hits();
        tokio::time::sleep(MOVED).await;
        moved.push((clock, lock(judge).0.hits() - before));
    }
    moved
}

async fn go_on_asking(mut client: Client, judge: Arc<Mutex<(Judge, Report)>>, stopped: watch::Receiver<bool>) {
    while !*stopped.borrow() {
        client.think().await;
        let exchange = client.ask().await;
        let (judge, report) = &mut *lock(&judge);
        let verdict = judge.judge(&exchange);
        report.count(&exchange, verdict, &client.world);
    }
}

/// Waits until what the gateway has in use is as it was, or doesn't change any more. Upstream goes away
/// for that, and comes back: the gateway's connections to it are none that it has forgotten to close.
async fn calm_down(world: &World, gateway: &mut Gateway, before: Option<InUse>) -> InUse {
    world.simulator.shut_down().await;
    let begun = Clock::System.now();
    let mut last = gateway.in_use();
    loop {
        tokio::time::sleep(Duration::from_millis(500)).await;
        let now = gateway.in_use();
        let is_calm = before.map_or(now == last, |before| now.is_back_at(&before));
        if is_calm || Clock::System.now().saturating_duration_since(begun) > QUIET {
            world.simulator.come_back().expect("its addresses were kept");
            return now;
        }
        last = now;
    }
}

fn tell_weather(journal: &Journal) {
    let mut counts = std::collections::BTreeMap::<_, usize>::new();
    journal.weather.all().for_each(|weather| *counts.entry(weather.name()).or_default() += 1);
    let weather: Vec<_> = counts.iter().map(|(name, count)| format!("{count} × {name}")).collect();
    let grant_states: usize = journal.standing.iter().map(|standing| standing.all().count() - 1).sum();
    println!("upstream: {}", weather.join(", "));
    println!("{} versions of the catalogue, {grant_states} tokens revoked or restored", journal.version.all().count());
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
