//! HTTP/2 clients: the same behaviour as for HTTP/1, and the attacks that only HTTP/2 makes possible.

use std::net::SocketAddr;

use bytes::Bytes;
use h2::client::SendRequest;
use http::{HeaderName, HeaderValue, Method, Request, Response, StatusCode};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::support::frames::{
    CONTINUATION, END_HEADERS, END_STREAM, GOAWAY, HEADERS, PREFACE, RST_STREAM, field, frame, head,
};
use crate::support::{Http, PROJECT, Reply, WAITERS, World, within};

const LIST: &str = "/v2/PROJECT/products";

/// A world whose client uses HTTP/2.
async fn world(settings: &str) -> World {
    let mut world = World::with(settings).await;
    world.http = Http::http2();
    world
}

/// A connection for requests that an ordinary client library does not send.
async fn connect(address: SocketAddr) -> SendRequest<Bytes> {
    let stream = TcpStream::connect(address).await.unwrap();
    let (sender, connection) = h2::client::handshake(stream).await.unwrap();
    tokio::spawn(connection);
    sender.ready().await.unwrap()
}

async fn send(sender: &mut SendRequest<Bytes>, request: Request<()>) -> Result<Response<Bytes>, h2::Error> {
    within(async {
        let (head, mut body) = sender.send_request(request, true)?.0.await?.into_parts();
        let mut received = Vec::new();
        while let Some(part) = body.data().await {
            received.extend(part?);
        }
        Ok(Response::from_parts(head, received.into()))
    })
    .await
}

/// The types of all frames until the gateway closes the connection.
async fn read_frame_types(stream: &mut TcpStream) -> Vec<u8> {
    let mut read = Vec::new();
    within(async { while stream.read_buf(&mut read).await.is_ok_and(|more| more > 0) {} }).await;
    let (mut types, mut rest) = (Vec::new(), &read[..]);
    while let [a, b, c, frame_type, _, _, _, _, _, payload_and_rest @ ..] = rest {
        types.push(*frame_type);
        let length = u32::from_be_bytes([0, *a, *b, *c]) as usize;
        rest = &payload_and_rest[length.min(payload_and_rest.len())..];
    }
    types
}

#[tokio::test]
async fn requests_are_answered_as_in_http1() {
    let world = world("").await;
    let miss = world.get(LIST).await;
    assert!(miss.cache_status().contains("; stored"), "{miss:?}");
    assert_eq!(miss.header("content-length"), miss.body().len().to_string());
    let hit = world.get(LIST).await;
    assert!(hit.is_hit() && hit.body() == miss.body() && !hit.body().is_empty());
    let token = [("x-auth-token", world.token.as_str())];
    let by_http1 = Http::new().send(Method::GET, &world.url(LIST), &token, "").await;
    assert!(by_http1.is_hit() && by_http1.body() == miss.body());
    let head = world.http.send(Method::HEAD, &world.url(LIST), &token, "").await;
    assert!(head.is_hit() && head.body().is_empty());
    assert_eq!(head.header("content-length"), miss.body().len().to_string());

    let large: Bytes = (0..3_000_000u32).map(|index| (index % 251) as u8).collect();
    let relayed = world.http.send(Method::POST, &world.url("/v2/PROJECT/desktops"), &token, large.clone()).await;
    assert!(relayed.body() == &large, "{}", relayed.body().len());
    let seen = world.simulator.requests_seen().pop().unwrap();
    assert_eq!(seen.target, format!("/v2/{PROJECT}/desktops"));
    assert!(seen.headers["via"].to_str().unwrap().starts_with("2.0 workspace-gateway-"));
    assert!(
        world
            .simulator
            .url(workspace_gateway::testing::catalogue::Service::Workspace)
            .ends_with(seen.headers["host"].to_str().unwrap())
    );
    let head = world.http.send(Method::HEAD, &world.url("/v2/PROJECT/desktops"), &token, "").await;
    assert_eq!((head.status(), head.body().len()), (StatusCode::OK, 0));
    let unknown = world.http.get(&world.url("/nowhere")).await;
    assert_eq!((unknown.status(), unknown.error().0.as_str()), (StatusCode::NOT_FOUND, "APIGW.0101"));
    // All HTTP/2 requests share one connection. That of the HTTP/1 client is closed.
    assert_eq!(world.metric("workspace_gateway_connections"), 1.0);
}

#[tokio::test]
async fn a_large_response_is_served_completely_from_memory() {
    let world = world("").await;
    let list = format!("{{\"products\":[\"{}\"]}}", "x".repeat(5_000_000));
    world.simulator.set_list_body(Some(Bytes::from(list.clone())));
    for is_hit in [false, true] {
        let reply = world.get(LIST).await;
        assert_eq!((reply.is_hit(), reply.header("content-length")), (is_hit, list.len().to_string().as_str()));
        assert!(reply.body() == list.as_bytes());
    }
}

#[tokio::test]
async fn tokens_of_up_to_100_kib_are_accepted() {
    let world = world("").await;
    // One length fits into a frame, the others do not. The last is the longest that is documented.
    for length in [4_800, 20_000, 100_000, 102_400] {
        let token = world.simulator.token_of_length(PROJECT, length);
        assert_eq!(token.len(), length);
        world.purge();
        assert!(world.get_as(&token, LIST).await.cache_status().contains("; stored"), "{length}");
        assert!(world.get_as(&token, LIST).await.is_hit(), "{length}");
        let relayed = world.get_as(&token, "/v2/PROJECT/desktops").await;
        assert_eq!(relayed.status(), StatusCode::OK, "{length}");
        assert_eq!(world.tokens_seen().pop().unwrap(), token);
    }
}

#[tokio::test]
async fn responses_have_no_connection_specific_headers() {
    let world = world("").await;
    for (name, value) in
        [("connection", "x-private"), ("x-private", "1"), ("keep-alive", "timeout=1"), ("proxy-connection", "close")]
    {
        world.simulator.add_header(HeaderName::from_static(name), HeaderValue::from_static(value));
    }
    // Upstream's 401 has `Connection: close` and is chunked.
    let denied = world.get_as("nobody", LIST).await;
    assert_eq!(denied.status(), StatusCode::UNAUTHORIZED);
    let replies: [Reply; 4] = [denied, world.get(LIST).await, world.get(LIST).await, world.get("/v2/PROJECT/x").await];
    for reply in replies {
        for removed in ["connection", "x-private", "keep-alive", "proxy-connection", "transfer-encoding", "upgrade"] {
            assert!(!reply.headers().contains_key(removed), "{removed} in {reply:?}");
        }
    }
}

#[tokio::test]
async fn the_authority_is_checked_as_in_http1() {
    let world = world("").await;
    let mut sender = connect(world.server.proxy_address()).await;
    let get = |uri: &str, host: Option<&str>| {
        let mut request = Request::get(uri).header("x-auth-token", &world.token);
        if let Some(host) = host {
            request = request.header("host", host);
        }
        request.body(()).unwrap()
    };
    let list = LIST.replace("PROJECT", PROJECT);
    for (uri, host, status) in [
        // Any name may be this machine's, as in the Host header.
        (format!("http://any{list}"), None, 200),
        (format!("https://any:1{list}"), None, 200),
        (format!("http://any{list}"), Some("any"), 200),
        (format!("http://any{list}"), Some("other"), 400),
        (format!("http://me@any{list}"), None, 400),
    ] {
        let response = send(&mut sender, get(&uri, host)).await.unwrap();
        assert_eq!(response.status(), status, "{uri} {host:?}");
    }
    // The signature covers the gateway's host, so it cannot be valid upstream.
    let authorization = "SDK-HMAC-SHA256 Access=A, SignedHeaders=host, Signature=0";
    let signed = Request::get(format!("http://any{list}")).header("authorization", authorization).body(()).unwrap();
    assert_eq!(send(&mut sender, signed).await.unwrap().status(), StatusCode::UNAUTHORIZED);
    let tunnel = Request::builder().method(Method::CONNECT).uri("any:443").body(()).unwrap();
    assert_eq!(send(&mut sender, tunnel).await.unwrap().status(), StatusCode::BAD_REQUEST);
    assert_eq!(world.upstream_calls(), 1);
}

#[tokio::test]
async fn a_rejected_head_does_not_close_the_connection() {
    let world = world("[limits]\nmax_head_size = \"8KiB\"").await;
    let mut sender = connect(world.server.proxy_address()).await;
    let get = |fields: usize, size: usize| {
        // Upstream has the same limit. This path is not sent upstream, so the 400 comes from the gateway.
        let path = if fields > 100 { "/nowhere" } else { "/v2/p/products" };
        let mut request = Request::get(format!("http://g{path}"));
        for index in 0..fields {
            request = request.header(format!("a{index}"), "b".repeat(size));
        }
        request.body(()).unwrap()
    };
    for (fields, size, status, text) in [
        (90, 1, 401, "APIGW"),
        (1, 9_000, 431, "limits.max_head_size"),
        (1, 20_000, 431, ""),
        (1, 60_000, 431, ""),
        (101, 1, 400, "APIGW"),
        (90, 1, 401, "APIGW"),
    ] {
        let response = send(&mut sender, get(fields, size)).await.unwrap();
        assert_eq!(response.status(), status, "{fields} {size}");
        assert!(std::str::from_utf8(response.body()).unwrap().contains(text), "{fields} {size}");
    }
    // Only the two valid heads reach upstream, which answers 401 because they have no token.
    assert_eq!(world.upstream_calls(), 2);
}

#[tokio::test]
async fn too_many_fields_are_rejected_in_upstreams_error_format_and_counted() {
    let world = World::new().await;
    let mut sender = connect(world.server.proxy_address()).await;
    for (requests, (name, fields)) in
        [("a", 101), ("cookie", 101), ("content-length", 101), ("a", 1_000), ("cookie", 5_000)].into_iter().enumerate()
    {
        let mut request = Request::get(format!("http://g/v2/{PROJECT}/products"));
        for _ in 0..fields {
            request = request.header(name, "0");
        }
        let response = send(&mut sender, request.body(()).unwrap()).await.unwrap();
        assert_eq!(response.status(), StatusCode::BAD_REQUEST, "{fields} of {name}");
        assert_eq!(response.headers()["content-type"], "application/json");
        let error: serde_json::Value = serde_json::from_slice(response.body()).unwrap();
        assert_eq!(error["error_msg"], "workspace-gateway: expected at most 100 header fields");
        assert_eq!(error["request_id"], response.headers()["x-request-id"].to_str().unwrap());
        let rejected = "workspace_gateway_requests_total{operation=\"none\",result=\"refused\",status=\"400\"}";
        world.until_metric(rejected, (requests + 1) as f64).await;
    }
    assert_eq!((world.upstream_calls(), world.metric("workspace_gateway_connections")), (0, 1.0));
}

#[tokio::test]
async fn a_head_that_does_not_end_closes_the_connection() {
    for part in [vec![], field("a", &"b".repeat(10_000))] {
        let world = World::new().await;
        let mut stream = TcpStream::connect(world.server.proxy_address()).await.unwrap();
        stream.write_all(PREFACE).await.unwrap();
        stream.write_all(&frame(HEADERS, END_STREAM, 1, &head("/v2/p/products", "t"))).await.unwrap();
        let more = frame(CONTINUATION, 0, 1, &part);
        // The gateway closes the connection long before all of this is sent.
        let flood = async {
            for sent in 0..100_000 {
                if stream.write_all(&more).await.is_err() {
                    return sent;
                }
            }
            panic!("the gateway keeps reading")
        };
        let sent = within(flood).await;
        assert!(sent > 5, "{sent}");
        world.until_metric("workspace_gateway_connections", 0.0).await;
        assert_eq!(world.metric("workspace_gateway_requests_in_flight"), 0.0);
        assert!(world.get(LIST).await.status().is_success());
    }
}

#[tokio::test]
async fn a_rapid_reset_flood_is_ended_without_harm_to_others() {
    let world = world("").await;
    let [granted] = world.granted_tokens().await;
    world.simulator.hold_target(&format!("/v2/{PROJECT}/products?os_type=Linux"));
    let waiting = world.begin_and_reach_upstream(&granted, "/v2/PROJECT/products?os_type=Linux", 1).await;

    let mut stream = TcpStream::connect(world.server.proxy_address()).await.unwrap();
    let mut flood = PREFACE.to_vec();
    for index in 0..10_000 {
        let id = 2 * index + 1;
        let path = format!("/v2/{PROJECT}/products?os_type=Linux&page={index}");
        flood.extend(frame(HEADERS, END_STREAM | END_HEADERS, id, &head(&path, &granted)));
        flood.extend(frame(RST_STREAM, 0, id, &[0, 0, 0, 8]));
    }
    // The gateway may close the connection before all is sent.
    let _ = within(stream.write_all(&flood)).await;
    let reply = world.get(LIST).await;
    assert_eq!(reply.status(), StatusCode::OK);
    let types = read_frame_types(&mut stream).await;
    // The GOAWAY may be lost: when the gateway closes a socket with unread bytes, the kernel drops what it has not yet
    // sent.
    assert!(types.last().is_none_or(|&last| last == GOAWAY || world.metric(RESETS) > 0.0), "{types:?}");

    world.simulator.release_target(&format!("/v2/{PROJECT}/products?os_type=Linux"));
    assert!(within(waiting).await.unwrap().status().is_success());
    world.until_metric(WAITERS, 0.0).await;
    world.until_metric("workspace_gateway_upstream_requests_in_flight{service=\"workspace\"}", 0.0).await;
    world.until_metric("workspace_gateway_requests_in_flight", 0.0).await;
    world.until_metric("workspace_gateway_connections", 1.0).await;
}

#[tokio::test]
async fn resetting_all_requests_in_flight_once_is_no_flood() {
    let world = World::with("[limits]\nkeepalive_timeout = \"50ms\"\nwrite_timeout = \"50ms\"").await;
    let mut stream = TcpStream::connect(world.server.proxy_address()).await.unwrap();
    let request = |id| frame(HEADERS, END_STREAM | END_HEADERS, id, &head("/nowhere", "t"));
    let mut bytes = PREFACE.to_vec();
    for id in (0..100).map(|index| 2 * index + 1) {
        bytes.extend([request(id), frame(RST_STREAM, 0, id, &[0, 0, 0, 8])].concat());
    }
    bytes.extend(request(201));
    stream.write_all(&bytes).await.unwrap();
    // Reads until the keep-alive timeout closes the connection.
    let types = read_frame_types(&mut stream).await;
    assert!(types.contains(&HEADERS), "{types:?}");
    assert_eq!(world.metric(RESETS), 0.0);
    assert_eq!(world.metric("workspace_gateway_connections_ended_total{cause=\"keepalive-timeout\"}"), 1.0);
}

const RESETS: &str = "workspace_gateway_connections_ended_total{cause=\"resets\"}";

#[tokio::test]
async fn requests_reset_one_by_one_also_close_the_connection() {
    let world = world("").await;
    let sender = connect(world.server.proxy_address()).await;
    world.until_metric("workspace_gateway_connections", 1.0).await;
    world.simulator.hold();
    let mut ready = sender.ready().await;
    let mut sent = 0;
    while let Ok(mut sender) = ready {
        let request = Request::get(format!("http://g/v2/p/desktops/{sent}")).body(()).unwrap();
        let Ok((response, _)) = sender.send_request(request, true) else { break };
        sent += 1;
        assert!(sent < 1_000, "the connection stays open");
        // Wait until the request reaches upstream or the connection is closed.
        let closed = async {
            // Let the client notice the close.
            tokio::task::yield_now().await;
            while world.metric("workspace_gateway_connections") > 0.0 {
                tokio::task::yield_now().await;
            }
        };
        tokio::select! {
            () = world.simulator.wait_for_requests(sent) => {}
            () = within(closed) => {}
        }
        drop(response);
        ready = within(sender.ready()).await;
    }
    assert_eq!(world.metric(RESETS), 1.0);
    world.until_metric("workspace_gateway_requests_in_flight", 0.0).await;
    world.until_metric("workspace_gateway_upstream_requests_in_flight{service=\"workspace\"}", 0.0).await;
}

#[tokio::test]
async fn a_response_whose_end_has_no_flow_control_window_is_reset() {
    let world = world("[limits]\nwrite_timeout = \"50ms\"").await;
    // More than six pieces of 16 KiB. The window ends in the rest.
    world.simulator.set_list_body(Some(Bytes::from(format!("{{\"products\":[\"{}\"]}}", "x".repeat(110_000)))));
    world.get(LIST).await;
    let stream = TcpStream::connect(world.server.proxy_address()).await.unwrap();
    let mut builder = h2::client::Builder::new();
    let builder = builder.initial_window_size(105_000).initial_connection_window_size(8 << 20);
    let (sender, connection) = builder.handshake::<_, Bytes>(stream).await.unwrap();
    tokio::spawn(connection);
    let uri = format!("http://g{}", LIST.replace("PROJECT", PROJECT));
    let request = Request::get(uri).header("x-auth-token", &world.token).body(()).unwrap();
    let mut sender = sender.ready().await.unwrap();
    let unread = within(sender.send_request(request, true).unwrap().0).await.unwrap();
    world.until_metric("workspace_gateway_connections_ended_total{cause=\"write-timeout\"}", 1.0).await;
    drop(unread);
}

#[tokio::test]
async fn a_response_without_flow_control_window_is_reset_and_others_continue() {
    let world = world("[limits]\nwrite_timeout = \"50ms\"").await;
    let list = format!("{{\"products\":[\"{}\"]}}", "x".repeat(1_000_000));
    world.simulator.set_list_body(Some(Bytes::from(list.clone())));
    world.get(LIST).await;
    let stream = TcpStream::connect(world.server.proxy_address()).await.unwrap();
    // The connection window has room for others when one stream has filled its own window.
    let mut builder = h2::client::Builder::new();
    let (sender, connection) = builder.initial_connection_window_size(8 << 20).handshake(stream).await.unwrap();
    tokio::spawn(connection);
    let mut sender = sender.ready().await.unwrap();
    let get = |path: &str| {
        let uri = format!("http://g{}", path.replace("PROJECT", PROJECT));
        Request::get(uri).header("x-auth-token", &world.token).body(()).unwrap()
    };
    let mut unread = within(sender.send_request(get(LIST), true).unwrap().0).await.unwrap().into_body();
    world.until_metric("workspace_gateway_connections_ended_total{cause=\"write-timeout\"}", 1.0).await;
    world.until_metric("workspace_gateway_requests_in_flight", 0.0).await;
    let mut read = 0;
    let broken = within(async {
        loop {
            match unread.data().await {
                Some(Ok(part)) => read += part.len(),
                Some(Err(error)) => return error,
                None => panic!("the response is complete"),
            }
        }
    })
    .await;
    assert!(broken.is_reset() && read < list.len(), "{broken}");
    assert_eq!(send(&mut sender, get("/nowhere")).await.unwrap().status(), StatusCode::NOT_FOUND);
}

#[tokio::test]
async fn a_stalled_upload_is_answered_504() {
    let world = world("[upstream]\nidle_timeout = \"50ms\"").await;
    let mut sender = connect(world.server.proxy_address()).await;
    let request = Request::post("http://g/v2/p/desktops").header("x-auth-token", &world.token).body(()).unwrap();
    world.simulator.hold();
    let (answer, mut upload) = sender.send_request(request, false).unwrap();
    upload.send_data(Bytes::from_static(b"a beginning"), false).unwrap();
    assert_eq!(within(answer).await.unwrap().status(), StatusCode::GATEWAY_TIMEOUT);
    world.until_metric("workspace_gateway_requests_in_flight", 0.0).await;
}

#[tokio::test]
async fn streams_beyond_the_agreed_limit_are_not_served() {
    let world = world("[upstream]\nmax_calls = 1000\nmax_calls_per_caller = 1000").await;
    let mut stream = TcpStream::connect(world.server.proxy_address()).await.unwrap();
    world.simulator.hold();
    let mut bytes = PREFACE.to_vec();
    for index in 0..200 {
        let path = format!("/v2/{PROJECT}/desktops/{index}");
        bytes.extend(frame(HEADERS, END_STREAM | END_HEADERS, 2 * index + 1, &head(&path, &world.token)));
    }
    stream.write_all(&bytes).await.unwrap();
    within(world.simulator.wait_for_requests(128)).await;
    let other = world.begin(&world.token, "/v2/PROJECT/desktops/other");
    within(world.simulator.wait_for_requests(129)).await;
    let paths: Vec<_> = world.simulator.requests_seen().iter().map(|seen| seen.target.clone()).collect();
    assert_eq!(paths.last().unwrap(), &format!("/v2/{PROJECT}/desktops/other"));
    world.simulator.release();
    assert!(within(other).await.unwrap().status().is_success());
    drop(stream);
    world.until_metric("workspace_gateway_requests_in_flight", 0.0).await;
    assert_eq!(world.upstream_calls(), 129);
}

#[tokio::test]
async fn shutdown_completes_requests_in_flight_and_then_closes_the_connection() {
    let world = world("").await;
    let address = world.server.proxy_address();
    let mut sender = connect(address).await;
    let request = Request::get(format!("http://g{}", LIST.replace("PROJECT", PROJECT)));
    let request = request.header("x-auth-token", &world.token).body(()).unwrap();
    world.simulator.hold();
    let (response, _) = sender.send_request(request, true).unwrap();
    within(world.simulator.wait_for_requests(1)).await;
    let World { simulator, server, .. } = world;
    let metrics = server.metrics_address();
    let stopping = tokio::spawn(server.stop());
    // New connections are refused. The old one is closed when its request is complete.
    within(async { while TcpStream::connect(address).await.is_ok() {} }).await;
    let probe = async |path: &str| {
        let reply = Http::new().get(&format!("http://{metrics}{path}")).await;
        (reply.status(), reply.text().to_owned())
    };
    assert_eq!(probe("/readyz").await, (StatusCode::SERVICE_UNAVAILABLE, "draining\n".to_owned()));
    assert_eq!(probe("/healthz").await, (StatusCode::OK, "ok\n".to_owned()));
    assert!(!stopping.is_finished());
    simulator.release();
    let mut response = within(response).await.unwrap();
    assert_eq!(response.status(), StatusCode::OK);
    within(async { while response.body_mut().data().await.is_some_and(|part| part.is_ok()) {} }).await;
    within(async {
        while sender.clone().ready().await.is_ok() {
            tokio::task::yield_now().await;
        }
    })
    .await;
    within(stopping).await.unwrap();
}

#[tokio::test]
async fn the_metrics_and_admin_listeners_speak_only_http1() {
    let world = World::new().await;
    for address in [world.server.metrics_address(), world.server.admin_address()] {
        let mut stream = TcpStream::connect(address).await.unwrap();
        stream.write_all(PREFACE).await.unwrap();
        let mut received = Vec::new();
        within(async { while stream.read_buf(&mut received).await.is_ok_and(|more| more > 0) {} }).await;
        assert!(!received.windows(5).any(|bytes| bytes == b" 200 "), "{}", String::from_utf8_lossy(&received));
    }
}
