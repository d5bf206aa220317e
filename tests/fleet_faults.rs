//! Faults of the engine that gateways share: a real Redis, and peers that are none. Whatever the engine does, a request
//! gets the right answer, and hardly waits.

use std::time::Duration;

use http::StatusCode;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio::time::timeout;
use workspace_gateway::testing::cache::store::PurgeSelection;
use workspace_gateway::testing::clock::Clock;

use crate::support::engine::{Engine, redis};
use crate::support::fleet::{
    LIST, LOST, OTHER, TO_TELL, ask_upstream, fault, gateway_beside, is_from_fleet, settings, store, two_gateways_with,
    two_gateways_with_a_list, until_in_sync,
};
use crate::support::process::folder;
use crate::support::{PROJECT, PROOF, World, all_replies, within};

const LATE: &str = "workspace_gateway_fleet_lookups_total{result=\"late\"}";
const SKIPPED: &str = "workspace_gateway_fleet_lookups_total{result=\"skipped\"}";

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
    // The second one has read of the purge. Both clocks show the same.
    for world in [&first, &second] {
        until_in_sync(world).await;
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
        assert_ne!(engine.run(&["--scan", "--pattern", "*:r:*"]).await, "", "the backup has the list");
        assert!(!is_from_fleet(&second.get(LIST).await));
    }
}

#[tokio::test]
async fn a_gateway_that_stops_tells_the_engine_first() {
    let Some(engine) = redis("stop", &[]).await else { return };
    let (first, second) = two_gateways_with_a_list(&engine).await;
    engine.signal("STOP");
    // The engine gets the next purge when it has confirmed the one before.
    for project in ["one", PROJECT, "another"] {
        let selection = PurgeSelection { project_id: Some(project.to_owned()), ..PurgeSelection::default() };
        first.server.gateway().purge(&selection);
    }
    assert_eq!(first.metric(TO_TELL), 3.0);
    let World { server, simulator: _simulator, .. } = first;
    let mut stopping = tokio::spawn(server.stop());
    // It waits for up to 1 s.
    assert!(timeout(Duration::from_millis(200), &mut stopping).await.is_err());
    engine.signal("CONT");
    within(stopping).await.unwrap();
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
async fn an_engine_without_memory_gives_what_it_has_and_voids_everything_when_told_of_a_purge() {
    let Some(engine) = redis("memory", &["--maxmemory-policy", "noeviction"]).await else { return };
    let (first, second) = two_gateways_with_a_list(&engine).await;
    store(&first, OTHER).await;
    assert_eq!(engine.run(&["CONFIG", "SET", "maxmemory", "1"]).await, "OK");
    assert!(is_from_fleet(&second.get(LIST).await));
    assert!(second.metric(&fault("full")) > 0.0);
    ask_upstream(&second, 1).await;
    assert!(second.get(LIST).await.is_hit());
    first.purge();
    first.until_metric(TO_TELL, 0.0).await;
    assert!(!is_from_fleet(&second.get(OTHER).await));
    assert_eq!(engine.run(&["CONFIG", "SET", "maxmemory", "0"]).await, "OK");
    // The other gateway has to read of it, too.
    within(async { while second.get(LIST).await.is_hit() {} }).await;
}

#[tokio::test]
async fn values_that_are_none_of_ours_are_misses() {
    let Some(engine) = redis("values", &[]).await else { return };
    let (first, second) = two_gateways_with_a_list(&engine).await;
    let other = "/v2/PROJECT/products?limit=7";
    store(&first, other).await;
    let names = engine.run(&["--scan", "--pattern", "*:r:*"]).await;
    let names: Vec<&str> = names.lines().collect();
    // The request that proves a caller, and two lists; and the proofs of two callers with their markers.
    assert_eq!(names.len(), 3 + 2 * 2, "{names:?}");
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
async fn a_lease_that_no_gateway_has_given_is_not_followed() {
    for (name, commands) in [
        ("for-ever", &[&["SET", "LEASE", "another"][..]][..]),
        ("too-long", &[&["SET", "LEASE", "another", "PX", "3600000"]]),
        ("list", &[&["DEL", "LEASE"], &["RPUSH", "LEASE", "another"]]),
    ] {
        let Some(engine) = redis(name, &[]).await else { return };
        let (first, second) = two_gateways_with_a_list(&engine).await;
        let calls = first.upstream_calls();
        first.simulator.hold();
        let leading = first.begin_and_reach_upstream(&first.token, OTHER, calls + 1).await;
        change_lease(&engine, commands).await;
        let other = second.begin(&second.token, OTHER);
        within(first.simulator.wait_for_requests(calls + 2)).await;
        first.simulator.release();
        assert!(all_replies(vec![leading, other]).await.iter().all(|reply| reply.status() == StatusCode::OK), "{name}");
        assert_eq!([first.metric(LOST), second.metric(LOST)], [0.0; 2], "{name}");
    }
}

/// Runs commands with the name of the only lease in place of LEASE.
async fn change_lease(engine: &Engine, commands: &[&[&str]]) {
    let lease = engine.run(&["--raw", "KEYS", "*:l:*"]).await;
    for command in commands {
        let command: Vec<&str> =
            command.iter().map(|word| if *word == "LEASE" { lease.trim() } else { word }).collect();
        assert_ne!(engine.run(&command).await, "");
    }
}

#[tokio::test]
async fn a_list_in_place_of_a_lease_does_not_end_the_link() {
    let Some(engine) = redis("lease-list", &[]).await else { return };
    let (first, second) = two_gateways_with_a_list(&engine).await;
    // Those of the gateways: redis-cli runs another command.
    let connections = async || {
        let clients = engine.run(&["CLIENT", "LIST"]).await;
        let is_gateways = |line: &&str| !line.contains("cmd=client");
        let ids = clients.lines().filter(is_gateways).filter_map(|line| line.split(' ').next());
        ids.map(str::to_owned).collect::<Vec<_>>()
    };
    let (calls, before) = (first.upstream_calls(), connections().await);
    // The denial of a caller that nobody knows is told if there is a lease of it.
    let stranger = first.simulator.token(PROJECT);
    first.simulator.expire(&stranger);
    first.simulator.hold();
    let denied = first.begin_and_reach_upstream(&stranger, OTHER, calls + 1).await;
    change_lease(&engine, &[&["DEL", "LEASE"], &["RPUSH", "LEASE", "another"]]).await;
    first.simulator.release();
    assert_eq!(within(denied).await.unwrap().status(), StatusCode::UNAUTHORIZED);
    first.until_metric_over(&fault("error"), 0.0).await;
    first.until_metric(TO_TELL, 0.0).await;
    assert_eq!(connections().await, before);
    assert_eq!([first.metric(LOST), second.metric(LOST)], [0.0; 2]);
}

#[tokio::test]
async fn the_keys_to_try_commands_with_may_have_any_value() {
    let Some(engine) = redis("scratch", &[]).await else { return };
    let (first, _second) = two_gateways_with_a_list(&engine).await;
    let control = engine.run(&["--scan", "--pattern", "*:c"]).await;
    let prefix = control.strip_suffix('c').unwrap();
    for key in ["c", "log", &format!("l:{:032}", 0), &format!("r:{:032}", 0)] {
        assert_eq!(engine.run(&["SADD", &format!("{prefix}test:{key}"), "a set"]).await, "1");
    }
    gateway_beside(&first, &settings(&engine.url(), "")).await.until_metric(LOST, 0.0).await;
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

#[tokio::test]
async fn a_replica_that_was_behind_gives_nothing_that_was_purged_meanwhile() {
    // The second time, tickets do not show that the replica was behind.
    for is_ahead in [false, true] {
        fail_over_to_a_replica_that_was_behind(is_ahead).await;
    }
}

/// `is_ahead`: the replica has given more tickets than its master before gateways use it.
async fn fail_over_to_a_replica_that_was_behind(is_ahead: bool) {
    let Some(mut master) = redis("behind-master", &["--repl-diskless-sync-delay", "0"]).await else { return };
    let port = master.port.to_string();
    let replica = Engine::start("redis-server", "behind-replica", &["--replicaof", "127.0.0.1", &port]).await;
    let file = folder("behind-sentinel").join("sentinel.conf");
    std::fs::write(&file, format!("sentinel monitor ours 127.0.0.1 {port} 1\n")).unwrap();
    let sentinel = Engine::start("redis-server", "behind-sentinel", &[file.to_str().unwrap(), "--sentinel"]).await;
    let settings = settings(&format!("redis-sentinel://127.0.0.1:{}/ours", sentinel.port), "");
    let (first, second) = two_gateways_with(&settings).await;
    second.get(PROOF).await;
    store(&first, LIST).await;
    // Those of the proof and of the list, and for each of the two callers its proof and a marker.
    let records = async || replica.run(&["--scan", "--pattern", "*:r:*"]).await.lines().count();
    within(async { while records().await < 6 {} }).await;

    // From here on the replica receives nothing.
    replica.signal("STOP");
    master.run(&["CLIENT", "KILL", "TYPE", "replica"]).await;
    first.purge();
    first.until_metric(TO_TELL, 0.0).await;
    store(&first, OTHER).await;
    // More tickets than two gateways draw when they connect.
    for number in 10..30 {
        ask_upstream(&first, number).await;
    }
    master.kill().await;
    replica.signal("CONT");
    assert_eq!(replica.run(&["REPLICAOF", "NO", "ONE"]).await, "OK");
    if is_ahead {
        let control = replica.run(&["--scan", "--pattern", "wg2:{default}:*:c"]).await;
        replica.run(&["HINCRBY", &control, "t", "1000"]).await;
    }
    for world in [&first, &second] {
        ask_upstream(world, 1).await;
        world.until_metric(LOST, 1.0).await;
    }
    sentinel.run(&["SENTINEL", "REMOVE", "ours"]).await;
    sentinel.run(&["SENTINEL", "MONITOR", "ours", "127.0.0.1", &replica.port.to_string(), "1"]).await;
    for world in [&first, &second] {
        world.until_metric(LOST, 0.0).await;
        world.until_metric(TO_TELL, 0.0).await;
    }

    assert_eq!(first.metric(&fault("went-back")) > 0.0, !is_ahead);
    assert_eq!(records().await, 6);
    for path in [LIST, OTHER] {
        let reply = second.get(path).await;
        assert!(reply.status() == StatusCode::OK && !is_from_fleet(&reply), "{path}: {}", reply.cache_status());
    }
    // It is in use.
    let third = "/v2/PROJECT/products?os_type=Other";
    // The second one has read of the purge. Both clocks show the same.
    for world in [&first, &second] {
        until_in_sync(world).await;
    }
    first.seconds_pass(6);
    second.seconds_pass(6);
    store(&first, third).await;
    assert!(is_from_fleet(&second.get(third).await));
}

#[tokio::test]
async fn an_engine_that_loads_its_data_is_not_waited_for_and_has_its_records_after_it() {
    let arguments = ["--dbfilename", "loading.rdb", "--enable-debug-command", "yes"];
    let Some(mut engine) = redis("loading", &arguments).await else { return };
    let (_first, second) = two_gateways_with_a_list(&engine).await;
    engine.run(&["DEBUG", "POPULATE", "1000", "filler", "1000"]).await;
    assert_eq!(engine.run(&["SAVE"]).await, "OK");
    engine.kill().await;
    engine.restart_loading().await;
    second.until_metric_over(&fault("loading"), 0.0).await;
    let (skipped, late) = (second.metric(SKIPPED), second.metric(LATE));
    for number in 0..5 {
        ask_upstream(&second, number).await;
    }
    assert!(engine.run(&["INFO", "persistence"]).await.contains("loading:1"), "it loads all the while");
    assert_eq!((second.metric(SKIPPED) - skipped, second.metric(LATE) - late), (5.0, 0.0));
    assert_eq!(second.metric(LOST), 1.0);
    // The rest of the data is loaded at once.
    assert_eq!(engine.run(&["CONFIG", "SET", "key-load-delay", "0"]).await, "OK");
    within(async { while engine.run(&["INFO", "persistence"]).await.contains("loading:1") {} }).await;
    let loaded = Clock::System.timer_now();
    second.until_metric(LOST, 0.0).await;
    let took = Clock::System.timer_now() - loaded;
    assert!(took < Duration::from_secs(1), "{took:?}");
    assert!(is_from_fleet(&second.get(LIST).await));
}
