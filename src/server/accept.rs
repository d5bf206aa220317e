//! Accepts connections up to a limit, until the listener shuts down. Which connection is closed for another is not
//! decided here (`shed.rs`).
//!
//! At the limit, the next connection replaces one that is idle or whose client does not read. So idle connections,
//! however many, do not block new clients. If all connections are busy, new ones wait: a few here, the others in the
//! kernel's queue (`waiting.rs`).
//!
//! What an attacker who connects repeatedly can achieve:
//!
//! - On the proxy listener, an accepted connection has one second to send a request, even under attack. While the
//!   listener is full, it accepts about 1,600 connections per second, and the kernel queues 1,024. A new client waits
//!   about 0.7 s, or longer if the attacker keeps the queue full.
//! - On the internal listeners (metrics and admin), a connection has 100 ms, and the kernel's queue is emptied
//!   immediately. New connections that have sent nothing are closed for those behind them. Connections that have been
//!   answered are closed when another one waits. A probe sends its request when it connects, so it does not wait for
//!   attackers. An operator's connection stays open until its keep-alive ends.
//! - One peer address gets at most half of the places. Its further connections are closed for those behind them.
//!   (Loopback is exempt: local processes can do worse.)
//! - Requests that keep upstream busy keep their connections open. That is limited where calls to upstream are queued,
//!   not here.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use prometheus::{IntCounter, IntGauge};
use tokio::sync::watch;
use tokio::time::{Instant, sleep, timeout};

use super::accept_errors::AcceptErrors;
use super::exchange::RequestHandler;
use super::memory::CONNECTION;
use super::registry::{OpenConnection, Registry};
use super::reload::{INTERNAL_KEEPALIVE, ServeLimits};
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
use crate::telemetry::metrics::Metrics;

/// How long to wait when no connection can be accepted and none can be closed. Retrying immediately would use the CPU
/// time that closing connections needs.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// The time between two scans for a connection that can be closed, divided by the connection limit. For a limit of
/// 4,096 connections it is 20 ms. It is at least 1 ms and at most 100 ms. So scanning takes a small part of a core,
/// however often clients connect.
const SCAN_INTERVAL: Duration = Duration::from_micros(5);

/// The connection limit is logged at most this often.
const LOG_INTERVAL: Duration = Duration::from_secs(60);

/// The connection limit of each internal listener. It is low, so that these listeners take no resources from clients.
pub(super) const MAX_INTERNAL_CONNECTIONS: usize = 64;

const CLIENT_MINIMUM_AGE: MinimumAge =
    MinimumAge { idle: [Duration::from_secs(1); 3], blocked: Duration::from_secs(1) };

/// For the internal listeners, which have few places. Their clients send a request immediately or not at all, and do
/// not need the connection after the response. An operator's connection stays until its keep-alive ends.
const INTERNAL_MINIMUM_AGE: MinimumAge = MinimumAge {
    idle: [Duration::from_millis(100), Duration::ZERO, INTERNAL_KEEPALIVE],
    blocked: Duration::from_secs(1),
};

/// Answers the requests of one connection.
pub(super) struct ConnectionHandler<H> {
    /// For every request that the fast path does not answer.
    pub(super) request_handler: H,
    /// Only on the proxy listener.
    pub(super) fast_path: Option<Box<WireFastPath>>,
    /// What the client holds of the memory budget, and the class of its callers.
    pub(super) account: Account,
    /// Notifies the gateway when the client has closed its sending side.
    pub(super) half_close: Arc<HalfClose>,
}

/// The peer that an address belongs to; `None` for addresses without per-peer limits.
type PeerOf = Arc<dyn Fn(IpAddr) -> Option<Peer> + Send + Sync>;

/// Accepts the connections of one listener.
pub(super) struct Accepting {
    serving: Serving,
    shutdown_control: ShutdownControl,
    /// Limits for connections that are accepted from now on.
    limits: watch::Receiver<ServeLimits>,
    tls: TlsReceiver,
    /// The listener's name for logs.
    listener: &'static str,
    registry: Arc<Registry>,
    budget: Arc<Budget>,
    max_connections: usize,
    /// If there is no free file descriptor, a client connection of this registry is closed.
    clients: Arc<Registry>,
    errors: AcceptErrors,
    clock: Clock,
    peer_of: PeerOf,
    /// Which waiting connections are served last.
    is_low_priority: fn(&Accepted) -> bool,
    /// Open connections, and how often one had to wait for room.
    connection_metrics: Option<(IntGauge, IntCounter)>,
}

impl Accepting {
    /// For an internal listener: a low limit, no connection metrics, and HTTP/1 only. If there is no free file
    /// descriptor, a client connection of `clients` is closed.
    pub(super) fn for_internal(
        listener: &'static str,
        shutdown_control: ShutdownControl,
        limits: watch::Receiver<ServeLimits>,
        tls: TlsReceiver,
        clients: Arc<Registry>,
        budget: Arc<Budget>,
        (metrics, clock): (&Metrics, Clock),
    ) -> Self {
        let registry = Registry::new(INTERNAL_MINIMUM_AGE);
        let serving = Serving {
            limits: *limits.borrow(),
            http2: false,
            tls: None,
            connections_ended: None,
            drain: shutdown_control.draining(),
            shutdown: shutdown_control.shutdown(),
            clock: clock.clone(),
        };
        let errors = AcceptErrors::new(listener, metrics);
        Self {
            serving,
            shutdown_control,
            limits,
            tls,
            listener,
            registry,
            budget,
            max_connections: MAX_INTERNAL_CONNECTIONS,
            clients,
            errors,
            clock,
            peer_of: Arc::new(Peer::of),
            is_low_priority: Accepted::is_silent,
            connection_metrics: None,
        }
    }

    /// For the proxy listener: with connection metrics and HTTP/2.
    pub(super) fn for_clients(
        shutdown_control: ShutdownControl,
        limits: watch::Receiver<ServeLimits>,
        tls: TlsReceiver,
        max_connections: usize,
        budget: Arc<Budget>,
        (metrics, clock): (&Metrics, Clock),
    ) -> Self {
        let registry = Registry::new(CLIENT_MINIMUM_AGE);
        let clients = Arc::clone(&registry);
        let mut this = Self::for_internal("proxy", shutdown_control, limits, tls, clients, budget, (metrics, clock));
        this.serving.http2 = true;
        this.serving.connections_ended = Some(metrics.connections_ended.clone());
        this.connection_metrics = Some((metrics.connections.clone(), metrics.accept_pauses.clone()));
        // A client may open connections before it needs them, so silent ones wait like others.
        Self { max_connections, registry, is_low_priority: |_| false, ..this }
    }

    /// Sets the function that identifies peers. By default, each address is a peer, except loopback.
    pub(super) fn with_peers(self, peer_of: impl Fn(IpAddr) -> Option<Peer> + Send + Sync + 'static) -> Self {
        Self { peer_of: Arc::new(peer_of), ..self }
    }

    pub(super) fn registry(&self) -> &Arc<Registry> {
        &self.registry
    }

    /// Serves the listener until it shuts down and requests in flight are done. `make_handler` makes the handler of a
    /// connection from its local and its peer address.
    pub(super) async fn serve<H: RequestHandler>(
        mut self,
        listener: Listener,
        make_handler: impl Fn(SocketAddr, IpAddr) -> ConnectionHandler<H>,
    ) {
        let registry = Arc::clone(&self.registry);
        let mut shutdown_requested = pin!(self.shutdown_control.requested());
        let mut waiting = WaitingConnections::new(self.max_connections, self.is_low_priority);
        let (mut scan_at, mut logged_at) = (None, None);
        loop {
            // Subscribe before reading the registry, so that no change is missed.
            let changed = registry.changed();
            while self.has_room()
                && let Some((stream, _)) = waiting.next(&registry)
            {
                self.spawn(stream, &make_handler);
            }
            self.make_room(&waiting, &mut scan_at);
            let is_waiting = !waiting.is_empty();
            let accepted = tokio::select! {
                biased;
                () = &mut shutdown_requested => break,
                accepted = listener.accept(), if waiting.has_room(&registry) => accepted,
                () = changed, if is_waiting => continue,
                () = sleep(self.scan_interval()), if is_waiting => continue,
            };
            match accepted {
                Ok((stream, address)) => {
                    let peer = (self.peer_of)(address.ip());
                    if registry.len() >= self.max_connections {
                        self.record_full(&mut logged_at);
                    }
                    if waiting.add(stream, peer, &registry).is_some() {
                        self.serving.count_shed();
                    }
                }
                Err(error) => self.handle_accept_error(&error).await,
            }
        }
        drop(listener);
        // These connections are already accepted, so no other process can serve them.
        while let Some((stream, _)) = waiting.next(&registry) {
            self.spawn(stream, &make_handler);
        }
        let limit = self.limits.borrow().shutdown_timeout;
        let left = registry.len();
        if !self.shutdown_control.close(|| registry.emptied(), limit).await {
            tracing::warn!(
                connections = left,
                ?limit,
                "shutdown timeout reached: connections with requests in flight are closed"
            );
        }
    }

    fn has_room(&self) -> bool {
        self.registry.len() < self.max_connections && self.shortage().is_none()
    }

    /// Why the memory budget has no room for another connection, if it has none.
    fn shortage(&self) -> Option<Shortage> {
        Account::open(&self.budget, None).shortage(Purpose::Connections, CONNECTION)
    }

    fn scan_interval(&self) -> Duration {
        let all = u32::try_from(self.max_connections).unwrap_or(u32::MAX);
        SCAN_INTERVAL.saturating_mul(all).clamp(Duration::from_millis(1), Duration::from_millis(100))
    }

    /// Closes connections for those that wait.
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
    fn record_full(&self, logged_at: &mut Option<Instant>) {
        if let Some((_, waits)) = &self.connection_metrics {
            waits.inc();
        }
        let now = Clock::System.timer_now();
        if logged_at.is_none_or(|at| now.saturating_duration_since(at) >= LOG_INTERVAL) {
            *logged_at = Some(now);
            tracing::warn!(
                listener = self.listener,
                connections = self.max_connections,
                "connection limit reached: idle connections are closed for new ones"
            );
        }
    }

    /// Handles an accept error. If no file descriptor is free, one connection is closed.
    async fn handle_accept_error(&mut self, error: &io::Error) {
        self.errors.record(error, Clock::System.timer_now());
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

    fn spawn<H: RequestHandler>(
        &self,
        stream: Accepted,
        make_handler: &impl Fn(SocketAddr, IpAddr) -> ConnectionHandler<H>,
    ) {
        // Without addresses, the connection is already gone.
        let (Ok(local), Ok(remote)) = (stream.local_addr(), stream.peer_addr()) else { return };
        // Small responses must not wait for the client's delayed acknowledgement.
        let _ = stream.set_nodelay();
        let counted = self.connection_metrics.as_ref().map(|(open, _)| CountedConnection::new(open));
        let serving = Serving { limits: *self.limits.borrow(), tls: self.tls.borrow().clone(), ..self.serving.clone() };
        let ConnectionHandler { request_handler, fast_path, account, half_close } = make_handler(local, remote.ip());
        let open = self.registry.add(OpenConnection::new(account, half_close));
        // Boxed: moving it into another future would take its size twice.
        let connection = Box::pin(serving.serve(stream, Arc::clone(&open), fast_path, request_handler));
        tokio::spawn(async move {
            let _open = (counted, open);
            connection.await;
        });
    }
}

/// Whether the process or the system has no free file descriptor (EMFILE, ENFILE).
fn is_out_of_descriptors(error: &io::Error) -> bool {
    use rustix::io::Errno;
    let errno = error.raw_os_error().map(Errno::from_raw_os_error);
    matches!(errno, Some(Errno::MFILE | Errno::NFILE))
}

/// Counts a connection while it is open.
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
