//! What may change while the gateway runs: one value, which is replaced as a whole and never altered.
//!
//! A request looks at it once, when it comes in, and goes by what it saw to its end; so does the call that
//! it brings about. Nobody is answered by half of the old settings and half of the new.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use super::upstream_setup::ClientConfig;
use crate::cache::freshness::Lifetime;
use crate::catalogue::{Catalogue, Operation};
use crate::config::secret::AdminToken;
use crate::config::{Config, Mode, Settings};
use crate::random::Random;
use crate::request::decide::Rules;
use crate::request::hop::Via;
use crate::request::peer::Peer;
use crate::signing::ring::KeyRing;
use crate::upstream::Upstream;

/// The settings in force, and what is built from them.
pub struct ActiveConfig {
    pub(super) settings: Settings,
    admin_token: Option<AdminToken>,
    /// All of it as text, for an operator.
    text: String,
    pub(super) catalogue: Catalogue,
    pub(super) upstream: Arc<dyn Upstream>,
    /// What that was made by; `None` if not here.
    pub(super) client_config: Option<ClientConfig>,
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
        client_config: Option<ClientConfig>,
        random: Random,
    ) -> Self {
        let text = config.to_toml();
        let Config { settings, catalogue, keys, admin_token, .. } = config;
        Self {
            text,
            admin_token,
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

    /// The client at an address. `None` where clients are not told apart by it: on loopback, and at the addresses that the
    /// settings call shared.
    pub fn peer(&self, address: IpAddr) -> Option<Peer> {
        let is_shared = || self.settings.listen.shared_addresses.iter().any(|network| network.contains(address));
        Peer::of(address).filter(|_| !is_shared())
    }

    /// The settings in force.
    pub fn settings(&self) -> &Settings {
        &self.settings
    }

    /// What the admin listener asks for, if it does.
    pub fn admin_token(&self) -> Option<&AdminToken> {
        self.admin_token.as_ref()
    }

    /// All that is in force, in the form of the file, without secrets.
    pub fn in_words(&self) -> &str {
        &self.text
    }

    /// What operations there are and where they are asked.
    pub fn catalogue(&self) -> &Catalogue {
        &self.catalogue
    }

    /// What decisions about requests go by.
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

    /// How long an answer of an operation may be given, where upstream says nothing of it.
    pub(super) fn lifetime(&self, operation: &Operation) -> Lifetime {
        let mut ttl = operation.ttl;
        // Without randomness, without jitter.
        let jitter = self.settings.cache.ttl_jitter.0;
        if jitter > 0
            && let Ok(random) = self.random.u32()
        {
            let part = f64::from(jitter) / 100.0 * (f64::from(random) / f64::from(u32::MAX));
            ttl = ttl.mul_f64(1.0 - part);
        }
        let (stale_while_revalidate, stale_if_error) = (operation.stale_while_revalidate, operation.stale_if_error);
        Lifetime { ttl, stale_while_revalidate, stale_if_error }
    }
}
