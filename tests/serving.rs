//! The gateway as a process: start, log and shutdown. Its output must not contain credentials.

use std::sync::Arc;

use http::header::AGE;
use http::{HeaderValue, Method, StatusCode};
use tokio::net::TcpStream;
use workspace_gateway::testing::simulator::Simulator;

use crate::support::process::{Process, folder};
use crate::support::{Http, PROJECT, World, within};

const LIST: &str = "/v2/PROJECT/products";

/// Starts a gateway that logs everything.
async fn start(simulator: &Simulator, name: &str) -> Process {
    let file = folder(name).join("serve.toml");
    std::fs::write(&file, "[log]\nformat = \"json\"\nlevel = \"trace\"\n").unwrap();
    Process::start(simulator, &file).await
}

#[tokio::test]
async fn each_request_is_logged_and_sigterm_ends_the_process() {
    let simulator = Simulator::start().await.unwrap();
    let process = start(&simulator, "serving-lines").await;
    let (http, token) = (Http::new(), simulator.token(PROJECT));
    let url = format!("{}{}", process.proxy, LIST.replace("PROJECT", PROJECT));
    let mut ids = Vec::new();
    for _ in 0..2 {
        let reply = http.send(Method::GET, &url, &[("x-auth-token", &token)], "").await;
        assert_eq!(reply.status(), StatusCode::OK);
        ids.push(reply.header("x-request-id").to_owned());
    }
    drop(http);
    let (code, log) = process.terminate().await;
    assert_eq!(code, Some(0), "{log}");
    let lines: Vec<serde_json::Value> = log
        .lines()
        .filter_map(|line| serde_json::from_str(line).ok())
        .filter(|event: &serde_json::Value| event["target"] == "workspace_gateway::access")
        .collect();
    assert_eq!(lines.len(), 2, "{log}");
    for (line, result) in lines.iter().zip(["miss", "hit"]) {
        assert_eq!(line["result"], result);
        assert_eq!(
            (&line["operation"], &line["status"], &line["method"]),
            (&"ListProducts".into(), &200.into(), &"GET".into())
        );
        assert_eq!(line["complete"], true);
        assert!(line["total_ms"].as_f64().unwrap() > 0.0 && line["bytes"].as_u64().unwrap() > 0);
    }
    assert_eq!(lines[1]["request_id"], ids[1].as_str());
}

#[tokio::test]
async fn sigterm_right_after_the_start_ends_the_process_with_0() {
    let simulator = Simulator::start().await.unwrap();
    for _ in 0..5 {
        let (code, log) = start(&simulator, "serving-stop").await.terminate().await;
        assert_eq!(code, Some(0), "{log}");
    }
}

#[tokio::test]
async fn output_contains_no_credentials() {
    let simulator = Simulator::start().await.unwrap();
    let process = start(&simulator, "serving-secrets").await;
    let http = Http::new();
    // Long enough to occur in no other text.
    let (valid, invalid) = (simulator.token_of_length(PROJECT, 64), "deadbeefsecret".repeat(4));
    let signature = "SDK-HMAC-SHA256 Access=AKSECRET, SignedHeaders=accept, Signature=deadbeefsignature";
    let host_signature = "SDK-HMAC-SHA256 Access=AKSECRET, SignedHeaders=host, Signature=deadbeefsignature";
    let list = LIST.replace("PROJECT", PROJECT);
    let mut output = String::new();
    for path in [
        list.as_str(),
        "/v2/p/desktops",
        "/nowhere",
        "/v2/p/products?a+b",
        &format!("/v2/{}/products", "p".repeat(300)),
    ] {
        for headers in [
            vec![("x-auth-token", valid.as_str())],
            vec![("x-auth-token", invalid.as_str())],
            vec![("x-auth-token", valid.as_str()), ("x-auth-token", invalid.as_str())],
            vec![("x-auth-token", valid.as_str()), ("via", "1.1 workspace-gateway-00000000")],
            vec![("authorization", signature)],
            vec![("authorization", host_signature)],
            vec![("cookie", invalid.as_str())],
        ] {
            let reply = http.send(Method::GET, &format!("{}{path}", process.proxy), &headers, "").await;
            output += &format!("{reply:?}");
        }
    }
    simulator.shut_down().await;
    let refused =
        http.send(Method::GET, &format!("{}/v2/p/desktops", process.proxy), &[("x-auth-token", &valid)], "").await;
    output += &format!("{refused:?}");
    output += http.get(&format!("{}/metrics", process.metrics)).await.text();
    drop(http);
    let (_, log) = process.terminate().await;
    assert!(log.contains("upstream request failed"), "the log is complete");
    output += &log;
    for secret in [valid.as_str(), &invalid, "deadbeef", "AKSECRET"] {
        assert!(!output.contains(secret), "{secret} in {output}");
    }
}

#[tokio::test]
async fn divergence_is_logged_as_a_warning() {
    let simulator = Simulator::start().await.unwrap();
    // The responses are already stale when they arrive, so each request causes a call.
    simulator.add_header(AGE, HeaderValue::from_static("1000"));
    let (whole, part) = (simulator.token(PROJECT), simulator.token(PROJECT));
    simulator.restrict_view(&part);
    let process = start(&simulator, "serving-views").await;
    let (http, url) = (Http::new(), format!("{}{}", process.proxy, LIST.replace("PROJECT", PROJECT)));
    for token in [&whole, &part, &whole, &part] {
        http.send(Method::GET, &url, &[("x-auth-token", token)], "").await;
    }
    drop(http);
    let (_, log) = process.terminate().await;
    let events = log.lines().map(|line| serde_json::from_str::<serde_json::Value>(line).unwrap());
    let warnings: Vec<_> = events.filter(|event| event["level"] == "WARN").collect();
    assert_eq!(warnings.len(), 1, "{log}");
    assert_eq!((&warnings[0]["event"], &warnings[0]["operation"]), (&"private-scope".into(), &"ListProducts".into()));
    let project = warnings[0]["project"].as_str().unwrap();
    assert!(project.contains('…') && !warnings[0].to_string().contains(PROJECT), "{}", warnings[0]);
}

#[tokio::test]
async fn shutdown_finishes_requests_in_flight_and_accepts_no_new_connections() {
    let world = Arc::new(World::new().await);
    world.simulator.hold();
    let (http, token, url) = (world.http.clone(), world.token.clone(), world.url(LIST));
    let pending = tokio::spawn(async move { http.send(Method::GET, &url, &[("x-auth-token", &token)], "").await });
    within(world.simulator.wait_for_requests(1)).await;

    let World { simulator, server, http, .. } = Arc::try_unwrap(world).unwrap_or_else(|_| panic!("still in use"));
    let (proxy, metrics) = (server.proxy_address(), server.metrics_address());
    let stopping = tokio::spawn(server.stop());
    within(async {
        while http.get(&format!("http://{metrics}/readyz")).await.status() != StatusCode::SERVICE_UNAVAILABLE {}
    })
    .await;
    within(async { while TcpStream::connect(proxy).await.is_ok() {} }).await;
    assert!(!stopping.is_finished());
    simulator.release();
    let reply = within(pending).await.unwrap();
    assert_eq!(reply.status(), StatusCode::OK);
    within(stopping).await.unwrap();
}

#[tokio::test]
async fn shutdown_ends_after_the_shutdown_timeout() {
    let world = World::with("[upstream]\nanswer_timeout = \"1h\"\n[limits]\nshutdown_timeout = \"50ms\"").await;
    world.simulator.hold();
    let (http, token, url) = (world.http.clone(), world.token.clone(), world.url(LIST));
    let pending = tokio::spawn(async move { http.send(Method::GET, &url, &[("x-auth-token", &token)], "").await });
    within(world.simulator.wait_for_requests(1)).await;
    within(world.server.stop()).await;
    assert!(!pending.is_finished());
    pending.abort();
}
