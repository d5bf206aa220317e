//! Other settings for a running server: of the gateway, and of the connections that are accepted from then on.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use thiserror::Error;
use tokio::sync::watch;

use super::activity::ConnectionTimeouts;
use super::tls::TlsState;
use crate::certificate::NotAfter;
use crate::config::settings::Limits;
use crate::config::table::FollowUp;
use crate::config::{Config, ConfigError, SettingsDiff};
use crate::gateway::Gateway;
use crate::telemetry::events::{Event, NewEvent};
use crate::telemetry::logs;
use crate::telemetry::reloads::Reload;

/// How long a connection without a request stays open on the listeners for metrics and for the operator: they have few
/// places. It is longer than the status page waits between two requests.
pub(super) const WATCHERS_KEEPALIVE: Duration = Duration::from_secs(5);

/// What may change about how clients are served. A connection keeps what it began with.
#[derive(Clone, Copy, Debug)]
pub(super) struct ServeLimits {
    pub(super) terms: ConnectionTimeouts,
    /// For a head, in bytes.
    pub(super) buffer: usize,
    /// For a client that has closed its sending side to be written something. Zero: not at all.
    pub(super) half_close: Duration,
    /// For what is in flight when it is time to drain.
    pub(super) shutdown_timeout: Duration,
}

impl ServeLimits {
    /// Of the listener for clients.
    pub(super) fn for_clients(limits: &Limits) -> Self {
        let terms = ConnectionTimeouts {
            head: limits.header_timeout.0,
            idle: limits.keepalive_timeout.0,
            write: limits.write_timeout.0,
        };
        // The gateway itself answers a head above the limit; beyond twice that, hyper does. (It insists on at
        // least 8 KiB.)
        let buffer = limits.max_head_size.bytes().saturating_mul(2).max(8 * 1024);
        Self { terms, buffer, half_close: limits.half_close.0, shutdown_timeout: limits.shutdown_timeout.0 }
    }

    /// Of the listeners for metrics and for the operator.
    pub(super) fn for_watchers(limits: &Limits) -> Self {
        let Self { terms, half_close, shutdown_timeout, .. } = Self::for_clients(limits);
        let terms = ConnectionTimeouts { idle: terms.idle.min(WATCHERS_KEEPALIVE), ..terms };
        Self { terms, buffer: 64 * 1024, half_close, shutdown_timeout }
    }
}

/// Why other settings are not in force.
#[derive(Debug, Error)]
pub enum ReloadError {
    /// They are wrong.
    #[error(transparent)]
    Wrong(#[from] ConfigError),
    /// Something that a setting names is unusable.
    #[error(transparent)]
    Unusable(#[from] std::io::Error),
}

/// Gives a running server other settings.
pub struct Reloading {
    gateway: Arc<Gateway>,
    clients: watch::Sender<ServeLimits>,
    watchers: watch::Sender<ServeLimits>,
    tls_state: TlsState,
}

impl Reloading {
    pub(super) fn new(
        gateway: Arc<Gateway>,
        clients: watch::Sender<ServeLimits>,
        watchers: watch::Sender<ServeLimits>,
        tls_state: TlsState,
    ) -> Self {
        Self { gateway, clients, watchers, tls_state }
    }

    /// Puts in force what has been read, as far as that takes no restart, and counts what came of it. May read files,
    /// so that it is not for a thread that answers requests.
    ///
    /// # Errors
    /// What is wrong with it. Everything is as it was then.
    pub fn apply(&self, read: Result<Config, ConfigError>) -> Result<SettingsDiff, ReloadError> {
        let applied = read.map_err(ReloadError::from).and_then(|config| {
            let turn = self.tls_state.turn(&config.settings.listen)?;
            let mut changes = self.gateway.reload(&config)?;
            changes.applied.extend(turn.take());
            Ok(changes)
        });
        let result = match &applied {
            Ok(changes) if changes.applied.is_empty() => Reload::Unchanged,
            Ok(_) => {
                let active = self.gateway.active();
                let limits = &active.settings().limits;
                self.clients.send_replace(ServeLimits::for_clients(limits));
                self.watchers.send_replace(ServeLimits::for_watchers(limits));
                Reload::Applied
            }
            Err(_) => Reload::Refused,
        };
        // Before the event: whoever reads it may then read the counter.
        self.gateway.reloads().count(result);
        match &applied {
            Ok(changes) if changes.applied.is_empty() => {}
            Ok(changes) => {
                // What an operator has switched stays so until the setting itself changes.
                if changes.call_for(FollowUp::SetLogLevel) {
                    logs::set_level(self.gateway.active().settings().log.level);
                }
                logs::set_access(self.gateway.active().settings().log.access);
                let changed = changes.applied.join(", ");
                let what = format!("settings reloaded: {changed}");
                self.gateway.observer().record_event(NewEvent::new(Event::Reload, what).changing(changed));
            }
            // What is wrong may be told only where it can't be a secret that was put into the wrong place: in the log.
            Err(error) => {
                let what = "settings not reloaded (the log says why); the previous ones stay in force";
                self.gateway.observer().record_event(NewEvent::new(Event::ReloadRefused, what).because(error));
            }
        }
        applied
    }

    /// The addresses, by their settings, at which plain text is spoken with other machines.
    pub fn exposed(&self) -> Vec<(&'static str, SocketAddr)> {
        let active = self.gateway.active();
        self.tls_state.exposed(&active.settings().listen)
    }

    /// When the certificate for clients ends, as Unix time in seconds. `None` without TLS.
    pub fn certificate_not_after(&self) -> Option<NotAfter> {
        self.tls_state.not_after()
    }

    /// The gateway that is given them.
    pub fn gateway(&self) -> &Gateway {
        &self.gateway
    }
}
