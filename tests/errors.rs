//! What the gateway says when something goes wrong: upstream's own shape, a clear status, no hang.

use http::{Method, StatusCode};
use tokio::net::TcpListener;
use workspace_gateway::testing::simulator::Simulator;

use crate::support::{PROJECT, World, raw, within};

const LIST: &str = "/v2/PROJECT/products?os_type=Linux";

#[tokio::test]
async fn an_unreachable_upstream_is_a_502_that_says_so() {
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
async fn a_host_that_cannot_be_resolved_is_a_502_and_no_reason_not_to_start() {
    let simulator = Simulator::start().await.unwrap();
    let nowhere = "http://does-not-exist.invalid";
    let world = World::before(simulator, nowhere, nowhere, "[upstream]\nconnect_timeout = \"1s\"").await;
    let ready = world.http.get(&world.metrics_url("/readyz")).await;
    assert_eq!(ready.status(), StatusCode::OK);
    let reply = world.get(LIST).await;
    assert_eq!(reply.status(), StatusCode::BAD_GATEWAY);
    reply.error();
}

#[tokio::test]
async fn an_upstream_that_is_too_slow_is_a_504() {
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
async fn an_answer_whose_body_is_too_slow_is_a_504() {
    let head_and_a_bit = "HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n{\"products\":[";
    let settings =
        "[upstream]\nconnect_timeout = \"200ms\"\nfirst_byte_timeout = \"200ms\"\nanswer_timeout = \"200ms\"";
    let world = World::before_one_that_says(head_and_a_bit, settings).await;
    let reply = world.get(LIST).await;
    assert_eq!(reply.status(), StatusCode::GATEWAY_TIMEOUT);
    assert_eq!(reply.cache_status(), "workspace-gateway; fwd=miss; detail=timeout");
}

#[tokio::test]
async fn connecting_is_limited_with_tls_included() {
    // Connected to by the system, and never greeted by anyone.
    let mute = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("https://{}", mute.local_addr().unwrap());
    let settings = "[upstream]\nconnect_timeout = \"50ms\"\nanswer_timeout = \"1h\"\nidle_timeout = \"1h\"";
    let world = World::before(Simulator::start().await.unwrap(), &url, &url, settings).await;
    for path in [LIST, "/v2/PROJECT/desktops"] {
        let reply = world.get(path).await;
        assert_eq!(reply.status(), StatusCode::BAD_GATEWAY);
        assert!(reply.error().1.contains("not connected within 50ms"), "{reply:?}");
    }
}

#[tokio::test]
async fn an_answer_that_breaks_off_is_a_502_and_not_kept() {
    let world = World::new().await;
    world.simulator.truncate(true);
    let reply = world.get(LIST).await;
    assert_eq!(reply.status(), StatusCode::BAD_GATEWAY);
    assert!(reply.error().1.contains("broke off"));
    world.simulator.truncate(false);
    world.simulator.reset_connection(true);
    let reply = world.get(LIST).await;
    assert_eq!(reply.status(), StatusCode::BAD_GATEWAY);
    assert_eq!(reply.cache_status(), "workspace-gateway; fwd=miss; detail=broken");
    world.simulator.reset_connection(false);
    assert!(world.get(LIST).await.cache_status().contains("fwd=miss"));
}

#[tokio::test]
async fn an_upstream_that_switches_protocols_unasked_is_a_502() {
    let answer = "HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: x\r\n\r\n";
    let world = World::before_one_that_says(answer, "").await;
    for path in [LIST, "/v2/PROJECT/desktops"] {
        let reply = world.get(path).await;
        assert_eq!(reply.status(), StatusCode::BAD_GATEWAY);
        assert!(reply.error().1.contains("switches protocols"));
    }
}

#[tokio::test]
async fn a_head_above_the_limit_is_a_431_that_names_it() {
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
async fn however_low_the_limit_it_is_answered_for() {
    let world = World::with("[limits]\nmax_head_size = \"1B\"").await;
    assert_eq!(world.get(LIST).await.status(), StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE);
}

#[tokio::test]
async fn a_forward_proxy_is_not_offered() {
    let world = World::new().await;
    let address = world.server.proxy_address();
    for request in [
        "CONNECT workspace.example:443 HTTP/1.1\r\nHost: workspace.example:443\r\n".to_owned(),
        "GET http://elsewhere.example/v2/p/products HTTP/1.1\r\nHost: elsewhere.example\r\n".to_owned(),
        format!("GET http://{address}.evil.example/v2/p/products HTTP/1.1\r\nHost: {address}\r\n"),
    ] {
        let answer = raw(address, format!("{request}Connection: close\r\n\r\n")).await;
        assert!(answer.starts_with("HTTP/1.1 400 Bad Request\r\n"), "{answer}");
        assert!(answer.contains("\"error_code\":\"APIGW.0201\"") && answer.contains("no forward proxy"), "{answer}");
    }
    assert_eq!(world.upstream_calls(), 0);

    let token = &world.token;
    let target = format!("http://{address}/v2/{PROJECT}/products");
    let own = format!("GET {target} HTTP/1.1\r\nHost: {address}\r\nX-Auth-Token: {token}\r\nConnection: close\r\n\r\n");
    let answer = raw(address, own).await;
    assert!(answer.starts_with("HTTP/1.1 200 OK\r\n"), "{answer}");
}

#[tokio::test]
async fn http_1_1_names_one_host() {
    let world = World::new().await;
    for hosts in ["", "Host: a\r\nHost: b\r\n", "Host: a b/c\r\n", "Host: user@a\r\n"] {
        let request = format!("GET /v2/p/products HTTP/1.1\r\n{hosts}Connection: close\r\n\r\n");
        let answer = raw(world.server.proxy_address(), request).await;
        assert!(answer.starts_with("HTTP/1.1 400 ") && answer.contains("expected one Host header"), "{answer}");
    }
    let old = raw(world.server.proxy_address(), "GET /v2/p/products HTTP/1.0\r\n\r\n").await;
    assert!(old.starts_with("HTTP/1.0 401 ") || old.starts_with("HTTP/1.1 401 "), "{old}");
    assert_eq!(world.upstream_calls(), 1);
}

#[tokio::test]
async fn what_is_no_http_is_answered_400_and_the_connection_closed() {
    let world = World::new().await;
    for garbage in ["\0\0\0\0\r\n\r\n", "GET /\r\n\r\n", "GET / HTTP/1.1\r\nHost : x\r\n\r\n", "GET / HTTP/9.9\r\n\r\n"]
    {
        let answer = within(raw(world.server.proxy_address(), garbage)).await;
        assert!(answer.is_empty() || answer.starts_with("HTTP/1.1 400 "), "{garbage:?}: {answer}");
    }
    assert_eq!(world.get(LIST).await.status(), StatusCode::OK);
}

#[tokio::test]
async fn an_answer_framed_in_two_ways_arrives_whole() {
    let both = "HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 3\r\nTransfer-Encoding: chunked\r\nAge: 500\r\n\
                Cache-Control: max-age=600\r\n\r\nf\r\n{\"products\":[]}\r\n0\r\n\r\n";
    let world = World::before_one_that_says(both, "").await;
    for path in [LIST, "/v2/PROJECT/desktops"] {
        let reply = world.get(path).await;
        assert_eq!((reply.status(), reply.text()), (StatusCode::OK, "{\"products\":[]}"), "{path}");
        assert_eq!(reply.header("age"), "500", "not kept, and not made younger");
    }
}

#[tokio::test]
async fn an_answer_in_http_1_0_is_given_in_ours() {
    let old = "HTTP/1.0 200 OK\r\nContent-Length: 15\r\n\r\n{\"products\":[]}";
    let world = World::before_one_that_says(old, "").await;
    let request = "GET /v2/p/desktops HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n";
    let answer = raw(world.server.proxy_address(), request).await;
    assert!(answer.starts_with("HTTP/1.1 200 OK\r\n") && answer.contains("via: 1.0 workspace-gateway-"), "{answer}");
}

#[tokio::test]
async fn two_ways_to_frame_a_body_are_not_relayed() {
    let world = World::new().await;
    let token = &world.token;
    let smuggled = format!(
        "POST /v2/{PROJECT}/desktops HTTP/1.1\r\nHost: x\r\nX-Auth-Token: {token}\r\nContent-Length: 4\r\n\
         Transfer-Encoding: chunked\r\n\r\n0\r\n\r\nGET /v2/{PROJECT}/smuggled HTTP/1.1\r\nHost: x\r\n\
         X-Auth-Token: {token}\r\nConnection: close\r\n\r\n"
    );
    raw(world.server.proxy_address(), smuggled).await;
    let seen = world.simulator.requests_seen();
    assert!(!seen.iter().any(|seen| seen.target.ends_with("smuggled") && seen.has_body), "{seen:?}");
    for seen in seen {
        assert!(!seen.headers.contains_key("content-length") || !seen.headers.contains_key("transfer-encoding"));
    }
}
