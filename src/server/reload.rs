//! Other settings for a running server: of the gateway, and of the connections that are accepted from then on.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use thiserror::Error;
use tokio::sync::watch;

use super::pulse::Terms;
use super::tls::Speech;
use crate::config::settings::Limits;
use crate::config::{Changes, Config, ConfigError};
use crate::gateway::Gateway;
use crate::telemetry::events::Event;
use crate::telemetry::reloads::Reload;

/// What may change about how clients are served. A connection keeps what it began with.
#[derive(Clone, Copy, Debug)]
pub(super) struct Bounds {
    pub(super) terms: Terms,
    /// For a head, in bytes.
    pub(super) buffer: usize,
    /// For what is in flight when it is time to drain.
    pub(super) drain_timeout: Duration,
}

impl Bounds {
    /// Of the listener for clients.
    pub(super) fn for_clients(limits: &Limits) -> Self {
        let terms =
            Terms { head: limits.head_timeout.0, idle: limits.keepalive_timeout.0, write: limits.write_timeout.0 };
        // The gateway itself answers a head above the limit; beyond twice that, hyper does. (It insists on at
        // least 8 KiB.)
        let buffer = limits.max_head_size.bytes().saturating_mul(2).max(8 * 1024);
        Self { terms, buffer, drain_timeout: limits.drain_timeout.0 }
    }

    /// Of the listeners for metrics and for the operator.
    pub(super) fn for_watchers(limits: &Limits) -> Self {
        Self { buffer: 64 * 1024, ..Self::for_clients(limits) }
    }
}

/// Why other settings are not in force.
#[derive(Debug, Error)]
pub enum Refused {
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
    clients: watch::Sender<Bounds>,
    watchers: watch::Sender<Bounds>,
    speech: Speech,
}

impl Reloading {
    pub(super) fn new(
        gateway: Arc<Gateway>,
        clients: watch::Sender<Bounds>,
        watchers: watch::Sender<Bounds>,
        speech: Speech,
    ) -> Self {
        Self { gateway, clients, watchers, speech }
    }

    /// Puts in force what has been read, as far as that takes no restart, and counts what came of it. May read files,
    /// so that it is not for a thread that answers requests.
    ///
    /// # Errors
    /// What is wrong with it. Everything is as it was then.
    pub fn apply(&self, read: Result<Config, ConfigError>) -> Result<Changes, Refused> {
        let applied = read.map_err(Refused::from).and_then(|config| {
            let turn = self.speech.turn(&config.settings.listen)?;
            let mut changes = self.gateway.reload(&config)?;
            changes.applied.extend(turn.take());
            Ok(changes)
        });
        let result = match &applied {
            Ok(changes) if changes.applied.is_empty() => Reload::Unchanged,
            Ok(_) => {
                let live = self.gateway.live();
                let limits = &live.settings().limits;
                self.clients.send_replace(Bounds::for_clients(limits));
                self.watchers.send_replace(Bounds::for_watchers(limits));
                Reload::Applied
            }
            Err(_) => Reload::Refused,
        };
        match &applied {
            Ok(changes) if changes.applied.is_empty() => {}
            Ok(changes) => {
                self.gateway.notable(Event::Reload, format!("settings reloaded: {}", changes.applied.join(", ")), None);
            }
            // What is wrong may be told only where it can't be a secret that was put into the wrong place: in the log.
            Err(_) => {
                let what = "settings not reloaded, for they have a mistake: the log tells which";
                self.gateway.notable(Event::ReloadRefused, what, None);
            }
        }
        self.gateway.reloads().count(result);
        applied
    }

    /// The addresses, by their settings, at which plain text is spoken with other machines.
    pub fn exposed(&self) -> Vec<(&'static str, SocketAddr)> {
        let live = self.gateway.live();
        self.speech.exposed(&live.settings().listen)
    }

    /// The gateway that is given them.
    pub fn gateway(&self) -> &Gateway {
        &self.gateway
    }
}
