//! Building a gateway from its parts, and the interface for its operator. No request is processed here.

use std::io;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant, SystemTime};

use tokio::sync::{Notify, mpsc};

use super::fetcher::Fetcher;
use super::fleet_setup;
use super::hint::{Hint, HintSink, Hints};
use super::key_trial::KeyTrials;
use super::memory::Memory;
use super::observer::Observer;
use super::snapshot::Snapshot;
use super::take_hint::HintTaker;
use super::tier::Tier;
use super::upstream_setup::{self, UpstreamClientConfig};
use super::{ActiveConfig, Gateway};
use crate::budget::Budget;
use crate::cache::backoffs::Backoffs;
use crate::cache::entry::Entry;
use crate::cache::fleet_sync::FleetSync;
use crate::cache::flights::{FlightLimits, Flights};
use crate::cache::grants::{GrantPolicy, Grants, RenewalPolicy};
use crate::cache::revocations::Revocations;
use crate::cache::second_tier::SecondTier;
use crate::cache::store::{CacheKey, PurgeSelection, Store};
use crate::catalogue::Service;
use crate::clock::Clock;
use crate::config::otlp::OtlpConfig;
use crate::config::{Config, Mode, OnOutage, Settings, Size};
use crate::fast_path::FastPath;
use crate::fleet::Watcher;
use crate::machine::Machine;
use crate::random::Random;
use crate::request::caller::Callers;
use crate::request::digest::Digests;
use crate::request::fingerprint::Fingerprints;
use crate::request::hop::Via;
use crate::request::id::RequestIds;
use crate::sync::{Mutex, RwLock};
use crate::telemetry::condition_tracker::ConditionTracker;
use crate::telemetry::events::Events;
use crate::telemetry::failures::Failures;
use crate::telemetry::health::Healths;
use crate::telemetry::history::History;
use crate::telemetry::metrics::Metrics;
use crate::telemetry::outcome::SpanResult;
use crate::telemetry::sinks::Sinks;
use crate::telemetry::sources::InUse;
use crate::telemetry::traces::{Sampler, Span, Tracer};
use crate::upstream::Upstream;
use crate::upstream::key_breaker::KeyBreaker;
use crate::upstream::quota::{Ledger, LimitState};
use crate::upstream::successes::Successes;

/// The purpose of the random key for request ids. Tests predict the ids with it.
pub const REQUEST_IDS: &str = "request ids";

struct Backends {
    upstream: Arc<dyn Upstream>,
    /// What `upstream` was built from. `None` if it is not an HTTP client.
    client_config: Option<UpstreamClientConfig>,
    second_tier: Option<Tier>,
    snapshot: Option<Arc<Snapshot>>,
    hints: Option<HintSink>,
}

impl Gateway {
    /// A gateway with an empty cache, and without a snapshot. It opens no connection yet.
    ///
    /// # Errors
    /// If `upstream.ca_file` is unusable or the system has no randomness.
    pub fn new(config: &Config, machine: impl Into<Machine>) -> io::Result<Arc<Self>> {
        Self::new_with(config, machine.into(), None)
    }

    /// The same with a snapshot, if there is one.
    pub(super) fn new_with(config: &Config, machine: Machine, snapshot: Option<Snapshot>) -> io::Result<Arc<Self>> {
        let (via, metrics) = (Via::new(machine.random.u32()?), Metrics::new().map_err(io::Error::other)?);
        let client_config = upstream_setup::client_config(&config.settings)?;
        let upstream = upstream_setup::client(config, &client_config, via.clone(), &machine, &metrics)?;
        let backends = Backends {
            upstream: Arc::new(upstream),
            client_config: Some(client_config),
            second_tier: None,
            snapshot: snapshot.map(Arc::new),
            hints: None,
        };
        Self::assemble(config, machine, via, metrics, backends)
    }

    /// A gateway with a simulated upstream, for tests.
    ///
    /// # Errors
    /// If the system has no randomness.
    pub fn with_upstream(
        upstream: Arc<dyn Upstream>,
        config: &Config,
        clock: Clock,
        random: Random,
    ) -> io::Result<Arc<Self>> {
        let backends = Backends { upstream, client_config: None, second_tier: None, snapshot: None, hints: None };
        Self::assemble_for_test(config, clock, random, backends)
    }

    /// A gateway with a simulated upstream and a second tier, for tests. Records are sealed with `secret`.
    ///
    /// # Errors
    /// If the system has no randomness.
    pub fn with_second_tier(
        upstream: Arc<dyn Upstream>,
        (store, secret): (Arc<dyn SecondTier>, [u8; 32]),
        config: &Config,
        clock: Clock,
        random: Random,
    ) -> io::Result<Arc<Self>> {
        let second_tier = Some(fleet_setup::tier_for_test(store, &secret, &random)?);
        let backends = Backends { upstream, client_config: None, second_tier, snapshot: None, hints: None };
        Self::assemble_for_test(config, clock, random, backends)
    }

    /// The same with a snapshot at this path. It owns the snapshot from now on.
    ///
    /// # Errors
    /// If the system has no randomness, or the snapshot cannot be opened.
    pub fn with_second_tier_and_snapshot(
        upstream: Arc<dyn Upstream>,
        (store, secret): (Arc<dyn SecondTier>, [u8; 32]),
        path: &Path,
        config: &Config,
        clock: Clock,
        random: Random,
    ) -> io::Result<Arc<Self>> {
        let mut config = config.clone();
        config.settings.cache.snapshot = Some(path.to_owned());
        let snapshot = Snapshot::open(&config, &random)?.map(Arc::new);
        snapshot.iter().try_for_each(|snapshot| snapshot.claim())?;
        let second_tier = Some(fleet_setup::tier_for_test(store, &secret, &random)?);
        let backends = Backends { upstream, client_config: None, second_tier, snapshot, hints: None };
        Self::assemble_for_test(&config, clock, random, backends)
    }

    /// A gateway with a simulated upstream and the snapshot that the settings name, for tests. It owns the snapshot from
    /// now on.
    ///
    /// # Errors
    /// If the system has no randomness, or the snapshot cannot be opened.
    pub fn with_snapshot(
        upstream: Arc<dyn Upstream>,
        config: &Config,
        clock: Clock,
        random: Random,
    ) -> io::Result<Arc<Self>> {
        let snapshot = Snapshot::open(config, &random)?.map(Arc::new);
        snapshot.iter().try_for_each(|snapshot| snapshot.claim())?;
        let backends = Backends { upstream, client_config: None, second_tier: None, snapshot, hints: None };
        Self::assemble_for_test(config, clock, random, backends)
    }

    /// A gateway with a simulated upstream that tells its hints, for tests.
    ///
    /// # Errors
    /// If the system has no randomness.
    pub fn with_hints(
        upstream: Arc<dyn Upstream>,
        sink: HintSink,
        config: &Config,
        clock: Clock,
        random: Random,
    ) -> io::Result<Arc<Self>> {
        let hints = Some(sink);
        let backends = Backends { upstream, client_config: None, second_tier: None, snapshot: None, hints };
        Self::assemble_for_test(config, clock, random, backends)
    }

    fn assemble_for_test(config: &Config, clock: Clock, random: Random, backends: Backends) -> io::Result<Arc<Self>> {
        let metrics = Metrics::new().map_err(io::Error::other)?;
        let via = Via::new(random.u32()?);
        Self::assemble(config, Machine { random, ..clock.into() }, via, metrics, backends)
    }

    fn assemble(
        config: &Config,
        machine: Machine,
        via: Via,
        metrics: Arc<Metrics>,
        backends: Backends,
    ) -> io::Result<Arc<Self>> {
        let Backends { upstream, client_config, mut second_tier, snapshot, mut hints } = backends;
        let Machine { clock, random, .. } = machine.clone();
        let settings = &config.settings;
        let digests = Digests::new(random.key("shown keys")?, random.key("shown callers")?);
        let (tracer, spans) =
            config.otlp.as_ref().and_then(|otlp| tracer(otlp, budget_size(settings), &metrics, &clock)).unzip();
        let sinks = Arc::new(Sinks::new(Arc::clone(&metrics), tracer, clock.clone()));
        let observer = Arc::new(Observer {
            digests,
            events: Events::default(),
            failures: Failures::default(),
            healths: Healths::default(),
            history: Mutex::new(History::new(clock.now())),
            conditions: ConditionTracker::default(),
            started: clock.timer_now(),
            metrics: Arc::clone(&metrics),
            sinks: Arc::clone(&sinks),
            spans: Mutex::new(spans),
            clock: clock.clone(),
        });
        let mut fleet = None;
        let sync = Arc::new(FleetSync::new(clock.now()));
        if let Some(config) = &config.fleet {
            let watcher = Arc::clone(&observer) as Arc<dyn Watcher>;
            let joined = fleet_setup::join(config, Arc::clone(&sync), machine.clone(), watcher)?;
            (fleet, second_tier, hints) = (Some(joined.fleet), Some(joined.tier), Some(joined.hints));
        }
        // It says which hints are this process's.
        let process = match hints {
            Some(_) => Some(u64::from(random.u32()?) << 32 | u64::from(random.u32()?)),
            None => None,
        };
        let hints = Hints::new(hints);
        // With a secret, other processes recognise the same callers.
        let sealers =
            second_tier.iter().map(|tier| &tier.names.sealer).chain(snapshot.iter().map(|snapshot| snapshot.sealer()));
        let sealer = sealers.into_iter().next();
        let callers_key = sealer.map_or_else(|| random.key("callers"), |sealer| Ok(sealer.callers_key()))?;
        let callers = Callers::new(callers_key);
        let fingerprints = Fingerprints::new(random.key("last credentials")?);
        let request_ids = Arc::new(RequestIds::new(random.key(REQUEST_IDS)?));
        let revocations = Arc::<Revocations>::default();
        let grants = Arc::new(Grants::new(grant_policy(settings), Arc::clone(&revocations)).in_fleet(sync));
        let limits = flight_limits(settings);
        let [shared_flights, lone_flights] = [limits; 2].map(|limits| Arc::new(Flights::new(limits)));
        let proofs = Arc::new(Flights::new(limits));
        let ledger = Arc::new(Ledger::new(process));
        let gates = upstream_setup::gates(&settings.upstream, &metrics, &ledger, &clock);
        upstream_setup::watch_quotas(&ledger, &gates, &clock, &metrics);
        let [gate, relay_gate] = gates;
        let budget = Budget::new(budget_size(&config.settings));
        let (max_size, evictions) = (settings.cache.max_size.0, metrics.eviction_counter());
        let store = Arc::new(Store::new(max_size, Arc::clone(&budget), Arc::clone(&revocations), evictions));
        // Weak references, because the store in turn holds a counter of these metrics.
        let weak_store = Arc::downgrade(&store);
        let weak_flights = [&shared_flights, &lone_flights].map(Arc::downgrade);
        let weak_proofs = Arc::downgrade(&proofs);
        let (weak_grants, grant_clock) = (Arc::downgrade(&grants), clock.clone());
        let bypassing = Arc::new(AtomicBool::new(settings.mode == Mode::Bypass));
        let is_bypassing = Arc::clone(&bypassing);
        let fleet_clock = clock.clone();
        let weak_fleet = fleet.as_ref().map(Arc::downgrade);
        metrics.watch(move || InUse {
            store: weak_store.upgrade().map(|store| store.usage()).unwrap_or_default(),
            waiting: weak_flights.iter().filter_map(Weak::upgrade).map(|flights| flights.waiting()).sum::<usize>()
                + weak_proofs.upgrade().map_or(0, |proofs| proofs.waiting()),
            grants: weak_grants.upgrade().map_or(0, |grants| grants.live(grant_clock.now())),
            is_bypassing: is_bypassing.load(Ordering::Relaxed),
            fleet: weak_fleet
                .as_ref()
                .and_then(Weak::upgrade)
                .map(|fleet| fleet_setup::gauges(&fleet, fleet_clock.now())),
        });
        metrics.watch_budget(Arc::clone(&budget));
        metrics.start_operations(config.catalogue.operations());
        let fast_path = FastPath::new(settings.listen.fast_path, random.key("heads")?, &sinks, clock.clone());
        let key_trials =
            second_tier.as_ref().filter(|_| process.is_some()).map(|tier| KeyTrials::new(tier, clock.clone()));
        let gateway = Arc::new(Self {
            active: RwLock::new(Arc::new(ActiveConfig::new(config.clone(), upstream, client_config, random.clone()))),
            reloading: Mutex::default(),
            callers,
            fingerprints,
            fast_path,
            request_ids,
            via,
            bypassing,
            memory: Arc::new(Memory {
                grants,
                store,
                backoffs: Backoffs::new(),
                known_callers: Arc::default(),
                revocations,
                second_tier,
                fleet,
                hints: hints.clone(),
            }),
            fetcher: Arc::new(Fetcher {
                shared_flights,
                lone_flights,
                proofs,
                successes: Successes::default(),
                gate,
                relay_gate,
                ledger,
                key_breaker: KeyBreaker::new(process, clock.clone()),
                key_trials,
                keep_warm_changes: Notify::new(),
                hints,
            }),
            observer,
            snapshot,
            budget,
            clock,
            machine,
        });
        gateway.watch_staleness();
        gateway.watch_conditions();
        gateway.fetcher.set_quotas(&config.quotas);
        Ok(gateway)
    }

    /// Takes a hint of another gateway, which was told this long ago. Unlike the age of a record, it need not be an upper
    /// bound: it should be as exact as possible.
    pub fn take_hint(&self, hint: &Hint, age: Duration) {
        let (active, now) = (self.active(), self.clock.now());
        // A gateway with other settings may tell what means nothing here.
        let Self { memory, fetcher, observer, .. } = self;
        let _ = HintTaker { active: &active, memory, fetcher, observer, now }.take(hint, age);
    }

    /// In sync with the fleet until this time of [`Self::now`], for tests. With a fleet, the reader of the log says so.
    pub fn extend_sync(&self, until: Instant) {
        self.memory.grants.extend_sync(until);
    }

    pub fn observer(&self) -> &Observer {
        &self.observer
    }

    pub fn metrics(&self) -> &Arc<Metrics> {
        &self.observer.metrics
    }

    pub fn budget(&self) -> &Arc<Budget> {
        &self.budget
    }

    /// The time that grants and freshness are compared with. It includes suspension ([`Clock::now`]).
    pub fn now(&self) -> Instant {
        self.clock.now()
    }

    /// All entries with their keys. Slow if there are many.
    pub fn entries(&self) -> impl Iterator<Item = (Arc<CacheKey>, Arc<Entry>)> {
        self.memory.store.entries()
    }

    /// The limits of upstream that are known, by service.
    pub fn limits(&self) -> Vec<(Service, Vec<LimitState>)> {
        self.fetcher.ledger.states(self.clock.now())
    }

    /// Whether the entry must be revalidated before it is served, because an unsafe method invalidated it.
    pub fn is_invalidated(&self, cache_key: &CacheKey, entry: &Entry) -> bool {
        self.memory.store.is_invalidated(cache_key.key.scope(), entry.freshness_info().sent)
    }

    pub fn date(&self) -> SystemTime {
        self.clock.date()
    }

    pub fn mode(&self) -> Mode {
        if self.bypassing.load(Ordering::Relaxed) { Mode::Bypass } else { Mode::Cache }
    }

    /// Switches the cache on or off at run time. Entries stay, and age.
    pub fn set_mode(&self, mode: Mode) {
        self.bypassing.store(mode == Mode::Bypass, Ordering::Relaxed);
        self.fetcher.keep_warm_changes.notify_one();
    }

    /// Removes the selected entries and returns their number. The result of a call that was sent before the purge is
    /// not stored, and goes only to the request that was sent. Grants stay.
    pub fn purge(&self, selection: &PurgeSelection) -> usize {
        // First: a look-up that begins later must not find what is gone.
        self.memory.second_tier.iter().for_each(|tier| tier.purged(selection));
        self.purge_here(selection)
    }

    /// The same without telling other gateways.
    pub(super) fn purge_here(&self, selection: &PurgeSelection) -> usize {
        let purged = self.memory.store.purge(selection, self.clock.now());
        self.end_purged(selection);
        purged
    }

    /// All entries may be void: removes them. What is private stays so.
    pub(super) fn void_entries(&self) {
        let everything = PurgeSelection::default();
        self.memory.store.clear(&everything, self.clock.now());
        self.end_purged(&everything);
    }

    fn end_purged(&self, selection: &PurgeSelection) {
        self.memory.backoffs.purge(selection);
        self.fetcher.shared_flights.close_all();
        self.fetcher.lone_flights.close_all();
        self.fetcher.keep_warm_changes.notify_one();
    }
}

/// The tracer, and the spans that it exports, if spans are exported.
fn tracer(
    otlp: &OtlpConfig,
    budget: usize,
    metrics: &Metrics,
    clock: &Clock,
) -> Option<(Arc<Tracer>, mpsc::Receiver<Span>)> {
    otlp.traces.as_ref()?;
    let dropped = metrics.otlp_spans.with_label_values(&[SpanResult::QueueFull.into_str()]);
    let sampler = Sampler::new(otlp.sampler, otlp.sampling_rate);
    let (tracer, spans) = Tracer::new(sampler, otlp.fitted(budget).max_queue, dropped, clock.clone());
    Some((Arc::new(tracer), spans))
}

/// The size of the memory budget, in bytes.
pub(super) fn budget_size(settings: &Settings) -> usize {
    Budget::size(settings.limits.memory.map(Size::bytes))
}

pub(super) fn grant_policy(settings: &Settings) -> GrantPolicy {
    let grants = &settings.grants;
    GrantPolicy {
        grant_ttl: grants.grant_ttl.0,
        denial_ttl: grants.denial_ttl.0,
        outage_grace: (grants.on_outage == OnOutage::Serve).then_some(grants.outage_grace.0),
        renewal: RenewalPolicy { max_lead: grants.renew_ahead.0, jitter: settings.cache.ttl_jitter.0 },
        max_grants: grants.max_grants.0,
    }
}

/// The limits of shared flights, and the same again for flights of one caller.
pub(super) fn flight_limits(settings: &Settings) -> FlightLimits {
    FlightLimits { flights: settings.limits.max_flights.0, waiting: settings.limits.max_waiters.0 }
}
