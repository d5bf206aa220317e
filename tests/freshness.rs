//! The life of an answer: fresh, stale while it is asked for again, stale if upstream fails or is slow.

use std::time::Duration;

use http::{HeaderName, HeaderValue, Method, StatusCode};
use workspace_gateway::testing::clock::Clock;

use crate::support::{PROJECT, Reply, WAITERS, World, all, within};

const LIST: &str = "/v2/PROJECT/products?os_type=Linux";
const OTHER: &str = "/v2/PROJECT/products?os_type=Windows";
const REFRESHES: &str = "workspace_gateway_refreshes_total";
const UNDER_WAY: &str = "workspace_gateway_upstream_calls{kind=\"product-list\",service=\"workspace\"}";

/// Grants that outlive the answers here.
const SETTINGS: &str = "[cache]\nttl = \"1m\"\nstale_while_revalidate = \"1m\"\nstale_if_error = \"10m\"\n\
                        stale_if_slow = \"60s\"\n[grants]\ngrant_ttl = \"1h\"\noutage_grace = \"2h\"";

/// What this cache says of an answer.
fn told(reply: &Reply) -> &str {
    reply.cache_status().strip_prefix("workspace-gateway; ").unwrap()
}

/// Waits until every call has landed, and everything that it changes has changed.
async fn landed(world: &World, calls: usize) {
    within(world.simulator.arrived(calls)).await;
    world.until_metric(UNDER_WAY, 0.0).await;
}

fn header(world: &World, name: &'static str, value: &str) {
    world.simulator.add_header(HeaderName::from_static(name), HeaderValue::from_str(value).unwrap());
}

fn fail(world: &World, status: u16) {
    world.simulator.fail_with(Some(StatusCode::from_u16(status).unwrap()));
}

#[tokio::test]
async fn a_stale_answer_is_given_at_once_and_asked_for_again_once() {
    let world = World::with(SETTINGS).await;
    let tokens: [String; 3] = world.granted().await;
    let before = world.get_as(&tokens[0], LIST).await;
    world.simulator.change_catalogue();
    world.simulator.forget_requests();
    world.seconds_pass(61);
    world.simulator.hold();
    for token in tokens.iter().cycle().take(10) {
        let stale = world.get_as(token, LIST).await;
        assert_eq!((told(&stale), stale.header("age")), ("hit; ttl=-1; detail=revalidating", "61"));
        assert_eq!(stale.body(), before.body());
    }
    within(world.simulator.arrived(1)).await;
    assert_eq!((world.upstream_calls(), world.metric(REFRESHES)), (1, 1.0), "never two for a question");
    world.simulator.release();
    landed(&world, 1).await;
    let fresh = world.get_as(&tokens[1], LIST).await;
    assert_eq!(told(&fresh), "hit; ttl=60");
    assert_ne!(fresh.body(), before.body());
    world.seconds_pass(3_000);
    assert_eq!(world.upstream_calls(), 1, "what nobody asks for is not asked for again");
}

#[tokio::test]
async fn who_will_not_have_it_stale_boards_the_refresh() {
    let world = World::with(SETTINGS).await;
    let [one, two] = world.granted().await;
    world.get_as(&one, LIST).await;
    world.simulator.change_catalogue();
    world.simulator.forget_requests();
    world.seconds_pass(60);
    world.simulator.hold();
    world.get_as(&one, LIST).await;
    within(world.simulator.arrived(1)).await;
    let (url, http) = (world.url(LIST), world.http.clone());
    let picky = tokio::spawn(async move {
        let headers = [("x-auth-token", two.as_str()), ("cache-control", "max-age=30")];
        http.send(Method::GET, &url, &headers, "").await
    });
    world.until_metric(WAITERS, 1.0).await;
    world.simulator.release();
    assert_eq!(told(&within(picky).await.unwrap()), "fwd=stale; fwd-status=200; stored; collapsed; detail=expired");
    assert_eq!(world.upstream_calls(), 1);
}

#[tokio::test]
async fn nobody_waits_longer_than_patience_with_a_stale_answer_in_hand() {
    let world = World::with(&SETTINGS.replace("60s", "20ms")).await;
    let tokens: [String; 3] = world.granted().await;
    let before = world.get_as(&tokens[0], LIST).await;
    world.simulator.change_catalogue();
    world.simulator.forget_requests();
    world.seconds_pass(120);
    world.simulator.hold();
    let asking = tokens.iter().map(|token| world.begin(token, LIST)).collect();
    let mut words: Vec<_> =
        all(asking).await.iter().map(|reply| (told(reply).to_owned(), reply.body().clone())).collect();
    words.sort();
    let stale = |word: &str| (word.to_owned(), before.body().clone());
    let follower = stale("fwd=stale; collapsed; detail=stale-if-slow");
    assert_eq!(words, [follower.clone(), follower, stale("fwd=stale; detail=stale-if-slow")]);
    assert_eq!(world.upstream_calls(), 1);
    world.simulator.release();
    landed(&world, 1).await;
    let fresh = world.get_as(&tokens[2], LIST).await;
    assert!(fresh.is_hit() && fresh.body() != before.body(), "the call has gone on");
}

#[tokio::test]
async fn patience_excuses_no_lapsed_grant() {
    let world = World::with("[cache]\nstale_if_slow = \"1ms\"").await;
    let before = world.get(LIST).await;
    world.seconds_pass(300);
    world.simulator.hold();
    let short = "answer_timeout = \"200ms\"\nfirst_byte_timeout = \"200ms\"\nconnect_timeout = \"200ms\"";
    world.reload(&format!("[cache]\nstale_if_slow = \"1ms\"\n[upstream]\n{short}")).unwrap();
    // Only when its own call has failed, which takes as long as it takes.
    let stale = world.get(LIST).await;
    assert_eq!(stale.body(), before.body());
    assert!(["fwd=stale; detail=timeout", "fwd=stale; detail=first-byte"].contains(&told(&stale)), "{stale:?}");
    assert_eq!(told(&world.get(LIST).await), "hit; ttl=-1; detail=backoff", "and so soon after not again");
    world.seconds_pass(5);
    world.simulator.release();
    world.reload("").unwrap();
    assert_eq!(told(&world.get(LIST).await), "fwd=miss; fwd-status=200; stored; detail=proved");
}

#[tokio::test]
async fn upstreams_no_takes_the_place_of_waiting_and_of_nothing_kept() {
    for status in [400, 404, 405] {
        let world = World::with(SETTINGS).await;
        let [one, two] = world.granted().await;
        let before = world.get_as(&one, LIST).await;
        world.simulator.forget_requests();
        world.seconds_pass(120);
        fail(&world, status);
        let no = world.get_as(&one, LIST).await;
        assert_eq!(
            (no.status().as_u16(), told(&no)),
            (status, &*format!("fwd=stale; fwd-status={status}; stored; detail=expired"))
        );
        world.seconds_pass(4);
        let again = world.get_as(&two, LIST).await;
        assert_eq!((again.status().as_u16(), told(&again)), (status, "hit; ttl=1; detail=negative"));
        assert_eq!((again.body(), again.header("age")), (no.body(), "4"));
        assert_eq!(world.upstream_calls(), 1);
        let stranger = world.simulator.token(PROJECT);
        let asked = world.get_as(&stranger, LIST).await;
        assert_eq!((asked.status().as_u16(), world.upstream_calls()), (status, 2));
        // It was upstream's latest word: nothing older takes its place unless upstream fails.
        world.seconds_pass(1);
        assert_eq!(world.get_as(&two, LIST).await.status().as_u16(), status);
        assert_eq!(world.upstream_calls(), 3);
        world.seconds_pass(5);
        fail(&world, 503);
        let stale = world.get_as(&two, LIST).await;
        assert_eq!((told(&stale), stale.body()), ("fwd=stale; fwd-status=503; detail=status", before.body()));
        world.simulator.fail_with(None);
        world.seconds_pass(5);
        assert_eq!(world.get_as(&two, LIST).await.status(), StatusCode::OK);
        assert!(world.get_as(&one, LIST).await.is_hit());
    }
}

#[tokio::test]
async fn a_no_of_which_upstream_says_so_is_not_kept() {
    for (name, value) in [("cache-control", "no-store"), ("cache-control", "max-age=0"), ("cache-control", "max-age=x")]
    {
        let world = World::with(SETTINGS).await;
        let [one] = world.granted().await;
        header(&world, name, value);
        fail(&world, 404);
        for calls in 1..=2 {
            assert_eq!(world.get_as(&one, LIST).await.status(), StatusCode::NOT_FOUND);
            assert_eq!(world.upstream_calls(), calls, "{value}");
        }
    }
}

#[tokio::test]
async fn a_no_that_is_not_to_be_kept_is_the_latest_word_all_the_same() {
    let world = World::with(SETTINGS).await;
    let [one, two] = world.granted().await;
    world.get_as(&one, LIST).await;
    world.simulator.forget_requests();
    world.seconds_pass(60);
    header(&world, "cache-control", "no-store");
    fail(&world, 404);
    assert_eq!(told(&world.get_as(&one, LIST).await), "hit; ttl=-1; detail=revalidating");
    landed(&world, 1).await;
    assert_eq!(world.get_as(&two, LIST).await.status(), StatusCode::NOT_FOUND, "and not stale for ever");
}

#[tokio::test]
async fn after_a_failure_upstream_is_left_alone_for_error_ttl() {
    let world = World::with(SETTINGS).await;
    let [one, two, three] = world.granted().await;
    world.get_as(&one, LIST).await;
    world.get_as(&one, OTHER).await;
    world.simulator.forget_requests();
    world.seconds_pass(120);
    fail(&world, 500);
    assert_eq!(told(&world.get_as(&one, LIST).await), "fwd=stale; fwd-status=500; detail=status");
    assert_eq!(told(&world.get_as(&one, LIST).await), "hit; ttl=-60; detail=backoff");
    assert_eq!(told(&world.get_as(&two, LIST).await), "fwd=stale; fwd-status=500; detail=status", "may be one's own");
    world.seconds_pass(4);
    assert_eq!(told(&world.get_as(&three, LIST).await), "hit; ttl=-64; detail=backoff");
    assert_eq!(world.upstream_calls(), 2);
    // Another question may fare better.
    world.simulator.fail_with(None);
    assert_eq!(told(&world.get_as(&two, OTHER).await), "fwd=stale; fwd-status=200; stored; detail=expired");
    world.seconds_pass(1);
    assert_eq!(told(&world.get_as(&three, LIST).await), "fwd=stale; fwd-status=200; stored; detail=expired");
    assert_eq!(world.metric("workspace_gateway_backoffs_total{cause=\"failure\"}"), 2.0);
}

#[tokio::test]
async fn a_success_ends_the_pause_of_a_question() {
    let world = World::with(SETTINGS).await;
    let [one, two] = world.granted().await;
    world.get_as(&one, LIST).await;
    world.seconds_pass(120);
    fail(&world, 500);
    for caller in [&one, &two] {
        assert_eq!(told(&world.get_as(caller, LIST).await), "fwd=stale; fwd-status=500; detail=status");
    }
    assert_eq!(told(&world.get_as(&one, LIST).await), "hit; ttl=-60; detail=backoff");
    world.simulator.fail_with(None);
    header(&world, "cache-control", "max-age=1");
    let headers = [("x-auth-token", two.as_str()), ("cache-control", "no-cache")];
    let asked = world.http.send(Method::GET, &world.url(LIST), &headers, "").await;
    assert_eq!(asked.status(), StatusCode::OK);
    world.seconds_pass(2);
    assert_eq!(told(&world.get_as(&one, LIST).await), "fwd=stale; fwd-status=200; stored; detail=expired");
}

#[tokio::test]
async fn a_caller_whose_calls_all_fail_keeps_nobody_else_from_fresh_answers() {
    let world = World::with(SETTINGS).await;
    let [failing, other] = world.granted().await;
    world.get_as(&other, LIST).await;
    for _ in 1..=3 {
        world.seconds_pass(120);
        fail(&world, 500);
        assert_eq!(told(&world.get_as(&failing, LIST).await), "fwd=stale; fwd-status=500; detail=status");
        world.simulator.fail_with(None);
        assert_eq!(told(&world.get_as(&other, LIST).await), "fwd=stale; fwd-status=200; stored; detail=expired");
        assert!(world.get_as(&failing, LIST).await.is_hit(), "what another has fetched is everybody's");
    }
}

#[tokio::test]
async fn a_503_that_says_when_to_ask_again_is_heeded_within_reason() {
    let in_20_s = httpdate::fmt_http_date(Clock::System.date() + Duration::from_secs(120 + 20));
    for (value, at_least, at_most) in [("20", 20, 20), (&*in_20_s, 15, 21), ("86400", 60, 60), ("soon", 5, 5)] {
        let world = World::with(SETTINGS).await;
        let [one] = world.granted().await;
        world.get_as(&one, LIST).await;
        world.get_as(&one, OTHER).await;
        world.seconds_pass(120);
        world.simulator.forget_requests();
        fail(&world, 503);
        header(&world, "retry-after", value);
        assert!(told(&world.get_as(&one, LIST).await).contains("fwd-status=503"));
        world.simulator.fail_with(None);
        world.seconds_pass(at_least - 1);
        assert!(told(&world.get_as(&one, LIST).await).ends_with("detail=backoff"), "{value}");
        if at_least > 5 {
            let other = world.get_as(&one, OTHER).await;
            assert!(told(&other).ends_with("detail=backoff"), "the service said so, not the key");
        }
        assert_eq!(world.upstream_calls(), 1);
        world.seconds_pass(at_most - at_least + 1);
        assert!(told(&world.get_as(&one, LIST).await).contains("fwd-status=200"), "{value}");
    }
}

#[tokio::test]
async fn with_nothing_stale_a_pause_means_nothing() {
    let world = World::with(SETTINGS).await;
    let [one] = world.granted().await;
    header(&world, "retry-after", "30");
    fail(&world, 503);
    for calls in 1..=3 {
        assert_eq!(world.get_as(&one, LIST).await.status(), StatusCode::SERVICE_UNAVAILABLE);
        assert_eq!(world.upstream_calls(), calls);
    }
}

#[tokio::test]
async fn a_429_or_503_stops_the_refreshes_of_its_caller_and_a_second_everybodys() {
    for status in [429, 503] {
        refreshes_stop_with_a_second(status).await;
    }
}

async fn refreshes_stop_with_a_second(status: u16) {
    let world = World::with(SETTINGS).await;
    let [one, two, three] = world.granted().await;
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
        told(&reply).split_once("; ").unwrap().1.to_owned()
    };
    assert_eq!(detail(&one, 0).await, refused);
    assert!(detail(&one, 1).await.ends_with("backoff"), "its own refreshes pause");
    assert!(detail(&three, 1).await.starts_with("fwd-status=200"), "and nobody else's");
    assert_eq!(detail(&two, 2).await, refused);
    assert!(detail(&three, 3).await.ends_with("backoff"), "two have not both asked too often");
    assert_eq!(world.upstream_calls(), 3);
    world.seconds_pass(30);
    assert!(detail(&three, 3).await.starts_with("fwd-status=200"));
}

#[tokio::test]
async fn a_purge_ends_what_is_remembered_of_failures() {
    let world = World::with(SETTINGS).await;
    let [one] = world.granted().await;
    fail(&world, 404);
    world.get_as(&one, LIST).await;
    world.simulator.fail_with(None);
    world.purge();
    assert_eq!(world.get_as(&one, LIST).await.status(), StatusCode::OK);
}

#[tokio::test]
async fn upstream_is_asked_whether_an_answer_still_holds() {
    // Different things may have been last modified at the same time: a date is for one caller alone.
    for (sharing, name, value, asked) in [
        ("project", "etag", "W/\"v1\"", Some("if-none-match")),
        ("caller", "last-modified", "Sun, 06 Nov 1994 08:49:37 GMT", Some("if-modified-since")),
        ("project", "last-modified", "Sun, 06 Nov 1994 08:49:37 GMT", None),
    ] {
        let world = World::with(&SETTINGS.replace("[cache]", &format!("[cache]\nsharing = \"{sharing}\""))).await;
        let [one, two] = world.granted().await;
        header(&world, name, value);
        let before = world.get_as(&one, LIST).await;
        world.simulator.forget_requests();
        world.seconds_pass(120);
        header(&world, "cache-control", "max-age=7");
        header(&world, "date", &httpdate::fmt_http_date(Clock::System.date() + Duration::from_secs(120)));
        let Some(asked) = asked else {
            world.get_as(&two, LIST).await;
            assert!(!world.simulator.requests_seen()[0].headers.contains_key("if-modified-since"));
            continue;
        };
        fail(&world, 304);
        let asking = if sharing == "caller" { &one } else { &two };
        let valid = world.get_as(asking, LIST).await;
        assert_eq!((valid.status(), valid.body()), (StatusCode::OK, before.body()), "{name}");
        assert!(told(&valid).starts_with("fwd=stale; fwd-status=304; stored"), "{valid:?}");
        assert_eq!(world.simulator.requests_seen()[0].headers[asked], value);
        assert_eq!(valid.header("content-type"), before.header("content-type"));
        assert_eq!(told(&world.get_as(&one, LIST).await), "hit; ttl=7", "a new life, by what the 304 says");
        // It was proof for the one who asked: the other's grant ends before.
        world.seconds_pass(3_500);
        assert_eq!(world.metric("workspace_gateway_grants"), 1.0);
    }
}

#[tokio::test]
async fn only_who_may_see_an_answer_asks_whether_it_holds() {
    let world = World::new().await;
    header(&world, "etag", "\"v1\"");
    world.get(LIST).await;
    let stranger = world.simulator.token(PROJECT);
    world.get_as(&stranger, LIST).await;
    world.seconds_pass(300);
    world.get(LIST).await;
    let seen = world.simulator.requests_seen();
    assert_eq!(seen.len(), 3);
    assert!(seen.iter().all(|request| !request.headers.contains_key("if-none-match")), "proof is unconditional");
    // A 304 that was not asked for would be an empty list to some clients.
    fail(&world, 304);
    let newcomer = world.simulator.token(PROJECT);
    world.get_as(&newcomer, LIST).await.assert_refused(StatusCode::BAD_GATEWAY);
}

#[tokio::test]
async fn a_304_about_another_answer_is_a_failure() {
    let world = World::with(SETTINGS).await;
    let [one] = world.granted().await;
    header(&world, "etag", "\"v1\"");
    let before = world.get_as(&one, LIST).await;
    world.seconds_pass(120);
    world.simulator.remove_headers();
    header(&world, "etag", "\"v2\"");
    fail(&world, 304);
    let stale = world.get_as(&one, LIST).await;
    assert_eq!((told(&stale), stale.body()), ("fwd=stale; detail=broken", before.body()));
    // And not asked for again: upstream doesn't understand the question.
    world.seconds_pass(5);
    world.simulator.fail_with(None);
    assert_eq!(told(&world.get_as(&one, LIST).await), "fwd=stale; fwd-status=200; stored; detail=expired");
    let seen = world.simulator.requests_seen();
    assert!(!seen.last().unwrap().headers.contains_key("if-none-match"));
}

#[tokio::test]
async fn an_answer_that_varies_on_the_credential_makes_its_scope_private() {
    for vary in ["X-Auth-Token", "accept, authorization"] {
        let world = World::new().await;
        let [one, two] = world.granted().await;
        header(&world, "vary", vary);
        assert_eq!(told(&world.get_as(&one, LIST).await), "fwd=miss; fwd-status=200; stored; detail=private");
        assert_eq!(told(&world.get_as(&two, LIST).await), "fwd=miss; fwd-status=200; stored; detail=private");
        assert_eq!(told(&world.get_as(&one, LIST).await), "hit; ttl=300");
        assert_eq!(world.metric("workspace_gateway_private_scopes"), 1.0);
    }
}

#[tokio::test]
async fn what_upstream_says_of_an_answers_life_wins() {
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
        // However long it is on its way.
        let date = Clock::System.date() + Duration::from_secs(3600);
        header(&world, "date", &httpdate::fmt_http_date(date));
        world.get(LIST).await;
        world.seconds_pass(seconds);
        assert_eq!(told(&world.get(LIST).await), expected, "{control} after {seconds} s");
    }
}

#[tokio::test]
async fn what_must_be_validated_is_never_given_stale() {
    for (control, is_given) in [
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
        let expected = if is_given { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
        assert_eq!(world.get(LIST).await.status(), expected, "{control}");
    }
}

#[tokio::test]
async fn lives_end_at_different_times() {
    let world = World::with("[cache]\nttl_jitter = \"50%\"").await;
    let mut left = Vec::new();
    for limit in 0..40 {
        let path = format!("{LIST}&limit={limit}");
        world.get(&path).await;
        let hit = world.get(&path).await;
        left.push(told(&hit).strip_prefix("hit; ttl=").unwrap().parse::<u64>().unwrap());
    }
    assert!(left.iter().all(|left| (150..=300).contains(left)), "{left:?}");
    // That 40 of them lie within a third of the span is about as likely as 10^-17.
    assert!(left.iter().max().unwrap() - left.iter().min().unwrap() > 50, "{left:?}");
}

#[tokio::test]
async fn a_no_that_is_one_callers_own_is_nobody_elses() {
    for (name, value) in
        [("cache-control", "private"), ("cache-control", "no-store"), ("vary", "X-Auth-Token"), ("vary", "*")]
    {
        let world = World::with(SETTINGS).await;
        let tokens: [String; 3] = world.granted().await;
        let (leading, following) = world.board(&tokens[..2], LIST).await;
        header(&world, name, value);
        world.simulator.fail_token(&tokens[0], Some(StatusCode::NOT_FOUND));
        world.simulator.release();
        assert_eq!(within(leading).await.unwrap().status(), StatusCode::NOT_FOUND);
        assert!(all(following).await.iter().all(|reply| reply.products() > 0), "{value}");
        world.simulator.remove_headers();
        assert!(world.get_as(&tokens[2], LIST).await.products() > 0, "{value}");
    }
}

#[tokio::test]
async fn behind_another_gateway_too_upstream_is_left_alone() {
    let world = World::with(SETTINGS).await;
    let [one, two] = world.granted().await;
    world.get_as(&one, LIST).await;
    world.seconds_pass(120);
    world.simulator.forget_requests();
    fail(&world, 503);
    header(&world, "retry-after", "30");
    let via = ("via", "1.1 workspace-gateway-0123abcd");
    for expected in ["fwd=stale; fwd-status=503; detail=status", "hit; ttl=-60; detail=backoff"] {
        let reply = world.http.send(Method::GET, &world.url(LIST), &[("x-auth-token", &one), via], "").await;
        assert_eq!(told(&reply), expected);
    }
    // What may be of that one's own making is nothing to the others.
    assert!(told(&world.get_as(&two, LIST).await).starts_with("fwd=stale; fwd-status=503"));
    assert_eq!(world.upstream_calls(), 2);
}
