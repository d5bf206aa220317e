//! HTTP/2 connections: timeouts of idle connections, heads and responses, and cancelled requests.

use super::*;

#[tokio::test(start_paused = true)]
async fn http2_closes_an_idle_connection_gracefully() {
    let mut served = ServedConnection::new();
    let (sender, connection) = served.http2().await;
    let mut sender = sender.ready().await.unwrap();
    sleep(Duration::from_secs(60)).await;
    let response = sender.send_request(get("/small"), true).unwrap().0.await.unwrap();
    assert_eq!(response.status(), 200);
    drop(response);
    assert_eq!(served.ended().await, (135, vec![("keepalive-timeout", 1)]));
    connection.await.unwrap().expect("a graceful close");
}

#[tokio::test(start_paused = true)]
async fn http2_does_not_wait_forever_for_a_client_to_close() {
    let mut served = ServedConnection::new();
    // The preface with empty SETTINGS, and nothing after it.
    served.write("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\u{4}\0\0\0\0\0").await;
    assert_eq!(served.ended().await, (80, vec![("keepalive-timeout", 1), ("close-timeout", 1)]));
}

#[tokio::test(start_paused = true)]
async fn http2_has_the_same_header_timeout_as_http1() {
    let mut served = ServedConnection::new();
    served.write("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\u{4}\0\0\0\0\0").await;
    sleep(Duration::from_secs(20)).await;
    // The start of a head that continues in another frame, and the start of that frame.
    served.write("\0\0\u{1}\u{1}\0\0\0\0\u{1}\x02").await;
    sleep(Duration::from_secs(6)).await;
    served.write("\0\0\u{1}").await;
    assert_eq!(served.ended().await, (30, vec![("header-timeout", 1)]));
}

#[tokio::test(start_paused = true)]
async fn http2_resets_only_the_stream_whose_response_is_not_read() {
    let mut served = ServedConnection::new();
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
    // This response waits for upstream, so the client is not blamed.
    served.parts.send(Ok(Bytes::from_static(b"at last"))).await.unwrap();
    let mut waiting = waiting;
    assert_eq!(waiting.data().await.unwrap().unwrap(), "at last");
    drop(unread);
}

#[tokio::test(start_paused = true)]
async fn http2_ends_a_connection_whose_client_reads_nothing() {
    let mut served = ServedConnection::new();
    let mut client = served.client.take().unwrap();
    // A request for `/large` (method, scheme and path in HPACK), with the largest possible windows.
    let settings = b"\0\0\x06\x04\0\0\0\0\0\0\x04\x7f\xff\xff\xff";
    let window = b"\0\0\x04\x08\0\0\0\0\0\x7f\xff\0\0";
    let head = b"\0\0\x0a\x01\x05\0\0\0\x01\x82\x86\x04\x06/large";
    client.write_all(&[b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", &settings[..], window, head].concat()).await.unwrap();
    let (seconds, causes) = served.ended().await;
    // The stream is counted separately.
    assert_eq!((seconds, causes[0].0, causes.len()), (30, "write-timeout", 1));
    drop(client);
}

#[tokio::test(start_paused = true)]
async fn http2_ends_a_connection_whose_client_cancels_most_requests() {
    let mut served = ServedConnection::new();
    let (sender, connection) = served.http2().await;
    let mut sent = 0;
    let mut sender = sender.ready().await;
    while let Ok(ready) = &mut sender {
        let Ok((response, _)) = ready.send_request(get("/never"), true) else { break };
        sent += 1;
        assert!(sent < 1_000, "the connection does not end");
        // Slowly enough that each request is in progress before it is cancelled.
        sleep(Duration::from_millis(1)).await;
        drop(response);
        sleep(Duration::from_millis(1)).await;
        sender = sender.unwrap().ready().await;
    }
    assert_eq!(served.ended().await.1, [("resets", 1)]);
    assert!((250..270).contains(&sent), "{sent}");
    drop(connection);
}

#[tokio::test(start_paused = true)]
async fn http2_does_not_count_broken_responses_as_cancelled() {
    let mut served = ServedConnection::new();
    let (mut sender, _connection) = served.http2().await;
    for _ in 0..600 {
        sender = sender.ready().await.unwrap();
        // The stream is reset, perhaps before its head was sent.
        assert!(match sender.send_request(get("/broken"), true).unwrap().0.await {
            Ok(response) => read_until_error(response.into_body()).await.is_reset(),
            Err(error) => error.is_reset(),
        });
    }
    assert_eq!(served.causes(), []);
}
