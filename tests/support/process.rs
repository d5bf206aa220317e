//! The program itself, as a process.

use std::path::{Path, PathBuf};
use std::process::Stdio;

use serde_json::Value;
use tokio::io::{AsyncBufReadExt, BufReader, Lines};
use tokio::process::{Child, ChildStderr, Command};
use workspace_gateway::catalogue::Service;
use workspace_gateway::simulator::Simulator;

use super::{PROXY_VARIABLES, within};

/// A running `serve`.
pub struct Process {
    child: Child,
    log: Lines<BufReader<ChildStderr>>,
    pub proxy: String,
    pub metrics: String,
    pub admin: String,
    said: String,
}

/// A new folder of a test's own.
pub fn folder(name: &str) -> PathBuf {
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join(name);
    let _ = std::fs::remove_dir_all(&folder);
    std::fs::create_dir_all(&folder).unwrap();
    folder
}

impl Process {
    /// Starts it before the simulator, with a file or none, and waits until it says that it is ready. Its log is to be
    /// JSON.
    pub async fn start(simulator: &Simulator, file: &Path) -> Self {
        let [workspace, appstream] = Service::ALL.map(|service| simulator.url(service));
        Self::start_before(&workspace, &appstream, file, &[]).await
    }

    /// The same before these upstreams, with these variables.
    pub async fn start_before(workspace: &str, appstream: &str, file: &Path, environment: &[(&str, &str)]) -> Self {
        let mut command = Command::new(env!("CARGO_BIN_EXE_workspace-gateway"));
        for name in PROXY_VARIABLES {
            command.env_remove(name);
        }
        command.arg("serve");
        // A flag would beat what is asked for.
        if !environment.iter().any(|(name, _)| *name == "WORKSPACE_GATEWAY_LISTEN") {
            command.args(["--listen", "127.0.0.1:0"]);
        }
        let mut child = command
            .arg("--config")
            .arg(file)
            .envs(environment.iter().copied())
            .args(["--workspace-url", workspace])
            .env("WORKSPACE_GATEWAY_APPSTREAM_URL", appstream)
            .args(["--metrics-listen", "127.0.0.1:0", "--admin-listen", "127.0.0.1:0"])
            .stderr(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .unwrap();
        let log = BufReader::new(child.stderr.take().unwrap()).lines();
        let unknown = String::new;
        let mut process =
            Self { child, log, proxy: unknown(), metrics: unknown(), admin: unknown(), said: String::new() };
        let ready = process.says("ready").await;
        let address = |name: &str| format!("http://{}", ready[name].as_str().unwrap());
        (process.proxy, process.metrics, process.admin) = (address("proxy"), address("metrics"), address("admin"));
        process
    }

    /// Waits until it logs a message that begins so, and gives the event.
    pub async fn says(&mut self, message: &str) -> Value {
        loop {
            let line = within(self.log.next_line()).await.unwrap();
            let line = line.unwrap_or_else(|| panic!("it ended without saying {message:?}:\n{}", self.said));
            self.said += &(line.clone() + "\n");
            let event: Value = serde_json::from_str(&line).unwrap();
            if event["message"].as_str().is_some_and(|said| said.starts_with(message)) {
                return event;
            }
        }
    }

    /// Sends it a signal.
    pub fn signal(&self, name: &str) {
        let id = self.child.id().unwrap().to_string();
        assert!(std::process::Command::new("kill").args(["-s", name, &id]).status().unwrap().success());
    }

    /// Sends SIGTERM and returns the exit code and everything it has logged.
    pub async fn terminate(mut self) -> (Option<i32>, String) {
        self.signal("TERM");
        while let Some(line) = within(self.log.next_line()).await.unwrap() {
            self.said += &(line + "\n");
        }
        (within(self.child.wait()).await.unwrap().code(), self.said)
    }
}
