//! The engines of a fleet in the storm, and what happens to them: one engine, to which each gateway has a relay, or a master
//! and its replica with a Sentinel that watches them.

use std::fmt;
use std::time::Duration;

use rand::rngs::SmallRng;
use rustix::process::Signal;
use tokio::time::{sleep, timeout};

use super::engine::{Engine, Line, Relay};
use super::faults::pause;

/// What Sentinel calls the master.
const NAME: &str = "ours";
/// Far longer than anything here takes.
const HANG: Duration = Duration::from_secs(30);
const LOOK: Duration = Duration::from_millis(20);

/// What happens to the engine, to the way to it, or to a gateway that uses it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum EngineFault {
    Hangs,
    Emptied,
    /// To the data that were saved last.
    GoesBack,
    CutOff,
    GatewayKilled,
    FailsOver,
    MasterKilled,
}

impl fmt::Display for EngineFault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Hangs => "the engine hangs",
            Self::Emptied => "the engine is killed, and empty afterwards",
            Self::GoesBack => "the engine is killed, and has earlier data afterwards",
            Self::CutOff => "a gateway is cut off",
            Self::GatewayKilled => "a gateway is killed, and starts again",
            Self::FailsOver => "Sentinel fails over, and the old master takes writes for a while",
            Self::MasterKilled => "the master is killed, and Sentinel promotes a replica that was behind",
        })
    }
}

pub(crate) enum Engines {
    One(Box<Engine>, Vec<Relay>),
    Watched(Box<Watched>),
}

pub(crate) struct Watched {
    sentinel: Engine,
    master: Engine,
    replica: Engine,
}

impl Engines {
    pub(crate) async fn start(with_sentinel: bool) -> Self {
        let engine = Engine::start().await;
        match with_sentinel {
            true => Self::Watched(Box::new(Watched::start(engine).await)),
            false => Self::One(Box::new(engine), Vec::new()),
        }
    }

    /// The engine that has the keys.
    pub(crate) fn master(&self) -> &Engine {
        match self {
            Self::One(engine, _) => engine,
            Self::Watched(watched) => &watched.master,
        }
    }

    /// The settings of another gateway.
    pub(crate) async fn settings(&mut self) -> String {
        match self {
            Self::One(engine, relays) => {
                let relay = Relay::start(engine).await;
                let settings = relay.settings();
                relays.push(relay);
                settings
            }
            Self::Watched(watched) => watched.sentinel.settings_of_watched(NAME),
        }
    }

    pub(crate) fn faults(&self) -> &'static [EngineFault] {
        use EngineFault::{CutOff, Emptied, FailsOver, GatewayKilled, GoesBack, Hangs, MasterKilled};
        match self {
            Self::One(..) => &[Hangs, Emptied, GoesBack, CutOff, GatewayKilled],
            Self::Watched(_) => &[FailsOver, MasterKilled],
        }
    }

    pub(crate) fn set_line(&self, gateway: usize, line: Line) {
        if let Self::One(_, relays) = self {
            relays[gateway].set(line);
        }
    }

    /// What gateways tell from now on will be lost.
    pub(crate) async fn prepare(&self, fault: EngineFault) {
        match (self, fault) {
            (Self::One(engine, _), EngineFault::GoesBack) => engine.save().await,
            (Self::Watched(watched), EngineFault::MasterKilled) => {
                watched.replica.signal(Signal::Stop);
                watched.master.run(&["CLIENT", "KILL", "TYPE", "replica"]).await;
            }
            (Self::Watched(watched), EngineFault::FailsOver) => watched.begin_to_fail_over().await,
            _ => {}
        }
    }

    /// Returns when the engine can be used again.
    pub(crate) async fn cause(&mut self, fault: EngineFault, dice: &mut SmallRng) {
        match (self, fault) {
            (Self::One(engine, _), EngineFault::Hangs) => {
                engine.signal(Signal::Stop);
                pause(dice, 300, 2_000).await;
                engine.signal(Signal::Cont);
            }
            (Self::One(engine, _), EngineFault::Emptied | EngineFault::GoesBack) => {
                engine.kill().await;
                pause(dice, 20, 700).await;
                engine.restart(fault == EngineFault::GoesBack).await;
            }
            (Self::Watched(watched), _) => watched.cause(fault, dice).await,
            (Self::One(..), _) => {}
        }
    }
}

impl Watched {
    async fn start(master: Engine) -> Self {
        let replica = Engine::start().await;
        replicate(&replica, &master).await;
        // Sentinel asks for replicas when it begins, and then each 10 s.
        let settings = [("down-after-milliseconds", "500"), ("failover-timeout", "2000")];
        let sentinel = Engine::watch(NAME, master.port, &settings).await;
        let watched = Self { sentinel, master, replica };
        let port = watched.replica.port.to_string();
        until(async || watched.sentinel.run(&["SENTINEL", "REPLICAS", NAME]).await.contains(&port)).await;
        watched
    }

    /// Sentinel refuses while it does not know the replica well enough.
    async fn begin_to_fail_over(&self) {
        until(async || self.sentinel.run(&["SENTINEL", "FAILOVER", NAME]).await == "OK").await;
    }

    async fn cause(&mut self, fault: EngineFault, dice: &mut SmallRng) {
        if fault == EngineFault::MasterKilled {
            self.master.kill().await;
            self.replica.signal(Signal::Cont);
        }
        let port = self.replica.port.to_string();
        until(async || {
            let named = self.sentinel.run(&["SENTINEL", "GET-MASTER-ADDR-BY-NAME", NAME]).await;
            named.lines().nth(1) == Some(&port)
        })
        .await;
        std::mem::swap(&mut self.master, &mut self.replica);
        if fault == EngineFault::MasterKilled {
            pause(dice, 20, 700).await;
            // It is a master without data until it is told otherwise.
            self.replica.restart(false).await;
        }
        pause(dice, 200, 2_000).await;
        replicate(&self.replica, &self.master).await;
    }
}

/// Returns when the replica has all that the master has.
async fn replicate(replica: &Engine, master: &Engine) {
    assert_eq!(replica.run(&["REPLICAOF", "127.0.0.1", &master.port.to_string()]).await, "OK");
    until(async || replica.run(&["INFO", "replication"]).await.contains("master_link_status:up")).await;
}

async fn until(is_done: impl AsyncFn() -> bool) {
    let waiting = async {
        while !is_done().await {
            sleep(LOOK).await;
        }
    };
    timeout(HANG, waiting).await.expect("the engine does it");
}
