//! Connections in HTTP/2: how long they may be idle, send a head, leave an answer unread, and take requests back.

use super::*;

#[tokio::test(start_paused = true)]
async fn http2_ends_an_idle_connection_in_good_order() {
    let mut served = Served::new();
    let (sender, connection) = served.http2().await;
    let mut sender = sender.ready().await.unwrap();
    sleep(Duration::from_secs(60)).await;
    let answer = sender.send_request(get("/small"), true).unwrap().0.await.unwrap();
    assert_eq!(answer.status(), 200);
    drop(answer);
    assert_eq!(served.ended().await, (135, vec![("keepalive-timeout", 1)]));
    connection.await.unwrap().expect("it was told");
}

#[tokio::test(start_paused = true)]
async fn http2_does_not_wait_for_ever_for_a_client_to_go() {
    let mut served = Served::new();
    // Preface and empty settings, and nothing after that, whatever comes.
    served.write("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\u{4}\0\0\0\0\0").await;
    assert_eq!(served.ended().await, (80, vec![("keepalive-timeout", 1), ("shutdown-timeout", 1)]));
}

#[tokio::test(start_paused = true)]
async fn http2_waits_for_a_head_as_http1_does() {
    let mut served = Served::new();
    served.write("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\u{4}\0\0\0\0\0").await;
    sleep(Duration::from_secs(20)).await;
    // A head that is to go on in another frame, which begins.
    served.write("\0\0\u{1}\u{1}\0\0\0\0\u{1}\x02").await;
    sleep(Duration::from_secs(6)).await;
    served.write("\0\0\u{1}").await;
    assert_eq!(served.ended().await, (30, vec![("header-timeout", 1)]));
}

#[tokio::test(start_paused = true)]
async fn http2_gives_up_an_answer_that_is_not_read_and_no_other() {
    let mut served = Served::new();
    let (sender, _connection) = served.http2().await;
    let mut sender = sender.ready().await.unwrap();
    let unread = sender.send_request(get("/large"), true).unwrap().0.await.unwrap().into_body();
    let waiting = sender.send_request(get("/parts"), true).unwrap().0.await.unwrap().into_body();
    let mut slow = sender.send_request(get("/large"), true).unwrap().0.await.unwrap().into_body();
    let mut read = 0;
    while let Some(part) = slow.data().await {
        read += part.unwrap().len();
        sleep(Duration::from_secs(10)).await;
        let used = slow.flow_control().used_capacity();
        slow.flow_control().release_capacity(used).unwrap();
    }
    assert_eq!(read, LARGE);
    assert_eq!(served.causes(), [("write-timeout", 1)]);
    assert!(served.seconds() > 100);
    // Nobody but the service is waited for here, so that is not held against the client.
    served.parts.send(Ok(Bytes::from_static(b"at last"))).await.unwrap();
    let mut waiting = waiting;
    assert_eq!(waiting.data().await.unwrap().unwrap(), "at last");
    drop(unread);
}

#[tokio::test(start_paused = true)]
async fn http2_ends_a_connection_whose_client_reads_nothing_at_all() {
    let mut served = Served::new();
    let mut client = served.client.take().unwrap();
    // A request for `/large`: method, scheme and path as HPACK has them, and windows as wide as can be.
    let settings = b"\0\0\x06\x04\0\0\0\0\0\0\x04\x7f\xff\xff\xff";
    let window = b"\0\0\x04\x08\0\0\0\0\0\x7f\xff\0\0";
    let head = b"\0\0\x0a\x01\x05\0\0\0\x01\x82\x86\x04\x06/large";
    client.write_all(&[b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", &settings[..], window, head].concat()).await.unwrap();
    let (seconds, causes) = served.ended().await;
    // The stream counts apart.
    assert_eq!((seconds, causes[0].0, causes.len()), (30, "write-timeout", 1));
    drop(client);
}

#[tokio::test(start_paused = true)]
async fn http2_ends_a_connection_on_which_requests_are_mostly_taken_back() {
    let mut served = Served::new();
    let (sender, connection) = served.http2().await;
    let mut asked = 0;
    let mut sender = sender.ready().await;
    while let Ok(ready) = &mut sender {
        let Ok((answer, _)) = ready.send_request(get("/never"), true) else { break };
        asked += 1;
        assert!(asked < 1_000, "it answers on and on");
        // One after the other, so that each is under way before it is taken back.
        sleep(Duration::from_millis(1)).await;
        drop(answer);
        sleep(Duration::from_millis(1)).await;
        sender = sender.unwrap().ready().await;
    }
    assert_eq!(served.ended().await.1, [("resets", 1)]);
    assert!((250..270).contains(&asked), "{asked}");
    drop(connection);
}

#[tokio::test(start_paused = true)]
async fn http2_does_not_blame_its_client_for_answers_that_break_off() {
    let mut served = Served::new();
    let (mut sender, _connection) = served.http2().await;
    for _ in 0..600 {
        sender = sender.ready().await.unwrap();
        // The stream is reset, perhaps before its head has left.
        assert!(match sender.send_request(get("/broken"), true).unwrap().0.await {
            Ok(answer) => while_it_comes(answer.into_body()).await.is_reset(),
            Err(error) => error.is_reset(),
        });
    }
    assert_eq!(served.causes(), []);
}
