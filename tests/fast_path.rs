//! A head that has come before is answered by the fast path, which says what the whole path would say, to the same
//! callers, and counts it alike.

use std::collections::BTreeSet;
use std::net::SocketAddr;

use bytes::Bytes;
use http::{HeaderName, HeaderValue, Method};
use workspace_gateway::testing::catalogue::Service;
use workspace_gateway::testing::config::{Config, Mode, Override};
use workspace_gateway::testing::simulator::Simulator;

use crate::support::line::{Heard, Line, head_as};
use crate::support::process::{Process, folder};
use crate::support::raw::{RawUpstream, says};
use crate::support::{Http, PROJECT, World, with_fast_path, without_key};

const LIST: &str = "/v2/PROJECT/products?os_type=Linux";
const OTHER: &str = "/v2/PROJECT/products?os_type=Windows";

/// Entries and grants that last.
const LASTING: &str = "[cache]\nttl = \"1h\"\n[grants]\ngrant_ttl = \"1h\"\n";

/// These settings with the fast path on, whatever the suite does elsewhere.
fn on(settings: &str) -> String {
    with_fast_path(true, settings)
}

/// What an operator does.
type Change = fn(&World);

/// A world in which a head is known, and that head.
async fn knowing(settings: &str) -> (World, String) {
    let world = World::with(&on(settings)).await;
    let known = world.head(LIST, &[]);
    world.learns(&known).await;
    (world, known)
}

fn is_hit(answer: &Heard) -> bool {
    answer.status() == 200 && answer.header("cache-status").contains("; hit; ttl=300; key=")
}

/// Asks what is known in other words, which takes the whole path.
async fn the_whole_path(world: &World, number: usize) -> Heard {
    let before = world.fast_path_hits();
    let answer = Line::to(world).await.asks(world.head(LIST, &[&format!("x-n: {number}")])).await;
    assert_eq!(world.fast_path_hits(), before);
    answer
}

#[tokio::test]
async fn a_head_that_was_a_hit_is_answered_by_the_fast_path_on_any_connection() {
    let world = World::with(&on("")).await;
    let head = world.head(LIST, &[]);
    let mut line = Line::to(&world).await;
    let mut ids = BTreeSet::new();
    for (result, repeated) in [("fwd=miss", 0), ("; hit", 0), ("; hit", 1), ("; hit", 2)] {
        let answer = line.asks(&head).await;
        assert!(answer.status() == 200 && answer.header("cache-status").contains(result), "{answer:?}");
        assert_eq!(world.fast_path_hits(), repeated, "{result}");
        ids.insert(answer.header("x-request-id").to_owned());
    }
    let elsewhere = Line::to(&world).await.asks(&head).await;
    ids.insert(elsewhere.header("x-request-id").to_owned());
    assert_eq!((world.fast_path_hits(), world.upstream_calls(), ids.len()), (3, 1, 5));
}

#[tokio::test]
async fn both_paths_say_the_same_byte_for_byte() {
    let large = format!("{{\"products\":[{{\"name\":\"{}\"}}]}}", "x".repeat(48 * 1024));
    for (body, seconds) in [(None, 0), (Some("{\"products\":[]}".to_owned()), 1), (Some(large), 299)] {
        let world = World::with(&on(LASTING)).await;
        world.simulator.answer_with(body.clone().map(Bytes::from));
        for value in ["<a>; rel=x", "<b>; rel=y"] {
            world.simulator.add_header(HeaderName::from_static("link"), HeaderValue::from_static(value));
        }
        let known = world.head(LIST, &[]);
        world.learns(&known).await;
        world.seconds_pass(seconds);
        let long = the_whole_path(&world, 0).await;
        let short = Line::to(&world).await.asks(&known).await;
        assert_eq!(world.fast_path_hits(), 2);
        assert_eq!(short.apart_from_id(), long.apart_from_id());
        assert_eq!(short.header("age"), seconds.to_string());
        let status = without_key(short.header("cache-status"));
        assert_eq!(status.0, format!("workspace-gateway; hit; ttl={}", 3600 - seconds));
        assert_eq!(status.1.map(|key| key.len()), Some(16));
        assert!(body.is_none_or(|body| body == short.body) && short.body.contains("products"));
    }
}

#[tokio::test]
async fn both_paths_say_the_same_of_what_other_caches_have_said_and_where_there_is_no_date() {
    for fields in ["cache-status: far; hit\r\ncache-status: near; fwd=miss\r\n", "age: 7\r\nx-request-id: theirs\r\n"] {
        let answer = format!("HTTP/1.1 200 OK\r\n{fields}content-length: 15\r\n\r\n{{\"products\":[]}}");
        let upstream = RawUpstream::start([says(answer)]).await;
        let world = World::before(Simulator::start().await.unwrap(), upstream.url(), upstream.url(), &on("")).await;
        let known = world.head(LIST, &[]);
        world.learns(&known).await;
        let (long, short) = (the_whole_path(&world, 0).await, Line::to(&world).await.asks(&known).await);
        assert_eq!(world.fast_path_hits(), 2);
        let (long, short) = (long.apart_from_id(), short.apart_from_id());
        for name in ["cache-status", "age", "content-length", "x-request-id", "content-type"] {
            assert_eq!(short.all(name), long.all(name), "{name}");
        }
        // All else in any order.
        let fields = |answer: &Heard| {
            let mut fields: Vec<_> = answer.head.lines().map(str::to_owned).collect();
            fields.sort_unstable();
            fields
        };
        assert_eq!(fields(&short), fields(&long), "{short:?} {long:?}");
    }
}

#[tokio::test]
async fn what_says_more_than_a_question_takes_the_whole_path_each_time() {
    let (world, _) = knowing("").await;
    for lines in [
        &["connection: close"][..],
        &["connection: keep-alive, x-auth-token"],
        &["connection: te", "te: trailers"],
        &["upgrade: h2c"],
        &["expect: 100-continue"],
        &["if-none-match: *"],
        &["if-none-match: \"none\""],
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
            Line::to(&world).await.asks(&head).await;
        }
        assert_eq!(world.fast_path_hits(), 1, "{lines:?}");
    }
    for (instead, of) in [("HTTP/1.0", "HTTP/1.1"), ("HEAD ", "GET "), ("\r\n", "\n"), ("OPTIONS ", "GET ")] {
        let head = match of {
            "\n" => world.head(LIST, &[]).replace(instead, of),
            of => world.head(LIST, &[]).replace(of, instead),
        };
        for _ in 0..3 {
            let mut line = Line::to(&world).await;
            line.says(&head).await;
            line.says_no_more().await;
        }
        assert_eq!(world.fast_path_hits(), 1, "{instead:?}");
    }
    // These say nothing more.
    for lines in [&["connection: Keep-Alive"][..], &["content-length: 0"], &["cache-control: max-age=60"]] {
        world.learns(&world.head(LIST, lines)).await;
    }
}

#[tokio::test]
async fn http2_has_no_fast_path() {
    let (world, _) = knowing("").await;
    let http = Http::http2();
    for _ in 0..3 {
        let hit = http.send(Method::GET, &world.url(LIST), &[("x-auth-token", &world.token)], "").await;
        assert!(hit.is_hit());
    }
    assert_eq!(world.fast_path_hits(), 1);
}

#[tokio::test]
async fn whoever_upstream_denies_is_shown_nothing_and_others_are() {
    let (world, known) = knowing("").await;
    let other = world.simulator.token(PROJECT);
    let others = head_as(&other, LIST, &[]);
    world.learns(&others).await;
    world.simulator.revoke(&world.token);
    // Upstream has not been asked since.
    let mut line = Line::to(&world).await;
    assert!(is_hit(&line.asks(&known).await));
    assert_eq!(Line::to(&world).await.asks(world.head(OTHER, &[])).await.status(), 401);
    let before = world.fast_path_hits();
    // As long as the refusal is remembered, and then.
    for seconds in [0, 1, 1, 60] {
        world.seconds_pass(seconds);
        let refused = line.asks(&known).await;
        assert!(refused.status() == 401 && !refused.body.contains("products"), "{refused:?}");
    }
    assert_eq!(world.fast_path_hits(), before);
    assert!(Line::to(&world).await.asks(&others).await.status() == 200);
    assert_eq!(world.fast_path_hits(), before + 1);
}

#[tokio::test]
async fn a_grant_that_has_lapsed_and_an_entry_that_has_expired_end_the_fast_path() {
    let lasting = ["[cache]\nttl = \"1h\"\n", "[grants]\ngrant_ttl = \"1h\"\n"];
    for settings in lasting {
        let (world, known) = knowing(settings).await;
        let mut line = Line::to(&world).await;
        world.seconds_pass(299);
        assert_eq!(line.asks(&known).await.status(), 200);
        assert_eq!((world.fast_path_hits(), world.upstream_calls()), (2, 1));
        world.seconds_pass(1);
        let answer = line.asks(&known).await;
        assert!(!answer.header("cache-status").contains("; hit; ttl=3"), "{answer:?}");
        assert_eq!(world.fast_path_hits(), 2, "{settings}");
        world.simulator.arrived(2).await;
        // Then it begins anew.
        world.learns(&known).await;
    }
}

#[tokio::test]
async fn a_purge_bypassing_and_other_settings_end_the_fast_path() {
    let changes: [(&str, Change); 4] = [
        ("fwd=miss", |world| world.purge()),
        ("fwd=bypass", |world| world.server.gateway().set_mode(Mode::Bypass)),
        ("; hit", |world| drop(world.reload(&on("[cache]\nstale_if_slow = \"3s\"")).unwrap())),
        ("fwd=miss", |world| {
            drop(world.reload(&on("[[operation]]\nname = \"ListProducts\"\nsharing = \"caller\"")).unwrap());
        }),
    ];
    for (result, change) in changes {
        let (world, known) = knowing("").await;
        let mut line = Line::to(&world).await;
        line.asks(&known).await;
        assert_eq!(world.fast_path_hits(), 2);
        change(&world);
        let answer = line.asks(&known).await;
        assert!(answer.header("cache-status").contains(result), "{result}: {answer:?}");
        assert_eq!(world.fast_path_hits(), 2, "{result}");
        world.server.gateway().set_mode(Mode::Cache);
        world.learns(&known).await;
    }
}

#[tokio::test]
async fn an_operation_that_is_no_more_is_not_answered() {
    let zones = "[[operation]]\nname = \"Zones\"\npath = \"/v2/{project_id}/availability-zones\"\nbody = \"json\"\n";
    let world = World::with(&on(zones)).await;
    let known = world.head("/v2/PROJECT/availability-zones", &[]);
    let mut line = Line::to(&world).await;
    world.learns(&known).await;
    line.asks(&known).await;
    world.reload(&on("")).unwrap();
    let answer = line.asks(&known).await;
    assert!(answer.status() == 200 && !answer.head.contains("; hit"), "{answer:?}");
    assert_eq!(world.fast_path_hits(), 2);
}

#[tokio::test]
async fn each_caller_and_project_has_its_own_answer() {
    let world = World::with(&on("[[operation]]\nname = \"ListProducts\"\nsharing = \"caller\"")).await;
    let (narrow, elsewhere) = (world.simulator.token(PROJECT), world.simulator.token("elsewhere"));
    world.simulator.views_differ(&narrow);
    world.simulator.name_projects(true);
    let heads = [
        world.head(LIST, &[]),
        head_as(&narrow, LIST, &[]),
        head_as(&elsewhere, &LIST.replace("PROJECT", "elsewhere"), &[]),
    ];
    let mut line = Line::to(&world).await;
    let mut bodies = Vec::new();
    for head in &heads {
        bodies.push(line.asks(head).await.body);
        world.learns(head).await;
    }
    assert_eq!(bodies.iter().collect::<BTreeSet<_>>().len(), 3, "they can be told apart");
    let before = world.fast_path_hits();
    for (head, body) in heads.iter().zip(&bodies).chain(heads.iter().zip(&bodies)) {
        assert_eq!(&line.asks(head).await.body, body);
    }
    assert_eq!(world.fast_path_hits(), before + 6);
    // Another project with the same token is another head, and nobody's.
    let theirs = head_as(&elsewhere, LIST, &[]);
    for _ in 0..3 {
        assert_eq!(line.asks(&theirs).await.status(), 403);
    }
    assert_eq!(world.fast_path_hits(), before + 6);
}

#[tokio::test]
async fn headers_that_are_sent_on_make_other_heads() {
    let world =
        World::with(&on("[[operation]]\nname = \"ListProducts\"\nsharing = \"caller\"\nforward_headers = [\"x-a\"]"))
            .await;
    let (one, other) = (world.head(LIST, &["x-a: 1"]), world.head(LIST, &["x-a: 2"]));
    world.learns(&one).await;
    let before = world.fast_path_hits();
    Line::to(&world).await.asks(&other).await;
    assert_eq!(world.fast_path_hits(), before);
    world.learns(&other).await;
}

#[tokio::test]
async fn an_address_by_which_a_target_is_not_ours_does_not_answer_it() {
    let simulator = Simulator::start().await.unwrap();
    let given = |path, value: String| Override { path, value, origin: "test".to_owned() };
    let local = |path| given(path, "127.0.0.1:0".to_owned());
    let overrides = [
        given(&["upstream", "workspace_url"], simulator.url(Service::Workspace)),
        given(&["upstream", "appstream_url"], simulator.url(Service::AppStream)),
        given(&["listen", "proxy"], "0.0.0.0:0".to_owned()),
        given(&["listen", "insecure_plaintext"], "true".to_owned()),
        local(&["listen", "metrics"]),
        local(&["listen", "admin"]),
    ];
    let config = Config::from_layers("test.toml", "", &overrides).unwrap();
    let world = World::configured(simulator, &config).await;
    let port = world.server.proxy_address().port();
    let target = format!("http://127.0.0.1:{port}{LIST}");
    let known = world.head(&target, &[]);
    let mut ours = Line::at(SocketAddr::from(([127, 0, 0, 1], port))).await;
    for _ in 0..3 {
        assert_eq!(ours.asks(&known).await.status(), 200);
    }
    assert_eq!(world.fast_path_hits(), 1);
    let refused = Line::at(SocketAddr::from(([127, 0, 0, 2], port))).await.asks(&known).await;
    assert!(refused.status() >= 400, "{refused:?}");
    assert_eq!((ours.asks(&known).await.status(), world.fast_path_hits()), (200, 2));
}

#[tokio::test]
async fn a_base_urls_path_is_taken_off_only_while_it_is_one() {
    let world = World::with(&on("[listen]\npath_prefixes = [\"/there\"]")).await;
    let known = world.head(&format!("/there{LIST}"), &[]);
    world.learns(&known).await;
    world.reload(&on("[listen]\npath_prefixes = [\"/here\"]")).unwrap();
    assert_eq!(Line::to(&world).await.asks(&known).await.status(), 404);
    assert_eq!(world.fast_path_hits(), 1);
}

#[tokio::test]
async fn switched_off_it_answers_nothing_and_a_repeated_head_is_a_hit() {
    let world = World::with(&with_fast_path(false, "")).await;
    let head = world.head(LIST, &[]);
    let mut line = Line::to(&world).await;
    for result in ["fwd=miss", "; hit", "; hit", "; hit"] {
        let answer = line.asks(&head).await;
        assert!(answer.status() == 200 && answer.header("cache-status").contains(result), "{answer:?}");
    }
    assert_eq!((world.fast_path_hits(), world.upstream_calls()), (0, 1));
}

#[tokio::test]
async fn open_connections_follow_when_it_is_switched() {
    let (world, known) = knowing("").await;
    let mut line = Line::to(&world).await;
    line.asks(&known).await;
    assert_eq!(world.fast_path_hits(), 2);
    // Switched on again, it has to read the head once more.
    for (is_on, more) in [(false, 0), (true, 3), (false, 0)] {
        let before = world.fast_path_hits();
        let changes = world.reload(&with_fast_path(is_on, "")).unwrap();
        assert_eq!(changes.applied, ["listen.fast_path"]);
        // A head in two pieces is followed to its end in between.
        line.says(&known[..30]).await;
        assert!(is_hit(&line.asks(&known[30..]).await));
        for _ in 0..4 {
            assert!(is_hit(&line.asks(&known).await));
        }
        assert_eq!(world.fast_path_hits(), before + more, "{is_on}");
    }
    assert_eq!(world.upstream_calls(), 1);
}

#[tokio::test]
async fn it_is_counted_as_any_hit() {
    let (world, known) = knowing("").await;
    let shown = |world: &World| {
        let series = [
            "workspace_gateway_requests_total{operation=\"ListProducts\",result=\"hit\",status=\"200\"}",
            "workspace_gateway_request_duration_seconds_count{operation=\"ListProducts\",result=\"hit\"}",
            "workspace_gateway_requests_in_flight",
            "workspace_gateway_connections",
            "workspace_gateway_upstream_requests_total{service=\"workspace\",status=\"200\"}",
        ];
        series.map(|series| world.metric(series))
    };
    let mut line = Line::to(&world).await;
    line.hears_nothing().await;
    assert_eq!((shown(&world), world.fast_path_hits()), ([2.0, 2.0, 0.0, 1.0, 1.0], 1));
    line.asks(&known).await;
    assert_eq!((shown(&world), world.fast_path_hits()), ([3.0, 3.0, 0.0, 1.0, 1.0], 2));
    the_whole_path(&world, 0).await;
    line.hears_nothing().await;
    assert_eq!(shown(&world), [4.0, 4.0, 0.0, 1.0, 1.0]);
}

#[tokio::test]
async fn it_is_logged_as_any_hit() {
    let simulator = Simulator::start().await.unwrap();
    let file = folder("fast-path-lines").join("serve.toml");
    std::fs::write(&file, "[log]\nformat = \"json\"\n[listen]\npath_prefixes = [\"/there\"]\n").unwrap();
    let process = Process::start(&simulator, &file).await;
    let mut line = Line::at(process.proxy.strip_prefix("http://").unwrap().parse().unwrap()).await;
    let head = head_as(&simulator.token(PROJECT), &format!("/there{LIST}"), &[]);
    let mut ids = Vec::new();
    for _ in 0..4 {
        ids.push(line.asks(&head).await.header("x-request-id").to_owned());
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
    assert_eq!(lines[1], lines[2], "by the whole path and the fast path");
    assert_eq!(lines[2], lines[3]);
}
