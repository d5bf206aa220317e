//! Ten ways in which an engine, or who can write to it, could make gateways leak or lie, and what prevents each of them.
//!
//! Here are those that need an engine. Replies that belong to other commands are in `src/fleet/commands/tests.rs`, a proof
//! that comes after a denial in `src/cache/grants/fleet/tests.rs`, and wrong clocks in `tests/second_tier.rs` and
//! `tests/model`.

use http::StatusCode;
use workspace_gateway::testing::cache::store::PurgeSelection;

use crate::support::engine::{Engine, redis};
use crate::support::fleet::{LIST, LOST, OTHER, TO_TELL, first_gateway, gateway_beside, settings};
use crate::support::{PROJECT, World, all_replies};

const IN_SYNC: &str = "workspace_gateway_fleet_in_sync";
const GRANTS_STORED: &str = "workspace_gateway_fleet_stores_total{kind=\"grant\",result=\"stored\"}";

/// Two gateways in sync with one clock, which stands still.
async fn two_in_sync(engine: &Engine) -> (World, World) {
    let settings = settings(&engine.url(), "");
    let first = first_gateway(&settings).await;
    let second = gateway_beside(&first, &settings).await;
    for world in [&first, &second] {
        world.until_metric(LOST, 0.0).await;
    }
    first.seconds_pass(3);
    for world in [&first, &second] {
        world.until_metric(IN_SYNC, 1.0).await;
    }
    (first, second)
}

/// The caller is proved at a gateway, and the engine knows.
async fn prove(world: &World, token: &str, path: &str) {
    let before = world.metric(GRANTS_STORED);
    assert_eq!(world.get_as(token, path).await.status(), StatusCode::OK);
    world.until_metric(GRANTS_STORED, before + 1.0).await;
}

/// The names of the records that a request has stored.
async fn records_of(engine: &Engine, request: impl Future<Output = ()>) -> Vec<String> {
    let before = names(engine).await;
    request.await;
    names(engine).await.into_iter().filter(|name| !before.contains(name)).collect()
}

async fn names(engine: &Engine) -> Vec<String> {
    engine.run(&["--raw", "KEYS", "*:r:*"]).await.lines().map(str::to_owned).collect()
}

/// Those of these records that are no markers, which are empty.
async fn without_markers(engine: &Engine, records: Vec<String>) -> Vec<String> {
    let mut full = Vec::new();
    for record in records {
        if length(engine, &record).await > 0 {
            full.push(record);
        }
    }
    full
}

async fn length(engine: &Engine, record: &str) -> usize {
    engine.run(&["--raw", "STRLEN", record]).await.parse().unwrap()
}

/// A gateway that has been started later, and is in sync.
async fn in_sync_beside(first: &World, engine: &Engine) -> World {
    let world = gateway_beside(first, &settings(&engine.url(), "")).await;
    world.until_metric(LOST, 0.0).await;
    world.seconds_pass(3);
    world.until_metric(IN_SYNC, 1.0).await;
    world
}

/// The same, and the log has been lost.
async fn started_without_log(first: &World, engine: &Engine) -> World {
    let log = engine.run(&["--raw", "KEYS", "*:log"]).await;
    assert_ne!(engine.run(&["XTRIM", &log, "MAXLEN", "0"]).await, "0");
    in_sync_beside(first, engine).await
}

/// A request goes upstream itself.
async fn asks_upstream(world: &World, token: &str, path: &str) {
    let calls = world.simulator.request_count();
    world.get_as(token, path).await;
    assert_eq!(world.simulator.request_count(), calls + 1, "{path}");
}

#[tokio::test]
async fn records_in_the_place_of_others_are_none() {
    let Some(engine) = redis("swapped", &[]).await else { return };
    let (first, second) = two_in_sync(&engine).await;
    let [one, other] = [(); 2].map(|()| first.simulator.token(PROJECT));
    let of_one = records_of(&engine, prove(&first, &one, LIST)).await;
    let of_other = records_of(&engine, prove(&first, &other, OTHER)).await;
    assert_eq!((of_one.len(), of_other.len()), (3, 3), "an entry, a grant and a marker");
    let of_other: Vec<_> = without_markers(&engine, of_other).await;
    for (from, to) in of_one.iter().flat_map(|from| of_other.iter().map(move |to| (from, to))) {
        engine.run(&["COPY", to, "kept", "REPLACE"]).await;
        engine.run(&["COPY", from, to, "REPLACE"]).await;
        let borrowing = in_sync_beside(&second, &engine).await;
        asks_upstream(&borrowing, &other, OTHER).await;
        engine.run(&["COPY", "kept", to, "REPLACE"]).await;
    }
    // In their own places they are good.
    let borrowing = in_sync_beside(&second, &engine).await;
    let calls = first.simulator.request_count();
    assert_eq!(borrowing.get_as(&other, OTHER).await.status(), StatusCode::OK);
    assert_eq!(first.simulator.request_count(), calls);
}

#[tokio::test]
async fn changed_records_are_none() {
    let Some(engine) = redis("forged", &[]).await else { return };
    let (first, second) = two_in_sync(&engine).await;
    let records = records_of(&engine, prove(&first, &first.token, LIST)).await;
    for record in &records {
        let length: usize =
            engine.run(&["STRLEN", record]).await.trim().trim_start_matches("(integer) ").parse().unwrap();
        if length > 0 {
            engine.run(&["SETRANGE", record, &(length - 1).to_string(), "x"]).await;
        }
    }
    asks_upstream(&second, &second.token, LIST).await;
}

#[tokio::test]
async fn a_proof_that_is_replayed_after_a_denial_is_void() {
    let Some(engine) = redis("replayed", &[]).await else { return };
    let (first, second) = two_in_sync(&engine).await;
    let records = records_of(&engine, prove(&first, &first.token, LIST)).await;
    for (number, record) in records.iter().enumerate() {
        engine.run(&["COPY", record, &format!("kept{number}")]).await;
    }
    first.simulator.revoke(&first.token);
    assert_eq!(first.get("/v2/PROJECT/products?limit=7").await.status(), StatusCode::UNAUTHORIZED);
    first.until_metric(TO_TELL, 0.0).await;
    for (number, record) in records.iter().enumerate() {
        engine.run(&["COPY", &format!("kept{number}"), record, "REPLACE"]).await;
    }
    assert_eq!(second.get(LIST).await.status(), StatusCode::UNAUTHORIZED);
    // A gateway that was started later, and has no log, has no other knowledge of the denial.
    let third = started_without_log(&first, &engine).await;
    assert_eq!(third.get(LIST).await.status(), StatusCode::UNAUTHORIZED);
}

#[tokio::test]
async fn gateways_with_another_upstream_or_another_secret_lend_nothing() {
    let Some(engine) = redis("foreign", &[]).await else { return };
    let (first, second) = two_in_sync(&engine).await;
    prove(&first, &first.token, LIST).await;
    let url = engine.url();
    let of_other_secret = settings(&url, "").replace("0123456789abcdef", "fedcba9876543210");
    let with_other_secret = gateway_beside(&first, &of_other_secret).await;
    // Its upstream is another one, which knows the same token.
    let other_upstream = first_gateway(&settings(&url, "")).await;
    other_upstream.clock.advance(std::time::Duration::from_secs(3));
    for world in [&with_other_secret, &other_upstream] {
        world.until_metric(LOST, 0.0).await;
        asks_upstream(world, &first.token, LIST).await;
    }
    let calls = first.simulator.request_count();
    second.get(LIST).await;
    assert_eq!(first.simulator.request_count(), calls);
}

#[tokio::test]
async fn what_one_gateway_has_found_to_differ_between_callers_no_gateway_shares() {
    let Some(engine) = redis("private", &[]).await else { return };
    let (first, second) = two_in_sync(&engine).await;
    let narrow = first.simulator.token(PROJECT);
    first.simulator.restrict_view(&narrow);
    for token in [&first.token, &narrow, &first.token, &narrow] {
        first.get_as(token, LIST).await;
        first.seconds_pass(4_000);
    }
    second.until_metric("workspace_gateway_private_scopes", 1.0).await;
    let (one, other) = (second.get(LIST).await, second.get_as(&narrow, LIST).await);
    assert_ne!(one.text(), other.text());
}

#[tokio::test]
async fn a_call_that_was_sent_before_a_purge_brings_nothing_back() {
    let Some(engine) = redis("slow-leader", &[]).await else { return };
    let (first, second) = two_in_sync(&engine).await;
    prove(&first, &first.token, LIST).await;
    assert_eq!(second.get(LIST).await.status(), StatusCode::OK);
    let calls = first.simulator.request_count();
    first.simulator.hold();
    let leading = first.begin_and_reach_upstream(&first.token, OTHER, calls + 1).await;
    second.server.gateway().purge(&PurgeSelection::default());
    second.until_metric(TO_TELL, 0.0).await;
    first.simulator.release();
    assert_eq!(all_replies(vec![leading]).await[0].status(), StatusCode::OK);
    // A gateway that was started later, and has no log, has no other knowledge of the purge.
    let third = started_without_log(&first, &engine).await;
    asks_upstream(&third, &third.token, OTHER).await;
}
