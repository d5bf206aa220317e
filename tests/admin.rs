//! The admin listener: purge, mode and explain.

use std::time::Duration;

use http::{HeaderName, HeaderValue, Method, StatusCode};
use serde_json::{Value, json};

use crate::support::{PROJECT, World};

const LIST: &str = "/v2/PROJECT/products";
const SHARER: &str = "/v2/PROJECT/products/sharer";

async fn post(world: &World, path: &str) -> (StatusCode, String) {
    let reply = world.http.send(Method::POST, &world.admin_url(path), &[], "").await;
    (reply.status(), reply.text().to_owned())
}

async fn is_hit(world: &World, token: &str, path: &str) -> bool {
    world.get_as(token, path).await.cache_status().contains("; hit")
}

#[tokio::test]
async fn a_purge_removes_only_the_selected_entries() {
    let world = World::new().await;
    let other = world.simulator.token("p2");
    let (mine, theirs) = (world.token.as_str(), other.as_str());
    let fill = async || {
        for (token, path) in [(mine, LIST), (mine, SHARER), (theirs, "/v2/p2/products")] {
            world.get_as(token, path).await;
        }
    };
    for (purge, purged, expected_hits) in [
        ("/cache/purge?operation=ListProducts", 2, [false, true, false]),
        ("/cache/purge?project=PROJECT", 2, [false, false, true]),
        ("/cache/purge?operation=ListProducts&project=p2", 1, [true, true, false]),
        ("/cache/purge?operation=ListProduct", 0, [true, true, true]),
        ("/cache/purge?operation=ListProducts&query=limit%3D100%26offset%3D0", 2, [false, true, false]),
        ("/cache/purge?operation=ListProducts&project=p2&query=", 1, [true, true, false]),
        ("/cache/purge?operation=ListProducts&query=os_type%3DLinux", 0, [true, true, true]),
        ("/cache/purge?all=true", 3, [false, false, false]),
    ] {
        fill().await;
        let (status, text) = post(&world, purge).await;
        assert_eq!((status, serde_json::from_str(&text).ok()), (StatusCode::OK, Some(json!({ "purged": purged }))));
        let hits = [
            is_hit(&world, mine, LIST).await,
            is_hit(&world, mine, SHARER).await,
            is_hit(&world, theirs, "/v2/p2/products").await,
        ];
        assert_eq!(hits, expected_hits, "{purge}");
    }
}

#[tokio::test]
async fn an_invalid_purge_is_rejected_and_removes_nothing() {
    let world = World::new().await;
    world.get(LIST).await;
    for path in [
        "/cache/purge",
        "/cache/purge?operation=Products",
        "/cache/purge?projct=p",
        "/cache/purge?project=",
        "/cache/purge?all=yes",
        "/cache/purge?project=a&project=PROJECT",
        "/cache/purge?all=true&project=p",
        "/cache/purge?query=",
        "/cache/purge?project=0000%E2%80%A60001",
        "/cache/purge?project=a/b",
        "/cache/purge?operation=ListProducts&query=a%3D1%26a%3D2",
    ] {
        let (status, text) = post(&world, path).await;
        assert_eq!(status, StatusCode::BAD_REQUEST, "{path}: {text}");
    }
    let get = world.http.get(&world.admin_url("/cache/purge?all=true")).await;
    assert_eq!((get.status(), get.header("allow")), (StatusCode::METHOD_NOT_ALLOWED, "POST"));
    assert!(is_hit(&world, &world.token, LIST).await);
}

#[tokio::test]
async fn the_mode_can_be_switched_at_run_time() {
    let world = World::new().await;
    let put = async |body: &'static str| world.http.send(Method::PUT, &world.admin_url("/mode"), &[], body).await;
    world.get(LIST).await;
    assert_eq!(put("bypass").await.json(), json!({ "mode": "bypass" }));
    assert!(world.get(LIST).await.cache_status().ends_with("detail=mode"));
    for wrong in ["", "off", "BYPASS", &"x".repeat(1000).leak()[..]] {
        let reply = put(wrong).await;
        assert_eq!(reply.status(), StatusCode::BAD_REQUEST);
        assert!(reply.text().contains("is not allowed: expected cache or bypass"), "{}", reply.text());
    }
    assert_eq!(world.http.get(&world.admin_url("/mode")).await.json(), json!({ "mode": "bypass" }));
    put("cache\n").await;
    assert!(is_hit(&world, &world.token, LIST).await, "entries are kept while the mode is bypass");
}

#[tokio::test]
async fn explain_shows_how_a_request_would_be_handled() {
    let world = World::new().await;
    let explain = async |url: &str| {
        let encoded: String = form_urlencoded::byte_serialize(url.as_bytes()).collect();
        world.http.get(&world.admin_url(&format!("/explain?url={encoded}"))).await
    };
    let known = explain(&world.url("/v2/PROJECT/products?os_type=Linux&limit=100")).await.json();
    assert_eq!(known["operation"]["name"], "ListProducts");
    assert_eq!(known["operation"]["project_id"], PROJECT);
    assert_eq!(known["operation"]["key"]["canonical_query"], "os_type=Linux");
    assert_eq!(known["operation"]["key"]["ttl"], "5m");
    assert_eq!(known["operation"]["bypass"][0]["reason"], "no-credential");
    let with_token = form_urlencoded::Serializer::new(String::new())
        .extend_pairs([("url", "/v2/p/products"), ("header", "X-Auth-Token: secret"), ("header", "X-Language: en-us")])
        .finish();
    let explained = world.http.get(&world.admin_url(&format!("/explain?{with_token}"))).await;
    assert!(explained.json()["verdict"]["sentence"].as_str().unwrap().starts_with("a call to upstream"));
    assert_eq!(explained.json()["operation"]["key"]["keyed_headers"][0], "x-language: en-us");
    assert!(!explained.text().contains("secret"));
    let with_plus = explain("/v1/p/product?a+b=1").await.json();
    assert_eq!(with_plus["operation"]["bypass"][1]["reason"], "plus");
    assert!(
        explain("/v2/p/desktops").await.json()["verdict"]["sentence"]
            .as_str()
            .unwrap()
            .contains("relayed to workspace")
    );
    assert!(explain("/nope").await.json()["verdict"]["sentence"].as_str().unwrap().contains("404"));
    // What a request is almost for, whether it is relayed or gets a 404.
    for (url, near) in [
        ("/v2/p/products/", "almost one for ListProducts (/v2/{project_id}/products), but the path ends with a slash"),
        (
            "/p/products/sharer",
            "almost one for ListSharerProducts (/v2/{project_id}/products/sharer), but the path begins",
        ),
    ] {
        let verdict = explain(url).await.json()["verdict"]["sentence"].as_str().unwrap().to_owned();
        assert!(verdict.contains(near), "{url}: {verdict}");
    }
    for wrong in ["", "not a url", "nope"] {
        assert_eq!(explain(wrong).await.status(), StatusCode::BAD_REQUEST, "{wrong}");
    }
    assert_eq!(world.http.get(&world.admin_url("/explain")).await.status(), StatusCode::BAD_REQUEST);
    assert_eq!(world.upstream_calls(), 0);
}

#[tokio::test]
async fn explain_says_how_long_a_call_would_wait_for_a_quota_and_why() {
    let limit = "[[quota]]\nservice = \"workspace\"\npolicy = \"ip\"\nlimit = 1\nwindow = \"10m\"\n";
    let world = World::with(&format!("[cache]\nttl = \"100s\"\n{limit}")).await;
    let explain = async |query: &str| {
        let (url, token) = (LIST.replace("PROJECT", PROJECT) + query, format!("X-Auth-Token: {}", world.token));
        let query =
            form_urlencoded::Serializer::new(String::new()).extend_pairs([("url", url), ("header", token)]).finish();
        let explained = world.http.get(&world.admin_url(&format!("/explain?{query}"))).await.json();
        explained["operation"]["now"].clone()
    };
    assert_eq!(explain("").await["quota"], Value::Null);
    world.get(LIST).await;
    let why = "because upstream accepts 1 call from the address of the gateway in 10m";
    let late = "a request waits for at most 35s (upstream.answer_timeout), and then gets a 429";
    world.clock.advance(Duration::from_secs(202));
    let now = explain("").await;
    let quota = now["quota"].as_str().unwrap();
    assert!(
        quota.starts_with("a call would wait for at least 6m 3") && quota.ends_with(&format!("s, {why}")),
        "{quota}"
    );
    assert_eq!(now["stored"], "a stale response, served at once: a call would wait for a quota of upstream");
    // Its grant ends.
    world.clock.advance(Duration::from_secs(200));
    // 198 s are left, less the time that the test takes.
    let now = explain("").await;
    let quota = now["quota"].as_str().unwrap();
    assert!(quota.starts_with("a call would wait for at least 3m 1"), "{quota}");
    assert!(quota.ends_with(&format!("s, {why}; {late}")), "{quota}");
    assert_eq!(now["stored"], "a stale response, only for callers with a grant");
    world.clock.advance(Duration::from_secs(180));
    let now = explain("?limit=2").await;
    let quota = now["quota"].as_str().unwrap();
    assert!(quota.starts_with("a call would wait for at least 1") && quota.ends_with(&format!("s, {why}")), "{quota}");
    world.clock.advance(Duration::from_secs(20));
    assert_eq!(explain("?limit=2").await["quota"], Value::Null);
}

#[tokio::test]
async fn explain_shows_the_grant_state_and_the_stored_response() {
    let world = World::new().await;
    let second = world.simulator.token(PROJECT);
    let explain = async |token: &str| {
        let query = form_urlencoded::Serializer::new(String::new())
            .extend_pairs([("url", LIST.replace("PROJECT", PROJECT)), ("header", format!("X-Auth-Token: {token}"))])
            .finish();
        let explained = world.http.get(&world.admin_url(&format!("/explain?{query}"))).await.json();
        let now = &explained["operation"]["now"];
        let [caller, stored] = ["caller", "stored"].map(|name| now[name].as_str().unwrap().to_owned());
        assert_eq!(now["shared"], true);
        (caller.split(':').next().unwrap().to_owned(), stored)
    };
    let expected = |caller: &str, stored: &str| (caller.to_owned(), stored.to_owned());
    assert_eq!(explain(&second).await, expected("not granted", "nothing"));
    world.get(LIST).await;
    assert_eq!(explain(&second).await, expected("not granted", "a response, fresh for another 5m"));
    assert_eq!(explain(&world.token).await, expected("granted", "a response, fresh for another 5m"));
    world.simulator.deny(&second);
    world.get_as(&second, LIST).await;
    assert_eq!(explain(&second).await, expected("denied", "a response, fresh for another 5m"));
    world.clock.advance(Duration::from_secs(300));
    let stale = "a stale response, served at once and refreshed in the background";
    assert_eq!(explain(&world.token).await, expected("not granted any more", stale));
    world.simulator.add_header(HeaderName::from_static("cache-control"), HeaderValue::from_static("no-store"));
    world.clock.advance(Duration::from_secs(3600));
    world.get(LIST).await;
    let unstorable = "nothing: responses cannot be stored (cache-directives)";
    assert_eq!(explain(&world.token).await, expected("granted", unstorable));
    assert_eq!(world.upstream_calls(), 3);
}

#[tokio::test]
async fn explain_shows_the_mode() {
    let world = World::with("mode = \"bypass\"").await;
    let explained = world.http.get(&world.admin_url("/explain?url=/v2/p/products")).await.json();
    assert_eq!(explained["operation"]["bypass"][0]["reason"], "mode");
}

#[tokio::test]
async fn errors_show_no_control_character_and_no_password_of_the_query() {
    let world = World::new().await;
    for (path, status) in [
        ("/cache/entries?%1b%5b31m=1", StatusCode::BAD_REQUEST),
        ("/explain?url=http://user:hunter2@127.0.0.1%20/v2", StatusCode::BAD_REQUEST),
    ] {
        let reply = world.http.get(&world.admin_url(path)).await;
        assert_eq!(reply.status(), status, "{path}");
        let text = reply.text().trim_end();
        assert!(!text.contains(char::is_control) && !text.contains("hunter2"), "{path}: {text:?}");
    }
    for query in ["%1b=1", "%1b=1&%1b=1", "%0aall=true"] {
        let (status, text) = post(&world, &format!("/cache/purge?{query}")).await;
        assert_eq!(status, StatusCode::BAD_REQUEST, "{query}");
        assert!(!text.trim_end().contains(char::is_control), "{query}: {text:?}");
    }
}

#[tokio::test]
async fn explain_reads_one_header_field_more_than_a_request_may_have() {
    let world = World::new().await;
    let explained = async |fields: usize| {
        let query = format!("url=/v2/p/products{}", "&header=a:b".repeat(fields));
        let reply = world.http.get(&world.admin_url(&format!("/explain?{query}"))).await;
        (reply.status(), reply.text().to_owned())
    };
    let (status, text) = explained(101).await;
    assert!(status == StatusCode::OK && text.contains("at most 100 header fields"), "{text}");
    let (status, text) = explained(102).await;
    assert!(status == StatusCode::BAD_REQUEST && text.starts_with("expected url once"), "{text}");
}
