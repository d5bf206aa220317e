//! Events in the log: an outage and its end, throttling, failed calls and the memory budget.

use http::header::RETRY_AFTER;
use http::{HeaderValue, Method, StatusCode};
use serde_json::{Value, json};
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;
use workspace_gateway::testing::simulator::Simulator;

use crate::support::process::{Process, folder};
use crate::support::raw_client::head_as;
use crate::support::{Http, PROJECT, within};

/// A `serve` process that logs JSON, and its client.
struct Fixture {
    simulator: Simulator,
    process: Process,
    http: Http,
    token: String,
}

impl Fixture {
    /// Starts the process and proves the token.
    async fn start(name: &str, settings: &str) -> Self {
        let simulator = Simulator::start().await.unwrap();
        let file = folder(name).join("config.toml");
        std::fs::write(&file, format!("[log]\nformat = \"json\"\n{settings}")).unwrap();
        let process = Process::start(&simulator, &file).await;
        let token = simulator.token(PROJECT);
        let fixture = Self { simulator, process, http: Http::new(), token };
        assert_eq!(fixture.get("products?limit=1").await, StatusCode::OK);
        fixture
    }

    /// Sends a GET for a path in the project and returns the status.
    async fn get(&self, target: &str) -> StatusCode {
        let url = format!("{}/v2/{PROJECT}/{target}", self.process.proxy);
        within(self.http.send(Method::GET, &url, &[("x-auth-token", &self.token)], "")).await.status()
    }

    /// Stops the process and returns all log lines of an event.
    async fn lines(self, event: &str) -> Vec<Value> {
        drop(self.http);
        let (_, log) = self.process.terminate().await;
        let lines = log.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
        lines.filter(|line| line["event"] == event).collect()
    }
}

#[tokio::test]
async fn a_near_miss_is_one_line_with_the_template_and_no_path() {
    let fixture = Fixture::start("log-near-miss", "").await;
    for target in ["products/", "products/?limit=1", "products/", "desktops/"] {
        fixture.get(target).await;
    }
    let lines = fixture.lines("near-miss").await;
    let words = "a request is almost one for ListProducts (/v2/{project_id}/products), but the path ends with a slash";
    let shown = lines.iter().map(|line| (&line["level"], &line["message"], &line["count"])).collect::<Vec<_>>();
    // What was counted is logged when the process ends.
    assert_eq!(
        shown,
        [1, 2].map(|count| (json!("INFO"), json!(words), json!(count))).each_ref().map(|(a, b, c)| (a, b, c))
    );
    assert!(lines.iter().all(|line| !line.to_string().contains(PROJECT)), "{lines:?}");
}

#[tokio::test]
async fn an_outage_is_one_warning_and_its_end_counts_the_failed_calls() {
    let mut fixture = Fixture::start("log-outage", "").await;
    let before = fixture.simulator.request_count();
    fixture.simulator.fail_with(Some(StatusCode::SERVICE_UNAVAILABLE));
    for limit in 2..6 {
        assert_eq!(fixture.get(&format!("products?limit={limit}")).await, StatusCode::SERVICE_UNAVAILABLE);
    }
    let start = fixture.process.wait_for_log("workspace is failing: 503 Service Unavailable").await;
    let fields = ["level", "event", "service", "count"].map(|field| &start[field]);
    assert_eq!(fields, [&json!("WARN"), &json!("outage"), &json!("workspace"), &json!(1)]);
    let failed = fixture.simulator.request_count() - before;
    fixture.simulator.fail_with(None);
    assert_eq!(fixture.get("products?limit=6").await, StatusCode::OK);
    let end = fixture.process.wait_for_log("workspace answers again").await;
    let fields = ["level", "event", "service", "count"].map(|field| &end[field]);
    assert_eq!(fields, [&json!("INFO"), &json!("recovery"), &json!("workspace"), &json!(failed)]);
    assert!(end["duration_s"].is_u64(), "{end}");
    assert_eq!(fixture.lines("outage").await.len(), 1);
}

#[tokio::test]
async fn throttling_is_one_warning_per_scope_without_the_project_id() {
    let mut fixture = Fixture::start("log-throttled", "").await;
    fixture.simulator.throttle(Some(0));
    for limit in 2..5 {
        assert_eq!(fixture.get(&format!("products?limit={limit}")).await, StatusCode::TOO_MANY_REQUESTS);
    }
    let event = fixture.process.wait_for_log("workspace throttles calls: 429 Too Many Requests").await;
    assert_eq!((&event["level"], &event["event"]), (&json!("WARN"), &json!("throttled")));
    assert_eq!((&event["service"], &event["operation"]), (&json!("workspace"), &json!("ListProducts")));
    assert!(event["project"].as_str().unwrap().contains('…') && !event.to_string().contains(PROJECT), "{event}");
    for _ in 0..2 {
        assert_eq!(fixture.get("desktops").await, StatusCode::TOO_MANY_REQUESTS);
    }
    let relayed = fixture.process.wait_for_log("workspace throttles calls: 429 Too Many Requests").await;
    assert_eq!((&relayed["operation"], &relayed["count"]), (&Value::Null, &json!(1)));
    // At shutdown both are logged again, with the number of repetitions.
    let lines = fixture.lines("throttled").await;
    let counts: Vec<_> = lines.iter().map(|line| line["count"].as_u64().unwrap()).collect();
    assert_eq!(counts, [1, 1, 2, 1]);
}

/// The 503 is also logged as an outage.
#[tokio::test]
async fn a_503_with_retry_after_is_logged_as_throttling() {
    let mut fixture = Fixture::start("log-retry-later", "").await;
    fixture.simulator.fail_with(Some(StatusCode::SERVICE_UNAVAILABLE));
    assert_eq!(fixture.get("products?limit=2").await, StatusCode::SERVICE_UNAVAILABLE);
    fixture.process.wait_for_log("workspace is failing: 503 Service Unavailable").await;
    fixture.simulator.add_header(RETRY_AFTER, HeaderValue::from_static("0"));
    assert_eq!(fixture.get("products?limit=3").await, StatusCode::SERVICE_UNAVAILABLE);
    let event = fixture.process.wait_for_log("workspace asks to retry later: 503 Service Unavailable").await;
    let fields = ["level", "event", "service", "count"].map(|field| &event[field]);
    assert_eq!(fields, [&json!("WARN"), &json!("throttled"), &json!("workspace"), &json!(1)]);
    assert_eq!(fixture.lines("throttled").await.len(), 1);
}

#[tokio::test]
async fn repeated_events_are_counted_and_logged_at_shutdown() {
    let mut fixture = Fixture::start("log-repeated", "").await;
    fixture.simulator.throttle(Some(0));
    for limit in 2..5 {
        assert_eq!(fixture.get(&format!("products?limit={limit}")).await, StatusCode::TOO_MANY_REQUESTS);
    }
    let first = fixture.process.wait_for_log("workspace throttles calls: 429 Too Many Requests").await;
    assert_eq!(first["count"], json!(1));
    let lines = fixture.lines("throttled").await;
    let counts: u64 = lines.iter().map(|line| line["count"].as_u64().unwrap()).sum();
    assert_eq!((lines.len(), counts), (2, 3), "{lines:?}");
}

#[tokio::test]
async fn equal_failures_are_one_warning_and_their_count_at_shutdown() {
    let Fixture { simulator, process, http, token } = Fixture::start("log-failures", "").await;
    simulator.reset_connections(true);
    for limit in 2..6 {
        let url = format!("{}/v2/{PROJECT}/desktops?limit={limit}", process.proxy);
        let response = within(http.send(Method::GET, &url, &[("x-auth-token", &token)], "")).await;
        assert_eq!(response.status(), StatusCode::BAD_GATEWAY);
    }
    drop(http);
    let (_, log) = process.terminate().await;
    let lines = log.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
    let failed: Vec<Value> = lines.filter(|line| line["message"] == "upstream request failed").collect();
    let logged: Vec<_> = failed.iter().map(|line| (&line["level"], &line["cause"], &line["count"])).collect();
    let warned = |count: u64| (json!("WARN"), json!("broken"), json!(count));
    let expected = [warned(1), warned(3)];
    assert_eq!(logged, expected.each_ref().map(|(level, cause, count)| (level, cause, count)), "{log}");
    assert!(failed[0]["error"].is_string() && failed[0]["request_id"].is_string(), "{failed:?}");
}

#[tokio::test]
async fn reaching_the_memory_budget_is_one_warning_and_its_end_one_line() {
    let mut fixture = Fixture::start("log-memory", "[limits]\nmemory = \"8MiB\"\n").await;
    fixture.simulator.hold();
    let address = fixture.process.proxy.strip_prefix("http://").unwrap().to_owned();
    let mut clients = Vec::new();
    // More requests than fit into the budget, and upstream answers none.
    for number in 0..400 {
        let mut client = within(TcpStream::connect(&address)).await.unwrap();
        let head = head_as(&format!("unknown-{number}"), "/v2/PROJECT/products", &[]);
        within(client.write_all(head.as_bytes())).await.unwrap();
        clients.push(client);
    }
    let start = fixture.process.wait_for_log("memory budget reached").await;
    assert_eq!((&start["level"], &start["event"]), (&json!("WARN"), &json!("memory-reached")));
    drop(clients);
    fixture.simulator.release();
    let end = fixture.process.wait_for_log("memory budget available again").await;
    assert_eq!((&end["level"], &end["event"]), (&json!("INFO"), &json!("memory-free")));
    assert!(end["duration_s"].is_u64() && end["count"].as_u64().unwrap() > 0, "{end}");
    assert_eq!(fixture.lines("memory-reached").await.len(), 1);
}
