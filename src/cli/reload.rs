//! Reloads the settings on SIGHUP and when a file changes, and logs the result. Settings with an error must not change
//! anything.

use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::signal::unix::Signal;
use tokio::time::{MissedTickBehavior, interval};

use super::announce;
use super::supervisor::Supervisor;
use crate::clock::Clock;
use crate::config::table::FollowUp;
use crate::config::{SettingsDiff, SettingsSource};
use crate::proxy_config::ProxyConfig;
use crate::server::Reloading;
use crate::sync::Mutex;

/// How often files are checked for changes.
const CHECK_INTERVAL: Duration = Duration::from_secs(2);

const DAY: Duration = Duration::from_secs(24 * 60 * 60);

/// A task that is due once a day. Time in which the machine is suspended counts.
struct Daily {
    last: Instant,
}

impl Daily {
    /// True if a day has passed since the last time it was true, or since the start.
    fn is_due(&mut self, now: Instant) -> bool {
        let is_due = now.saturating_duration_since(self.last) >= DAY;
        if is_due {
            self.last = now;
        }
        is_due
    }
}

pub(super) struct ConfigWatcher {
    source: Mutex<SettingsSource>,
    reloading: Arc<Reloading>,
    supervisor: Supervisor,
}

impl ConfigWatcher {
    pub(super) fn new(source: SettingsSource, reloading: Arc<Reloading>, supervisor: Supervisor) -> Arc<Self> {
        Arc::new(Self { source: Mutex::new(source), reloading, supervisor })
    }

    /// Never ends.
    pub(super) async fn run(self: Arc<Self>, mut hangups: Signal) {
        let mut checks = interval(CHECK_INTERVAL);
        checks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut daily = Daily { last: Clock::System.now() };
        loop {
            let is_requested = tokio::select! {
                Some(()) = hangups.recv() => true,
                _ = checks.tick() => false,
            };
            // On a thread of its own, because a file system may be slow.
            let this = Arc::clone(&self);
            if let Err(error) = tokio::task::spawn_blocking(move || this.reload_if_needed(is_requested)).await {
                tracing::error!(%error, "configuration reload failed: internal error");
            }
            if daily.is_due(Clock::System.now()) {
                announce::certificate(&self.reloading);
            }
        }
    }

    /// Reloads on request (SIGHUP) or if a file has changed.
    fn reload_if_needed(&self, is_requested: bool) {
        let mut source = self.source.lock();
        if !is_requested && !source.has_changed() {
            return;
        }
        self.supervisor.reloading();
        if source.file().is_none() {
            tracing::info!("no configuration file to reload: only files named by flags and variables are read again");
        }
        if is_requested {
            self.reloading.gateway().retry_suspended_keys();
        }
        let applied = self.reloading.apply(source.load());
        match applied {
            Ok(changes) => {
                self.log_changes(&changes, source.proxy_config());
                self.supervisor.ready(match changes.applied.as_slice() {
                    [] => "configuration read again: no changes",
                    _ => "configuration reloaded",
                });
            }
            // `apply` has logged the error.
            Err(_) => {
                // Without the error: every user can read the status, and a wrong value may be a secret.
                self.supervisor.ready("configuration reload failed: see the log");
            }
        }
    }

    fn log_changes(&self, changes: &SettingsDiff, proxy_config: &ProxyConfig) {
        let active = self.reloading.gateway().active();
        if changes.applied.is_empty() {
            tracing::info!("configuration read again: no changes");
        }
        if changes.call_for(FollowUp::LogUpstream) {
            announce::upstream(active.catalogue(), proxy_config);
        }
        if changes.call_for(FollowUp::WarnAboutPlaintext) {
            announce::exposed(&self.reloading);
        }
        if changes.call_for(FollowUp::WarnAboutCertificate) {
            announce::certificate(&self.reloading);
        }
        for other in &changes.at_restart {
            tracing::warn!(
                setting = other.setting,
                in_force = other.in_force,
                given = other.given,
                "this setting needs a restart: the old value stays in force until then"
            );
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_daily_task_is_due_each_time_a_day_has_passed() {
        let start = Clock::System.now();
        let mut daily = Daily { last: start };
        let hours: Vec<u32> =
            (0..100).filter(|hour| daily.is_due(start + *hour * Duration::from_secs(3_600))).collect();
        assert_eq!(hours, [24, 48, 72, 96]);
        assert!(daily.is_due(start + 10 * DAY) && !daily.is_due(start + 10 * DAY + Duration::from_secs(2)));
    }
}
