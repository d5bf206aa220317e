//! Traces (W3C Trace Context): the gateway continues them in its own upstream requests and logs them. It must not
//! change the trace headers of relayed requests.

use http::StatusCode;
use serde_json::json;
use workspace_gateway::testing::simulator::Simulator;

use crate::support::process::{Process, folder};
use crate::support::{Http, PROJECT, World};

const LIST: &str = "/v2/PROJECT/products";
const TRACE: &str = "4bf92f3577b34da6a3ce929d0e0e4736";
const PARENT: &str = "00f067aa0ba902b7";

/// The `traceparent` of the last upstream request.
fn traceparent_seen(world: &World) -> Option<String> {
    let headers = world.simulator.requests_seen().pop().unwrap().headers;
    assert!(headers.get_all("traceparent").iter().count() <= 1);
    headers.get("traceparent").map(|value| value.to_str().unwrap().to_owned())
}

fn traceparent(flags: &str) -> String {
    format!("00-{TRACE}-{PARENT}-{flags}")
}

#[tokio::test]
async fn upstream_requests_continue_the_clients_trace() {
    let world = World::new().await;
    let mut parents = Vec::new();
    for (query, flags) in [("limit=1", "00"), ("limit=2", "01")] {
        world
            .get_with(&format!("{LIST}?{query}"), &[("traceparent", &traceparent(flags)), ("tracestate", "a=1")])
            .await;
        let seen = traceparent_seen(&world).unwrap();
        let parts: Vec<&str> = seen.split('-').collect();
        assert_eq!((parts[0], parts[1], parts[3], parts.len()), ("00", TRACE, flags, 4), "{seen}");
        parents.push(parts[2].to_owned());
        assert!(!world.simulator.requests_seen().pop().unwrap().headers.contains_key("tracestate"));
    }
    assert!(parents[0] != parents[1] && !parents.contains(&PARENT.to_owned()), "{parents:?}");
}

#[tokio::test]
async fn invalid_traceparents_are_not_forwarded() {
    let world = World::new().await;
    let (twice, hop) = (traceparent("01"), traceparent("01"));
    for (number, headers) in [
        vec![],
        vec![("traceparent", "odd")],
        vec![("traceparent", &*twice), ("traceparent", &*twice)],
        vec![("tracestate", "a=1")],
    ]
    .into_iter()
    .enumerate()
    {
        world.get_with(&format!("{LIST}?limit={}", number + 1), &headers).await;
        assert_eq!(traceparent_seen(&world), None, "{headers:?}");
    }
    // A header that `Connection` names is for this hop only (RFC 9110 §7.6.1).
    world.get_with(LIST, &[("traceparent", &hop), ("connection", "traceparent")]).await;
    assert_eq!(traceparent_seen(&world), None);
}

#[tokio::test]
async fn trace_headers_are_not_part_of_the_cache_key() {
    let world = World::new().await;
    world.get_with(LIST, &[("traceparent", &traceparent("01"))]).await;
    assert!(world.get(LIST).await.is_hit());
    assert!(world.get_with(LIST, &[("traceparent", &traceparent("00"))]).await.is_hit());
    assert_eq!(world.upstream_calls(), 1);
}

#[tokio::test]
async fn relayed_requests_keep_their_trace_headers() {
    let world = World::new().await;
    let given = [("traceparent", &*traceparent("01")), ("tracestate", "a=1")];
    let reply = world.get_with(&format!("/v2/{PROJECT}/desktops"), &given).await;
    assert_ne!(reply.status(), StatusCode::BAD_GATEWAY);
    let headers = world.simulator.requests_seen().pop().unwrap().headers;
    for (name, value) in given {
        assert_eq!(headers[name], value);
    }
}

#[tokio::test]
async fn the_access_log_has_the_trace_id_and_the_gateways_span_id() {
    let folder = folder("tracing");
    let file = folder.join("config.toml");
    std::fs::write(&file, "[log]\nformat = \"json\"\n").unwrap();
    let simulator = Simulator::start().await.unwrap();
    let mut gateway = Process::start(&simulator, &file).await;
    let (http, token, url) =
        (Http::new(), simulator.token(PROJECT), format!("{}/v2/{PROJECT}/products", gateway.proxy));
    let mut events = Vec::new();
    // A miss, a hit, and hits on the fast path.
    for _ in 0..4 {
        let headers = [("x-auth-token", &*token), ("traceparent", &*traceparent("01"))];
        http.send(http::Method::GET, &url, &headers, "").await;
        events.push(gateway.wait_for_log("request").await);
    }
    // All fields are documented.
    let operating = include_str!("../deploy/operating.md");
    let standard = ["timestamp", "level", "message", "target"];
    for field in events[0].as_object().unwrap().keys().filter(|field| !standard.contains(&&***field)) {
        assert!(operating.contains(&format!("`{field}`")), "{field}");
    }
    let sent = simulator.requests_seen().pop().unwrap().headers["traceparent"].to_str().unwrap().to_owned();
    assert_eq!(events[0]["span_id"], sent.split('-').nth(2).unwrap());
    for event in &events {
        assert_eq!(event["trace_id"], TRACE, "{event}");
    }
    for (event, result) in events.iter().zip(["miss", "hit", "hit", "hit"]) {
        assert_eq!(event["result"], result);
    }
    assert!(events[1..].iter().all(|event| event.get("span_id").is_none()), "hits cause no upstream request");
    http.send(http::Method::GET, &url, &[("x-auth-token", &token)], "").await;
    let untraced = gateway.wait_for_log("request").await;
    assert_eq!(untraced.get("trace_id").unwrap_or(&json!(null)), &json!(null));
    gateway.terminate().await;
    std::fs::remove_dir_all(folder).unwrap();
}
