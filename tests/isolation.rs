//! What is one caller's own stays with it: its quota, its headers, its refusal by whatever way, and what
//! it brings about after it was refused.

use std::sync::Arc;

use http::{HeaderName, HeaderValue, Method, StatusCode};
use tokio::task::JoinHandle;
use workspace_gateway::testing::simulator::Simulator;

use crate::support::raw::{RawUpstream, says};
use crate::support::signer::{Signed, entry};
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
async fn a_refusal_is_read_whole_and_ends_a_grant_though_it_is_larger_than_what_is_kept() {
    let world = World::with("[cache]\nmax_body_size = \"60B\"").await;
    world.simulator.answer_with(Some(r#"{"products":[]}"#.into()));
    assert_eq!(world.get(LIST).await.status(), StatusCode::OK);
    world.simulator.revoke(&world.token);
    world.simulator.forget_requests();
    world.get(OTHER).await.assert_refused(StatusCode::UNAUTHORIZED);
    assert_eq!(world.upstream_calls(), 1, "it is not asked for again to be streamed");
    world.get(LIST).await.assert_refused(StatusCode::UNAUTHORIZED);
}

/// A product list and then a refusal, whose body goes on so.
async fn before_a_refusal(status: u16, framing: &str, body: &str) -> (World, RawUpstream) {
    let list = says("HTTP/1.1 200 OK\r\nContent-Length: 15\r\n\r\n{\"products\":[]}");
    let refusal = says(format!("HTTP/1.1 {status} No\r\n{framing}\r\n\r\n{body}"));
    let upstream = RawUpstream::start([list, refusal]).await;
    let world = World::before(Simulator::start().await.unwrap(), upstream.url(), upstream.url(), "").await;
    (world, upstream)
}

#[tokio::test]
async fn a_refusal_whose_body_does_not_end_is_told_by_the_gateway_and_ends_a_grant() {
    let huge = "x".repeat(64 * 1024 + 1);
    for (status, code, framing, body) in [
        (401, "APIGW.0301", "Content-Length: 100", "{"),
        (403, "APIGW.0302", "Transfer-Encoding: chunked", "1\r\n{\r\n"),
        (401, "APIGW.0301", "Content-Length: 65537", ""),
        (403, "APIGW.0302", "Content-Length: 65537", &*huge),
        (401, "APIGW.0301", "Transfer-Encoding: chunked", "what\r\n"),
    ] {
        let (world, upstream) = before_a_refusal(status, framing, body).await;
        assert_eq!(world.get(LIST).await.status(), StatusCode::OK);
        let reply = world.get(OTHER).await;
        assert_eq!((reply.status().as_u16(), reply.error().0.as_str()), (status, code), "{reply:?}");
        assert!(reply.cache_status().ends_with("detail=refusal-incomplete"), "{reply:?}");
        assert!(reply.error().1.contains("upstream refused the request"), "{reply:?}");
        assert_eq!(upstream.requests(), 2, "it is not asked for again to be streamed");
        assert_eq!(world.metric("workspace_gateway_denials_total{source=\"upstream\"}"), 1.0);
        // Nothing of it is remembered, and the grant is over.
        assert_eq!(world.get(LIST).await.status().as_u16(), status);
        assert_eq!(upstream.requests(), 3);
    }
}

#[tokio::test]
async fn what_is_relayed_for_an_access_key_ends_its_grant_at_the_head_of_a_refusal() {
    let list = says("HTTP/1.1 200 OK\r\nContent-Length: 15\r\n\r\n{\"products\":[]}");
    let endless = says("HTTP/1.1 401 No\r\nContent-Length: 10\r\n\r\n{").then_waits().then_says("\"a\":true}");
    let upstream = RawUpstream::start([list, endless]).await;
    let simulator = Simulator::start().await.unwrap();
    let key = simulator.access_key(PROJECT);
    let world = World::before(simulator, upstream.url(), upstream.url(), &entry(&key, "")).await;
    assert_eq!(Signed::get(&world, &key, LIST).send(&world).await.status(), StatusCode::OK);
    let relaying = Signed::get(&world, &key, OTHER).with("cache-control", "no-store").begin(&world);
    world.until_metric("workspace_gateway_denials_total{source=\"upstream\"}", 1.0).await;
    assert!(!relaying.is_finished());
    // The head is passed on within 2 s, though the body has not ended, and nothing of the body is lost.
    let answered = "workspace_gateway_upstream_requests_total{service=\"workspace\",status=\"401\"}";
    world.until_metric(answered, 1.0).await;
    upstream.go_on();
    let reply = within(relaying).await.unwrap();
    assert_eq!((reply.status(), reply.text()), (StatusCode::UNAUTHORIZED, "{\"a\":true}"));
}

#[tokio::test]
async fn a_refusal_of_64_kib_is_passed_as_it_is() {
    let body = "x".repeat(64 * 1024);
    let (world, _upstream) = before_a_refusal(401, "Content-Length: 65536", &body).await;
    assert_eq!(world.get(LIST).await.status(), StatusCode::OK);
    let reply = world.get(OTHER).await;
    assert_eq!((reply.status(), reply.text()), (StatusCode::UNAUTHORIZED, &*body));
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
async fn a_trail_of_gateways_shows_a_lapsed_grant_what_it_covered_and_nothing_newer() {
    let world = World::new().await;
    let [token, other] = world.granted().await;
    assert_eq!(world.get_as(&token, LIST).await.status(), StatusCode::OK);
    world.seconds_pass(300);
    world.simulator.reset_connection(true);
    let covered = through_others(&world, &token, LIST).await;
    assert!(covered.products() > 0 && covered.cache_status().contains("fwd=stale"), "{covered:?}");
    world.simulator.reset_connection(false);
    world.seconds_pass(10);
    assert!(world.get_as(&other, LIST).await.cache_status().contains("; stored"));
    world.simulator.reset_connection(true);
    assert_eq!(through_others(&world, &token, LIST).await.status(), StatusCode::BAD_GATEWAY);
    // Whoever is to blame, a grant that stands shows what is kept.
    world.simulator.reset_connection(false);
    assert_eq!(world.get_as(&token, PROOF).await.status(), StatusCode::OK);
    world.simulator.reset_connection(true);
    assert!(through_others(&world, &token, LIST).await.products() > 0);
}
