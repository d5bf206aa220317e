//! Traces for OpenTelemetry: spans with the right parents, links and attributes reach a receiver. A receiver that hangs
//! or refuses costs nothing but spans, and nothing that is exported has a credential.

use http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode};
use opentelemetry_proto::tonic::metrics::v1::metric::Data;
use opentelemetry_proto::tonic::metrics::v1::number_data_point::Value as Number;
use opentelemetry_proto::tonic::metrics::v1::{Metric, NumberDataPoint};
use opentelemetry_proto::tonic::trace::v1::Span;
use opentelemetry_proto::tonic::trace::v1::span::SpanKind;
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;
use workspace_gateway::testing::signing::Payload;
use workspace_gateway::testing::simulator::{IssuedKey, Simulator};

use crate::commands::{code, run_in, stderr, stdout};
use crate::support::otlp::{Collector, Reception, attribute};
use crate::support::signer::{Signed, date, entry, world_with_keys};
use crate::support::tls::acceptor;
use crate::support::{Http, PROJECT, World, all_replies, within};

const LIST: &str = "/v2/PROJECT/products";
const TRACE: &str = "4bf92f3577b34da6a3ce929d0e0e4736";
const PARENT: &str = "00f067aa0ba902b7";

fn traceparent(flags: &str) -> String {
    format!("00-{TRACE}-{PARENT}-{flags}")
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn text(span: &Span, name: &str) -> String {
    attribute(&span.attributes, name).unwrap_or_else(|| panic!("no {name}: {span:?}"))
}

/// The only span of a kind with this result, or all.
fn of_kind(spans: &[Span], kind: SpanKind) -> Vec<&Span> {
    spans.iter().filter(|span| span.kind() == kind).collect()
}

fn one_of_each(spans: &[Span]) -> (&Span, &Span) {
    let [server] = of_kind(spans, SpanKind::Server)[..] else { panic!("{spans:?}") };
    let [client] = of_kind(spans, SpanKind::Client)[..] else { panic!("{spans:?}") };
    (server, client)
}

/// What upstream has got as its parent, in the form of a `traceparent`.
fn as_traceparent(span: &Span) -> String {
    format!("00-{}-{}-{:02x}", hex(&span.trace_id), hex(&span.span_id), span.flags & 0xff)
}

fn sent_traceparent(world: &World) -> String {
    let headers = world.simulator.requests_seen().pop().unwrap().headers;
    assert_eq!(headers.get_all("traceparent").iter().count(), 1);
    headers["traceparent"].to_str().unwrap().to_owned()
}

/// The parents of the spans, from the client to upstream, for a fetch and for a relayed request.
async fn spans_are_parents_of_each_other(mut collector: Collector) {
    let world = World::with(&collector.settings("")).await;
    for (path, name, purpose) in [
        (LIST.to_owned(), "GET /v2/{project_id}/products", "response"),
        (format!("/v2/{PROJECT}/desktops"), "GET", "relay"),
    ] {
        for (headers, trace, parent) in [
            (vec![("traceparent", traceparent("01"))], Some(TRACE), PARENT),
            // The gateway begins a trace.
            (vec![("cache-control", "no-cache".to_owned())], None, ""),
        ] {
            let headers: Vec<_> = headers.iter().map(|(name, value)| (*name, value.as_str())).collect();
            world.get_with(&path, &headers).await;
            let spans = collector.spans(2).await;
            let (server, client) = one_of_each(&spans);
            assert_eq!(hex(&server.parent_span_id), parent);
            assert_eq!(client.parent_span_id, server.span_id);
            assert_eq!(client.trace_id, server.trace_id);
            assert!(trace.is_none_or(|trace| hex(&server.trace_id) == trace));
            assert_eq!(sent_traceparent(&world), as_traceparent(client));
            assert!(client.flags & 1 == 1 && server.flags & 1 == 1);
            assert_eq!(
                (server.flags & 0x300, client.flags & 0x300),
                (0x100 | (u32::from(!parent.is_empty()) << 9), 0x100)
            );
            assert!(server.links.is_empty() && client.links.is_empty());
            assert_eq!(server.name, name);
            assert_eq!(text(client, "workspace_gateway.purpose"), purpose);
            for span in &spans {
                assert!(0 < span.start_time_unix_nano && span.start_time_unix_nano <= span.end_time_unix_nano);
            }
        }
    }
}

#[tokio::test]
async fn the_spans_of_a_request_and_its_call_continue_the_clients_trace() {
    spans_are_parents_of_each_other(Collector::http().await).await;
}

#[tokio::test]
async fn spans_are_exported_over_grpc() {
    spans_are_parents_of_each_other(Collector::grpc().await).await;
}

#[tokio::test]
async fn spans_have_the_attributes_of_the_conventions() {
    let mut collector = Collector::http().await;
    let world = World::with(&collector.settings("service_name = \"mine\"\nresource_attributes = \"a=b%20c\"\n")).await;
    world.get_with(&format!("{LIST}?limit=1"), &[("user-agent", "tester/1")]).await;
    let spans = collector.spans(2).await;
    let (server, client) = one_of_each(&spans);
    let (path, proxy) = (LIST.replace("PROJECT", PROJECT), world.server.proxy_address());
    let upstream = world.simulator.requests_seen().pop().unwrap().headers["host"].to_str().unwrap().to_owned();
    for (name, expected) in [
        ("http.request.method", "GET"),
        ("url.path", &path),
        ("url.scheme", "http"),
        ("http.route", "/v2/{project_id}/products"),
        ("http.response.status_code", "200"),
        ("server.address", "127.0.0.1"),
        ("server.port", &proxy.port().to_string()),
        ("client.address", "127.0.0.1"),
        ("user_agent.original", "tester/1"),
        ("network.protocol.version", "1.1"),
        ("workspace_gateway.result", "miss"),
        ("workspace_gateway.miss", "no-grant"),
    ] {
        assert_eq!(text(server, name), expected, "{name}");
    }
    for (name, expected) in [
        ("http.request.method", "GET"),
        ("url.full", &*format!("http://{upstream}{path}")),
        ("url.template", "/v2/{project_id}/products"),
        ("http.response.status_code", "200"),
        ("server.address", "127.0.0.1"),
        ("server.port", upstream.split_once(':').unwrap().1),
    ] {
        assert_eq!(text(client, name), expected, "{name}");
    }
    assert!(server.status.is_none() && client.status.is_none());

    // An error of upstream is one of both spans, and an error of the client only one of the call.
    for (status, is_server_error) in [(StatusCode::INTERNAL_SERVER_ERROR, true), (StatusCode::NOT_FOUND, false)] {
        world.simulator.fail_with(Some(status));
        world.get(&format!("{LIST}?limit={}", status.as_u16())).await;
        let spans = collector.spans(2).await;
        let (server, client) = one_of_each(&spans);
        assert_eq!(text(client, "error.type"), status.as_str());
        assert_eq!(client.status.clone().unwrap().code, 2);
        assert_eq!(server.status.clone().map(|status| status.code), is_server_error.then_some(2));
        let error = attribute(&server.attributes, "error.type");
        assert_eq!(error.as_deref(), is_server_error.then_some(status.as_str()));
    }

    world.get("/v2/PROJECT/desktops").await;
    let resource = collector.resource_spans().await.remove(0).resource.unwrap();
    let resource = |name| attribute(&resource.attributes, name);
    assert_eq!((resource("service.name").as_deref(), resource("a").as_deref()), (Some("mine"), Some("b c")));
    assert!(resource("service.instance.id").is_some() && resource("service.version").is_some());
}

#[tokio::test]
async fn a_request_that_waits_for_anothers_call_links_to_its_span() {
    let mut collector = Collector::http().await;
    let world = World::with(&collector.settings("")).await;
    let tokens = world.granted_tokens::<3>().await;
    collector.spans(6).await;
    let (leading, following) = world.begin_flight(&tokens, &format!("{LIST}?limit=1")).await;
    world.simulator.release();
    all_replies(following.into_iter().chain([leading]).collect()).await;
    let spans = collector.spans(4).await;
    let [call] = of_kind(&spans, SpanKind::Client)[..] else { panic!("{spans:?}") };
    let (leaders, waiters): (Vec<&Span>, Vec<&Span>) =
        of_kind(&spans, SpanKind::Server).into_iter().partition(|span| span.span_id == call.parent_span_id);
    assert_eq!((leaders.len(), waiters.len()), (1, 2));
    assert!(leaders[0].links.is_empty());
    for waiter in waiters {
        assert_eq!(text(waiter, "workspace_gateway.result"), "coalesced");
        assert_ne!(waiter.trace_id, call.trace_id);
        let [link] = &waiter.links[..] else { panic!("{waiter:?}") };
        assert_eq!((&link.trace_id, &link.span_id), (&call.trace_id, &call.span_id));
    }
}

#[tokio::test]
async fn hits_on_the_fast_path_have_spans_if_they_are_sampled() {
    let mut collector = Collector::http().await;
    let settings = collector.settings("sampling_rate = 0\n[listen]\nfast_path = true\n");
    let world = World::with(&settings).await;
    for (http, version) in [(Http::new(), "1.1"), (Http::http2(), "2")] {
        let url = world.url(LIST);
        let hit = |flags: &'static str| {
            let (http, url, token) = (http.clone(), url.clone(), world.token.clone());
            async move {
                let headers = [("x-auth-token", &*token), ("user-agent", "a"), ("traceparent", &*traceparent(flags))];
                http.send(Method::GET, &url, &headers, "").await
            }
        };
        // The head becomes known by requests without spans.
        for _ in 0..4 {
            hit("00").await;
        }
        let before = world.metric("workspace_gateway_fast_path_hits_total");
        assert!(hit("01").await.is_hit());
        assert_eq!(world.metric("workspace_gateway_fast_path_hits_total"), before + 1.0);
        let spans = collector.spans(1).await;
        assert_eq!((hex(&spans[0].trace_id).as_str(), hex(&spans[0].parent_span_id).as_str()), (TRACE, PARENT));
        for (name, expected) in [
            ("workspace_gateway.result", "hit"),
            ("network.protocol.version", version),
            ("user_agent.original", "a"),
            ("url.path", &LIST.replace("PROJECT", PROJECT)),
            ("http.route", "/v2/{project_id}/products"),
        ] {
            assert_eq!(text(&spans[0], name), expected, "{name}");
        }
        assert!(attribute(&spans[0].attributes, "workspace_gateway.caller").is_some());
    }
}

#[tokio::test]
async fn requests_that_are_not_sampled_have_no_spans_and_upstream_learns_it() {
    let mut collector = Collector::http().await;
    let world = World::with(&collector.settings("sampling_rate = 0\n")).await;
    world.get_with(LIST, &[("traceparent", &traceparent("00"))]).await;
    let sent = sent_traceparent(&world);
    assert!(sent.starts_with(&format!("00-{TRACE}-")) && sent.ends_with("-00") && !sent.contains(PARENT), "{sent}");
    world.get(&format!("{LIST}?limit=1")).await;
    assert!(!world.simulator.requests_seen().pop().unwrap().headers.contains_key("traceparent"));
    // A relayed request keeps its own.
    world.get_with("/v2/PROJECT/desktops", &[("traceparent", &traceparent("00"))]).await;
    assert_eq!(sent_traceparent(&world), traceparent("00"));
    world.get_with("/v2/PROJECT/desktops", &[("traceparent", &traceparent("01"))]).await;
    assert_eq!(collector.spans(2).await.len(), 2, "only those of the sampled request");

    // A sampler that does not follow the client says so to upstream, too.
    let off = World::with(&collector.settings("sampler = \"always_off\"\n")).await;
    off.get_with(LIST, &[("traceparent", &traceparent("01"))]).await;
    assert!(sent_traceparent(&off).ends_with("-00"));
}

#[tokio::test]
async fn a_signed_trace_is_signed_anew_and_a_foreign_signature_stays_valid() {
    let mut collector = Collector::http().await;
    let settings = collector.settings("");
    let create = |simulator: &Simulator| [simulator.access_key(PROJECT)];
    let (world, [key]) = world_with_keys(create, |[key]| settings + &entry(key, "")).await;
    let headers = [("content-type", "application/json"), ("traceparent", &*traceparent("01"))];
    let headers = headers.map(|(name, value)| (HeaderName::from_static(name), HeaderValue::from_str(value).unwrap()));
    let url = world.url("/v2/PROJECT/desktops");
    let request = Signed { method: Method::GET, url, headers: HeaderMap::from_iter(headers), body: Vec::new() };
    request.sign(&key, &["content-type", "traceparent"], &Payload::of(b""), date(&world)).send(&world).await;
    let spans = collector.spans(2).await;
    assert_eq!(sent_traceparent(&world), as_traceparent(one_of_each(&spans).1));
    assert_eq!(world.simulator.signature_failures(), 0);

    let foreign = "SDK-HMAC-SHA256 Access=OTHER, SignedHeaders=traceparent, Signature=00";
    let headers = [("authorization", foreign), ("traceparent", &*traceparent("01"))];
    world.get_with("/v2/PROJECT/desktops", &headers).await;
    assert_eq!(sent_traceparent(&world), traceparent("01"));
    collector.spans(2).await;
}

#[tokio::test]
async fn a_call_that_ends_with_its_client_has_a_span() {
    let mut collector = Collector::http().await;
    let world = World::with(&collector.settings("[limits]\nhalf_close = \"0s\"\n")).await;
    world.simulator.hold();
    let mut client = TcpStream::connect(world.server.proxy_address()).await.unwrap();
    let request =
        format!("GET /v2/{PROJECT}/desktops HTTP/1.1\r\nhost: gateway\r\nx-auth-token: {}\r\n\r\n", world.token);
    client.write_all(request.as_bytes()).await.unwrap();
    within(world.simulator.wait_for_requests(1)).await;
    drop(client);
    let spans = collector.spans(2).await;
    let (server, client) = one_of_each(&spans);
    assert_eq!(text(client, "error.type"), "abandoned");
    assert_eq!(text(server, "workspace_gateway.result"), "aborted");
    assert_eq!(attribute(&server.attributes, "http.response.status_code"), None);
}

#[tokio::test]
async fn a_call_without_a_request_has_a_trace_of_its_own() {
    let mut collector = Collector::http().await;
    let settings = collector.settings("");
    let create = |simulator: &Simulator| [simulator.access_key(PROJECT)];
    let keep_warm = |[key]: &[IssuedKey; 1]| {
        let (entry, id, path) = (entry(key, ""), &key.id, "/v2/{project_id}/products?limit=2");
        format!(
            "{settings}{entry}[[keep_warm]]\naccess_key = {id:?}\nprojects = [{PROJECT:?}]\nrequests = [{path:?}]\n"
        )
    };
    let (world, [key]) = world_with_keys(create, keep_warm).await;
    Signed::get(&world, &key, &format!("{LIST}?limit=1")).send(&world).await;
    let spans = collector.spans(3).await;
    let is_own =
        |span: &&Span| attribute(&span.attributes, "workspace_gateway.purpose").as_deref() == Some("keep-warm");
    let own = spans.iter().find(is_own).unwrap();
    assert!(own.kind() == SpanKind::Client && own.parent_span_id.is_empty());
    assert!(spans.iter().filter(|span| span.trace_id == own.trace_id).count() == 1);
    assert_eq!(sent_traceparent(&world), as_traceparent(own));
}

#[tokio::test]
async fn nothing_that_is_exported_has_a_credential_or_a_query() {
    let mut collector = Collector::http().await;
    let settings = collector.settings("headers = \"x-key=sesame\"\n").replace("1h", "10ms");
    let world = World::with(&settings).await;
    let key = world.simulator.access_key(PROJECT);
    for (path, headers) in [
        (format!("{LIST}?secret-query=1"), vec![("x-secret-header", "secret-value")]),
        (format!("{LIST}?limit=1"), vec![("cookie", "secret-cookie"), ("authorization", "secret-authorization")]),
        ("/v2/PROJECT/desktops?secret-query".to_owned(), vec![("authorization", "secret-authorization")]),
        (LIST.to_owned(), vec![("tracestate", "secret=state"), ("traceparent", "secret-trace")]),
    ] {
        world.get_with(&path, &headers).await;
    }
    while world.metric("workspace_gateway_otlp_spans_total{result=\"exported\"}") < 8.0 {
        collector.export().await;
    }
    let secrets = [&*world.token, &key.id, &key.secret, "secret-", "sesame"];
    let mut signals = std::collections::BTreeSet::new();
    for export in &collector.seen {
        let text = String::from_utf8_lossy(&export.message);
        let found = secrets.iter().find(|secret| text.contains(**secret));
        assert_eq!(found, None, "{text}");
        assert_eq!(export.headers["x-key"], "sesame");
        assert_eq!(export.headers["content-type"], "application/x-protobuf");
        signals.insert(export.path.clone());
    }
    assert!(signals.iter().eq(["/v1/metrics", "/v1/traces"]), "{signals:?}");
    assert!(!format!("{:?}", world.http.get(&world.admin_url("/config")).await).contains("sesame"));
}

#[tokio::test]
async fn a_receiver_that_hangs_delays_nothing_and_the_queue_is_bounded() {
    let mut collector = Collector::http().await;
    collector.set(Reception::Hang);
    let world = World::with(&collector.settings_for_pairs("max_queue = 4\ntimeout = \"1h\"\n")).await;
    world.get(LIST).await;
    // The first batch hangs, and the queue is full after 4 more spans.
    collector.export().await;
    for _ in 0..20 {
        assert!(world.get(LIST).await.is_hit());
    }
    assert_eq!(world.metric("workspace_gateway_otlp_spans_total{result=\"queue-full\"}"), 16.0);
    let World { server, .. } = world;
    within(server.stop()).await;
}

#[tokio::test]
async fn a_receiver_that_does_not_answer_in_time_costs_only_spans() {
    let mut collector = Collector::http().await;
    collector.set(Reception::Hang);
    let world = World::with(&collector.settings_for_pairs("timeout = \"1s\"\n")).await;
    world.get(LIST).await;
    world.until_metric("workspace_gateway_otlp_spans_total{result=\"failed\"}", 2.0).await;
    assert_eq!(world.metric("workspace_gateway_otlp_exports_total{result=\"timeout\",signal=\"traces\"}"), 1.0);
    collector.spans(2).await;
    collector.set(Reception::Accept);
    world.get(&format!("{LIST}?limit=1")).await;
    collector.spans(2).await;
    world.until_metric("workspace_gateway_otlp_spans_total{result=\"exported\"}", 2.0).await;
}

#[tokio::test]
async fn a_receiver_that_refuses_is_counted_and_told_once() {
    let mut collector = Collector::http().await;
    collector.set(Reception::Refuse(StatusCode::UNAUTHORIZED));
    let world = World::with(&collector.settings_for_pairs("")).await;
    let events = |kind: &str| {
        let events = world.server.gateway().observer().events().recent();
        events.into_iter().filter(|event| event.event.into_str() == kind).collect::<Vec<_>>()
    };
    for limit in 1..=3 {
        world.get(&format!("{LIST}?limit={limit}")).await;
        collector.spans(2).await;
    }
    world.until_metric("workspace_gateway_otlp_spans_total{result=\"failed\"}", 6.0).await;
    assert_eq!(world.metric("workspace_gateway_otlp_exports_total{result=\"refused\",signal=\"traces\"}"), 3.0);
    let [failed] = &events("otlp-failed")[..] else { panic!("{:?}", events("otlp-failed")) };
    assert_eq!((&*failed.what, failed.count), ("the export of traces fails (refused)", 3));
    collector.set(Reception::Accept);
    world.get(LIST).await;
    collector.spans(2).await;
    world.until_metric("workspace_gateway_otlp_spans_total{result=\"exported\"}", 2.0).await;
    assert_eq!(events("otlp").len(), 1);
}

#[tokio::test]
async fn an_export_that_is_refused_for_a_while_is_repeated() {
    for mut collector in [Collector::http().await, Collector::grpc().await] {
        collector.set(Reception::Refuse(StatusCode::SERVICE_UNAVAILABLE));
        let world = World::with(&collector.settings_for_pairs("")).await;
        world.get(LIST).await;
        let first = collector.spans(2).await;
        world.until_metric("workspace_gateway_otlp_exports_total{result=\"busy\",signal=\"traces\"}", 1.0).await;
        collector.set(Reception::Reject(1));
        assert_eq!(collector.spans(2).await, first);
        world.until_metric("workspace_gateway_otlp_spans_total{result=\"exported\"}", 1.0).await;
        assert_eq!(world.metric("workspace_gateway_otlp_spans_total{result=\"failed\"}"), 1.0, "rejected");
    }
}

#[tokio::test]
async fn a_receiver_that_asks_to_wait_for_ever_does_not_end_the_export() {
    let mut collector = Collector::http().await;
    collector.set(Reception::RetryAfter(u64::MAX));
    let world = World::with(&collector.settings_for_pairs("")).await;
    world.get(LIST).await;
    collector.spans(2).await;
    world.until_metric("workspace_gateway_otlp_spans_total{result=\"failed\"}", 2.0).await;
    collector.set(Reception::Accept);
    world.get(&format!("{LIST}?limit=1")).await;
    world.until_metric("workspace_gateway_otlp_spans_total{result=\"exported\"}", 2.0).await;
}

#[tokio::test]
async fn spans_that_wait_are_exported_when_the_gateway_stops() {
    let mut collector = Collector::http().await;
    let world = World::with(&collector.settings("").replace("5ms", "1h")).await;
    world.get(LIST).await;
    let World { server, .. } = world;
    server.stop().await;
    collector.spans(2).await;
}

#[tokio::test]
async fn metrics_are_exported_with_the_figures_of_the_metrics_listener() {
    for mut collector in [Collector::http().await, Collector::grpc().await] {
        let settings = collector.settings("traces = false\n").replace("1h", "10ms");
        let world = World::with(&settings).await;
        for _ in 0..3 {
            world.get(LIST).await;
        }
        let series = |result| {
            format!("workspace_gateway_requests_total{{operation=\"ListProducts\",result=\"{result}\",status=\"200\"}}")
        };
        assert_eq!(["miss", "hit"].map(|result| world.metric(&series(result))), [1.0, 2.0]);
        // Until an export has all requests.
        let (metrics, points) = loop {
            let metrics = collector.metrics().await;
            let points = sums(&metrics, "workspace_gateway_requests_total");
            if points.iter().map(|(_, value)| value).sum::<f64>() >= 3.0 {
                break (metrics, points);
            }
        };
        let labels = |result: &str| {
            ["operation=ListProducts".to_owned(), format!("result={result}"), "status=200".to_owned()].join(",")
        };
        assert_eq!(points, [(labels("hit"), 2.0), (labels("miss"), 1.0)]);
        let named = |name: &str| metrics.iter().find(|metric| metric.name == name).unwrap();
        let durations = named("workspace_gateway_request_duration_seconds");
        assert_eq!(durations.unit, "s");
        let Some(Data::Histogram(histogram)) = &durations.data else { panic!("{durations:?}") };
        assert_eq!(histogram.aggregation_temporality, 2);
        let counts: Vec<u64> = histogram.data_points.iter().map(|point| point.count).collect();
        assert_eq!(counts, [2, 1]);
        for point in &histogram.data_points {
            assert_eq!(point.bucket_counts.len(), point.explicit_bounds.len() + 1);
            assert_eq!(point.bucket_counts.iter().sum::<u64>(), point.count);
            assert_eq!(point.explicit_bounds[0], 50e-6);
            assert!(point.start_time_unix_nano <= point.time_unix_nano);
        }
        let Some(Data::Gauge(gauge)) = &named("workspace_gateway_entries").data else { panic!("{metrics:?}") };
        assert_eq!(gauge.data_points[0].value, Some(Number::AsDouble(1.0)));
        world
            .until_metric_over("workspace_gateway_otlp_exports_total{result=\"exported\",signal=\"metrics\"}", 0.0)
            .await;
    }
}

/// The labels and values of a cumulative, monotonic sum, sorted.
fn sums(metrics: &[Metric], name: &str) -> Vec<(String, f64)> {
    let Some(metric) = metrics.iter().find(|metric| metric.name == name) else { return Vec::new() };
    let Some(Data::Sum(sum)) = &metric.data else { panic!("{metric:?}") };
    assert!(
        sum.is_monotonic
            && sum.aggregation_temporality == 2
            && metric.unit.is_empty()
            && !metric.description.is_empty()
    );
    let labels = |point: &NumberDataPoint| {
        let labels = point.attributes.iter().map(|label| label.key.clone());
        let labels = labels.map(|name| format!("{name}={}", attribute(&point.attributes, &name).unwrap()));
        labels.collect::<Vec<_>>().join(",")
    };
    let value = |point: &NumberDataPoint| match point.value {
        Some(Number::AsDouble(value)) => value,
        other => panic!("{other:?}"),
    };
    let mut points: Vec<_> = sum.data_points.iter().map(|point| (labels(point), value(point))).collect();
    points.sort_by(|one, other| one.0.cmp(&other.0));
    points
}

#[tokio::test]
async fn a_receiver_with_tls_needs_a_certificate_of_a_known_authority() {
    for is_grpc in [false, true] {
        let (acceptor, file) = acceptor("otlp");
        let mut collector = Collector::with_tls(is_grpc, acceptor).await;
        let trusting =
            World::with(&collector.settings(&format!("ca_file = {file:?}\nheaders = \"x-key=sesame\"\n"))).await;
        trusting.get(LIST).await;
        collector.spans(2).await;
        assert_eq!(collector.seen[0].headers["x-key"], "sesame");
        let other = World::with(&collector.settings("retry_for = \"1ms\"\n")).await;
        other.get(LIST).await;
        other.until_metric("workspace_gateway_otlp_spans_total{result=\"failed\"}", 2.0).await;
    }
}

#[test]
fn a_wrong_variable_of_opentelemetry_is_a_usage_error() {
    let check = |variables: &[(&str, &str)]| run_in(variables, &["check", "--region", "cn-north-4"]);
    let endpoint = ("OTEL_EXPORTER_OTLP_ENDPOINT", "http://otlp.example:4318");
    for (variables, expected) in [
        (vec![("OTEL_EXPORTER_OTLP_PROTOCOL", "http/json")], "OTEL_EXPORTER_OTLP_PROTOCOL: otlp.protocol: "),
        (vec![endpoint, ("OTEL_EXPORTER_OTLP_HEADERS", "a=sesame")], "is not allowed in plaintext with otlp.headers"),
        (
            vec![("OTEL_EXPORTER_OTLP_ENDPOINT", "https://[::1]"), ("OTEL_EXPORTER_OTLP_HEADERS", "sesame")],
            "otlp.headers: (not shown",
        ),
        (
            vec![("OTEL_EXPORTER_OTLP_ENDPOINT", "https://[::1]"), ("OTEL_EXPORTER_OTLP_CERTIFICATE", "/none")],
            "otlp.ca_file /none",
        ),
    ] {
        let output = check(&variables);
        assert!(code(&output) == 2 && stderr(&output).contains(expected), "{expected}: {}", stderr(&output));
        assert!(!stderr(&output).contains("sesame"), "{}", stderr(&output));
    }
    let output = check(&[endpoint, ("OTEL_TRACES_SAMPLER_ARG", "0.5")]);
    assert!(code(&output) == 0 && stdout(&output).contains("sampling_rate = 0.5"), "{}", stderr(&output));
}
