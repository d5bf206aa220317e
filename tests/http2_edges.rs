//! Parts of HTTP/2 that the libraries leave to the gateway: clients that wait for a 100, malformed trailers, and clients
//! that close the connection at a GOAWAY.

use tokio::net::TcpStream;

use crate::support::frames::{
    DATA, END_HEADERS, END_STREAM, Frame, FrameClient, GOAWAY, HEADERS, RST_STREAM, block, field, frame, head,
    head_with,
};
use crate::support::{PROJECT, World, within};

const RELAYED: &str = "/v2/PROJECT/desktops";
const LIST: &str = "/v2/PROJECT/products";

/// A world with a short token, so that several heads fit into one read.
async fn short_heads(settings: &str) -> World {
    let mut world = World::with(settings).await;
    world.token = world.simulator.token_of_length(PROJECT, 40);
    world
}

/// The head of a POST whose body follows, on a stream.
fn upload(world: &World, stream: u32, path: &str, more: &[(&str, &str)]) -> Vec<u8> {
    let head = head_with("POST", &path.replace("PROJECT", PROJECT), &world.token, more);
    frame(HEADERS, END_HEADERS, stream, &head)
}

const EXPECTING: &[(&str, &str)] = &[("expect", "100-Continue")];

fn types(frames: &[Frame]) -> Vec<u8> {
    frames.iter().map(|frame| frame.kind).collect()
}

fn body(frames: &[Frame]) -> Vec<u8> {
    frames.iter().filter(|frame| frame.kind == DATA).flat_map(|frame| frame.payload.clone()).collect()
}

#[tokio::test]
async fn a_client_that_expects_a_100_receives_it() {
    let world = short_heads("").await;
    let mut client = FrameClient::connect(&world).await;
    for (stream, path) in [(1, RELAYED), (3, LIST), (5, RELAYED)] {
        client.send(&[&upload(&world, stream, path, EXPECTING)]).await;
        let first = client.read_frame().await.unwrap();
        assert!(first.stream == stream && first.is_continue(), "{first:?}");
        client.send(&[&frame(DATA, END_STREAM, stream, b"a body")]).await;
        let frames = client.read_stream(stream).await;
        assert_eq!(frames[0].status(), Some(200), "{frames:?}");
        assert!(!frames.iter().any(Frame::is_continue), "{frames:?}");
        if path == RELAYED {
            assert_eq!(body(&frames), b"a body");
        }
        let seen = world.simulator.requests_seen().pop().unwrap();
        assert!(seen.has_body && !seen.headers.contains_key("expect"));
    }
}

#[tokio::test]
async fn a_100_is_valid_for_a_client_with_an_empty_header_table() {
    let world = short_heads("").await;
    let mut client = FrameClient::connect(&world).await;
    // SETTINGS_HEADER_TABLE_SIZE is 0.
    client.send(&[&frame(0x4, 0, 0, &[0, 1, 0, 0, 0, 0]), &upload(&world, 1, RELAYED, EXPECTING)]).await;
    let first = client.read_frame().await.unwrap();
    assert_eq!(first.payload, [0x20, 8, 3, b'1', b'0', b'0'], "{first:?}");
    client.send(&[&frame(DATA, END_STREAM, 1, b"a body")]).await;
    let frames = client.read_stream(1).await;
    assert_eq!((frames[0].payload[0], body(&frames)), (0x20, b"a body".to_vec()));
}

#[tokio::test]
async fn a_client_receives_a_100_even_if_upstream_sends_none() {
    let world = short_heads("").await;
    let mut client = FrameClient::connect(&world).await;
    // Upstream has the request and sends no 100.
    world.simulator.hold();
    client.send(&[&upload(&world, 1, RELAYED, EXPECTING)]).await;
    assert!(client.read_frame().await.unwrap().is_continue());
    within(world.simulator.wait_for_requests(1)).await;
    world.simulator.release();
    client.send(&[&frame(DATA, END_STREAM, 1, b"")]).await;
    assert_eq!(client.read_stream(1).await[0].status(), Some(200));
}

#[tokio::test]
async fn a_100_is_sent_on_the_stream_that_expects_it_whatever_happens_to_others() {
    let world = short_heads("").await;
    let mut client = FrameClient::connect(&world).await;
    let without_path = block(&[(":method", "POST"), (":scheme", "http"), (":authority", "g")]);
    client
        .send(&[
            // Malformed, reset, without a body, with the beginning of a body, and one that expects a 100.
            &frame(HEADERS, END_HEADERS, 1, &without_path),
            &upload(&world, 3, RELAYED, EXPECTING),
            &frame(RST_STREAM, 0, 3, &[0, 0, 0, 8]),
            &frame(HEADERS, END_STREAM | END_HEADERS, 5, &head("/nowhere", "t")),
            &upload(&world, 7, RELAYED, &[]),
            &frame(DATA, 0, 7, b"a beginning"),
            &upload(&world, 9, RELAYED, EXPECTING),
            &upload(&world, 11, RELAYED, &[]),
            &frame(DATA, 0, 11, b"a beginning"),
        ])
        .await;
    let mut continued = Vec::new();
    while continued.last() != Some(&9) {
        let received = client.read_frame().await.unwrap();
        if received.is_continue() {
            continued.push(received.stream);
        }
    }
    assert!([&[9][..], &[3, 9]].contains(&&continued[..]), "{continued:?}");
    client.send(&[&frame(DATA, END_STREAM, 9, b"x"), &frame(DATA, END_STREAM, 7, b"x")]).await;
    client.send(&[&frame(DATA, END_STREAM, 11, b"x")]).await;
    let mut ended = Vec::new();
    while ended.len() < 3 {
        let received = client.read_frame().await.unwrap();
        assert!(!received.is_continue(), "{received:?}");
        if received.is_end() && received.stream > 5 {
            ended.push(received.stream);
        }
    }
    ended.sort_unstable();
    assert_eq!(ended, [7, 9, 11]);
}

#[tokio::test]
async fn a_refused_stream_does_not_use_up_another_streams_100() {
    let world = short_heads("[upstream]\nmax_calls = 1000\nmax_calls_per_caller = 1000").await;
    let mut client = FrameClient::connect(&world).await;
    world.simulator.hold();
    let uploads: Vec<_> = (0..128).flat_map(|index| upload(&world, 2 * index + 1, RELAYED, &[])).collect();
    client.send(&[&uploads]).await;
    within(world.simulator.wait_for_requests(128)).await;
    client.send(&[&upload(&world, 257, RELAYED, EXPECTING)]).await;
    let refused = client.read_frame().await.unwrap();
    assert_eq!((refused.kind, refused.stream, &refused.payload[..]), (RST_STREAM, 257, &[0, 0, 0, 7][..]));
    client.send(&[&frame(RST_STREAM, 0, 1, &[0, 0, 0, 8])]).await;
    world.until_metric("workspace_gateway_requests_in_flight", 127.0).await;
    client.send(&[&upload(&world, 259, RELAYED, EXPECTING)]).await;
    let continued = client.read_frame().await.unwrap();
    assert!(continued.is_continue() && continued.stream == 259, "{continued:?}");
}

#[tokio::test]
async fn no_100_is_sent_once_the_response_is_decided_or_the_body_arrived() {
    let world = short_heads("").await;
    let mut client = FrameClient::connect(&world).await;
    client.send(&[&upload(&world, 1, "/nowhere", EXPECTING)]).await;
    let response = client.read_frame().await.unwrap();
    assert_eq!(response.status(), Some(404), "{response:?}");
    let mut client = FrameClient::connect(&world).await;
    for round in 0..20 {
        let (stream, body) = (2 * round + 1, frame(DATA, END_STREAM, 2 * round + 1, b"x"));
        client.send(&[&upload(&world, stream, RELAYED, EXPECTING), &body]).await;
        let frames = client.read_stream(stream).await;
        assert_eq!(frames[0].status(), Some(200), "{frames:?}");
    }
}

/// Malformed trailer sections, each with what is wrong.
fn malformed_trailers() -> Vec<(&'static str, Vec<u8>)> {
    vec![
        ("a pseudo-header field", [field(":path", "/v2/other"), field("x-checksum", "1")].concat()),
        // The `:path` of the head, as the first entry of the dynamic table (RFC 7541 §2.3.3).
        ("a pseudo-header field from the table", vec![0xbe]),
        ("a blank before a value", field("x-checksum", " 1")),
        ("a tab after a value", field("x-checksum", "1\t")),
    ]
}

/// The head of a POST that adds its path to the dynamic table.
fn indexed_head(world: &World) -> Vec<u8> {
    let path = RELAYED.replace("PROJECT", PROJECT);
    let path = [&[0x44, u8::try_from(path.len()).unwrap()], path.as_bytes()].concat();
    let pseudo = block(&[(":method", "POST"), (":scheme", "http"), (":authority", "g")]);
    frame(HEADERS, END_HEADERS, 1, &[pseudo, path, field("x-auth-token", &world.token)].concat())
}

#[tokio::test]
async fn malformed_trailers_are_rejected_and_upstream_sees_no_complete_request() {
    for (defect, trailers) in malformed_trailers() {
        let world = short_heads("").await;
        let mut client = FrameClient::connect(&world).await;
        world.simulator.hold();
        client.send(&[&indexed_head(&world), &frame(DATA, 0, 1, b"a body")]).await;
        within(world.simulator.wait_for_requests(1)).await;
        client.send(&[&frame(HEADERS, END_STREAM | END_HEADERS, 1, &trailers)]).await;
        let frames = client.read_stream(1).await;
        assert_eq!(frames[0].status(), Some(400), "{defect}: {frames:?}");
        assert!(String::from_utf8(body(&frames)).unwrap().contains("RFC 9113"), "{defect}");
        // The next request on the connection is answered.
        world.simulator.release();
        client.send(&[&frame(HEADERS, END_STREAM | END_HEADERS, 3, &head("/nowhere", "t"))]).await;
        assert_eq!(client.read_stream(3).await[0].status(), Some(404));
    }
}

#[tokio::test]
async fn malformed_trailers_reset_a_stream_whose_response_has_begun() {
    for (defect, trailers) in malformed_trailers() {
        let world = short_heads("").await;
        let mut client = FrameClient::connect(&world).await;
        client.send(&[&indexed_head(&world), &frame(DATA, 0, 1, b"a body")]).await;
        let beginning = [client.read_frame().await.unwrap(), client.read_frame().await.unwrap()];
        assert_eq!((beginning[0].status(), body(&beginning)), (Some(200), b"a body".to_vec()));
        client.send(&[&frame(HEADERS, END_STREAM | END_HEADERS, 1, &trailers)]).await;
        let frames = client.read_stream(1).await;
        assert_eq!(types(&frames), [RST_STREAM], "{defect}");
    }
}

#[tokio::test]
async fn well_formed_trailers_complete_a_request() {
    let world = short_heads("").await;
    let mut client = FrameClient::connect(&world).await;
    let trailers = [&[0x20][..], &block(&[("x-checksum", "1"), ("x-empty", ""), ("x-more", "a b")])].concat();
    let (first, second) = trailers.split_at(9);
    client
        .send(&[
            &indexed_head(&world),
            &frame(DATA, 0, 1, b"a body"),
            &frame(HEADERS, END_STREAM, 1, first),
            &frame(0x9, END_HEADERS, 1, second),
        ])
        .await;
    let frames = client.read_stream(1).await;
    assert_eq!((frames[0].status(), body(&frames)), (Some(200), b"a body".to_vec()));
    assert!(frames.last().unwrap().is_end());
}

#[tokio::test]
async fn requests_in_progress_at_shutdown_are_answered_before_the_goaway() {
    let world = short_heads("").await;
    let address = world.server.proxy_address();
    let mut client = FrameClient::connect(&world).await;
    world.simulator.hold();
    let list = head(&LIST.replace("PROJECT", PROJECT), &world.token);
    client.send(&[&frame(HEADERS, END_STREAM | END_HEADERS, 1, &list)]).await;
    within(world.simulator.wait_for_requests(1)).await;
    let World { simulator, server, .. } = world;
    let stopping = tokio::spawn(server.stop());
    within(async { while TcpStream::connect(address).await.is_ok() {} }).await;
    // A request that arrives during shutdown is answered, too.
    client.send(&[&frame(HEADERS, END_STREAM | END_HEADERS, 3, &head("/nowhere", "t"))]).await;
    assert_eq!(client.read_stream(3).await[0].status(), Some(404));
    simulator.release();
    // The complete response comes before the GOAWAY.
    let frames = client.read_stream(1).await;
    assert!(frames[0].status() == Some(200) && frames.last().unwrap().is_end(), "{frames:?}");
    assert_eq!(client.read_frame().await.unwrap().kind, GOAWAY);
    drop(client);
    within(stopping).await.unwrap();
}
