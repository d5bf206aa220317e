//! `serve`: the gateway, until it is told to stop.

use std::io;
use std::process::ExitCode;
use std::sync::Arc;

use tokio::signal::unix::{Signal, SignalKind, signal};

use super::reload::Watching;
use super::supervisor::Supervisor;
use super::{USAGE, announce, block_on, failure, inherit};
use crate::clock::Clock;
use crate::config::{Config, Source};
use crate::server::{Server, StartError};
use crate::telemetry::events::Event;
use crate::telemetry::logs;

pub(super) fn run(config: &Config, source: Source) -> ExitCode {
    logs::init(&config.settings.log);
    let inherited = match inherit::sockets() {
        Ok(inherited) => inherited,
        Err(error) => return failure(USAGE, &error),
    };
    let supervisor = Supervisor::from_environment();
    block_on(async {
        // Before anyone is told that it is ready: whoever stops it then must not kill it.
        let (mut signals, hangups) = match StopSignals::new().and_then(|stop| Ok((stop, signal(SignalKind::hangup())?)))
        {
            Ok(signals) => signals,
            Err(error) => return failure(1, &format!("cannot wait for signals: {error}")),
        };
        let mut server = match Server::start_on(inherited, config, Clock::System).await {
            Ok(server) => server,
            Err(error @ StartError::Unusable(_)) => return failure(USAGE, &error),
            Err(error) => return failure(1, &error),
        };
        announce::ready(config, &server);
        supervisor.ready(&format!("clients connect to {}", server.proxy_address()));
        let watching = Watching::new(source, Arc::clone(server.reloading()), supervisor.clone());
        tokio::select! {
            () = signals.received() => {}
            () = watching.run(hangups) => {}
            () = server.failed() => return failure(1, &"the proxy listener has failed; its log has more"),
        }
        supervisor.stopping();
        server.gateway().notable(Event::Stopping, "stopping: no new connections, finishing what is in flight", None);
        tracing::info!("stopping: no new connections, finishing what is in flight");
        tokio::select! {
            () = server.stop() => tracing::info!("stopped"),
            () = signals.received() => tracing::warn!("stopped at once, being told again"),
        }
        ExitCode::SUCCESS
    })
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
