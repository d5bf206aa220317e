//! Unusual requests that real clients send. Each is either served or rejected with an error.
//!
//! `http2` tests HTTP/2 with prior knowledge. `errors` tests invalid HTTP and requests for other hosts.

use http::{Method, StatusCode};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;
use workspace_gateway::testing::catalogue::Service;
use workspace_gateway::testing::simulator::Simulator;

use crate::support::raw_upstream::{RawUpstream, sends};
use crate::support::signer::{Signed, entry};
use crate::support::{Http, PROJECT, World, send_raw, within};

const LIST: &str = "/v2/PROJECT/products";
const OTHER: &str = "/v2/PROJECT/desktops";

/// The list is stored.
async fn world_with_list(settings: &str) -> World {
    let world = World::with(settings).await;
    assert!(world.get(LIST).await.cache_status().contains("; stored"));
    world.simulator.forget_requests();
    world
}

/// A request head with the token.
fn head(world: &World, line: &str, fields: &str) -> String {
    format!("{line}\r\nX-Auth-Token: {}\r\n{fields}\r\n", world.token).replace("PROJECT", PROJECT)
}

/// Sends the last request of a connection.
async fn exchange(world: &World, line: &str, fields: &str, body: &str) -> String {
    send_raw(world.server.proxy_address(), head(world, line, fields) + body).await
}

fn is_hit(response: &str) -> bool {
    response.contains(" 200 OK\r\n") && response.contains("cache-status: workspace-gateway; hit;")
}

async fn read_until(stream: &mut TcpStream, end: &str) -> String {
    let mut read = Vec::new();
    within(async {
        while !read.ends_with(end.as_bytes()) {
            let more = stream.read_buf(&mut read).await.unwrap();
            assert!(more > 0, "{}", String::from_utf8_lossy(&read));
        }
    })
    .await;
    String::from_utf8(read).unwrap()
}

#[tokio::test]
async fn a_base_url_may_have_a_prefix_and_a_trailing_slash() {
    let world = world_with_list("").await;
    for path in [
        "/workspace/v2/PROJECT/products",
        "/appstream/v2/PROJECT/products",
        "//v2/PROJECT/products",
        "/workspace//v2/PROJECT/products?limit=100",
        "//workspace/v2/PROJECT/products",
    ] {
        assert!(world.get(path).await.is_hit(), "{path}");
        let token = [("x-auth-token", world.token.as_str())];
        assert!(Http::http2().send(Method::GET, &world.url(path), &token, "").await.is_hit(), "{path}");
        let line = format!("GET http://{}{path} HTTP/1.1", world.server.proxy_address());
        assert!(is_hit(&exchange(&world, &line, "Host: x\r\nConnection: close\r\n", "").await), "{path}");
    }
    assert_eq!(world.upstream_calls(), 0);
    // The path determines the service. The rest of the path is relayed unchanged.
    for (path, service, target) in [
        ("/workspace/v1/PROJECT/app-groups?a=//b", Service::AppStream, "/v1/PROJECT/app-groups?a=//b"),
        ("/appstream//v2/PROJECT//x/%2F/./y/", Service::Workspace, "/v2/PROJECT//x/%2F/./y/"),
        ("//v3/PROJECT/workspace/v2", Service::Workspace, "/v3/PROJECT/workspace/v2"),
        ("/workspace/v2/PROJECT/products/", Service::Workspace, "/v2/PROJECT/products/"),
        ("/v2/PROJECT/products/", Service::Workspace, "/v2/PROJECT/products/"),
    ] {
        let reply = world.http.send(Method::POST, &world.url(path), &[("x-auth-token", &world.token)], "b").await;
        assert_eq!((reply.status(), reply.text()), (StatusCode::OK, "b"), "{path}");
        let seen = world.simulator.requests_seen().pop().unwrap();
        assert_eq!((seen.service, seen.target), (service, target.replace("PROJECT", PROJECT)), "{path}");
    }
    // With a trailing slash, the path is not a known operation.
    let slash = world.get("/v2/PROJECT/products/").await;
    assert!(!slash.headers().contains_key("cache-status"), "{slash:?}");
    let calls = world.upstream_calls();
    for path in ["/workspace/workspace/v2/PROJECT/products", "/workspace", "/workspace/", "/Workspace/v2/x", "//"] {
        let refused = world.get(path).await;
        assert_eq!((refused.status(), refused.error().0.as_str()), (StatusCode::NOT_FOUND, "APIGW.0101"), "{path}");
    }
    assert_eq!(world.upstream_calls(), calls);
}

#[tokio::test]
async fn path_prefixes_are_configurable() {
    let world = world_with_list("[listen]\npath_prefixes = [\"/team\", \"/team/a\"]").await;
    for (path, status) in [
        ("/team/v2/PROJECT/products", StatusCode::OK),
        ("/team/a/v2/PROJECT/products", StatusCode::OK),
        ("/team/b/v2/PROJECT/products", StatusCode::NOT_FOUND),
        ("/workspace/v2/PROJECT/products", StatusCode::NOT_FOUND),
    ] {
        assert_eq!(world.get(path).await.status(), status, "{path}");
    }
    let world = world_with_list("[listen]\npath_prefixes = []").await;
    assert!(world.get("//v2/PROJECT/products").await.is_hit());
    assert_eq!(world.get("/workspace/v2/PROJECT/products").await.status(), StatusCode::NOT_FOUND);
}

#[tokio::test]
async fn a_signature_over_a_path_that_the_gateway_changes_is_not_relayed() {
    let world = World::new().await;
    let signed = ("authorization", "SDK-HMAC-SHA256 Access=A, SignedHeaders=accept;x-sdk-date, Signature=0");
    for path in ["/workspace/v2/PROJECT/desktops", "//v2/PROJECT/desktops", "/workspace/v2/PROJECT/products"] {
        let refused = world.http.send(Method::GET, &world.url(path), &[signed], "").await;
        assert_eq!((refused.status(), refused.error().0.as_str()), (StatusCode::UNAUTHORIZED, "APIGW.0301"), "{path}");
        let through = world.get_with(path, &[signed]).await;
        assert_eq!(through.status(), StatusCode::OK, "a token is enough");
    }
    let basic = ("authorization", "Basic eDp5");
    world.http.send(Method::GET, &world.url("/workspace/v2/PROJECT/desktops"), &[basic], "").await;
    let seen = world.simulator.requests_seen();
    assert_eq!(seen.len(), 4);
    assert!(seen[..3].iter().all(|seen| !seen.headers.contains_key("authorization")));
    assert_eq!(seen[3].headers["authorization"], basic.1);
}

#[tokio::test]
async fn signatures_are_verified_over_the_path_that_the_client_sent() {
    let simulator = Simulator::start().await.unwrap();
    let key = simulator.access_key(PROJECT);
    let [workspace, appstream] = Service::ALL.map(|service| simulator.url(service));
    let settings = entry(&key, &format!("projects = [{PROJECT:?}]"));
    let world = World::with_upstreams(simulator, &workspace, &appstream, &settings).await;
    for (path, is_hit) in [
        ("/workspace/v2/PROJECT/products", false),
        ("/workspace//v2/PROJECT/products", true),
        ("//v2/PROJECT/products", true),
        ("/workspace/v2/PROJECT/desktops", false),
    ] {
        let reply = Signed::get(&world, &key, path).send(&world).await;
        assert_eq!(
            (reply.status(), reply.headers().contains_key("cache-status")),
            (StatusCode::OK, !path.ends_with("desktops"))
        );
        assert_eq!(reply.headers().contains_key("cache-status") && reply.is_hit(), is_hit, "{path}: {reply:?}");
        // The same signature with the normalized path.
        let normalized = world.url(&path.replace("/workspace", "").replace("//", "/"));
        let other = Signed { url: normalized, ..Signed::get(&world, &key, path) };
        assert_eq!(
            other.send(&world).await.status(),
            StatusCode::UNAUTHORIZED,
            "{path}: the signature covers another path"
        );
    }
    assert_eq!((world.upstream_calls(), world.simulator.signature_failures()), (2, 0));
}

#[tokio::test]
async fn requests_in_absolute_form_are_answered() {
    let world = world_with_list("").await;
    let port = world.server.proxy_address().port();
    let [workspace, appstream] = Service::ALL.map(|service| world.simulator.url(service));
    for origin in [&workspace, &appstream, &format!("http://127.0.0.1:{port}"), &format!("http://LocalHost:{port}")] {
        let host = origin.replace("http://", "Host: ") + "\r\nConnection: close\r\n";
        assert!(is_hit(&exchange(&world, &format!("GET {origin}{LIST} HTTP/1.1"), &host, "").await), "{origin}");
        // The path determines the service, not the host.
        let length = format!("{host}Proxy-Connection: keep-alive\r\nContent-Length: 4\r\n");
        let response = exchange(&world, &format!("POST {origin}{OTHER}?a HTTP/1.1"), &length, "body").await;
        assert!(response.starts_with("HTTP/1.1 200 OK\r\n") && response.ends_with("body"), "{response}");
        let seen = world.simulator.requests_seen().pop().unwrap();
        assert_eq!((seen.service, seen.target), (Service::Workspace, format!("/v2/{PROJECT}/desktops?a")));
        assert_eq!(format!("http://{}", seen.headers["host"].to_str().unwrap()), workspace);
        assert!(!seen.headers.contains_key("proxy-connection"));
    }
}

#[tokio::test]
async fn expect_100_continue_gets_100_when_the_body_is_read() {
    let world = world_with_list("").await;
    let mut stream = TcpStream::connect(world.server.proxy_address()).await.unwrap();
    let expecting = "Host: x\r\nExpect: 100-Continue\r\nContent-Length: 4\r\n";
    stream.write_all(head(&world, &format!("POST {OTHER} HTTP/1.1"), expecting).as_bytes()).await.unwrap();
    assert_eq!(read_until(&mut stream, "\r\n\r\n").await, "HTTP/1.1 100 Continue\r\n\r\n");
    stream.write_all(b"body").await.unwrap();
    let response = read_until(&mut stream, "body").await;
    assert!(response.starts_with("HTTP/1.1 200 OK\r\n"), "{response}");
    // On the same connection: a request without a body gets no 100.
    let bare =
        head(&world, &format!("GET {LIST} HTTP/1.1"), "Host: x\r\nExpect: 100-continue\r\nConnection: close\r\n");
    stream.write_all(bare.as_bytes()).await.unwrap();
    let mut rest = String::new();
    within(stream.read_to_string(&mut rest)).await.unwrap();
    assert!(rest.starts_with("HTTP/1.1 200 OK\r\n") && is_hit(&rest), "{rest}");
    assert!(!world.simulator.requests_seen()[0].headers.contains_key("expect"));
}

#[tokio::test]
async fn expect_100_continue_gets_the_final_response_if_the_body_is_not_read() {
    let world = World::new().await;
    let expecting = "Host: x\r\nExpect: 100-continue\r\nContent-Length: 4\r\n";
    let response = exchange(&world, "POST /nowhere HTTP/1.1", expecting, "").await;
    assert!(response.starts_with("HTTP/1.1 404 "), "{response}");
    // In HTTP/1.0 the expectation is ignored (RFC 9110 §10.1.1).
    let old =
        exchange(&world, &format!("POST {OTHER} HTTP/1.0"), "Expect: 100-continue\r\nContent-Length: 4\r\n", "body")
            .await;
    assert!(old.starts_with("HTTP/1.0 200 OK\r\n") && old.ends_with("\r\n\r\nbody"), "{old}");
}

#[tokio::test]
async fn an_unknown_expectation_is_ignored_and_not_forwarded() {
    let world = world_with_list("").await;
    let unknown = "Host: x\r\nExpect: a-miracle\r\nConnection: close\r\n";
    assert!(is_hit(&exchange(&world, &format!("GET {LIST} HTTP/1.1"), unknown, "").await));
    let length = format!("{unknown}Content-Length: 4\r\n");
    let response = exchange(&world, &format!("POST {OTHER} HTTP/1.1"), &length, "body").await;
    assert!(response.starts_with("HTTP/1.1 200 OK\r\n") && response.ends_with("body"), "{response}");
    assert!(!world.simulator.requests_seen()[0].headers.contains_key("expect"));
}

#[tokio::test]
async fn an_upgrade_to_h2c_is_ignored() {
    let world = world_with_list("").await;
    for connection in ["close, Upgrade, HTTP2-Settings", "close, upgrade", "close"] {
        let fields = format!(
            "Host: x\r\nConnection: {connection}\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABkAAQAAP__\r\nX-Kept: 1\r\n"
        );
        let response = exchange(&world, &format!("GET {LIST} HTTP/1.1"), &fields, "").await;
        assert!(response.starts_with("HTTP/1.1 200 OK\r\n") && is_hit(&response), "{response}");
        assert!(!response.to_lowercase().contains("\r\nupgrade:"), "{response}");
        let through = exchange(&world, &format!("GET {OTHER} HTTP/1.1"), &fields, "").await;
        assert!(through.starts_with("HTTP/1.1 200 OK\r\n"), "{through}");
        let seen = world.simulator.requests_seen().pop().unwrap();
        assert_eq!(seen.headers["x-kept"], "1");
        for gone in ["upgrade", "http2-settings", "connection"] {
            assert!(!seen.headers.contains_key(gone), "{gone} with {connection}");
        }
    }
}

#[tokio::test]
async fn a_get_with_content_length_0_or_content_type_is_a_hit() {
    let world = world_with_list("").await;
    for fields in ["Content-Type: application/json;charset=utf8\r\n", "Content-Length: 0\r\nContent-Type: a/b\r\n"] {
        let fields = format!("Host: x\r\nConnection: close\r\n{fields}");
        assert!(is_hit(&exchange(&world, &format!("GET {LIST} HTTP/1.1"), &fields, "").await), "{fields}");
    }
    assert_eq!(world.upstream_calls(), 0);
}

/// An upstream for one chunked request, which it returns.
async fn upstream_for_chunks() -> (String, JoinHandle<String>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let received = tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await.unwrap();
        let request = read_until(&mut stream, "\r\n0\r\n\r\n").await;
        let response =
            b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 15\r\n\r\n{\"products\":[]}";
        stream.write_all(response).await.unwrap();
        request
    });
    (url, received)
}

#[tokio::test]
async fn a_get_with_a_chunked_body_is_relayed_and_not_stored() {
    for (method, chunks, sent) in [
        ("GET", "5\r\nfirst\r\n6;x=y\r\nsecond\r\n0\r\n\r\n", "firstsecond"),
        // The gateway learns that the body is empty only while it relays it.
        ("GET", "0\r\n\r\n", ""),
        ("HEAD", "5\r\nfirst\r\n0\r\n\r\n", "first"),
    ] {
        let (url, received) = upstream_for_chunks().await;
        let world = World::with_upstreams(Simulator::start().await.unwrap(), &url, &url, "").await;
        let fields = "Host: x\r\nConnection: close\r\nTransfer-Encoding: chunked\r\n";
        let response = exchange(&world, &format!("{method} {LIST} HTTP/1.1"), fields, chunks).await;
        assert!(response.starts_with("HTTP/1.1 200 OK\r\n"), "{response}");
        assert!(response.contains("cache-status: workspace-gateway; fwd=bypass; detail=body\r\n"), "{response}");
        let request = within(received).await.unwrap();
        let (head, body) = request.split_once("\r\n\r\n").map_or((&*request, ""), |(head, body)| (head, body));
        assert!(head.starts_with(&format!("{method} /v2/{PROJECT}/products HTTP/1.1\r\n")), "{head}");
        let data: String = body.split("\r\n").skip(1).step_by(2).collect();
        assert_eq!(data, sent, "{request:?}");
        assert_eq!(world.metric("workspace_gateway_entries"), 0.0);
    }
}

#[tokio::test]
async fn http_1_0_requests_get_http_1_0_responses() {
    let world = world_with_list("").await;
    for host in ["", "Host: x\r\n"] {
        let response = exchange(&world, &format!("GET {LIST} HTTP/1.0"), host, "").await;
        assert!(response.starts_with("HTTP/1.0 200 OK\r\n") && is_hit(&response), "{response}");
        assert!(!response.to_lowercase().contains("keep-alive"), "the connection is closed: {response}");
    }
    // The connection persists if the client requests it.
    let mut stream = TcpStream::connect(world.server.proxy_address()).await.unwrap();
    let persistent = head(&world, &format!("GET {LIST} HTTP/1.0"), "Connection: keep-alive\r\n");
    stream.write_all(persistent.as_bytes()).await.unwrap();
    let first = read_until(&mut stream, "]}").await;
    assert!(first.starts_with("HTTP/1.0 200 OK\r\n") && first.contains("connection: keep-alive\r\n"), "{first}");
    stream.write_all(head(&world, &format!("GET {LIST} HTTP/1.0"), "").as_bytes()).await.unwrap();
    let mut second = String::new();
    within(stream.read_to_string(&mut second)).await.unwrap();
    assert!(is_hit(&second) && second.split("\r\n\r\n").nth(1) == first.split("\r\n\r\n").nth(1), "{second}");
    assert_eq!(world.upstream_calls(), 0);
}

#[tokio::test]
async fn a_chunked_response_is_not_chunked_for_http_1_0() {
    let chunked = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nfirst\r\n6\r\nsecond\r\n0\r\n\r\n";
    let upstream = RawUpstream::start([sends(chunked)]).await;
    let world = World::with_upstreams(Simulator::start().await.unwrap(), upstream.url(), upstream.url(), "").await;
    // The end of the connection delimits the body, even if the client requests keep-alive.
    for connection in ["", "Connection: keep-alive\r\n"] {
        let response = exchange(&world, &format!("GET {OTHER} HTTP/1.0"), connection, "").await;
        assert!(response.starts_with("HTTP/1.0 200 OK\r\n") && response.ends_with("\r\n\r\nfirstsecond"), "{response}");
        assert!(!response.contains("transfer-encoding"), "{response}");
    }
    // The upstream request is HTTP/1.1.
    assert!(upstream.heads()[0].starts_with(&format!("GET /v2/{PROJECT}/desktops HTTP/1.1\r\n")));
    let new = exchange(&world, &format!("GET {OTHER} HTTP/1.1"), "Host: x\r\nConnection: close\r\n", "").await;
    assert!(new.contains("transfer-encoding: chunked\r\n") && new.ends_with("\r\n0\r\n\r\n"), "{new}");
}

#[tokio::test]
async fn pipelined_requests_are_answered_in_order() {
    let world = world_with_list("").await;
    world.simulator.hold();
    let one = |line: &str, fields: &str| head(&world, line, &format!("Host: x\r\n{fields}"));
    let requests = [
        one(&format!("GET {LIST} HTTP/1.1"), ""),
        one(&format!("GET {LIST}?limit=1 HTTP/1.1"), ""),
        one(&format!("GET {LIST} HTTP/1.1"), ""),
        one(&format!("POST {OTHER} HTTP/1.1"), "Content-Length: 4\r\n") + "body",
        one("GET /nowhere HTTP/1.1", ""),
        one(&format!("GET {LIST}?limit=1 HTTP/1.1"), "Connection: close\r\n"),
    ];
    let mut stream = TcpStream::connect(world.server.proxy_address()).await.unwrap();
    stream.write_all(requests.concat().as_bytes()).await.unwrap();
    within(world.simulator.wait_for_requests(1)).await;
    // The third request is a hit, but it waits for the second one.
    assert_eq!(world.metric("workspace_gateway_requests_in_flight"), 1.0);
    world.simulator.release();
    let mut all = String::new();
    within(stream.read_to_string(&mut all)).await.unwrap();
    let responses: Vec<&str> = all.split("HTTP/1.1 ").skip(1).collect();
    let results = responses.iter().map(|response| {
        let status = response.lines().find_map(|line| line.strip_prefix("cache-status: workspace-gateway; "));
        format!("{} {}", &response[..3], status.unwrap_or_default().split("; ").next().unwrap())
    });
    assert_eq!(results.collect::<Vec<_>>(), ["200 hit", "200 fwd=miss", "200 hit", "200 ", "404 ", "200 hit"], "{all}");
    let body = |index: usize| responses[index].split_once("\r\n\r\n").unwrap().1;
    assert!(body(0) == body(2) && body(1) == body(5) && body(0) != body(1) && body(3) == "body", "{all}");
    assert_eq!(world.upstream_calls(), 2);
}
