//! Faults of a fleet's engine, and of its links to gateways.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rand::RngExt;
use rand::rngs::SmallRng;
use tokio::time::sleep;
use workspace_gateway::testing::clock::Clock;

use super::engine::EngineHost;
use super::faults::{Faults, IN_SYNC_AGAIN, MAX_SLOW, calm};
use super::lock;
use super::upstream_faults::change_token;

/// How long it is between two faults.
const CALM: std::ops::Range<Duration> = Duration::from_secs(10)..Duration::from_secs(80);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum EngineFault {
    /// One gateway is cut off from it.
    CutOff,
    Hangs,
    /// It has lost all.
    Emptied,
    /// It has again what it had before.
    GoesBack,
    Evicts,
    Full,
    LosesControl,
}

impl EngineFault {
    const ALL: [Self; 7] =
        [Self::CutOff, Self::Hangs, Self::Emptied, Self::GoesBack, Self::Evicts, Self::Full, Self::LosesControl];
}

pub(crate) struct EngineFaults {
    pub(crate) shared: Faults,
    /// The hosts of the gateways.
    pub(crate) hosts: Arc<[IpAddr]>,
    pub(crate) engine: EngineHost,
    pub(crate) dice: SmallRng,
}

impl EngineFaults {
    /// Causes faults until `ends`. Returns the engine, and the names of the faults.
    pub(crate) async fn inject(mut self, ends: Instant) -> (EngineHost, Vec<String>) {
        let mut names = Vec::new();
        while calm(CALM, &mut self.dice, ends).await {
            let fault = EngineFault::ALL[self.dice.random_range(0..EngineFault::ALL.len())];
            let gateway = self.dice.random_range(0..self.hosts.len());
            names.push(self.note(fault, gateway));
            self.affected(fault, gateway).for_each(|gateway| lock(&self.shared.judge).0.expect_missed_notices(gateway));
            self.cause(fault, gateway).await;
            sleep(IN_SYNC_AGAIN).await;
            let judge = &mut lock(&self.shared.judge).0;
            judge.expect_all_notices(Clock::System.now());
            judge.expect_backup(None);
        }
        (self.engine, names)
    }

    /// Notes a fault. Returns its name.
    fn note(&self, fault: EngineFault, gateway: usize) -> String {
        let name = format!("Engine{fault:?}");
        let from = if fault == EngineFault::CutOff { format!(" {gateway}") } else { String::new() };
        self.shared.net.note_fault(format!("{name}{from}"));
        name
    }

    /// The gateways that may miss notices.
    fn affected(&self, fault: EngineFault, gateway: usize) -> std::ops::Range<usize> {
        if fault == EngineFault::CutOff { gateway..gateway + 1 } else { 0..self.hosts.len() }
    }

    async fn cause(&mut self, fault: EngineFault, gateway: usize) {
        let engine = self.engine.engine.clone();
        match fault {
            EngineFault::CutOff => {
                let gateway = self.hosts[gateway];
                self.shared.net.cut(gateway, self.engine.host, true);
                self.revoke_some();
                self.wait_for_engine().await;
                // The gateway has missed what the log does not have any more.
                if self.dice.random_ratio(3, 4) {
                    engine.trim_log(self.dice.random_range(0..3));
                }
                self.shared.net.cut(gateway, self.engine.host, false);
            }
            EngineFault::Hangs => {
                engine.hang(true);
                self.wait_for_engine().await;
                if self.dice.random_ratio(1, 3) {
                    engine.restart();
                }
                engine.hang(false);
            }
            EngineFault::Emptied => {
                self.purge_before().await;
                engine.restart();
            }
            EngineFault::GoesBack => {
                let backup = engine.backup();
                lock(&self.shared.judge).0.expect_backup(Some(Clock::System.now()));
                self.wait_for_engine().await;
                engine.go_back(&backup);
            }
            EngineFault::Evicts => _ = engine.evict(self.dice.random_range(1..10)),
            EngineFault::Full => {
                engine.out_of_memory(true);
                self.wait_for_engine().await;
                engine.out_of_memory(false);
            }
            EngineFault::LosesControl => {
                self.purge_before().await;
                engine.lose_control();
            }
        }
    }

    /// With probability 1/2, a gateway tells the engine of a purge immediately before the engine loses data.
    async fn purge_before(&mut self) {
        if self.dice.random_ratio(1, 2) {
            let gateway = self.dice.random_range(0..self.hosts.len());
            self.shared.purge(gateway, &mut self.dice);
            sleep(self.dice.random_range(Duration::ZERO..MAX_SLOW)).await;
        }
    }

    /// A fault of the engine lasts. With probability 1/2, any gateway is purged meanwhile.
    async fn wait_for_engine(&mut self) {
        let purged = self.dice.random_ratio(1, 2).then(|| self.dice.random_range(0..self.hosts.len()));
        self.shared.wait_and_purge(purged, &mut self.dice).await;
    }

    /// Many tokens are revoked, while a gateway cannot be told so.
    fn revoke_some(&mut self) {
        for caller in 0..self.shared.world.callers.len() - 1 {
            if self.dice.random_ratio(1, 3) && lock(&self.shared.journal).token_states[caller].latest() {
                change_token(&self.shared.world, &self.shared.journal, caller, false, &mut self.dice);
            }
        }
    }
}
