//! The program itself, as a process.

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

/// A running `serve`.
pub struct Process {
    child: Child,
    log: Lines<BufReader<ChildStderr>>,
    pub proxy: String,
    pub metrics: String,
    pub admin: String,
    said: String,
}

/// A port that is free.
const ANY: &str = "127.0.0.1:0";

const BINARY: &str = env!("CARGO_BIN_EXE_workspace-gateway");

/// `serve`, started by this program, on ports that the system chooses.
fn serve(program: &str, proxy: &str) -> Command {
    let mut command = Command::new(program);
    for name in PROXY_VARIABLES {
        command.env_remove(name);
    }
    if program != BINARY {
        // The shell becomes the gateway, so that it knows for whom the sockets are.
        command.args(["-c", "LISTEN_PID=$$ exec \"$0\" \"$@\"", BINARY]);
    }
    command.arg("serve");
    command.args(["--listen", proxy, "--metrics-listen", "127.0.0.1:0", "--admin-listen", "127.0.0.1:0"]);
    command
}

/// The same, handed down these open files by these names.
pub fn handed_down<F: AsFd>(files: &[(&str, F)]) -> Command {
    let mut command = serve("sh", ANY);
    let names: Vec<&str> = files.iter().map(|(name, _)| *name).collect();
    command.env("LISTEN_FDS", files.len().to_string()).env("LISTEN_FDNAMES", names.join(":"));
    let parent = files.iter().map(|(_, file)| file.as_fd().try_clone_to_owned().unwrap());
    let mappings = parent.zip(3..).map(|(parent_fd, child_fd)| FdMapping { parent_fd, child_fd });
    command.as_std_mut().fd_mappings(mappings.collect()).unwrap();
    command
}

fn on(sockets: &[(&str, &TcpListener)], simulator: &Simulator, file: &Path, environment: &[(&str, &str)]) -> Command {
    let mut command = handed_down(sockets);
    command.arg("--config").arg(file).envs(environment.iter().copied());
    command.args(["--workspace-url", &simulator.url(Service::Workspace)]);
    command.args(["--appstream-url", &simulator.url(Service::AppStream)]);
    command
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

    /// The same with limits of open files: the soft one, and the hard one.
    pub async fn start_with_open_files(simulator: &Simulator, file: &Path, (soft, hard): (u32, u32)) -> Self {
        Self::start_under(&["prlimit", &format!("--nofile={soft}:{hard}")], simulator, file, &[]).await
    }

    /// The same, started by another program, which becomes the gateway.
    pub async fn start_under(
        starter: &[&str],
        simulator: &Simulator,
        file: &Path,
        environment: &[(&str, &str)],
    ) -> Self {
        let mut command = Command::new(starter[0]);
        command.args(&starter[1..]).arg(BINARY).arg("serve").arg("--config").arg(file);
        command.args(["--listen", ANY, "--metrics-listen", ANY, "--admin-listen", ANY]);
        command.args(["--workspace-url", &simulator.url(Service::Workspace)]);
        command.args(["--appstream-url", &simulator.url(Service::AppStream)]);
        for name in PROXY_VARIABLES {
            command.env_remove(name);
        }
        command.envs(environment.iter().copied());
        Self::of(command).await
    }

    /// The same before these upstreams, with these variables.
    pub async fn start_before(workspace: &str, appstream: &str, file: &Path, environment: &[(&str, &str)]) -> Self {
        // A flag would beat what is asked for.
        let listen = environment.iter().find(|(name, _)| *name == "WORKSPACE_GATEWAY_LISTEN");
        let mut command = serve(BINARY, listen.map_or(ANY, |(_, address)| address));
        command.arg("--config").arg(file).envs(environment.iter().copied());
        command.args(["--workspace-url", workspace]).env("WORKSPACE_GATEWAY_APPSTREAM_URL", appstream);
        Self::of(command).await
    }

    /// The same before the simulator, on sockets that are handed down to it by these names.
    pub async fn start_on(
        sockets: &[(&str, &TcpListener)],
        simulator: &Simulator,
        file: &Path,
        environment: &[(&str, &str)],
    ) -> Self {
        Self::of(on(sockets, simulator, file, environment)).await
    }

    /// The same, but it may be that it never says so, or later.
    pub fn begin_on(
        sockets: &[(&str, &TcpListener)],
        simulator: &Simulator,
        file: &Path,
        environment: &[(&str, &str)],
    ) -> Self {
        Self::begin(on(sockets, simulator, file, environment))
    }

    /// Waits until it says that it is ready.
    async fn of(command: Command) -> Self {
        let mut process = Self::begin(command);
        let ready = process.says("ready").await;
        let address = |name: &str| format!("http://{}", ready[name].as_str().unwrap());
        (process.proxy, process.metrics, process.admin) = (address("proxy"), address("metrics"), address("admin"));
        process
    }

    /// Doesn't wait for anything.
    fn begin(mut command: Command) -> Self {
        let mut child = command.stderr(Stdio::piped()).kill_on_drop(true).spawn().unwrap();
        let log = BufReader::new(child.stderr.take().unwrap()).lines();
        let unknown = String::new;
        Self { child, log, proxy: unknown(), metrics: unknown(), admin: unknown(), said: String::new() }
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

    /// Its process id.
    pub fn id(&self) -> u32 {
        self.child.id().unwrap()
    }

    /// Sends it a signal.
    pub fn signal(&self, name: &str) {
        let id = self.child.id().unwrap().to_string();
        assert!(std::process::Command::new("kill").args(["-s", name, &id]).status().unwrap().success());
    }

    /// Lets it have so many open files from now on. Those that it has stay open.
    pub fn limit_open_files(&self, most: u32) {
        let (id, limit) = (self.child.id().unwrap().to_string(), format!("--nofile={most}:"));
        assert!(std::process::Command::new("prlimit").args(["--pid", &id, &limit]).status().unwrap().success());
    }

    /// Sends SIGTERM and returns the exit code and everything it has logged.
    pub async fn terminate(self) -> (Option<i32>, String) {
        self.signal("TERM");
        self.ends().await
    }

    /// The exit code, as soon as there is one, and everything it has logged.
    pub async fn ends(mut self) -> (Option<i32>, String) {
        while let Some(line) = within(self.log.next_line()).await.unwrap() {
            self.said += &(line + "\n");
        }
        (within(self.child.wait()).await.unwrap().code(), self.said)
    }
}
