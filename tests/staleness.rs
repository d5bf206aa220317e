//! The measured share of stale answers, as operators see it.

use std::time::Duration;

use serde_json::{Value, json};

use crate::support::World;

const LIST: &str = "/v2/PROJECT/products?os_type=Linux";

async fn staleness(world: &World) -> Value {
    let status = world.http.get(&world.admin_url("/status")).await.json();
    let all = status["staleness"].as_array().unwrap().clone();
    all.into_iter().find(|known| known["operation"] == "ListProducts").unwrap()
}

fn metric(world: &World, name: &str) -> f64 {
    world.metric(&format!("workspace_gateway_{name}{{operation=\"ListProducts\"}}"))
}

#[tokio::test]
async fn the_ratio_is_unknown_without_evidence() {
    let world = World::new().await;
    let unknown = json!({
        "operation": "ListProducts",
        "answers": 0,
        "ratio": null,
        "lower": null,
        "upper": null,
        "changes_per_hour": null,
        "ttl_seconds": 300.0,
        "projects": [],
    });
    assert_eq!(staleness(&world).await, unknown);
    for name in ["stale_answers_ratio", "stale_answers_ratio_lower", "stale_answers_ratio_upper", "changes_per_hour"] {
        assert!(metric(&world, name).is_nan(), "{name}");
    }
    assert_eq!(metric(&world, "ttl_seconds"), 300.0);
}

#[tokio::test]
async fn proofs_and_refreshes_of_an_unchanged_list_show_that_answers_were_right() {
    let world = World::new().await;
    // Each round the grant has lapsed, so that the first request is a proof. The others are hits.
    for _ in 0..25 {
        for _ in 0..4 {
            world.get(LIST).await;
        }
        world.clock.advance(Duration::from_secs(301));
    }
    world.get(LIST).await;
    // A new estimate is due.
    world.clock.advance(Duration::from_secs(61));
    let known = staleness(&world).await;
    // Those of the last hour: twelve rounds.
    let answers = known["answers"].as_u64().unwrap();
    assert!((33..=39).contains(&answers), "{known}");
    assert!(known["ratio"].as_f64().unwrap() < 0.01, "{known}");
    assert_eq!(known["lower"], 0.0);
    assert_eq!(known["projects"].as_array().unwrap().len(), 1);
    assert_eq!(known["projects"][0]["answers"], known["answers"]);
    assert_eq!(metric(&world, "stale_answers_ratio"), known["ratio"].as_f64().unwrap());
    assert_eq!(metric(&world, "stale_answers_ratio_upper"), known["upper"].as_f64().unwrap());
}
