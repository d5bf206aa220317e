//! Clients that speak HTTP/2: everything as in HTTP/1, and what only they can do to a server.

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

/// A world whose client speaks HTTP/2.
async fn world(settings: &str) -> World {
    let mut world = World::with(settings).await;
    world.http = Http::http2();
    world
}

/// A connection for requests that a well-behaved client would not send.
async fn connect(address: SocketAddr) -> SendRequest<Bytes> {
    let stream = TcpStream::connect(address).await.unwrap();
    let (sender, connection) = h2::client::handshake(stream).await.unwrap();
    tokio::spawn(connection);
    sender.ready().await.unwrap()
}

async fn send(sender: &mut SendRequest<Bytes>, request: Request<()>) -> Result<Response<Bytes>, h2::Error> {
    within(async {
        let (head, mut body) = sender.send_request(request, true)?.0.await?.into_parts();
        let mut whole = Vec::new();
        while let Some(part) = body.data().await {
            whole.extend(part?);
        }
        Ok(Response::from_parts(head, whole.into()))
    })
    .await
}

/// The kinds of all frames that come until the gateway hangs up.
async fn frames(stream: &mut TcpStream) -> Vec<u8> {
    let mut read = Vec::new();
    within(async { while stream.read_buf(&mut read).await.is_ok_and(|more| more > 0) {} }).await;
    let (mut kinds, mut rest) = (Vec::new(), &read[..]);
    while let [a, b, c, kind, _, _, _, _, _, after @ ..] = rest {
        kinds.push(*kind);
        let length = u32::from_be_bytes([0, *a, *b, *c]) as usize;
        rest = &after[length.min(after.len())..];
    }
    kinds
}

#[tokio::test]
async fn everything_works_as_in_http1() {
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
    let through = world.http.send(Method::POST, &world.url("/v2/PROJECT/desktops"), &token, large.clone()).await;
    assert!(through.body() == &large, "{}", through.body().len());
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
    // All of it by one connection, and one of HTTP/1.
    assert_eq!(world.metric("workspace_gateway_connections"), 1.0);
}

#[tokio::test]
async fn a_large_answer_comes_whole_from_memory() {
    let world = world("").await;
    let list = format!("{{\"products\":[\"{}\"]}}", "x".repeat(5_000_000));
    world.simulator.answer_with(Some(Bytes::from(list.clone())));
    for is_hit in [false, true] {
        let reply = world.get(LIST).await;
        assert_eq!((reply.is_hit(), reply.header("content-length")), (is_hit, list.len().to_string().as_str()));
        assert!(reply.body() == list.as_bytes());
    }
}

#[tokio::test]
async fn long_tokens_fit() {
    let world = world("").await;
    // The longest is the longest that is documented; one that fits into a frame, and one that doesn't.
    for length in [4_800, 20_000, 100_000, 102_400] {
        let token = world.simulator.token_of_length(PROJECT, length);
        assert_eq!(token.len(), length);
        world.purge();
        assert!(world.get_as(&token, LIST).await.cache_status().contains("; stored"), "{length}");
        assert!(world.get_as(&token, LIST).await.is_hit(), "{length}");
        let through = world.get_as(&token, "/v2/PROJECT/desktops").await;
        assert_eq!(through.status(), StatusCode::OK, "{length}");
        assert_eq!(world.tokens_seen().pop().unwrap(), token);
    }
}

#[tokio::test]
async fn answers_have_no_headers_of_a_connection() {
    let world = world("").await;
    for (name, value) in
        [("connection", "x-private"), ("x-private", "1"), ("keep-alive", "timeout=1"), ("proxy-connection", "close")]
    {
        world.simulator.add_header(HeaderName::from_static(name), HeaderValue::from_static(value));
    }
    // Upstream's own refusals say `connection: close` and are chunked.
    let refused = world.get_as("nobody", LIST).await;
    assert_eq!(refused.status(), StatusCode::UNAUTHORIZED);
    let all: [Reply; 4] = [refused, world.get(LIST).await, world.get(LIST).await, world.get("/v2/PROJECT/x").await];
    for reply in all {
        for gone in ["connection", "x-private", "keep-alive", "proxy-connection", "transfer-encoding", "upgrade"] {
            assert!(!reply.headers().contains_key(gone), "{gone} in {reply:?}");
        }
    }
}

#[tokio::test]
async fn whom_a_request_is_for_is_checked_as_in_http1() {
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
        // Any name may be this machine's, as in `Host`.
        (format!("http://any{list}"), None, 200),
        (format!("https://any:1{list}"), None, 200),
        (format!("http://any{list}"), Some("any"), 200),
        (format!("http://any{list}"), Some("other"), 400),
        (format!("http://me@any{list}"), None, 400),
    ] {
        let answer = send(&mut sender, get(&uri, host)).await.unwrap();
        assert_eq!(answer.status(), status, "{uri} {host:?}");
    }
    // A signature covers the Host it was made for, and this is not upstream's.
    let bound = "SDK-HMAC-SHA256 Access=A, SignedHeaders=host, Signature=0";
    let signed = Request::get(format!("http://any{list}")).header("authorization", bound).body(()).unwrap();
    assert_eq!(send(&mut sender, signed).await.unwrap().status(), StatusCode::UNAUTHORIZED);
    let tunnel = Request::builder().method(Method::CONNECT).uri("any:443").body(()).unwrap();
    assert_eq!(send(&mut sender, tunnel).await.unwrap().status(), StatusCode::BAD_REQUEST);
    assert_eq!(world.upstream_calls(), 1);
}

#[tokio::test]
async fn heads_have_bounds_and_cost_no_connection() {
    let world = world("[limits]\nmax_head_size = \"8KiB\"").await;
    let mut sender = connect(world.server.proxy_address()).await;
    let get = |fields: usize, size: usize| {
        // Upstream allows no more of them either, so that it must not be upstream who says so.
        let path = if fields > 100 { "/nowhere" } else { "/v2/p/products" };
        let mut request = Request::get(format!("http://g{path}"));
        for index in 0..fields {
            request = request.header(format!("a{index}"), "b".repeat(size));
        }
        request.body(()).unwrap()
    };
    for (fields, size, status, words) in [
        (90, 1, 401, "APIGW"),
        (1, 9_000, 431, "limits.max_head_size"),
        (1, 20_000, 431, ""),
        (1, 60_000, 431, ""),
        (101, 1, 400, "APIGW"),
        (90, 1, 401, "APIGW"),
    ] {
        let answer = send(&mut sender, get(fields, size)).await.unwrap();
        assert_eq!(answer.status(), status, "{fields} {size}");
        assert!(std::str::from_utf8(answer.body()).unwrap().contains(words), "{fields} {size}");
    }
    // Two calls for a token that isn't there; nothing of the rest was let through.
    assert_eq!(world.upstream_calls(), 2);
}

#[tokio::test]
async fn too_many_fields_are_refused_in_upstreams_shape_and_counted() {
    let world = World::new().await;
    let mut sender = connect(world.server.proxy_address()).await;
    for (requests, (name, fields)) in
        [("a", 101), ("cookie", 101), ("content-length", 101), ("a", 1_000), ("cookie", 5_000)].into_iter().enumerate()
    {
        let mut request = Request::get(format!("http://g/v2/{PROJECT}/products"));
        for _ in 0..fields {
            request = request.header(name, "0");
        }
        let answer = send(&mut sender, request.body(()).unwrap()).await.unwrap();
        assert_eq!(answer.status(), StatusCode::BAD_REQUEST, "{fields} of {name}");
        assert_eq!(answer.headers()["content-type"], "application/json");
        let error: serde_json::Value = serde_json::from_slice(answer.body()).unwrap();
        assert_eq!(error["error_msg"], "workspace-gateway: expected at most 100 header fields");
        assert_eq!(error["request_id"], answer.headers()["x-request-id"].to_str().unwrap());
        let refused = "workspace_gateway_requests_total{operation=\"none\",result=\"refused\",status=\"400\"}";
        world.until_metric(refused, (requests + 1) as f64).await;
    }
    assert_eq!((world.upstream_calls(), world.metric("workspace_gateway_connections")), (0, 1.0));
}

#[tokio::test]
async fn a_head_that_does_not_end_is_cut_off() {
    for part in [vec![], field("a", &"b".repeat(10_000))] {
        let world = World::new().await;
        let mut stream = TcpStream::connect(world.server.proxy_address()).await.unwrap();
        stream.write_all(PREFACE).await.unwrap();
        stream.write_all(&frame(HEADERS, END_STREAM, 1, &head("/v2/p/products", "t"))).await.unwrap();
        let more = frame(CONTINUATION, 0, 1, &part);
        // The gateway has seen enough long before all of this.
        let flood = async {
            for sent in 0..100_000 {
                if stream.write_all(&more).await.is_err() {
                    return sent;
                }
            }
            panic!("it reads on and on")
        };
        let sent = within(flood).await;
        assert!(sent > 5, "{sent}");
        world.until_metric("workspace_gateway_connections", 0.0).await;
        assert_eq!(world.metric("workspace_gateway_requests_in_flight"), 0.0);
        assert!(world.get(LIST).await.status().is_success());
    }
}

#[tokio::test]
async fn a_flood_of_requests_taken_back_at_once_is_ended_and_hurts_nobody() {
    let world = world("").await;
    let [granted] = world.granted().await;
    world.simulator.hold_target(&format!("/v2/{PROJECT}/products?os_type=Linux"));
    let waiting = world.begin_and_arrive(&granted, "/v2/PROJECT/products?os_type=Linux", 1).await;

    let mut stream = TcpStream::connect(world.server.proxy_address()).await.unwrap();
    let mut flood = PREFACE.to_vec();
    for index in 0..10_000 {
        let id = 2 * index + 1;
        let path = format!("/v2/{PROJECT}/products?os_type=Linux&page={index}");
        flood.extend(frame(HEADERS, END_STREAM | END_HEADERS, id, &head(&path, &granted)));
        flood.extend(frame(RST_STREAM, 0, id, &[0, 0, 0, 8]));
    }
    // It may hang up in the midst of this.
    let _ = within(stream.write_all(&flood)).await;
    let served = world.get(LIST).await;
    assert_eq!(served.status(), StatusCode::OK);
    let kinds = frames(&mut stream).await;
    // Gone, told or not: what it has not read when it hangs up makes the kernel drop what it has said.
    assert!(kinds.last().is_none_or(|&last| last == GOAWAY || world.metric(RESETS) > 0.0), "{kinds:?}");

    world.simulator.release_target(&format!("/v2/{PROJECT}/products?os_type=Linux"));
    assert!(within(waiting).await.unwrap().status().is_success());
    world.until_metric(WAITERS, 0.0).await;
    world.until_metric("workspace_gateway_upstream_requests_in_flight{service=\"workspace\"}", 0.0).await;
    world.until_metric("workspace_gateway_requests_in_flight", 0.0).await;
    world.until_metric("workspace_gateway_connections", 1.0).await;
}

#[tokio::test]
async fn who_takes_back_all_it_has_under_way_is_no_flood() {
    let world = World::with("[limits]\nkeepalive_timeout = \"50ms\"\nwrite_timeout = \"50ms\"").await;
    let mut stream = TcpStream::connect(world.server.proxy_address()).await.unwrap();
    let asked = |id| frame(HEADERS, END_STREAM | END_HEADERS, id, &head("/nowhere", "t"));
    let mut all = PREFACE.to_vec();
    for id in (0..100).map(|index| 2 * index + 1) {
        all.extend([asked(id), frame(RST_STREAM, 0, id, &[0, 0, 0, 8])].concat());
    }
    all.extend(asked(201));
    stream.write_all(&all).await.unwrap();
    // Until it has been idle for too long.
    let kinds = frames(&mut stream).await;
    assert!(kinds.contains(&HEADERS), "{kinds:?}");
    assert_eq!(world.metric(RESETS), 0.0);
    assert_eq!(world.metric("workspace_gateway_connections_ended_total{cause=\"keepalive-timeout\"}"), 1.0);
}

const RESETS: &str = "workspace_gateway_connections_ended_total{cause=\"resets\"}";

#[tokio::test]
async fn requests_taken_back_one_by_one_end_with_the_connection_too() {
    let world = world("").await;
    let sender = connect(world.server.proxy_address()).await;
    world.until_metric("workspace_gateway_connections", 1.0).await;
    world.simulator.hold();
    let mut ready = sender.ready().await;
    let mut asked = 0;
    while let Ok(mut sender) = ready {
        let request = Request::get(format!("http://g/v2/p/desktops/{asked}")).body(()).unwrap();
        let Ok((answer, _)) = sender.send_request(request, true) else { break };
        asked += 1;
        assert!(asked < 1_000, "it answers on and on");
        // Under way as far as upstream, or the connection is gone.
        let gone = async {
            // The client has to have the chance to find out.
            tokio::task::yield_now().await;
            while world.metric("workspace_gateway_connections") > 0.0 {
                tokio::task::yield_now().await;
            }
        };
        tokio::select! {
            () = world.simulator.arrived(asked) => {}
            () = within(gone) => {}
        }
        drop(answer);
        ready = within(sender.ready()).await;
    }
    assert_eq!(world.metric(RESETS), 1.0);
    world.until_metric("workspace_gateway_requests_in_flight", 0.0).await;
    world.until_metric("workspace_gateway_upstream_requests_in_flight{service=\"workspace\"}", 0.0).await;
}

#[tokio::test]
async fn an_answer_whose_client_has_no_room_is_given_up_and_others_go_on() {
    let world = world("[limits]\nwrite_timeout = \"50ms\"").await;
    let list = format!("{{\"products\":[\"{}\"]}}", "x".repeat(1_000_000));
    world.simulator.answer_with(Some(Bytes::from(list.clone())));
    world.get(LIST).await;
    let stream = TcpStream::connect(world.server.proxy_address()).await.unwrap();
    // Room for others when one stream has all of its own.
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
                None => panic!("it is whole"),
            }
        }
    })
    .await;
    assert!(broken.is_reset() && read < list.len(), "{broken}");
    assert_eq!(send(&mut sender, get("/nowhere")).await.unwrap().status(), StatusCode::NOT_FOUND);
}

#[tokio::test]
async fn an_upload_that_stalls_ends_with_504() {
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
async fn no_more_streams_than_agreed_are_under_way() {
    let world = world("[upstream]\nmax_calls = 1000\nmax_calls_per_caller = 1000").await;
    let mut stream = TcpStream::connect(world.server.proxy_address()).await.unwrap();
    world.simulator.hold();
    let mut all = PREFACE.to_vec();
    for index in 0..200 {
        let path = format!("/v2/{PROJECT}/desktops/{index}");
        all.extend(frame(HEADERS, END_STREAM | END_HEADERS, 2 * index + 1, &head(&path, &world.token)));
    }
    stream.write_all(&all).await.unwrap();
    within(world.simulator.arrived(128)).await;
    let other = world.begin(&world.token, "/v2/PROJECT/desktops/other");
    within(world.simulator.arrived(129)).await;
    let paths: Vec<_> = world.simulator.requests_seen().iter().map(|seen| seen.target.clone()).collect();
    assert_eq!(paths.last().unwrap(), &format!("/v2/{PROJECT}/desktops/other"));
    world.simulator.release();
    assert!(within(other).await.unwrap().status().is_success());
    drop(stream);
    world.until_metric("workspace_gateway_requests_in_flight", 0.0).await;
    assert_eq!(world.upstream_calls(), 129);
}

#[tokio::test]
async fn stopping_finishes_what_is_under_way_and_says_goodbye() {
    let world = world("").await;
    let address = world.server.proxy_address();
    let mut sender = connect(address).await;
    let request = Request::get(format!("http://g{}", LIST.replace("PROJECT", PROJECT)));
    let request = request.header("x-auth-token", &world.token).body(()).unwrap();
    world.simulator.hold();
    let (answer, _) = sender.send_request(request, true).unwrap();
    within(world.simulator.arrived(1)).await;
    let World { simulator, server, .. } = world;
    let metrics = server.metrics_address();
    let stopping = tokio::spawn(server.stop());
    // The door is shut. The client is told when what is under way is done.
    within(async { while TcpStream::connect(address).await.is_ok() {} }).await;
    let probe = async |path: &str| {
        let reply = Http::new().get(&format!("http://{metrics}{path}")).await;
        (reply.status(), reply.text().to_owned())
    };
    assert_eq!(probe("/readyz").await, (StatusCode::SERVICE_UNAVAILABLE, "draining\n".to_owned()));
    assert_eq!(probe("/healthz").await, (StatusCode::OK, "ok\n".to_owned()));
    assert!(!stopping.is_finished());
    simulator.release();
    let mut answer = within(answer).await.unwrap();
    assert_eq!(answer.status(), StatusCode::OK);
    within(async { while answer.body_mut().data().await.is_some_and(|part| part.is_ok()) {} }).await;
    within(async {
        while sender.clone().ready().await.is_ok() {
            tokio::task::yield_now().await;
        }
    })
    .await;
    within(stopping).await.unwrap();
}

#[tokio::test]
async fn whoever_watches_speaks_http1() {
    let world = World::new().await;
    for address in [world.server.metrics_address(), world.server.admin_address()] {
        let mut stream = TcpStream::connect(address).await.unwrap();
        stream.write_all(PREFACE).await.unwrap();
        let mut said = Vec::new();
        within(async { while stream.read_buf(&mut said).await.is_ok_and(|more| more > 0) {} }).await;
        assert!(!said.windows(5).any(|said| said == b" 200 "), "{}", String::from_utf8_lossy(&said));
    }
}
