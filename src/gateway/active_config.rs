//! The active config: all settings that can change at run time, as one value. A reload replaces it; nothing alters it.
//!
//! A request reads it once, at its beginning, and uses the same value to its end. So does the call that it starts. No
//! request may use both old and new settings.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::upstream_setup::UpstreamClientConfig;
use crate::cache::freshness::Lifetime;
use crate::cache::staleness::Staleness;
use crate::catalogue::Catalogue;
use crate::config::keep_warm::KeepWarm;
use crate::config::secret::AdminToken;
use crate::config::{Config, Mode, Settings};
use crate::random::Random;
use crate::request::decide::Rules;
use crate::request::hop::Via;
use crate::request::key::Scope;
use crate::request::peer::Peer;
use crate::signing::ring::KeyRing;
use crate::upstream::Upstream;

/// The settings in force, and what is built from them.
pub struct ActiveConfig {
    pub(super) settings: Settings,
    admin_token: Option<AdminToken>,
    keep_warm: Vec<KeepWarm>,
    /// The configuration as TOML, without secrets.
    toml: String,
    pub(super) catalogue: Catalogue,
    pub(super) upstream: Arc<dyn Upstream>,
    /// What `upstream` was built from. `None` if it is not an HTTP client.
    pub(super) client_config: Option<UpstreamClientConfig>,
    pub(super) keys: Arc<KeyRing>,
    pub(super) answer_timeout: Duration,
    pub(super) stale_if_slow: Duration,
    pub(super) negative_ttl: Duration,
    pub(super) backoff: Duration,
    random: Random,
}

impl ActiveConfig {
    pub(super) fn new(
        config: Config,
        upstream: Arc<dyn Upstream>,
        client_config: Option<UpstreamClientConfig>,
        random: Random,
    ) -> Self {
        let toml = config.to_toml();
        let Config { settings, catalogue, keys, admin_token, keep_warm, .. } = config;
        Self {
            toml,
            admin_token,
            keep_warm,
            catalogue,
            upstream,
            keys,
            client_config,
            answer_timeout: settings.upstream.answer_timeout.0,
            stale_if_slow: settings.cache.stale_if_slow.0,
            negative_ttl: settings.cache.negative_ttl.0,
            backoff: settings.cache.backoff.0,
            random,
            settings,
        }
    }

    /// The peer for the limits by address. `None` for loopback and `listen.shared_addresses`, where clients share an
    /// address.
    pub fn peer(&self, address: IpAddr) -> Option<Peer> {
        let is_shared = || self.settings.listen.shared_addresses.iter().any(|network| network.contains(address));
        Peer::of(address).filter(|_| !is_shared())
    }

    pub fn settings(&self) -> &Settings {
        &self.settings
    }

    /// `None` if the admin listener asks for no token.
    pub fn admin_token(&self) -> Option<&AdminToken> {
        self.admin_token.as_ref()
    }

    /// The requests whose responses are kept fresh. They change only by a reload.
    pub fn keep_warm(&self) -> &[KeepWarm] {
        &self.keep_warm
    }

    /// The configuration in the format of its file, without secrets.
    pub fn as_toml(&self) -> &str {
        &self.toml
    }

    pub fn catalogue(&self) -> &Catalogue {
        &self.catalogue
    }

    pub fn rules<'a>(&'a self, via: &'a Via, mode: Mode) -> Rules<'a> {
        Rules {
            catalogue: &self.catalogue,
            path_prefixes: &self.settings.listen.path_prefixes,
            keys: &self.keys,
            via,
            max_head_size: self.settings.limits.max_head_size.bytes(),
            is_bypassing: mode == Mode::Bypass,
        }
    }

    /// How long a response of a scope is fresh and may be served stale, unless upstream says something else. `ttl` is
    /// chosen by the share of stale answers if the operation has an adaptive ttl. It is shortened by a random part of
    /// up to `ttl_jitter`.
    pub(super) fn lifetime(&self, scope: &Scope, staleness: &Staleness, now: Instant) -> Lifetime {
        let operation = scope.operation();
        let mut ttl = staleness.ttl(scope, now);
        // If the system has no randomness, there is no jitter.
        let jitter = self.settings.cache.ttl_jitter.0;
        if jitter > 0
            && let Ok(random) = self.random.u32()
        {
            let reduction = f64::from(jitter) / 100.0 * (f64::from(random) / f64::from(u32::MAX));
            ttl = ttl.mul_f64(1.0 - reduction);
        }
        let (stale_while_revalidate, stale_if_error) = (operation.stale_while_revalidate, operation.stale_if_error);
        Lifetime { ttl, stale_while_revalidate, stale_if_error }
    }
}
