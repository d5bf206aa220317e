//! An HTTP/1 connection that uses little memory while it is idle. No bytes are read or changed here.
//!
//! hyper's read buffer grows to the size of the largest head and never shrinks. Even an idle hyper connection has its
//! buffers and room for a request. So when a connection has read a large head or has been idle for a while, its hyper
//! connection is dropped. When bytes arrive, a new one continues.

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
use tokio_util::either::Either;

use super::activity::ConnectionActivity;
use super::transport::ClientIo;
use super::wire::Wire;
use crate::stream::BoxError;

/// A connection that can be closed gracefully.
pub(super) trait HttpConnection: Future<Output = hyper::Result<()>> {
    /// Finishes requests in progress and accepts no more.
    fn graceful_shutdown(self: Pin<&mut Self>);
}

impl<I, B, S, E> HttpConnection for http2::Connection<I, S, E>
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

/// An HTTP/1 (left) or an HTTP/2 connection (right).
pub(super) type AnyHttpConnection<Http1, Http2> = Either<Pin<Box<Http1>>, Pin<Box<Http2>>>;

impl<Http1: HttpConnection, Http2: HttpConnection> HttpConnection for AnyHttpConnection<Http1, Http2> {
    fn graceful_shutdown(self: Pin<&mut Self>) {
        match self.get_mut() {
            Either::Left(http1) => http1.as_mut().graceful_shutdown(),
            Either::Right(http2) => http2.as_mut().graceful_shutdown(),
        }
    }
}

/// A service that hyper accepts for HTTP/1.
pub(super) trait Http1Service:
    HttpService<Incoming, ResBody: Body<Data = Bytes, Error: Into<BoxError>> + 'static, Error: Into<BoxError>> + Unpin
{
}

impl<S> Http1Service for S where
    S: HttpService<Incoming, ResBody: Body<Data = Bytes, Error: Into<BoxError>> + 'static, Error: Into<BoxError>>
        + Unpin
{
}

pub(super) struct Http1Connection<IO, S>
where
    S: HttpService<Incoming>,
{
    builder: http1::Builder,
    activity: Arc<ConnectionActivity>,
    state: Option<Http1State<IO, S>>,
    is_closing: bool,
}

#[expect(clippy::large_enum_variant, reason = "one per connection, and boxing the idle state would not save memory")]
enum Http1State<IO, S>
where
    S: HttpService<Incoming>,
{
    Active(Box<http1::Connection<TokioIo<Wire<IO>>, S>>),
    /// hyper's part was freed. It is created again when bytes arrive.
    Idle(Wire<IO>, S),
}

impl<IO: ClientIo, S: Http1Service> Http1Connection<IO, S> {
    pub(super) fn new(builder: http1::Builder, wire: Wire<IO>, service: S, activity: Arc<ConnectionActivity>) -> Self {
        let mut new = Self { builder, activity, state: None, is_closing: false };
        new.activate(wire, service);
        new
    }

    fn activate(&mut self, wire: Wire<IO>, service: S) {
        self.activity.memory_freed();
        let connection = self.builder.serve_connection(TokioIo::new(wire), service);
        self.state = Some(Http1State::Active(Box::new(connection)));
    }

    fn poll_state(&mut self, context: &mut Context<'_>) -> Poll<hyper::Result<()>> {
        loop {
            match self.state.take() {
                Some(Http1State::Active(mut connection)) => {
                    let ended = Pin::new(&mut *connection).poll(context);
                    if ended.is_ready() || self.is_closing || !self.activity.should_free_memory() {
                        self.state = Some(Http1State::Active(connection));
                        return ended;
                    }
                    let parts = connection.into_parts();
                    let mut wire = parts.io.into_inner();
                    wire.memory_freed(parts.read_buf);
                    self.state = Some(Http1State::Idle(wire, parts.service));
                }
                Some(Http1State::Idle(mut wire, service)) => {
                    if wire.poll_arrival(context).is_pending() {
                        self.state = Some(Http1State::Idle(wire, service));
                        return Poll::Pending;
                    }
                    self.activate(wire, service);
                }
                None => return Poll::Ready(Ok(())),
            }
        }
    }
}

impl<IO: ClientIo, S: Http1Service> Future for Http1Connection<IO, S> {
    type Output = hyper::Result<()>;

    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<hyper::Result<()>> {
        self.get_mut().poll_state(context)
    }
}

impl<IO: ClientIo, S: Http1Service> HttpConnection for Http1Connection<IO, S> {
    fn graceful_shutdown(self: Pin<&mut Self>) {
        let this = self.get_mut();
        this.is_closing = true;
        if matches!(this.state, Some(Http1State::Idle(..)))
            && let Some(Http1State::Idle(wire, service)) = this.state.take()
        {
            this.activate(wire, service);
        }
        if let Some(Http1State::Active(connection)) = &mut this.state {
            Pin::new(&mut **connection).graceful_shutdown();
        }
    }
}
