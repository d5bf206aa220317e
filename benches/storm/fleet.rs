//! The storm with a fleet: four gateways with one engine, between which the clients move. The engine hangs, loses its data
//! and goes back to earlier ones, and gateways are cut off from it one after the other. One gateway is killed, if possible
//! while it has calls in flight. Or there are a master and its replica, and Sentinel promotes the replica: writes that the
//! old master has acknowledged are lost. A gateway that has missed notices then removes its entries, so it is not judged whether
//! an error was avoidable. Tokens are revoked and entries are purged at one of the gateways.
//!
//! Each response is judged like those of a single gateway, and besides: `fleet.sync` after the engine was told of a denial
//! or a purge, a gateway that is in sync must know it. A gateway that is not in sync must ask upstream for callers that only
//! others have proved.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use http::{Request, StatusCode};
use http_body_util::{BodyExt, Empty};
use hyper::body::Bytes;
use rand::rngs::SmallRng;
use rand::seq::SliceRandom;
use rand::{RngExt, SeedableRng};
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
use super::engine::Line;
use super::engines::{EngineFault, Engines};
use super::faults;
use super::judge::Judge;
use super::limits::{Limits, tell};
use super::metrics::sum_of;
use super::mortal::Mortal;
use super::report::Report;
use super::settings::{self, BUDGET, FLEET, SYNC};
use super::world::{Journal, World, project_id};
use super::{lock, print_conditions, run_client};

/// Those in this process. Another one is the mortal one.
const GATEWAYS: usize = 3;
/// How long it may take until all gateways are in sync again: they settle for 2 s.
const IN_SYNC: Duration = Duration::from_secs(6);
/// The tokens of a probe, how often it tries something, and the pause between.
const TOKENS: usize = 3;
const TRIES: usize = 12;
const PAUSE: Duration = Duration::from_millis(100);
/// The least numbers of responses that depend on the rules. Otherwise nothing was judged.
const MIN_DENIED: f64 = 10.0;
const MIN_PURGED: f64 = 10.0;
const MIN_SHARED: f64 = 30.0;
const MIN_DENIALS: f64 = 3.0;
/// Each link to an engine that has lost something counts.
const WENT_BACK: &str = "workspace_gateway_fleet_faults_total{cause=\"went-back\"}";

pub(crate) struct FleetStorm {
    pub(crate) with_sentinel: bool,
    pub(crate) seconds: u64,
    pub(crate) clients: usize,
    pub(crate) seed: u64,
}

impl FleetStorm {
    pub(crate) async fn run(&self) -> bool {
        let simulator = Simulator::start().await.expect("a simulator");
        let urls = [Service::Workspace, Service::AppStream].map(|service| simulator.url(service));
        let mut engines = Engines::start(self.with_sentinel).await;
        let (mut servers, mut endpoints) = (Vec::new(), Vec::new());
        for _ in 0..GATEWAYS {
            let settings = settings::toml(&urls, &FLEET) + &engines.settings().await;
            let mut config = Config::from_layers("storm.toml", &settings, &[]).expect("valid settings");
            config.fleet.as_mut().expect("a fleet").set_budget(BUDGET);
            let server = Server::start(&config, Clock::System).await.expect("it listens");
            endpoints.push(Endpoint::new(server.proxy_address(), Some(Arc::clone(server.gateway()))));
            servers.push(server);
        }
        let mortal = Mortal::start(settings::toml(&urls, &FLEET) + &engines.settings().await);
        endpoints.push(mortal.endpoint());
        let gateways: Arc<[Endpoint]> = endpoints.into();
        let world = Arc::new(World::new(simulator));
        let journal = Arc::new(Mutex::new(Journal::new(&world, gateways.len(), Clock::System.now())));
        let mut judge = Judge::new(Arc::clone(&world), Arc::clone(&journal), &gateways, FLEET);
        if self.with_sentinel {
            (0..gateways.len()).for_each(|gateway| judge.expect_missed_notices(gateway));
        }
        let judge = Arc::new(Mutex::new((judge, Report::default())));
        let mut storming = Storming {
            engines,
            mortal,
            gateways: Arc::clone(&gateways),
            world: Arc::clone(&world),
            judge,
            journal: Arc::clone(&journal),
            counts: Vec::new(),
            probed: 0,
            denied: [0; 2],
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
        let passes = storming.print(self);
        for server in servers {
            server.stop().await;
        }
        passes
    }
}

struct Storming {
    engines: Engines,
    mortal: Mortal,
    gateways: Arc<[Endpoint]>,
    world: Arc<World>,
    judge: Arc<Mutex<(Judge, Report)>>,
    journal: Arc<Mutex<Journal>>,
    counts: Vec<EngineFault>,
    /// How many callers were rightly not answered from memory by a gateway that was cut off.
    probed: usize,
    /// The same for callers whom another gateway was denied, and gateways in sync: before and after a fault.
    denied: [usize; 2],
}

fn is_denial(status: StatusCode) -> bool {
    matches!(status, StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN)
}

impl Storming {
    /// All faults in turn, each round in another order, and each at least once. All gateways are in sync before each of them.
    async fn inject(&mut self, mut dice: SmallRng, ends: tokio::time::Instant) {
        let mut ahead = Vec::new();
        while Clock::System.timer_now() < ends || self.counts.len() < self.engines.faults().len() {
            if ahead.is_empty() {
                ahead = self.engines.faults().to_vec();
                ahead.shuffle(&mut dice);
            }
            let denied = self.deny(&mut dice).await;
            tokio::time::sleep(SYNC + PAUSE).await;
            self.check(denied, 0).await;
            let fault = ahead.pop().expect("one was added");
            self.engines.prepare(fault).await;
            let denied = self.deny(&mut dice).await;
            self.counts.push(fault);
            match fault {
                EngineFault::CutOff => {
                    let gateway = dice.random_range(0..GATEWAYS);
                    let line = if dice.random() { Line::Cut } else { Line::Silent };
                    self.cut_off(gateway, line).await;
                }
                EngineFault::GatewayKilled => {
                    let Self { engines, mortal, gateways, judge, journal, .. } = self;
                    let forget = || lock(judge).0.forget(GATEWAYS, None);
                    mortal.kill((GATEWAYS, &gateways[GATEWAYS]), engines.master(), journal, forget).await;
                }
                _ => self.engines.cause(fault, &mut dice).await,
            }
            self.until_in_sync(&format!("after {fault:?}")).await;
            self.check(denied, 1).await;
        }
    }

    /// A caller whom all gateways know is denied at one of them. Returns when the engine knows it. `None` if upstream fails.
    async fn deny(&self, dice: &mut SmallRng) -> Option<(String, Told)> {
        let first = dice.random_range(0..GATEWAYS);
        let token = self.world.simulator.token(&project_id(0));
        for gateway in 0..=GATEWAYS {
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
    async fn check(&mut self, denied: Option<(String, Told)>, time: usize) {
        let Some((token, told)) = denied else { return };
        for gateway in 0..=GATEWAYS {
            let is_over = told.get().is_some_and(|told| *told + SYNC < Clock::System.now());
            let (status, source, standing) = self.ask(gateway, &token, None).await;
            if is_over && standing == Standing::InSync && status == StatusCode::OK {
                let what = format!(
                    "a list ({source:?}) of gateway {gateway}, in sync, for a caller whom another one was denied"
                );
                lock(&self.judge).1.wrong(what);
            }
            self.denied[time] += usize::from(is_over && standing == Standing::InSync && is_denial(status));
        }
    }

    async fn until_in_sync(&mut self, when: &str) {
        let begun = Clock::System.timer_now();
        while !(self.gateways[..GATEWAYS].iter().all(Endpoint::is_in_sync) && self.mortal.is_in_sync()) {
            if Clock::System.timer_now() - begun > IN_SYNC {
                let states = self.gateways.iter().map(|gateway| gateway.member()?.fleet_state());
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
        self.engines.set_line(gateway, line);
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
        self.engines.set_line(gateway, Line::Open);
    }

    /// Sends a request of a caller that sends no others.
    async fn ask(&self, gateway: usize, token: &str, directive: Option<&str>) -> (StatusCode, Source, Standing) {
        let target = self.world.resources[0].targets[0].as_str();
        let request = Request::get(target).header("host", "gateway").header("x-auth-token", token);
        let request =
            directive.into_iter().fold(request, |request, directive| request.header("cache-control", directive));
        let request = request.body(Empty::<Bytes>::new()).expect("a request");
        let endpoint = &self.gateways[gateway];
        let Some(member) = endpoint.member() else { return self.mortal.ask(request).await };
        let connection = member.connection(([127, 0, 0, 1], 8080).into(), [127, 0, 0, 1].into());
        let begun = endpoint.begin();
        let (head, body) = member.handle(request, &connection).await.into_parts();
        let (_, standing) = endpoint.end(begun);
        let _ = body.collect().await;
        (head.status, CacheStatus::read(&head.headers).source(head.status == StatusCode::OK), standing)
    }

    fn print(&mut self, storm: &FleetStorm) -> bool {
        let engines = if storm.with_sentinel { "a master, a replica and Sentinel" } else { "one engine" };
        println!(
            "\n{} gateways with {engines}: {} clients for {} s, seed {}",
            self.gateways.len(),
            storm.clients,
            storm.seconds,
            storm.seed
        );
        print_conditions(&lock(&self.journal));
        let mut counts = std::collections::BTreeMap::<_, usize>::new();
        self.counts.iter().for_each(|fault| *counts.entry(fault.to_string()).or_default() += 1);
        counts.iter().for_each(|(fault, count)| println!("{count} × {fault}"));
        println!("{} purges", lock(&self.journal).purges.len());
        let members = self.gateways.iter().filter_map(Endpoint::member);
        let pages = members.map(|member| member.metrics().encode().expect("metrics"));
        let went_back: f64 = pages.map(|page| sum_of::<f64>(&page, WENT_BACK)).sum();
        let (judge, report) = &mut *lock(&self.judge);
        report.print();
        let counted = judge.fleet;
        let mut limits = Limits::default();
        let mut at_least = |what: &str, count: usize, least| limits.at_least(what, count as f64, least);
        at_least("responses to callers that only another gateway was denied", counted.denied, MIN_DENIED);
        at_least("lists that could be older than a purge elsewhere", counted.purged, MIN_PURGED);
        at_least("lists or proofs of another gateway", counted.shared, MIN_SHARED);
        at_least("denials that a gateway in sync knows from another one", self.denied[0], MIN_DENIALS);
        at_least("  the same after a fault", self.denied[1], MIN_DENIALS);
        if storm.with_sentinel {
            limits.at_least("links to an engine that had lost something", went_back, 1.0);
        } else {
            at_least("revoked callers that a cut-off gateway asked upstream for", self.probed, 1.0);
            tell("leases of a gateway when it was killed", &self.mortal.leases.to_string());
            tell("times that it was killed without enough calls in flight", &self.mortal.idle_kills.to_string());
        }
        limits.at_most("wrong responses", report.wrongs as f64, 0.0);
        !limits.has_failed
    }
}
