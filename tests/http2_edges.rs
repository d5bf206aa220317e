//! What only HTTP/2 has, and what its libraries leave undone: who waits for a 100, malformed trailers, and clients that
//! close as soon as they are told to go.

use tokio::net::TcpStream;

use crate::support::frames::{
    DATA, END_HEADERS, END_STREAM, Frame, FrameClient, GOAWAY, HEADERS, RST_STREAM, block, field, frame, head,
    head_with,
};
use crate::support::{PROJECT, World, within};

const RELAYED: &str = "/v2/PROJECT/desktops";
const LIST: &str = "/v2/PROJECT/products";

/// A world with a token so short that several heads are read at once.
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

fn kinds(frames: &[Frame]) -> Vec<u8> {
    frames.iter().map(|frame| frame.kind).collect()
}

fn body(frames: &[Frame]) -> Vec<u8> {
    frames.iter().filter(|frame| frame.kind == DATA).flat_map(|frame| frame.payload.clone()).collect()
}

#[tokio::test]
async fn a_client_that_waits_for_a_100_is_told_to_send_its_body() {
    let world = short_heads("").await;
    let mut client = FrameClient::to(&world).await;
    for (stream, path) in [(1, RELAYED), (3, LIST), (5, RELAYED)] {
        client.says(&[&upload(&world, stream, path, EXPECTING)]).await;
        let first = client.hears().await.unwrap();
        assert!(first.stream == stream && first.is_continue(), "{first:?}");
        client.says(&[&frame(DATA, END_STREAM, stream, b"a body")]).await;
        let heard = client.hears_out(stream).await;
        assert_eq!(heard[0].status(), Some(200), "{heard:?}");
        assert!(!heard.iter().any(Frame::is_continue), "{heard:?}");
        if path == RELAYED {
            assert_eq!(body(&heard), b"a body");
        }
        let seen = world.simulator.requests_seen().pop().unwrap();
        assert!(seen.has_body && !seen.headers.contains_key("expect"));
    }
}

#[tokio::test]
async fn a_client_that_keeps_a_smaller_table_understands_the_100() {
    let world = short_heads("").await;
    let mut client = FrameClient::to(&world).await;
    // SETTINGS_HEADER_TABLE_SIZE is 0.
    client.says(&[&frame(0x4, 0, 0, &[0, 1, 0, 0, 0, 0]), &upload(&world, 1, RELAYED, EXPECTING)]).await;
    let first = client.hears().await.unwrap();
    assert_eq!(first.payload, [0x20, 8, 3, b'1', b'0', b'0'], "{first:?}");
    client.says(&[&frame(DATA, END_STREAM, 1, b"a body")]).await;
    let heard = client.hears_out(1).await;
    assert_eq!((heard[0].payload[0], body(&heard)), (0x20, b"a body".to_vec()));
}

#[tokio::test]
async fn a_client_whose_body_is_read_before_it_is_sent_on_is_told_to_send_it() {
    let world = short_heads("").await;
    let mut client = FrameClient::to(&world).await;
    // Upstream has the request, and asks for nothing more.
    world.simulator.hold();
    client.says(&[&upload(&world, 1, RELAYED, EXPECTING)]).await;
    assert!(client.hears().await.unwrap().is_continue());
    within(world.simulator.arrived(1)).await;
    world.simulator.release();
    client.says(&[&frame(DATA, END_STREAM, 1, b"")]).await;
    assert_eq!(client.hears_out(1).await[0].status(), Some(200));
}

#[tokio::test]
async fn a_100_goes_to_the_stream_that_waits_whatever_becomes_of_others() {
    let world = short_heads("").await;
    let mut client = FrameClient::to(&world).await;
    let without_path = block(&[(":method", "POST"), (":scheme", "http"), (":authority", "g")]);
    client
        .says(&[
            // Malformed, taken back, answered without a body, begun with its body, and split.
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
    let mut told = Vec::new();
    while told.last() != Some(&9) {
        let heard = client.hears().await.unwrap();
        if heard.is_continue() {
            told.push(heard.stream);
        }
    }
    assert!([&[9][..], &[3, 9]].contains(&&told[..]), "{told:?}");
    client.says(&[&frame(DATA, END_STREAM, 9, b"x"), &frame(DATA, END_STREAM, 7, b"x")]).await;
    client.says(&[&frame(DATA, END_STREAM, 11, b"x")]).await;
    let mut ended = Vec::new();
    while ended.len() < 3 {
        let heard = client.hears().await.unwrap();
        assert!(!heard.is_continue(), "{heard:?}");
        if heard.is_end() && heard.stream > 5 {
            ended.push(heard.stream);
        }
    }
    ended.sort_unstable();
    assert_eq!(ended, [7, 9, 11]);
}

#[tokio::test]
async fn a_refused_stream_takes_nobodys_100() {
    let world = short_heads("[upstream]\nmax_calls = 1000\nmax_calls_per_caller = 1000").await;
    let mut client = FrameClient::to(&world).await;
    world.simulator.hold();
    let held: Vec<_> = (0..128).flat_map(|index| upload(&world, 2 * index + 1, RELAYED, &[])).collect();
    client.says(&[&held]).await;
    within(world.simulator.arrived(128)).await;
    client.says(&[&upload(&world, 257, RELAYED, EXPECTING)]).await;
    let refused = client.hears().await.unwrap();
    assert_eq!((refused.kind, refused.stream, &refused.payload[..]), (RST_STREAM, 257, &[0, 0, 0, 7][..]));
    client.says(&[&frame(RST_STREAM, 0, 1, &[0, 0, 0, 8])]).await;
    world.until_metric("workspace_gateway_requests_in_flight", 127.0).await;
    client.says(&[&upload(&world, 259, RELAYED, EXPECTING)]).await;
    let told = client.hears().await.unwrap();
    assert!(told.is_continue() && told.stream == 259, "{told:?}");
}

#[tokio::test]
async fn no_100_comes_where_the_response_is_decided_or_the_body_has_come() {
    let world = short_heads("").await;
    let mut client = FrameClient::to(&world).await;
    client.says(&[&upload(&world, 1, "/nowhere", EXPECTING)]).await;
    let heard = client.hears().await.unwrap();
    assert_eq!(heard.status(), Some(404), "{heard:?}");
    let mut client = FrameClient::to(&world).await;
    for round in 0..20 {
        let (stream, body) = (2 * round + 1, frame(DATA, END_STREAM, 2 * round + 1, b"x"));
        client.says(&[&upload(&world, stream, RELAYED, EXPECTING), &body]).await;
        let heard = client.hears_out(stream).await;
        assert_eq!(heard[0].status(), Some(200), "{heard:?}");
    }
}

/// What is malformed in a trailer section of HTTP/2.
fn malformed() -> Vec<(&'static str, Vec<u8>)> {
    vec![
        ("a pseudo-header field", [field(":path", "/v2/other"), field("x-checksum", "1")].concat()),
        // The `:path` of the head, as the first entry of the dynamic table (RFC 7541 §2.3.3).
        ("a pseudo-header field from the table", vec![0xbe]),
        ("a blank before a value", field("x-checksum", " 1")),
        ("a tab after a value", field("x-checksum", "1\t")),
    ]
}

/// The head of a POST that leaves its path in the dynamic table.
fn indexed_head(world: &World) -> Vec<u8> {
    let path = RELAYED.replace("PROJECT", PROJECT);
    let path = [&[0x44, u8::try_from(path.len()).unwrap()], path.as_bytes()].concat();
    let pseudo = block(&[(":method", "POST"), (":scheme", "http"), (":authority", "g")]);
    frame(HEADERS, END_HEADERS, 1, &[pseudo, path, field("x-auth-token", &world.token)].concat())
}

#[tokio::test]
async fn malformed_trailers_are_answered_400_and_upstream_does_not_see_the_request_end() {
    for (what, trailers) in malformed() {
        let world = short_heads("").await;
        let mut client = FrameClient::to(&world).await;
        world.simulator.hold();
        client.says(&[&indexed_head(&world), &frame(DATA, 0, 1, b"a body")]).await;
        within(world.simulator.arrived(1)).await;
        client.says(&[&frame(HEADERS, END_STREAM | END_HEADERS, 1, &trailers)]).await;
        let heard = client.hears_out(1).await;
        assert_eq!(heard[0].status(), Some(400), "{what}: {heard:?}");
        assert!(String::from_utf8(body(&heard)).unwrap().contains("RFC 9113"), "{what}");
        // Who is asked next is not disturbed.
        world.simulator.release();
        client.says(&[&frame(HEADERS, END_STREAM | END_HEADERS, 3, &head("/nowhere", "t"))]).await;
        assert_eq!(client.hears_out(3).await[0].status(), Some(404));
    }
}

#[tokio::test]
async fn malformed_trailers_reset_the_stream_once_its_response_has_begun() {
    for (what, trailers) in malformed() {
        let world = short_heads("").await;
        let mut client = FrameClient::to(&world).await;
        client.says(&[&indexed_head(&world), &frame(DATA, 0, 1, b"a body")]).await;
        let begun = [client.hears().await.unwrap(), client.hears().await.unwrap()];
        assert_eq!((begun[0].status(), body(&begun)), (Some(200), b"a body".to_vec()));
        client.says(&[&frame(HEADERS, END_STREAM | END_HEADERS, 1, &trailers)]).await;
        let heard = client.hears_out(1).await;
        assert_eq!(kinds(&heard), [RST_STREAM], "{what}");
    }
}

#[tokio::test]
async fn trailers_in_good_order_end_a_request_well() {
    let world = short_heads("").await;
    let mut client = FrameClient::to(&world).await;
    let trailers = [&[0x20][..], &block(&[("x-checksum", "1"), ("x-empty", ""), ("x-more", "a b")])].concat();
    let (first, second) = trailers.split_at(9);
    client
        .says(&[
            &indexed_head(&world),
            &frame(DATA, 0, 1, b"a body"),
            &frame(HEADERS, END_STREAM, 1, first),
            &frame(0x9, END_HEADERS, 1, second),
        ])
        .await;
    let heard = client.hears_out(1).await;
    assert_eq!((heard[0].status(), body(&heard)), (Some(200), b"a body".to_vec()));
    assert!(heard.last().unwrap().is_end());
}

#[tokio::test]
async fn what_is_in_progress_at_shutdown_is_answered_though_its_client_closes_at_a_goaway() {
    let world = short_heads("").await;
    let address = world.server.proxy_address();
    let mut client = FrameClient::to(&world).await;
    world.simulator.hold();
    let list = head(&LIST.replace("PROJECT", PROJECT), &world.token);
    client.says(&[&frame(HEADERS, END_STREAM | END_HEADERS, 1, &list)]).await;
    within(world.simulator.arrived(1)).await;
    let World { simulator, server, .. } = world;
    let stopping = tokio::spawn(server.stop());
    within(async { while TcpStream::connect(address).await.is_ok() {} }).await;
    // A request that comes now is answered as well.
    client.says(&[&frame(HEADERS, END_STREAM | END_HEADERS, 3, &head("/nowhere", "t"))]).await;
    assert_eq!(client.hears_out(3).await[0].status(), Some(404));
    simulator.release();
    // All of it comes before a GOAWAY.
    let heard = client.hears_out(1).await;
    assert!(heard[0].status() == Some(200) && heard.last().unwrap().is_end(), "{heard:?}");
    assert_eq!(client.hears().await.unwrap().kind, GOAWAY);
    drop(client);
    within(stopping).await.unwrap();
}
