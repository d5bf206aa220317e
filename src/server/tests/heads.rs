//! HTTP/2: requests whose heads were read start before more heads are read. Until then, only their heads are charged.

use std::sync::atomic::{AtomicUsize, Ordering};

use super::*;

const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0";

/// A HEADERS frame that ends the stream, with this many additional fields of one byte each.
fn head(stream: u8, fields: usize) -> Vec<u8> {
    // :method GET, :scheme http, :path /, and many times accept-encoding, all from the static table (RFC 7541, appendix
    // A).
    let block = [&[0x82, 0x86, 0x84][..], &vec![0x90; fields]].concat();
    let [_, high, middle, low] = u32::try_from(block.len()).unwrap().to_be_bytes();
    [&[high, middle, low, 0x1, 0x5, 0, 0, 0, stream][..], &block].concat()
}

#[tokio::test]
async fn requests_with_many_fields_start_before_more_heads_are_read() {
    for (fields, most) in [(1_000, 5), (600, 8), (10, usize::MAX)] {
        let [accepted, started, ahead] = [(); 3].map(|()| Arc::new(AtomicUsize::new(0)));
        let handler = {
            let [accepted, started, ahead] = [&accepted, &started, &ahead].map(Arc::clone);
            move |_: Request<TrackedRequestBody>| {
                let accepted = accepted.fetch_add(1, Ordering::Relaxed) + 1;
                ahead.fetch_max(accepted - started.load(Ordering::Relaxed), Ordering::Relaxed);
                let started = Arc::clone(&started);
                async move {
                    started.fetch_add(1, Ordering::Relaxed);
                    Response::new(Parts::whole(Bytes::from_static(b"small")))
                }
            }
        };
        let mut served = ServedConnection::with_capacity(
            1 << 20,
            ShutdownControl::new(watch::channel(false).1, false),
            None,
            None,
            handler,
        );
        let heads: Vec<u8> = (0..100).flat_map(|number| head(2 * number + 1, fields)).collect();
        let (mut from, mut to) = tokio::io::split(served.client.take().unwrap());
        tokio::spawn(async move { to.write_all(&[PREFACE, &heads].concat()).await.unwrap() });
        tokio::spawn(async move { tokio::io::copy(&mut from, &mut tokio::io::sink()).await });
        timeout(Duration::from_secs(60), async {
            while started.load(Ordering::Relaxed) < 100 {
                tokio::task::yield_now().await;
            }
        })
        .await
        .expect("all requests start");
        assert!((1..=most).contains(&ahead.load(Ordering::Relaxed)), "{fields}: {}", ahead.load(Ordering::Relaxed));
    }
}

#[tokio::test(start_paused = true)]
async fn each_head_has_its_own_timeout_even_if_the_next_one_has_started() {
    let handler = |_: Request<TrackedRequestBody>| async { Response::new(Parts::whole(Bytes::from_static(b"small"))) };
    let mut served =
        ServedConnection::with_handler(ShutdownControl::new(watch::channel(false).1, false), None, None, handler);
    let (mut from, mut to) = tokio::io::split(served.client.take().unwrap());
    tokio::spawn(async move { tokio::io::copy(&mut from, &mut tokio::io::sink()).await });
    to.write_all(PREFACE).await.unwrap();
    let heads: Vec<u8> = (0..9).flat_map(|number| head(2 * number + 1, 100)).collect();
    let length = heads.len() / 9;
    // From the middle of one head to the middle of the next.
    to.write_all(&heads[..length / 2]).await.unwrap();
    for number in 0..8 {
        sleep(TIMEOUTS.head - Duration::from_millis(100)).await;
        let from = length / 2 + number * length;
        to.write_all(&heads[from..from + length]).await.expect("the connection goes on");
    }
    sleep(TIMEOUTS.head).await;
    assert_eq!(served.ended().await.1, [("header-timeout", 1)]);
}
