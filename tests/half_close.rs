//! Clients of HTTP/1 that close their sending side after the request, as `nc -N` does, and wait for the answer; and those
//! that have gone, which look the same until they are sent something.

use http::StatusCode;
use workspace_gateway::testing::simulator::Simulator;

use crate::support::line::{Line, head_as};
use crate::support::raw::{RawUpstream, says};
use crate::support::{PROJECT, World, all};

const LIST: &str = "/v2/PROJECT/products";
const RELAYED: &str = "/v2/PROJECT/desktops";

const ENDED: &str = "workspace_gateway_connections_ended_total{cause=\"half-close\"}";
const OPEN: &str = "workspace_gateway_connections";
const ABANDONED: &str = "workspace_gateway_upstream_requests_total{service=\"workspace\",status=\"abandoned\"}";

/// The relays of a class that are not over.
fn under_way(class: &str) -> String {
    format!("workspace_gateway_upstream_calls_by_class{{class=\"{class}\",kind=\"relay\"}}")
}

/// The relays of a class that wait for their turn.
fn queued(class: &str) -> String {
    format!("workspace_gateway_upstream_calls_queued_by_class{{class=\"{class}\",kind=\"relay\"}}")
}

/// A limit that is not reached.
async fn patient() -> World {
    World::with("[limits]\nhalf_close = \"1h\"").await
}

fn post(world: &World, fields: &str, body: &str) -> String {
    let head = format!("POST /v2/{PROJECT}/desktops HTTP/1.1\r\nhost: gateway\r\nx-auth-token: {}\r\n", world.token);
    format!("{head}{fields}\r\n{body}")
}

/// A client that says this and closes its sending side at once. It has asked before: the end of what a connection's first
/// request comes with may be seen after the request has begun.
async fn closing(world: &World, request: impl AsRef<[u8]>) -> Line {
    let mut line = Line::to(world).await;
    line.asks("OPTIONS * HTTP/1.1\r\nhost: gateway\r\n\r\n").await;
    line.says_last(request).await;
    line
}

#[tokio::test]
async fn it_is_answered_and_its_connection_closed() {
    let world = World::new().await;
    for request in [
        world.head(LIST, &[]),
        world.head(RELAYED, &[]),
        post(&world, "content-length: 4\r\n", "body"),
        post(&world, "transfer-encoding: chunked\r\n", "4\r\nbody\r\n0\r\n\r\n"),
    ] {
        let mut fresh = Line::to(&world).await;
        fresh.says_last(&request).await;
        for mut line in [fresh, closing(&world, &request).await] {
            let answer = line.hears_out().await;
            assert_eq!(answer.iter().map(|answer| answer.status()).collect::<Vec<_>>(), [200], "{request}");
            assert!(!request.starts_with("POST") || answer[0].body == "body", "{answer:?}");
            world.purge();
        }
    }
    world.until_metric(OPEN, 0.0).await;
    assert_eq!(world.metric(ENDED), 0.0);
}

#[tokio::test]
async fn it_is_answered_when_it_closes_while_upstream_is_asked() {
    let world = patient().await;
    for (calls, path) in [(1, LIST), (2, RELAYED)] {
        world.simulator.hold();
        let mut line = Line::to(&world).await;
        line.says(world.head(path, &[])).await;
        world.simulator.arrived(calls).await;
        line.says_no_more().await;
        line.hears_nothing().await;
        world.simulator.release();
        assert_eq!(line.hears_out().await[0].status(), 200, "{path}");
    }
}

#[tokio::test]
async fn all_that_it_has_asked_for_is_answered() {
    let world = World::new().await;
    let answers = closing(&world, world.head(RELAYED, &[]).repeat(3)).await.hears_out().await;
    assert_eq!(answers.len(), 3);
}

#[tokio::test]
async fn a_probe_is_answered() {
    let world = World::new().await;
    let mut line = Line::at(world.server.metrics_address()).await;
    line.says_last("GET /readyz HTTP/1.1\r\nhost: gateway\r\n\r\n").await;
    assert_eq!(line.hears_out().await[0].status(), 200);
}

#[tokio::test]
async fn an_answer_that_is_not_ready_in_time_does_not_come() {
    let world = World::with("[limits]\nhalf_close = \"50ms\"").await;
    world.simulator.hold();
    assert_eq!(closing(&world, world.head(RELAYED, &[])).await.hears_bytes().await, b"");
    world.until_metric(ABANDONED, 1.0).await;
    assert_eq!(world.metric(ENDED), 1.0);
}

#[tokio::test]
async fn without_the_limit_its_end_is_the_end_of_its_request() {
    let world = World::with("[limits]\nhalf_close = \"0s\"").await;
    world.simulator.hold();
    assert_eq!(closing(&world, world.head(RELAYED, &[])).await.hears_bytes().await, b"");
    assert_eq!(world.metric(ENDED), 0.0);
}

#[tokio::test]
async fn a_client_that_has_gone_is_noticed_at_its_reset() {
    let world = patient().await;
    world.simulator.hold();
    let mut line = Line::to(&world).await;
    line.says(world.head(RELAYED, &[])).await;
    world.simulator.arrived(1).await;
    line.says_no_more().await;
    assert_eq!(world.metric(ABANDONED), 0.0);
    let stream = line.into_stream();
    stream.set_zero_linger().unwrap();
    drop(stream);
    world.until_metric(ABANDONED, 1.0).await;
    world.until_metric(OPEN, 0.0).await;
}

#[tokio::test]
async fn a_client_that_has_gone_is_noticed_when_it_is_written_to() {
    let begun = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1\r\na\r\n";
    let upstream = RawUpstream::start([says(begun).then_waits().then_says("1\r\nb\r\n")]).await;
    let settings = "[limits]\nhalf_close = \"1h\"";
    let world = World::before(Simulator::start().await.unwrap(), upstream.url(), upstream.url(), settings).await;
    let mut line = Line::to(&world).await;
    line.says(world.head(RELAYED, &[])).await;
    line.hears_some().await;
    drop(line);
    upstream.go_on();
    upstream.hung_up(1).await;
    world.until_metric(OPEN, 0.0).await;
}

#[tokio::test]
async fn the_end_of_an_upload_before_its_body_has_come_is_noticed_at_once() {
    for (fields, body) in [("content-length: 5\r\n", "body"), ("transfer-encoding: chunked\r\n", "4\r\nbody\r\n")] {
        let world = patient().await;
        world.simulator.hold();
        let heard = closing(&world, post(&world, fields, body)).await.hears_bytes().await;
        let heard = String::from_utf8(heard).unwrap();
        assert!(heard.starts_with("HTTP/1.1 400 ") && heard.contains("broke off"), "{heard}");
        world.until_metric(OPEN, 0.0).await;
        assert_eq!(world.metric("workspace_gateway_requests_in_flight"), 0.0, "{fields}");
    }
}

#[tokio::test]
async fn an_idle_connection_is_closed_with_its_client() {
    let world = patient().await;
    let mut line = Line::to(&world).await;
    line.asks(world.head(RELAYED, &[])).await;
    line.says_no_more().await;
    assert!(line.hears_out().await.is_empty());
    world.until_metric(OPEN, 0.0).await;
}

#[tokio::test]
async fn nobody_waits_for_its_call_and_it_waits_for_others() {
    let world = patient().await;
    let tokens = world.granted::<2>().await;
    world.purge();
    world.simulator.forget_requests();
    world.simulator.hold();
    let mut first = closing(&world, head_as(&tokens[0], LIST, &[])).await;
    world.simulator.arrived(1).await;
    let other = world.begin_and_arrive(&tokens[1], LIST, 2).await;
    let mut last = closing(&world, head_as(&tokens[0], LIST, &[])).await;
    last.hears_nothing().await;
    assert_eq!(world.upstream_calls(), 2, "the last one waits for the other's call");
    world.simulator.release();
    assert_eq!(other.await.unwrap().status(), StatusCode::OK);
    for line in [&mut first, &mut last] {
        assert_eq!(line.hears_out().await[0].status(), 200);
    }
    assert_eq!(world.upstream_calls(), 2);
}

#[tokio::test]
async fn a_large_answer_is_given_whole_to_a_client_that_reads_after_it_has_closed() {
    let world = patient().await;
    let list = format!("{{\"products\":[],\"padding\":\"{}\"}}", "x".repeat(4 << 20));
    world.simulator.answer_with(Some(list.clone().into()));
    for path in [LIST, LIST] {
        // A head that has not come before, so that hyper answers it.
        let mut line = Line::to(&world).await;
        line.says(world.head(path, &["x-number: 1"])).await;
        // The gateway has written what the socket takes.
        line.hears_some().await;
        line.says_no_more().await;
        let answer = line.hears_out().await;
        assert_eq!(answer.iter().map(|answer| answer.body.len()).collect::<Vec<_>>(), [list.len()], "{path}");
    }
}

#[tokio::test]
async fn such_requests_hold_a_quarter_of_the_slots() {
    let world = World::with("[upstream]\nmax_calls = 8\n[limits]\nhalf_close = \"1h\"").await;
    world.simulator.hold();
    let mut lines = Vec::new();
    for _ in 0..3 {
        lines.push(closing(&world, world.head(RELAYED, &[])).await);
    }
    world.until_metric(&queued("half-closed"), 1.0).await;
    assert_eq!(world.simulator.request_count(), 2);
    let _other = world.begin_and_arrive(&world.token, RELAYED, 3).await;
    world.simulator.release();
    for mut line in lines {
        assert_eq!(line.hears_out().await.len(), 1);
    }
}

#[tokio::test]
async fn a_slot_beyond_that_quarter_is_free_at_once_for_others_when_its_client_closes() {
    let world = World::with("[upstream]\nmax_calls = 8\n[limits]\nhalf_close = \"1h\"").await;
    world.simulator.hold();
    let mut lines = Vec::new();
    for calls in 1..=3 {
        let mut line = Line::to(&world).await;
        line.says(world.head(RELAYED, &[])).await;
        world.simulator.arrived(calls).await;
        lines.push(line);
    }
    // Unknown callers have four slots. Two of three that wait get those that count as half-closed from now on.
    let mut others = vec![world.begin_and_arrive(&world.token, RELAYED, 4).await];
    others.extend((0..3).map(|_| world.begin(&world.token, RELAYED)));
    world.until_metric(&queued("unknown"), 3.0).await;
    for (line, waiting) in lines.iter_mut().zip([2.0, 1.0, 0.0]) {
        line.says_no_more().await;
        world.until_metric(&queued("unknown"), waiting).await;
    }
    assert_eq!(lines.pop().unwrap().hears_bytes().await, b"");
    world.until_metric(ABANDONED, 1.0).await;
    world.simulator.release();
    for mut line in lines {
        assert_eq!(line.hears_out().await.len(), 1);
    }
    assert!(all(others).await.iter().all(|reply| reply.status() == StatusCode::OK));
}

#[tokio::test]
async fn a_slot_that_nobody_else_wants_is_kept_when_its_client_closes() {
    let world = World::with("[upstream]\nmax_calls = 8\n[limits]\nhalf_close = \"1h\"").await;
    world.simulator.hold();
    let mut lines = Vec::new();
    for calls in 1..=4 {
        let mut line = Line::to(&world).await;
        line.says(world.head(RELAYED, &[])).await;
        world.simulator.arrived(calls).await;
        line.says_no_more().await;
        world.until_metric(&under_way("half-closed"), f64::from(u32::try_from(calls).unwrap())).await;
        lines.push(line);
    }
    world.simulator.release();
    for mut line in lines {
        assert_eq!(line.hears_out().await.len(), 1);
    }
}

#[tokio::test]
async fn a_request_that_waits_gives_its_place_to_others_when_its_client_closes() {
    let world = World::with("[upstream]\nmax_calls = 1\n[limits]\nhalf_close = \"1h\"").await;
    world.simulator.hold();
    let first = world.begin_and_arrive(&world.token, RELAYED, 1).await;
    let mut line = Line::to(&world).await;
    line.says(world.head(&format!("{RELAYED}?closed"), &[])).await;
    world.until_metric(&queued("unknown"), 1.0).await;
    line.says_no_more().await;
    world.until_metric(&queued("half-closed"), 1.0).await;
    let second = world.begin(&world.token, &format!("{RELAYED}?second"));
    world.until_metric(&queued("unknown"), 1.0).await;
    world.simulator.release();
    for reply in [first, second] {
        assert_eq!(reply.await.unwrap().status(), StatusCode::OK);
    }
    assert_eq!(line.hears_out().await.len(), 1);
    let targets = world.simulator.requests_seen().into_iter().map(|seen| seen.target).collect::<Vec<_>>();
    assert!(targets[1].ends_with("?second") && targets[2].ends_with("?closed"), "{targets:?}");
}
