//! Faults of a gateway, of its machine, and of its links to upstream and to clients.

use std::time::{Duration, Instant};

use rand::RngExt;
use rand::rngs::SmallRng;
use tokio::time::sleep;
use workspace_gateway::testing::clock::Clock;

use super::crowd;
use super::faults::{Faults, IN_SYNC_AGAIN, LASTING, MAX_SLOW, calm};
use super::lock;
use super::log;
use super::network;
use super::process::Process;
use super::world::Condition;

/// How long it is between two faults.
const CALM: std::ops::Range<Duration> = Duration::from_secs(5)..Duration::from_secs(40);
/// A killed process may have been told of a refusal, and have its snapshot not yet removed.
const REMOVAL: Duration = Duration::from_secs(2);
/// How long it may take until the gateway has noticed that a crowd is gone.
const AFTER_CROWD: Duration = Duration::from_secs(1);
/// How far clocks jump.
pub(crate) const HOUR: Duration = Duration::from_secs(3600);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum GatewayFault {
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
}

impl GatewayFault {
    const ALL: [Self; 15] = [
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
}

pub(crate) struct GatewayFaults {
    pub(crate) shared: Faults,
    /// The number of the gateway.
    pub(crate) gateway: usize,
    pub(crate) process: Process,
    pub(crate) dice: SmallRng,
}

impl GatewayFaults {
    /// Causes faults until `ends`. Returns the process, and the names of the faults.
    pub(crate) async fn inject(mut self, ends: Instant) -> (Process, Vec<String>) {
        let mut names = Vec::new();
        while calm(CALM, &mut self.dice, ends).await {
            let fault = GatewayFault::ALL[self.dice.random_range(0..GatewayFault::ALL.len())];
            if fault == GatewayFault::Crowd && !self.shared.has_crowds {
                continue;
            }
            names.push(match fault {
                // They say themselves what happens.
                GatewayFault::Purge | GatewayFault::LogReader => format!("{fault:?}"),
                _ => self.note(fault),
            });
            self.cause(fault).await;
        }
        (self.process, names)
    }

    /// Notes a fault. Returns its name.
    fn note(&self, fault: GatewayFault) -> String {
        self.shared.net.note_fault(format!("{fault:?} {}", self.gateway));
        format!("{fault:?}")
    }

    async fn cause(&mut self, fault: GatewayFault) {
        let (net, host, gateway) = (self.shared.net.clone(), self.process.host, self.gateway);
        let clock = self.process.clock.clone();
        match fault {
            GatewayFault::Partition => {
                self.set_link(Condition::CutOff);
                net.cut(host, self.shared.upstream, true);
                sleep(self.dice.random_range(LASTING)).await;
                net.cut(host, self.shared.upstream, false);
                self.set_link(Condition::Healthy);
            }
            GatewayFault::SlowLink => {
                self.set_link(Condition::Slow);
                net.slow_down(host, self.shared.upstream, self.dice.random_range(Duration::ZERO..MAX_SLOW));
                // Responses to calls from before a purge arrive after it.
                self.shared.wait_and_purge(self.dice.random_ratio(1, 2).then_some(gateway), &mut self.dice).await;
                net.slow_down(host, self.shared.upstream, Duration::ZERO);
                self.set_link(Condition::Healthy);
            }
            GatewayFault::Reset => {
                self.set_link(Condition::Resetting);
                net.reset(host, Some(self.shared.upstream));
                self.set_link(Condition::Healthy);
            }
            GatewayFault::ClientReset => {
                self.set_down(true);
                for client in (0..self.shared.clients).filter(|_| self.dice.random()) {
                    net.reset(host, Some(network::host(client)));
                }
                self.set_down(false);
            }
            GatewayFault::Crash | GatewayFault::CrashWithSnapshot => {
                let keeps_snapshot = fault == GatewayFault::CrashWithSnapshot;
                self.set_down(true);
                self.process.kill(keeps_snapshot);
                let kept_until = keeps_snapshot.then(|| Clock::System.now() - REMOVAL);
                lock(&self.shared.judge).0.forget(gateway, kept_until);
                sleep(self.dice.random_range(LASTING)).await;
                self.start().await;
            }
            GatewayFault::Restart => {
                self.set_down(true);
                self.process.stop().await;
                lock(&self.shared.judge).0.forget(gateway, Some(Clock::System.now()));
                self.start().await;
            }
            GatewayFault::WallAhead => self.jump(|| clock.advance_wall(HOUR)),
            GatewayFault::WallBack => clock.set_wall_back(HOUR),
            GatewayFault::Suspended => self.jump(|| clock.suspend(HOUR)),
            GatewayFault::Reload => self.process.reload(self.dice.random_range(20..60)),
            GatewayFault::Purge => self.shared.purge(gateway, &mut self.dice),
            GatewayFault::LogReader => {
                let is_stalled = log::toggle();
                self.shared.net.note_fault(if is_stalled { "the log stalls" } else { "the log goes on" }.to_owned());
            }
            GatewayFault::NoDescriptors => {
                self.set_down(true);
                self.set_link(Condition::Exhausted);
                net.set_descriptors(host, false);
                sleep(self.dice.random_range(LASTING)).await;
                net.set_descriptors(host, true);
                self.expect_notices();
                self.set_link(Condition::Healthy);
                self.set_down(false);
            }
            GatewayFault::Crowd => {
                self.set_down(true);
                self.set_link(Condition::Exhausted);
                let crowd = crowd::gather(&net, self.shared.gateways[gateway].address(), &mut self.dice);
                sleep(self.dice.random_range(LASTING)).await;
                drop(crowd);
                // What the crowd has occupied is free again.
                sleep(AFTER_CROWD).await;
                self.expect_notices();
                self.set_link(Condition::Healthy);
                self.set_down(false);
            }
        }
    }

    /// A clock jumps by far more than any lifetime.
    fn jump(&self, jump: impl FnOnce()) {
        let judge = &mut lock(&self.shared.judge).0;
        judge.expect_jump();
        jump();
        judge.expect_nothing_from_before(self.gateway, Clock::System.now());
    }

    async fn start(&mut self) {
        let (address, started) = self.process.start().await;
        self.shared.gateways[self.gateway].restart(address, Some(started));
        self.set_down(false);
        // It forgets what it has got before it has read the log.
        self.expect_kept_entries(self.gateway);
    }

    /// The gateway had no connections. It tells the other gateways only now what it has learnt meanwhile.
    fn expect_notices(&self) {
        (0..self.shared.gateways.len()).for_each(|gateway| self.expect_kept_entries(gateway));
    }

    fn expect_kept_entries(&self, gateway: usize) {
        if self.shared.gateways.len() > 1 {
            lock(&self.shared.judge).0.expect_kept_entries(gateway, Clock::System.now() + IN_SYNC_AGAIN);
        }
    }

    fn set_link(&self, condition: Condition) {
        let links = &mut lock(&self.shared.journal).links;
        links[self.gateway].begin(condition, Clock::System.now());
        links[self.gateway].settle(Clock::System.now());
    }

    /// Whether clients of the gateway may get no response.
    fn set_down(&self, is_down: bool) {
        let down = &mut lock(&self.shared.journal).down;
        down[self.gateway].begin(is_down, Clock::System.now());
        down[self.gateway].settle(Clock::System.now());
    }
}
