//! What belongs to one caller does not affect others: its quota, its headers, its denial, and its responses after a
//! denial.

use std::sync::Arc;

use http::{HeaderName, HeaderValue, Method, StatusCode};
use tokio::task::JoinHandle;
use workspace_gateway::testing::simulator::Simulator;

use crate::support::raw_upstream::{RawUpstream, sends};
use crate::support::signer::{Signed, entry};
use crate::support::{PROJECT, PROOF, Reply, WAIT_FOR_UPSTREAM, WAITERS, World, all_replies, within};

const LIST: &str = "/v2/PROJECT/products?os_type=Linux";
const OTHER: &str = "/v2/PROJECT/products?os_type=Windows";

#[tokio::test]
async fn a_throttled_leader_does_not_throttle_its_waiters() {
    let world = World::new().await;
    let tokens: [String; 20] = world.granted_tokens().await;
    let (leader, waiters) = world.begin_flight(&tokens, LIST).await;
    world.simulator.throttle_token(&tokens[0], true);
    world.simulator.release();
    assert_eq!(within(leader).await.unwrap().status(), StatusCode::TOO_MANY_REQUESTS);
    assert!(all_replies(waiters).await.iter().all(|reply| reply.products() > 0));
    assert_eq!(world.upstream_calls(), 2);
    assert_eq!(world.metric("workspace_gateway_elections_total"), 1.0);
}

#[tokio::test]
async fn when_all_callers_are_throttled_at_most_four_calls_are_made() {
    let world = World::new().await;
    let tokens: [String; 20] = world.granted_tokens().await;
    let (leader, waiters) = world.begin_flight(&tokens, LIST).await;
    world.simulator.throttle(Some(0));
    world.simulator.release();
    let mut replies = all_replies(waiters).await;
    replies.push(within(leader).await.unwrap());
    assert!(replies.iter().all(|reply| reply.status() == StatusCode::TOO_MANY_REQUESTS));
    assert_eq!(world.upstream_calls(), 4, "the leader, and three waiters that become leaders");
}

#[tokio::test]
async fn all_callers_get_a_stale_response_when_the_leader_is_throttled() {
    let world = World::with(&format!("[cache]\nttl = \"1m\"\n{WAIT_FOR_UPSTREAM}")).await;
    let tokens: [String; 5] = world.granted_tokens().await;
    let stored = world.get_as(&tokens[0], LIST).await;
    world.seconds_pass(60);
    world.simulator.forget_requests();
    let (leader, waiters) = world.begin_flight(&tokens, LIST).await;
    world.simulator.throttle_token(&tokens[0], true);
    world.simulator.release();
    let mut replies = all_replies(waiters).await;
    replies.push(within(leader).await.unwrap());
    assert!(replies.iter().all(|reply| reply.body() == stored.body()));
    assert_eq!(world.upstream_calls(), 1);
}

#[tokio::test]
async fn callers_without_a_grant_do_not_exhaust_the_limits_of_granted_ones() {
    let world = World::with("[limits]\nmax_flights = 4\nmax_waiters = 4").await;
    let tokens: [String; 5] = world.granted_tokens().await;
    world.simulator.hold();
    let mut invented = Vec::new();
    // Unknown callers have at most half of the flights, and each has at most half of the waiters.
    for number in 0..2 {
        invented.push(world.begin_and_reach_upstream(&format!("bad-{number}"), LIST, number + 1).await);
        for waiting in 1..=2 {
            invented.push(world.begin_and_wait(&format!("bad-{number}"), LIST, 2 * number + waiting).await);
        }
    }
    invented.push(world.begin_and_reach_upstream("bad-2", LIST, 3).await);
    let leader = world.begin_and_reach_upstream(&tokens[0], LIST, 4).await;
    let waiters: Vec<_> = tokens[1..].iter().map(|token| world.begin(token, LIST)).collect();
    world.until_metric(WAITERS, 8.0).await;
    assert_eq!(world.upstream_calls(), 4, "one call for all callers with a grant");
    world.simulator.release();
    assert!(within(leader).await.unwrap().products() > 0);
    assert!(all_replies(waiters).await.iter().all(|reply| reply.products() > 0));
    assert!(all_replies(invented).await.iter().all(|reply| reply.status() == StatusCode::UNAUTHORIZED));
}

#[tokio::test]
async fn a_denial_ends_a_grant_even_if_the_request_was_bypassed() {
    // Requests with no-store or a repeated parameter are bypassed.
    for (path, headers) in [(LIST, &[("cache-control", "no-store")][..]), (&format!("{LIST}&limit=1&limit=2"), &[])] {
        let world = World::new().await;
        assert_eq!(world.get(LIST).await.status(), StatusCode::OK);
        world.simulator.deny(&world.token);
        assert!(world.get(LIST).await.is_hit(), "the gateway does not know of the denial yet");
        world.get_with(path, headers).await.assert_refused(StatusCode::FORBIDDEN);
        world.simulator.forget_requests();
        world.get(LIST).await.assert_refused(StatusCode::FORBIDDEN);
        assert_eq!(world.upstream_calls(), 1, "the caller's own call is made");
    }
    // The same applies in bypass mode.
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
async fn a_denial_larger_than_max_body_size_ends_a_grant() {
    let world = World::with("[cache]\nmax_body_size = \"60B\"").await;
    world.simulator.set_list_body(Some(r#"{"products":[]}"#.into()));
    assert_eq!(world.get(LIST).await.status(), StatusCode::OK);
    world.simulator.revoke(&world.token);
    world.simulator.forget_requests();
    world.get(OTHER).await.assert_refused(StatusCode::UNAUTHORIZED);
    assert_eq!(world.upstream_calls(), 1, "no second call is made to stream it");
    world.get(LIST).await.assert_refused(StatusCode::UNAUTHORIZED);
}

/// A world whose upstream sends a product list and then a denial with this body.
async fn world_with_denial(status: u16, framing: &str, body: &str) -> (World, RawUpstream) {
    let list = sends("HTTP/1.1 200 OK\r\nContent-Length: 15\r\n\r\n{\"products\":[]}");
    let denial = sends(format!("HTTP/1.1 {status} No\r\n{framing}\r\n\r\n{body}"));
    let upstream = RawUpstream::start([list, denial]).await;
    let world = World::with_upstreams(Simulator::start().await.unwrap(), upstream.url(), upstream.url(), "").await;
    (world, upstream)
}

#[tokio::test]
async fn an_incomplete_denial_is_answered_by_the_gateway_and_ends_the_grant() {
    let huge = "x".repeat(64 * 1024 + 1);
    for (status, code, framing, body) in [
        (401, "APIGW.0301", "Content-Length: 100", "{"),
        (403, "APIGW.0302", "Transfer-Encoding: chunked", "1\r\n{\r\n"),
        (401, "APIGW.0301", "Content-Length: 65537", ""),
        (403, "APIGW.0302", "Content-Length: 65537", &*huge),
        (401, "APIGW.0301", "Transfer-Encoding: chunked", "what\r\n"),
    ] {
        let (world, upstream) = world_with_denial(status, framing, body).await;
        assert_eq!(world.get(LIST).await.status(), StatusCode::OK);
        let reply = world.get(OTHER).await;
        assert_eq!((reply.status().as_u16(), reply.error().0.as_str()), (status, code), "{reply:?}");
        assert!(reply.cache_status().ends_with("detail=refusal-incomplete"), "{reply:?}");
        assert!(reply.error().1.contains("upstream refused the request"), "{reply:?}");
        assert_eq!(upstream.requests(), 2, "no second call is made to stream it");
        assert_eq!(world.metric("workspace_gateway_denials_total{source=\"upstream\"}"), 1.0);
        // The denial is not remembered, and the grant has ended.
        assert_eq!(world.get(LIST).await.status().as_u16(), status);
        assert_eq!(upstream.requests(), 3);
    }
}

#[tokio::test]
async fn a_relayed_denial_ends_an_access_keys_grant_at_its_head() {
    let list = sends("HTTP/1.1 200 OK\r\nContent-Length: 15\r\n\r\n{\"products\":[]}");
    let endless = sends("HTTP/1.1 401 No\r\nContent-Length: 10\r\n\r\n{").then_waits().then_sends("\"a\":true}");
    let upstream = RawUpstream::start([list, endless]).await;
    let simulator = Simulator::start().await.unwrap();
    let key = simulator.access_key(PROJECT);
    let world = World::with_upstreams(simulator, upstream.url(), upstream.url(), &entry(&key, "")).await;
    assert_eq!(Signed::get(&world, &key, LIST).send(&world).await.status(), StatusCode::OK);
    let relayed = Signed::get(&world, &key, OTHER).with("cache-control", "no-store").begin(&world);
    world.until_metric("workspace_gateway_denials_total{source=\"upstream\"}", 1.0).await;
    assert!(!relayed.is_finished());
    // The head is sent to the client within 2 s, even though the body has not ended. The whole body follows.
    let denied_calls = "workspace_gateway_upstream_requests_total{service=\"workspace\",status=\"401\"}";
    world.until_metric(denied_calls, 1.0).await;
    upstream.resume();
    let reply = within(relayed).await.unwrap();
    assert_eq!((reply.status(), reply.text()), (StatusCode::UNAUTHORIZED, "{\"a\":true}"));
}

#[tokio::test]
async fn a_denial_of_64_kib_is_relayed_unchanged() {
    let body = "x".repeat(64 * 1024);
    let (world, _upstream) = world_with_denial(401, "Content-Length: 65536", &body).await;
    assert_eq!(world.get(LIST).await.status(), StatusCode::OK);
    let reply = world.get(OTHER).await;
    assert_eq!((reply.status(), reply.text()), (StatusCode::UNAUTHORIZED, &*body));
}

#[tokio::test]
async fn a_failure_larger_than_max_body_size_does_not_prevent_coalescing() {
    let world = World::with("[cache]\nmax_body_size = \"60B\"").await;
    world.simulator.set_list_body(Some(r#"{"products":[]}"#.into()));
    let tokens: [String; 2] = world.granted_tokens().await;
    world.simulator.fail_with(Some(StatusCode::SERVICE_UNAVAILABLE));
    world.get_as(&tokens[0], LIST).await.assert_refused(StatusCode::SERVICE_UNAVAILABLE);
    assert_eq!(world.metric("workspace_gateway_uncacheable_keys"), 0.0);
    world.simulator.fail_with(None);
    world.simulator.forget_requests();
    let (leader, waiters) = world.begin_flight(&tokens, LIST).await;
    world.simulator.release();
    assert_eq!(within(leader).await.unwrap().status(), StatusCode::OK);
    all_replies(waiters).await;
    assert_eq!(world.upstream_calls(), 1);
}

#[tokio::test]
async fn headers_of_one_caller_are_not_sent_to_others() {
    let world = World::new().await;
    let tokens: [String; 3] = world.granted_tokens().await;
    let own_headers = ["set-cookie", "x-subject-token", "x-ratelimit-remaining", "x-trace"];
    for name in own_headers.iter().chain(&["content-language"]) {
        world.simulator.add_header(HeaderName::from_static(name), HeaderValue::from_static("en"));
    }
    let (leader, waiters) = world.begin_flight(&tokens, LIST).await;
    world.simulator.release();
    let leader_reply = within(leader).await.unwrap();
    let mut others = all_replies(waiters).await;
    others.push(world.get_as(&tokens[0], LIST).await);
    assert!(others.last().unwrap().is_hit());
    for reply in &others {
        assert_eq!(reply.header("content-language"), "en");
        assert!(!own_headers.iter().any(|name| reply.headers().contains_key(*name)), "{reply:?}");
    }
    assert!(own_headers.iter().all(|name| leader_reply.header(name) == "en"));
}

/// Lets the first caller lead a flight for which the second one waits. The first one is denied in the meantime.
async fn lead_and_be_denied(world: &World, tokens: &[String; 2]) -> [JoinHandle<Reply>; 2] {
    world.simulator.hold_target(&LIST.replace("PROJECT", PROJECT));
    let leader = world.begin_and_reach_upstream(&tokens[0], LIST, 1).await;
    let waiter = world.begin_and_wait(&tokens[1], LIST, 1).await;
    world.simulator.deny(&tokens[0]);
    world.get_as(&tokens[0], OTHER).await.assert_refused(StatusCode::FORBIDDEN);
    world.simulator.restore(&tokens[0]);
    [leader, waiter]
}

#[tokio::test]
async fn a_caller_denied_meanwhile_marks_no_key_as_uncacheable() {
    let world = World::new().await;
    let tokens = world.granted_tokens().await;
    let [leader, waiter] = lead_and_be_denied(&world, &tokens).await;
    world.simulator.set_list_body(Some(r#"{"error_code":"WKS.00211401"}"#.into()));
    world.simulator.hold_token(&tokens[1]);
    world.simulator.release_target(&LIST.replace("PROJECT", PROJECT));
    assert_eq!(within(leader).await.unwrap().products(), 0);
    within(world.simulator.wait_for_requests(3)).await;
    assert_eq!(world.metric("workspace_gateway_uncacheable_keys"), 0.0);
    world.simulator.set_list_body(None);
    world.simulator.release_token(&tokens[1]);
    assert!(within(waiter).await.unwrap().products() > 0);
}

#[tokio::test]
async fn a_response_to_a_caller_denied_meanwhile_is_not_shared() {
    let world = World::new().await;
    let tokens = world.granted_tokens().await;
    let [leader, waiter] = lead_and_be_denied(&world, &tokens).await;
    world.simulator.fail_token(&tokens[0], Some(StatusCode::BAD_REQUEST));
    world.simulator.release_target(&LIST.replace("PROJECT", PROJECT));
    assert_eq!(within(leader).await.unwrap().status(), StatusCode::BAD_REQUEST);
    assert!(within(waiter).await.unwrap().products() > 0);
}

/// A request whose Via names eight other gateways.
async fn get_with_long_via(world: &World, token: &str, path: &str) -> Reply {
    let via = ["1.1 workspace-gateway-0000000a"; 8].join(", ");
    world.http.send(Method::GET, &world.url(path), &[("x-auth-token", token), ("via", &via)], "").await
}

#[tokio::test]
async fn a_failure_caused_by_a_long_via_concerns_its_sender_only() {
    let world = Arc::new(World::new().await);
    let tokens: [String; 2] = world.granted_tokens().await;
    world.simulator.hold();
    let leader = tokio::spawn({
        let (world, token) = (Arc::clone(&world), tokens[0].clone());
        async move { get_with_long_via(&world, &token, LIST).await }
    });
    within(world.simulator.wait_for_requests(1)).await;
    let waiter = world.begin_and_wait(&tokens[1], LIST, 1).await;
    // Some servers answer 400 if a field is longer than their limit.
    world.simulator.fail_token(&tokens[0], Some(StatusCode::BAD_REQUEST));
    world.simulator.release();
    assert_eq!(within(leader).await.unwrap().status(), StatusCode::BAD_REQUEST);
    assert!(within(waiter).await.unwrap().products() > 0);
}

#[tokio::test]
async fn a_long_via_shows_a_lapsed_caller_nothing_newer_than_its_grant() {
    let world = World::new().await;
    let [token, other] = world.granted_tokens().await;
    assert_eq!(world.get_as(&token, LIST).await.status(), StatusCode::OK);
    world.seconds_pass(300);
    world.simulator.reset_connections(true);
    let covered = get_with_long_via(&world, &token, LIST).await;
    assert!(covered.products() > 0 && covered.cache_status().contains("fwd=stale"), "{covered:?}");
    world.simulator.reset_connections(false);
    world.seconds_pass(10);
    assert!(world.get_as(&other, LIST).await.cache_status().contains("; stored"));
    world.simulator.reset_connections(true);
    assert_eq!(get_with_long_via(&world, &token, LIST).await.status(), StatusCode::BAD_GATEWAY);
    // A current grant shows the stored entry, whatever caused the failure.
    world.simulator.reset_connections(false);
    assert_eq!(world.get_as(&token, PROOF).await.status(), StatusCode::OK);
    world.simulator.reset_connections(true);
    assert!(get_with_long_via(&world, &token, LIST).await.products() > 0);
}
