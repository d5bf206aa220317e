//! Accepting connections, so many at once, until told to drain.

use std::future::Future;
use std::net::SocketAddr;
use std::pin::pin;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::{Request, Response};
use http_body::Body;
use prometheus::{IntCounter, IntGauge};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};

use super::exchange::Upload;
use super::leaving::Exit;
use super::reload::Bounds;
use super::serve::Serving;
use super::shortcut::Shortcut;
use super::tls::Spoken;
use crate::clock::Clock;
use crate::stream::BoxError;
use crate::telemetry::metrics::Metrics;

/// How long to wait when no connection can be accepted, for want of file descriptors most likely:
/// trying again at once would burn the CPU that closing connections needs.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// How often it is told that there are too many connections; each one that ends lets in the next, so that it would
/// be told with each.
const TELL_AGAIN: Duration = Duration::from_secs(60);

/// How many connections the listeners for metrics and for the operator accept at once, each: so few that they take
/// nothing from clients.
const MAX_WATCHING: usize = 64;

/// How connections are accepted.
pub(super) struct Accepting {
    serving: Serving,
    /// When that ends, and how.
    exit: Exit,
    /// What holds for those that are accepted now.
    bounds: watch::Receiver<Bounds>,
    /// What is spoken with them.
    tls: Spoken,
    /// For logs.
    listener: &'static str,
    /// How many there may be at once.
    max_connections: usize,
    /// Counts those that are open, and how often there was no room for more.
    tally: Option<(IntGauge, IntCounter)>,
}

impl Accepting {
    /// On a listener of this name, until that closes: few at once, uncounted, and in HTTP/1 alone.
    pub(super) fn new(listener: &'static str, exit: Exit, bounds: watch::Receiver<Bounds>, tls: Spoken) -> Self {
        let serving = Serving {
            bounds: *bounds.borrow(),
            http2: false,
            tls: None,
            dropped: None,
            drain: exit.draining(),
            leaving: exit.leaving(),
        };
        Self { serving, exit, bounds, tls, listener, max_connections: MAX_WATCHING, tally: None }
    }

    /// So many, counted, and in HTTP/2, too.
    pub(super) fn many(mut self, max_connections: usize, metrics: &Metrics) -> Self {
        self.serving.http2 = true;
        self.serving.dropped = Some(metrics.connections_ended.clone());
        self.tally = Some((metrics.connections.clone(), metrics.accept_pauses.clone()));
        Self { max_connections, ..self }
    }

    /// Serves a listener until it is time to drain and what is in flight is done. Each connection, known by
    /// the address it came in by, is welcomed once and then answered by what that gave: the way for every request, and
    /// perhaps a short one.
    pub(super) async fn serve<W, A, F, B>(self, listener: TcpListener, welcome: W)
    where
        W: Fn(SocketAddr) -> (A, Option<Shortcut>),
        A: Fn(Request<Upload>) -> F + Send + 'static,
        F: Future<Output = Response<B>> + Send + 'static,
        B: Body<Data = Bytes> + Unpin + Send + 'static,
        B::Error: Into<BoxError>,
    {
        let room = Arc::new(Semaphore::new(self.max_connections));
        let mut exit = pin!(self.exit.wanted());
        let mut told = None;
        loop {
            // Room first: who is not accepted waits in the kernel and costs nothing here.
            let accepted = async {
                let place = self.place(&room, &mut told).await;
                (place, listener.accept().await)
            };
            let (place, accepted) = tokio::select! {
                accepted = accepted => accepted,
                () = &mut exit => break,
            };
            match accepted {
                Ok((stream, _)) => self.spawn(stream, place, &welcome),
                Err(error) => {
                    tracing::warn!(listener = self.listener, %error, "cannot accept a connection");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
            }
        }
        drop(listener);
        let left = self.max_connections - room.available_permits();
        let all = u32::try_from(self.max_connections).unwrap_or(u32::MAX);
        let limit = self.bounds.borrow().drain_timeout;
        if !self.exit.close(|| room.acquire_many(all), limit).await {
            tracing::warn!(connections = left, ?limit, "not everything in flight was done in time");
        }
    }

    /// Room for one more connection, as soon as there is any. None only if nobody can wait for it any more.
    async fn place(&self, room: &Arc<Semaphore>, told: &mut Option<Instant>) -> Option<OwnedSemaphorePermit> {
        if let Ok(place) = Arc::clone(room).try_acquire_owned() {
            return Some(place);
        }
        if let Some((_, full)) = &self.tally {
            full.inc();
        }
        let now = Clock::System.now();
        if told.is_none_or(|told| now.saturating_duration_since(told) >= TELL_AGAIN) {
            *told = Some(now);
            tracing::warn!(
                listener = self.listener,
                connections = self.max_connections,
                "no more connections are accepted until one of these ends"
            );
        }
        Arc::clone(room).acquire_owned().await.ok()
    }

    fn spawn<W, A, F, B>(&self, stream: TcpStream, place: Option<OwnedSemaphorePermit>, welcome: &W)
    where
        W: Fn(SocketAddr) -> (A, Option<Shortcut>),
        A: Fn(Request<Upload>) -> F + Send + 'static,
        F: Future<Output = Response<B>> + Send + 'static,
        B: Body<Data = Bytes> + Unpin + Send + 'static,
        B::Error: Into<BoxError>,
    {
        // Without an address it is gone already; nothing to serve.
        let Ok(local) = stream.local_addr() else { return };
        // Small answers must not wait for the client's delayed acknowledgement.
        let _ = stream.set_nodelay(true);
        let counted = self.tally.as_ref().map(|(open, _)| Counted::new(open));
        let serving = Serving { bounds: *self.bounds.borrow(), tls: self.tls.borrow().clone(), ..self.serving.clone() };
        let (answer, shortcut) = welcome(local);
        tokio::spawn(async move {
            let _open = (counted, place);
            serving.serve(stream, shortcut, answer).await;
        });
    }
}

/// Counts a connection while it is open, however it ends.
struct Counted(IntGauge);

impl Counted {
    fn new(gauge: &IntGauge) -> Self {
        gauge.inc();
        Self(gauge.clone())
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.dec();
    }
}
