//! Who is shown what is kept: callers whom upstream has proved lately, in the scope they were proved
//! in, until it denies them. Answers that are under way have `flights`.

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
    assert!(shared.is_hit(), "it never asked that itself: {shared:?}");
    assert_eq!(shared.body(), world.get(OTHER).await.body());
    assert_eq!(world.upstream_calls(), 3);
}

#[tokio::test]
async fn a_proof_is_good_for_its_own_scope_alone() {
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
    // Upstream would show it another project as little as that one's callers this project.
    let elsewhere = world.simulator.token("another-project");
    assert_eq!(world.get_as(&elsewhere, "/v2/another-project/products").await.status(), StatusCode::OK);
    world.get_as(&elsewhere, LIST).await.assert_refused(StatusCode::FORBIDDEN);
    world.get_as(&second, "/v2/another-project/products").await.assert_refused(StatusCode::FORBIDDEN);
}

#[tokio::test]
async fn only_a_product_list_proves() {
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
        world.simulator.answer_with(Some(Bytes::from_static(body.as_bytes())));
        world.simulator.fail_with(status.map(|status| StatusCode::from_u16(status).unwrap()));
        world.get_as(&second, OTHER).await;
        world.simulator.answer_with(None);
        world.simulator.fail_with(None);
        assert!(!world.get_as(&second, LIST).await.is_hit(), "{status:?} {body}");
        assert_eq!(world.upstream_calls(), 3);
    }
}

#[tokio::test]
async fn a_revoked_token_is_served_until_its_grant_ends_and_refused_right_after() {
    let world = World::with(LASTING).await;
    world.simulator.hold();
    let asking = world.begin_and_arrive(&world.token, LIST, 1).await;
    world.seconds_pass(60);
    world.simulator.release();
    within(asking).await.unwrap();
    world.simulator.revoke(&world.token);

    // Counted from when the call was sent, not from when its answer came.
    world.clock.advance(Duration::from_millis(239_999));
    assert!(world.get(LIST).await.is_hit());
    world.clock.advance(Duration::from_millis(1));
    world.get(LIST).await.assert_refused(StatusCode::UNAUTHORIZED);
    assert_eq!(world.upstream_calls(), 2);
    world.get(LIST).await.assert_refused(StatusCode::UNAUTHORIZED);
}

#[tokio::test]
async fn a_grant_lives_as_long_as_configured() {
    let world = World::with(&format!("{LASTING}[grants]\ngrant_ttl = \"10s\"")).await;
    world.get(LIST).await;
    world.seconds_pass(9);
    assert!(world.get(LIST).await.is_hit());
    world.seconds_pass(1);
    assert!(!world.get(LIST).await.is_hit());
    assert_eq!(world.upstream_calls(), 2);
}

#[tokio::test]
async fn a_grant_is_renewed_by_proof_and_by_nothing_else() {
    let world = World::with(LASTING).await;
    world.get(LIST).await;
    world.seconds_pass(200);
    world.get(OTHER).await;
    world.seconds_pass(299);
    assert!(world.get(LIST).await.is_hit(), "proved again by another question");
    world.seconds_pass(1);
    let proof = world.get(LIST).await;
    assert!(!proof.is_hit(), "a hit is no proof: {proof:?}");
    assert_eq!(world.upstream_calls(), 3);
}

#[tokio::test]
async fn a_question_that_another_asked_proves_nothing() {
    let world = World::with(LASTING).await;
    let [leader, follower] = world.granted().await;
    world.seconds_pass(200);
    world.simulator.hold();
    let leading = world.begin_and_arrive(&leader, LIST, 1).await;
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
async fn a_denial_ends_a_grant_at_once_and_in_its_own_scope() {
    let world = World::with(LASTING).await;
    for path in [LIST, SHARER] {
        world.get(path).await;
    }
    world.simulator.deny(&world.token);
    world.get(OTHER).await.assert_refused(StatusCode::FORBIDDEN);
    assert_eq!(world.upstream_calls(), 3);
    world.get(LIST).await.assert_refused(StatusCode::FORBIDDEN);
    assert!(world.get(SHARER).await.is_hit(), "its grant there stands");
    assert_eq!(world.upstream_calls(), 3);

    world.simulator.restore(&world.token);
    world.seconds_pass(2);
    assert!(!world.get(LIST).await.is_hit(), "it has to be proved again");
    assert_eq!(world.upstream_calls(), 4);
    assert!(world.get(OTHER).await.status().is_success() && world.get(LIST).await.is_hit());
}

#[tokio::test]
async fn a_denial_is_remembered_for_its_credential_and_scope() {
    let world = World::new().await;
    let dead = world.simulator.token(PROJECT);
    world.simulator.revoke(&dead);
    world.simulator.hold();
    let asking = world.begin_and_arrive(&dead, LIST, 1).await;
    world.seconds_pass(60);
    world.simulator.release();
    let refusal = within(asking).await.unwrap();
    refusal.assert_refused(StatusCode::UNAUTHORIZED);

    // Two seconds from when it came.
    for (milliseconds, calls) in [(0, 1), (1_999, 1), (1, 2)] {
        world.clock.advance(Duration::from_millis(milliseconds));
        for path in [LIST, OTHER] {
            let again = world.get_as(&dead, path).await;
            again.assert_refused(StatusCode::UNAUTHORIZED);
            assert_eq!(world.upstream_calls(), calls, "{again:?}");
            if calls == 1 {
                assert_eq!(again.body(), refusal.body(), "upstream's own words");
                assert_ne!(again.header("x-request-id"), refusal.header("x-request-id"));
            }
        }
    }
    world.get_as(&dead, SHARER).await.assert_refused(StatusCode::UNAUTHORIZED);
    assert_eq!(world.upstream_calls(), 3, "another scope is asked for");
    assert_eq!(world.get(LIST).await.status(), StatusCode::OK);
    assert_eq!(world.upstream_calls(), 4, "another caller is asked for");
}

#[tokio::test]
async fn a_denial_is_remembered_as_long_as_configured() {
    let world = World::with("[grants]\ndenial_ttl = \"1m\"").await;
    for (seconds, calls) in [(0, 1), (59, 1), (1, 2)] {
        world.seconds_pass(seconds);
        world.get_as("nobody", LIST).await.assert_refused(StatusCode::UNAUTHORIZED);
        assert_eq!(world.upstream_calls(), calls);
    }
}

/// What upstream was asked for, as it sees it.
fn target(path: &str) -> String {
    path.replace("PROJECT", PROJECT)
}

/// Two calls of a caller, the second sent a second later, each held by a barrier of its own.
async fn two_calls_held(world: &World, caller: &str) -> [JoinHandle<Reply>; 2] {
    for path in [LIST, OTHER] {
        world.simulator.hold_target(&target(path));
    }
    let first = world.begin_and_arrive(caller, LIST, 1).await;
    world.seconds_pass(1);
    [first, world.begin_and_arrive(caller, OTHER, 2).await]
}

#[tokio::test]
async fn an_answer_that_comes_after_a_later_denial_grants_nothing() {
    let world = World::new().await;
    let [caller, other] = world.granted().await;
    let [first, second] = two_calls_held(&world, &caller).await;
    world.simulator.deny(&caller);
    world.simulator.release_target(&target(OTHER));
    within(second).await.unwrap().assert_refused(StatusCode::FORBIDDEN);
    world.simulator.restore(&caller);
    world.simulator.release_target(&target(LIST));
    let late = within(first).await.unwrap();
    assert_eq!(late.status(), StatusCode::OK, "its own answer is its own");

    assert!(!late.cache_status().contains("stored"), "{late:?}");
    world.get_as(&caller, LIST).await.assert_refused(StatusCode::FORBIDDEN);
    assert_eq!(world.upstream_calls(), 2, "still known to be refused");
    assert!(!world.get_as(&other, LIST).await.is_hit(), "nothing was kept");
    world.seconds_pass(2);
    assert!(!world.get_as(&caller, LIST).await.is_hit(), "nothing was granted");
    assert_eq!(world.upstream_calls(), 4);
}

#[tokio::test]
async fn an_answer_to_a_call_sent_after_the_denied_one_grants() {
    let world = World::new().await;
    let caller = world.simulator.token(PROJECT);
    let [first, second] = two_calls_held(&world, &caller).await;
    world.simulator.deny(&caller);
    world.simulator.release_target(&target(LIST));
    within(first).await.unwrap().assert_refused(StatusCode::FORBIDDEN);
    world.simulator.restore(&caller);
    world.simulator.release_target(&target(OTHER));
    assert_eq!(within(second).await.unwrap().status(), StatusCode::OK);

    assert!(world.get_as(&caller, OTHER).await.is_hit(), "the refusal is forgotten");
    assert_eq!(world.upstream_calls(), 2);
}

#[tokio::test]
async fn a_denial_that_a_later_call_has_belied_is_not_remembered() {
    let world = World::new().await;
    let caller = world.simulator.token(PROJECT);
    world.simulator.hold_target(&target(LIST));
    let first = world.begin_and_arrive(&caller, LIST, 1).await;
    world.seconds_pass(1);
    assert_eq!(world.get_as(&caller, OTHER).await.status(), StatusCode::OK);
    world.simulator.deny(&caller);
    world.simulator.release_target(&target(LIST));
    within(first).await.unwrap().assert_refused(StatusCode::FORBIDDEN);
    world.simulator.restore(&caller);

    let again = world.get_as(&caller, OTHER).await;
    assert_eq!(again.status(), StatusCode::OK);
    assert!(!again.is_hit(), "but it has ended the grant: {again:?}");
    assert_eq!(world.upstream_calls(), 3);
}

#[tokio::test]
async fn grants_are_bounded_and_losing_one_costs_one_call() {
    let world = World::with("[grants]\nmax_grants = 4").await;
    let tokens: [String; 20] = world.granted().await;
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
async fn an_operation_can_be_shared_by_nobody() {
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
    assert_eq!(world.upstream_calls(), 3, "one for the list, and each caller's own");

    world.purge();
    world.simulator.forget_requests();
    world.simulator.hold();
    let mut asking = Vec::new();
    for (calls, token) in (1..).zip(&tokens) {
        asking.push(world.begin_and_arrive(token, SHARER, calls).await);
    }
    world.simulator.release();
    for asking in asking {
        assert!(within(asking).await.unwrap().cache_status().contains("stored"));
    }
}

#[tokio::test]
async fn sharing_can_be_switched_off_for_all_and_on_for_one() {
    let settings = "[cache]\nsharing = \"caller\"\n[[operation]]\nname = \"ListSharerProducts\"\nsharing = \"project\"";
    let world = World::with(settings).await;
    let second = world.simulator.token(PROJECT);
    for token in [&world.token, &second] {
        for path in [LIST, PROOF, SHARER, "/v2/PROJECT/products/sharer?limit=0"] {
            world.get_as(token, path).await;
        }
    }
    // Both asked everything of the one, and of the other the second was spared what the first had asked.
    assert_eq!(world.upstream_calls(), 4 + 3);
}

#[tokio::test]
async fn a_purge_takes_answers_and_leaves_grants_and_refusals() {
    let world = World::new().await;
    let [first, second] = world.granted().await;
    world.get_as(&first, LIST).await;
    world.get_as("nobody", LIST).await.assert_refused(StatusCode::UNAUTHORIZED);
    world.purge();
    assert!(!world.get_as(&first, LIST).await.is_hit());
    assert!(world.get_as(&second, LIST).await.is_hit(), "it needs no new proof");
    world.get_as("nobody", LIST).await.assert_refused(StatusCode::UNAUTHORIZED);
    assert_eq!(world.upstream_calls(), 3);
}

#[tokio::test]
async fn newer_means_sent_later() {
    let world = World::new().await;
    let early = world.simulator.token(PROJECT);
    world.simulator.hold_token(&early);
    let asking = world.begin_and_arrive(&early, LIST, 1).await;
    world.seconds_pass(1);
    let kept = world.get(LIST).await;
    world.simulator.change_catalogue();
    world.simulator.release_token(&early);
    let outdated = within(asking).await.unwrap();
    assert_ne!(outdated.body(), kept.body(), "its own answer is its own");
    assert!(!outdated.cache_status().contains("stored"), "{outdated:?}");

    for token in [&early, &world.token] {
        let hit = world.get_as(token, LIST).await;
        assert!(hit.is_hit(), "the early one is proved all the same: {hit:?}");
        assert_eq!(hit.body(), kept.body());
    }
    assert_eq!(world.upstream_calls(), 2);
}

#[tokio::test]
async fn what_one_caller_has_set_in_its_headers_changes_nothing_for_another() {
    let world = World::new().await;
    let [first, second] = world.granted().await;
    let odd = [("x-auth-token", first.as_str()), ("cookie", "a=1"), ("accept", "text/html"), ("accept-language", "de")];
    let asked = world.http.send(Method::GET, &world.url(LIST), &odd, "").await;
    let plain = world.get_as(&second, LIST).await;
    assert!(plain.is_hit());
    assert_eq!(plain.body(), asked.body());
}

#[tokio::test]
async fn a_cookie_is_not_shared() {
    let world = World::new().await;
    let [first, second] = world.granted().await;
    world.simulator.add_header(HeaderName::from_static("set-cookie"), HeaderValue::from_static("a=1"));
    assert_eq!(world.get_as(&first, LIST).await.header("set-cookie"), "a=1");
    let shared = world.get_as(&second, LIST).await;
    assert!(shared.is_hit() && !shared.headers().contains_key("set-cookie"), "{shared:?}");
}
