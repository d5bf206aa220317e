//! Other settings for a running gateway: all of them, or none.
//!
//! Whatever can fail is done before anything changes. Then what is in force is swapped, and a request that comes
//! in meets the old or the new. Those under way go on as they began: with the catalogue, the client and the times that
//! they saw, and fed by the calls that they wait for (or, after the purge below, by one more: nobody is given what
//! was asked for another before it). No connection is closed; to upstream, new calls use connections of their own where
//! the client is another.
//!
//! What is remembered stays, with the life that it was given, as long as its operation is described in the same
//! words. If it isn't, the operation is another one ([`crate::catalogue::Operation`]), so that no entry, flight,
//! grant, denial or pause of the one counts for the other, whoever is still under way. What was kept is purged, for it
//! would only take room; grants lapse by themselves, so that those under way are not all sent alone. Who upstream knows
//! is remembered wherever upstream is: that shows nobody anything.
//!
//! Settings of grants, bounds on flights and the mode hold at once, for what there is and who is under way, too. A
//! shorter `denial_ttl` doesn't take back what was said already.

use std::io;
use std::ptr;
use std::sync::{Arc, Weak};

use super::{ActiveConfig, Gateway, assemble, upstream_setup};
use crate::cache::store::PurgeSelection;
use crate::config::{Config, Settings, SettingsDiff};
use crate::signing::ring::KeyRing;

impl Gateway {
    /// What is in force now. To be looked at once for each request: the next look may show something else.
    pub fn active(&self) -> Arc<ActiveConfig> {
        Arc::clone(&self.active.read())
    }

    /// Whether these are the settings in force.
    pub(super) fn is_in_force(&self, active: &Weak<ActiveConfig>) -> bool {
        ptr::eq(active.as_ptr(), Arc::as_ptr(&self.active.read()))
    }

    /// Puts other settings in force and says what has changed. `mode` is one of them only if it isn't configured as it
    /// was: what an operator has switched stays so.
    ///
    /// # Errors
    /// If `upstream.ca_file` is unusable. Nothing has changed then.
    pub fn reload(&self, config: &Config) -> io::Result<SettingsDiff> {
        // One after the other, for each is compared with the one before.
        let _turn = self.reloading.lock();
        let before = self.active();
        let mut changes = SettingsDiff::between(&before.settings, &config.settings);
        changes.applied.extend(other_secrets(&before.keys, &config.keys, &changes.applied));
        let settings = config.settings.clone().at_run_time(&before.settings);
        let mut config = Config { settings, ..config.clone() };
        config.catalogue.succeed(&before.catalogue);
        let (mut upstream, mut client_config) = (Arc::clone(&before.upstream), before.client_config.clone());
        if let Some(known) = &before.client_config {
            let wanted = upstream_setup::client_config(&config.settings)?;
            if wanted != *known {
                let ca_file = |settings: &Settings| settings.upstream.ca_file.clone();
                if wanted.trusts_others_than(known) && ca_file(&config.settings) == ca_file(&before.settings) {
                    changes.applied.push("upstream.ca_file (what is in it)".to_owned());
                }
                let client = upstream_setup::client(
                    &config,
                    &wanted,
                    self.via.clone(),
                    self.clock.clone(),
                    &self.observer.metrics,
                )?;
                (upstream, client_config) = (Arc::new(client), Some(wanted));
            }
        }
        let is_told = changes.applied.iter().any(|name| name.starts_with("listen.admin_token"));
        if config.admin_token.as_ref() != before.admin_token() && !is_told {
            changes.applied.push("listen.admin_token (what it is)".to_owned());
        }
        if changes.applied.is_empty() {
            return Ok(changes);
        }

        self.memory.grants.set_terms(assemble::terms(&config.settings));
        for flights in [&self.fetcher.shared_flights, &self.fetcher.lone_flights] {
            flights.set_bounds(assemble::bounds(&config.settings));
        }
        self.budget.resize(assemble::budget_size(&config.settings));
        if config.settings.mode != before.settings.mode {
            self.set_mode(config.settings.mode);
        }
        self.observer.fetches.begin(config.catalogue.operations());
        self.observer.metrics.begin_misses(config.catalogue.operations());
        let active = Arc::new(ActiveConfig::new(config, upstream, client_config, self.random.clone()));
        *self.active.write() = Arc::clone(&active);
        self.fast_path.switch(active.settings.listen.fast_path);
        self.fetcher.key_breaker.keep_only(&active.keys);
        for gone in active.catalogue.without(&before.catalogue) {
            self.purge(&PurgeSelection { operation: Some(gone.name.to_string()), ..PurgeSelection::default() });
        }
        Ok(changes)
    }

    /// Has each access key that upstream has refused too often tried once more.
    pub fn retry_suspended_keys(&self) {
        self.fetcher.key_breaker.try_again();
    }
}

/// The keys that have another secret, or security token, though nothing is said of them that has changed.
fn other_secrets(before: &KeyRing, now: &KeyRing, changed: &[String]) -> Vec<String> {
    let is_told = |id: &str| changed.iter().any(|name| name.starts_with(&format!("access_key.{id}.")));
    let mut ids: Vec<&str> = now
        .keys()
        .filter(|key| !is_told(key.id()))
        .filter(|key| before.keys().any(|known| known.id() == key.id() && known.fingerprint() != key.fingerprint()))
        .map(|key| key.id())
        .collect();
    ids.sort_unstable();
    ids.iter().map(|id| format!("access_key.{id} (its secret)")).collect()
}
