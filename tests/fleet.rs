//! The engine that gateways share, a real Redis and Valkey: what it has is given to the callers that may get it.

use workspace_gateway::testing::cache::store::PurgeSelection;

use crate::support::engine::{Engine, programs, redis};
use crate::support::fleet::{
    LIST, LOST, OTHER, TO_TELL, fault, first_gateway, gateway_of, is_from_fleet, settings, store, two_gateways,
    until_in_sync,
};
use crate::support::process::folder;
use crate::support::tls::Authority;
use crate::support::{PROJECT, PROOF, World, within};

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
        for world in [&first, &second] {
            until_in_sync(world).await;
        }
        assert_eq!(engine.run(&["FLUSHALL"]).await, "OK");
        for world in [&first, &second] {
            // At the end of the old link, and at the beginning of the new one.
            world.until_metric_over(&fault("went-back"), 1.0).await;
            world.until_metric(LOST, 0.0).await;
            world.until_metric(TO_TELL, 0.0).await;
        }
        store(&second, OTHER).await;
        let reply = first.get(OTHER).await;
        assert!(is_from_fleet(&reply), "{}", reply.cache_status());
        // What is in the engine says nothing about requests, callers and lists.
        let mut dump = engine.run(&["--raw", "--scan"]).await;
        let names: Vec<String> = dump.lines().map(str::to_owned).collect();
        assert!(names.iter().any(|name| name.contains(":r:")), "{names:?}");
        for name in names {
            dump += &engine.run(&["DUMP", &name]).await;
        }
        for word in ["products", PROJECT, "Windows", &first.token] {
            assert!(!dump.contains(word), "{word}");
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
    assert!(is_from_fleet(&reply), "{}", reply.cache_status());
}

#[tokio::test]
async fn what_a_gateway_purges_is_gone_from_the_engine() {
    let Some(engine) = redis("purge", &[]).await else { return };
    let (first, second) = two_gateways(&engine).await;
    second.get(PROOF).await;
    let by_operation = |name: &str| PurgeSelection { operation: Some(name.to_owned()), ..PurgeSelection::default() };
    let by_project = |id: &str| PurgeSelection { project_id: Some(id.to_owned()), ..PurgeSelection::default() };
    let selections = [
        (PurgeSelection::default(), true),
        (by_operation("ListProducts"), true),
        (by_operation("ListProduct"), false),
        (by_project(PROJECT), true),
        (by_project("other"), false),
    ];
    const FOUND: &str = "workspace_gateway_fleet_lookups_total{result=\"record\"}";
    for (index, (selection, is_gone)) in selections.into_iter().enumerate() {
        // Neither has it in memory, so both look it up.
        let path = format!("{LIST}&offset={index}");
        store(&first, &path).await;
        first.server.gateway().purge(&selection);
        first.until_metric(TO_TELL, 0.0).await;
        let found = second.metric(FOUND);
        let reply = second.get(&path).await;
        // One that is found may not be used: the second gateway takes no copy from before any purge of which it has read.
        assert_eq!(second.metric(FOUND) > found, !is_gone, "{selection:?}: {}", reply.cache_status());
        assert!(!(is_gone && is_from_fleet(&reply)), "{selection:?}: {}", reply.cache_status());
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

#[tokio::test]
async fn tls_with_a_client_certificate_and_a_user_with_few_rights() {
    let Some(mut engine) = redis_with_tls().await else { return };
    let folder = engine.folder.display().to_string();
    let tls = ["--tls", "--cacert", "ca.pem", "--cert", "gateway.pem", "--key", "gateway.key"];
    engine.login =
        tls.iter().map(|it| if it.contains('.') { format!("{folder}/{it}") } else { (*it).to_owned() }).collect();
    let guide = include_str!("../deploy/fleet.md");
    let mut commands = guide.lines().map(str::trim).filter(|line| line.starts_with("ACL SETUSER ")).peekable();
    assert!(commands.peek().is_some());
    for command in commands {
        let command = command.replace("PASSWORD", "secret");
        assert_eq!(engine.run(&command.split(' ').collect::<Vec<_>>()).await, "OK");
    }
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
    // Without the authority, or under another name, the gateway does not accept the certificate.
    let unknown = more.replace(&format!("ca_file = \"{folder}/ca.pem\"\n"), "");
    let other_name = url.replace("localhost", "127.0.0.1");
    for (url, more) in [(&url, &unknown), (&other_name, &more)] {
        let refusing = gateway_of(&first.simulator, &settings(url, more)).await;
        refusing.until_metric_over(&fault("tls"), 0.0).await;
    }
}

/// With an authority of its own, which has also issued a client certificate.
pub async fn redis_with_tls() -> Option<Engine> {
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
    assert_ne!(replica.run(&["--scan", "--pattern", "*:r:*"]).await, "");
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

/// What `/explain` says of the second tier.
async fn explained(world: &World, path: &str) -> String {
    let mut query = form_urlencoded::Serializer::new(String::new());
    query.append_pair("url", &path.replace("PROJECT", PROJECT));
    query.append_pair("header", &format!("X-Auth-Token: {}", world.token));
    let explained = world.http.get(&world.admin_url(&format!("/explain?{}", query.finish()))).await.json();
    explained["operation"]["now"]["second_tier"].as_str().unwrap_or_default().to_owned()
}

#[tokio::test]
async fn explain_says_whether_the_second_tier_is_looked_up() {
    assert_eq!(explained(&World::new().await, LIST).await, "");
    let Some(mut engine) = redis("explain", &[]).await else { return };
    let alone = first_gateway(&settings(&engine.url(), "grants = false")).await;
    let text = explained(&alone, LIST).await;
    assert!(text.contains("not looked up: upstream must first accept this caller"), "{text}");
    let (first, _second) = two_gateways(&engine).await;
    let says = async |words: &str| {
        let text = explained(&first, LIST).await;
        assert!(text.contains(words), "{text}");
    };
    // Another gateway may have proved the caller.
    says("looked up before a call").await;
    first.get(PROOF).await;
    says("looked up before a call").await;
    first.get(LIST).await;
    says("not looked up: the response is in memory").await;
    first.purge();
    says("the engine has not received the last purges").await;
    first.until_metric(TO_TELL, 0.0).await;
    engine.kill().await;
    first.until_metric(LOST, 1.0).await;
    says("not looked up: the engine is not in use (connection)").await;
}
