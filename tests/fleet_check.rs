//! What an operator learns of an engine that cannot be used, or only in part: from `check --fleet`, the log and the status.

use serde_json::Value;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;
use workspace_gateway::testing::simulator::Simulator;

use crate::fleet::redis_with_tls;
use crate::support::engine::{Engine, redis};
use crate::support::fleet::{LOST, first_gateway, settings, until_in_sync};
use crate::support::process::{Process, folder};
use crate::support::{Http, World, within};

/// Runs `check --fleet`. Returns its exit code and the line about the engine.
fn check(url: &str, more: &str) -> (Option<i32>, String) {
    // Tests run at the same time, each with another port.
    let name: String = url.chars().filter(char::is_ascii_alphanumeric).collect();
    let file = folder(&format!("check-fleet-{name}")).join("config.toml");
    std::fs::write(&file, settings(url, more)).unwrap();
    let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_workspace-gateway"));
    command.args(["check", "--fleet", "--region", "cn-north-4", "--config"]).arg(file);
    let output = command.output().unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    let line = text.lines().find(|line| line.starts_with("# fleet: ")).unwrap_or_default().to_owned();
    (output.status.code(), line)
}

#[tokio::test]
async fn check_says_whether_the_engine_can_be_used() {
    let Some(engine) = redis("check", &[]).await else { return };
    let (code, line) = check(&engine.url(), "");
    assert!(code == Some(0) && line.contains(" can be used: a look-up takes "), "{code:?} {line}");
    assert_eq!(engine.run(&["--scan"]).await, "", "it leaves nothing");
    engine.run(&["ACL", "SETUSER", "default", "-eval"]).await;
    let (code, line) = check(&engine.url(), "");
    assert!(code == Some(1) && line.contains(" cannot be used: it refuses "), "{code:?} {line}");
    assert_eq!(engine.run(&["--scan"]).await, "", "it leaves nothing");
    let (code, line) = check("redis://127.0.0.1:1", "");
    assert!(code == Some(1) && line.contains("there is no connection to it"), "{code:?} {line}");
}

#[tokio::test]
async fn check_fails_without_each_of_the_rights_that_the_guide_names_and_leaves_nothing() {
    let Some(engine) = redis("rights", &[]).await else { return };
    let guide = include_str!("../deploy/fleet.md");
    let commands = guide.lines().filter(|line| line.trim().starts_with("ACL SETUSER "));
    let rights: Vec<&str> =
        commands.flat_map(|line| line.split(' ').filter_map(|word| word.strip_prefix('+'))).collect();
    assert_eq!(rights.len(), 22, "{rights:?}");
    for right in rights {
        engine.run(&["ACL", "SETUSER", "default", &format!("-{right}")]).await;
        let (code, line) = check(&engine.url(), "");
        assert!(code == Some(1) && line.contains(" cannot be used: it refuses "), "{right}: {code:?} {line}");
        if right == "del" {
            engine.run(&["FLUSHALL"]).await;
        }
        assert_eq!(engine.run(&["--scan"]).await, "", "{right}");
        engine.run(&["ACL", "SETUSER", "default", &format!("+{right}")]).await;
    }
}

async fn status(world: &World) -> Value {
    world.http.get(&world.admin_url("/status")).await.json()
}

/// Waits until an event of this kind has these words.
async fn until_event(world: &World, kind: &str, words: &str) {
    let is_it =
        |event: &Value| event["kind"] == kind && event["what"].as_str().is_some_and(|what| what.contains(words));
    within(async { while !status(world).await["events"].as_array().is_some_and(|all| all.iter().any(is_it)) {} }).await;
}

#[tokio::test]
async fn an_engine_without_memory_is_reported_as_full_and_once() {
    let Some(engine) = redis("full", &["--maxmemory-policy", "noeviction"]).await else { return };
    let world = first_gateway(&settings(&engine.url(), "")).await;
    until_in_sync(&world).await;
    assert_eq!(engine.run(&["CONFIG", "SET", "maxmemory", "1"]).await, "OK");
    until_event(&world, "fleet-lost", "the engine of the fleet accepts nothing new (full)").await;
    assert_eq!(status(&world).await["fleet"]["state"], "full");
    // It gives what it has.
    assert_eq!(world.metric(LOST), 0.0);
    let (code, line) = check(&engine.url(), "");
    let is_named =
        line.contains(" cannot be used: it has no memory for new data: ") && line.contains("raise maxmemory");
    assert!(code == Some(1) && is_named, "{code:?} {line}");
    // A gateway that connects to a full engine says so at once.
    let other = first_gateway(&settings(&engine.url(), "")).await;
    until_event(&other, "fleet-lost", "(full)").await;
    let events = status(&other).await["events"].as_array().unwrap().clone();
    assert!(events.iter().all(|event| event["kind"] != "fleet"), "{events:?}");
    let seen = world.metric(FULL);
    world.until_metric_over(FULL, seen + 1.0).await;
    assert_eq!(engine.run(&["CONFIG", "SET", "maxmemory", "0"]).await, "OK");
    until_event(&world, "fleet", "the engine of the fleet is in use").await;
    let lost = |event: &&Value| event["kind"] == "fleet-lost";
    let events = status(&world).await["events"].as_array().unwrap().clone();
    let lost: Vec<_> = events.iter().filter(lost).map(|event| event["count"].clone()).collect();
    assert_eq!(lost, [1], "{events:?}");
}

/// A metric that counts each poll of a full engine.
const FULL: &str = "workspace_gateway_fleet_faults_total{cause=\"full\"}";

#[tokio::test]
async fn gateways_with_different_secrets_show_different_keys() {
    let Some(engine) = redis("keys", &[]).await else { return };
    let world = first_gateway(&settings(&engine.url(), "")).await;
    until_in_sync(&world).await;
    let control = engine.run(&["--scan", "--pattern", "*:c"]).await;
    let keys = control.strip_suffix('c').unwrap().to_owned();
    assert_eq!(status(&world).await["fleet"]["keys"], keys);
    until_event(&world, "fleet", &keys).await;
    assert!(check(&engine.url(), "").1.contains(&keys));
    let other = settings(&engine.url(), "").replace("0123", "3210");
    let other = first_gateway(&other).await;
    assert_ne!(status(&other).await["fleet"]["keys"], keys);
    let named = first_gateway(&settings(&engine.url(), "name = \"other\"")).await;
    let id = keys.split(':').nth(2).unwrap();
    assert_eq!(status(&named).await["fleet"]["keys"], format!("wg2:{{other}}:{id}:"));
}

/// A peer that answers the first bytes with these. Returns its port.
async fn peer(reply: &'static [u8]) -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            tokio::spawn(async move {
                let mut buffer = [0; 4096];
                while stream.read(&mut buffer).await.is_ok_and(|read| read > 0) {
                    let _ = stream.write_all(reply).await;
                }
            });
        }
    });
    port
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn check_says_what_a_peer_is_that_cannot_be_used() {
    let Some(plain) = redis("plain", &[]).await else { return };
    let Some(tls) = redis_with_tls().await else { return };
    let replica = Engine::start("redis-server", "a-replica", &["--replicaof", "127.0.0.1", "1"]).await;
    let locked = Engine::start("redis-server", "locked", &["--requirepass", "swordfish"]).await;
    let file = folder("a-sentinel").join("sentinel.conf");
    std::fs::write(&file, format!("sentinel monitor ours 127.0.0.1 {} 1\n", plain.port)).unwrap();
    let sentinel = Engine::start("redis-server", "a-sentinel", &[file.to_str().unwrap(), "--sentinel"]).await;
    let http = peer(b"HTTP/1.1 400 Bad Request\r\n\r\n").await;
    let password = "password = \"wrong-word\"";
    for (url, more, expected) in [
        (format!("redis://127.0.0.1:{}", tls.port), "", &["TLS"][..]),
        (format!("redis://127.0.0.1:{}", tls.port), password, &["TLS"]),
        (format!("redis-cluster://127.0.0.1:{}", tls.port), "", &["TLS"]),
        (format!("rediss://127.0.0.1:{}", plain.port), "", &["does its port expect plaintext (redis://"]),
        (format!("rediss://127.0.0.1:{http}"), "", &["does its port expect plaintext (redis://"]),
        (format!("redis://127.0.0.1:{http}"), "", &["replies that are no answers", "it answers in HTTP"]),
        (format!("redis://127.0.0.1:{http}"), password, &["replies that are no answers", "it answers in HTTP"]),
        (locked.url(), "", &["it refuses ", "a password is needed: set fleet.password"]),
        (locked.url(), password, &["it refuses ", "the user or the password is refused"]),
        (format!("redis-cluster://127.0.0.1:{}", locked.port), "", &["a password is needed: set fleet.password"]),
        (replica.url(), "", &["is not the master", "it is a replica: expected its master"]),
        (sentinel.url(), "", &["is not the master", "it is a Sentinel: expected redis-sentinel://"]),
        (format!("redis-sentinel://127.0.0.1:{}/ours", plain.port), "", &["it is no Sentinel"]),
        (format!("redis-sentinel://127.0.0.1:{}/other", sentinel.port), "", &["does not know the master \"other\""]),
    ] {
        let (code, line) = check(&url, more);
        let are_there = expected.iter().all(|words| line.contains(words));
        let shows_none = !line.contains("swordfish") && !line.contains("wrong-word");
        assert!(code == Some(1) && are_there && shows_none, "{url} {more}: {code:?} {line}");
    }
}

#[tokio::test]
async fn the_log_names_the_step_that_a_missing_right_has_ended() {
    let Some(engine) = redis("step", &[]).await else { return };
    let simulator = Simulator::start().await.unwrap();
    let file = folder("fleet-step").join("config.toml");
    std::fs::write(&file, format!("[log]\nformat = \"json\"\n{}", settings(&engine.url(), ""))).unwrap();
    let mut process = Process::start(&simulator, &file).await;
    let metrics = format!("{}/metrics", process.metrics);
    let is_in_use = async || Http::new().get(&metrics).await.text().contains("workspace_gateway_fleet_lost 0\n");
    within(async { while !is_in_use().await {} }).await;
    engine.run(&["ACL", "SETUSER", "default", "-xrange"]).await;
    let line = process.wait_for_log("the engine of the fleet is not in use (denied)").await;
    let expected = format!("127.0.0.1:{}: reading the log (ROLE, ", engine.port);
    assert!(line["error"].as_str().is_some_and(|error| error.starts_with(&expected)), "{line}");
    assert_eq!(process.terminate().await.0, Some(0));
}
