//! What the log of the program says of events: an outage and its end, throttling, and the memory budget.

use http::header::RETRY_AFTER;
use http::{HeaderValue, Method, StatusCode};
use serde_json::{Value, json};
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;
use workspace_gateway::testing::simulator::Simulator;

use crate::support::line::head_as;
use crate::support::process::{Process, folder};
use crate::support::{Http, PROJECT, within};

/// A `serve` that logs JSON, and whoever asks it.
struct Bench {
    simulator: Simulator,
    process: Process,
    http: Http,
    token: String,
}

impl Bench {
    /// Its token is known by an answer to it.
    async fn start(name: &str, settings: &str) -> Self {
        let simulator = Simulator::start().await.unwrap();
        let file = folder(name).join("config.toml");
        std::fs::write(&file, format!("[log]\nformat = \"json\"\n{settings}")).unwrap();
        let process = Process::start(&simulator, &file).await;
        let token = simulator.token(PROJECT);
        let bench = Self { simulator, process, http: Http::new(), token };
        assert_eq!(bench.asks("products?limit=1").await, StatusCode::OK);
        bench
    }

    /// Asks for something in the project.
    async fn asks(&self, target: &str) -> StatusCode {
        let url = format!("{}/v2/{PROJECT}/{target}", self.process.proxy);
        within(self.http.send(Method::GET, &url, &[("x-auth-token", &self.token)], "")).await.status()
    }

    /// Ends it. All lines about an event.
    async fn lines(self, event: &str) -> Vec<Value> {
        drop(self.http);
        let (_, log) = self.process.terminate().await;
        let lines = log.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
        lines.filter(|line| line["event"] == event).collect()
    }
}

#[tokio::test]
async fn an_outage_is_one_warning_and_its_end_one_line_with_the_number_of_failed_calls() {
    let mut bench = Bench::start("log-outage", "").await;
    let before = bench.simulator.request_count();
    bench.simulator.fail_with(Some(StatusCode::SERVICE_UNAVAILABLE));
    for limit in 2..6 {
        assert_eq!(bench.asks(&format!("products?limit={limit}")).await, StatusCode::SERVICE_UNAVAILABLE);
    }
    let begins = bench.process.says("workspace is failing: 503 Service Unavailable").await;
    let told = ["level", "event", "service", "count"].map(|field| &begins[field]);
    assert_eq!(told, [&json!("WARN"), &json!("outage"), &json!("workspace"), &json!(1)]);
    let failed = bench.simulator.request_count() - before;
    bench.simulator.fail_with(None);
    assert_eq!(bench.asks("products?limit=6").await, StatusCode::OK);
    let ends = bench.process.says("workspace answers again").await;
    let told = ["level", "event", "service", "count"].map(|field| &ends[field]);
    assert_eq!(told, [&json!("INFO"), &json!("recovery"), &json!("workspace"), &json!(failed)]);
    assert!(ends["duration_s"].is_u64(), "{ends}");
    assert_eq!(bench.lines("outage").await.len(), 1);
}

#[tokio::test]
async fn throttling_is_one_warning_for_each_scope_without_the_whole_project_id() {
    let mut bench = Bench::start("log-throttled", "").await;
    bench.simulator.throttle(Some(0));
    for limit in 2..5 {
        assert_eq!(bench.asks(&format!("products?limit={limit}")).await, StatusCode::TOO_MANY_REQUESTS);
    }
    let told = bench.process.says("workspace throttles calls: 429 Too Many Requests").await;
    assert_eq!((&told["level"], &told["event"]), (&json!("WARN"), &json!("throttled")));
    assert_eq!((&told["service"], &told["operation"]), (&json!("workspace"), &json!("ListProducts")));
    assert!(told["project"].as_str().unwrap().contains('…') && !told.to_string().contains(PROJECT), "{told}");
    for _ in 0..2 {
        assert_eq!(bench.asks("desktops").await, StatusCode::TOO_MANY_REQUESTS);
    }
    let relayed = bench.process.says("workspace throttles calls: 429 Too Many Requests").await;
    assert_eq!((&relayed["operation"], &relayed["count"]), (&Value::Null, &json!(1)));
    // Both again at the end, with the number of repetitions.
    let lines = bench.lines("throttled").await;
    let counts: Vec<_> = lines.iter().map(|line| line["count"].as_u64().unwrap()).collect();
    assert_eq!(counts, [1, 1, 2, 1]);
}

/// Also a 503 says so, if it has `Retry-After`. It is an outage, too.
#[tokio::test]
async fn a_503_that_asks_to_retry_later_is_an_event() {
    let mut bench = Bench::start("log-retry-later", "").await;
    bench.simulator.fail_with(Some(StatusCode::SERVICE_UNAVAILABLE));
    assert_eq!(bench.asks("products?limit=2").await, StatusCode::SERVICE_UNAVAILABLE);
    bench.process.says("workspace is failing: 503 Service Unavailable").await;
    bench.simulator.add_header(RETRY_AFTER, HeaderValue::from_static("0"));
    assert_eq!(bench.asks("products?limit=3").await, StatusCode::SERVICE_UNAVAILABLE);
    let told = bench.process.says("workspace asks to retry later: 503 Service Unavailable").await;
    let told = ["level", "event", "service", "count"].map(|field| &told[field]);
    assert_eq!(told, [&json!("WARN"), &json!("throttled"), &json!("workspace"), &json!(1)]);
    assert_eq!(bench.lines("throttled").await.len(), 1);
}

#[tokio::test]
async fn repetitions_that_were_only_counted_are_logged_at_the_end() {
    let mut bench = Bench::start("log-rest", "").await;
    bench.simulator.throttle(Some(0));
    for limit in 2..5 {
        assert_eq!(bench.asks(&format!("products?limit={limit}")).await, StatusCode::TOO_MANY_REQUESTS);
    }
    let first = bench.process.says("workspace throttles calls: 429 Too Many Requests").await;
    assert_eq!(first["count"], json!(1));
    let lines = bench.lines("throttled").await;
    let counts: u64 = lines.iter().map(|line| line["count"].as_u64().unwrap()).sum();
    assert_eq!((lines.len(), counts), (2, 3), "{lines:?}");
}

#[tokio::test]
async fn calls_that_fail_alike_are_one_warning_and_one_with_their_number_at_the_end() {
    let Bench { simulator, process, http, token } = Bench::start("log-failures", "").await;
    simulator.reset_connection(true);
    for limit in 2..6 {
        let url = format!("{}/v2/{PROJECT}/desktops?limit={limit}", process.proxy);
        let answer = within(http.send(Method::GET, &url, &[("x-auth-token", &token)], "")).await;
        assert_eq!(answer.status(), StatusCode::BAD_GATEWAY);
    }
    drop(http);
    let (_, log) = process.terminate().await;
    let lines = log.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
    let failed: Vec<Value> = lines.filter(|line| line["message"] == "upstream request failed").collect();
    let told: Vec<_> = failed.iter().map(|line| (&line["level"], &line["cause"], &line["count"])).collect();
    let warned = |count: u64| (json!("WARN"), json!("broken"), json!(count));
    let expected = [warned(1), warned(3)];
    assert_eq!(told, expected.each_ref().map(|(level, cause, count)| (level, cause, count)), "{log}");
    assert!(failed[0]["error"].is_string() && failed[0]["request_id"].is_string(), "{failed:?}");
}

#[tokio::test]
async fn that_the_memory_budget_is_reached_is_one_warning_and_that_it_has_room_again_one_line() {
    let mut bench = Bench::start("log-memory", "[limits]\nmemory = \"8MiB\"\n").await;
    bench.simulator.hold();
    let address = bench.process.proxy.strip_prefix("http://").unwrap().to_owned();
    let mut clients = Vec::new();
    // More than there is room for, and none is answered.
    for number in 0..400 {
        let mut client = within(TcpStream::connect(&address)).await.unwrap();
        let head = head_as(&format!("unknown-{number}"), "/v2/PROJECT/products", &[]);
        within(client.write_all(head.as_bytes())).await.unwrap();
        clients.push(client);
    }
    let begins = bench.process.says("the memory budget is reached").await;
    assert_eq!((&begins["level"], &begins["event"]), (&json!("WARN"), &json!("memory-reached")));
    drop(clients);
    bench.simulator.release();
    let ends = bench.process.says("the memory budget has room again").await;
    assert_eq!((&ends["level"], &ends["event"]), (&json!("INFO"), &json!("memory-free")));
    assert!(ends["duration_s"].is_u64() && ends["count"].as_u64().unwrap() > 0, "{ends}");
    assert_eq!(bench.lines("memory-reached").await.len(), 1);
}
