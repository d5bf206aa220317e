//! Concurrent identical requests of one caller cause one upstream call, whether it succeeds or fails.

use std::collections::HashSet;
use std::sync::Arc;

use http::{HeaderName, HeaderValue, StatusCode};
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;
use tokio::task::JoinSet;

use crate::support::{PROJECT, Reply, WAITERS, World, within};

const LIST: &str = "/v2/PROJECT/products?os_type=Linux";

/// Starts many identical requests and returns when all but the leader wait.
async fn stampede(world: &Arc<World>, size: usize) -> JoinSet<Reply> {
    let mut requests = JoinSet::new();
    for _ in 0..size {
        let world = Arc::clone(world);
        requests.spawn(async move { world.get(LIST).await });
    }
    world.until_metric(WAITERS, (size - 1) as f64).await;
    requests
}

/// Sends a request on a connection of its own, without waiting for the response.
async fn send_request(world: &World) -> TcpStream {
    let mut stream = TcpStream::connect(world.server.proxy_address()).await.unwrap();
    let path = LIST.replace("PROJECT", PROJECT);
    let request = format!("GET {path} HTTP/1.1\r\nHost: gateway\r\nX-Auth-Token: {}\r\n\r\n", world.token);
    stream.write_all(request.as_bytes()).await.unwrap();
    stream
}

#[tokio::test]
async fn a_stampede_costs_one_upstream_call() {
    let world = Arc::new(World::new().await);
    world.simulator.hold();
    let requests = stampede(&world, 200).await;
    world.simulator.release();
    let replies = within(requests.join_all()).await;

    assert_eq!(world.upstream_calls(), 1);
    assert!(replies.iter().all(|reply| reply.status() == StatusCode::OK && reply.body() == replies[0].body()));
    let collapsed = replies.iter().filter(|reply| reply.cache_status().contains("; collapsed")).count();
    assert_eq!(collapsed, 199);
    let ids: HashSet<_> = replies.iter().map(|reply| reply.header("x-request-id")).collect();
    assert_eq!(ids.len(), 200, "each response has an id of its own");
    assert_eq!(world.metric(WAITERS), 0.0);
    let counted = |result| {
        world.metric(&format!(
            "workspace_gateway_requests_total{{operation=\"ListProducts\",result=\"{result}\",status=\"200\"}}"
        ))
    };
    assert_eq!((counted("miss"), counted("coalesced")), (1.0, 199.0));
}

#[tokio::test]
async fn a_client_that_disconnects_does_not_cancel_the_flight() {
    let world = Arc::new(World::new().await);
    world.simulator.hold();
    let leader = send_request(&world).await;
    within(world.simulator.wait_for_requests(1)).await;
    let waiter = tokio::spawn({
        let world = Arc::clone(&world);
        async move { world.get(LIST).await }
    });
    world.until_metric(WAITERS, 1.0).await;
    drop(leader);
    let aborted = "workspace_gateway_requests_total{operation=\"ListProducts\",result=\"aborted\",status=\"none\"}";
    world.until_metric(aborted, 1.0).await;
    world.simulator.release();
    let reply = within(waiter).await.unwrap();
    assert_eq!(reply.status(), StatusCode::OK);
    assert_eq!(world.upstream_calls(), 1);
}

#[tokio::test]
async fn a_response_is_stored_after_all_clients_have_disconnected() {
    let world = World::new().await;
    world.simulator.hold();
    let client = send_request(&world).await;
    within(world.simulator.wait_for_requests(1)).await;
    drop(client);
    world.simulator.release();
    world.until_metric("workspace_gateway_entries", 1.0).await;
    assert!(world.get(LIST).await.cache_status().contains("; hit"));
    assert_eq!(world.upstream_calls(), 1);
}

#[tokio::test]
async fn callers_without_a_grant_do_not_share_a_flight() {
    let world = Arc::new(World::new().await);
    world.simulator.hold();
    let mut requests = JoinSet::new();
    for _ in 0..5 {
        let world = Arc::clone(&world);
        let token = world.simulator.token(PROJECT);
        requests.spawn(async move { world.get_as(&token, LIST).await });
    }
    within(world.simulator.wait_for_requests(5)).await;
    assert_eq!(world.metric(WAITERS), 0.0);
    world.simulator.release();
    assert!(
        within(requests.join_all())
            .await
            .iter()
            .all(|reply| reply.status() == StatusCode::OK && !reply.cache_status().contains("; collapsed"))
    );
}

#[tokio::test]
async fn a_failure_is_sent_to_all_waiters() {
    let world = Arc::new(World::new().await);
    world.simulator.hold();
    let requests = stampede(&world, 20).await;
    world.simulator.fail_with(Some(StatusCode::SERVICE_UNAVAILABLE));
    world.simulator.release();
    let replies = within(requests.join_all()).await;
    assert!(replies.iter().all(|reply| reply.status() == StatusCode::SERVICE_UNAVAILABLE));
    assert_eq!(world.upstream_calls(), 1);

    world.simulator.fail_with(None);
    world.simulator.hold();
    let requests = stampede(&world, 20).await;
    world.simulator.reset_connections(true);
    world.simulator.release();
    let replies = within(requests.join_all()).await;
    assert!(replies.iter().all(|reply| reply.status() == StatusCode::BAD_GATEWAY));
    assert_eq!(world.upstream_calls(), 3, "one call, repeated once because the connection broke");
}

#[tokio::test]
async fn set_cookie_is_sent_to_the_leader_only() {
    let world = Arc::new(World::new().await);
    world.simulator.add_header(HeaderName::from_static("set-cookie"), HeaderValue::from_static("a=1"));
    world.simulator.hold();
    let requests = stampede(&world, 10).await;
    world.simulator.release();
    let replies = within(requests.join_all()).await;
    let with_cookie: Vec<_> = replies.iter().filter(|reply| reply.headers().contains_key("set-cookie")).collect();
    assert_eq!(with_cookie.len(), 1);
    assert!(!with_cookie[0].cache_status().contains("collapsed"));
}

#[tokio::test]
async fn a_response_that_was_requested_before_a_purge_is_not_stored() {
    let world = Arc::new(World::new().await);
    world.simulator.hold();
    let before = tokio::spawn({
        let world = Arc::clone(&world);
        async move { world.get(LIST).await }
    });
    within(world.simulator.wait_for_requests(1)).await;
    world.server.gateway().purge(&workspace_gateway::testing::cache::store::PurgeSelection::default());
    // A request after the purge does not join a flight from before it.
    let after = tokio::spawn({
        let world = Arc::clone(&world);
        async move { world.get(LIST).await }
    });
    within(world.simulator.wait_for_requests(2)).await;
    world.simulator.release();
    let (before, after) = (within(before).await.unwrap(), within(after).await.unwrap());
    assert!(before.cache_status().ends_with("detail=purged"), "{before:?}");
    assert!(after.cache_status().contains("; stored"), "{after:?}");
}
