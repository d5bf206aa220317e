//! `serve`: starts the gateway, runs it until a signal, and stops it. An orderly stop must exit with 0.

use std::process::ExitCode;
use std::sync::Arc;

use tokio::signal::unix::{SignalKind, signal};

use super::reload::ConfigWatcher;
use super::runtime::block_on;
use super::signals::{self, StopSignals};
use super::supervisor::Supervisor;
use super::{USAGE, announce, failure, inherit, report_unusable_files, watchdog};
use crate::budget::Purpose;
use crate::clock::Clock;
use crate::config::{Config, SettingsSource};
use crate::server::{Server, StartError, raise_open_files};
use crate::telemetry::events::{Event, NewEvent};
use crate::telemetry::logs;

pub(super) fn run(config: &Config, source: SettingsSource) -> ExitCode {
    // Dropped last, so that all log lines are written.
    let _log = match logs::begin(&config.settings.log) {
        Ok(log) => log,
        Err(error) => return failure(1, &format!("cannot start logging: {error}")),
    };
    let inherited = match inherit::sockets() {
        Ok(inherited) => inherited,
        Err(error) => return failure(USAGE, &error),
    };
    if let Err(error) = raise_open_files() {
        tracing::warn!(%error, "cannot raise the limit of open files");
    }
    let supervisor = Supervisor::from_environment();
    block_on(async {
        // Before readiness is reported: after that, a signal must stop the gateway gracefully and not kill it.
        let signals = StopSignals::new().and_then(|stop| Ok((stop, signal(SignalKind::hangup())?)));
        let (mut signals, hangups) = match signals.and_then(|signals| signals::ignore().map(|()| signals)) {
            Ok(signals) => signals,
            Err(error) => return failure(1, &format!("cannot handle signals: {error}")),
        };
        let mut server = match Server::start_on(inherited, config, Clock::System).await {
            Ok(server) => server,
            Err(StartError::Unusable(_)) if report_unusable_files(config) => return ExitCode::from(USAGE),
            Err(error @ StartError::Unusable(_)) => return failure(USAGE, &error),
            Err(error) => return failure(1, &error),
        };
        // The maximum size of the log queue is charged once, so that single lines need no charge.
        let _log = server.gateway().budget().charge(Purpose::Log, logs::CAPACITY);
        announce::ready(config, source.file(), &server);
        supervisor.ready(&format!("clients connect to {}", server.proxy_address()));
        if let Some(limit) = watchdog::limit().filter(|_| supervisor.is_configured()) {
            tokio::spawn(watchdog::run(supervisor.clone(), limit, server.metrics_address()));
        }
        let watcher = ConfigWatcher::new(source, Arc::clone(server.reloading()), supervisor.clone());
        tokio::select! {
            () = signals.received() => {}
            () = watcher.run(hangups) => {}
            () = server.failed() => {
                server.gateway().observer().log_rest();
                return failure(1, &"the proxy listener failed: see the log");
            }
        }
        supervisor.stopping();
        let what = "stopping: no new connections, waiting for requests in progress";
        server.gateway().observer().record_event(NewEvent::new(Event::Stopping, what));
        let gateway = Arc::clone(server.gateway());
        tokio::select! {
            () = server.stop() => {
                gateway.observer().log_rest();
                tracing::info!("stopped");
            }
            () = signals.received() => {
                gateway.observer().log_rest();
                tracing::warn!("stopped immediately by a second signal");
            }
        }
        ExitCode::SUCCESS
    })
}
