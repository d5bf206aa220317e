//! `explain` and `serve` decide alike, for random requests: the same are refused, relayed and looked up, for the same reason.

use std::cell::RefCell;
use std::collections::BTreeSet;
use std::net::SocketAddr;

use http::StatusCode;
use proptest::prelude::*;
use proptest::sample::{select, subsequence};
use proptest::test_runner::{Config, TestRunner};
use serde_json::Value;
use tokio::runtime::{Handle, Runtime};

use crate::support::line::{Heard, Line};
use crate::support::{PROJECT, World};

/// What stands before the path.
const BEFORE: [&str; 8] =
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

/// Header fields, of which some are sent, in this order.
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
struct Asking {
    target: String,
    fields: Vec<&'static str>,
}

fn asking() -> impl Strategy<Value = Asking> {
    let target = (select(&BEFORE[..]), select(&PATHS[..]), select(&QUERIES[..]));
    // Mostly with a token, for hardly anything else is looked up.
    let token = prop::bool::weighted(0.6);
    (target, token, subsequence(&FIELDS[1..], 0..4)).prop_map(|((before, path, query), token, mut fields)| {
        if token {
            fields.insert(0, FIELDS[0]);
        }
        Asking { target: format!("{before}{path}{query}"), fields }
    })
}

/// What `explain` says, and what is then answered.
async fn both(world: &World, asking: &Asking) -> (Value, Heard) {
    let gateway: SocketAddr = world.server.proxy_address();
    let place = |text: &str| {
        text.replace("GATEWAY", &gateway.to_string())
            .replace("PORT", &gateway.port().to_string())
            .replace("PROJECT", PROJECT)
            .replace("TOKEN", &world.token)
    };
    let target = place(&asking.target);
    let fields: Vec<String> =
        [format!("Host: {gateway}")].into_iter().chain(asking.fields.iter().map(|field| place(field))).collect();

    let mut query = form_urlencoded::Serializer::new(String::new());
    query.append_pair("url", &target);
    query.extend_pairs(fields.iter().map(|field| ("header", field)));
    let explained = world.http.get(&world.admin_url(&format!("/explain?{}", query.finish()))).await;
    assert_eq!(explained.status(), StatusCode::OK, "{asking:?}: {explained:?}");

    let head = format!("GET {target} HTTP/1.1\r\n{}\r\n\r\n", fields.join("\r\n"));
    let heard = Line::to(world).await.asks(head).await;
    (explained.json(), heard)
}

/// What is wrong, if `serve` has done something else than `explain` said.
fn contradiction(explained: &Value, heard: &Heard, relayed: usize) -> Option<String> {
    let decided = &explained["decided"];
    let reason = decided["reason"].as_str().unwrap_or_default();
    let fields = heard.all("cache-status");
    let of_cache = fields.first().copied().unwrap_or_default();
    let is_bypass = of_cache.contains("fwd=bypass");
    let is_right = match decided["action"].as_str()? {
        "refused" => {
            let status = decided["status"].as_u64().unwrap_or_default();
            let said = explained["verdict"].as_str().unwrap_or_default().rsplit(": ").next().unwrap_or_default();
            u64::from(heard.status()) == status && relayed == 0 && (heard.body.contains(said) || status == 401)
        }
        "relayed" if reason == "pass-through" => of_cache.is_empty() && relayed == 1,
        "relayed" => is_bypass && of_cache.contains(&format!("detail={reason}")) && relayed == 1,
        "looked-up" => (heard.status() == 504 && relayed == 0) || (!of_cache.is_empty() && !is_bypass),
        _ => false,
    };
    (!is_right).then(|| format!("{decided} but {heard:?} after {relayed} calls"))
}

#[test]
fn explain_and_serve_decide_alike() {
    let runtime = Runtime::new().unwrap();
    let world = runtime.block_on(World::new());
    let decide = |asking: &Asking, handle: &Handle| {
        let before = world.upstream_calls();
        let (explained, heard) = handle.block_on(both(&world, asking));
        (contradiction(&explained, &heard, world.upstream_calls() - before), explained)
    };
    let seen = RefCell::new(BTreeSet::new());
    let config = Config { cases: 500, failure_persistence: None, ..Config::default() };
    let tried = TestRunner::new(config).run(&asking(), |asking| {
        let (contradiction, explained) = decide(&asking, runtime.handle());
        let decided = &explained["decided"];
        seen.borrow_mut().insert(format!("{} {}", decided["action"], decided["reason"]));
        prop_assert_eq!(contradiction, None);
        Ok(())
    });
    tried.unwrap_or_else(|error| panic!("{error}"));
    let seen = seen.into_inner();
    assert!(seen.len() >= 15, "too few kinds of decisions were met: {seen:?}");
    for kind in ["\"refused\" \"foreign-host\"", "\"looked-up\" null", "\"relayed\" \"pass-through\""] {
        assert!(seen.contains(kind), "{kind} was not met: {seen:?}");
    }
}

#[tokio::test]
async fn what_a_client_demands_is_explained_as_it_is_answered() {
    let world = World::new().await;
    let foreign = Asking { target: "http://evil.example/v2/abc/products".to_owned(), fields: vec![FIELDS[0]] };
    let (explained, heard) = both(&world, &foreign).await;
    assert_eq!((&explained["decided"]["reason"], heard.status()), (&"foreign-host".into(), 400));
    let cached = Asking {
        target: "/v2/PROJECT/products".to_owned(),
        fields: vec!["X-Auth-Token: TOKEN", "Cache-Control: only-if-cached"],
    };
    let (explained, heard) = both(&world, &cached).await;
    let verdict = explained["verdict"].as_str().unwrap();
    assert!(verdict.ends_with("otherwise answered 504 here: the request says only-if-cached"), "{verdict}");
    assert_eq!((heard.status(), world.upstream_calls()), (504, 0));
}
