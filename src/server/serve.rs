//! Serves one connection: detects its HTTP version, applies size limits, and decides when it ends. How a request is
//! answered is not decided here.

use std::future::{Future, poll_fn};
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use http::header::{CONNECTION, DATE, Entry};
use http::{HeaderValue, Request};
use httpdate::fmt_http_date;
use hyper::body::Incoming;
use hyper::server::conn::{http1, http2};
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use prometheus::IntCounterVec;
use tokio::sync::watch;
use tokio::time::{sleep, sleep_until};
use tokio_util::either::Either;

use super::activity::{ConnectionTimeouts, EndCause, TimeoutAction};
use super::exchange::{RequestHandler, Streams, exchange};
use super::memory::{self, HeadMemory, SendBuffer, SocketMemory};
use super::registry::OpenConnection;
use super::reload::ServeLimits;
use super::renew::{AnyHttpConnection, Http1Connection, HttpConnection};
use super::shutdown::{ListenerShutdown, draining};
use super::tls::{HandshakeError, Tls};
use super::transport::{ClientIo, Socket, Transport, negotiated_http2};
use super::wire::{Wire, WireFastPath};
use crate::clock::Clock;
use crate::stream::BoxError;

/// The maximum number of concurrent HTTP/2 streams on one connection. What each may hold is bounded: its head by
/// `buffer`, its response by one or two pieces, its upload by the window.
const MAX_STREAMS: u32 = 128;

/// HTTP/2 flow-control windows in bytes. The window of the connection is smaller than the sum of the windows of its
/// streams.
const STREAM_WINDOW: u32 = 64 * 1024;
const CONNECTION_WINDOW: u32 = 1024 * 1024;

/// How long an HTTP/2 client may take to close when another connection needs its place. The other one waits, so this is
/// short: one round trip for the last PING, and a margin.
const SHED_CLOSE_TIMEOUT: Duration = Duration::from_secs(1);

/// What is needed to serve a connection, besides the connection itself.
#[derive(Clone)]
pub(super) struct Serving {
    pub(super) limits: ServeLimits,
    /// Whether HTTP/2 is offered besides HTTP/1.
    pub(super) http2: bool,
    /// `None` on a plaintext listener.
    pub(super) tls: Option<Tls>,
    /// Counts connections and streams that the gateway has ended, by cause.
    pub(super) connections_ended: Option<IntCounterVec>,
    /// Becomes true when connections have to end gracefully.
    pub(super) drain: watch::Receiver<bool>,
    /// The stage of the listener's shutdown.
    pub(super) shutdown: ListenerShutdown,
    /// For `Date`.
    pub(super) clock: Clock,
}

impl Serving {
    /// Counts a connection that was closed for another one before it was served.
    pub(super) fn count_shed(&self) {
        if let Some(connections_ended) = &self.connections_ended {
            connections_ended.with_label_values(&[EndCause::Shed.into_str()]).inc();
        }
    }

    /// Serves a connection until it ends. Opening is boxed and created outside of the returned future. That future
    /// lives as long as the connection and would otherwise have the size of both.
    pub(super) fn serve<IO: ClientIo + SendBuffer, H: RequestHandler>(
        mut self,
        io: IO,
        open: Arc<OpenConnection>,
        fast_path: Option<Box<WireFastPath>>,
        handler: H,
    ) -> impl Future<Output = ()> + Send + use<IO, H> {
        let opening = Box::pin(self.opening(io, &open, fast_path));
        async move {
            let ended = self.run(opening, &open, handler).await;
            self.record_end(&ended);
        }
    }

    /// Counts and logs why a connection has ended.
    fn record_end(&self, ended: &Result<(), Ending>) {
        let count = |cause| {
            if let Some(connections_ended) = &self.connections_ended {
                connections_ended.with_label_values(&[cause]).inc();
            }
        };
        match ended {
            Ok(()) => {}
            Err(Ending::Closed(cause)) => {
                tracing::debug!(cause = cause.into_str(), "connection ended by the gateway");
                count(cause.into_str());
            }
            // At debug level only: anyone who can connect could fill the log.
            Err(Ending::Handshake(error)) => {
                tracing::debug!(%error, "TLS handshake failed");
                count(HANDSHAKE);
            }
            // Usually the client is the cause: it disconnected, or did not speak HTTP.
            Err(Ending::Broken(error)) => tracing::debug!(%error, "connection ended early"),
        }
    }

    /// Does the TLS handshake, if there is one, and reads the first bytes to detect the HTTP version.
    fn opening<IO: ClientIo + SendBuffer>(
        &mut self,
        io: IO,
        open: &OpenConnection,
        fast_path: Option<Box<WireFastPath>>,
    ) -> impl Future<Output = Result<Wire<Transport<IO>>, Ending>> + Send + use<IO> {
        let (activity, shutdown) = (Arc::clone(open.activity()), self.shutdown.clone());
        let half_close = self.limits.half_close;
        let memory = SocketMemory::new(open.account().clone());
        let (socket, tls) = (Socket::new(io, Arc::clone(&activity), memory), self.tls.take());
        let head = HeadMemory::new(open.account().clone());
        if tls.is_some() {
            open.add_charge(memory::TLS);
        }
        async move {
            let transport = match tls {
                None => Either::Left(socket),
                // Boxed, so that plaintext connections do not have its size.
                Some(tls) => Either::Right(Box::pin(tls.accept(socket)).await?),
            };
            let negotiated = negotiated_http2(&transport);
            let wire = Wire::detect(transport, fast_path, &shutdown, head, half_close, activity)
                .await
                .map_err(|error| Ending::Broken(error.into()))?;
            // RFC 7301 §3.1, RFC 9113 §3.2.
            if negotiated.is_some_and(|http2| http2 != wire.is_http2()) {
                let why = "the HTTP version of the client differs from the one negotiated by ALPN";
                return Err(Ending::Handshake(std::io::Error::other(why)));
            }
            Ok(wire)
        }
    }

    async fn run<IO: ClientIo>(
        &mut self,
        opening: Pin<Box<impl Future<Output = Result<Wire<IO>, Ending>>>>,
        open: &OpenConnection,
        handler: impl RequestHandler,
    ) -> Result<(), Ending> {
        let wire = tokio::select! {
            // In this order: bytes that have already arrived are read even during shutdown.
            biased;
            wire = opening => wire?,
            () = sleep(self.limits.timeouts.head) => return Err(Ending::Closed(EndCause::Head)),
            () = open.close_requested() => return Err(Ending::Closed(EndCause::Shed)),
            () = draining(&mut self.drain) => return Ok(()),
        };
        let connection = self.start_http(wire, open, handler);
        self.supervise(connection, open).await
    }

    /// Starts to serve the HTTP version that the client uses.
    fn start_http<IO: ClientIo, H: RequestHandler>(
        &self,
        wire: Wire<IO>,
        open: &OpenConnection,
        handler: H,
    ) -> AnyHttpConnection<impl HttpConnection + use<IO, H>, impl HttpConnection + use<IO, H>> {
        if wire.is_tls() {
            tracing::debug!("TLS client on a plaintext listener");
        }
        let is_http2 = self.http2 && wire.is_http2();
        if is_http2 {
            open.add_charge(memory::HTTP2);
        }
        let activity = open.activity();
        let service = service_fn({
            let (activity, shutdown, clock) = (Arc::clone(activity), self.shutdown.clone(), self.clock.clone());
            let uploads = wire.uploads().filter(|_| is_http2);
            move |request: Request<Incoming>| {
                let exchange = exchange(&activity, uploads.as_ref(), request, &handler);
                let (shutdown, clock) = (shutdown.clone(), clock.clone());
                async move {
                    let mut result = exchange.await;
                    // Otherwise hyper adds it, by the machine's clock (RFC 9110 §6.6.1).
                    if let Ok(response) = &mut result
                        && let Entry::Vacant(date) = response.headers_mut().entry(DATE)
                        && let Ok(now) = HeaderValue::try_from(fmt_http_date(clock.date()))
                    {
                        date.insert(now);
                    }
                    if let Ok(response) = &mut result
                        && !is_http2
                        && shutdown.has_started()
                    {
                        response.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
                    }
                    result
                }
            }
        });
        if is_http2 {
            let (write, connections_ended) = (self.limits.timeouts.write, self.connections_ended.clone());
            let streams = Streams { write, connections_ended, activity: Arc::clone(activity) };
            Either::Right(Box::pin(self.http2(streams).serve_connection(TokioIo::new(wire), service)))
        } else {
            Either::Left(Box::pin(Http1Connection::new(self.http1(), wire, service, Arc::clone(activity))))
        }
    }

    fn http1(&self) -> http1::Builder {
        let mut builder = http1::Builder::new();
        // hyper's own header timeout is off: it would also run on idle connections.
        builder.header_read_timeout(None).max_buf_size(self.limits.buffer);
        builder
    }

    fn http2(&self, streams: Streams) -> http2::Builder<Streams> {
        let mut builder = http2::Builder::new(streams);
        builder
            .max_concurrent_streams(MAX_STREAMS)
            // The default of 16 KiB can be exceeded by one token. The client learns the limit from SETTINGS.
            .max_header_list_size(u32::try_from(self.limits.buffer).unwrap_or(u32::MAX))
            .initial_stream_window_size(STREAM_WINDOW)
            .initial_connection_window_size(CONNECTION_WINDOW)
            .max_frame_size(16 * 1024)
            .max_send_buf_size(64 * 1024)
            // Limits pending streams that the client has reset. The default of 20 would be exceeded by a client that
            // cancels all its requests at once.
            .max_pending_accept_reset_streams(MAX_STREAMS as usize)
            // Limits streams reset because of the client's own errors. The default is 1,024.
            .max_local_error_reset_streams(MAX_STREAMS as usize);
        // No keep-alive PINGs: a client that is gone has no request in flight or does not read its response, and there
        // is a timeout for both.
        builder
    }

    /// Drives a connection until it ends or has to end.
    async fn supervise(
        &mut self,
        mut connection: AnyHttpConnection<impl HttpConnection, impl HttpConnection>,
        open: &OpenConnection,
    ) -> Result<(), Ending> {
        let is_http2 = matches!(connection, Either::Right(_));
        let activity = open.activity();
        let mut timeouts = self.limits.timeouts;
        let mut drain = self.drain.clone();
        let mut goaway = self.shutdown.clone();
        let draining = async {
            draining(&mut drain).await;
            // A request that has started to arrive is answered first. This is polled together with the connection, so
            // after every read and write.
            let is_awaited = || if is_http2 { !activity.is_between_requests() } else { activity.is_in_head() };
            let answered = poll_fn(|_| if is_awaited() { Poll::Pending } else { Poll::Ready(()) });
            tokio::select! {
                biased;
                () = answered => {}
                () = goaway.goaway_forced(), if is_http2 => {}
            }
        };
        let mut draining = pin!(draining);
        let mut shutdown = pin!(self.shutdown.started());
        let mut is_shutting_down = false;
        let mut timer = pin!(sleep_until(activity.first_deadline(&timeouts)));
        let mut closing = None;
        loop {
            let cause = tokio::select! {
                biased;
                ended = poll_fn(|context| {
                    activity.count_poll();
                    Pin::new(&mut connection).poll(context)
                }) => return ended.map_err(|error| {
                    activity.end_cause().map_or_else(|| Ending::Broken(error.into()), Ending::Closed)
                }),
                () = draining.as_mut(), if closing.is_none() => None,
                // The connection was polled before, so bytes that arrived until now are known.
                () = open.close_requested() => {
                    if !open.is_still_chosen() {
                        continue;
                    }
                    // A client that is sending a head or does not read would not notice a graceful close.
                    if activity.is_in_head() || !activity.state().is_idle() {
                        return Err(Ending::Closed(EndCause::Shed));
                    }
                    let write = timeouts.write.min(SHED_CLOSE_TIMEOUT);
                    timeouts = ConnectionTimeouts { head: SHED_CLOSE_TIMEOUT, write, ..timeouts };
                    Some(EndCause::Shed)
                }
                // In HTTP/2, the connection only has to be polled again: `http2.rs` then sends GOAWAY.
                () = shutdown.as_mut(), if is_http2 && !is_shutting_down => {
                    is_shutting_down = true;
                    continue;
                }
                () = timer.as_mut() => match activity.check_timeouts(&timeouts, is_http2, closing) {
                    TimeoutAction::Wait(until) => {
                        timer.as_mut().reset(until);
                        continue;
                    }
                    TimeoutAction::Close(cause) => return Err(Ending::Closed(cause)),
                    TimeoutAction::CloseGracefully => Some(EndCause::Idle),
                },
            };
            if let (Some(cause), Some(connections_ended)) = (cause, &self.connections_ended) {
                connections_ended.with_label_values(&[cause.into_str()]).inc();
            }
            Pin::new(&mut connection).graceful_shutdown();
            let now = Clock::System.timer_now();
            closing = Some(now);
            timer.as_mut().reset(now);
        }
    }
}

/// The label of failed TLS handshakes. The values of `EndCause` are for established connections.
const HANDSHAKE: &str = "handshake";

/// Why a connection has ended early.
enum Ending {
    Closed(EndCause),
    Handshake(std::io::Error),
    Broken(BoxError),
}

impl From<HandshakeError> for Ending {
    fn from(failed: HandshakeError) -> Self {
        match failed {
            HandshakeError::NoBytes(error) => Self::Broken(error.into()),
            HandshakeError::Failed(error) => Self::Handshake(error),
        }
    }
}
