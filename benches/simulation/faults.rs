//! Faults of gateways, of their links, and of their engine. Those of one gateway follow each other, and so do those of the
//! engine. All of them overlap each other, and upstream's own, which are the storm's (`storm/faults.rs`).

use std::net::IpAddr;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use rand::rngs::SmallRng;
use rand::{RngExt, SeedableRng};
use tokio::time::sleep;
use workspace_gateway::testing::clock::Clock;

use super::endpoint::Endpoint;
use super::engine::EngineHost;
use super::engine_faults::EngineFaults;
use super::gateway_faults::GatewayFaults;
use super::judge::Judge;
use super::lock;
use super::net::SimulatedNet;
use super::process::Process;
use super::report::Report;
use super::upstream_faults::{change_catalogue, purge_at};
use super::world::{Journal, PROJECTS, World};

/// How long a fault lasts.
pub(super) const LASTING: std::ops::Range<Duration> = Duration::from_secs(1)..Duration::from_secs(30);
/// How much slower a link can be.
pub(super) const MAX_SLOW: Duration = Duration::from_millis(400);
/// How long it may take until all gateways are in sync again.
pub(super) const IN_SYNC_AGAIN: Duration = Duration::from_secs(10);

/// What all faults concern.
#[derive(Clone)]
pub(crate) struct Faults {
    pub(crate) net: SimulatedNet,
    pub(crate) world: Arc<World>,
    pub(crate) upstream: IpAddr,
    pub(crate) clients: usize,
    /// Whether strangers may use up the memory.
    pub(crate) has_crowds: bool,
    pub(crate) gateways: Arc<[Endpoint]>,
    pub(crate) judge: Arc<Mutex<(Judge, Report)>>,
    pub(crate) journal: Arc<Mutex<Journal>>,
}

/// What is left when all faults have ended.
pub(crate) struct Ended {
    pub(crate) processes: Vec<Process>,
    pub(crate) engine: Option<EngineHost>,
    /// The names of the faults.
    pub(crate) faults: Vec<String>,
}

impl Faults {
    /// Causes faults until this time. Everything works afterwards.
    pub(crate) async fn inject(
        self,
        processes: Vec<Process>,
        engine: Option<EngineHost>,
        mut dice: SmallRng,
        ends: Instant,
    ) -> Ended {
        let hosts: Arc<[IpAddr]> = processes.iter().map(|process| process.host).collect();
        let mut of_gateways = Vec::new();
        for (gateway, process) in processes.into_iter().enumerate() {
            let faults = GatewayFaults { shared: self.clone(), gateway, process, dice: SmallRng::from_rng(&mut dice) };
            of_gateways.push(tokio::spawn(faults.inject(ends)));
        }
        let mut ended = Ended { processes: Vec::new(), engine: None, faults: Vec::new() };
        if let Some(engine) = engine {
            let faults = EngineFaults { shared: self, hosts, engine, dice };
            let (engine, names) = faults.inject(ends).await;
            ended.engine = Some(engine);
            ended.faults.extend(names);
        }
        for of_gateway in of_gateways {
            let (process, names) = of_gateway.await.expect("no panic");
            ended.processes.push(process);
            ended.faults.extend(names);
        }
        ended
    }

    /// A gateway is purged, often because the catalogue has just changed. One that is down, or has no descriptors or memory, is not.
    pub(super) fn purge(&self, gateway: usize, dice: &mut SmallRng) {
        if lock(&self.journal).down[gateway].latest() {
            return;
        }
        if dice.random_ratio(1, 2) {
            change_catalogue(&self.world, &self.journal);
        }
        let project = dice.random_ratio(2, 3).then(|| dice.random_range(0..PROJECTS));
        let what = project.map_or("all projects".to_owned(), |project| format!("project {project}"));
        self.net.note_fault(format!("purge of {what} at {gateway}"));
        purge_at(&self.gateways, &self.journal, gateway, project);
    }

    /// A fault lasts. This gateway is purged meanwhile.
    pub(super) async fn wait_and_purge(&self, purged: Option<usize>, dice: &mut SmallRng) {
        sleep(dice.random_range(LASTING)).await;
        if let Some(gateway) = purged {
            self.purge(gateway, dice);
            sleep(dice.random_range(LASTING) / 4).await;
        }
    }
}

/// Waits between two faults. Returns `false` if it is the end.
pub(super) async fn calm(between: std::ops::Range<Duration>, dice: &mut SmallRng, ends: Instant) -> bool {
    sleep(dice.random_range(between)).await;
    Clock::System.now() < ends
}
