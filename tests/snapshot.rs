//! The snapshot: what survives a restart, who gets it, and what removes it.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use bytes::Bytes;
use http::{Method, Response, StatusCode};
use tokio::sync::mpsc::UnboundedReceiver;
use tokio::time::sleep;
use workspace_gateway::testing::cache::store::PurgeSelection;
use workspace_gateway::testing::clock::{Clock, ManualClock};
use workspace_gateway::testing::config::Config;
use workspace_gateway::testing::gateway::Gateway;
use workspace_gateway::testing::random::Random;
use workspace_gateway::testing::simulator::Simulator;
use workspace_gateway::testing::upstream::UpstreamError;

use crate::support::in_process::{Answers, InProcess, ListCall};
use crate::support::process::{Process, folder};
use crate::support::{Call, Http, PROJECT, Reply, Scripted, config, get_in_process, get_in_process_with, within};

const LIST: &str = "/v2/PROJECT/products?os_type=Linux";
const OTHER: &str = "/v2/PROJECT/products?os_type=Windows";
const PROOF: &str = "/v2/PROJECT/products?limit=1";
const PRODUCTS: &str = r#"{"products":["from upstream"]}"#;
const NEWER: &str = r#"{"products":["newer"]}"#;
const SECOND: Duration = Duration::from_secs(1);

/// A machine, on which one gateway runs at a time.
struct Machine {
    folder: PathBuf,
    clock: ManualClock,
    /// Further settings.
    settings: &'static str,
}

/// A gateway, and the calls to its upstream.
struct Bench {
    gateway: Arc<Gateway>,
    calls: UnboundedReceiver<Call>,
}

impl Machine {
    fn new(name: &str) -> Self {
        Self { folder: folder(&format!("snapshot-{name}")), clock: ManualClock::of_boot([1; 16]), settings: "" }
    }

    fn file(&self) -> PathBuf {
        self.folder.join("snapshot")
    }

    fn config(&self) -> Config {
        let settings = format!(
            "[cache]\nttl = \"5m\"\nttl_jitter = \"0%\"\nstale_while_revalidate = \"0s\"\nstale_if_error = \"4h\"\n\
             snapshot = {:?}\n[grants]\nrenew_ahead = \"0s\"\n{}",
            self.file(),
            self.settings
        );
        config("http://127.0.0.1:1", "http://127.0.0.1:1", &settings)
    }

    async fn start(&self) -> Bench {
        self.start_with(Clock::Manual(self.clock.clone())).await
    }

    async fn start_with(&self, clock: Clock) -> Bench {
        let (upstream, calls) = Scripted::new();
        let config = self.config();
        let gateway = Gateway::with_snapshot(upstream, &config, clock, Random::System).unwrap();
        gateway.restore_snapshot().await;
        Bench { gateway, calls }
    }

    /// Stops a gateway and starts the next one, so many seconds later.
    async fn restart(&self, bench: Bench, seconds: u32) -> Bench {
        bench.gateway.end_snapshot().await;
        drop(bench);
        self.clock.advance(seconds * SECOND);
        self.start().await
    }
}

impl Bench {
    /// Panics if the request goes upstream.
    async fn get(&mut self, token: &str, path: &str) -> Reply {
        let reply = within(get_in_process_with(&self.gateway, token, path, &[])).await;
        assert!(self.calls.try_recv().is_err(), "the request went upstream");
        reply
    }

    /// The request goes upstream, which answers it.
    async fn fetch(&mut self, token: &'static str, path: &'static str, answer: (StatusCode, &'static str)) -> Reply {
        let gateway = Arc::clone(&self.gateway);
        let pending = tokio::spawn(async move { get_in_process_with(&gateway, token, path, &[]).await });
        within(self.calls.recv()).await.unwrap().answer(answer.0, answer.1);
        within(pending).await.unwrap()
    }
}

const GOOD: (StatusCode, &str) = (StatusCode::OK, PRODUCTS);
const OUTAGE: (StatusCode, &str) = (StatusCode::BAD_GATEWAY, r#"{"error_code":"APIGW.0202","error_msg":"down"}"#);
const DENIAL: (StatusCode, &str) = (StatusCode::UNAUTHORIZED, r#"{"error_code":"APIGW.0307","error_msg":"expired"}"#);

#[tokio::test]
async fn after_its_own_proof_a_caller_gets_from_the_snapshot_what_it_asks_next() {
    let machine = Machine::new("proof");
    let mut bench = machine.start().await;
    bench.fetch("one", LIST, GOOD).await;
    bench.fetch("one", OTHER, GOOD).await;
    let mut bench = machine.restart(bench, 100).await;
    // The earlier process has proved this caller, but it may have been denied since.
    let reply = bench.fetch("one", OTHER, (StatusCode::OK, NEWER)).await;
    assert_eq!((reply.text(), reply.is_hit()), (NEWER, false));
    let reply = bench.get("one", LIST).await;
    assert_eq!((reply.text(), reply.is_hit(), reply.header("age")), (PRODUCTS, true, "100"));
    bench.fetch("two", PROOF, GOOD).await;
    assert_eq!(bench.get("two", LIST).await.text(), PRODUCTS, "another caller needs its own proof, too");
}

#[tokio::test]
async fn in_an_outage_only_callers_that_were_proved_get_what_the_earlier_process_kept() {
    let machine = Machine::new("outage");
    let mut bench = machine.start().await;
    bench.fetch("one", LIST, GOOD).await;
    bench.fetch("one", OTHER, GOOD).await;
    let mut bench = machine.restart(bench, 400).await;
    let reply = bench.fetch("one", LIST, OUTAGE).await;
    assert_eq!((reply.status(), reply.text(), reply.header("age")), (StatusCode::OK, PRODUCTS, "400"));
    let reply = bench.fetch("two", LIST, OUTAGE).await;
    assert_eq!(reply.status(), OUTAGE.0);
    // A second restart in the same outage, just before the end of `grants.outage_grace`, and a third one after it.
    let mut bench = machine.restart(bench, 3190).await;
    assert_eq!(bench.fetch("one", LIST, OUTAGE).await.text(), PRODUCTS);
    let mut bench = machine.restart(bench, 20).await;
    assert_eq!(bench.fetch("one", OTHER, OUTAGE).await.status(), OUTAGE.0);
}

#[tokio::test]
async fn a_proof_of_an_earlier_process_shows_nothing_that_is_newer_than_the_snapshot() {
    let machine = Machine::new("newer");
    let mut bench = machine.start().await;
    bench.fetch("one", LIST, GOOD).await;
    // Its regular end would come later.
    let mut bench = machine.restart(bench, 10).await;
    bench.fetch("two", OTHER, GOOD).await;
    assert_eq!(bench.fetch("one", OTHER, OUTAGE).await.status(), OUTAGE.0);
    // Another restart changes nothing.
    let mut bench = machine.restart(bench, 10).await;
    assert_eq!(bench.fetch("one", OTHER, OUTAGE).await.status(), OUTAGE.0);
    assert_eq!(bench.fetch("one", LIST, OUTAGE).await.text(), PRODUCTS);
}

#[tokio::test(start_paused = true)]
async fn a_client_that_repeats_an_expired_token_does_not_keep_the_snapshot_away() {
    let machine = Machine::new("expired");
    let mut bench = machine.start_with(Clock::System).await;
    let keeping = tokio::spawn(Arc::clone(&bench.gateway).keep_snapshot());
    bench.fetch("one", LIST, GOOD).await;
    bench.fetch("two", LIST, GOOD).await;
    bench.fetch("one", PROOF, DENIAL).await;
    sleep(70 * SECOND).await;
    let before = id(&machine.file());
    for _ in 0..3 {
        bench.fetch("one", PROOF, DENIAL).await;
        sleep(3 * SECOND).await;
        assert!(before.is_some() && id(&machine.file()) == before);
    }
    keeping.abort();
}

#[tokio::test]
async fn a_denial_after_the_restart_ends_what_was_restored() {
    let machine = Machine::new("denied");
    let mut bench = machine.start().await;
    bench.fetch("one", LIST, GOOD).await;
    let mut bench = machine.restart(bench, 10).await;
    assert_eq!(bench.fetch("one", LIST, DENIAL).await.status(), DENIAL.0);
    machine.clock.advance(10 * SECOND);
    assert_eq!(bench.fetch("one", LIST, OUTAGE).await.status(), OUTAGE.0);
}

#[tokio::test]
async fn lists_that_are_private_stay_so() {
    let machine = Machine::new("private");
    let mut bench = machine.start().await;
    for (token, body) in [("one", PRODUCTS), ("two", NEWER)].repeat(4) {
        machine.clock.advance(301 * SECOND);
        bench.fetch(token, LIST, (StatusCode::OK, body)).await;
    }
    machine.clock.advance(301 * SECOND);
    bench.fetch("one", LIST, GOOD).await;
    let mut bench = machine.restart(bench, 10).await;
    bench.fetch("one", PROOF, GOOD).await;
    bench.fetch("two", PROOF, GOOD).await;
    assert_eq!(bench.get("one", LIST).await.text(), PRODUCTS);
    bench.fetch("two", LIST, (StatusCode::OK, NEWER)).await;
}

/// Upstream that answers, or fails for everybody.
#[derive(Default)]
struct Flaky(AtomicBool);

impl Answers for Flaky {
    async fn answer(&self, call: ListCall) -> Result<Response<Bytes>, UpstreamError> {
        let mut response = Response::new(Bytes::from(format!(r#"{{"products":[{:?}]}}"#, call.target)));
        if self.0.load(Ordering::Relaxed) {
            *response.status_mut() = OUTAGE.0;
        }
        Ok(response)
    }
}

#[tokio::test]
async fn in_an_outage_a_restarted_gateway_answers_what_an_unrestarted_one_does() {
    const CALLERS: usize = 40;
    const LISTS: usize = 50;
    let machine = Machine::new("completeness");
    let upstream = Arc::new(Flaky::default());
    let start = || {
        let called = Arc::new(InProcess(Arc::clone(&upstream)));
        let clock = Clock::Manual(machine.clock.clone());
        Gateway::with_snapshot(called, &machine.config(), clock, Random::System).unwrap()
    };
    let first = start();
    let target = |list: usize| format!("{LIST}&product_id={list}");
    for number in 0..CALLERS.max(LISTS) {
        let token = format!("caller-{}", number % CALLERS);
        assert_eq!(get_in_process(&first, &token, &target(number % LISTS)).await.status(), StatusCode::OK);
    }
    machine.clock.advance(400 * SECOND);
    first.end_snapshot().await;
    let second = start();
    second.restore_snapshot().await;
    upstream.0.store(true, Ordering::Relaxed);
    machine.clock.advance(10 * SECOND);
    let mut answered = 0;
    for (caller, list) in (0..CALLERS).flat_map(|caller| (0..LISTS).map(move |list| (caller, list))) {
        let token = format!("caller-{caller}");
        let [expected, got] = [&first, &second].map(|gateway| {
            let (token, target) = (token.clone(), target(list));
            async move { get_in_process(gateway, &token, &target).await }
        });
        let (expected, got) = (expected.await, got.await);
        assert_eq!((got.status(), got.body()), (expected.status(), expected.body()), "{token} {list}");
        answered += usize::from(got.status() == StatusCode::OK);
    }
    assert_eq!(answered, CALLERS * LISTS);
}

/// The random id in the head of a snapshot. `None` if there is none.
fn id(file: &Path) -> Option<Vec<u8>> {
    fs::read(file).ok().map(|content| content[29..45].to_vec())
}

/// Waits for a snapshot other than this one. The clock of the runtime is paused, so this takes no time.
async fn until_other(file: &Path, before: &Option<Vec<u8>>, seconds: u32) {
    for _ in 0..seconds {
        if id(file).is_some_and(|id| Some(id) != *before) {
            return;
        }
        sleep(SECOND).await;
    }
    panic!("no other snapshot within {seconds} s");
}

#[tokio::test(start_paused = true)]
async fn what_revokes_removes_the_file_and_it_is_written_again_without_that() {
    for revocation in ["purge", "invalidation", "denial", "private"] {
        let machine = Machine::new(revocation);
        let mut bench = machine.start_with(Clock::System).await;
        let keeping = tokio::spawn(Arc::clone(&bench.gateway).keep_snapshot());
        let file = machine.file();
        if revocation == "private" {
            for (token, body) in [("one", PRODUCTS), ("two", NEWER), ("one", PRODUCTS)] {
                bench.fetch(token, LIST, (StatusCode::OK, body)).await;
                sleep(301 * SECOND).await;
            }
        }
        bench.fetch("one", LIST, GOOD).await;
        until_other(&file, &None, 70).await;
        // The last snapshot is a few seconds old, so that the next one has to wait.
        let old = id(&file);
        bench.fetch("one", OTHER, GOOD).await;
        until_other(&file, &old, 70).await;
        let before = id(&file);
        match revocation {
            "purge" => drop(bench.gateway.purge(&PurgeSelection::default())),
            "invalidation" => {
                let gateway = Arc::clone(&bench.gateway);
                let request = http::Request::builder()
                    .method(Method::POST)
                    .uri(LIST.replace("PROJECT", PROJECT))
                    .header("host", "gateway")
                    .header("x-auth-token", "one");
                let pending = tokio::spawn(async move { crate::support::handle(&gateway, request).await });
                within(bench.calls.recv()).await.unwrap().answer_complete(StatusCode::OK, "{}");
                within(pending).await.unwrap();
            }
            "denial" => drop(bench.fetch("one", PROOF, DENIAL).await),
            _ => drop(bench.fetch("two", LIST, (StatusCode::OK, NEWER)).await),
        }
        sleep(SECOND).await;
        assert!(!file.exists(), "{revocation}");
        // Without a revocation, it would be written after a minute.
        until_other(&file, &before, 11).await;
        keeping.abort();
        let mut next = machine.start_with(Clock::System).await;
        assert_eq!(next.fetch("one", LIST, OUTAGE).await.status(), OUTAGE.0, "{revocation}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_stranger_cannot_remove_the_snapshot() {
    let machine = Machine::new("stranger");
    let mut bench = machine.start_with(Clock::System).await;
    let keeping = tokio::spawn(Arc::clone(&bench.gateway).keep_snapshot());
    bench.fetch("one", LIST, GOOD).await;
    until_other(&machine.file(), &None, 70).await;
    let before = id(&machine.file());
    bench.fetch("stranger", LIST, DENIAL).await;
    sleep(11 * SECOND).await;
    assert_eq!(id(&machine.file()), before);
    keeping.abort();
}

#[tokio::test(start_paused = true)]
async fn if_the_table_of_grants_is_full_only_its_callers_can_remove_the_snapshot() {
    let machine = Machine { settings: "max_grants = 2", ..Machine::new("full") };
    let mut bench = machine.start_with(Clock::System).await;
    let keeping = tokio::spawn(Arc::clone(&bench.gateway).keep_snapshot());
    let file = machine.file();
    bench.fetch("one", LIST, GOOD).await;
    until_other(&file, &None, 70).await;
    for token in ["two", "three"] {
        bench.fetch(token, LIST, GOOD).await;
    }
    let before = id(&file);
    for token in ["invented", "invented, too", "invented again"] {
        bench.fetch(token, LIST, DENIAL).await;
        sleep(3 * SECOND).await;
        assert!(before.is_some() && id(&file) == before, "{token}");
    }
    // Its grant was removed from the table, but the file has its proof.
    bench.fetch("one", PROOF, DENIAL).await;
    until_other(&file, &before, 11).await;
    keeping.abort();
    let mut next = machine.start_with(Clock::System).await;
    assert_eq!(next.fetch("one", LIST, OUTAGE).await.status(), OUTAGE.0);
}

#[tokio::test(start_paused = true)]
async fn a_denial_of_a_caller_whose_proof_could_not_be_restored_removes_the_snapshot() {
    const ZONES: &str = "[[operation]]\nname = \"Zones\"\npath = \"/v2/{project_id}/zones\"\nbody = \"none\"";
    let mut machine = Machine { settings: ZONES, ..Machine::new("unrestored") };
    let mut bench = machine.start_with(Clock::System).await;
    bench.fetch("one", "/v2/PROJECT/zones", GOOD).await;
    bench.gateway.end_snapshot().await;
    machine.settings = "";
    let mut bench = machine.start_with(Clock::System).await;
    let keeping = tokio::spawn(Arc::clone(&bench.gateway).keep_snapshot());
    bench.fetch("one", LIST, DENIAL).await;
    sleep(SECOND).await;
    assert!(!machine.file().exists());
    keeping.abort();
}

#[tokio::test(start_paused = true)]
async fn a_denial_removes_a_snapshot_that_this_process_cannot_read() {
    let machine = Machine::new("unread");
    let mut bench = machine.start_with(Clock::System).await;
    bench.fetch("one", LIST, GOOD).await;
    bench.gateway.end_snapshot().await;
    // Another process may have the secret of the file again.
    fs::remove_file(machine.folder.join("snapshot.key")).unwrap();
    let mut bench = machine.start_with(Clock::System).await;
    let keeping = tokio::spawn(Arc::clone(&bench.gateway).keep_snapshot());
    bench.fetch("one", LIST, DENIAL).await;
    sleep(SECOND).await;
    assert!(!machine.file().exists());
    keeping.abort();
}

#[tokio::test]
async fn a_pipe_in_place_of_the_secret_delays_nothing() {
    let folder = folder("snapshot-pipe");
    let file = folder.join("gateway.toml");
    fs::write(&file, format!("[log]\nformat = \"json\"\n[cache]\nsnapshot = {:?}\n", folder.join("snapshot"))).unwrap();
    // A usual read would wait for a writer, which never comes.
    assert!(
        std::process::Command::new("mkfifo")
            .args(["-m", "600"])
            .arg(folder.join("snapshot.key"))
            .status()
            .unwrap()
            .success()
    );
    let simulator = Simulator::start().await.unwrap();
    let process = Process::start(&simulator, &file).await;
    let url = format!("{}/v2/{PROJECT}/products", process.proxy);
    let reply = Http::new().send(Method::GET, &url, &[("x-auth-token", &simulator.token(PROJECT))], "").await;
    assert_eq!(reply.status(), StatusCode::OK);
    let (code, log) = process.terminate().await;
    assert_eq!(code, Some(0));
    assert!(log.contains("snapshot-failed") && log.contains("less than 32 bytes"), "{log}");
}

#[tokio::test]
async fn a_snapshot_that_cannot_be_read_is_an_empty_cache() {
    let machine = Machine::new("damaged");
    let mut bench = machine.start().await;
    bench.fetch("one", LIST, GOOD).await;
    bench.gateway.end_snapshot().await;
    let good = fs::read(machine.file()).unwrap();
    let key = machine.folder.join("snapshot.key");
    let secret = fs::read(&key).unwrap();
    let half = good.len() / 2;
    let flipped = [&good[..half], &[good[half] ^ 1], &good[half + 1..]].concat();
    for (content, key_content) in
        [(flipped, &secret[..]), (good[..half].to_vec(), &secret), (vec![7; 1000], &secret), (good, &[7; 32])]
    {
        fs::write(machine.file(), content).unwrap();
        fs::write(&key, key_content).unwrap();
        let mut bench = machine.start().await;
        assert_eq!(bench.fetch("one", LIST, OUTAGE).await.status(), OUTAGE.0);
    }
}

#[tokio::test]
async fn a_snapshot_that_could_not_be_removed_after_a_denial_is_not_read() {
    let machine = Machine::new("not-removable");
    let mut bench = machine.start().await;
    bench.fetch("one", LIST, GOOD).await;
    bench.gateway.end_snapshot().await;
    drop(bench);
    // A file can be neither made nor removed, as in a folder that is read-only.
    let probe = machine.folder.join("snapshot.probe");
    fs::create_dir(&probe).unwrap();
    let opened = Gateway::with_snapshot(Scripted::new().0, &machine.config(), Clock::System, Random::System);
    assert!(opened.is_err());
    fs::remove_dir(probe).unwrap();
    let mut bench = machine.start().await;
    assert_eq!(bench.fetch("one", LIST, OUTAGE).await.text(), PRODUCTS);
}

#[tokio::test]
async fn a_restarted_process_answers_in_an_outage_what_the_first_one_could() {
    let folder = folder("snapshot-process");
    let file = folder.join("gateway.toml");
    fs::write(&file, format!("[log]\nformat = \"json\"\n[cache]\nsnapshot = {:?}\n", folder.join("snapshot"))).unwrap();
    let simulator = Simulator::start().await.unwrap();
    let process = Process::start(&simulator, &file).await;
    let http = Http::new();
    let get = |process: &Process, token: String| {
        let url = format!("{}/v2/{PROJECT}/products", process.proxy);
        let http = http.clone();
        async move { http.send(Method::GET, &url, &[("x-auth-token", &token)], "").await }
    };
    let [token, stranger] = [simulator.token(PROJECT), simulator.token(PROJECT)];
    let expected = get(&process, token.clone()).await;
    assert_eq!(expected.status(), StatusCode::OK);
    let (code, _) = process.terminate().await;
    assert_eq!(code, Some(0));
    simulator.fail_with(Some(StatusCode::BAD_GATEWAY));
    let process = Process::start(&simulator, &file).await;
    let reply = get(&process, token).await;
    assert_eq!((reply.status(), reply.body()), (StatusCode::OK, expected.body()));
    assert_ne!(get(&process, stranger).await.status(), StatusCode::OK);
    process.terminate().await;
}

#[tokio::test]
async fn a_file_system_that_refuses_the_snapshot_costs_nothing_else() {
    let folder = folder("snapshot-refused");
    let file = folder.join("gateway.toml");
    fs::write(&file, format!("[log]\nformat = \"json\"\n[cache]\nsnapshot = {:?}\n", folder.join("missing/snapshot")))
        .unwrap();
    let simulator = Simulator::start().await.unwrap();
    let process = Process::start(&simulator, &file).await;
    let url = format!("{}/v2/{PROJECT}/products", process.proxy);
    let reply = Http::new().send(Method::GET, &url, &[("x-auth-token", &simulator.token(PROJECT))], "").await;
    assert_eq!(reply.status(), StatusCode::OK);
    let (code, log) = process.terminate().await;
    assert_eq!(code, Some(0));
    assert!(log.contains("snapshot-failed") && log.contains("missing/snapshot.probe"), "{log}");
}
