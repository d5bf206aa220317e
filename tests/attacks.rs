//! Attacks on the cache: to see stored responses without proof, to make others see the attacker's response, to delay
//! others, or to detect what is stored.

use std::collections::BTreeMap;
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderName, HeaderValue, Method, StatusCode};
use workspace_gateway::testing::catalogue::Service;
use workspace_gateway::testing::clock::Clock;
use workspace_gateway::testing::server::Server;
use workspace_gateway::testing::simulator::Simulator;

use crate::support::{PROJECT, Reply, WAIT_FOR_UPSTREAM, WAITERS, World, config, send_raw, within, without_key};

const LIST: &str = "/v2/PROJECT/products?os_type=Linux";
const OTHER: &str = "/v2/PROJECT/products?os_type=Windows";

/// A project id with letters, for an attack that changes their case.
const LETTERS: &str = "abcdef00000000000000000000000001";

/// What an attacker sends, and the expected result.
struct Attack<'a> {
    /// Method and target. `{project}` is the attacked project, `{theirs}` the attacker's own.
    line: &'a str,
    /// The header lines, with tokens: `{good}` of a caller with a stored response, `{their}` of the attacker for its
    /// own project, `{dead}` that was revoked. `{go}` and `{od}` are the two parts of the good token, `{small}` is the
    /// good token in lowercase.
    headers: &'a [&'a str],
    /// The status, and the number of upstream calls.
    expected: (u16, usize),
}

fn attack<'a>(line: &'a str, headers: &'a [&'a str], expected: (u16, usize)) -> Attack<'a> {
    Attack { line, headers, expected }
}

/// Forwarded and refused by upstream (one call), or rejected by the gateway (no call).
const REFUSED: (u16, usize) = (401, 1);
const FORBIDDEN: (u16, usize) = (403, 1);
const REJECTED: (u16, usize) = (401, 0);
const NOT_FOUND: (u16, usize) = (404, 0);
const AMBIGUOUS: (u16, usize) = (400, 0);
const NOT_CACHED: (u16, usize) = (504, 0);

const GET: &str = "GET /v2/{project}/products?os_type=Linux";

fn attacks() -> Vec<Attack<'static>> {
    vec![
        // A valid token for another project, in several spellings of the field.
        attack(GET, &["X-Auth-Token: {their}"], FORBIDDEN),
        attack(GET, &["x-auth-token: {their}"], FORBIDDEN),
        attack(GET, &["X-AUTH-TOKEN:{their}"], FORBIDDEN),
        attack(GET, &["X-Auth-Token: \t {their} \t "], FORBIDDEN),
        attack("HEAD /v2/{project}/products?os_type=Linux", &["X-Auth-Token: {their}"], FORBIDDEN),
        attack("GET /v2/{project}/products?limit=100&os_type=%4Cinux", &["X-Auth-Token: {their}"], FORBIDDEN),
        attack("GET http://{gateway}/v2/{project}/products?os_type=Linux", &["X-Auth-Token: {their}"], FORBIDDEN),
        // Missing, invalid and almost valid tokens.
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
        // Two tokens are ambiguous.
        attack(GET, &["X-Auth-Token: {their}", "X-Auth-Token: {their}"], AMBIGUOUS),
        attack(GET, &["X-Auth-Token: {their}", "X-Auth-Token: {good}"], AMBIGUOUS),
        attack(GET, &["X-Auth-Token: {dead}", "X-AUTH-TOKEN: {good}"], AMBIGUOUS),
        attack(GET, &["X-Auth-Token:", "X-Auth-Token: {good}"], AMBIGUOUS),
        // A token in the wrong place.
        attack(GET, &["X_Auth_Token: {good}"], AMBIGUOUS),
        attack(GET, &["X-Subject-Token: {good}"], REFUSED),
        attack(GET, &["Cookie: X-Auth-Token={good}"], REFUSED),
        attack("GET /v2/{project}/products?os_type=Linux&X-Auth-Token={good}", &[], REFUSED),
        // A token that Connection names is for this hop only and is removed.
        attack(GET, &["X-Auth-Token: {good}", "Connection: close, X-Auth-Token"], REFUSED),
        attack(GET, &["X-Auth-Token: {good}", "Connection: x-AUTH-token"], REFUSED),
        attack(GET, &["Connection: X-Auth-Token", "X-Auth-Token: {their}"], REFUSED),
        // With a token and a signature, the token counts. A signature alone cannot be verified without its key.
        attack(GET, &["X-Auth-Token: {their}", "Authorization: SDK-HMAC-SHA256 Access=A, Signature=0"], FORBIDDEN),
        attack(GET, &["X-Auth-Token: {their}", "Authorization: "], FORBIDDEN),
        attack(GET, &["X-Auth-Token: {their}", "Authorization: Bearer {good}"], FORBIDDEN),
        attack(GET, &["X-Auth-Token: {dead}", "Authorization: SDK-HMAC-SHA256 SignedHeaders=accept"], REFUSED),
        attack(GET, &["Authorization: SDK-HMAC-SHA256 Access=A, SignedHeaders=accept, Signature=0"], REFUSED),
        attack(GET, &["Authorization: Bearer {good}"], REFUSED),
        attack(GET, &["Authorization: Token {good}"], REFUSED),
        attack(GET, &["Authorization: SDK-HMAC-SHA256 Access=A, SignedHeaders=host, Signature=0"], REJECTED),
        // Other spellings of the project in the path.
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
        attack("GET /V2/{project}/products?os_type=Linux", &["X-Auth-Token: {good}"], NOT_FOUND),
        attack("GET //v2/{project}/products?os_type=Linux", &["X-Auth-Token: {their}"], FORBIDDEN),
        attack("GET /workspace//v2/{project}/products?os_type=Linux", &["X-Auth-Token: {their}"], FORBIDDEN),
        attack("GET /workspace/workspace/v2/{project}/products", &["X-Auth-Token: {good}"], NOT_FOUND),
        attack("GET /workspace/../v2/{project}/products", &["X-Auth-Token: {good}"], NOT_FOUND),
        // Other projects in header fields, and other unusual requests.
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
async fn every_attack_is_forwarded_or_rejected() {
    // Denials are not remembered, so that the attacks are independent.
    let world = World::with("[grants]\ndenial_ttl = \"1ms\"").await;
    let their = world.simulator.token("theirs");
    let dead = world.simulator.token(PROJECT);
    let of_letters = world.simulator.token(LETTERS);
    let stored = world.get(LIST).await;
    world.get_as(&of_letters, &format!("/v2/{LETTERS}/products")).await;
    // Both tokens have been proved: one in its own project, the other in this project before it was revoked.
    world.get_as(&their, "/v2/theirs/products?os_type=Linux").await;
    world.get_as(&dead, LIST).await;
    world.simulator.revoke(&dead);
    assert_eq!(world.get_as(&dead, OTHER).await.status(), StatusCode::UNAUTHORIZED);
    let length = format!("content-length: {}\r\n", stored.body().len());
    let address = world.server.proxy_address().to_string();
    let (go, od) = world.token.split_at(100);
    let small = world.token.to_lowercase();

    for Attack { line, headers, expected: (status, calls) } in attacks() {
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
        let response = send_raw(world.server.proxy_address(), request + "\r\n").await;
        let context = format!("{line} {headers:?}: {response}");
        assert!(response.starts_with(&format!("HTTP/1.1 {status} ")), "{context}");
        assert!(!response.contains("product_id") && !response.contains("; hit"), "{context}");
        assert!(!response.contains(&length), "{context}");
        assert_eq!(world.upstream_calls(), calls, "{context}");
    }
    world.simulator.forget_requests();
    assert!(world.get(LIST).await.is_hit(), "the good caller is not affected");
    assert_eq!(world.get(LIST).await.body(), stored.body());
    assert_eq!(world.upstream_calls(), 0);
}

#[tokio::test]
async fn doubtful_requests_of_granted_callers_are_relayed() {
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
    let responses =
        send_raw(world.server.proxy_address(), format!("{good}\r\n{bad}\r\n{good}Connection: close\r\n\r\n")).await;
    let statuses: Vec<_> = responses.split("HTTP/1.1 ").skip(1).map(|response| &response[..3]).collect();
    assert_eq!(statuses, ["200", "403", "200"], "{responses}");
    assert_eq!(world.upstream_calls(), 2);
}

#[tokio::test]
async fn granted_callers_do_not_see_or_await_responses_to_invalid_tokens() {
    let garbage = "x".repeat(100 * 1024);
    for (token, status) in [("x", 401), (&garbage, 400), (&garbage, 414), (&garbage, 431), (&garbage, 494)] {
        let world = World::new().await;
        let [one, two] = world.granted_tokens().await;
        let status = StatusCode::from_u16(status).unwrap();
        world.simulator.limit_token_length(Some((8 * 1024, status)));
        world.simulator.hold_token(token);
        let attacking = world.begin_and_reach_upstream(token, LIST, 1).await;
        // The attacker's call is in flight, and nobody waits for it.
        let miss = world.get_as(&one, LIST).await;
        assert!(miss.cache_status().contains("stored"), "{miss:?}");
        assert!(world.get_as(&two, LIST).await.is_hit());
        world.simulator.release_token(token);
        assert_eq!(within(attacking).await.unwrap().status(), status);
        assert!(world.get_as(&one, LIST).await.is_hit());
        assert_eq!(world.upstream_calls(), 2);

        // The attacker does not wait for the others' call, and its earlier response changes nothing.
        world.simulator.forget_requests();
        world.seconds_pass(2);
        world.simulator.hold_token(&one);
        let leading = world.begin_and_reach_upstream(&one, OTHER, 1).await;
        let waiting = world.begin_and_wait(&two, OTHER, 1).await;
        let refused = world.get_as(token, OTHER).await;
        assert_eq!((refused.status(), refused.products()), (status, 0));
        assert_eq!(world.metric(WAITERS), 1.0);
        world.simulator.release_token(&one);
        for pending in [leading, waiting] {
            assert!(within(pending).await.unwrap().products() > 0);
        }
        assert_eq!(world.tokens_seen(), [one.as_str(), token]);
    }
}

#[tokio::test]
async fn an_invalid_token_cannot_remove_or_replace_a_stored_response() {
    let world = World::with("[cache]\nttl = \"1m\"").await;
    let stored = world.get(LIST).await;
    for (seconds, status) in [(0, 400), (0, 404), (0, 414), (60, 400), (0, 404), (0, 405), (0, 503)] {
        world.seconds_pass(seconds + 1);
        let status = StatusCode::from_u16(status).unwrap();
        world.simulator.fail_token("x", Some(status));
        assert_eq!(world.get_as("x", LIST).await.status(), status);
        world.simulator.fail_with(Some(StatusCode::SERVICE_UNAVAILABLE));
        assert_eq!(world.get(LIST).await.body(), stored.body(), "it is served fresh or stale");
        world.simulator.fail_with(None);
    }
}

#[tokio::test]
async fn throttling_of_one_caller_does_not_affect_others() {
    let world = World::with(&format!("[cache]\nttl = \"1m\"\n{WAIT_FOR_UPSTREAM}")).await;
    let [throttled, other] = world.granted_tokens().await;
    let newcomer = world.simulator.token(PROJECT);
    for token in [&throttled, &newcomer] {
        world.simulator.throttle_token(token, true);
    }
    let is_throttled = |reply: &Reply| reply.status() == StatusCode::TOO_MANY_REQUESTS && reply.products() == 0;
    assert!(is_throttled(&world.get_as(&throttled, LIST).await), "no response is stored yet");
    assert!(world.get_as(&other, LIST).await.products() > 0);
    assert!(world.get_as(&throttled, LIST).await.is_hit());
    assert!(is_throttled(&world.get_as(&newcomer, LIST).await), "it has no proof");

    // Its failed revalidation does not stop that of other callers.
    world.seconds_pass(60);
    world.simulator.change_catalogue();
    let stale = world.get_as(&throttled, LIST).await;
    assert!(stale.cache_status().contains("fwd=stale") && stale.products() > 0, "{stale:?}");
    assert!(is_throttled(&world.get_as(&newcomer, LIST).await));
    let fresh = world.get_as(&other, LIST).await;
    assert_ne!(fresh.body(), stale.body(), "{fresh:?}");
    assert_eq!(world.get_as(&throttled, LIST).await.body(), fresh.body());

    // Its grant has lapsed, and its own failed call extends the grant for a while.
    world.seconds_pass(300);
    assert_eq!(world.get_as(&throttled, LIST).await.body(), fresh.body());
    assert!(is_throttled(&world.get_as(&newcomer, LIST).await));
    world.seconds_pass(3_600);
    assert!(is_throttled(&world.get_as(&throttled, LIST).await));
    assert!(world.get_as(&other, LIST).await.products() > 0);
}

#[tokio::test]
async fn nobody_waits_for_an_unproved_caller_that_is_throttled() {
    let world = World::new().await;
    let [other] = world.granted_tokens().await;
    let newcomer = world.simulator.token(PROJECT);
    world.simulator.throttle_token(&newcomer, true);
    world.simulator.hold_token(&newcomer);
    let pending = world.begin_and_reach_upstream(&newcomer, LIST, 1).await;
    assert!(world.get_as(&other, LIST).await.products() > 0);
    world.simulator.release_token(&newcomer);
    assert_eq!(within(pending).await.unwrap().status(), StatusCode::TOO_MANY_REQUESTS);
    assert!(world.get_as(&other, LIST).await.is_hit());
}

/// Makes upstream send a response that is no proof and cannot be stored.
type Spoil = fn(&World, bool);

#[tokio::test]
async fn responses_to_unproved_callers_do_not_prevent_sharing() {
    let causes: [Spoil; 3] = [
        |world, on| {
            let error = Bytes::from_static(br#"{"error_code":"WKS.00211401","error_msg":"x"}"#);
            world.simulator.set_list_body(on.then_some(error));
        },
        |world, on| world.simulator.set_list_body(on.then(|| Bytes::from_static(b"<html>"))),
        // Larger than max_body_size. All other responses here are smaller.
        |world, on| world.simulator.set_list_body(on.then(|| Bytes::from(vec![b' '; 200 * 1024]))),
    ];
    for spoil in causes {
        let world = World::with("[cache]\nmax_body_size = \"100KiB\"").await;
        let [one, two] = world.granted_tokens().await;
        let newcomer = world.simulator.token(PROJECT);
        spoil(&world, true);
        let spoiled = world.get_as(&newcomer, LIST).await;
        assert!(spoiled.status() == StatusCode::OK && !spoiled.text().contains("product_id"));
        spoil(&world, false);

        world.simulator.forget_requests();
        world.simulator.hold();
        let leading = world.begin_and_reach_upstream(&one, LIST, 1).await;
        let waiting = world.begin_and_wait(&two, LIST, 1).await;
        world.simulator.release();
        for pending in [leading, waiting] {
            assert!(within(pending).await.unwrap().products() > 0);
        }
        assert_eq!(world.upstream_calls(), 1, "granted callers still share a call");
    }
}

/// What a client can see of a response, without ids and dates.
fn visible(reply: &Reply) -> (StatusCode, usize, BTreeMap<String, String>) {
    let text = |(name, value): (&HeaderName, &HeaderValue)| {
        // The digest of the cache key differs by request.
        let value = match name.as_str() {
            "x-request-id" | "date" => String::new(),
            "cache-status" => without_key(value.to_str().unwrap()).0,
            _ => value.to_str().unwrap().to_owned(),
        };
        (name.to_string(), value)
    };
    (reply.status(), reply.body().len(), reply.headers().iter().map(text).collect())
}

#[tokio::test]
async fn an_unproved_caller_cannot_detect_what_is_stored() {
    let world = World::with("[cache]\nttl = \"1m\"").await;
    // Three similar requests: the first has a stale response, the second a fresh one, the third none.
    let [stale, fresh, unknown] = ["a", "b", "c"].map(|mark| format!("{LIST}&mark={mark}"));
    world.get(&stale).await;
    world.seconds_pass(60);
    world.get(&fresh).await;

    type Spoil = fn(&World, &str);
    let causes: [Spoil; 6] = [
        // Upstream answers successfully.
        |_, _| {},
        |world, token| world.simulator.revoke(token),
        |world, token| world.simulator.deny(token),
        |world, token| world.simulator.throttle_token(token, true),
        |world, token| world.simulator.fail_token(token, Some(StatusCode::SERVICE_UNAVAILABLE)),
        |world, token| world.simulator.fail_token(token, Some(StatusCode::URI_TOO_LONG)),
    ];
    for spoil in causes {
        let mut seen = Vec::new();
        for path in [&unknown, &stale, &fresh] {
            world.clock.advance(Duration::from_millis(1));
            let token = world.simulator.token(PROJECT);
            spoil(&world, &token);
            world.simulator.forget_requests();
            let first = world.get_as(&token, path).await;
            assert_eq!(world.upstream_calls(), 1);
            assert!(first.cache_status().starts_with("workspace-gateway; fwd=miss"), "{first:?}");
            seen.push(visible(&first));
        }
        assert_eq!(seen[0], seen[1]);
        assert_eq!(seen[0], seen[2]);
    }
}

#[tokio::test]
async fn a_forged_via_causes_a_508_for_its_sender_only() {
    let simulator = Simulator::start().await.unwrap();
    let (workspace, appstream) = (simulator.url(Service::Workspace), simulator.url(Service::AppStream));
    let second = Server::start(&config(&workspace, &appstream, ""), Clock::System).await.unwrap();
    let second_url = format!("http://{}", second.proxy_address());
    let world = World::with_upstreams(simulator, &second_url, &second_url, "").await;
    let [attacker, other] = world.granted_tokens().await;
    // Via of each response names the gateways that it passed.
    let response = world.get(LIST).await;
    let hops: Vec<_> = response.headers().get_all("via").iter().map(|via| via.to_str().unwrap()).collect();
    for hop in hops.iter().flat_map(|hops| hops.split(", ")) {
        let forged = [("x-auth-token", attacker.as_str()), ("via", hop)];
        let reply = world.http.send(Method::GET, &world.url(OTHER), &forged, "").await;
        assert_eq!(reply.status(), StatusCode::LOOP_DETECTED, "{hop}");
    }
    assert_eq!(hops.join(", ").split(", ").count(), 2, "{hops:?}");
    world.simulator.forget_requests();
    for token in [&other, &attacker] {
        assert!(world.get_as(token, OTHER).await.products() > 0);
    }
    assert_eq!(world.upstream_calls(), 1);
}
