//! The engine of a fleet: Debian's Redis, which can hang, lose its data or go back to what it had some seconds ago. And a
//! relay between it and one gateway, which can be cut.

// Each bench uses a part.
#![allow(dead_code)]

use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::Stdio;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};
use tokio::io::{AsyncBufReadExt, BufReader, copy_bidirectional};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::process::{Child, Command};
use tokio::sync::watch;
use tokio::time::timeout;

/// Far longer than anything here takes.
const HANG: Duration = Duration::from_secs(20);
/// The file with the data.
const FILE: &str = "dump.rdb";
/// The configuration file of a Sentinel.
const CONFIG: &str = "sentinel.conf";
/// What it logs when it can be used, as an engine or as a Sentinel.
const READY: [&str; 2] = ["Ready to accept connections", "+monitor master"];

/// A running engine. It ends when it is dropped.
pub(crate) struct Engine {
    process: Child,
    pub(crate) port: u16,
    /// Nobody else gets the port while the engine does not run.
    _reserved: TcpSocket,
    folder: PathBuf,
}

impl Engine {
    pub(crate) async fn start() -> Self {
        Self::start_with("").await
    }

    /// A Sentinel that watches an engine as the master with this name. It is alone, so it decides alone.
    pub(crate) async fn watch(name: &str, master: u16, settings: &[(&str, &str)]) -> Self {
        let settings = settings.iter().map(|(key, value)| format!("sentinel {key} {name} {value}\n"));
        Self::start_with(&format!("sentinel monitor {name} 127.0.0.1 {master} 1\n{}", settings.collect::<String>()))
            .await
    }

    /// With a configuration file, if it is a Sentinel.
    async fn start_with(sentinel: &str) -> Self {
        static NUMBER: AtomicUsize = AtomicUsize::new(0);
        let (id, number) = (std::process::id(), NUMBER.fetch_add(1, Ordering::Relaxed));
        let folder = std::env::temp_dir().join(format!("workspace-gateway-bench-engine-{id}-{number}"));
        std::fs::create_dir_all(&folder).expect("a folder");
        let (reserved, port) = reserve_port().expect("a port");
        if !sentinel.is_empty() {
            std::fs::write(folder.join(CONFIG), sentinel).expect("a file");
        }
        Self { process: spawn(port, &folder).await, port, _reserved: reserved, folder }
    }

    /// Settings of a fleet with this engine.
    pub(crate) fn settings(&self) -> String {
        settings(&format!("redis://127.0.0.1:{}", self.port))
    }

    /// Settings of a fleet with the engine that this Sentinel names.
    pub(crate) fn settings_of_watched(&self, name: &str) -> String {
        settings(&format!("redis-sentinel://127.0.0.1:{}/{name}", self.port))
    }

    pub(crate) fn signal(&self, signal: Signal) {
        let id = self.process.id().and_then(|id| i32::try_from(id).ok()).and_then(Pid::from_raw);
        kill_process(id.expect("a process"), signal).expect("it runs");
    }

    /// Runs a command of the engine. Returns what redis-cli prints.
    pub(crate) async fn run(&self, command: &[&str]) -> String {
        let running = Command::new("redis-cli").args(["-p", &self.port.to_string()]).args(command).output();
        let output = timeout(HANG, running).await.expect("it answers").expect("redis-cli is on the PATH");
        String::from_utf8_lossy(&output.stdout).trim().to_owned()
    }

    /// Saves its data to the file.
    pub(crate) async fn save(&self) {
        assert_eq!(self.run(&["SAVE"]).await, "OK");
    }

    /// The memory that it uses, in MiB.
    pub(crate) async fn used_memory(&self) -> f64 {
        let reply = self.run(&["INFO", "memory"]).await;
        let bytes = reply.lines().find_map(|line| line.strip_prefix("used_memory:")?.trim().parse::<f64>().ok());
        bytes.expect("its memory") / f64::from(1 << 20)
    }

    /// Kills it, which saves nothing, and returns when it has ended.
    pub(crate) async fn kill(&mut self) {
        timeout(HANG, self.process.kill()).await.expect("it ends").expect("it ran");
    }

    /// Starts it again, with the data that were saved last or without data.
    pub(crate) async fn restart(&mut self, with_data: bool) {
        if !with_data {
            let _ = std::fs::remove_file(self.folder.join(FILE));
        }
        self.process = spawn(self.port, &self.folder).await;
    }
}

/// Binds a free port and does not listen. The engine can bind it, too, because both say that it may be bound already.
fn reserve_port() -> io::Result<(TcpSocket, u16)> {
    let socket = TcpSocket::new_v4()?;
    socket.set_reuseaddr(true)?;
    socket.bind(SocketAddr::from(([127, 0, 0, 1], 0)))?;
    let port = socket.local_addr()?.port();
    Ok((socket, port))
}

/// Loads what is in the folder.
async fn spawn(port: u16, folder: &PathBuf) -> Child {
    let mut command = Command::new("redis-server");
    let config = folder.join(CONFIG);
    if config.exists() {
        command.arg(config).arg("--sentinel");
    } else {
        command.args(["--save", "", "--appendonly", "no", "--dbfilename", FILE, "--repl-diskless-sync-delay", "0"]);
    }
    command.args(["--bind", "127.0.0.1", "--port", &port.to_string(), "--dir"]).arg(folder);
    command.stdout(Stdio::piped()).kill_on_drop(true);
    let mut process = command.spawn().expect("redis-server is on the PATH");
    let mut log = BufReader::new(process.stdout.take().expect("its log")).lines();
    let starting = async {
        while let Some(line) = log.next_line().await.expect("it writes text") {
            if READY.iter().any(|ready| line.contains(ready)) {
                return true;
            }
        }
        false
    };
    assert!(timeout(HANG, starting).await.expect("it starts"), "it has ended");
    // So that it does not wait for a reader of its log.
    tokio::spawn(async move { while let Ok(Some(_)) = log.next_line().await {} });
    process
}

impl Drop for Engine {
    fn drop(&mut self) {
        let _ = self.process.start_kill();
        let _ = std::fs::remove_dir_all(&self.folder);
    }
}

fn settings(engine: &str) -> String {
    format!("[fleet]\nengine = \"{engine}\"\nsecret = \"{}\"\n", "0123456789abcdef".repeat(2))
}

#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Line {
    Open,
    /// Connections are closed.
    Cut,
    /// Connections stay open, and nothing gets through.
    Silent,
}

/// The way of one gateway to the engine. It ends when this is dropped.
pub(crate) struct Relay {
    address: SocketAddr,
    line: watch::Sender<Line>,
}

impl Relay {
    pub(crate) async fn start(engine: &Engine) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = listener.local_addr().expect("an address");
        let (line, mut watched) = watch::channel(Line::Open);
        let engine = SocketAddr::from(([127, 0, 0, 1], engine.port));
        tokio::spawn(async move {
            loop {
                tokio::select! {
                    accepted = listener.accept() => {
                        let Ok((stream, _)) = accepted else { continue };
                        tokio::spawn(relay(stream, engine, watched.clone()));
                    }
                    changed = watched.changed() => if changed.is_err() { break },
                }
            }
        });
        Self { address, line }
    }

    pub(crate) fn settings(&self) -> String {
        settings(&format!("redis://{}", self.address))
    }

    pub(crate) fn set(&self, line: Line) {
        self.line.send_replace(line);
    }
}

async fn relay(mut gateway: TcpStream, engine: SocketAddr, mut line: watch::Receiver<Line>) {
    let Ok(mut engine) = TcpStream::connect(engine).await else { return };
    let _ = (gateway.set_nodelay(true), engine.set_nodelay(true));
    let mut copying = std::pin::pin!(copy_bidirectional(&mut gateway, &mut engine));
    loop {
        let now = *line.borrow_and_update();
        let changed = match now {
            Line::Cut => return,
            Line::Silent => line.changed().await,
            Line::Open => tokio::select! {
                _ = &mut copying => return,
                changed = line.changed() => changed,
            },
        };
        if changed.is_err() {
            return;
        }
    }
}
