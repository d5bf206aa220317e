//! The measured share of stale answers, as operators see it.

use std::time::Duration;

use http::HeaderMap;
use serde_json::{Value, json};
use workspace_gateway::testing::simulator::ChangeUnit;

use crate::support::{PROJECT, WAIT_FOR_UPSTREAM, World};

const LIST: &str = "/v2/PROJECT/products?os_type=Linux";

async fn staleness(world: &World) -> Value {
    let status = world.http.get(&world.admin_url("/status")).await.json();
    let all = status["staleness"].as_array().unwrap().clone();
    all.into_iter().find(|known| known["operation"] == "ListProducts").unwrap()
}

/// What a new estimate says.
async fn measured(world: &World) -> Value {
    world.clock.advance(Duration::from_secs(61));
    world.server.gateway().estimate_staleness();
    staleness(world).await
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
    let known = measured(&world).await;
    // Those of the last hour: twelve rounds.
    let answers = known["answers"].as_u64().unwrap();
    assert!((33..=39).contains(&answers), "{known}");
    assert!(known["ratio"].as_f64().unwrap() < 0.01, "{known}");
    assert_eq!(known["lower"], 0.0);
    assert_eq!(known["projects"].as_array().unwrap().len(), 1);
    assert_eq!(known["projects"][0]["answers"], known["answers"]);
    assert_eq!(known["projects"][0]["ttl_seconds"], known["ttl_seconds"]);
    assert_eq!(metric(&world, "stale_answers_ratio"), known["ratio"].as_f64().unwrap());
    assert_eq!(metric(&world, "stale_answers_ratio_upper"), known["upper"].as_f64().unwrap());
}

/// Lists change each 20 minutes on average, and there is a request each half minute for four hours. Returns which share
/// of the answers from memory in the last hour was wrong.
async fn requests_while_the_list_changes(world: &World) -> f64 {
    let target = LIST.replace("PROJECT", PROJECT);
    let unit = ChangeUnit::List("ListProducts".to_owned());
    world.simulator.change_catalogue_every(&unit, Some(Duration::from_secs(1200)), 1);
    let (mut answers, mut wrong) = (0, 0);
    for half_minute in 0..480 {
        let reply = world.get(LIST).await;
        if half_minute >= 362 && reply.is_hit() {
            let upstream = world.simulator.product_list_at(&world.token, &target, &HeaderMap::new(), world.now());
            answers += 1;
            wrong += u32::from(*reply.body() != upstream.unwrap());
        }
        world.clock.advance(Duration::from_secs(30));
        if half_minute % 60 == 59 {
            world.server.gateway().estimate_staleness();
        }
    }
    f64::from(wrong) / f64::from(answers)
}

#[tokio::test]
async fn changes_of_the_catalogue_show_in_the_ratio() {
    let world = World::with(&format!("[cache]\nttl = \"300s\"\n{WAIT_FOR_UPSTREAM}")).await;
    let truth = requests_while_the_list_changes(&world).await;
    let known = measured(&world).await;
    let [ratio, lower, upper] = ["ratio", "lower", "upper"].map(|name| known[name].as_f64().unwrap());
    assert!(truth > 0.05 && ratio > 0.0 && lower <= truth && truth <= upper, "{truth}: {known}");
    assert!(known["changes_per_hour"].as_f64().unwrap() > 1.0, "{known}");
}

#[tokio::test]
async fn an_adaptive_ttl_becomes_shorter_if_the_catalogue_changes_often() {
    let adaptive = "{ max_stale = \"1%\", min = \"30s\", max = \"1h\" }";
    let world = World::with(&format!("[cache]\nttl = {adaptive}\n{WAIT_FOR_UPSTREAM}")).await;
    world.get(LIST).await;
    assert_eq!(world.get(LIST).await.cache_params(), "hit; ttl=300", "while nothing is known");
    requests_while_the_list_changes(&world).await;
    measured(&world).await;
    world.clock.advance(Duration::from_secs(1800));
    let fetched = world.get(LIST).await;
    assert!(!fetched.is_hit(), "{fetched:?}");
    let ttl = staleness(&world).await["ttl_seconds"].as_f64().unwrap();
    assert!(ttl < 220.0, "{ttl}");
    assert_eq!(world.get(LIST).await.cache_params(), format!("hit; ttl={}", ttl.floor()));
}
