//! Traces (W3C Trace Context): continued upstream where a product list is asked for, left alone where a request passes
//! through, and told in the log.

use http::StatusCode;
use serde_json::json;
use workspace_gateway::testing::simulator::Simulator;

use crate::support::process::{Process, folder};
use crate::support::{Http, PROJECT, World};

const LIST: &str = "/v2/PROJECT/products";
const TRACE: &str = "4bf92f3577b34da6a3ce929d0e0e4736";
const PARENT: &str = "00f067aa0ba902b7";

/// The `traceparent` that upstream has seen last.
fn seen(world: &World) -> Option<String> {
    let headers = world.simulator.requests_seen().pop().unwrap().headers;
    assert!(headers.get_all("traceparent").iter().count() <= 1);
    headers.get("traceparent").map(|value| value.to_str().unwrap().to_owned())
}

fn traceparent(flags: &str) -> String {
    format!("00-{TRACE}-{PARENT}-{flags}")
}

#[tokio::test]
async fn upstream_is_asked_as_a_part_of_the_clients_trace() {
    let world = World::new().await;
    let mut parents = Vec::new();
    for (query, flags) in [("limit=1", "00"), ("limit=2", "01")] {
        world
            .get_with(&format!("{LIST}?{query}"), &[("traceparent", &traceparent(flags)), ("tracestate", "a=1")])
            .await;
        let seen = seen(&world).unwrap();
        let parts: Vec<&str> = seen.split('-').collect();
        assert_eq!((parts[0], parts[1], parts[3], parts.len()), ("00", TRACE, flags, 4), "{seen}");
        parents.push(parts[2].to_owned());
        assert!(!world.simulator.requests_seen().pop().unwrap().headers.contains_key("tracestate"));
    }
    assert!(parents[0] != parents[1] && !parents.contains(&PARENT.to_owned()), "{parents:?}");
}

#[tokio::test]
async fn what_names_no_trace_is_not_sent() {
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
        assert_eq!(seen(&world), None, "{headers:?}");
    }
    // What is named here is for this hop.
    world.get_with(LIST, &[("traceparent", &hop), ("connection", "traceparent")]).await;
    assert_eq!(seen(&world), None);
}

#[tokio::test]
async fn a_trace_is_no_part_of_the_question() {
    let world = World::new().await;
    world.get_with(LIST, &[("traceparent", &traceparent("01"))]).await;
    assert!(world.get(LIST).await.is_hit());
    assert!(world.get_with(LIST, &[("traceparent", &traceparent("00"))]).await.is_hit());
    assert_eq!(world.upstream_calls(), 1);
}

#[tokio::test]
async fn what_passes_through_keeps_its_own() {
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
async fn the_log_tells_the_trace_and_the_gateways_part_in_it() {
    let folder = folder("tracing");
    let file = folder.join("config.toml");
    std::fs::write(&file, "[log]\nformat = \"json\"\n").unwrap();
    let simulator = Simulator::start().await.unwrap();
    let mut gateway = Process::start(&simulator, &file).await;
    let (http, token, url) =
        (Http::new(), simulator.token(PROJECT), format!("{}/v2/{PROJECT}/products", gateway.proxy));
    let mut told = Vec::new();
    // Lookup, from memory, and from memory with a head that could be known by now.
    for _ in 0..4 {
        let headers = [("x-auth-token", &*token), ("traceparent", &*traceparent("01"))];
        http.send(http::Method::GET, &url, &headers, "").await;
        told.push(gateway.says("request").await);
    }
    // All fields are told, the traces' among them.
    let operating = include_str!("../deploy/operating.md");
    let standard = ["timestamp", "level", "message", "target"];
    for field in told[0].as_object().unwrap().keys().filter(|field| !standard.contains(&&***field)) {
        assert!(operating.contains(&format!("`{field}`")), "{field}");
    }
    let sent = simulator.requests_seen().pop().unwrap().headers["traceparent"].to_str().unwrap().to_owned();
    assert_eq!(told[0]["span_id"], sent.split('-').nth(2).unwrap());
    for event in &told {
        assert_eq!(event["trace_id"], TRACE, "{event}");
    }
    for (event, result) in told.iter().zip(["miss", "hit", "hit", "hit"]) {
        assert_eq!(event["result"], result);
    }
    assert!(told[1..].iter().all(|event| event.get("span_id").is_none()), "nobody was asked for these");
    http.send(http::Method::GET, &url, &[("x-auth-token", &token)], "").await;
    let untraced = gateway.says("request").await;
    assert_eq!(untraced.get("trace_id").unwrap_or(&json!(null)), &json!(null));
    gateway.terminate().await;
    std::fs::remove_dir_all(folder).unwrap();
}
