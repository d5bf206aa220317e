//! Putting a gateway together, and what its operator may ask of it.

use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, RwLock, Weak};
use std::time::SystemTime;

use tokio::sync::Semaphore;

use super::identify::SIGNED_BODIES;
use super::outward::{self, Blueprint};
use super::{Gateway, Inspection, Live};
use crate::cache::acquaintances::Acquaintances;
use crate::cache::flights::{Bounds, Flights};
use crate::cache::grants::{Grantee, Grants, Terms};
use crate::cache::heads::Heads;
use crate::cache::pauses::Pauses;
use crate::cache::store::{Selection, Store};
use crate::clock::Clock;
use crate::config::{Config, Mode, OnOutage, Settings};
use crate::request::caller::{Callers, Credential};
use crate::request::head::Fingerprints;
use crate::request::hop::Via;
use crate::request::id::RequestIds;
use crate::request::key::Key;
use crate::telemetry::events::Events;
use crate::telemetry::fetches::Fetches;
use crate::telemetry::health::Healths;
use crate::telemetry::metrics::{InUse, Metrics};
use crate::telemetry::reloads::Reloads;
use crate::telemetry::repeats::Repeats;
use crate::upstream::Upstream;
use crate::upstream::probation::Probation;

impl Gateway {
    /// A gateway with an empty cache. Connects to nothing yet.
    ///
    /// # Errors
    /// If `upstream.ca_file` is unusable or the system has no randomness.
    pub fn new(config: &Config, clock: Clock) -> io::Result<Arc<Self>> {
        let (via, metrics) = (Via::new(getrandom::u32()?), Metrics::new().map_err(io::Error::other)?);
        let blueprint = outward::blueprint(&config.settings)?;
        let upstream = outward::client(config, &blueprint, via.clone(), clock.clone(), &metrics)?;
        Self::assemble(config, clock, via, metrics, (Arc::new(upstream), Some(blueprint)))
    }

    /// The same before an upstream that is not asked over HTTP, for tests.
    ///
    /// # Errors
    /// If the system has no randomness.
    pub fn before(upstream: Arc<dyn Upstream>, config: &Config, clock: Clock) -> io::Result<Arc<Self>> {
        let metrics = Metrics::new().map_err(io::Error::other)?;
        Self::assemble(config, clock, Via::new(getrandom::u32()?), metrics, (upstream, None))
    }

    fn assemble(
        config: &Config,
        clock: Clock,
        via: Via,
        metrics: Arc<Metrics>,
        (upstream, blueprint): (Arc<dyn Upstream>, Option<Blueprint>),
    ) -> io::Result<Arc<Self>> {
        let settings = &config.settings;
        let mut caller_key = [0; 32];
        getrandom::fill(&mut caller_key)?;
        let random = |_| getrandom::u64();
        let [a, b, c, d] = [0; 4].map(random);
        let grants = Arc::new(Grants::new(terms(settings)));
        let bounds = bounds(settings);
        let [shared_flights, lone_flights] = [bounds; 2].map(|bounds| Arc::new(Flights::new(bounds)));
        let [gate, relay_gate] = outward::gates(&settings.upstream, &metrics)?;
        let store = Arc::new(Store::new(settings.cache.max_size.0, metrics.eviction_counter()));
        // Weak, for the store counts its evictions in these very metrics.
        let remembered = Arc::downgrade(&store);
        let aloft = [&shared_flights, &lone_flights].map(Arc::downgrade);
        let (granted, time) = (Arc::downgrade(&grants), clock.clone());
        let bypassing = Arc::new(AtomicBool::new(settings.mode == Mode::Bypass));
        let is_bypassing = Arc::clone(&bypassing);
        metrics
            .watch(move || InUse {
                store: remembered.upgrade().map(|store| store.usage()).unwrap_or_default(),
                waiting: aloft.iter().filter_map(Weak::upgrade).map(|flights| flights.waiting()).sum(),
                grants: granted.upgrade().map_or(0, |grants| grants.live(time.now())),
                is_bypassing: is_bypassing.load(Ordering::Relaxed),
            })
            .map_err(io::Error::other)?;
        let fetches = Fetches::new(&metrics).map_err(io::Error::other)?;
        fetches.begin(config.catalogue.operations());
        Ok(Arc::new(Self {
            live: RwLock::new(Arc::new(Live::new(config.clone(), upstream, blueprint))),
            reloading: Mutex::default(),
            callers: Callers::new(caller_key),
            fingerprints: Fingerprints::new([a?, b?, c?, d?]),
            heads: Heads::default(),
            request_ids: RequestIds::new(getrandom::u64()?),
            via,
            bypassing,
            grants,
            store,
            pauses: Pauses::new(),
            shared_flights,
            lone_flights,
            gate,
            relay_gate,
            probation: Probation::new(clock.clone()),
            signed_bodies: Arc::new(Semaphore::new(SIGNED_BODIES)),
            acquaintances: Acquaintances::default(),
            reloads: Reloads::new(&metrics).map_err(io::Error::other)?,
            fetches,
            events: Events::default(),
            healths: Healths::default(),
            started: clock.now(),
            repeats: Repeats::new(&metrics).map_err(io::Error::other)?,
            metrics,
            clock,
        }))
    }

    /// The metrics of this gateway.
    pub fn metrics(&self) -> &Arc<Metrics> {
        &self.metrics
    }

    /// The present date.
    pub fn date(&self) -> SystemTime {
        self.clock.date()
    }

    /// How often its settings were read again.
    pub fn reloads(&self) -> &Reloads {
        &self.reloads
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
    pub fn purge(&self, selection: &Selection) -> usize {
        let purged = self.store.purge(selection);
        self.pauses.purge(selection);
        self.shared_flights.close_all();
        self.lone_flights.close_all();
        purged
    }

    /// What is known of a question at present, for a person who asks why.
    pub fn inspect(&self, key: Key, credential: &Credential) -> Inspection {
        let (now, caller) = (self.clock.now(), self.callers.of(credential));
        let service = key.operation().service;
        let slot = self.store.slot(&Arc::new(key), caller);
        let grantee = Grantee { caller, scope: slot.key.scope().clone() };
        Inspection {
            standing: self.grants.standing(&grantee, now),
            is_shared: slot.owner.is_none(),
            entry: self.store.get(&slot).map(|entry| entry.life().freshness(now)),
            is_held: credential.signed().is_some_and(|signed| self.probation.holds(&signed.key, service)),
            is_paused: self.pauses.hold(&slot, &grantee, now),
            uncacheable: self.store.uncacheable(&slot, now),
        }
    }
}

/// What holds for every grant.
pub(super) fn terms(settings: &Settings) -> Terms {
    let grants = &settings.grants;
    Terms {
        grant_ttl: grants.grant_ttl.0,
        denial_ttl: grants.denial_ttl.0,
        outage_grace: (grants.on_outage == OnOutage::Serve).then_some(grants.outage_grace.0),
        max_grants: grants.max_grants.0,
    }
}

/// How many flights there may be, of callers with a grant and of the others, and how many who wait for them.
pub(super) fn bounds(settings: &Settings) -> Bounds {
    Bounds { flights: settings.limits.max_flights.0, waiting: settings.limits.max_waiters.0 }
}
