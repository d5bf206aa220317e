//! The program as a process of its own.

use std::net::TcpListener;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::process::Stdio;

use command_fds::{CommandFdExt, FdMapping};
use serde_json::Value;
use tokio::io::{AsyncBufReadExt, BufReader, Lines};
use tokio::process::{Child, ChildStderr, Command};
use workspace_gateway::testing::catalogue::Service;
use workspace_gateway::testing::simulator::Simulator;

use super::{PROXY_VARIABLES, within};

/// A running `serve`. Its log must be JSON.
pub struct Process {
    child: Child,
    log: Lines<BufReader<ChildStderr>>,
    pub proxy: String,
    pub metrics: String,
    pub admin: String,
    logged: String,
}

/// Lets the system choose the port.
const ANY: &str = "127.0.0.1:0";

const BINARY: &str = env!("CARGO_BIN_EXE_workspace-gateway");

/// The command `serve`, started by `program`. The metrics and admin ports are chosen by the system.
fn serve(program: &str, proxy: &str) -> Command {
    let mut command = Command::new(program);
    for name in PROXY_VARIABLES {
        command.env_remove(name);
    }
    if program != BINARY {
        // The shell execs the gateway, so that `LISTEN_PID` is the gateway's process id.
        command.args(["-c", "LISTEN_PID=$$ exec \"$0\" \"$@\"", BINARY]);
    }
    command.arg("serve");
    command.args(["--listen", proxy, "--metrics-listen", "127.0.0.1:0", "--admin-listen", "127.0.0.1:0"]);
    command
}

/// The same with inherited open files, which have these names (`LISTEN_FDNAMES`).
pub fn serve_inheriting<F: AsFd>(files: &[(&str, F)]) -> Command {
    let mut command = serve("sh", ANY);
    let names: Vec<&str> = files.iter().map(|(name, _)| *name).collect();
    command.env("LISTEN_FDS", files.len().to_string()).env("LISTEN_FDNAMES", names.join(":"));
    let parent = files.iter().map(|(_, file)| file.as_fd().try_clone_to_owned().unwrap());
    let mappings = parent.zip(3..).map(|(parent_fd, child_fd)| FdMapping { parent_fd, child_fd });
    command.as_std_mut().fd_mappings(mappings.collect()).unwrap();
    command
}

fn serve_with_simulator(
    sockets: &[(&str, &TcpListener)],
    simulator: &Simulator,
    file: &Path,
    environment: &[(&str, &str)],
) -> Command {
    let mut command = serve_inheriting(sockets);
    command.arg("--config").arg(file).envs(environment.iter().copied());
    command.args(["--workspace-url", &simulator.url(Service::Workspace)]);
    command.args(["--appstream-url", &simulator.url(Service::AppStream)]);
    command
}

/// Creates an empty folder with this name for a test.
pub fn folder(name: &str) -> PathBuf {
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join(name);
    let _ = std::fs::remove_dir_all(&folder);
    std::fs::create_dir_all(&folder).unwrap();
    folder
}

impl Process {
    /// Starts a gateway with the simulator as its upstream, and waits until it logs `ready`.
    pub async fn start(simulator: &Simulator, file: &Path) -> Self {
        let [workspace, appstream] = Service::ALL.map(|service| simulator.url(service));
        Self::start_with_upstreams(&workspace, &appstream, file, &[]).await
    }

    /// The same with a soft and a hard limit of open files.
    pub async fn start_with_open_files(simulator: &Simulator, file: &Path, (soft, hard): (u32, u32)) -> Self {
        Self::start_with_launcher(&["prlimit", &format!("--nofile={soft}:{hard}")], simulator, file, &[]).await
    }

    /// The same, started by another program, which execs the gateway.
    pub async fn start_with_launcher(
        launcher: &[&str],
        simulator: &Simulator,
        file: &Path,
        environment: &[(&str, &str)],
    ) -> Self {
        let mut command = Command::new(launcher[0]);
        command.args(&launcher[1..]).arg(BINARY).arg("serve").arg("--config").arg(file);
        command.args(["--listen", ANY, "--metrics-listen", ANY, "--admin-listen", ANY]);
        command.args(["--workspace-url", &simulator.url(Service::Workspace)]);
        command.args(["--appstream-url", &simulator.url(Service::AppStream)]);
        for name in PROXY_VARIABLES {
            command.env_remove(name);
        }
        command.envs(environment.iter().copied());
        Self::start_command(command).await
    }

    /// The same with these upstream URLs and environment variables.
    pub async fn start_with_upstreams(
        workspace: &str,
        appstream: &str,
        file: &Path,
        environment: &[(&str, &str)],
    ) -> Self {
        // A flag would override the environment variable.
        let listen = environment.iter().find(|(name, _)| *name == "WORKSPACE_GATEWAY_LISTEN");
        let mut command = serve(BINARY, listen.map_or(ANY, |(_, address)| address));
        command.arg("--config").arg(file).envs(environment.iter().copied());
        command.args(["--workspace-url", workspace]).env("WORKSPACE_GATEWAY_APPSTREAM_URL", appstream);
        Self::start_command(command).await
    }

    /// The same with the simulator, on inherited sockets with these names.
    pub async fn start_on_sockets(
        sockets: &[(&str, &TcpListener)],
        simulator: &Simulator,
        file: &Path,
        environment: &[(&str, &str)],
    ) -> Self {
        Self::start_command(serve_with_simulator(sockets, simulator, file, environment)).await
    }

    /// The same, but does not wait for `ready`.
    pub fn spawn_on_sockets(
        sockets: &[(&str, &TcpListener)],
        simulator: &Simulator,
        file: &Path,
        environment: &[(&str, &str)],
    ) -> Self {
        Self::spawn(serve_with_simulator(sockets, simulator, file, environment))
    }

    /// Starts the command and waits for `ready`.
    pub async fn start_command(command: Command) -> Self {
        let mut process = Self::spawn(command);
        let ready = process.wait_for_log("ready").await;
        let address = |name: &str| format!("http://{}", ready[name].as_str().unwrap());
        (process.proxy, process.metrics, process.admin) = (address("proxy"), address("metrics"), address("admin"));
        process
    }

    fn spawn(mut command: Command) -> Self {
        let mut child = command.stderr(Stdio::piped()).kill_on_drop(true).spawn().unwrap();
        let log = BufReader::new(child.stderr.take().unwrap()).lines();
        let unknown = String::new;
        Self { child, log, proxy: unknown(), metrics: unknown(), admin: unknown(), logged: String::new() }
    }

    /// Waits for a log line whose message starts with `message`, and returns the line.
    pub async fn wait_for_log(&mut self, message: &str) -> Value {
        loop {
            let line = within(self.log.next_line()).await.unwrap();
            let line = line.unwrap_or_else(|| panic!("exited without logging {message:?}:\n{}", self.logged));
            self.logged += &(line.clone() + "\n");
            let event: Value = serde_json::from_str(&line).unwrap();
            if event["message"].as_str().is_some_and(|text| text.starts_with(message)) {
                return event;
            }
        }
    }

    pub fn id(&self) -> u32 {
        self.child.id().unwrap()
    }

    pub fn signal(&self, name: &str) {
        let id = self.child.id().unwrap().to_string();
        assert!(std::process::Command::new("kill").args(["-s", name, &id]).status().unwrap().success());
    }

    /// Sets the soft limit of open files. Files that are already open stay open.
    pub fn limit_open_files(&self, limit: u32) {
        let (id, limit) = (self.child.id().unwrap().to_string(), format!("--nofile={limit}:"));
        assert!(std::process::Command::new("prlimit").args(["--pid", &id, &limit]).status().unwrap().success());
    }

    /// Sends SIGTERM, and returns the exit code and the whole log.
    pub async fn terminate(self) -> (Option<i32>, String) {
        self.signal("TERM");
        self.wait_for_exit().await
    }

    /// Waits until it exits, and returns the exit code and the whole log.
    pub async fn wait_for_exit(mut self) -> (Option<i32>, String) {
        while let Some(line) = within(self.log.next_line()).await.unwrap() {
            self.logged += &(line + "\n");
        }
        (within(self.child.wait()).await.unwrap().code(), self.logged)
    }
}
