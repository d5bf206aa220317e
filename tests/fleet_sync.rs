//! What gateways of a fleet know of each other, with a real Redis: proofs, denials, purges, and calls for all of them.

use http::StatusCode;

use crate::support::engine::{Engine, redis};
use crate::support::fleet::{
    LIST, LOST, OTHER, TO_TELL, ask_upstream, fault, first_gateway, gateway_of, is_from_fleet, settings, store,
    until_in_sync,
};
use crate::support::{PROJECT, PROOF, World, within};

/// How long a gateway may go without the log by default, and a bit more, in seconds.
const OUT_OF_SYNC: u64 = 2;

/// Look-ups that have found nothing.
const FOLLOWED: &str = "workspace_gateway_fleet_lookups_total{result=\"none\"}";

/// Two gateways that are in sync, with more settings for the second one. The engine has a list and the proof of the first
/// one's caller, who is then the caller of both.
async fn two_gateways_in_sync(engine: &Engine, more: &str) -> (World, World) {
    let first = first_gateway(&settings(&engine.url(), "")).await;
    let mut second = gateway_of(&first.simulator, &settings(&engine.url(), more)).await;
    for world in [&first, &second] {
        until_in_sync(world).await;
    }
    store(&first, LIST).await;
    second.token.clone_from(&first.token);
    (first, second)
}

/// Waits until a gateway has learnt that its caller was refused.
async fn until_refused(world: &World, path: &str) {
    within(async {
        while world.get(path).await.status() != StatusCode::FORBIDDEN {
            tokio::task::yield_now().await;
        }
    })
    .await;
}

#[tokio::test]
async fn a_caller_that_one_gateway_has_proved_needs_no_proof_at_another_one() {
    let Some(engine) = redis("known", &[]).await else { return };
    let (first, second) = two_gateways_in_sync(&engine, "").await;
    let calls = first.upstream_calls();
    let reply = second.get(LIST).await;
    assert!(is_from_fleet(&reply), "{}", reply.cache_status());
    assert!(second.get(LIST).await.is_hit());
    assert_eq!(first.upstream_calls(), calls);
    // With `fleet.grants = false` it does.
    let mut alone = gateway_of(&first.simulator, &settings(&engine.url(), "grants = false")).await;
    alone.token.clone_from(&first.token);
    until_in_sync(&alone).await;
    assert!(!is_from_fleet(&alone.get(LIST).await));
    assert_eq!(first.upstream_calls(), calls + 1);
}

#[tokio::test]
async fn a_denial_at_one_gateway_ends_the_grants_of_all() {
    let Some(engine) = redis("denied", &[]).await else { return };
    for is_proved_there in [false, true] {
        let (first, second) = two_gateways_in_sync(&engine, "").await;
        if is_proved_there {
            second.get(&format!("{PROOF}&offset=1")).await;
        }
        assert_eq!(second.get(LIST).await.status(), StatusCode::OK);
        assert!(second.get(LIST).await.is_hit());
        first.simulator.deny(&first.token);
        assert_eq!(first.get(OTHER).await.status(), StatusCode::FORBIDDEN);
        first.until_metric(TO_TELL, 0.0).await;
        until_refused(&second, LIST).await;
    }
}

#[tokio::test]
async fn a_purge_at_one_gateway_empties_the_memory_of_all() {
    let Some(engine) = redis("purged", &[]).await else { return };
    let (first, second) = two_gateways_in_sync(&engine, "").await;
    assert!(is_from_fleet(&second.get(LIST).await));
    first.purge();
    let calls = first.upstream_calls();
    within(async { while second.get(LIST).await.is_hit() {} }).await;
    assert_eq!(first.upstream_calls(), calls + 1);
}

#[tokio::test]
async fn a_purge_while_the_engine_is_away_is_told_when_it_is_back_without_data() {
    let Some(mut engine) = redis("purged-away", &[]).await else { return };
    let (first, second) = two_gateways_in_sync(&engine, "").await;
    assert!(is_from_fleet(&second.get(LIST).await));
    engine.kill().await;
    first.until_metric(LOST, 1.0).await;
    first.purge();
    engine.restart().await;
    first.until_metric(TO_TELL, 0.0).await;
    within(async { while second.get(LIST).await.is_hit() {} }).await;
}

#[tokio::test]
async fn a_gateway_that_is_not_in_sync_proves_its_callers_itself() {
    let Some(mut engine) = redis("cut-off", &[]).await else { return };
    let (first, second) = two_gateways_in_sync(&engine, "").await;
    assert!(is_from_fleet(&second.get(LIST).await));
    engine.kill().await;
    second.until_metric(LOST, 1.0).await;
    second.seconds_pass(OUT_OF_SYNC);
    second.until_metric("workspace_gateway_fleet_in_sync", 0.0).await;
    let calls = first.upstream_calls();
    ask_upstream(&second, 1).await;
    assert_eq!(first.upstream_calls(), calls + 1);
    assert!(second.get(LIST).await.is_hit(), "on its own proof");
}

#[tokio::test]
async fn gateways_make_one_call_for_the_same_request() {
    let Some(engine) = redis("one-call", &[]).await else { return };
    let (first, second) = two_gateways_in_sync(&engine, "").await;
    // A proved caller and a new one.
    for (token, path) in [(first.token.clone(), OTHER), (first.simulator.token(PROJECT), PROOF)] {
        first.simulator.forget_requests();
        first.simulator.hold();
        let leading = first.begin_and_reach_upstream(&token, path, 1).await;
        let before = second.metric(FOLLOWED);
        let following = second.begin(&token, path);
        // It has looked again.
        second.until_metric_over(FOLLOWED, before + 1.0).await;
        first.simulator.release();
        for pending in [leading, following] {
            assert_eq!(within(pending).await.unwrap().status(), StatusCode::OK);
        }
        assert_eq!(first.upstream_calls(), 1);
    }
}

#[tokio::test]
async fn gateways_make_one_call_after_a_response_that_a_purge_has_overtaken() {
    let Some(engine) = redis("overtaken", &[]).await else { return };
    let (first, second) = two_gateways_in_sync(&engine, "").await;
    let token = first.token.clone();
    first.simulator.forget_requests();
    first.simulator.hold();
    let overtaken = first.begin_and_reach_upstream(&token, OTHER, 1).await;
    first.purge();
    first.simulator.release();
    assert_eq!(within(overtaken).await.unwrap().status(), StatusCode::OK);
    first.until_metric(TO_TELL, 0.0).await;
    first.simulator.forget_requests();
    first.simulator.hold();
    let leading = first.begin_and_reach_upstream(&token, OTHER, 1).await;
    let before = second.metric(FOLLOWED);
    let following = second.begin(&token, OTHER);
    second.until_metric_over(FOLLOWED, before + 1.0).await;
    first.simulator.release();
    for pending in [leading, following] {
        assert_eq!(within(pending).await.unwrap().status(), StatusCode::OK);
    }
    assert_eq!(first.upstream_calls(), 1);
}

#[tokio::test]
async fn what_an_engine_was_told_before_it_was_emptied_is_told_again() {
    let Some(engine) = redis("emptied", &[]).await else { return };
    // The second gateway reads the log every 2.5 s.
    let (first, second) = two_gateways_in_sync(&engine, "sync = \"10s\"").await;
    assert!(is_from_fleet(&second.get(LIST).await));
    first.simulator.deny(&first.token);
    assert_eq!(first.get(OTHER).await.status(), StatusCode::FORBIDDEN);
    first.until_metric(TO_TELL, 0.0).await;
    assert_eq!(engine.run(&["FLUSHALL"]).await, "OK");
    until_refused(&second, LIST).await;
    for world in [&first, &second] {
        world.until_metric_over(&fault("went-back"), 0.0).await;
        world.until_metric(LOST, 0.0).await;
    }
}
