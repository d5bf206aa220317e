//! Invalidation by unsafe methods (RFC 9111 §4.4): after a caller has changed a resource, nothing that was stored before
//! is served without confirmation.

use std::sync::Arc;

use bytes::Bytes;
use http::{Method, StatusCode};

use crate::support::signer::{Signed, world_with_key};
use crate::support::{PROJECT, Reply, WAITERS, World, within};

const LIST: &str = "/v2/PROJECT/products?os_type=Linux";
const PATH: &str = "/v2/PROJECT/products";

/// Sends a POST. The simulator returns its body.
async fn write(world: &World, token: &str, body: &'static str) -> Reply {
    world.seconds_pass(1);
    let reply = world.http.send(Method::POST, &world.url(PATH), &[("x-auth-token", token)], body).await;
    world.seconds_pass(1);
    reply
}

#[tokio::test]
async fn an_invalidated_response_is_served_after_upstream_has_confirmed_it() {
    let world = World::new().await;
    let [one, two] = world.granted_tokens().await;
    world.simulator.send_etags(true);
    let stored = world.get_as(&one, LIST).await;
    assert!(world.get_as(&two, LIST).await.is_hit());
    assert_eq!(write(&world, &one, "{}").await.status(), StatusCode::OK);
    // Two requests of each caller: the fast path can answer the second one.
    for (token, expected) in [
        (&two, "fwd=stale; fwd-status=304; stored; detail=needs-confirmation"),
        (&two, "hit; ttl=300"),
        (&one, "hit; ttl=300"),
        (&one, "hit; ttl=300"),
    ] {
        let reply = world.get_as(token, LIST).await;
        assert_eq!((reply.cache_params(), reply.body()), (expected, stored.body()));
    }
    assert_eq!(world.upstream_calls(), 3);
}

#[tokio::test]
async fn an_invalidated_response_is_not_served_stale_even_in_an_outage() {
    // Fresh, stale while it is revalidated, and stale in an outage.
    for seconds in [0, 300, 1_000] {
        let world = World::with("[grants]\ngrant_ttl = \"1h\"").await;
        let [token] = world.granted_tokens().await;
        world.get_as(&token, LIST).await;
        world.seconds_pass(seconds);
        write(&world, &token, "{}").await;
        world.simulator.reset_connections(true);
        for _ in 0..2 {
            assert_eq!(world.get_as(&token, LIST).await.status(), StatusCode::BAD_GATEWAY, "{seconds}");
        }
        world.simulator.reset_connections(false);
        assert_eq!(
            world.get_as(&token, LIST).await.cache_params(),
            "fwd=stale; fwd-status=200; stored; detail=needs-confirmation"
        );
    }
}

#[tokio::test]
async fn an_invalidated_response_is_not_served_to_a_lapsed_caller() {
    let world = World::new().await;
    let [one, two] = world.granted_tokens().await;
    world.get_as(&one, LIST).await;
    world.seconds_pass(299);
    world.get_as(&two, PATH).await;
    write(&world, &two, "{}").await;
    world.simulator.reset_connections(true);
    for _ in 0..2 {
        assert_eq!(world.get_as(&one, LIST).await.status(), StatusCode::BAD_GATEWAY);
    }
}

#[tokio::test]
async fn an_invalidated_negative_response_is_not_served_again() {
    let world = World::new().await;
    let [token] = world.granted_tokens().await;
    world.simulator.fail_with(Some(StatusCode::NOT_FOUND));
    world.get_as(&token, LIST).await;
    assert_eq!(world.get_as(&token, LIST).await.cache_params(), "hit; ttl=5; detail=negative");
    world.simulator.fail_with(None);
    write(&world, &token, "{}").await;
    assert!(world.get_as(&token, LIST).await.products() > 0);
}

#[tokio::test]
async fn an_unsafe_request_invalidates_its_scope_only() {
    let world = World::new().await;
    let [token] = world.granted_tokens().await;
    let others = ["/v2/PROJECT/products/sharer", "/v1/PROJECT/product"];
    for path in others {
        world.get_as(&token, path).await;
    }
    write(&world, &token, "{}").await;
    for path in others {
        assert!(world.get_as(&token, path).await.is_hit(), "{path}");
    }
}

#[tokio::test]
async fn a_caller_without_a_grant_invalidates_nothing() {
    let world = World::new().await;
    let [token] = world.granted_tokens().await;
    world.get_as(&token, LIST).await;
    let stranger = world.simulator.token(PROJECT);
    assert_eq!(write(&world, &stranger, "{}").await.status(), StatusCode::OK);
    world.get_as(&stranger, "/v1/PROJECT/product").await;
    write(&world, &stranger, "{}").await;
    assert!(world.get_as(&token, LIST).await.is_hit(), "a grant in another scope does not count");
}

#[tokio::test]
async fn an_error_response_invalidates_nothing() {
    let world = World::new().await;
    let [token] = world.granted_tokens().await;
    world.get_as(&token, LIST).await;
    let error = r#"{"error_msg":"no","error_code":"WKS.00211401"}"#;
    let reply = write(&world, &token, error).await;
    assert_eq!((reply.status(), reply.text()), (StatusCode::OK, error));
    for status in [StatusCode::BAD_REQUEST, StatusCode::CONFLICT, StatusCode::SERVICE_UNAVAILABLE] {
        world.simulator.fail_with(Some(status));
        assert_eq!(write(&world, &token, "{}").await.status(), status);
    }
    world.simulator.fail_with(None);
    assert!(world.get_as(&token, LIST).await.is_hit());
}

#[tokio::test]
async fn a_safe_method_invalidates_nothing_and_any_other_method_does() {
    for (method, invalidates) in [("OPTIONS", false), ("PUT", true), ("DELETE", true), ("PATCH", true), ("PURGE", true)]
    {
        let world = World::new().await;
        let [token] = world.granted_tokens().await;
        world.get_as(&token, LIST).await;
        world.seconds_pass(1);
        let method = Method::from_bytes(method.as_bytes()).unwrap();
        world.http.send(method.clone(), &world.url(PATH), &[("x-auth-token", &token)], "").await;
        assert_eq!(world.get_as(&token, LIST).await.is_hit(), !invalidates, "{method}");
    }
}

#[tokio::test]
async fn a_response_too_long_to_inspect_invalidates_and_is_relayed_completely() {
    let world = World::new().await;
    let [token] = world.granted_tokens().await;
    world.get_as(&token, LIST).await;
    world.seconds_pass(1);
    let mut body = br#"{"error_code":"x","padding":""#.to_vec();
    body.resize(1 << 20, b'x');
    let body = Bytes::from(body);
    let reply = world.http.send(Method::POST, &world.url(PATH), &[("x-auth-token", &token)], body.clone()).await;
    assert!(reply.body() == &body, "{} bytes of {}", reply.body().len(), body.len());
    assert!(!world.get_as(&token, LIST).await.is_hit());
}

#[tokio::test]
async fn a_compressed_response_invalidates_even_if_it_may_contain_an_error() {
    // `{"error_code":"WKS.00211302"}`
    const ERROR: &[u8] =
        b"\x1f\x8b\x08\x00\x00\x00\x00\x00\x02\x03\xab\x56\x4a\x2d\x2a\xca\x2f\x8a\x4f\xce\x4f\x49\x55\xb2\
        \x52\x0a\xf7\x0e\xd6\x33\x30\x30\x32\x34\x34\x36\x30\x52\xaa\x05\x00\xb8\xf4\x00\x30\x1d\x00\x00\x00";
    let world = World::new().await;
    let [token] = world.granted_tokens().await;
    world.get_as(&token, LIST).await;
    world.seconds_pass(1);
    world.simulator.add_header("content-encoding".parse().unwrap(), "gzip".parse().unwrap());
    let reply = world.http.send(Method::POST, &world.url(PATH), &[("x-auth-token", &token)], ERROR).await;
    assert_eq!((reply.header("content-encoding"), &reply.body()[..]), ("gzip", ERROR));
    world.simulator.remove_headers();
    world.seconds_pass(1);
    assert_eq!(
        world.get_as(&token, LIST).await.cache_params(),
        "fwd=stale; fwd-status=200; stored; detail=needs-confirmation"
    );
}

#[tokio::test]
async fn an_unsafe_request_in_bypass_mode_invalidates() {
    let world = World::new().await;
    let [token] = world.granted_tokens().await;
    world.get_as(&token, LIST).await;
    let mode = world.admin_url("/mode");
    world.http.send(Method::PUT, &mode, &[], "bypass").await;
    write(&world, &token, "{}").await;
    world.http.send(Method::PUT, &mode, &[], "cache").await;
    assert_eq!(
        world.get_as(&token, LIST).await.cache_params(),
        "fwd=stale; fwd-status=200; stored; detail=needs-confirmation"
    );
}

#[tokio::test]
async fn a_response_invalidated_in_flight_is_served_to_its_leader_only() {
    let world = World::new().await;
    let [one, two] = world.granted_tokens().await;
    let target = LIST.replace("PROJECT", PROJECT);
    world.simulator.hold_target(&target);
    let leader = world.begin_and_reach_upstream(&one, LIST, 1).await;
    let waiter = world.begin_and_wait(&two, LIST, 1).await;
    write(&world, &two, "{}").await;
    world.simulator.release_target(&target);
    let leader_reply = within(leader).await.unwrap();
    assert_eq!(leader_reply.cache_params(), "fwd=miss; fwd-status=200; detail=invalidated");
    let waiter_reply = within(waiter).await.unwrap();
    assert_eq!(waiter_reply.cache_params(), "fwd=miss; fwd-status=200; stored; detail=no-entry");
    assert_eq!((world.upstream_calls(), world.metric(WAITERS)), (3, 0.0));
    assert!(world.get_as(&one, LIST).await.is_hit());
}

#[tokio::test]
async fn invalidation_keeps_private_scopes_and_entries() {
    let world = World::new().await;
    let [one, two] = world.granted_tokens().await;
    world.simulator.add_header("vary".parse().unwrap(), "x-auth-token".parse().unwrap());
    world.get_as(&one, LIST).await;
    let private = "workspace_gateway_private_scopes";
    assert_eq!(world.metric(private), 1.0);
    write(&world, &two, "{}").await;
    assert_eq!(world.metric(private), 1.0);
    assert_eq!(world.get_as(&one, LIST).await.cache_params(), "fwd=stale; fwd-status=200; stored; detail=private");
    // The admin interface shows the invalidation.
    write(&world, &two, "{}").await;
    let parameters = [("url", LIST.replace("PROJECT", PROJECT)), ("header", format!("X-Auth-Token: {one}"))];
    let query = form_urlencoded::Serializer::new(String::new()).extend_pairs(parameters).finish();
    let explained = world.http.get(&world.admin_url(&format!("/explain?{query}"))).await.json();
    let expected = "an invalidated response, served only after upstream has confirmed it";
    assert_eq!(explained["operation"]["now"]["stored"], expected);
    let listed = world.http.get(&world.admin_url("/cache/entries")).await.json();
    let is_entry = |entry: &&serde_json::Value| entry["query"] == "os_type=Linux";
    assert_eq!(listed["entries"].as_array().unwrap().iter().find(is_entry).unwrap()["state"], "invalidated");
}

#[tokio::test]
async fn a_request_with_a_token_invalidates_even_if_its_client_disconnects() {
    let world = Arc::new(World::new().await);
    world.get(LIST).await;
    assert!(world.get(LIST).await.is_hit());
    world.seconds_pass(1);
    let target = PATH.replace("PROJECT", PROJECT);
    world.simulator.hold_target(&target);
    let writing = tokio::spawn({
        let world = Arc::clone(&world);
        async move { world.http.send(Method::POST, &world.url(PATH), &[("x-auth-token", &world.token)], "{}").await }
    });
    within(world.simulator.wait_for_requests(2)).await;
    writing.abort();
    world.until_metric("workspace_gateway_requests_in_flight", 0.0).await;
    world.simulator.release_target(&target);
    world.until_metric("workspace_gateway_upstream_calls{kind=\"relay\",service=\"workspace\"}", 0.0).await;
    world.seconds_pass(1);
    assert_eq!(world.get(LIST).await.cache_params(), "fwd=stale; fwd-status=200; stored; detail=needs-confirmation");
}

#[tokio::test]
async fn a_signed_request_invalidates_even_if_its_client_disconnects() {
    let (world, key) = world_with_key().await;
    assert_eq!(Signed::get(&world, &key, LIST).send(&world).await.status(), StatusCode::OK);
    assert!(Signed::get(&world, &key, LIST).send(&world).await.is_hit());
    world.seconds_pass(1);
    let target = PATH.replace("PROJECT", PROJECT);
    world.simulator.hold_target(&target);
    let writing = Signed::new(&world, &key, Method::POST, PATH, "{}").begin(&world);
    within(world.simulator.wait_for_requests(2)).await;
    writing.abort();
    world.until_metric("workspace_gateway_requests_in_flight", 0.0).await;
    world.simulator.release_target(&target);
    world.until_metric("workspace_gateway_upstream_calls{kind=\"relay\",service=\"workspace\"}", 0.0).await;
    world.seconds_pass(1);
    let reply = Signed::get(&world, &key, LIST).send(&world).await;
    assert_eq!(reply.cache_params(), "fwd=stale; fwd-status=200; stored; detail=needs-confirmation");
}
