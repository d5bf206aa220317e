//! Timeouts and limits of one connection, in memory, on a paused clock that advances when all tasks wait.

#![allow(clippy::unwrap_used, clippy::expect_used)]

mod accepting;
mod fast_path;
mod half_closed;
mod heads;
mod http2;
mod idle_memory;
mod shedding;
mod shutdown;
mod tls;

use std::future::Future;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use h2::client::SendRequest;
use http::{Request, Response};
use http_body::{Body, Frame};
use prometheus::{IntCounterVec, Opts};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWriteExt, DuplexStream, duplex};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep, timeout};

use super::activity::ConnectionTimeouts;
use super::exchange::{RequestHandler, TrackedRequestBody};
use super::memory::SendBuffer;
use super::registry::{OpenConnection, Registry};
use super::reload::ServeLimits;
use super::serve::Serving;
use super::shed::MinimumAge;
use super::shutdown::ShutdownControl;
use super::tls::Tls;
use super::wire::WireFastPath;
use crate::budget::{Account, Budget};
use crate::clock::Clock;
use crate::net::Reset;

impl SendBuffer for DuplexStream {
    fn set_send_buffer(&self, _: usize) -> io::Result<()> {
        Ok(())
    }
}

impl Reset for DuplexStream {
    fn poll_reset(&mut self, _: &mut Context<'_>) -> Poll<()> {
        Poll::Pending
    }
}

const MINIMUM: MinimumAge = MinimumAge { idle: [Duration::from_secs(1); 3], blocked: Duration::from_secs(1) };

const TIMEOUTS: ConnectionTimeouts =
    ConnectionTimeouts { head: Duration::from_secs(10), idle: Duration::from_secs(75), write: Duration::from_secs(30) };

const HALF_CLOSE: Duration = Duration::from_secs(5);

/// Larger than the capacity between the two ends, and than a flow-control window.
const LARGE: usize = 400_000;

/// Larger than the capacity between the two ends, and smaller than what TLS takes in addition.
const MEDIUM: usize = 40_000;

/// The capacity between the two ends in bytes.
const BETWEEN: usize = 4 * 1024;

/// A body whose parts are sent by the test. It may end with an error.
struct Parts(mpsc::Receiver<io::Result<Bytes>>);

impl Parts {
    fn whole(bytes: Bytes) -> Self {
        Self::of([Ok(bytes)])
    }

    fn of<const N: usize>(all: [io::Result<Bytes>; N]) -> Self {
        let (sender, parts) = mpsc::channel(N);
        for part in all {
            sender.try_send(part).unwrap();
        }
        Self(parts)
    }
}

impl Body for Parts {
    type Data = Bytes;
    type Error = io::Error;

    fn poll_frame(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<io::Result<Frame<Bytes>>>> {
        self.0.poll_recv(context).map(|part| part.map(|part| part.map(Frame::data)))
    }
}

/// A connection that is served, and the client's end of it.
struct ServedConnection {
    client: Option<DuplexStream>,
    serving: JoinHandle<()>,
    began: Instant,
    connections_ended: IntCounterVec,
    shutdown_control: ShutdownControl,
    registry: Arc<Registry>,
    /// Sends the parts of the body of `/parts`.
    parts: mpsc::Sender<io::Result<Bytes>>,
}

impl ServedConnection {
    /// Serves `/small`, `/medium`, `/large`, `/broken`, `/never`, and `/parts` for one request.
    fn new() -> Self {
        Self::with_tls(None)
    }

    fn with_tls(tls: Option<Tls>) -> Self {
        let (parts, mut body) = mpsc::channel(1);
        let body = std::sync::Mutex::new(Some(std::mem::replace(&mut body, mpsc::channel(1).1)));
        let handler = move |request: Request<TrackedRequestBody>| {
            let path = request.uri().path().to_owned();
            let parts = if path == "/parts" { body.lock().unwrap().take().map(Parts) } else { None };
            async move {
                match path.as_str() {
                    "/never" => std::future::pending().await,
                    "/broken" => Response::new(Parts::of([
                        Ok(Bytes::from_static(b"a")),
                        Err(io::ErrorKind::ConnectionReset.into()),
                    ])),
                    "/medium" => Response::new(Parts::whole(Bytes::from(vec![b'x'; MEDIUM]))),
                    "/large" => Response::new(Parts::whole(Bytes::from(vec![b'x'; LARGE]))),
                    _ => Response::new(parts.unwrap_or_else(|| Parts::whole(Bytes::from_static(b"small")))),
                }
            }
        };
        Self { parts, ..Self::with_handler(ShutdownControl::new(watch::channel(false).1, false), tls, None, handler) }
    }

    fn with_handler(
        shutdown_control: ShutdownControl,
        tls: Option<Tls>,
        fast_path: Option<Box<WireFastPath>>,
        handler: impl RequestHandler,
    ) -> Self {
        Self::with_capacity(BETWEEN, shutdown_control, tls, fast_path, handler)
    }

    /// `capacity` is the number of bytes between the two ends.
    fn with_capacity(
        capacity: usize,
        shutdown_control: ShutdownControl,
        tls: Option<Tls>,
        fast_path: Option<Box<WireFastPath>>,
        handler: impl RequestHandler,
    ) -> Self {
        let (client, server) = duplex(capacity);
        let connections_ended = IntCounterVec::new(Opts::new("connections_ended", "By cause."), &["cause"]).unwrap();
        let (half_close, shutdown_timeout) = (HALF_CLOSE, Duration::ZERO);
        let limits = ServeLimits { timeouts: TIMEOUTS, buffer: 64 * 1024, half_close, shutdown_timeout };
        let serving = Serving {
            limits,
            http2: true,
            tls,
            connections_ended: Some(connections_ended.clone()),
            drain: shutdown_control.draining(),
            shutdown: shutdown_control.shutdown(),
            clock: Clock::System,
        };
        let registry = Registry::new(MINIMUM);
        let open = registry.add(OpenConnection::new(Account::open(&Budget::new(1 << 20), None), Arc::default()));
        let serving = tokio::spawn(async move { serving.serve(server, Arc::clone(&open), fast_path, handler).await });
        let (began, parts) = (Clock::System.timer_now(), mpsc::channel(1).0);
        Self { client: Some(client), serving, began, connections_ended, shutdown_control, registry, parts }
    }

    fn client(&mut self) -> &mut DuplexStream {
        self.client.as_mut().unwrap()
    }

    async fn write(&mut self, text: &str) {
        self.client().write_all(text.as_bytes()).await.unwrap();
    }

    /// Reads up to the end of the response to `/small`.
    async fn read_small(&mut self) {
        let mut response = Vec::new();
        // Its length is unknown, so it is chunked.
        while !response.ends_with(b"small\r\n0\r\n\r\n") {
            assert!(self.client().read_buf(&mut response).await.unwrap() > 0, "{}", String::from_utf8_lossy(&response));
        }
    }

    /// Uses HTTP/2 from now on. The connection ends when the returned task is aborted.
    async fn http2(&mut self) -> (SendRequest<Bytes>, JoinHandle<Result<(), h2::Error>>) {
        // A larger connection window, so that one stream cannot use it up.
        let mut builder = h2::client::Builder::new();
        let builder = builder.initial_connection_window_size(1 << 20);
        let (sender, connection) = builder.handshake(self.client.take().unwrap()).await.unwrap();
        (sender, tokio::spawn(connection))
    }

    /// The time in seconds at which the connection has ended, and the causes that were counted.
    async fn ended(&mut self) -> (u64, Vec<(&'static str, u64)>) {
        timeout(Duration::from_secs(100_000), &mut self.serving).await.expect("the connection has not ended").unwrap();
        (self.seconds(), self.causes())
    }

    fn seconds(&self) -> u64 {
        // Rounded: timers have a granularity.
        (Clock::System.timer_now() - self.began + Duration::from_millis(500)).as_secs()
    }

    fn causes(&self) -> Vec<(&'static str, u64)> {
        let all = [
            "header-timeout",
            "keepalive-timeout",
            "write-timeout",
            "half-close",
            "resets",
            "close-timeout",
            "handshake",
            "shed",
        ];
        let counted = all.map(|cause| (cause, self.connections_ended.with_label_values(&[cause]).get()));
        counted.into_iter().filter(|&(_, count)| count > 0).collect()
    }
}

async fn read_until_error(mut body: h2::RecvStream) -> h2::Error {
    loop {
        if let Err(error) = body.data().await.expect("it breaks off") {
            return error;
        }
    }
}

fn get(path: &str) -> Request<()> {
    Request::get(format!("http://gateway{path}")).body(()).unwrap()
}

#[tokio::test(start_paused = true)]
async fn a_silent_client_has_the_header_timeout() {
    for first_bytes in ["", "G", "GET /small HTTP/1.1\r\nhost: x\r\n", "PRI * HTT", "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"]
    {
        let mut served = ServedConnection::new();
        sleep(Duration::from_secs(4)).await;
        served.write(first_bytes).await;
        assert_eq!(served.ended().await, (10, vec![("header-timeout", 1)]), "{first_bytes:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn the_header_timeout_is_not_extended_by_more_bytes() {
    let mut served = ServedConnection::new();
    served.write("GET /small HTTP/1.1\r\n").await;
    for _ in 0..9 {
        sleep(Duration::from_secs(1)).await;
        served.write("a: b\r\n").await;
    }
    assert_eq!(served.ended().await, (10, vec![("header-timeout", 1)]));
}

#[tokio::test(start_paused = true)]
async fn an_idle_connection_has_the_keepalive_timeout_and_its_next_head_the_header_timeout() {
    let mut served = ServedConnection::new();
    for _ in 0..3 {
        served.write("GET /small HTTP/1.1\r\nhost: x\r\n\r\n").await;
        served.read_small().await;
        sleep(Duration::from_secs(70)).await;
    }
    assert_eq!(served.seconds(), 210);
    served.write("GET").await;
    sleep(Duration::from_secs(3)).await;
    // After this, it is idle for longer than the keep-alive timeout.
    served.write(" /small").await;
    assert_eq!(served.ended().await, (220, vec![("header-timeout", 1)]));

    let mut served = ServedConnection::new();
    sleep(Duration::from_secs(5)).await;
    served.write("GET /small HTTP/1.1\r\nhost: x\r\n\r\n").await;
    served.read_small().await;
    assert_eq!(served.ended().await, (80, vec![("keepalive-timeout", 1)]));
}

#[tokio::test(start_paused = true)]
async fn a_connection_with_a_request_in_progress_is_not_idle() {
    for second in ["", "GET /small HTTP/1.1\r\n"] {
        let mut served = ServedConnection::new();
        served.write(&format!("GET /parts HTTP/1.1\r\nhost: x\r\n\r\n{second}")).await;
        sleep(Duration::from_secs(3_600)).await;
        assert_eq!(served.causes(), []);
        assert!(!served.serving.is_finished());
    }
}

#[tokio::test(start_paused = true)]
async fn a_response_that_is_not_read_ends_the_connection() {
    let mut served = ServedConnection::new();
    served.write("GET /large HTTP/1.1\r\nhost: x\r\n\r\n").await;
    assert_eq!(served.ended().await, (30, vec![("write-timeout", 1)]));
}

#[tokio::test(start_paused = true)]
async fn a_response_that_is_read_slowly_goes_on() {
    let mut served = ServedConnection::new();
    served.write("GET /large HTTP/1.1\r\nhost: x\r\n\r\n").await;
    let mut read = 0;
    while read < LARGE {
        sleep(Duration::from_secs(29)).await;
        read += served.client().read(&mut [0; BETWEEN]).await.unwrap();
    }
    assert_eq!(served.causes().iter().filter(|(cause, _)| *cause != "keepalive-timeout").count(), 0);
}

#[tokio::test(start_paused = true)]
async fn draining_finishes_requests_in_progress() {
    for first_bytes in ["", "PRI"] {
        let mut served = ServedConnection::new();
        served.write(first_bytes).await;
        served.shutdown_control.drain();
        assert_eq!(served.ended().await, (0, vec![]), "{first_bytes:?}");
    }
    let mut served = ServedConnection::new();
    let (sender, connection) = served.http2().await;
    let mut sender = sender.ready().await.unwrap();
    let mut response = sender.send_request(get("/parts"), true).unwrap().0.await.unwrap().into_body();
    served.shutdown_control.drain();
    sleep(Duration::from_secs(60)).await;
    assert!(!served.serving.is_finished());
    // There is no GOAWAY yet, because the client might close when it reads one.
    let mut sender = sender.ready().await.unwrap();
    assert_eq!(sender.send_request(get("/small"), true).unwrap().0.await.unwrap().status(), 200);
    served.shutdown_control.force_goaway();
    sleep(Duration::from_secs(1)).await;
    assert!(sender.ready().await.is_err(), "no new request is accepted");
    let (parts, _) = mpsc::channel(1);
    std::mem::replace(&mut served.parts, parts).send(Ok(Bytes::from_static(b"last"))).await.unwrap();
    assert_eq!(response.data().await.unwrap().unwrap(), "last");
    while let Some(more) = response.data().await {
        assert!(more.unwrap().is_empty());
    }
    assert_eq!(served.ended().await, (61, vec![]));
    connection.await.unwrap().unwrap();
}
