//! Error responses of the gateway: they have the shape of upstream's errors and a clear status, and no request hangs.

use http::{Method, StatusCode};
use tokio::net::TcpListener;
use workspace_gateway::testing::simulator::Simulator;

use crate::support::{PROJECT, World, send_raw, within};

const LIST: &str = "/v2/PROJECT/products?os_type=Linux";

#[tokio::test]
async fn an_unreachable_upstream_causes_a_502_with_the_reason() {
    let world = World::new().await;
    world.simulator.shut_down().await;
    for path in [LIST, "/v2/PROJECT/desktops"] {
        let reply = world.get(path).await;
        assert_eq!(reply.status(), StatusCode::BAD_GATEWAY);
        let (code, message) = reply.error();
        assert_eq!(code, "APIGW.0201");
        assert!(message.contains("Backend unavailable") && message.contains("refused"), "{message}");
    }
    let reply = world.get(LIST).await;
    assert_eq!(reply.cache_status(), "workspace-gateway; fwd=miss; detail=connect");
}

#[tokio::test]
async fn an_unresolvable_host_causes_a_502_and_does_not_prevent_the_start() {
    let simulator = Simulator::start().await.unwrap();
    let unresolvable = "http://does-not-exist.invalid";
    let world =
        World::with_upstreams(simulator, unresolvable, unresolvable, "[upstream]\nconnect_timeout = \"1s\"").await;
    let ready = world.http.get(&world.metrics_url("/readyz")).await;
    assert_eq!(ready.status(), StatusCode::OK);
    let reply = world.get(LIST).await;
    assert_eq!(reply.status(), StatusCode::BAD_GATEWAY);
    reply.error();
}

#[tokio::test]
async fn a_slow_upstream_causes_a_504() {
    let settings = "[upstream]\nconnect_timeout = \"50ms\"\nfirst_byte_timeout = \"50ms\"\nanswer_timeout = \"1h\"\n\
                    idle_timeout = \"1h\"";
    let world = World::with(settings).await;
    world.simulator.hold();
    let reply = world.get(LIST).await;
    assert_eq!(reply.status(), StatusCode::GATEWAY_TIMEOUT);
    let (_, message) = reply.error();
    assert!(message.contains("Backend timeout") && message.contains("upstream.first_byte_timeout"), "{message}");
    assert_eq!(reply.cache_status(), "workspace-gateway; fwd=miss; detail=first-byte");
}

#[tokio::test]
async fn a_slow_response_body_causes_a_504() {
    let head_and_a_bit = "HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n{\"products\":[";
    let settings =
        "[upstream]\nconnect_timeout = \"200ms\"\nfirst_byte_timeout = \"200ms\"\nanswer_timeout = \"200ms\"";
    let world = World::with_fixed_upstream(head_and_a_bit, settings).await;
    let reply = world.get(LIST).await;
    assert_eq!(reply.status(), StatusCode::GATEWAY_TIMEOUT);
    assert_eq!(reply.cache_status(), "workspace-gateway; fwd=miss; detail=timeout");
}

#[tokio::test]
async fn connect_timeout_includes_the_tls_handshake() {
    // The kernel accepts the connection, and nobody answers the TLS handshake.
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("https://{}", listener.local_addr().unwrap());
    let settings = "[upstream]\nconnect_timeout = \"50ms\"\nanswer_timeout = \"1h\"\nidle_timeout = \"1h\"";
    let world = World::with_upstreams(Simulator::start().await.unwrap(), &url, &url, settings).await;
    for path in [LIST, "/v2/PROJECT/desktops"] {
        let reply = world.get(path).await;
        assert_eq!(reply.status(), StatusCode::BAD_GATEWAY);
        assert!(reply.error().1.contains("not connected within 50ms"), "{reply:?}");
    }
}

#[tokio::test]
async fn a_truncated_response_causes_a_502_and_is_not_stored() {
    let world = World::new().await;
    world.simulator.truncate(true);
    let reply = world.get(LIST).await;
    assert_eq!(reply.status(), StatusCode::BAD_GATEWAY);
    assert!(reply.error().1.contains("incomplete or malformed"));
    world.simulator.truncate(false);
    world.simulator.reset_connections(true);
    let reply = world.get(LIST).await;
    assert_eq!(reply.status(), StatusCode::BAD_GATEWAY);
    assert_eq!(reply.cache_status(), "workspace-gateway; fwd=miss; detail=broken");
    world.simulator.reset_connections(false);
    assert!(world.get(LIST).await.cache_status().contains("fwd=miss"));
}

#[tokio::test]
async fn a_101_that_was_not_requested_causes_a_502() {
    let response = "HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: x\r\n\r\n";
    let world = World::with_fixed_upstream(response, "").await;
    for path in [LIST, "/v2/PROJECT/desktops"] {
        let reply = world.get(path).await;
        assert_eq!(reply.status(), StatusCode::BAD_GATEWAY);
        assert!(reply.error().1.contains("switches protocols"));
    }
}

#[tokio::test]
async fn a_head_above_the_limit_gets_a_431_that_names_the_limit() {
    let world = World::with("[limits]\nmax_head_size = \"16KiB\"").await;
    for name in ["x-auth-token", "x-anything"] {
        let reply = world.http.send(Method::GET, &world.url(LIST), &[(name, &"x".repeat(20_000))], "").await;
        assert_eq!(reply.status(), StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE);
        assert!(reply.error().1.contains("16384 bytes (limits.max_head_size)"));
    }
    let long = format!("/v2/PROJECT/products?product_id={}", "x".repeat(20_000));
    assert_eq!(world.get(&long).await.status(), StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE);
    assert_eq!(world.upstream_calls(), 0);
}

#[tokio::test]
async fn the_lowest_possible_head_limit_still_gets_a_431() {
    let world = World::with("[limits]\nmax_head_size = \"1B\"").await;
    assert_eq!(world.get(LIST).await.status(), StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE);
}

#[tokio::test]
async fn forward_proxy_requests_are_rejected() {
    let world = World::new().await;
    let address = world.server.proxy_address();
    for request in [
        "CONNECT workspace.example:443 HTTP/1.1\r\nHost: workspace.example:443\r\n".to_owned(),
        "GET http://elsewhere.example/v2/p/products HTTP/1.1\r\nHost: elsewhere.example\r\n".to_owned(),
        format!("GET http://{address}.evil.example/v2/p/products HTTP/1.1\r\nHost: {address}\r\n"),
    ] {
        let response = send_raw(address, format!("{request}Connection: close\r\n\r\n")).await;
        assert!(response.starts_with("HTTP/1.1 400 Bad Request\r\n"), "{response}");
        assert!(
            response.contains("\"error_code\":\"APIGW.0201\"") && response.contains("not a forward proxy"),
            "{response}"
        );
    }
    assert_eq!(world.upstream_calls(), 0);

    let token = &world.token;
    let target = format!("http://{address}/v2/{PROJECT}/products");
    let own_address =
        format!("GET {target} HTTP/1.1\r\nHost: {address}\r\nX-Auth-Token: {token}\r\nConnection: close\r\n\r\n");
    let response = send_raw(address, own_address).await;
    assert!(response.starts_with("HTTP/1.1 200 OK\r\n"), "{response}");
}

#[tokio::test]
async fn an_http_1_1_request_needs_exactly_one_host() {
    let world = World::new().await;
    for hosts in ["", "Host: a\r\nHost: b\r\n", "Host: a b/c\r\n", "Host: user@a\r\n"] {
        let request = format!("GET /v2/p/products HTTP/1.1\r\n{hosts}Connection: close\r\n\r\n");
        let response = send_raw(world.server.proxy_address(), request).await;
        assert!(
            response.starts_with("HTTP/1.1 400 ") && response.contains("expected exactly one Host header"),
            "{response}"
        );
    }
    let response = send_raw(world.server.proxy_address(), "GET /v2/p/products HTTP/1.0\r\n\r\n").await;
    assert!(response.starts_with("HTTP/1.0 401 ") || response.starts_with("HTTP/1.1 401 "), "{response}");
    assert_eq!(world.upstream_calls(), 1);
}

#[tokio::test]
async fn malformed_requests_get_a_400_and_the_connection_is_closed() {
    let world = World::new().await;
    for garbage in ["\0\0\0\0\r\n\r\n", "GET /\r\n\r\n", "GET / HTTP/1.1\r\nHost : x\r\n\r\n", "GET / HTTP/9.9\r\n\r\n"]
    {
        let response = within(send_raw(world.server.proxy_address(), garbage)).await;
        assert!(response.is_empty() || response.starts_with("HTTP/1.1 400 "), "{garbage:?}: {response}");
    }
    assert_eq!(world.get(LIST).await.status(), StatusCode::OK);
}

#[tokio::test]
async fn a_response_with_two_framings_is_relayed_completely() {
    let two_framings = "HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 3\r\nTransfer-Encoding: chunked\r\nAge: 500\r\n\
                Cache-Control: max-age=600\r\n\r\nf\r\n{\"products\":[]}\r\n0\r\n\r\n";
    let world = World::with_fixed_upstream(two_framings, "").await;
    for path in [LIST, "/v2/PROJECT/desktops"] {
        let reply = world.get(path).await;
        assert_eq!((reply.status(), reply.text()), (StatusCode::OK, "{\"products\":[]}"), "{path}");
        assert_eq!(reply.header("age"), "500", "the response is not stored, and its age is unchanged");
    }
}

#[tokio::test]
async fn an_http_1_0_response_is_forwarded_as_http_1_1() {
    let response = "HTTP/1.0 200 OK\r\nContent-Length: 15\r\n\r\n{\"products\":[]}";
    let world = World::with_fixed_upstream(response, "").await;
    let request = "GET /v2/p/desktops HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n";
    let response = send_raw(world.server.proxy_address(), request).await;
    assert!(
        response.starts_with("HTTP/1.1 200 OK\r\n") && response.contains("via: 1.0 workspace-gateway-"),
        "{response}"
    );
}

#[tokio::test]
async fn a_request_is_never_forwarded_with_two_framings() {
    let world = World::new().await;
    let token = &world.token;
    let smuggled = format!(
        "POST /v2/{PROJECT}/desktops HTTP/1.1\r\nHost: x\r\nX-Auth-Token: {token}\r\nContent-Length: 4\r\n\
         Transfer-Encoding: chunked\r\n\r\n0\r\n\r\nGET /v2/{PROJECT}/smuggled HTTP/1.1\r\nHost: x\r\n\
         X-Auth-Token: {token}\r\nConnection: close\r\n\r\n"
    );
    send_raw(world.server.proxy_address(), smuggled).await;
    let seen = world.simulator.requests_seen();
    assert!(!seen.iter().any(|seen| seen.target.ends_with("smuggled") && seen.has_body), "{seen:?}");
    for seen in seen {
        assert!(!seen.headers.contains_key("content-length") || !seen.headers.contains_key("transfer-encoding"));
    }
}
