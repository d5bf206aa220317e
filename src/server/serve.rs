//! Serving one connection: which version of HTTP it speaks, within which bounds, and when it has to end.

use std::future::{Future, poll_fn};
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use bytes::Bytes;
use http::header::CONNECTION;
use http::{HeaderValue, Request, Response};
use http_body::Body;
use hyper::body::Incoming;
use hyper::server::conn::{http1, http2};
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use prometheus::IntCounterVec;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::watch;
use tokio::time::{sleep, sleep_until};

use super::activity::{ConnectionTimeouts, EndCause, TimeoutAction};
use super::exchange::{Streams, TrackedRequestBody, exchange};
use super::memory::{self, HeadMemory, SendBuffer, SocketMemory};
use super::registry::OpenConnection;
use super::reload::ServeLimits;
use super::renew::{Closing, Either, Renewing};
use super::shutdown::{ListenerShutdown, draining};
use super::tls::{HandshakeError, Tls};
use super::transport::{Socket, Transport};
use super::wire::Wire;
use super::wire::WireFastPath;
use crate::clock::Clock;
use crate::net::Reset;
use crate::stream::BoxError;

/// How many requests may be under way on one connection in HTTP/2. What each may hold is bounded: its head by
/// `buffer`, its answer by a piece or two, its upload by the window.
const MAX_STREAMS: u32 = 128;

/// How much of one upload may come before it is read. The sum has a bound of its own, below what the streams could
/// take together.
const STREAM_WINDOW: u32 = 64 * 1024;
const CONNECTION_WINDOW: u32 = 1024 * 1024;

/// How long a client of HTTP/2 may take to go when another connection needs its place. Short, for that one waits: a round
/// trip for the last PING, and some more.
const SHED_CLOSE_TIMEOUT: Duration = Duration::from_secs(1);

/// What serves a connection apart from the connection.
#[derive(Clone)]
pub(super) struct Serving {
    pub(super) bounds: ServeLimits,
    /// Whether HTTP/2 is spoken besides HTTP/1.
    pub(super) http2: bool,
    /// What the client has to speak, unless it is plain text.
    pub(super) tls: Option<Tls>,
    /// Counts the connections, and streams, that didn't keep to the terms.
    pub(super) dropped: Option<IntCounterVec>,
    /// Says when it is time to end in good order.
    pub(super) drain: watch::Receiver<bool>,
    /// Says when that is near.
    pub(super) shutdown: ListenerShutdown,
}

impl Serving {
    /// Counts a connection that is closed for another before it was served.
    pub(super) fn count_shed(&self) {
        if let Some(dropped) = &self.dropped {
            dropped.with_label_values(&[EndCause::Shed.into_str()]).inc();
        }
    }

    /// Serves a connection to its end. What opens it is boxed, and made outside of the future that this returns: the future is
    /// there as long as the connection, and would have the size of both.
    pub(super) fn serve<IO, A, F, B>(
        mut self,
        io: IO,
        open: Arc<OpenConnection>,
        fast_path: Option<Box<WireFastPath>>,
        answer: A,
    ) -> impl Future<Output = ()> + Send + use<IO, A, F, B>
    where
        IO: AsyncRead + AsyncWrite + Reset + SendBuffer + Unpin + Send + 'static,
        A: Fn(Request<TrackedRequestBody>) -> F + Send + Unpin + 'static,
        F: Future<Output = Response<B>> + Send + 'static,
        B: Body<Data = Bytes> + Unpin + Send + 'static,
        B::Error: Into<BoxError>,
    {
        let opening = Box::pin(self.opening(io, &open, fast_path));
        async move {
            let ended = self.run(opening, &open, answer).await;
            self.note(&ended);
        }
    }

    /// Notes why a connection has ended.
    fn note(&self, ended: &Result<(), Ending>) {
        let count = |cause| {
            if let Some(dropped) = &self.dropped {
                dropped.with_label_values(&[cause]).inc();
            }
        };
        match ended {
            Ok(()) => {}
            Err(Ending::Dropped(cause)) => {
                tracing::debug!(cause = cause.into_str(), "connection ended by the gateway");
                count(cause.into_str());
            }
            // At no higher level: whoever can connect could fill the log.
            Err(Ending::Handshake(error)) => {
                tracing::debug!(%error, "TLS handshake failed");
                count(HANDSHAKE);
            }
            // A client's doing as a rule: it hung up, or spoke no HTTP.
            Err(Ending::Broken(error)) => tracing::debug!(%error, "connection ended early"),
        }
    }

    /// TLS, if there is to be, and the first bytes, which tell the version of HTTP.
    fn opening<IO>(
        &mut self,
        io: IO,
        open: &OpenConnection,
        fast_path: Option<Box<WireFastPath>>,
    ) -> impl Future<Output = Result<Wire<Transport<IO>>, Ending>> + Send + use<IO>
    where
        IO: AsyncRead + AsyncWrite + Reset + SendBuffer + Unpin + Send + 'static,
    {
        let (activity, shutdown) = (Arc::clone(open.activity()), self.shutdown.clone());
        let half_close = self.bounds.half_close;
        let memory = SocketMemory::new(open.account().clone());
        let (socket, tls) = (Socket::new(io, Arc::clone(&activity), memory), self.tls.take());
        let head = HeadMemory::new(open.account().clone());
        if tls.is_some() {
            open.takes(memory::TLS);
        }
        async move {
            let transport = match tls {
                None => Transport::Plain(socket),
                // Apart, so that only connections that come by here have its size.
                Some(tls) => Transport::Tls(Box::pin(tls.accept(socket)).await?),
            };
            let negotiated = transport.negotiated_http2();
            let wire = Wire::of(transport, fast_path, &shutdown, head, half_close, activity)
                .await
                .map_err(|error| Ending::Broken(error.into()))?;
            // RFC 7301 §3.1, RFC 9113 §3.2.
            if negotiated.is_some_and(|http2| http2 != wire.is_http2()) {
                let why = "the client speaks another protocol than it has negotiated";
                return Err(Ending::Handshake(std::io::Error::other(why)));
            }
            Ok(wire)
        }
    }

    async fn run<IO, A, F, B>(
        &mut self,
        opening: Pin<Box<impl Future<Output = Result<Wire<IO>, Ending>>>>,
        open: &OpenConnection,
        answer: A,
    ) -> Result<(), Ending>
    where
        IO: AsyncRead + AsyncWrite + Reset + Unpin + Send + 'static,
        A: Fn(Request<TrackedRequestBody>) -> F + Send + Unpin + 'static,
        F: Future<Output = Response<B>> + Send + 'static,
        B: Body<Data = Bytes> + Unpin + Send + 'static,
        B::Error: Into<BoxError>,
    {
        let wire = tokio::select! {
            // In this order: what has come already is looked at, even if it is time to go.
            biased;
            wire = opening => wire?,
            () = sleep(self.bounds.terms.head) => return Err(Ending::Dropped(EndCause::Head)),
            () = open.told() => return Err(Ending::Dropped(EndCause::Shed)),
            () = draining(&mut self.drain) => return Ok(()),
        };
        let connection = self.speak(wire, open, answer);
        self.supervise(connection, open).await
    }

    /// Speaks the version of HTTP that the client has begun with.
    fn speak<IO, A, F, B>(
        &self,
        wire: Wire<IO>,
        open: &OpenConnection,
        answer: A,
    ) -> Either<impl Closing + use<IO, A, F, B>, impl Closing + use<IO, A, F, B>>
    where
        IO: AsyncRead + AsyncWrite + Reset + Unpin + Send + 'static,
        A: Fn(Request<TrackedRequestBody>) -> F + Send + Unpin + 'static,
        F: Future<Output = Response<B>> + Send + 'static,
        B: Body<Data = Bytes> + Unpin + Send + 'static,
        B::Error: Into<BoxError>,
    {
        if wire.is_tls() {
            tracing::debug!("the client speaks TLS, and plain text is spoken here");
        }
        let is_http2 = self.http2 && wire.is_http2();
        if is_http2 {
            open.takes(memory::HTTP2);
        }
        let activity = open.activity();
        let service = service_fn({
            let (activity, shutdown) = (Arc::clone(activity), self.shutdown.clone());
            let uploads = wire.uploads().filter(|_| is_http2);
            move |request: Request<Incoming>| {
                let (answered, shutdown) = (exchange(&activity, uploads.as_ref(), request, &answer), shutdown.clone());
                async move {
                    let mut answered = answered.await;
                    if let Ok(answer) = &mut answered
                        && !is_http2
                        && shutdown.is_begun()
                    {
                        answer.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
                    }
                    answered
                }
            }
        });
        if is_http2 {
            let (write, dropped) = (self.bounds.terms.write, self.dropped.clone());
            let streams = Streams { write, dropped, activity: Arc::clone(activity) };
            Either::Http2(Box::pin(self.http2(streams).serve_connection(TokioIo::new(wire), service)))
        } else {
            Either::Http1(Box::pin(Renewing::new(self.http1(), wire, service, Arc::clone(activity))))
        }
    }

    fn http1(&self) -> http1::Builder {
        let mut builder = http1::Builder::new();
        // hyper's own timer for heads is off: it would also run while nothing is asked.
        builder.header_read_timeout(None).max_buf_size(self.bounds.buffer);
        builder
    }

    fn http2(&self, streams: Streams) -> http2::Builder<Streams> {
        let mut builder = http2::Builder::new(streams);
        builder
            .max_concurrent_streams(MAX_STREAMS)
            // 16 KiB by default, which a token alone may have. The client is told.
            .max_header_list_size(u32::try_from(self.bounds.buffer).unwrap_or(u32::MAX))
            .initial_stream_window_size(STREAM_WINDOW)
            .initial_connection_window_size(CONNECTION_WINDOW)
            .max_frame_size(16 * 1024)
            .max_send_buf_size(64 * 1024)
            // Requests taken back before they were looked at: 20 by default, which a client that gives up all that it
            // has under way at once would exceed.
            .max_pending_accept_reset_streams(MAX_STREAMS as usize)
            // Streams reset for the client's own mistakes: 1024 by default.
            .max_local_error_reset_streams(MAX_STREAMS as usize);
        // Not pinged: a client that is gone has no request under way, or doesn't read its answer, and there is a limit
        // to both.
        builder
    }

    /// Lets a connection go on until it is over, or has to be.
    async fn supervise(
        &mut self,
        mut connection: Either<impl Closing, impl Closing>,
        open: &OpenConnection,
    ) -> Result<(), Ending> {
        let is_http2 = matches!(connection, Either::Http2(_));
        let activity = open.activity();
        let mut terms = self.bounds.terms;
        let mut drain = self.drain.clone();
        let mut insisting = self.shutdown.clone();
        let draining = async {
            draining(&mut drain).await;
            // Who has begun to ask is answered first. It is polled with the connection, and so whenever more has come or was
            // written.
            let is_waited_for = || if is_http2 { !activity.is_quiet() } else { activity.is_in_head() };
            let answered = poll_fn(|_| if is_waited_for() { Poll::Pending } else { Poll::Ready(()) });
            tokio::select! {
                () = answered => {}
                () = insisting.insists(), if is_http2 => {}
            }
        };
        let mut draining = pin!(draining);
        let mut shutdown = pin!(self.shutdown.begun());
        let mut is_shutting_down = false;
        let mut timer = pin!(sleep_until(activity.first(&terms)));
        let mut closing = None;
        loop {
            let ended_for = tokio::select! {
                biased;
                ended = poll_fn(|context| {
                    activity.is_polled();
                    connection.poll(context)
                }) => return ended.map_err(|error| {
                    activity.cause().map_or_else(|| Ending::Broken(error.into()), Ending::Dropped)
                }),
                () = draining.as_mut(), if closing.is_none() => None,
                // The connection has been polled, and so what has come by now is known.
                () = open.told() => {
                    if !open.is_still_chosen() {
                        continue;
                    }
                    // Whoever is in a head, or does not read, would not notice that it ends.
                    if activity.is_in_head() || !activity.activity().is_idle() {
                        return Err(Ending::Dropped(EndCause::Shed));
                    }
                    terms = ConnectionTimeouts { head: SHED_CLOSE_TIMEOUT, write: terms.write.min(SHED_CLOSE_TIMEOUT), ..terms };
                    Some(EndCause::Shed)
                }
                // In HTTP/2 that is told by a frame of its own (`http2.rs`): the connection is only to be looked at.
                () = shutdown.as_mut(), if is_http2 && !is_shutting_down => {
                    is_shutting_down = true;
                    continue;
                }
                () = timer.as_mut() => match activity.judge(&terms, is_http2, closing) {
                    TimeoutAction::Wait(until) => {
                        timer.as_mut().reset(until);
                        continue;
                    }
                    TimeoutAction::Drop(cause) => return Err(Ending::Dropped(cause)),
                    TimeoutAction::Idle => Some(EndCause::Idle),
                },
            };
            if let (Some(cause), Some(dropped)) = (ended_for, &self.dropped) {
                dropped.with_label_values(&[cause.into_str()]).inc();
            }
            connection.graceful_shutdown();
            let now = Clock::System.timer_now();
            closing = Some(now);
            timer.as_mut().reset(now);
        }
    }
}

/// Counted like the causes that there are once a connection stands.
const HANDSHAKE: &str = "handshake";

/// Why a connection has ended before its client wished.
enum Ending {
    Dropped(EndCause),
    Handshake(std::io::Error),
    Broken(BoxError),
}

impl From<HandshakeError> for Ending {
    fn from(failed: HandshakeError) -> Self {
        match failed {
            HandshakeError::Silent(error) => Self::Broken(error.into()),
            HandshakeError::Handshake(error) => Self::Handshake(error),
        }
    }
}
