//! The access log: caller, request and result of each request. Unknown fields are left out.

use std::path::PathBuf;

use http::{Method, StatusCode};
use serde_json::{Map, Value, json};
use workspace_gateway::testing::simulator::Simulator;

use crate::support::process::{Process, folder};
use crate::support::{Http, PROJECT, within};

/// A `serve` process that logs JSON, and its client.
struct Fixture {
    simulator: Simulator,
    process: Process,
    http: Http,
    file: PathBuf,
}

impl Fixture {
    async fn start(name: &str, settings: &str) -> Self {
        let simulator = Simulator::start().await.unwrap();
        let file = folder(name).join("config.toml");
        std::fs::write(&file, format!("[log]\nformat = \"json\"\n{settings}")).unwrap();
        let process = Process::start(&simulator, &file).await;
        Self { simulator, process, http: Http::new(), file }
    }

    async fn get(&self, target: &str, headers: &[(&str, &str)]) -> StatusCode {
        let url = format!("{}{}", self.process.proxy, target.replace("PROJECT", PROJECT));
        within(self.http.send(Method::GET, &url, headers, "")).await.status()
    }

    /// Stops the process and returns the access log lines in order.
    async fn access_log(self) -> Vec<Map<String, Value>> {
        drop(self.http);
        let (_, log) = self.process.terminate().await;
        let lines = log.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
        let lines = lines.filter(|line| line["message"] == "request");
        lines.map(|line| line.as_object().unwrap().clone()).collect()
    }
}

const LIST: &str = "/v2/PROJECT/products";

fn is_digest(value: &Value) -> bool {
    value.as_str().is_some_and(|text| text.len() == 16 && text.bytes().all(|byte| byte.is_ascii_hexdigit()))
}

#[tokio::test]
async fn access_log_lines_name_the_caller_the_request_and_the_result() {
    let fixture = Fixture::start("access-lines", "").await;
    let (one, two) = (fixture.simulator.token(PROJECT), fixture.simulator.token(PROJECT));
    let long = "a".repeat(500);
    for (target, headers) in [
        (LIST, vec![("x-auth-token", &*one), ("user-agent", "one/1 (\"x\"\t\u{e9})")]),
        // On the fast path.
        (LIST, vec![("x-auth-token", &*one), ("user-agent", "one/1")]),
        (LIST, vec![("x-auth-token", &*one), ("user-agent", "one/1")]),
        (LIST, vec![("x-auth-token", &*one), ("user-agent", "one/1")]),
        (LIST, vec![("x-auth-token", &*two), ("user-agent", &*long)]),
        ("/v2/PROJECT/products?limit=1", vec![("x-auth-token", &*two), ("range", "bytes=0-1")]),
        ("/v2/PROJECT/elsewhere", vec![("x-auth-token", &*two)]),
        // Without a caller.
        (LIST, vec![]),
        (LIST, vec![("authorization", "SDK-HMAC-SHA256 Access=A, SignedHeaders=x, Signature=00")]),
    ] {
        fixture.get(target, &headers).await;
    }
    let page = fixture.http.get(&format!("{}/metrics", fixture.process.metrics)).await;
    assert!(page.text().contains("\nworkspace_gateway_fast_path_hits_total 1\n"), "no request took the fast path");
    let lines = fixture.access_log().await;
    let all = |name: &str| lines.iter().map(|line| line.get(name).cloned()).collect::<Vec<_>>();
    assert!(all("client").iter().all(|client| *client == Some(json!("127.0.0.1"))));

    let callers = all("caller");
    assert!(is_digest(callers[0].as_ref().unwrap()) && is_digest(callers[4].as_ref().unwrap()), "{callers:?}");
    assert!(callers[..4].iter().all(|caller| *caller == callers[0]), "{callers:?}");
    assert!(callers[4] != callers[0] && callers[5..7].iter().all(|caller| *caller == callers[4]), "{callers:?}");
    assert_eq!(callers[7..], [None, None], "an unverified credential is no caller");

    let agents = all("user_agent");
    assert_eq!(agents[0], Some(json!("one/1 (\"x\"\\t\\xc3\\xa9)")));
    assert!(agents[1..4].iter().all(|agent| *agent == Some(json!("one/1"))), "{agents:?}");
    assert_eq!((&agents[4], &agents[5]), (&Some(json!("a".repeat(128))), &None));

    let keys = all("key");
    assert!(keys[..5].iter().all(|key| is_digest(key.as_ref().unwrap()) && *key == keys[0]), "{keys:?}");
    assert_eq!(keys[5..], [const { None }; 4], "these requests have no cache key");

    let results: Vec<_> = lines
        .iter()
        .map(|line| ["result", "miss", "detail"].map(|name| line.get(name).and_then(Value::as_str)))
        .collect();
    assert_eq!(results[0], [Some("miss"), Some("no-grant"), Some("proved")]);
    assert_eq!(results[1..4], [[Some("hit"), None, None]; 3]);
    assert_eq!(results[4], [Some("miss"), Some("no-grant"), Some("proved")]);
    assert_eq!(results[5], [Some("bypass"), None, Some("range")]);
    assert_eq!(results[6], [Some("pass-through"), None, None]);

    let upstream = all("upstream_ms");
    let has_call = [true, false, false, false, true, true, true];
    assert_eq!(upstream[..7].iter().map(Option::is_some).collect::<Vec<_>>(), has_call);
    for line in &lines {
        let [took, upstream] = ["total_ms", "upstream_ms"].map(|name| line.get(name).map(|ms| ms.as_f64().unwrap()));
        assert!(upstream.is_none_or(|upstream| upstream <= took.unwrap()), "{line:?}");
        let is_empty = |value: &Value| value.is_null() || value == "";
        assert!(!line.values().any(is_empty), "{line:?}");
    }
}

#[tokio::test]
async fn the_access_setting_selects_the_requests_that_are_logged() {
    let mut fixture = Fixture::start("access-setting", "access = \"slow-and-failed\"\n[cache]\nttl = \"1s\"\n").await;
    let token = fixture.simulator.token(PROJECT);
    let headers: &[(&str, &str)] = &[("x-auth-token", &token)];
    assert_eq!(fixture.get(LIST, headers).await, StatusCode::OK);
    assert_eq!(fixture.get("/nowhere", headers).await, StatusCode::NOT_FOUND);
    fixture.simulator.reset_connections(true);
    assert_eq!(fixture.get("/v2/PROJECT/products?limit=1", headers).await, StatusCode::BAD_GATEWAY);
    fixture.simulator.reset_connections(false);
    fixture.simulator.fail_with(Some(StatusCode::SERVICE_UNAVAILABLE));
    assert_eq!(fixture.get("/v2/PROJECT/products?limit=2", headers).await, StatusCode::SERVICE_UNAVAILABLE);
    fixture.simulator.fail_with(None);
    for (access, limit) in [("off", 3), ("all", 4)] {
        std::fs::write(
            &fixture.file,
            format!("[log]\nformat = \"json\"\naccess = \"{access}\"\n[cache]\nttl = \"1s\"\n"),
        )
        .unwrap();
        fixture.process.signal("HUP");
        assert_eq!(fixture.process.wait_for_log("configuration reloaded").await["changed"], "log.access");
        fixture.get(&format!("/v2/PROJECT/products?limit={limit}"), headers).await;
    }
    let lines = fixture.access_log().await;
    // On a busy machine a request may be slow, and slow requests are logged, too.
    let is_quick = |line: &&Map<String, Value>| line["total_ms"].as_f64().unwrap() <= 1_000.0;
    let logged: Vec<_> = lines
        .iter()
        .filter(|line| is_quick(line) || line["status"].as_u64() >= Some(500))
        .map(|line| (line["result"].clone(), line["status"].clone(), line.get("failure")))
        .collect();
    assert_eq!(
        logged,
        [
            (json!("miss"), json!(502), Some(&json!("broken"))),
            (json!("miss"), json!(503), None),
            (json!("miss"), json!(200), None),
        ]
    );
}
