//! Each case of sharing has its reason in `Cache-Status`, and its metric.

use http::{HeaderName, HeaderValue, StatusCode};

use crate::support::{PROJECT, Reply, WAIT_FOR_UPSTREAM, World, all_replies, within};

const LIST: &str = "/v2/PROJECT/products?os_type=Linux";
const OTHER: &str = "/v2/PROJECT/products?os_type=Windows";

fn metric(world: &World, series: &str) -> f64 {
    world.metric(&format!("workspace_gateway_{series}"))
}

#[tokio::test]
async fn proofs_and_grants_are_reported() {
    let world = World::new().await;
    let [first, second] = [world.simulator.token(PROJECT), world.simulator.token(PROJECT)];
    assert_eq!(metric(&world, "grants"), 0.0);
    assert_eq!(world.get_as(&first, LIST).await.cache_params(), "fwd=miss; fwd-status=200; stored; detail=proved");
    assert_eq!(world.get_as(&first, OTHER).await.cache_params(), "fwd=miss; fwd-status=200; stored; detail=no-entry");
    world.seconds_pass(1);
    assert_eq!(world.get_as(&second, LIST).await.cache_params(), "fwd=miss; fwd-status=200; stored; detail=proved");
    assert_eq!(world.get_as(&second, OTHER).await.cache_params(), "hit; ttl=299");
    assert_eq!(metric(&world, "grants"), 2.0);
    assert_eq!(metric(&world, "proofs_total{result=\"granted\"}"), 2.0);
    assert_eq!(metric(&world, "proofs_total{result=\"renewed\"}"), 1.0);
    world.seconds_pass(299);
    assert_eq!(metric(&world, "grants"), 1.0, "the first grant has lapsed");
}

#[tokio::test]
async fn denials_and_late_responses_are_reported() {
    let world = World::new().await;
    let [token] = world.granted_tokens().await;
    let target = LIST.replace("PROJECT", PROJECT);
    world.simulator.hold_target(&target);
    let late = world.begin_and_reach_upstream(&token, LIST, 1).await;
    world.simulator.deny(&token);
    assert_eq!(world.get_as(&token, OTHER).await.cache_params(), "fwd=miss; fwd-status=403; detail=denied");
    assert_eq!(world.get_as(&token, OTHER).await.cache_params(), "hit; ttl=2; detail=denied");
    world.simulator.restore(&token);
    world.simulator.release_target(&target);
    assert_eq!(within(late).await.unwrap().cache_params(), "fwd=miss; fwd-status=200; detail=late");
    assert_eq!(metric(&world, "denials_total{source=\"upstream\"}"), 1.0);
    assert_eq!(metric(&world, "denials_total{source=\"memory\"}"), 1.0);
    assert_eq!(metric(&world, "proofs_total{result=\"late\"}"), 1.0);
    assert_eq!(metric(&world, "grants"), 0.0);
    let result = "requests_total{operation=\"ListProducts\",result=\"denied\",status=\"403\"}";
    assert_eq!(metric(&world, result), 1.0);
}

#[tokio::test]
async fn elections_are_reported() {
    let world = World::new().await;
    let tokens: [String; 3] = world.granted_tokens().await;
    let (leading, following) = world.begin_flight(&tokens, LIST).await;
    world.simulator.deny(&tokens[0]);
    world.simulator.release();
    assert_eq!(within(leading).await.unwrap().cache_params(), "fwd=miss; fwd-status=403; detail=denied");
    let replies = all_replies(following).await;
    let mut statuses: Vec<_> = replies.iter().map(Reply::cache_params).collect();
    statuses.sort_unstable();
    assert_eq!(
        statuses,
        [
            "fwd=miss; fwd-status=200; stored; collapsed; detail=no-entry",
            "fwd=miss; fwd-status=200; stored; detail=elected",
        ]
    );
    assert_eq!(metric(&world, "elections_total"), 1.0);
}

#[tokio::test]
async fn a_flight_that_began_before_a_purge_elects_no_leader() {
    let world = World::new().await;
    let tokens: [String; 2] = world.granted_tokens().await;
    let (leading, following) = world.begin_flight(&tokens, LIST).await;
    world.purge();
    world.simulator.release();
    assert_eq!(within(leading).await.unwrap().cache_params(), "fwd=miss; fwd-status=200; detail=purged");
    assert_eq!(all_replies(following).await[0].cache_params(), "fwd=miss; fwd-status=200; stored; detail=no-entry");
    assert_eq!(metric(&world, "elections_total"), 0.0);
}

#[tokio::test]
async fn stale_responses_are_reported() {
    let world = World::with(&format!("[cache]\n{WAIT_FOR_UPSTREAM}")).await;
    let [token] = world.granted_tokens().await;
    world.get_as(&token, LIST).await;
    world.seconds_pass(300);
    world.simulator.fail_with(Some(StatusCode::SERVICE_UNAVAILABLE));
    assert_eq!(world.get_as(&token, LIST).await.cache_params(), "fwd=stale; fwd-status=503; detail=status");
    world.simulator.fail_with(None);
    world.simulator.reset_connections(true);
    assert_eq!(world.get_as(&token, LIST).await.cache_params(), "fwd=stale; detail=broken");
    let result = "requests_total{operation=\"ListProducts\",result=\"stale\",status=\"200\"}";
    assert_eq!(metric(&world, result), 2.0);
}

#[tokio::test]
async fn private_scopes_are_reported() {
    let world = World::new().await;
    let tokens: [String; 2] = world.granted_tokens().await;
    world.simulator.restrict_view(&tokens[1]);
    for turn in 0..4 {
        // The grants lapse, so that each caller causes a call of its own.
        world.seconds_pass(300);
        assert_eq!(metric(&world, "private_scopes"), 0.0);
        world.get_as(&tokens[turn % 2], LIST).await;
    }
    assert_eq!(metric(&world, "private_scopes"), 1.0);
    assert_eq!(
        world.get_as(&tokens[1], OTHER).await.cache_params(),
        "fwd=miss; fwd-status=200; stored; detail=private"
    );
}

#[tokio::test]
async fn uncacheable_keys_are_reported() {
    let world = World::new().await;
    world.simulator.add_header(HeaderName::from_static("cache-control"), HeaderValue::from_static("no-store"));
    assert_eq!(metric(&world, "uncacheable_keys"), 0.0);
    assert_eq!(world.get(LIST).await.cache_params(), "fwd=miss; fwd-status=200; detail=cache-directives");
    assert!(metric(&world, "uncacheable_keys") > 0.0);
}
