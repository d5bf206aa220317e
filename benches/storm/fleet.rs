//! The storm with a fleet: three gateways with one engine, between which the clients move. The engine hangs, loses its data
//! and goes back to earlier ones, and gateways are cut off from it one after the other. Tokens are revoked and entries are
//! purged at one of the gateways.
//!
//! Each response is judged like those of a single gateway, and besides: `fleet.sync` after the engine was told of a denial
//! or a purge, a gateway that is in sync must know it. A gateway that is not in sync must ask upstream for callers that only
//! others have proved.

use std::fmt;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use http::{Request, StatusCode};
use http_body_util::{BodyExt, Empty};
use hyper::body::Bytes;
use rand::rngs::SmallRng;
use rand::seq::SliceRandom;
use rand::{RngExt, SeedableRng};
use rustix::process::Signal;
use tokio::sync::watch;
use tokio::task::JoinSet;
use workspace_gateway::testing::catalogue::Service;
use workspace_gateway::testing::clock::Clock;
use workspace_gateway::testing::config::Config;
use workspace_gateway::testing::server::Server;
use workspace_gateway::testing::simulator::Simulator;

use super::cache_status::{CacheStatus, Source};
use super::client::Client;
use super::endpoint::{Endpoint, Standing, Told};
use super::engine::{Engine, Line, Relay};
use super::faults::{self, pause};
use super::judge::Judge;
use super::report::Report;
use super::settings::{self, FLEET, SYNC};
use super::world::{Journal, World, project_id};
use super::{lock, print_conditions, run_client};

const GATEWAYS: usize = 3;
/// How long a look-up may take here, where clients and upstream take the processors, too. Otherwise the gateways would work
/// without the engine most of the time.
const BUDGET: Duration = Duration::from_millis(200);
/// How long it may take until all gateways are in sync again: they settle for 2 s.
const IN_SYNC: Duration = Duration::from_secs(6);
/// The tokens of a probe, how often it tries something, and the pause between.
const TOKENS: usize = 3;
const TRIES: usize = 12;
const PAUSE: Duration = Duration::from_millis(100);
/// The least numbers of responses that depend on the rules. Otherwise nothing was judged.
const MIN_DENIED: usize = 10;
const MIN_PURGED: usize = 10;
const MIN_SHARED: usize = 30;
const MIN_PROBED: usize = 1;
const MIN_DENIALS: usize = 6;

pub(crate) struct FleetStorm {
    pub(crate) seconds: u64,
    pub(crate) clients: usize,
    pub(crate) seed: u64,
}

/// What happens to the engine, or to the way to it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum EngineFault {
    Hangs,
    Emptied,
    /// To the data that were saved last.
    GoesBack,
    CutOff,
}

const FAULTS: [EngineFault; 4] = [EngineFault::Hangs, EngineFault::Emptied, EngineFault::GoesBack, EngineFault::CutOff];

impl fmt::Display for EngineFault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Hangs => "the engine hangs",
            Self::Emptied => "the engine is killed, and empty afterwards",
            Self::GoesBack => "the engine is killed, and has earlier data afterwards",
            Self::CutOff => "a gateway is cut off",
        })
    }
}

impl FleetStorm {
    pub(crate) async fn run(&self) -> bool {
        let simulator = Simulator::start().await.expect("a simulator");
        let urls = [Service::Workspace, Service::AppStream].map(|service| simulator.url(service));
        let engine = Engine::start().await;
        let (mut servers, mut relays) = (Vec::new(), Vec::new());
        for _ in 0..GATEWAYS {
            let relay = Relay::start(&engine).await;
            let fleet = format!(
                "[fleet]\nengine = \"redis://{}\"\nsecret = \"{}\"\n",
                relay.address,
                "0123456789abcdef".repeat(2)
            );
            let settings = settings::toml(&urls, &FLEET) + &fleet;
            let mut config = Config::from_layers("storm.toml", &settings, &[]).expect("valid settings");
            config.fleet.as_mut().expect("a fleet").set_budget(BUDGET);
            servers.push(Server::start(&config, Clock::System).await.expect("it listens"));
            relays.push(relay);
        }
        let member =
            |server: &Server| Endpoint { address: server.proxy_address(), member: Some(Arc::clone(server.gateway())) };
        let gateways: Arc<[Endpoint]> = servers.iter().map(member).collect();
        let world = Arc::new(World::new(simulator));
        let journal = Arc::new(Mutex::new(Journal::new(&world, Clock::System.now())));
        let judge = Judge::new(Arc::clone(&world), Arc::clone(&journal), &gateways, FLEET);
        let judge = Arc::new(Mutex::new((judge, Report::default())));
        let mut storming = Storming {
            engine,
            relays,
            gateways: Arc::clone(&gateways),
            world: Arc::clone(&world),
            judge,
            counts: Vec::new(),
            probed: 0,
            denied: 0,
        };
        storming.until_in_sync("at the beginning").await;

        let (stop, stopped) = watch::channel(false);
        let faults = faults::inject(Arc::clone(&world), Arc::clone(&journal), self.seed, stopped.clone());
        let mut injecting = JoinSet::new();
        injecting.spawn(faults);
        let dice = |part: u64| SmallRng::seed_from_u64(self.seed ^ (part << 32));
        injecting.spawn(faults::purge(Arc::clone(&gateways), Arc::clone(&journal), dice(4), stopped.clone()));
        let mut clients = JoinSet::new();
        for number in 0..self.clients {
            let dice = SmallRng::seed_from_u64(self.seed << 17 | number as u64);
            let client = Client::new(number, Arc::clone(&world), &gateways, dice);
            clients.spawn(run_client(client, Arc::clone(&storming.judge), stopped.clone()));
        }
        let ends = Clock::System.timer_now() + Duration::from_secs(self.seconds);
        storming.inject(dice(5), ends).await;
        stop.send_replace(true);
        while let Some(ended) = clients.join_next().await {
            ended.expect("no client panics");
        }
        while let Some(ended) = injecting.join_next().await {
            ended.expect("no panic");
        }
        storming.until_in_sync("at the end").await;
        let passes = storming.print(self, &journal);
        for server in servers {
            server.stop().await;
        }
        passes
    }
}

struct Storming {
    engine: Engine,
    relays: Vec<Relay>,
    gateways: Arc<[Endpoint]>,
    world: Arc<World>,
    judge: Arc<Mutex<(Judge, Report)>>,
    counts: Vec<EngineFault>,
    /// How many callers were rightly not answered from memory by a gateway that was cut off.
    probed: usize,
    /// The same for callers whom another gateway was denied, and gateways in sync.
    denied: usize,
}

fn is_denial(status: StatusCode) -> bool {
    matches!(status, StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN)
}

impl Storming {
    /// All faults in turn, each round in another order. All gateways are in sync before each of them.
    async fn inject(&mut self, mut dice: SmallRng, ends: tokio::time::Instant) {
        let mut ahead = Vec::new();
        while Clock::System.timer_now() < ends {
            if ahead.is_empty() {
                ahead = FAULTS.to_vec();
                ahead.shuffle(&mut dice);
            }
            // What is told from now on is not in the file.
            self.engine.save().await;
            let denied = self.deny(&mut dice).await;
            tokio::time::sleep(SYNC + PAUSE).await;
            self.check(denied).await;
            let denied = self.deny(&mut dice).await;
            let fault = ahead.pop().expect("one was added");
            self.counts.push(fault);
            match fault {
                EngineFault::Hangs => {
                    self.engine.signal(Signal::Stop);
                    pause(&mut dice, 300, 2_000).await;
                    self.engine.signal(Signal::Cont);
                }
                EngineFault::Emptied | EngineFault::GoesBack => {
                    self.engine.kill().await;
                    pause(&mut dice, 20, 700).await;
                    self.engine.restart(fault == EngineFault::GoesBack).await;
                }
                EngineFault::CutOff => {
                    let gateway = dice.random_range(0..GATEWAYS);
                    let line = if dice.random() { Line::Cut } else { Line::Silent };
                    self.cut_off(gateway, line).await;
                }
            }
            self.until_in_sync(&format!("after {fault:?}")).await;
            self.check(denied).await;
        }
    }

    /// A caller whom all gateways know is denied at one of them. Returns when the engine knows it. `None` if upstream fails.
    async fn deny(&self, dice: &mut SmallRng) -> Option<(String, Told)> {
        let first = dice.random_range(0..GATEWAYS);
        let token = self.world.simulator.token(&project_id(0));
        for number in 0..GATEWAYS {
            let gateway = (first + number) % GATEWAYS;
            self.until(async || self.ask(gateway, &token, None).await.0 == StatusCode::OK).await?;
        }
        match dice.random() {
            true => self.world.simulator.deny(&token),
            false => self.world.simulator.revoke(&token),
        }
        self.until(async || is_denial(self.ask(first, &token, Some("no-cache")).await.0)).await?;
        let told = self.gateways[first].told();
        self.until(async || told.get().is_some()).await?;
        Some((token, told))
    }

    async fn until(&self, is_done: impl AsyncFn() -> bool) -> Option<()> {
        for _ in 0..TRIES {
            if is_done().await {
                return Some(());
            }
            tokio::time::sleep(PAUSE).await;
        }
        None
    }

    /// No gateway that is in sync shows a list to a denied caller.
    async fn check(&mut self, denied: Option<(String, Told)>) {
        let Some((token, told)) = denied else { return };
        for gateway in 0..GATEWAYS {
            let is_over = told.get().is_some_and(|told| *told + SYNC < Clock::System.now());
            let (status, source, standing) = self.ask(gateway, &token, None).await;
            if is_over && standing == Standing::InSync && status == StatusCode::OK {
                let what = format!(
                    "a list ({source:?}) of gateway {gateway}, in sync, for a caller whom another one was denied"
                );
                lock(&self.judge).1.wrong(what);
            }
            self.denied += usize::from(is_over && standing == Standing::InSync && is_denial(status));
        }
    }

    async fn until_in_sync(&mut self, when: &str) {
        let begun = Clock::System.timer_now();
        while !self.gateways.iter().all(Endpoint::is_in_sync) {
            if Clock::System.timer_now() - begun > IN_SYNC {
                let states = self.gateways.iter().map(|gateway| gateway.member.as_ref()?.fleet_state());
                let states: Vec<_> = states.collect();
                return lock(&self.judge).1.wrong(format!("not in sync within {IN_SYNC:?} {when}: {states:?}"));
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    /// Cuts a gateway off, which knows some callers only because others have proved them. Then their tokens are revoked. The
    /// gateway must not answer them from memory, unless their own calls fail.
    async fn cut_off(&mut self, gateway: usize, line: Line) {
        let (project, prover) = (project_id(0), (gateway + 1) % GATEWAYS);
        let mut borrowing = Vec::new();
        // Upstream may fail meanwhile.
        for _ in 0..TRIES {
            let token = self.world.simulator.token(&project);
            let (_, source, _) = self.ask(prover, &token, None).await;
            let is_proved = source == Source::Upstream || source == Source::AfterProof;
            if is_proved && self.ask(gateway, &token, None).await.1 == Source::Fleet {
                borrowing.push(token);
            }
            if borrowing.len() == TOKENS {
                break;
            }
            tokio::time::sleep(PAUSE).await;
        }
        self.relays[gateway].set(line);
        while self.gateways[gateway].is_in_sync() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        borrowing.iter().for_each(|token| self.world.simulator.revoke(token));
        for _ in 0..TRIES {
            let mut left = Vec::new();
            for token in borrowing {
                let (status, source, standing) = self.ask(gateway, &token, None).await;
                let is_own_failure = matches!(source, Source::Failure | Source::Backoff);
                if standing == Standing::OutOfSync && status == StatusCode::OK && !is_own_failure {
                    let what = format!(
                        "a list ({source:?}) for a caller that gateway {gateway}, which is cut off, has not proved"
                    );
                    lock(&self.judge).1.wrong(what);
                }
                match standing == Standing::OutOfSync && status == StatusCode::UNAUTHORIZED {
                    true => self.probed += 1,
                    false => left.push(token),
                }
            }
            borrowing = left;
            if borrowing.is_empty() {
                break;
            }
            tokio::time::sleep(PAUSE).await;
        }
        tokio::time::sleep(SYNC / 2).await;
        self.relays[gateway].set(Line::Open);
    }

    /// Sends a request of a caller that sends no others.
    async fn ask(&self, gateway: usize, token: &str, directive: Option<&str>) -> (StatusCode, Source, Standing) {
        let endpoint = &self.gateways[gateway];
        let member = endpoint.member.as_ref().expect("a member of the fleet");
        let connection = member.connection(([127, 0, 0, 1], 8080).into(), [127, 0, 0, 1].into());
        let target = self.world.resources[0].targets[0].as_str();
        let request = Request::get(target).header("host", "gateway").header("x-auth-token", token);
        let request =
            directive.into_iter().fold(request, |request, directive| request.header("cache-control", directive));
        let request = request.body(Empty::<Bytes>::new()).expect("a request");
        let begun = endpoint.begin();
        let (head, body) = member.handle(request, &connection).await.into_parts();
        let (_, standing) = endpoint.end(begun);
        let _ = body.collect().await;
        (head.status, CacheStatus::read(&head.headers).source(head.status == StatusCode::OK), standing)
    }

    fn print(&mut self, storm: &FleetStorm, journal: &Mutex<Journal>) -> bool {
        let (judge, report) = &mut *lock(&self.judge);
        println!(
            "\n{GATEWAYS} gateways with one engine: {} clients for {} s, seed {}",
            storm.clients, storm.seconds, storm.seed
        );
        print_conditions(&lock(journal));
        let mut counts = std::collections::BTreeMap::<_, usize>::new();
        self.counts.iter().for_each(|fault| *counts.entry(fault.to_string()).or_default() += 1);
        counts.iter().for_each(|(fault, count)| println!("{count} × {fault}"));
        println!("{} purges", lock(journal).purges.len());
        report.print();
        let counted = judge.fleet;
        let least = [
            ("responses to callers that only another gateway was denied", counted.denied, MIN_DENIED),
            ("lists that could be older than a purge at another gateway", counted.purged, MIN_PURGED),
            ("lists that another gateway has stored, or for callers that it has proved", counted.shared, MIN_SHARED),
            ("answers of gateways in sync to callers whom another one was just denied", self.denied, MIN_DENIALS),
            ("revoked callers that a gateway which was cut off has asked upstream for", self.probed, MIN_PROBED),
        ];
        let mut passes = report.wrongs == 0;
        for (what, count, least) in least {
            println!("{count} {what}");
            if count < least {
                println!("FAILED: at least {least}");
                passes = false;
            }
        }
        if report.wrongs > 0 {
            println!("FAILED: {} wrong responses", report.wrongs);
        }
        passes
    }
}
