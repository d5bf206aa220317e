//! For random requests, `explain` and `serve` decide alike: they refuse, relay and look up the same requests for the
//! same reason.

use std::cell::RefCell;
use std::collections::BTreeSet;
use std::net::SocketAddr;

use http::StatusCode;
use proptest::prelude::*;
use proptest::sample::{select, subsequence};
use proptest::test_runner::{Config, TestRunner};
use serde_json::Value;
use tokio::runtime::{Handle, Runtime};

use crate::support::raw_client::{RawClient, RawResponse};
use crate::support::{PROJECT, World};

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
    let decided = &explained["decided"];
    let reason = decided["reason"].as_str().unwrap_or_default();
    let fields = response.all("cache-status");
    let cache_status = fields.first().copied().unwrap_or_default();
    let is_bypass = cache_status.contains("fwd=bypass");
    let is_consistent = match decided["action"].as_str()? {
        "refused" => {
            let status = decided["status"].as_u64().unwrap_or_default();
            let description = explained["verdict"].as_str().unwrap_or_default().rsplit(": ").next().unwrap_or_default();
            u64::from(response.status()) == status
                && relayed == 0
                && (response.body.contains(description) || status == 401)
        }
        "relayed" if reason == "pass-through" => cache_status.is_empty() && relayed == 1,
        "relayed" => is_bypass && cache_status.contains(&format!("detail={reason}")) && relayed == 1,
        "looked-up" => (response.status() == 504 && relayed == 0) || (!cache_status.is_empty() && !is_bypass),
        _ => false,
    };
    (!is_consistent).then(|| format!("{decided} but {response:?} after {relayed} calls"))
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
    let config = Config { cases: 500, failure_persistence: None, ..Config::default() };
    let result = TestRunner::new(config).run(&any_request(), |given| {
        let (contradiction, explained) = decide(&given, runtime.handle());
        let decided = &explained["decided"];
        seen.borrow_mut().insert(format!("{} {}", decided["action"], decided["reason"]));
        prop_assert_eq!(contradiction, None);
        Ok(())
    });
    result.unwrap_or_else(|error| panic!("{error}"));
    let seen = seen.into_inner();
    assert!(seen.len() >= 15, "too few kinds of decisions occurred: {seen:?}");
    for kind in ["\"refused\" \"foreign-host\"", "\"looked-up\" null", "\"relayed\" \"pass-through\""] {
        assert!(seen.contains(kind), "{kind} did not occur: {seen:?}");
    }
}

#[tokio::test]
async fn a_foreign_host_and_only_if_cached_are_explained_as_they_are_answered() {
    let world = World::new().await;
    let foreign = GivenRequest { target: "http://evil.example/v2/abc/products".to_owned(), fields: vec![FIELDS[0]] };
    let (explained, response) = both(&world, &foreign).await;
    assert_eq!((&explained["decided"]["reason"], response.status()), (&"foreign-host".into(), 400));
    let cached = GivenRequest {
        target: "/v2/PROJECT/products".to_owned(),
        fields: vec!["X-Auth-Token: TOKEN", "Cache-Control: only-if-cached"],
    };
    let (explained, response) = both(&world, &cached).await;
    let verdict = explained["verdict"].as_str().unwrap();
    assert!(verdict.ends_with("otherwise answered 504 here: the request has only-if-cached"), "{verdict}");
    assert_eq!((response.status(), world.upstream_calls()), (504, 0));
}
