//! Applies a new configuration to a running server: to the gateway, and to connections that are accepted afterwards.
//! Either everything is applied or nothing.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use thiserror::Error;
use tokio::sync::watch;

use super::activity::ConnectionTimeouts;
use super::tls::TlsState;
use crate::certificate::NotAfter;
use crate::config::settings::LimitsSettings;
use crate::config::table::FollowUp;
use crate::config::{Config, ConfigError, SettingsDiff};
use crate::gateway::Gateway;
use crate::telemetry::events::{Event, NewEvent};
use crate::telemetry::logs;
use crate::telemetry::outcome::Reload;

/// The keep-alive timeout of the internal listeners (metrics and admin), which have few places. It is longer than the
/// interval in which the status page sends requests.
pub(super) const INTERNAL_KEEPALIVE: Duration = Duration::from_secs(5);

/// Limits of a listener that can be reloaded. A connection keeps those that it started with.
#[derive(Clone, Copy, Debug)]
pub(super) struct ServeLimits {
    pub(super) timeouts: ConnectionTimeouts,
    /// The maximum size of a head, in bytes.
    pub(super) buffer: usize,
    /// How long nothing may be written to a client that has closed its sending side. With zero, its connection ends
    /// immediately.
    pub(super) half_close: Duration,
    /// For requests in flight during shutdown.
    pub(super) shutdown_timeout: Duration,
}

impl ServeLimits {
    pub(super) fn for_clients(limits: &LimitsSettings) -> Self {
        let timeouts = ConnectionTimeouts {
            head: limits.header_timeout.0,
            idle: limits.keepalive_timeout.0,
            write: limits.write_timeout.0,
        };
        // The gateway itself answers heads above the limit. hyper answers those above twice the limit; it requires at
        // least 8 KiB.
        let buffer = limits.max_head_size.bytes().saturating_mul(2).max(8 * 1024);
        Self { timeouts, buffer, half_close: limits.half_close.0, shutdown_timeout: limits.shutdown_timeout.0 }
    }

    /// For the internal listeners.
    pub(super) fn for_internal(limits: &LimitsSettings) -> Self {
        let Self { timeouts, half_close, shutdown_timeout, .. } = Self::for_clients(limits);
        let timeouts = ConnectionTimeouts { idle: timeouts.idle.min(INTERNAL_KEEPALIVE), ..timeouts };
        Self { timeouts, buffer: 64 * 1024, half_close, shutdown_timeout }
    }
}

/// Why a configuration was not applied.
#[derive(Debug, Error)]
pub enum ReloadError {
    /// The configuration is invalid.
    #[error(transparent)]
    Invalid(#[from] ConfigError),
    /// A file that a setting names is unusable.
    #[error(transparent)]
    Unusable(#[from] std::io::Error),
}

impl ReloadError {
    /// What is wrong, without the values that were given.
    fn without_values(&self) -> String {
        match self {
            Self::Invalid(error) => error.without_values(),
            Self::Unusable(error) => error.to_string(),
        }
    }
}

pub struct Reloading {
    gateway: Arc<Gateway>,
    client_limits: watch::Sender<ServeLimits>,
    internal_limits: watch::Sender<ServeLimits>,
    tls_state: TlsState,
}

impl Reloading {
    pub(super) fn new(
        gateway: Arc<Gateway>,
        client_limits: watch::Sender<ServeLimits>,
        internal_limits: watch::Sender<ServeLimits>,
        tls_state: TlsState,
    ) -> Self {
        Self { gateway, client_limits, internal_limits, tls_state }
    }

    /// Applies what does not need a restart, and counts the result. Reads files, so it must not be called on a thread
    /// that answers requests.
    ///
    /// # Errors
    /// What is wrong with the configuration. Then nothing changes.
    pub fn apply(&self, read: Result<Config, ConfigError>) -> Result<SettingsDiff, ReloadError> {
        let applied = read.map_err(ReloadError::from).and_then(|config| {
            let pending = self.tls_state.load(&config.settings.listen)?;
            let mut changes = self.gateway.reload(&config)?;
            changes.applied.extend(pending.apply());
            Ok(changes)
        });
        let result = match &applied {
            Ok(changes) if changes.applied.is_empty() => Reload::Unchanged,
            Ok(_) => {
                let active = self.gateway.active();
                let limits = &active.settings().limits;
                self.client_limits.send_replace(ServeLimits::for_clients(limits));
                self.internal_limits.send_replace(ServeLimits::for_internal(limits));
                Reload::Applied
            }
            Err(_) => Reload::Refused,
        };
        // Before the event, so that a reader of the event sees the new count.
        self.gateway.metrics().reload(result);
        let was_refused = self.gateway.observer().reloaded(applied.as_ref().err().map(ReloadError::without_values));
        match &applied {
            Ok(changes) if changes.applied.is_empty() => {
                if was_refused {
                    let what = "the configuration has no mistake any more, and no setting has changed";
                    self.gateway.observer().record_event(NewEvent::new(Event::Reload, what));
                }
            }
            Ok(changes) => {
                // A level that the operator has set at run time stays until the setting itself changes.
                if changes.call_for(FollowUp::SetLogLevel) {
                    logs::set_level(self.gateway.active().settings().log.level);
                }
                logs::set_access(self.gateway.active().settings().log.access);
                let changed = changes.applied.join(", ");
                let what = format!("configuration reloaded: {changed}");
                self.gateway.observer().record_event(NewEvent::new(Event::Reload, what).with_changed_settings(changed));
            }
            // The whole reason is only logged: a secret may have been put into the wrong place, and events are shown on
            // the status page. The page says what is wrong without the values.
            Err(error) => {
                let what = "configuration reload failed; the previous configuration stays in force";
                self.gateway.observer().record_event(NewEvent::new(Event::ReloadRefused, what).with_error(error));
            }
        }
        applied
    }

    /// The settings and addresses of listeners that speak plaintext with other machines.
    pub fn exposed(&self) -> Vec<(&'static str, SocketAddr)> {
        let active = self.gateway.active();
        self.tls_state.exposed(&active.settings().listen)
    }

    /// The end of validity of the certificate. `None` without TLS.
    pub fn certificate_not_after(&self) -> Option<NotAfter> {
        self.tls_state.not_after()
    }

    pub fn gateway(&self) -> &Gateway {
        &self.gateway
    }
}
