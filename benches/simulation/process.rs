//! A gateway's machine, and the process on it: started, killed, replaced.

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use tokio::task::JoinHandle;
use workspace_gateway::testing::clock::{Clock, ManualClock};
use workspace_gateway::testing::config::Config;
use workspace_gateway::testing::gateway::Gateway;
use workspace_gateway::testing::machine::Machine;
use workspace_gateway::testing::random::Random;
use workspace_gateway::testing::server::Server;
use workspace_gateway::testing::sync::Workers;

use super::net::SimulatedNet;
use super::settings;

/// The wall clock when a run begins: in 2026.
pub(crate) const BEGIN: Duration = Duration::from_secs(1_780_000_000);

pub(crate) struct Process {
    net: SimulatedNet,
    pub(crate) host: IpAddr,
    pub(crate) clock: ManualClock,
    urls: [String; 2],
    engine: Option<String>,
    /// Where snapshots are, if this gateway has them.
    folder: Option<PathBuf>,
    seed: u64,
    /// The number of killed processes so far, which names the folder.
    kills: usize,
    /// The number of processes so far.
    starts: usize,
    server: Option<Server>,
    /// The ends of killed and of stopped processes.
    ending: Vec<JoinHandle<()>>,
}

impl Process {
    pub(crate) fn new(
        net: &SimulatedNet,
        host: IpAddr,
        urls: &[String; 2],
        engine: Option<String>,
        folder: Option<PathBuf>,
        seed: u64,
    ) -> Self {
        let boot = blake3::hash(host.to_string().as_bytes()).as_bytes()[..16].try_into().expect("16 bytes");
        let clock = ManualClock::running_from(SystemTime::UNIX_EPOCH + BEGIN, boot);
        let (urls, net) = (urls.clone(), net.clone());
        Self { net, host, clock, urls, engine, folder, seed, kills: 0, starts: 0, server: None, ending: Vec::new() }
    }

    fn snapshot(&self) -> Option<PathBuf> {
        self.own_folder().map(|folder| folder.join("snapshot"))
    }

    /// The folder of this process.
    fn own_folder(&self) -> Option<PathBuf> {
        self.folder.as_ref().map(|folder| folder.join(self.kills.to_string()))
    }

    /// The settings, with this value of one that a reload may change.
    fn config(&self, max_calls: usize) -> Config {
        let text = settings::toml(&self.urls, self.engine.as_deref(), self.snapshot().as_deref(), max_calls);
        Config::from_layers("simulation.toml", &text, &[]).expect("valid settings")
    }

    /// Starts the next process. Returns its address and its gateway.
    pub(crate) async fn start(&mut self) -> (SocketAddr, Arc<Gateway>) {
        // No two processes draw the same random numbers. Otherwise a process seals notices as an earlier one has done, and the
        // engine takes one for the other.
        self.starts += 1;
        let seed = blake3::hash(format!("{} {} {}", self.seed, self.host, self.starts).as_bytes());
        let machine = Machine {
            clock: Clock::Manual(self.clock.clone()),
            random: Random::seeded(*seed.as_bytes()),
            network: self.net.of(self.host),
            workers: Workers::Inline,
        };
        if let Some(folder) = self.own_folder() {
            std::fs::create_dir_all(folder).expect("a folder");
        }
        let server = Server::start(&self.config(40), machine).await.expect("it listens");
        let started = (server.proxy_address(), Arc::clone(server.gateway()));
        self.server = Some(server);
        started
    }

    /// Kills the process: what still runs of it has no connections and opens none. `keeps_snapshot`: the next one reads what this
    /// one has written.
    pub(crate) fn kill(&mut self, keeps_snapshot: bool) {
        let before = self.own_folder();
        self.kills += 1;
        // What the killed process still writes goes to its folder.
        if let (true, Some(before), Some(after)) = (keeps_snapshot, before, self.own_folder()) {
            std::fs::create_dir_all(&after).expect("a new folder");
            for file in std::fs::read_dir(before).expect("a folder") {
                let file = file.expect("a file");
                std::fs::copy(file.path(), after.join(file.file_name())).expect("a copy");
            }
        }
        self.net.end(self.host);
        let server = self.server.take().expect("it runs");
        self.ending.push(tokio::spawn(server.stop()));
    }

    /// Stops the process in its order. The next one has the same snapshot.
    pub(crate) async fn stop(&mut self) {
        self.server.take().expect("it runs").stop().await;
        self.net.end(self.host);
    }

    /// Reloads the settings, one of which has changed.
    pub(crate) fn reload(&self, max_calls: usize) {
        let server = self.server.as_ref().expect("it runs");
        server.reloading().apply(Ok(self.config(max_calls))).expect("valid settings");
    }

    pub(crate) fn gateway(&self) -> &Arc<Gateway> {
        self.server.as_ref().expect("it runs").gateway()
    }

    /// Waits until all processes have ended.
    pub(crate) async fn end(mut self) {
        if self.server.is_some() {
            self.stop().await;
        }
        for ending in self.ending {
            ending.await.expect("it stops without a panic");
        }
    }
}
