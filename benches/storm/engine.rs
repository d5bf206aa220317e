//! The engine of the fleet: Debian's Redis, which can hang, lose its data, or go back to what it had some seconds ago, as
//! after a failover to a replica that was behind. Each gateway reaches it through a relay, which can be cut.

use std::net::{SocketAddr, TcpListener as StdListener};
use std::path::PathBuf;
use std::process::Stdio;
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};
use tokio::io::{AsyncBufReadExt, BufReader, copy_bidirectional};
use tokio::net::{TcpListener, TcpStream};
use tokio::process::{Child, Command};
use tokio::sync::watch;
use tokio::time::timeout;

/// Far longer than anything here takes.
const HANG: Duration = Duration::from_secs(20);
/// The file with the data.
const FILE: &str = "dump.rdb";

/// A running engine. It ends when it is dropped.
pub(crate) struct Engine {
    process: Child,
    port: u16,
    folder: PathBuf,
}

impl Engine {
    pub(crate) async fn start() -> Self {
        let folder = std::env::temp_dir().join(format!("workspace-gateway-bench-storm-{}", std::process::id()));
        std::fs::create_dir_all(&folder).expect("a folder");
        let port = StdListener::bind("127.0.0.1:0").and_then(|listener| listener.local_addr()).expect("a port").port();
        let process = Self::spawn(port, &folder).await;
        Self { process, port, folder }
    }

    /// Loads what is in the folder.
    async fn spawn(port: u16, folder: &PathBuf) -> Child {
        let mut command = Command::new("redis-server");
        command.args(["--bind", "127.0.0.1", "--save", "", "--appendonly", "no", "--dbfilename", FILE]);
        command.args(["--port", &port.to_string(), "--dir"]).arg(folder);
        command.stdout(Stdio::piped()).kill_on_drop(true);
        let mut process = command.spawn().expect("redis-server is on the PATH");
        let mut log = BufReader::new(process.stdout.take().expect("its log")).lines();
        let starting = async {
            while let Some(line) = log.next_line().await.expect("it writes text") {
                if line.contains("Ready to accept connections") {
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

    pub(crate) fn signal(&self, signal: Signal) {
        let id = self.process.id().and_then(|id| i32::try_from(id).ok()).and_then(Pid::from_raw);
        kill_process(id.expect("a process"), signal).expect("it runs");
    }

    /// Saves its data to the file.
    pub(crate) async fn save(&self) {
        let saving = Command::new("redis-cli").args(["-p", &self.port.to_string(), "SAVE"]).output();
        let saved = timeout(HANG, saving).await.expect("it answers").expect("redis-cli is on the PATH");
        assert_eq!(saved.stdout.trim_ascii(), b"OK");
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
        self.process = Self::spawn(self.port, &self.folder).await;
    }
}

impl Drop for Engine {
    fn drop(&mut self) {
        let _ = self.process.start_kill();
        let _ = std::fs::remove_dir_all(&self.folder);
    }
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
    pub(crate) address: SocketAddr,
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
