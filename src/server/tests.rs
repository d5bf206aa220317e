//! How long a client may take for what, to the second: in memory, on a clock that moves when everyone waits.

#![allow(clippy::unwrap_used, clippy::expect_used)]

mod leaving;
mod short_way;
mod tls;

use std::future::Future;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use bytes::Bytes;
use h2::client::SendRequest;
use http::{Request, Response};
use http_body::{Body, Frame};
use prometheus::{IntCounterVec, Opts};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWriteExt, DuplexStream, duplex};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;
use tokio::time::{sleep, timeout};

use super::exchange::Upload;
use super::leaving::Exit;
use super::pulse::Terms;
use super::reload::Bounds;
use super::serve::Serving;
use super::shortcut::Shortcut;
use super::tls::Tls;
use crate::clock::Clock;
use crate::stream::BoxError;

const TERMS: Terms =
    Terms { head: Duration::from_secs(10), idle: Duration::from_secs(75), write: Duration::from_secs(30) };

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
    exit: Exit,
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
        let answer = move |request: Request<Upload>| {
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
        Self { parts, ..Self::by(Exit::new(watch::channel(false).1, false), tls, None, answer) }
    }

    /// By other means.
    fn by<A, F, B>(exit: Exit, tls: Option<Tls>, shortcut: Option<Shortcut>, answer: A) -> Self
    where
        A: Fn(Request<Upload>) -> F + Send + 'static,
        F: Future<Output = Response<B>> + Send + 'static,
        B: Body<Data = Bytes> + Unpin + Send + 'static,
        B::Error: Into<BoxError>,
    {
        let (client, server) = duplex(BETWEEN);
        let dropped = IntCounterVec::new(Opts::new("dropped", "By cause."), &["cause"]).unwrap();
        let bounds = Bounds { terms: TERMS, buffer: 64 * 1024, drain_timeout: Duration::ZERO };
        let serving = Serving {
            bounds,
            http2: true,
            tls,
            dropped: Some(dropped.clone()),
            drain: exit.draining(),
            leaving: exit.leaving(),
        };
        let serving = tokio::spawn(serving.serve(server, shortcut, answer));
        let (began, parts) = (Clock::System.now(), mpsc::channel(1).0);
        Self { client: Some(client), serving, began, dropped, exit, parts }
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
        (Clock::System.now() - self.began + Duration::from_millis(500)).as_secs()
    }

    fn causes(&self) -> Vec<(&'static str, u64)> {
        let all = ["head-timeout", "keepalive-timeout", "write-timeout", "resets", "farewell", "handshake"];
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
        assert_eq!(served.ended().await, (10, vec![("head-timeout", 1)]), "{begun:?}");
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
    assert_eq!(served.ended().await, (10, vec![("head-timeout", 1)]));
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
    assert_eq!(served.ended().await, (220, vec![("head-timeout", 1)]));

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
    assert_eq!(served.ended().await, (80, vec![("keepalive-timeout", 1), ("farewell", 1)]));
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
    assert_eq!(served.ended().await, (30, vec![("head-timeout", 1)]));
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
    assert!(sender.ready().await.is_err(), "nothing new is taken");
    let (parts, _) = mpsc::channel(1);
    std::mem::replace(&mut served.parts, parts).send(Ok(Bytes::from_static(b"last"))).await.unwrap();
    assert_eq!(answer.data().await.unwrap().unwrap(), "last");
    while let Some(more) = answer.data().await {
        assert!(more.unwrap().is_empty());
    }
    assert_eq!(served.ended().await, (60, vec![]));
    connection.await.unwrap().unwrap();
}
