//! A client that has closed its sending side: how long it is waited for, to the second.

use super::*;

/// What a client hears until its connection ends, if it asks for this and closes its sending side at once.
async fn heard(served: &mut Served, path: &str) -> String {
    ask(served, path).await;
    rest(served).await
}

async fn ask(served: &mut Served, path: &str) {
    served.write(&format!("GET {path} HTTP/1.1\r\nhost: g\r\n\r\n")).await;
    served.client().shutdown().await.unwrap();
}

async fn rest(served: &mut Served) -> String {
    let mut heard = String::new();
    served.client().read_to_string(&mut heard).await.unwrap();
    heard
}

#[tokio::test(start_paused = true)]
async fn it_waits_for_the_beginning_of_an_answer_until_the_limit() {
    let mut served = Served::new();
    assert_eq!(heard(&mut served, "/never").await, "");
    assert_eq!(served.ended().await, (5, vec![("half-close", 1)]));
}

#[tokio::test(start_paused = true)]
async fn each_part_of_an_answer_has_the_whole_limit() {
    let mut served = Served::new();
    ask(&mut served, "/parts").await;
    for _ in 0..3 {
        sleep(Duration::from_secs(4)).await;
        served.parts.send(Ok(Bytes::from_static(b"x"))).await.unwrap();
    }
    let heard = rest(&mut served).await;
    assert!(heard.ends_with("1\r\nx\r\n1\r\nx\r\n1\r\nx\r\n"), "{heard}");
    assert_eq!(served.ended().await, (17, vec![("half-close", 1)]));
}

#[tokio::test(start_paused = true)]
async fn a_slow_reader_has_the_time_of_a_slow_reader() {
    let mut served = Served::new();
    ask(&mut served, "/large").await;
    sleep(TERMS.write - Duration::from_secs(1)).await;
    let heard = rest(&mut served).await;
    assert!(heard.len() > LARGE && heard.ends_with("\r\n0\r\n\r\n"), "{} bytes", heard.len());
    assert_eq!(served.ended().await, (29, vec![]));
}

#[tokio::test(start_paused = true)]
async fn it_ends_with_its_answer() {
    for path in ["/small", "/large"] {
        let mut served = Served::new();
        assert!(heard(&mut served, path).await.ends_with("\r\n0\r\n\r\n"));
        assert_eq!(served.ended().await, (0, vec![]), "{path}");
    }
}
