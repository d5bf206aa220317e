//! Accepting connections and serving HTTP/1 on each, until told to drain.

use std::future::Future;
use std::net::SocketAddr;
use std::pin::pin;
use std::time::Duration;

use bytes::Bytes;
use http::{Request, Response};
use http_body::Body;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::server::graceful::GracefulShutdown;
use prometheus::IntGauge;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;

use crate::stream::BoxError;

/// How long to wait when no connection can be accepted, for want of file descriptors most likely:
/// trying again at once would burn the CPU that closing connections needs.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// How connections are served.
#[derive(Clone, Copy, Debug)]
pub(super) struct Connections {
    /// For a client to send a head; an idle connection is closed after it too.
    pub(super) head_timeout: Duration,
    /// For a head, in bytes.
    pub(super) buffer: usize,
    /// For what is in flight when it is time to drain.
    pub(super) drain_timeout: Duration,
}

impl Connections {
    /// Serves a listener until `drain` says so and what is in flight is done. Each connection, known by
    /// the address it came in by, is welcomed once and then answered by what that gave.
    pub(super) async fn serve<W, S, F, B>(
        self,
        listener: TcpListener,
        mut drain: watch::Receiver<bool>,
        open: Option<IntGauge>,
        welcome: W,
    ) where
        W: Fn(SocketAddr) -> S,
        S: Fn(Request<Incoming>) -> F + Send + 'static,
        F: Future<Output = Response<B>> + Send,
        B: Body<Data = Bytes> + Send + 'static,
        B::Error: Into<BoxError>,
    {
        let graceful = GracefulShutdown::new();
        {
            let mut draining = pin!(draining(&mut drain));
            loop {
                let stream = tokio::select! {
                    accepted = listener.accept() => match accepted {
                        Ok((stream, _)) => stream,
                        Err(error) => {
                            tracing::warn!(%error, "cannot accept a connection");
                            tokio::time::sleep(ACCEPT_PAUSE).await;
                            continue;
                        }
                    },
                    () = &mut draining => break,
                };
                // Without an address it is gone already; nothing to serve.
                if let Ok(local) = stream.local_addr() {
                    self.spawn(stream, &graceful, open.clone(), welcome(local));
                }
            }
        }
        drop(listener);
        let left = graceful.count();
        if tokio::time::timeout(self.drain_timeout, graceful.shutdown()).await.is_err() {
            tracing::warn!(connections = left, limit = ?self.drain_timeout, "not everything in flight was done in time");
        }
    }

    fn spawn<S, F, B>(self, stream: TcpStream, graceful: &GracefulShutdown, open: Option<IntGauge>, answer: S)
    where
        S: Fn(Request<Incoming>) -> F + Send + 'static,
        F: Future<Output = Response<B>> + Send,
        B: Body<Data = Bytes> + Send + 'static,
        B::Error: Into<BoxError>,
    {
        // Small answers must not wait for the client's delayed acknowledgement.
        let _ = stream.set_nodelay(true);
        let service = service_fn(move |request| {
            let answering = answer(request);
            async move { Ok::<_, std::convert::Infallible>(answering.await) }
        });
        let connection = http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(self.head_timeout)
            .max_buf_size(self.buffer)
            .serve_connection(TokioIo::new(stream), service);
        let connection = graceful.watch(connection);
        tokio::spawn(async move {
            let _counted = open.as_ref().map(Counted::new);
            if let Err(error) = connection.await {
                // A client's doing as a rule: it hung up, or spoke no HTTP.
                tracing::debug!(%error, "connection ended early");
            }
        });
    }
}

/// Counts a connection while it is open, however it ends.
struct Counted<'g>(&'g IntGauge);

impl<'g> Counted<'g> {
    fn new(gauge: &'g IntGauge) -> Self {
        gauge.inc();
        Self(gauge)
    }
}

impl Drop for Counted<'_> {
    fn drop(&mut self) {
        self.0.dec();
    }
}

/// Resolves when it is time to drain; if nobody can say so any more, never.
async fn draining(drain: &mut watch::Receiver<bool>) {
    if drain.wait_for(|&draining| draining).await.is_err() {
        std::future::pending().await
    }
}
