//! The log's target blocks nothing else: a reader that stalls, is slow or closes the pipe, a full disk, and a limit of the
//! file's size.

use std::fs::File;
use std::io::{BufRead, BufReader, PipeReader, PipeWriter, Read, Write, pipe};
use std::net::TcpListener;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::process::Stdio;

use http::StatusCode;
use serde_json::Value;
use tokio::process::Child;
use workspace_gateway::testing::catalogue::Service;
use workspace_gateway::testing::simulator::Simulator;

use crate::support::process::{folder, serve_inheriting};
use crate::support::{Http, within};

const DROPPED: &str = "workspace_gateway_log_lines_dropped_total ";

/// The message that is logged when there is room again.
const DROPPED_MESSAGE: &str = "log lines were dropped";

/// A `serve` process with another log target. The test chooses its sockets, so it need not read the log.
pub struct Gateway {
    child: Child,
    proxy: String,
    pub metrics: String,
    pub admin: String,
    pub http: Http,
    _simulator: Simulator,
}

impl Gateway {
    /// Starts a gateway and waits until it answers.
    pub async fn start(name: &str, log: impl Into<Stdio>) -> Self {
        Self::start_with(name, log, "").await
    }

    /// The same with this environment variable, unless its name is empty.
    async fn start_with(name: &str, log: impl Into<Stdio>, variable: &str) -> Self {
        let simulator = Simulator::start().await.unwrap();
        let file = folder(name).join("config.toml");
        std::fs::write(&file, "[log]\nformat = \"json\"\n").unwrap();
        let [proxy, metrics, admin] = [(); 3].map(|()| TcpListener::bind("127.0.0.1:0").unwrap());
        let mut command = serve_inheriting(&[("proxy", &proxy), ("metrics", &metrics), ("admin", &admin)]);
        command.arg("--config").arg(file).args(["--workspace-url", &simulator.url(Service::Workspace)]);
        command.args(["--appstream-url", &simulator.url(Service::AppStream)]);
        if !variable.is_empty() {
            command.env(variable, "x");
        }
        let child = command.stderr(log).kill_on_drop(true).spawn().unwrap();
        let url = |socket: &TcpListener| format!("http://{}", socket.local_addr().unwrap());
        let [proxy, metrics, admin] = [proxy, metrics, admin].each_ref().map(url);
        let gateway = Self { child, proxy, metrics, admin, http: Http::new(), _simulator: simulator };
        gateway.assert_answers().await;
        gateway
    }

    /// Sends this many requests. Each of them is logged with a long line.
    async fn log_lines(&self, lines: usize) {
        let url = format!("{}/{}", self.proxy, "x".repeat(300));
        for _ in 0..lines {
            assert_eq!(within(self.http.get(&url)).await.status(), StatusCode::NOT_FOUND);
        }
    }

    /// Asserts that requests and probes are answered.
    async fn assert_answers(&self) {
        self.log_lines(1).await;
        let page = within(self.http.get(&format!("{}/healthz", self.metrics))).await;
        assert_eq!(page.status(), StatusCode::OK);
    }

    async fn dropped(&self) -> u64 {
        let page = within(self.http.get(&format!("{}/metrics", self.metrics))).await;
        let line = page.text().lines().find_map(|line| line.strip_prefix(DROPPED));
        line.unwrap().parse().unwrap()
    }

    /// Sends requests until log lines are dropped.
    pub async fn overflow(&self) {
        within(async {
            while self.dropped().await == 0 {
                self.log_lines(200).await;
            }
        })
        .await;
    }

    /// Runs a program with the id of the gateway's process as its last argument.
    fn run_on_process(&self, program: &str, arguments: &[&str]) {
        let id = self.child.id().unwrap().to_string();
        let status = std::process::Command::new(program).args(arguments).arg(id).status().unwrap();
        assert!(status.success());
    }

    /// Sends SIGTERM and waits for the end.
    async fn terminate(self) {
        self.run_on_process("kill", &["-s", "TERM"]);
        self.wait_for_exit().await;
    }

    async fn wait_for_exit(mut self) {
        assert_eq!(within(self.child.wait()).await.unwrap().code(), Some(0));
    }
}

/// The messages of these lines, which must be complete.
fn messages(log: &str) -> Vec<String> {
    let message = |line: &str| {
        let event: Value = serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {line}"));
        event["message"].as_str().unwrap().to_owned()
    };
    log.lines().map(message).collect()
}

/// Reads the log to its end.
fn read_all(mut log: impl Read + Send + 'static) -> tokio::task::JoinHandle<String> {
    tokio::task::spawn_blocking(move || {
        let mut text = String::new();
        log.read_to_string(&mut text).unwrap();
        text
    })
}

#[tokio::test]
async fn a_stalled_reader_blocks_no_request_probe_or_sigterm() {
    let (log, writer) = pipe().unwrap();
    let gateway = Gateway::start("log-stalled", writer).await;
    gateway.overflow().await;
    gateway.assert_answers().await;
    gateway.terminate().await;
    drop(log);
}

#[tokio::test]
async fn lines_are_complete_and_dropped_ones_reported_when_the_reader_resumes() {
    let (log, writer) = pipe().unwrap();
    let gateway = Gateway::start("log-goes-on", writer).await;
    gateway.overflow().await;
    let mut log = BufReader::new(log);
    let reading = tokio::task::spawn_blocking(move || {
        let mut read = String::new();
        while !read.contains(DROPPED_MESSAGE) {
            assert!(log.read_line(&mut read).unwrap() > 0, "the log has ended");
        }
        (log, read)
    });
    let (log, read) = within(reading).await.unwrap();
    messages(&read);
    let dropped: Value = serde_json::from_str(read.lines().last().unwrap()).unwrap();
    assert!(dropped["lines"].as_u64().unwrap() > 0, "{dropped}");
    gateway.assert_answers().await;
    let rest = read_all(log);
    gateway.terminate().await;
    let rest = messages(&within(rest).await.unwrap());
    assert_eq!(rest.last().map(String::as_str), Some("stopped"));
    assert!(rest.iter().any(|message| message == "request"), "{rest:?}");
}

#[tokio::test]
async fn a_closed_pipe_blocks_nothing() {
    let (log, writer) = pipe().unwrap();
    let gateway = Gateway::start("log-closed", writer).await;
    drop(log);
    gateway.overflow().await;
    gateway.assert_answers().await;
    gateway.terminate().await;
}

#[tokio::test]
async fn a_full_disk_blocks_nothing() {
    let gateway = Gateway::start("log-full", File::options().write(true).open("/dev/full").unwrap()).await;
    gateway.overflow().await;
    gateway.assert_answers().await;
    gateway.terminate().await;
}

#[tokio::test]
async fn a_file_at_its_size_limit_blocks_nothing_and_logging_resumes_later() {
    let path = folder("log-limited-file").join("log");
    let gateway = Gateway::start("log-limited", File::create(&path).unwrap()).await;
    gateway.run_on_process("prlimit", &["--fsize=10000:", "--pid"]);
    gateway.overflow().await;
    gateway.assert_answers().await;
    assert_eq!(std::fs::metadata(&path).unwrap().len(), 10_000);
    gateway.run_on_process("prlimit", &["--fsize=unlimited:", "--pid"]);
    gateway.log_lines(1).await;
    gateway.terminate().await;
    let log = std::fs::read_to_string(&path).unwrap();
    let incomplete: Vec<&str> = log.lines().filter(|line| !line.ends_with('}')).collect();
    assert!(incomplete.len() <= 1, "{incomplete:?}");
    let complete: Vec<&str> = log.lines().filter(|line| line.ends_with('}')).collect();
    let complete = messages(&complete.join("\n"));
    assert!(complete.iter().any(|message| message == DROPPED_MESSAGE), "{complete:?}");
    assert_eq!(complete.last().map(String::as_str), Some("stopped"));
}

#[tokio::test]
async fn a_non_blocking_target_gets_complete_lines() {
    let (log, writer) = UnixStream::pair().unwrap();
    writer.set_nonblocking(true).unwrap();
    let gateway = Gateway::start("log-nonblocking", OwnedFd::from(writer)).await;
    gateway.log_lines(1_000).await;
    let reading = read_all(log);
    gateway.terminate().await;
    let read = messages(&within(reading).await.unwrap());
    assert_eq!(read.iter().filter(|message| *message == "request").count(), 1_001);
}

#[tokio::test]
async fn queued_lines_are_written_at_exit_to_a_late_reader() {
    let (log, writer) = pipe().unwrap();
    let gateway = Gateway::start("log-late", writer).await;
    // More than fits into the pipe, less than fits into the queue.
    gateway.log_lines(400).await;
    gateway.run_on_process("kill", &["-s", "TERM"]);
    let reading = read_all(log);
    gateway.wait_for_exit().await;
    let read = messages(&within(reading).await.unwrap());
    assert_eq!(read.iter().filter(|message| *message == "request").count(), 401);
    assert_eq!(read.last().map(String::as_str), Some("stopped"));
}

/// A full pipe whose reader reads nothing.
fn full_pipe() -> (PipeReader, PipeWriter) {
    let (reader, mut writer) = pipe().unwrap();
    // The default capacity of a pipe (pipe(7)).
    writer.write_all(&[b'\n'; 65_536]).unwrap();
    (reader, writer)
}

#[tokio::test]
async fn a_full_pipe_blocks_neither_start_nor_exit() {
    let (_reader, log) = full_pipe();
    let gateway = Gateway::start_with("log-full-before", log, "WORKSPACE_GATEWAY_NO_SETTING").await;
    gateway.terminate().await;

    let (_reader, log) = full_pipe();
    let mut failing = tokio::process::Command::new(env!("CARGO_BIN_EXE_workspace-gateway"));
    failing.args(["serve", "--mode", "none", "--listen", "none"]).stderr(log).kill_on_drop(true);
    assert_eq!(within(failing.status()).await.unwrap().code(), Some(2));
}
