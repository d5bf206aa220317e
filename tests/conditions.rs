//! What is wrong, as `/status` says it: each cause is staged, is named, and ends.

use std::time::Duration;

use http::{Method, StatusCode};
use serde_json::{Value, json};
use strum::VariantArray;
use workspace_gateway::testing::catalogue::Service;
use workspace_gateway::testing::simulator::Simulator;
use workspace_gateway::testing::telemetry::conditions::Cause;

use crate::support::raw_client::RawClient;
use crate::support::signer::{Signed, entry};
use crate::support::{PROJECT, World, reserve_port};

const LIST: &str = "/v2/PROJECT/products";

async fn conditions(world: &World) -> Vec<Value> {
    let status = world.http.get(&world.admin_url("/status")).await.json();
    status["conditions"].as_array().unwrap().clone()
}

async fn causes(world: &World) -> Vec<String> {
    conditions(world).await.iter().map(|condition| condition["cause"].as_str().unwrap().to_owned()).collect()
}

fn sample(world: &World) {
    world.seconds_pass(10);
    world.server.gateway().observer().take_sample();
}

/// The causes and severities whose series of `workspace_gateway_condition` is 1, in the order of the page.
fn in_metrics(world: &World) -> Vec<String> {
    let text = world.server.gateway().metrics().encode().unwrap();
    let series = text.lines().filter_map(|line| line.strip_prefix("workspace_gateway_condition{"));
    let series: Vec<_> = series.collect();
    assert_eq!(series.len(), 2 * Cause::VARIANTS.len(), "no series appears or vanishes");
    series.into_iter().filter_map(|line| line.strip_suffix("} 1")).map(str::to_owned).collect()
}

#[tokio::test]
async fn the_metric_and_the_log_say_what_the_status_says() {
    let world = World::new().await;
    let events = async || {
        let status = world.http.get(&world.admin_url("/status")).await.json();
        let rows = status["events"].as_array().unwrap().clone().into_iter();
        let rows = rows.map(|row| [&row["kind"], &row["what"]].map(|it| it.as_str().unwrap().to_owned()));
        rows.filter(|[kind, _]| kind.starts_with("condition")).collect::<Vec<_>>()
    };
    world.server.gateway().log_conditions();
    assert_eq!((in_metrics(&world), events().await), (vec![], vec![]));
    world.http.send(Method::PUT, &world.admin_url("/mode"), &[], "bypass").await;
    for _ in 0..2 {
        world.seconds_pass(10);
        assert_eq!(in_metrics(&world), ["cause=\"bypassed\",severity=\"warning\""]);
        world.server.gateway().log_conditions();
    }
    let what = "bypassed: the cache is switched off (mode = bypass): every request is relayed, and nothing is stored";
    let begun = ["condition".to_owned(), what.to_owned()];
    assert_eq!(events().await, std::slice::from_ref(&begun));
    world.http.send(Method::PUT, &world.admin_url("/mode"), &[], "cache").await;
    world.server.gateway().log_conditions();
    assert_eq!(in_metrics(&world), Vec::<String>::new());
    assert_eq!(events().await, [["condition-ended".to_owned(), "bypassed has ended".to_owned()], begun]);
}

#[tokio::test]
async fn an_outage_is_named_since_its_first_failure_and_ends_with_an_answer() {
    let world = World::new().await;
    world.get(LIST).await;
    assert_eq!(causes(&world).await, Vec::<String>::new());
    world.simulator.fail_with(Some(StatusCode::SERVICE_UNAVAILABLE));
    world.get(&format!("{LIST}?limit=1")).await;
    world.seconds_pass(30);
    let first = &conditions(&world).await[0];
    assert_eq!((&first["cause"], &first["severity"]), (&json!("upstream-failing"), &json!("warning")));
    world.get(&format!("{LIST}?limit=2")).await;
    let second = &conditions(&world).await[0];
    assert_eq!((&second["severity"], &second["service"]), (&json!("critical"), &json!("workspace")));
    let what = second["what"].as_str().unwrap();
    assert!(what.starts_with("workspace is failing: it answers 503; 2 calls have failed"), "{what}");
    assert!((30.0..31.0).contains(&second["since_seconds"].as_f64().unwrap()), "{second}");
    world.simulator.fail_with(None);
    world.get(&format!("{LIST}?limit=3")).await;
    world.seconds_pass(60);
    assert_eq!(causes(&world).await, Vec::<String>::new());
}

#[tokio::test]
async fn an_upstream_that_was_never_reached_is_named_with_its_url_and_error() {
    let simulator = Simulator::start().await.unwrap();
    let reserved = reserve_port();
    let closed = reserved.local_addr().unwrap();
    let url = format!("http://{closed}");
    let world = World::with_upstreams(simulator, &url, &url, "").await;
    world.get(LIST).await;
    let [condition] = conditions(&world).await.try_into().unwrap();
    assert_eq!(condition["cause"], "upstream-never-answered");
    let what = condition["what"].as_str().unwrap();
    let expected = format!("no call to workspace ({url}) has succeeded since the start: cannot connect to {closed}");
    assert!(what.starts_with(&expected), "{what}");
}

#[tokio::test]
async fn an_upstream_that_only_fails_is_named_and_uploads_that_clients_break_off_are_not() {
    let world = World::new().await;
    for _ in 0..3 {
        let mut client = RawClient::connect(&world).await;
        let head = format!("POST /v2/{PROJECT}/desktops HTTP/1.1\r\nhost: g\r\nx-auth-token: {}\r\n", world.token);
        client.send(&format!("{head}transfer-encoding: chunked\r\n\r\nno size\r\n")).await;
        client.finish_sending().await;
        client.read_to_end().await;
    }
    let uploads = "workspace_gateway_upstream_requests_total{service=\"workspace\",status=\"upload\"}";
    assert_eq!((world.metric(uploads), causes(&world).await), (3.0, Vec::new()));
    world.simulator.fail_with(Some(StatusCode::SERVICE_UNAVAILABLE));
    for _ in 0..3 {
        world.get(LIST).await;
    }
    assert_eq!(causes(&world).await, ["upstream-never-answered"]);
}

#[tokio::test]
async fn a_throttled_gateway_names_the_limit_and_when_it_ends() {
    let limit = "[[quota]]\nservice = \"workspace\"\npolicy = \"ip\"\nlimit = 1\nwindow = \"1h\"\n";
    let world = World::with(limit).await;
    world.get(LIST).await;
    let [condition] = conditions(&world).await.try_into().unwrap();
    assert_eq!((&condition["cause"], &condition["severity"]), (&json!("throttled"), &json!("warning")));
    assert_eq!(condition["what"], "workspace limits calls: policy ip, 1 in 1h is used up");
    assert!((3_599.0..3_601.0).contains(&condition["until_seconds"].as_f64().unwrap()), "{condition}");
    world.seconds_pass(3_601);
    assert_eq!(causes(&world).await, Vec::<String>::new());
}

#[tokio::test]
async fn a_429_without_a_named_limit_counts_for_a_minute() {
    let world = World::new().await;
    world.get(LIST).await;
    world.simulator.throttle(Some(0));
    world.get(&format!("{LIST}?limit=1")).await;
    world.simulator.throttle(None);
    assert_eq!(causes(&world).await, ["throttled"]);
    world.clock.set_wall_back(Duration::from_secs(3_600));
    world.seconds_pass(61);
    assert_eq!(causes(&world).await, Vec::<String>::new());
}

#[tokio::test]
async fn a_dead_token_in_a_loop_is_named_while_it_goes_on() {
    let world = World::new().await;
    world.get(LIST).await;
    let dead = world.simulator.token(PROJECT);
    world.simulator.deny(&dead);
    for _ in 0..12 {
        world.get_as(&dead, LIST).await;
    }
    sample(&world);
    let [condition] = conditions(&world).await.try_into().unwrap();
    assert_eq!(condition["cause"], "denials-repeated");
    assert!(condition["what"].as_str().unwrap().ends_with("11 requests in the last minute"), "{condition}");
    (0..6).for_each(|_| sample(&world));
    assert_eq!(causes(&world).await, Vec::<String>::new());
}

#[tokio::test]
async fn a_region_whose_upstream_refuses_all_is_named() {
    let world = World::new().await;
    for _ in 0..5 {
        world.get_as(&world.simulator.token("another-project"), LIST).await;
    }
    assert_eq!(causes(&world).await, ["nothing-accepted"]);
    world.get(LIST).await;
    assert_eq!(causes(&world).await, Vec::<String>::new());
}

#[tokio::test]
async fn an_access_key_that_upstream_refuses_is_named() {
    let simulator = Simulator::start().await.unwrap();
    let key = simulator.access_key(PROJECT);
    let [workspace, appstream] = Service::ALL.map(|service| simulator.url(service));
    let world = World::with_upstreams(simulator, &workspace, &appstream, &entry(&key, "")).await;
    Signed::get(&world, &key, LIST).send(&world).await;
    world.simulator.expire(&key.id);
    for _ in 0..3 {
        Signed::get(&world, &key, "/v2/PROJECT/desktops").send(&world).await;
    }
    let [condition] = conditions(&world).await.try_into().unwrap();
    assert_eq!((&condition["cause"], &condition["severity"]), (&json!("key-suspended"), &json!("critical")));
    assert!(condition["what"].as_str().unwrap().ends_with(&key.id), "{condition}");
}

#[tokio::test]
async fn a_first_caller_that_waits_for_retry_after_is_named() {
    let world = World::new().await;
    world.simulator.fail_with(Some(StatusCode::TOO_MANY_REQUESTS));
    world.simulator.retry_after(Some(20));
    let pending = world.begin(&world.token, LIST);
    world.until_metric("workspace_gateway_upstream_requests_total{service=\"workspace\",status=\"429\"}", 1.0).await;
    assert!(!pending.is_finished());
    assert_eq!(causes(&world).await, ["throttled"]);
    let events = world.http.get(&world.admin_url("/status")).await.json()["events"].take();
    let throttled = events.as_array().unwrap().iter().find(|event| event["kind"] == "throttled").unwrap();
    let expected = (&json!("workspace throttles calls: 429 Too Many Requests"), &Value::Null);
    assert_eq!((&throttled["what"], &throttled["project"]), expected);
    pending.abort();
}

#[tokio::test]
async fn what_the_operator_did_is_named_without_a_secret() {
    let world = World::new().await;
    world.http.send(Method::PUT, &world.admin_url("/mode"), &[], "bypass").await;
    world.seconds_pass(5);
    world.reload("[cache]\nttl = \"hush-hush\"").unwrap_err();
    assert_eq!(causes(&world).await, ["bypassed", "reload-refused"]);
    world.seconds_pass(5);
    let all = conditions(&world).await;
    assert!((5.0..6.0).contains(&all[0]["since_seconds"].as_f64().unwrap()), "since it was first seen: {all:?}");
    assert!((5.0..6.0).contains(&all[1]["since_seconds"].as_f64().unwrap()), "{all:?}");
    let what = all[1]["what"].as_str().unwrap();
    assert!(what.contains("test.toml: cache.ttl: ") && what.contains("expected a duration"), "{what}");
    assert!(!what.contains("hush"), "{what}");
    world.http.send(Method::PUT, &world.admin_url("/mode"), &[], "cache").await;
    for reload in ["the corrected one", "one that changes nothing"] {
        world.reload("").unwrap();
        assert_eq!(causes(&world).await, Vec::<String>::new());
        let events = world.http.get(&world.admin_url("/status")).await.json()["events"].take();
        let corrected: Vec<_> = events.as_array().unwrap().iter().filter(|event| event["kind"] == "reload").collect();
        assert!(corrected.len() == 1 && corrected[0]["count"] == 1, "{reload}: {events}");
        assert!(corrected[0]["what"].as_str().unwrap().contains("no mistake any more"), "{events}");
    }
}

#[tokio::test]
async fn a_full_cache_is_named_for_five_minutes() {
    let world = World::with("[cache]\nmax_size = \"64KiB\"\nmax_body_size = \"60KiB\"").await;
    for limit in 1..40 {
        world.get(&format!("{LIST}?limit={limit}")).await;
    }
    world.until_metric_over("workspace_gateway_evictions_total{cause=\"size\"}", 0.0).await;
    sample(&world);
    assert_eq!(causes(&world).await, ["cache-full"]);
    world.clock.advance(Duration::from_secs(300));
    assert_eq!(causes(&world).await, Vec::<String>::new());
}
