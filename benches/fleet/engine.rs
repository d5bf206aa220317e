//! The engine: Debian's Redis. And the cable between it and one gateway, which can be cut.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpListener;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};

use rustix::process::{Pid, Signal, kill_process};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::watch;
use tokio::task::JoinHandle;

/// It ends when it is dropped.
pub(crate) struct Engine {
    process: Child,
    pub(crate) port: u16,
    folder: PathBuf,
}

impl Engine {
    pub(crate) fn start() -> Self {
        static NUMBER: AtomicUsize = AtomicUsize::new(0);
        let (id, number) = (std::process::id(), NUMBER.fetch_add(1, Ordering::Relaxed));
        let port = TcpListener::bind("127.0.0.1:0").and_then(|listener| listener.local_addr()).expect("a port").port();
        let folder = std::env::temp_dir().join(format!("workspace-gateway-bench-fleet-{id}-{number}"));
        std::fs::create_dir_all(&folder).expect("a folder");
        let mut command = Command::new("redis-server");
        command.args(["--bind", "127.0.0.1", "--save", "", "--appendonly", "no", "--port", &port.to_string(), "--dir"]);
        command.arg(&folder).stdout(Stdio::piped());
        let mut engine = Self { process: command.spawn().expect("redis-server is on the PATH"), port, folder };
        let mut lines = BufReader::new(engine.process.stdout.take().expect("its log")).lines().map_while(Result::ok);
        assert!(lines.any(|line| line.contains("Ready to accept connections")), "it has ended");
        std::thread::spawn(move || lines.for_each(drop));
        engine
    }

    pub(crate) fn signal(&self, signal: Signal) {
        let id = i32::try_from(self.process.id()).ok().and_then(Pid::from_raw);
        kill_process(id.expect("a process"), signal).expect("it runs");
    }

    /// Settings of a fleet with this engine.
    pub(crate) fn settings(&self) -> String {
        settings(self.port)
    }

    /// The memory that it uses, in MiB.
    pub(crate) fn used_memory(&self) -> f64 {
        let mut stream = std::net::TcpStream::connect(("127.0.0.1", self.port)).expect("a connection");
        stream.write_all(b"INFO memory\r\nQUIT\r\n").expect("it reads");
        let mut reply = String::new();
        stream.read_to_string(&mut reply).expect("it answers");
        let bytes = reply.lines().find_map(|line| line.strip_prefix("used_memory:")?.trim().parse::<f64>().ok());
        bytes.expect("its memory") / f64::from(1 << 20)
    }
}

impl Drop for Engine {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
        let _ = std::fs::remove_dir_all(&self.folder);
    }
}

fn settings(port: u16) -> String {
    format!("[fleet]\nengine = \"redis://127.0.0.1:{port}\"\nsecret = \"{}\"\n", "0123456789abcdef".repeat(2))
}

/// Connections to an engine. When it is cut, nothing passes any more, and no connection is closed.
pub(crate) struct Cable {
    port: u16,
    is_cut: watch::Sender<bool>,
    accepting: JoinHandle<()>,
}

impl Cable {
    pub(crate) async fn to(engine: &Engine) -> Self {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let port = listener.local_addr().expect("a port").port();
        let (is_cut, seen) = watch::channel(false);
        let engine = engine.port;
        let accepting = tokio::spawn(async move {
            while let Ok((gateway, _)) = listener.accept().await {
                let Ok(engine) = TcpStream::connect(("127.0.0.1", engine)).await else { continue };
                let _ = (gateway.set_nodelay(true), engine.set_nodelay(true));
                let ((from_gateway, to_gateway), (from_engine, to_engine)) =
                    (gateway.into_split(), engine.into_split());
                tokio::spawn(carry(from_gateway, to_engine, seen.clone()));
                tokio::spawn(carry(from_engine, to_gateway, seen.clone()));
            }
        });
        Self { port, is_cut, accepting }
    }

    pub(crate) fn settings(&self) -> String {
        settings(self.port)
    }

    pub(crate) fn cut(&self) {
        self.is_cut.send_replace(true);
    }
}

impl Drop for Cable {
    fn drop(&mut self) {
        self.accepting.abort();
    }
}

async fn carry(mut from: impl AsyncRead + Unpin, mut to: impl AsyncWrite + Unpin, mut is_cut: watch::Receiver<bool>) {
    let mut buffer = [0; 16 * 1024];
    while let Ok(read @ 1..) = from.read(&mut buffer).await {
        // It ends with the cable.
        if is_cut.wait_for(|is_cut| !is_cut).await.is_err() || to.write_all(&buffer[..read]).await.is_err() {
            return;
        }
    }
}
