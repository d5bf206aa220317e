//! Measures a cache hit inside the process: building the key, and the path from a request's head to the last byte of
//! the response, without a socket. Signed requests are measured, too.
//!
//! Machines differ, so compare two versions by the ratios within one run.

#![allow(missing_docs, clippy::expect_used)]

use std::hint::black_box;

use bytes::Bytes;
use criterion::{Criterion, criterion_group, criterion_main};
use http::header::{CONTENT_TYPE, HOST, USER_AGENT};
use http::{HeaderMap, HeaderValue, Method, Request, Uri};
use http_body_util::{BodyExt, Empty};
use tokio::runtime::Runtime;
use workspace_gateway::testing::catalogue::Service;
use workspace_gateway::testing::clock::Clock;
use workspace_gateway::testing::config::{Config, Override};
use workspace_gateway::testing::gateway::Gateway;
use workspace_gateway::testing::request::caller::{Callers, X_AUTH_TOKEN};
use workspace_gateway::testing::request::key::RequestKey;
use workspace_gateway::testing::signing::{AccessKey, Payload, Projects, X_PROJECT_ID};
use workspace_gateway::testing::simulator::Simulator;

/// The same allocator as the program's.
#[cfg(all(target_os = "linux", target_env = "gnu"))]
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

const PROJECT: &str = "00000000000000000000000000000001";
const PATH: &str = "/v2/00000000000000000000000000000001/products";
const QUERY: &str = "availability_zone=cn-north-4c&limit=100&offset=0&os_type=Windows";

fn config(simulator: &Simulator, settings: &str) -> Config {
    let given = |path, value: String| Override { path, value: value.into(), origin: "bench".to_owned() };
    let overrides = [
        given(&["upstream", "workspace_url"], simulator.url(Service::Workspace)),
        given(&["upstream", "appstream_url"], simulator.url(Service::AppStream)),
    ];
    Config::from_layers("bench", settings, &overrides).expect("the defaults are valid")
}

fn request(token: &str, target: &str) -> Request<Empty<Bytes>> {
    let request = Request::get(target).header(X_AUTH_TOKEN, token).header("host", "127.0.0.1:8080");
    request.body(Empty::new()).expect("a valid request")
}

fn key_building(criterion: &mut Criterion) {
    let runtime = Runtime::new().expect("a runtime");
    let simulator = runtime.block_on(Simulator::start()).expect("a simulator");
    let catalogue = config(&simulator, "").catalogue;
    let (operation, place) = catalogue.operation(PATH).expect("an operation");
    let headers = HeaderMap::new();
    criterion.bench_function("key/read, four parameters", |bencher| {
        bencher.iter(|| RequestKey::read(&catalogue, operation, place, Some(black_box(QUERY)), &headers, false));
    });
    let callers = Callers::new([7; 32]);
    for length in [32, 4_800] {
        let token = HeaderValue::from_str(&"t".repeat(length)).expect("a valid token");
        criterion.bench_function(&format!("caller/of a token of {length} bytes"), |bencher| {
            bencher.iter(|| callers.of_token(black_box(&token)));
        });
    }
}

fn full_hit(criterion: &mut Criterion) {
    let runtime = Runtime::new().expect("a runtime");
    let simulator = runtime.block_on(Simulator::start()).expect("a simulator");
    let gateway = Gateway::new(&config(&simulator, ""), Clock::System).expect("a gateway");
    let connection = gateway.connection(([127, 0, 0, 1], 8080).into(), [127, 0, 0, 1].into());
    let get = async |token: &str| {
        let response = gateway.handle(request(token, &format!("{PATH}?{QUERY}")), &connection).await;
        let status = response.headers()["cache-status"].clone();
        (status, response.into_body().collect().await.expect("a complete response").to_bytes())
    };
    for length in [32, 4_800] {
        let token = simulator.token_of_length(PROJECT, length);
        runtime.block_on(get(&token));
        let (status, body) = runtime.block_on(get(&token));
        assert!(status.as_bytes().starts_with(b"workspace-gateway; hit"), "a hit");
        criterion.bench_function(&format!("hit/token of {length} bytes, body of {} bytes", body.len()), |bencher| {
            bencher.iter(|| runtime.block_on(get(&token)));
        });
    }
}

/// Includes the verification of the signature.
fn signed_hit(criterion: &mut Criterion) {
    let runtime = Runtime::new().expect("a runtime");
    let simulator = runtime.block_on(Simulator::start()).expect("a simulator");
    let key = simulator.access_key(PROJECT);
    let settings = format!("[[access_key]]\nid = {:?}\nsecret = {:?}", key.id, key.secret);
    let gateway = Gateway::new(&config(&simulator, &settings), Clock::System).expect("a gateway");
    let connection = gateway.connection(([127, 0, 0, 1], 8080).into(), [127, 0, 0, 1].into());
    let target = format!("{PATH}?{QUERY}");
    let uri = target.parse::<Uri>().expect("a target");
    let mut headers = HeaderMap::from_iter([
        (HOST, HeaderValue::from_static("127.0.0.1:8080")),
        (USER_AGENT, HeaderValue::from_static("huaweicloud-usdk-python/3.0")),
        (CONTENT_TYPE, HeaderValue::from_static("application/json")),
        (X_PROJECT_ID, HeaderValue::from_static(PROJECT)),
    ]);
    let covered = ["content-type", "user-agent", "x-project-id"];
    AccessKey::new(key.id, key.secret.as_bytes(), None, Projects::Any)
        .sign(&Method::GET, (&uri).into(), &mut headers, covered, &Payload::of(b""), Clock::System.date())
        .expect("a request that can be signed");
    let get = async || {
        let mut request = Request::get(&target).body(Empty::<Bytes>::new()).expect("a valid request");
        *request.headers_mut() = headers.clone();
        let response = gateway.handle(request, &connection).await;
        let status = response.headers()["cache-status"].clone();
        (status, response.into_body().collect().await.expect("a complete response").to_bytes())
    };
    runtime.block_on(get());
    let (status, body) = runtime.block_on(get());
    assert!(status.as_bytes().starts_with(b"workspace-gateway; hit"), "a hit");
    criterion.bench_function(&format!("hit/signed as the Python SDK does, body of {} bytes", body.len()), |bencher| {
        bencher.iter(|| runtime.block_on(get()));
    });
}

criterion_group!(benches, key_building, full_hit, signed_hit);
criterion_main!(benches);
