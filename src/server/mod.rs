//! The server: opens the three listeners, serves them, and shuts down in a fixed order.
//!
//! The caller decides when to stop. This module owns the order: report not ready, accept no new connections, finish
//! requests in flight, and stop serving metrics last. Nothing here decides how a request is answered.
//!
//! - Listeners: `listeners.rs` (sockets), `accept.rs` (accepting, connection limit), `waiting.rs` (order of waiting
//!   connections), `accept_errors.rs`, `descriptors.rs` (file descriptors), `shutdown.rs` (what clients see when a
//!   listener closes).
//! - One connection: `serve.rs` (HTTP version, size limits), `activity.rs` (timeouts), `tls.rs` and `transport.rs`
//!   (below HTTP), `wire.rs` (bytes, fast path), `exchange.rs` (one request and its response), `half_closed.rs` (the
//!   client has closed its sending side), `renew.rs` (freeing memory of idle connections).
//! - HTTP/2, where hyper lacks something: `http2.rs`, `frames.rs`, `field_count.rs`, `own_frames.rs` and `uploads.rs`.
//! - Memory and shedding: `memory.rs` (what a connection is charged), `registry.rs` and `shed.rs` (which connections
//!   are closed for others), `short_of_memory.rs` (when).
//! - Configuration reload: `reload.rs`.

mod accept;
mod accept_errors;
mod activity;
mod descriptors;
mod exchange;
mod field_count;
mod frames;
mod half_closed;
mod http2;
mod listeners;
mod memory;
mod own_frames;
mod registry;
mod reload;
mod renew;
mod serve;
mod shed;
mod short_of_memory;
mod shutdown;
#[cfg(test)]
mod tests;
mod tls;
mod transport;
mod uploads;
mod waiting;
mod wire;

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;

use thiserror::Error;
use tokio::sync::watch;
use tokio::task::JoinHandle;

use crate::admin::{Operator, Probes};
use crate::budget::{Account, Budget, Charge, ConnectionClass, Purpose};
use crate::certificate::NotAfter;
use crate::clock::Clock;
use crate::config::Config;
use crate::gateway::Gateway;
use crate::machine::Machine;
use crate::otlp::{self, Exporter};
use crate::request::peer::Peer;
use crate::telemetry::history::SAMPLE_INTERVAL;
use accept::{Accepting, ConnectionHandler};
pub(crate) use descriptors::ConnectionLimit;
pub use descriptors::raise_open_files;
// For fuzz targets.
pub use frames::{FrameEvent, Frames};
use listeners::ServerListener;
pub use listeners::{Inherited, NAMES};
pub use reload::ReloadError;
pub(crate) use reload::Reloading;
use reload::ServeLimits;
use shutdown::ShutdownControl;
use tls::TlsState;
use wire::WireFastPath;

/// Why the server cannot start.
#[derive(Debug, Error)]
pub enum StartError {
    #[error("cannot listen on {address} ({setting}): {source}{}", listen_hint(.source))]
    Listen {
        /// The setting that names the address.
        setting: &'static str,
        address: SocketAddr,
        source: io::Error,
    },
    /// A file that a setting names is unusable.
    #[error(transparent)]
    Unusable(#[from] io::Error),
}

/// Advice for the operator, if the cause is known.
fn listen_hint(error: &io::Error) -> &'static str {
    match error.kind() {
        io::ErrorKind::AddrInUse => {
            ". Another process listens on this address: stop it (`ss -ltnp` shows it) or configure another address"
        }
        io::ErrorKind::AddrNotAvailable => {
            ". No network interface of this machine has this address: configure one that exists"
        }
        io::ErrorKind::PermissionDenied => {
            ". The process has no permission: configure a port above 1023, or grant the capability CAP_NET_BIND_SERVICE"
        }
        _ => "",
    }
}

/// Facts that were read from the configured files.
#[derive(Clone, Copy, Debug)]
pub struct Checked {
    /// `None` without TLS.
    pub certificate_not_after: Option<NotAfter>,
}

/// A running server with its three listeners.
pub struct Server {
    gateway: Arc<Gateway>,
    reloading: Arc<Reloading>,
    proxy: SocketAddr,
    metrics: SocketAddr,
    admin: SocketAddr,
    inherited: Vec<(&'static str, SocketAddr)>,
    connection_limit: ConnectionLimit,
    draining: watch::Sender<bool>,
    proxying: JoinHandle<()>,
    internal: [JoinHandle<()>; 2],
    shedding: JoinHandle<()>,
    observing: JoinHandle<()>,
    keeping_warm: JoinHandle<()>,
    keeping_snapshot: JoinHandle<()>,
    keeping_fleet: JoinHandle<()>,
    /// With the memory of its queue.
    exporter: Option<(Exporter, Charge)>,
}

impl Server {
    /// Binds the listeners and starts to serve. Does not call upstream.
    ///
    /// # Errors
    /// If an address cannot be listened on, if plaintext is not allowed there, or if a configured file is unusable.
    pub async fn start(config: &Config, machine: impl Into<Machine>) -> Result<Self, StartError> {
        Self::start_on(Inherited::default(), config, machine).await
    }

    /// Like [`Self::start`], but uses inherited sockets where they exist.
    ///
    /// # Errors
    /// As [`Self::start`], and if an inherited socket has an address that its listener must not have.
    pub async fn start_on(
        inherited: Inherited,
        config: &Config,
        machine: impl Into<Machine>,
    ) -> Result<Self, StartError> {
        let machine = machine.into();
        let clock = machine.clock.clone();
        let gateway = Gateway::start(config, machine.clone()).await?;
        let listeners = listeners::open(&config.settings.listen, inherited, &machine.network)?;
        let inherited = NAMES.into_iter().zip(&listeners).filter(|(_, listener)| listener.is_inherited);
        let inherited = inherited.map(|(name, listener)| (name, listener.address)).collect();
        let [proxy, metrics, admin] = listeners;
        let addresses = [proxy.address, metrics.address, admin.address];
        let tls_state = TlsState::new(
            &config.settings.listen,
            proxy.address,
            admin.address,
            gateway.metrics().certificate_not_after.clone(),
        )?;
        let [proxy_tls, admin_tls] = tls_state.tls();

        let (limits, connection_limit) = (&config.settings.limits, ConnectionLimit::of_this_process(config));
        let (draining, drain) = watch::channel(false);
        let (client_limits, client_limits_receiver) = watch::channel(ServeLimits::for_clients(limits));
        let (internal_limits, internal_limits_receiver) = watch::channel(ServeLimits::for_internal(limits));
        let shutdown_control = ShutdownControl::new(drain.clone(), proxy.is_inherited);
        let shutdown = shutdown_control.shutdown();
        let budget = || Arc::clone(gateway.budget());
        // The internal listeners have few connections. Clients must not be able to use up their memory budget.
        let internal_budget = Budget::new(usize::MAX);
        let [probes_budget, operator_budget] = [(); 2].map(|()| Arc::clone(&internal_budget));
        let metrics_and_clock = (&**gateway.metrics(), clock.clone());
        let accepting = Accepting::for_clients(
            shutdown_control,
            client_limits_receiver,
            proxy_tls,
            connection_limit.effective,
            budget(),
            metrics_and_clock.clone(),
        )
        .with_peers({
            let gateway = Arc::clone(&gateway);
            move |address| gateway.active().peer(address)
        });
        let registry = Arc::clone(accepting.registry());
        // The internal listeners serve until the process ends, so that draining can be observed. Inherited ones close
        // earlier, because another process serves them then.
        let (_, never) = watch::channel(false);
        let (_, plaintext) = watch::channel(None);
        let internal_listener = |name, listener: &ServerListener, tls| {
            let requested = if listener.is_inherited { drain.clone() } else { never.clone() };
            let shutdown_control = ShutdownControl::new(requested, listener.is_inherited);
            let clients = Arc::clone(&registry);
            Accepting::for_internal(
                name,
                shutdown_control,
                internal_limits_receiver.clone(),
                tls,
                clients,
                Arc::clone(&internal_budget),
                metrics_and_clock.clone(),
            )
        };
        let remarks = if connection_limit.is_reduced() { format!("# {connection_limit}\n") } else { String::new() };
        let probes = Arc::new(Probes::new(Arc::clone(gateway.metrics()), budget(), drain.clone()));
        let operator = Arc::new(Operator::new(Arc::clone(&gateway), proxy.address, remarks, drain.clone()));
        let internal = [
            tokio::spawn(internal_listener("metrics", &metrics, plaintext).serve(metrics.socket, move |_, peer| {
                let (probes, account) = (Arc::clone(&probes), Account::open(&probes_budget, Peer::of(peer)));
                let request_handler = {
                    let account = account.clone();
                    move |request| {
                        // A client that has sent a request is shed after those that have sent nothing.
                        account.raise(ConnectionClass::Unknown, None);
                        let probes = Arc::clone(&probes);
                        async move { probes.answer(&request) }
                    }
                };
                ConnectionHandler { request_handler, fast_path: None, account, half_close: Arc::default() }
            })),
            tokio::spawn(internal_listener("admin", &admin, admin_tls).serve(admin.socket, move |local, peer| {
                let (operator, account) = (Arc::clone(&operator), Account::open(&operator_budget, Peer::of(peer)));
                let request_handler = {
                    let account = account.clone();
                    move |request| {
                        let (operator, account) = (Arc::clone(&operator), account.clone());
                        async move { operator.answer(request, local, &account).await }
                    }
                };
                ConnectionHandler { request_handler, fast_path: None, account, half_close: Arc::default() }
            })),
        ];
        let proxying = tokio::spawn({
            let gateway = Arc::clone(&gateway);
            accepting.serve(proxy.socket, move |local, peer| {
                let (gateway, connection) = (Arc::clone(&gateway), Arc::new(gateway.connection(local, peer)));
                let fast_path = WireFastPath::new(&gateway, &connection, shutdown.clone());
                let account = connection.account().clone();
                let half_close = Arc::clone(connection.half_close());
                let request_handler = move |request| {
                    let (gateway, connection) = (Arc::clone(&gateway), Arc::clone(&connection));
                    async move { gateway.handle(request, &connection).await }
                };
                ConnectionHandler { request_handler, fast_path: Some(Box::new(fast_path)), account, half_close }
            })
        });
        let shedding = tokio::spawn(short_of_memory::run(Arc::clone(&gateway), registry, clock.clone()));
        let observing = tokio::spawn(observe(Arc::clone(&gateway)));
        let keeping_warm = tokio::spawn(Arc::clone(&gateway).keep_warm());
        let keeping_snapshot = tokio::spawn(Arc::clone(&gateway).keep_snapshot());
        let keeping_fleet = tokio::spawn(Arc::clone(&gateway).keep_fleet());
        let exporter = start_export(config, &gateway, proxy.address, &machine)?;
        let reloading = Arc::new(Reloading::new(Arc::clone(&gateway), client_limits, internal_limits, tls_state));
        let [proxy, metrics, admin] = addresses;
        Ok(Self {
            gateway,
            reloading,
            proxy,
            metrics,
            admin,
            inherited,
            connection_limit,
            draining,
            proxying,
            internal,
            shedding,
            observing,
            keeping_warm,
            keeping_snapshot,
            keeping_fleet,
            exporter,
        })
    }

    /// Checks whether the server could start with this configuration, as far as files are concerned.
    ///
    /// # Errors
    /// All files that are unusable.
    pub fn check(config: &Config) -> Result<Checked, Vec<io::Error>> {
        let mut errors: Vec<io::Error> = Gateway::new(config, Clock::System).err().into_iter().collect();
        errors.extend(config.otlp.as_ref().and_then(|otlp| otlp::tls_config(otlp).err()));
        match tls::prepare(&config.settings.listen) {
            Ok(prepared) if errors.is_empty() => Ok(Checked { certificate_not_after: prepared.not_after() }),
            prepared => {
                errors.extend(prepared.err().into_iter().flatten());
                Err(errors)
            }
        }
    }

    pub fn gateway(&self) -> &Arc<Gateway> {
        &self.gateway
    }

    pub fn reloading(&self) -> &Arc<Reloading> {
        &self.reloading
    }

    pub fn proxy_address(&self) -> SocketAddr {
        self.proxy
    }

    pub fn metrics_address(&self) -> SocketAddr {
        self.metrics
    }

    pub fn admin_address(&self) -> SocketAddr {
        self.admin
    }

    /// The names and addresses of inherited listeners.
    pub fn inherited(&self) -> &[(&'static str, SocketAddr)] {
        &self.inherited
    }

    pub fn connection_limit(&self) -> ConnectionLimit {
        self.connection_limit
    }

    /// Resolves if the proxy listener ends unexpectedly.
    pub async fn failed(&mut self) {
        if let Err(error) = (&mut self.proxying).await {
            tracing::error!(%error, "the proxy listener failed");
        }
    }

    /// Stops accepting and waits up to `limits.shutdown_timeout` for requests in flight.
    pub async fn stop(self) {
        self.keeping_warm.abort();
        self.draining.send_replace(true);
        if let Err(error) = self.proxying.await {
            tracing::error!(%error, "the proxy listener failed");
        }
        self.keeping_snapshot.abort();
        self.gateway.end_fleet().await;
        self.keeping_fleet.abort();
        if let Some((exporter, _)) = self.exporter {
            exporter.end().await;
        }
        self.gateway.end_snapshot().await;
        for task in self.internal.into_iter().chain([self.shedding, self.observing]) {
            task.abort();
        }
    }
}

/// Starts the export of spans and metrics, if there is one. Its memory is charged at once.
fn start_export(
    config: &Config,
    gateway: &Arc<Gateway>,
    proxy: SocketAddr,
    machine: &Machine,
) -> io::Result<Option<(Exporter, Charge)>> {
    let Some(configured) = &config.otlp else { return Ok(None) };
    let otlp = &configured.fitted(gateway.budget().limit());
    if otlp.max_queue < configured.max_queue {
        let (configured, used) = (configured.max_queue, otlp.max_queue);
        tracing::warn!(configured, used, "otlp.max_queue is lowered: spans may use an eighth of limits.memory");
    }
    let spans = gateway.observer().take_spans();
    let memory = gateway.budget().charge(Purpose::Log, spans.as_ref().map_or(0, |_| otlp.span_memory()));
    let instance = format!("{:08x}{:08x}", machine.random.u32()?, machine.random.u32()?);
    let reporting = Arc::clone(gateway);
    let on_event = move |event| reporting.observer().record_event(event);
    let listener = (proxy, config.settings.listen.has_tls());
    let parts = (Arc::clone(gateway.metrics()), machine);
    Exporter::start(otlp, spans, listener, instance, parts, on_event).map(|exporter| Some((exporter, memory)))
}

/// Takes the samples of the last hour, logs what begins and ends to be wrong, and logs pending repetitions of events and
/// failures, which would otherwise only be logged at the next event.
async fn observe(gateway: Arc<Gateway>) {
    loop {
        tokio::time::sleep(SAMPLE_INTERVAL).await;
        gateway.observer().take_sample();
        gateway.log_conditions();
        gateway.observer().log_due();
    }
}
