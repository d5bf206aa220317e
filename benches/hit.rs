//! What a hit costs inside the process: reading the key, and the whole way from a request's head to
//! the last byte of its answer, without the socket.
//!
//! `cargo bench` prints both; compare two versions by the ratio within one run, machines differ.

#![allow(missing_docs, clippy::expect_used)]

use std::hint::black_box;
use std::net::SocketAddr;

use bytes::Bytes;
use criterion::{Criterion, criterion_group, criterion_main};
use http::{HeaderMap, HeaderValue, Request};
use http_body_util::{BodyExt, Empty};
use tokio::runtime::Runtime;
use workspace_gateway::catalogue::Service;
use workspace_gateway::clock::Clock;
use workspace_gateway::config::{Config, Override};
use workspace_gateway::gateway::{Connection, Gateway};
use workspace_gateway::request::caller::{Callers, X_AUTH_TOKEN};
use workspace_gateway::request::key::Key;
use workspace_gateway::simulator::Simulator;

const PROJECT: &str = "00000000000000000000000000000001";
const PATH: &str = "/v2/00000000000000000000000000000001/products";
const QUERY: &str = "availability_zone=cn-north-4c&limit=100&offset=0&os_type=Windows";

fn config(simulator: &Simulator) -> Config {
    let given = |path, value| Override { path, value, origin: "bench".to_owned() };
    let overrides = [
        given(&["upstream", "workspace_url"], simulator.url(Service::Workspace)),
        given(&["upstream", "appstream_url"], simulator.url(Service::AppStream)),
    ];
    Config::from_layers("bench", "", &overrides).expect("the defaults are valid")
}

fn request(token: &str, target: &str) -> Request<Empty<Bytes>> {
    let request = Request::get(target).header(X_AUTH_TOKEN, token).header("host", "127.0.0.1:8080");
    request.body(Empty::new()).expect("a valid request")
}

fn key_building(criterion: &mut Criterion) {
    let runtime = Runtime::new().expect("a runtime");
    let simulator = runtime.block_on(Simulator::start()).expect("a simulator");
    let catalogue = config(&simulator).catalogue;
    let (operation, place) = catalogue.operation(PATH).expect("an operation");
    let headers = HeaderMap::new();
    criterion.bench_function("key/read, four parameters", |bencher| {
        bencher.iter(|| Key::read(&catalogue, operation, place, Some(black_box(QUERY)), &headers, false));
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
    let gateway = Gateway::new(&config(&simulator), Clock::System).expect("a gateway");
    let connection = Connection::new(SocketAddr::from(([127, 0, 0, 1], 8080)));
    let ask = async |token: &str| {
        let answer = gateway.handle(request(token, &format!("{PATH}?{QUERY}")), &connection).await;
        let status = answer.headers()["cache-status"].clone();
        (status, answer.into_body().collect().await.expect("a whole answer").to_bytes())
    };
    for length in [32, 4_800] {
        let token = simulator.token_of_length(PROJECT, length);
        runtime.block_on(ask(&token));
        let (status, body) = runtime.block_on(ask(&token));
        assert!(status.as_bytes().starts_with(b"workspace-gateway; hit"), "this measures hits");
        criterion.bench_function(&format!("hit/token of {length} bytes, body of {} bytes", body.len()), |bencher| {
            bencher.iter(|| runtime.block_on(ask(&token)));
        });
    }
}

criterion_group!(benches, key_building, full_hit);
criterion_main!(benches);
