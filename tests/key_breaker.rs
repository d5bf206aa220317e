//! What becomes of requests whose access key upstream has begun to refuse, and of those that wait for leave to use
//! one.

use std::sync::Arc;

use http::{HeaderValue, Method, StatusCode};
use workspace_gateway::testing::catalogue::Service;
use workspace_gateway::testing::signing::Payload;
use workspace_gateway::testing::simulator::{IssuedKey, Simulator};

use crate::support::signer::{Signed, date, entry};
use crate::support::{PROJECT, World, raw, within};

const LIST: &str = "/v2/PROJECT/products?os_type=Linux";
const OTHER: &str = "/v2/PROJECT/products?os_type=Windows";
const APP_LIST: &str = "/v1/PROJECT/product";
const DESKTOPS: &str = "/v2/PROJECT/desktops";
const HELD: &str = "workspace_gateway_signatures_total{result=\"key-suspended\"}";

/// A gateway that knows one key, with these settings.
async fn one_key(settings: &str) -> (Arc<World>, IssuedKey) {
    let simulator = Simulator::start().await.unwrap();
    let key = simulator.access_key(PROJECT);
    let [workspace, appstream] = Service::ALL.map(|service| simulator.url(service));
    let world = World::before(simulator, &workspace, &appstream, &(entry(&key, "") + settings)).await;
    (Arc::new(world), key)
}

async fn ask(world: &World, key: &IssuedKey, path: &str) -> StatusCode {
    Signed::get(world, key, path).send(world).await.status()
}

/// Asks, and goes on.
fn begin(world: &Arc<World>, key: &IssuedKey, path: &str) -> tokio::task::JoinHandle<StatusCode> {
    let (world, request) = (Arc::clone(world), Signed::get(world, key, path));
    tokio::spawn(async move { request.send(&world).await.status() })
}

#[tokio::test]
async fn what_is_in_memory_is_not_given_for_a_key_that_is_held() {
    let (world, key) = one_key("").await;
    assert_eq!(ask(&world, &key, APP_LIST).await, StatusCode::OK);
    world.simulator.expire(&key.id);
    for _ in 0..3 {
        // A 401 ends the grants of the service that has said it. Both services have one judge of keys.
        assert!(Signed::get(&world, &key, APP_LIST).send(&world).await.is_hit(), "the grant stands");
        assert_eq!(ask(&world, &key, DESKTOPS).await, StatusCode::UNAUTHORIZED);
    }
    let held = Signed::get(&world, &key, APP_LIST).send(&world).await;
    assert_eq!(held.status(), StatusCode::UNAUTHORIZED, "{held:?}");
    assert_eq!((world.upstream_calls(), world.metric(HELD)), (4, 1.0));
}

#[tokio::test]
async fn who_waits_with_one_that_is_then_held_is_refused_and_nobody_else() {
    let (world, key) = one_key("").await;
    let [token] = world.granted().await;
    assert_eq!(ask(&world, &key, LIST).await, StatusCode::OK);
    world.simulator.expire(&key.id);
    for _ in 0..2 {
        assert_eq!(ask(&world, &key, DESKTOPS).await, StatusCode::UNAUTHORIZED);
    }
    // One more may fail, and others wait for it; but nobody who asks the same with a token.
    world.simulator.hold();
    world.simulator.forget_requests();
    let last = begin(&world, &key, DESKTOPS);
    within(world.simulator.arrived(1)).await;
    let waiting = begin(&world, &key, OTHER);
    world.until_metric("workspace_gateway_requests_in_flight", 2.0).await;
    let other = world.begin_and_arrive(&token, OTHER, 2).await;
    world.simulator.release();
    assert_eq!([within(last).await.unwrap(), within(waiting).await.unwrap()], [StatusCode::UNAUTHORIZED; 2]);
    assert_eq!(within(other).await.unwrap().status(), StatusCode::OK);
    assert_eq!((world.simulator.failures_in_a_row(&key.id), world.metric(HELD)), (3, 1.0));
}

#[tokio::test]
async fn what_has_waited_is_signed_when_it_is_sent() {
    let (world, key) = one_key("[upstream]\nmax_calls = 1\nmax_calls_per_caller = 1\n").await;
    world.simulator.hold();
    let first = begin(&world, &key, DESKTOPS);
    within(world.simulator.arrived(1)).await;
    let second = begin(&world, &key, DESKTOPS);
    world.until_metric("workspace_gateway_upstream_calls_queued{kind=\"relay\",service=\"workspace\"}", 1.0).await;
    world.seconds_pass(901);
    world.simulator.release();
    within(first).await.unwrap();
    assert_eq!(within(second).await.unwrap(), StatusCode::OK);
}

#[tokio::test]
async fn a_services_own_401_is_passed_on_and_says_nothing_of_the_signature() {
    const REFUSAL: &str = "HTTP/1.1 401 Unauthorized\r\nConnection: close\r\nContent-Length: 29\r\n\r\n\
                           {\"error_code\":\"WKS.00211302\"}";
    let key = IssuedKey { id: "AK".to_owned(), secret: "s".to_owned(), security_token: None };
    let world = World::before_one_that_says(REFUSAL, &entry(&key, "")).await;
    for _ in 0..6 {
        let reply = Signed::get(&world, &key, DESKTOPS).send(&world).await;
        assert_eq!((reply.status(), reply.text()), (StatusCode::UNAUTHORIZED, &REFUSAL[REFUSAL.len() - 29..]));
    }
    assert_eq!(world.metric(HELD), 0.0);
}

#[tokio::test]
async fn beside_a_token_a_known_keys_signature_is_not_sent_even_where_it_might_be_valid() {
    let (world, key) = one_key("").await;
    let upstream = world.simulator.url(Service::Workspace).replace("http://", "");
    let wrong = IssuedKey { secret: "another".to_owned(), ..key };
    let mut request = Signed::get(&world, &wrong, DESKTOPS);
    request.headers.insert("host", HeaderValue::try_from(upstream).unwrap());
    let request = request.sign(&wrong, &[], &Payload::of(b""), date(&world)).with("x-auth-token", &world.token);
    assert_eq!(request.send(&world).await.status(), StatusCode::OK);
    assert!(!world.simulator.requests_seen()[0].headers.contains_key("authorization"));
}

#[tokio::test]
async fn a_signed_body_that_is_too_large_is_refused_before_it_comes() {
    let (world, key) = one_key("").await;
    let request = Signed::new(&world, &key, Method::POST, DESKTOPS, "");
    let fields: String =
        request.headers.iter().map(|(name, value)| format!("{name}: {}\r\n", value.to_str().unwrap())).collect();
    let line = format!("POST {DESKTOPS} HTTP/1.1\r\n").replace("PROJECT", PROJECT);
    let post = async |more: &str| raw(world.server.proxy_address(), format!("{line}{fields}{more}")).await;
    let answer = post("Content-Length: 12582913\r\n\r\n").await;
    assert!(answer.starts_with("HTTP/1.1 413 "), "{answer}");
    // And one that breaks off is told apart.
    let answer = post("Connection: close\r\nTransfer-Encoding: chunked\r\n\r\nno chunk\r\n").await;
    assert!(answer.starts_with("HTTP/1.1 408 ") && answer.contains("has not come to its end"), "{answer}");
    assert_eq!(world.upstream_calls(), 0);
}
