//! Listening: opens the three listeners, serves until told to stop, and then lets what is in flight
//! finish.
//!
//! The caller owns the moment of stopping; this module owns the order: not ready, no new
//! connections, finish, and only then stop showing metrics. Which sockets these are is in `listeners.rs`, what clients
//! see when one closes in `leaving.rs`. What a single client may do is in `serve.rs` (versions of HTTP, sizes) and
//! `pulse.rs` (times), what it has to speak below HTTP in `tls.rs`. What hyper leaves undone in
//! HTTP/2 is in `http2.rs`, `own_frames.rs` and `uploads.rs`. That there are not too many connections is in `accept.rs`;
//! which of them are closed for others, in `registry.rs` and `shed.rs`, and when, in `short_of_memory.rs`; how many file descriptors there are for them, in
//! `descriptors.rs`. What a connection is charged
//! is in `memory.rs`, how an idle one frees memory in `renew.rs`, what becomes of one whose client has closed its sending side in `half_closed.rs`, in which order newcomers wait in `waiting.rs`. What a reload changes of that is in `reload.rs`.

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
use crate::budget::{Account, Budget, ConnectionClass};
use crate::certificate::NotAfter;
use crate::clock::Clock;
use crate::config::Config;
use crate::gateway::Gateway;
use crate::request::peer::Peer;
use crate::telemetry::events::REPEAT_INTERVAL;
use accept::{Accepting, Handler};
pub(crate) use descriptors::ConnectionLimit;
pub use descriptors::raise_open_files;
use listeners::ServerListener;
pub use listeners::{Inherited, NAMES};
pub use reload::ReloadError;
pub(crate) use reload::Reloading;
use reload::ServeLimits;
use shutdown::ShutdownControl;
use tls::TlsState;
use wire::WireFastPath;

/// Why the gateway can't start.
#[derive(Debug, Error)]
pub enum StartError {
    /// An address can't be listened on.
    #[error("cannot listen on {address} ({setting}): {source}{}", listen_hint(.source))]
    Listen {
        /// The setting that names the address.
        setting: &'static str,
        /// The address.
        address: SocketAddr,
        /// Why.
        source: io::Error,
    },
    /// Something that a setting names is unusable.
    #[error(transparent)]
    Unusable(#[from] io::Error),
}

/// What to do about an address that can't be listened on, if anything is known.
fn listen_hint(error: &io::Error) -> &'static str {
    match error.kind() {
        io::ErrorKind::AddrInUse => {
            ". Another process listens there: expected another address, or that it is stopped (`ss -ltnp` shows it)"
        }
        io::ErrorKind::AddrNotAvailable => {
            ". No network interface of this machine has this address: expected one that does"
        }
        io::ErrorKind::PermissionDenied => {
            ". The system does not allow it: expected a port from 1024 on, or the capability CAP_NET_BIND_SERVICE"
        }
        _ => "",
    }
}

/// What the files that settings name tell beside that they are usable.
#[derive(Clone, Copy, Debug)]
pub struct Checked {
    /// When the certificate for clients ends. `None` without TLS.
    pub certificate_not_after: Option<NotAfter>,
}

/// A gateway that listens.
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
    watching: [JoinHandle<()>; 2],
    shedding: JoinHandle<()>,
    telling: JoinHandle<()>,
}

impl Server {
    /// Binds and begins to serve. Does not touch upstream.
    ///
    /// # Errors
    /// If an address can't be listened on, or not in plain text, or a file that a setting names is unusable.
    pub async fn start(config: &Config, clock: Clock) -> Result<Self, StartError> {
        Self::start_on(Inherited::default(), config, clock).await
    }

    /// The same on sockets that were handed down, as far as there are any.
    ///
    /// # Errors
    /// Likewise, and if one of them has an address that its listener may not have.
    pub async fn start_on(inherited: Inherited, config: &Config, clock: Clock) -> Result<Self, StartError> {
        let gateway = Gateway::new(config, clock.clone())?;
        let listeners = listeners::open(&config.settings.listen, inherited)?;
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
        let [with_clients, with_operator] = tls_state.tls();

        let (limits, connection_limit) = (&config.settings.limits, ConnectionLimit::of_this_process(config));
        let (draining, drain) = watch::channel(false);
        let (clients, for_clients) = watch::channel(ServeLimits::for_clients(limits));
        let (watchers, for_watchers) = watch::channel(ServeLimits::for_watchers(limits));
        let exit = ShutdownControl::new(drain.clone(), proxy.is_inherited);
        let shutdown = exit.shutdown();
        let budget = || Arc::clone(gateway.budget());
        // Connections for metrics and for the operator are few, and clients must not be able to keep them out.
        let of_watchers = Budget::new(usize::MAX);
        let [of_probes, of_operator] = [(); 2].map(|()| Arc::clone(&of_watchers));
        let observed = (&**gateway.metrics(), clock);
        let accepting = Accepting::for_clients(
            exit,
            for_clients,
            with_clients,
            connection_limit.effective,
            budget(),
            observed.clone(),
        )
        .telling_apart({
            let gateway = Arc::clone(&gateway);
            move |address| gateway.active().peer(address)
        });
        let registry = Arc::clone(accepting.registry());
        // These two go on until the server is gone, so that draining can be watched; unless they were handed down,
        // for then it is another process that is asked there.
        let (_, never) = watch::channel(false);
        let (_, plain) = watch::channel(None);
        let apart = |name, listener: &ServerListener, tls| {
            let wanted = if listener.is_inherited { drain.clone() } else { never.clone() };
            let exit = ShutdownControl::new(wanted, listener.is_inherited);
            let clients = Arc::clone(&registry);
            Accepting::for_watchers(
                name,
                exit,
                for_watchers.clone(),
                tls,
                clients,
                Arc::clone(&of_watchers),
                observed.clone(),
            )
        };
        let remarks = if connection_limit.is_reduced() { format!("# {connection_limit}\n") } else { String::new() };
        let probes = Arc::new(Probes::new(Arc::clone(gateway.metrics()), budget(), drain.clone()));
        let operator = Arc::new(Operator::new(Arc::clone(&gateway), proxy.address, remarks));
        let watching = [
            tokio::spawn(apart("metrics", &metrics, plain).serve(metrics.socket, move |_, peer| {
                let (probes, account) = (Arc::clone(&probes), Account::open(&of_probes, Peer::of(peer)));
                let answer = {
                    let account = account.clone();
                    move |request| {
                        // A client that has sent a request keeps its place before those that have sent nothing.
                        account.raise(ConnectionClass::Unknown, None);
                        let probes = Arc::clone(&probes);
                        async move { probes.answer(&request) }
                    }
                };
                Handler { answer, fast_path: None, account, half_close: Arc::default() }
            })),
            tokio::spawn(apart("admin", &admin, with_operator).serve(admin.socket, move |local, peer| {
                let (operator, account) = (Arc::clone(&operator), Account::open(&of_operator, Peer::of(peer)));
                let answer = {
                    let account = account.clone();
                    move |request| {
                        let (operator, account) = (Arc::clone(&operator), account.clone());
                        async move { operator.answer(request, local, &account).await }
                    }
                };
                Handler { answer, fast_path: None, account, half_close: Arc::default() }
            })),
        ];
        let proxying = tokio::spawn({
            let gateway = Arc::clone(&gateway);
            accepting.serve(proxy.socket, move |local, peer| {
                let (gateway, connection) = (Arc::clone(&gateway), Arc::new(gateway.connection(local, peer)));
                let fast_path = WireFastPath::new(&gateway, &connection, shutdown.clone());
                let account = connection.account().clone();
                let half_close = Arc::clone(connection.half_close());
                let answer = move |request| {
                    let (gateway, connection) = (Arc::clone(&gateway), Arc::clone(&connection));
                    // Apart, so that it is freed when the answer begins, and is not moved through the futures around it.
                    Box::pin(async move { gateway.handle(request, &connection).await })
                };
                Handler { answer, fast_path: Some(Box::new(fast_path)), account, half_close }
            })
        });
        let shedding = tokio::spawn(short_of_memory::run(Arc::clone(&gateway), registry, observed.1.clone()));
        let telling = tokio::spawn(log_repetitions(Arc::clone(&gateway)));
        let reloading = Arc::new(Reloading::new(Arc::clone(&gateway), clients, watchers, tls_state));
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
            watching,
            shedding,
            telling,
        })
    }

    /// Whether it could start with these settings, as far as files are concerned.
    ///
    /// # Errors
    /// Which file is unusable.
    pub fn check(config: &Config) -> Result<Checked, Vec<io::Error>> {
        let mut wrong: Vec<io::Error> = Gateway::new(config, Clock::System).err().into_iter().collect();
        match tls::prepare(&config.settings.listen) {
            Ok(prepared) if wrong.is_empty() => Ok(Checked { certificate_not_after: prepared.not_after() }),
            prepared => {
                wrong.extend(prepared.err().into_iter().flatten());
                Err(wrong)
            }
        }
    }

    /// The gateway that answers.
    pub fn gateway(&self) -> &Arc<Gateway> {
        &self.gateway
    }

    /// What gives it other settings.
    pub fn reloading(&self) -> &Arc<Reloading> {
        &self.reloading
    }

    /// Where clients connect.
    pub fn proxy_address(&self) -> SocketAddr {
        self.proxy
    }

    /// Where Prometheus and health checks connect.
    pub fn metrics_address(&self) -> SocketAddr {
        self.metrics
    }

    /// Where the operator connects.
    pub fn admin_address(&self) -> SocketAddr {
        self.admin
    }

    /// The listeners whose sockets were handed down, and where they are.
    pub fn inherited(&self) -> &[(&'static str, SocketAddr)] {
        &self.inherited
    }

    /// How many connections clients may have open.
    pub fn connection_limit(&self) -> ConnectionLimit {
        self.connection_limit
    }

    /// Resolves if the proxy listener ends without being told to.
    pub async fn failed(&mut self) {
        if let Err(error) = (&mut self.proxying).await {
            tracing::error!(%error, "the proxy listener failed");
        }
    }

    /// Stops accepting, waits for what is in flight as long as `limits.shutdown_timeout` allows, and
    /// ends.
    pub async fn stop(self) {
        self.draining.send_replace(true);
        if let Err(error) = self.proxying.await {
            tracing::error!(%error, "the proxy listener failed");
        }
        for task in self.watching.into_iter().chain([self.shedding, self.telling]) {
            task.abort();
        }
    }
}

/// Has repetitions of events and failures logged that nothing else would tell of: those after which nothing happened.
async fn log_repetitions(gateway: Arc<Gateway>) {
    loop {
        tokio::time::sleep(REPEAT_INTERVAL).await;
        gateway.observer().log_due();
    }
}
