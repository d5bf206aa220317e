//! HTTP/1 connections that were idle or have read a large head, and have freed memory. Later requests are read as
//! before.

use super::*;

const SMALL: &str = "GET / HTTP/1.1\r\nhost: gateway\r\n\r\n";

/// Requests after which a connection frees memory: after one idle second, and immediately.
fn requests() -> [String; 2] {
    [SMALL.to_owned(), format!("GET / HTTP/1.1\r\nhost: gateway\r\nx-large: {}\r\n\r\n", "x".repeat(30_000))]
}

#[tokio::test(start_paused = true)]
async fn the_next_request_is_answered_in_any_two_pieces() {
    for first in requests() {
        for cut in 0..SMALL.len() {
            let mut served = ServedConnection::new();
            served.write(&first).await;
            served.read_small().await;
            sleep(Duration::from_secs(3)).await;
            served.write(&SMALL[..cut]).await;
            sleep(Duration::from_secs(3)).await;
            served.write(&SMALL[cut..]).await;
            served.read_small().await;
            served.write(SMALL).await;
            served.read_small().await;
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_request_that_follows_a_large_head_is_answered_after_it() {
    let [_, large] = requests();
    for cut in 0..SMALL.len() {
        let mut served = ServedConnection::new();
        served.write(&(large.clone() + &SMALL[..cut])).await;
        served.read_small().await;
        sleep(Duration::from_secs(3)).await;
        served.write(&SMALL[cut..]).await;
        served.read_small().await;
    }
}

#[tokio::test(start_paused = true)]
async fn the_unread_rest_of_a_body_is_not_taken_for_a_request() {
    for first in requests() {
        for waits in [0, 3] {
            let mut served = ServedConnection::new();
            let lines = format!("content-length: {}\r\n\r\n", SMALL.len());
            let upload = first.replace("GET", "POST").replace("\r\n\r\n", "\r\n") + &lines;
            served.write(&upload).await;
            served.read_small().await;
            sleep(Duration::from_secs(waits)).await;
            // The connection may have ended.
            let _ = served.client().write_all(SMALL.as_bytes()).await;
            let mut more = Vec::new();
            let _ = timeout(Duration::from_secs(200), served.client().read_to_end(&mut more)).await;
            assert_eq!(String::from_utf8_lossy(&more), "", "after {waits} s");
        }
    }
}
