//! What a client may wish for by `Cache-Control`, and how it is spared a body that it has.

use http::header::ETAG;
use http::{HeaderName, HeaderValue, Method, StatusCode};

use crate::support::{PROJECT, Reply, WAITING, World, all, within};

const LIST: &str = "/v2/PROJECT/products?os_type=Linux";

/// What this cache says of an answer.
fn told(reply: &Reply) -> &str {
    reply.cache_status().strip_prefix("workspace-gateway; ").unwrap()
}

async fn wish(world: &World, control: &str) -> Reply {
    world.get_with(LIST, &[("cache-control", control)]).await
}

#[tokio::test]
async fn whoever_wants_upstreams_own_answer_gets_it_and_the_next_has_it_too() {
    for (name, value) in [
        ("cache-control", "no-cache"),
        ("cache-control", "max-age=0"),
        ("cache-control", "max-age=soon"),
        ("cache-control", "no-cache, a=\""),
        ("pragma", "no-cache"),
    ] {
        let world = World::new().await;
        let before = world.get(LIST).await;
        world.simulator.change_catalogue();
        world.seconds_pass(1);
        let fresh = world.get_with(LIST, &[(name, value)]).await;
        assert_eq!(told(&fresh), "fwd=request; fwd-status=200; stored; detail=client-no-cache", "{value}");
        assert_ne!(fresh.body(), before.body());
        assert_eq!(world.get(LIST).await.body(), fresh.body());
        assert_eq!(world.upstream_calls(), 2);
        // What it says itself is its own business.
        assert!(!world.simulator.requests_seen()[1].headers.contains_key(name));
    }
}

#[tokio::test]
async fn no_cache_joins_no_call_that_was_sent_before() {
    let world = World::new().await;
    let [one, two] = world.granted().await;
    world.simulator.hold();
    let leading = world.begin_and_arrive(&one, LIST, 1).await;
    let (http, url) = (world.http.clone(), world.url(LIST));
    let wishing = tokio::spawn(async move {
        http.send(Method::GET, &url, &[("x-auth-token", &two), ("cache-control", "no-cache")], "").await
    });
    within(world.simulator.arrived(2)).await;
    world.simulator.release();
    let replies = all(vec![leading, wishing]).await;
    assert!(replies.iter().all(|reply| reply.products() > 0 && !told(reply).contains("collapsed")));
}

#[tokio::test]
async fn where_upstream_fails_a_wish_for_its_answer_is_granted_as_well_as_can_be() {
    let world = World::with(&format!("[cache]\n{WAITING}")).await;
    let before = world.get(LIST).await;
    world.simulator.fail_with(Some(StatusCode::SERVICE_UNAVAILABLE));
    let stale = wish(&world, "no-cache").await;
    assert_eq!((told(&stale), stale.body()), ("fwd=request; fwd-status=503; detail=status", before.body()));
    world.simulator.deny(&world.token);
    world.simulator.fail_with(None);
    wish(&world, "no-cache").await.assert_refused(StatusCode::FORBIDDEN);
    assert_eq!(told(&wish(&world, "no-cache").await), "hit; ttl=2; detail=denied", "a loop burns no quota");
}

#[tokio::test]
async fn ages_are_held_against_the_wish() {
    for (control, expected) in [
        ("max-age=10", "hit; ttl=290"),
        ("min-fresh=290", "hit; ttl=290"),
        ("max-stale=60", "hit; ttl=290"),
        ("unheard-of, max-age=10", "hit; ttl=290"),
        ("max-age=9", "fwd=request; fwd-status=200; stored; detail=client-max-age"),
        ("min-fresh=301", "fwd=request; fwd-status=200; stored; detail=client-min-fresh"),
    ] {
        let world = World::new().await;
        world.get(LIST).await;
        world.seconds_pass(10);
        assert_eq!(told(&wish(&world, control).await), expected, "{control}");
    }
}

#[tokio::test]
async fn only_if_cached_asks_nobody() {
    let world = World::with("[grants]\ngrant_ttl = \"1h\"").await;
    let stranger = world.simulator.token(PROJECT);
    let nothing = wish(&world, "only-if-cached").await;
    nothing.assert_refused(StatusCode::GATEWAY_TIMEOUT);
    assert!(nothing.error().1.contains("only-if-cached"));
    world.get(LIST).await;
    assert_eq!(told(&wish(&world, "only-if-cached").await), "hit; ttl=300");
    world.seconds_pass(300);
    assert_eq!(told(&wish(&world, "only-if-cached").await), "hit; ttl=-1; detail=revalidating");
    wish(&world, "only-if-cached, max-age=60").await.assert_refused(StatusCode::GATEWAY_TIMEOUT);
    wish(&world, "only-if-cached, no-cache").await.assert_refused(StatusCode::GATEWAY_TIMEOUT);
    let headers = [("x-auth-token", stranger.as_str()), ("cache-control", "only-if-cached")];
    let reply = world.http.send(Method::GET, &world.url(LIST), &headers, "").await;
    assert_eq!(reply.error().1, nothing.error().1, "a stranger learns nothing");
    world.seconds_pass(600);
    wish(&world, "only-if-cached").await.assert_refused(StatusCode::GATEWAY_TIMEOUT);
    assert_eq!(world.upstream_calls(), 1);
}

#[tokio::test]
async fn who_has_the_answer_is_told_so_and_who_has_not_said_so_never_is() {
    let world = World::new().await;
    for own_tag in [None, Some("W/\"upstreams\"")] {
        world.purge();
        if let Some(tag) = own_tag {
            world.simulator.add_header(ETAG, HeaderValue::from_static(tag));
        }
        let whole = world.get(LIST).await;
        let tag = whole.header("etag").to_owned();
        assert!(own_tag.is_none_or(|own| own == tag));
        assert_eq!(world.get(LIST).await.header("etag"), tag);
        let list = format!("\"other\", {tag}");
        for known in [&*tag, &*list, "*"] {
            let spared = world.get_with(LIST, &[("if-none-match", known)]).await;
            assert_eq!((spared.status(), spared.body().len()), (StatusCode::NOT_MODIFIED, 0), "{known}");
            assert_eq!((spared.header("etag"), told(&spared)), (&*tag, "hit; ttl=300"));
            let names: Vec<_> = spared.headers().keys().map(HeaderName::as_str).collect();
            for name in ["age", "date", "x-request-id"] {
                assert!(names.contains(&name), "{name} in {names:?}");
            }
            assert!(!names.iter().any(|name| name.starts_with("content-")), "{names:?}");
        }
        for unknown in ["\"other\"", "other", ""] {
            let whole = world.get_with(LIST, &[("if-none-match", unknown)]).await;
            assert_eq!((whole.status(), whole.products() > 0), (StatusCode::OK, true), "{unknown}");
        }
        let dated = world.get_with(LIST, &[("if-modified-since", "Sun, 06 Nov 2094 08:49:37 GMT")]).await;
        assert_eq!(dated.status(), StatusCode::OK);
    }
}

#[tokio::test]
async fn a_fetched_answer_that_the_client_has_is_spared_too_and_a_failure_never() {
    let world = World::new().await;
    let tag = world.get(LIST).await.header("etag").to_owned();
    world.purge();
    let spared = world.get_with(LIST, &[("if-none-match", &tag)]).await;
    assert_eq!(
        (spared.status(), told(&spared)),
        (StatusCode::NOT_MODIFIED, "fwd=miss; fwd-status=200; stored; detail=no-entry")
    );
    assert!(!world.simulator.requests_seen()[1].headers.contains_key("if-none-match"), "that is not in the key");
    world.purge();
    world.simulator.fail_with(Some(StatusCode::NOT_FOUND));
    assert_eq!(world.get_with(LIST, &[("if-none-match", "*")]).await.status(), StatusCode::NOT_FOUND);
}
