//! The gateway in a process of its own, so that its memory and tasks can be measured.
//!
//! The process is this bench, started with a flag, because the real program does not report its tasks. It serves until
//! its standard input ends. For each line on standard input it prints the resources in use. Nobody reads its log. As a
//! member of a fleet, it is the one that is killed.

use std::fmt;
use std::io::{BufRead, BufReader, Write};
use std::net::SocketAddr;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use workspace_gateway::testing::clock::{Clock, ManualClock};
use workspace_gateway::testing::config::Config;
use workspace_gateway::testing::server::Server;
use workspace_gateway::testing::telemetry::logs;

use super::metrics::sum_of;
use super::settings::BUDGET;

/// The flag that starts the gateway.
pub(crate) const FLAG: &str = "--gateway";

/// The step of a clock.
const HOUR: Duration = Duration::from_secs(3600);

/// Commands that move a clock.
pub(crate) const WALL_BACK: &str = "wall clock set back one hour";
pub(crate) const WALL_AHEAD: &str = "wall clock one hour ahead";
pub(crate) const BOOT_AHEAD: &str = "boot clock one hour ahead";

/// Commands that take away all free descriptors, and that return them.
pub(crate) const NO_DESCRIPTORS: &str = "no descriptors are left";
pub(crate) const DESCRIPTORS: &str = "descriptors are there again";

/// Resources that must not be in use after the storm. They are metrics; the last is the number of tokio tasks.
const FIGURES: [&str; 6] = [
    "connections",
    "requests_in_flight",
    "coalesced_waiters",
    "upstream_requests_in_flight",
    "private_scopes",
    "tasks",
];

/// Additional calls (beside or after another caller's), all fetches, and dropped log lines.
const COUNTS: [&str; 3] = ["additional_calls_total", "fetches_total", "log_lines_dropped_total"];

#[derive(Clone, Copy, PartialEq)]
pub(crate) struct InUse([u64; FIGURES.len()]);

impl InUse {
    /// Whether nothing has grown. Less is possible: the upstream client has a task while it has idle connections, and a
    /// short time longer.
    pub(crate) fn is_back_at(&self, before: &Self) -> bool {
        self.0.iter().zip(before.0).all(|(now, before)| *now <= before)
    }
}

impl fmt::Display for InUse {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let figures = self.0.iter().zip(FIGURES).map(|(figure, name)| format!("{figure} {}", name.replace('_', " ")));
        f.write_str(&figures.collect::<Vec<_>>().join(", "))
    }
}

/// The child process.
pub(crate) fn serve(settings: &str) {
    // The same on every machine: each worker has its own allocator arena, with its fragmentation.
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().expect("a runtime");
    let mut config = Config::from_layers("storm.toml", settings, &[]).expect("valid settings");
    config.fleet.iter_mut().for_each(|fleet| fleet.set_budget(BUDGET));
    let _log = logs::begin(&config.settings.log).expect("a log");
    let clock = ManualClock::running();
    // The clocks of a fleet are those of the machine.
    let time = if config.fleet.is_some() { Clock::System } else { Clock::Manual(clock.clone()) };
    let server = runtime.block_on(Server::start(&config, time.clone())).expect("it listens");
    println!("{}", server.proxy_address());
    for line in std::io::stdin().lines() {
        match line.as_deref().unwrap_or_default() {
            WALL_BACK => clock.set_wall_back(HOUR),
            WALL_AHEAD => clock.advance_wall(HOUR),
            BOOT_AHEAD => clock.advance_boot(HOUR),
            NO_DESCRIPTORS => limit_descriptors(Some(0)),
            DESCRIPTORS => limit_descriptors(None),
            _ => {}
        }
        let page = server.gateway().metrics().encode().expect("metrics");
        let sum = |name: &str| sum_of::<u64>(&page, &format!("workspace_gateway_{name}"));
        let tasks = runtime.metrics().num_alive_tasks();
        let in_use = FIGURES.map(|name| if name == "tasks" { tasks as u64 } else { sum(name) });
        let in_sync = server.gateway().fleet_sync().map_or(Duration::ZERO, |(until, _)| until - time.now());
        let in_sync = u64::try_from(in_sync.as_millis()).expect("at most some seconds");
        let figures = in_use.into_iter().chain(COUNTS.map(sum)).chain([in_sync]);
        let figures: Vec<_> = figures.map(|figure| figure.to_string()).collect();
        println!("{}", figures.join(" "));
    }
}

/// Sets the soft limit of open files: to this number, or to the hard limit.
fn limit_descriptors(current: Option<u64>) {
    let Rlimit { maximum, .. } = getrlimit(Resource::Nofile);
    setrlimit(Resource::Nofile, Rlimit { current: current.or(maximum), maximum }).expect("a lower limit is allowed");
}

/// The parent's handle. The child is killed when this is dropped.
pub(crate) struct Gateway {
    process: Child,
    commands: ChildStdin,
    replies: BufReader<ChildStdout>,
    pub(crate) address: SocketAddr,
}

impl Gateway {
    pub(crate) fn start(settings: &str) -> Self {
        let program = std::env::current_exe().expect("this program");
        let mut command = Command::new(program);
        // The log is a pipe that nobody reads.
        command.args(["--bench", FLAG, settings]);
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut process = command.spawn().expect("the gateway starts");
        let (commands, replies) = (process.stdin.take().expect("piped"), process.stdout.take().expect("piped"));
        let nowhere = SocketAddr::from(([0, 0, 0, 0], 0));
        // Created first, so that the process is killed whatever happens next.
        let mut gateway = Self { process, commands, replies: BufReader::new(replies), address: nowhere };
        gateway.address = gateway.line().parse().expect("where clients connect");
        gateway
    }

    fn line(&mut self) -> String {
        let mut line = String::new();
        self.replies.read_line(&mut line).expect("it writes text");
        line.trim().to_owned()
    }

    pub(crate) fn in_use(&mut self) -> InUse {
        let figures = self.figures();
        InUse(std::array::from_fn(|place| figures[place]))
    }

    /// The values of [`COUNTS`].
    pub(crate) fn counts(&mut self) -> [u64; COUNTS.len()] {
        let figures = self.figures();
        std::array::from_fn(|place| figures[FIGURES.len() + place])
    }

    /// How many calls to upstream are in flight.
    pub(crate) fn calls(&mut self) -> u64 {
        let place = FIGURES.iter().position(|name| *name == "upstream_requests_in_flight");
        self.figures()[place.expect("it is one of them")]
    }

    /// Until when it is in sync with its fleet, at least.
    pub(crate) fn in_sync_until(&mut self) -> Instant {
        let asked = Clock::System.now();
        asked + Duration::from_millis(*self.figures().last().expect("the last figure"))
    }

    /// Kills it, and returns when it has ended.
    pub(crate) fn kill(&mut self) {
        self.process.kill().expect("it runs");
        self.process.wait().expect("it has ended");
    }

    /// Sends a command and waits until it is done.
    pub(crate) fn apply(&mut self, command: &str) {
        self.command(command);
    }

    fn figures(&mut self) -> Vec<u64> {
        self.command("")
    }

    fn command(&mut self, line: &str) -> Vec<u64> {
        writeln!(self.commands, "{line}").expect("it runs");
        self.line().split(' ').map(|text| text.parse().expect("a number")).collect()
    }

    /// Resident memory in bytes.
    pub(crate) fn memory(&self) -> usize {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.process.id())).expect("it runs");
        let value = status.lines().find_map(|line| line.strip_prefix("VmRSS:")?.strip_suffix("kB"));
        value.and_then(|value| value.trim().parse::<usize>().ok()).expect("a number of kB") * 1024
    }
}

impl Drop for Gateway {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}
