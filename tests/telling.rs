//! Every case of sharing has its word in `Cache-Status`, and its count.

use http::{HeaderName, HeaderValue, StatusCode};

use crate::support::{PROJECT, Reply, WAITING, World, all, within};

const LIST: &str = "/v2/PROJECT/products?os_type=Linux";
const OTHER: &str = "/v2/PROJECT/products?os_type=Windows";

/// What this cache says of an answer.
fn told(reply: &Reply) -> &str {
    reply.cache_status().strip_prefix("workspace-gateway; ").unwrap()
}

fn counted(world: &World, series: &str) -> f64 {
    world.metric(&format!("workspace_gateway_{series}"))
}

#[tokio::test]
async fn proofs_and_grants() {
    let world = World::new().await;
    let [first, second] = [world.simulator.token(PROJECT), world.simulator.token(PROJECT)];
    assert_eq!(counted(&world, "grants"), 0.0);
    assert_eq!(told(&world.get_as(&first, LIST).await), "fwd=miss; fwd-status=200; stored; detail=proved");
    assert_eq!(told(&world.get_as(&first, OTHER).await), "fwd=miss; fwd-status=200; stored; detail=no-entry");
    world.seconds_pass(1);
    assert_eq!(told(&world.get_as(&second, LIST).await), "fwd=miss; fwd-status=200; stored; detail=proved");
    assert_eq!(told(&world.get_as(&second, OTHER).await), "hit; ttl=299");
    assert_eq!(counted(&world, "grants"), 2.0);
    assert_eq!(counted(&world, "proofs_total{result=\"granted\"}"), 2.0);
    assert_eq!(counted(&world, "proofs_total{result=\"renewed\"}"), 1.0);
    world.seconds_pass(299);
    assert_eq!(counted(&world, "grants"), 1.0, "the first has lapsed");
}

#[tokio::test]
async fn denials_and_late_answers() {
    let world = World::new().await;
    let [token] = world.granted().await;
    let target = LIST.replace("PROJECT", PROJECT);
    world.simulator.hold_target(&target);
    let late = world.begin_and_arrive(&token, LIST, 1).await;
    world.simulator.deny(&token);
    assert_eq!(told(&world.get_as(&token, OTHER).await), "fwd=miss; fwd-status=403; detail=denied");
    assert_eq!(told(&world.get_as(&token, OTHER).await), "hit; ttl=2; detail=denied");
    world.simulator.restore(&token);
    world.simulator.release_target(&target);
    assert_eq!(told(&within(late).await.unwrap()), "fwd=miss; fwd-status=200; detail=late");
    assert_eq!(counted(&world, "denials_total{source=\"upstream\"}"), 1.0);
    assert_eq!(counted(&world, "denials_total{source=\"memory\"}"), 1.0);
    assert_eq!(counted(&world, "proofs_total{result=\"late\"}"), 1.0);
    assert_eq!(counted(&world, "grants"), 0.0);
    let result = "requests_total{operation=\"ListProducts\",result=\"denied\",status=\"403\"}";
    assert_eq!(counted(&world, result), 1.0);
}

#[tokio::test]
async fn elections() {
    let world = World::new().await;
    let tokens: [String; 3] = world.granted().await;
    let (leading, following) = world.board(&tokens, LIST).await;
    world.simulator.deny(&tokens[0]);
    world.simulator.release();
    assert_eq!(told(&within(leading).await.unwrap()), "fwd=miss; fwd-status=403; detail=denied");
    let replies = all(following).await;
    let mut told: Vec<_> = replies.iter().map(told).collect();
    told.sort_unstable();
    assert_eq!(
        told,
        [
            "fwd=miss; fwd-status=200; stored; collapsed; detail=no-entry",
            "fwd=miss; fwd-status=200; stored; detail=elected",
        ]
    );
    assert_eq!(counted(&world, "elections_total"), 1.0);
}

#[tokio::test]
async fn a_flight_that_a_purge_has_overtaken_elects_nobody() {
    let world = World::new().await;
    let tokens: [String; 2] = world.granted().await;
    let (leading, following) = world.board(&tokens, LIST).await;
    world.purge();
    world.simulator.release();
    assert_eq!(told(&within(leading).await.unwrap()), "fwd=miss; fwd-status=200; detail=purged");
    assert_eq!(told(&all(following).await[0]), "fwd=miss; fwd-status=200; stored; detail=no-entry");
    assert_eq!(counted(&world, "elections_total"), 0.0);
}

#[tokio::test]
async fn stale_answers() {
    let world = World::with(&format!("[cache]\n{WAITING}")).await;
    let [token] = world.granted().await;
    world.get_as(&token, LIST).await;
    world.seconds_pass(300);
    world.simulator.fail_with(Some(StatusCode::SERVICE_UNAVAILABLE));
    assert_eq!(told(&world.get_as(&token, LIST).await), "fwd=stale; fwd-status=503; detail=status");
    world.simulator.fail_with(None);
    world.simulator.reset_connection(true);
    assert_eq!(told(&world.get_as(&token, LIST).await), "fwd=stale; detail=broken");
    let result = "requests_total{operation=\"ListProducts\",result=\"stale\",status=\"200\"}";
    assert_eq!(counted(&world, result), 2.0);
}

#[tokio::test]
async fn private_scopes() {
    let world = World::new().await;
    let tokens: [String; 2] = world.granted().await;
    world.simulator.views_differ(&tokens[1]);
    for turn in 0..4 {
        // Long enough for the grant to lapse, so that each asks for itself.
        world.seconds_pass(300);
        assert_eq!(counted(&world, "private_scopes"), 0.0);
        world.get_as(&tokens[turn % 2], LIST).await;
    }
    assert_eq!(counted(&world, "private_scopes"), 1.0);
    assert_eq!(told(&world.get_as(&tokens[1], OTHER).await), "fwd=miss; fwd-status=200; stored; detail=private");
}

#[tokio::test]
async fn uncacheable_keys() {
    let world = World::new().await;
    world.simulator.add_header(HeaderName::from_static("cache-control"), HeaderValue::from_static("no-store"));
    assert_eq!(counted(&world, "uncacheable_keys"), 0.0);
    assert_eq!(told(&world.get(LIST).await), "fwd=miss; fwd-status=200; detail=cache-directives");
    assert!(counted(&world, "uncacheable_keys") > 0.0);
}
