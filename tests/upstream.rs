//! What comes of an upstream that breaks off, breaks the rules or moves: one retry where that is safe,
//! a clear failure elsewhere, and no answer that is not the question's.

use http::{Method, StatusCode};
use workspace_gateway::simulator::Simulator;

use crate::support::raw::{RawUpstream, Turn, closes, resets, says, silent};
use crate::support::{Reply, World, all, raw, within};

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
    let many = format!("HTTP/1.1 200 OK\r\n{}Content-Length: 0\r\n\r\n", "X-Filler: x\r\n".repeat(101));
    let endless = format!("HTTP/1.1 200 OK\r\n{}", field.repeat(200));
    let status_line = "HTTP/1.1 twohundred OK\r\n\r\n".to_owned();
    let lengths = "HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nx".to_owned();
    for wrong in [giant, many, endless, status_line, lengths, "\0\0\0\0 no HTTP\r\n\r\n".to_owned()] {
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
    let head = format!("HTTP/1.1 200 OK\r\n{}", format!("X-Filler: {}\r\n", "x".repeat(600)).repeat(90));
    let (world, _upstream) = before([says(ANSWER.replace("HTTP/1.1 200 OK\r\n", &head))], "").await;
    for path in [RELAYED, LIST] {
        assert_whole(&world.get(path).await);
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
