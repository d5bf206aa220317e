//! What clients of an inherited listener see when it closes and another process goes on.

use std::future::pending;

use super::*;

const SMALL: &str = "GET /small HTTP/1.1\r\nhost: x\r\n\r\n";

impl ServedConnection {
    /// Reads to the end of the connection. The head of the response must announce it.
    async fn read_last_response(&mut self) {
        let mut response = String::new();
        self.client().read_to_string(&mut response).await.unwrap();
        let (head, body) = response.split_once("\r\n\r\n").unwrap();
        assert!(head.starts_with("HTTP/1.1 200 OK\r\n") && body.ends_with("0\r\n\r\n"), "{response}");
        assert_eq!(head.matches("connection: close").count(), 1, "{response}");
    }
}

#[tokio::test(start_paused = true)]
async fn requests_during_the_announcement_get_connection_close() {
    // A connection without a byte, one with a partial head, one with a completed request, and one with a request in
    // progress.
    for first_bytes in ["", "GET /sm", SMALL, "GET /parts HTTP/1.1\r\nhost: x\r\n\r\n"] {
        let mut served = ServedConnection::new();
        served.write(first_bytes).await;
        if first_bytes == SMALL {
            served.read_small().await;
        }
        sleep(Duration::from_millis(1)).await;
        served.shutdown_control.announce();
        sleep(Duration::from_secs(1)).await;
        assert!(!served.serving.is_finished(), "{first_bytes:?}");
        if first_bytes.contains("parts") {
            let (parts, _) = mpsc::channel(1);
            drop(std::mem::replace(&mut served.parts, parts));
            // Its head was sent before shutdown started, so it cannot announce the end. The connection goes on.
            let mut response = Vec::new();
            while !response.ends_with(b"\r\n\r\n0\r\n\r\n") {
                assert!(served.client().read_buf(&mut response).await.unwrap() > 0);
            }
        }
        served.write(if first_bytes.ends_with("sm") { &SMALL["GET /sm".len()..] } else { SMALL }).await;
        served.read_last_response().await;
        assert_eq!(served.ended().await, (1, vec![]), "{first_bytes:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_request_in_progress_gets_connection_close() {
    let (finish, finished) = watch::channel(false);
    let handler = move |_: Request<TrackedRequestBody>| {
        let mut finished = finished.clone();
        async move {
            finished.wait_for(|&finished| finished).await.unwrap();
            Response::new(Parts::whole(Bytes::from_static(b"small")))
        }
    };
    let mut served =
        ServedConnection::with_handler(ShutdownControl::new(watch::channel(false).1, true), None, None, handler);
    served.write(SMALL).await;
    sleep(Duration::from_secs(1)).await;
    served.shutdown_control.announce();
    finish.send_replace(true);
    served.read_last_response().await;
}

#[tokio::test(start_paused = true)]
async fn http2_gets_goaway_immediately_and_later_requests_are_answered() {
    let mut served = ServedConnection::new();
    let (sender, connection) = served.http2().await;
    let mut sender = sender.ready().await.unwrap();
    let body = sender.send_request(get("/small"), true).unwrap().0.await.unwrap().into_body();
    drop(body);
    served.shutdown_control.announce();
    // The client has not received the GOAWAY yet.
    let response = sender.send_request(get("/small"), true).unwrap().0;
    assert_eq!(response.await.unwrap().status(), 200);
    assert!(sender.ready().await.is_err(), "no new request is accepted");
    assert_eq!(served.ended().await, (0, vec![]));
    connection.await.unwrap().unwrap();
}

#[tokio::test(start_paused = true)]
async fn an_http2_request_sent_before_goaway_was_read_is_answered() {
    let mut served = ServedConnection::new();
    served.write("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\u{4}\0\0\0\0\0").await;
    sleep(Duration::from_millis(1)).await;
    served.shutdown_control.announce();
    let goaway = b"\0\0\x08\x07\0\0\0\0\0\x7f\xff\xff\xff\0\0\0\0";
    let mut received = Vec::new();
    while !received.ends_with(goaway) {
        assert!(served.client().read_buf(&mut received).await.unwrap() > 0);
    }
    assert_eq!(served.seconds(), 0);
    // Method, scheme and path in HPACK.
    let head = b"\0\0\x0a\x01\x05\0\0\0\x01\x82\x86\x04\x06/small";
    sleep(Duration::from_millis(900)).await;
    served.client().write_all(head).await.unwrap();
    received.clear();
    while !received.windows(5).any(|part| part == b"small") {
        assert!(served.client().read_buf(&mut received).await.unwrap() > 0, "{received:?}");
    }
    assert_eq!(received.windows(17).filter(|part| part == goaway).count(), 0, "GOAWAY is sent once");
    served.shutdown_control.drain();
    assert_eq!(served.ended().await.1, [("close-timeout", 1)]);
}

#[tokio::test(start_paused = true)]
async fn http2_gets_goaway_after_its_responses_and_not_before() {
    let goaway = b"\0\0\x08\x07\0\0\0\0\0\x7f\xff\xff\xff\0\0\0\0";
    let mut served = ServedConnection::new();
    served.write("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\u{4}\0\0\0\0\0").await;
    // Method, scheme and path in HPACK.
    served.client().write_all(b"\0\0\x0a\x01\x05\0\0\0\x01\x82\x86\x04\x06/parts").await.unwrap();
    sleep(Duration::from_millis(1)).await;
    served.shutdown_control.announce();
    sleep(Duration::from_millis(500)).await;
    let mut received = Vec::new();
    let (parts, _) = mpsc::channel(1);
    drop(std::mem::replace(&mut served.parts, parts));
    while !received.ends_with(goaway) {
        assert!(served.client().read_buf(&mut received).await.unwrap() > 0, "{received:?}");
    }
    // It comes directly after the end of the response.
    assert!(received.ends_with(&[&b"\0\0\0\0\x01\0\0\0\x01"[..], goaway].concat()), "{received:?}");
    assert_eq!(received.windows(17).filter(|part| part == goaway).count(), 1);
}

/// How long it took to close a listener with a connection that its client keeps open, and when that connection was
/// asked to end: if idle, and if never idle.
async fn closed(is_inherited: bool, limit: Duration) -> (Duration, Option<Duration>, Duration) {
    let shutdown_control = ShutdownControl::new(watch::channel(false).1, is_inherited);
    let (mut drain, mut shutdown) = (shutdown_control.draining(), shutdown_control.shutdown());
    let began = Clock::System.timer_now();
    let drained = tokio::spawn(async move {
        drain.wait_for(|&drain| drain).await.ok()?;
        Some(Clock::System.timer_now() - began)
    });
    let insisted = tokio::spawn(async move {
        shutdown.goaway_forced().await;
        Clock::System.timer_now() - began
    });
    assert!(!shutdown_control.close(pending::<()>, limit).await);
    let took = Clock::System.timer_now() - began;
    assert!(shutdown_control.shutdown().has_started());
    drop(shutdown_control);
    (took, drained.await.unwrap(), insisted.await.unwrap())
}

#[tokio::test(start_paused = true)]
async fn only_inherited_listeners_announce_the_end_of_connections() {
    let [limit, short, moment] = [30_000, 100, 1_000].map(Duration::from_millis);
    assert_eq!(closed(false, limit).await, (limit, Some(Duration::ZERO), limit / 2));
    assert_eq!(closed(true, limit).await, (limit, Some(moment), moment + (limit - moment) / 2));
    assert_eq!(closed(true, short).await, (short, Some(short / 2), short * 3 / 4));
    // If all connections are closed, nothing waits.
    let shutdown_control = ShutdownControl::new(watch::channel(false).1, true);
    assert!(shutdown_control.close(|| std::future::ready(()), limit).await);
    assert!(!*shutdown_control.draining().borrow());
}

#[tokio::test(start_paused = true)]
async fn a_request_that_is_incomplete_when_draining_starts_is_answered() {
    let mut served = ServedConnection::new();
    for _ in 0..2 {
        served.write(SMALL).await;
        served.read_small().await;
    }
    served.write("GET /small HTTP/1.1\r\nho").await;
    sleep(Duration::from_secs(1)).await;
    served.shutdown_control.drain();
    sleep(Duration::from_secs(3)).await;
    served.write("st: x\r\n\r\n").await;
    served.read_last_response().await;
    assert_eq!(served.ended().await, (4, vec![]));

    let mut served = ServedConnection::new();
    served.write("GET /sm").await;
    sleep(Duration::from_secs(1)).await;
    served.shutdown_control.drain();
    // The header timeout still applies.
    assert_eq!(served.ended().await, (10, vec![("header-timeout", 1)]));
}

#[tokio::test(start_paused = true)]
async fn a_request_that_has_arrived_when_draining_starts_is_answered() {
    // Repeated, because a wrong order would fail only sometimes.
    for _ in 0..16 {
        let mut served = ServedConnection::new();
        served.client.as_mut().unwrap().write_all(SMALL.as_bytes()).await.unwrap();
        served.shutdown_control.drain();
        served.read_last_response().await;
    }
}
