//! The fast path answers a known head with the same bytes, to the same callers and with the same metrics as the full
//! path.

use std::collections::BTreeSet;
use std::net::SocketAddr;

use bytes::Bytes;
use http::{HeaderName, HeaderValue};
use workspace_gateway::testing::catalogue::Service;
use workspace_gateway::testing::config::{Config, Mode, Override};
use workspace_gateway::testing::simulator::Simulator;

use crate::support::process::{Process, folder};
use crate::support::raw_client::{RawClient, RawResponse, head_as};
use crate::support::raw_upstream::{RawUpstream, sends};
use crate::support::{Http, PROJECT, World, with_fast_path, without_key};

const LIST: &str = "/v2/PROJECT/products?os_type=Linux";
const OTHER: &str = "/v2/PROJECT/products?os_type=Windows";

/// Long lifetimes of entries and grants.
const LASTING: &str = "[cache]\nttl = \"1h\"\n[grants]\ngrant_ttl = \"1h\"\n";

/// These settings with the fast path on, regardless of the environment variable.
fn on(settings: &str) -> String {
    with_fast_path(true, settings)
}

/// A change by the operator.
type Change = fn(&World);

/// A gateway that knows a head, and that head.
async fn with_known_head(settings: &str) -> (World, String) {
    let world = World::with(&on(settings)).await;
    let known = world.head(LIST, &[]);
    world.warm_head_cache(&known).await;
    (world, known)
}

fn is_hit(response: &RawResponse) -> bool {
    response.status() == 200 && response.header("cache-status").contains("; hit; ttl=300; key=")
}

/// Sends the known request with another field, so that it takes the full path.
async fn by_full_path(world: &World, number: usize) -> RawResponse {
    let before = world.fast_path_hits();
    let response = RawClient::connect(world).await.exchange(world.head(LIST, &[&format!("x-n: {number}")])).await;
    assert_eq!(world.fast_path_hits(), before);
    response
}

#[tokio::test]
async fn a_known_head_takes_the_fast_path_on_any_connection() {
    let world = World::with(&on("")).await;
    let head = world.head(LIST, &[]);
    let mut client = RawClient::connect(&world).await;
    let mut ids = BTreeSet::new();
    for (result, hits) in [("fwd=miss", 0), ("; hit", 0), ("; hit", 1), ("; hit", 2)] {
        let response = client.exchange(&head).await;
        assert!(response.status() == 200 && response.header("cache-status").contains(result), "{response:?}");
        assert_eq!(world.fast_path_hits(), hits, "{result}");
        ids.insert(response.header("x-request-id").to_owned());
    }
    let elsewhere = RawClient::connect(&world).await.exchange(&head).await;
    ids.insert(elsewhere.header("x-request-id").to_owned());
    assert_eq!((world.fast_path_hits(), world.upstream_calls(), ids.len()), (3, 1, 5));
}

#[tokio::test]
async fn both_paths_send_the_same_bytes() {
    let large = format!("{{\"products\":[{{\"name\":\"{}\"}}]}}", "x".repeat(48 * 1024));
    for (body, seconds) in [(None, 0), (Some("{\"products\":[]}".to_owned()), 1), (Some(large), 299)] {
        let world = World::with(&on(LASTING)).await;
        world.simulator.set_list_body(body.clone().map(Bytes::from));
        for value in ["<a>; rel=x", "<b>; rel=y"] {
            world.simulator.add_header(HeaderName::from_static("link"), HeaderValue::from_static(value));
        }
        let known = world.head(LIST, &[]);
        world.warm_head_cache(&known).await;
        world.seconds_pass(seconds);
        let full = by_full_path(&world, 0).await;
        let fast = RawClient::connect(&world).await.exchange(&known).await;
        assert_eq!(world.fast_path_hits(), 2);
        assert_eq!(fast.without_request_id(), full.without_request_id());
        assert_eq!(fast.header("age"), seconds.to_string());
        let status = without_key(fast.header("cache-status"));
        assert_eq!(status.0, format!("workspace-gateway; hit; ttl={}", 3600 - seconds));
        assert_eq!(status.1.map(|key| key.len()), Some(16));
        assert!(body.is_none_or(|body| body == fast.body) && fast.body.contains("products"));
    }
}

#[tokio::test]
async fn both_paths_send_the_same_fields_of_other_caches() {
    for fields in ["cache-status: far; hit\r\ncache-status: near; fwd=miss\r\n", "age: 7\r\nx-request-id: theirs\r\n"] {
        let response = format!("HTTP/1.1 200 OK\r\n{fields}content-length: 15\r\n\r\n{{\"products\":[]}}");
        let upstream = RawUpstream::start([sends(response)]).await;
        let world =
            World::with_upstreams(Simulator::start().await.unwrap(), upstream.url(), upstream.url(), &on("")).await;
        let known = world.head(LIST, &[]);
        world.warm_head_cache(&known).await;
        let (full, fast) = (by_full_path(&world, 0).await, RawClient::connect(&world).await.exchange(&known).await);
        assert_eq!(world.fast_path_hits(), 2);
        let (full, fast) = (full.without_request_id(), fast.without_request_id());
        for name in ["cache-status", "age", "content-length", "x-request-id", "content-type"] {
            assert_eq!(fast.all(name), full.all(name), "{name}");
        }
        // The order of the other fields may differ.
        let fields = |response: &RawResponse| {
            let mut fields: Vec<_> = response.head.lines().map(str::to_owned).collect();
            fields.sort_unstable();
            fields
        };
        assert_eq!(fields(&fast), fields(&full), "{fast:?} {full:?}");
    }
}

#[tokio::test]
async fn heads_with_special_fields_take_the_full_path() {
    let (world, _) = with_known_head("").await;
    for lines in [
        &["connection: close"][..],
        &["connection: keep-alive, x-auth-token"],
        &["connection: te", "te: trailers"],
        &["upgrade: h2c"],
        &["expect: 100-continue"],
        &["if-none-match: \"a\", \"b\""],
        &["cache-control: no-cache"],
        &["cache-control: no-store"],
        &["cache-control: max-age=0, min-fresh=1000"],
        &["range: bytes=0-1"],
        &["content-length: 1"],
        &["transfer-encoding: chunked"],
        &["x-auth-token: another"],
        &["x-project-id: another"],
        &["host: another"],
    ] {
        let mut head = world.head(LIST, lines);
        match lines[0].split_once(": ").unwrap() {
            ("content-length", _) => head += "x",
            ("transfer-encoding", _) => head += "1\r\nx\r\n0\r\n\r\n",
            _ => {}
        }
        for _ in 0..3 {
            RawClient::connect(&world).await.exchange(&head).await;
        }
        assert_eq!(world.fast_path_hits(), 1, "{lines:?}");
    }
    for (replacement, original) in [("HTTP/1.0", "HTTP/1.1"), ("HEAD ", "GET "), ("\r\n", "\n"), ("OPTIONS ", "GET ")] {
        let head = match original {
            "\n" => world.head(LIST, &[]).replace(replacement, original),
            original => world.head(LIST, &[]).replace(original, replacement),
        };
        for _ in 0..3 {
            let mut client = RawClient::connect(&world).await;
            client.send(&head).await;
            client.finish_sending().await;
        }
        assert_eq!(world.fast_path_hits(), 1, "{replacement:?}");
    }
    // Heads with these fields take the fast path.
    for lines in [&["connection: Keep-Alive"][..], &["content-length: 0"], &["cache-control: max-age=60"]] {
        world.warm_head_cache(&world.head(LIST, lines)).await;
    }
}

#[tokio::test]
async fn a_denied_caller_gets_no_stored_response_and_others_do() {
    let (world, known) = with_known_head("").await;
    let other = world.simulator.token(PROJECT);
    let others = head_as(&other, LIST, &[]);
    world.warm_head_cache(&others).await;
    world.simulator.revoke(&world.token);
    // There was no call since then.
    let mut client = RawClient::connect(&world).await;
    assert!(is_hit(&client.exchange(&known).await));
    assert_eq!(RawClient::connect(&world).await.exchange(world.head(OTHER, &[])).await.status(), 401);
    let before = world.fast_path_hits();
    // While the denial is remembered, and afterwards.
    for seconds in [0, 1, 1, 60] {
        world.seconds_pass(seconds);
        let refused = client.exchange(&known).await;
        assert!(refused.status() == 401 && !refused.body.contains("products"), "{refused:?}");
    }
    assert_eq!(world.fast_path_hits(), before);
    assert!(RawClient::connect(&world).await.exchange(&others).await.status() == 200);
    assert_eq!(world.fast_path_hits(), before + 1);
}

#[tokio::test]
async fn lapsed_grants_and_expired_entries_take_the_full_path() {
    // Without renewals: a hit that renews its caller's grant takes the full path, too.
    let lasting = [
        "[cache]\nttl = \"1h\"\n[grants]\nrenew_ahead = \"0s\"\n",
        "[grants]\ngrant_ttl = \"1h\"\nrenew_ahead = \"0s\"\n",
    ];
    for settings in lasting {
        let (world, known) = with_known_head(settings).await;
        let mut client = RawClient::connect(&world).await;
        world.seconds_pass(299);
        assert_eq!(client.exchange(&known).await.status(), 200);
        assert_eq!((world.fast_path_hits(), world.upstream_calls()), (2, 1));
        world.seconds_pass(1);
        let response = client.exchange(&known).await;
        assert!(!response.header("cache-status").contains("; hit; ttl=3"), "{response:?}");
        assert_eq!(world.fast_path_hits(), 2, "{settings}");
        world.simulator.wait_for_requests(2).await;
        // Then the head becomes known again.
        world.warm_head_cache(&known).await;
    }
}

#[tokio::test]
async fn after_a_purge_bypass_mode_or_reload_heads_take_the_full_path() {
    let changes: [(&str, Change); 4] = [
        ("fwd=miss", |world| world.purge()),
        ("fwd=bypass", |world| world.server.gateway().set_mode(Mode::Bypass)),
        ("; hit", |world| drop(world.reload(&on("[cache]\nstale_if_slow = \"3s\"")).unwrap())),
        ("fwd=miss", |world| {
            drop(world.reload(&on("[[operation]]\nname = \"ListProducts\"\nsharing = \"caller\"")).unwrap());
        }),
    ];
    for (result, change) in changes {
        let (world, known) = with_known_head("").await;
        let mut client = RawClient::connect(&world).await;
        client.exchange(&known).await;
        assert_eq!(world.fast_path_hits(), 2);
        change(&world);
        let response = client.exchange(&known).await;
        assert!(response.header("cache-status").contains(result), "{result}: {response:?}");
        assert_eq!(world.fast_path_hits(), 2, "{result}");
        world.server.gateway().set_mode(Mode::Cache);
        world.warm_head_cache(&known).await;
    }
}

#[tokio::test]
async fn a_removed_operation_is_not_answered_from_memory() {
    let zones = "[[operation]]\nname = \"Zones\"\npath = \"/v2/{project_id}/availability-zones\"\nbody = \"json\"\n";
    let world = World::with(&on(zones)).await;
    let known = world.head("/v2/PROJECT/availability-zones", &[]);
    let mut client = RawClient::connect(&world).await;
    world.warm_head_cache(&known).await;
    client.exchange(&known).await;
    world.reload(&on("")).unwrap();
    let response = client.exchange(&known).await;
    assert!(response.status() == 200 && !response.head.contains("; hit"), "{response:?}");
    assert_eq!(world.fast_path_hits(), 2);
}

#[tokio::test]
async fn each_caller_and_project_gets_its_own_response() {
    let world = World::with(&on("[[operation]]\nname = \"ListProducts\"\nsharing = \"caller\"")).await;
    let (narrow, elsewhere) = (world.simulator.token(PROJECT), world.simulator.token("elsewhere"));
    world.simulator.restrict_view(&narrow);
    world.simulator.include_project_in_lists(true);
    let heads = [
        world.head(LIST, &[]),
        head_as(&narrow, LIST, &[]),
        head_as(&elsewhere, &LIST.replace("PROJECT", "elsewhere"), &[]),
    ];
    let mut client = RawClient::connect(&world).await;
    let mut bodies = Vec::new();
    for head in &heads {
        bodies.push(client.exchange(head).await.body);
        world.warm_head_cache(head).await;
    }
    assert_eq!(bodies.iter().collect::<BTreeSet<_>>().len(), 3, "the bodies differ");
    let before = world.fast_path_hits();
    for (head, body) in heads.iter().zip(&bodies).chain(heads.iter().zip(&bodies)) {
        assert_eq!(&client.exchange(head).await.body, body);
    }
    assert_eq!(world.fast_path_hits(), before + 6);
    // The same token for another project is another head, without a grant.
    let theirs = head_as(&elsewhere, LIST, &[]);
    for _ in 0..3 {
        assert_eq!(client.exchange(&theirs).await.status(), 403);
    }
    assert_eq!(world.fast_path_hits(), before + 6);
}

#[tokio::test]
async fn heads_with_other_forwarded_fields_take_the_full_path() {
    let world =
        World::with(&on("[[operation]]\nname = \"ListProducts\"\nsharing = \"caller\"\nforward_headers = [\"x-a\"]"))
            .await;
    let (one, other) = (world.head(LIST, &["x-a: 1"]), world.head(LIST, &["x-a: 2"]));
    world.warm_head_cache(&one).await;
    let before = world.fast_path_hits();
    RawClient::connect(&world).await.exchange(&other).await;
    assert_eq!(world.fast_path_hits(), before);
    world.warm_head_cache(&other).await;
}

#[tokio::test]
async fn an_absolute_target_is_answered_only_on_its_own_address() {
    let simulator = Simulator::start().await.unwrap();
    let setting = |path, value: String| Override { path, value: value.into(), origin: "test".to_owned() };
    let local = |path| setting(path, "127.0.0.1:0".to_owned());
    let overrides = [
        setting(&["upstream", "workspace_url"], simulator.url(Service::Workspace)),
        setting(&["upstream", "appstream_url"], simulator.url(Service::AppStream)),
        setting(&["listen", "proxy"], "0.0.0.0:0".to_owned()),
        setting(&["listen", "insecure_plaintext"], "true".to_owned()),
        local(&["listen", "metrics"]),
        local(&["listen", "admin"]),
    ];
    let config = Config::from_layers("test.toml", "", &overrides).unwrap();
    let world = World::with_config(simulator, &config).await;
    let port = world.server.proxy_address().port();
    let target = format!("http://127.0.0.1:{port}{LIST}");
    let known = world.head(&target, &[]);
    let mut client = RawClient::connect_to(SocketAddr::from(([127, 0, 0, 1], port))).await;
    for _ in 0..3 {
        assert_eq!(client.exchange(&known).await.status(), 200);
    }
    assert_eq!(world.fast_path_hits(), 1);
    let refused = RawClient::connect_to(SocketAddr::from(([127, 0, 0, 2], port))).await.exchange(&known).await;
    assert!(refused.status() >= 400, "{refused:?}");
    assert_eq!((client.exchange(&known).await.status(), world.fast_path_hits()), (200, 2));
}

#[tokio::test]
async fn a_removed_path_prefix_is_no_longer_stripped() {
    let world = World::with(&on("[listen]\npath_prefixes = [\"/there\"]")).await;
    let known = world.head(&format!("/there{LIST}"), &[]);
    world.warm_head_cache(&known).await;
    world.reload(&on("[listen]\npath_prefixes = [\"/here\"]")).unwrap();
    assert_eq!(RawClient::connect(&world).await.exchange(&known).await.status(), 404);
    assert_eq!(world.fast_path_hits(), 1);
}

#[tokio::test]
async fn with_the_fast_path_off_a_repeated_head_is_a_hit() {
    let world = World::with(&with_fast_path(false, "")).await;
    let head = world.head(LIST, &[]);
    let mut client = RawClient::connect(&world).await;
    for result in ["fwd=miss", "; hit", "; hit", "; hit"] {
        let response = client.exchange(&head).await;
        assert!(response.status() == 200 && response.header("cache-status").contains(result), "{response:?}");
    }
    assert_eq!((world.fast_path_hits(), world.upstream_calls()), (0, 1));
}

#[tokio::test]
async fn open_connections_follow_changes_of_the_fast_path_setting() {
    let (world, known) = with_known_head("").await;
    let mut client = RawClient::connect(&world).await;
    client.exchange(&known).await;
    assert_eq!(world.fast_path_hits(), 2);
    // After it is switched on again, the head has to become known again.
    for (is_on, more) in [(false, 0), (true, 3), (false, 0)] {
        let before = world.fast_path_hits();
        let changes = world.reload(&with_fast_path(is_on, "")).unwrap();
        assert_eq!(changes.applied, ["listen.fast_path"]);
        // A head that arrives in two pieces is a hit, too.
        client.send(&known[..30]).await;
        assert!(is_hit(&client.exchange(&known[30..]).await));
        for _ in 0..4 {
            assert!(is_hit(&client.exchange(&known).await));
        }
        assert_eq!(world.fast_path_hits(), before + more, "{is_on}");
    }
    assert_eq!(world.upstream_calls(), 1);
}

#[tokio::test]
async fn fast_path_hits_are_counted_as_other_hits() {
    let (world, known) = with_known_head("").await;
    let figures = |world: &World| {
        let series = [
            "workspace_gateway_requests_total{operation=\"ListProducts\",result=\"hit\",status=\"200\"}",
            "workspace_gateway_request_duration_seconds_count{operation=\"ListProducts\",result=\"hit\"}",
            "workspace_gateway_requests_in_flight",
            "workspace_gateway_connections",
            "workspace_gateway_upstream_requests_total{service=\"workspace\",status=\"200\"}",
        ];
        series.map(|series| world.metric(series))
    };
    let mut client = RawClient::connect(&world).await;
    client.assert_no_response().await;
    assert_eq!((figures(&world), world.fast_path_hits()), ([2.0, 2.0, 0.0, 1.0, 1.0], 1));
    client.exchange(&known).await;
    assert_eq!((figures(&world), world.fast_path_hits()), ([3.0, 3.0, 0.0, 1.0, 1.0], 2));
    by_full_path(&world, 0).await;
    client.assert_no_response().await;
    assert_eq!(figures(&world), [4.0, 4.0, 0.0, 1.0, 1.0]);
}

#[tokio::test]
async fn fast_path_hits_are_logged_as_other_hits() {
    let simulator = Simulator::start().await.unwrap();
    let file = folder("fast-path-lines").join("serve.toml");
    std::fs::write(&file, "[log]\nformat = \"json\"\n[listen]\npath_prefixes = [\"/there\"]\n").unwrap();
    let process = Process::start(&simulator, &file).await;
    let mut client = RawClient::connect_to(process.proxy.strip_prefix("http://").unwrap().parse().unwrap()).await;
    let head = head_as(&simulator.token(PROJECT), &format!("/there{LIST}"), &[]);
    let mut ids = Vec::new();
    for _ in 0..4 {
        ids.push(client.exchange(&head).await.header("x-request-id").to_owned());
    }
    let metrics = Http::new().get(&format!("{}/metrics", process.metrics)).await;
    assert!(metrics.text().contains("workspace_gateway_fast_path_hits_total 2"));
    let (_, log) = process.terminate().await;
    let events = log.lines().map(|line| serde_json::from_str::<serde_json::Value>(line).unwrap());
    let mut lines: Vec<_> = events.filter(|event| event["target"] == "workspace_gateway::access").collect();
    assert_eq!(lines.iter().map(|line| line["request_id"].as_str().unwrap()).skip(1).collect::<Vec<_>>(), ids[1..]);
    for line in &mut lines {
        for name in ["timestamp", "request_id", "ttfb_ms", "total_ms"] {
            assert!(!line[name].is_null(), "{name}");
            line.as_object_mut().unwrap().remove(name);
        }
    }
    assert_eq!(lines[1], lines[2], "by the full path and by the fast path");
    assert_eq!(lines[2], lines[3]);
}
