//! Timeouts for clients that have closed their sending side.

use super::*;

async fn request_and_read(served: &mut ServedConnection, path: &str) -> String {
    request(served, path).await;
    read_to_end(served).await
}

async fn request(served: &mut ServedConnection, path: &str) {
    served.write(&format!("GET {path} HTTP/1.1\r\nhost: g\r\n\r\n")).await;
    served.client().shutdown().await.unwrap();
}

async fn read_to_end(served: &mut ServedConnection) -> String {
    let mut response = String::new();
    served.client().read_to_string(&mut response).await.unwrap();
    response
}

#[tokio::test(start_paused = true)]
async fn a_response_has_to_start_within_the_limit() {
    let mut served = ServedConnection::new();
    assert_eq!(request_and_read(&mut served, "/never").await, "");
    assert_eq!(served.ended().await, (5, vec![("half-close", 1)]));
}

#[tokio::test(start_paused = true)]
async fn each_part_of_a_response_restarts_the_limit() {
    let mut served = ServedConnection::new();
    request(&mut served, "/parts").await;
    for _ in 0..3 {
        sleep(Duration::from_secs(4)).await;
        served.parts.send(Ok(Bytes::from_static(b"x"))).await.unwrap();
    }
    let response = read_to_end(&mut served).await;
    assert!(response.ends_with("1\r\nx\r\n1\r\nx\r\n1\r\nx\r\n"), "{response}");
    assert_eq!(served.ended().await, (17, vec![("half-close", 1)]));
}

#[tokio::test(start_paused = true)]
async fn a_slow_reader_has_the_write_timeout() {
    let mut served = ServedConnection::new();
    request(&mut served, "/large").await;
    sleep(TIMEOUTS.write - Duration::from_secs(1)).await;
    let response = read_to_end(&mut served).await;
    assert!(response.len() > LARGE && response.ends_with("\r\n0\r\n\r\n"), "{} bytes", response.len());
    assert_eq!(served.ended().await, (29, vec![]));
}

#[tokio::test(start_paused = true)]
async fn the_connection_ends_with_the_response() {
    for path in ["/small", "/large"] {
        let mut served = ServedConnection::new();
        assert!(request_and_read(&mut served, path).await.ends_with("\r\n0\r\n\r\n"));
        assert_eq!(served.ended().await, (0, vec![]), "{path}");
    }
}
