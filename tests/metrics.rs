//! The metrics and health endpoints.

use std::collections::BTreeSet;

use bytes::Bytes;
use http::{Method, Request, StatusCode};
use http_body_util::{BodyExt, Empty};
use tokio::net::TcpStream;
use workspace_gateway::testing::clock::Clock;
use workspace_gateway::testing::gateway::Gateway;

use crate::support::{PROJECT, World, config};

const LIST: &str = "/v2/PROJECT/products?os_type=Linux";

/// The series of a metrics page, without their values.
fn series(page: &str) -> BTreeSet<String> {
    let lines = page.lines().filter(|line| !line.starts_with('#') && !line.starts_with("process_"));
    lines.filter_map(|line| Some(line.rsplit_once(' ')?.0.to_owned())).collect()
}

#[tokio::test]
async fn open_metrics_have_the_traces_of_sampled_requests_and_only_if_they_are_asked_for() {
    let world = World::new().await;
    let trace = |number: u32, flags: u8| format!("00-{number:032x}-00f067aa0ba902b7-{flags:02x}");
    let get = async |value: String| world.get_with(LIST, &[("traceparent", &value)]).await;
    let metrics = |accept: &'static str| async {
        let url = world.metrics_url("/metrics");
        world.http.send(Method::GET, &url, &[("accept", accept)], "").await
    };
    get(trace(1, 1)).await;
    let before = metrics("application/openmetrics-text; version=1.0.0").await;
    assert_eq!(before.header("content-type"), "application/openmetrics-text; version=1.0.0; charset=utf-8");
    assert!(before.text().ends_with("# EOF\n") && !before.text().contains("trace_id"), "{}", before.text());
    // A hit, which the full path answers after the metrics were asked for, and two of the fast path.
    get(trace(2, 1)).await;
    get(trace(3, 1)).await;
    get(trace(4, 0)).await;
    get("odd".to_owned()).await;
    let after = metrics("application/openmetrics-text").await;
    let exemplars: Vec<&str> = after.text().lines().filter(|line| line.contains("trace_id")).collect();
    let is_of_hit = |line: &&&str| line.contains("_bucket{operation=\"ListProducts\",result=\"hit\",le=");
    assert_eq!(exemplars.iter().filter(is_of_hit).count(), exemplars.len(), "{exemplars:?}");
    let latest = format!(" # {{trace_id=\"{:032x}\"}} ", 3);
    assert!(exemplars.iter().any(|line| line.contains(&latest)), "{exemplars:?}");
    assert!(exemplars.iter().all(|line| !line.contains(&format!("{:032x}", 4))), "not sampled: {exemplars:?}");
    assert_eq!(world.metric("workspace_gateway_fast_path_hits_total"), 3.0);
    let plain = metrics("*/*").await;
    assert_eq!(plain.header("content-type"), "text/plain; version=0.0.4");
    assert!(!plain.text().contains("trace_id") && !plain.text().contains("EOF"));
}

#[tokio::test]
async fn the_metrics_page_shows_what_happened() {
    let world = World::new().await;
    world.get(LIST).await;
    world.get(LIST).await;
    world.get("/v2/PROJECT/products?os_type=a+b").await;
    world.get("/v2/PROJECT/desktops").await;
    world.get("/nowhere").await;
    let page = world.http.get(&world.metrics_url("/metrics")).await;
    assert_eq!(page.status(), StatusCode::OK);
    assert_eq!(page.header("content-type"), "text/plain; version=0.0.4");
    for line in [
        "workspace_gateway_requests_total{operation=\"ListProducts\",result=\"hit\",status=\"200\"} 1",
        "workspace_gateway_requests_total{operation=\"ListProducts\",result=\"miss\",status=\"200\"} 1",
        "workspace_gateway_requests_total{operation=\"ListProducts\",result=\"bypass\",status=\"200\"} 1",
        "workspace_gateway_requests_total{operation=\"workspace\",result=\"pass-through\",status=\"200\"} 1",
        "workspace_gateway_requests_total{operation=\"none\",result=\"refused\",status=\"404\"} 1",
        "workspace_gateway_request_duration_seconds_count{operation=\"ListProducts\",result=\"hit\"} 1",
        "workspace_gateway_request_duration_seconds_bucket{operation=\"ListProducts\",result=\"hit\",le=\"0.00005\"} 1",
        "workspace_gateway_request_duration_seconds_bucket{operation=\"ListProducts\",result=\"hit\",le=\"60\"} 1",
        "workspace_gateway_upstream_requests_total{service=\"workspace\",status=\"200\"} 3",
        "workspace_gateway_upstream_duration_seconds_count{service=\"workspace\"} 3",
        "workspace_gateway_upstream_requests_in_flight{service=\"workspace\"} 0",
        "workspace_gateway_bypasses_total{operation=\"ListProducts\",reason=\"plus\"} 1",
        "workspace_gateway_unstored_responses_total{reason=\"not-json\"} 0",
        "workspace_gateway_coalesced_waiters 0",
        "workspace_gateway_entries 1",
        "workspace_gateway_evictions_total{cause=\"size\"} 0",
        "workspace_gateway_requests_in_flight 0",
        "workspace_gateway_connections_ended_total{cause=\"write-timeout\"} 0",
        "workspace_gateway_accept_pauses_total 0",
        "workspace_gateway_accept_errors_total{listener=\"proxy\"} 0",
        concat!("workspace_gateway_build_info{version=\"", env!("CARGO_PKG_VERSION"), "\"} 1"),
    ] {
        assert!(page.text().lines().any(|shown| shown == line), "no {line} in\n{}", page.text());
    }
    for name in ["workspace_gateway_entries_bytes", "process_resident_memory_bytes", "workspace_gateway_connections"] {
        assert!(world.metric(name) > 0.0, "{name}");
    }
}

#[tokio::test]
async fn every_help_text_says_what_a_rise_means() {
    let world = World::new().await;
    world.get(LIST).await;
    let page = world.http.get(&world.metrics_url("/metrics")).await;
    let families: Vec<_> =
        page.text().lines().filter_map(|line| line.strip_prefix("# HELP workspace_gateway_")).collect();
    assert_eq!(families.len(), 69);
    for family in families.iter().filter(|family| !family.starts_with("build_info")) {
        let is_explained =
            ["rise", "More", "Near", "nobody asked", "Anything but"].iter().any(|word| family.contains(word));
        assert!(is_explained, "{family}");
    }
}

#[tokio::test]
async fn nothing_a_client_sends_adds_a_series() {
    // Nothing listens on port 1, so relayed requests fail at once.
    let nowhere = "http://127.0.0.1:1";
    let gateway = Gateway::new(&config(nowhere, nowhere, ""), Clock::System).unwrap();
    let ask = async |index: u32| {
        let scramble = index.wrapping_mul(2_654_435_761);
        let method = match index % 4 {
            0 => Method::GET,
            1 => Method::HEAD,
            2 => Method::POST,
            _ => Method::from_bytes(format!("M{scramble}").as_bytes()).unwrap(),
        };
        // Few requests go upstream, because refused connections take the most time here.
        let path = match index % 64 {
            0 => format!("/v2/{scramble}/products?x={scramble}"),
            1 => format!("/v1/{scramble}/product"),
            2 => format!("/v2/{scramble}/desktops/{scramble}"),
            3 => format!("/v3/{scramble}"),
            _ => format!("/{scramble}/{index}"),
        };
        let request = Request::builder()
            .method(method)
            .uri(path)
            .header("x-auth-token", scramble)
            .header("host", "any")
            .header(format!("x-{scramble}"), scramble)
            .body(Empty::<Bytes>::new())
            .unwrap();
        let response =
            gateway.handle(request, &gateway.connection(([127, 0, 0, 1], 8080).into(), [127, 0, 0, 1].into())).await;
        response.into_body().collect().await.unwrap();
    };
    for index in 0..1_000 {
        ask(index).await;
    }
    let before = series(&gateway.metrics().encode().unwrap());
    for index in 1_000..101_000 {
        ask(index).await;
    }
    let after = series(&gateway.metrics().encode().unwrap());
    assert_eq!(after.difference(&before).collect::<Vec<_>>(), Vec::<&String>::new());
    assert!(!after.iter().any(|series| series.contains(PROJECT)));
}

#[tokio::test]
async fn nothing_upstream_sends_adds_a_series() {
    let odd = "HTTP/1.1 418 Odd\r\nConnection: close\r\nContent-Length: 0\r\n\r\n";
    let world = World::with_fixed_upstream(odd, "").await;
    for path in [LIST, "/v2/PROJECT/desktops"] {
        assert_eq!(world.get(path).await.status(), StatusCode::IM_A_TEAPOT);
    }
    assert_eq!(world.metric("workspace_gateway_upstream_requests_total{service=\"workspace\",status=\"4xx\"}"), 2.0);
}

#[tokio::test]
async fn connections_are_counted_while_they_are_open() {
    let world = World::new().await;
    let stream = TcpStream::connect(world.server.proxy_address()).await.unwrap();
    world.until_metric("workspace_gateway_connections", 1.0).await;
    drop(stream);
    world.until_metric("workspace_gateway_connections", 0.0).await;
}

#[tokio::test]
async fn health_endpoints_answer_200_even_while_upstream_is_down() {
    let world = World::new().await;
    for (path, text) in [("/healthz", "ok\n"), ("/readyz", "ready\n")] {
        let reply = world.http.get(&world.metrics_url(path)).await;
        assert_eq!((reply.status(), reply.text()), (StatusCode::OK, text));
    }
    world.simulator.shut_down().await;
    let reply = world.http.get(&world.metrics_url("/readyz")).await;
    assert_eq!(reply.status(), StatusCode::OK, "readiness does not depend on upstream");
    let wrong = world.http.get(&world.metrics_url("/metricz")).await;
    let list = "no such page: expected one of\n\
                /metrics (GET, HEAD): the metrics, for Prometheus\n\
                /healthz (GET, HEAD): 200 while the process runs\n\
                /readyz (GET, HEAD): 200 while the gateway takes requests, 503 while it shuts down\n\
                Clients use the proxy listener (listen.proxy).\n";
    assert_eq!((wrong.status(), wrong.text()), (StatusCode::NOT_FOUND, list));
    let wrong = world.http.send(Method::POST, &world.metrics_url("/metrics"), &[], "").await;
    assert_eq!((wrong.status(), wrong.header("allow")), (StatusCode::METHOD_NOT_ALLOWED, "GET, HEAD"));
}
