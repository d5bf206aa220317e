//! Counts the memory allocations of a cache hit, from the bytes of the request to those of the response, including the
//! server and its libraries. This is a test binary of its own because it has its own allocator.

#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used)]

use std::time::Duration;

use http::header::{CONTENT_TYPE, HOST};
use http::{HeaderMap, HeaderValue, Method, Uri};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::runtime::Builder;
use workspace_gateway::testing::catalogue::Service;
use workspace_gateway::testing::clock::Clock;
use workspace_gateway::testing::config::{Config, Override};
use workspace_gateway::testing::server::Server;
use workspace_gateway::testing::signing::{AccessKey, Payload, Projects};
use workspace_gateway::testing::simulator::{IssuedKey, Simulator};

const PROJECT: &str = "00000000000000000000000000000001";

/// Enough requests to count allocations that do not happen for each request.
const ROUNDS: u64 = 1_000;

/// What is new in each head.
#[derive(Clone, Copy)]
enum New {
    Nothing,
    Trace,
    /// The request is signed, at another second each time.
    Signature,
    Field,
}

/// The heads of a thousand requests. `key` signs them, or they have the token.
fn heads(token: &str, key: &IssuedKey, new: New) -> Vec<String> {
    let target = format!("/v2/{PROJECT}/products?os_type=Windows&limit=10");
    let begin = format!("GET {target} HTTP/1.1\r\nhost: gateway\r\naccept: */*\r\ncontent-type: application/json\r\n");
    let with_token = format!("{begin}user-agent: test\r\nx-auth-token: {token}\r\n");
    let signer = AccessKey::new(key.id.clone(), key.secret.as_bytes(), None, Projects::Any);
    let uri: Uri = target.parse().unwrap();
    let signed = |number: u64| {
        let mut headers = HeaderMap::from_iter([
            (HOST, HeaderValue::from_static("gateway")),
            (CONTENT_TYPE, HeaderValue::from_static("application/json")),
        ]);
        let date = Clock::System.date() - Duration::from_secs(number / 2);
        let covered = [CONTENT_TYPE.as_str()];
        signer.sign(&Method::GET, (&uri).into(), &mut headers, covered, &Payload::of(b""), date).unwrap();
        let line = |name: &str| format!("{name}: {}\r\n", headers[name].to_str().unwrap());
        format!("{begin}user-agent: test\r\n{}{}\r\n", line("x-sdk-date"), line("authorization"))
    };
    (0..ROUNDS)
        .map(|number| match new {
            New::Nothing => format!("{with_token}x-number: 0000\r\n\r\n"),
            New::Trace => format!("{with_token}traceparent: 00-{number:032x}-00f067aa0ba902b7-01\r\n\r\n"),
            New::Signature => signed(number),
            New::Field => format!("{with_token}x-number: {number:04}\r\n\r\n"),
        })
        .collect()
}

/// Sends a request and reads the response, without allocating. Returns the length of the head.
async fn exchange(client: &mut TcpStream, head: &str, response: &mut [u8]) -> usize {
    client.write_all(head.as_bytes()).await.unwrap();
    let mut read = 0;
    loop {
        read += client.read(&mut response[read..]).await.unwrap();
        let text = &response[..read];
        let Some(end) = text.windows(4).position(|four| four == b"\r\n\r\n") else { continue };
        let head = std::str::from_utf8(&text[..end]).unwrap();
        let (_, length) = head.split_once("\r\ncontent-length: ").unwrap();
        let length: usize = length.split("\r\n").next().unwrap().parse().unwrap();
        if read == end + 4 + length {
            return end;
        }
    }
}

/// The number of allocations of a thousand hits.
fn allocations(token_length: usize, new: New) -> u64 {
    allocations_with(token_length, new, "")
}

/// The same with more settings.
fn allocations_with(token_length: usize, new: New, more: &str) -> u64 {
    let runtime = Builder::new_current_thread().enable_all().build().unwrap();
    let (mut client, _server, heads, mut response) = runtime.block_on(async {
        let simulator = Box::leak(Box::new(Simulator::start().await.unwrap()));
        let given = |path, value: &str| Override { path, value: value.into(), origin: "test".to_owned() };
        let overrides = [
            given(&["upstream", "workspace_url"], &simulator.url(Service::Workspace)),
            given(&["upstream", "appstream_url"], &simulator.url(Service::AppStream)),
            given(&["listen", "proxy"], "127.0.0.1:0"),
            given(&["listen", "metrics"], "127.0.0.1:0"),
            given(&["listen", "admin"], "127.0.0.1:0"),
        ];
        let key = simulator.access_key(PROJECT);
        let settings = format!("[[access_key]]\nid = {:?}\nsecret = {:?}\n{more}", key.id, key.secret);
        let config = Config::from_layers("test", &settings, &overrides).unwrap();
        let server = Server::start(&config, Clock::System).await.unwrap();
        let mut client = TcpStream::connect(server.proxy_address()).await.unwrap();
        let heads = heads(&simulator.token_of_length(PROJECT, token_length), &key, new);
        let mut response = vec![0; 1 << 20];
        for _ in 0..3 {
            exchange(&mut client, &heads[0], &mut response).await;
        }
        (client, server, heads, response)
    });
    let mut end = 0;
    let counted = allocation_counter::measure(|| {
        runtime.block_on(async {
            for head in &heads {
                end = exchange(&mut client, head, &mut response).await;
            }
        });
    });
    let head = std::str::from_utf8(&response[..end]).unwrap();
    assert!(head.contains("cache-status: workspace-gateway; hit"), "not a hit: {head}");
    counted.count_total
}

#[test]
fn one_allocation_is_counted_as_one() {
    let counted = allocation_counter::measure(|| drop(std::hint::black_box(Box::new(1))));
    assert_eq!(counted.count_total, 1);
}

#[test]
fn a_hit_on_the_fast_path_does_not_allocate() {
    for token in [32, 4_800] {
        let allocations = allocations(token, New::Nothing);
        // The cache's maintenance allocates: 180 times per thousand hits when this test was written.
        assert!(allocations <= ROUNDS / 2, "{allocations} allocations by {ROUNDS} hits, token of {token} bytes");
    }
}

#[test]
fn a_hit_that_is_not_sampled_does_not_allocate_for_its_span() {
    let otlp = "[otlp]\nendpoint = \"http://127.0.0.1:9\"\nmetrics = false\nsampling_rate = 0\n";
    let allocations = allocations_with(32, New::Nothing, otlp);
    assert!(allocations <= ROUNDS / 2, "{allocations} allocations by {ROUNDS} hits");
}

#[test]
fn a_hit_with_a_new_trace_or_signature_takes_at_most_four_allocations() {
    for (name, new) in [("trace", New::Trace), ("signature", New::Signature)] {
        let allocations = allocations(4_800, new);
        assert!(allocations <= 4 * ROUNDS, "{allocations} allocations by {ROUNDS} hits, {name}");
    }
}

#[test]
fn a_hit_with_a_new_head_takes_few_allocations() {
    for token in [32, 4_800] {
        let allocations = allocations(token, New::Field);
        // About a third are hyper's: a read buffer, a header map, names of non-standard headers.
        assert!(allocations <= 20 * ROUNDS, "{allocations} allocations by {ROUNDS} hits, token of {token} bytes");
    }
}
