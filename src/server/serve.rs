//! Serving one connection: which version of HTTP it speaks, within which bounds, and when it has to end.

use std::future::{Future, poll_fn};
use std::pin::pin;
use std::sync::Arc;
use std::task::Poll;

use bytes::Bytes;
use http::header::CONNECTION;
use http::{HeaderValue, Request, Response};
use http_body::Body;
use hyper::body::Incoming;
use hyper::server::conn::{http1, http2};
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use hyper_util::server::graceful::GracefulConnection;
use prometheus::IntCounterVec;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::watch;
use tokio::time::{sleep, sleep_until};

use super::exchange::{Streams, Upload, exchange};
use super::leaving::Leaving;
use super::pulse::{Cause, Pulse, Verdict};
use super::reload::Bounds;
use super::shortcut::Shortcut;
use super::tls::{Failed, Tls};
use super::transport::{Socket, Transport};
use super::wire::Wire;
use crate::clock::Clock;
use crate::stream::BoxError;

/// How many requests may be under way on one connection in HTTP/2. What each may hold is bounded: its head by
/// `buffer`, its answer by a piece or two, its upload by the window.
const MAX_STREAMS: u32 = 128;

/// How much of one upload may come before it is read. The sum has a bound of its own, below what the streams could
/// take together.
const STREAM_WINDOW: u32 = 64 * 1024;
const CONNECTION_WINDOW: u32 = 1024 * 1024;

/// What serves a connection apart from the connection.
#[derive(Clone)]
pub(super) struct Serving {
    pub(super) bounds: Bounds,
    /// Whether HTTP/2 is spoken besides HTTP/1.
    pub(super) http2: bool,
    /// What the client has to speak, unless it is plain text.
    pub(super) tls: Option<Tls>,
    /// Counts the connections, and streams, that didn't keep to the terms.
    pub(super) dropped: Option<IntCounterVec>,
    /// Says when it is time to end in good order.
    pub(super) drain: watch::Receiver<bool>,
    /// Says when that is near.
    pub(super) leaving: Leaving,
}

impl Serving {
    /// Serves a connection to its end.
    pub(super) async fn serve<IO, A, F, B>(mut self, io: IO, shortcut: Option<Shortcut>, answer: A)
    where
        IO: AsyncRead + AsyncWrite + Unpin + Send + 'static,
        A: Fn(Request<Upload>) -> F + Send + 'static,
        F: Future<Output = Response<B>> + Send + 'static,
        B: Body<Data = Bytes> + Unpin + Send + 'static,
        B::Error: Into<BoxError>,
    {
        let ended = self.run(io, shortcut, answer).await;
        match &ended {
            Ok(()) => {}
            Err(Ending::Dropped(cause)) => {
                tracing::debug!(cause = cause.as_str(), "connection ended by the gateway");
                if let Some(dropped) = &self.dropped {
                    dropped.with_label_values(&[cause.as_str()]).inc();
                }
            }
            // At no higher level: whoever can connect could fill the log.
            Err(Ending::Handshake(error)) => {
                tracing::debug!(%error, "TLS handshake failed");
                if let Some(dropped) = &self.dropped {
                    dropped.with_label_values(&[HANDSHAKE]).inc();
                }
            }
            // A client's doing as a rule: it hung up, or spoke no HTTP.
            Err(Ending::Broken(error)) => tracing::debug!(%error, "connection ended early"),
        }
    }

    async fn run<IO, A, F, B>(&mut self, io: IO, shortcut: Option<Shortcut>, answer: A) -> Result<(), Ending>
    where
        IO: AsyncRead + AsyncWrite + Unpin + Send + 'static,
        A: Fn(Request<Upload>) -> F + Send + 'static,
        F: Future<Output = Response<B>> + Send + 'static,
        B: Body<Data = Bytes> + Unpin + Send + 'static,
        B::Error: Into<BoxError>,
    {
        let pulse = Arc::new(Pulse::new());
        let (socket, tls) = (Socket::new(io, Arc::clone(&pulse)), self.tls.take());
        let opening = async {
            let transport = match tls {
                None => Transport::Plain(socket),
                // Apart, so that only connections that come by here have its size.
                Some(tls) => Transport::Tls(Box::pin(tls.accept(socket)).await?),
            };
            Wire::of(transport, shortcut, &self.leaving, Arc::clone(&pulse))
                .await
                .map_err(|error| Ending::Broken(error.into()))
        };
        let wire = tokio::select! {
            // In this order: what has come already is looked at, even if it is time to go.
            biased;
            wire = opening => wire?,
            () = sleep(self.bounds.terms.head) => return Err(Ending::Dropped(Cause::Head)),
            () = draining(&mut self.drain) => return Ok(()),
        };
        if wire.is_tls() {
            tracing::debug!("the client speaks TLS, and plain text is spoken here");
        }
        let is_http2 = self.http2 && wire.is_http2();
        let service = service_fn({
            let (pulse, leaving) = (Arc::clone(&pulse), self.leaving.clone());
            move |request: Request<Incoming>| {
                let (answered, leaving) = (exchange(&pulse, is_http2, request, &answer), leaving.clone());
                async move {
                    let mut answered = answered.await;
                    if let Ok(answer) = &mut answered
                        && !is_http2
                        && leaving.is_begun()
                    {
                        answer.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
                    }
                    answered
                }
            }
        });
        if is_http2 {
            let streams = Streams { write: self.bounds.terms.write, dropped: self.dropped.clone() };
            let connection = self.http2(streams).serve_connection(TokioIo::new(wire), service);
            self.supervise(connection, is_http2, &pulse).await
        } else {
            let connection = self.http1().serve_connection(TokioIo::new(wire), service);
            self.supervise(connection, is_http2, &pulse).await
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
    async fn supervise<C>(&mut self, connection: C, is_http2: bool, pulse: &Pulse) -> Result<(), Ending>
    where
        C: GracefulConnection,
        C::Error: Into<BoxError>,
    {
        let mut connection = pin!(connection);
        let mut drain = self.drain.clone();
        let draining = async {
            draining(&mut drain).await;
            // Who has begun to ask is answered first. It is polled with the connection, and so whenever more has come.
            poll_fn(|_| if !is_http2 && pulse.is_in_head() { Poll::Pending } else { Poll::Ready(()) }).await;
        };
        let mut draining = pin!(draining);
        let mut leaving = pin!(self.leaving.begun());
        let mut is_leaving = false;
        let mut timer = pin!(sleep_until(pulse.first(&self.bounds.terms).into()));
        let mut closing = None;
        loop {
            let is_idle = tokio::select! {
                biased;
                ended = connection.as_mut() => return ended.map_err(|error| {
                    if pulse.is_flooded() { Ending::Dropped(Cause::Resets) } else { Ending::Broken(error.into()) }
                }),
                () = draining.as_mut(), if closing.is_none() => false,
                // In HTTP/2 that is told at once (`goaway.rs`): the connection is only to be looked at.
                () = leaving.as_mut(), if is_http2 && !is_leaving => {
                    is_leaving = true;
                    continue;
                }
                () = timer.as_mut() => match pulse.judge(&self.bounds.terms, is_http2, closing) {
                    Verdict::Wait(until) => {
                        timer.as_mut().reset(until.into());
                        continue;
                    }
                    Verdict::Drop(cause) => return Err(Ending::Dropped(cause)),
                    Verdict::Idle => true,
                },
            };
            if let (true, Some(dropped)) = (is_idle, &self.dropped) {
                dropped.with_label_values(&[Cause::Idle.as_str()]).inc();
            }
            connection.as_mut().graceful_shutdown();
            let now = Clock::System.now();
            closing = Some(now);
            timer.as_mut().reset(now.into());
        }
    }
}

/// Counted like the causes that there are once a connection stands.
const HANDSHAKE: &str = "handshake";

/// Why a connection has ended before its client wished.
enum Ending {
    Dropped(Cause),
    Handshake(std::io::Error),
    Broken(BoxError),
}

impl From<Failed> for Ending {
    fn from(failed: Failed) -> Self {
        match failed {
            Failed::Silent(error) => Self::Broken(error.into()),
            Failed::Handshake(error) => Self::Handshake(error),
        }
    }
}

/// Resolves when it is time to drain; if nobody can say so any more, never.
pub(super) async fn draining(drain: &mut watch::Receiver<bool>) {
    if drain.wait_for(|&draining| draining).await.is_err() {
        std::future::pending().await
    }
}
