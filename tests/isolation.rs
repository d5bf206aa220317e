//! What is one caller's own stays with it: its quota, its headers, its refusal by whatever way, and what
//! it brings about after it was refused.

use std::sync::Arc;

use http::{HeaderName, HeaderValue, Method, StatusCode};
use tokio::task::JoinHandle;

use crate::support::{PROJECT, PROOF, Reply, WAITERS, WAITING, World, all, within};

const LIST: &str = "/v2/PROJECT/products?os_type=Linux";
const OTHER: &str = "/v2/PROJECT/products?os_type=Windows";

#[tokio::test]
async fn a_throttled_leader_is_throttled_alone() {
    let world = World::new().await;
    let tokens: [String; 20] = world.granted().await;
    let (leading, following) = world.board(&tokens, LIST).await;
    world.simulator.throttle_token(&tokens[0], true);
    world.simulator.release();
    assert_eq!(within(leading).await.unwrap().status(), StatusCode::TOO_MANY_REQUESTS);
    assert!(all(following).await.iter().all(|reply| reply.products() > 0));
    assert_eq!(world.upstream_calls(), 2);
    assert_eq!(world.metric("workspace_gateway_elections_total"), 1.0);
}

#[tokio::test]
async fn where_everyone_is_throttled_not_everyone_finds_out_for_itself() {
    let world = World::new().await;
    let tokens: [String; 20] = world.granted().await;
    let (leading, following) = world.board(&tokens, LIST).await;
    world.simulator.throttle(Some(0));
    world.simulator.release();
    let mut replies = all(following).await;
    replies.push(within(leading).await.unwrap());
    assert!(replies.iter().all(|reply| reply.status() == StatusCode::TOO_MANY_REQUESTS));
    assert_eq!(world.upstream_calls(), 4, "one leader and three elected");
}

#[tokio::test]
async fn a_throttled_leader_is_not_noticed_where_there_is_a_stale_answer() {
    let world = World::with(&format!("[cache]\nttl = \"1m\"\n{WAITING}")).await;
    let tokens: [String; 5] = world.granted().await;
    let kept = world.get_as(&tokens[0], LIST).await;
    world.seconds_pass(60);
    world.simulator.forget_requests();
    let (leading, following) = world.board(&tokens, LIST).await;
    world.simulator.throttle_token(&tokens[0], true);
    world.simulator.release();
    let mut replies = all(following).await;
    replies.push(within(leading).await.unwrap());
    assert!(replies.iter().all(|reply| reply.body() == kept.body()));
    assert_eq!(world.upstream_calls(), 1);
}

#[tokio::test]
async fn callers_without_a_grant_do_not_take_the_room_of_those_with_one() {
    let world = World::with("[limits]\nmax_flights = 4\nmax_waiters = 4").await;
    let tokens: [String; 5] = world.granted().await;
    world.simulator.hold();
    let mut asking = Vec::new();
    for number in 0..4 {
        asking.push(world.begin_and_arrive(&format!("bad-{number}"), LIST, number + 1).await);
        asking.push(world.begin_and_wait(&format!("bad-{number}"), LIST, number + 1).await);
    }
    let leading = world.begin_and_arrive(&tokens[0], LIST, 5).await;
    let following: Vec<_> = tokens[1..].iter().map(|token| world.begin(token, LIST)).collect();
    world.until_metric(WAITERS, 8.0).await;
    assert_eq!(world.upstream_calls(), 5, "one for all that have a grant");
    world.simulator.release();
    assert!(within(leading).await.unwrap().products() > 0);
    assert!(all(following).await.iter().all(|reply| reply.products() > 0));
    assert!(all(asking).await.iter().all(|reply| reply.status() == StatusCode::UNAUTHORIZED));
}

#[tokio::test]
async fn a_refusal_ends_a_grant_by_whatever_way_it_comes() {
    // A repeated parameter and a client's no-store are forwarded as they are.
    for (path, headers) in [(LIST, &[("cache-control", "no-store")][..]), (&format!("{LIST}&limit=1&limit=2"), &[])] {
        let world = World::new().await;
        assert_eq!(world.get(LIST).await.status(), StatusCode::OK);
        world.simulator.deny(&world.token);
        assert!(world.get(LIST).await.is_hit(), "nobody has told us yet");
        world.get_with(path, headers).await.assert_refused(StatusCode::FORBIDDEN);
        world.simulator.forget_requests();
        world.get(LIST).await.assert_refused(StatusCode::FORBIDDEN);
        assert_eq!(world.upstream_calls(), 1, "it is asked for itself");
    }
    // So it is while the cache is switched off.
    let world = World::new().await;
    assert_eq!(world.get(LIST).await.status(), StatusCode::OK);
    world.simulator.revoke(&world.token);
    let mode = world.admin_url("/mode");
    assert_eq!(world.http.send(Method::PUT, &mode, &[], "bypass").await.status(), StatusCode::OK);
    world.get(LIST).await.assert_refused(StatusCode::UNAUTHORIZED);
    assert_eq!(world.http.send(Method::PUT, &mode, &[], "cache").await.status(), StatusCode::OK);
    world.get(LIST).await.assert_refused(StatusCode::UNAUTHORIZED);
}

#[tokio::test]
async fn a_refusal_too_large_to_hold_ends_a_grant() {
    let world = World::with("[cache]\nmax_body_size = \"60B\"").await;
    world.simulator.answer_with(Some(r#"{"products":[]}"#.into()));
    assert_eq!(world.get(LIST).await.status(), StatusCode::OK);
    world.simulator.revoke(&world.token);
    world.get(OTHER).await.assert_refused(StatusCode::UNAUTHORIZED);
    world.get(LIST).await.assert_refused(StatusCode::UNAUTHORIZED);
}

#[tokio::test]
async fn a_failure_too_large_to_hold_keeps_nobody_from_waiting() {
    let world = World::with("[cache]\nmax_body_size = \"60B\"").await;
    world.simulator.answer_with(Some(r#"{"products":[]}"#.into()));
    let tokens: [String; 2] = world.granted().await;
    world.simulator.fail_with(Some(StatusCode::SERVICE_UNAVAILABLE));
    world.get_as(&tokens[0], LIST).await.assert_refused(StatusCode::SERVICE_UNAVAILABLE);
    assert_eq!(world.metric("workspace_gateway_uncacheable_keys"), 0.0);
    world.simulator.fail_with(None);
    world.simulator.forget_requests();
    let (leading, following) = world.board(&tokens, LIST).await;
    world.simulator.release();
    assert_eq!(within(leading).await.unwrap().status(), StatusCode::OK);
    all(following).await;
    assert_eq!(world.upstream_calls(), 1);
}

#[tokio::test]
async fn headers_that_are_one_callers_own_are_told_to_no_other() {
    let world = World::new().await;
    let tokens: [String; 3] = world.granted().await;
    let own = ["set-cookie", "x-subject-token", "x-ratelimit-remaining", "x-trace"];
    for name in own.iter().chain(&["content-language"]) {
        world.simulator.add_header(HeaderName::from_static(name), HeaderValue::from_static("en"));
    }
    let (leading, following) = world.board(&tokens, LIST).await;
    world.simulator.release();
    let led = within(leading).await.unwrap();
    let mut others = all(following).await;
    others.push(world.get_as(&tokens[0], LIST).await);
    assert!(others.last().unwrap().is_hit());
    for reply in &others {
        assert_eq!(reply.header("content-language"), "en");
        assert!(!own.iter().any(|name| reply.headers().contains_key(*name)), "{reply:?}");
    }
    assert!(own.iter().all(|name| led.header(name) == "en"));
}

/// Has the first of two callers lead a flight that the second has boarded, and be refused meanwhile.
async fn lead_and_be_refused(world: &World, tokens: &[String; 2]) -> [JoinHandle<Reply>; 2] {
    world.simulator.hold_target(&LIST.replace("PROJECT", PROJECT));
    let leading = world.begin_and_arrive(&tokens[0], LIST, 1).await;
    let following = world.begin_and_wait(&tokens[1], LIST, 1).await;
    world.simulator.deny(&tokens[0]);
    world.get_as(&tokens[0], OTHER).await.assert_refused(StatusCode::FORBIDDEN);
    world.simulator.restore(&tokens[0]);
    [leading, following]
}

#[tokio::test]
async fn who_was_refused_meanwhile_marks_nothing_for_others() {
    let world = World::new().await;
    let tokens = world.granted().await;
    let [leading, following] = lead_and_be_refused(&world, &tokens).await;
    world.simulator.answer_with(Some(r#"{"error_code":"WKS.00211401"}"#.into()));
    world.simulator.hold_token(&tokens[1]);
    world.simulator.release_target(&LIST.replace("PROJECT", PROJECT));
    assert_eq!(within(leading).await.unwrap().products(), 0);
    within(world.simulator.arrived(3)).await;
    assert_eq!(world.metric("workspace_gateway_uncacheable_keys"), 0.0);
    world.simulator.answer_with(None);
    world.simulator.release_token(&tokens[1]);
    assert!(within(following).await.unwrap().products() > 0);
}

#[tokio::test]
async fn who_was_refused_meanwhile_decides_nothing_for_others() {
    let world = World::new().await;
    let tokens = world.granted().await;
    let [leading, following] = lead_and_be_refused(&world, &tokens).await;
    world.simulator.fail_token(&tokens[0], Some(StatusCode::BAD_REQUEST));
    world.simulator.release_target(&LIST.replace("PROJECT", PROJECT));
    assert_eq!(within(leading).await.unwrap().status(), StatusCode::BAD_REQUEST);
    assert!(within(following).await.unwrap().products() > 0);
}

/// A request that says it has come through other gateways of this kind.
async fn through_others(world: &World, token: &str, path: &str) -> Reply {
    let trail = ["1.1 workspace-gateway-0000000a"; 8].join(", ");
    world.http.send(Method::GET, &world.url(path), &[("x-auth-token", token), ("via", &trail)], "").await
}

#[tokio::test]
async fn what_a_trail_of_gateways_brings_about_is_for_who_named_them() {
    let world = Arc::new(World::new().await);
    let tokens: [String; 2] = world.granted().await;
    world.simulator.hold();
    let leading = tokio::spawn({
        let (world, token) = (Arc::clone(&world), tokens[0].clone());
        async move { through_others(&world, &token, LIST).await }
    });
    within(world.simulator.arrived(1)).await;
    let following = world.begin_and_wait(&tokens[1], LIST, 1).await;
    // As a server does whose limit the trail has gone over.
    world.simulator.fail_token(&tokens[0], Some(StatusCode::BAD_REQUEST));
    world.simulator.release();
    assert_eq!(within(leading).await.unwrap().status(), StatusCode::BAD_REQUEST);
    assert!(within(following).await.unwrap().products() > 0);
}

#[tokio::test]
async fn a_trail_of_gateways_earns_no_stale_answer_for_a_lapsed_grant() {
    let world = World::new().await;
    let [token] = world.granted().await;
    assert_eq!(world.get_as(&token, LIST).await.status(), StatusCode::OK);
    world.seconds_pass(300);
    world.simulator.reset_connection(true);
    assert_eq!(through_others(&world, &token, LIST).await.status(), StatusCode::BAD_GATEWAY);
    let plain = world.get_as(&token, LIST).await;
    assert!(plain.products() > 0 && plain.cache_status().contains("fwd=stale"), "{plain:?}");
    // With a grant that stands, whoever is to blame doesn't matter.
    world.simulator.reset_connection(false);
    assert_eq!(world.get_as(&token, PROOF).await.status(), StatusCode::OK);
    world.simulator.reset_connection(true);
    assert!(through_others(&world, &token, LIST).await.products() > 0);
}
