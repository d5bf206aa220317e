//! Reloads of the configuration of a running gateway: what changes, what needs a restart, and what must not be
//! disturbed.

use std::path::PathBuf;

use http::StatusCode;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use workspace_gateway::testing::catalogue::Service;
use workspace_gateway::testing::config::Mode;
use workspace_gateway::testing::simulator::Simulator;

use crate::support::{PROJECT, PROOF, WAITERS, World, all_replies, within};
use crate::tls::serve_tls;

const LIST: &str = "/v2/PROJECT/products?os_type=Linux";
const OTHER: &str = "/v2/PROJECT/products?os_type=Windows";
const ZONES: &str = "/v2/PROJECT/availability-zones";
const ADDED: &str =
    "[[operation]]\nname = \"Zones\"\npath = \"/v2/{project_id}/availability-zones\"\nbody = \"json\"\n";

fn reloads(world: &World) -> [f64; 3] {
    ["applied", "refused", "unchanged"]
        .map(|result| world.metric(&format!("workspace_gateway_reloads_total{{result=\"{result}\"}}")))
}

/// The remaining freshness of a hit, in seconds.
async fn ttl(world: &World, path: &str) -> i64 {
    let reply = world.get(path).await;
    assert!(reply.is_hit(), "{reply:?}");
    reply.cache_status().split("ttl=").nth(1).unwrap().split(';').next().unwrap().parse().unwrap()
}

#[tokio::test]
async fn a_new_ttl_applies_to_new_entries_only() {
    let world = World::new().await;
    world.get(LIST).await;
    assert_eq!(world.reload("[cache]\nttl = \"1h\"").unwrap().applied, ["cache.ttl"]);
    world.get(OTHER).await;
    assert_eq!((ttl(&world, LIST).await, ttl(&world, OTHER).await), (300, 3600));
    let (shorter, name) = ("[[operation]]\nname = \"ListProducts\"\nttl = \"1m\"", "operation.ListProducts.ttl");
    assert_eq!(world.reload(shorter).unwrap().applied, ["cache.ttl", "operation.ListProducts.name", name]);
    world.get(PROOF).await;
    assert_eq!((ttl(&world, OTHER).await, ttl(&world, PROOF).await), (3600, 60));
    assert_eq!((world.upstream_calls(), reloads(&world)), (3, [2.0, 0.0, 0.0]));
}

#[tokio::test]
async fn new_grant_settings_apply_to_existing_grants() {
    let world = World::with("[cache]\nttl = \"1h\"").await;
    world.get(LIST).await;
    world.seconds_pass(100);
    world.reload("[cache]\nttl = \"1h\"\n[grants]\ngrant_ttl = \"100s\"").unwrap();
    assert!(!world.get(LIST).await.is_hit());
    world.simulator.fail_with(Some(StatusCode::SERVICE_UNAVAILABLE));
    world.seconds_pass(101);
    assert_eq!(world.get(LIST).await.status(), StatusCode::OK, "the outage extends the grant");
    world
        .reload("[cache]\nttl = \"1h\"\nnegative_ttl = \"0s\"\nbackoff = \"0s\"\n[grants]\ngrant_ttl = \"100s\"\non_outage = \"refuse\"")
        .unwrap();
    assert_eq!(world.get(LIST).await.status(), StatusCode::SERVICE_UNAVAILABLE);
}

#[tokio::test]
async fn new_size_limits_and_timeouts_apply_to_the_next_request() {
    let world = World::new().await;
    world.get(LIST).await;
    world.reload("[limits]\nmax_head_size = \"100B\"").unwrap();
    assert_eq!(world.get(LIST).await.status(), StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE);
    world.reload("[cache]\nmax_body_size = \"10B\"").unwrap();
    assert!(world.get(LIST).await.is_hit());
    assert!(world.get(OTHER).await.cache_status().contains("too-large"));
    world
        .reload("[upstream]\nconnect_timeout = \"40ms\"\nfirst_byte_timeout = \"40ms\"\nanswer_timeout = \"50ms\"")
        .unwrap();
    world.simulator.hold();
    assert_eq!(world.get(PROOF).await.status(), StatusCode::GATEWAY_TIMEOUT);
}

#[tokio::test]
async fn a_new_flight_limit_applies_to_new_requests() {
    let world = World::new().await;
    let [token] = world.granted_tokens().await;
    world.reload("[limits]\nmax_flights = 1").unwrap();
    world.simulator.hold();
    let shared = world.begin_and_reach_upstream(&token, LIST, 1).await;
    let alone = world.begin_and_reach_upstream(&token, OTHER, 2).await;
    let alone_too = world.begin_and_reach_upstream(&token, OTHER, 3).await;
    world.simulator.release();
    let replies = all_replies(vec![shared, alone, alone_too]).await;
    assert!(replies.iter().all(|reply| reply.status() == StatusCode::OK));
}

#[tokio::test]
async fn a_reload_changes_the_mode_only_if_the_setting_changed() {
    let world = World::new().await;
    let gateway = world.server.gateway();
    assert_eq!(world.reload("mode = \"bypass\"").unwrap().applied, ["mode"]);
    assert!(world.get(LIST).await.cache_status().contains("detail=mode"));
    gateway.set_mode(Mode::Cache);
    world.reload("mode = \"bypass\"\n[cache]\nttl = \"1h\"").unwrap();
    assert!(gateway.mode() == Mode::Cache);
    world.reload("").unwrap();
    gateway.set_mode(Mode::Bypass);
    world.reload("[cache]\nttl = \"2h\"").unwrap();
    assert!(gateway.mode() == Mode::Bypass);
}

#[tokio::test]
async fn grants_and_entries_of_the_old_upstream_are_not_used_for_the_new_one() {
    let world = World::new().await;
    let other = Simulator::start().await.unwrap();
    world.get(LIST).await;
    let (workspace, appstream) = (other.url(Service::Workspace), other.url(Service::AppStream));
    let changes = world.reload_with_upstreams(&workspace, &appstream, "").unwrap();
    assert_eq!(changes.applied, ["upstream.appstream_url", "upstream.workspace_url"]);
    assert_eq!(world.get(LIST).await.status(), StatusCode::UNAUTHORIZED, "the other upstream does not know this token");
    let token = other.token(PROJECT);
    assert!(!world.get_as(&token, LIST).await.is_hit());
    assert!(world.get_as(&token, LIST).await.is_hit());
    assert_eq!((world.upstream_calls(), other.request_count()), (1, 2));
    // After the change back, the earlier grants and entries are gone.
    world.reload("").unwrap();
    assert!(!world.get(LIST).await.is_hit());
    assert_eq!(world.upstream_calls(), 2);
}

#[tokio::test]
async fn path_prefixes_can_be_reloaded() {
    let world = World::new().await;
    let team = LIST.replace("/v2", "/team/v2");
    let workspace = LIST.replace("/v2", "/workspace/v2");
    assert_eq!(world.get(&workspace).await.status(), StatusCode::OK);
    assert_eq!(world.get(&team).await.status(), StatusCode::NOT_FOUND);
    let changes = world.reload("[listen]\npath_prefixes = [\"/team\"]").unwrap();
    assert_eq!(
        (changes.applied.as_slice(), changes.at_restart.len()),
        (["listen.path_prefixes".to_owned()].as_slice(), 0)
    );
    assert!(world.get(&team).await.is_hit());
    assert_eq!(world.get(&workspace).await.status(), StatusCode::NOT_FOUND);
}

#[tokio::test]
async fn operations_can_be_added_and_removed() {
    let world = World::new().await;
    // Relayed responses have no Cache-Status. An operation that is added again starts without entries.
    for (settings, is_operation) in [("", false), (ADDED, true), ("", false), (ADDED, true)] {
        world.reload(settings).unwrap();
        let replies = [world.get(ZONES).await, world.get(ZONES).await];
        let hits = replies
            .iter()
            .map(|reply| reply.headers().contains_key("cache-status") && reply.is_hit())
            .collect::<Vec<_>>();
        assert_eq!(
            (replies[0].headers().contains_key("cache-status"), hits),
            (is_operation, vec![false, is_operation])
        );
    }
    assert_eq!(world.upstream_calls(), 6);
}

#[tokio::test]
async fn the_requests_to_keep_warm_change_by_a_reload() {
    let world = World::new().await;
    let kept_warm = || -> Vec<String> {
        let active = world.server.gateway().active();
        active.keep_warm().iter().map(|it| format!("{} {}", it.key.id(), it.target)).collect()
    };
    assert!(kept_warm().is_empty());
    let with = |projects: &str| {
        format!(
            "[[access_key]]\nid = \"AK\"\nsecret = \"s\"\n[[keep_warm]]\naccess_key = \"AK\"\nprojects = \
             {projects}\nrequests = [\"/v2/{{project_id}}/products\"]\n"
        )
    };
    world.reload(&with("[\"p1\"]")).unwrap();
    assert_eq!(kept_warm(), ["AK /v2/p1/products"]);
    assert_eq!(world.reload(&with("[\"p1\", \"p2\"]")).unwrap().applied, ["keep_warm.0.projects"]);
    assert_eq!(kept_warm(), ["AK /v2/p1/products", "AK /v2/p2/products"]);
    world.reload("").unwrap();
    assert!(kept_warm().is_empty());
}

#[tokio::test]
async fn configured_quotas_change_by_a_reload() {
    let world = World::new().await;
    let shown = || {
        let active = world.server.gateway().active();
        active.as_toml().lines().find(|line| line.starts_with("# quota: ")).map(str::to_owned)
    };
    let with =
        |limit: u32| format!("[[quota]]\nservice = \"workspace\"\npolicy = \"ip\"\nlimit = {limit}\nwindow = \"1s\"\n");
    assert_eq!(shown(), None);
    for limit in [5, 6] {
        world.reload(&with(limit)).unwrap();
        assert_eq!(shown(), Some(format!("# quota: policy ip of workspace: {limit} in 1s")));
    }
    assert_eq!(world.reload(&with(7)).unwrap().applied, ["quota.0.limit"]);
    assert!(world.reload(&with(0)).is_err());
    world.reload("").unwrap();
    assert_eq!(shown(), None);
}

#[tokio::test]
async fn an_adaptive_ttl_is_applied_by_a_reload() {
    let world = World::new().await;
    let ttl = || world.server.gateway().active().catalogue().operations()[0].ttl.as_secs();
    let adaptive = |max_stale: &str| format!("[cache]\nttl = {{ max_stale = \"{max_stale}\", min = \"10m\" }}");
    world.reload(&adaptive("1%")).unwrap();
    assert_eq!(ttl(), 600);
    assert_eq!(world.reload(&adaptive("2%")).unwrap().applied, ["cache.ttl.max_stale"]);
    world.reload("[cache]\nttl = \"1m\"").unwrap();
    assert_eq!(ttl(), 60);
}

#[tokio::test]
async fn shared_entries_are_not_used_after_sharing_is_switched_off() {
    let world = World::new().await;
    let [one, other] = world.granted_tokens().await;
    world.get_as(&one, LIST).await;
    assert!(world.get_as(&other, LIST).await.is_hit());
    for (settings, name) in [
        ("[cache]\nsharing = \"caller\"", "cache.sharing"),
        (
            "[[operation]]\nname = \"ListProducts\"\nforward_headers = [\"x-a\"]",
            "operation.ListProducts.forward_headers",
        ),
    ] {
        assert!(world.reload(settings).unwrap().applied.contains(&name.to_owned()), "{name}");
        assert!(!world.get_as(&other, LIST).await.is_hit());
        assert!(!world.get_as(&one, LIST).await.is_hit());
        assert!(world.get_as(&one, LIST).await.is_hit());
    }
    assert_eq!(world.metric("workspace_gateway_entries"), 2.0, "entries that no caller can get are removed");
}

#[tokio::test]
async fn a_denial_while_sharing_is_off_ends_an_earlier_grant() {
    let world = World::new().await;
    let [one, other] = world.granted_tokens().await;
    world.get_as(&one, LIST).await;
    world.reload("[cache]\nsharing = \"caller\"").unwrap();
    world.simulator.revoke(&one);
    assert_eq!(world.get_as(&one, LIST).await.status(), StatusCode::UNAUTHORIZED);
    world.reload("").unwrap();
    for _ in 0..2 {
        assert_eq!(world.get_as(&other, LIST).await.status(), StatusCode::OK);
    }
    assert_eq!(world.get_as(&one, LIST).await.status(), StatusCode::UNAUTHORIZED);
}

#[tokio::test]
async fn new_keyed_headers_change_the_cache_keys() {
    let world = World::new().await;
    let english = [("x-language", "en-us")];
    world.get_with(LIST, &english).await;
    assert!(world.get_with(LIST, &english).await.is_hit());
    world.reload("[cache]\nkeyed_headers = []").unwrap();
    assert!(!world.get_with(LIST, &english).await.is_hit());
    assert!(world.get(LIST).await.is_hit());
    let seen = world.simulator.requests_seen();
    assert!(seen[0].headers.contains_key("x-language") && !seen[1].headers.contains_key("x-language"));
}

#[tokio::test]
async fn a_changed_ca_file_is_reloaded() {
    let simulator = Simulator::start().await.unwrap();
    let (url, right) = serve_tls(&simulator, "reload-right").await;
    let (_, wrong) = serve_tls(&simulator, "reload-wrong").await;
    let ca_file = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join("reload-ca_file.pem");
    std::fs::copy(wrong, &ca_file).unwrap();
    let settings = format!("[upstream]\nca_file = {ca_file:?}");
    let world = World::with_upstreams(simulator, &url, &url, &settings).await;
    assert!(world.get(LIST).await.cache_status().contains("detail=local"));
    assert_eq!(world.reload_with_upstreams(&url, &url, &settings).unwrap().applied, Vec::<String>::new());
    std::fs::copy(right, &ca_file).unwrap();
    let changes = world.reload_with_upstreams(&url, &url, &settings).unwrap();
    assert_eq!(changes.applied, ["upstream.ca_file (file content)"]);
    assert_eq!(world.get(LIST).await.status(), StatusCode::OK);
    std::fs::write(&ca_file, "none").unwrap();
    let error = world.reload_with_upstreams(&url, &url, &settings).unwrap_err().to_string();
    assert!(error.contains("upstream.ca_file") && error.contains("found none"), "{error}");
    assert_eq!(world.get(OTHER).await.status(), StatusCode::OK);
    assert_eq!(reloads(&world), [1.0, 1.0, 1.0]);
}

#[tokio::test]
async fn an_invalid_configuration_changes_nothing_and_the_error_names_the_setting() {
    let before = "mode = \"cache\"\n[cache]\nttl = \"1h\"";
    let world = World::with(before).await;
    world.get(LIST).await;
    let good = "mode = \"bypass\"\n[limits]\nmax_head_size = \"1B\"\n[cache]\nttl = \"1s\"\nsharing = \"caller\"\n";
    for (bad, parts) in [
        ("[[operation", &["test.toml", "not TOML"][..]),
        ("kept = true", &["cache", "kept"]),
        ("stale_if_slow = \"soon\"", &["cache.stale_if_slow", "\"soon\"", "\"5m\""]),
        ("[upstream]\nca_file = \"/does/not/exist.pem\"", &["upstream.ca_file /does/not/exist.pem"]),
    ] {
        let error = world.reload(&format!("{good}{bad}")).unwrap_err().to_string();
        assert!(parts.iter().all(|part| error.contains(part)), "{error}");
        assert_eq!(ttl(&world, LIST).await, 3600);
    }
    assert_eq!(reloads(&world), [0.0, 4.0, 0.0]);
    assert_eq!(world.reload(before).unwrap().applied, Vec::<String>::new());
    assert_eq!(reloads(&world), [0.0, 4.0, 1.0]);
}

#[tokio::test]
async fn settings_that_need_a_restart_are_reported_on_each_reload() {
    let world = World::new().await;
    let settings = "[cache]\nmax_size = \"9MiB\"\nttl = \"1h\"\n[log]\nformat = \"json\"\n[upstream]\nmax_calls = 1";
    for applied in [vec!["cache.ttl".to_owned()], Vec::new()] {
        let changes = world.reload(settings).unwrap();
        let at_restart: Vec<_> = changes
            .at_restart
            .iter()
            .map(|it| [it.setting.as_str(), it.in_force.as_str(), it.given.as_str()])
            .collect();
        assert_eq!(changes.applied, applied);
        assert_eq!(
            at_restart,
            [["cache.max_size", "64MiB", "9MiB"], ["log.format", "text", "json"], ["upstream.max_calls", "128", "1"]]
        );
    }
    assert_eq!(reloads(&world), [1.0, 0.0, 1.0]);
}

#[tokio::test]
async fn requests_in_flight_finish_with_their_settings() {
    let world = World::new().await;
    let other = Simulator::start().await.unwrap();
    let [token, another] = world.granted_tokens().await;
    world.simulator.hold();
    let path = |index: usize| format!("/v2/PROJECT/products?os_type=Linux&offset={}", index % 20 + 1);
    let listing: Vec<_> = (0..180).map(|index| world.begin(&token, &path(index))).collect();
    world.until_metric(WAITERS, 160.0).await;
    let relayed: Vec<_> = (0..20).map(|_| world.begin(&another, "/v2/PROJECT/desktops")).collect();
    within(world.simulator.wait_for_requests(40)).await;

    let reload_with_other_upstream = |settings| {
        world.reload_with_upstreams(&other.url(Service::Workspace), &other.url(Service::AppStream), settings)
    };
    world.reload("[cache]\nttl = \"1h\"\n[limits]\nmax_waiters = 1\nmax_flights = 1").unwrap();
    world.reload("[cache]\nsharing = \"caller\"\n[upstream]\nanswer_timeout = \"34s\"").unwrap();
    reload_with_other_upstream("[limits]\nmax_head_size = \"64KiB\"\n[grants]\nmax_grants = 50").unwrap();
    world.reload("[[operation").unwrap_err();
    world.simulator.release();
    for reply in all_replies(listing).await.into_iter().chain(all_replies(relayed).await) {
        assert_eq!(reply.status(), StatusCode::OK, "{reply:?}");
    }
    assert_eq!(other.request_count(), 0);
    assert_eq!(reloads(&world), [3.0, 1.0, 0.0]);
    assert_eq!(
        world.get_as(&token, LIST).await.status(),
        StatusCode::UNAUTHORIZED,
        "new requests go to the other upstream"
    );
}

#[tokio::test]
async fn new_timeouts_apply_to_new_connections_only() {
    let world = World::new().await;
    let request = format!(
        "GET {} HTTP/1.1\r\nHost: gateway\r\nX-Auth-Token: {}\r\n\r\n",
        LIST.replace("PROJECT", PROJECT),
        world.token
    );
    let mut old = TcpStream::connect(world.server.proxy_address()).await.unwrap();
    world.until_metric("workspace_gateway_connections", 1.0).await;
    world.reload("[limits]\nheader_timeout = \"30ms\"\nkeepalive_timeout = \"30ms\"").unwrap();
    for address in [world.server.proxy_address(), world.server.metrics_address()] {
        let mut silent = TcpStream::connect(address).await.unwrap();
        assert_eq!(within(silent.read(&mut [0; 1])).await.unwrap(), 0, "closed");
    }
    old.write_all(request.as_bytes()).await.unwrap();
    let mut status_line = vec![0; 15];
    within(old.read_exact(&mut status_line)).await.unwrap();
    assert_eq!(status_line, b"HTTP/1.1 200 OK");
}

#[tokio::test]
async fn shutdown_uses_the_reloaded_shutdown_timeout() {
    let settings = |shutdown_timeout: &str| {
        let upstream = "[upstream]\nfirst_byte_timeout = \"1h\"\nanswer_timeout = \"1h\"";
        format!("{upstream}\n[limits]\nshutdown_timeout = \"{shutdown_timeout}\"")
    };
    let world = World::with(&settings("1h")).await;
    world.simulator.hold();
    let pending = world.begin_and_reach_upstream(&world.token, LIST, 1).await;
    world.reload(&settings("50ms")).unwrap();
    within(world.server.stop()).await;
    assert!(!pending.is_finished());
    pending.abort();
}
