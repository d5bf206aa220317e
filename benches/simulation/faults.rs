//! Faults of machines and links. Upstream's own are the storm's (`storm/faults.rs`).

use std::fmt;
use std::net::IpAddr;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use rand::RngExt;
use rand::rngs::SmallRng;
use tokio::time::sleep;
use workspace_gateway::testing::clock::Clock;

use super::crowd;
use super::endpoint::Endpoint;
use super::engine::EngineHost;
use super::judge::Judge;
use super::lock;
use super::log;
use super::net::SimulatedNet;
use super::network;
use super::process::Process;
use super::report::Report;
use super::upstream_faults::{change_catalogue, change_token, purge_at};
use super::world::{Condition, Journal, PROJECTS, World};

/// How long it is between two faults.
const CALM: std::ops::Range<Duration> = Duration::from_secs(5)..Duration::from_secs(40);
/// How long a fault lasts.
const LASTING: std::ops::Range<Duration> = Duration::from_secs(1)..Duration::from_secs(30);
/// How much slower a link can be.
const MAX_SLOW: Duration = Duration::from_millis(400);
/// A killed process may have been told of a refusal, and have its snapshot not yet removed.
const REMOVAL: Duration = Duration::from_secs(2);
/// How long it may take until the gateway has noticed that a crowd is gone.
const AFTER_CROWD: Duration = Duration::from_secs(1);
/// How long it may take until all gateways are in sync again.
const IN_SYNC_AGAIN: Duration = Duration::from_secs(10);
/// How far clocks jump.
pub(crate) const HOUR: Duration = Duration::from_secs(3600);

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Fault {
    /// Nothing arrives between a gateway and upstream.
    Partition,
    SlowLink,
    /// Connections between a gateway and upstream are reset.
    Reset,
    /// Connections between a gateway and its clients are reset.
    ClientReset,
    Crash,
    CrashWithSnapshot,
    Restart,
    WallAhead,
    WallBack,
    Suspended,
    Reload,
    Purge,
    NoDescriptors,
    /// Strangers open connections, send half a request or do not read their response.
    Crowd,
    /// The reader of the log, which all gateways share, begins to stall, or goes on.
    LogReader,
    // Of the fleet's engine.
    EngineCutOff,
    EngineHangs,
    /// It has lost all.
    EngineEmptied,
    /// It has again what it had before.
    EngineGoesBack,
    EngineEvicts,
    EngineFull,
    EngineLosesControl,
}

impl Fault {
    const ALONE: [Self; 15] = [
        Self::Partition,
        Self::SlowLink,
        Self::Reset,
        Self::ClientReset,
        Self::Crash,
        Self::CrashWithSnapshot,
        Self::Restart,
        Self::WallAhead,
        Self::WallBack,
        Self::Suspended,
        Self::Reload,
        Self::Purge,
        Self::NoDescriptors,
        Self::Crowd,
        Self::LogReader,
    ];
    const OF_ENGINE: [Self; 7] = [
        Self::EngineCutOff,
        Self::EngineHangs,
        Self::EngineEmptied,
        Self::EngineGoesBack,
        Self::EngineEvicts,
        Self::EngineFull,
        Self::EngineLosesControl,
    ];
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self, f)
    }
}

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
    pub(crate) processes: Vec<Process>,
    /// If the gateways are a fleet.
    pub(crate) engine: Option<EngineHost>,
    /// Those that have happened.
    pub(crate) counts: Vec<Fault>,
}

impl Faults {
    /// One after the other, until this time. Everything works afterwards.
    pub(crate) async fn inject(mut self, mut dice: SmallRng, ends: Instant) -> Self {
        loop {
            sleep(dice.random_range(CALM)).await;
            if Clock::System.now() >= ends {
                return self;
            }
            let of_engine = self.engine.is_some() && dice.random_ratio(1, 3);
            let possible = if of_engine { &Fault::OF_ENGINE[..] } else { &Fault::ALONE[..] };
            let fault = possible[dice.random_range(0..possible.len())];
            if fault == Fault::Crowd && !self.has_crowds {
                continue;
            }
            let gateway = dice.random_range(0..self.processes.len());
            // A purge and the log's reader say themselves what happens.
            if !matches!(fault, Fault::Purge | Fault::LogReader) {
                self.net.note_fault(format!("{fault} {gateway}"));
            }
            self.counts.push(fault);
            self.cause(fault, gateway, &mut dice).await;
        }
    }

    async fn cause(&mut self, fault: Fault, gateway: usize, dice: &mut SmallRng) {
        let (net, host) = (self.net.clone(), self.processes[gateway].host);
        let clock = self.processes[gateway].clock.clone();
        match fault {
            Fault::Partition => {
                self.set_link(gateway, Condition::CutOff);
                net.cut(host, self.upstream, true);
                sleep(dice.random_range(LASTING)).await;
                net.cut(host, self.upstream, false);
                self.set_link(gateway, Condition::Healthy);
            }
            Fault::SlowLink => {
                self.set_link(gateway, Condition::Slow);
                net.slow_down(host, self.upstream, dice.random_range(Duration::ZERO..MAX_SLOW));
                // Responses to calls from before a purge arrive after it.
                self.wait_and_purge(dice.random_ratio(1, 2).then_some(gateway), dice).await;
                net.slow_down(host, self.upstream, Duration::ZERO);
                self.set_link(gateway, Condition::Healthy);
            }
            Fault::Reset => {
                self.set_link(gateway, Condition::Resetting);
                net.reset(host, Some(self.upstream));
                self.set_link(gateway, Condition::Healthy);
            }
            Fault::ClientReset => {
                self.set_down(gateway, true);
                for client in (0..self.clients).filter(|_| dice.random()) {
                    net.reset(host, Some(network::host(client)));
                }
                self.set_down(gateway, false);
            }
            Fault::Crash | Fault::CrashWithSnapshot => {
                let keeps_snapshot = fault == Fault::CrashWithSnapshot;
                self.set_down(gateway, true);
                self.processes[gateway].kill(keeps_snapshot);
                let kept_until = keeps_snapshot.then(|| Clock::System.now() - REMOVAL);
                lock(&self.judge).0.forget(gateway, kept_until);
                sleep(dice.random_range(LASTING)).await;
                self.start(gateway).await;
            }
            Fault::Restart => {
                self.set_down(gateway, true);
                self.processes[gateway].stop().await;
                lock(&self.judge).0.forget(gateway, Some(Clock::System.now()));
                self.start(gateway).await;
            }
            Fault::WallAhead => self.jump(gateway, || clock.advance_wall(HOUR)),
            Fault::WallBack => clock.set_wall_back(HOUR),
            Fault::Suspended => self.jump(gateway, || clock.suspend(HOUR)),
            Fault::Reload => self.processes[gateway].reload(dice.random_range(20..60)),
            Fault::Purge => self.purge(gateway, dice),
            Fault::LogReader => {
                let is_stalled = log::toggle();
                self.net.note_fault(if is_stalled { "the log stalls" } else { "the log goes on" }.to_owned());
            }
            Fault::NoDescriptors => {
                self.set_down(gateway, true);
                self.set_link(gateway, Condition::Exhausted);
                net.set_descriptors(host, false);
                sleep(dice.random_range(LASTING)).await;
                net.set_descriptors(host, true);
                self.set_link(gateway, Condition::Healthy);
                self.set_down(gateway, false);
            }
            Fault::Crowd => {
                self.set_down(gateway, true);
                self.set_link(gateway, Condition::Exhausted);
                let crowd = crowd::gather(&net, self.gateways[gateway].address(), dice);
                sleep(dice.random_range(LASTING)).await;
                drop(crowd);
                // What the crowd has occupied is free again.
                sleep(AFTER_CROWD).await;
                self.set_link(gateway, Condition::Healthy);
                self.set_down(gateway, false);
            }
            _ => {
                lock(&self.judge).0.expect_lost_entries();
                self.cause_of_engine(fault, gateway, dice).await;
                sleep(IN_SYNC_AGAIN).await;
                for gateway in 0..self.processes.len() {
                    lock(&self.judge).0.expect_kept_entries(gateway, Clock::System.now());
                }
            }
        }
    }

    async fn cause_of_engine(&self, fault: Fault, gateway: usize, dice: &mut SmallRng) {
        let Some(EngineHost { engine, host, .. }) = &self.engine else { return };
        match fault {
            Fault::EngineCutOff => {
                let gateway = self.processes[gateway].host;
                self.net.cut(gateway, *host, true);
                self.revoke_some(dice);
                self.wait_for_engine(dice).await;
                // The gateway has missed what the log does not have any more.
                if dice.random_ratio(3, 4) {
                    engine.trim_log(dice.random_range(0..3));
                }
                self.net.cut(gateway, *host, false);
            }
            Fault::EngineHangs => {
                engine.hang(true);
                self.wait_for_engine(dice).await;
                if dice.random_ratio(1, 3) {
                    engine.restart();
                }
                engine.hang(false);
            }
            Fault::EngineEmptied => {
                self.purge_before(dice).await;
                engine.restart();
            }
            Fault::EngineGoesBack => {
                let backup = engine.backup();
                self.wait_for_engine(dice).await;
                engine.go_back(&backup);
            }
            Fault::EngineEvicts => _ = engine.evict(dice.random_range(1..10)),
            Fault::EngineFull => {
                engine.out_of_memory(true);
                self.wait_for_engine(dice).await;
                engine.out_of_memory(false);
            }
            _ => {
                self.purge_before(dice).await;
                engine.lose_control();
            }
        }
    }

    /// Every second time, a gateway tells the engine of a purge immediately before the engine loses data.
    async fn purge_before(&self, dice: &mut SmallRng) {
        if dice.random_ratio(1, 2) {
            self.purge(dice.random_range(0..self.processes.len()), dice);
            sleep(dice.random_range(Duration::ZERO..MAX_SLOW)).await;
        }
    }

    /// A fault lasts. This gateway is purged meanwhile.
    async fn wait_and_purge(&self, purged: Option<usize>, dice: &mut SmallRng) {
        sleep(dice.random_range(LASTING)).await;
        if let Some(gateway) = purged {
            self.purge(gateway, dice);
            sleep(dice.random_range(LASTING) / 4).await;
        }
    }

    /// A fault of the engine lasts. During every second one any gateway is purged.
    async fn wait_for_engine(&self, dice: &mut SmallRng) {
        let purged = dice.random_ratio(1, 2).then(|| dice.random_range(0..self.processes.len()));
        self.wait_and_purge(purged, dice).await;
    }

    /// Many tokens are revoked, while a gateway cannot be told so.
    fn revoke_some(&self, dice: &mut SmallRng) {
        for caller in (0..self.world.callers.len() - 1).filter(|_| dice.random_ratio(1, 3)).collect::<Vec<_>>() {
            if lock(&self.journal).token_states[caller].latest() {
                change_token(&self.world, &self.journal, caller, false, dice);
            }
        }
    }

    /// A gateway is purged, often because the catalogue has just changed.
    fn purge(&self, gateway: usize, dice: &mut SmallRng) {
        if dice.random_ratio(1, 2) {
            change_catalogue(&self.world, &self.journal);
        }
        let project = dice.random_ratio(2, 3).then(|| dice.random_range(0..PROJECTS));
        let what = project.map_or("all projects".to_owned(), |project| format!("project {project}"));
        self.net.note_fault(format!("purge of {what} at {gateway}"));
        purge_at(&self.gateways, &self.journal, gateway, project);
    }

    /// A clock jumps by far more than any lifetime.
    fn jump(&self, gateway: usize, jump: impl FnOnce()) {
        let judge = &mut lock(&self.judge).0;
        judge.expect_jump();
        jump();
        judge.expect_nothing_from_before(gateway, Clock::System.now());
    }

    async fn start(&mut self, gateway: usize) {
        let (address, started) = self.processes[gateway].start().await;
        self.gateways[gateway].restart(address, Some(started));
        self.set_down(gateway, false);
        if self.engine.is_some() {
            // It forgets what it has got before it has read the log.
            lock(&self.judge).0.expect_kept_entries(gateway, Clock::System.now() + IN_SYNC_AGAIN);
        }
    }

    fn set_link(&self, gateway: usize, condition: Condition) {
        let links = &mut lock(&self.journal).links;
        links[gateway].begin(condition, Clock::System.now());
        links[gateway].settle(Clock::System.now());
    }

    /// Whether clients of a gateway may get no response.
    fn set_down(&self, gateway: usize, is_down: bool) {
        let down = &mut lock(&self.journal).down;
        down[gateway].begin(is_down, Clock::System.now());
        down[gateway].settle(Clock::System.now());
    }
}
