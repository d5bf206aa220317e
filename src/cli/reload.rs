//! Reading the settings again, on SIGHUP and when their file changes, and telling what came of it.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::signal::unix::Signal;
use tokio::time::{MissedTickBehavior, interval};

use super::announce;
use super::supervisor::Supervisor;
use crate::config::{Changes, Source};
use crate::egress::Egress;
use crate::server::Reloading;
use crate::telemetry::logs;

/// How often files are looked at.
const LOOK_EVERY: Duration = Duration::from_secs(2);

/// Where settings come from, and where they go.
pub(super) struct Watching {
    source: Mutex<Source>,
    reloading: Arc<Reloading>,
    supervisor: Supervisor,
}

impl Watching {
    pub(super) fn new(source: Source, reloading: Arc<Reloading>, supervisor: Supervisor) -> Arc<Self> {
        Arc::new(Self { source: Mutex::new(source), reloading, supervisor })
    }

    /// Goes on for ever.
    pub(super) async fn run(self: Arc<Self>, mut hangups: Signal) {
        let mut look = interval(LOOK_EVERY);
        look.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            let is_told = tokio::select! {
                Some(()) = hangups.recv() => true,
                _ = look.tick() => false,
            };
            // Apart, for a file system may take its time, and requests are answered here.
            let this = Arc::clone(&self);
            if let Err(error) = tokio::task::spawn_blocking(move || this.look(is_told)).await {
                tracing::error!(%error, "settings could not be read again");
            }
        }
    }

    /// Has everything read again if it has changed, or if somebody says so.
    fn look(&self, is_told: bool) {
        let mut source = self.source.lock().unwrap_or_else(PoisonError::into_inner);
        if !is_told && !source.has_changed() {
            return;
        }
        self.supervisor.reloading();
        if source.file().is_none() {
            tracing::info!("there is no configuration file to read again, only what flags and environment name");
        }
        if is_told {
            self.reloading.gateway().try_held_keys();
        }
        let applied = self.reloading.apply(source.load());
        match applied {
            Ok(changes) => {
                self.tell(&changes, source.egress());
                self.supervisor.ready(match changes.applied.as_slice() {
                    [] => "settings read again: nothing has changed that can at run time",
                    _ => "settings reloaded",
                });
            }
            Err(error) => {
                tracing::error!(%error, "settings not reloaded: those from before stay in force");
                // Not which: everyone may read that, and it may be a secret in the wrong place.
                self.supervisor.ready("settings not reloaded, for they have a mistake: the log tells which");
            }
        }
    }

    fn tell(&self, changes: &Changes, egress: &Egress) {
        let live = self.reloading.gateway().live();
        if changes.applied.is_empty() {
            tracing::info!("settings read again: nothing has changed that can at run time");
        } else {
            // What an operator has switched stays so until the setting itself changes.
            if changes.applied.iter().any(|name| name == "log.level") {
                logs::set_level(live.settings().log.level);
            }
            tracing::info!(changed = changes.applied.join(", "), "settings reloaded");
            if changes.applied.iter().any(|name| tells_where_upstream_is(name)) {
                announce::upstream(live.catalogue(), egress);
            }
            if changes.applied.iter().any(|name| tells_what_is_spoken(name)) {
                announce::exposed(&self.reloading);
            }
        }
        for other in &changes.at_restart {
            tracing::warn!(
                setting = other.setting,
                in_force = other.in_force,
                given = other.given,
                "this setting takes a restart, and stays as it is until then"
            );
        }
    }
}

fn tells_what_is_spoken(setting: &str) -> bool {
    ["listen.cert_file", "listen.insecure_plaintext"].contains(&setting)
}

fn tells_where_upstream_is(setting: &str) -> bool {
    setting == "region" || setting.ends_with("_url") || setting.starts_with("operation")
}
