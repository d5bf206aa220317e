//! The memory budget: what is charged to it, when that is returned, and what happens when it is used up.

use std::sync::Arc;

use http::{HeaderMap, Method, Request, StatusCode};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use workspace_gateway::testing::budget::{Budget, Charge, Purpose};
use workspace_gateway::testing::simulator::Simulator;

use crate::support::line::{Line, head_as};
use crate::support::raw::{RawUpstream, says};
use crate::support::signer::{Signed, one_key};
use crate::support::{Http, PROJECT, World, all, with_fast_path, within};

const LIST: &str = "/v2/PROJECT/products?os_type=Linux";

fn budget(world: &World) -> &Arc<Budget> {
    world.server.gateway().budget()
}

/// Uses up all but this many bytes.
fn use_up_all_but(world: &World, bytes: usize) -> Charge {
    let budget = budget(world);
    budget.charge(Purpose::Connections, budget.limit() - budget.used() - bytes)
}

/// Until nothing is charged for a purpose.
async fn until_returned(world: &World, purpose: Purpose) {
    let series = format!(r#"workspace_gateway_memory_used_bytes{{purpose="{}"}}"#, purpose.into_str());
    world.until_metric(&series, 0.0).await;
}

#[tokio::test]
async fn a_large_head_is_charged_until_it_is_answered_though_the_connection_stays_open() {
    let world = World::new().await;
    let mut line = Line::to(&world).await;
    let large = head_as(&world.token, LIST, &[&format!("x-large: {}", "x".repeat(200_000))]);
    let small = head_as(&world.token, LIST, &[]);
    for _ in 0..3 {
        assert_eq!(line.asks(&large).await.status(), 200);
        until_returned(&world, Purpose::Heads).await;
        assert_eq!(line.asks(&small).await.status(), 200);
    }
    until_returned(&world, Purpose::Requests).await;
}

#[tokio::test]
async fn what_came_behind_a_large_head_is_answered_after_it() {
    let world = World::new().await;
    let large = head_as(&world.token, LIST, &[&format!("x-large: {}", "x".repeat(100_000))]);
    let small = head_as(&world.token, LIST, &[]);
    for cut in [1, 20, small.len() - 1, small.len()] {
        let mut line = Line::to(&world).await;
        line.says(format!("{large}{}", &small[..cut])).await;
        assert_eq!(line.hears().await.status(), 200, "{cut}");
        line.says(&small[cut..]).await;
        assert_eq!(line.hears().await.status(), 200, "{cut}");
        assert_eq!(line.asks(&small).await.status(), 200, "{cut}");
    }
}

#[tokio::test]
async fn a_large_head_is_not_read_on_until_there_is_room_and_others_are_answered() {
    let world = World::new().await;
    assert_eq!(world.get(LIST).await.status(), StatusCode::OK);
    let mut other = Line::to(&world).await;
    let small = head_as(&world.token, LIST, &[]);
    assert_eq!(other.asks(&small).await.status(), 200);
    let rest = use_up_all_but(&world, 600 * 1024);
    let large = head_as(&world.token, LIST, &[&format!("x-large: {}", "x".repeat(200_000))]);
    let mut waiting = Line::to(&world).await;
    let refused = world.metric("workspace_gateway_memory_refusals_total");
    waiting.says(large).await;
    world.until_metric_over("workspace_gateway_memory_refusals_total", refused).await;
    assert_eq!(other.asks(&small).await.status(), 200);
    assert!(budget(&world).used_for(Purpose::Heads) < 200_000);
    drop(rest);
    assert_eq!(waiting.hears().await.status(), 200);
}

#[tokio::test]
async fn without_room_a_request_is_refused_with_503_and_says_so_everywhere() {
    let world = World::new().await;
    let mut line = Line::to(&world).await;
    let head = head_as("unknown", LIST, &[]);
    assert_eq!(line.asks(&head).await.status(), 401);
    let rest = use_up_all_but(&world, 1024);
    let refused = line.asks(&head).await;
    assert_eq!(refused.status(), 503);
    assert!(refused.body.contains("limits.memory"), "{refused:?}");
    let ready = world.http.get(&world.metrics_url("/readyz")).await;
    assert_eq!(
        (ready.status(), ready.text()),
        (StatusCode::OK, "ready; the memory budget is reached (limits.memory)\n")
    );
    assert!(world.metric("workspace_gateway_memory_refusals_total") >= 1.0);
    drop(rest);
    assert_eq!(world.get(LIST).await.status(), StatusCode::OK);
    assert_eq!(world.http.get(&world.metrics_url("/readyz")).await.text(), "ready\n");
}

#[tokio::test]
async fn heads_that_have_come_before_are_answered_without_room() {
    let world = World::with(&with_fast_path(true, "")).await;
    let mut line = Line::to(&world).await;
    let head = head_as(&world.token, LIST, &[]);
    for _ in 0..3 {
        assert_eq!(line.asks(&head).await.status(), 200);
    }
    let _all = budget(&world).charge(Purpose::Connections, budget(&world).limit());
    assert_eq!(line.asks(&head).await.status(), 200);
}

#[tokio::test]
async fn an_answer_for_which_there_is_no_room_is_streamed_and_not_kept() {
    let list = format!(r#"{{"products":["{}"]}}"#, "x".repeat(400_000));
    let answer = says(format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{list}", list.len()));
    let upstream = RawUpstream::start([answer.clone(), answer.clone(), answer]).await;
    let simulator = Simulator::start().await.unwrap();
    let world = World::before(simulator, upstream.url(), upstream.url(), "").await;
    let rest = use_up_all_but(&world, 1200 * 1024);
    let reply = world.get(LIST).await;
    assert_eq!((reply.status(), reply.body().len()), (StatusCode::OK, list.len()));
    assert_eq!(world.metric(r#"workspace_gateway_unstored_responses_total{reason="memory"}"#), 1.0);
    drop(rest);
    // Nothing is remembered of it.
    assert!(world.get(LIST).await.cache_status().contains("; stored"));
    assert!(world.get(LIST).await.is_hit());
}

#[tokio::test]
async fn an_entry_that_the_cache_has_let_go_is_charged_while_a_client_reads_it() {
    let list = format!(r#"{{"products":["{}"]}}"#, "x".repeat(2_000_000));
    let answer = says(format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{list}", list.len()));
    let upstream = RawUpstream::start([answer]).await;
    let simulator = Simulator::start().await.unwrap();
    let world = World::before(simulator, upstream.url(), upstream.url(), "").await;
    assert_eq!(world.get(LIST).await.status(), StatusCode::OK);
    until_returned(&world, Purpose::Responses).await;
    let mut slow = TcpStream::connect(world.server.proxy_address()).await.unwrap();
    slow.write_all(head_as(&world.token, LIST, &[]).as_bytes()).await.unwrap();
    let mut read = vec![0; 100];
    within(slow.read_exact(&mut read)).await.unwrap();
    world.purge();
    assert!(budget(&world).used_for(Purpose::Responses) > list.len());
    while !read.ends_with(b"]}") {
        within(slow.read_buf(&mut read)).await.unwrap();
    }
    until_returned(&world, Purpose::Responses).await;
}

#[tokio::test]
async fn a_large_signed_body_is_not_charged_before_it_comes() {
    let (world, key) = one_key().await;
    let signed = Signed::new(&world, &key, Method::POST, "/v2/p/desktops", "");
    let fields = signed.headers.iter().map(|(name, value)| format!("{name}: {}\r\n", value.to_str().unwrap()));
    let fields: String = fields.collect();
    let host = world.server.proxy_address();
    let host = if signed.headers.contains_key("host") { String::new() } else { format!("host: {host}\r\n") };
    let mut line = Line::to(&world).await;
    line.says(format!("POST /v2/p/desktops HTTP/1.1\r\n{host}{fields}content-length: 12000000\r\n\r\n")).await;
    world.until_metric("workspace_gateway_requests_in_flight", 1.0).await;
    assert!(budget(&world).used() < 256 * 1024, "{}", budget(&world).used());
}

#[tokio::test]
async fn everything_is_returned_when_the_clients_have_gone() {
    let world = World::new().await;
    let token = [("x-auth-token", world.token.as_str())];
    for (method, path, body) in [
        (Method::GET, LIST, ""),
        (Method::GET, "/v2/PROJECT/desktops", ""),
        (Method::POST, "/v2/PROJECT/desktops", "body"),
        (Method::GET, "/nowhere", ""),
    ] {
        let http2 = Http::http2();
        for http in [&world.http, &http2] {
            http.send(method.clone(), &world.url(path), &token, body).await;
        }
    }
    for purpose in [Purpose::Heads, Purpose::Requests, Purpose::Responses, Purpose::Sockets] {
        until_returned(&world, purpose).await;
    }
}

/// A world with a small budget, before an upstream that answers with lists of 400 kB.
async fn small_world_with_large_lists() -> (World, RawUpstream) {
    let list = format!(r#"{{"products":["{}"]}}"#, "x".repeat(400_000));
    let answer = says(format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{list}", list.len()));
    let upstream = RawUpstream::start(vec![answer; 40]).await;
    let simulator = Simulator::start().await.unwrap();
    let settings = "[limits]\nmemory = \"8MiB\"";
    (World::before(simulator, upstream.url(), upstream.url(), settings).await, upstream)
}

#[tokio::test]
async fn a_caller_whose_unread_answers_hold_its_half_gets_no_more_and_still_has_hits() {
    let (world, _upstream) = small_world_with_large_lists().await;
    assert_eq!(world.get(LIST).await.status(), StatusCode::OK);
    let asks = head_as(&world.token, LIST, &["cache-control: no-cache"]);
    let mut unread = Vec::new();
    for _ in 0..20 {
        let mut stream = TcpStream::connect(world.server.proxy_address()).await.unwrap();
        stream.write_all(asks.as_bytes()).await.unwrap();
        unread.push(stream);
    }
    world.until_metric_over(r#"workspace_gateway_memory_used_bytes{purpose="responses"}"#, 2_400_000.0).await;
    world.until_metric_over("workspace_gateway_memory_refusals_total", 0.0).await;
    let held = budget(&world).used_for(Purpose::Responses);
    assert!(held <= budget(&world).limit() / 2, "{held}");
    // On another connection, too, and another caller gets its share.
    assert!(world.get(LIST).await.is_hit());
    let other = world.simulator.token(PROJECT);
    let own = [("x-auth-token", other.as_str())];
    let reply = Http::new().send(Method::GET, &world.url(LIST), &own, "").await;
    assert!(reply.cache_status().contains("; fwd=miss; fwd-status=200"), "{}", reply.cache_status());
}

#[tokio::test]
async fn requests_of_a_connection_beyond_what_it_may_have_do_not_end_it() {
    let world = World::with("[limits]\nmemory = \"8MiB\"").await;
    assert_eq!(world.get(LIST).await.status(), StatusCode::OK);
    world.simulator.hold();
    let http2 = Http::http2();
    let padding = "x".repeat(240_000);
    let ask = || {
        let (http2, url, token, padding) = (http2.clone(), world.url(LIST), world.token.clone(), padding.clone());
        tokio::spawn(async move {
            let headers = [("x-auth-token", token.as_str()), ("cache-control", "no-cache"), ("x-padding", &padding)];
            http2.send(Method::GET, &url, &headers, "").await
        })
    };
    let asking: Vec<_> = (0..40).map(|_| ask()).collect();
    world.until_metric_over("workspace_gateway_memory_refusals_total", 0.0).await;
    assert!(budget(&world).used() < budget(&world).limit() * 9 / 10);
    world.simulator.release();
    // About 14 were in progress. Few may wait once their heads have been read; the others are told so.
    let statuses: Vec<_> = all(asking).await.iter().map(|reply| reply.status()).collect();
    let count = |status| statuses.iter().filter(|it| **it == status).count();
    assert!(count(StatusCode::OK) >= 12, "{statuses:?}");
    assert_eq!(count(StatusCode::OK) + count(StatusCode::SERVICE_UNAVAILABLE), 40, "{statuses:?}");
}

#[tokio::test]
async fn trailers_are_charged_until_their_requests_are_answered() {
    let world = World::new().await;
    let stream = TcpStream::connect(world.server.proxy_address()).await.unwrap();
    let (mut client, connection) = h2::client::handshake(stream).await.unwrap();
    tokio::spawn(connection);
    world.simulator.hold();
    let post = || {
        let url = world.url("/v2/PROJECT/desktops");
        Request::post(url).header("x-auth-token", &world.token).body(()).unwrap()
    };
    let (held, mut upload) = client.send_request(post(), false).unwrap();
    upload
        .send_trailers(HeaderMap::from_iter([("x-long".parse().unwrap(), "x".repeat(1_000).parse().unwrap())]))
        .unwrap();
    within(world.simulator.arrived(1)).await;
    let charged = || budget(&world).used_for(Purpose::Heads);
    assert!(charged() > 1_000, "{}", charged());
    world.simulator.release();
    within(held).await.unwrap();
    until_returned(&world, Purpose::Requests).await;
    // It is returned when the client sends something else.
    let (next, _) = client.send_request(Request::get(world.url("/nowhere")).body(()).unwrap(), true).unwrap();
    within(next).await.unwrap();
    assert_eq!(charged(), 0);
}

#[tokio::test]
async fn an_upload_that_upstream_does_not_read_is_let_go_after_it_was_answered_504() {
    let upstream = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", upstream.local_addr().unwrap());
    let settings = "[upstream]\nidle_timeout = \"500ms\"";
    let world = World::before(Simulator::start().await.unwrap(), &url, &url, settings).await;
    let client = TcpStream::connect(world.server.proxy_address()).await.unwrap();
    let (mut reader, mut writer) = client.into_split();
    let uploading = async {
        let head = format!("POST /v2/{PROJECT}/desktops HTTP/1.1\r\nHost: x\r\nContent-Length: 100000000\r\n\r\n");
        writer.write_all(head.as_bytes()).await.unwrap();
        // It ends when the connection does.
        while writer.write_all(&[b'x'; 65_536]).await.is_ok() {}
    };
    let mut answer = Vec::new();
    let (_, (_unread, _), _) = within(async {
        // A reset may come behind the answer.
        tokio::join!(uploading, async { upstream.accept().await.unwrap() }, reader.read_to_end(&mut answer))
    })
    .await;
    assert!(answer.starts_with(b"HTTP/1.1 504 "), "{}", String::from_utf8_lossy(&answer));
    until_returned(&world, Purpose::Responses).await;
}
