//! What an attacker may try: to be shown what is kept without being proved, to have others shown what
//! only it is told, to slow them down, or to learn what is there.

use std::collections::BTreeMap;
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderName, HeaderValue, Method, StatusCode};
use workspace_gateway::testing::catalogue::Service;
use workspace_gateway::testing::clock::Clock;
use workspace_gateway::testing::server::Server;
use workspace_gateway::testing::simulator::Simulator;

use crate::support::{PROJECT, Reply, WAITERS, WAITING, World, config, raw, within, without_key};

const LIST: &str = "/v2/PROJECT/products?os_type=Linux";
const OTHER: &str = "/v2/PROJECT/products?os_type=Windows";

/// A project whose name differs from another's in the case of its letters.
const LETTERS: &str = "abcdef00000000000000000000000001";

/// What an attacker sends, and what comes of it.
struct Attack<'a> {
    /// Method and target; `{project}` stands for the project, `{theirs}` for the attacker's own.
    line: &'a str,
    /// The header lines. `{good}`, `{their}` and `{dead}` stand for tokens: of a caller whose answers
    /// are kept, the attacker's own for another project, and one that was revoked. `{go}`, `{od}` and
    /// `{small}` are the good one's two parts, and it in small letters.
    headers: &'a [&'a str],
    /// The status, and how many calls upstream sees.
    ends: (u16, usize),
}

fn attack<'a>(line: &'a str, headers: &'a [&'a str], ends: (u16, usize)) -> Attack<'a> {
    Attack { line, headers, ends }
}

/// Forwarded for proof and refused, or refused by the gateway itself.
const REFUSED: (u16, usize) = (401, 1);
const FORBIDDEN: (u16, usize) = (403, 1);
const TURNED_AWAY: (u16, usize) = (401, 0);
const NOWHERE: (u16, usize) = (404, 0);
const AMBIGUOUS: (u16, usize) = (400, 0);
const NOT_CACHED: (u16, usize) = (504, 0);

const GET: &str = "GET /v2/{project}/products?os_type=Linux";

fn attacks() -> Vec<Attack<'static>> {
    vec![
        // Somebody else's project with a valid token, however the header is written.
        attack(GET, &["X-Auth-Token: {their}"], FORBIDDEN),
        attack(GET, &["x-auth-token: {their}"], FORBIDDEN),
        attack(GET, &["X-AUTH-TOKEN:{their}"], FORBIDDEN),
        attack(GET, &["X-Auth-Token: \t {their} \t "], FORBIDDEN),
        attack("HEAD /v2/{project}/products?os_type=Linux", &["X-Auth-Token: {their}"], FORBIDDEN),
        attack("GET /v2/{project}/products?limit=100&os_type=%4Cinux", &["X-Auth-Token: {their}"], FORBIDDEN),
        attack("GET http://{gateway}/v2/{project}/products?os_type=Linux", &["X-Auth-Token: {their}"], FORBIDDEN),
        // Nobody's token, or nearly somebody's.
        attack(GET, &[], REFUSED),
        attack(GET, &["X-Auth-Token:"], REFUSED),
        attack(GET, &["X-Auth-Token:   "], REFUSED),
        attack(GET, &["X-Auth-Token: {dead}"], REFUSED),
        attack(GET, &["X-Auth-Token: {small}"], REFUSED),
        attack(GET, &["X-Auth-Token: {go}"], REFUSED),
        attack(GET, &["X-Auth-Token: {good}x"], REFUSED),
        attack(GET, &["X-Auth-Token: {go} {od}"], REFUSED),
        attack(GET, &["X-Auth-Token: \"{good}\""], REFUSED),
        attack(GET, &["X-Auth-Token: Bearer {good}"], REFUSED),
        attack(GET, &["X-Auth-Token: {good},{their}"], REFUSED),
        attack(GET, &["X-Auth-Token: {their},{good}"], REFUSED),
        attack(GET, &["X-Auth-Token: {good}\u{e4}"], AMBIGUOUS),
        // Two tokens: which of them counts would be a guess.
        attack(GET, &["X-Auth-Token: {their}", "X-Auth-Token: {their}"], AMBIGUOUS),
        attack(GET, &["X-Auth-Token: {their}", "X-Auth-Token: {good}"], AMBIGUOUS),
        attack(GET, &["X-Auth-Token: {dead}", "X-AUTH-TOKEN: {good}"], AMBIGUOUS),
        attack(GET, &["X-Auth-Token:", "X-Auth-Token: {good}"], AMBIGUOUS),
        // A token that is not where a token is.
        attack(GET, &["X_Auth_Token: {good}"], AMBIGUOUS),
        attack(GET, &["X-Subject-Token: {good}"], REFUSED),
        attack(GET, &["Cookie: X-Auth-Token={good}"], REFUSED),
        attack("GET /v2/{project}/products?os_type=Linux&X-Auth-Token={good}", &[], REFUSED),
        // A token that is for this hop only, and so for nobody.
        attack(GET, &["X-Auth-Token: {good}", "Connection: close, X-Auth-Token"], REFUSED),
        attack(GET, &["X-Auth-Token: {good}", "Connection: x-AUTH-token"], REFUSED),
        attack(GET, &["Connection: X-Auth-Token", "X-Auth-Token: {their}"], REFUSED),
        // A token and a signature: the token counts. A signature alone is not verified here.
        attack(GET, &["X-Auth-Token: {their}", "Authorization: SDK-HMAC-SHA256 Access=A, Signature=0"], FORBIDDEN),
        attack(GET, &["X-Auth-Token: {their}", "Authorization: "], FORBIDDEN),
        attack(GET, &["X-Auth-Token: {their}", "Authorization: Bearer {good}"], FORBIDDEN),
        attack(GET, &["X-Auth-Token: {dead}", "Authorization: SDK-HMAC-SHA256 SignedHeaders=accept"], REFUSED),
        attack(GET, &["Authorization: SDK-HMAC-SHA256 Access=A, SignedHeaders=accept, Signature=0"], REFUSED),
        attack(GET, &["Authorization: Bearer {good}"], REFUSED),
        attack(GET, &["Authorization: Token {good}"], REFUSED),
        attack(GET, &["Authorization: SDK-HMAC-SHA256 Access=A, SignedHeaders=host, Signature=0"], TURNED_AWAY),
        // The project written differently.
        attack("GET /v2/%30{project}/products?os_type=Linux", &["X-Auth-Token: {their}"], FORBIDDEN),
        attack("GET /v2/{theirs}%2F..%2F{project}/products?os_type=Linux", &["X-Auth-Token: {their}"], FORBIDDEN),
        attack("GET /v2/{project}%00/products?os_type=Linux", &["X-Auth-Token: {their}"], FORBIDDEN),
        attack("GET /v2/{project}./products?os_type=Linux", &["X-Auth-Token: {their}"], FORBIDDEN),
        attack("GET /v2/{project};{theirs}/products?os_type=Linux", &["X-Auth-Token: {their}"], FORBIDDEN),
        attack("GET /v2/ABCDEF00000000000000000000000001/products", &["X-Auth-Token: {their}"], FORBIDDEN),
        attack("GET /v2//{project}/products?os_type=Linux", &["X-Auth-Token: {dead}"], REFUSED),
        attack("GET /v2/./{project}/products?os_type=Linux", &["X-Auth-Token: {dead}"], REFUSED),
        attack("GET /v2/{theirs}/../{project}/products?os_type=Linux", &["X-Auth-Token: {dead}"], REFUSED),
        attack("GET /v2/{project}/%70roducts?os_type=Linux", &["X-Auth-Token: {dead}"], REFUSED),
        attack("GET /v2/{project}/products/?os_type=Linux", &["X-Auth-Token: {dead}"], REFUSED),
        attack("GET /V2/{project}/products?os_type=Linux", &["X-Auth-Token: {good}"], NOWHERE),
        attack("GET //v2/{project}/products?os_type=Linux", &["X-Auth-Token: {their}"], FORBIDDEN),
        attack("GET /workspace//v2/{project}/products?os_type=Linux", &["X-Auth-Token: {their}"], FORBIDDEN),
        attack("GET /workspace/workspace/v2/{project}/products", &["X-Auth-Token: {good}"], NOWHERE),
        attack("GET /workspace/../v2/{project}/products", &["X-Auth-Token: {good}"], NOWHERE),
        // The project said differently.
        attack(GET, &["X-Auth-Token: {their}", "X-Project-Id: {theirs}"], FORBIDDEN),
        attack(GET, &["X-Auth-Token: {their}", "X-Project-Id: {project}"], FORBIDDEN),
        attack(GET, &["X-Auth-Token: {their}", "X-Project-Id: {project}", "X-Project-Id: {theirs}"], FORBIDDEN),
        attack(GET, &["X-Auth-Token: {dead}", "Range: bytes=0-9"], REFUSED),
        attack(GET, &["X-Auth-Token: {dead}", "If-None-Match: *"], REFUSED),
        attack(GET, &["X-Auth-Token: {dead}", "Cache-Control: only-if-cached"], NOT_CACHED),
        attack(GET, &["X-Auth-Token: {dead}", "X-HTTP-Method-Override: HEAD"], REFUSED),
        attack("POST /v2/{project}/products?os_type=Linux", &["X-Auth-Token: {dead}"], REFUSED),
    ]
}

#[tokio::test]
async fn whatever_is_tried_is_forwarded_for_proof_or_refused() {
    // Refusals that are not remembered, so that each attack is its own.
    let world = World::with("[grants]\ndenial_ttl = \"1ms\"").await;
    let their = world.simulator.token("theirs");
    let dead = world.simulator.token(PROJECT);
    let of_letters = world.simulator.token(LETTERS);
    let kept = world.get(LIST).await;
    world.get_as(&of_letters, &format!("/v2/{LETTERS}/products")).await;
    // Each has been proved once: one elsewhere, the other here, until it was denied.
    world.get_as(&their, "/v2/theirs/products?os_type=Linux").await;
    world.get_as(&dead, LIST).await;
    world.simulator.revoke(&dead);
    assert_eq!(world.get_as(&dead, OTHER).await.status(), StatusCode::UNAUTHORIZED);
    let length = format!("content-length: {}\r\n", kept.body().len());
    let address = world.server.proxy_address().to_string();
    let (go, od) = world.token.split_at(100);
    let small = world.token.to_lowercase();

    for Attack { line, headers, ends: (status, calls) } in attacks() {
        world.seconds_pass(1);
        world.simulator.forget_requests();
        let fill = |text: &str| {
            let tokens = [("{good}", world.token.as_str()), ("{their}", &their), ("{dead}", &dead)];
            let parts = [("{go}", go), ("{od}", od), ("{small}", &small)];
            let names = [("{project}", PROJECT), ("{theirs}", "theirs"), ("{gateway}", &address)];
            let all = tokens.into_iter().chain(parts).chain(names);
            all.fold(text.to_owned(), |text, (name, value)| text.replace(name, value))
        };
        let mut request = fill(line) + " HTTP/1.1\r\nHost: " + &address + "\r\n";
        for header in headers {
            request += &(fill(header) + "\r\n");
        }
        if !headers.iter().any(|header| header.starts_with("Connection: close")) {
            request += "Connection: close\r\n";
        }
        let answer = raw(world.server.proxy_address(), request + "\r\n").await;
        let told = format!("{line} {headers:?}: {answer}");
        assert!(answer.starts_with(&format!("HTTP/1.1 {status} ")), "{told}");
        assert!(!answer.contains("product_id") && !answer.contains("; hit"), "{told}");
        assert!(!answer.contains(&length), "{told}");
        assert_eq!(world.upstream_calls(), calls, "{told}");
    }
    world.simulator.forget_requests();
    assert!(world.get(LIST).await.is_hit(), "and the good caller has noticed nothing");
    assert_eq!(world.get(LIST).await.body(), kept.body());
    assert_eq!(world.upstream_calls(), 0);
}

/// What is not fully understood is answered by upstream alone, even to one who has a grant.
#[tokio::test]
async fn in_doubt_upstream_is_asked_even_by_one_who_has_a_grant() {
    let world = World::new().await;
    world.get(LIST).await;
    let token = ("x-auth-token", world.token.as_str());
    for (calls, headers) in (2..).zip([
        vec![token, ("x-project-id", "another")],
        vec![token, ("range", "bytes=0-9")],
        vec![token, ("cache-control", "no-store")],
    ]) {
        let reply = world.http.send(Method::GET, &world.url(LIST), &headers, "").await;
        assert!(reply.cache_status().contains("fwd=bypass"), "{headers:?} {reply:?}");
        assert_eq!(world.upstream_calls(), calls);
    }
}

#[tokio::test]
async fn a_connection_that_changes_its_token_changes_its_caller() {
    let world = World::new().await;
    let their = world.simulator.token("theirs");
    world.get(LIST).await;
    let path = LIST.replace("PROJECT", PROJECT);
    let line = |token: &str| format!("GET {path} HTTP/1.1\r\nHost: gateway\r\nX-Auth-Token: {token}\r\n");
    let (good, bad) = (line(&world.token), line(&their));
    let answers =
        raw(world.server.proxy_address(), format!("{good}\r\n{bad}\r\n{good}Connection: close\r\n\r\n")).await;
    let statuses: Vec<_> = answers.split("HTTP/1.1 ").skip(1).map(|answer| &answer[..3]).collect();
    assert_eq!(statuses, ["200", "403", "200"], "{answers}");
    assert_eq!(world.upstream_calls(), 2);
}

#[tokio::test]
async fn no_caller_with_a_grant_sees_or_waits_for_what_a_bad_token_brings_about() {
    let garbage = "x".repeat(100 * 1024);
    for (token, status) in [("x", 401), (&garbage, 400), (&garbage, 414), (&garbage, 431), (&garbage, 494)] {
        let world = World::new().await;
        let [one, two] = world.granted().await;
        let status = StatusCode::from_u16(status).unwrap();
        world.simulator.longest_token(Some((8 * 1024, status)));
        world.simulator.hold_token(token);
        let attacking = world.begin_and_arrive(token, LIST, 1).await;
        // The attacker's call is under way, and nobody waits for it.
        let miss = world.get_as(&one, LIST).await;
        assert!(miss.cache_status().contains("stored"), "{miss:?}");
        assert!(world.get_as(&two, LIST).await.is_hit());
        world.simulator.release_token(token);
        assert_eq!(within(attacking).await.unwrap().status(), status);
        assert!(world.get_as(&one, LIST).await.is_hit());
        assert_eq!(world.upstream_calls(), 2);

        // Nor does the attacker wait for theirs, and what it is told first changes nothing.
        world.simulator.forget_requests();
        world.seconds_pass(2);
        world.simulator.hold_token(&one);
        let leading = world.begin_and_arrive(&one, OTHER, 1).await;
        let following = world.begin_and_wait(&two, OTHER, 1).await;
        let refused = world.get_as(token, OTHER).await;
        assert_eq!((refused.status(), refused.products()), (status, 0));
        assert_eq!(world.metric(WAITERS), 1.0);
        world.simulator.release_token(&one);
        for asking in [leading, following] {
            assert!(within(asking).await.unwrap().products() > 0);
        }
        assert_eq!(world.tokens_seen(), [one.as_str(), token]);
    }
}

#[tokio::test]
async fn a_bad_token_cannot_purge_or_replace_what_is_kept() {
    let world = World::with("[cache]\nttl = \"1m\"").await;
    let kept = world.get(LIST).await;
    for (seconds, status) in [(0, 400), (0, 404), (0, 414), (60, 400), (0, 404), (0, 405), (0, 503)] {
        world.seconds_pass(seconds + 1);
        let status = StatusCode::from_u16(status).unwrap();
        world.simulator.fail_token("x", Some(status));
        assert_eq!(world.get_as("x", LIST).await.status(), status);
        world.simulator.fail_with(Some(StatusCode::SERVICE_UNAVAILABLE));
        assert_eq!(world.get(LIST).await.body(), kept.body(), "fresh or stale, it is there");
        world.simulator.fail_with(None);
    }
}

#[tokio::test]
async fn a_caller_throttled_on_its_own_is_alone_with_it() {
    let world = World::with(&format!("[cache]\nttl = \"1m\"\n{WAITING}")).await;
    let [throttled, other] = world.granted().await;
    let newcomer = world.simulator.token(PROJECT);
    for token in [&throttled, &newcomer] {
        world.simulator.throttle_token(token, true);
    }
    let is_throttled = |reply: &Reply| reply.status() == StatusCode::TOO_MANY_REQUESTS && reply.products() == 0;
    assert!(is_throttled(&world.get_as(&throttled, LIST).await), "there is nothing stale yet");
    assert!(world.get_as(&other, LIST).await.products() > 0);
    assert!(world.get_as(&throttled, LIST).await.is_hit());
    assert!(is_throttled(&world.get_as(&newcomer, LIST).await), "it was never proved");

    // It leads a refresh that fails: that stops nobody else's.
    world.seconds_pass(60);
    world.simulator.change_catalogue();
    let stale = world.get_as(&throttled, LIST).await;
    assert!(stale.cache_status().contains("fwd=stale") && stale.products() > 0, "{stale:?}");
    assert!(is_throttled(&world.get_as(&newcomer, LIST).await));
    let fresh = world.get_as(&other, LIST).await;
    assert_ne!(fresh.body(), stale.body(), "{fresh:?}");
    assert_eq!(world.get_as(&throttled, LIST).await.body(), fresh.body());

    // Its grant has lapsed: its own failed call excuses it for a while.
    world.seconds_pass(300);
    assert_eq!(world.get_as(&throttled, LIST).await.body(), fresh.body());
    assert!(is_throttled(&world.get_as(&newcomer, LIST).await));
    world.seconds_pass(3_600);
    assert!(is_throttled(&world.get_as(&throttled, LIST).await));
    assert!(world.get_as(&other, LIST).await.products() > 0);
}

#[tokio::test]
async fn while_a_newcomer_is_throttled_nobody_waits_for_it() {
    let world = World::new().await;
    let [other] = world.granted().await;
    let newcomer = world.simulator.token(PROJECT);
    world.simulator.throttle_token(&newcomer, true);
    world.simulator.hold_token(&newcomer);
    let asking = world.begin_and_arrive(&newcomer, LIST, 1).await;
    assert!(world.get_as(&other, LIST).await.products() > 0);
    world.simulator.release_token(&newcomer);
    assert_eq!(within(asking).await.unwrap().status(), StatusCode::TOO_MANY_REQUESTS);
    assert!(world.get_as(&other, LIST).await.is_hit());
}

/// What makes an answer unfit for sharing without proving who asked.
type Spoil = fn(&World, bool);

#[tokio::test]
async fn a_caller_without_proof_marks_nothing_for_others() {
    let ways: [Spoil; 3] = [
        |world, on| {
            let error = Bytes::from_static(br#"{"error_code":"WKS.00211401","error_msg":"x"}"#);
            world.simulator.answer_with(on.then_some(error));
        },
        |world, on| world.simulator.answer_with(on.then(|| Bytes::from_static(b"<html>"))),
        // Larger than what is held; every other answer here is smaller.
        |world, on| world.simulator.answer_with(on.then(|| Bytes::from(vec![b' '; 200 * 1024]))),
    ];
    for spoil in ways {
        let world = World::with("[cache]\nmax_body_size = \"100KiB\"").await;
        let [one, two] = world.granted().await;
        let newcomer = world.simulator.token(PROJECT);
        spoil(&world, true);
        let odd = world.get_as(&newcomer, LIST).await;
        assert!(odd.status() == StatusCode::OK && !odd.text().contains("product_id"));
        spoil(&world, false);

        world.simulator.forget_requests();
        world.simulator.hold();
        let leading = world.begin_and_arrive(&one, LIST, 1).await;
        let following = world.begin_and_wait(&two, LIST, 1).await;
        world.simulator.release();
        for asking in [leading, following] {
            assert!(within(asking).await.unwrap().products() > 0);
        }
        assert_eq!(world.upstream_calls(), 1, "they still share");
    }
}

/// What a client can tell of an answer apart from ids and dates.
fn shown(reply: &Reply) -> (StatusCode, usize, BTreeMap<String, String>) {
    let text = |(name, value): (&HeaderName, &HeaderValue)| {
        // The digest of the key tells what is asked, and that differs.
        let shown = match name.as_str() {
            "x-request-id" | "date" => String::new(),
            "cache-status" => without_key(value.to_str().unwrap()).0,
            _ => value.to_str().unwrap().to_owned(),
        };
        (name.to_string(), shown)
    };
    (reply.status(), reply.body().len(), reply.headers().iter().map(text).collect())
}

#[tokio::test]
async fn who_is_not_proved_cannot_tell_what_is_kept() {
    let world = World::with("[cache]\nttl = \"1m\"").await;
    // A question with a stale answer, one with a fresh one, and one that was never asked; all alike.
    let [stale, fresh, unknown] = ["a", "b", "c"].map(|mark| format!("{LIST}&mark={mark}"));
    world.get(&stale).await;
    world.seconds_pass(60);
    world.get(&fresh).await;

    type Spoil = fn(&World, &str);
    let ways: [Spoil; 6] = [
        // Not at all: this one is about to be proved, and not yet.
        |_, _| {},
        |world, token| world.simulator.revoke(token),
        |world, token| world.simulator.deny(token),
        |world, token| world.simulator.throttle_token(token, true),
        |world, token| world.simulator.fail_token(token, Some(StatusCode::SERVICE_UNAVAILABLE)),
        |world, token| world.simulator.fail_token(token, Some(StatusCode::URI_TOO_LONG)),
    ];
    for spoil in ways {
        let mut told = Vec::new();
        for path in [&unknown, &stale, &fresh] {
            world.clock.advance(Duration::from_millis(1));
            let token = world.simulator.token(PROJECT);
            spoil(&world, &token);
            world.simulator.forget_requests();
            let first = world.get_as(&token, path).await;
            assert_eq!(world.upstream_calls(), 1);
            assert!(first.cache_status().starts_with("workspace-gateway; fwd=miss"), "{first:?}");
            told.push(shown(&first));
        }
        assert_eq!(told[0], told[1]);
        assert_eq!(told[0], told[2]);
    }
}

#[tokio::test]
async fn who_names_a_gateway_further_up_is_told_of_the_loop_alone() {
    let simulator = Simulator::start().await.unwrap();
    let (workspace, appstream) = (simulator.url(Service::Workspace), simulator.url(Service::AppStream));
    let second = Server::start(&config(&workspace, &appstream, ""), Clock::System).await.unwrap();
    let second_url = format!("http://{}", second.proxy_address());
    let world = World::before(simulator, &second_url, &second_url, "").await;
    let [attacker, other] = world.granted().await;
    // Each answer tells the way it came.
    let answer = world.get(LIST).await;
    let hops: Vec<_> = answer.headers().get_all("via").iter().map(|via| via.to_str().unwrap()).collect();
    for hop in hops.iter().flat_map(|hops| hops.split(", ")) {
        let forged = [("x-auth-token", attacker.as_str()), ("via", hop)];
        let told = world.http.send(Method::GET, &world.url(OTHER), &forged, "").await;
        assert_eq!(told.status(), StatusCode::LOOP_DETECTED, "{hop}");
    }
    assert_eq!(hops.join(", ").split(", ").count(), 2, "{hops:?}");
    world.simulator.forget_requests();
    for token in [&other, &attacker] {
        assert!(world.get_as(token, OTHER).await.products() > 0);
    }
    assert_eq!(world.upstream_calls(), 1);
}
