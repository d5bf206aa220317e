//! Request directives (RFC 9111 §5.2.1) and conditional requests (RFC 9110 §13).

use http::header::ETAG;
use http::{HeaderName, HeaderValue, Method, StatusCode};

use crate::support::{PROJECT, Reply, WAIT_FOR_UPSTREAM, World, all_replies, within};

const LIST: &str = "/v2/PROJECT/products?os_type=Linux";

async fn get_with_cache_control(world: &World, control: &str) -> Reply {
    world.get_with(LIST, &[("cache-control", control)]).await
}

#[tokio::test]
async fn a_request_for_a_new_response_fetches_and_stores_it() {
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
        assert_eq!(fresh.cache_params(), "fwd=request; fwd-status=200; stored; detail=client-no-cache", "{value}");
        assert_ne!(fresh.body(), before.body());
        assert_eq!(world.get(LIST).await.body(), fresh.body());
        assert_eq!(world.upstream_calls(), 2);
        // The directives are for the gateway. Upstream does not receive them.
        assert!(!world.simulator.requests_seen()[1].headers.contains_key(name));
    }
}

#[tokio::test]
async fn no_cache_does_not_wait_for_an_earlier_call() {
    let world = World::new().await;
    let [one, two] = world.granted_tokens().await;
    world.simulator.hold();
    let leading = world.begin_and_reach_upstream(&one, LIST, 1).await;
    let (http, url) = (world.http.clone(), world.url(LIST));
    let no_cache = tokio::spawn(async move {
        http.send(Method::GET, &url, &[("x-auth-token", &two), ("cache-control", "no-cache")], "").await
    });
    within(world.simulator.wait_for_requests(2)).await;
    world.simulator.release();
    let replies = all_replies(vec![leading, no_cache]).await;
    assert!(replies.iter().all(|reply| reply.products() > 0 && !reply.cache_params().contains("collapsed")));
}

#[tokio::test]
async fn no_cache_still_gets_stale_responses_and_remembered_denials() {
    let world = World::with(&format!("[cache]\n{WAIT_FOR_UPSTREAM}")).await;
    let before = world.get(LIST).await;
    world.simulator.fail_with(Some(StatusCode::SERVICE_UNAVAILABLE));
    let stale = get_with_cache_control(&world, "no-cache").await;
    assert_eq!((stale.cache_params(), stale.body()), ("fwd=request; fwd-status=503; detail=status", before.body()));
    world.simulator.deny(&world.token);
    world.simulator.fail_with(None);
    get_with_cache_control(&world, "no-cache").await.assert_refused(StatusCode::FORBIDDEN);
    assert_eq!(
        get_with_cache_control(&world, "no-cache").await.cache_params(),
        "hit; ttl=2; detail=denied",
        "a client that repeats no-cache causes no more calls"
    );
}

#[tokio::test]
async fn request_directives_limit_the_age_of_a_hit() {
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
        assert_eq!(get_with_cache_control(&world, control).await.cache_params(), expected, "{control}");
    }
}

#[tokio::test]
async fn only_if_cached_sends_nothing_upstream() {
    let world = World::with("[grants]\ngrant_ttl = \"1h\"").await;
    let ungranted = world.simulator.token(PROJECT);
    let not_cached = get_with_cache_control(&world, "only-if-cached").await;
    not_cached.assert_refused(StatusCode::GATEWAY_TIMEOUT);
    assert!(not_cached.error().1.contains("only-if-cached"));
    world.get(LIST).await;
    assert_eq!(get_with_cache_control(&world, "only-if-cached").await.cache_params(), "hit; ttl=300");
    world.seconds_pass(300);
    assert_eq!(
        get_with_cache_control(&world, "only-if-cached").await.cache_params(),
        "hit; ttl=-1; detail=revalidating"
    );
    get_with_cache_control(&world, "only-if-cached, max-age=60").await.assert_refused(StatusCode::GATEWAY_TIMEOUT);
    get_with_cache_control(&world, "only-if-cached, no-cache").await.assert_refused(StatusCode::GATEWAY_TIMEOUT);
    let headers = [("x-auth-token", ungranted.as_str()), ("cache-control", "only-if-cached")];
    let reply = world.http.send(Method::GET, &world.url(LIST), &headers, "").await;
    assert_eq!(reply.error().1, not_cached.error().1, "a caller without a grant cannot see whether an entry exists");
    world.seconds_pass(600);
    get_with_cache_control(&world, "only-if-cached").await.assert_refused(StatusCode::GATEWAY_TIMEOUT);
    assert_eq!(world.upstream_calls(), 1);
}

#[tokio::test]
async fn only_a_matching_if_none_match_is_answered_304() {
    let world = World::new().await;
    for own_tag in [None, Some("W/\"upstreams\"")] {
        world.purge();
        if let Some(tag) = own_tag {
            world.simulator.add_header(ETAG, HeaderValue::from_static(tag));
        }
        let full = world.get(LIST).await;
        let tag = full.header("etag").to_owned();
        assert!(own_tag.is_none_or(|own| own == tag));
        assert_eq!(world.get(LIST).await.header("etag"), tag);
        let list = format!("\"other\", {tag}");
        for known in [&*tag, &*list, "*"] {
            let not_modified = world.get_with(LIST, &[("if-none-match", known)]).await;
            assert_eq!((not_modified.status(), not_modified.body().len()), (StatusCode::NOT_MODIFIED, 0), "{known}");
            assert_eq!((not_modified.header("etag"), not_modified.cache_params()), (&*tag, "hit; ttl=300"));
            let names: Vec<_> = not_modified.headers().keys().map(HeaderName::as_str).collect();
            for name in ["age", "date", "x-request-id"] {
                assert!(names.contains(&name), "{name} in {names:?}");
            }
            assert!(!names.iter().any(|name| name.starts_with("content-")), "{names:?}");
        }
        for unknown in ["\"other\"", "other", ""] {
            let full = world.get_with(LIST, &[("if-none-match", unknown)]).await;
            assert_eq!((full.status(), full.products() > 0), (StatusCode::OK, true), "{unknown}");
        }
        let dated = world.get_with(LIST, &[("if-modified-since", "Sun, 06 Nov 2094 08:49:37 GMT")]).await;
        assert_eq!(dated.status(), StatusCode::OK);
    }
}

#[tokio::test]
async fn if_none_match_applies_to_fetched_responses_but_not_to_errors() {
    let world = World::new().await;
    let tag = world.get(LIST).await.header("etag").to_owned();
    world.purge();
    let not_modified = world.get_with(LIST, &[("if-none-match", &tag)]).await;
    assert_eq!(
        (not_modified.status(), not_modified.cache_params()),
        (StatusCode::NOT_MODIFIED, "fwd=miss; fwd-status=200; stored; detail=no-entry")
    );
    assert!(
        !world.simulator.requests_seen()[1].headers.contains_key("if-none-match"),
        "the header is not part of the key"
    );
    world.purge();
    world.simulator.fail_with(Some(StatusCode::NOT_FOUND));
    assert_eq!(world.get_with(LIST, &[("if-none-match", "*")]).await.status(), StatusCode::NOT_FOUND);
}
