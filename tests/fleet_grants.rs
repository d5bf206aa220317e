//! What gateways of a fleet tell each other, with a real engine: proofs, denials and purges, and one call for all of them.

use std::sync::Arc;
use std::time::Duration;

use http::{Method, StatusCode};
use workspace_gateway::testing::cache::store::PurgeSelection;
use workspace_gateway::testing::clock::Clock;

use crate::support::engine::{Engine, redis};
use crate::support::fleet::{LIST, LOST, OTHER, TO_TELL, first_gateway, gateway_beside, settings, store};
use crate::support::{PROJECT, PROOF, World, all_replies, within};

const IN_SYNC: &str = "workspace_gateway_fleet_in_sync";
/// `fleet.sync`, and as much for a busy machine. `benches/fleet` holds the limit itself.
const SOON: Duration = Duration::from_secs(2);
const GRANTS_STORED: &str = "workspace_gateway_fleet_stores_total{kind=\"grant\",result=\"stored\"}";

/// So many gateways with one engine, which are all in sync, one caller, and one clock that stands still.
async fn fleet(engine: &Engine, number: usize, more: &str) -> Vec<World> {
    let settings = settings(&engine.url(), more);
    let mut worlds = vec![first_gateway(&settings).await];
    for _ in 1..number {
        let world = gateway_beside(&worlds[0], &settings).await;
        worlds.push(world);
    }
    for world in &worlds {
        world.until_metric(LOST, 0.0).await;
    }
    // The links settle for 2 s.
    worlds[0].seconds_pass(3);
    until_in_sync(&worlds).await;
    worlds
}

async fn until_in_sync(worlds: &[World]) {
    for world in worlds {
        world.until_metric(IN_SYNC, 1.0).await;
    }
}

/// Two gateways in sync. The first one has proved the caller, and stored a list.
async fn two_with_a_proof(engine: &Engine) -> (World, World) {
    let mut worlds = fleet(engine, 2, "").await;
    let (second, first) = (worlds.pop().unwrap(), worlds.pop().unwrap());
    prove(&first).await;
    (first, second)
}

/// The caller is proved at a gateway, and the engine knows.
async fn prove(world: &World) {
    let before = world.metric(GRANTS_STORED);
    store(world, LIST).await;
    world.until_metric(GRANTS_STORED, before + 1.0).await;
}

/// Sends requests until one of them is not answered from memory. Returns how long that took, and its status.
async fn until_asked(world: &World, token: &str) -> (Duration, StatusCode) {
    let begun = Clock::System.timer_now();
    let asking = async {
        loop {
            let reply = world.get_as(token, LIST).await;
            if !reply.is_hit() {
                return (Clock::System.timer_now() - begun, reply.status());
            }
        }
    };
    within(asking).await
}

#[tokio::test]
async fn a_caller_that_one_gateway_has_proved_needs_no_call_at_another_one() {
    let Some(engine) = redis("known", &[]).await else { return };
    let (first, second) = two_with_a_proof(&engine).await;
    let calls = first.upstream_calls();
    let reply = second.get(LIST).await;
    assert_eq!((reply.status(), first.upstream_calls()), (StatusCode::OK, calls), "{}", reply.cache_status());
    assert!(reply.cache_status().ends_with("; detail=fleet"), "{}", reply.cache_status());
    assert!(second.get(LIST).await.is_hit());
    // Another caller has no proof.
    let stranger = first.simulator.token(PROJECT);
    second.get_as(&stranger, LIST).await;
    assert_eq!(first.upstream_calls(), calls + 1);
}

#[tokio::test]
async fn a_borrowed_grant_lasts_no_longer_than_the_proof() {
    let Some(engine) = redis("age", &[]).await else { return };
    let (first, second) = two_with_a_proof(&engine).await;
    // The lifetime of a grant is 5 minutes.
    first.seconds_pass(200);
    second.until_metric(IN_SYNC, 1.0).await;
    assert!(second.get(LIST).await.is_hit());
    second.seconds_pass(101);
    second.until_metric(IN_SYNC, 1.0).await;
    let calls = first.upstream_calls();
    assert!(!second.get(LIST).await.is_hit());
    assert_eq!(first.upstream_calls(), calls + 1);
}

#[tokio::test]
async fn a_gateway_that_does_not_share_grants_proves_its_callers_itself() {
    let Some(engine) = redis("own", &[]).await else { return };
    let worlds = fleet(&engine, 2, "grants = false").await;
    store(&worlds[0], LIST).await;
    let calls = worlds[0].upstream_calls();
    worlds[1].get(PROOF).await;
    assert_eq!(worlds[0].upstream_calls(), calls + 1);
    assert!(worlds[1].get(LIST).await.cache_status().ends_with("; detail=fleet"));
    assert_eq!(worlds[0].metric(GRANTS_STORED), 0.0);
}

#[tokio::test]
async fn what_one_gateway_is_denied_ends_the_grants_of_all() {
    let Some(engine) = redis("denied", &[]).await else { return };
    let (first, second) = two_with_a_proof(&engine).await;
    second.get(LIST).await;
    // Its own proof ends, too: a third caller that the second gateway has proved itself.
    let own = first.simulator.token(PROJECT);
    second.get_as(&own, LIST).await;
    for token in [first.token.clone(), own] {
        assert!(second.get_as(&token, LIST).await.is_hit());
        first.simulator.revoke(&token);
        let denied = first.get_as(&token, "/v2/PROJECT/products?limit=7").await;
        assert_eq!(denied.status(), StatusCode::UNAUTHORIZED);
        let (took, status) = until_asked(&second, &token).await;
        assert_eq!(status, StatusCode::UNAUTHORIZED);
        assert!(took < SOON, "{took:?}");
    }
}

#[tokio::test]
async fn a_refused_relay_and_a_403_end_the_grants_of_all() {
    let Some(engine) = redis("relay", &[]).await else { return };
    let (first, second) = two_with_a_proof(&engine).await;
    second.get(LIST).await;
    first.simulator.deny(&first.token);
    assert_eq!(first.get("/v2/PROJECT/products?limit=7").await.status(), StatusCode::FORBIDDEN);
    let (_, status) = until_asked(&second, &first.token).await;
    assert_eq!(status, StatusCode::FORBIDDEN);
    // A request that the first gateway relays. Only the second gateway knows the caller.
    let caller = first.simulator.token(PROJECT);
    second.get_as(&caller, LIST).await;
    second.until_metric(TO_TELL, 0.0).await;
    assert!(second.get_as(&caller, LIST).await.is_hit());
    first.simulator.revoke(&caller);
    let headers = [("x-auth-token", &*caller)];
    let url = first.url("/v2/PROJECT/desktops");
    assert_eq!(first.http.send(Method::POST, &url, &headers, "{}").await.status(), StatusCode::UNAUTHORIZED);
    let (_, status) = until_asked(&second, &caller).await;
    assert_eq!(status, StatusCode::UNAUTHORIZED);
}

#[tokio::test]
async fn a_gateway_that_is_cut_off_does_not_rely_on_what_others_have_proved() {
    let Some(mut engine) = redis("cut-off", &[]).await else { return };
    let (first, second) = two_with_a_proof(&engine).await;
    second.get(LIST).await;
    let own = first.simulator.token(PROJECT);
    second.get_as(&own, LIST).await;
    engine.kill().await;
    second.until_metric(LOST, 1.0).await;
    // It has not read the log for 1 s.
    second.seconds_pass(2);
    let calls = first.upstream_calls();
    assert!(second.get_as(&own, LIST).await.is_hit(), "its own proof counts");
    let reply = second.get(LIST).await;
    assert_eq!((reply.status(), first.upstream_calls()), (StatusCode::OK, calls + 1), "{}", reply.cache_status());
}

#[tokio::test]
async fn a_purge_at_one_gateway_empties_all() {
    let Some(engine) = redis("purged", &[]).await else { return };
    let (first, second) = two_with_a_proof(&engine).await;
    assert_eq!(second.get(LIST).await.status(), StatusCode::OK);
    assert!(second.get(LIST).await.is_hit());
    first.server.gateway().purge(&PurgeSelection::default());
    let (took, status) = until_asked(&second, &first.token).await;
    assert_eq!(status, StatusCode::OK);
    assert!(took < SOON, "{took:?}");
}

#[tokio::test]
async fn a_stampede_over_four_gateways_is_one_call() {
    let Some(engine) = redis("stampede", &[]).await else { return };
    let worlds = fleet(&engine, 4, "").await;
    prove(&worlds[0]).await;
    // Each gateway knows the caller by the proof of the first one.
    for world in &worlds {
        assert_eq!(world.get(LIST).await.status(), StatusCode::OK);
    }
    worlds[0].server.gateway().purge(&PurgeSelection::default());
    for world in &worlds {
        within(async {
            while world.server.gateway().entries().next().is_some() {
                tokio::task::yield_now().await;
            }
        })
        .await;
    }
    let calls = worlds[0].upstream_calls();
    worlds[0].simulator.delay(Duration::from_millis(300));
    let worlds = Arc::new(worlds);
    // Few enough for one thread of a busy machine: a leader must be able to renew its lease. `benches/fleet` has 16 gateways
    // and 1,000 clients.
    let requests = (0..80).map(|number| {
        let worlds = Arc::clone(&worlds);
        tokio::spawn(async move { worlds[number % 4].get(LIST).await.status() })
    });
    let requests: Vec<_> = requests.collect();
    for request in requests {
        assert_eq!(within(request).await.unwrap(), StatusCode::OK);
    }
    assert_eq!(worlds[0].upstream_calls(), calls + 1);
}

#[tokio::test]
async fn a_new_caller_at_all_gateways_at_once_is_one_call() {
    let Some(engine) = redis("cold", &[]).await else { return };
    let worlds = fleet(&engine, 4, "").await;
    worlds[0].simulator.delay(Duration::from_millis(300));
    let calls = worlds[0].upstream_calls();
    let pending = worlds.iter().map(|world| world.begin(&world.token, OTHER)).collect();
    assert!(all_replies(pending).await.iter().all(|reply| reply.status() == StatusCode::OK));
    assert_eq!(worlds[0].upstream_calls(), calls + 1);
}

#[tokio::test]
async fn a_gateway_that_dies_during_a_call_is_followed_for_a_second() {
    let Some(engine) = redis("dead-leader", &[]).await else { return };
    let (first, second) = two_with_a_proof(&engine).await;
    assert_eq!(second.get(LIST).await.status(), StatusCode::OK);
    let (simulator, calls) = (&first.simulator, first.upstream_calls());
    simulator.hold();
    let leading = first.begin_and_reach_upstream(&first.token, OTHER, calls + 1).await;
    // The lease has another holder now, which does nothing.
    let lease = engine.run(&["--raw", "KEYS", "*:l:*"]).await;
    assert_eq!(engine.run(&["SET", lease.trim(), "dead", "PX", "1000"]).await, "OK");
    let followed = Clock::System.timer_now();
    let following = second.begin_and_reach_upstream(&second.token, OTHER, calls + 2).await;
    let took = Clock::System.timer_now() - followed;
    simulator.release();
    assert!(all_replies(vec![leading, following]).await.iter().all(|reply| reply.status() == StatusCode::OK));
    assert!(took > Duration::from_millis(500) && took < Duration::from_secs(3), "{took:?}");
}

#[tokio::test]
async fn after_a_restart_in_an_outage_gateways_serve_what_the_engine_has() {
    let Some(engine) = redis("outage", &[]).await else { return };
    let (first, second) = two_with_a_proof(&engine).await;
    drop(second);
    let settings = settings(&engine.url(), "");
    let simulator = first.simulator.clone();
    let restarted = gateway_beside(&first, &settings).await;
    simulator.fail_with(Some(StatusCode::INTERNAL_SERVER_ERROR));
    // Before it is in sync, it does not know whether the caller was denied after the proof.
    restarted.until_metric(LOST, 0.0).await;
    let reply = restarted.get(LIST).await;
    assert_eq!(reply.status(), StatusCode::INTERNAL_SERVER_ERROR, "{}", reply.cache_status());
    restarted.seconds_pass(3);
    restarted.until_metric(IN_SYNC, 1.0).await;
    let reply = restarted.get(LIST).await;
    assert_eq!(reply.status(), StatusCode::OK, "{}", reply.cache_status());
}
