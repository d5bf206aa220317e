//! The status page and its data: figures that equal `/metrics`, stored entries, events and active settings.

use std::sync::Arc;
use std::time::Duration;

use http::{Method, StatusCode};
use serde_json::{Value, json};
use workspace_gateway::testing::catalogue::{Quota, QuotaPolicy, Service};
use workspace_gateway::testing::simulator::{EnforcedQuota, QuotaWindow, Simulator};

use crate::support::process::{Process, folder};
use crate::support::{Http, PROJECT, World};

const LIST: &str = "/v2/PROJECT/products";
const SHARER: &str = "/v2/PROJECT/products/sharer";

async fn status(world: &World) -> Value {
    world.http.get(&world.admin_url("/status")).await.json()
}

/// The events of a kind, newest first.
async fn events(world: &World, kind: &str) -> Vec<Value> {
    let events = status(world).await["events"].as_array().unwrap().clone();
    events.into_iter().filter(|event| event["kind"] == kind).collect()
}

#[tokio::test]
async fn without_requests_the_status_has_empty_figures() {
    let world = World::new().await;
    let status = status(&world).await;
    assert_eq!(
        status["savings"],
        json!({ "answered": 0, "hits": 0, "coalesced": 0, "hit_ratio": null, "upstream_calls": 0, "calls_saved": 0, "seconds_saved": null })
    );
    assert_eq!(status["upstream"].as_array().unwrap().len(), 2);
    for upstream in status["upstream"].as_array().unwrap() {
        assert_eq!(
            upstream["health"],
            json!({ "state": "unknown", "since_seconds": null, "last_answer_seconds": null, "last_failure": null })
        );
    }
    assert_eq!((&status["mode"], &status["events"], &status["log_level"]), (&json!("cache"), &json!([]), &Value::Null));
    assert_eq!(status["requests"]["results"].as_object().unwrap().len(), 15);
    assert_eq!(status["fleet"], Value::Null);
    assert_eq!(status["proxy"], format!("http://{}", world.server.proxy_address()));
}

#[tokio::test]
async fn the_status_figures_equal_the_metrics() {
    let world = World::new().await;
    for _ in 0..4 {
        world.get(LIST).await;
    }
    world.get(&format!("{LIST}?a=1&a=2")).await;
    world.get("/v2/PROJECT/desktops").await;
    world.get_as("denied", LIST).await;
    let status = status(&world).await;
    let metric = |series: &str| world.metric(&format!("workspace_gateway_{series}"));
    let hits = metric("requests_total{operation=\"ListProducts\",result=\"hit\",status=\"200\"}");
    assert_eq!((hits, &status["savings"]["hits"]), (3.0, &json!(3)));
    // The first request and the denied one caused a call each.
    assert_eq!(metric("fetches_total{operation=\"ListProducts\"}"), 2.0);
    let savings = &status["savings"];
    assert_eq!(savings["answered"], 5);
    assert_eq!((&savings["upstream_calls"], &savings["calls_saved"]), (&json!(2), &json!(3)));
    assert_eq!(savings["hit_ratio"], 0.6);
    let sum = |result: &str| {
        metric(&format!("request_duration_seconds_sum{{operation=\"ListProducts\",result=\"{result}\"}}"))
    };
    let saved = 3.0 * sum("miss") / 2.0 - sum("hit");
    assert!((savings["seconds_saved"].as_f64().unwrap() - saved).abs() < 1e-9, "{savings} {saved}");
    let results = &status["requests"]["results"];
    assert_eq!((&results["hit"], &results["miss"], &results["bypass"]), (&json!(3), &json!(2), &json!(1)));
    assert_eq!(results["pass-through"], 1);
    let operations = status["requests"]["operations"].as_array().unwrap();
    let list = operations.iter().find(|it| it["operation"] == "ListProducts").unwrap();
    assert_eq!(list["results"], json!({ "bypass": 1, "hit": 3, "miss": 2 }));
    assert_eq!((&list["misses"]["no-grant"], &list["bypasses"]["repeated-parameter"]), (&json!(2), &json!(1)));
    let percentile = |name: &str| list["latency"][name].as_f64().unwrap();
    assert!(percentile("hits99") >= percentile("hits50") && percentile("others50") > 0.0, "{list}");
    let sharer = operations.iter().find(|it| it["operation"] == "ListSharerProducts").unwrap();
    assert_eq!((&sharer["latency"]["hits50"], &sharer["misses"]["no-grant"]), (&Value::Null, &json!(0)));
    assert_eq!(status["requests"]["statuses"], json!({ "2xx": 6, "3xx": 0, "4xx": 1, "5xx": 0 }));
    assert_eq!(operations.len(), 3);
    let latency = &status["latency"];
    assert_eq!((&latency["hits"]["count"], &latency["others"]["count"]), (&json!(3), &json!(2)));
    for which in ["hits", "others"] {
        let buckets = latency[which]["buckets"].as_array().unwrap();
        assert_eq!(buckets.len(), latency["bounds"].as_array().unwrap().len());
        assert_eq!(buckets.last(), Some(&latency[which]["count"]));
    }
    assert_eq!(status["cache"]["entries"], 1);
    assert_eq!(status["cache"]["bytes"].as_f64(), Some(metric("entries_bytes")));
    assert_eq!(status["cache"]["max_bytes"], 64 << 20);
    let callers = &status["callers"];
    assert_eq!((&callers["grants"], &callers["denials"]["upstream"]), (&json!(1), &json!(1)));
    assert_eq!(status["misses"]["no-grant"], 2);
    assert_eq!(status["unstored"]["denied"], 1);
    assert_eq!(status["bypasses"]["repeated-parameter"], 1);
    let workspace = &status["upstream"][0];
    assert_eq!(workspace["url"], world.simulator.url(Service::Workspace));
    assert_eq!(workspace["count"], 4);
    assert_eq!(workspace["requests"]["401"], metric("upstream_requests_total{service=\"workspace\",status=\"401\"}"));
}

#[tokio::test]
async fn callers_are_counted_by_the_id_of_the_log_and_those_that_are_refused_come_first() {
    let world = World::new().await;
    let agent = [("user-agent", "<b>\t\u{e9}")];
    for _ in 0..6 {
        world.get_with(LIST, &agent).await;
    }
    let hits_on_fast_path = world.metric("workspace_gateway_fast_path_hits_total");
    world.clock.advance(Duration::from_secs(20));
    let other = world.simulator.token(PROJECT);
    world.get_as(&other, "/v2/PROJECT/desktops").await;
    for _ in 0..3 {
        world.get_as("invented", LIST).await;
    }
    world.clock.advance(Duration::from_secs(10));
    world.get_as(&other, LIST).await;
    let callers = status(&world).await["callers"].clone();
    let rows = callers["by_id"].as_array().unwrap();
    let column = |name: &str| rows.iter().map(|row| row[name].clone()).collect::<Vec<_>>();
    assert_eq!(column("refusals"), [json!(3), json!(0), json!(0)]);
    assert_eq!(column("requests"), [json!(3), json!(2), json!(6)]);
    assert_eq!(column("hits"), [json!(0), json!(0), json!(5)]);
    assert!(hits_on_fast_path >= 2.0 || std::env::var_os("WORKSPACE_GATEWAY_TEST_FAST_PATH").is_some());
    assert_eq!(column("is_accepted"), [json!(false), json!(true), json!(true)]);
    assert_eq!(column("last_seen_seconds"), [json!(10), json!(0), json!(30)]);
    assert_eq!(column("last_refusal_seconds"), [json!(10), Value::Null, Value::Null]);
    assert_eq!(column("user_agent"), [Value::Null, Value::Null, json!("<b>\\t\\xc3\\xa9")]);
    assert_eq!((column("access_key"), &callers["remembered"]), (vec![Value::Null; 3], &json!(3)));
    assert!(rows.iter().all(|row| row["id"].as_str().is_some_and(|id| id.len() == 16)), "{rows:?}");
    let all = world.http.get(&world.admin_url("/status")).await;
    assert!(!all.text().contains("invented") && !all.text().contains(&world.token), "{}", all.text());
    // A refusal that is long ago.
    world.clock.advance(Duration::from_secs(300));
    world.get_with(LIST, &agent).await;
    assert_eq!(status(&world).await["callers"]["by_id"][0]["requests"], 7);
}

#[tokio::test]
async fn the_history_has_samples_whether_or_not_anybody_looks() {
    let world = World::new().await;
    let history = async |query: &str| world.http.get(&world.admin_url(&format!("/history{query}"))).await;
    assert_eq!(history("").await.json()["samples"], json!([]));
    for _ in 0..3 {
        world.get(LIST).await;
    }
    world.clock.advance(Duration::from_secs(10));
    world.server.gateway().observer().take_sample();
    world.get("/v2/PROJECT/desktops").await;
    world.clock.advance(Duration::from_secs(20));
    world.server.gateway().observer().take_sample();
    let all = history("").await.json();
    let sample = |index: usize, field: &str| all["samples"][index][field].as_f64().unwrap();
    assert_eq!(["hits", "others", "passed"].map(|field| sample(0, field)), [2.0, 1.0, 0.0]);
    assert_eq!(["number", "hits", "passed"].map(|field| sample(1, field)), [2.0, 0.0, 1.0]);
    assert!((10.0..11.0).contains(&sample(0, "end")) && (30.0..31.0).contains(&sample(1, "end")), "{all}");
    assert!(sample(0, "hits50") > 0.0 && sample(0, "others99") >= sample(0, "others50"), "{all}");
    assert_eq!((&all["samples"][1]["hits50"], &all["interval_seconds"]), (&Value::Null, &json!(10)));
    let rest = history("?after=1").await.json();
    assert_eq!((rest["samples"].as_array().unwrap().len(), &rest["samples"][0]["number"]), (1, &json!(2)));
    for wrong in ["?after=x", "?after=-1", "?after=1&after=1", "?before=1"] {
        assert_eq!(history(wrong).await.status(), StatusCode::BAD_REQUEST, "{wrong}");
    }
}

#[tokio::test]
async fn the_status_has_the_limits_of_upstream_and_what_they_hold_back() {
    let limit = "[[quota]]\nservice = \"workspace\"\npolicy = \"ip\"\nlimit = 1\nwindow = \"1h\"\n";
    let world = Arc::new(World::with(limit).await);
    world.get(LIST).await;
    let held = tokio::spawn({
        let world = Arc::clone(&world);
        async move { world.get(&format!("{LIST}?limit=2")).await }
    });
    world.until_metric("workspace_gateway_quota_waiting{policy=\"ip\",service=\"workspace\"}", 1.0).await;
    world.clock.advance(Duration::from_secs(60));
    let status = status(&world).await;
    let limit = &status["quotas"][0];
    let figures =
        ["service", "policy", "operation", "calls", "used", "remaining", "is_configured"].map(|at| &limit[at]);
    let expected = [json!("workspace"), json!("ip"), Value::Null, json!(1), json!(1), json!(0), json!(true)];
    assert_eq!(figures, expected.each_ref());
    let left = limit["free_in_seconds"].as_f64().unwrap();
    assert!((3539.0..3540.2).contains(&left), "{left}");
    let totals =
        json!({ "waiting": 1, "waits": 0, "wait_seconds": 0.0, "refused_by_upstream": 0, "refused_by_gateway": 0 });
    assert_eq!(status["quota_policies"]["ip"], totals);
    held.abort();
}

#[tokio::test]
async fn the_event_of_a_learnt_limit_names_what_it_limits() {
    let world = World::new().await;
    let quota = |calls| Quota { calls, window: Duration::from_secs(120) };
    let limit =
        |policy, calls| world.simulator.set_quota(EnforcedQuota::new(policy, quota(calls), QuotaWindow::Sliding));
    limit(QuotaPolicy::Api, 1);
    world.get(LIST).await;
    assert_eq!(world.get(&format!("{LIST}?limit=2")).await.status(), StatusCode::TOO_MANY_REQUESTS);
    world.simulator.clear_quotas();
    limit(QuotaPolicy::User, 1);
    world.get(SHARER).await;
    assert_eq!(world.get(&format!("{SHARER}?limit=2")).await.status(), StatusCode::TOO_MANY_REQUESTS);
    let words = events(&world, "quota").await.into_iter().map(|event| event["what"].as_str().unwrap().to_owned());
    let expected = ["policy user, 1 in 2m", "policy api of ListProducts, 1 in 2m"];
    assert_eq!(words.collect::<Vec<_>>(), expected.map(|limit| format!("workspace limits calls: {limit}")));
}

#[tokio::test]
async fn entries_are_listed_without_project_ids_and_tokens() {
    let world =
        World::with("[[operation]]\nname = \"Disk\"\npath = \"/v2/{project_id}/disks/{id}\"\nbody = \"none\"").await;
    for path in [LIST, LIST, LIST, "/v2/PROJECT/products?os_type=Linux&limit=100", SHARER, "/v2/PROJECT/disks/d1"] {
        world.get_with(path, &[("x-language", "en-us")]).await;
    }
    world.clock.advance(Duration::from_secs(100));
    let page = world.http.get(&world.admin_url("/cache/entries")).await;
    let json = page.json();
    assert!(!page.text().contains(PROJECT) && !page.text().contains(&world.token), "{}", page.text());
    let entries = json["entries"].as_array().unwrap();
    assert_eq!((&json["total"], entries.len()), (&json!(4), 4));
    let first = &entries[0];
    assert_eq!((&first["operation"], &first["query"], &first["hits"]), (&json!("ListProducts"), &json!(""), &json!(2)));
    assert_eq!((&first["project"], &first["headers"]), (&json!("0000…0001"), &json!({ "x-language": "en-us" })));
    assert_eq!((&first["state"], &first["sharing"]), (&json!("fresh"), &json!("project")));
    assert!(first["bytes"].as_u64().unwrap() > 500, "{first}");
    let [age, ttl] = ["age_seconds", "ttl_seconds"].map(|name| first[name].as_f64().unwrap());
    assert!((100.0..101.0).contains(&age) && (199.0..200.1).contains(&ttl), "{first}");
    assert!(entries.iter().any(|entry| entry["query"] == "os_type=Linux"), "the query is canonical");
    let disk = entries.iter().find(|entry| entry["operation"] == "Disk").unwrap();
    assert_eq!(disk["segments"], json!({ "id": "d1" }));

    world.clock.advance(Duration::from_secs(300));
    let later = world.http.get(&world.admin_url("/cache/entries?limit=1")).await.json();
    assert_eq!((later["entries"].as_array().unwrap().len(), &later["total"]), (1, &json!(4)));
    assert_eq!(later["entries"][0]["state"], "revalidate");
    assert!(later["entries"][0]["ttl_seconds"].as_f64().unwrap() < -99.0);
    for wrong in ["limit=0", "limit=1001", "limit=x", "limit=1&limit=2", "lmit=1"] {
        let reply = world.http.get(&world.admin_url(&format!("/cache/entries?{wrong}"))).await;
        assert_eq!(reply.status(), StatusCode::BAD_REQUEST, "{wrong}");
        assert!(reply.text().contains("expected limit once, from 1 to 1000"), "{}", reply.text());
    }
}

#[tokio::test]
async fn hits_are_kept_when_a_response_is_replaced_and_reset_by_a_purge() {
    let world = World::new().await;
    let hits = async || {
        let page = world.http.get(&world.admin_url("/cache/entries")).await.json();
        page["entries"][0]["hits"].as_u64()
    };
    for _ in 0..3 {
        world.get(LIST).await;
    }
    assert_eq!(hits().await, Some(2));
    world.clock.advance(Duration::from_secs(4_000));
    world.get(LIST).await;
    world.get(LIST).await;
    assert_eq!(hits().await, Some(3));
    world.purge();
    assert_eq!(hits().await, None);
    world.get(LIST).await;
    assert_eq!(hits().await, Some(0));
}

#[tokio::test]
async fn events_contain_no_project_id_and_no_token() {
    let world = World::new().await;
    world.get(LIST).await;
    let denied = world.simulator.token(PROJECT);
    world.simulator.deny(&denied);
    for limit in 1..4 {
        world.get_as(&denied, &format!("{LIST}?limit={limit}")).await;
        world.clock.advance(Duration::from_secs(3));
    }
    let denials = events(&world, "denial").await;
    assert_eq!(denials.len(), 1);
    let denial = &denials[0];
    assert_eq!(
        (&denial["count"], &denial["operation"], &denial["project"]),
        (&json!(3), &json!("ListProducts"), &json!("0000…0001"))
    );
    let [first, last] = ["first_ms", "last_ms"].map(|name| denial[name].as_u64().unwrap());
    assert!((5_000..7_000).contains(&(last - first)), "{denial}");
    assert_eq!(denial["is_bad"], true);

    world.simulator.fail_with(Some(StatusCode::SERVICE_UNAVAILABLE));
    for limit in 10..13 {
        world.get(&format!("{LIST}?limit={limit}")).await;
    }
    assert_eq!(status(&world).await["upstream"][0]["health"]["state"], "failing");
    world.simulator.fail_with(None);
    world.get(&format!("{LIST}?limit=20")).await;
    let health = status(&world).await["upstream"][0]["health"].clone();
    assert_eq!((&health["state"], &health["last_failure"]), (&json!("good"), &json!("503")));
    assert_eq!(events(&world, "outage").await[0]["what"], "workspace is failing: 503 Service Unavailable");
    assert_eq!(events(&world, "recovery").await.len(), 1);

    world.http.send(Method::PUT, &world.admin_url("/mode"), &[], "bypass").await;
    world.http.send(Method::POST, &world.admin_url("/cache/purge?project=PROJECT"), &[], "").await;
    assert_eq!(events(&world, "mode").await[0]["what"], "mode set to bypass");
    assert!(events(&world, "purge").await[0]["what"].as_str().unwrap().ends_with("in one project"));
    world.reload("[cache]\nttl = \"1m\"").unwrap();
    world.reload("[cache]\nttl = \"odd\"").unwrap_err();
    assert_eq!(events(&world, "reload").await[0]["what"], "configuration reloaded: cache.ttl");
    assert_eq!(events(&world, "reload-refused").await.len(), 1);
    let all = world.http.get(&world.admin_url("/status")).await;
    for secret in [PROJECT, &world.token, &denied] {
        assert!(!all.text().contains(secret), "{}", all.text());
    }
}

#[tokio::test]
async fn a_scope_that_becomes_private_is_an_event() {
    let world = World::new().await;
    let other = world.simulator.token(PROJECT);
    world.simulator.restrict_view(&other);
    for token in [&world.token, &other, &world.token, &other] {
        world.get_as(token, LIST).await;
        world.clock.advance(Duration::from_secs(4_000));
    }
    assert_eq!(events(&world, "private-scope").await.len(), 1);
    assert_eq!(status(&world).await["cache"]["private_scopes"], 1);
}

#[tokio::test]
async fn the_active_settings_are_shown_without_secrets() {
    let key = "[[access_key]]\nid = \"AK\"\nsecret = \"hush-hush-hush\"\n";
    let world =
        World::with(&format!("{key}[cache]\nttl = \"7m\"\n[listen]\nadmin_token = \"0123456789abcdefgh\"")).await;
    let with_token = [("authorization", "Bearer 0123456789abcdefgh")];
    let page = world.http.send(Method::GET, &world.admin_url("/config"), &with_token, "").await;
    assert_eq!(page.header("content-type"), "text/plain; charset=utf-8");
    assert!(page.text().contains("ttl = \"7m\"") && page.text().contains("(not shown)"), "{}", page.text());
    for secret in ["hush", "0123456789abcdefgh"] {
        assert!(!page.text().contains(secret), "{}", page.text());
    }
    world.reload("[cache]\nttl = \"8m\"").unwrap();
    let page = world.http.get(&world.admin_url("/config")).await;
    assert!(page.text().contains("ttl = \"8m\"") && !page.text().contains("(not shown)"), "{}", page.text());
}

#[tokio::test]
async fn the_status_page_loads_no_external_resources() {
    let world = World::new().await;
    let page = world.http.get(&world.admin_url("/")).await;
    assert_eq!((page.status(), page.header("content-type")), (StatusCode::OK, "text/html; charset=utf-8"));
    let text = page.text();
    for (begin, end, directive) in [("<style>", "</style>", "style-src"), ("<script>", "</script>", "script-src")] {
        let (_, rest) = text.split_once(begin).unwrap();
        let (inner, rest) = rest.split_once(end).unwrap();
        assert!(!rest.contains(begin) && inner.len() > 100, "{begin} occurs once and is not empty");
        let hash = ring::digest::digest(&ring::digest::SHA256, inner.as_bytes());
        let hash = base64::Engine::encode(&base64::prelude::BASE64_STANDARD, hash);
        assert!(
            page.header("content-security-policy").contains(&format!("{directive} 'sha256-{hash}'")),
            "{directive}"
        );
    }
    for elsewhere in ["src=\"http", "href=\"http", "@import", "url(http", "//cdn"] {
        assert!(!text.contains(elsewhere), "{elsewhere}");
    }
    assert_eq!((page.header("x-frame-options"), page.header("cache-control")), ("DENY", "no-store"));
}

#[tokio::test]
async fn the_log_level_can_be_switched_at_run_time() {
    let folder = folder("log-level");
    let file = folder.join("config.toml");
    std::fs::write(&file, "[log]\nformat = \"json\"\n").unwrap();
    let simulator = Simulator::start().await.unwrap();
    let mut gateway = Process::start(&simulator, &file).await;
    let (http, token, url) =
        (Http::new(), simulator.token(PROJECT), format!("{}/v2/{PROJECT}/products", gateway.proxy));
    let ask = async || http.send(Method::GET, &url, &[("x-auth-token", &token)], "").await;
    let level = format!("{}/log-level", gateway.admin);
    let put = async |level_name: &'static str| http.send(Method::PUT, &level, &[], level_name).await;
    assert_eq!(http.get(&level).await.json(), json!({ "log_level": "info" }));
    assert_eq!(put("warn\n").await.json(), json!({ "log_level": "warn" }));
    // The head becomes known to the fast path while requests are not logged.
    for _ in 0..4 {
        ask().await;
    }
    assert_eq!(put("info").await.json(), json!({ "log_level": "info" }));
    gateway.wait_for_log("log level set").await;
    for _ in 0..3 {
        ask().await;
        let event = gateway.wait_for_log("request").await;
        assert_eq!((&event["result"], &event["path"]), (&json!("hit"), &json!(format!("/v2/{PROJECT}/products"))));
    }
    // A hit on the fast path is no longer logged.
    put("warn").await;
    ask().await;
    for wrong in ["", "loud", "INFO", "info,debug"] {
        let reply = http.send(Method::PUT, &level, &[], wrong).await;
        assert_eq!(reply.status(), StatusCode::BAD_REQUEST);
        assert!(reply.text().contains("expected error, warn, info, debug or trace"), "{}", reply.text());
    }
    // A reload with another changed setting keeps the level. A reload that changes log.level sets it.
    std::fs::write(&file, "[log]\nformat = \"json\"\n[cache]\nttl = \"1m\"").unwrap();
    gateway.signal("HUP");
    std::fs::write(&file, "[log]\nformat = \"json\"\nlevel = \"debug\"\n[cache]\nttl = \"1m\"").unwrap();
    gateway.signal("HUP");
    let event = gateway.wait_for_log("configuration reloaded").await;
    assert!(event["changed"].as_str().unwrap().contains("log.level"), "{event}");
    assert_eq!(http.get(&level).await.json(), json!({ "log_level": "debug" }));
    let (_, log) = gateway.terminate().await;
    let logged_hits = log.lines().filter(|line| line.contains("\"result\":\"hit\"")).count();
    assert_eq!(logged_hits, 3, "{log}");
    std::fs::remove_dir_all(folder).unwrap();
}
