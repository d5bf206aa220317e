//! Answers that are for one caller alone: nobody else is given them, and nobody waits for the next.

use std::collections::HashSet;

use bytes::Bytes;
use http::{HeaderName, HeaderValue, Method, StatusCode};

use crate::support::{WAITERS, WAITING, World, all, within};

const LIST: &str = "/v2/PROJECT/products?os_type=Linux";

/// How many calls for product lists are under way.
const UNDER_WAY: &str = "workspace_gateway_upstream_calls{kind=\"product-list\",service=\"workspace\"}";

/// How an answer comes not to be for others.
type Unshareable = fn(&World);

#[tokio::test]
async fn an_answer_that_must_not_be_shared_is_its_leaders_and_nobody_queues_for_the_next() {
    let ways: [Unshareable; 4] = [
        |world| {
            let name = HeaderName::from_static("cache-control");
            world.simulator.add_header(name, HeaderValue::from_static("no-store"));
        },
        |world| world.simulator.add_header(HeaderName::from_static("vary"), HeaderValue::from_static("cookie")),
        |world| world.simulator.answer_with(Some(Bytes::from_static(br#"{"error_code":"WKS.00211401"}"#))),
        |world| world.simulator.answer_with(Some(Bytes::from_static(b"<html>"))),
    ];
    for spoil in ways {
        let world = World::new().await;
        let tokens: [String; 5] = world.granted().await;
        let (leading, following) = world.board(&tokens, LIST).await;
        spoil(&world);
        world.simulator.release();
        let mut replies = all(following).await;
        replies.push(within(leading).await.unwrap());
        for reply in &replies {
            assert_eq!(reply.status(), StatusCode::OK);
            assert!(
                !reply.cache_status().contains("stored") && !reply.cache_status().contains("collapsed"),
                "{reply:?}"
            );
        }
        let seen: HashSet<_> = world.tokens_seen().into_iter().collect();
        assert_eq!((seen.len(), world.upstream_calls()), (5, 5), "each by its own call");

        // For a minute nobody waits for an answer that would not be for it.
        world.seconds_pass(59);
        world.simulator.forget_requests();
        world.simulator.hold();
        let one = world.begin_and_arrive(&tokens[0], LIST, 1).await;
        let two = world.begin_and_arrive(&tokens[1], LIST, 2).await;
        let again = world.begin_and_arrive(&tokens[0], LIST, 3).await;
        assert_eq!(world.metric(WAITERS), 0.0);
        world.simulator.remove_headers();
        world.simulator.answer_with(None);
        world.simulator.release();
        assert!(all(vec![one, two, again]).await.iter().all(|reply| reply.products() > 0));
        // An answer that may be shared ends that at once.
        assert!(world.get_as(&tokens[2], LIST).await.is_hit());
    }
}

#[tokio::test]
async fn that_an_answer_must_not_be_shared_is_forgotten_after_a_minute() {
    let world = World::new().await;
    let [one, two] = world.granted().await;
    world.simulator.add_header(HeaderName::from_static("cache-control"), HeaderValue::from_static("no-store"));
    world.get_as(&one, LIST).await;
    world.seconds_pass(60);
    world.simulator.forget_requests();
    let (leading, following) = world.board(&[one, two], LIST).await;
    assert_eq!(world.upstream_calls(), 1);
    world.simulator.release();
    all(following).await;
    within(leading).await.unwrap();
    assert_eq!(world.upstream_calls(), 2);
}

#[tokio::test]
async fn once_an_answer_may_be_shared_the_next_is_waited_for() {
    let world = World::with(&format!("[cache]\nttl = \"10s\"\n{WAITING}")).await;
    let [one, two] = world.granted().await;
    world.simulator.add_header(HeaderName::from_static("cache-control"), HeaderValue::from_static("no-store"));
    world.get_as(&one, LIST).await;
    world.simulator.remove_headers();
    world.get_as(&one, LIST).await;
    world.seconds_pass(10);
    world.simulator.forget_requests();
    let (leading, following) = world.board(&[one, two], LIST).await;
    world.simulator.release();
    all(following).await;
    within(leading).await.unwrap();
    assert_eq!(world.upstream_calls(), 1);
}

#[tokio::test]
async fn an_answer_that_is_not_to_be_kept_leaves_the_entry_alone() {
    let world = World::with(&format!("[cache]\nttl = \"1m\"\n{WAITING}")).await;
    let kept = world.get(LIST).await;
    world.seconds_pass(60);
    world.simulator.add_header(HeaderName::from_static("cache-control"), HeaderValue::from_static("no-store"));
    world.simulator.change_catalogue();
    assert_ne!(world.get(LIST).await.body(), kept.body());
    world.simulator.fail_with(Some(StatusCode::SERVICE_UNAVAILABLE));
    assert_eq!(world.get(LIST).await.body(), kept.body());
}

#[tokio::test]
async fn what_one_caller_is_answered_beside_a_fresh_answer_is_its_own_trouble() {
    let world = World::with("[cache]\nttl = \"10s\"\nstale_while_revalidate = \"50s\"").await;
    let tokens: [String; 3] = world.granted().await;
    let [bad, one, two] = &tokens;
    let kept = world.get_as(one, LIST).await;
    let error = Bytes::from_static(br#"{"error_code":"WKS.00211401"}"#);
    world.simulator.answer_with(Some(error.clone()));
    let headers = [("x-auth-token", bad.as_str()), ("cache-control", "no-cache")];
    let reply = world.http.send(Method::GET, &world.url(LIST), &headers, "").await;
    assert_eq!(reply.body(), &error);
    world.simulator.answer_with(None);

    // Stale: the others are given it at once. The one who was answered otherwise asks for itself.
    world.seconds_pass(10);
    assert_eq!(world.get_as(one, LIST).await.body(), kept.body());
    assert!(world.get_as(two, LIST).await.cache_status().contains("; hit"));
    world.until_metric(UNDER_WAY, 0.0).await;
    world.simulator.forget_requests();
    world.seconds_pass(10);
    assert!(!world.get_as(bad, LIST).await.cache_status().contains("; hit"));

    // Gone: the others wait for one call.
    world.simulator.answer_with(Some(error));
    world.http.send(Method::GET, &world.url(LIST), &headers, "").await;
    world.simulator.answer_with(None);
    world.seconds_pass(4_000);
    let tokens: [String; 2] = world.granted().await;
    let (leading, following) = world.board(&tokens, LIST).await;
    world.simulator.release();
    all(following).await;
    within(leading).await.unwrap();
    assert_eq!(world.upstream_calls(), 1);
}

/// Has a caller ask for an answer from after it asked, and be told of an error with status 200.
async fn ask_anew_in_vain(world: &World, token: &str) {
    let error = Bytes::from_static(br#"{"error_code":"WKS.00211401"}"#);
    world.simulator.answer_with(Some(error.clone()));
    let headers = [("x-auth-token", token), ("cache-control", "no-cache")];
    let reply = world.http.send(Method::GET, &world.url(LIST), &headers, "").await;
    assert_eq!((reply.status(), reply.body()), (StatusCode::OK, &error));
    world.simulator.answer_with(None);
}

#[tokio::test]
async fn a_caller_that_goes_on_asking_in_vain_beside_a_fresh_answer_costs_nobody_else_a_call() {
    let world = World::with(&format!("[cache]\nttl = \"1m\"\n{WAITING}")).await;
    let tokens: [String; 4] = world.granted().await;
    let [bad, one, two, three] = &tokens;
    let kept = world.get_as(one, LIST).await;
    for _ in 0..5 {
        world.seconds_pass(10);
        ask_anew_in_vain(&world, bad).await;
        for token in [one, two] {
            let reply = world.get_as(token, LIST).await;
            assert_eq!((reply.is_hit(), reply.body()), (true, kept.body()), "{reply:?}");
        }
    }
    assert_eq!(world.upstream_calls(), 6);
    // Once it is stale, the others wait for one call, though the caller was answered so within this minute.
    world.seconds_pass(10);
    world.simulator.forget_requests();
    let (leading, following) = world.board(&[one.clone(), two.clone(), three.clone()], LIST).await;
    world.simulator.release();
    assert!(within(leading).await.unwrap().cache_status().contains("; stored"));
    assert!(all(following).await.iter().all(|reply| reply.cache_status().contains("collapsed")));
    assert_eq!(world.upstream_calls(), 1);
}

#[tokio::test]
async fn where_the_answer_is_only_stale_everybody_asks_alone_until_the_next_answer_that_may_be_kept() {
    let world = World::with(&format!("[cache]\nttl = \"1m\"\n{WAITING}")).await;
    let [bad, one, two, three] = world.granted().await;
    let kept = world.get_as(&one, LIST).await;
    world.seconds_pass(60);
    ask_anew_in_vain(&world, &bad).await;
    world.simulator.forget_requests();
    world.simulator.hold();
    let asking = vec![
        world.begin_and_arrive(&one, LIST, 1).await,
        world.begin_and_arrive(&two, LIST, 2).await,
        world.begin_and_arrive(&bad, LIST, 3).await,
    ];
    assert_eq!(world.metric(WAITERS), 0.0);
    world.simulator.release();
    for reply in all(asking).await {
        assert_eq!(reply.body(), kept.body());
        assert!(!reply.cache_status().contains("collapsed"), "{reply:?}");
    }
    // From now on that caller asks in vain beside a fresh answer.
    for _ in 0..5 {
        assert!(world.get_as(&three, LIST).await.is_hit());
        world.seconds_pass(10);
        ask_anew_in_vain(&world, &bad).await;
    }
    assert_eq!(world.upstream_calls(), 8);
}

#[tokio::test]
async fn an_answer_too_large_to_hold_is_asked_for_twice_once_and_then_once() {
    let world = World::with("[cache]\nmax_body_size = \"1KiB\"").await;
    let tokens: [String; 3] = world.granted().await;
    let (leading, following) = world.board(&tokens, LIST).await;
    world.simulator.release();
    let mut replies = all(following).await;
    replies.push(within(leading).await.unwrap());
    for reply in &replies {
        assert!(reply.body().len() > 1024 && reply.products() > 0);
        assert_eq!(reply.cache_status(), "workspace-gateway; fwd=bypass; detail=too-large");
    }
    assert_eq!(world.upstream_calls(), 4, "one to find out, and one to stream for each");

    for (seconds, calls) in [(0, 1), (59, 1), (1, 2)] {
        world.seconds_pass(seconds);
        world.simulator.forget_requests();
        assert!(world.get_as(&tokens[1], LIST).await.cache_status().ends_with("detail=too-large"));
        assert_eq!(world.upstream_calls(), calls);
    }
    world.simulator.forget_requests();
    world.simulator.hold();
    let mut asking = Vec::new();
    for (calls, token) in (1..).zip(&tokens) {
        asking.push(world.begin_and_arrive(token, LIST, calls).await);
    }
    world.simulator.release();
    assert!(all(asking).await.iter().all(|reply| reply.products() > 0));
    assert_eq!(world.upstream_calls(), 3);
}
