//! Bypasses: a request that the gateway does not fully understand is relayed unchanged and its response is not
//! stored.

use std::collections::BTreeSet;

use http::{Method, StatusCode};
use strum::VariantArray;
use workspace_gateway::testing::catalogue::Service;
use workspace_gateway::testing::request::BypassReason;

use crate::support::{PROJECT, World};

const LIST: &str = "/v2/PROJECT/products";

/// The expected reason, and the path, headers and body of the request.
type Case<'a> = (BypassReason, &'a str, Vec<(&'a str, &'a str)>, &'static str);

#[tokio::test]
async fn every_bypass_reason_is_reported_and_nothing_is_stored() {
    let world = World::with("[cache]\nmax_body_size = \"100KiB\"").await;
    let token = world.token.clone();
    let token = ("x-auth-token", token.as_str());
    let long_query = format!("/v2/PROJECT/products?a={}", "/".repeat(22_000));
    let long_project = format!("/v2/{}/products", "p".repeat(256));
    let cases: Vec<Case<'_>> = vec![
        (BypassReason::NoCredential, LIST, vec![], ""),
        (BypassReason::NoCredential, LIST, vec![("x-auth-token", "")], ""),
        (BypassReason::NoCredential, LIST, vec![("x-auth-token", "   ")], ""),
        (BypassReason::NoCredential, LIST, vec![token, ("connection", "close, X-Auth-Token")], ""),
        (BypassReason::UnverifiedSignature, LIST, vec![("authorization", "SDK-HMAC-SHA256 SignedHeaders=accept")], ""),
        (BypassReason::ProjectId, &long_project, vec![token], ""),
        (BypassReason::ProjectId, "/v2/%30PROJECT/products", vec![token], ""),
        (BypassReason::ProjectId, "/v2/a.b/products", vec![token], ""),
        (BypassReason::ProjectMismatch, LIST, vec![token, ("x-project-id", "another")], ""),
        (BypassReason::RepeatedHeader, LIST, vec![token, ("x-language", "a"), ("x-language", "b")], ""),
        (BypassReason::Body, LIST, vec![token], "{}"),
        (BypassReason::Range, LIST, vec![token, ("range", "bytes=0-1")], ""),
        (BypassReason::ClientNoStore, LIST, vec![token, ("cache-control", "no-store")], ""),
        (BypassReason::ClientNoStore, LIST, vec![token, ("cache-control", "max-age=60, no-store")], ""),
        (BypassReason::RepeatedParameter, "/v2/PROJECT/products?limit=100&limit=5", vec![token], ""),
        (BypassReason::Plus, "/v2/PROJECT/products?product_id=a+b", vec![token], ""),
        (BypassReason::Semicolon, "/v2/PROJECT/products?os_type=Linux;limit=1", vec![token], ""),
        (BypassReason::Encoding, "/v2/PROJECT/products?os_type=%zz", vec![token], ""),
        (BypassReason::Encoding, "/v2/PROJECT/products?os_type=%ff", vec![token], ""),
        (BypassReason::ControlCharacter, "/v2/PROJECT/products?os_type=%00", vec![token], ""),
        (BypassReason::MalformedParameter, "/v2/PROJECT/products?os_type", vec![token], ""),
        (BypassReason::MalformedParameter, "/v2/PROJECT/products?&", vec![token], ""),
        (BypassReason::LongQuery, &long_query, vec![token], ""),
    ];

    let mut calls = 0;
    for (reason, path, headers, body) in &cases {
        for _ in 0..2 {
            let path = path.replace("PROJECT", PROJECT);
            let reply = world.http.send(Method::GET, &world.url(&path), headers, *body).await;
            calls += 1;
            let expected = format!("workspace-gateway; fwd=bypass; detail={}", reason.into_str());
            assert_eq!(reply.cache_status(), expected, "{path} {headers:?} {body:?}");
            assert!(!reply.headers().contains_key("age"));
            assert_eq!(world.upstream_calls(), calls, "{path}");
            let seen = world.simulator.requests_seen().pop().unwrap();
            assert_eq!((seen.target.as_str(), seen.has_body), (path.as_str(), !body.is_empty()), "relayed unchanged");
        }
    }
    assert_eq!(world.metric("workspace_gateway_entries"), 0.0);

    let tested: BTreeSet<_> = cases.iter().map(|(reason, ..)| reason.into_str()).collect();
    // These have tests of their own: below, in `caching` and in `operations`.
    let elsewhere =
        [BypassReason::Mode, BypassReason::TooLarge, BypassReason::PathSegment].map(|reason| reason.into_str());
    let all: BTreeSet<_> = BypassReason::VARIANTS.iter().map(|reason| reason.into_str()).collect();
    assert_eq!(tested.union(&elsewhere.into()).copied().collect::<BTreeSet<_>>(), all);
}

#[tokio::test]
async fn a_request_without_a_credential_gets_upstreams_401() {
    let world = World::new().await;
    world.get(LIST).await;
    let refused = world.http.get(&world.url(LIST)).await;
    assert_eq!(refused.status(), StatusCode::UNAUTHORIZED);
    assert!(refused.text().contains("x-auth-token not found"));
}

#[tokio::test]
async fn a_request_with_another_method_passes_through() {
    let world = World::new().await;
    let token = [("x-auth-token", world.token.as_str())];
    let reply = world.http.send(Method::POST, &world.url(LIST), &token, "{\"a\":1}").await;
    assert_eq!((reply.status(), reply.text()), (StatusCode::OK, "{\"a\":1}"));
    assert!(!reply.headers().contains_key("cache-status"));
}

#[tokio::test]
async fn bypass_mode_disables_the_cache_at_run_time() {
    let world = World::with("mode = \"bypass\"").await;
    for calls in 1..=2 {
        assert_eq!(world.get(LIST).await.cache_status(), "workspace-gateway; fwd=bypass; detail=mode");
        assert_eq!(world.upstream_calls(), calls);
    }
    world.server.gateway().set_mode(workspace_gateway::testing::config::Mode::Cache);
    world.get(LIST).await;
    assert!(world.get(LIST).await.cache_status().contains("; hit"));
    assert_eq!(world.upstream_calls(), 3);
}

#[tokio::test]
async fn with_a_token_the_authorization_field_is_ignored_and_not_sent() {
    let world = World::new().await;
    world.get(LIST).await;
    for authorization in ["", "SDK-HMAC-SHA256 Access=A, SignedHeaders=host, Signature=0"] {
        let reply = world.get_with(LIST, &[("authorization", authorization)]).await;
        assert!(reply.cache_status().contains("; hit"), "{authorization:?}");
    }
    assert!(!world.simulator.requests_seen()[0].headers.contains_key("authorization"));
}

#[tokio::test]
async fn a_signature_that_covers_the_gateways_host_is_not_forwarded() {
    let world = World::new().await;
    let bound = "SDK-HMAC-SHA256 Access=A, SignedHeaders=content-type;host;x-sdk-date, Signature=0";
    let free = "SDK-HMAC-SHA256 Access=A, SignedHeaders=accept;x-sdk-date, Signature=0";
    for path in [LIST, "/v2/PROJECT/desktops"] {
        let refused = world.http.send(Method::GET, &world.url(path), &[("authorization", bound)], "").await;
        assert_eq!(refused.status(), StatusCode::UNAUTHORIZED);
        let (code, message) = refused.error();
        assert_eq!(code, "APIGW.0301");
        assert!(message.contains("X-Auth-Token"), "{message}");
    }
    assert_eq!(world.upstream_calls(), 0);
    assert_eq!(
        world.metric("workspace_gateway_bypasses_total{operation=\"ListProducts\",reason=\"unverified-signature\"}"),
        0.0
    );

    // With a token the request is valid without the signature.
    let reply = world.get_with("/v2/PROJECT/desktops", &[("authorization", bound)]).await;
    assert_eq!(reply.status(), StatusCode::OK);
    assert!(!world.simulator.requests_seen()[0].headers.contains_key("authorization"));

    // A signature that does not cover Host is forwarded, and so is one that covers upstream's host.
    let upstream = world.simulator.url(Service::Workspace).replace("http://", "");
    for (host, signature) in [("gateway", free), (&upstream, bound)] {
        let headers = [("host", host), ("authorization", signature)];
        for path in [LIST, "/v2/PROJECT/desktops"] {
            world.http.send(Method::GET, &world.url(path), &headers, "").await;
            let seen = world.simulator.requests_seen().pop().unwrap();
            assert_eq!(seen.headers["authorization"], signature, "{path}");
        }
    }
    assert_eq!(world.upstream_calls(), 5);
}
