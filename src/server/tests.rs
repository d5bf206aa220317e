//! How long a client may take for what, to the second: in memory, on a clock that moves when everyone waits.

#![allow(clippy::unwrap_used, clippy::expect_used)]

mod accepting;
mod fast_path;
mod half_closed;
mod heads;
mod http2;
mod resting;
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
use super::exchange::TrackedRequestBody;
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
use crate::stream::BoxError;

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

const TERMS: ConnectionTimeouts =
    ConnectionTimeouts { head: Duration::from_secs(10), idle: Duration::from_secs(75), write: Duration::from_secs(30) };

const HALF_CLOSE: Duration = Duration::from_secs(5);

/// Larger than what fits between the two ends, and than a window.
const LARGE: usize = 400_000;

/// Larger than what fits between the two ends, and smaller than what TLS takes beyond that.
const MEDIUM: usize = 40_000;

/// What fits between the two ends.
const BETWEEN: usize = 4 * 1024;

/// A body whose parts are sent when the test says so, and then perhaps it breaks.
struct Parts(mpsc::Receiver<io::Result<Bytes>>);

impl Parts {
    /// All there from the beginning.
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
struct Served {
    client: Option<DuplexStream>,
    serving: JoinHandle<()>,
    began: Instant,
    dropped: IntCounterVec,
    exit: ShutdownControl,
    registry: Arc<Registry>,
    /// Of the one answer that comes bit by bit.
    parts: mpsc::Sender<io::Result<Bytes>>,
}

impl Served {
    /// `/small`, `/medium`, `/large`, `/broken`, `/never`, and `/parts` for one request.
    fn new() -> Self {
        Self::new_in(None)
    }

    /// The same in TLS.
    fn new_in(tls: Option<Tls>) -> Self {
        let (parts, mut body) = mpsc::channel(1);
        let body = std::sync::Mutex::new(Some(std::mem::replace(&mut body, mpsc::channel(1).1)));
        let answer = move |request: Request<TrackedRequestBody>| {
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
        Self { parts, ..Self::by(ShutdownControl::new(watch::channel(false).1, false), tls, None, answer) }
    }

    /// By other means.
    fn by<A, F, B>(exit: ShutdownControl, tls: Option<Tls>, fast_path: Option<Box<WireFastPath>>, answer: A) -> Self
    where
        A: Fn(Request<TrackedRequestBody>) -> F + Send + Unpin + 'static,
        F: Future<Output = Response<B>> + Send + 'static,
        B: Body<Data = Bytes> + Unpin + Send + 'static,
        B::Error: Into<BoxError>,
    {
        Self::with_room(BETWEEN, exit, tls, fast_path, answer)
    }

    /// The same with room for so many bytes on the way.
    fn with_room<A, F, B>(
        room: usize,
        exit: ShutdownControl,
        tls: Option<Tls>,
        fast_path: Option<Box<WireFastPath>>,
        answer: A,
    ) -> Self
    where
        A: Fn(Request<TrackedRequestBody>) -> F + Send + Unpin + 'static,
        F: Future<Output = Response<B>> + Send + 'static,
        B: Body<Data = Bytes> + Unpin + Send + 'static,
        B::Error: Into<BoxError>,
    {
        let (client, server) = duplex(room);
        let dropped = IntCounterVec::new(Opts::new("dropped", "By cause."), &["cause"]).unwrap();
        let (half_close, shutdown_timeout) = (HALF_CLOSE, Duration::ZERO);
        let bounds = ServeLimits { terms: TERMS, buffer: 64 * 1024, half_close, shutdown_timeout };
        let serving = Serving {
            bounds,
            http2: true,
            tls,
            dropped: Some(dropped.clone()),
            drain: exit.draining(),
            shutdown: exit.shutdown(),
        };
        let registry = Registry::new(MINIMUM);
        let open = registry.add(OpenConnection::new(Account::open(&Budget::new(1 << 20), None), Arc::default()));
        let serving = tokio::spawn(async move { serving.serve(server, Arc::clone(&open), fast_path, answer).await });
        let (began, parts) = (Clock::System.timer_now(), mpsc::channel(1).0);
        Self { client: Some(client), serving, began, dropped, exit, registry, parts }
    }

    fn client(&mut self) -> &mut DuplexStream {
        self.client.as_mut().unwrap()
    }

    async fn write(&mut self, text: &str) {
        self.client().write_all(text.as_bytes()).await.unwrap();
    }

    /// Reads until the answer to `/small` has come.
    async fn read_small(&mut self) {
        let mut answer = Vec::new();
        // Of unknown length, and so in chunks.
        while !answer.ends_with(b"small\r\n0\r\n\r\n") {
            assert!(self.client().read_buf(&mut answer).await.unwrap() > 0, "{}", String::from_utf8_lossy(&answer));
        }
    }

    /// Speaks HTTP/2 from here on; whoever drives the connection is to be dropped to stop it.
    async fn http2(&mut self) -> (SendRequest<Bytes>, JoinHandle<Result<(), h2::Error>>) {
        // Room for others when one stream has all of its own.
        let mut builder = h2::client::Builder::new();
        let builder = builder.initial_connection_window_size(1 << 20);
        let (sender, connection) = builder.handshake(self.client.take().unwrap()).await.unwrap();
        (sender, tokio::spawn(connection))
    }

    /// The second in which it has ended, counted from its beginning, and the causes that were counted.
    async fn ended(&mut self) -> (u64, Vec<(&'static str, u64)>) {
        timeout(Duration::from_secs(100_000), &mut self.serving).await.expect("it goes on").unwrap();
        (self.seconds(), self.causes())
    }

    fn seconds(&self) -> u64 {
        // To the nearest: timers have a granularity.
        (Clock::System.timer_now() - self.began + Duration::from_millis(500)).as_secs()
    }

    fn causes(&self) -> Vec<(&'static str, u64)> {
        let all = [
            "header-timeout",
            "keepalive-timeout",
            "write-timeout",
            "half-close",
            "resets",
            "shutdown-timeout",
            "handshake",
            "shed",
        ];
        let counted = all.map(|cause| (cause, self.dropped.with_label_values(&[cause]).get()));
        counted.into_iter().filter(|&(_, count)| count > 0).collect()
    }
}

/// Reads on, to the error.
async fn while_it_comes(mut body: h2::RecvStream) -> h2::Error {
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
async fn a_client_that_says_nothing_has_as_long_as_for_a_head() {
    for begun in ["", "G", "GET /small HTTP/1.1\r\nhost: x\r\n", "PRI * HTT", "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"] {
        let mut served = Served::new();
        sleep(Duration::from_secs(4)).await;
        served.write(begun).await;
        assert_eq!(served.ended().await, (10, vec![("header-timeout", 1)]), "{begun:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn bytes_that_keep_coming_are_no_head() {
    let mut served = Served::new();
    served.write("GET /small HTTP/1.1\r\n").await;
    for _ in 0..9 {
        sleep(Duration::from_secs(1)).await;
        served.write("a: b\r\n").await;
    }
    assert_eq!(served.ended().await, (10, vec![("header-timeout", 1)]));
}

#[tokio::test(start_paused = true)]
async fn an_idle_connection_has_longer_and_its_next_head_has_not() {
    let mut served = Served::new();
    for _ in 0..3 {
        served.write("GET /small HTTP/1.1\r\nhost: x\r\n\r\n").await;
        served.read_small().await;
        sleep(Duration::from_secs(70)).await;
    }
    assert_eq!(served.seconds(), 210);
    served.write("GET").await;
    sleep(Duration::from_secs(3)).await;
    // Though from now on it is idle for longer than it may be.
    served.write(" /small").await;
    assert_eq!(served.ended().await, (220, vec![("header-timeout", 1)]));

    let mut served = Served::new();
    sleep(Duration::from_secs(5)).await;
    served.write("GET /small HTTP/1.1\r\nhost: x\r\n\r\n").await;
    served.read_small().await;
    assert_eq!(served.ended().await, (80, vec![("keepalive-timeout", 1)]));
}

#[tokio::test(start_paused = true)]
async fn a_request_under_way_is_not_idle() {
    for second in ["", "GET /small HTTP/1.1\r\n"] {
        let mut served = Served::new();
        served.write(&format!("GET /parts HTTP/1.1\r\nhost: x\r\n\r\n{second}")).await;
        sleep(Duration::from_secs(3_600)).await;
        assert_eq!(served.causes(), []);
        assert!(!served.serving.is_finished());
    }
}

#[tokio::test(start_paused = true)]
async fn an_answer_that_is_not_read_ends_the_connection() {
    let mut served = Served::new();
    served.write("GET /large HTTP/1.1\r\nhost: x\r\n\r\n").await;
    assert_eq!(served.ended().await, (30, vec![("write-timeout", 1)]));
}

#[tokio::test(start_paused = true)]
async fn an_answer_that_is_read_slowly_goes_on() {
    let mut served = Served::new();
    served.write("GET /large HTTP/1.1\r\nhost: x\r\n\r\n").await;
    let mut read = 0;
    while read < LARGE {
        sleep(Duration::from_secs(29)).await;
        read += served.client().read(&mut [0; BETWEEN]).await.unwrap();
    }
    assert_eq!(served.causes().iter().filter(|(cause, _)| *cause != "keepalive-timeout").count(), 0);
}

#[tokio::test(start_paused = true)]
async fn to_drain_is_to_finish_what_is_under_way() {
    for begun in ["", "PRI"] {
        let mut served = Served::new();
        served.write(begun).await;
        served.exit.drain();
        assert_eq!(served.ended().await, (0, vec![]), "{begun:?}");
    }
    let mut served = Served::new();
    let (sender, connection) = served.http2().await;
    let mut sender = sender.ready().await.unwrap();
    let mut answer = sender.send_request(get("/parts"), true).unwrap().0.await.unwrap().into_body();
    served.exit.drain();
    sleep(Duration::from_secs(60)).await;
    assert!(!served.serving.is_finished());
    // It is not told before, for it might close then.
    let mut sender = sender.ready().await.unwrap();
    assert_eq!(sender.send_request(get("/small"), true).unwrap().0.await.unwrap().status(), 200);
    served.exit.insist();
    sleep(Duration::from_secs(1)).await;
    assert!(sender.ready().await.is_err(), "nothing new is taken");
    let (parts, _) = mpsc::channel(1);
    std::mem::replace(&mut served.parts, parts).send(Ok(Bytes::from_static(b"last"))).await.unwrap();
    assert_eq!(answer.data().await.unwrap().unwrap(), "last");
    while let Some(more) = answer.data().await {
        assert!(more.unwrap().is_empty());
    }
    assert_eq!(served.ended().await, (61, vec![]));
    connection.await.unwrap().unwrap();
}
