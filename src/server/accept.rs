//! Accepting connections, up to a limit, until told to drain.
//!
//! At the limit the next connection takes the place of one that is idle, or whose client does not read (`shed.rs` says
//! which). So idle connections, however many, keep nobody out. If all are busy, newcomers wait: a few here, the others in the
//! kernel (`waiting.rs`).
//!
//! What an attacker can do who connects again and again:
//!
//! - On the proxy listener a connection that is accepted has a second to send a request, even under attack. While that
//!   listener is full, at most some 1,600 connections per second are accepted, and the kernel queues 1,024. A new client
//!   waits for 0.7 s, or longer if the attacker keeps the queue full.
//! - On the other two a connection has 100 ms, and the kernel's queue is emptied at once: newcomers that have sent nothing
//!   are closed for those behind them. Those that have been answered are closed as soon as another waits. So a probe, which
//!   sends its request when it connects, does not wait for attackers. An operator's connection stays until its keep-alive ends.
//! - From one peer address it gets half of the places at most, and its newcomers are closed for those behind them. (Not so on
//!   loopback: whoever is on this machine can do worse.)
//! - Requests that keep upstream busy keep their connections open. That is bounded where calls wait for their turn, not here.

use std::future::Future;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{Request, Response};
use http_body::Body;
use prometheus::{IntCounter, IntGauge};
use tokio::sync::watch;
use tokio::time::{Instant, sleep, timeout};

use super::accept_errors::AcceptErrors;
use super::exchange::TrackedRequestBody;
use super::memory::CONNECTION;
use super::registry::{OpenConnection, Registry};
use super::reload::{ServeLimits, WATCHERS_KEEPALIVE};
use super::serve::Serving;
use super::shed::MinimumAge;
use super::shutdown::ShutdownControl;
use super::tls::TlsReceiver;
use super::waiting::WaitingConnections;
use super::wire::WireFastPath;
use crate::budget::{Account, Budget, Purpose, Shortage};
use crate::clock::Clock;
use crate::net::{Accepted, Listener};
use crate::request::half_close::HalfClose;
use crate::request::peer::Peer;
use crate::stream::BoxError;
use crate::telemetry::metrics::Metrics;

/// How long to wait when no connection can be accepted, and none can be closed for it: trying again at once would burn the
/// CPU that closing connections needs.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// How long to wait, for each connection there may be, until all are looked at again to find one that can be closed: 20 ms
/// for 4,096, at least 1 ms, at most 100 ms. So it takes a small part of a core, however often somebody connects.
const SCAN_INTERVAL: Duration = Duration::from_micros(5);

/// How often it is logged that there are too many connections.
const LOG_INTERVAL: Duration = Duration::from_secs(60);

/// How many connections the listeners for metrics and for the operator accept at once, each: so few that they take
/// nothing from clients.
pub(super) const MAX_WATCHING: usize = 64;

/// Of clients.
const OF_CLIENTS: MinimumAge = MinimumAge { idle: [Duration::from_secs(1); 3], blocked: Duration::from_secs(1) };

/// On the listeners for metrics and for the operator, which have few places. A request comes at once there, or not at all. Who
/// has been answered can do without the connection. An operator's ends when its keep-alive is over, not before.
const OF_WATCHERS: MinimumAge = MinimumAge {
    idle: [Duration::from_millis(100), Duration::ZERO, WATCHERS_KEEPALIVE],
    blocked: Duration::from_secs(1),
};

/// What answers the requests of one connection.
pub(super) struct Handler<A> {
    /// The way for every request.
    pub(super) answer: A,
    /// For clients, what answers known heads.
    pub(super) fast_path: Option<Box<WireFastPath>>,
    /// What the client holds of the memory budget, and how far its callers are known.
    pub(super) account: Account,
    /// Tells the gateway that the client has closed its sending side.
    pub(super) half_close: Arc<HalfClose>,
}

/// Tells clients apart by their addresses.
type PeerOf = Arc<dyn Fn(IpAddr) -> Option<Peer> + Send + Sync>;

/// How connections are accepted.
pub(super) struct Accepting {
    serving: Serving,
    /// When that ends, and how.
    exit: ShutdownControl,
    /// What holds for those that are accepted now.
    bounds: watch::Receiver<ServeLimits>,
    /// What is spoken with them.
    tls: TlsReceiver,
    /// For logs.
    listener: &'static str,
    registry: Arc<Registry>,
    budget: Arc<Budget>,
    /// How many there may be at once.
    max_connections: usize,
    /// Where one is closed when there is no file descriptor for the next.
    clients: Arc<Registry>,
    errors: AcceptErrors,
    clock: Clock,
    peer_of: PeerOf,
    /// Which newcomers wait for the others when there is no room.
    come_last: fn(&Accepted) -> bool,
    /// Counts those that are open, and how often one had to wait for room.
    tally: Option<(IntGauge, IntCounter)>,
}

impl Accepting {
    /// For metrics or for the operator: few at once, uncounted, and in HTTP/1 alone. The connections of clients are given
    /// up for them when there is no file descriptor.
    pub(super) fn for_watchers(
        listener: &'static str,
        exit: ShutdownControl,
        bounds: watch::Receiver<ServeLimits>,
        tls: TlsReceiver,
        clients: Arc<Registry>,
        budget: Arc<Budget>,
        (metrics, clock): (&Metrics, Clock),
    ) -> Self {
        let registry = Registry::new(OF_WATCHERS);
        let serving = Serving {
            bounds: *bounds.borrow(),
            http2: false,
            tls: None,
            dropped: None,
            drain: exit.draining(),
            shutdown: exit.shutdown(),
        };
        let errors = AcceptErrors::new(listener, metrics);
        Self {
            serving,
            exit,
            bounds,
            tls,
            listener,
            registry,
            budget,
            max_connections: MAX_WATCHING,
            clients,
            errors,
            clock,
            peer_of: Arc::new(Peer::of),
            come_last: Accepted::is_silent,
            tally: None,
        }
    }

    /// For clients: so many at once, counted, and in HTTP/2, too.
    pub(super) fn for_clients(
        exit: ShutdownControl,
        bounds: watch::Receiver<ServeLimits>,
        tls: TlsReceiver,
        max_connections: usize,
        budget: Arc<Budget>,
        (metrics, clock): (&Metrics, Clock),
    ) -> Self {
        let registry = Registry::new(OF_CLIENTS);
        let clients = Arc::clone(&registry);
        let mut this = Self::for_watchers("proxy", exit, bounds, tls, clients, budget, (metrics, clock));
        this.serving.http2 = true;
        this.serving.dropped = Some(metrics.connections_ended.clone());
        this.tally = Some((metrics.connections.clone(), metrics.accept_pauses.clone()));
        // A client may open connections before it needs them.
        Self { max_connections, registry, come_last: |_| false, ..this }
    }

    /// The same where clients are told apart in another way than by all addresses but loopback.
    pub(super) fn telling_apart(self, peer_of: impl Fn(IpAddr) -> Option<Peer> + Send + Sync + 'static) -> Self {
        Self { peer_of: Arc::new(peer_of), ..self }
    }

    /// The connections that are open on this listener.
    pub(super) fn registry(&self) -> &Arc<Registry> {
        &self.registry
    }

    /// Serves a listener until it is time to drain and what is in flight is done. `handler` makes what answers the requests
    /// of one connection, which is known by the address that it came in by.
    pub(super) async fn serve<W, A, F, B>(mut self, listener: Listener, handler: W)
    where
        W: Fn(SocketAddr, IpAddr) -> Handler<A>,
        A: Fn(Request<TrackedRequestBody>) -> F + Send + Unpin + 'static,
        F: Future<Output = Response<B>> + Send + 'static,
        B: Body<Data = Bytes> + Unpin + Send + 'static,
        B::Error: Into<BoxError>,
    {
        let registry = Arc::clone(&self.registry);
        let mut exit = pin!(self.exit.wanted());
        let mut waiting = WaitingConnections::new(self.max_connections, self.come_last);
        let (mut scan_at, mut logged_at) = (None, None);
        loop {
            // Before the registry is looked at, or what changes after that would be missed.
            let changed = registry.changed();
            while self.has_room()
                && let Some((stream, _)) = waiting.next(&registry)
            {
                self.spawn(stream, &handler);
            }
            self.make_room(&waiting, &mut scan_at);
            let is_waiting = !waiting.is_empty();
            let accepted = tokio::select! {
                biased;
                () = &mut exit => break,
                accepted = listener.accept(), if waiting.has_room(&registry) => accepted,
                () = changed, if is_waiting => continue,
                () = sleep(self.scan_interval()), if is_waiting => continue,
            };
            match accepted {
                Ok((stream, address)) => {
                    let peer = (self.peer_of)(address.ip());
                    if registry.len() >= self.max_connections {
                        self.note_full(&mut logged_at);
                    }
                    if waiting.add(stream, peer, &registry).is_some() {
                        self.serving.count_shed();
                    }
                }
                Err(error) => self.failed(&error).await,
            }
        }
        drop(listener);
        // They have been accepted, so that nobody else can answer them.
        while let Some((stream, _)) = waiting.next(&registry) {
            self.spawn(stream, &handler);
        }
        let limit = self.bounds.borrow().shutdown_timeout;
        let left = registry.len();
        if !self.exit.close(|| registry.emptied(), limit).await {
            tracing::warn!(connections = left, ?limit, "not everything in flight was done in time");
        }
    }

    /// Whether another connection may be served.
    fn has_room(&self) -> bool {
        self.registry.len() < self.max_connections && self.shortage().is_none()
    }

    /// Why the memory budget has no room for another connection, if that is so.
    fn shortage(&self) -> Option<Shortage> {
        Account::open(&self.budget, None).shortage(Purpose::Connections, CONNECTION)
    }

    fn scan_interval(&self) -> Duration {
        let all = u32::try_from(self.max_connections).unwrap_or(u32::MAX);
        SCAN_INTERVAL.saturating_mul(all).clamp(Duration::from_millis(1), Duration::from_millis(100))
    }

    /// Has connections end for those that wait.
    fn make_room(&self, waiting: &WaitingConnections, scan_at: &mut Option<Instant>) {
        let now = Clock::System.timer_now();
        if waiting.is_empty() || scan_at.is_some_and(|at| now < at) {
            return;
        }
        *scan_at = Some(now + self.scan_interval());
        let (peers, now) = (waiting.peers(&self.registry), self.clock.timer_now());
        match self.shortage() {
            Some(shortage) => _ = self.registry.shed_bytes(shortage, peers.len() * CONNECTION, now),
            None => self.registry.make_room(&peers, self.max_connections, now),
        }
    }

    /// Counts and logs that a connection has to wait for room.
    fn note_full(&self, logged_at: &mut Option<Instant>) {
        if let Some((_, waits)) = &self.tally {
            waits.inc();
        }
        let now = Clock::System.timer_now();
        if logged_at.is_none_or(|at| now.saturating_duration_since(at) >= LOG_INTERVAL) {
            *logged_at = Some(now);
            tracing::warn!(
                listener = self.listener,
                connections = self.max_connections,
                "as many connections are open as may be: idle ones are closed for new ones"
            );
        }
    }

    /// No connection can be accepted. If that is for want of a file descriptor, one is closed.
    async fn failed(&mut self, error: &io::Error) {
        self.errors.note(error, Clock::System.timer_now());
        if !is_out_of_descriptors(error) {
            return sleep(ACCEPT_PAUSE).await;
        }
        for registry in [&self.clients, &self.registry] {
            let changed = registry.changed();
            if registry.shed_one(self.clock.timer_now()) {
                let _ = timeout(ACCEPT_PAUSE, changed).await;
                return;
            }
        }
        sleep(ACCEPT_PAUSE).await;
    }

    fn spawn<W, A, F, B>(&self, stream: Accepted, handler: &W)
    where
        W: Fn(SocketAddr, IpAddr) -> Handler<A>,
        A: Fn(Request<TrackedRequestBody>) -> F + Send + Unpin + 'static,
        F: Future<Output = Response<B>> + Send + 'static,
        B: Body<Data = Bytes> + Unpin + Send + 'static,
        B::Error: Into<BoxError>,
    {
        // Without addresses it is gone already; nothing to serve.
        let (Ok(local), Ok(remote)) = (stream.local_addr(), stream.peer_addr()) else { return };
        // Small answers must not wait for the client's delayed acknowledgement.
        let _ = stream.set_nodelay();
        let counted = self.tally.as_ref().map(|(open, _)| CountedConnection::new(open));
        let serving = Serving { bounds: *self.bounds.borrow(), tls: self.tls.borrow().clone(), ..self.serving.clone() };
        let Handler { answer, fast_path, account, half_close } = handler(local, remote.ip());
        let open = self.registry.add(OpenConnection::new(account, half_close));
        // Apart: moved into another future it would take its size twice.
        let connection = Box::pin(serving.serve(stream, Arc::clone(&open), fast_path, answer));
        tokio::spawn(async move {
            let _open = (counted, open);
            connection.await;
        });
    }
}

/// Whether this process, or the system, has no file descriptor left.
fn is_out_of_descriptors(error: &io::Error) -> bool {
    use rustix::io::Errno;
    let errno = error.raw_os_error().map(Errno::from_raw_os_error);
    matches!(errno, Some(Errno::MFILE | Errno::NFILE))
}

/// Counts a connection while it is open, however it ends.
struct CountedConnection(IntGauge);

impl CountedConnection {
    fn new(gauge: &IntGauge) -> Self {
        gauge.inc();
        Self(gauge.clone())
    }
}

impl Drop for CountedConnection {
    fn drop(&mut self) {
        self.0.dec();
    }
}
