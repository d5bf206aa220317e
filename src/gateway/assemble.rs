//! Putting a gateway together, and what its operator may ask of it.

use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Weak};
use std::time::{Instant, SystemTime};

use super::fetcher::Fetcher;
use super::memory::Memory;
use super::observer::Observer;
use super::upstream_setup::{self, ClientConfig};
use super::{ActiveConfig, Gateway, Inspection};
use crate::budget::Budget;
use crate::cache::backoffs::Backoffs;
use crate::cache::entry::Entry;
use crate::cache::flights::{FlightLimits, Flights};
use crate::cache::grants::{CallerScope, GrantSettings, Grants};
use crate::cache::second_tier::SecondTier;
use crate::cache::store::{CacheKey, PurgeSelection, Store};
use crate::clock::Clock;
use crate::config::{Config, Mode, OnOutage, Settings, Size};
use crate::fast_path::FastPath;
use crate::random::Random;
use crate::request::caller::{Callers, Credential};
use crate::request::digest::Digests;
use crate::request::fingerprint::Fingerprints;
use crate::request::hop::Via;
use crate::request::id::RequestIds;
use crate::request::key::RequestKey;
use crate::sync::{Mutex, RwLock};
use crate::telemetry::events::Events;
use crate::telemetry::failures::Failures;
use crate::telemetry::fetches::Fetches;
use crate::telemetry::health::Healths;
use crate::telemetry::in_use::InUse;
use crate::telemetry::metrics::Metrics;
use crate::telemetry::reloads::Reloads;
use crate::upstream::Upstream;
use crate::upstream::key_breaker::KeyBreaker;
use crate::upstream::successes::Successes;

/// The purpose of the key that request ids are made with. Tests foresee the ids by it.
pub const REQUEST_IDS: &str = "request ids";

/// Whom a gateway asks.
struct Backends {
    upstream: Arc<dyn Upstream>,
    /// What `upstream` is made by, if it is asked over HTTP.
    client_config: Option<ClientConfig>,
    /// Lookup before upstream, if there is one.
    second_tier: Option<Arc<dyn SecondTier>>,
}

impl Gateway {
    /// A gateway with an empty cache. Connects to nothing yet.
    ///
    /// # Errors
    /// If `upstream.ca_file` is unusable or the system has no randomness.
    pub fn new(config: &Config, clock: Clock) -> io::Result<Arc<Self>> {
        let random = Random::System;
        let (via, metrics) = (Via::new(random.u32()?), Metrics::new().map_err(io::Error::other)?);
        let client_config = upstream_setup::client_config(&config.settings)?;
        let upstream = upstream_setup::client(config, &client_config, via.clone(), clock.clone(), &metrics)?;
        let backends = Backends { upstream: Arc::new(upstream), client_config: Some(client_config), second_tier: None };
        Self::assemble(config, (clock, random), via, metrics, backends)
    }

    /// The same before an upstream that is not asked over HTTP, for tests.
    ///
    /// # Errors
    /// If the system has no randomness.
    pub fn before(upstream: Arc<dyn Upstream>, config: &Config, clock: Clock, random: Random) -> io::Result<Arc<Self>> {
        Self::behind((upstream, None), config, clock, random)
    }

    /// The same with a second tier, for tests.
    ///
    /// # Errors
    /// If the system has no randomness.
    pub fn behind(
        (upstream, second_tier): (Arc<dyn Upstream>, Option<Arc<dyn SecondTier>>),
        config: &Config,
        clock: Clock,
        random: Random,
    ) -> io::Result<Arc<Self>> {
        let metrics = Metrics::new().map_err(io::Error::other)?;
        let via = Via::new(random.u32()?);
        let backends = Backends { upstream, client_config: None, second_tier };
        Self::assemble(config, (clock, random), via, metrics, backends)
    }

    fn assemble(
        config: &Config,
        (clock, random): (Clock, Random),
        via: Via,
        metrics: Arc<Metrics>,
        backends: Backends,
    ) -> io::Result<Arc<Self>> {
        let Backends { upstream, client_config, second_tier } = backends;
        let settings = &config.settings;
        let callers = Callers::new(random.key("callers")?);
        let digests = Digests::new(random.key("shown keys")?, random.key("shown callers")?);
        let fingerprints = Fingerprints::new(random.key("last credentials")?);
        let request_ids = RequestIds::new(random.key(REQUEST_IDS)?);
        let grants = Arc::new(Grants::new(terms(settings)));
        let bounds = bounds(settings);
        let [shared_flights, lone_flights] = [bounds; 2].map(|bounds| Arc::new(Flights::new(bounds)));
        let [gate, relay_gate] = upstream_setup::gates(&settings.upstream, &metrics)?;
        let budget = Budget::new(budget_size(&config.settings));
        let store = Arc::new(Store::new(settings.cache.max_size.0, Arc::clone(&budget), metrics.eviction_counter()));
        // Weak, for the store counts its evictions in these very metrics.
        let remembered = Arc::downgrade(&store);
        let in_flight = [&shared_flights, &lone_flights].map(Arc::downgrade);
        let (granted, time) = (Arc::downgrade(&grants), clock.clone());
        let bypassing = Arc::new(AtomicBool::new(settings.mode == Mode::Bypass));
        let is_bypassing = Arc::clone(&bypassing);
        metrics
            .watch(move || InUse {
                store: remembered.upgrade().map(|store| store.usage()).unwrap_or_default(),
                waiting: in_flight.iter().filter_map(Weak::upgrade).map(|flights| flights.waiting()).sum(),
                grants: granted.upgrade().map_or(0, |grants| grants.live(time.now())),
                is_bypassing: is_bypassing.load(Ordering::Relaxed),
            })
            .map_err(io::Error::other)?;
        metrics.watch_budget(Arc::clone(&budget)).map_err(io::Error::other)?;
        let fetches = Fetches::new(&metrics).map_err(io::Error::other)?;
        fetches.begin(config.catalogue.operations());
        metrics.begin_misses(config.catalogue.operations());
        let fast_path = FastPath::new(settings.listen.fast_path, random.key("heads")?, &metrics, clock.clone())
            .map_err(io::Error::other)?;
        Ok(Arc::new(Self {
            active: RwLock::new(Arc::new(ActiveConfig::new(config.clone(), upstream, client_config, random.clone()))),
            reloading: Mutex::default(),
            callers,
            fingerprints,
            fast_path,
            request_ids,
            via,
            bypassing,
            memory: Arc::new(Memory { grants, store, backoffs: Backoffs::new(), known_callers: Arc::default() }),
            fetcher: Arc::new(Fetcher {
                shared_flights,
                lone_flights,
                successes: Successes::default(),
                gate,
                relay_gate,
                key_breaker: KeyBreaker::new(clock.clone()),
                second_tier,
            }),
            observer: Arc::new(Observer {
                digests,
                reloads: Reloads::new(&metrics).map_err(io::Error::other)?,
                fetches,
                events: Events::default(),
                failures: Failures::default(),
                healths: Healths::default(),
                started: clock.timer_now(),
                metrics,
                clock: clock.clone(),
            }),
            budget,
            clock,
            random,
        }))
    }

    /// What is told of its work.
    pub fn observer(&self) -> &Observer {
        &self.observer
    }

    /// The metrics of this gateway.
    pub fn metrics(&self) -> &Arc<Metrics> {
        &self.observer.metrics
    }

    /// The memory budget.
    pub fn budget(&self) -> &Arc<Budget> {
        &self.budget
    }

    /// The present moment, by the clock that all rules here go by.
    pub fn now(&self) -> Instant {
        self.clock.now()
    }

    /// Each entry, and where it is kept. Takes its time where there are many.
    pub fn entries(&self) -> impl Iterator<Item = (Arc<CacheKey>, Arc<Entry>)> {
        self.memory.store.entries()
    }

    /// Whether an entry may be given only after upstream has confirmed it, because an unsafe method has changed what it
    /// is about.
    pub fn is_invalidated(&self, cache_key: &CacheKey, entry: &Entry) -> bool {
        self.memory.store.is_invalidated(cache_key.key.scope(), entry.life().sent)
    }

    /// The present date.
    pub fn date(&self) -> SystemTime {
        self.clock.date()
    }

    /// How often its settings were read again.
    pub fn reloads(&self) -> &Reloads {
        &self.observer.reloads
    }

    /// Whether the cache is in use.
    pub fn mode(&self) -> Mode {
        if self.bypassing.load(Ordering::Relaxed) { Mode::Bypass } else { Mode::Cache }
    }

    /// Switches the cache on or off. Entries stay, and age.
    pub fn set_mode(&self, mode: Mode) {
        self.bypassing.store(mode == Mode::Bypass, Ordering::Relaxed);
    }

    /// Removes the selected entries and says how many there were. Nothing that was asked of upstream
    /// before is stored, or given to anyone but the one whose request it answers. Grants stay.
    pub fn purge(&self, selection: &PurgeSelection) -> usize {
        let purged = self.memory.store.purge(selection, self.clock.now());
        self.memory.backoffs.purge(selection);
        self.fetcher.shared_flights.close_all();
        self.fetcher.lone_flights.close_all();
        purged
    }

    /// What is known of a question at present, for a person who asks why.
    pub fn inspect(&self, key: RequestKey, credential: &Credential) -> Inspection {
        let (now, caller) = (self.clock.now(), self.callers.of(credential));
        let service = key.operation().service;
        let cache_key = self.memory.store.cache_key(&Arc::new(key), caller);
        let caller_scope = CallerScope { caller, scope: cache_key.key.scope().clone() };
        Inspection {
            grant_state: self.memory.grants.grant_state(&caller_scope, now),
            is_shared: cache_key.owner.is_none(),
            entry: self.memory.store.get(&cache_key).map(|entry| entry.life().freshness(now)),
            needs_confirmation: self.memory.store.get(&cache_key).is_none()
                && self.memory.store.get_to_confirm(&cache_key).is_some(),
            is_suspended: credential
                .signed()
                .is_some_and(|signed| self.fetcher.key_breaker.holds(&signed.key, service)),
            is_backing_off: self.memory.backoffs.hold(&cache_key, &caller_scope, now),
            uncacheable: self.memory.store.uncacheable(&cache_key, caller, now),
        }
    }
}

/// How large the memory budget is, in bytes.
pub(super) fn budget_size(settings: &Settings) -> usize {
    Budget::size(settings.limits.memory.map(Size::bytes))
}

/// What holds for every grant.
pub(super) fn terms(settings: &Settings) -> GrantSettings {
    let grants = &settings.grants;
    GrantSettings {
        grant_ttl: grants.grant_ttl.0,
        denial_ttl: grants.denial_ttl.0,
        outage_grace: (grants.on_outage == OnOutage::Serve).then_some(grants.outage_grace.0),
        max_grants: grants.max_grants.0,
    }
}

/// How many flights there may be, of callers with a grant and of the others, and how many who wait for them.
pub(super) fn bounds(settings: &Settings) -> FlightLimits {
    FlightLimits { flights: settings.limits.max_flights.0, waiting: settings.limits.max_waiters.0 }
}
