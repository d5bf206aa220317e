//! HTTP/1 clients that close their sending side after the request, as `nc -N` does, and wait for the response. A client
//! that has disconnected looks the same until the gateway writes to it.

use http::StatusCode;
use workspace_gateway::testing::simulator::Simulator;

use crate::support::raw_client::{RawClient, head_as};
use crate::support::raw_upstream::{RawUpstream, sends};
use crate::support::{PROJECT, World, all_replies};

const LIST: &str = "/v2/PROJECT/products";
const RELAYED: &str = "/v2/PROJECT/desktops";

const ENDED: &str = "workspace_gateway_connections_ended_total{cause=\"half-close\"}";
const OPEN: &str = "workspace_gateway_connections";
const ABANDONED: &str = "workspace_gateway_upstream_requests_total{service=\"workspace\",status=\"abandoned\"}";

/// The metric of the relays of a class that are in flight.
fn in_flight(class: &str) -> String {
    format!("workspace_gateway_upstream_calls_by_class{{class=\"{class}\",kind=\"relay\"}}")
}

/// The metric of the relays of a class that wait for a slot.
fn queued(class: &str) -> String {
    format!("workspace_gateway_upstream_calls_queued_by_class{{class=\"{class}\",kind=\"relay\"}}")
}

async fn world_with_long_limit() -> World {
    World::with("[limits]\nhalf_close = \"1h\"").await
}

fn post(world: &World, fields: &str, body: &str) -> String {
    let head = format!("POST /v2/{PROJECT}/desktops HTTP/1.1\r\nhost: gateway\r\nx-auth-token: {}\r\n", world.token);
    format!("{head}{fields}\r\n{body}")
}

/// A client that sends this request and closes its sending side at once. It has sent another request before: on a new
/// connection the gateway may notice the end only after the request has begun.
async fn half_closed_client(world: &World, request: impl AsRef<[u8]>) -> RawClient {
    let mut client = RawClient::connect(world).await;
    client.exchange("OPTIONS * HTTP/1.1\r\nhost: gateway\r\n\r\n").await;
    client.send_and_finish(request).await;
    client
}

#[tokio::test]
async fn a_half_closed_client_is_answered_and_its_connection_closed() {
    let world = World::new().await;
    for request in [
        world.head(LIST, &[]),
        world.head(RELAYED, &[]),
        post(&world, "content-length: 4\r\n", "body"),
        post(&world, "transfer-encoding: chunked\r\n", "4\r\nbody\r\n0\r\n\r\n"),
    ] {
        let mut new_client = RawClient::connect(&world).await;
        new_client.send_and_finish(&request).await;
        for mut client in [new_client, half_closed_client(&world, &request).await] {
            let responses = client.read_responses().await;
            assert_eq!(responses.iter().map(|response| response.status()).collect::<Vec<_>>(), [200], "{request}");
            assert!(!request.starts_with("POST") || responses[0].body == "body", "{responses:?}");
            world.purge();
        }
    }
    world.until_metric(OPEN, 0.0).await;
    assert_eq!(world.metric(ENDED), 0.0);
}

#[tokio::test]
async fn a_client_that_half_closes_during_the_upstream_call_is_answered() {
    let world = world_with_long_limit().await;
    for (calls, path) in [(1, LIST), (2, RELAYED)] {
        world.simulator.hold();
        let mut client = RawClient::connect(&world).await;
        client.send(world.head(path, &[])).await;
        world.simulator.wait_for_requests(calls).await;
        client.finish_sending().await;
        client.assert_no_response().await;
        world.simulator.release();
        assert_eq!(client.read_responses().await[0].status(), 200, "{path}");
    }
}

#[tokio::test]
async fn all_pipelined_requests_of_a_half_closed_client_are_answered() {
    let world = World::new().await;
    let responses = half_closed_client(&world, world.head(RELAYED, &[]).repeat(3)).await.read_responses().await;
    assert_eq!(responses.len(), 3);
}

#[tokio::test]
async fn a_probe_on_a_half_closed_connection_is_answered() {
    let world = World::new().await;
    let mut client = RawClient::connect_to(world.server.metrics_address()).await;
    client.send_and_finish("GET /readyz HTTP/1.1\r\nhost: gateway\r\n\r\n").await;
    assert_eq!(client.read_responses().await[0].status(), 200);
}

#[tokio::test]
async fn a_response_that_exceeds_the_half_close_limit_is_not_sent() {
    let world = World::with("[limits]\nhalf_close = \"50ms\"").await;
    world.simulator.hold();
    assert_eq!(half_closed_client(&world, world.head(RELAYED, &[])).await.read_to_end().await, b"");
    world.until_metric(ABANDONED, 1.0).await;
    assert_eq!(world.metric(ENDED), 1.0);
}

#[tokio::test]
async fn with_a_limit_of_zero_a_half_close_ends_the_request() {
    let world = World::with("[limits]\nhalf_close = \"0s\"").await;
    world.simulator.hold();
    assert_eq!(half_closed_client(&world, world.head(RELAYED, &[])).await.read_to_end().await, b"");
    assert_eq!(world.metric(ENDED), 0.0);
}

#[tokio::test]
async fn a_disconnected_client_is_noticed_at_its_reset() {
    let world = world_with_long_limit().await;
    world.simulator.hold();
    let mut client = RawClient::connect(&world).await;
    client.send(world.head(RELAYED, &[])).await;
    world.simulator.wait_for_requests(1).await;
    client.finish_sending().await;
    assert_eq!(world.metric(ABANDONED), 0.0);
    let stream = client.into_stream();
    stream.set_zero_linger().unwrap();
    drop(stream);
    world.until_metric(ABANDONED, 1.0).await;
    world.until_metric(OPEN, 0.0).await;
}

#[tokio::test]
async fn a_disconnected_client_is_noticed_at_the_next_write() {
    let first_part = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1\r\na\r\n";
    let upstream = RawUpstream::start([sends(first_part).then_waits().then_sends("1\r\nb\r\n")]).await;
    let settings = "[limits]\nhalf_close = \"1h\"";
    let world =
        World::with_upstreams(Simulator::start().await.unwrap(), upstream.url(), upstream.url(), settings).await;
    let mut client = RawClient::connect(&world).await;
    client.send(world.head(RELAYED, &[])).await;
    client.read_some().await;
    drop(client);
    upstream.resume();
    upstream.wait_for_closes(1).await;
    world.until_metric(OPEN, 0.0).await;
}

#[tokio::test]
async fn an_upload_that_ends_before_its_body_is_complete_is_rejected_at_once() {
    for (fields, body) in [("content-length: 5\r\n", "body"), ("transfer-encoding: chunked\r\n", "4\r\nbody\r\n")] {
        let world = world_with_long_limit().await;
        world.simulator.hold();
        let response = half_closed_client(&world, post(&world, fields, body)).await.read_to_end().await;
        let response = String::from_utf8(response).unwrap();
        assert!(response.starts_with("HTTP/1.1 400 ") && response.contains("incomplete or malformed"), "{response}");
        world.until_metric(OPEN, 0.0).await;
        assert_eq!(world.metric("workspace_gateway_requests_in_flight"), 0.0, "{fields}");
    }
}

#[tokio::test]
async fn an_idle_connection_is_closed_when_its_client_half_closes() {
    let world = world_with_long_limit().await;
    let mut client = RawClient::connect(&world).await;
    client.exchange(world.head(RELAYED, &[])).await;
    client.finish_sending().await;
    assert!(client.read_responses().await.is_empty());
    world.until_metric(OPEN, 0.0).await;
}

#[tokio::test]
async fn a_half_closed_request_has_no_waiters_but_may_wait_for_others() {
    let world = world_with_long_limit().await;
    let tokens = world.granted_tokens::<2>().await;
    world.purge();
    world.simulator.forget_requests();
    world.simulator.hold();
    let mut first = half_closed_client(&world, head_as(&tokens[0], LIST, &[])).await;
    world.simulator.wait_for_requests(1).await;
    let other = world.begin_and_reach_upstream(&tokens[1], LIST, 2).await;
    let mut last = half_closed_client(&world, head_as(&tokens[0], LIST, &[])).await;
    last.assert_no_response().await;
    assert_eq!(world.upstream_calls(), 2, "the last request waits for the other caller's call");
    world.simulator.release();
    assert_eq!(other.await.unwrap().status(), StatusCode::OK);
    for client in [&mut first, &mut last] {
        assert_eq!(client.read_responses().await[0].status(), 200);
    }
    assert_eq!(world.upstream_calls(), 2);
}

#[tokio::test]
async fn a_half_closed_client_gets_a_large_response_completely() {
    let world = world_with_long_limit().await;
    let list = format!("{{\"products\":[],\"padding\":\"{}\"}}", "x".repeat(4 << 20));
    world.simulator.set_list_body(Some(list.clone().into()));
    for path in [LIST, LIST] {
        // A head that has not come before, so the fast path does not answer it.
        let mut client = RawClient::connect(&world).await;
        client.send(world.head(path, &["x-number: 1"])).await;
        // After this read, the gateway has filled the socket's buffer.
        client.read_some().await;
        client.finish_sending().await;
        let responses = client.read_responses().await;
        assert_eq!(responses.iter().map(|response| response.body.len()).collect::<Vec<_>>(), [list.len()], "{path}");
    }
}

#[tokio::test]
async fn half_closed_requests_hold_at_most_a_quarter_of_the_slots() {
    let world = World::with("[upstream]\nmax_calls = 8\n[limits]\nhalf_close = \"1h\"").await;
    world.simulator.hold();
    let mut clients = Vec::new();
    for _ in 0..3 {
        clients.push(half_closed_client(&world, world.head(RELAYED, &[])).await);
    }
    world.until_metric(&queued("half-closed"), 1.0).await;
    assert_eq!(world.simulator.request_count(), 2);
    let _other = world.begin_and_reach_upstream(&world.token, RELAYED, 3).await;
    world.simulator.release();
    for mut client in clients {
        assert_eq!(client.read_responses().await.len(), 1);
    }
}

#[tokio::test]
async fn a_half_close_frees_a_slot_beyond_that_quarter_for_waiting_requests() {
    let world = World::with("[upstream]\nmax_calls = 8\n[limits]\nhalf_close = \"1h\"").await;
    world.simulator.hold();
    let mut clients = Vec::new();
    for calls in 1..=3 {
        let mut client = RawClient::connect(&world).await;
        client.send(world.head(RELAYED, &[])).await;
        world.simulator.wait_for_requests(calls).await;
        clients.push(client);
    }
    // Unknown callers have four slots. Two of the three waiting requests get slots that now count as half-closed, and the
    // third gets that of the half-closed call that is ended.
    let mut others = vec![world.begin_and_reach_upstream(&world.token, RELAYED, 4).await];
    others.extend((0..3).map(|_| world.begin(&world.token, RELAYED)));
    world.until_metric(&queued("unknown"), 3.0).await;
    for (client, waiting) in clients.iter_mut().zip([2.0, 1.0, 0.0]) {
        client.finish_sending().await;
        world.until_metric(&queued("unknown"), waiting).await;
    }
    assert_eq!(clients.pop().unwrap().read_to_end().await, b"");
    world.until_metric(ABANDONED, 1.0).await;
    world.simulator.release();
    for mut client in clients {
        assert_eq!(client.read_responses().await.len(), 1);
    }
    assert!(all_replies(others).await.iter().all(|reply| reply.status() == StatusCode::OK));
}

#[tokio::test]
async fn a_half_closed_request_keeps_a_slot_that_nobody_else_needs() {
    let world = World::with("[upstream]\nmax_calls = 8\n[limits]\nhalf_close = \"1h\"").await;
    world.simulator.hold();
    let mut clients = Vec::new();
    for calls in 1..=4 {
        let mut client = RawClient::connect(&world).await;
        client.send(world.head(RELAYED, &[])).await;
        world.simulator.wait_for_requests(calls).await;
        client.finish_sending().await;
        world.until_metric(&in_flight("half-closed"), f64::from(u32::try_from(calls).unwrap())).await;
        clients.push(client);
    }
    world.simulator.release();
    for mut client in clients {
        assert_eq!(client.read_responses().await.len(), 1);
    }
}

#[tokio::test]
async fn a_queued_request_lets_others_pass_when_its_client_half_closes() {
    let world = World::with("[upstream]\nmax_calls = 1\n[limits]\nhalf_close = \"1h\"").await;
    world.simulator.hold();
    let first = world.begin_and_reach_upstream(&world.token, RELAYED, 1).await;
    let mut client = RawClient::connect(&world).await;
    client.send(world.head(&format!("{RELAYED}?closed"), &[])).await;
    world.until_metric(&queued("unknown"), 1.0).await;
    client.finish_sending().await;
    world.until_metric(&queued("half-closed"), 1.0).await;
    let second = world.begin(&world.token, &format!("{RELAYED}?second"));
    world.until_metric(&queued("unknown"), 1.0).await;
    world.simulator.release();
    for reply in [first, second] {
        assert_eq!(reply.await.unwrap().status(), StatusCode::OK);
    }
    assert_eq!(client.read_responses().await.len(), 1);
    let targets = world.simulator.requests_seen().into_iter().map(|seen| seen.target).collect::<Vec<_>>();
    assert!(targets[1].ends_with("?second") && targets[2].ends_with("?closed"), "{targets:?}");
}
