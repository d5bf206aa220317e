//! A connection in HTTP/1 that takes little memory while it is idle.
//!
//! hyper's read buffer grows to the size of the largest head and never shrinks, and even an idle connection of hyper's
//! has its buffers and a place for a request. So when a connection has read a large head, or has been idle for a moment,
//! hyper's part of it is taken apart. When more arrives, another one continues where it was.

use std::error::Error;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::Bytes;
use http_body::Body;
use hyper::body::Incoming;
use hyper::rt::bounds::Http2ServerConnExec;
use hyper::server::conn::{http1, http2};
use hyper::service::HttpService;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite};

use super::activity::ConnectionActivity;
use super::wire::Wire;
use crate::net::Reset;
use crate::stream::BoxError;

/// A connection that can be told to end in good order.
pub(super) trait Closing: Future<Output = hyper::Result<()>> {
    /// Has it take no more requests.
    fn graceful_shutdown(self: Pin<&mut Self>);
}

impl<I, B, S, E> Closing for http2::Connection<I, S, E>
where
    S: HttpService<Incoming, ResBody = B>,
    S::Error: Into<Box<dyn Error + Send + Sync>>,
    I: hyper::rt::Read + hyper::rt::Write + Unpin,
    B: Body + 'static,
    B::Error: Into<Box<dyn Error + Send + Sync>>,
    E: Http2ServerConnExec<S::Future, B>,
{
    fn graceful_shutdown(self: Pin<&mut Self>) {
        self.graceful_shutdown();
    }
}

/// A connection of one version or the other.
pub(super) enum Either<One, Two> {
    Http1(Pin<Box<One>>),
    Http2(Pin<Box<Two>>),
}

impl<One: Closing, Two: Closing> Either<One, Two> {
    pub(super) fn poll(&mut self, context: &mut Context<'_>) -> Poll<hyper::Result<()>> {
        match self {
            Self::Http1(connection) => connection.as_mut().poll(context),
            Self::Http2(connection) => connection.as_mut().poll(context),
        }
    }

    pub(super) fn graceful_shutdown(&mut self) {
        match self {
            Self::Http1(connection) => connection.as_mut().graceful_shutdown(),
            Self::Http2(connection) => connection.as_mut().graceful_shutdown(),
        }
    }
}

/// The connection.
pub(super) struct Renewing<IO, S>
where
    S: HttpService<Incoming>,
{
    builder: http1::Builder,
    activity: Arc<ConnectionActivity>,
    state: Option<RenewState<IO, S>>,
    is_closing: bool,
}

/// Who has the connection.
#[expect(clippy::large_enum_variant, reason = "there is one for each connection, and idle is the size that counts")]
enum RenewState<IO, S>
where
    S: HttpService<Incoming>,
{
    /// hyper has the connection.
    Active(Box<http1::Connection<TokioIo<Wire<IO>>, S>>),
    /// The connection is idle, and hyper's part was freed. It is made again when bytes arrive.
    Idle(Wire<IO>, S),
}

impl<IO, S> Renewing<IO, S>
where
    IO: AsyncRead + AsyncWrite + Reset + Unpin,
    S: HttpService<Incoming, ResBody: Body<Data = Bytes, Error: Into<BoxError>> + 'static, Error: Into<BoxError>>,
{
    pub(super) fn new(builder: http1::Builder, wire: Wire<IO>, service: S, activity: Arc<ConnectionActivity>) -> Self {
        let mut new = Self { builder, activity, state: None, is_closing: false };
        new.activate(wire, service);
        new
    }

    fn activate(&mut self, wire: Wire<IO>, service: S) {
        self.activity.rests();
        let connection = self.builder.serve_connection(TokioIo::new(wire), service);
        self.state = Some(RenewState::Active(Box::new(connection)));
    }

    fn poll_state(&mut self, context: &mut Context<'_>) -> Poll<hyper::Result<()>> {
        loop {
            match self.state.take() {
                Some(RenewState::Active(mut connection)) => {
                    let ended = Pin::new(&mut *connection).poll(context);
                    if ended.is_ready() || self.is_closing || !self.activity.is_to_renew() {
                        self.state = Some(RenewState::Active(connection));
                        return ended;
                    }
                    let parts = connection.into_parts();
                    let mut wire = parts.io.into_inner();
                    wire.rests(parts.read_buf);
                    self.state = Some(RenewState::Idle(wire, parts.service));
                }
                Some(RenewState::Idle(mut wire, service)) => {
                    if wire.poll_arrival(context).is_pending() {
                        self.state = Some(RenewState::Idle(wire, service));
                        return Poll::Pending;
                    }
                    self.activate(wire, service);
                }
                None => return Poll::Ready(Ok(())),
            }
        }
    }
}

impl<IO, S> Future for Renewing<IO, S>
where
    IO: AsyncRead + AsyncWrite + Reset + Unpin,
    S: HttpService<Incoming, ResBody: Body<Data = Bytes, Error: Into<BoxError>> + 'static, Error: Into<BoxError>>
        + Unpin,
{
    type Output = hyper::Result<()>;

    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<hyper::Result<()>> {
        self.get_mut().poll_state(context)
    }
}

impl<IO, S> Closing for Renewing<IO, S>
where
    IO: AsyncRead + AsyncWrite + Reset + Unpin,
    S: HttpService<Incoming, ResBody: Body<Data = Bytes, Error: Into<BoxError>> + 'static, Error: Into<BoxError>>
        + Unpin,
{
    fn graceful_shutdown(self: Pin<&mut Self>) {
        let this = self.get_mut();
        this.is_closing = true;
        if matches!(this.state, Some(RenewState::Idle(..)))
            && let Some(RenewState::Idle(wire, service)) = this.state.take()
        {
            this.activate(wire, service);
        }
        if let Some(RenewState::Active(connection)) = &mut this.state {
            Pin::new(&mut **connection).graceful_shutdown();
        }
    }
}
