//! `serve`: the gateway, until it is told to stop.

use std::io;
use std::process::ExitCode;

use tokio::signal::unix::{SignalKind, signal};

use super::{block_on, failure};
use crate::catalogue::Service;
use crate::clock::Clock;
use crate::config::Config;
use crate::server::Server;
use crate::telemetry::logs;

pub(super) fn run(config: &Config) -> ExitCode {
    logs::init(&config.settings.log);
    block_on(async {
        let server = match Server::start(config, Clock::System).await {
            Ok(server) => server,
            Err(error) => return failure(1, &error),
        };
        announce(config, &server);
        if let Err(error) = stop_signal().await {
            return failure(1, &format!("cannot wait for signals: {error}"));
        }
        tracing::info!("stopping: no new connections, finishing what is in flight");
        server.stop().await;
        tracing::info!("stopped");
        ExitCode::SUCCESS
    })
}

fn announce(config: &Config, server: &Server) {
    for service in Service::ALL {
        let origin = config.catalogue.origin(service);
        tracing::info!(service = service.as_str(), url = %origin, "upstream");
        if origin.is_plaintext() && !is_this_machine(origin.authority().host()) {
            tracing::warn!(url = %origin, "tokens will travel to upstream in the clear");
        }
    }
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

fn is_this_machine(host: &str) -> bool {
    let address = host.trim_matches(['[', ']']).parse::<std::net::IpAddr>();
    host == "localhost" || address.is_ok_and(|address| address.is_loopback())
}

/// Resolves on SIGTERM or Ctrl-C.
pub(super) async fn stop_signal() -> io::Result<()> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    tokio::select! {
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
    }
    Ok(())
}
