//! The key breaker: requests with an access key that upstream has begun to reject, and requests that wait for a key
//! permit.

use std::sync::Arc;

use http::{HeaderValue, Method, StatusCode};
use workspace_gateway::testing::catalogue::Service;
use workspace_gateway::testing::signing::Payload;
use workspace_gateway::testing::simulator::{IssuedKey, Simulator};

use crate::support::signer::{Signed, date, entry};
use crate::support::{PROJECT, World, send_raw, within};

const LIST: &str = "/v2/PROJECT/products?os_type=Linux";
const OTHER: &str = "/v2/PROJECT/products?os_type=Windows";
const APP_LIST: &str = "/v1/PROJECT/product";
const DESKTOPS: &str = "/v2/PROJECT/desktops";
const SUSPENDED: &str = "workspace_gateway_signatures_total{result=\"key-suspended\"}";

/// A gateway that knows one key, with these settings.
async fn world_with_key(settings: &str) -> (Arc<World>, IssuedKey) {
    let simulator = Simulator::start().await.unwrap();
    let key = simulator.access_key(PROJECT);
    let [workspace, appstream] = Service::ALL.map(|service| simulator.url(service));
    let world = World::with_upstreams(simulator, &workspace, &appstream, &(entry(&key, "") + settings)).await;
    (Arc::new(world), key)
}

async fn get_status(world: &World, key: &IssuedKey, path: &str) -> StatusCode {
    Signed::get(world, key, path).send(world).await.status()
}

/// Sends a request without waiting for the response.
fn begin(world: &Arc<World>, key: &IssuedKey, path: &str) -> tokio::task::JoinHandle<StatusCode> {
    let (world, request) = (Arc::clone(world), Signed::get(world, key, path));
    tokio::spawn(async move { request.send(&world).await.status() })
}

#[tokio::test]
async fn a_suspended_key_gets_no_stored_response() {
    let (world, key) = world_with_key("").await;
    assert_eq!(get_status(&world, &key, APP_LIST).await, StatusCode::OK);
    world.simulator.expire(&key.id);
    for _ in 0..3 {
        // A 401 ends the grants of its own service only. The key breaker counts the failures of both services.
        assert!(Signed::get(&world, &key, APP_LIST).send(&world).await.is_hit(), "the grant has not ended");
        assert_eq!(get_status(&world, &key, DESKTOPS).await, StatusCode::UNAUTHORIZED);
    }
    let suspended = Signed::get(&world, &key, APP_LIST).send(&world).await;
    assert_eq!(suspended.status(), StatusCode::UNAUTHORIZED, "{suspended:?}");
    assert_eq!((world.upstream_calls(), world.metric(SUSPENDED)), (4, 1.0));
}

#[tokio::test]
async fn only_requests_with_a_key_are_rejected_when_it_is_suspended() {
    let (world, key) = world_with_key("").await;
    let [token] = world.granted_tokens().await;
    assert_eq!(get_status(&world, &key, LIST).await, StatusCode::OK);
    world.simulator.expire(&key.id);
    for _ in 0..2 {
        assert_eq!(get_status(&world, &key, DESKTOPS).await, StatusCode::UNAUTHORIZED);
    }
    // One more call may fail, and other calls with the key wait for it. A caller with a token does not.
    world.simulator.hold();
    world.simulator.forget_requests();
    let third = begin(&world, &key, DESKTOPS);
    within(world.simulator.wait_for_requests(1)).await;
    let waiting = begin(&world, &key, OTHER);
    world.until_metric("workspace_gateway_requests_in_flight", 2.0).await;
    let other = world.begin_and_reach_upstream(&token, OTHER, 2).await;
    world.simulator.release();
    assert_eq!([within(third).await.unwrap(), within(waiting).await.unwrap()], [StatusCode::UNAUTHORIZED; 2]);
    assert_eq!(within(other).await.unwrap().status(), StatusCode::OK);
    assert_eq!((world.simulator.failures_in_a_row(&key.id), world.metric(SUSPENDED)), (3, 1.0));
}

#[tokio::test]
async fn a_queued_request_is_signed_when_it_is_sent() {
    let (world, key) = world_with_key("[upstream]\nmax_calls = 1\nmax_calls_per_caller = 1\n").await;
    world.simulator.hold();
    let first = begin(&world, &key, DESKTOPS);
    within(world.simulator.wait_for_requests(1)).await;
    let second = begin(&world, &key, DESKTOPS);
    world.until_metric("workspace_gateway_upstream_calls_queued{kind=\"relay\",service=\"workspace\"}", 1.0).await;
    world.seconds_pass(901);
    world.simulator.release();
    within(first).await.unwrap();
    assert_eq!(within(second).await.unwrap(), StatusCode::OK);
}

#[tokio::test]
async fn a_401_with_a_services_own_code_does_not_suspend_the_key() {
    const REFUSAL: &str = "HTTP/1.1 401 Unauthorized\r\nConnection: close\r\nContent-Length: 29\r\n\r\n\
                           {\"error_code\":\"WKS.00211302\"}";
    let key = IssuedKey { id: "AK".to_owned(), secret: "s".to_owned(), security_token: None };
    let world = World::with_fixed_upstream(REFUSAL, &entry(&key, "")).await;
    for _ in 0..6 {
        let reply = Signed::get(&world, &key, DESKTOPS).send(&world).await;
        assert_eq!((reply.status(), reply.text()), (StatusCode::UNAUTHORIZED, &REFUSAL[REFUSAL.len() - 29..]));
    }
    assert_eq!(world.metric(SUSPENDED), 0.0);
}

#[tokio::test]
async fn a_known_keys_signature_is_not_sent_beside_a_token() {
    let (world, key) = world_with_key("").await;
    let upstream = world.simulator.url(Service::Workspace).replace("http://", "");
    let wrong = IssuedKey { secret: "another".to_owned(), ..key };
    let mut request = Signed::get(&world, &wrong, DESKTOPS);
    request.headers.insert("host", HeaderValue::try_from(upstream).unwrap());
    let request = request.sign(&wrong, &[], &Payload::of(b""), date(&world)).with("x-auth-token", &world.token);
    assert_eq!(request.send(&world).await.status(), StatusCode::OK);
    assert!(!world.simulator.requests_seen()[0].headers.contains_key("authorization"));
}

#[tokio::test]
async fn a_too_large_signed_body_is_rejected_before_it_is_read() {
    let (world, key) = world_with_key("").await;
    let request = Signed::new(&world, &key, Method::POST, DESKTOPS, "");
    let fields: String =
        request.headers.iter().map(|(name, value)| format!("{name}: {}\r\n", value.to_str().unwrap())).collect();
    let request_line = format!("POST {DESKTOPS} HTTP/1.1\r\n").replace("PROJECT", PROJECT);
    let post = async |more: &str| send_raw(world.server.proxy_address(), format!("{request_line}{fields}{more}")).await;
    let response = post("Content-Length: 12582913\r\n\r\n").await;
    assert!(response.starts_with("HTTP/1.1 413 "), "{response}");
    // An incomplete body gets another error.
    let response = post("Connection: close\r\nTransfer-Encoding: chunked\r\n\r\nno chunk\r\n").await;
    assert!(
        response.starts_with("HTTP/1.1 408 ") && response.contains("did not arrive completely in time"),
        "{response}"
    );
    assert_eq!(world.upstream_calls(), 0);
}
