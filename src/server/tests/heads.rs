//! In HTTP/2 the requests whose heads were read begin before more heads are read: until then only their heads are charged.

use std::sync::atomic::{AtomicUsize, Ordering};

use super::*;

const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0";

/// A HEADERS frame that ends the stream, with this many fields of one byte each besides.
fn head(stream: u8, fields: usize) -> Vec<u8> {
    // :method GET, :scheme http, :path /, and many times accept-encoding of the static table (RFC 7541, appendix A).
    let block = [&[0x82, 0x86, 0x84][..], &vec![0x90; fields]].concat();
    let [_, high, middle, low] = u32::try_from(block.len()).unwrap().to_be_bytes();
    [&[high, middle, low, 0x1, 0x5, 0, 0, 0, stream][..], &block].concat()
}

#[tokio::test]
async fn requests_with_many_fields_begin_before_more_heads_are_read() {
    for (fields, most) in [(1_000, 5), (600, 8), (10, usize::MAX)] {
        let [accepted, begun, ahead] = [(); 3].map(|()| Arc::new(AtomicUsize::new(0)));
        let answer = {
            let [accepted, begun, ahead] = [&accepted, &begun, &ahead].map(Arc::clone);
            move |_: Request<TrackedRequestBody>| {
                let accepted = accepted.fetch_add(1, Ordering::Relaxed) + 1;
                ahead.fetch_max(accepted - begun.load(Ordering::Relaxed), Ordering::Relaxed);
                let begun = Arc::clone(&begun);
                async move {
                    begun.fetch_add(1, Ordering::Relaxed);
                    Response::new(Parts::whole(Bytes::from_static(b"small")))
                }
            }
        };
        let mut served =
            Served::with_room(1 << 20, ShutdownControl::new(watch::channel(false).1, false), None, None, answer);
        let heads: Vec<u8> = (0..100).flat_map(|number| head(2 * number + 1, fields)).collect();
        let (mut from, mut to) = tokio::io::split(served.client.take().unwrap());
        tokio::spawn(async move { to.write_all(&[PREFACE, &heads].concat()).await.unwrap() });
        tokio::spawn(async move { tokio::io::copy(&mut from, &mut tokio::io::sink()).await });
        timeout(Duration::from_secs(60), async {
            while begun.load(Ordering::Relaxed) < 100 {
                tokio::task::yield_now().await;
            }
        })
        .await
        .expect("all begin");
        assert!((1..=most).contains(&ahead.load(Ordering::Relaxed)), "{fields}: {}", ahead.load(Ordering::Relaxed));
    }
}

#[tokio::test(start_paused = true)]
async fn each_head_has_its_own_time_though_the_next_one_has_begun() {
    let answer = |_: Request<TrackedRequestBody>| async { Response::new(Parts::whole(Bytes::from_static(b"small"))) };
    let mut served = Served::by(ShutdownControl::new(watch::channel(false).1, false), None, None, answer);
    let (mut from, mut to) = tokio::io::split(served.client.take().unwrap());
    tokio::spawn(async move { tokio::io::copy(&mut from, &mut tokio::io::sink()).await });
    to.write_all(PREFACE).await.unwrap();
    let heads: Vec<u8> = (0..9).flat_map(|number| head(2 * number + 1, 100)).collect();
    let length = heads.len() / 9;
    // From the middle of one to the middle of the next.
    to.write_all(&heads[..length / 2]).await.unwrap();
    for number in 0..8 {
        sleep(TERMS.head - Duration::from_millis(100)).await;
        let from = length / 2 + number * length;
        to.write_all(&heads[from..from + length]).await.expect("the connection goes on");
    }
    sleep(TERMS.head).await;
    assert_eq!(served.ended().await.1, [("header-timeout", 1)]);
}
