//! For random requests, `explain` and `serve` decide alike: they refuse, relay and look up the same requests for the
//! same reason.

use std::cell::RefCell;
use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::time::Duration;

use http::{Method, StatusCode};
use proptest::prelude::*;
use proptest::sample::{select, subsequence};
use proptest::test_runner::{Config, TestRunner};
use serde_json::{Value, json};
use tokio::runtime::{Handle, Runtime};

use crate::support::raw_client::{RawClient, RawResponse};
use crate::support::{PROJECT, World};

const LIST: &str = "/v2/PROJECT/products";

/// What comes before the path: nothing, a path prefix, or a scheme and an authority.
const BEFORE_PATH: [&str; 8] =
    ["", "", "", "/workspace", "/", "http://GATEWAY", "http://localhost:PORT", "http://evil.example"];

const PATHS: [&str; 14] = [
    "/v2/PROJECT/products",
    "/v2/PROJECT/products/sharer",
    "/v1/PROJECT/product",
    "/v2/PROJECT/products",
    "/v2/PROJECT/desktops",
    "/v1/PROJECT/x",
    "/v2/pro.ject/products",
    "/v2/%70/products",
    "/v2//products",
    "/v2/PROJECT/../q/products",
    "/v9/x",
    "/nowhere",
    "/",
    "/v2/PROJECT/products\u{e9}",
];

const QUERIES: [&str; 10] =
    ["", "", "?os_type=Linux", "?os_type=Linux&limit=10", "?a=1&a=2", "?a+b=1", "?a;b", "?%zz=1", "?a", "?a=%01"];

/// A request has some of these header fields, in this order.
const FIELDS: [&str; 22] = [
    "X-Auth-Token: TOKEN",
    "X-Auth-Token: TOKEN",
    "X_Auth_Token: TOKEN",
    "Authorization: Bearer x",
    "Authorization: SDK-HMAC-SHA256 Access=A, SignedHeaders=x-sdk-date, Signature=0",
    "Authorization: SDK-HMAC-SHA256 Access=A, SignedHeaders=host;x-sdk-date, Signature=0",
    "X-Sdk-Date: 20261122T120000Z",
    "X-Language: en-us",
    "X-Language: zh-cn",
    "X-Project-Id: PROJECT",
    "X-Project-Id: another",
    "Cache-Control: no-store",
    "Cache-Control: only-if-cached",
    "Cache-Control: no-cache",
    "Cache-Control: max-age=odd",
    "Range: bytes=0-1",
    "Content-Length: 0",
    "Via: 1.1 fred",
    "Connection: x-sdk-date",
    "Keep-Alive: timeout=5",
    "Max-Forwards: 0",
    "Expect: nothing",
];

#[derive(Clone, Debug)]
struct GivenRequest {
    target: String,
    fields: Vec<&'static str>,
}

fn any_request() -> impl Strategy<Value = GivenRequest> {
    let target = (select(&BEFORE_PATH[..]), select(&PATHS[..]), select(&QUERIES[..]));
    // Most requests have a token, because only few others are looked up.
    let has_token = prop::bool::weighted(0.6);
    (target, has_token, subsequence(&FIELDS[1..], 0..4)).prop_map(|((before, path, query), has_token, mut fields)| {
        if has_token {
            fields.insert(0, FIELDS[0]);
        }
        GivenRequest { target: format!("{before}{path}{query}"), fields }
    })
}

/// Has a request explained and then sends it. Returns the explanation and the response.
async fn both(world: &World, given: &GivenRequest) -> (Value, RawResponse) {
    let gateway: SocketAddr = world.server.proxy_address();
    let fill_in = |text: &str| {
        text.replace("GATEWAY", &gateway.to_string())
            .replace("PORT", &gateway.port().to_string())
            .replace("PROJECT", PROJECT)
            .replace("TOKEN", &world.token)
    };
    let target = fill_in(&given.target);
    let fields: Vec<String> =
        [format!("Host: {gateway}")].into_iter().chain(given.fields.iter().map(|field| fill_in(field))).collect();

    let mut query = form_urlencoded::Serializer::new(String::new());
    query.append_pair("url", &target);
    query.extend_pairs(fields.iter().map(|field| ("header", field)));
    let explained = world.http.get(&world.admin_url(&format!("/explain?{}", query.finish()))).await;
    assert_eq!(explained.status(), StatusCode::OK, "{given:?}: {explained:?}");

    let head = format!("GET {target} HTTP/1.1\r\n{}\r\n\r\n", fields.join("\r\n"));
    let response = RawClient::connect(world).await.exchange(head).await;
    (explained.json(), response)
}

/// Describes how the response contradicts the explanation; `None` if it does not.
fn contradiction(explained: &Value, response: &RawResponse, relayed: usize) -> Option<String> {
    let verdict = &explained["verdict"];
    let reason = verdict["reason"].as_str().unwrap_or_default();
    let fields = response.all("cache-status");
    let cache_status = fields.first().copied().unwrap_or_default();
    let is_bypass = cache_status.contains("fwd=bypass");
    let is_consistent = match verdict["action"].as_str()? {
        "refused" => {
            let status = verdict["status"].as_u64().unwrap_or_default();
            let description = verdict["sentence"].as_str().unwrap_or_default().rsplit(": ").next().unwrap_or_default();
            u64::from(response.status()) == status
                && relayed == 0
                && (response.body.contains(description) || status == 401 || reason == "only-if-cached")
        }
        "relayed" if reason == "pass-through" => cache_status.is_empty() && relayed == 1,
        "relayed" => is_bypass && cache_status.contains(&format!("detail={reason}")) && relayed == 1,
        "from-memory" => verdict["result"] == "hit" && cache_status.contains("; hit; ") && relayed == 0,
        "upstream" => cache_status.contains("; fwd=") && !is_bypass && relayed == 1,
        _ => false,
    };
    (!is_consistent).then(|| format!("{verdict} but {response:?} after {relayed} calls"))
}

#[test]
fn explain_and_serve_decide_alike() {
    let runtime = Runtime::new().unwrap();
    let world = runtime.block_on(World::new());
    let decide = |given: &GivenRequest, handle: &Handle| {
        let before = world.upstream_calls();
        let (explained, response) = handle.block_on(both(&world, given));
        (contradiction(&explained, &response, world.upstream_calls() - before), explained)
    };
    let seen = RefCell::new(BTreeSet::new());
    let check = |given: GivenRequest| {
        let (contradiction, explained) = decide(&given, runtime.handle());
        let verdict = &explained["verdict"];
        let kind = format!("{} {}", verdict["action"].as_str().unwrap(), verdict["reason"].as_str().unwrap_or("-"));
        seen.borrow_mut().insert(kind.clone());
        prop_assert_eq!(contradiction, None);
        Ok(kind)
    };
    // These kinds are there in each run. The others are left to chance.
    let token = FIELDS[0];
    for (target, fields, expected) in [
        ("/v2/PROJECT/products?limit=7", vec![token], "upstream no-grant"),
        ("/v2/PROJECT/products?limit=8", vec![token], "upstream no-entry"),
        ("/v2/PROJECT/products?limit=7", vec![token], "from-memory -"),
        ("/v2/PROJECT/products?limit=7", vec![token, "Cache-Control: no-cache"], "upstream client-no-cache"),
        ("http://evil.example/v2/PROJECT/products", vec![token], "refused foreign-host"),
        ("/v2/PROJECT/desktops", vec![token], "relayed pass-through"),
    ] {
        let kind = check(GivenRequest { target: target.to_owned(), fields });
        assert_eq!(kind.unwrap(), expected, "{target}");
    }
    let config = Config { cases: 500, failure_persistence: None, ..Config::default() };
    let result = TestRunner::new(config).run(&any_request(), |given| check(given).map(drop));
    result.unwrap_or_else(|error| panic!("{error}"));
    let seen = seen.into_inner();
    assert!(seen.len() >= 15, "too few kinds of decisions occurred: {seen:?}");
}

#[tokio::test]
async fn a_foreign_host_and_only_if_cached_are_explained_as_they_are_answered() {
    let world = World::new().await;
    let foreign = GivenRequest { target: "http://evil.example/v2/abc/products".to_owned(), fields: vec![FIELDS[0]] };
    let (explained, response) = both(&world, &foreign).await;
    assert_eq!((&explained["verdict"]["reason"], response.status()), (&"foreign-host".into(), 400));
    let cached = GivenRequest {
        target: "/v2/PROJECT/products".to_owned(),
        fields: vec!["X-Auth-Token: TOKEN", "Cache-Control: only-if-cached"],
    };
    let (explained, response) = both(&world, &cached).await;
    let expected = json!({
        "action": "refused", "status": 504, "reason": "only-if-cached",
        "sentence": "refused with 504: the request has only-if-cached, and there is nothing in memory for this caller",
    });
    assert_eq!((&explained["verdict"], response.status(), world.upstream_calls()), (&expected, 504, 0));
}

/// The verdict on a request for the list, asked for as a form.
async fn verdict_for(world: &World, token: &str) -> Value {
    let header = format!("X-Auth-Token: {token}");
    let pairs = [("url", LIST.replace("PROJECT", PROJECT)), ("header", header)];
    let form = form_urlencoded::Serializer::new(String::new()).extend_pairs(pairs).finish();
    let explained = world.http.send(Method::POST, &world.admin_url("/explain"), &[], form).await;
    assert!(!explained.text().contains(token), "{}", explained.text());
    explained.json()["verdict"].clone()
}

#[tokio::test]
async fn the_verdict_is_what_the_caller_gets_now() {
    let world =
        World::with("[cache]\nttl = \"5m\"\nstale_while_revalidate = \"1m\"\n[grants]\ngrant_ttl = \"20m\"").await;
    let (mine, other) = (world.token.clone(), world.simulator.token(PROJECT));
    // Asks, and then sends the request.
    let check = async |token: &str, action: &str, why: &str, sentence: &str, result: &str| {
        let verdict = verdict_for(&world, token).await;
        let shown = verdict["reason"].as_str().or(verdict["result"].as_str()).unwrap_or_default().to_owned();
        assert_eq!((verdict["action"].as_str(), shown.as_str()), (Some(action), why), "{verdict}");
        assert_eq!(verdict["sentence"], sentence);
        let reply = world.get_as(token, LIST).await;
        assert!(reply.cache_status().contains(result), "{verdict}: {}", reply.cache_status());
    };
    let unproved = "a call to upstream: this caller has no grant yet, so its own call must prove it";
    check(&mine, "upstream", "no-grant", unproved, "; fwd=").await;
    world.clock.advance(Duration::from_secs(12));
    let hit = "answered from memory: an entry of 12s, fresh for 4m 48s more; this caller has a grant";
    check(&mine, "from-memory", "hit", hit, "; hit; ").await;
    check(&other, "upstream", "no-grant", unproved, "; fwd=").await;
    world.simulator.deny(&other);
    world.clock.advance(Duration::from_secs(1_300));
    let lapsed = "a call to upstream: the grant of this caller has lapsed, so its own call must prove it again";
    check(&other, "upstream", "grant-lapsed", lapsed, "; fwd=").await;
    let denied = verdict_for(&world, &other).await;
    assert_eq!(
        (&denied["action"], &denied["status"], &denied["reason"]),
        (&json!("refused"), &json!(403), &json!("denied"))
    );
    let denied = denied["sentence"].as_str().unwrap();
    assert!(denied.starts_with("refused with 403 from memory: upstream has refused this caller"), "{denied}");
    world.get_as(&mine, LIST).await;
    world.clock.advance(Duration::from_secs(301));
    let stale = "answered from memory: an entry of 5m 1s, which is stale and is refreshed in the background; this caller \
                 has a grant";
    assert_eq!(verdict_for(&world, &mine).await["sentence"], stale);
    let pairs = [("url", LIST.replace("PROJECT", PROJECT)), ("header", format!("X-Auth-Token: {mine}"))];
    let pairs = pairs.into_iter().chain([("header", "Cache-Control: only-if-cached".to_owned())]);
    let form = form_urlencoded::Serializer::new(String::new()).extend_pairs(pairs).finish();
    let explained = world.http.send(Method::POST, &world.admin_url("/explain"), &[], form).await.json();
    assert_eq!(explained["verdict"]["sentence"], stale.replace(" and is refreshed in the background", ""));
    world.clock.advance(Duration::from_secs(100));
    let expired = "a call to upstream: the entry has expired; if the call fails or is slow, it gets the stale entry";
    assert_eq!(verdict_for(&world, &mine).await["sentence"], expired);
    world.simulator.fail_with(Some(StatusCode::SERVICE_UNAVAILABLE));
    world.get_as(&mine, LIST).await;
    let verdict = verdict_for(&world, &mine).await;
    assert_eq!((&verdict["action"], &verdict["result"]), (&json!("from-memory"), &json!("backoff")), "{verdict}");
    assert!(verdict["sentence"].as_str().unwrap().contains("because the gateway backs off"), "{verdict}");
}

#[tokio::test]
async fn a_form_has_the_parameters_of_the_query_and_is_bounded() {
    let world = World::new().await;
    let post = async |form: String| world.http.send(Method::POST, &world.admin_url("/explain"), &[], form).await;
    let posted = post("method=DELETE&url=/v2/p/products&header=X-Auth-Token:+t".to_owned()).await;
    let query =
        world.http.get(&world.admin_url("/explain?method=DELETE&url=/v2/p/products&header=X-Auth-Token:+t")).await;
    assert_eq!(posted.json(), query.json());
    assert_eq!(
        (&posted.json()["verdict"]["action"], &posted.json()["verdict"]["reason"]),
        (&json!("relayed"), &json!("pass-through"))
    );
    for wrong in [
        "",
        "method=DELETE",
        "method=a+secret&url=/",
        "url=/&url=/",
        "header=secret&url=/",
        "url=/&method=GET&method=PUT",
    ] {
        let reply = post(wrong.to_owned()).await;
        assert_eq!(reply.status(), StatusCode::BAD_REQUEST, "{wrong}");
        assert!(!reply.text().contains("secret") && reply.text().contains("expected"), "{wrong}: {}", reply.text());
    }
    let form = |bytes: usize| format!("url=/v2/p/products&header=x-a:{}", "a".repeat(bytes - 30));
    assert_eq!(post(form(64 * 1024)).await.status(), StatusCode::OK);
    let reply = post(form(64 * 1024 + 1)).await;
    assert_eq!((reply.status(), reply.text()), (StatusCode::PAYLOAD_TOO_LARGE, "expected a body of at most 64 KiB\n"));
    // A web page of another site.
    let foreign = [("origin", "http://evil.example")];
    let reply = world.http.send(Method::POST, &world.admin_url("/explain"), &foreign, "url=/").await;
    assert_eq!(reply.status(), StatusCode::FORBIDDEN);
}
