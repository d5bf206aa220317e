//! The log's line of each request: who asked, for what, and what came of it. What is not known is left out.

use std::path::PathBuf;

use http::{Method, StatusCode};
use serde_json::{Map, Value, json};
use workspace_gateway::testing::simulator::Simulator;

use crate::support::process::{Process, folder};
use crate::support::{Http, PROJECT, within};

/// A `serve` that logs JSON, and whoever asks it.
struct Bench {
    simulator: Simulator,
    process: Process,
    http: Http,
    file: PathBuf,
}

impl Bench {
    async fn start(name: &str, settings: &str) -> Self {
        let simulator = Simulator::start().await.unwrap();
        let file = folder(name).join("config.toml");
        std::fs::write(&file, format!("[log]\nformat = \"json\"\n{settings}")).unwrap();
        let process = Process::start(&simulator, &file).await;
        Self { simulator, process, http: Http::new(), file }
    }

    async fn asks(&self, target: &str, headers: &[(&str, &str)]) -> StatusCode {
        let url = format!("{}{}", self.process.proxy, target.replace("PROJECT", PROJECT));
        within(self.http.send(Method::GET, &url, headers, "")).await.status()
    }

    /// Ends it. The lines of all requests, in order.
    async fn lines(self) -> Vec<Map<String, Value>> {
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
async fn a_line_says_who_asked_for_what_and_why_upstream_was_asked() {
    let bench = Bench::start("access-who", "").await;
    let (one, two) = (bench.simulator.token(PROJECT), bench.simulator.token(PROJECT));
    let long = "a".repeat(500);
    for (target, headers) in [
        (LIST, vec![("x-auth-token", &*one), ("user-agent", "one/1 (\"x\"\t\u{e9})")]),
        // By heads that have come before.
        (LIST, vec![("x-auth-token", &*one), ("user-agent", "one/1")]),
        (LIST, vec![("x-auth-token", &*one), ("user-agent", "one/1")]),
        (LIST, vec![("x-auth-token", &*one), ("user-agent", "one/1")]),
        (LIST, vec![("x-auth-token", &*two), ("user-agent", &*long)]),
        ("/v2/PROJECT/products?limit=1", vec![("x-auth-token", &*two), ("range", "bytes=0-1")]),
        ("/v2/PROJECT/elsewhere", vec![("x-auth-token", &*two)]),
        // Nobody's.
        (LIST, vec![]),
        (LIST, vec![("authorization", "SDK-HMAC-SHA256 Access=A, SignedHeaders=x, Signature=00")]),
    ] {
        bench.asks(target, &headers).await;
    }
    let page = bench.http.get(&format!("{}/metrics", bench.process.metrics)).await;
    assert!(page.text().contains("\nworkspace_gateway_fast_path_hits_total 1\n"), "none took the fast path");
    let lines = bench.lines().await;
    let all = |name: &str| lines.iter().map(|line| line.get(name).cloned()).collect::<Vec<_>>();
    assert!(all("client").iter().all(|client| *client == Some(json!("127.0.0.1"))));

    let callers = all("caller");
    assert!(is_digest(callers[0].as_ref().unwrap()) && is_digest(callers[4].as_ref().unwrap()), "{callers:?}");
    assert!(callers[..4].iter().all(|caller| *caller == callers[0]), "{callers:?}");
    assert!(callers[4] != callers[0] && callers[5..7].iter().all(|caller| *caller == callers[4]), "{callers:?}");
    assert_eq!(callers[7..], [None, None], "what is not verified is nobody's");

    let agents = all("user_agent");
    assert_eq!(agents[0], Some(json!("one/1 (\"x\"\\t\\xc3\\xa9)")));
    assert!(agents[1..4].iter().all(|agent| *agent == Some(json!("one/1"))), "{agents:?}");
    assert_eq!((&agents[4], &agents[5]), (&Some(json!("a".repeat(128))), &None));

    let keys = all("key");
    assert!(keys[..5].iter().all(|key| is_digest(key.as_ref().unwrap()) && *key == keys[0]), "{keys:?}");
    assert_eq!(keys[5..], [const { None }; 4], "none was read");

    let said: Vec<_> = lines
        .iter()
        .map(|line| ["result", "miss", "detail"].map(|name| line.get(name).and_then(Value::as_str)))
        .collect();
    assert_eq!(said[0], [Some("miss"), Some("no-grant"), Some("proved")]);
    assert_eq!(said[1..4], [[Some("hit"), None, None]; 3]);
    assert_eq!(said[4], [Some("miss"), Some("no-grant"), Some("proved")]);
    assert_eq!(said[5], [Some("bypass"), None, Some("range")]);
    assert_eq!(said[6], [Some("pass-through"), None, None]);

    let upstream = all("upstream_ms");
    let was_asked = [true, false, false, false, true, true, true];
    assert_eq!(upstream[..7].iter().map(Option::is_some).collect::<Vec<_>>(), was_asked);
    for line in &lines {
        let [took, upstream] = ["total_ms", "upstream_ms"].map(|name| line.get(name).map(|ms| ms.as_f64().unwrap()));
        assert!(upstream.is_none_or(|upstream| upstream <= took.unwrap()), "{line:?}");
        let is_empty = |value: &Value| value.is_null() || value == "";
        assert!(!line.values().any(is_empty), "{line:?}");
    }
}

#[tokio::test]
async fn only_what_has_failed_has_a_line_if_that_is_set_and_nothing_if_it_is_off() {
    let mut bench = Bench::start("access-some", "access = \"slow-and-failed\"\n[cache]\nttl = \"1s\"\n").await;
    let token = bench.simulator.token(PROJECT);
    let headers: &[(&str, &str)] = &[("x-auth-token", &token)];
    assert_eq!(bench.asks(LIST, headers).await, StatusCode::OK);
    assert_eq!(bench.asks("/nowhere", headers).await, StatusCode::NOT_FOUND);
    bench.simulator.reset_connection(true);
    assert_eq!(bench.asks("/v2/PROJECT/products?limit=1", headers).await, StatusCode::BAD_GATEWAY);
    bench.simulator.reset_connection(false);
    bench.simulator.fail_with(Some(StatusCode::SERVICE_UNAVAILABLE));
    assert_eq!(bench.asks("/v2/PROJECT/products?limit=2", headers).await, StatusCode::SERVICE_UNAVAILABLE);
    bench.simulator.fail_with(None);
    for (access, limit) in [("off", 3), ("all", 4)] {
        std::fs::write(
            &bench.file,
            format!("[log]\nformat = \"json\"\naccess = \"{access}\"\n[cache]\nttl = \"1s\"\n"),
        )
        .unwrap();
        bench.process.signal("HUP");
        assert_eq!(bench.process.says("settings reloaded").await["changed"], "log.access");
        bench.asks(&format!("/v2/PROJECT/products?limit={limit}"), headers).await;
    }
    let lines = bench.lines().await;
    // A machine that is very busy may make a request slow, which has a line, too.
    let is_quick = |line: &&Map<String, Value>| line["total_ms"].as_f64().unwrap() <= 1_000.0;
    let told: Vec<_> = lines
        .iter()
        .filter(|line| is_quick(line) || line["status"].as_u64() >= Some(500))
        .map(|line| (line["result"].clone(), line["status"].clone(), line.get("failure")))
        .collect();
    assert_eq!(
        told,
        [
            (json!("miss"), json!(502), Some(&json!("broken"))),
            (json!("miss"), json!(503), None),
            (json!("miss"), json!(200), None),
        ]
    );
}
