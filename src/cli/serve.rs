//! `serve`: the gateway, until it is told to stop.

use std::io;
use std::process::ExitCode;
use std::sync::Arc;

use tokio::signal::unix::{Signal, SignalKind, signal};

use super::reload::Watching;
use super::{USAGE, block_on, failure};
use crate::catalogue::Catalogue;
use crate::clock::Clock;
use crate::config::{Config, Source};
use crate::egress::Egress;
use crate::server::{Server, StartError};
use crate::telemetry::logs;

pub(super) fn run(config: &Config, source: Source) -> ExitCode {
    let verbosity = logs::init(&config.settings.log);
    block_on(async {
        // Before anyone is told that it is ready: whoever stops it then must not kill it.
        let (mut signals, hangups) = match StopSignals::new().and_then(|stop| Ok((stop, signal(SignalKind::hangup())?)))
        {
            Ok(signals) => signals,
            Err(error) => return failure(1, &format!("cannot wait for signals: {error}")),
        };
        let mut server = match Server::start(config, Clock::System).await {
            Ok(server) => server,
            Err(error @ StartError::Unusable(_)) => return failure(USAGE, &error),
            Err(error) => return failure(1, &error),
        };
        announce(config, &server);
        let watching = Watching::new(source, Arc::clone(server.reloading()), verbosity);
        tokio::select! {
            () = signals.received() => {}
            () = watching.run(hangups) => {}
            () = server.failed() => return failure(1, &"the proxy listener has failed; its log has more"),
        }
        tracing::info!("stopping: no new connections, finishing what is in flight");
        tokio::select! {
            () = server.stop() => tracing::info!("stopped"),
            () = signals.received() => tracing::warn!("stopped at once, being told again"),
        }
        ExitCode::SUCCESS
    })
}

fn announce(config: &Config, server: &Server) {
    announce_upstream(&config.catalogue, &config.egress);
    if !server.proxy_address().ip().is_loopback() {
        tracing::warn!(
            address = %server.proxy_address(),
            "clients' tokens travel in the clear to this address: keep it inside a pod or a trusted network"
        );
    }
    tracing::info!(
        version = env!("CARGO_PKG_VERSION"),
        mode = config.settings.mode.as_str(),
        proxy = %server.proxy_address(),
        metrics = %server.metrics_address(),
        admin = %server.admin_address(),
        "ready"
    );
}

/// Tells where upstream is, and how it is reached.
pub(super) fn announce_upstream(catalogue: &Catalogue, egress: &Egress) {
    for service in catalogue.services() {
        let origin = catalogue.origin(service);
        let way = egress.way_to(origin.authority(), origin.is_plaintext());
        tracing::info!(service = service.as_str(), url = %origin, reached = %way, "upstream");
        if origin.is_plaintext() && !is_this_machine(origin.authority().host()) {
            tracing::warn!(url = %origin, "tokens will travel to upstream in the clear");
        }
    }
}

fn is_this_machine(host: &str) -> bool {
    let address = host.trim_matches(['[', ']']).parse::<std::net::IpAddr>();
    host == "localhost" || address.is_ok_and(|address| address.is_loopback())
}

/// SIGTERM and Ctrl-C. From its making on, they no longer kill the process.
pub(super) struct StopSignals {
    terminate: Signal,
    interrupt: Signal,
}

impl StopSignals {
    pub(super) fn new() -> io::Result<Self> {
        Ok(Self { terminate: signal(SignalKind::terminate())?, interrupt: signal(SignalKind::interrupt())? })
    }

    /// Resolves on the next of them.
    pub(super) async fn received(&mut self) {
        tokio::select! {
            _ = self.terminate.recv() => {}
            _ = self.interrupt.recv() => {}
        }
    }
}
