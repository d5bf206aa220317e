//! Gateways of a fleet, for tests. No test belongs here.

use http::StatusCode;
use workspace_gateway::testing::catalogue::Service;
use workspace_gateway::testing::clock::Clock;
use workspace_gateway::testing::config::Config;
use workspace_gateway::testing::server::{Inherited, Server};
use workspace_gateway::testing::simulator::Simulator;

use super::engine::Engine;
use super::{HANG, Http, PROJECT, PROOF, Reply, World, config};

/// Two requests whose responses are shared.
pub const LIST: &str = "/v2/PROJECT/products?os_type=Linux";
pub const OTHER: &str = "/v2/PROJECT/products?os_type=Windows";
/// Metrics.
pub const LOST: &str = "workspace_gateway_fleet_lost";
const STORED: &str = "workspace_gateway_fleet_stores_total{kind=\"entry\",result=\"stored\"}";
pub const TO_TELL: &str = "workspace_gateway_fleet_to_tell";

/// Settings of a fleet with this engine, and maybe more settings under `[fleet]`.
pub fn settings(url: &str, more: &str) -> String {
    format!(
        "[cache]\nttl_jitter = \"0%\"\n[fleet]\nengine = \"{url}\"\nsecret = \"{}\"\n{more}\n",
        "0123456789abcdef".repeat(2)
    )
}

/// A gateway of a fleet, whose upstream is the simulator of another one. Its engine need not be in use yet.
pub async fn gateway_of(simulator: &Simulator, settings: &str) -> World {
    let [workspace, appstream] = Service::ALL.map(|service| simulator.url(service));
    // Its clock must not be behind that of the other one, because both have the same boot.
    let own = Simulator::start().await.unwrap();
    let mut world = World::with_config(own, &patient(&workspace, &appstream, settings)).await;
    world.token = simulator.token(PROJECT);
    world
}

/// A gateway of the same fleet, with the same clock, upstream and caller. Its engine need not be in use yet.
pub async fn gateway_beside(first: &World, settings: &str) -> World {
    let (simulator, clock) = (first.simulator.clone(), first.clock.clone());
    let [workspace, appstream] = Service::ALL.map(|service| simulator.url(service));
    let config = patient(&workspace, &appstream, settings);
    let server = Server::start_on(Inherited::default(), &config, Clock::Manual(clock.clone())).await.unwrap();
    World { simulator, server, clock, token: first.token.clone(), http: Http::new() }
}

/// A configuration with which a request waits for the engine as long as a busy machine needs.
fn patient(workspace: &str, appstream: &str, settings: &str) -> Config {
    let mut config = config(workspace, appstream, settings);
    config.fleet.as_mut().unwrap().set_budget(HANG);
    config
}

/// The first gateway of a fleet, with an upstream.
pub async fn first_gateway(settings: &str) -> World {
    let simulator = Simulator::start().await.unwrap();
    let [workspace, appstream] = Service::ALL.map(|service| simulator.url(service));
    World::with_config(simulator, &patient(&workspace, &appstream, settings)).await
}

/// Two gateways with one engine, which both use. They have different callers.
pub async fn two_gateways(engine: &Engine) -> (World, World) {
    two_gateways_with(&settings(&engine.url(), "")).await
}

/// Two gateways with these settings, which both use their engine. They have different callers.
pub async fn two_gateways_with(settings: &str) -> (World, World) {
    let first = first_gateway(settings).await;
    let second = gateway_of(&first.simulator, settings).await;
    for world in [&first, &second] {
        world.until_metric(LOST, 0.0).await;
    }
    (first, second)
}

/// Two gateways whose engine has a list of the first one, which the second one's caller may see.
pub async fn two_gateways_with_a_list(engine: &Engine) -> (World, World) {
    let (first, second) = two_gateways(engine).await;
    second.get(PROOF).await;
    store(&first, LIST).await;
    (first, second)
}

/// Waits until a gateway knows what the others have told. Its clock stands still, so it knows it from then on.
pub async fn until_in_sync(world: &World) {
    world.until_metric(LOST, 0.0).await;
    // A link counts after 2 s.
    world.seconds_pass(2);
    world.until_metric("workspace_gateway_fleet_in_sync", 1.0).await;
}

/// Sends a request that goes upstream, and waits until the response is in the engine.
pub async fn store(world: &World, path: &str) {
    let before = world.metric(STORED);
    let reply = world.get(path).await;
    assert!(reply.cache_status().contains("fwd-status=200; stored"), "{}", reply.cache_status());
    world.until_metric(STORED, before + 1.0).await;
}

pub fn is_from_fleet(reply: &Reply) -> bool {
    reply.status() == StatusCode::OK && reply.cache_status().ends_with("; detail=fleet")
}

/// Sends a request that no gateway has sent before. It goes upstream, and its answer is right.
pub async fn ask_upstream(world: &World, number: usize) {
    let reply = world.get(&format!("/v2/PROJECT/products?limit=1&offset={number}")).await;
    assert_eq!(reply.status(), StatusCode::OK, "{}", reply.text());
    assert!(reply.cache_status().contains("fwd-status=200"), "{}", reply.cache_status());
}

pub fn fault(cause: &str) -> String {
    format!("workspace_gateway_fleet_faults_total{{cause=\"{cause}\"}}")
}
