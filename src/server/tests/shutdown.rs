//! What the connections of a listener that was handed down see when it closes, while another process goes on there.

use std::future::pending;

use super::*;

const SMALL: &str = "GET /small HTTP/1.1\r\nhost: x\r\n\r\n";

impl Served {
    /// Reads to the end of the connection, which has to be told in the answer's head.
    async fn is_told(&mut self) {
        let mut answer = String::new();
        self.client().read_to_string(&mut answer).await.unwrap();
        let (head, body) = answer.split_once("\r\n\r\n").unwrap();
        assert!(head.starts_with("HTTP/1.1 200 OK\r\n") && body.ends_with("0\r\n\r\n"), "{answer}");
        assert_eq!(head.matches("connection: close").count(), 1, "{answer}");
    }
}

#[tokio::test(start_paused = true)]
async fn who_asks_before_it_is_too_late_is_told_that_the_connection_ends() {
    // One that has not said a word, one that has begun, one that has been answered, and one that waits for its answer.
    for begun in ["", "GET /sm", SMALL, "GET /parts HTTP/1.1\r\nhost: x\r\n\r\n"] {
        let mut served = Served::new();
        served.write(begun).await;
        if begun == SMALL {
            served.read_small().await;
        }
        sleep(Duration::from_millis(1)).await;
        served.exit.leave();
        sleep(Duration::from_secs(1)).await;
        assert!(!served.serving.is_finished(), "{begun:?}");
        if begun.contains("parts") {
            let (parts, _) = mpsc::channel(1);
            drop(std::mem::replace(&mut served.parts, parts));
            // Its head was given before: then it is not yet known, and nobody is cut off.
            let mut answer = Vec::new();
            while !answer.ends_with(b"\r\n\r\n0\r\n\r\n") {
                assert!(served.client().read_buf(&mut answer).await.unwrap() > 0);
            }
        }
        served.write(if begun.ends_with("sm") { &SMALL["GET /sm".len()..] } else { SMALL }).await;
        served.is_told().await;
        assert_eq!(served.ended().await, (1, vec![]), "{begun:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn who_is_being_answered_is_told_too() {
    let (go, gone) = watch::channel(false);
    let answer = move |_: Request<TrackedRequestBody>| {
        let mut gone = gone.clone();
        async move {
            gone.wait_for(|&gone| gone).await.unwrap();
            Response::new(Parts::whole(Bytes::from_static(b"small")))
        }
    };
    let mut served = Served::by(ShutdownControl::new(watch::channel(false).1, true), None, None, answer);
    served.write(SMALL).await;
    sleep(Duration::from_secs(1)).await;
    served.exit.leave();
    go.send_replace(true);
    served.is_told().await;
}

#[tokio::test(start_paused = true)]
async fn http2_is_told_at_once_and_what_is_asked_meanwhile_is_answered() {
    let mut served = Served::new();
    let (sender, connection) = served.http2().await;
    let mut sender = sender.ready().await.unwrap();
    let begun = sender.send_request(get("/small"), true).unwrap().0.await.unwrap().into_body();
    drop(begun);
    served.exit.leave();
    // It has not heard of it yet.
    let answer = sender.send_request(get("/small"), true).unwrap().0;
    assert_eq!(answer.await.unwrap().status(), 200);
    assert!(sender.ready().await.is_err(), "nothing new is taken");
    assert_eq!(served.ended().await, (0, vec![]));
    connection.await.unwrap().unwrap();
}

#[tokio::test(start_paused = true)]
async fn what_a_client_of_http2_was_about_to_ask_is_answered() {
    let mut served = Served::new();
    served.write("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\u{4}\0\0\0\0\0").await;
    sleep(Duration::from_millis(1)).await;
    served.exit.leave();
    let goaway = b"\0\0\x08\x07\0\0\0\0\0\x7f\xff\xff\xff\0\0\0\0";
    let mut heard = Vec::new();
    while !heard.ends_with(goaway) {
        assert!(served.client().read_buf(&mut heard).await.unwrap() > 0);
    }
    assert_eq!(served.seconds(), 0);
    // Method, scheme and path, as HPACK has them.
    let head = b"\0\0\x0a\x01\x05\0\0\0\x01\x82\x86\x04\x06/small";
    sleep(Duration::from_millis(900)).await;
    served.client().write_all(head).await.unwrap();
    heard.clear();
    while !heard.windows(5).any(|part| part == b"small") {
        assert!(served.client().read_buf(&mut heard).await.unwrap() > 0, "{heard:?}");
    }
    assert_eq!(heard.windows(17).filter(|part| part == goaway).count(), 0, "it is said once");
    served.exit.drain();
    assert_eq!(served.ended().await.1, [("shutdown-timeout", 1)]);
}

#[tokio::test(start_paused = true)]
async fn http2_is_told_between_its_answers_and_not_before() {
    let goaway = b"\0\0\x08\x07\0\0\0\0\0\x7f\xff\xff\xff\0\0\0\0";
    let mut served = Served::new();
    served.write("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\u{4}\0\0\0\0\0").await;
    // Method, scheme and path, as HPACK has them.
    served.client().write_all(b"\0\0\x0a\x01\x05\0\0\0\x01\x82\x86\x04\x06/parts").await.unwrap();
    sleep(Duration::from_millis(1)).await;
    served.exit.leave();
    sleep(Duration::from_millis(500)).await;
    let mut heard = Vec::new();
    let (parts, _) = mpsc::channel(1);
    drop(std::mem::replace(&mut served.parts, parts));
    while !heard.ends_with(goaway) {
        assert!(served.client().read_buf(&mut heard).await.unwrap() > 0, "{heard:?}");
    }
    // The end of its answer comes right before.
    assert!(heard.ends_with(&[&b"\0\0\0\0\x01\0\0\0\x01"[..], goaway].concat()), "{heard:?}");
    assert_eq!(heard.windows(17).filter(|part| part == goaway).count(), 1);
}

/// When a listener with a connection that its client keeps has closed, and when the connection was told to end: if it is idle,
/// and if it never is.
async fn closed(is_inherited: bool, limit: Duration) -> (Duration, Option<Duration>, Duration) {
    let exit = ShutdownControl::new(watch::channel(false).1, is_inherited);
    let (mut drain, mut shutdown) = (exit.draining(), exit.shutdown());
    let began = Clock::System.timer_now();
    let drained = tokio::spawn(async move {
        drain.wait_for(|&drain| drain).await.ok()?;
        Some(Clock::System.timer_now() - began)
    });
    let insisted = tokio::spawn(async move {
        shutdown.insists().await;
        Clock::System.timer_now() - began
    });
    assert!(!exit.close(pending::<()>, limit).await);
    let took = Clock::System.timer_now() - began;
    assert!(exit.shutdown().is_begun());
    drop(exit);
    (took, drained.await.unwrap(), insisted.await.unwrap())
}

#[tokio::test(start_paused = true)]
async fn only_clients_of_a_socket_that_goes_on_are_given_a_moment() {
    let [limit, short, moment] = [30_000, 100, 1_000].map(Duration::from_millis);
    assert_eq!(closed(false, limit).await, (limit, Some(Duration::ZERO), limit / 2));
    assert_eq!(closed(true, limit).await, (limit, Some(moment), moment + (limit - moment) / 2));
    assert_eq!(closed(true, short).await, (short, Some(short / 2), short * 3 / 4));
    // Nor does anyone wait for it once they are gone.
    let exit = ShutdownControl::new(watch::channel(false).1, true);
    assert!(exit.close(|| std::future::ready(()), limit).await);
    assert!(!*exit.draining().borrow());
}

#[tokio::test(start_paused = true)]
async fn who_has_begun_to_ask_when_it_is_time_to_go_is_answered() {
    let mut served = Served::new();
    for _ in 0..2 {
        served.write(SMALL).await;
        served.read_small().await;
    }
    served.write("GET /small HTTP/1.1\r\nho").await;
    sleep(Duration::from_secs(1)).await;
    served.exit.drain();
    sleep(Duration::from_secs(3)).await;
    served.write("st: x\r\n\r\n").await;
    served.is_told().await;
    assert_eq!(served.ended().await, (4, vec![]));

    let mut served = Served::new();
    served.write("GET /sm").await;
    sleep(Duration::from_secs(1)).await;
    served.exit.drain();
    // It has as long as any head, and no longer.
    assert_eq!(served.ended().await, (10, vec![("header-timeout", 1)]));
}

#[tokio::test(start_paused = true)]
async fn what_has_come_when_it_is_time_to_go_is_answered() {
    // More than once, for without an order it would be decided by lot.
    for _ in 0..16 {
        let mut served = Served::new();
        served.client.as_mut().unwrap().write_all(SMALL.as_bytes()).await.unwrap();
        served.exit.drain();
        served.is_told().await;
    }
}
