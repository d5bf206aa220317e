//! Upstream failures that do not concern a credential: which callers get a stale response, and for how long.

use http::StatusCode;

use crate::support::{PROJECT, WAIT_FOR_UPSTREAM, World};

const LIST: &str = "/v2/PROJECT/products?os_type=Linux";

/// A function that switches a failure on or off, and the status that a client gets.
type Failure = (fn(&World, bool), StatusCode);

/// All failures that say nothing about the caller.
const FAILURES: [Failure; 8] = [
    (fail_with::<500>, StatusCode::INTERNAL_SERVER_ERROR),
    (fail_with::<502>, StatusCode::BAD_GATEWAY),
    (fail_with::<503>, StatusCode::SERVICE_UNAVAILABLE),
    (fail_with::<504>, StatusCode::GATEWAY_TIMEOUT),
    (fail_with::<511>, StatusCode::NETWORK_AUTHENTICATION_REQUIRED),
    (|world, on| world.simulator.throttle(on.then_some(0)), StatusCode::TOO_MANY_REQUESTS),
    (|world, on| world.simulator.reset_connections(on), StatusCode::BAD_GATEWAY),
    (|world, on| world.simulator.truncate(on), StatusCode::BAD_GATEWAY),
];

fn fail_with<const STATUS: u16>(world: &World, on: bool) {
    world.simulator.fail_with(on.then(|| StatusCode::from_u16(STATUS).unwrap()));
}

#[tokio::test]
async fn an_outage_extends_a_lapsed_grant_until_the_grace_ends() {
    let world = World::with(&format!("[cache]\nstale_if_error = \"1d\"\n{WAIT_FOR_UPSTREAM}")).await;
    let before = world.get(LIST).await;
    world.seconds_pass(3_590);
    for (seconds, (fail, _)) in (1..).zip(FAILURES) {
        let calls_before = world.upstream_calls();
        fail(&world, true);
        world.seconds_pass(1);
        let stale = world.get(LIST).await;
        assert_eq!((stale.status(), stale.body()), (StatusCode::OK, before.body()), "{stale:?}");
        assert!(stale.cache_status().contains("fwd=stale") && !stale.cache_status().contains("hit"), "{stale:?}");
        assert_eq!(stale.header("age"), (3_590 + seconds).to_string());
        assert!(world.upstream_calls() > calls_before, "the caller's own call comes first");
        fail(&world, false);
    }
    world.seconds_pass(10 - FAILURES.len() as u64);
    for (fail, status) in FAILURES {
        fail(&world, true);
        world.get(LIST).await.assert_refused(status);
        fail(&world, false);
    }
    assert_eq!(world.get(LIST).await.status(), StatusCode::OK);
}

#[tokio::test]
async fn a_caller_without_a_proof_gets_the_failure() {
    let world = World::new().await;
    world.get(LIST).await;
    let second = world.simulator.token(PROJECT);
    for (fail, status) in FAILURES {
        fail(&world, true);
        world.get_as(&second, LIST).await.assert_refused(status);
        fail(&world, false);
    }
}

#[tokio::test]
async fn a_status_that_is_no_outage_is_passed_on() {
    let world = World::new().await;
    world.get(LIST).await;
    world.seconds_pass(600);
    for status in [400, 404, 405, 413, 414, 431, 508] {
        let status = StatusCode::from_u16(status).unwrap();
        world.simulator.fail_with(Some(status));
        world.get(LIST).await.assert_refused(status);
    }
}

#[tokio::test]
async fn no_stale_response_is_served_after_a_denial() {
    for status in [StatusCode::UNAUTHORIZED, StatusCode::FORBIDDEN] {
        let world = World::new().await;
        world.get(LIST).await;
        world.seconds_pass(600);
        world.simulator.fail_with(Some(status));
        world.get(LIST).await.assert_refused(status);
        world.seconds_pass(2);
        world.simulator.fail_with(Some(StatusCode::SERVICE_UNAVAILABLE));
        world.get(LIST).await.assert_refused(StatusCode::SERVICE_UNAVAILABLE);
        assert_eq!(world.upstream_calls(), 3);
    }
}

#[tokio::test]
async fn no_stale_response_is_served_after_stale_if_error() {
    let world = World::with("[cache]\nttl = \"1m\"\nstale_if_error = \"10m\"").await;
    world.get(LIST).await;
    world.simulator.fail_with(Some(StatusCode::SERVICE_UNAVAILABLE));
    world.seconds_pass(659);
    assert_eq!(world.get(LIST).await.status(), StatusCode::OK);
    world.seconds_pass(1);
    world.get(LIST).await.assert_refused(StatusCode::SERVICE_UNAVAILABLE);
}

#[tokio::test]
async fn with_on_outage_refuse_an_outage_extends_no_grant() {
    let world = World::with("[cache]\nttl = \"1m\"\n[grants]\non_outage = \"refuse\"").await;
    world.get(LIST).await;
    world.simulator.fail_with(Some(StatusCode::SERVICE_UNAVAILABLE));
    world.seconds_pass(299);
    assert_eq!(world.get(LIST).await.status(), StatusCode::OK, "the grant has not lapsed");
    assert_eq!(world.upstream_calls(), 2);
    world.seconds_pass(1);
    world.get(LIST).await.assert_refused(StatusCode::SERVICE_UNAVAILABLE);
}
