//! Flights: callers with a grant share one upstream call per cache key, and other callers do not. What concerns one
//! caller is not sent to others.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use http::StatusCode;
use tokio::sync::mpsc::UnboundedReceiver;
use tokio::task::JoinSet;
use workspace_gateway::testing::clock::Clock;
use workspace_gateway::testing::gateway::Gateway;
use workspace_gateway::testing::random::Random;

use crate::support::{
    Call, PROJECT, PROOF, Reply, Scripted, WAIT_FOR_UPSTREAM, WAITERS, World, all_replies, config, get_in_process,
    within,
};

const LIST: &str = "/v2/PROJECT/products?os_type=Linux";
const OTHER: &str = "/v2/PROJECT/products?os_type=Windows";

const EMPTY_LIST: &str = r#"{"products":[]}"#;

/// A gateway whose upstream responses are sent by the test.
fn scripted(settings: &str) -> (Arc<Gateway>, UnboundedReceiver<Call>) {
    let (upstream, calls) = Scripted::new();
    let nowhere = "http://127.0.0.1:1";
    let config = config(nowhere, nowhere, settings);
    (Gateway::with_upstream(upstream, &config, Clock::System, Random::System).unwrap(), calls)
}

#[tokio::test]
async fn callers_with_a_grant_share_one_call() {
    let world = World::new().await;
    let tokens: [String; 20] = world.granted_tokens().await;
    let (leading, waiting) = world.begin_flight(&tokens, LIST).await;
    world.simulator.release();
    let first = within(leading).await.unwrap();
    for shared in all_replies(waiting).await {
        assert_eq!((shared.status(), shared.body()), (StatusCode::OK, first.body()));
        assert!(shared.cache_status().contains("; collapsed"), "{shared:?}");
        assert_ne!(shared.header("x-request-id"), first.header("x-request-id"));
    }
    assert_eq!(world.upstream_calls(), 1);
}

#[tokio::test]
async fn ten_thousand_requests_of_a_hundred_callers_cost_one_call() {
    let world = World::new().await;
    // Short tokens, because a debug build is slow at hashing long ones.
    let tokens: Vec<_> = (0..100).map(|_| world.simulator.token_of_length(PROJECT, 40)).collect();
    for token in &tokens {
        assert_eq!(world.get_as(token, PROOF).await.status(), StatusCode::OK);
    }
    world.simulator.forget_requests();
    world.simulator.hold();
    let mut pending = JoinSet::new();
    for index in 0..10_000 {
        let (gateway, token) = (world.server.gateway().clone(), tokens[index % tokens.len()].clone());
        pending.spawn(async move { get_in_process(&gateway, &token, LIST).await });
    }
    world.until_metric(WAITERS, 9_999.0).await;
    world.simulator.release();
    let replies = within(pending.join_all()).await;
    assert_eq!(world.upstream_calls(), 1);
    assert!(replies[0].products() > 0);
    assert!(replies.iter().all(|reply| reply.status() == StatusCode::OK && reply.body() == replies[0].body()));
    let ids: HashSet<_> = replies.iter().map(|reply| reply.header("x-request-id")).collect();
    assert_eq!(ids.len(), 10_000);
}

#[tokio::test]
async fn a_thousand_callers_without_a_grant_make_a_call_each() {
    let (gateway, mut calls) = scripted("[upstream]\nmax_calls = 2000");
    let mut pending = JoinSet::new();
    for index in 0..1_000 {
        let gateway = gateway.clone();
        pending.spawn(async move { (index, get_in_process(&gateway, &format!("token-{index}"), LIST).await) });
    }
    let mut held_calls = Vec::new();
    while held_calls.len() < 1_000 {
        held_calls.push(within(calls.recv()).await.unwrap());
    }
    // Each response is sent to its own caller. The call of caller 500 is answered last.
    let mut last = None;
    for call in held_calls {
        let caller = call.token.strip_prefix("token-").unwrap().parse::<usize>().unwrap();
        if caller == 500 {
            last = Some(call);
            continue;
        }
        call.answer(StatusCode::OK, format!(r#"{{"products":["{caller}"]}}"#));
        let (index, reply) = within(pending.join_next()).await.unwrap().unwrap();
        assert_eq!((index, reply.text()), (caller, format!(r#"{{"products":["{caller}"]}}"#).as_str()));
    }
    last.unwrap().answer(StatusCode::FORBIDDEN, r#"{"error_code":"APIGW.0302"}"#);
    let (index, reply) = within(pending.join_next()).await.unwrap().unwrap();
    assert_eq!((index, reply.status()), (500, StatusCode::FORBIDDEN));
    assert!(calls.try_recv().is_err(), "one call for each caller");
}

#[tokio::test]
async fn a_caller_without_a_grant_shares_only_its_own_calls() {
    let world = World::new().await;
    let [granted] = world.granted_tokens().await;
    let (one, two) = (world.simulator.token(PROJECT), world.simulator.token(PROJECT));
    world.simulator.hold();
    let mut pending = vec![world.begin_and_reach_upstream(&one, LIST, 1).await];
    pending.push(world.begin_and_wait(&one, LIST, 1).await);
    pending.push(world.begin_and_reach_upstream(&two, LIST, 2).await);
    // A caller with a grant does not wait for the call of a caller without one.
    pending.push(world.begin_and_reach_upstream(&granted, LIST, 3).await);
    assert_eq!(world.metric(WAITERS), 1.0);
    world.simulator.release();
    let replies = all_replies(pending).await;
    assert!(replies.iter().all(|reply| reply.status() == StatusCode::OK));
    let collapsed: Vec<_> = replies.iter().map(|reply| reply.cache_status().contains("; collapsed")).collect();
    assert_eq!(collapsed, [false, true, false, false]);
    assert_eq!(world.upstream_calls(), 3);
}

#[tokio::test]
async fn the_denial_of_a_leader_is_not_sent_to_its_waiters() {
    let world = World::new().await;
    let tokens: [String; 51] = world.granted_tokens().await;
    let (leading, waiting) = world.begin_flight(&tokens, LIST).await;
    world.simulator.revoke(&tokens[0]);
    world.simulator.release();

    let refused = within(leading).await.unwrap();
    assert_eq!(
        (refused.status(), refused.json()["error_code"].as_str()),
        (StatusCode::UNAUTHORIZED, Some("APIGW.0307"))
    );
    let replies = all_replies(waiting).await;
    assert_eq!(replies.len(), 50);
    assert!(replies.iter().all(|reply| reply.products() > 0 && reply.body() == replies[0].body()));
    let seen = world.tokens_seen();
    assert_eq!(seen.len(), 2, "one denied call and one new call");
    assert_eq!(seen[0], tokens[0]);
    assert!(tokens[1..].contains(&seen[1]));
}

#[tokio::test]
async fn waiting_requests_of_a_denied_caller_are_denied() {
    let world = World::new().await;
    let [refused, other] = world.granted_tokens().await;
    let (leading, waiting) = world.begin_flight(&[refused.clone(), refused.clone(), other.clone()], LIST).await;
    world.simulator.deny(&refused);
    world.simulator.release();
    let statuses: Vec<_> = all_replies(waiting).await.iter().map(Reply::status).collect();
    assert_eq!(statuses, [StatusCode::FORBIDDEN, StatusCode::OK]);
    assert_eq!(within(leading).await.unwrap().status(), StatusCode::FORBIDDEN);
    assert_eq!(world.tokens_seen(), [refused, other]);
}

#[tokio::test]
async fn after_three_new_leaders_each_waiter_makes_its_own_call() {
    let world = World::new().await;
    let tokens: [String; 7] = world.granted_tokens().await;
    let (leading, waiting) = world.begin_flight(&tokens, LIST).await;
    let mut pending = waiting;
    pending.push(leading);
    for token in &tokens {
        world.simulator.hold_token(token);
        world.simulator.deny(token);
    }
    // The simulator holds the first leader with its global barrier, and each new leader by its token.
    world.simulator.release();
    for leaders in 2..=4 {
        within(world.simulator.wait_for_requests(leaders)).await;
        assert_eq!(world.upstream_calls(), leaders, "one new leader");
        let leader = world.tokens_seen().pop().unwrap();
        world.until_metric(WAITERS, (tokens.len() - leaders) as f64).await;
        world.simulator.release_token(&leader);
    }
    within(world.simulator.wait_for_requests(7)).await;
    assert_eq!(world.metric(WAITERS), 0.0, "the calls of the last three are in flight");
    for token in &tokens {
        world.simulator.release_token(token);
    }
    assert!(all_replies(pending).await.iter().all(|reply| reply.status() == StatusCode::FORBIDDEN));
    assert_eq!(world.tokens_seen().iter().collect::<HashSet<_>>().len(), 7, "each caller has been denied by upstream");
}

#[tokio::test]
async fn a_leader_that_disconnects_does_not_affect_its_waiters() {
    let world = World::new().await;
    let tokens: [String; 3] = world.granted_tokens().await;
    let (leading, waiting) = world.begin_flight(&tokens, LIST).await;
    leading.abort();
    let aborted = "workspace_gateway_requests_total{operation=\"ListProducts\",result=\"aborted\",status=\"none\"}";
    world.until_metric(aborted, 1.0).await;
    world.simulator.release();
    assert!(all_replies(waiting).await.iter().all(|reply| reply.products() > 0));
    assert_eq!(world.tokens_seen(), [tokens[0].clone()], "the waiters are answered by its call");
    assert!(world.get_as(&tokens[0], LIST).await.is_hit());
}

#[tokio::test]
async fn statuses_that_depend_on_the_caller_are_not_shared() {
    for status in [204, 302, 409, 413, 414, 431, 494, 508] {
        let world = World::new().await;
        let tokens: [String; 4] = world.granted_tokens().await;
        let (leading, waiting) = world.begin_flight(&tokens, LIST).await;
        let status = StatusCode::from_u16(status).unwrap();
        world.simulator.fail_token(&tokens[0], Some(status));
        world.simulator.release();
        assert_eq!(within(leading).await.unwrap().status(), status);
        assert!(all_replies(waiting).await.iter().all(|reply| reply.products() > 0), "{status}");
        assert_eq!(world.upstream_calls(), 2, "{status}");
    }
}

#[tokio::test]
async fn statuses_that_depend_on_the_request_are_sent_to_all_waiters() {
    for status in [400, 404, 405] {
        let world = World::with(&format!("[cache]\n{WAIT_FOR_UPSTREAM}")).await;
        let tokens: [String; 4] = world.granted_tokens().await;
        let (leading, waiting) = world.begin_flight(&tokens, LIST).await;
        let status = StatusCode::from_u16(status).unwrap();
        world.simulator.fail_with(Some(status));
        world.simulator.release();
        let mut replies = all_replies(waiting).await;
        replies.push(within(leading).await.unwrap());
        assert!(replies.iter().all(|reply| reply.status() == status && reply.body() == replies[0].body()));
        assert_eq!(world.upstream_calls(), 1);
        world.simulator.fail_with(None);
        assert_eq!(world.get_as(&tokens[1], LIST).await.status(), StatusCode::OK, "the status is not stored");
    }
}

#[tokio::test]
async fn a_failure_is_sent_to_all_waiters() {
    let world = World::new().await;
    let tokens: [String; 10] = world.granted_tokens().await;
    let (leading, waiting) = world.begin_flight(&tokens, LIST).await;
    world.simulator.fail_with(Some(StatusCode::SERVICE_UNAVAILABLE));
    world.simulator.release();
    let mut replies = all_replies(waiting).await;
    replies.push(within(leading).await.unwrap());
    assert!(replies.iter().all(|reply| reply.status() == StatusCode::SERVICE_UNAVAILABLE));
    assert_eq!(world.upstream_calls(), 1);

    world.simulator.forget_requests();
    let (leading, waiting) = world.begin_flight(&tokens, LIST).await;
    world.simulator.fail_with(None);
    world.simulator.reset_connections(true);
    world.simulator.release();
    let mut replies = all_replies(waiting).await;
    replies.push(within(leading).await.unwrap());
    assert!(replies.iter().all(|reply| reply.status() == StatusCode::BAD_GATEWAY));
    assert_eq!(world.upstream_calls(), 2, "one call, repeated once because the connection broke");
}

#[tokio::test]
async fn waiters_get_a_stale_response_after_a_failure() {
    let world = World::with(&format!("[cache]\nttl = \"1m\"\n{WAIT_FOR_UPSTREAM}")).await;
    let tokens: [String; 10] = world.granted_tokens().await;
    let before = world.get_as(&tokens[0], LIST).await;
    world.simulator.forget_requests();
    world.seconds_pass(60);
    let (leading, waiting) = world.begin_flight(&tokens, LIST).await;
    world.simulator.throttle(Some(0));
    world.simulator.release();
    let mut replies = all_replies(waiting).await;
    replies.push(within(leading).await.unwrap());
    assert!(replies.iter().all(|reply| reply.status() == StatusCode::OK && reply.body() == before.body()));
    assert_eq!(world.upstream_calls(), 1);
}

#[tokio::test]
async fn a_waiter_whose_grant_lapses_makes_its_own_call() {
    let failures: [fn(&World); 3] = [
        |_| {},
        |world| world.simulator.fail_with(Some(StatusCode::SERVICE_UNAVAILABLE)),
        |world| world.simulator.reset_connections(true),
    ];
    for (case, fail) in failures.into_iter().enumerate() {
        let world = World::with(&format!("[cache]\nttl = \"1m\"\n{WAIT_FOR_UPSTREAM}")).await;
        let [waiter] = world.granted_tokens().await;
        world.seconds_pass(100);
        let [leader] = world.granted_tokens().await;
        let before = world.get_as(&leader, LIST).await;
        world.simulator.forget_requests();
        world.seconds_pass(190);

        let (leading, waiting) = world.begin_flight(&[leader.clone(), waiter.clone()], LIST).await;
        world.seconds_pass(20);
        fail(&world);
        world.simulator.release();
        let mut replies = all_replies(waiting).await;
        replies.push(within(leading).await.unwrap());
        // In an outage, a grant is extended by a failed call of its own caller only.
        assert!(replies.iter().all(|reply| reply.status() == StatusCode::OK && reply.body() == before.body()));
        // A call whose connection broke was repeated once.
        let mut tokens = world.tokens_seen();
        tokens.dedup();
        assert_eq!(tokens, [leader, waiter], "{case}");
    }
}

#[tokio::test]
async fn a_response_to_a_leader_that_was_denied_meanwhile_is_not_shared() {
    let world = World::new().await;
    let [leader, waiter] = world.granted_tokens().await;
    let target = LIST.replace("PROJECT", PROJECT);
    world.simulator.hold_target(&target);
    let leading = world.begin_and_reach_upstream(&leader, LIST, 1).await;
    let waiting = world.begin_and_wait(&waiter, LIST, 1).await;
    world.simulator.deny(&leader);
    assert_eq!(world.get_as(&leader, OTHER).await.status(), StatusCode::FORBIDDEN);
    world.simulator.restore(&leader);
    world.simulator.release_target(&target);
    for pending in [leading, waiting] {
        assert!(within(pending).await.unwrap().products() > 0);
    }
    assert_eq!(world.tokens_seen(), [leader.clone(), leader, waiter]);
}

#[tokio::test]
async fn a_waiter_that_is_denied_gets_no_shared_response() {
    let world = World::new().await;
    let [leader, waiter] = world.granted_tokens().await;
    world.simulator.hold_token(&leader);
    let leading = world.begin_and_reach_upstream(&leader, LIST, 1).await;
    let waiting = world.begin_and_wait(&waiter, LIST, 1).await;
    world.simulator.deny(&waiter);
    assert_eq!(world.get_as(&waiter, OTHER).await.status(), StatusCode::FORBIDDEN);
    world.simulator.release_token(&leader);
    assert_eq!(within(waiting).await.unwrap().status(), StatusCode::FORBIDDEN);
    assert_eq!(within(leading).await.unwrap().status(), StatusCode::OK);
    assert_eq!(world.tokens_seen(), [leader, waiter], "the denial is remembered");
}

#[tokio::test]
async fn after_a_purge_waiters_get_a_new_response() {
    for status in [None, Some(StatusCode::NOT_FOUND)] {
        let world = World::new().await;
        let [leader, waiter, late] = world.granted_tokens().await;
        world.simulator.hold_token(&leader);
        let leading = world.begin_and_reach_upstream(&leader, LIST, 1).await;
        let waiting = world.begin_and_wait(&waiter, LIST, 1).await;
        world.purge();
        world.simulator.hold_token(&late);
        let next_leader = world.begin_and_reach_upstream(&late, LIST, 2).await;
        world.simulator.fail_token(&leader, status);
        world.simulator.release_token(&leader);
        let old = within(leading).await.unwrap();
        assert_eq!(old.status(), status.unwrap_or(StatusCode::OK));
        assert!(!old.cache_status().contains("stored"), "{old:?}");

        // The waiter has joined the flight that began after the purge.
        world.until_metric(WAITERS, 1.0).await;
        world.simulator.change_catalogue();
        world.simulator.release_token(&late);
        let new = within(next_leader).await.unwrap();
        assert_eq!((new.status(), within(waiting).await.unwrap().body()), (StatusCode::OK, new.body()));
        assert_ne!(new.body(), old.body());
        assert_eq!(world.tokens_seen(), [leader.clone(), late]);
        assert_eq!(world.get_as(&leader, LIST).await.body(), new.body());
    }
}

#[tokio::test]
async fn beyond_max_flights_requests_are_answered_without_sharing() {
    let world = World::with("[limits]\nmax_flights = 1").await;
    let [one, two, three] = world.granted_tokens().await;
    world.simulator.hold();
    let mut pending = vec![world.begin_and_reach_upstream(&one, LIST, 1).await];
    for (calls, token) in [(2, &two), (3, &three)] {
        pending.push(world.begin_and_reach_upstream(token, OTHER, calls).await);
    }
    pending.push(world.begin_and_wait(&two, LIST, 1).await);
    world.simulator.release();
    assert!(all_replies(pending).await.iter().all(|reply| reply.products() > 0));
    assert_eq!(world.upstream_calls(), 3);
    for path in [LIST, OTHER] {
        assert!(world.get_as(&one, path).await.is_hit(), "the response is stored without a flight, too");
    }
}

#[tokio::test]
async fn beyond_max_waiters_requests_make_their_own_calls() {
    let world = World::with("[limits]\nmax_waiters = 1").await;
    let tokens: [String; 4] = world.granted_tokens().await;
    let (leading, mut pending) = world.begin_flight(&tokens[..2], LIST).await;
    pending.push(leading);
    for (calls, token) in (2..).zip(&tokens[2..]) {
        pending.push(world.begin_and_reach_upstream(token, LIST, calls).await);
    }
    assert_eq!(world.metric(WAITERS), 1.0);
    world.simulator.release();
    assert!(all_replies(pending).await.iter().all(|reply| reply.products() > 0));
    assert_eq!(world.upstream_calls(), 3);
}

#[tokio::test(start_paused = true)]
async fn each_waiter_has_its_own_deadline() {
    let (gateway, mut calls) = scripted("[upstream]\nanswer_timeout = \"35s\"");
    for token in ["leader", "one", "two"] {
        let gateway = gateway.clone();
        let proof = tokio::spawn(async move { get_in_process(&gateway, token, OTHER).await });
        within(calls.recv()).await.unwrap().answer(StatusCode::OK, EMPTY_LIST);
        assert_eq!(within(proof).await.unwrap().status(), StatusCode::OK);
    }
    let clock = Clock::System;
    let begun = clock.now();
    let begin = |token: &'static str| {
        let (gateway, clock) = (gateway.clone(), clock.clone());
        tokio::spawn(async move { (get_in_process(&gateway, token, LIST).await.status(), clock.now() - begun) })
    };
    // The clock is paused: time passes at once when all tasks wait.
    let ten_seconds_pass = || tokio::time::sleep(Duration::from_secs(10));
    let leading = begin("leader");
    let first = within(calls.recv()).await.unwrap();
    assert_eq!(first.token, "leader");
    let one = begin("one");
    ten_seconds_pass().await;
    let two = begin("two");
    ten_seconds_pass().await;
    first.answer(StatusCode::FORBIDDEN, r#"{"error_code":"APIGW.0302"}"#);
    assert_eq!(within(leading).await.unwrap(), (StatusCode::FORBIDDEN, Duration::from_secs(20)));

    // A new call has another 35 s. Each waiter has 36 s in all.
    let second = within(calls.recv()).await.unwrap();
    assert_eq!(within(one).await.unwrap(), (StatusCode::GATEWAY_TIMEOUT, Duration::from_secs(36)));
    assert_eq!(within(two).await.unwrap(), (StatusCode::GATEWAY_TIMEOUT, Duration::from_secs(46)));
    // The response of the new call is stored for later requests.
    second.answer(StatusCode::OK, EMPTY_LIST);
    assert_eq!(within(begin("one")).await.unwrap().0, StatusCode::OK);
    assert!(calls.try_recv().is_err());
}
