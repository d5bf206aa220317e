//! Freshness: a response is fresh, then stale while it is revalidated, then stale if upstream fails or is slow.

use std::time::Duration;

use http::{HeaderName, HeaderValue, Method, StatusCode};
use workspace_gateway::testing::clock::Clock;

use crate::support::{PROJECT, WAITERS, World, all_replies, within};

const LIST: &str = "/v2/PROJECT/products?os_type=Linux";
const OTHER: &str = "/v2/PROJECT/products?os_type=Windows";
const REFRESHES: &str = "workspace_gateway_refreshes_total";
const IN_FLIGHT: &str = "workspace_gateway_upstream_calls{kind=\"product-list\",service=\"workspace\"}";

/// Here grants last longer than entries.
const SETTINGS: &str = "[cache]\nttl = \"1m\"\nstale_while_revalidate = \"1m\"\nstale_if_error = \"10m\"\n\
                        stale_if_slow = \"60s\"\n[grants]\ngrant_ttl = \"1h\"\noutage_grace = \"2h\"";

/// Waits until this many calls have been sent and all are completed.
async fn until_completed(world: &World, calls: usize) {
    within(world.simulator.wait_for_requests(calls)).await;
    world.until_metric(IN_FLIGHT, 0.0).await;
}

fn header(world: &World, name: &'static str, value: &str) {
    world.simulator.add_header(HeaderName::from_static(name), HeaderValue::from_str(value).unwrap());
}

fn fail(world: &World, status: u16) {
    world.simulator.fail_with(Some(StatusCode::from_u16(status).unwrap()));
}

#[tokio::test]
async fn a_stale_response_is_served_at_once_and_revalidated_once() {
    let world = World::with(SETTINGS).await;
    let tokens: [String; 3] = world.granted_tokens().await;
    let before = world.get_as(&tokens[0], LIST).await;
    world.simulator.change_catalogue();
    world.simulator.forget_requests();
    world.seconds_pass(61);
    world.simulator.hold();
    for token in tokens.iter().cycle().take(10) {
        let stale = world.get_as(token, LIST).await;
        assert_eq!((stale.cache_params(), stale.header("age")), ("hit; ttl=-1; detail=revalidating", "61"));
        assert_eq!(stale.body(), before.body());
    }
    within(world.simulator.wait_for_requests(1)).await;
    assert_eq!((world.upstream_calls(), world.metric(REFRESHES)), (1, 1.0), "at most one revalidation for a cache key");
    world.simulator.release();
    until_completed(&world, 1).await;
    let fresh = world.get_as(&tokens[1], LIST).await;
    assert_eq!(fresh.cache_params(), "hit; ttl=60");
    assert_ne!(fresh.body(), before.body());
    world.seconds_pass(3_000);
    assert_eq!(world.upstream_calls(), 1, "an entry without requests is not revalidated");
}

#[tokio::test]
async fn a_request_that_rejects_stale_waits_for_the_revalidation() {
    let world = World::with(SETTINGS).await;
    let [one, two] = world.granted_tokens().await;
    world.get_as(&one, LIST).await;
    world.simulator.change_catalogue();
    world.simulator.forget_requests();
    world.seconds_pass(60);
    world.simulator.hold();
    world.get_as(&one, LIST).await;
    within(world.simulator.wait_for_requests(1)).await;
    let (url, http) = (world.url(LIST), world.http.clone());
    let request = tokio::spawn(async move {
        let headers = [("x-auth-token", two.as_str()), ("cache-control", "max-age=30")];
        http.send(Method::GET, &url, &headers, "").await
    });
    world.until_metric(WAITERS, 1.0).await;
    world.simulator.release();
    assert_eq!(
        within(request).await.unwrap().cache_params(),
        "fwd=stale; fwd-status=200; stored; collapsed; detail=expired"
    );
    assert_eq!(world.upstream_calls(), 1);
}

#[tokio::test]
async fn after_stale_if_slow_a_stale_response_is_served() {
    let world = World::with(&SETTINGS.replace("60s", "20ms")).await;
    let tokens: [String; 3] = world.granted_tokens().await;
    let before = world.get_as(&tokens[0], LIST).await;
    world.simulator.change_catalogue();
    world.simulator.forget_requests();
    world.seconds_pass(120);
    world.simulator.hold();
    let pending = tokens.iter().map(|token| world.begin(token, LIST)).collect();
    let mut replies: Vec<_> = all_replies(pending)
        .await
        .iter()
        .map(|reply| (reply.cache_params().to_owned(), reply.body().clone()))
        .collect();
    replies.sort();
    let stale = |params: &str| (params.to_owned(), before.body().clone());
    let waiter = stale("fwd=stale; collapsed; detail=stale-if-slow");
    assert_eq!(replies, [waiter.clone(), waiter, stale("fwd=stale; detail=stale-if-slow")]);
    assert_eq!(world.upstream_calls(), 1);
    world.simulator.release();
    until_completed(&world, 1).await;
    let fresh = world.get_as(&tokens[2], LIST).await;
    assert!(fresh.is_hit() && fresh.body() != before.body(), "the call has continued");
}

#[tokio::test]
async fn stale_if_slow_does_not_extend_a_lapsed_grant() {
    let world = World::with("[cache]\nstale_if_slow = \"1ms\"").await;
    let before = world.get(LIST).await;
    world.seconds_pass(300);
    world.simulator.hold();
    let short = "answer_timeout = \"200ms\"\nfirst_byte_timeout = \"200ms\"\nconnect_timeout = \"200ms\"";
    world.reload(&format!("[cache]\nstale_if_slow = \"1ms\"\n[upstream]\n{short}")).unwrap();
    // A stale response is served only after the caller's own call has failed.
    let stale = world.get(LIST).await;
    assert_eq!(stale.body(), before.body());
    assert!(["fwd=stale; detail=timeout", "fwd=stale; detail=first-byte"].contains(&stale.cache_params()), "{stale:?}");
    assert_eq!(
        world.get(LIST).await.cache_params(),
        "hit; ttl=-1; detail=backoff",
        "there is no other call during the backoff"
    );
    world.seconds_pass(5);
    world.simulator.release();
    world.reload("").unwrap();
    assert_eq!(world.get(LIST).await.cache_params(), "fwd=miss; fwd-status=200; stored; detail=proved");
}

#[tokio::test]
async fn a_negative_response_replaces_an_older_stored_response() {
    for status in [400, 404, 405] {
        let world = World::with(SETTINGS).await;
        let [one, two] = world.granted_tokens().await;
        let before = world.get_as(&one, LIST).await;
        world.simulator.forget_requests();
        world.seconds_pass(120);
        fail(&world, status);
        let negative = world.get_as(&one, LIST).await;
        assert_eq!(
            (negative.status().as_u16(), negative.cache_params()),
            (status, &*format!("fwd=stale; fwd-status={status}; stored; detail=expired"))
        );
        world.seconds_pass(4);
        let again = world.get_as(&two, LIST).await;
        assert_eq!((again.status().as_u16(), again.cache_params()), (status, "hit; ttl=1; detail=negative"));
        assert_eq!((again.body(), again.header("age")), (negative.body(), "4"));
        assert_eq!(world.upstream_calls(), 1);
        let unproved = world.simulator.token(PROJECT);
        let proof = world.get_as(&unproved, LIST).await;
        assert_eq!((proof.status().as_u16(), world.upstream_calls()), (status, 2));
        // It is upstream's latest response: an older one is served only if upstream fails.
        world.seconds_pass(1);
        assert_eq!(world.get_as(&two, LIST).await.status().as_u16(), status);
        assert_eq!(world.upstream_calls(), 3);
        world.seconds_pass(5);
        fail(&world, 503);
        let stale = world.get_as(&two, LIST).await;
        assert_eq!((stale.cache_params(), stale.body()), ("fwd=stale; fwd-status=503; detail=status", before.body()));
        world.simulator.fail_with(None);
        world.seconds_pass(5);
        assert_eq!(world.get_as(&two, LIST).await.status(), StatusCode::OK);
        assert!(world.get_as(&one, LIST).await.is_hit());
    }
}

#[tokio::test]
async fn cache_control_can_prevent_storing_a_negative_response() {
    for (name, value) in [("cache-control", "no-store"), ("cache-control", "max-age=0"), ("cache-control", "max-age=x")]
    {
        let world = World::with(SETTINGS).await;
        let [one] = world.granted_tokens().await;
        header(&world, name, value);
        fail(&world, 404);
        for calls in 1..=2 {
            assert_eq!(world.get_as(&one, LIST).await.status(), StatusCode::NOT_FOUND);
            assert_eq!(world.upstream_calls(), calls, "{value}");
        }
    }
}

#[tokio::test]
async fn a_negative_response_with_no_store_ends_the_stale_response() {
    let world = World::with(SETTINGS).await;
    let [one, two] = world.granted_tokens().await;
    world.get_as(&one, LIST).await;
    world.simulator.forget_requests();
    world.seconds_pass(60);
    header(&world, "cache-control", "no-store");
    fail(&world, 404);
    assert_eq!(world.get_as(&one, LIST).await.cache_params(), "hit; ttl=-1; detail=revalidating");
    until_completed(&world, 1).await;
    assert_eq!(
        world.get_as(&two, LIST).await.status(),
        StatusCode::NOT_FOUND,
        "the stale response is not served again"
    );
}

#[tokio::test]
async fn after_failures_of_two_callers_the_gateway_backs_off() {
    let world = World::with(SETTINGS).await;
    let [one, two, three] = world.granted_tokens().await;
    world.get_as(&one, LIST).await;
    world.get_as(&one, OTHER).await;
    world.simulator.forget_requests();
    world.seconds_pass(120);
    fail(&world, 500);
    assert_eq!(world.get_as(&one, LIST).await.cache_params(), "fwd=stale; fwd-status=500; detail=status");
    assert_eq!(world.get_as(&one, LIST).await.cache_params(), "hit; ttl=-60; detail=backoff");
    assert_eq!(
        world.get_as(&two, LIST).await.cache_params(),
        "fwd=stale; fwd-status=500; detail=status",
        "one failure may concern its caller only"
    );
    world.seconds_pass(4);
    assert_eq!(world.get_as(&three, LIST).await.cache_params(), "hit; ttl=-64; detail=backoff");
    assert_eq!(world.upstream_calls(), 2);
    // Another cache key has no backoff.
    world.simulator.fail_with(None);
    assert_eq!(world.get_as(&two, OTHER).await.cache_params(), "fwd=stale; fwd-status=200; stored; detail=expired");
    world.seconds_pass(1);
    assert_eq!(world.get_as(&three, LIST).await.cache_params(), "fwd=stale; fwd-status=200; stored; detail=expired");
    assert_eq!(world.metric("workspace_gateway_backoffs_total{cause=\"failure\"}"), 2.0);
}

#[tokio::test]
async fn a_success_ends_the_backoff_of_its_key() {
    let world = World::with(SETTINGS).await;
    let [one, two] = world.granted_tokens().await;
    world.get_as(&one, LIST).await;
    world.seconds_pass(120);
    fail(&world, 500);
    for caller in [&one, &two] {
        assert_eq!(world.get_as(caller, LIST).await.cache_params(), "fwd=stale; fwd-status=500; detail=status");
    }
    assert_eq!(world.get_as(&one, LIST).await.cache_params(), "hit; ttl=-60; detail=backoff");
    world.simulator.fail_with(None);
    header(&world, "cache-control", "max-age=1");
    let headers = [("x-auth-token", two.as_str()), ("cache-control", "no-cache")];
    let reply = world.http.send(Method::GET, &world.url(LIST), &headers, "").await;
    assert_eq!(reply.status(), StatusCode::OK);
    world.seconds_pass(2);
    assert_eq!(world.get_as(&one, LIST).await.cache_params(), "fwd=stale; fwd-status=200; stored; detail=expired");
}

#[tokio::test]
async fn failures_of_one_caller_do_not_stop_revalidation_by_others() {
    let world = World::with(SETTINGS).await;
    let [failing, other] = world.granted_tokens().await;
    world.get_as(&other, LIST).await;
    for _ in 1..=3 {
        world.seconds_pass(120);
        fail(&world, 500);
        assert_eq!(world.get_as(&failing, LIST).await.cache_params(), "fwd=stale; fwd-status=500; detail=status");
        world.simulator.fail_with(None);
        assert_eq!(
            world.get_as(&other, LIST).await.cache_params(),
            "fwd=stale; fwd-status=200; stored; detail=expired"
        );
        assert!(world.get_as(&failing, LIST).await.is_hit(), "the response of another caller is shared");
    }
}

#[tokio::test]
async fn retry_after_of_a_503_sets_the_backoff_up_to_one_minute() {
    let in_20_s = httpdate::fmt_http_date(Clock::System.date() + Duration::from_secs(120 + 20));
    for (value, at_least, at_most) in [("20", 20, 20), (&*in_20_s, 15, 21), ("86400", 60, 60), ("soon", 5, 5)] {
        let world = World::with(SETTINGS).await;
        let [one] = world.granted_tokens().await;
        world.get_as(&one, LIST).await;
        world.get_as(&one, OTHER).await;
        world.seconds_pass(120);
        world.simulator.forget_requests();
        fail(&world, 503);
        header(&world, "retry-after", value);
        assert!(world.get_as(&one, LIST).await.cache_params().contains("fwd-status=503"));
        world.simulator.fail_with(None);
        world.seconds_pass(at_least - 1);
        assert!(world.get_as(&one, LIST).await.cache_params().ends_with("detail=backoff"), "{value}");
        if at_least > 5 {
            let other = world.get_as(&one, OTHER).await;
            assert!(other.cache_params().ends_with("detail=backoff"), "the backoff is that of the service");
        }
        assert_eq!(world.upstream_calls(), 1);
        world.seconds_pass(at_most - at_least + 1);
        assert!(world.get_as(&one, LIST).await.cache_params().contains("fwd-status=200"), "{value}");
    }
}

#[tokio::test]
async fn without_a_stale_response_there_is_no_backoff() {
    let world = World::with(SETTINGS).await;
    let [one] = world.granted_tokens().await;
    header(&world, "retry-after", "30");
    fail(&world, 503);
    for calls in 1..=3 {
        assert_eq!(world.get_as(&one, LIST).await.status(), StatusCode::SERVICE_UNAVAILABLE);
        assert_eq!(world.upstream_calls(), calls);
    }
}

#[tokio::test]
async fn after_429_or_503_to_two_callers_all_revalidation_backs_off() {
    for status in [429, 503] {
        assert_backoff_after_two_callers(status).await;
    }
}

async fn assert_backoff_after_two_callers(status: u16) {
    let world = World::with(SETTINGS).await;
    let [one, two, three] = world.granted_tokens().await;
    let lists: Vec<_> = (0..4).map(|limit| format!("{LIST}&limit={limit}")).collect();
    for list in &lists {
        world.get_as(&one, list).await;
    }
    world.seconds_pass(120);
    world.simulator.forget_requests();
    header(&world, "retry-after", "30");
    for token in [&one, &two] {
        world.simulator.fail_token(token, Some(StatusCode::from_u16(status).unwrap()));
    }
    let refused = format!("fwd-status={status}; detail=status");
    let detail = async |token: &str, list: usize| {
        let reply = world.get_as(token, &lists[list]).await;
        assert_eq!(reply.status(), StatusCode::OK);
        reply.cache_params().split_once("; ").unwrap().1.to_owned()
    };
    assert_eq!(detail(&one, 0).await, refused);
    assert!(detail(&one, 1).await.ends_with("backoff"), "the gateway backs off for this caller");
    assert!(detail(&three, 1).await.starts_with("fwd-status=200"), "and not for other callers");
    assert_eq!(detail(&two, 2).await, refused);
    assert!(detail(&three, 3).await.ends_with("backoff"), "after two callers the gateway backs off for all");
    assert_eq!(world.upstream_calls(), 3);
    world.seconds_pass(30);
    assert!(detail(&three, 3).await.starts_with("fwd-status=200"));
}

#[tokio::test]
async fn a_purge_removes_negative_responses() {
    let world = World::with(SETTINGS).await;
    let [one] = world.granted_tokens().await;
    fail(&world, 404);
    world.get_as(&one, LIST).await;
    world.simulator.fail_with(None);
    world.purge();
    assert_eq!(world.get_as(&one, LIST).await.status(), StatusCode::OK);
}

#[tokio::test]
async fn stale_responses_are_revalidated_with_their_validators() {
    // Different views may have the same modification date, so a date is sent only where entries belong to one caller.
    for (sharing, name, value, condition) in [
        ("project", "etag", "W/\"v1\"", Some("if-none-match")),
        ("caller", "last-modified", "Sun, 06 Nov 1994 08:49:37 GMT", Some("if-modified-since")),
        ("project", "last-modified", "Sun, 06 Nov 1994 08:49:37 GMT", None),
    ] {
        let world = World::with(&SETTINGS.replace("[cache]", &format!("[cache]\nsharing = \"{sharing}\""))).await;
        let [one, two] = world.granted_tokens().await;
        header(&world, name, value);
        let before = world.get_as(&one, LIST).await;
        world.simulator.forget_requests();
        world.seconds_pass(120);
        header(&world, "cache-control", "max-age=7");
        header(&world, "date", &httpdate::fmt_http_date(Clock::System.date() + Duration::from_secs(120)));
        let Some(condition) = condition else {
            world.get_as(&two, LIST).await;
            assert!(!world.simulator.requests_seen()[0].headers.contains_key("if-modified-since"));
            continue;
        };
        fail(&world, 304);
        let caller = if sharing == "caller" { &one } else { &two };
        let valid = world.get_as(caller, LIST).await;
        assert_eq!((valid.status(), valid.body()), (StatusCode::OK, before.body()), "{name}");
        assert!(valid.cache_params().starts_with("fwd=stale; fwd-status=304; stored"), "{valid:?}");
        assert_eq!(world.simulator.requests_seen()[0].headers[condition], value);
        assert_eq!(valid.header("content-type"), before.header("content-type"));
        assert_eq!(world.get_as(&one, LIST).await.cache_params(), "hit; ttl=7", "the freshness is that of the 304");
        // The 304 proved its caller only: the other grant ends earlier.
        world.seconds_pass(3_500);
        assert_eq!(world.metric("workspace_gateway_grants"), 1.0);
    }
}

#[tokio::test]
async fn only_granted_callers_send_conditional_requests() {
    let world = World::new().await;
    header(&world, "etag", "\"v1\"");
    world.get(LIST).await;
    let unproved = world.simulator.token(PROJECT);
    world.get_as(&unproved, LIST).await;
    world.seconds_pass(300);
    world.get(LIST).await;
    let seen = world.simulator.requests_seen();
    assert_eq!(seen.len(), 3);
    assert!(seen.iter().all(|request| !request.headers.contains_key("if-none-match")), "a proof is unconditional");
    // Some clients would take a 304 that was not requested for an empty list.
    fail(&world, 304);
    let newcomer = world.simulator.token(PROJECT);
    world.get_as(&newcomer, LIST).await.assert_refused(StatusCode::BAD_GATEWAY);
}

#[tokio::test]
async fn a_304_with_another_validator_is_a_failure() {
    let world = World::with(SETTINGS).await;
    let [one] = world.granted_tokens().await;
    header(&world, "etag", "\"v1\"");
    let before = world.get_as(&one, LIST).await;
    world.seconds_pass(120);
    world.simulator.remove_headers();
    header(&world, "etag", "\"v2\"");
    fail(&world, 304);
    let stale = world.get_as(&one, LIST).await;
    assert_eq!((stale.cache_params(), stale.body()), ("fwd=stale; detail=broken", before.body()));
    // The next call is unconditional, because upstream does not handle conditions correctly.
    world.seconds_pass(5);
    world.simulator.fail_with(None);
    assert_eq!(world.get_as(&one, LIST).await.cache_params(), "fwd=stale; fwd-status=200; stored; detail=expired");
    let seen = world.simulator.requests_seen();
    assert!(!seen.last().unwrap().headers.contains_key("if-none-match"));
}

#[tokio::test]
async fn a_response_that_varies_on_the_credential_makes_its_scope_private() {
    for vary in ["X-Auth-Token", "accept, authorization"] {
        let world = World::new().await;
        let [one, two] = world.granted_tokens().await;
        header(&world, "vary", vary);
        assert_eq!(world.get_as(&one, LIST).await.cache_params(), "fwd=miss; fwd-status=200; stored; detail=private");
        assert_eq!(world.get_as(&two, LIST).await.cache_params(), "fwd=miss; fwd-status=200; stored; detail=private");
        assert_eq!(world.get_as(&one, LIST).await.cache_params(), "hit; ttl=300");
        assert_eq!(world.metric("workspace_gateway_private_scopes"), 1.0);
    }
}

#[tokio::test]
async fn cache_control_of_upstream_overrides_the_settings() {
    for (control, seconds, expected) in [
        ("max-age=7", 6, "hit; ttl=1"),
        ("max-age=7", 7, "fwd=stale; fwd-status=200; stored; detail=expired"),
        ("max-age=7, stale-while-revalidate=9", 15, "hit; ttl=-8; detail=revalidating"),
        ("max-age=7, stale-while-revalidate=9", 16, "fwd=stale; fwd-status=200; stored; detail=expired"),
        ("s-maxage=3, max-age=7", 3, "fwd=stale; fwd-status=200; stored; detail=expired"),
        ("max-age=x", 1, "fwd=stale; fwd-status=200; stored; detail=expired"),
        ("must-revalidate", 59, "hit; ttl=1"),
        ("must-revalidate", 60, "fwd=stale; fwd-status=200; stored; detail=expired"),
        ("public", 60, "hit; ttl=-1; detail=revalidating"),
    ] {
        let world = World::with(SETTINGS).await;
        header(&world, "cache-control", control);
        // A date in the future, so that the response has no apparent age.
        let date = Clock::System.date() + Duration::from_secs(3600);
        header(&world, "date", &httpdate::fmt_http_date(date));
        world.get(LIST).await;
        world.seconds_pass(seconds);
        assert_eq!(world.get(LIST).await.cache_params(), expected, "{control} after {seconds} s");
    }
}

#[tokio::test]
async fn responses_that_must_be_revalidated_are_never_served_stale() {
    for (control, is_stale_allowed) in [
        ("max-age=7, must-revalidate", false),
        ("s-maxage=7", false),
        ("max-age=7, stale-if-error=0", false),
        ("max-age=7", true),
    ] {
        let world = World::with(SETTINGS).await;
        header(&world, "cache-control", control);
        world.get(LIST).await;
        world.seconds_pass(10);
        fail(&world, 503);
        let expected = if is_stale_allowed { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
        assert_eq!(world.get(LIST).await.status(), expected, "{control}");
    }
}

#[tokio::test]
async fn ttl_jitter_spreads_the_expiry_times() {
    let world = World::with("[cache]\nttl_jitter = \"50%\"").await;
    let mut ttls = Vec::new();
    for limit in 0..40 {
        let path = format!("{LIST}&limit={limit}");
        world.get(&path).await;
        let hit = world.get(&path).await;
        ttls.push(hit.cache_params().strip_prefix("hit; ttl=").unwrap().parse::<u64>().unwrap());
    }
    assert!(ttls.iter().all(|ttl| (150..=300).contains(ttl)), "{ttls:?}");
    // The probability that all 40 values lie within a third of the range is about 10^-17.
    assert!(ttls.iter().max().unwrap() - ttls.iter().min().unwrap() > 50, "{ttls:?}");
}

#[tokio::test]
async fn a_private_negative_response_is_not_shared() {
    for (name, value) in
        [("cache-control", "private"), ("cache-control", "no-store"), ("vary", "X-Auth-Token"), ("vary", "*")]
    {
        let world = World::with(SETTINGS).await;
        let tokens: [String; 3] = world.granted_tokens().await;
        let (leading, waiting) = world.begin_flight(&tokens[..2], LIST).await;
        header(&world, name, value);
        world.simulator.fail_token(&tokens[0], Some(StatusCode::NOT_FOUND));
        world.simulator.release();
        assert_eq!(within(leading).await.unwrap().status(), StatusCode::NOT_FOUND);
        assert!(all_replies(waiting).await.iter().all(|reply| reply.products() > 0), "{value}");
        world.simulator.remove_headers();
        assert!(world.get_as(&tokens[2], LIST).await.products() > 0, "{value}");
    }
}

#[tokio::test]
async fn requests_of_another_gateway_cause_backoff_too() {
    let world = World::with(SETTINGS).await;
    let [one, two] = world.granted_tokens().await;
    world.get_as(&one, LIST).await;
    world.seconds_pass(120);
    world.simulator.forget_requests();
    fail(&world, 503);
    header(&world, "retry-after", "30");
    let via = ("via", "1.1 workspace-gateway-0123abcd");
    for expected in ["fwd=stale; fwd-status=503; detail=status", "hit; ttl=-60; detail=backoff"] {
        let reply = world.http.send(Method::GET, &world.url(LIST), &[("x-auth-token", &one), via], "").await;
        assert_eq!(reply.cache_params(), expected);
    }
    // The response to one caller does not affect others.
    assert!(world.get_as(&two, LIST).await.cache_params().starts_with("fwd=stale; fwd-status=503"));
    assert_eq!(world.upstream_calls(), 2);
}
