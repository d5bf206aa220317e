//! Access keys of a fleet: however many gateways there are, few calls with a wrong secret fail.

use std::sync::Arc;

use http::StatusCode;
use workspace_gateway::testing::simulator::IssuedKey;

use crate::support::engine::{Engine, redis};
use crate::support::fleet::{LIST, LOST, OTHER, first_gateway, gateway_beside, settings};
use crate::support::signer::{Signed, entry};
use crate::support::{PROJECT, World, within};

const DESKTOPS: &str = "/v2/PROJECT/desktops";
const GATEWAYS: usize = 8;
const STORED: &str = "workspace_gateway_fleet_stores_total{kind=\"access-key\",result=\"stored\"}";

fn key(secret: &str) -> IssuedKey {
    IssuedKey { id: "AKOFTHEFLEET".to_owned(), secret: secret.to_owned(), security_token: None }
}

/// Gateways of a fleet with this secret of the key, which upstream knows with the right one. All of them use the engine.
async fn fleet(engine: &Engine, secret: &str) -> Vec<Arc<World>> {
    let settings = settings(&engine.url(), "") + &entry(&key(secret), "");
    let first = first_gateway(&settings).await;
    first.simulator.add_access_key(PROJECT, &key("the-right-secret"));
    let mut worlds = vec![first];
    while worlds.len() < GATEWAYS {
        worlds.push(gateway_beside(&worlds[0], &settings).await);
    }
    for world in &worlds {
        world.until_metric(LOST, 0.0).await;
    }
    worlds.into_iter().map(Arc::new).collect()
}

/// Sends these requests at all gateways at once. Returns the statuses of the responses.
async fn ask_all(worlds: &[Arc<World>], secret: &str, paths: &[&str]) -> Vec<StatusCode> {
    let mut pending = Vec::new();
    for world in worlds {
        for path in paths {
            pending.push(Signed::get(world, &key(secret), path).begin(world));
        }
    }
    let mut statuses = Vec::new();
    for reply in pending {
        statuses.push(within(reply).await.unwrap().status());
    }
    statuses
}

#[tokio::test]
async fn a_wrong_secret_at_eight_gateways_at_once_does_not_lock_the_key() {
    let Some(engine) = redis("wrong-secret", &[]).await else { return };
    let worlds = fleet(&engine, "a-wrong-secret").await;
    let simulator = &worlds[0].simulator;
    // Then twice after a suspension, and at last long after the fifth refusal.
    for (minutes, failures) in [(0, 3), (8, 4), (8, 5), (100, 5)] {
        worlds[0].seconds_pass(minutes * 60);
        let statuses = ask_all(&worlds, "a-wrong-secret", &[LIST, OTHER, DESKTOPS]).await;
        assert!(statuses.iter().all(|status| *status == StatusCode::UNAUTHORIZED), "{statuses:?}");
        assert_eq!(simulator.failures_in_a_row(&key("").id), failures, "after {minutes} minutes");
    }
    assert!(!simulator.is_locked(&key("").id));
}

#[tokio::test]
async fn the_right_secret_at_eight_gateways_at_once_is_tried_once_and_then_not_limited() {
    let Some(engine) = redis("right-secret", &[]).await else { return };
    let worlds = fleet(&engine, "the-right-secret").await;
    worlds[0].simulator.hold();
    let asking = {
        let worlds = worlds.clone();
        tokio::spawn(async move { ask_all(&worlds, "the-right-secret", &[DESKTOPS, DESKTOPS]).await })
    };
    within(worlds[0].simulator.wait_for_requests(1)).await;
    for world in &worlds {
        world.until_metric("workspace_gateway_requests_in_flight", 2.0).await;
    }
    assert_eq!(worlds[0].upstream_calls(), 1, "the others wait for the outcome");
    worlds[0].simulator.release();
    let statuses = within(asking).await.unwrap();
    assert!(statuses.iter().all(|status| *status == StatusCode::OK), "{statuses:?}");
}

#[tokio::test]
async fn without_the_engine_each_gateway_tries_the_secret_itself() {
    let Some(mut engine) = redis("no-trials", &[]).await else { return };
    let worlds = fleet(&engine, "the-right-secret").await;
    engine.kill().await;
    for world in &worlds {
        world.until_metric(LOST, 1.0).await;
    }
    worlds[0].simulator.hold();
    let asking = {
        let worlds = worlds.clone();
        tokio::spawn(async move { ask_all(&worlds, "the-right-secret", &[DESKTOPS]).await })
    };
    within(worlds[0].simulator.wait_for_requests(GATEWAYS)).await;
    worlds[0].simulator.release();
    let statuses = within(asking).await.unwrap();
    assert!(statuses.iter().all(|status| *status == StatusCode::OK), "{statuses:?}");
}

#[tokio::test]
async fn a_damaged_record_of_a_trial_is_counted_and_not_used() {
    let Some(engine) = redis("trial-record", &[]).await else { return };
    let worlds = fleet(&engine, "a-wrong-secret").await;
    let refused = [StatusCode::UNAUTHORIZED];
    assert_eq!(ask_all(&worlds[..1], "a-wrong-secret", &[DESKTOPS]).await, refused);
    worlds[0].until_metric(STORED, 1.0).await;
    let record = engine.run(&["--raw", "KEYS", "*:r:*"]).await;
    let length: usize = engine.run(&["--raw", "STRLEN", &record]).await.parse().unwrap();
    engine.run(&["SETRANGE", &record, &(length - 1).to_string(), "x"]).await;
    assert_eq!(ask_all(&worlds[1..2], "a-wrong-secret", &[DESKTOPS]).await, refused);
    assert_eq!(worlds[1].metric("workspace_gateway_unreadable_records_total{reason=\"damaged\"}"), 1.0);
    assert_eq!(worlds[0].simulator.failures_in_a_row(&key("").id), 2, "it makes a trial of its own");
}
