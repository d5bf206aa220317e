//! Grants: stored responses are shown to callers that upstream has proved recently in the scope, until it denies them.
//! `flights` tests responses that are in flight.

use std::time::Duration;

use bytes::Bytes;
use http::{HeaderName, HeaderValue, Method, StatusCode};
use tokio::task::JoinHandle;

use crate::support::{PROJECT, PROOF, Reply, World, within};

const LIST: &str = "/v2/PROJECT/products?os_type=Linux";
const OTHER: &str = "/v2/PROJECT/products?os_type=Windows";
const SHARER: &str = "/v2/PROJECT/products/sharer";

/// Entries that outlive every grant, so that only grants decide.
const LASTING: &str = "[cache]\nttl = \"1d\"\n";

#[tokio::test]
async fn a_second_caller_is_proved_by_its_own_call_and_then_shares() {
    let world = World::new().await;
    let second = world.simulator.token(PROJECT);
    let first = world.get(LIST).await;
    world.get(OTHER).await;
    world.seconds_pass(1);

    let proof = world.get_as(&second, LIST).await;
    assert!(proof.cache_status().contains("fwd=miss"), "{proof:?}");
    assert_eq!((proof.body(), world.upstream_calls()), (first.body(), 3));
    let shared = world.get_as(&second, OTHER).await;
    assert!(shared.is_hit(), "the second caller has not sent this request before: {shared:?}");
    assert_eq!(shared.body(), world.get(OTHER).await.body());
    assert_eq!(world.upstream_calls(), 3);
}

#[tokio::test]
async fn a_proof_grants_only_its_own_scope() {
    let world = World::new().await;
    let scopes = [LIST, SHARER, "/v1/PROJECT/product"];
    for path in scopes {
        world.get(path).await;
    }
    let second = world.simulator.token(PROJECT);
    for (calls, path) in (4..).zip(scopes) {
        assert!(!world.get_as(&second, path).await.is_hit(), "{path}");
        assert_eq!(world.upstream_calls(), calls);
        assert!(world.get_as(&second, path).await.is_hit(), "{path}");
    }
    // A caller of one project is denied in the other project.
    let elsewhere = world.simulator.token("another-project");
    assert_eq!(world.get_as(&elsewhere, "/v2/another-project/products").await.status(), StatusCode::OK);
    world.get_as(&elsewhere, LIST).await.assert_refused(StatusCode::FORBIDDEN);
    world.get_as(&second, "/v2/another-project/products").await.assert_refused(StatusCode::FORBIDDEN);
}

#[tokio::test]
async fn only_a_valid_product_list_is_a_proof() {
    for (status, body) in [
        (None, r#"{"error_code":"WKS.00211401","error_msg":"x"}"#),
        (None, r#"{"products":[],"error_code":"WKS.00211401"}"#),
        (None, r#"{"products":null}"#),
        (None, "<html>"),
        (Some(204), ""),
        (Some(302), ""),
        (Some(304), ""),
        (Some(400), ""),
        (Some(404), ""),
        (Some(405), ""),
        (Some(503), ""),
    ] {
        let world = World::new().await;
        world.get(LIST).await;
        let second = world.simulator.token(PROJECT);
        world.simulator.set_list_body(Some(Bytes::from_static(body.as_bytes())));
        world.simulator.fail_with(status.map(|status| StatusCode::from_u16(status).unwrap()));
        world.get_as(&second, OTHER).await;
        world.simulator.set_list_body(None);
        world.simulator.fail_with(None);
        assert!(!world.get_as(&second, LIST).await.is_hit(), "{status:?} {body}");
        assert_eq!(world.upstream_calls(), 3);
    }
}

#[tokio::test]
async fn a_revoked_token_is_served_until_its_grant_lapses_and_then_refused() {
    let world = World::with(LASTING).await;
    world.simulator.hold();
    let pending = world.begin_and_reach_upstream(&world.token, LIST, 1).await;
    world.seconds_pass(60);
    world.simulator.release();
    within(pending).await.unwrap();
    world.simulator.revoke(&world.token);

    // `grant_ttl` counts from when the call was sent, not from its response.
    world.clock.advance(Duration::from_millis(239_999));
    assert!(world.get(LIST).await.is_hit());
    world.clock.advance(Duration::from_millis(1));
    world.get(LIST).await.assert_refused(StatusCode::UNAUTHORIZED);
    assert_eq!(world.upstream_calls(), 2);
    world.get(LIST).await.assert_refused(StatusCode::UNAUTHORIZED);
}

#[tokio::test]
async fn a_grant_lasts_for_grant_ttl() {
    let world = World::with(&format!("{LASTING}[grants]\ngrant_ttl = \"10s\"\nrenew_ahead = \"0s\"")).await;
    world.get(LIST).await;
    world.seconds_pass(9);
    assert!(world.get(LIST).await.is_hit());
    world.seconds_pass(1);
    assert!(!world.get(LIST).await.is_hit());
    assert_eq!(world.upstream_calls(), 2);
}

#[tokio::test]
async fn only_a_proof_renews_a_grant() {
    let world = World::with(LASTING).await;
    world.get(LIST).await;
    world.seconds_pass(200);
    world.get(OTHER).await;
    world.seconds_pass(299);
    assert!(world.get(LIST).await.is_hit(), "another request has renewed the grant");
    world.seconds_pass(1);
    let proof = world.get(LIST).await;
    assert!(!proof.is_hit(), "a hit is no proof: {proof:?}");
    assert_eq!(world.upstream_calls(), 3);
}

#[tokio::test]
async fn the_call_of_the_leader_does_not_prove_a_waiter() {
    let world = World::with(LASTING).await;
    let [leader, follower] = world.granted_tokens().await;
    world.seconds_pass(200);
    world.simulator.hold();
    let leading = world.begin_and_reach_upstream(&leader, LIST, 1).await;
    let following = world.begin_and_wait(&follower, LIST, 1).await;
    world.simulator.release();
    within(leading).await.unwrap();
    assert_eq!(within(following).await.unwrap().status(), StatusCode::OK);

    world.seconds_pass(100);
    assert!(world.get_as(&leader, LIST).await.is_hit());
    assert!(!world.get_as(&follower, LIST).await.is_hit());
    assert_eq!(world.tokens_seen(), [leader, follower]);
}

#[tokio::test]
async fn a_denial_ends_the_grant_of_its_scope_at_once() {
    let world = World::with(LASTING).await;
    for path in [LIST, SHARER] {
        world.get(path).await;
    }
    world.simulator.deny(&world.token);
    world.get(OTHER).await.assert_refused(StatusCode::FORBIDDEN);
    assert_eq!(world.upstream_calls(), 3);
    world.get(LIST).await.assert_refused(StatusCode::FORBIDDEN);
    assert!(world.get(SHARER).await.is_hit(), "the grant of the other scope remains");
    assert_eq!(world.upstream_calls(), 3);

    world.simulator.restore(&world.token);
    world.seconds_pass(2);
    assert!(!world.get(LIST).await.is_hit(), "the caller needs a new proof");
    assert_eq!(world.upstream_calls(), 4);
    assert!(world.get(OTHER).await.status().is_success() && world.get(LIST).await.is_hit());
}

#[tokio::test]
async fn a_denial_is_remembered_for_its_credential_and_scope() {
    let world = World::new().await;
    let revoked = world.simulator.token(PROJECT);
    world.simulator.revoke(&revoked);
    world.simulator.hold();
    let pending = world.begin_and_reach_upstream(&revoked, LIST, 1).await;
    world.seconds_pass(60);
    world.simulator.release();
    let denial = within(pending).await.unwrap();
    denial.assert_refused(StatusCode::UNAUTHORIZED);

    // `denial_ttl` counts from the response.
    for (milliseconds, calls) in [(0, 1), (1_999, 1), (1, 2)] {
        world.clock.advance(Duration::from_millis(milliseconds));
        for path in [LIST, OTHER] {
            let again = world.get_as(&revoked, path).await;
            again.assert_refused(StatusCode::UNAUTHORIZED);
            assert_eq!(world.upstream_calls(), calls, "{again:?}");
            if calls == 1 {
                assert_eq!(again.body(), denial.body(), "the body of upstream's response");
                assert_ne!(again.header("x-request-id"), denial.header("x-request-id"));
            }
        }
    }
    world.get_as(&revoked, SHARER).await.assert_refused(StatusCode::UNAUTHORIZED);
    assert_eq!(world.upstream_calls(), 3, "the denial does not cover another scope");
    assert_eq!(world.get(LIST).await.status(), StatusCode::OK);
    assert_eq!(world.upstream_calls(), 4, "the denial does not cover another caller");
}

#[tokio::test]
async fn a_denial_is_remembered_for_denial_ttl() {
    let world = World::with("[grants]\ndenial_ttl = \"1m\"").await;
    for (seconds, calls) in [(0, 1), (59, 1), (1, 2)] {
        world.seconds_pass(seconds);
        world.get_as("nobody", LIST).await.assert_refused(StatusCode::UNAUTHORIZED);
        assert_eq!(world.upstream_calls(), calls);
    }
}

/// The request target that upstream receives.
fn target(path: &str) -> String {
    path.replace("PROJECT", PROJECT)
}

/// Two calls of a caller, the second sent one second later. The simulator holds each until the test releases it.
async fn two_calls_held(world: &World, caller: &str) -> [JoinHandle<Reply>; 2] {
    for path in [LIST, OTHER] {
        world.simulator.hold_target(&target(path));
    }
    let first = world.begin_and_reach_upstream(caller, LIST, 1).await;
    world.seconds_pass(1);
    [first, world.begin_and_reach_upstream(caller, OTHER, 2).await]
}

#[tokio::test]
async fn a_response_to_a_call_sent_before_a_denied_one_grants_nothing() {
    let world = World::new().await;
    let [caller, other] = world.granted_tokens().await;
    let [first, second] = two_calls_held(&world, &caller).await;
    world.simulator.deny(&caller);
    world.simulator.release_target(&target(OTHER));
    within(second).await.unwrap().assert_refused(StatusCode::FORBIDDEN);
    world.simulator.restore(&caller);
    world.simulator.release_target(&target(LIST));
    let late = within(first).await.unwrap();
    assert_eq!(late.status(), StatusCode::OK, "the caller gets the response to its own call");

    assert!(!late.cache_status().contains("stored"), "{late:?}");
    world.get_as(&caller, LIST).await.assert_refused(StatusCode::FORBIDDEN);
    assert_eq!(world.upstream_calls(), 2, "the denial is remembered");
    assert!(!world.get_as(&other, LIST).await.is_hit(), "nothing was stored");
    world.seconds_pass(2);
    assert!(!world.get_as(&caller, LIST).await.is_hit(), "nothing was granted");
    assert_eq!(world.upstream_calls(), 4);
}

#[tokio::test]
async fn a_response_to_a_call_sent_after_a_denied_one_grants() {
    let world = World::new().await;
    let caller = world.simulator.token(PROJECT);
    let [first, second] = two_calls_held(&world, &caller).await;
    world.simulator.deny(&caller);
    world.simulator.release_target(&target(LIST));
    within(first).await.unwrap().assert_refused(StatusCode::FORBIDDEN);
    world.simulator.restore(&caller);
    world.simulator.release_target(&target(OTHER));
    assert_eq!(within(second).await.unwrap().status(), StatusCode::OK);

    assert!(world.get_as(&caller, OTHER).await.is_hit(), "the denial is removed");
    assert_eq!(world.upstream_calls(), 2);
}

#[tokio::test]
async fn a_denial_of_a_call_sent_before_a_proof_is_not_remembered() {
    let world = World::new().await;
    let caller = world.simulator.token(PROJECT);
    world.simulator.hold_target(&target(LIST));
    let first = world.begin_and_reach_upstream(&caller, LIST, 1).await;
    world.seconds_pass(1);
    assert_eq!(world.get_as(&caller, OTHER).await.status(), StatusCode::OK);
    world.simulator.deny(&caller);
    world.simulator.release_target(&target(LIST));
    within(first).await.unwrap().assert_refused(StatusCode::FORBIDDEN);
    world.simulator.restore(&caller);

    let again = world.get_as(&caller, OTHER).await;
    assert_eq!(again.status(), StatusCode::OK);
    assert!(!again.is_hit(), "the denial has ended the grant: {again:?}");
    assert_eq!(world.upstream_calls(), 3);
}

#[tokio::test]
async fn grants_are_bounded_and_an_evicted_grant_costs_one_call() {
    let world = World::with("[grants]\nmax_grants = 4").await;
    let tokens: [String; 20] = world.granted_tokens().await;
    world.get(LIST).await;
    assert!(world.metric("workspace_gateway_grants") <= 4.0);
    for (calls, token) in (2..).zip(&tokens[..10]) {
        let proof = world.get_as(token, LIST).await;
        assert_eq!(proof.status(), StatusCode::OK);
        assert_eq!(world.upstream_calls(), calls);
        assert!(world.get_as(token, LIST).await.is_hit());
        assert!(world.metric("workspace_gateway_grants") <= 4.0);
    }
}

#[tokio::test]
async fn sharing_can_be_switched_off_for_one_operation() {
    let world = World::with("[[operation]]\nname = \"ListSharerProducts\"\nsharing = \"caller\"").await;
    let tokens: [String; 2] = [world.simulator.token(PROJECT), world.simulator.token(PROJECT)];
    for token in &tokens {
        for path in [PROOF, "/v2/PROJECT/products/sharer?limit=0"] {
            world.get_as(token, path).await;
        }
    }
    world.simulator.forget_requests();
    for token in &tokens {
        for path in [LIST, SHARER] {
            world.get_as(token, path).await;
            assert!(world.get_as(token, path).await.is_hit());
        }
    }
    assert_eq!(world.upstream_calls(), 3, "one for the list, and one per caller");

    world.purge();
    world.simulator.forget_requests();
    world.simulator.hold();
    let mut pending = Vec::new();
    for (calls, token) in (1..).zip(&tokens) {
        pending.push(world.begin_and_reach_upstream(token, SHARER, calls).await);
    }
    world.simulator.release();
    for pending in pending {
        assert!(within(pending).await.unwrap().cache_status().contains("stored"));
    }
}

#[tokio::test]
async fn sharing_can_be_switched_off_by_default_and_on_for_one_operation() {
    let settings = "[cache]\nsharing = \"caller\"\n[[operation]]\nname = \"ListSharerProducts\"\nsharing = \"project\"";
    let world = World::with(settings).await;
    let second = world.simulator.token(PROJECT);
    for token in [&world.token, &second] {
        for path in [LIST, PROOF, SHARER, "/v2/PROJECT/products/sharer?limit=0"] {
            world.get_as(token, path).await;
        }
    }
    // Unshared: two calls of each caller. Shared: the second caller saves the call for the stored list.
    assert_eq!(world.upstream_calls(), 4 + 3);
}

#[tokio::test]
async fn a_purge_removes_entries_but_not_grants_and_denials() {
    let world = World::new().await;
    let [first, second] = world.granted_tokens().await;
    world.get_as(&first, LIST).await;
    world.get_as("nobody", LIST).await.assert_refused(StatusCode::UNAUTHORIZED);
    world.purge();
    assert!(!world.get_as(&first, LIST).await.is_hit());
    assert!(world.get_as(&second, LIST).await.is_hit(), "the grant remains");
    world.get_as("nobody", LIST).await.assert_refused(StatusCode::UNAUTHORIZED);
    assert_eq!(world.upstream_calls(), 3);
}

#[tokio::test]
async fn a_response_to_an_earlier_call_does_not_replace_an_entry() {
    let world = World::new().await;
    let early = world.simulator.token(PROJECT);
    world.simulator.hold_token(&early);
    let pending = world.begin_and_reach_upstream(&early, LIST, 1).await;
    world.seconds_pass(1);
    let stored = world.get(LIST).await;
    world.simulator.change_catalogue();
    world.simulator.release_token(&early);
    let outdated = within(pending).await.unwrap();
    assert_ne!(outdated.body(), stored.body(), "the caller gets the response to its own call");
    assert!(!outdated.cache_status().contains("stored"), "{outdated:?}");

    for token in [&early, &world.token] {
        let hit = world.get_as(token, LIST).await;
        assert!(hit.is_hit(), "the earlier call is a proof: {hit:?}");
        assert_eq!(hit.body(), stored.body());
    }
    assert_eq!(world.upstream_calls(), 2);
}

#[tokio::test]
async fn headers_of_one_caller_do_not_affect_another() {
    let world = World::new().await;
    let [first, second] = world.granted_tokens().await;
    let odd = [("x-auth-token", first.as_str()), ("cookie", "a=1"), ("accept", "text/html"), ("accept-language", "de")];
    let first_reply = world.http.send(Method::GET, &world.url(LIST), &odd, "").await;
    let plain = world.get_as(&second, LIST).await;
    assert!(plain.is_hit());
    assert_eq!(plain.body(), first_reply.body());
}

#[tokio::test]
async fn set_cookie_is_not_shared() {
    let world = World::new().await;
    let [first, second] = world.granted_tokens().await;
    world.simulator.add_header(HeaderName::from_static("set-cookie"), HeaderValue::from_static("a=1"));
    assert_eq!(world.get_as(&first, LIST).await.header("set-cookie"), "a=1");
    let shared = world.get_as(&second, LIST).await;
    assert!(shared.is_hit() && !shared.headers().contains_key("set-cookie"), "{shared:?}");
}
