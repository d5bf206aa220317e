//! The engine that gateways share: a real Redis and Valkey, and peers that are none. Whatever the engine does, a request
//! gets the right answer, and hardly waits.

use http::StatusCode;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;
use workspace_gateway::testing::cache::store::PurgeSelection;
use workspace_gateway::testing::catalogue::Service;
use workspace_gateway::testing::config::Config;
use workspace_gateway::testing::simulator::Simulator;

use crate::support::engine::{Engine, programs, redis};
use crate::support::process::folder;
use crate::support::tls::Authority;
use crate::support::{HANG, PROJECT, PROOF, Reply, World, config, within};

const LIST: &str = "/v2/PROJECT/products?os_type=Linux";
const OTHER: &str = "/v2/PROJECT/products?os_type=Windows";
const LOST: &str = "workspace_gateway_fleet_lost";
const STORED: &str = "workspace_gateway_fleet_stores_total{result=\"stored\"}";
const TO_TELL: &str = "workspace_gateway_fleet_to_tell";

/// Settings of a fleet with this engine, and maybe more settings under `[fleet]`.
fn settings(url: &str, more: &str) -> String {
    format!(
        "[cache]\nttl_jitter = \"0%\"\n[fleet]\nengine = \"{url}\"\nsecret = \"{}\"\n{more}\n",
        "0123456789abcdef".repeat(2)
    )
}

/// A gateway of a fleet, whose upstream is the simulator of another one. Its engine need not be in use yet.
async fn gateway_of(simulator: &Simulator, settings: &str) -> World {
    let [workspace, appstream] = Service::ALL.map(|service| simulator.url(service));
    // Its clock must not be behind that of the other one, because both have the same boot.
    let own = Simulator::start().await.unwrap();
    let mut world = World::with_config(own, &patient(&workspace, &appstream, settings)).await;
    world.token = simulator.token(PROJECT);
    world
}

/// A configuration with which a request waits for the engine as long as a busy machine needs.
fn patient(workspace: &str, appstream: &str, settings: &str) -> Config {
    let mut config = config(workspace, appstream, settings);
    config.fleet.as_mut().unwrap().set_budget(HANG);
    config
}

/// The first gateway of a fleet, with an upstream.
async fn first_gateway(settings: &str) -> World {
    let simulator = Simulator::start().await.unwrap();
    let [workspace, appstream] = Service::ALL.map(|service| simulator.url(service));
    World::with_config(simulator, &patient(&workspace, &appstream, settings)).await
}

/// Two gateways with one engine, which both use. They have different callers.
async fn two_gateways(engine: &Engine) -> (World, World) {
    let settings = settings(&engine.url(), "");
    let first = first_gateway(&settings).await;
    let second = gateway_of(&first.simulator, &settings).await;
    for world in [&first, &second] {
        world.until_metric(LOST, 0.0).await;
    }
    (first, second)
}

/// Sends a request that goes upstream, and waits until the response is in the engine.
async fn store(world: &World, path: &str) {
    let before = world.metric(STORED);
    let reply = world.get(path).await;
    assert!(reply.cache_status().contains("fwd-status=200; stored"), "{}", reply.cache_status());
    world.until_metric(STORED, before + 1.0).await;
}

fn is_from_fleet(reply: &Reply) -> bool {
    reply.status() == StatusCode::OK && reply.cache_status().ends_with("; detail=fleet")
}

#[tokio::test]
async fn a_proved_caller_gets_what_another_gateway_has_stored() {
    for program in programs() {
        let engine = Engine::start(&program, "share", &[]).await;
        let (first, second) = two_gateways(&engine).await;
        store(&first, LIST).await;
        // The first request of the caller there goes upstream itself.
        assert!(!is_from_fleet(&second.get(PROOF).await));
        let calls = first.upstream_calls();
        let reply = second.get(LIST).await;
        assert!(is_from_fleet(&reply), "{}", reply.cache_status());
        assert_eq!(first.upstream_calls(), calls);
        assert!(second.get(LIST).await.is_hit());
        // An engine that was emptied has nothing.
        assert_eq!(engine.run(&["FLUSHALL"]).await, "OK");
        store(&second, OTHER).await;
        assert!(is_from_fleet(&first.get(OTHER).await));
        // What is in the engine says nothing about requests, callers and lists.
        let dump = engine.run(&["--raw", "--scan"]).await;
        let value = engine.run(&["DUMP", dump.lines().find(|name| name.contains(":e:")).unwrap()]).await;
        for word in ["products", PROJECT, "Windows", &first.token] {
            assert!(!dump.contains(word) && !value.contains(word), "{word}");
        }
    }
}

#[tokio::test]
async fn a_restarted_gateway_finds_what_it_has_stored() {
    let Some(engine) = redis("restart", &[]).await else { return };
    let (first, second) = two_gateways(&engine).await;
    store(&first, LIST).await;
    let settings = settings(&engine.url(), "");
    drop(second);
    let mut restarted = gateway_of(&first.simulator, &settings).await;
    restarted.token.clone_from(&first.token);
    restarted.until_metric(LOST, 0.0).await;
    restarted.get(PROOF).await;
    let reply = restarted.get(LIST).await;
    assert!(
        is_from_fleet(&reply),
        "{}\n{}",
        reply.cache_status(),
        restarted
            .server
            .gateway()
            .metrics()
            .encode()
            .unwrap()
            .lines()
            .filter(|l| l.contains("fleet") && !l.starts_with('#') || l.contains("unreadable"))
            .collect::<Vec<_>>()
            .join("\n")
    );
}

#[tokio::test]
async fn what_a_gateway_purges_is_gone_from_the_engine() {
    let Some(engine) = redis("purge", &[]).await else { return };
    let (first, second) = two_gateways(&engine).await;
    second.get(PROOF).await;
    let by_operation = |name: &str| PurgeSelection { operation: Some(name.to_owned()), ..PurgeSelection::default() };
    let by_project = |id: &str| PurgeSelection { project_id: Some(id.to_owned()), ..PurgeSelection::default() };
    for (selection, is_gone) in [
        (PurgeSelection::default(), true),
        (by_operation("ListProducts"), true),
        (by_operation("ListProduct"), false),
        (by_project(PROJECT), true),
        (by_project("other"), false),
    ] {
        // So that neither has it in memory, and both look it up.
        for world in [&first, &second] {
            world.purge();
            world.until_metric(TO_TELL, 0.0).await;
            // Clocks of gateways may differ by 5 s.
            world.seconds_pass(6);
        }
        store(&first, LIST).await;
        first.server.gateway().purge(&selection);
        first.until_metric(TO_TELL, 0.0).await;
        assert_eq!(is_from_fleet(&second.get(LIST).await), !is_gone, "{selection:?}");
    }
}

#[tokio::test]
async fn an_unsafe_request_voids_the_scope_in_the_engine() {
    let Some(engine) = redis("invalidate", &[]).await else { return };
    let (first, second) = two_gateways(&engine).await;
    second.get(PROOF).await;
    store(&first, LIST).await;
    let headers = [("x-auth-token", &*first.token)];
    let reply = first.http.send(http::Method::POST, &first.url("/v2/PROJECT/products"), &headers, "{}").await;
    assert!(reply.status().is_success(), "{}", reply.status());
    first.until_metric(TO_TELL, 0.0).await;
    assert!(!is_from_fleet(&second.get(LIST).await));
}

const LATE: &str = "workspace_gateway_fleet_lookups_total{result=\"late\"}";

/// Sends a request that no gateway has sent before. It goes upstream, and its answer is right.
async fn ask_upstream(world: &World, number: usize) {
    let reply = world.get(&format!("/v2/PROJECT/products?limit=1&offset={number}")).await;
    assert_eq!(reply.status(), StatusCode::OK, "{}", reply.text());
    assert!(reply.cache_status().contains("fwd-status=200"), "{}", reply.cache_status());
}

fn fault(cause: &str) -> String {
    format!("workspace_gateway_fleet_faults_total{{cause=\"{cause}\"}}")
}

/// Two gateways whose engine has a list of the first one, which the second one's caller may see.
async fn two_gateways_with_a_list(engine: &Engine) -> (World, World) {
    let (first, second) = two_gateways(engine).await;
    second.get(PROOF).await;
    store(&first, LIST).await;
    (first, second)
}

#[tokio::test]
async fn a_suspended_engine_is_not_asked_and_is_in_use_again_when_it_runs() {
    let Some(engine) = redis("suspended", &[]).await else { return };
    // With the budget that requests have.
    let world = World::with(&settings(&engine.url(), "budget = \"8ms\"")).await;
    world.until_metric(LOST, 0.0).await;
    engine.signal("STOP");
    for number in 0..20 {
        ask_upstream(&world, number).await;
    }
    world.until_metric(LOST, 1.0).await;
    // Three in a row open the breaker. Others are not sent.
    assert!(world.metric(LATE) <= 3.0, "{}", world.metric(LATE));
    engine.signal("CONT");
    world.until_metric(LOST, 0.0).await;
}

#[tokio::test]
async fn an_engine_that_is_killed_is_in_use_again_after_its_restart() {
    let Some(mut engine) = redis("killed", &[]).await else { return };
    let (first, second) = two_gateways_with_a_list(&engine).await;
    engine.kill().await;
    ask_upstream(&second, 1).await;
    second.until_metric(LOST, 1.0).await;
    // What becomes void meanwhile is told later.
    first.purge();
    assert!(first.metric(TO_TELL) > 0.0);
    engine.restart().await;
    for world in [&first, &second] {
        world.until_metric(LOST, 0.0).await;
        world.until_metric(TO_TELL, 0.0).await;
    }
    first.seconds_pass(6);
    second.seconds_pass(6);
    store(&first, OTHER).await;
    assert!(is_from_fleet(&second.get(OTHER).await));
}

#[tokio::test]
async fn an_engine_that_went_back_in_time_is_void() {
    // The second time another incarnation has begun after the backup.
    for is_flushed in [false, true] {
        let name = if is_flushed { "flushed" } else { "backup" };
        let Some(mut engine) = redis(name, &["--dbfilename", "backup.rdb"]).await else { return };
        let (first, second) = two_gateways_with_a_list(&engine).await;
        // A backup with the list, which is purged after it.
        assert_eq!(engine.run(&["SAVE"]).await, "OK");
        if is_flushed {
            assert_eq!(engine.run(&["FLUSHALL"]).await, "OK");
            // It writes another file at its end, else.
            assert_eq!(engine.run(&["CONFIG", "SET", "save", ""]).await, "OK");
        }
        first.purge();
        first.until_metric(TO_TELL, 0.0).await;
        for number in 0..5 {
            ask_upstream(&second, number).await;
        }
        engine.kill().await;
        engine.restart().await;
        second.until_metric_over(&fault("went-back"), 0.0).await;
        second.until_metric(LOST, 0.0).await;
        second.until_metric(TO_TELL, 0.0).await;
        assert_ne!(engine.run(&["--scan", "--pattern", "*:e:*"]).await, "", "the backup has the list");
        assert!(!is_from_fleet(&second.get(LIST).await));
    }
}

#[tokio::test]
async fn a_gateway_that_stops_tells_the_engine_first() {
    let Some(engine) = redis("stop", &[]).await else { return };
    let (first, second) = two_gateways_with_a_list(&engine).await;
    // Not told yet when the gateway begins to stop: nothing of it runs between these two.
    first.purge();
    assert!(first.metric(TO_TELL) > 0.0);
    let World { server, simulator: _simulator, .. } = first;
    within(server.stop()).await;
    assert!(!is_from_fleet(&second.get(LIST).await));
}

/// Commands that cause a fault, the cause that is counted, and the command that ends it.
struct Trouble {
    name: &'static str,
    begin: &'static [&'static [&'static str]],
    cause: &'static str,
    end: &'static [&'static str],
}

#[tokio::test]
async fn a_fault_of_the_engine_gives_no_wrong_answer_and_it_is_in_use_again_after_it() {
    let cases = [
        Trouble {
            name: "replica",
            begin: &[&["REPLICAOF", "127.0.0.1", "1"]],
            cause: "not-master",
            end: &["REPLICAOF", "NO", "ONE"],
        },
        Trouble {
            name: "password",
            begin: &[&["CONFIG", "SET", "requirepass", "other"], &["CLIENT", "KILL", "TYPE", "normal"]],
            cause: "denied",
            end: &["CONFIG", "SET", "requirepass", ""],
        },
        Trouble {
            name: "right",
            begin: &[&["ACL", "SETUSER", "default", "-time"]],
            cause: "denied",
            end: &["ACL", "SETUSER", "default", "+time"],
        },
        Trouble {
            name: "closed",
            begin: &[&["CLIENT", "KILL", "TYPE", "normal"]],
            cause: "connection",
            end: &["PING"],
        },
    ];
    for Trouble { name, begin, cause, end } in cases {
        let Some(mut engine) = redis(name, &[]).await else { return };
        let (_first, second) = two_gateways_with_a_list(&engine).await;
        if name == "password" {
            engine.login = vec!["-a".to_owned(), "other".to_owned()];
        }
        for command in begin {
            engine.run(command).await;
        }
        // The first one may meet the fault, the others do without the engine.
        for number in 0..5 {
            ask_upstream(&second, number).await;
        }
        second.until_metric_over(&fault(cause), 0.0).await;
        engine.run(end).await;
        second.until_metric(LOST, 0.0).await;
        let reply = second.get(LIST).await;
        assert!(is_from_fleet(&reply), "{name}: {}", reply.cache_status());
    }
}

#[tokio::test]
async fn an_engine_without_memory_gives_what_it_has_and_voids_everything_when_told() {
    let Some(engine) = redis("memory", &["--maxmemory-policy", "noeviction"]).await else { return };
    let (first, second) = two_gateways_with_a_list(&engine).await;
    store(&first, OTHER).await;
    assert_eq!(engine.run(&["CONFIG", "SET", "maxmemory", "1"]).await, "OK");
    assert!(is_from_fleet(&second.get(LIST).await));
    assert!(second.metric(&fault("full")) > 0.0);
    ask_upstream(&second, 1).await;
    first.purge();
    first.until_metric(TO_TELL, 0.0).await;
    assert_eq!(engine.run(&["CONFIG", "SET", "maxmemory", "0"]).await, "OK");
    assert!(!is_from_fleet(&second.get(OTHER).await));
}

#[tokio::test]
async fn values_that_are_none_of_ours_are_misses() {
    let Some(engine) = redis("values", &[]).await else { return };
    let (first, second) = two_gateways_with_a_list(&engine).await;
    let other = "/v2/PROJECT/products?limit=7";
    store(&first, other).await;
    let names = engine.run(&["--scan", "--pattern", "*:e:*"]).await;
    let names: Vec<&str> = names.lines().collect();
    // Of the proof, and of the two lists.
    assert_eq!(names.len(), 3, "{names:?}");
    for (index, name) in names.iter().enumerate() {
        match index {
            0 => engine.run(&["SETRANGE", name, "100", "changed"]).await,
            1 => engine.run(&["DEL", name]).await + &engine.run(&["LPUSH", name, "a list"]).await,
            _ => engine.run(&["COPY", names[0], name, "REPLACE"]).await,
        };
    }
    for path in [LIST, other] {
        let reply = second.get(path).await;
        assert!(reply.status() == StatusCode::OK && !is_from_fleet(&reply), "{path}: {}", reply.cache_status());
    }
    // The control key has another type: nothing is valid, and nothing fails.
    let control = engine.run(&["--scan", "--pattern", "*:c"]).await;
    engine.run(&["SET", &control, "text"]).await;
    ask_upstream(&second, 1).await;
    assert!(second.metric(LOST) < 1.0);
}

#[tokio::test]
async fn tls_with_a_client_certificate_and_a_user_with_few_rights() {
    let Some(mut engine) = redis_with_tls().await else { return };
    let folder = engine.folder.display().to_string();
    let tls = ["--tls", "--cacert", "ca.pem", "--cert", "gateway.pem", "--key", "gateway.key"];
    engine.login =
        tls.iter().map(|it| if it.contains('.') { format!("{folder}/{it}") } else { (*it).to_owned() }).collect();
    let guide = include_str!("../deploy/fleet.md");
    let user =
        guide.lines().find_map(|line| line.trim().strip_prefix("ACL SETUSER ")).unwrap().replace("PASSWORD", "secret");
    let user: Vec<&str> = ["ACL", "SETUSER"].into_iter().chain(user.split(' ')).collect();
    assert_eq!(engine.run(&user).await, "OK");
    std::fs::write(engine.folder.join("password"), "secret\n").unwrap();
    let more = format!(
        "password = {{ file = \"{folder}/password\" }}\nca_file = \"{folder}/ca.pem\"\ncert_file = \"{folder}/gateway.pem\"\n\
         key_file = \"{folder}/gateway.key\""
    );
    let url = format!("rediss://gateway@localhost:{}", engine.port);
    let first = first_gateway(&settings(&url, &more)).await;
    first.until_metric(LOST, 0.0).await;
    store(&first, LIST).await;
    let second = gateway_of(&first.simulator, &settings(&url, &more)).await;
    second.until_metric(LOST, 0.0).await;
    second.get(PROOF).await;
    assert!(is_from_fleet(&second.get(LIST).await));
    first.purge();
    first.until_metric(TO_TELL, 0.0).await;
    // Another password is used from the next connection on.
    assert_eq!(engine.run(&["ACL", "SETUSER", "gateway", "resetpass", ">other"]).await, "OK");
    engine.run(&["CLIENT", "KILL", "USER", "gateway"]).await;
    first.until_metric_over(&fault("denied"), 0.0).await;
    std::fs::write(engine.folder.join("password"), "other\n").unwrap();
    first.until_metric(LOST, 0.0).await;
}

/// With an authority of its own, which has also issued a client certificate.
async fn redis_with_tls() -> Option<Engine> {
    let files = folder("engine-tls-files");
    let authority = Authority::new();
    let write = |name: &str, text: &str| std::fs::write(files.join(name), text).unwrap();
    write("ca.pem", &authority.pem());
    for (name, host) in [("engine", "localhost"), ("gateway", "gateway")] {
        let identity = authority.issue(host);
        write(&format!("{name}.pem"), &identity.certificate);
        write(&format!("{name}.key"), &identity.key);
    }
    let path = |name: &str| files.join(name).display().to_string();
    let mut engine = redis(
        "tls",
        &[
            "--tls-port",
            "PORT",
            "--tls-ca-cert-file",
            &path("ca.pem"),
            "--tls-cert-file",
            &path("engine.pem"),
            "--tls-key-file",
            &path("engine.key"),
        ],
    )
    .await?;
    engine.folder = files;
    Some(engine)
}

#[tokio::test]
async fn the_master_that_sentinel_names_is_used_also_after_a_failover() {
    let Some(master) = redis("master", &["--repl-diskless-sync-delay", "0"]).await else { return };
    let port = master.port.to_string();
    let replica = Engine::start("redis-server", "replica", &["--replicaof", "127.0.0.1", &port]).await;
    let file = folder("sentinel-file").join("sentinel.conf");
    std::fs::write(&file, format!("sentinel monitor ours 127.0.0.1 {port} 1\n")).unwrap();
    let sentinel = Engine::start("redis-server", "sentinel", &[file.to_str().unwrap(), "--sentinel"]).await;
    let url = format!("redis-sentinel://127.0.0.1:{}/ours", sentinel.port);
    let first = first_gateway(&settings(&url, "")).await;
    first.until_metric(LOST, 0.0).await;
    store(&first, LIST).await;
    // Sentinel refuses or gives up while it does not know the replica well enough.
    within(async {
        while !replica.run(&["ROLE"]).await.starts_with("master") {
            sentinel.run(&["SENTINEL", "FAILOVER", "ours"]).await;
        }
    })
    .await;
    // Sentinel makes the old master a replica, and has it close its connections.
    within(async {
        while first.metric(&fault("connection")) + first.metric(&fault("not-master")) < 1.0 {
            tokio::task::yield_now().await;
        }
    })
    .await;
    first.until_metric(LOST, 0.0).await;
    store(&first, OTHER).await;
    assert_ne!(replica.run(&["--scan", "--pattern", "*:e:*"]).await, "");
}

#[tokio::test]
async fn the_node_of_the_hash_slot_is_found_in_a_cluster() {
    let Some(one) = redis("node-one", &["--cluster-enabled", "yes"]).await else { return };
    let other = Engine::start("redis-server", "node-other", &["--cluster-enabled", "yes"]).await;
    one.run(&["CLUSTER", "ADDSLOTSRANGE", "0", "8191"]).await;
    other.run(&["CLUSTER", "ADDSLOTSRANGE", "8192", "16383"]).await;
    one.run(&["CLUSTER", "MEET", "127.0.0.1", &other.port.to_string()]).await;
    for node in [&one, &other] {
        within(async { while !node.run(&["CLUSTER", "INFO"]).await.contains("cluster_state:ok") {} }).await;
    }
    // Whichever node is named, the same one has the keys.
    let url = |node: &Engine| format!("redis-cluster://127.0.0.1:{}", node.port);
    let first = first_gateway(&settings(&url(&one), "")).await;
    let second = gateway_of(&first.simulator, &settings(&url(&other), "")).await;
    for world in [&first, &second] {
        world.until_metric(LOST, 0.0).await;
    }
    store(&first, LIST).await;
    second.get(PROOF).await;
    assert!(is_from_fleet(&second.get(LIST).await));
}

/// A peer that is no engine: it answers each read with these bytes.
async fn peer(reply: Vec<u8>) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("redis://{}", listener.local_addr().unwrap());
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let reply = reply.clone();
            tokio::spawn(async move {
                let mut buffer = [0; 4096];
                while stream.read(&mut buffer).await.is_ok_and(|read| read > 0) {
                    if stream.write_all(&reply).await.is_err() {
                        return;
                    }
                }
            });
        }
    });
    url
}

#[tokio::test]
async fn peers_that_are_no_engine_are_never_in_use() {
    let large = [b"$16777216\r\n".as_slice(), &vec![b'x'; 16 << 20], b"\r\n"].concat();
    let cases = [
        ("HTTP", b"HTTP/1.1 400 Bad Request\r\n\r\n".to_vec()),
        ("numbers", b":1\r\n:1\r\n:1\r\n:1\r\n:1\r\n:1\r\n".to_vec()),
        ("nothing", Vec::new()),
        ("too much", large),
        ("deep", b"*1\r\n".repeat(2000)),
    ];
    for (name, reply) in cases {
        let world = World::with(&settings(&peer(reply).await, "")).await;
        let faults = |causes: &[&str]| causes.iter().map(|cause| world.metric(&fault(cause))).sum::<f64>();
        within(async {
            while faults(&["reply", "silent", "connection", "error"]) < 1.0 {
                tokio::task::yield_now().await;
            }
        })
        .await;
        for number in 0..3 {
            ask_upstream(&world, number).await;
        }
        assert!(world.metric(LOST) > 0.0, "{name}");
    }
}

/// Runs `check --fleet`. Returns its exit code and the line about the engine.
fn check(url: &str, more: &str) -> (Option<i32>, String) {
    let file = folder("check-fleet").join(format!("{}.toml", url.len() + more.len()));
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
    engine.run(&["ACL", "SETUSER", "default", "-eval"]).await;
    let (code, line) = check(&engine.url(), "");
    assert!(code == Some(1) && line.contains(" cannot be used: it refuses "), "{code:?} {line}");
    engine.run(&["CONFIG", "SET", "requirepass", "swordfish"]).await;
    let (code, line) = check(&engine.url(), "password = \"wrong-word\"");
    let shows_none = !line.contains("swordfish") && !line.contains("wrong-word");
    assert!(code == Some(1) && line.contains("password") && shows_none, "{code:?} {line}");
    let (code, line) = check("redis://127.0.0.1:1", "");
    assert!(code == Some(1) && line.contains("there is no connection to it"), "{code:?} {line}");
}
