//! `simulate`: the lines that it prints lead to a first hit, and its faults reach the gateway's clients.

use std::process::Stdio;

use http::StatusCode;
use tokio::io::{AsyncBufReadExt, BufReader, Lines};
use tokio::process::{Child, ChildStdout, Command};

use crate::commands::{code, file, run, stderr};
use crate::support::process::Process;
use crate::support::{Http, Reply, within};

const BINARY: &str = env!("CARGO_BIN_EXE_workspace-gateway");

/// A running `simulate`.
struct Simulate {
    child: Child,
    lines: Lines<BufReader<ChildStdout>>,
}

impl Simulate {
    fn start(faults: &[&str]) -> Self {
        let mut command = Command::new(BINARY);
        command.args(["simulate", "--listen", "127.0.0.1:0"]).args(faults);
        let mut child = command.stdout(Stdio::piped()).kill_on_drop(true).spawn().unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap()).lines();
        Self { child, lines }
    }

    /// The next line that contains a text.
    async fn line(&mut self, text: &str) -> String {
        loop {
            let line = within(self.lines.next_line()).await.unwrap().unwrap_or_else(|| panic!("no line with {text:?}"));
            if line.contains(text) {
                return line.trim().to_owned();
            }
        }
    }

    async fn stop(mut self, signal: &str) -> Option<i32> {
        let id = self.child.id().unwrap().to_string();
        assert!(std::process::Command::new("kill").args(["-s", signal, &id]).status().unwrap().success());
        within(self.child.wait()).await.unwrap().code()
    }
}

/// Sends the request of a printed `curl` line to another address than the printed one.
async fn send(curl: &str, gateway: &str) -> Reply {
    let quoted: Vec<&str> = curl.split('\'').skip(1).step_by(2).collect();
    let [header, url] = quoted[..] else { panic!("{curl}") };
    let (name, value) = header.split_once(": ").unwrap();
    let url = url.strip_prefix("http://127.0.0.1:8080").unwrap();
    Http::new().send(http::Method::GET, &format!("{gateway}{url}"), &[(name, value)], "").await
}

/// The status of the printed request, sent to the simulator itself. `None`: there is no response.
async fn first_status(simulate: &mut Simulate) -> Option<StatusCode> {
    let serve = simulate.line(" serve ").await;
    let url = serve.rsplit(' ').next().unwrap().to_owned();
    let curl = simulate.line("curl ").await;
    // Reading a reply panics if there is none.
    tokio::spawn(async move { send(&curl, &url).await.status() }).await.ok()
}

#[tokio::test]
async fn the_printed_lines_lead_to_a_first_hit() {
    let mut simulate = Simulate::start(&[]);
    let serve = simulate.line(" serve ").await;
    let curl = simulate.line("curl ").await;
    let export = simulate.line("export ").await;

    let mut command = Command::new("sh");
    command.args(["-c", &format!("{export}; exec {serve}")]);
    let log = file("simulate.toml", "[log]\nformat = \"json\"\n");
    command.env("WORKSPACE_GATEWAY_CONFIG", log);
    for listener in ["LISTEN", "METRICS_LISTEN", "ADMIN_LISTEN"] {
        command.env(format!("WORKSPACE_GATEWAY_{listener}"), "127.0.0.1:0");
    }
    let gateway = Process::start_command(command).await;
    let first = send(&curl, &gateway.proxy).await;
    assert_eq!(first.status(), StatusCode::OK);
    assert!(first.header("cache-status").contains("stored"), "{:?}", first.headers());
    let second = send(&curl, &gateway.proxy).await;
    assert!(second.header("cache-status").contains("; hit;"), "{:?}", second.headers());
    let call = simulate.line("  GET ").await;
    assert!(call.contains(" s  200 after ") && call.contains(" ms  GET "), "{call}");
    assert!(call.ends_with("/v2/00000000000000000000000000000001/products?limit=2"), "{call}");

    // Workspace Application is on the same address.
    let other = send(&curl.replace("/v2/", "/v1/").replace("products", "product"), &gateway.proxy).await;
    assert_eq!(other.status(), StatusCode::OK);
    assert_eq!(gateway.terminate().await.0, Some(0));
    assert_eq!(simulate.stop("TERM").await, Some(0));
}

#[tokio::test]
async fn faults_begin_and_end() {
    for (faults, during) in [
        (&["--status", "503"][..], Some(StatusCode::SERVICE_UNAVAILABLE)),
        (&["--status", "429", "--share", "100%"], Some(StatusCode::TOO_MANY_REQUESTS)),
        (&["--reset"], None),
        (&["--refuse"], None),
        (&["--truncate"], None),
        (&["--status", "503", "--after", "1d"], Some(StatusCode::OK)),
        (&["--quota", "1/1d", "--latency", "1ms"], Some(StatusCode::OK)),
    ] {
        let mut simulate = Simulate::start(faults);
        assert_eq!(first_status(&mut simulate).await, during, "{faults:?}");
        if !faults.contains(&"--refuse") && !faults.contains(&"--truncate") {
            let status = during.map_or("no response".to_owned(), |status| status.as_str().to_owned());
            simulate.line(&format!(" s  {status} after ")).await;
        }
        assert_eq!(simulate.stop("INT").await, Some(0));

        let mut simulate = Simulate::start(&[faults, &["--for", "1ms"]].concat());
        if faults.contains(&"--after") {
            continue;
        }
        let serve = simulate.line(" serve ").await;
        let curl = simulate.line("curl ").await;
        simulate.line("The faults have ended").await;
        let url = serve.rsplit(' ').next().unwrap();
        assert_eq!(send(&curl, url).await.status(), StatusCode::OK, "{faults:?}");
    }
}

#[tokio::test]
async fn a_part_of_the_requests_is_refused() {
    for (faults, status, retry_after) in [
        (&["--quota", "1/1d"][..], StatusCode::TOO_MANY_REQUESTS, None),
        (&["--status", "503", "--retry-after", "7", "--share", "50%"], StatusCode::SERVICE_UNAVAILABLE, Some("7")),
    ] {
        let mut simulate = Simulate::start(faults);
        let serve = simulate.line(" serve ").await;
        let curl = simulate.line("curl ").await;
        let url = serve.rsplit(' ').next().unwrap();
        let [first, second] = [send(&curl, url).await, send(&curl, url).await];
        assert_eq!((first.status(), second.status()), (StatusCode::OK, status), "{faults:?}");
        let wait = |reply: &Reply| reply.headers().get("retry-after").map(|value| value.to_str().unwrap().to_owned());
        assert_eq!((wait(&first), wait(&second).as_deref()), (None, retry_after), "{faults:?}");
    }
}

#[test]
fn wrong_flags_are_refused_with_what_is_allowed() {
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    for (arguments, expected_code, expected) in [
        (&["--status", "200"][..], 2, "expected a number from 400 to 599"),
        (&["--latency", "5"], 2, "expected a duration from 1ms to a year with a unit"),
        (&["--share", "20", "--reset"], 2, "expected a part from 1% to 100%"),
        (&["--share", "20%"], 2, "--status <STATUS>|--reset|--refuse"),
        (&["--status", "503", "--refuse"], 2, "cannot be used with"),
        (&["--after", "5s"], 2, "--latency <DURATION>|--status <STATUS>|--reset|--refuse|--truncate|--quota"),
        (&["--for", "5s", "--change-every", "1m"], 2, "--latency <DURATION>|--status <STATUS>"),
        (&["--quota", "10"], 2, "expected a number of calls and a duration, such as 10/1m"),
        (&["--listen", "8070"], 2, "expected an IP address and a port"),
        (&["--listen", &address], 1, "cannot listen on"),
    ] {
        let output = run(&[&["simulate"], arguments].concat());
        assert_eq!(code(&output), expected_code, "{arguments:?}: {}", stderr(&output));
        assert!(stderr(&output).contains(expected), "{arguments:?}: {}", stderr(&output));
    }
}
