//! The gateway, in a process of its own, so that its memory and its tasks are nobody else's.
//!
//! It is this very program once more, which serves until its standard input ends and writes down what it
//! has in use whenever it is asked to by a line. (The program that is shipped can't tell its tasks.)

use std::fmt;
use std::io::{BufRead, BufReader, Write};
use std::net::SocketAddr;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

use workspace_gateway::clock::Clock;
use workspace_gateway::config::Config;
use workspace_gateway::server::Server;

/// The flag that has this program be the gateway.
pub(crate) const FLAG: &str = "--gateway";

/// What should be as before when the storm is over. These are metrics, and the last the runtime's tasks.
const FIGURES: [&str; 6] = [
    "connections",
    "requests_in_flight",
    "coalesced_waiters",
    "upstream_requests_in_flight",
    "private_scopes",
    "tasks",
];

/// What a gateway has in use.
#[derive(Clone, Copy, PartialEq)]
pub(crate) struct InUse([u64; FIGURES.len()]);

impl InUse {
    /// Whether nothing of it is more than it was. (Less may be: the client for upstream has a task while it
    /// has idle connections, and a while longer.)
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

/// The child's part, with its configuration.
pub(crate) fn serve(settings: &str) {
    // The same on every machine: each worker allocates from an arena of its own, and leaves its gaps.
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().expect("a runtime");
    let config = Config::from_layers("storm.toml", settings, &[]).expect("settings that it knows");
    let server = runtime.block_on(Server::start(&config, Clock::System)).expect("it listens");
    println!("{}", server.proxy_address());
    for _ in std::io::stdin().lines() {
        let page = server.gateway().metrics().encode().expect("metrics");
        let sum = |name: &str| {
            let series = format!("workspace_gateway_{name}");
            let ours = |line: &&str| line.strip_prefix(&series).is_some_and(|rest| rest.starts_with([' ', '{']));
            page.lines().filter(ours).filter_map(|line| line.rsplit(' ').next()?.parse::<u64>().ok()).sum::<u64>()
        };
        let tasks = runtime.metrics().num_alive_tasks();
        let figures = FIGURES.map(|name| if name == "tasks" { tasks.to_string() } else { sum(name).to_string() });
        println!("{}", figures.join(" "));
    }
}

/// The parent's side; the child ends with this value.
pub(crate) struct Gateway {
    process: Child,
    asks: ChildStdin,
    tells: BufReader<ChildStdout>,
    pub(crate) address: SocketAddr,
}

impl Gateway {
    pub(crate) fn start(settings: &str) -> Self {
        let program = std::env::current_exe().expect("this program");
        let mut command = Command::new(program);
        command.args(["--bench", FLAG, settings]).stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut process = command.spawn().expect("the gateway starts");
        let (asks, tells) = (process.stdin.take().expect("piped"), process.stdout.take().expect("piped"));
        let nowhere = SocketAddr::from(([0, 0, 0, 0], 0));
        // First of all, so that it is killed whatever happens next.
        let mut gateway = Self { process, asks, tells: BufReader::new(tells), address: nowhere };
        gateway.address = gateway.line().parse().expect("where clients connect");
        gateway
    }

    fn line(&mut self) -> String {
        let mut line = String::new();
        self.tells.read_line(&mut line).expect("it writes text");
        line.trim().to_owned()
    }

    /// What it has in use.
    pub(crate) fn in_use(&mut self) -> InUse {
        self.asks.write_all(b"\n").expect("it runs");
        let mut figures = [0; FIGURES.len()];
        let line = self.line();
        for (figure, text) in figures.iter_mut().zip(line.split(' ')) {
            *figure = text.parse().expect("a number");
        }
        InUse(figures)
    }

    /// Bytes of its memory.
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
