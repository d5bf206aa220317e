//! Listening: binds the three listeners, serves until told to stop, and then lets what is in flight
//! finish.
//!
//! The caller owns the moment of stopping; this module owns the order: not ready, no new
//! connections, finish, and only then stop showing metrics. What a single client may do is in `serve.rs`
//! (versions of HTTP, sizes) and `pulse.rs` (times); that there are not too many is in `accept.rs`. What a reload
//! changes of that is in `reload.rs`.

mod accept;
mod exchange;
mod frames;
mod pulse;
mod reload;
mod serve;
mod shortcut;
#[cfg(test)]
mod tests;
mod wire;

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;

use thiserror::Error;
use tokio::net::{TcpListener, TcpSocket};
use tokio::sync::watch;
use tokio::task::JoinHandle;

use crate::admin::{Operator, Probes};
use crate::clock::Clock;
use crate::config::Config;
use crate::gateway::{Connection, Gateway};
use accept::Accepting;
use reload::Bounds;
pub use reload::{Refused, Reloading};
use serve::Serving;
use shortcut::Shortcut;

/// How many connections the listeners for metrics and for the operator accept at once, each. So few that
/// they take nothing from clients; so many that whoever is in charge gets through.
const MAX_WATCHING: usize = 64;

/// What the kernel holds for a client that doesn't read, in bytes (Linux takes twice that). Left to itself it
/// holds megabytes; then a client that reads slowly but steadily would seem to stand still for minutes.
const SEND_BUFFER: u32 = 128 * 1024;

/// How many connections wait in the kernel to be accepted.
const BACKLOG: u32 = 1024;

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
    draining: watch::Sender<bool>,
    proxying: JoinHandle<()>,
    watching: [JoinHandle<()>; 2],
}

impl Server {
    /// Binds and begins to serve. Does not touch upstream.
    ///
    /// # Errors
    /// If an address can't be listened on, or `upstream.ca_file` is unusable.
    pub async fn start(config: &Config, clock: Clock) -> Result<Self, StartError> {
        let listen = &config.settings.listen;
        let gateway = Gateway::new(config, clock)?;
        let (proxy_listener, proxy) = bind("listen.proxy", listen.proxy.0)?;
        let (metrics_listener, metrics) = bind("listen.metrics", listen.metrics.0)?;
        let (admin_listener, admin) = bind("listen.admin", listen.admin.0)?;

        let limits = &config.settings.limits;
        let (draining, drain) = watch::channel(false);
        let (clients, for_clients) = watch::channel(Bounds::for_clients(limits));
        let (watchers, for_watchers) = watch::channel(Bounds::for_watchers(limits));
        let metrics_of = gateway.metrics();
        let accepting = Accepting {
            serving: Serving {
                bounds: Bounds::for_clients(limits),
                http2: true,
                dropped: Some(metrics_of.connections_ended.clone()),
                drain: drain.clone(),
            },
            bounds: for_clients,
            listener: "proxy",
            max_connections: limits.max_connections.0,
            tally: Some((metrics_of.connections.clone(), metrics_of.accept_pauses.clone())),
        };
        // These two go on until the server is gone, so that draining can be watched.
        let (_, never) = watch::channel(false);
        let apart = |listener| Accepting {
            serving: Serving {
                bounds: Bounds::for_watchers(limits),
                http2: false,
                dropped: None,
                drain: never.clone(),
            },
            bounds: for_watchers.clone(),
            listener,
            max_connections: MAX_WATCHING,
            tally: None,
        };
        let probes = Arc::new(Probes::new(Arc::clone(gateway.metrics()), drain));
        let operator = Arc::new(Operator::new(Arc::clone(&gateway)));
        let watching = [
            tokio::spawn(apart("metrics").serve(metrics_listener, move |_| {
                let probes = Arc::clone(&probes);
                let answer = move |request| {
                    let probes = Arc::clone(&probes);
                    async move { probes.answer(&request) }
                };
                (answer, None)
            })),
            tokio::spawn(apart("admin").serve(admin_listener, move |local| {
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
            accepting.serve(proxy_listener, move |local| {
                let (gateway, connection) = (Arc::clone(&gateway), Arc::new(Connection::new(local)));
                let shortcut = Shortcut::new(Arc::clone(&gateway), Arc::clone(&connection));
                let answer = move |request| {
                    let (gateway, connection) = (Arc::clone(&gateway), Arc::clone(&connection));
                    async move { gateway.handle(request, &connection).await }
                };
                (answer, Some(shortcut))
            })
        });
        let reloading = Arc::new(Reloading::new(Arc::clone(&gateway), clients, watchers));
        Ok(Self { gateway, reloading, proxy, metrics, admin, draining, proxying, watching })
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

fn bind(setting: &'static str, address: SocketAddr) -> Result<(TcpListener, SocketAddr), StartError> {
    let failed = |source| StartError::Listen { setting, address, source };
    let listener = listen(address).map_err(failed)?;
    let bound = listener.local_addr().map_err(failed)?;
    Ok((listener, bound))
}

/// As `TcpListener::bind` does it, and accepted connections have this listener's buffer.
fn listen(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = if address.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() }?;
    // Or a gateway that is started again could not listen while connections of the last one linger.
    #[cfg(unix)]
    socket.set_reuseaddr(true)?;
    socket.set_send_buffer_size(SEND_BUFFER)?;
    socket.bind(address)?;
    socket.listen(BACKLOG)
}
