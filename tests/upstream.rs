//! Upstream connections that break, and responses that violate HTTP. The gateway retries once where this is safe, and
//! fails otherwise. A request must not get bytes of another response.

use std::time::Duration;

use http::{Method, StatusCode};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsAcceptor;
use workspace_gateway::testing::simulator::Simulator;

use crate::support::raw_upstream::{RawUpstream, Reaction, closes, resets, sends, silent};
use crate::support::{Http, Reply, World, all_replies, send_raw, tls, within};

const LIST: &str = "/v2/PROJECT/products";
const RELAYED: &str = "/v2/PROJECT/desktops";

const RESPONSE: &str =
    "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 15\r\n\r\n{\"products\":[]}";

const RETRIES: &str = "workspace_gateway_upstream_retries_total{service=\"workspace\"}";

async fn world_with_upstream(reactions: impl Into<Vec<Reaction>>, settings: &str) -> (World, RawUpstream) {
    let upstream = RawUpstream::start(reactions).await;
    let simulator = Simulator::start().await.unwrap();
    (World::with_upstreams(simulator, upstream.url(), upstream.url(), settings).await, upstream)
}

async fn send(world: &World, method: Method, path: &str, body: &'static str) -> Reply {
    world.http.send(method, &world.url(path), &[("x-auth-token", "t")], body).await
}

fn assert_complete(reply: &Reply) {
    assert_eq!((reply.status(), reply.text()), (StatusCode::OK, "{\"products\":[]}"));
}

fn assert_broken(reply: &Reply, word: &str) {
    reply.assert_refused(StatusCode::BAD_GATEWAY);
    let message = reply.error().1;
    let expected = ["the response is incomplete or malformed", "the response header is too large"];
    assert!(expected.iter().any(|text| message.contains(text)), "{reply:?}");
    if reply.headers().contains_key("cache-status") {
        assert!(reply.cache_status().ends_with(&format!("detail={word}")), "{reply:?}");
    }
}

#[tokio::test]
async fn a_connection_that_breaks_before_the_response_causes_one_retry() {
    for broken in [
        resets(),
        closes(),
        sends("HTTP/1.1 200 OK\r\nContent-Le").then_closes(),
        sends("HTTP/1.1 100 Continue\r\n\r\n").then_resets(),
    ] {
        for (method, path) in [(Method::GET, LIST), (Method::GET, RELAYED), (Method::OPTIONS, RELAYED)] {
            let (world, upstream) = world_with_upstream([broken.clone(), sends(RESPONSE)], "").await;
            assert_complete(&send(&world, method, path, "").await);
            assert_eq!((upstream.requests(), upstream.connections()), (2, 2));
            assert_eq!(world.metric(RETRIES), 1.0);
            let heads = upstream.heads();
            assert_eq!(heads[0], heads[1], "the retry sends the same request");
        }
    }
}

#[tokio::test]
async fn a_second_broken_connection_is_a_502() {
    for broken in [resets(), closes()] {
        for path in [LIST, RELAYED] {
            let (world, upstream) = world_with_upstream([broken.clone()], "").await;
            assert_broken(&world.get(path).await, "broken");
            assert_eq!((upstream.requests(), world.metric(RETRIES)), (2, 1.0));
        }
    }
}

#[tokio::test]
async fn a_retry_uses_a_new_connection() {
    let delayed = silent().then_waits().then_sends(RESPONSE);
    let (world, upstream) = world_with_upstream([delayed.clone(), delayed, resets(), sends(RESPONSE)], "").await;
    let pending = vec![world.begin("a", RELAYED), world.begin("b", RELAYED)];
    upstream.wait_for_requests(2).await;
    upstream.resume();
    upstream.resume();
    all_replies(pending).await;
    assert_complete(&world.get(LIST).await);
    assert_eq!((upstream.requests(), upstream.connections()), (4, 3));
}

#[tokio::test]
async fn requests_that_may_have_effects_or_a_body_are_not_retried() {
    for broken in [resets(), closes()] {
        for (method, body) in [
            (Method::POST, "{}"),
            (Method::POST, ""),
            (Method::DELETE, ""),
            (Method::PUT, "{}"),
            (Method::PATCH, ""),
            // Safe, but the body is already consumed.
            (Method::GET, "{}"),
        ] {
            let (world, upstream) = world_with_upstream([broken.clone(), sends(RESPONSE)], "").await;
            assert_broken(&send(&world, method, RELAYED, body).await, "broken");
            assert_eq!((upstream.requests(), world.metric(RETRIES)), (1, 0.0));
        }
    }
}

#[tokio::test]
async fn a_connection_that_closes_while_idle_fails_no_request() {
    let (world, upstream) = world_with_upstream([sends(RESPONSE).then_closes(), sends(RESPONSE)], "").await;
    assert_complete(&world.get(RELAYED).await);
    upstream.wait_for_closes(1).await;
    assert_complete(&send(&world, Method::POST, RELAYED, "{}").await);
    assert_eq!((upstream.requests(), upstream.connections(), world.metric(RETRIES)), (2, 2, 0.0));
}

#[tokio::test]
async fn a_failed_connect_is_not_retried() {
    let simulator = Simulator::start().await.unwrap();
    let world = World::with_upstreams(simulator, "http://127.0.0.1:1", "http://127.0.0.1:1", "").await;
    for path in [LIST, RELAYED] {
        world.get(path).await.assert_refused(StatusCode::BAD_GATEWAY);
    }
    assert_eq!(world.metric(RETRIES), 0.0);
}

#[tokio::test]
async fn a_retry_has_the_rest_of_the_deadline() {
    let settings = "[upstream]\nconnect_timeout = \"500ms\"\nfirst_byte_timeout = \"500ms\"\nanswer_timeout = \"1h\"";
    let (world, upstream) = world_with_upstream([resets(), silent()], settings).await;
    let reply = world.get(LIST).await;
    reply.assert_refused(StatusCode::GATEWAY_TIMEOUT);
    assert!(reply.cache_status().ends_with("detail=first-byte"), "{reply:?}");
    assert_eq!(upstream.requests(), 2);
    let failed = "workspace_gateway_upstream_requests_total{service=\"workspace\",status=\"first-byte\"}";
    assert_eq!(world.metric(failed), 1.0);
}

#[tokio::test]
async fn a_malformed_response_is_a_502_and_not_retried() {
    let field = format!("X-Filler: {}\r\n", "x".repeat(2500));
    let giant = format!("HTTP/1.1 200 OK\r\n{}Content-Length: 0\r\n\r\n", field.repeat(99));
    let endless = format!("HTTP/1.1 200 OK\r\n{}", field.repeat(200));
    let status_line = "HTTP/1.1 twohundred OK\r\n\r\n".to_owned();
    let lengths = "HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nx".to_owned();
    for wrong in [giant, endless, status_line, lengths, "\0\0\0\0 no HTTP\r\n\r\n".to_owned()] {
        for path in [LIST, RELAYED] {
            let (world, upstream) = world_with_upstream([sends(&wrong), sends(RESPONSE)], "").await;
            assert_broken(&world.get(path).await, "broken");
            assert_eq!((upstream.requests(), world.metric(RETRIES)), (1, 0.0));
            // The next request uses another connection.
            assert_complete(&world.get(path).await);
            assert_eq!(upstream.connections(), 2);
        }
    }
}

#[tokio::test]
async fn a_response_head_within_the_limit_is_accepted() {
    let head = format!("HTTP/1.1 200 OK\r\n{}", format!("X-Filler: {}\r\n", "x".repeat(600)).repeat(48));
    let (world, _upstream) = world_with_upstream([sends(RESPONSE.replace("HTTP/1.1 200 OK\r\n", &head))], "").await;
    for path in [RELAYED, LIST] {
        assert_complete(&world.get(path).await);
    }
}

#[tokio::test]
async fn many_or_unusual_response_fields_are_accepted_and_normalized() {
    for (fields, repaired) in [
        ("X-Odd : a\r\n".to_owned(), "x-odd: a\r\n"),
        ("X-Odd: a\r\n b\r\n\t c\r\n".to_owned(), "x-odd: a b c\r\n"),
        ("X-Odd: a\r\n".repeat(1_000), "x-odd: a\r\n"),
    ] {
        let response = RESPONSE.replace("HTTP/1.1 200 OK\r\n", &format!("HTTP/1.1 200 OK\r\n{fields}"));
        let (world, _upstream) = world_with_upstream([sends(&response), sends(&response)], "").await;
        for path in [RELAYED, LIST].map(|path| path.replace("PROJECT", "p")) {
            let request = format!("GET {path} HTTP/1.1\r\nHost: x\r\nX-Auth-Token: t\r\nConnection: close\r\n\r\n");
            let passed = send_raw(world.server.proxy_address(), &request).await;
            let times = fields.matches("X-Odd").count();
            assert_eq!(passed.to_ascii_lowercase().matches(repaired).count(), times, "{passed:.200}");
            assert!(
                passed.starts_with("HTTP/1.1 200 OK\r\n") && passed.ends_with("{\"products\":[]}"),
                "{passed:.200}"
            );
        }
    }
}

#[tokio::test]
async fn repeated_content_lengths_are_merged() {
    for length in ["Content-Length: 15, 15\r\n", "Content-Length: 15\r\nContent-Length: 15\r\n"] {
        let response = RESPONSE.replace("Content-Length: 15\r\n", length);
        let head = response.split_inclusive("\r\n\r\n").next().unwrap().to_owned();
        for (method, response) in [(Method::GET, &response), (Method::HEAD, &head)] {
            for http in [Http::new(), Http::http2()] {
                let (mut world, _upstream) = world_with_upstream([sends(response)], "").await;
                world.http = http;
                let reply = send(&world, method.clone(), RELAYED, "").await;
                assert_eq!(
                    (reply.status(), reply.header("content-length")),
                    (StatusCode::OK, "15"),
                    "{length} {method}"
                );
            }
        }
        let (world, _upstream) = world_with_upstream([sends(&response)], "").await;
        let reply = world.get(LIST).await;
        assert_complete(&reply);
        assert_eq!(reply.header("content-length"), "15", "{length}");
    }
}

#[tokio::test]
async fn interim_responses_are_skipped() {
    let interim = "HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nLink: </x>\r\n\r\n";
    let (world, upstream) = world_with_upstream([sends(interim).then_sends(RESPONSE)], "").await;
    for path in [LIST, RELAYED] {
        let reply = world.get(path).await;
        assert_complete(&reply);
        assert!(!reply.headers().contains_key("link"));
    }
    assert_eq!((upstream.requests(), upstream.connections()), (2, 1));
}

#[tokio::test]
async fn endless_interim_responses_do_not_extend_timeouts() {
    let interim = "HTTP/1.1 103 Early Hints\r\nLink: </x>\r\n\r\n".repeat(1_000);
    let settings = "[upstream]\nconnect_timeout = \"50ms\"\nfirst_byte_timeout = \"50ms\"\nidle_timeout = \"50ms\"";
    for (path, reason) in [(LIST, "first-byte"), (RELAYED, "idle")] {
        let (world, upstream) = world_with_upstream([sends(&interim)], settings).await;
        world.get(path).await.assert_refused(StatusCode::GATEWAY_TIMEOUT);
        let failed = format!("workspace_gateway_upstream_requests_total{{service=\"workspace\",status=\"{reason}\"}}");
        assert_eq!((upstream.requests(), world.metric(&failed)), (1, 1.0));
    }
}

#[tokio::test]
async fn a_response_with_an_incomplete_body_is_a_failure() {
    let short = "HTTP/1.1 200 OK\r\nContent-Length: 16\r\n\r\n{\"products\":[]}";
    let chunked = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nf\r\n{\"products\":[]}\r\n";
    let no_chunk = format!("{chunked}what?\r\n");
    for broken in [
        sends(short).then_closes(),
        sends(short).then_resets(),
        sends(chunked).then_closes(),
        sends(chunked).then_resets(),
        sends(no_chunk),
    ] {
        let (world, upstream) = world_with_upstream([broken.clone(), sends(RESPONSE)], "").await;
        assert_broken(&world.get(LIST).await, "broken");
        assert_eq!(upstream.requests(), 1, "the response had begun");
        let next = world.get(LIST).await;
        assert_complete(&next);
        assert!(next.cache_status().contains("fwd=miss"), "nothing was stored: {next:?}");

        // A relayed response is incomplete for the client, too.
        let (world, upstream) = world_with_upstream([broken], "").await;
        let request = "GET /v2/p/desktops HTTP/1.1\r\nHost: x\r\nX-Auth-Token: t\r\n\r\n";
        let response = send_raw(world.server.proxy_address(), request).await;
        assert!(response.starts_with("HTTP/1.1 200 OK\r\n"), "{response}");
        assert!(!response.ends_with("\r\n0\r\n\r\n"), "{response}");
        assert_eq!(upstream.requests(), 1);
    }
}

#[tokio::test]
async fn bytes_after_a_response_are_discarded() {
    let smuggled = "HTTP/1.1 200 OK\r\nContent-Length: 8\r\n\r\nsmuggled";
    for path in [LIST, RELAYED] {
        let (world, upstream) =
            world_with_upstream([sends(format!("{RESPONSE}{smuggled}")), sends(RESPONSE)], "").await;
        assert_complete(&world.get(path).await);
        upstream.wait_for_closes(1).await;
        assert_complete(&world.get(RELAYED).await);
        assert_eq!((upstream.requests(), upstream.connections()), (2, 2));
    }
}

#[tokio::test]
async fn a_body_that_ends_with_the_connection_is_complete() {
    let old = "HTTP/1.1 200 OK\r\n\r\n{\"products\":[]}";
    let (world, upstream) = world_with_upstream([sends(old).then_closes()], "").await;
    for path in [LIST, RELAYED] {
        assert_complete(&world.get(path).await);
    }
    assert_eq!(upstream.connections(), 2);
}

#[tokio::test]
async fn a_connection_beyond_its_maximum_age_is_not_reused() {
    let (world, upstream) = world_with_upstream([sends(RESPONSE)], "").await;
    for seconds in [0, 299] {
        world.seconds_pass(seconds);
        for path in [LIST, RELAYED] {
            assert_complete(&world.get(path).await);
        }
    }
    assert_eq!(upstream.connections(), 1);
    world.seconds_pass(1);
    for path in [RELAYED, RELAYED] {
        assert_complete(&world.get(path).await);
    }
    assert_eq!(upstream.connections(), 2);
    // The old connection is closed.
    upstream.wait_for_closes(1).await;
}

#[tokio::test]
async fn a_connection_is_not_reused_after_a_suspension_longer_than_the_idle_timeout() {
    for (suspended, connections) in [(14, 1), (15, 2)] {
        let (world, upstream) = world_with_upstream([sends(RESPONSE)], "").await;
        assert_complete(&world.get(RELAYED).await);
        world.clock.suspend(Duration::from_secs(suspended));
        for _ in 0..2 {
            assert_complete(&world.get(RELAYED).await);
            assert_eq!(upstream.connections(), connections, "{suspended} s");
        }
    }
}

#[tokio::test]
async fn a_connection_is_not_idle_longer_than_upstreams_keep_alive_allows() {
    for (announced, connections) in [
        // The number of connections after three requests, and after suspensions of 3 s and 1 s.
        ("timeout=60", [1, 1, 1]),
        ("max=5", [1, 1, 1]),
        ("timeout=5, max=100", [2, 2, 3]),
        ("max=100,Timeout = 5", [2, 2, 3]),
        ("timeout=1", [3, 4, 5]),
        ("timeout=0", [3, 4, 5]),
    ] {
        let fields = format!("HTTP/1.1 200 OK\r\nKeep-Alive: {announced}\r\n");
        let (world, upstream) =
            world_with_upstream([sends(RESPONSE.replace("HTTP/1.1 200 OK\r\n", &fields))], "").await;
        for _ in 0..2 {
            assert_complete(&world.get(RELAYED).await);
        }
        let mut seen = Vec::new();
        for seconds in [0, 3, 1] {
            world.clock.suspend(Duration::from_secs(seconds));
            assert_complete(&world.get(RELAYED).await);
            seen.push(upstream.connections());
        }
        assert_eq!(seen, connections, "{announced}");
    }
}

#[tokio::test]
async fn the_keep_alive_of_one_service_does_not_affect_the_other() {
    let short = RESPONSE.replace("HTTP/1.1 200 OK\r\n", "HTTP/1.1 200 OK\r\nKeep-Alive: timeout=1\r\n");
    let (one, other) = (RawUpstream::start([sends(short)]).await, RawUpstream::start([sends(RESPONSE)]).await);
    let world = World::with_upstreams(Simulator::start().await.unwrap(), one.url(), other.url(), "").await;
    for path in [RELAYED, "/v1/PROJECT/apps", RELAYED, "/v1/PROJECT/apps"] {
        assert_complete(&world.get(path).await);
    }
    assert_eq!((one.connections(), other.connections()), (2, 1));
}

#[tokio::test]
async fn a_stream_may_outlive_the_maximum_age_of_its_connection() {
    let first_part = "HTTP/1.1 200 OK\r\nContent-Length: 15\r\n\r\n{\"prod";
    let stream = sends(first_part).then_waits().then_sends("ucts\":[]}");
    let (world, upstream) = world_with_upstream([stream, sends(RESPONSE)], "").await;
    let streaming = world.begin("t", RELAYED);
    let answered = "workspace_gateway_upstream_requests_total{service=\"workspace\",status=\"200\"}";
    world.until_metric(answered, 1.0).await;
    world.seconds_pass(300);
    assert_complete(&world.get(RELAYED).await);
    assert_eq!(upstream.connections(), 2);
    upstream.resume();
    assert_complete(&within(streaming).await.unwrap());
    // The connection is not reused.
    upstream.wait_for_closes(1).await;
    assert_complete(&world.get(RELAYED).await);
    assert_eq!(upstream.connections(), 2);
}

/// An upstream that answers as soon as it has read a request's head, and closes the connection with the body unread
/// (RST).
async fn early_upstream(response: &'static str, acceptor: Option<TlsAcceptor>) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let scheme = if acceptor.is_some() { "https" } else { "http" };
    let url = format!("{scheme}://localhost:{}", listener.local_addr().unwrap().port());
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            // Without it, the response might still be unsent when the connection is reset.
            stream.set_nodelay(true).unwrap();
            match &acceptor {
                None => {
                    send_early(&mut stream, response).await;
                    stream.peek(&mut [0]).await.unwrap();
                }
                Some(acceptor) => {
                    let mut stream = acceptor.accept(stream).await.unwrap();
                    send_early(&mut stream, response).await;
                    stream.get_ref().0.peek(&mut [0]).await.unwrap();
                }
            }
        }
    });
    url
}

async fn send_early(stream: &mut (impl AsyncRead + AsyncWrite + Unpin), response: &str) {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(stream.read_u8().await.unwrap());
    }
    stream.write_all(response.as_bytes()).await.unwrap();
    stream.flush().await.unwrap();
}

/// Sends 1 MiB, and reads the response at the same time.
async fn upload(world: &World) -> String {
    let stream = TcpStream::connect(world.server.proxy_address()).await.unwrap();
    let (mut reader, mut writer) = stream.into_split();
    let sending = async move {
        let head = "POST /v2/p/desktops HTTP/1.1\r\nHost: x\r\nX-Auth-Token: t\r\nContent-Length: 1048576\r\n\r\n";
        // A gateway that has answered may close before it has read everything.
        let _ = writer.write_all(head.as_bytes()).await;
        let _ = writer.write_all(&vec![b'x'; 1 << 20]).await;
        writer
    };
    let reading = async {
        let mut response = Vec::new();
        while reader.read_buf(&mut response).await.is_ok_and(|read| read > 0) && !response.ends_with(b"end") {}
        String::from_utf8_lossy(&response).into_owned()
    };
    let (_writer, response) = within(async { tokio::join!(sending, reading) }).await;
    response
}

#[tokio::test]
async fn a_response_before_the_end_of_an_upload_is_relayed() {
    let response = "HTTP/1.1 413 Content Too Large\r\nContent-Length: 12\r\n\r\ntoo much end";
    let (acceptor, ca_file) = tls::acceptor("early-answer");
    for (acceptor, settings) in [(None, String::new()), (Some(acceptor), format!("[upstream]\nca_file = {ca_file:?}"))]
    {
        let url = early_upstream(response, acceptor).await;
        let world = World::with_upstreams(Simulator::start().await.unwrap(), &url, &url, &settings).await;
        for _ in 0..40 {
            let passed = upload(&world).await;
            assert!(passed.starts_with("HTTP/1.1 413 ") && passed.ends_with("\r\n\r\ntoo much end"), "{url}: {passed}");
        }
        assert_eq!(world.metric(RETRIES), 0.0);
    }
}

#[tokio::test]
async fn an_early_response_delimited_by_the_connection_is_incomplete() {
    let url = early_upstream("HTTP/1.1 413 Content Too Large\r\n\r\ntoo much", None).await;
    let world = World::with_upstreams(Simulator::start().await.unwrap(), &url, &url, "").await;
    for _ in 0..5 {
        let passed = upload(&world).await;
        assert!(passed.starts_with("HTTP/1.1 413 ") && passed.ends_with("\r\ntoo much\r\n"), "{passed}");
    }
}

#[tokio::test]
async fn an_upload_that_breaks_before_the_response_head_is_a_502() {
    let url = early_upstream("HTTP/1.1 413 Content Too La", None).await;
    let world = World::with_upstreams(Simulator::start().await.unwrap(), &url, &url, "").await;
    for _ in 0..5 {
        let failed = upload(&world).await;
        assert!(failed.starts_with("HTTP/1.1 502 "), "{failed}");
    }
    assert_eq!(world.metric(RETRIES), 0.0);
}
