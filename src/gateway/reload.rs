//! Reloading the configuration of a running gateway: all of it, or nothing if a step fails.
//!
//! Everything that can fail is done before anything changes. Then the active config is replaced. Requests in progress
//! keep the catalogue, client and timeouts that they began with. A request that waits for a call may make one more call
//! after the purge below. No client connection is closed. If the HTTP client changes, new calls use new connections to
//! upstream.
//!
//! Entries stay, with the freshness that they were stored with, while the description of their operation is unchanged.
//! A changed operation counts as another one ([`crate::catalogue::Operation`]), so nothing that is stored for the old
//! one applies to it. The entries of removed and changed operations are purged. Their grants are left to lapse, so that
//! requests in progress can still share calls. Known callers stay, even if an upstream URL changes: that shows no entry
//! to anybody.
//!
//! Grant settings, flight limits and the mode take effect at once, also for existing grants and requests in progress. A
//! shorter `denial_ttl` does not shorten denials that are stored already.

use std::io;
use std::ptr;
use std::sync::{Arc, Weak};

use super::{ActiveConfig, Gateway, assemble, upstream_setup};
use crate::cache::store::PurgeSelection;
use crate::config::{Config, Settings, SettingsDiff};
use crate::signing::ring::KeyRing;

impl Gateway {
    /// The settings in force. Read it once for each request, because it may be replaced at any time.
    pub fn active(&self) -> Arc<ActiveConfig> {
        Arc::clone(&self.active.read())
    }

    /// Whether these are the settings in force.
    pub(super) fn is_in_force(&self, active: &Weak<ActiveConfig>) -> bool {
        ptr::eq(active.as_ptr(), Arc::as_ptr(&self.active.read()))
    }

    /// Applies a configuration and returns what has changed. If the configured `mode` is unchanged, a mode that an
    /// operator has switched at run time stays.
    ///
    /// # Errors
    /// If `upstream.ca_file` is unusable. Then nothing has changed.
    pub fn reload(&self, config: &Config) -> io::Result<SettingsDiff> {
        // Reloads run one after the other, because each is compared with the previous one.
        let _guard = self.reloading.lock();
        let before = self.active();
        let mut changes = SettingsDiff::between(&before.settings, &config.settings);
        changes.applied.extend(changed_secrets(&before.keys, &config.keys, &changes.applied));
        let settings = config.settings.clone().with_restart_settings_of(&before.settings);
        let mut config = Config { settings, ..config.clone() };
        config.catalogue.follow(&before.catalogue);
        let (mut upstream, mut client_config) = (Arc::clone(&before.upstream), before.client_config.clone());
        if let Some(current) = &before.client_config {
            let wanted = upstream_setup::client_config(&config.settings)?;
            if wanted != *current {
                let ca_file = |settings: &Settings| settings.upstream.ca_file.clone();
                if wanted.has_other_authorities(current) && ca_file(&config.settings) == ca_file(&before.settings) {
                    changes.applied.push("upstream.ca_file (file content)".to_owned());
                }
                let client =
                    upstream_setup::client(&config, &wanted, self.via.clone(), &self.machine, &self.observer.metrics)?;
                (upstream, client_config) = (Arc::new(client), Some(wanted));
            }
        }
        let is_listed = changes.applied.iter().any(|name| name.starts_with("listen.admin_token"));
        if config.admin_token.as_ref() != before.admin_token() && !is_listed {
            changes.applied.push("listen.admin_token (value)".to_owned());
        }
        if changes.applied.is_empty() {
            return Ok(changes);
        }

        self.memory.grants.set_settings(assemble::grant_policy(&config.settings));
        let limits = assemble::flight_limits(&config.settings);
        self.fetcher.shared_flights.set_limits(limits);
        self.fetcher.lone_flights.set_limits(limits);
        self.fetcher.proofs.set_limits(limits);
        self.budget.resize(assemble::budget_size(&config.settings));
        if config.settings.mode != before.settings.mode {
            self.set_mode(config.settings.mode);
        }
        self.observer.metrics.start_operations(config.catalogue.operations());
        self.fetcher.set_quotas(&config.quotas);
        let active = Arc::new(ActiveConfig::new(config, upstream, client_config, self.machine.random.clone()));
        *self.active.write() = Arc::clone(&active);
        self.fast_path.switch(active.settings.listen.fast_path);
        self.fetcher.key_breaker.keep_only(&active.keys);
        self.fetcher.keep_warm_changes.notify_one();
        for removed in active.catalogue.removed_since(&before.catalogue) {
            self.purge(&PurgeSelection { operation: Some(removed.name.to_string()), ..PurgeSelection::default() });
        }
        Ok(changes)
    }

    /// Lets each suspended access key make one call at once.
    pub fn retry_suspended_keys(&self) {
        self.fetcher.key_breaker.retry_suspended();
    }
}

/// Access keys whose secret or security token has changed, but no setting of theirs (the content of a file, say).
fn changed_secrets(before: &KeyRing, now: &KeyRing, changed: &[String]) -> Vec<String> {
    let is_listed = |id: &str| changed.iter().any(|name| name.starts_with(&format!("access_key.{id}.")));
    let mut ids: Vec<&str> = now
        .keys()
        .filter(|key| !is_listed(key.id()))
        .filter(|key| before.keys().any(|old| old.id() == key.id() && old.fingerprint() != key.fingerprint()))
        .map(|key| key.id())
        .collect();
    ids.sort_unstable();
    ids.iter().map(|id| format!("access_key.{id} (secret)")).collect()
}
