//! The memory budget: what is charged, when charges are returned, and what happens at the limit.

use std::sync::Arc;

use http::{HeaderMap, Method, Request, StatusCode};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use workspace_gateway::testing::budget::{Budget, Charge, Purpose};
use workspace_gateway::testing::simulator::Simulator;

use crate::support::raw_client::{RawClient, head_as};
use crate::support::raw_upstream::{RawUpstream, sends};
use crate::support::signer::{Signed, world_with_key};
use crate::support::{Http, PROJECT, World, all_replies, with_fast_path, within};

const LIST: &str = "/v2/PROJECT/products?os_type=Linux";
const OTHER: &str = "/v2/PROJECT/products?os_type=Windows";

fn budget(world: &World) -> &Arc<Budget> {
    world.server.gateway().budget()
}

/// Charges the budget until only this many bytes are left.
fn leave_free(world: &World, bytes: usize) -> Charge {
    let budget = budget(world);
    budget.charge(Purpose::Connections, budget.limit() - budget.used() - bytes)
}

/// Waits until nothing is charged for a purpose.
async fn until_returned(world: &World, purpose: Purpose) {
    let series = format!(r#"workspace_gateway_memory_used_bytes{{purpose="{}"}}"#, purpose.into_str());
    world.until_metric(&series, 0.0).await;
}

#[tokio::test]
async fn a_large_head_is_charged_until_its_response_is_sent() {
    let world = World::new().await;
    let mut client = RawClient::connect(&world).await;
    let large = head_as(&world.token, LIST, &[&format!("x-large: {}", "x".repeat(200_000))]);
    let small = head_as(&world.token, LIST, &[]);
    for _ in 0..3 {
        assert_eq!(client.exchange(&large).await.status(), 200);
        until_returned(&world, Purpose::Heads).await;
        assert_eq!(client.exchange(&small).await.status(), 200);
    }
    until_returned(&world, Purpose::Requests).await;
}

#[tokio::test]
async fn a_request_pipelined_after_a_large_head_is_answered() {
    let world = World::new().await;
    let large = head_as(&world.token, LIST, &[&format!("x-large: {}", "x".repeat(100_000))]);
    let small = head_as(&world.token, LIST, &[]);
    for cut in [1, 20, small.len() - 1, small.len()] {
        let mut client = RawClient::connect(&world).await;
        client.send(format!("{large}{}", &small[..cut])).await;
        assert_eq!(client.read_response().await.status(), 200, "{cut}");
        client.send(&small[cut..]).await;
        assert_eq!(client.read_response().await.status(), 200, "{cut}");
        assert_eq!(client.exchange(&small).await.status(), 200, "{cut}");
    }
}

#[tokio::test]
async fn a_large_head_waits_for_memory_while_others_are_answered() {
    let world = World::new().await;
    assert_eq!(world.get(LIST).await.status(), StatusCode::OK);
    let mut other = RawClient::connect(&world).await;
    let small = head_as(&world.token, LIST, &[]);
    assert_eq!(other.exchange(&small).await.status(), 200);
    let charge = leave_free(&world, 600 * 1024);
    let large = head_as(&world.token, LIST, &[&format!("x-large: {}", "x".repeat(200_000))]);
    let mut waiting = RawClient::connect(&world).await;
    let refusals = world.metric("workspace_gateway_memory_refusals_total");
    waiting.send(large).await;
    world.until_metric_over("workspace_gateway_memory_refusals_total", refusals).await;
    assert_eq!(other.exchange(&small).await.status(), 200);
    assert!(budget(&world).used_for(Purpose::Heads) < 200_000);
    drop(charge);
    assert_eq!(waiting.read_response().await.status(), 200);
}

#[tokio::test]
async fn without_memory_unknown_callers_get_503_and_readyz_reports_it() {
    let world = World::new().await;
    let mut client = RawClient::connect(&world).await;
    let head = head_as("unknown", LIST, &[]);
    assert_eq!(client.exchange(&head).await.status(), 401);
    let charge = leave_free(&world, 1024);
    let refused = client.exchange(&head).await;
    assert_eq!(refused.status(), 503);
    assert!(refused.body.contains("limits.memory"), "{refused:?}");
    let ready = world.http.get(&world.metrics_url("/readyz")).await;
    assert_eq!(
        (ready.status(), ready.text()),
        (StatusCode::OK, "ready; the memory budget is reached (limits.memory)\n")
    );
    assert!(world.metric("workspace_gateway_memory_refusals_total") >= 1.0);
    drop(charge);
    assert_eq!(world.get(LIST).await.status(), StatusCode::OK);
    assert_eq!(world.http.get(&world.metrics_url("/readyz")).await.text(), "ready\n");
}

#[tokio::test]
async fn fast_path_hits_need_no_memory() {
    let world = World::with(&with_fast_path(true, "")).await;
    let mut client = RawClient::connect(&world).await;
    let head = head_as(&world.token, LIST, &[]);
    for _ in 0..3 {
        assert_eq!(client.exchange(&head).await.status(), 200);
    }
    let _all = budget(&world).charge(Purpose::Connections, budget(&world).limit());
    assert_eq!(client.exchange(&head).await.status(), 200);
}

#[tokio::test]
async fn without_memory_a_response_is_streamed_and_not_stored() {
    let list = format!(r#"{{"products":["{}"]}}"#, "x".repeat(400_000));
    let response = sends(format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{list}", list.len()));
    let upstream = RawUpstream::start([response.clone(), response.clone(), response]).await;
    let simulator = Simulator::start().await.unwrap();
    let world = World::with_upstreams(simulator, upstream.url(), upstream.url(), "").await;
    let charge = leave_free(&world, 1200 * 1024);
    let reply = world.get(LIST).await;
    assert_eq!((reply.status(), reply.body().len()), (StatusCode::OK, list.len()));
    assert_eq!(world.metric(r#"workspace_gateway_unstored_responses_total{reason="memory"}"#), 1.0);
    drop(charge);
    // The key is not marked as unstorable.
    assert!(world.get(LIST).await.cache_status().contains("; stored"));
    assert!(world.get(LIST).await.is_hit());
}

#[tokio::test]
async fn a_call_in_flight_has_memory_for_its_response() {
    let world = World::new().await;
    world.simulator.hold();
    let pending = world.begin_and_reach_upstream(&world.token, LIST, 1).await;
    let _all = leave_free(&world, 0);
    world.simulator.release();
    let reply = within(pending).await.unwrap();
    assert_eq!((reply.status(), world.upstream_calls()), (StatusCode::OK, 1), "{}", reply.text());
    assert!(reply.cache_status().contains("; stored"), "{}", reply.cache_status());
}

#[tokio::test]
async fn without_memory_for_the_response_a_call_does_not_wait_for_a_quota() {
    let settings = "[[quota]]\nservice = \"workspace\"\npolicy = \"user\"\nlimit = 1\nwindow = \"60s\"\n";
    let world = World::with(settings).await;
    let mut client = RawClient::connect(&world).await;
    assert_eq!(client.exchange(&head_as(&world.token, LIST, &[])).await.status(), 200);
    // It is enough for the request.
    let _others = leave_free(&world, 80 * 1024);
    let reply = client.exchange(&head_as(&world.token, OTHER, &[])).await;
    assert_eq!((reply.status(), world.upstream_calls()), (429, 1), "{reply:?}");
    assert!(!reply.header("retry-after").is_empty());
}

#[tokio::test]
async fn a_purged_entry_is_charged_while_a_client_reads_it() {
    let list = format!(r#"{{"products":["{}"]}}"#, "x".repeat(2_000_000));
    let response = sends(format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{list}", list.len()));
    let upstream = RawUpstream::start([response]).await;
    let simulator = Simulator::start().await.unwrap();
    let world = World::with_upstreams(simulator, upstream.url(), upstream.url(), "").await;
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
async fn a_large_signed_body_is_not_charged_before_it_arrives() {
    let (world, key) = world_with_key().await;
    let signed = Signed::new(&world, &key, Method::POST, "/v2/p/desktops", "");
    let fields = signed.headers.iter().map(|(name, value)| format!("{name}: {}\r\n", value.to_str().unwrap()));
    let fields: String = fields.collect();
    let host = world.server.proxy_address();
    let host = if signed.headers.contains_key("host") { String::new() } else { format!("host: {host}\r\n") };
    let mut client = RawClient::connect(&world).await;
    client.send(format!("POST /v2/p/desktops HTTP/1.1\r\n{host}{fields}content-length: 12000000\r\n\r\n")).await;
    world.until_metric("workspace_gateway_requests_in_flight", 1.0).await;
    assert!(budget(&world).used() < 256 * 1024, "{}", budget(&world).used());
}

#[tokio::test]
async fn all_charges_are_returned_when_the_requests_have_ended() {
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

/// A gateway with a small budget. Upstream sends lists of 400 kB.
async fn small_world_with_large_lists() -> (World, RawUpstream) {
    let list = format!(r#"{{"products":["{}"]}}"#, "x".repeat(400_000));
    let response = sends(format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{list}", list.len()));
    let upstream = RawUpstream::start(vec![response; 40]).await;
    let simulator = Simulator::start().await.unwrap();
    let settings = "[limits]\nmemory = \"8MiB\"";
    (World::with_upstreams(simulator, upstream.url(), upstream.url(), settings).await, upstream)
}

#[tokio::test]
async fn unread_responses_of_one_caller_use_at_most_half_the_budget() {
    let (world, _upstream) = small_world_with_large_lists().await;
    assert_eq!(world.get(LIST).await.status(), StatusCode::OK);
    let head = head_as(&world.token, LIST, &["cache-control: no-cache"]);
    let mut unread = Vec::new();
    for _ in 0..20 {
        let mut stream = TcpStream::connect(world.server.proxy_address()).await.unwrap();
        stream.write_all(head.as_bytes()).await.unwrap();
        unread.push(stream);
    }
    world.until_metric_over(r#"workspace_gateway_memory_used_bytes{purpose="responses"}"#, 2_400_000.0).await;
    world.until_metric_over("workspace_gateway_memory_refusals_total", 0.0).await;
    let used = budget(&world).used_for(Purpose::Responses);
    assert!(used <= budget(&world).limit() / 2, "{used}");
    // It still has hits on another connection, and another caller gets its share.
    assert!(world.get(LIST).await.is_hit());
    let other = world.simulator.token(PROJECT);
    let own = [("x-auth-token", other.as_str())];
    let reply = Http::new().send(Method::GET, &world.url(LIST), &own, "").await;
    assert!(reply.cache_status().contains("; fwd=miss; fwd-status=200"), "{}", reply.cache_status());
}

#[tokio::test]
async fn requests_beyond_the_share_of_a_connection_get_503() {
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
    let requests: Vec<_> = (0..40).map(|_| ask()).collect();
    world.until_metric_over("workspace_gateway_memory_refusals_total", 0.0).await;
    assert!(budget(&world).used() < budget(&world).limit() * 9 / 10);
    world.simulator.release();
    // About 14 requests fit into the share. A few more wait after their heads have been read. The others get 503.
    let statuses: Vec<_> = all_replies(requests).await.iter().map(|reply| reply.status()).collect();
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
    let (response, mut upload) = client.send_request(post(), false).unwrap();
    upload
        .send_trailers(HeaderMap::from_iter([("x-long".parse().unwrap(), "x".repeat(1_000).parse().unwrap())]))
        .unwrap();
    within(world.simulator.wait_for_requests(1)).await;
    let charged = || budget(&world).used_for(Purpose::Heads);
    assert!(charged() > 1_000, "{}", charged());
    world.simulator.release();
    within(response).await.unwrap();
    until_returned(&world, Purpose::Requests).await;
    // The charge for the trailers is returned with the client's next request.
    let (next, _) = client.send_request(Request::get(world.url("/nowhere")).body(()).unwrap(), true).unwrap();
    within(next).await.unwrap();
    assert_eq!(charged(), 0);
}

#[tokio::test]
async fn an_upload_that_upstream_does_not_read_is_dropped_after_504() {
    let upstream = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", upstream.local_addr().unwrap());
    let settings = "[upstream]\nidle_timeout = \"500ms\"";
    let world = World::with_upstreams(Simulator::start().await.unwrap(), &url, &url, settings).await;
    let client = TcpStream::connect(world.server.proxy_address()).await.unwrap();
    let (mut reader, mut writer) = client.into_split();
    let uploading = async {
        let head = format!("POST /v2/{PROJECT}/desktops HTTP/1.1\r\nHost: x\r\nContent-Length: 100000000\r\n\r\n");
        writer.write_all(head.as_bytes()).await.unwrap();
        // The upload ends with the connection.
        while writer.write_all(&[b'x'; 65_536]).await.is_ok() {}
    };
    let mut response = Vec::new();
    let (_, (_unread, _), _) = within(async {
        // A reset may follow the response.
        tokio::join!(uploading, async { upstream.accept().await.unwrap() }, reader.read_to_end(&mut response))
    })
    .await;
    assert!(response.starts_with(b"HTTP/1.1 504 "), "{}", String::from_utf8_lossy(&response));
    until_returned(&world, Purpose::Responses).await;
}
