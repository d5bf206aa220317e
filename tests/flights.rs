//! Answers under way: callers with a grant share one upstream call per question, the others fly alone,
//! and whatever becomes of one caller's call is no other's.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use http::StatusCode;
use tokio::sync::mpsc::UnboundedReceiver;
use tokio::task::JoinSet;
use workspace_gateway::testing::clock::Clock;
use workspace_gateway::testing::gateway::Gateway;
use workspace_gateway::testing::random::Random;

use crate::support::{Call, PROJECT, PROOF, Reply, Scripted, WAITERS, WAITING, World, all, ask, config, within};

const LIST: &str = "/v2/PROJECT/products?os_type=Linux";
const OTHER: &str = "/v2/PROJECT/products?os_type=Windows";

const LIST_OF_NOTHING: &str = r#"{"products":[]}"#;

/// A gateway before an upstream that a test answers for.
fn scripted(settings: &str) -> (Arc<Gateway>, UnboundedReceiver<Call>) {
    let (upstream, calls) = Scripted::new();
    let nowhere = "http://127.0.0.1:1";
    (Gateway::before(upstream, &config(nowhere, nowhere, settings), Clock::System, Random::System).unwrap(), calls)
}

#[tokio::test]
async fn callers_with_a_grant_share_one_call() {
    let world = World::new().await;
    let tokens: [String; 20] = world.granted().await;
    let (leading, following) = world.board(&tokens, LIST).await;
    world.simulator.release();
    let led = within(leading).await.unwrap();
    for followed in all(following).await {
        assert_eq!((followed.status(), followed.body()), (StatusCode::OK, led.body()));
        assert!(followed.cache_status().contains("; collapsed"), "{followed:?}");
        assert_ne!(followed.header("x-request-id"), led.header("x-request-id"));
    }
    assert_eq!(world.upstream_calls(), 1);
}

#[tokio::test]
async fn ten_thousand_requests_of_a_hundred_callers_cost_one_call() {
    let world = World::new().await;
    // Short ones: without optimisation, hashing long ones ten thousand times takes a while.
    let tokens: Vec<_> = (0..100).map(|_| world.simulator.token_of_length(PROJECT, 40)).collect();
    for token in &tokens {
        assert_eq!(world.get_as(token, PROOF).await.status(), StatusCode::OK);
    }
    world.simulator.forget_requests();
    world.simulator.hold();
    let mut asking = JoinSet::new();
    for index in 0..10_000 {
        let (gateway, token) = (world.server.gateway().clone(), tokens[index % tokens.len()].clone());
        asking.spawn(async move { ask(&gateway, &token, LIST).await });
    }
    world.until_metric(WAITERS, 9_999.0).await;
    world.simulator.release();
    let replies = within(asking.join_all()).await;
    assert_eq!(world.upstream_calls(), 1);
    assert!(replies[0].products() > 0);
    assert!(replies.iter().all(|reply| reply.status() == StatusCode::OK && reply.body() == replies[0].body()));
    let ids: HashSet<_> = replies.iter().map(|reply| reply.header("x-request-id")).collect();
    assert_eq!(ids.len(), 10_000);
}

#[tokio::test]
async fn a_thousand_callers_without_a_grant_are_each_answered_by_their_own_call() {
    let (gateway, mut calls) = scripted("[upstream]\nmax_calls = 2000");
    let mut asking = JoinSet::new();
    for index in 0..1_000 {
        let gateway = gateway.clone();
        asking.spawn(async move { (index, ask(&gateway, &format!("token-{index}"), LIST).await) });
    }
    let mut held = Vec::new();
    while held.len() < 1_000 {
        held.push(within(calls.recv()).await.unwrap());
    }
    // The others' answers have come, one after the other, and its own has not: nobody is shown any.
    let mut last = None;
    for call in held {
        let whose = call.token.strip_prefix("token-").unwrap().parse::<usize>().unwrap();
        if whose == 500 {
            last = Some(call);
            continue;
        }
        call.answer(StatusCode::OK, format!(r#"{{"products":["{}"]}}"#, whose));
        let (index, reply) = within(asking.join_next()).await.unwrap().unwrap();
        assert_eq!((index, reply.text()), (whose, format!(r#"{{"products":["{whose}"]}}"#).as_str()));
    }
    last.unwrap().answer(StatusCode::FORBIDDEN, r#"{"error_code":"APIGW.0302"}"#);
    let (index, reply) = within(asking.join_next()).await.unwrap().unwrap();
    assert_eq!((index, reply.status()), (500, StatusCode::FORBIDDEN));
    assert!(calls.try_recv().is_err(), "one call each");
}

#[tokio::test]
async fn a_caller_without_a_grant_flies_with_itself_alone() {
    let world = World::new().await;
    let [granted] = world.granted().await;
    let (one, two) = (world.simulator.token(PROJECT), world.simulator.token(PROJECT));
    world.simulator.hold();
    let mut asking = vec![world.begin_and_arrive(&one, LIST, 1).await];
    asking.push(world.begin_and_wait(&one, LIST, 1).await);
    asking.push(world.begin_and_arrive(&two, LIST, 2).await);
    // Neither waits one with a grant for the flight of one without.
    asking.push(world.begin_and_arrive(&granted, LIST, 3).await);
    assert_eq!(world.metric(WAITERS), 1.0);
    world.simulator.release();
    let replies = all(asking).await;
    assert!(replies.iter().all(|reply| reply.status() == StatusCode::OK));
    let collapsed: Vec<_> = replies.iter().map(|reply| reply.cache_status().contains("; collapsed")).collect();
    assert_eq!(collapsed, [false, true, false, false]);
    assert_eq!(world.upstream_calls(), 3);
}

#[tokio::test]
async fn a_refused_leader_is_refused_alone_and_one_new_call_answers_the_rest() {
    let world = World::new().await;
    let tokens: [String; 51] = world.granted().await;
    let (leading, following) = world.board(&tokens, LIST).await;
    world.simulator.revoke(&tokens[0]);
    world.simulator.release();

    let refused = within(leading).await.unwrap();
    assert_eq!(
        (refused.status(), refused.json()["error_code"].as_str()),
        (StatusCode::UNAUTHORIZED, Some("APIGW.0307"))
    );
    let replies = all(following).await;
    assert_eq!(replies.len(), 50);
    assert!(replies.iter().all(|reply| reply.products() > 0 && reply.body() == replies[0].body()));
    let seen = world.tokens_seen();
    assert_eq!(seen.len(), 2, "one refusal and one new call");
    assert_eq!(seen[0], tokens[0]);
    assert!(tokens[1..].contains(&seen[1]));
}

#[tokio::test]
async fn other_requests_of_the_refused_caller_are_refused_with_it() {
    let world = World::new().await;
    let [refused, other] = world.granted().await;
    let (leading, following) = world.board(&[refused.clone(), refused.clone(), other.clone()], LIST).await;
    world.simulator.deny(&refused);
    world.simulator.release();
    let statuses: Vec<_> = all(following).await.iter().map(Reply::status).collect();
    assert_eq!(statuses, [StatusCode::FORBIDDEN, StatusCode::OK]);
    assert_eq!(within(leading).await.unwrap().status(), StatusCode::FORBIDDEN);
    assert_eq!(world.tokens_seen(), [refused, other]);
}

#[tokio::test]
async fn after_three_elections_everyone_flies_alone() {
    let world = World::new().await;
    let tokens: [String; 7] = world.granted().await;
    let (leading, following) = world.board(&tokens, LIST).await;
    let mut asking = following;
    asking.push(leading);
    for token in &tokens {
        world.simulator.hold_token(token);
        world.simulator.deny(token);
    }
    // The first waits at the barrier for everyone; those who are elected wait at their own.
    world.simulator.release();
    for leaders in 2..=4 {
        within(world.simulator.arrived(leaders)).await;
        assert_eq!(world.upstream_calls(), leaders, "one new leader");
        let leader = world.tokens_seen().pop().unwrap();
        world.until_metric(WAITERS, (tokens.len() - leaders) as f64).await;
        world.simulator.release_token(&leader);
    }
    within(world.simulator.arrived(7)).await;
    assert_eq!(world.metric(WAITERS), 0.0, "the last three are all under way");
    for token in &tokens {
        world.simulator.release_token(token);
    }
    assert!(all(asking).await.iter().all(|reply| reply.status() == StatusCode::FORBIDDEN));
    assert_eq!(world.tokens_seen().iter().collect::<HashSet<_>>().len(), 7, "each has had its own refusal");
}

#[tokio::test]
async fn a_leader_that_hangs_up_changes_nothing_for_the_others() {
    let world = World::new().await;
    let tokens: [String; 3] = world.granted().await;
    let (leading, following) = world.board(&tokens, LIST).await;
    leading.abort();
    let aborted = "workspace_gateway_requests_total{operation=\"ListProducts\",result=\"aborted\",status=\"none\"}";
    world.until_metric(aborted, 1.0).await;
    world.simulator.release();
    assert!(all(following).await.iter().all(|reply| reply.products() > 0));
    assert_eq!(world.tokens_seen(), [tokens[0].clone()], "its call has answered them");
    assert!(world.get_as(&tokens[0], LIST).await.is_hit());
}

#[tokio::test]
async fn what_depends_on_who_asked_is_the_leaders_alone() {
    for status in [204, 302, 409, 413, 414, 431, 494, 508] {
        let world = World::new().await;
        let tokens: [String; 4] = world.granted().await;
        let (leading, following) = world.board(&tokens, LIST).await;
        let status = StatusCode::from_u16(status).unwrap();
        world.simulator.fail_token(&tokens[0], Some(status));
        world.simulator.release();
        assert_eq!(within(leading).await.unwrap().status(), status);
        assert!(all(following).await.iter().all(|reply| reply.products() > 0), "{status}");
        assert_eq!(world.upstream_calls(), 2, "{status}");
    }
}

#[tokio::test]
async fn what_depends_on_the_question_is_for_everyone_aboard() {
    for status in [400, 404, 405] {
        let world = World::with(&format!("[cache]\n{WAITING}")).await;
        let tokens: [String; 4] = world.granted().await;
        let (leading, following) = world.board(&tokens, LIST).await;
        let status = StatusCode::from_u16(status).unwrap();
        world.simulator.fail_with(Some(status));
        world.simulator.release();
        let mut replies = all(following).await;
        replies.push(within(leading).await.unwrap());
        assert!(replies.iter().all(|reply| reply.status() == status && reply.body() == replies[0].body()));
        assert_eq!(world.upstream_calls(), 1);
        world.simulator.fail_with(None);
        assert_eq!(world.get_as(&tokens[1], LIST).await.status(), StatusCode::OK, "and it is not kept");
    }
}

#[tokio::test]
async fn a_failure_is_for_everyone_aboard_and_not_tried_again() {
    let world = World::new().await;
    let tokens: [String; 10] = world.granted().await;
    let (leading, following) = world.board(&tokens, LIST).await;
    world.simulator.fail_with(Some(StatusCode::SERVICE_UNAVAILABLE));
    world.simulator.release();
    let mut replies = all(following).await;
    replies.push(within(leading).await.unwrap());
    assert!(replies.iter().all(|reply| reply.status() == StatusCode::SERVICE_UNAVAILABLE));
    assert_eq!(world.upstream_calls(), 1);

    world.simulator.forget_requests();
    let (leading, following) = world.board(&tokens, LIST).await;
    world.simulator.fail_with(None);
    world.simulator.reset_connection(true);
    world.simulator.release();
    let mut replies = all(following).await;
    replies.push(within(leading).await.unwrap());
    assert!(replies.iter().all(|reply| reply.status() == StatusCode::BAD_GATEWAY));
    assert_eq!(world.upstream_calls(), 2, "once more, because the connection broke, for all of them");
}

#[tokio::test]
async fn where_there_is_a_stale_answer_a_failure_is_not_noticed() {
    let world = World::with(&format!("[cache]\nttl = \"1m\"\n{WAITING}")).await;
    let tokens: [String; 10] = world.granted().await;
    let before = world.get_as(&tokens[0], LIST).await;
    world.simulator.forget_requests();
    world.seconds_pass(60);
    let (leading, following) = world.board(&tokens, LIST).await;
    world.simulator.throttle(Some(0));
    world.simulator.release();
    let mut replies = all(following).await;
    replies.push(within(leading).await.unwrap());
    assert!(replies.iter().all(|reply| reply.status() == StatusCode::OK && reply.body() == before.body()));
    assert_eq!(world.upstream_calls(), 1);
}

#[tokio::test]
async fn who_loses_its_grant_while_it_waits_asks_for_itself() {
    let ways: [fn(&World); 3] = [
        |_| {},
        |world| world.simulator.fail_with(Some(StatusCode::SERVICE_UNAVAILABLE)),
        |world| world.simulator.reset_connection(true),
    ];
    for (way, fail) in ways.into_iter().enumerate() {
        let world = World::with(&format!("[cache]\nttl = \"1m\"\n{WAITING}")).await;
        let [follower] = world.granted().await;
        world.seconds_pass(100);
        let [leader] = world.granted().await;
        let before = world.get_as(&leader, LIST).await;
        world.simulator.forget_requests();
        world.seconds_pass(190);

        let (leading, following) = world.board(&[leader.clone(), follower.clone()], LIST).await;
        world.seconds_pass(20);
        fail(&world);
        world.simulator.release();
        let mut replies = all(following).await;
        replies.push(within(leading).await.unwrap());
        // In an outage its own failed call excuses it, and another's would not.
        assert!(replies.iter().all(|reply| reply.status() == StatusCode::OK && reply.body() == before.body()));
        // Each once more where the connection breaks.
        let mut tokens = world.tokens_seen();
        tokens.dedup();
        assert_eq!(tokens, [leader, follower], "{way}");
    }
}

#[tokio::test]
async fn what_its_leader_is_given_late_is_for_nobody_else() {
    let world = World::new().await;
    let [leader, follower] = world.granted().await;
    let target = LIST.replace("PROJECT", PROJECT);
    world.simulator.hold_target(&target);
    let leading = world.begin_and_arrive(&leader, LIST, 1).await;
    let following = world.begin_and_wait(&follower, LIST, 1).await;
    world.simulator.deny(&leader);
    assert_eq!(world.get_as(&leader, OTHER).await.status(), StatusCode::FORBIDDEN);
    world.simulator.restore(&leader);
    world.simulator.release_target(&target);
    for asking in [leading, following] {
        assert!(within(asking).await.unwrap().products() > 0);
    }
    assert_eq!(world.tokens_seen(), [leader.clone(), leader, follower]);
}

#[tokio::test]
async fn who_is_denied_while_it_waits_gets_nothing_from_others() {
    let world = World::new().await;
    let [leader, follower] = world.granted().await;
    world.simulator.hold_token(&leader);
    let leading = world.begin_and_arrive(&leader, LIST, 1).await;
    let following = world.begin_and_wait(&follower, LIST, 1).await;
    world.simulator.deny(&follower);
    assert_eq!(world.get_as(&follower, OTHER).await.status(), StatusCode::FORBIDDEN);
    world.simulator.release_token(&leader);
    assert_eq!(within(following).await.unwrap().status(), StatusCode::FORBIDDEN);
    assert_eq!(within(leading).await.unwrap().status(), StatusCode::OK);
    assert_eq!(world.tokens_seen(), [leader, follower], "its refusal was still known");
}

#[tokio::test]
async fn a_purge_during_a_flight_wins_for_everyone_aboard() {
    for status in [None, Some(StatusCode::NOT_FOUND)] {
        let world = World::new().await;
        let [leader, follower, late] = world.granted().await;
        world.simulator.hold_token(&leader);
        let leading = world.begin_and_arrive(&leader, LIST, 1).await;
        let following = world.begin_and_wait(&follower, LIST, 1).await;
        world.purge();
        world.simulator.hold_token(&late);
        let boarding = world.begin_and_arrive(&late, LIST, 2).await;
        world.simulator.fail_token(&leader, status);
        world.simulator.release_token(&leader);
        let old = within(leading).await.unwrap();
        assert_eq!(old.status(), status.unwrap_or(StatusCode::OK));
        assert!(!old.cache_status().contains("stored"), "{old:?}");

        // The follower has boarded the flight that was asked after the purge, and waits.
        world.until_metric(WAITERS, 1.0).await;
        world.simulator.change_catalogue();
        world.simulator.release_token(&late);
        let new = within(boarding).await.unwrap();
        assert_eq!((new.status(), within(following).await.unwrap().body()), (StatusCode::OK, new.body()));
        assert_ne!(new.body(), old.body());
        assert_eq!(world.tokens_seen(), [leader.clone(), late]);
        assert_eq!(world.get_as(&leader, LIST).await.body(), new.body());
    }
}

#[tokio::test]
async fn beyond_the_bound_on_flights_nobody_is_shared_with_and_everyone_answered() {
    let world = World::with("[limits]\nmax_flights = 1").await;
    let [one, two, three] = world.granted().await;
    world.simulator.hold();
    let mut asking = vec![world.begin_and_arrive(&one, LIST, 1).await];
    for (calls, token) in [(2, &two), (3, &three)] {
        asking.push(world.begin_and_arrive(token, OTHER, calls).await);
    }
    asking.push(world.begin_and_wait(&two, LIST, 1).await);
    world.simulator.release();
    assert!(all(asking).await.iter().all(|reply| reply.products() > 0));
    assert_eq!(world.upstream_calls(), 3);
    for path in [LIST, OTHER] {
        assert!(world.get_as(&one, path).await.is_hit(), "what it brought is kept all the same");
    }
}

#[tokio::test]
async fn beyond_the_bound_on_waiters_requests_fly_by_themselves() {
    let world = World::with("[limits]\nmax_waiters = 1").await;
    let tokens: [String; 4] = world.granted().await;
    let (leading, mut asking) = world.board(&tokens[..2], LIST).await;
    asking.push(leading);
    for (calls, token) in (2..).zip(&tokens[2..]) {
        asking.push(world.begin_and_arrive(token, LIST, calls).await);
    }
    assert_eq!(world.metric(WAITERS), 1.0);
    world.simulator.release();
    assert!(all(asking).await.iter().all(|reply| reply.products() > 0));
    assert_eq!(world.upstream_calls(), 3);
}

#[tokio::test(start_paused = true)]
async fn a_request_waits_until_its_own_deadline_whoever_leads() {
    let (gateway, mut calls) = scripted("[upstream]\nanswer_timeout = \"35s\"");
    for token in ["leader", "one", "two"] {
        let gateway = gateway.clone();
        let proof = tokio::spawn(async move { ask(&gateway, token, OTHER).await });
        within(calls.recv()).await.unwrap().answer(StatusCode::OK, LIST_OF_NOTHING);
        assert_eq!(within(proof).await.unwrap().status(), StatusCode::OK);
    }
    let clock = Clock::System;
    let begun = clock.now();
    let begin = |token: &'static str| {
        let (gateway, clock) = (gateway.clone(), clock.clone());
        tokio::spawn(async move { (ask(&gateway, token, LIST).await.status(), clock.now() - begun) })
    };
    // The clock is paused: time passes once everyone waits, and at once.
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

    // A new call is under way, which has another 35 seconds; they have a second more than that in all.
    let second = within(calls.recv()).await.unwrap();
    assert_eq!(within(one).await.unwrap(), (StatusCode::GATEWAY_TIMEOUT, Duration::from_secs(36)));
    assert_eq!(within(two).await.unwrap(), (StatusCode::GATEWAY_TIMEOUT, Duration::from_secs(46)));
    // What it brings is there for whoever asks next.
    second.answer(StatusCode::OK, LIST_OF_NOTHING);
    assert_eq!(within(begin("one")).await.unwrap().0, StatusCode::OK);
    assert!(calls.try_recv().is_err());
}
