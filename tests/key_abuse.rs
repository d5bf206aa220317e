//! Attacks on access keys: by clients that know only an id, by wrong secrets, and by upstreams that send arbitrary
//! responses.

use http::{Method, StatusCode};
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;
use workspace_gateway::testing::catalogue::Service;
use workspace_gateway::testing::signing::{Payload, show_date};
use workspace_gateway::testing::simulator::{IssuedKey, Simulator};

use crate::support::raw_upstream::{RawUpstream, sends};
use crate::support::signer::{Signed, date, entry, world_with_key, world_with_keys};
use crate::support::{PROJECT, World, send_raw, within};

const LIST: &str = "/v2/PROJECT/products?os_type=Linux";
const DESKTOPS: &str = "/v2/PROJECT/desktops";
const VERIFIED: &str = "workspace_gateway_signatures_total{result=\"verified\"}";

fn with_secret(key: &IssuedKey, secret: &str) -> IssuedKey {
    IssuedKey { secret: secret.to_owned(), ..key.clone() }
}

#[tokio::test]
async fn an_invalid_signature_of_a_known_key_is_rejected_in_every_spelling() {
    let (world, key) = world_with_key().await;
    let plain = "SDK-HMAC-SHA256 Access=AK, SignedHeaders=x-sdk-date, Signature=00";
    for (fields, authorization) in [
        ("", plain),
        ("X-Auth-Token: \r\n", plain),
        ("", "SDK-HMAC-SHA256 Access=NOBODY, Access=AK, SignedHeaders=x-sdk-date, Signature=00"),
        ("", "SDK-HMAC-SHA256 Access = AK, SignedHeaders=x-sdk-date, Signature=00"),
        ("", "SDK-HMAC-SHA256 Access=\"AK\", SignedHeaders=x-sdk-date, Signature=00"),
        ("", "SDK-HMAC-SHA256,Access=AK;SignedHeaders=x-sdk-date;Signature=00"),
        ("", "SDK-HMAC-SHA256 Access=AK, SignedHeaders=x-sdk-date, Signature=00\u{e9}"),
        ("", "Basic AAAA\r\nAuthorization: SDK-HMAC-SHA256 Access=AK, SignedHeaders=x-sdk-date, Signature=00"),
    ] {
        let authorization = authorization.replace("AK", &key.id);
        let head = format!("GET /v2/{PROJECT}/desktops HTTP/1.1\r\nHost: gw\r\nConnection: close\r\n{fields}");
        let date = show_date(date(&world));
        let request = format!("{head}X-Sdk-Date: {date}\r\nAuthorization: {authorization}\r\n\r\n");
        let response = send_raw(world.server.proxy_address(), request).await;
        assert!(response.starts_with("HTTP/1.1 401 "), "{fields}{authorization}: {response}");
    }
    assert_eq!(world.upstream_calls(), 0);
}

#[tokio::test]
async fn an_unknown_signature_that_covers_a_removed_header_is_rejected() {
    for (name, connection) in [("keep-alive", ""), ("proxy-connection", ""), ("x-custom", "x-custom")] {
        let (world, [stranger]) = world_with_keys(|simulator| [simulator.access_key(PROJECT)], |_| String::new()).await;
        let upstream = world.simulator.url(Service::Workspace).replace("http://", "");
        let request = Signed::get(&world, &stranger, DESKTOPS).with("host", &upstream).with(name, "1");
        let request = request.sign(&stranger, &["content-type", name], &Payload::of(b""), date(&world));
        let reply = request.with("connection", connection).send(&world).await;
        assert_eq!((reply.status(), world.upstream_calls()), (StatusCode::UNAUTHORIZED, 0), "{name}");
    }
}

#[tokio::test]
async fn a_key_limited_to_a_project_reaches_no_other_project() {
    let create = |simulator: &Simulator| [simulator.access_key(PROJECT)];
    let own = "[[operation]]\nname = \"Own\"\npath = \"/own/{name}/{project_id}\"\nbody = \"json\"\n\
               service = \"workspace\"\n";
    let settings = |[key]: &[IssuedKey; 1]| format!("{own}{}", entry(key, &format!("projects = [{PROJECT:?}]")));
    let (world, [key]) = world_with_keys(create, settings).await;
    for path in [
        "/v2/other/desktops",
        "/v2/PROJECT/../other/desktops",
        "/v2/PROJECT/%2e%2e/other/desktops",
        "/v2/PROJECT%2f..%2fother/desktops",
        "/own/PROJECT/other",
    ] {
        let reply = Signed::get(&world, &key, path).send(&world).await;
        assert_eq!((reply.status(), world.upstream_calls()), (StatusCode::FORBIDDEN, 0), "{path}");
    }
    let named = Signed::get(&world, &key, DESKTOPS).with("x-project-id", "other").send(&world).await;
    assert_eq!((named.status(), world.upstream_calls()), (StatusCode::FORBIDDEN, 0));
    for path in ["/own/name/PROJECT", DESKTOPS, LIST] {
        assert_ne!(Signed::get(&world, &key, path).send(&world).await.status(), StatusCode::FORBIDDEN, "{path}");
    }
}

#[tokio::test]
async fn stalled_signed_uploads_do_not_block_small_ones() {
    let (world, key) = world_with_key().await;
    let mut silent = Vec::new();
    for _ in 0..12 {
        let head = format!(
            "POST /v2/{PROJECT}/desktops HTTP/1.1\r\nHost: gw\r\nX-Sdk-Date: {}\r\nContent-Length: 12582912\r\n\
             Authorization: SDK-HMAC-SHA256 Access={}, SignedHeaders=host;x-sdk-date, Signature=00\r\n\r\nx",
            show_date(date(&world)),
            key.id
        );
        let mut stream = TcpStream::connect(world.server.proxy_address()).await.unwrap();
        stream.write_all(head.as_bytes()).await.unwrap();
        silent.push(stream);
    }
    let small = Signed::new(&world, &key, Method::POST, DESKTOPS, "{}");
    let in_flight = "workspace_gateway_requests_in_flight";
    world.until_metric(in_flight, 12.0).await;
    assert_eq!(small.send(&world).await.status(), StatusCode::OK);
    assert!(world.metric(in_flight) >= 12.0, "the gateway still waits for the other uploads");
    drop(silent);
}

#[tokio::test]
async fn successive_wrong_secrets_do_not_lock_a_key() {
    let create = |simulator: &Simulator| [simulator.access_key(PROJECT)];
    let (world, [key]) = world_with_keys(create, |[key]| entry(&with_secret(key, "one"), "")).await;
    let [one, two] = ["one", "two"].map(|secret| with_secret(&key, secret));
    world.simulator.hold();
    let mut calls: Vec<_> = (0..3).map(|_| Signed::get(&world, &one, DESKTOPS).begin(&world)).collect();
    within(world.simulator.wait_for_requests(3)).await;
    // Upstream counts the failures of an id, not of a secret.
    world.reload(&entry(&two, "")).unwrap();
    calls.extend((0..4).map(|_| Signed::get(&world, &two, DESKTOPS).begin(&world)));
    world.until_metric(VERIFIED, 7.0).await;
    world.simulator.release();
    for call in calls {
        assert_eq!(within(call).await.unwrap().status(), StatusCode::UNAUTHORIZED);
    }
    assert_eq!((world.simulator.failures_in_a_row(&key.id), world.simulator.is_locked(&key.id)), (4, false));
}

#[tokio::test]
async fn a_waiting_access_key_does_not_delay_callers_with_tokens() {
    let (world, key) = world_with_key().await;
    let third = "/v2/PROJECT/products?os_type=Other";
    // Both callers get a grant.
    assert_eq!(Signed::get(&world, &key, LIST).send(&world).await.status(), StatusCode::OK);
    assert_eq!(world.get("/v2/PROJECT/products?limit=0").await.status(), StatusCode::OK);
    // The key is rejected once, on another path. After that, two more calls may be in flight with it.
    world.simulator.revoke(&key.id);
    assert_eq!(Signed::get(&world, &key, DESKTOPS).send(&world).await.status(), StatusCode::UNAUTHORIZED);
    world.simulator.hold_target(&DESKTOPS.replace("PROJECT", PROJECT));
    let slow = [(); 2].map(|()| Signed::get(&world, &key, DESKTOPS).begin(&world));
    within(world.simulator.wait_for_requests(5)).await;
    let waiting = Signed::get(&world, &key, third).begin(&world);
    world.until_metric(VERIFIED, 5.0).await;
    assert_eq!(within(world.get(third)).await.status(), StatusCode::OK, "while the key waits");
    world.simulator.release_target(&DESKTOPS.replace("PROJECT", PROJECT));
    for call in slow.into_iter().chain([waiting]) {
        within(call).await.unwrap();
    }
}

/// A world with an operation that has its own upstream, which always sends this response.
async fn world_with_own_upstream(response: &str, secret: Option<&str>) -> (World, IssuedKey, RawUpstream) {
    let own = RawUpstream::start([sends(response)]).await;
    let create = |simulator: &Simulator| [simulator.access_key(PROJECT)];
    let settings = |[key]: &[IssuedKey; 1]| {
        let key = secret.map_or_else(|| key.clone(), |secret| with_secret(key, secret));
        let operation = "[[operation]]\nname = \"Own\"\npath = \"/own/{name}/{project_id}\"\nbody = \"json\"";
        format!("{operation}\nupstream = {:?}\n{}", own.url(), entry(&key, ""))
    };
    let (world, [key]) = world_with_keys(create, settings).await;
    let key = secret.map_or_else(|| key.clone(), |secret| with_secret(&key, secret));
    (world, key, own)
}

#[tokio::test]
async fn a_401_of_an_operators_own_upstream_suspends_no_key_elsewhere() {
    let response = "HTTP/1.1 401 Unauthorized\r\nContent-Length: 2\r\n\r\n{}";
    let (world, key, _own) = world_with_own_upstream(response, None).await;
    for name in ["a", "b", "c", "d"] {
        let reply = Signed::get(&world, &key, &format!("/own/{name}/PROJECT")).send(&world).await;
        assert_eq!(reply.status(), StatusCode::UNAUTHORIZED);
    }
    assert_eq!(Signed::get(&world, &key, LIST).send(&world).await.status(), StatusCode::OK);
}

#[tokio::test]
async fn a_200_of_an_operators_own_upstream_clears_no_failure_elsewhere() {
    let response = "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}";
    let (world, key, _own) = world_with_own_upstream(response, Some("mistyped")).await;
    for name in ["a", "b", "c", "d"] {
        Signed::get(&world, &key, DESKTOPS).send(&world).await;
        let reply = Signed::get(&world, &key, &format!("/own/{name}/PROJECT")).send(&world).await;
        assert_eq!(reply.status(), StatusCode::OK);
    }
    assert_eq!(world.simulator.failures_in_a_row(&key.id), 3);
}

#[tokio::test]
async fn a_denial_of_any_size_is_relayed_completely() {
    let body = "x".repeat(70_000);
    let response = format!("HTTP/1.1 401 Unauthorized\r\nContent-Length: {}\r\n\r\n{body}", body.len());
    let upstream = RawUpstream::start([sends(&response)]).await;
    let simulator = Simulator::start().await.unwrap();
    let key = simulator.access_key(PROJECT);
    let world = World::with_upstreams(simulator, upstream.url(), upstream.url(), &entry(&key, "")).await;
    let reply = Signed::get(&world, &key, DESKTOPS).send(&world).await;
    assert_eq!((reply.status(), reply.text()), (StatusCode::UNAUTHORIZED, body.as_str()));
}
