//! What is answered from memory, for how long, and what is never stored.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderName, HeaderValue, Method, StatusCode};
use workspace_gateway::testing::clock::Clock;

use crate::support::{PROJECT, WAIT_FOR_UPSTREAM, World, within};

const LIST: &str = "/v2/PROJECT/products?os_type=Linux";

#[tokio::test]
async fn stored_responses_equal_upstreams_byte_for_byte() {
    let world = World::new().await;
    for (path, calls) in
        [("/v2/PROJECT/products", 1), ("/v2/PROJECT/products/sharer?is_gpu=0", 2), ("/v1/PROJECT/product", 3)]
    {
        let first = world.get(path).await;
        assert_eq!(first.status(), StatusCode::OK);
        assert!(first.products() > 0, "{path}");
        assert_eq!(first.cache_status(), "workspace-gateway; fwd=miss; fwd-status=200; stored; detail=proved");
        let second = world.get(path).await;
        assert_eq!(second.cache_status(), "workspace-gateway; hit; ttl=300");
        assert_eq!(second.body(), first.body());
        assert_eq!(second.header("content-type"), first.header("content-type"));
        assert_eq!(world.upstream_calls(), calls);
    }
    // The same bytes that upstream sends without the gateway.
    let direct = world
        .http
        .send(
            Method::GET,
            &(world.simulator.url(workspace_gateway::testing::catalogue::Service::Workspace)
                + &format!("/v2/{PROJECT}/products")),
            &[("x-auth-token", &world.token)],
            "",
        )
        .await;
    assert_eq!(world.get("/v2/PROJECT/products").await.body(), direct.body());
}

#[tokio::test]
async fn an_entry_ages_and_expires() {
    let settings = format!("[[operation]]\nname = \"ListProducts\"\nttl = \"2m\"\n[cache]\n{WAIT_FOR_UPSTREAM}");
    let world = World::with(&settings).await;
    world.get(LIST).await;
    world.clock.advance(Duration::from_secs(119));
    let old = world.get(LIST).await;
    assert_eq!((old.header("age"), old.cache_status()), ("119", "workspace-gateway; hit; ttl=1"));
    world.simulator.change_catalogue();
    world.clock.advance(Duration::from_secs(1));
    let new = world.get(LIST).await;
    assert_eq!(new.cache_status(), "workspace-gateway; fwd=stale; fwd-status=200; stored; detail=expired");
    assert_eq!(new.header("age"), "0");
    assert_ne!(new.body(), old.body());
    assert_eq!(world.get(LIST).await.body(), new.body());
    assert_eq!(world.upstream_calls(), 2);
}

#[tokio::test]
async fn equivalent_queries_share_an_entry_and_different_queries_do_not() {
    let world = World::new().await;
    let first = world.get("/v2/PROJECT/products?os_type=Linux&architecture=x86").await;
    for same in [
        "/v2/PROJECT/products?architecture=x86&os_type=Linux",
        "/v2/PROJECT/products?limit=100&offset=0&os_type=Linux&architecture=x86",
        "/v2/PROJECT/products?%6Fs_type=%4cinux&architecture=x86",
    ] {
        assert_eq!(world.get(same).await.body(), first.body());
    }
    assert_eq!(world.upstream_calls(), 1);
    for (calls, other) in [
        (2, "/v2/PROJECT/products?architecture=x86&os_type=Windows"),
        (3, "/v2/PROJECT/products?architecture=x86&os_type=Linux&limit=99"),
        (4, "/v2/PROJECT/products?architecture=x86&os_type=linux"),
        (5, "/v2/PROJECT/products?architecture=x86&os_type=Linux&status=normal"),
        (6, "/v2/PROJECT/products/sharer?architecture=x86&os_type=Linux"),
    ] {
        world.get(other).await;
        assert_eq!(world.upstream_calls(), calls, "{other}");
    }
}

#[tokio::test]
async fn keyed_headers_are_part_of_the_cache_key() {
    let world = World::new().await;
    let chinese = world.get_with(LIST, &[("x-language", "zh-cn")]).await;
    let english = world.get_with(LIST, &[("X-Language", "en-us")]).await;
    assert_ne!(chinese.body(), english.body());
    assert_eq!(world.get_with(LIST, &[("x-language", "zh-cn")]).await.body(), chinese.body());
    assert_eq!(world.upstream_calls(), 2);
}

#[tokio::test]
async fn a_denied_caller_gets_upstreams_error_and_no_stored_response() {
    let world = World::new().await;
    world.get(LIST).await;
    let stranger = world.simulator.token("another-project");
    let denied = world.simulator.token(PROJECT);
    world.simulator.deny(&denied);
    let expired = world.simulator.token(PROJECT);
    world.simulator.expire(&expired);
    for (calls, (token, status, code)) in [
        ("no-token-of-anyone", StatusCode::UNAUTHORIZED, "APIGW.0301"),
        (&stranger, StatusCode::FORBIDDEN, "WKS.00081102"),
        (&denied, StatusCode::FORBIDDEN, "APIGW.0302"),
        (&expired, StatusCode::UNAUTHORIZED, "APIGW.0301"),
    ]
    .into_iter()
    .enumerate()
    {
        let refused = world.get_as(token, LIST).await;
        assert_eq!((refused.status(), refused.json()["error_code"].as_str()), (status, Some(code)));
        assert_eq!(refused.products(), 0);
        assert!(refused.cache_status().contains("fwd-status=4") && refused.cache_status().ends_with("detail=denied"));
        assert_eq!(world.upstream_calls(), 2 + calls, "each request is sent upstream");
    }
}

#[tokio::test]
async fn a_head_request_is_answered_from_a_stored_get() {
    let world = World::new().await;
    let head = |world: &World| {
        let (http, url, token) = (world.http.clone(), world.url(LIST), world.token.clone());
        async move { http.send(Method::HEAD, &url, &[("x-auth-token", &token)], "").await }
    };
    let cold = head(&world).await;
    assert_eq!((cold.status(), cold.body().len()), (StatusCode::OK, 0));
    assert!(cold.cache_status().contains("stored"));
    assert_eq!(world.simulator.requests_seen()[0].method, Method::GET);

    let full = world.get(LIST).await;
    assert!(full.cache_status().contains("; hit"));
    let warm = head(&world).await;
    assert!(warm.cache_status().contains("; hit"));
    for reply in [&cold, &warm] {
        assert_eq!(reply.header("content-length"), full.body().len().to_string());
    }
    assert_eq!(world.upstream_calls(), 1);
}

#[tokio::test]
async fn only_product_lists_are_stored() {
    for (body, detail) in [
        ("<html>maintenance</html>", "not-json"),
        (r#"{"error_code":"WKS.00211401","error_msg":"x"}"#, "not-products"),
        (r#"{"total_count":0}"#, "not-products"),
        (r#"["products"]"#, "not-json"),
        ("", "not-json"),
    ] {
        let world = World::new().await;
        world.simulator.set_list_body(Some(Bytes::from_static(body.as_bytes())));
        for calls in 1..=2 {
            let reply = world.get(LIST).await;
            assert_eq!((reply.status(), reply.text()), (StatusCode::OK, body), "relayed unchanged");
            assert!(reply.cache_status().ends_with(&format!("detail={detail}")), "{reply:?}");
            assert_eq!(world.upstream_calls(), calls);
        }
    }
}

#[tokio::test]
async fn an_empty_product_list_is_stored() {
    let world = World::new().await;
    for _ in 0..2 {
        let page = world.get("/v2/PROJECT/products?offset=5000").await;
        assert_eq!((page.status(), page.products()), (StatusCode::OK, 0));
    }
    assert_eq!(world.upstream_calls(), 1);
}

#[tokio::test]
async fn errors_are_forwarded_and_not_stored() {
    let world = World::new().await;
    for status in [400, 404, 500, 503] {
        world.simulator.fail_with(Some(StatusCode::from_u16(status).unwrap()));
        let reply = world.get(LIST).await;
        assert_eq!(reply.status().as_u16(), status);
        assert!(reply.json()["error_code"].is_string());
    }
    world.simulator.fail_with(None);
    world.simulator.throttle(Some(0));
    let throttled = world.get(LIST).await;
    assert_eq!((throttled.status().as_u16(), throttled.json()["error_code"].as_str()), (429, Some("APIGW.0308")));
    world.simulator.throttle(None);
    assert!(world.get(LIST).await.cache_status().contains("stored"));
}

#[tokio::test]
async fn upstream_headers_can_prevent_storing() {
    for (name, value, detail) in [
        ("cache-control", "no-store", "cache-directives"),
        ("cache-control", "max-age=60, private", "cache-directives"),
        ("cache-control", "max-age=60, a=\"", "cache-directives"),
        ("pragma", "no-cache", "cache-directives"),
        ("vary", "X-Auth-Token, Cookie", "vary"),
        ("age", "old", "bad-age"),
    ] {
        let world = World::new().await;
        world.simulator.add_header(HeaderName::from_static(name), HeaderValue::from_static(value));
        for calls in 1..=2 {
            let reply = world.get(LIST).await;
            assert!(reply.cache_status().ends_with(&format!("detail={detail}")), "{reply:?}");
            assert_eq!(reply.header(name), value, "relayed unchanged");
            assert_eq!(world.upstream_calls(), calls);
        }
    }
}

#[tokio::test]
async fn a_response_that_varies_on_keyed_headers_is_stored() {
    for vary in ["Accept-Encoding", "x-language, accept"] {
        let world = World::new().await;
        world.simulator.add_header(HeaderName::from_static("vary"), HeaderValue::from_static(vary));
        assert!(world.get(LIST).await.cache_status().contains("; stored"), "{vary}");
    }
}

#[tokio::test]
async fn the_age_from_another_cache_counts() {
    let world = World::with(&format!("[cache]\n{WAIT_FOR_UPSTREAM}")).await;
    world.simulator.add_header(HeaderName::from_static("age"), HeaderValue::from_static("290"));
    assert_eq!(world.get(LIST).await.header("age"), "290");
    world.clock.advance(Duration::from_secs(9));
    assert_eq!(world.get(LIST).await.cache_status(), "workspace-gateway; hit; ttl=1");
    world.clock.advance(Duration::from_secs(1));
    assert!(world.get(LIST).await.cache_status().contains("fwd=stale"));
}

#[tokio::test]
async fn time_spent_waiting_for_upstream_counts_as_age() {
    let world = Arc::new(World::new().await);
    world.simulator.hold();
    let pending = tokio::spawn({
        let world = Arc::clone(&world);
        async move { world.get(LIST).await }
    });
    within(world.simulator.wait_for_requests(1)).await;
    world.clock.advance(Duration::from_secs(20));
    world.simulator.release();
    assert_eq!(within(pending).await.unwrap().header("age"), "20");
    let hit = world.get(LIST).await;
    assert_eq!((hit.header("age"), hit.cache_status()), ("20", "workspace-gateway; hit; ttl=280"));
}

#[tokio::test]
async fn a_response_without_date_gets_the_time_of_receipt() {
    let undated = "HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 15\r\n\r\n{\"products\":[]}";
    let world = World::with_fixed_upstream(undated, "").await;
    // The gateway's clock differs from the system time, which the HTTP library would use for Date.
    world.clock.advance(Duration::from_secs(5000));
    let now = httpdate::fmt_http_date(Clock::Manual(world.clock.clone()).date());
    let miss = world.get(LIST).await;
    assert_eq!([miss.header("date"), world.get("/nowhere").await.header("date")], [now.as_str(); 2]);
    world.clock.advance(Duration::from_secs(100));
    let hit = world.get(LIST).await;
    assert_eq!((hit.header("age"), hit.header("date")), ("100", miss.header("date")));
}

#[tokio::test]
async fn set_cookie_and_request_ids_are_not_stored() {
    let world = World::new().await;
    world.simulator.add_header(HeaderName::from_static("set-cookie"), HeaderValue::from_static("a=1"));
    let miss = world.get(LIST).await;
    let hit = world.get(LIST).await;
    assert_eq!(miss.header("set-cookie"), "a=1");
    assert!(!hit.headers().contains_key("set-cookie"));
    assert_ne!(miss.header("x-request-id"), hit.header("x-request-id"));
    assert_ne!(hit.header("x-request-id"), world.get(LIST).await.header("x-request-id"));
}

#[tokio::test]
async fn the_cache_is_limited_by_bytes() {
    let world = World::with("[cache]\nmax_size = \"200KiB\"\nmax_body_size = \"200KiB\"").await;
    for offset in 0..50 {
        world.get(&format!("/v2/PROJECT/products?limit=20&offset={offset}")).await;
        assert!(world.metric("workspace_gateway_entries_bytes") <= 200.0 * 1024.0);
    }
    assert!(world.metric("workspace_gateway_entries") > 0.0);
    assert!(world.metric("workspace_gateway_evictions_total{cause=\"size\"}") > 0.0);
}

#[tokio::test]
async fn a_response_larger_than_max_body_size_is_streamed() {
    let world = World::with("[cache]\nmax_body_size = \"1KiB\"").await;
    for _ in 0..2 {
        let reply = world.get(LIST).await;
        assert!(reply.body().len() > 1024 && reply.products() > 0);
        assert_eq!(reply.cache_status(), "workspace-gateway; fwd=bypass; detail=too-large");
    }
    assert_eq!(world.metric("workspace_gateway_bypasses_total{operation=\"ListProducts\",reason=\"too-large\"}"), 2.0);
}

#[tokio::test]
async fn a_chunked_response_is_limited_by_max_body_size() {
    let chunked = "HTTP/1.1 404 No\r\nConnection: close\r\nTransfer-Encoding: chunked\r\n\r\n10\r\n{\"error_code\":\"a\r\n2\r\n\"}\r\n0\r\n\r\n";
    let world = World::with_fixed_upstream(chunked, "[cache]\nmax_body_size = \"16B\"").await;
    let reply = world.get(LIST).await;
    assert_eq!((reply.status(), reply.text()), (StatusCode::NOT_FOUND, "{\"error_code\":\"a\"}"));
    assert_eq!(reply.cache_status(), "workspace-gateway; fwd=bypass; detail=too-large");
}

#[tokio::test]
async fn an_operations_ttl_applies_to_that_operation_only() {
    let world = World::with("[[operation]]\nname = \"ListSharerProducts\"\nttl = \"1ms\"").await;
    world.get(LIST).await;
    assert!(world.get(LIST).await.cache_status().contains("; hit"));
}
