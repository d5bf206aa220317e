//! Listening: opens the three listeners, serves until told to stop, and then lets what is in flight
//! finish.
//!
//! The caller owns the moment of stopping; this module owns the order: not ready, no new
//! connections, finish, and only then stop showing metrics. Which sockets these are is in `listeners.rs`, what clients
//! see when one closes in `leaving.rs`. What a single client may do is in `serve.rs` (versions of HTTP, sizes) and
//! `pulse.rs` (times), what it has to speak below HTTP in `tls.rs`; that there are not too many is in `accept.rs`. What
//! a reload changes of that is in `reload.rs`.

mod accept;
mod exchange;
mod frames;
mod goaway;
mod leaving;
mod listeners;
mod pulse;
mod reload;
mod serve;
mod shortcut;
#[cfg(test)]
mod tests;
mod tls;
mod transport;
mod wire;

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;

use thiserror::Error;
use tokio::sync::watch;
use tokio::task::JoinHandle;

use crate::admin::{Operator, Probes};
use crate::clock::Clock;
use crate::config::Config;
use crate::gateway::{Connection, Gateway};
use accept::Accepting;
use leaving::Exit;
use listeners::Listener;
pub use listeners::{Inherited, NAMES};
use reload::Bounds;
pub use reload::{Refused, Reloading};
use shortcut::Shortcut;
use tls::Speech;

/// Why the gateway can't start.
#[derive(Debug, Error)]
pub enum StartError {
    /// An address can't be listened on.
    #[error("cannot listen on {address} ({setting}): {source}")]
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

/// A gateway that listens.
pub struct Server {
    gateway: Arc<Gateway>,
    reloading: Arc<Reloading>,
    proxy: SocketAddr,
    metrics: SocketAddr,
    admin: SocketAddr,
    inherited: Vec<(&'static str, SocketAddr)>,
    draining: watch::Sender<bool>,
    proxying: JoinHandle<()>,
    watching: [JoinHandle<()>; 2],
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
        let gateway = Gateway::new(config, clock)?;
        let listeners = listeners::open(&config.settings.listen, inherited)?;
        let inherited = NAMES.into_iter().zip(&listeners).filter(|(_, listener)| listener.is_inherited);
        let inherited = inherited.map(|(name, listener)| (name, listener.address)).collect();
        let [proxy, metrics, admin] = listeners;
        let addresses = [proxy.address, metrics.address, admin.address];
        let speech = Speech::new(&config.settings.listen, proxy.address, admin.address)?;
        let [with_clients, with_operator] = speech.spoken();

        let limits = &config.settings.limits;
        let (draining, drain) = watch::channel(false);
        let (clients, for_clients) = watch::channel(Bounds::for_clients(limits));
        let (watchers, for_watchers) = watch::channel(Bounds::for_watchers(limits));
        let exit = Exit::new(drain.clone(), proxy.is_inherited);
        let leaving = exit.leaving();
        let accepting =
            Accepting::new("proxy", exit, for_clients, with_clients).many(limits.max_connections.0, gateway.metrics());
        // These two go on until the server is gone, so that draining can be watched; unless they were handed down,
        // for then it is another process that is asked there.
        let (_, never) = watch::channel(false);
        let (_, plain) = watch::channel(None);
        let apart = |name, listener: &Listener, tls| {
            let wanted = if listener.is_inherited { drain.clone() } else { never.clone() };
            Accepting::new(name, Exit::new(wanted, listener.is_inherited), for_watchers.clone(), tls)
        };
        let probes = Arc::new(Probes::new(Arc::clone(gateway.metrics()), drain.clone()));
        let operator = Arc::new(Operator::new(Arc::clone(&gateway), proxy.address));
        let watching = [
            tokio::spawn(apart("metrics", &metrics, plain).serve(metrics.socket, move |_| {
                let probes = Arc::clone(&probes);
                let answer = move |request| {
                    let probes = Arc::clone(&probes);
                    async move { probes.answer(&request) }
                };
                (answer, None)
            })),
            tokio::spawn(apart("admin", &admin, with_operator).serve(admin.socket, move |local| {
                let operator = Arc::clone(&operator);
                let answer = move |request| {
                    let operator = Arc::clone(&operator);
                    async move { operator.answer(request, local).await }
                };
                (answer, None)
            })),
        ];
        let proxying = tokio::spawn({
            let gateway = Arc::clone(&gateway);
            accepting.serve(proxy.socket, move |local| {
                let (gateway, connection) = (Arc::clone(&gateway), Arc::new(Connection::new(local)));
                let shortcut = Shortcut::new(Arc::clone(&gateway), Arc::clone(&connection), leaving.clone());
                let answer = move |request| {
                    let (gateway, connection) = (Arc::clone(&gateway), Arc::clone(&connection));
                    async move { gateway.handle(request, &connection).await }
                };
                (answer, Some(shortcut))
            })
        });
        let reloading = Arc::new(Reloading::new(Arc::clone(&gateway), clients, watchers, speech));
        let [proxy, metrics, admin] = addresses;
        Ok(Self { gateway, reloading, proxy, metrics, admin, inherited, draining, proxying, watching })
    }

    /// Whether it could start with these settings, as far as files are concerned.
    ///
    /// # Errors
    /// Which file is unusable.
    pub fn check(config: &Config) -> Result<(), StartError> {
        Gateway::new(config, Clock::System)?;
        Ok(tls::prepare(&config.settings.listen).map(drop)?)
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

    /// Resolves if the proxy listener ends without being told to.
    pub async fn failed(&mut self) {
        if let Err(error) = (&mut self.proxying).await {
            tracing::error!(%error, "the proxy listener failed");
        }
    }

    /// Stops accepting, waits for what is in flight as long as `limits.drain_timeout` allows, and
    /// ends.
    pub async fn stop(self) {
        self.draining.send_replace(true);
        if let Err(error) = self.proxying.await {
            tracing::error!(%error, "the proxy listener failed");
        }
        for listener in self.watching {
            listener.abort();
        }
    }
}
