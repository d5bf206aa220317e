//! The headers that the gateway sends upstream, and those that it returns to the client.

use std::collections::BTreeSet;

use std::time::Duration;

use http::{HeaderName, HeaderValue, Method, StatusCode};
use tokio::net::{TcpListener, TcpStream};
use workspace_gateway::testing::catalogue::Service;
use workspace_gateway::testing::clock::Clock;
use workspace_gateway::testing::server::Server;
use workspace_gateway::testing::simulator::Simulator;

use crate::support::{PROJECT, Reply, World, config, without_key};

const LIST: &str = "/v2/PROJECT/products?os_type=Linux";

#[tokio::test]
async fn headers_outside_the_key_are_not_sent_upstream() {
    let world = World::new().await;
    world
        .get_with(
            "/v2/PROJECT/products?offset=0&os_type=%4Cinux",
            &[
                ("x-language", "en-us"),
                ("x-project-id", PROJECT),
                ("accept", "text/html"),
                ("accept-encoding", "gzip"),
                ("accept-language", "de"),
                ("user-agent", "evil/1.0"),
                ("cookie", "a=1"),
                ("x-forwarded-host", "evil.example"),
                ("x-http-method-override", "DELETE"),
                ("if-none-match", "\"x\""),
                ("if-modified-since", "Sun, 22 Nov 2026 12:00:00 GMT"),
                ("x-request-id", "mine"),
                ("via", "1.1 someone"),
            ],
        )
        .await;
    let seen = world.simulator.requests_seen().pop().unwrap();
    assert_eq!(seen.target, format!("/v2/{PROJECT}/products?os_type=Linux"));
    let names: BTreeSet<_> = seen.headers.keys().map(HeaderName::as_str).collect();
    let expected = [
        "accept",
        "accept-encoding",
        "content-type",
        "host",
        "user-agent",
        "via",
        "x-auth-token",
        "x-language",
        "x-request-id",
    ];
    assert_eq!(names, expected.into());
    assert_eq!(seen.headers["accept"], "application/json");
    assert_eq!(seen.headers["accept-encoding"], "identity");
    assert_eq!(seen.headers["x-language"], "en-us");
    assert_eq!(seen.headers["x-auth-token"], world.token.as_str());
    assert_ne!(seen.headers["x-request-id"], "mine");
    assert!(world.simulator.url(Service::Workspace).ends_with(seen.headers["host"].to_str().unwrap()));
}

#[tokio::test]
async fn hop_by_hop_headers_are_removed_in_both_directions() {
    let world = World::new().await;
    for (name, value) in
        [("connection", "x-private"), ("x-private", "1"), ("keep-alive", "timeout=1"), ("x-frame-options", "1")]
    {
        world.simulator.add_header(HeaderName::from_static(name), HeaderValue::from_static(value));
    }
    let relayed = world
        .get_with(
            "/v2/PROJECT/desktops",
            &[("connection", "x-mine"), ("x-mine", "1"), ("te", "deflate"), ("keep-alive", "1"), ("x-other", "1")],
        )
        .await;
    let seen = world.simulator.requests_seen().pop().unwrap();
    for removed in ["x-mine", "te", "keep-alive", "connection"] {
        assert!(!seen.headers.contains_key(removed), "{removed}");
    }
    assert_eq!(seen.headers["x-other"], "1");
    for reply in [relayed, world.get(LIST).await, world.get(LIST).await] {
        assert_eq!(reply.header("x-frame-options"), "1");
        for removed in ["x-private", "keep-alive"] {
            assert!(!reply.headers().contains_key(removed), "{removed} in {reply:?}");
        }
    }
}

#[tokio::test]
async fn via_names_the_gateway_in_both_directions_and_reveals_a_loop() {
    let world = World::new().await;
    let reply = world.get_with("/v2/PROJECT/desktops", &[("via", "1.0 fred")]).await;
    assert!(reply.header("via").starts_with("1.1 workspace-gateway-"));
    let seen = world.simulator.requests_seen().pop().unwrap();
    let via: Vec<_> = seen.headers.get_all("via").iter().map(|via| via.to_str().unwrap()).collect();
    assert_eq!(via[0], "1.0 fred");
    for path in [LIST, "/v2/PROJECT/desktops"] {
        let looped = world.get_with(path, &[("via", &format!("1.0 fred, {}", via[1]))]).await;
        assert_eq!(looped.status(), StatusCode::LOOP_DETECTED);
        looped.error();
    }
    for path in [LIST, LIST] {
        assert!(world.get(path).await.header("via").starts_with("1.1 workspace-gateway-"));
    }
    assert_eq!(world.upstream_calls(), 2);
}

#[tokio::test]
async fn a_loop_through_two_gateways_is_detected() {
    // The first gateway calls the second. The second calls a TCP relay that leads back to the first.
    let relay = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let relay_url = format!("http://{}", relay.local_addr().unwrap());
    let second = Server::start(&config(&relay_url, &relay_url, ""), Clock::System).await.unwrap();
    let second_url = format!("http://{}", second.proxy_address());
    let simulator = Simulator::start().await.unwrap();
    let first = World::with_upstreams(simulator, &second_url, &second_url, "").await;
    let back = first.server.proxy_address();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = relay.accept().await {
            tokio::spawn(async move {
                let mut onward = TcpStream::connect(back).await.unwrap();
                let _ = tokio::io::copy_bidirectional(&mut stream, &mut onward).await;
            });
        }
    });
    for path in [LIST, "/v2/PROJECT/desktops"] {
        assert_eq!(first.get(path).await.status(), StatusCode::LOOP_DETECTED, "{path}");
    }
}

#[tokio::test]
async fn every_response_has_a_request_id_and_a_miss_keeps_upstreams() {
    let world = World::new().await;
    world.simulator.add_header(HeaderName::from_static("x-request-id"), HeaderValue::from_static("from-upstream"));
    assert_eq!(world.get(LIST).await.header("x-request-id"), "from-upstream");
    assert_ne!(world.get(LIST).await.header("x-request-id"), "from-upstream");
    assert_eq!(world.get("/v2/PROJECT/desktops").await.header("x-request-id"), "from-upstream");
    assert_eq!(world.get("/elsewhere").await.header("x-request-id").len(), 32);
}

#[tokio::test]
async fn the_cache_status_of_an_upstream_cache_is_kept() {
    let world = World::new().await;
    world.simulator.add_header(HeaderName::from_static("cache-status"), HeaderValue::from_static("origin; hit"));
    for expected in
        ["workspace-gateway; fwd=miss; fwd-status=200; stored; detail=proved", "workspace-gateway; hit; ttl=300"]
    {
        let reply = world.get(LIST).await;
        let values = reply.headers().get_all("cache-status").iter().map(|value| value.to_str().unwrap());
        let values: Vec<_> = values.map(|value| without_key(value).0).collect();
        assert_eq!(values, ["origin; hit", expected]);
    }
}

#[tokio::test]
async fn tokens_of_any_documented_length_work() {
    let world = World::new().await;
    for length in [32, 5_000, 102_400] {
        let token = world.simulator.token_of_length(PROJECT, length);
        world.clock.advance(Duration::from_secs(1));
        for expected in ["stored", "; hit"] {
            let reply = world.get_as(&token, LIST).await;
            assert!(reply.cache_status().contains(expected), "{length}: {reply:?}");
        }
        let relayed = world.get_as(&token, "/v2/PROJECT/desktops").await;
        assert_eq!(relayed.status(), StatusCode::OK);
    }
}

#[tokio::test]
async fn the_header_name_of_the_token_is_case_insensitive() {
    let world = World::new().await;
    world.get(LIST).await;
    let reply = world.http.send(Method::GET, &world.url(LIST), &[("X-AUTH-token", &world.token)], "").await;
    assert!(reply.cache_status().contains("; hit"));
}

fn present(reply: &Reply, names: &[&'static str]) -> Vec<&'static str> {
    names.iter().copied().filter(|name| reply.headers().contains_key(*name)).collect()
}

#[tokio::test]
async fn a_private_entry_keeps_all_headers_but_those_of_a_single_response() {
    let stored = ["x-own", "location", "x-subject-token"];
    let dropped =
        ["set-cookie", "ratelimit", "ratelimit-policy", "retry-after", "x-apig-mode", "x-named", "x-also-named"];
    let all = [&stored[..], &dropped[..]].concat();
    for (sharing, expected) in [("caller", &stored[..]), ("project", &[])] {
        let world = World::with(&format!("[cache]\nsharing = \"{sharing}\"\nttl = \"1m\"")).await;
        world.simulator.send_etags(true);
        for name in &all {
            world.simulator.add_header(HeaderName::from_static(name), HeaderValue::from_static("1"));
        }
        let cache_control = HeaderValue::from_static("private=\"X-Named\", no-cache=\"x-also-named\"");
        if sharing == "caller" {
            world.simulator.add_header(HeaderName::from_static("cache-control"), cache_control);
        }
        let miss = world.get(LIST).await;
        assert_eq!(present(&miss, &all), all, "a miss returns all of them");
        // The fast path can answer the second request, because its head has come before.
        for _ in 0..2 {
            let hit = world.get(LIST).await;
            assert!(hit.is_hit(), "{hit:?}");
            assert_eq!(present(&hit, &all), expected, "{sharing}");
        }
        // A 304 adds no header that would not have been stored.
        world.seconds_pass(60);
        world.get(LIST).await;
        world.until_metric("workspace_gateway_upstream_calls{kind=\"product-list\",service=\"workspace\"}", 0.0).await;
        let hit = world.get(LIST).await;
        assert!(hit.is_hit() && hit.cache_status().ends_with("ttl=60"), "{hit:?}");
        assert_eq!(present(&hit, &all), expected, "{sharing}, after a 304");
    }
}

#[tokio::test]
async fn qualified_cache_directives_prevent_sharing_and_unqualified_ones_storing() {
    for (sharing, control, is_stored) in [
        ("project", "private=\"x-own\"", false),
        ("caller", "private=\"x-own\"", true),
        ("caller", "private", false),
        ("caller", "no-cache", false),
        ("caller", "no-cache=\"\"", false),
        ("caller", "private=\"x-own\", no-store", false),
    ] {
        let world = World::with(&format!("[cache]\nsharing = \"{sharing}\"")).await;
        world.simulator.add_header(HeaderName::from_static("cache-control"), HeaderValue::from_static(control));
        world.get(LIST).await;
        assert_eq!(world.get(LIST).await.is_hit(), is_stored, "{sharing}, {control}");
    }
}
