//! One seed, from its first request until nothing is in use.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant, SystemTime};

use http::header::DATE;
use rand::rngs::SmallRng;
use rand::{RngExt, SeedableRng};
use tokio::sync::watch;
use tokio::task::JoinSet;
use workspace_gateway::testing::catalogue::Service;
use workspace_gateway::testing::clock::{Clock, ManualClock};
use workspace_gateway::testing::machine::Machine;
use workspace_gateway::testing::random::Random;
use workspace_gateway::testing::simulator::Simulator;
use workspace_gateway::testing::sync::Workers;

use super::client::{Client, End, Exchange};
use super::endpoint::Endpoint;
use super::engine::EngineHost;
use super::faults::{Ended, Faults};
use super::gateway_faults::HOUR;
use super::judge::Judge;
use super::log;
use super::metrics::sum_of;
use super::net::SimulatedNet;
use super::process::{BEGIN, Process};
use super::report::Report;
use super::settings::LIFETIMES;
use super::world::{Journal, World};
use super::{lock, network, upstream_faults};

/// With fewer, some hours had less than 10,000 responses.
const CLIENTS: usize = 16;
/// With less in an hour, a run shows too little.
const LEAST_RESPONSES: usize = 10_000;
const LEAST_FAULTS: usize = 20;
/// How long it is between two turns.
const TURN: Duration = Duration::from_secs(5);
/// After this time without requests, nothing may be in use.
const QUIET: Duration = Duration::from_secs(300);
/// Metrics of what must not be in use then.
const IN_USE: [&str; 5] =
    ["connections", "requests_in_flight", "coalesced_waiters", "upstream_requests_in_flight", "private_scopes"];

pub(crate) struct Run {
    pub(crate) seed: u64,
    pub(crate) span: Duration,
    /// Whether all kinds of responses are printed.
    pub(crate) lists: bool,
    /// The cache frees memory at times of the machine's clock. So runs in which memory is used up can differ.
    pub(crate) has_crowds: bool,
    /// Where all that arrives is written.
    pub(crate) trace: Option<PathBuf>,
}

fn host(network: u8, number: u8) -> IpAddr {
    Ipv4Addr::new(10, 0, network, number).into()
}

impl Run {
    /// Returns the number of violations.
    pub(crate) fn run(self) -> usize {
        let mut runtime = tokio::runtime::Builder::new_current_thread();
        #[cfg(tokio_unstable)]
        runtime.rng_seed(tokio::runtime::RngSeed::from_bytes(&self.seed.to_le_bytes()));
        let runtime = runtime.enable_time().start_paused(true).build().expect("a runtime");
        let wrongs = runtime.block_on(self.simulate());
        let tasks = runtime.metrics().num_alive_tasks();
        if tasks > 0 {
            println!("WRONG: {tasks} tasks have not ended");
        }
        wrongs + usize::from(tasks > 0)
    }

    fn dice(&self, part: u64) -> SmallRng {
        SmallRng::seed_from_u64(self.seed ^ (part << 32))
    }

    async fn simulate(&self) -> usize {
        log::go_on();
        let net = SimulatedNet::new(self.seed, self.trace.as_deref());
        network::begin(&net);
        let upstream = host(1, 1);
        let machine = Machine {
            clock: Clock::Manual(ManualClock::running_from(SystemTime::UNIX_EPOCH + BEGIN, [0; 16])),
            random: Random::seeded([0; 32]),
            network: net.of(upstream),
            workers: Workers::Inline,
        };
        let addresses = [80, 81].map(|port| SocketAddr::new(upstream, port));
        let simulator = Simulator::start_at(addresses, &machine).expect("free addresses");
        let urls = [Service::Workspace, Service::AppStream].map(|service| simulator.url(service));
        let world = Arc::new(World::new(simulator));

        let (mut processes, mut endpoints) = (Vec::new(), Vec::new());
        let mut dice = self.dice(1);
        let count = dice.random_range(1..=3);
        let engine = (count > 1).then(|| EngineHost::start(&net, host(2, 1), self.seed));
        let address = engine.as_ref().map(EngineHost::address);
        let folder = Folder::new(self.seed);
        for number in 1..=count {
            let folder = dice.random_ratio(2, 3).then(|| folder.of(number));
            let mut process = Process::new(&net, host(3, number), &urls, address.clone(), folder, self.seed);
            let (address, gateway) = process.start().await;
            endpoints.push(Endpoint::new(address, Some(gateway)));
            processes.push(process);
        }
        let gateways: Arc<[Endpoint]> = endpoints.into();
        let journal = Arc::new(Mutex::new(Journal::new(&world, gateways.len(), Clock::System.now())));
        let mut judge = Judge::new(Arc::clone(&world), Arc::clone(&journal), &gateways, LIFETIMES);
        if engine.is_some() {
            judge.expect_unknown_callers();
        }
        let judge = Arc::new(Mutex::new((judge, Report::default())));

        let (stop, stopped) = watch::channel(false);
        let started = Clock::System.now();
        let of_upstream = upstream_faults::inject(Arc::clone(&world), Arc::clone(&journal), self.seed, stopped.clone());
        let of_upstream = tokio::spawn(of_upstream);
        let mut clients = JoinSet::new();
        for number in 0..CLIENTS {
            let dice = SmallRng::seed_from_u64(self.seed << 16 | number as u64);
            let client = Client::new(number, Arc::clone(&world), &gateways, dice);
            let turns = Turns { started, seed: self.seed };
            clients.spawn(run_client(client, Arc::clone(&judge), net.clone(), turns, stopped.clone()));
        }
        let faults = Faults {
            net: net.clone(),
            world: Arc::clone(&world),
            upstream,
            clients: CLIENTS,
            has_crowds: self.has_crowds,
            gateways: Arc::clone(&gateways),
            judge: Arc::clone(&judge),
            journal: Arc::clone(&journal),
        };
        let ends = Clock::System.now() + self.span;
        let Ended { processes, engine, faults } = faults.inject(processes, engine, self.dice(2), ends).await;
        stop.send_replace(true);
        while let Some(ended) = clients.join_next().await {
            ended.expect("no client panics");
        }
        of_upstream.await.expect("no panic");

        tokio::time::sleep(QUIET).await;
        let mut wrongs = Vec::new();
        for (number, process) in processes.iter().enumerate() {
            let page = process.gateway().metrics().encode().expect("metrics");
            for name in IN_USE {
                let left = sum_of::<u64>(&page, &format!("workspace_gateway_{name}"));
                if left > 0 {
                    wrongs.push(format!("{left} {name} of gateway {number} are in use at the end"));
                }
            }
            let left = net.open_between(process.host, upstream);
            if left > 0 {
                wrongs.push(format!("{left} connections of gateway {number} to upstream are open at the end"));
            }
        }
        for process in processes {
            process.end().await;
        }
        if let Some(engine) = engine {
            wrongs.extend(engine.end().await.into_iter().map(|what| format!("the engine does not know {what}")));
        }
        world.simulator.shut_down().await;
        let (judge, report) = &mut *lock(&judge);
        wrongs.extend(judge.unproved(started));
        let conditions = lock(&journal).condition.all().count() / 2;
        let hours = usize::try_from(self.span.as_secs() / 3600).expect("few hours");
        let (responses, all_faults) = (report.responses(), conditions + faults.len());
        if responses < LEAST_RESPONSES * hours || all_faults < LEAST_FAULTS * hours {
            wrongs.push(format!("only {responses} responses and {all_faults} faults in {hours} hours"));
        }
        wrongs.into_iter().for_each(|wrong| report.wrong(wrong));
        println!(
            "seed {}: {} gateways, {} responses, {} faults of upstream and {} others, {} violations, {}",
            self.seed,
            gateways.len(),
            report.responses(),
            conditions,
            faults.len(),
            report.wrongs,
            net.digest().to_hex(),
        );
        if self.lists || report.wrongs > 0 {
            let mut counts = BTreeMap::<_, usize>::new();
            faults.iter().for_each(|fault| *counts.entry(fault).or_default() += 1);
            counts.iter().for_each(|(fault, count)| println!("{count} × {fault}"));
            report.print();
        }
        report.wrongs
    }
}

/// Where the snapshots of a run are.
struct Folder(PathBuf);

impl Folder {
    fn new(seed: u64) -> Self {
        Self(std::env::temp_dir().join(format!("simulation-{}-{seed}", std::process::id())))
    }

    /// The folder of a gateway.
    fn of(&self, gateway: u8) -> PathBuf {
        self.0.join(gateway.to_string())
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// `Date` is that of upstream's clock, or of the gateway's, which may be some hours ahead or behind.
fn date_is_true(exchange: &Exchange, started: Instant) -> Result<(), String> {
    let End::Answered { headers, .. } = &exchange.end else { return Ok(()) };
    let text = headers.get(DATE).and_then(|date| date.to_str().ok()).ok_or("no Date")?;
    let date = httpdate::parse_http_date(text).map_err(|error| error.to_string())?;
    let of =
        |date: SystemTime| i64::try_from(date.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs());
    let now = SystemTime::UNIX_EPOCH + BEGIN + (exchange.decided - started) + Duration::from_secs(1);
    let hour = i64::try_from(HOUR.as_secs()).map_err(|error| error.to_string())?;
    let (Ok(now), Ok(date)) = (of(now), of(date)) else { return Err(format!("no Date of this time: {text}")) };
    // A stored list has the `Date` of its call. Whole hours are not compared: the gateway's clock may have jumped so far.
    let is_possible = (now - date).rem_euclid(hour).unsigned_abs() < 2 * LIFETIMES.max_age().as_secs();
    if is_possible { Ok(()) } else { Err(format!("Date is of another clock: {text}")) }
}

/// At each turn, the clients that have joined it ask the same gateway the same at once.
#[derive(Clone, Copy)]
struct Turns {
    started: Instant,
    seed: u64,
}

impl Turns {
    /// Waits for the next turn.
    async fn join(self, client: &mut Client) {
        let passed = Clock::System.now() - self.started;
        let turn = passed.as_secs() / TURN.as_secs() + 1;
        tokio::time::sleep(Duration::from_secs(turn * TURN.as_secs()) - passed).await;
        let mut dice = SmallRng::seed_from_u64(self.seed ^ turn << 40);
        let resource = dice.random_range(0..client.world.resources.len());
        let gateway = dice.random_range(0..client.gateways.len());
        client.aim(resource, gateway);
    }
}

async fn run_client(
    mut client: Client,
    judge: Arc<Mutex<(Judge, Report)>>,
    net: SimulatedNet,
    turns: Turns,
    stopped: watch::Receiver<bool>,
) {
    while !*stopped.borrow() {
        if client.dice.random_ratio(1, 4) {
            turns.join(&mut client).await;
        } else {
            client.think().await;
        }
        let exchange = client.exchange().await;
        let (judge, report) = &mut *lock(&judge);
        let verdict = judge.judge(&exchange).and_then(|kind| date_is_true(&exchange, turns.started).map(|()| kind));
        net.note(&format!("{} {verdict:?}", exchange.client));
        let verdict = verdict.map_err(|error| format!("{error}\n    {}", net.moment()));
        report.count(&exchange, verdict, &client.world);
    }
}
