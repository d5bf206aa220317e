//! Responses that must not be shared: other callers must not get them, and requests for their key do not wait for each
//! other.

use std::collections::HashSet;

use bytes::Bytes;
use http::{HeaderName, HeaderValue, Method, StatusCode};

use crate::support::{WAIT_FOR_UPSTREAM, WAITERS, World, all_replies, within};

const LIST: &str = "/v2/PROJECT/products?os_type=Linux";

/// The number of calls for product lists in flight.
const CALLS_IN_FLIGHT: &str = "workspace_gateway_upstream_calls{kind=\"product-list\",service=\"workspace\"}";

/// Makes responses unshareable.
type Unshareable = fn(&World);

#[tokio::test]
async fn an_unshareable_response_goes_to_its_leader_and_the_next_requests_do_not_wait() {
    let causes: [Unshareable; 4] = [
        |world| {
            let name = HeaderName::from_static("cache-control");
            world.simulator.add_header(name, HeaderValue::from_static("no-store"));
        },
        |world| world.simulator.add_header(HeaderName::from_static("vary"), HeaderValue::from_static("cookie")),
        |world| world.simulator.set_list_body(Some(Bytes::from_static(br#"{"error_code":"WKS.00211401"}"#))),
        |world| world.simulator.set_list_body(Some(Bytes::from_static(b"<html>"))),
    ];
    for make_unshareable in causes {
        let world = World::new().await;
        let tokens: [String; 5] = world.granted_tokens().await;
        let (leading, following) = world.begin_flight(&tokens, LIST).await;
        make_unshareable(&world);
        world.simulator.release();
        let mut replies = all_replies(following).await;
        replies.push(within(leading).await.unwrap());
        for reply in &replies {
            assert_eq!(reply.status(), StatusCode::OK);
            assert!(
                !reply.cache_status().contains("stored") && !reply.cache_status().contains("collapsed"),
                "{reply:?}"
            );
        }
        let seen: HashSet<_> = world.tokens_seen().into_iter().collect();
        assert_eq!((seen.len(), world.upstream_calls()), (5, 5), "one call for each caller");

        // For one minute, requests for this key do not wait.
        world.seconds_pass(59);
        world.simulator.forget_requests();
        world.simulator.hold();
        let one = world.begin_and_reach_upstream(&tokens[0], LIST, 1).await;
        let two = world.begin_and_reach_upstream(&tokens[1], LIST, 2).await;
        let again = world.begin_and_reach_upstream(&tokens[0], LIST, 3).await;
        assert_eq!(world.metric(WAITERS), 0.0);
        world.simulator.remove_headers();
        world.simulator.set_list_body(None);
        world.simulator.release();
        assert!(all_replies(vec![one, two, again]).await.iter().all(|reply| reply.products() > 0));
        // A response that can be shared ends this at once.
        assert!(world.get_as(&tokens[2], LIST).await.is_hit());
    }
}

#[tokio::test]
async fn a_key_is_coalesced_again_a_minute_after_an_unshareable_response() {
    let world = World::new().await;
    let [one, two] = world.granted_tokens().await;
    world.simulator.add_header(HeaderName::from_static("cache-control"), HeaderValue::from_static("no-store"));
    world.get_as(&one, LIST).await;
    world.seconds_pass(60);
    world.simulator.forget_requests();
    let (leading, following) = world.begin_flight(&[one, two], LIST).await;
    assert_eq!(world.upstream_calls(), 1);
    world.simulator.release();
    all_replies(following).await;
    within(leading).await.unwrap();
    assert_eq!(world.upstream_calls(), 2);
}

#[tokio::test]
async fn a_key_is_coalesced_again_after_a_shareable_response() {
    let world = World::with(&format!("[cache]\nttl = \"10s\"\n{WAIT_FOR_UPSTREAM}")).await;
    let [one, two] = world.granted_tokens().await;
    world.simulator.add_header(HeaderName::from_static("cache-control"), HeaderValue::from_static("no-store"));
    world.get_as(&one, LIST).await;
    world.simulator.remove_headers();
    world.get_as(&one, LIST).await;
    world.seconds_pass(10);
    world.simulator.forget_requests();
    let (leading, following) = world.begin_flight(&[one, two], LIST).await;
    world.simulator.release();
    all_replies(following).await;
    within(leading).await.unwrap();
    assert_eq!(world.upstream_calls(), 1);
}

#[tokio::test]
async fn a_response_that_cannot_be_stored_does_not_remove_the_entry() {
    let world = World::with(&format!("[cache]\nttl = \"1m\"\n{WAIT_FOR_UPSTREAM}")).await;
    let stored = world.get(LIST).await;
    world.seconds_pass(60);
    world.simulator.add_header(HeaderName::from_static("cache-control"), HeaderValue::from_static("no-store"));
    world.simulator.change_catalogue();
    assert_ne!(world.get(LIST).await.body(), stored.body());
    world.simulator.fail_with(Some(StatusCode::SERVICE_UNAVAILABLE));
    assert_eq!(world.get(LIST).await.body(), stored.body());
}

#[tokio::test]
async fn an_unshareable_response_affects_only_its_caller_while_the_entry_is_fresh() {
    let world = World::with("[cache]\nttl = \"10s\"\nstale_while_revalidate = \"50s\"").await;
    let tokens: [String; 3] = world.granted_tokens().await;
    let [bad, one, two] = &tokens;
    let stored = world.get_as(one, LIST).await;
    let error = Bytes::from_static(br#"{"error_code":"WKS.00211401"}"#);
    world.simulator.set_list_body(Some(error.clone()));
    let headers = [("x-auth-token", bad.as_str()), ("cache-control", "no-cache")];
    let reply = world.http.send(Method::GET, &world.url(LIST), &headers, "").await;
    assert_eq!(reply.body(), &error);
    world.simulator.set_list_body(None);

    // The entry is stale: the others get it at once. The caller with the other response causes a call of its own.
    world.seconds_pass(10);
    assert_eq!(world.get_as(one, LIST).await.body(), stored.body());
    assert!(world.get_as(two, LIST).await.cache_status().contains("; hit"));
    world.until_metric(CALLS_IN_FLIGHT, 0.0).await;
    world.simulator.forget_requests();
    world.seconds_pass(10);
    assert!(!world.get_as(bad, LIST).await.cache_status().contains("; hit"));

    // The entry is gone: the others wait for one call.
    world.simulator.set_list_body(Some(error));
    world.http.send(Method::GET, &world.url(LIST), &headers, "").await;
    world.simulator.set_list_body(None);
    world.seconds_pass(4_000);
    let tokens: [String; 2] = world.granted_tokens().await;
    let (leading, following) = world.begin_flight(&tokens, LIST).await;
    world.simulator.release();
    all_replies(following).await;
    within(leading).await.unwrap();
    assert_eq!(world.upstream_calls(), 1);
}

/// A caller sends `no-cache` and gets an error with status 200.
async fn get_error_with_status_200(world: &World, token: &str) {
    let error = Bytes::from_static(br#"{"error_code":"WKS.00211401"}"#);
    world.simulator.set_list_body(Some(error.clone()));
    let headers = [("x-auth-token", token), ("cache-control", "no-cache")];
    let reply = world.http.send(Method::GET, &world.url(LIST), &headers, "").await;
    assert_eq!((reply.status(), reply.body()), (StatusCode::OK, &error));
    world.simulator.set_list_body(None);
}

#[tokio::test]
async fn repeated_unshareable_responses_cost_others_no_calls_while_the_entry_is_fresh() {
    let world = World::with(&format!("[cache]\nttl = \"1m\"\n{WAIT_FOR_UPSTREAM}")).await;
    let tokens: [String; 4] = world.granted_tokens().await;
    let [bad, one, two, three] = &tokens;
    let stored = world.get_as(one, LIST).await;
    for _ in 0..5 {
        world.seconds_pass(10);
        get_error_with_status_200(&world, bad).await;
        for token in [one, two] {
            let reply = world.get_as(token, LIST).await;
            assert_eq!((reply.is_hit(), reply.body()), (true, stored.body()), "{reply:?}");
        }
    }
    assert_eq!(world.upstream_calls(), 6);
    // When the entry is stale, the others wait for one call, although there was such a response within this minute.
    world.seconds_pass(10);
    world.simulator.forget_requests();
    let (leading, following) = world.begin_flight(&[one.clone(), two.clone(), three.clone()], LIST).await;
    world.simulator.release();
    assert!(within(leading).await.unwrap().cache_status().contains("; stored"));
    assert!(all_replies(following).await.iter().all(|reply| reply.cache_status().contains("collapsed")));
    assert_eq!(world.upstream_calls(), 1);
}

#[tokio::test]
async fn an_unshareable_response_ends_coalescing_while_the_entry_is_stale() {
    let world = World::with(&format!("[cache]\nttl = \"1m\"\n{WAIT_FOR_UPSTREAM}")).await;
    let [bad, one, two, three] = world.granted_tokens().await;
    let stored = world.get_as(&one, LIST).await;
    world.seconds_pass(60);
    get_error_with_status_200(&world, &bad).await;
    world.simulator.forget_requests();
    world.simulator.hold();
    let pending = vec![
        world.begin_and_reach_upstream(&one, LIST, 1).await,
        world.begin_and_reach_upstream(&two, LIST, 2).await,
        world.begin_and_reach_upstream(&bad, LIST, 3).await,
    ];
    assert_eq!(world.metric(WAITERS), 0.0);
    world.simulator.release();
    for reply in all_replies(pending).await {
        assert_eq!(reply.body(), stored.body());
        assert!(!reply.cache_status().contains("collapsed"), "{reply:?}");
    }
    // From now on the entry is fresh when that caller gets its errors.
    for _ in 0..5 {
        assert!(world.get_as(&three, LIST).await.is_hit());
        world.seconds_pass(10);
        get_error_with_status_200(&world, &bad).await;
    }
    assert_eq!(world.upstream_calls(), 8);
}

#[tokio::test]
async fn a_too_large_response_is_not_buffered_again_for_a_minute() {
    let world = World::with("[cache]\nmax_body_size = \"1KiB\"").await;
    let tokens: [String; 3] = world.granted_tokens().await;
    let (leading, following) = world.begin_flight(&tokens, LIST).await;
    world.simulator.release();
    let mut replies = all_replies(following).await;
    replies.push(within(leading).await.unwrap());
    for reply in &replies {
        assert!(reply.body().len() > 1024 && reply.products() > 0);
        assert_eq!(reply.cache_status(), "workspace-gateway; fwd=bypass; detail=too-large");
    }
    assert_eq!(world.upstream_calls(), 4, "one call to learn the size, and one streamed response for each caller");

    for (seconds, calls) in [(0, 1), (59, 1), (1, 2)] {
        world.seconds_pass(seconds);
        world.simulator.forget_requests();
        assert!(world.get_as(&tokens[1], LIST).await.cache_status().ends_with("detail=too-large"));
        assert_eq!(world.upstream_calls(), calls);
    }
    world.simulator.forget_requests();
    world.simulator.hold();
    let mut pending = Vec::new();
    for (calls, token) in (1..).zip(&tokens) {
        pending.push(world.begin_and_reach_upstream(token, LIST, calls).await);
    }
    world.simulator.release();
    assert!(all_replies(pending).await.iter().all(|reply| reply.products() > 0));
    assert_eq!(world.upstream_calls(), 3);
}
