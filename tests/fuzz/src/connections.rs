//! The bytes of an HTTP/1 connection. A gateway with the fast path must answer them as one without it does, and send upstream
//! the same requests. Both read them through hyper, as the server does, and have the same scripted upstream.
//!
//! The input has parts: a head, edits that make a second head of it, and further pieces. The client sends the head until the
//! fast path knows it, then the second one, and then the pieces.

#![no_main]

use std::cell::RefCell;
use std::collections::VecDeque;
use std::convert::Infallible;
use std::future::ready;
use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll, Waker};

use bytes::Bytes;
use http::header::VIA;
use http::request::Parts;
use http::{HeaderName, Request, Response};
use http_body_util::{BodyExt, Full};
use hyper::body::{Body, Frame, Incoming, SizeHint};
use hyper::rt::{Read, ReadBufCursor, Write};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use libfuzzer_sys::fuzz_target;
use tokio::runtime::{Builder, Runtime};
use tokio::task::yield_now;
use workspace_gateway::testing::budget::Charge;
use workspace_gateway::testing::catalogue::{Origin, Service};
use workspace_gateway::testing::clock::{Clock, ManualClock};
use workspace_gateway::testing::config::Config;
use workspace_gateway::testing::fast_path::{Responder, ResponderState};
use workspace_gateway::testing::gateway::Gateway;
use workspace_gateway::testing::random::Random;
use workspace_gateway::testing::request::key::RequestKey;
use workspace_gateway::testing::stream::{StreamBody, stream};
use workspace_gateway::testing::upstream::client::FetchContext;
use workspace_gateway::testing::upstream::{PendingResponse, Upstream, UpstreamError, UpstreamResponse};
use workspace_gateway_fuzz::{REGION, edit, join, split, write_seeds};

/// A head is remembered when it comes the second time and is a hit: the first one fetches the entry.
const UNTIL_KNOWN: usize = 3;
/// The gateways forget everything after so many inputs, before a bounded table is full. Each may drop something else of it.
const INPUTS: usize = 1_000;
/// How often each task may run after a piece. There are only a few steps to an answer.
const TURNS: usize = 6;
const LOCAL: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 8080);

/// Answers each list with the same entry, and each relayed request with what it has of the client.
struct Echo;

impl Upstream for Echo {
    fn fetch_list<'a>(
        &'a self,
        _: &'a RequestKey,
        _: FetchContext,
        _: Charge,
    ) -> PendingResponse<'a, UpstreamResponse> {
        let response = Response::builder().header("etag", "\"1\"").header("content-type", "application/json");
        let response = response.body(Bytes::from_static(br#"{"products":[]}"#)).unwrap();
        Box::pin(ready(Ok(UpstreamResponse::read(response))))
    }

    fn relay<'a>(
        &'a self,
        _: Service,
        _: &'a Origin,
        head: &'a Parts,
        body: StreamBody,
    ) -> PendingResponse<'a, Response<StreamBody>> {
        Box::pin(async move {
            let Ok(body) = body.collect().await else { return Err(UpstreamError::Timeout) };
            // These are the gateway's own, and differ.
            let is_own = |name: &HeaderName| ["traceparent", "x-request-id"].contains(&name.as_str()) || *name == VIA;
            let fields: Vec<_> = head.headers.iter().filter(|(name, _)| !is_own(name)).collect();
            let trailers = body.trailers().map(|trailers| format!("{trailers:?}"));
            let seen = format!("{} {} {fields:?} {:?} {trailers:?}", head.method, head.uri, body.to_bytes());
            Ok(Response::new(stream(Full::new(Bytes::from(seen)))))
        })
    }
}

/// One half of an exchange that has not ended.
struct Half(Arc<AtomicUsize>);

impl Half {
    fn begin(halves: &Arc<AtomicUsize>) -> Self {
        halves.fetch_add(1, Ordering::Relaxed);
        Self(Arc::clone(halves))
    }
}

impl Drop for Half {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// A body that ends a half.
struct Tracked<B>(B, #[expect(dead_code, reason = "dropped with the body")] Half);

impl<B: Body + Unpin> Body for Tracked<B> {
    type Data = B::Data;
    type Error = B::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<B::Data>, B::Error>>> {
        Pin::new(&mut self.0).poll_frame(context)
    }

    fn is_end_stream(&self) -> bool {
        self.0.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.0.size_hint()
    }
}

/// The connection between a client and hyper, as `server/wire.rs` has it.
struct Wire<'w> {
    pieces: &'w RefCell<VecDeque<Vec<u8>>>,
    written: &'w RefCell<Vec<u8>>,
    fast_path: Responder<Gateway>,
    halves: Arc<AtomicUsize>,
    hits: &'w AtomicUsize,
}

impl Read for Wire<'_> {
    fn poll_read(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        mut buffer: ReadBufCursor<'_>,
    ) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        loop {
            let Some(mut piece) = this.pieces.borrow_mut().pop_front() else { return Poll::Pending };
            if piece.len() > buffer.remaining() {
                let rest = piece.split_off(buffer.remaining());
                this.pieces.borrow_mut().push_front(rest);
            }
            let state = ResponderState { is_free: this.halves.load(Ordering::Relaxed) == 0, is_closing: false };
            if this.fast_path.take(&piece, state) {
                this.hits.fetch_add(1, Ordering::Relaxed);
                let is_complete = this.fast_path.poll_write(&mut *this.written.borrow_mut(), context);
                assert!(matches!(is_complete, Poll::Ready(Ok(true))));
                continue;
            }
            buffer.put_slice(&piece);
            return Poll::Ready(Ok(()));
        }
    }
}

impl Write for Wire<'_> {
    fn poll_write(self: Pin<&mut Self>, _: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        self.written.borrow_mut().extend_from_slice(bytes);
        Poll::Ready(Ok(bytes.len()))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

/// Sends the pieces of each step at once. Returns what the gateway writes until the end of the last step, and how many requests
/// the fast path has answered.
async fn exchange(gateway: &Arc<Gateway>, steps: &[Vec<Vec<u8>>]) -> (Vec<u8>, usize) {
    let connection = Arc::new(gateway.connection(LOCAL, IpAddr::V4(Ipv4Addr::LOCALHOST)));
    let (pieces, written, hits) = (RefCell::default(), RefCell::default(), AtomicUsize::new(0));
    let halves = Arc::new(AtomicUsize::new(0));
    let fast_path = Responder::new(Arc::clone(gateway), Arc::clone(&connection));
    let wire = Wire { pieces: &pieces, written: &written, fast_path, halves: Arc::clone(&halves), hits: &hits };
    let service = service_fn(|request: Request<Incoming>| {
        let (gateway, connection, halves) = (Arc::clone(gateway), Arc::clone(&connection), Arc::clone(&halves));
        // The response, and the rest of a request body.
        let response = Half::begin(&halves);
        let request = request.map(|body| Tracked(body, Half::begin(&halves)));
        async move { Ok::<_, Infallible>(gateway.handle(request, &connection).await.map(|body| Tracked(body, response))) }
    });
    let mut builder = http1::Builder::new();
    let mut http = pin!(builder.header_read_timeout(None).serve_connection(wire, service));
    let mut context = Context::from_waker(Waker::noop());
    'all: for step in steps {
        pieces.borrow_mut().extend(step.iter().filter(|piece| !piece.is_empty()).cloned());
        for _ in 0..TURNS {
            if http.as_mut().poll(&mut context).is_ready() {
                break 'all;
            }
            yield_now().await;
        }
    }
    let written = written.take();
    (written, hits.into_inner())
}

/// The lines of responses, without those that differ in any case. The order of fields means nothing here.
fn comparable(written: &[u8]) -> Vec<Vec<String>> {
    let text = String::from_utf8_lossy(written).to_lowercase();
    let is_compared = |line: &&str| !["date:", "x-request-id:"].iter().any(|name| line.starts_with(name));
    let head = |head: &str| {
        let mut lines: Vec<_> = head.split("\r\n").filter(is_compared).map(str::to_owned).collect();
        lines.sort();
        lines
    };
    text.split("\r\n\r\n").map(head).collect()
}

/// With the fast path, and without it.
struct Gateways {
    runtime: Runtime,
    both: [Arc<Gateway>; 2],
    inputs: usize,
}

impl Gateways {
    fn new() -> Self {
        let runtime = Builder::new_current_thread().enable_time().start_paused(true).build().unwrap();
        let both = [true, false].map(|is_on| {
            let config = format!("{REGION}\n[listen]\nfast_path = {is_on}");
            let config = Config::from_layers("f", &config, &[]).unwrap();
            let _entered = runtime.enter();
            let clock = Clock::Manual(ManualClock::default());
            Gateway::with_upstream(Arc::new(Echo), &config, clock, Random::seeded([1; 32])).unwrap()
        });
        Self { runtime, both, inputs: 0 }
    }

    fn compare(&self, steps: &[Vec<Vec<u8>>]) -> usize {
        let [(fast, hits), (full, none)] =
            [0, 1].map(|place| self.runtime.block_on(exchange(&self.both[place], steps)));
        assert_eq!((comparable(&fast), 0), (comparable(&full), none));
        hits
    }
}

thread_local! {
    static GATEWAYS: RefCell<Gateways> = RefCell::new(Gateways::new());
}

const KNOWN: &str = "GET /v2/p/products?limit=5 HTTP/1.1\r\nhost: h\r\nx-auth-token: t\r\n";

fn seeds() -> Vec<(&'static str, Vec<u8>)> {
    let known = format!("{KNOWN}\r\n").into_bytes();
    let is_hit = GATEWAYS.with_borrow(|gateways| gateways.compare(&vec![vec![known.clone()]; UNTIL_KNOWN]));
    assert_eq!(is_hit, 1, "the fast path answers the last one");
    let head = |lines: &str| format!("{KNOWN}{lines}\r\n").into_bytes();
    let post = b"POST /v2/p/x HTTP/1.1\r\nhost: h\r\ncontent-length: 40\r\n\r\n".to_vec();
    let chunked = b"POST /v2/p/x HTTP/1.1\r\nhost: h\r\ntransfer-encoding: chunked\r\n\r\n3\r\n".to_vec();
    let same = || vec![0; 4];
    // What comes next is the rest of a field.
    let part = [&known[..], b"GET /v2/p/x HTTP/1.1\r\nhost: h\r\nx-any: "].concat();
    vec![
        ("known", join(&[known.clone(), Vec::new()])),
        ("condition", join(&[head("if-none-match: \"1\"\r\n"), vec![1, 85, 0, 1], known.clone()])),
        ("upload", join(&[known.clone(), Vec::new(), post, known[..40].to_vec(), known.clone()])),
        ("chunked", join(&[known.clone(), same(), chunked, known.clone(), b"\r\n0\r\n\r\n".to_vec(), known.clone()])),
        ("pipelined", join(&[known.clone(), Vec::new(), [&known[..], &known].concat(), known.clone()])),
        ("pipelined-part", join(&[known.clone(), Vec::new(), part, known.clone()])),
        ("blank-lines", join(&[known.clone(), Vec::new(), b"\r\n\r\n".to_vec(), known.clone(), known])),
    ]
}

fuzz_target!(init: write_seeds(seeds), |input: &[u8]| {
    let [known, script, ref pieces @ ..] = split(input)[..] else { return };
    let mut sent = known.to_vec();
    edit(&mut sent, script);
    let mut steps = vec![vec![known.to_vec()]; UNTIL_KNOWN];
    steps.push(vec![sent]);
    let pieces: Vec<Vec<u8>> = pieces.iter().map(|piece| piece.to_vec()).collect();
    // An edit has four bytes. If there is one more, all pieces are there at once.
    match script.len() % 4 {
        0 => steps.extend(pieces.into_iter().map(|piece| vec![piece])),
        _ => steps.push(pieces),
    }
    GATEWAYS.with_borrow_mut(|gateways| {
        gateways.inputs += 1;
        if gateways.inputs.is_multiple_of(INPUTS) {
            *gateways = Gateways::new();
        }
        gateways.compare(&steps);
    });
});
