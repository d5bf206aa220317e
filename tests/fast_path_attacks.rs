//! Attacks on the fast path: however the bytes are segmented, a body is never taken for a head, and every request gets
//! its own response, in order.

use std::fmt;

use proptest::collection::vec;
use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};
use tokio::runtime::Builder;

use crate::support::raw_client::{RawClient, RawResponse};
use crate::support::{PROJECT, World, with_fast_path, within};

const LIST: &str = "/v2/PROJECT/products?os_type=Linux&limit=1";
const OTHER: &str = "/v2/PROJECT/products?os_type=Windows&limit=1";

/// A path that is relayed.
const RELAYED: &str = "/v2/PROJECT/desktops";

/// A gateway that knows a head. The head is short, because tests split it at each byte.
async fn with_known_head() -> (World, String) {
    let mut world = World::with(&with_fast_path(true, "")).await;
    world.token = world.simulator.token_of_length(PROJECT, 64);
    let known = world.head(LIST, &[]);
    world.warm_head_cache(&known).await;
    (world, known)
}

fn is_hit(response: &RawResponse) -> bool {
    response.status() == 200 && response.head.contains("workspace-gateway; hit")
}

/// The head of a POST.
fn post(path: &str, lines: &str) -> String {
    format!("POST {} HTTP/1.1\r\nhost: gateway\r\n{lines}\r\n", path.replace("PROJECT", PROJECT))
}

#[tokio::test]
async fn blank_lines_before_a_request_get_no_response() {
    for blank in ["\r\n\r\n", "\n\n", "\r\n", "\n\r\n", "\r\n\r\n\r\n\r\n"] {
        let (world, known) = with_known_head().await;
        let mut client = RawClient::connect(&world).await;
        for _ in 0..3 {
            client.send(blank).await;
            client.assert_no_response().await;
            assert!(is_hit(&client.exchange(&known).await));
        }
        // Blank lines alone get no response.
        let mut other = RawClient::connect(&world).await;
        other.send(blank).await;
        other.assert_no_response().await;
    }
}

#[tokio::test]
async fn a_head_split_at_any_byte_gets_the_same_response() {
    let (world, known) = with_known_head().await;
    let mut client = RawClient::connect(&world).await;
    let expected = client.exchange(&known).await.without_request_id();
    for cut in 1..known.len() {
        let before = world.fast_path_hits();
        client.send(&known[..cut]).await;
        client.assert_no_response().await;
        assert_eq!(client.exchange(&known[cut..]).await.without_request_id(), expected, "{cut}");
        // A head in two pieces does not take the fast path.
        assert_eq!(world.fast_path_hits(), before, "{cut}");
        assert!(is_hit(&client.exchange(&known).await));
        assert_eq!(world.fast_path_hits(), before + 1, "{cut}");
    }
}

#[tokio::test]
async fn a_head_sent_byte_by_byte_gets_the_same_response() {
    let (world, known) = with_known_head().await;
    let other = world.head(OTHER, &[]);
    let mut client = RawClient::connect(&world).await;
    let (response, other_body) =
        (client.exchange(&known).await.without_request_id(), client.exchange(&other).await.body);
    for byte in known.as_bytes() {
        client.send([*byte]).await;
    }
    assert_eq!(client.read_response().await.without_request_id(), response);
    // One piece has the end of a head and the complete next one, so it ends as a head does.
    let half = known.len() / 2;
    client.send(&known[..half]).await;
    client.send(format!("{}{other}", &known[half..])).await;
    assert_eq!(client.read_response().await.without_request_id(), response);
    assert_eq!(client.read_response().await.body, other_body);
    assert_eq!(client.exchange(&known).await.without_request_id(), response);
}

#[tokio::test]
async fn pipelined_heads_are_answered_one_by_one() {
    for times in [2, 3, 40] {
        let (world, known) = with_known_head().await;
        let mut client = RawClient::connect(&world).await;
        let pieces = known.repeat(times);
        // The piece is sent three times, and still is not taken for one known head.
        for _ in 0..3 {
            client.send(&pieces).await;
            for _ in 0..times {
                assert!(is_hit(&client.read_response().await));
            }
            client.assert_no_response().await;
        }
        assert_eq!(world.fast_path_hits(), 1);
    }
}

#[tokio::test]
async fn a_known_head_is_answered_after_earlier_requests() {
    let (world, known) = with_known_head().await;
    let mut client = RawClient::connect(&world).await;
    world.simulator.hold();
    client.send(world.head(OTHER, &[])).await;
    within(world.simulator.wait_for_requests(2)).await;
    client.send(&known).await;
    client.send(&known).await;
    client.assert_no_response().await;
    world.simulator.release();
    assert!(client.read_response().await.body.contains("\"os_type\":\"Windows\""));
    for _ in 0..2 {
        let response = client.read_response().await;
        assert!(is_hit(&response) && response.body.contains("\"os_type\":\"Linux\""), "{response:?}");
    }
    assert_eq!(world.fast_path_hits(), 1);
}

#[tokio::test]
async fn a_known_head_within_a_body_is_not_a_request() {
    let (world, known) = with_known_head().await;
    let token = format!("x-auth-token: {}\r\n", world.token);
    let length = known.len();
    for (lines, before, after) in [
        (format!("content-length: {length}\r\n"), String::new(), ""),
        (format!("content-length: {}\r\n", length + 4), "\r\n\r\n".to_owned(), ""),
        ("transfer-encoding: chunked\r\n".to_owned(), format!("{length:x}\r\n"), "\r\n0\r\n\r\n"),
        (format!("content-length: {length}\r\nexpect: 100-continue\r\n"), String::new(), ""),
    ] {
        let post_head = post(RELAYED, &(token.clone() + &lines));
        let get_head = world.head(LIST, &lines.trim_end().split("\r\n").collect::<Vec<_>>());
        for head in [post_head, get_head] {
            world.simulator.forget_requests();
            let mut client = RawClient::connect(&world).await;
            // Upstream must not answer before the body has arrived.
            world.simulator.hold();
            client.send(&head).await;
            for piece in [before.as_str(), &known, after].into_iter().filter(|piece| !piece.is_empty()) {
                client.send(piece).await;
            }
            world.simulator.release();
            let mut response = client.read_response().await;
            if response.status() == 100 {
                response = client.read_response().await;
            }
            assert!(!is_hit(&response), "{head} {response:?}");
            client.assert_no_response().await;
            let seen = world.simulator.requests_seen();
            assert_eq!((seen.len(), world.fast_path_hits()), (1, 1), "{head}");
            // After the body, the same bytes are a request.
            assert!(is_hit(&client.exchange(&known).await));
            assert_eq!(world.fast_path_hits(), 1, "after a body, hyper reads the connection");
        }
    }
}

#[tokio::test]
async fn the_rest_of_a_rejected_upload_is_not_a_request() {
    let (world, known) = with_known_head().await;
    for lines in [
        format!("content-length: {}\r\n", known.len()),
        "content-length: 1000000\r\n".to_owned(),
        "transfer-encoding: chunked\r\n".to_owned(),
        format!("content-length: {}\r\nexpect: 100-continue\r\n", known.len()),
        // So large that the connection frees its read buffer when it is idle.
        format!("content-length: {}\r\nx-large: {}\r\n", known.len(), "x".repeat(30_000)),
        format!("transfer-encoding: chunked\r\nx-large: {}\r\n", "x".repeat(30_000)),
    ] {
        for sent in ["", "x"] {
            let mut client = RawClient::connect(&world).await;
            let refused = client.exchange(post("/nowhere", &lines) + sent).await;
            assert_eq!(refused.status(), 404);
            // The rest of the body follows. The gateway may read it to its end or close the connection.
            client.try_send(&known[sent.len()..]).await;
            client.try_send(&known).await;
            client.finish_sending().await;
            let more = client.read_responses().await;
            assert!(more.len() <= 1, "{lines}: {more:?}");
            assert_eq!(world.fast_path_hits(), 1, "{lines}");
        }
    }
}

/// Pads a head to the size of the first read, so that the bytes behind it are read separately.
fn padded_to_one_read(head: &str) -> String {
    let padding = "x".repeat(8192 - head.len() - "x-p: \r\n".len());
    let end = head.len() - "\r\n".len();
    format!("{}x-p: {padding}\r\n\r\n", &head[..end])
}

#[tokio::test]
async fn a_body_that_is_read_separately_is_not_a_request() {
    let (world, known) = with_known_head().await;
    // The body has arrived before its request is rejected, and nobody reads it.
    let length = format!("content-length: {}\r\n", known.len());
    let expects = format!("{length}expect: 100-continue\r\n");
    for head in [
        post("/nowhere", &length),
        world.head("/nowhere", &[length.trim_end()]),
        // With 100-continue the body is read only after the request has ended.
        post("/nowhere", &expects),
        world.head("/nowhere", &[length.trim_end(), "expect: 100-continue"]),
    ] {
        let mut client = RawClient::connect(&world).await;
        assert_eq!(client.exchange(padded_to_one_read(&head) + &known).await.status(), 404);
        client.assert_no_response().await;
        assert!(is_hit(&client.exchange(&known).await));
        client.assert_no_response().await;
        assert_eq!(world.fast_path_hits(), 1);
    }
    // A pipelined request.
    let mut client = RawClient::connect(&world).await;
    client.send(padded_to_one_read(&world.head("/nowhere", &[])) + &known).await;
    assert_eq!(client.read_response().await.status(), 404);
    assert!(is_hit(&client.read_response().await));
    assert_eq!(world.fast_path_hits(), 1);
}

#[tokio::test]
async fn pipelined_heads_that_are_read_separately_take_the_fast_path() {
    let (world, known) = with_known_head().await;
    let long = padded_to_one_read(&known);
    world.warm_head_cache(&long).await;
    for (last, hits) in [("", 3), (world.head(OTHER, &[]).as_str(), 3), ("GET / HTTP/1.1\r\n", 3)] {
        let before = world.fast_path_hits();
        let mut client = RawClient::connect(&world).await;
        client.send(long.repeat(3) + last).await;
        client.finish_sending().await;
        let responses = client.read_responses().await;
        assert!(responses.len() >= 3 && responses[..3].iter().all(is_hit), "{last:?} {responses:?}");
        assert!(!responses[3..].iter().any(is_hit), "{last:?} {responses:?}");
        assert_eq!(world.fast_path_hits(), before + hits, "{last:?}");
    }
}

#[tokio::test]
async fn a_malformed_head_before_a_known_head_is_rejected() {
    let (world, known) = with_known_head().await;
    for malformed in [
        "GET / HTTP/1.1\r\nhost: x\r\na: b\r\n folded: c\r\n\r\n",
        "GET / HTTP/1.1\r\nhost: x\r\na: \0\r\n\r\n",
        "GET / HTTP/1.1\r\nhost : x\r\n\r\n",
        "GET / HTTP/1.1\r\nhost: x\r\ncontent-length: -1\r\n\r\n",
        "GET / HTTP/1.1\r\nhost: x\r\ncontent-length: 1\r\ncontent-length: 2\r\n\r\n",
        "GET / HTTP/1.1\r\nhost: x\r\ntransfer-encoding: x\r\n\r\n",
        "GET / HTTP/1.0\r\ntransfer-encoding: chunked\r\n\r\n",
        "GET /\r\n\r\n",
        "\0\r\n\r\n",
        "PRI * HTTP/2.0\r\n\r\n",
        "PRI * HTTP/2.0\r\n\r\nSM\r\n\rx",
    ] {
        for is_first in [true, false] {
            let mut client = RawClient::connect(&world).await;
            if !is_first {
                client.exchange(&known).await;
            }
            let before = world.fast_path_hits();
            client.send(malformed).await;
            client.try_send(&known).await;
            let responses = client.read_responses().await;
            assert!(
                responses.len() <= 1 && responses.iter().all(|response| response.status() == 400),
                "{malformed:?} {responses:?}"
            );
            assert_eq!(world.fast_path_hits(), before, "{malformed:?}");
        }
    }
    // Leading blank lines are accepted each time.
    for template in ["\r\n{}", "\n{}", "\r\n\r\n{}"] {
        let head = template.replace("{}", &known);
        for _ in 0..3 {
            assert!(is_hit(&RawClient::connect(&world).await.exchange(&head).await));
        }
    }
}

#[tokio::test]
async fn the_last_request_of_a_connection_is_answered() {
    let (world, known) = with_known_head().await;
    let mut client = RawClient::connect(&world).await;
    client.exchange(&known).await;
    client.send(world.head(LIST, &["connection: close"])).await;
    client.try_send(&known).await;
    let responses = client.read_responses().await;
    assert!(responses.len() == 1 && responses[0].header("connection") == "close", "{responses:?}");
    let before = world.fast_path_hits();
    let mut client = RawClient::connect(&world).await;
    client.send(&known).await;
    client.finish_sending().await;
    assert!(client.read_responses().await.iter().all(is_hit));
    assert_eq!(world.fast_path_hits(), before + 1);
    // An incomplete head gets no response from memory.
    let mut client = RawClient::connect(&world).await;
    client.exchange(&known).await;
    client.send(&known[..known.len() - 1]).await;
    client.finish_sending().await;
    assert!(!client.read_responses().await.iter().any(is_hit));
}

#[tokio::test]
async fn a_known_head_after_an_http2_preface_is_not_a_request() {
    let (world, known) = with_known_head().await;
    let mut client = RawClient::connect(&world).await;
    for piece in ["P", "RI * HTTP/2.0\r\n\r\n", "SM\r\n", "\r\n"] {
        client.send(piece).await;
    }
    // The known head is no frame: the gateway sends SETTINGS, and then GOAWAY.
    client.try_send(&known).await;
    client.finish_sending().await;
    let received = client.read_to_end().await;
    assert!(received.get(3) == Some(&4) && !received.windows(8).any(|bytes| bytes == b"products"), "{received:?}");
    assert_eq!(world.fast_path_hits(), 1);
}

/// The kinds of generated input.
#[derive(Clone)]
enum Input {
    Known,
    Other,
    New,
    Nowhere,
    Blank,
    Upload,
    Chunked,
}

impl fmt::Debug for Input {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(["known", "other", "new", "nowhere", "blank", "upload", "chunked"][self.clone() as usize])
    }
}

impl Input {
    fn bytes(&self, world: &World, known: &str) -> String {
        let token = format!("x-auth-token: {}\r\n", world.token);
        match self {
            Self::Known => known.to_owned(),
            Self::Other => world.head(OTHER, &[]),
            Self::New => world.head(LIST, &["x-n: 1"]),
            Self::Nowhere => world.head("/nowhere", &[]),
            Self::Blank => "\r\n".to_owned(),
            Self::Upload => post(RELAYED, &format!("{token}content-length: {}\r\n", known.len())) + known,
            Self::Chunked => {
                let head = post(RELAYED, &format!("{token}transfer-encoding: chunked\r\n"));
                format!("{head}{:x}\r\n{known}\r\n0\r\n\r\n", known.len())
            }
        }
    }

    /// Whether this is its response.
    fn is_answered_by(&self, response: &RawResponse) -> bool {
        match self {
            Self::Known | Self::New => is_hit(response) && response.body.contains("\"os_type\":\"Linux\""),
            Self::Other => is_hit(response) && response.body.contains("\"os_type\":\"Windows\""),
            Self::Nowhere => response.status() == 404 && response.body.contains("error_code"),
            Self::Upload | Self::Chunked => !is_hit(response) && response.head.contains("api-gateway"),
            Self::Blank => false,
        }
    }
}

fn inputs() -> impl Strategy<Value = Vec<Input>> {
    let one = prop_oneof![
        6 => Just(Input::Known),
        2 => Just(Input::Other),
        1 => Just(Input::New),
        1 => Just(Input::Nowhere),
        1 => Just(Input::Blank),
        1 => Just(Input::Upload),
        1 => Just(Input::Chunked),
    ];
    vec(one, 1..8)
}

#[test]
fn each_request_gets_its_response_in_order_for_any_segmentation() {
    let runtime = Builder::new_current_thread().enable_all().build().unwrap();
    let (world, known) = runtime.block_on(with_known_head());
    runtime.block_on(world.warm_head_cache(&world.head(OTHER, &[])));
    let cuts = vec((0..2_000_usize, any::<bool>()), 0..5);
    let config = Config { cases: 400, max_shrink_iters: 200, failure_persistence: None, ..Config::default() };
    let result = TestRunner::new(config).run(&(inputs(), cuts, any::<bool>()), |(inputs, cuts, is_by_request)| {
        runtime.block_on(is_in_order(&world, &known, &inputs, &cuts, is_by_request))
    });
    result.unwrap_or_else(|error| panic!("{error}"));
    assert!(world.fast_path_hits() > 100, "{}", world.fast_path_hits());
}

/// Sends the inputs in pieces that end at the cuts, and with `is_by_request` also at the end of each input. Reads the
/// due responses after each piece with `waits`, which the last one has.
async fn is_in_order(
    world: &World,
    known: &str,
    inputs: &[Input],
    cuts: &[(usize, bool)],
    is_by_request: bool,
) -> Result<(), TestCaseError> {
    let mut bytes = String::new();
    let mut ends = Vec::new();
    for input in inputs {
        bytes += &input.bytes(world, known);
        ends.push((bytes.len(), input));
    }
    let mut pieces: Vec<(usize, bool)> = cuts.iter().map(|&(cut, waits)| (cut % bytes.len(), waits)).collect();
    pieces.extend(is_by_request.then_some(&ends).into_iter().flatten().map(|&(end, _)| (end, true)));
    pieces.push((bytes.len(), true));
    pieces.sort_unstable();
    let mut due = ends.iter().filter(|(_, input)| !matches!(input, Input::Blank));
    let mut client = RawClient::connect(world).await;
    let (mut sent, mut answered) = (0, 0);
    for (end, waits) in pieces {
        client.send(&bytes[sent..end]).await;
        sent = end;
        let complete = ends.iter().filter(|(at, input)| *at <= end && !matches!(input, Input::Blank)).count();
        while waits && answered < complete {
            let (_, input) = due.next().unwrap();
            let response = client.read_response().await;
            prop_assert!(input.is_answered_by(&response), "{input:?}: {response:?}");
            answered += 1;
        }
    }
    client.assert_no_response().await;
    Ok(())
}
