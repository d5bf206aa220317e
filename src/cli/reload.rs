//! Reading the settings again, on SIGHUP and when their file changes, and telling what came of it.

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

/// How often files are looked at.
const LOOK_EVERY: Duration = Duration::from_secs(2);

/// How often the end of the certificate is looked at, if nothing changes.
const DAY: Duration = Duration::from_secs(24 * 60 * 60);

/// What is done once a day. Days in which the machine was suspended count.
struct Daily {
    last: Instant,
}

impl Daily {
    /// Whether a day has passed since this was last so, or since the beginning.
    fn is_due(&mut self, now: Instant) -> bool {
        let is_due = now.saturating_duration_since(self.last) >= DAY;
        if is_due {
            self.last = now;
        }
        is_due
    }
}

/// Where settings come from, and where they go.
pub(super) struct Watching {
    source: Mutex<SettingsSource>,
    reloading: Arc<Reloading>,
    supervisor: Supervisor,
}

impl Watching {
    pub(super) fn new(source: SettingsSource, reloading: Arc<Reloading>, supervisor: Supervisor) -> Arc<Self> {
        Arc::new(Self { source: Mutex::new(source), reloading, supervisor })
    }

    /// Goes on for ever.
    pub(super) async fn run(self: Arc<Self>, mut hangups: Signal) {
        let mut look = interval(LOOK_EVERY);
        look.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut daily = Daily { last: Clock::System.now() };
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
            if daily.is_due(Clock::System.now()) {
                announce::certificate(&self.reloading);
            }
        }
    }

    /// Has everything read again if it has changed, or if somebody says so.
    fn look(&self, is_told: bool) {
        let mut source = self.source.lock();
        if !is_told && !source.has_changed() {
            return;
        }
        self.supervisor.reloading();
        if source.file().is_none() {
            tracing::info!("there is no configuration file to read again, only what flags and environment name");
        }
        if is_told {
            self.reloading.gateway().retry_suspended_keys();
        }
        let applied = self.reloading.apply(source.load());
        match applied {
            Ok(changes) => {
                self.tell(&changes, source.proxy_config());
                self.supervisor.ready(match changes.applied.as_slice() {
                    [] => "settings read again: nothing to apply",
                    _ => "settings reloaded",
                });
            }
            // The event has logged which.
            Err(_) => {
                // Not which: everyone may read that, and it may be a secret in the wrong place.
                self.supervisor.ready("settings not reloaded, for they have a mistake: the log tells which");
            }
        }
    }

    fn tell(&self, changes: &SettingsDiff, proxy_config: &ProxyConfig) {
        let active = self.reloading.gateway().active();
        if changes.applied.is_empty() {
            tracing::info!("settings read again: nothing to apply");
        }
        if changes.call_for(FollowUp::TellUpstream) {
            announce::upstream(active.catalogue(), proxy_config);
        }
        if changes.call_for(FollowUp::WarnOfPlaintext) {
            announce::exposed(&self.reloading);
        }
        if changes.call_for(FollowUp::WarnOfCertificate) {
            announce::certificate(&self.reloading);
        }
        for other in &changes.at_restart {
            tracing::warn!(
                setting = other.setting,
                in_force = other.in_force,
                given = other.given,
                "this setting takes a restart; the old value stays in force until then"
            );
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_done_once_a_day_is_due_each_time_a_day_has_passed() {
        let began = Clock::System.now();
        let mut daily = Daily { last: began };
        let hours: Vec<u32> =
            (0..100).filter(|hour| daily.is_due(began + *hour * Duration::from_secs(3_600))).collect();
        assert_eq!(hours, [24, 48, 72, 96]);
        assert!(daily.is_due(began + 10 * DAY) && !daily.is_due(began + 10 * DAY + Duration::from_secs(2)));
    }
}
