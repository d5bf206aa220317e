//! Loads: client behaviour that makes the gateway hold memory. A load has a number of equal connections. Each
//! connection holds a number of units: itself, or its streams.
//!
//! The benches `memory`, `flood` and `storm` share this module. None uses all of it.

#![allow(dead_code)]

pub(crate) mod client;

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use h2::client::{ResponseFuture, SendRequest};
use http::Request;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};
use workspace_gateway::testing::clock::Clock;
use workspace_gateway::testing::signing::show_date;

use client::{HANG, Stream, Target, closed, exchange, get, token};

/// The gateway must know this access key, else it rejects the signed loads at their heads.
pub(crate) const ACCESS_KEY: &str = "EXAMPLEAK0EXAMPLEAK0";

/// The settings with this access key.
pub(crate) fn settings() -> String {
    format!("[[access_key]]\nid = \"{ACCESS_KEY}\"\nsecret = \"example-secret-that-nobody-has\"\n")
}

/// Lists of 1 KiB, 1 MiB and 7 MiB, and one that upstream never responses.
pub(crate) const LIST: &str = "/v2/p/products?os_type=Linux";
const LARGE_LIST: &str = "/v2/p/products?offset=1048576";
const LARGEST_LIST: &str = "/v2/p/products?offset=7340032";
const NO_LIST: &str = "/v2/p/products?os_type=hang";

/// The number of callers. None has more calls in flight than a caller may have by default.
const CALLERS: usize = 8;

/// How long a repeated load leaves a response unread.
const UNREAD: Duration = Duration::from_secs(10);

/// The time in which the connections of a load are opened.
const RISE: Duration = Duration::from_secs(1);

type Act = fn(Target, usize, Placed) -> Pin<Box<dyn Future<Output = ()> + Send>>;

#[derive(Clone, Copy)]
pub(crate) struct Load {
    pub(crate) name: &'static str,
    connections: usize,
    /// The units of each connection.
    each: usize,
    /// Whether the load only makes sense in TLS.
    pub(crate) tls: bool,
    /// The largest allowed cost of a unit, in KiB.
    pub(crate) target: Option<f64>,
    /// The name of the table row with bare hyper under this load.
    pub(crate) compared_as: Option<&'static str>,
    act: Act,
}

impl Load {
    const fn new(name: &'static str, connections: usize, each: usize, act: Act) -> Self {
        Self { name, connections, each, tls: false, target: None, compared_as: None, act }
    }

    pub(crate) fn without_target(&self) -> Self {
        Self { target: None, ..*self }
    }

    fn reduced(&self, to_one_in: usize) -> Self {
        Self { connections: (self.connections / to_one_in).max(1), ..*self }
    }

    pub(crate) fn units(&self) -> usize {
        self.connections * self.each
    }
}

pub(crate) const LOADS: [Load; 17] = [
    Load {
        target: Some(16.0),
        compared_as: Some("(bare hyper)"),
        ..Load::new("idle-http1", 1_000, 1, |target, _, placed| Box::pin(idle_http1(target, placed)))
    },
    Load {
        target: Some(24.0),
        compared_as: Some("(bare hyper)"),
        ..Load::new("idle-http2", 1_000, 1, |target, _, placed| Box::pin(idle_http2(target, placed)))
    },
    Load {
        target: Some(48.0),
        tls: true,
        ..Load::new("idle-tls", 1_000, 1, |target, _, placed| Box::pin(idle_http1(target, placed)))
    },
    Load {
        target: Some(12.0),
        ..Load::new("held-stream-unread", 10, 100, |target, _, placed| {
            Box::pin(streams(target, placed, 100, 0, |target| request(target, LIST, &token("good")).body(()), false))
        })
    },
    Load {
        target: Some(12.0),
        compared_as: Some("(bare hyper)"),
        ..Load::new("held-stream-waiting", 10, 100, |target, _, placed| {
            Box::pin(streams(target, placed, 100, 0, |target| request(target, NO_LIST, &token("good")).body(()), true))
        })
    },
    Load {
        target: Some(64.0),
        ..Load::new("slow-relay", 256, 1, |target, index, placed| {
            let path = if index % CALLERS < CALLERS / 2 { "/v2/p/stream" } else { "/v1/p/stream" };
            Box::pin(unread(target, get(path, &caller(index), ""), placed))
        })
    },
    Load {
        target: Some(64.0),
        ..Load::new("slow-cached", 256, 1, |target, index, placed| {
            Box::pin(unread(target, get(LARGE_LIST, &caller(index), ""), placed))
        })
    },
    Load::new("large-heads", 400, 1, |target, _, placed| {
        let padding = format!("x-padding: {}\r\n", "x".repeat(245_000));
        Box::pin(idle_after(target, get(LIST, &token("good"), &padding), placed))
    }),
    Load::new("large-tokens", 400, 1, |target, index, placed| {
        Box::pin(idle_after(target, get(LIST, &format!("good-{index}{}", "-".repeat(100_000)), ""), placed))
    }),
    Load::new("partial-heads", 400, 1, |target, _, placed| Box::pin(partial_head(target, placed))),
    Load::new("http2-heads", 1, 128, |target, _, placed| {
        Box::pin(streams(target, placed, 128, 0, |target| with_large_head(target).body(()), true))
    }),
    Load::new("http2-window-0", 40, 128, |target, _, placed| {
        Box::pin(streams(target, placed, 128, 0, |target| Request::get(target.uri("/")).body(()), false))
    }),
    Load::new("no-cache", 1, 96, |target, _, placed| {
        let make_request = |target: &Target| {
            request(target, LARGEST_LIST, &token("good")).header("cache-control", "no-cache").body(())
        };
        Box::pin(streams(target, placed, 96, 0, make_request, false))
    }),
    Load::new("signed-bodies", 1, 128, |target, _, placed| Box::pin(signed_bodies(target, placed))),
    Load::new("signed-chunks", 4, 1, |target, _, placed| Box::pin(signed_chunks(target, placed))),
    Load::new("uploads", 128, 1, |target, index, placed| Box::pin(upload(target, caller(index), placed))),
    Load::new("unread", 4_096, 1, |target, index, placed| {
        let requests = get(LARGE_LIST, &caller(index), "").repeat(4);
        Box::pin(unread(target, requests, placed))
    }),
];

/// Counts the units that have been placed so far.
#[derive(Clone)]
pub(crate) struct Placed {
    units: Arc<AtomicUsize>,
    repeats: bool,
}

impl Placed {
    fn add(&self) {
        self.units.fetch_add(1, Ordering::Relaxed);
    }

    /// Keeps a unit in place.
    async fn hold(&self) {
        if self.repeats { sleep(UNREAD).await } else { std::future::pending().await }
    }
}

/// A running load. It ends when this is dropped.
pub(crate) struct Running {
    _connections: JoinSet<()>,
    placed: Placed,
    units: usize,
}

impl Running {
    /// Starts a load. With `repeats`, connections that are closed or refused are opened again, and unread responses are
    /// abandoned and requested again after a time.
    pub(crate) fn begin(load: &Load, target: &Target, repeats: bool) -> Self {
        let placed = Placed { units: Arc::default(), repeats };
        let mut connections = JoinSet::new();
        for index in 0..load.connections {
            let (act, target, placed) = (load.act, target.clone(), placed.clone());
            // Not all at once: the accept queue is bounded, and so is the CPU.
            let begin = RISE.mul_f64(index as f64 / load.connections as f64);
            connections.spawn(async move {
                sleep(begin).await;
                loop {
                    act(target.clone(), index, placed.clone()).await;
                    if !repeats {
                        return;
                    }
                    sleep(Duration::from_secs(1)).await;
                }
            });
        }
        Self { _connections: connections, placed, units: load.units() }
    }

    /// Waits until all units are in place, or the number has not grown for some seconds.
    pub(crate) async fn in_place(&self) {
        let step = Duration::from_millis(50);
        let (mut last, mut still) = (0, Duration::ZERO);
        while last < self.units && still < Duration::from_secs(6) {
            sleep(step).await;
            let now = self.placed();
            still = if now > last { Duration::ZERO } else { still + step };
            last = now;
        }
    }

    /// Starts all loads with a part of their connections, and repeats them. Not included are loads in TLS, and uploads:
    /// only the upstream of `memory` leaves uploads unread.
    pub(crate) fn begin_all(target: &Target, to_one_in: usize) -> Vec<Self> {
        let loads = LOADS.iter().filter(|load| !load.tls && load.name != "uploads");
        loads.map(|load| Self::begin(&load.reduced(to_one_in), target, true)).collect()
    }

    pub(crate) fn placed(&self) -> usize {
        self.placed.units.load(Ordering::Relaxed)
    }
}

fn caller(index: usize) -> String {
    token(&format!("good-{}", index % CALLERS))
}

/// Proves the callers of all loads, and fills the cache with their lists.
pub(crate) async fn prime(target: &Target) {
    let mut priming = JoinSet::new();
    for caller in (0..CALLERS).map(caller).chain([token("good")]) {
        let target = target.clone();
        priming.spawn(async move {
            let mut stream = target.connect().await.expect("a connection");
            for path in [LIST, LARGE_LIST, "/v1/p/product"] {
                expect(&mut stream, path, &caller).await;
            }
        });
    }
    while let Some(primed) = priming.join_next().await {
        primed.expect("a response");
    }
}

/// Panics unless the response is a 200.
pub(crate) async fn expect(stream: &mut Stream, path: &str, token: &str) {
    let response = timeout(HANG, exchange(stream, &get(path, token, ""))).await.expect("a response");
    assert!(response.expect("a response").0.contains(" 200 "), "{path}");
}

/// Sends one request and then stays idle.
async fn idle_after(target: Target, request: String, placed: Placed) {
    let Ok(mut stream) = target.connect().await else { return };
    if matches!(timeout(HANG, exchange(&mut stream, &request)).await, Ok(Ok(_))) {
        drop(request);
        placed.add();
        closed(&mut stream).await;
    }
}

async fn idle_http1(target: Target, placed: Placed) {
    idle_after(target, get(LIST, &token("good"), ""), placed).await;
}

async fn idle_http2(target: Target, placed: Placed) {
    let Some((mut send, connection)) = target.http2(1 << 16).await else { return };
    let exchange = async {
        let Ok(request) = request(&target, LIST, &token("good")).body(()) else { return };
        let Ok((response, _)) = send.send_request(request, true) else { return };
        let Ok(response) = response.await else { return };
        let mut body = response.into_body();
        while let Some(Ok(piece)) = body.data().await {
            let _ = body.flow_control().release_capacity(piece.len());
        }
        placed.add();
        std::future::pending().await
    };
    tokio::select! { _ = connection => {}, () = exchange => {} }
}

fn request(target: &Target, path: &str, token: &str) -> http::request::Builder {
    Request::get(target.uri(path)).header("x-auth-token", token)
}

/// A request with a head of 240 KB that is never answered.
fn with_large_head(target: &Target) -> http::request::Builder {
    let request = request(target, "/v2/p/hang", &token("good"));
    let padding = "x".repeat(15_600);
    (0..15).fold(request, |request, number| request.header(format!("x-padding-{number}"), &padding))
}

type MakeRequest = fn(&Target) -> http::Result<Request<()>>;

/// Opens streams with this window, each with one request. A stream is in place when its request is sent, or, if it is
/// not hanging, when the head of its response is received. Returns when nothing is left to wait for.
async fn streams(
    target: Target,
    placed: Placed,
    count: usize,
    window: u32,
    make_request: MakeRequest,
    is_hanging: bool,
) {
    let Some((send, connection)) = target.http2(window).await else { return };
    let exchange = async {
        let Some(responses) = send_all(send, &target, count, make_request).await else { return };
        let mut received = Vec::new();
        if is_hanging {
            responses.iter().for_each(|_| placed.add());
        }
        for response in responses {
            if let Ok(response) = response.await {
                received.push(response);
                if !is_hanging {
                    placed.add();
                }
            }
        }
        if !is_hanging {
            placed.hold().await;
        }
    };
    tokio::select! { _ = connection => {}, () = exchange => {} }
}

async fn send_all(
    mut send: SendRequest<Bytes>,
    target: &Target,
    count: usize,
    make_request: MakeRequest,
) -> Option<Vec<ResponseFuture>> {
    let mut responses = Vec::new();
    for _ in 0..count {
        send = send.ready().await.ok()?;
        responses.push(send.send_request(make_request(target).ok()?, true).ok()?.0);
    }
    Some(responses)
}

/// Sends a request and reads one byte of the response.
async fn unread(target: Target, request: String, placed: Placed) {
    let Ok(mut stream) = target.connect().await else { return };
    if stream.write_all(request.as_bytes()).await.is_ok() && stream.read_u8().await.is_ok() {
        drop(request);
        placed.add();
        placed.hold().await;
    }
}

/// Sends the larger part of a head.
async fn partial_head(target: Target, placed: Placed) {
    let Ok(mut stream) = target.connect().await else { return };
    let part = format!("GET {LIST} HTTP/1.1\r\nhost: gateway\r\nx-padding: {}", "x".repeat(240_000));
    if stream.write_all(part.as_bytes()).await.is_ok() {
        drop(part);
        placed.add();
        closed(&mut stream).await;
    }
}

/// An upload that upstream does not read.
async fn upload(target: Target, token: String, placed: Placed) {
    let Ok(mut stream) = target.connect().await else { return };
    let length = 1 << 30;
    let head = format!(
        "POST /v2/p/hang HTTP/1.1\r\nhost: gateway\r\nx-auth-token: {token}\r\ncontent-length: {length}\r\n\r\n"
    );
    if stream.write_all(head.as_bytes()).await.is_err() {
        return;
    }
    placed.add();
    let piece = [b'x'; 16 * 1024];
    while stream.write_all(&piece).await.is_ok() {}
}

/// Bodies of 64 KiB without their last byte, with an invalid signature.
async fn signed_bodies(target: Target, placed: Placed) {
    const LENGTH: usize = 64 * 1024;
    let Some((mut send, connection)) = target.http2(1 << 16).await else { return };
    let exchange = async {
        let (mut responses, mut bodies) = (Vec::new(), Vec::new());
        for _ in 0..128 {
            let Ok(ready) = send.ready().await else { return };
            send = ready;
            let request = Request::post(target.uri("/v2/p/desktops"))
                .header("authorization", invalid_signature())
                .header("x-sdk-date", show_date(Clock::System.date()))
                .header("content-length", LENGTH)
                .body(());
            let Ok(request) = request else { return };
            let Ok((response, mut body)) = send.send_request(request, false) else { return };
            if body.send_data(Bytes::from_static(&[b'x'; LENGTH - 1]), false).is_err() {
                return;
            }
            responses.push(response);
            bodies.push(body);
            placed.add();
        }
        // All are refused at some time. Then the load starts again.
        for response in responses {
            let _ = response.await;
        }
    };
    tokio::select! { _ = connection => {}, () = exchange => {} }
}

/// Bodies in chunks of one byte, with an invalid signature. The overhead of a chunk must not be received.
async fn signed_chunks(target: Target, placed: Placed) {
    const PIECE: usize = 10_000;
    let Ok(mut stream) = target.connect().await else { return };
    let head = format!(
        "POST /v2/p/desktops HTTP/1.1\r\nhost: gateway\r\nauthorization: {}\r\nx-sdk-date: {}\r\n\
         transfer-encoding: chunked\r\n\r\n",
        invalid_signature(),
        show_date(Clock::System.date())
    );
    if stream.write_all(head.as_bytes()).await.is_err() {
        return;
    }
    placed.add();
    let piece = "1\r\nx\r\n".repeat(PIECE);
    // Less than the limit of a signed body, else it would be refused.
    for _ in 0..(11 << 20) / PIECE {
        if stream.write_all(piece.as_bytes()).await.is_err() {
            return;
        }
    }
    closed(&mut stream).await;
}

/// Names the configured access key, but is not made with its secret.
fn invalid_signature() -> String {
    format!("SDK-HMAC-SHA256 Access={ACCESS_KEY}, SignedHeaders=host;x-sdk-date, Signature={}", "0".repeat(64))
}
