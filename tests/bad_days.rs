//! Bad days: each is staged. Then the status page, the log, the metric and an alert name its cause. On a good day, none does.
//!
//! `promtool` evaluates deploy/prometheus/rules.yml with the series of `/metrics`, as if each minute of an hour were like
//! the staged one. Without it, the alerts are not checked, and the test says so. In CI it fails then.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{self, BufRead, BufReader, Write};
use std::process::Command;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use ::tracing::subscriber::DefaultGuard;
use http::StatusCode;
use serde_json::{Value, json};
use strum::VariantArray;
use workspace_gateway::testing::catalogue::Service;
use workspace_gateway::testing::clock::Clock;
use workspace_gateway::testing::simulator::Simulator;
use workspace_gateway::testing::telemetry::conditions::Cause;

use crate::log_target::Gateway;
use crate::support::engine::redis;
use crate::support::process::folder;
use crate::support::tls::{Authority, acceptor_for, serve};
use crate::support::{PROJECT, World, fleet, within};
use crate::tls_listener::Files;

const RULES: &str = include_str!("../deploy/prometheus/rules.yml");
const LIST: &str = "/v2/PROJECT/products";

#[derive(Clone, Copy, Debug, PartialEq)]
enum Day {
    Good,
    Outage,
    Throttled,
    WrongRegion,
    CertificateForClients,
    CertificateOfUpstream,
    DeadToken,
    FullCache,
    StalledLog,
    EngineAway,
}

/// What names a bad day: the cause in `/status`, the log and the metric, and the alert.
const BAD_DAYS: [(Day, &str, &str); 9] = [
    (Day::Outage, "upstream-failing", "UpstreamFailing"),
    (Day::Throttled, "throttled", "Throttled"),
    (Day::WrongRegion, "nothing-accepted", "NothingAccepted"),
    (Day::CertificateForClients, "certificate-ended", "CertificateEnded"),
    (Day::CertificateOfUpstream, "upstream-never-answered", "UpstreamNeverAnswered"),
    (Day::DeadToken, "denials-repeated", "DenialsLoop"),
    (Day::FullCache, "cache-full", "Evicting"),
    (Day::StalledLog, "log-stalled", "LogLinesDropped"),
    (Day::EngineAway, "fleet-lost", "FleetLost"),
];

/// What an operator can see.
struct Seen {
    status: Value,
    /// `/metrics`, before the day and at its end.
    metrics: [String; 2],
    log: Vec<Value>,
}

impl Seen {
    fn causes(&self) -> BTreeSet<&str> {
        let conditions = self.status["conditions"].as_array().unwrap().iter();
        conditions.map(|condition| condition["cause"].as_str().unwrap()).collect()
    }

    fn causes_in_metrics(&self) -> BTreeSet<&str> {
        let series = self.metrics[1].lines().filter(|line| line.ends_with(" 1"));
        series.filter_map(|line| line.strip_prefix("workspace_gateway_condition{cause=\"")?.split('"').next()).collect()
    }

    /// The causes that the log names, one for each line.
    fn causes_in_log(&self) -> Vec<&str> {
        let lines = self.log.iter().filter(|line| line["event"] == "condition");
        lines.map(|line| line["message"].as_str().unwrap().split(": ").next().unwrap()).collect()
    }
}

/// The log of this thread, and so of the gateways that a test runs.
#[derive(Clone, Default)]
struct Log(Arc<Mutex<Vec<u8>>>);

impl Log {
    fn begin() -> (Self, DefaultGuard) {
        let log = Self::default();
        let writer = log.clone();
        let subscriber =
            tracing_subscriber::fmt().json().flatten_event(true).with_writer(move || writer.clone()).finish();
        (log, ::tracing::subscriber::set_default(subscriber))
    }

    fn lines(&self) -> Vec<Value> {
        let text = String::from_utf8(self.0.lock().unwrap().clone()).unwrap();
        text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    }
}

impl Write for Log {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap().write(line)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// A gateway of this process on some day.
struct Scene {
    world: World,
    log: Log,
    _guard: DefaultGuard,
    before: String,
}

impl Scene {
    async fn begin(settings: &str) -> Self {
        let simulator = Simulator::start().await.unwrap();
        let [workspace, appstream] = Service::ALL.map(|service| simulator.url(service));
        Self::begin_with_upstreams(simulator, &workspace, &appstream, settings).await
    }

    async fn begin_with_upstreams(simulator: Simulator, workspace: &str, appstream: &str, settings: &str) -> Self {
        let (log, guard) = Log::begin();
        let world = World::with_upstreams(simulator, workspace, appstream, settings).await;
        Self { before: scrape(&world), world, log, _guard: guard }
    }

    /// Sends so many requests, each for another response.
    async fn ask(&self, requests: usize) {
        for limit in 1..=requests {
            self.world.get(&format!("{LIST}?limit={limit}")).await;
        }
    }

    async fn ends(self) -> Seen {
        // As the gateway does every 10 s.
        for _ in 0..2 {
            self.world.seconds_pass(10);
            self.world.server.gateway().observer().take_sample();
            self.world.server.gateway().log_conditions();
        }
        let status = self.world.http.get(&self.world.admin_url("/status")).await.json();
        Seen { status, metrics: [self.before, scrape(&self.world)], log: self.log.lines() }
    }
}

fn scrape(world: &World) -> String {
    world.server.gateway().metrics().encode().unwrap()
}

/// `None` if what the day needs is missing.
async fn live_through(day: Day) -> Option<Seen> {
    match day {
        Day::Good => {
            let scene = Scene::begin("").await;
            for _ in 0..3 {
                scene.ask(5).await;
            }
            Some(scene.ends().await)
        }
        Day::Outage => {
            let mut scene = Scene::begin("").await;
            scene.world.get(LIST).await;
            scene.before = scrape(&scene.world);
            scene.world.simulator.fail_with(Some(StatusCode::SERVICE_UNAVAILABLE));
            scene.ask(5).await;
            Some(scene.ends().await)
        }
        Day::Throttled => {
            let scene = Scene::begin("").await;
            scene.world.get(LIST).await;
            scene.world.simulator.throttle(Some(0));
            scene.ask(6).await;
            Some(scene.ends().await)
        }
        Day::WrongRegion => {
            let scene = Scene::begin("").await;
            for _ in 0..6 {
                scene.world.get_as(&scene.world.simulator.token("another-project"), LIST).await;
            }
            Some(scene.ends().await)
        }
        Day::CertificateForClients => {
            let files = Files::new("bad-days-clients");
            files.write(&Authority::new().issue_until("localhost", Clock::System.date() - Duration::from_secs(60)));
            Some(Scene::begin(&files.settings()).await.ends().await)
        }
        Day::CertificateOfUpstream => {
            let (authority, simulator) = (Authority::new(), Simulator::start().await.unwrap());
            let acceptor = acceptor_for(&authority.issue_until_year("localhost", 2024));
            let (url, file) = (serve(&simulator, acceptor).await, folder("bad-days-upstream").join("ca.pem"));
            std::fs::write(&file, authority.pem()).unwrap();
            let settings = format!("[upstream]\nca_file = {file:?}\n");
            let scene = Scene::begin_with_upstreams(simulator, &url, &url, &settings).await;
            scene.ask(3).await;
            let seen = scene.ends().await;
            let what = &seen.status["conditions"][0]["what"];
            assert!(what.as_str().unwrap().contains("expired"), "{what}");
            Some(seen)
        }
        Day::DeadToken => {
            let scene = Scene::begin("").await;
            scene.world.get(LIST).await;
            let dead = scene.world.simulator.token(PROJECT);
            scene.world.simulator.deny(&dead);
            // More than one a second.
            for _ in 0..80 {
                scene.world.get_as(&dead, LIST).await;
            }
            Some(scene.ends().await)
        }
        Day::FullCache => {
            let scene = Scene::begin("[cache]\nmax_size = \"64KiB\"\nmax_body_size = \"60KiB\"").await;
            scene.ask(40).await;
            scene.world.until_metric_over("workspace_gateway_evictions_total{cause=\"size\"}", 10.0).await;
            Some(scene.ends().await)
        }
        Day::StalledLog => Some(stall_the_log().await),
        Day::EngineAway => {
            let mut engine = redis("bad-days", &[]).await?;
            let mut scene = Scene::begin(&fleet::settings(&engine.url(), "")).await;
            scene.world.until_metric(fleet::LOST, 0.0).await;
            scene.before = scrape(&scene.world);
            engine.kill().await;
            scene.ask(3).await;
            scene.world.until_metric(fleet::LOST, 1.0).await;
            Some(scene.ends().await)
        }
    }
}

/// A process has one log, so this needs a process of its own.
async fn stall_the_log() -> Seen {
    let (reader, writer) = io::pipe().unwrap();
    let gateway = Gateway::start("bad-days-log", writer).await;
    let page = async |url: String| within(gateway.http.get(&url)).await;
    let metrics = async || page(format!("{}/metrics", gateway.metrics)).await.text().to_owned();
    let before = metrics().await;
    gateway.overflow().await;
    let status = page(format!("{}/status", gateway.admin)).await.json();
    let after = metrics().await;
    // The reader resumes. Only then can there be a line.
    let log = tokio::task::spawn_blocking(move || {
        let lines = BufReader::new(reader).lines().map(|line| serde_json::from_str::<Value>(&line.unwrap()).unwrap());
        lines.filter(|line| line["message"] == "log lines were dropped").take(1).collect()
    });
    Seen { status, metrics: [before, after], log: within(log).await.unwrap() }
}

/// The alerts that fire after an hour in which each minute was like this day. `None` without promtool.
fn firing(day: Day, metrics: &[String; 2]) -> Option<BTreeSet<String>> {
    let is_missing = Command::new("promtool").arg("--version").output().is_err();
    if is_missing {
        assert!(std::env::var_os("CI").is_none(), "promtool is missing: CI must not skip the alerts");
        // Written directly to the terminal: the output of `eprintln!` is shown for failed tests only.
        let _ = writeln!(io::stderr(), "SKIPPED, nothing proved: the alerts of bad days need promtool on the PATH.");
        return None;
    }
    let [before, after] = metrics.each_ref().map(|page| series(page));
    let kinds: BTreeMap<&str, &str> =
        metrics[1].lines().filter_map(|line| line.strip_prefix("# TYPE ")?.split_once(' ')).collect();
    let input = after.iter().filter(|(_, value)| value.is_finite()).map(|(name, value)| {
        let family = name.split('{').next().unwrap();
        let earlier = before.get(name).copied().unwrap_or(0.0);
        let (first, step) =
            if kinds.get(family) == Some(&"gauge") { (*value, 0.0) } else { (earlier, value - earlier) };
        let place = "job=\"workspace-gateway\",instance=\"here\"}";
        let series = match name.strip_suffix('}') {
            None => format!("{name}{{{place}"),
            Some(name) => format!("{name},{place}"),
        };
        json!({ "series": series, "values": format!("{first}+{step}x60") })
    });
    let up = json!({ "series": "up{job=\"workspace-gateway\",instance=\"here\"}", "values": "1x60" });
    let rules = concat!(env!("CARGO_MANIFEST_DIR"), "/deploy/prometheus/rules.yml");
    // promtool prints what it got where another result was expected.
    let file = folder(&format!("bad-days-{day:?}")).join("test.json");
    let expected = [json!({ "labels": "{alertname=\"none\"}", "value": 1 })];
    let test = json!({
        "rule_files": [rules],
        "evaluation_interval": "1m",
        "tests": [{
            "interval": "1m",
            "input_series": input.chain([up]).collect::<Vec<_>>(),
            "promql_expr_test": [{
                "expr": "group by (alertname) (ALERTS{alertstate=\"firing\"})",
                "eval_time": "60m",
                "exp_samples": expected,
            }],
        }],
    });
    std::fs::write(&file, test.to_string()).unwrap();
    let output = Command::new("promtool").args(["test", "rules"]).arg(&file).output().unwrap();
    let printed = [output.stdout, output.stderr].map(|text| String::from_utf8(text).unwrap()).concat();
    let got = printed.lines().find_map(|line| line.trim().strip_prefix("got:")).unwrap_or_else(|| panic!("{printed}"));
    Some(got.split("alertname=\"WorkspaceGateway").skip(1).map(|rest| rest.split('"').next().unwrap().into()).collect())
}

/// The series of a page and their values.
fn series(page: &str) -> BTreeMap<&str, f64> {
    let lines = page.lines().filter(|line| !line.starts_with('#'));
    lines.filter_map(|line| line.rsplit_once(' ')).map(|(name, value)| (name, value.parse().unwrap())).collect()
}

#[test]
fn every_cause_is_the_label_of_an_alert() {
    let labels = RULES.lines().filter_map(|line| line.strip_prefix("          cause: "));
    let causes = Cause::VARIANTS.iter().map(|cause| cause.into_str());
    assert_eq!(labels.collect::<BTreeSet<_>>(), causes.collect::<BTreeSet<_>>());
}

#[tokio::test]
async fn each_bad_day_is_named_by_the_page_the_log_the_metric_and_an_alert() {
    for (day, cause, alert) in BAD_DAYS {
        let Some(seen) = live_through(day).await else { continue };
        assert!(seen.causes().contains(cause), "{day:?}: {}", seen.status["conditions"]);
        assert_eq!(seen.causes_in_metrics(), seen.causes(), "{day:?}");
        if day == Day::StalledLog {
            assert_eq!(seen.log.len(), 1, "what was dropped is reported");
        } else {
            let named = seen.causes_in_log();
            assert_eq!(named.iter().filter(|named| **named == cause).count(), 1, "{day:?}: {named:?}");
        }
        if let Some(firing) = firing(day, &seen.metrics) {
            assert!(firing.contains(alert), "{day:?}: {firing:?}");
        }
    }
}

#[tokio::test]
async fn a_good_day_is_named_by_nothing() {
    let seen = live_through(Day::Good).await.unwrap();
    let nothing = BTreeSet::new();
    assert_eq!((seen.causes(), seen.causes_in_metrics()), (nothing.clone(), nothing));
    assert_eq!(seen.causes_in_log(), Vec::<&str>::new());
    assert!(seen.log.iter().all(|line| line["level"] != "WARN"), "{:?}", seen.log);
    if let Some(firing) = firing(Day::Good, &seen.metrics) {
        assert_eq!(firing, BTreeSet::new());
    }
}
