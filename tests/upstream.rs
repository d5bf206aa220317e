//! What comes of an upstream that breaks off, breaks the rules or moves: one retry where that is safe,
//! a clear failure elsewhere, and no answer that is not the question's.

use std::time::Duration;

use http::{Method, StatusCode};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsAcceptor;
use workspace_gateway::testing::simulator::Simulator;

use crate::support::raw::{RawUpstream, Turn, closes, resets, says, silent};
use crate::support::{Http, Reply, World, all, raw, tls, within};

const LIST: &str = "/v2/PROJECT/products";
const RELAYED: &str = "/v2/PROJECT/desktops";

const ANSWER: &str = "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 15\r\n\r\n{\"products\":[]}";

const RETRIES: &str = "workspace_gateway_upstream_retries_total{service=\"workspace\"}";

async fn before(turns: impl Into<Vec<Turn>>, settings: &str) -> (World, RawUpstream) {
    let upstream = RawUpstream::start(turns).await;
    let simulator = Simulator::start().await.unwrap();
    (World::before(simulator, upstream.url(), upstream.url(), settings).await, upstream)
}

async fn send(world: &World, method: Method, path: &str, body: &'static str) -> Reply {
    world.http.send(method, &world.url(path), &[("x-auth-token", "t")], body).await
}

fn assert_whole(reply: &Reply) {
    assert_eq!((reply.status(), reply.text()), (StatusCode::OK, "{\"products\":[]}"));
}

fn assert_broken(reply: &Reply, word: &str) {
    reply.assert_refused(StatusCode::BAD_GATEWAY);
    assert!(reply.error().1.contains("broke off"), "{reply:?}");
    if reply.headers().contains_key("cache-status") {
        assert!(reply.cache_status().ends_with(&format!("detail={word}")), "{reply:?}");
    }
}

#[tokio::test]
async fn a_connection_that_breaks_before_an_answer_is_asked_once_more() {
    for broken in [
        resets(),
        closes(),
        says("HTTP/1.1 200 OK\r\nContent-Le").then_closes(),
        says("HTTP/1.1 100 Continue\r\n\r\n").then_resets(),
    ] {
        for (method, path) in [(Method::GET, LIST), (Method::GET, RELAYED), (Method::OPTIONS, RELAYED)] {
            let (world, upstream) = before([broken.clone(), says(ANSWER)], "").await;
            assert_whole(&send(&world, method, path, "").await);
            assert_eq!((upstream.requests(), upstream.connections()), (2, 2));
            assert_eq!(world.metric(RETRIES), 1.0);
            let heads = upstream.heads();
            assert_eq!(heads[0], heads[1], "the same once more");
        }
    }
}

#[tokio::test]
async fn the_second_break_is_the_failure() {
    for broken in [resets(), closes()] {
        for path in [LIST, RELAYED] {
            let (world, upstream) = before([broken.clone()], "").await;
            assert_broken(&world.get(path).await, "broken");
            assert_eq!((upstream.requests(), world.metric(RETRIES)), (2, 1.0));
        }
    }
}

#[tokio::test]
async fn the_second_try_is_not_on_another_connection_from_the_pool() {
    let held = silent().then_waits().then_says(ANSWER);
    let (world, upstream) = before([held.clone(), held, resets(), says(ANSWER)], "").await;
    let asking = vec![world.begin("a", RELAYED), world.begin("b", RELAYED)];
    upstream.asked(2).await;
    upstream.go_on();
    upstream.go_on();
    all(asking).await;
    assert_whole(&world.get(LIST).await);
    assert_eq!((upstream.requests(), upstream.connections()), (4, 3));
}

#[tokio::test]
async fn what_might_be_done_twice_is_not_sent_twice() {
    for broken in [resets(), closes()] {
        for (method, body) in [
            (Method::POST, "{}"),
            (Method::POST, ""),
            (Method::DELETE, ""),
            (Method::PUT, "{}"),
            (Method::PATCH, ""),
            // Safe, but its body is gone.
            (Method::GET, "{}"),
        ] {
            let (world, upstream) = before([broken.clone(), says(ANSWER)], "").await;
            assert_broken(&send(&world, method, RELAYED, body).await, "broken");
            assert_eq!((upstream.requests(), world.metric(RETRIES)), (1, 0.0));
        }
    }
}

#[tokio::test]
async fn a_connection_that_was_closed_while_idle_costs_nobody_a_request() {
    let (world, upstream) = before([says(ANSWER).then_closes(), says(ANSWER)], "").await;
    assert_whole(&world.get(RELAYED).await);
    upstream.hung_up(1).await;
    assert_whole(&send(&world, Method::POST, RELAYED, "{}").await);
    assert_eq!((upstream.requests(), upstream.connections(), world.metric(RETRIES)), (2, 2, 0.0));
}

#[tokio::test]
async fn what_never_connects_is_not_tried_again() {
    let simulator = Simulator::start().await.unwrap();
    let world = World::before(simulator, "http://127.0.0.1:1", "http://127.0.0.1:1", "").await;
    for path in [LIST, RELAYED] {
        world.get(path).await.assert_refused(StatusCode::BAD_GATEWAY);
    }
    assert_eq!(world.metric(RETRIES), 0.0);
}

#[tokio::test]
async fn the_second_try_has_what_is_left_of_the_deadline() {
    let settings = "[upstream]\nconnect_timeout = \"500ms\"\nfirst_byte_timeout = \"500ms\"\nanswer_timeout = \"1h\"";
    let (world, upstream) = before([resets(), silent()], settings).await;
    let reply = world.get(LIST).await;
    reply.assert_refused(StatusCode::GATEWAY_TIMEOUT);
    assert!(reply.cache_status().ends_with("detail=first-byte"), "{reply:?}");
    assert_eq!(upstream.requests(), 2);
    let failed = "workspace_gateway_upstream_requests_total{service=\"workspace\",status=\"first-byte\"}";
    assert_eq!(world.metric(failed), 1.0);
}

#[tokio::test]
async fn an_answer_that_is_wrong_is_a_502_and_not_asked_for_again() {
    let field = format!("X-Filler: {}\r\n", "x".repeat(2500));
    let giant = format!("HTTP/1.1 200 OK\r\n{}Content-Length: 0\r\n\r\n", field.repeat(99));
    let endless = format!("HTTP/1.1 200 OK\r\n{}", field.repeat(200));
    let status_line = "HTTP/1.1 twohundred OK\r\n\r\n".to_owned();
    let lengths = "HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nx".to_owned();
    for wrong in [giant, endless, status_line, lengths, "\0\0\0\0 no HTTP\r\n\r\n".to_owned()] {
        for path in [LIST, RELAYED] {
            let (world, upstream) = before([says(&wrong), says(ANSWER)], "").await;
            assert_broken(&world.get(path).await, "broken");
            assert_eq!((upstream.requests(), world.metric(RETRIES)), (1, 0.0));
            // And nothing of it is left for the next one.
            assert_whole(&world.get(path).await);
            assert_eq!(upstream.connections(), 2);
        }
    }
}

#[tokio::test]
async fn a_head_within_the_limit_passes() {
    let head = format!("HTTP/1.1 200 OK\r\n{}", format!("X-Filler: {}\r\n", "x".repeat(600)).repeat(48));
    let (world, _upstream) = before([says(ANSWER.replace("HTTP/1.1 200 OK\r\n", &head))], "").await;
    for path in [RELAYED, LIST] {
        assert_whole(&world.get(path).await);
    }
}

#[tokio::test]
async fn an_answer_with_many_or_oddly_written_fields_passes_and_is_repaired() {
    for (fields, repaired) in [
        ("X-Odd : a\r\n".to_owned(), "x-odd: a\r\n"),
        ("X-Odd: a\r\n b\r\n\t c\r\n".to_owned(), "x-odd: a b c\r\n"),
        ("X-Odd: a\r\n".repeat(1_000), "x-odd: a\r\n"),
    ] {
        let answer = ANSWER.replace("HTTP/1.1 200 OK\r\n", &format!("HTTP/1.1 200 OK\r\n{fields}"));
        let (world, _upstream) = before([says(&answer), says(&answer)], "").await;
        for path in [RELAYED, LIST].map(|path| path.replace("PROJECT", "p")) {
            let request = format!("GET {path} HTTP/1.1\r\nHost: x\r\nX-Auth-Token: t\r\nConnection: close\r\n\r\n");
            let passed = raw(world.server.proxy_address(), &request).await;
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
async fn a_length_that_is_told_several_times_is_told_once() {
    for length in ["Content-Length: 15, 15\r\n", "Content-Length: 15\r\nContent-Length: 15\r\n"] {
        let answer = ANSWER.replace("Content-Length: 15\r\n", length);
        let head = answer.split_inclusive("\r\n\r\n").next().unwrap().to_owned();
        for (method, answer) in [(Method::GET, &answer), (Method::HEAD, &head)] {
            for http in [Http::new(), Http::http2()] {
                let (mut world, _upstream) = before([says(answer)], "").await;
                world.http = http;
                let reply = send(&world, method.clone(), RELAYED, "").await;
                assert_eq!(
                    (reply.status(), reply.header("content-length")),
                    (StatusCode::OK, "15"),
                    "{length} {method}"
                );
            }
        }
        let (world, _upstream) = before([says(&answer)], "").await;
        let reply = world.get(LIST).await;
        assert_whole(&reply);
        assert_eq!(reply.header("content-length"), "15", "{length}");
    }
}

#[tokio::test]
async fn interim_answers_are_passed_over() {
    let interim = "HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nLink: </x>\r\n\r\n";
    let (world, upstream) = before([says(interim).then_says(ANSWER)], "").await;
    for path in [LIST, RELAYED] {
        let reply = world.get(path).await;
        assert_whole(&reply);
        assert!(!reply.headers().contains_key("link"));
    }
    assert_eq!((upstream.requests(), upstream.connections()), (2, 1));
}

#[tokio::test]
async fn interim_answers_without_end_put_nothing_off() {
    let interim = "HTTP/1.1 103 Early Hints\r\nLink: </x>\r\n\r\n".repeat(1_000);
    let settings = "[upstream]\nconnect_timeout = \"50ms\"\nfirst_byte_timeout = \"50ms\"\nidle_timeout = \"50ms\"";
    for (path, reason) in [(LIST, "first-byte"), (RELAYED, "idle")] {
        let (world, upstream) = before([says(&interim)], settings).await;
        world.get(path).await.assert_refused(StatusCode::GATEWAY_TIMEOUT);
        let failed = format!("workspace_gateway_upstream_requests_total{{service=\"workspace\",status=\"{reason}\"}}");
        assert_eq!((upstream.requests(), world.metric(&failed)), (1, 1.0));
    }
}

#[tokio::test]
async fn an_answer_whose_body_breaks_off_is_no_answer() {
    let short = "HTTP/1.1 200 OK\r\nContent-Length: 16\r\n\r\n{\"products\":[]}";
    let chunked = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nf\r\n{\"products\":[]}\r\n";
    let no_chunk = format!("{chunked}what?\r\n");
    for broken in [
        says(short).then_closes(),
        says(short).then_resets(),
        says(chunked).then_closes(),
        says(chunked).then_resets(),
        says(no_chunk),
    ] {
        let (world, upstream) = before([broken.clone(), says(ANSWER)], "").await;
        assert_broken(&world.get(LIST).await, "broken");
        assert_eq!(upstream.requests(), 1, "the answer had begun");
        let next = world.get(LIST).await;
        assert_whole(&next);
        assert!(next.cache_status().contains("fwd=miss"), "nothing was kept: {next:?}");

        // What is relayed has begun as well, and breaks off for the client, too.
        let (world, upstream) = before([broken], "").await;
        let request = "GET /v2/p/desktops HTTP/1.1\r\nHost: x\r\nX-Auth-Token: t\r\n\r\n";
        let answer = raw(world.server.proxy_address(), request).await;
        assert!(answer.starts_with("HTTP/1.1 200 OK\r\n"), "{answer}");
        assert!(!answer.ends_with("\r\n0\r\n\r\n"), "{answer}");
        assert_eq!(upstream.requests(), 1);
    }
}

#[tokio::test]
async fn what_follows_an_answer_is_nobodys() {
    let smuggled = "HTTP/1.1 200 OK\r\nContent-Length: 8\r\n\r\nsmuggled";
    for path in [LIST, RELAYED] {
        let (world, upstream) = before([says(format!("{ANSWER}{smuggled}")), says(ANSWER)], "").await;
        assert_whole(&world.get(path).await);
        upstream.hung_up(1).await;
        assert_whole(&world.get(RELAYED).await);
        assert_eq!((upstream.requests(), upstream.connections()), (2, 2));
    }
}

#[tokio::test]
async fn a_body_that_ends_with_the_connection_is_whole() {
    let old = "HTTP/1.1 200 OK\r\n\r\n{\"products\":[]}";
    let (world, upstream) = before([says(old).then_closes()], "").await;
    for path in [LIST, RELAYED] {
        assert_whole(&world.get(path).await);
    }
    assert_eq!(upstream.connections(), 2);
}

#[tokio::test]
async fn a_connection_takes_no_requests_beyond_its_age() {
    let (world, upstream) = before([says(ANSWER)], "").await;
    for seconds in [0, 299] {
        world.seconds_pass(seconds);
        for path in [LIST, RELAYED] {
            assert_whole(&world.get(path).await);
        }
    }
    assert_eq!(upstream.connections(), 1);
    world.seconds_pass(1);
    for path in [RELAYED, RELAYED] {
        assert_whole(&world.get(path).await);
    }
    assert_eq!(upstream.connections(), 2);
    // The one before doesn't linger.
    upstream.hung_up(1).await;
}

#[tokio::test]
async fn a_connection_takes_no_requests_after_a_suspension_longer_than_it_may_be_idle() {
    for (suspended, connections) in [(14, 1), (15, 2)] {
        let (world, upstream) = before([says(ANSWER)], "").await;
        assert_whole(&world.get(RELAYED).await);
        world.clock.suspend(Duration::from_secs(suspended));
        for _ in 0..2 {
            assert_whole(&world.get(RELAYED).await);
            assert_eq!(upstream.connections(), connections, "{suspended} s");
        }
    }
}

#[tokio::test]
async fn a_connection_is_idle_no_longer_than_upstream_has_announced() {
    for (announced, connections) in [
        // So many after three requests, then after two suspensions of 3 s and of 1 s.
        ("timeout=60", [1, 1, 1]),
        ("max=5", [1, 1, 1]),
        ("timeout=5, max=100", [2, 2, 3]),
        ("max=100,Timeout = 5", [2, 2, 3]),
        ("timeout=1", [3, 4, 5]),
        ("timeout=0", [3, 4, 5]),
    ] {
        let fields = format!("HTTP/1.1 200 OK\r\nKeep-Alive: {announced}\r\n");
        let (world, upstream) = before([says(ANSWER.replace("HTTP/1.1 200 OK\r\n", &fields))], "").await;
        for _ in 0..2 {
            assert_whole(&world.get(RELAYED).await);
        }
        let mut seen = Vec::new();
        for seconds in [0, 3, 1] {
            world.clock.suspend(Duration::from_secs(seconds));
            assert_whole(&world.get(RELAYED).await);
            seen.push(upstream.connections());
        }
        assert_eq!(seen, connections, "{announced}");
    }
}

#[tokio::test]
async fn what_one_service_announces_is_nothing_to_the_other() {
    let short = ANSWER.replace("HTTP/1.1 200 OK\r\n", "HTTP/1.1 200 OK\r\nKeep-Alive: timeout=1\r\n");
    let (one, other) = (RawUpstream::start([says(short)]).await, RawUpstream::start([says(ANSWER)]).await);
    let world = World::before(Simulator::start().await.unwrap(), one.url(), other.url(), "").await;
    for path in [RELAYED, "/v1/PROJECT/apps", RELAYED, "/v1/PROJECT/apps"] {
        assert_whole(&world.get(path).await);
    }
    assert_eq!((one.connections(), other.connections()), (2, 1));
}

#[tokio::test]
async fn a_stream_outlives_its_connections_age() {
    let begun = "HTTP/1.1 200 OK\r\nContent-Length: 15\r\n\r\n{\"prod";
    let stream = says(begun).then_waits().then_says("ucts\":[]}");
    let (world, upstream) = before([stream, says(ANSWER)], "").await;
    let streaming = world.begin("t", RELAYED);
    let answered = "workspace_gateway_upstream_requests_total{service=\"workspace\",status=\"200\"}";
    world.until_metric(answered, 1.0).await;
    world.seconds_pass(300);
    assert_whole(&world.get(RELAYED).await);
    assert_eq!(upstream.connections(), 2);
    upstream.go_on();
    assert_whole(&within(streaming).await.unwrap());
    // Nor is it kept for more.
    upstream.hung_up(1).await;
    assert_whole(&world.get(RELAYED).await);
    assert_eq!(upstream.connections(), 2);
}

/// An upstream that answers as soon as it has read a request's head, and closes the connection with the body unread (RST).
async fn answers_early(answer: &'static str, acceptor: Option<TlsAcceptor>) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let scheme = if acceptor.is_some() { "https" } else { "http" };
    let url = format!("{scheme}://localhost:{}", listener.local_addr().unwrap().port());
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            // Or the answer might not have been sent when the connection is reset.
            stream.set_nodelay(true).unwrap();
            match &acceptor {
                None => {
                    say_early(&mut stream, answer).await;
                    stream.peek(&mut [0]).await.unwrap();
                }
                Some(acceptor) => {
                    let mut stream = acceptor.accept(stream).await.unwrap();
                    say_early(&mut stream, answer).await;
                    stream.get_ref().0.peek(&mut [0]).await.unwrap();
                }
            }
        }
    });
    url
}

async fn say_early(stream: &mut (impl AsyncRead + AsyncWrite + Unpin), answer: &str) {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(stream.read_u8().await.unwrap());
    }
    stream.write_all(answer.as_bytes()).await.unwrap();
    stream.flush().await.unwrap();
}

/// What a client gets that goes on sending 1 MiB while it reads.
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
        let mut answer = Vec::new();
        while reader.read_buf(&mut answer).await.is_ok_and(|read| read > 0) && !answer.ends_with(b"end") {}
        String::from_utf8_lossy(&answer).into_owned()
    };
    let (_writer, answer) = within(async { tokio::join!(sending, reading) }).await;
    answer
}

#[tokio::test]
async fn an_answer_that_comes_before_the_end_of_an_upload_passes() {
    let answer = "HTTP/1.1 413 Content Too Large\r\nContent-Length: 12\r\n\r\ntoo much end";
    let (acceptor, ca_file) = tls::acceptor("early-answer");
    for (acceptor, settings) in [(None, String::new()), (Some(acceptor), format!("[upstream]\nca_file = {ca_file:?}"))]
    {
        let url = answers_early(answer, acceptor).await;
        let world = World::before(Simulator::start().await.unwrap(), &url, &url, &settings).await;
        for _ in 0..40 {
            let passed = upload(&world).await;
            assert!(passed.starts_with("HTTP/1.1 413 ") && passed.ends_with("\r\n\r\ntoo much end"), "{url}: {passed}");
        }
        assert_eq!(world.metric(RETRIES), 0.0);
    }
}

#[tokio::test]
async fn an_early_answer_that_only_the_end_of_the_connection_delimits_breaks_off() {
    let url = answers_early("HTTP/1.1 413 Content Too Large\r\n\r\ntoo much", None).await;
    let world = World::before(Simulator::start().await.unwrap(), &url, &url, "").await;
    for _ in 0..5 {
        let passed = upload(&world).await;
        assert!(passed.starts_with("HTTP/1.1 413 ") && passed.ends_with("\r\ntoo much\r\n"), "{passed}");
    }
}

#[tokio::test]
async fn an_upload_that_is_cut_off_before_an_answers_head_is_a_502() {
    let url = answers_early("HTTP/1.1 413 Content Too La", None).await;
    let world = World::before(Simulator::start().await.unwrap(), &url, &url, "").await;
    for _ in 0..5 {
        let failed = upload(&world).await;
        assert!(failed.starts_with("HTTP/1.1 502 "), "{failed}");
    }
    assert_eq!(world.metric(RETRIES), 0.0);
}
