//! A simulated gateway: entries with a ttl, grants of five minutes, stale-while-revalidate, and calls that take 0.3 s. It
//! knows of each answer whether it is wrong.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rand::rngs::SmallRng;
use rand::{RngExt, SeedableRng};
use workspace_gateway::testing::cache::divergence::Observation;
use workspace_gateway::testing::cache::staleness::{AnswerCounters, Answers, Staleness};
use workspace_gateway::testing::cache::store::CacheKey;
use workspace_gateway::testing::catalogue::Operation;
use workspace_gateway::testing::clock::Clock;
use workspace_gateway::testing::request::caller::Caller;

use crate::world::{World, wait};

const GRANT_TTL: f64 = 300.0;
const STALE_WHILE_REVALIDATE: f64 = 600.0;
const LATENCY: f64 = 0.3;

/// Whether the first caller sees something else than the others.
#[derive(Clone, Copy, PartialEq)]
pub enum First {
    AsOthers,
    /// Two thirds of its lists lack a product.
    LimitedView,
    /// Each of its responses contains a timestamp.
    Timestamp,
}

/// The requests: the n-th list is requested 1/n as often as the first one, by random callers.
#[derive(Clone, Copy)]
pub struct Load {
    pub lists: usize,
    pub callers: usize,
    pub requests_per_hour: f64,
    pub first: First,
}

/// What the requests are for.
pub struct Names {
    pub operation: Arc<Operation>,
    pub keys: Vec<CacheKey>,
    pub callers: Vec<Caller>,
}

struct Entry {
    sent: f64,
    version: usize,
    ttl: f64,
    counters: Arc<AnswerCounters>,
}

struct Call {
    list: usize,
    caller: usize,
    sent: f64,
    received: f64,
}

pub struct SimulatedGateway<'w> {
    world: &'w World,
    load: Load,
    names: Names,
    /// A ttl in seconds that is used in place of that of the operation.
    fixed_ttl: Option<f64>,
    /// The rate of changes by which `expected_wrong` is computed, per second.
    rate: f64,
    dice: SmallRng,
    begin: Instant,
    now: f64,
    next: f64,
    entries: Vec<Option<Entry>>,
    calls: Vec<Call>,
    grants: Vec<f64>,
    responses: u64,
    /// The answers of the last hour: when they were given, and whether they were wrong.
    last_hour: VecDeque<(f64, bool)>,
    pub staleness: Staleness,
    pub answers: u64,
    pub wrong: u64,
    pub expected_wrong: f64,
    pub upstream_calls: u64,
}

impl<'w> SimulatedGateway<'w> {
    pub fn new(world: &'w World, load: Load, names: Names, fixed_ttl: Option<f64>, rate: f64, seed: u64) -> Self {
        let begin = Clock::System.now();
        Self {
            world,
            load,
            names,
            fixed_ttl,
            rate,
            dice: SmallRng::seed_from_u64(seed),
            begin,
            now: 0.0,
            next: 0.0,
            entries: (0..load.lists).map(|_| None).collect(),
            calls: Vec::new(),
            grants: vec![f64::NEG_INFINITY; load.callers],
            responses: 0,
            last_hour: VecDeque::new(),
            staleness: Staleness::default(),
            answers: 0,
            wrong: 0,
            expected_wrong: 0.0,
            upstream_calls: 0,
        }
    }

    fn at(&self, time: f64) -> Instant {
        self.begin + Duration::from_secs_f64(time)
    }

    /// What the estimator says now.
    pub fn measured(&self) -> Answers {
        self.staleness.refresh(&self.names.operation, self.at(self.now));
        self.staleness.of_operation(&self.names.operation, self.at(self.now)).all
    }

    /// The ttl in force, in seconds.
    pub fn ttl(&self) -> f64 {
        self.fixed_ttl.unwrap_or_else(|| self.chosen_ttl())
    }

    /// The ttl that is chosen by what was measured, in seconds.
    pub fn chosen_ttl(&self) -> f64 {
        self.staleness.ttl(self.names.keys[0].key.scope(), self.at(self.now)).as_secs_f64()
    }

    /// The true share of wrong answers in the last hour.
    pub fn true_ratio(&self) -> f64 {
        self.last_hour.iter().filter(|(_, is_wrong)| *is_wrong).count() as f64 / self.last_hour.len() as f64
    }

    /// Runs until a time, in seconds.
    pub fn run(&mut self, until: f64) {
        while self.next < until {
            self.now = self.next;
            self.next += wait(&mut self.dice, self.load.requests_per_hour / 3600.0);
            self.end_calls();
            self.request();
        }
        self.now = until;
        self.end_calls();
        while self.last_hour.front().is_some_and(|(time, _)| *time <= until - 3600.0) {
            self.last_hour.pop_front();
        }
    }

    fn request(&mut self) {
        let caller = self.dice.random_range(0..self.load.callers);
        let list = self.random_list();
        let is_in_flight = self.calls.iter().any(|call| call.list == list);
        if self.grants[caller] <= self.now {
            return self.call(list, caller);
        }
        let usable = self.entries[list].as_ref().map(|entry| (self.now - entry.sent, entry));
        let Some((age, entry)) = usable.filter(|(age, entry)| *age < entry.ttl + STALE_WHILE_REVALIDATE) else {
            if !is_in_flight {
                self.call(list, caller);
            }
            return;
        };
        entry.counters.add(Duration::from_secs_f64(age));
        let is_wrong = self.world.version(list, self.now) != entry.version;
        let is_stale = age >= entry.ttl;
        self.last_hour.push_back((self.now, is_wrong));
        self.answers += 1;
        self.wrong += u64::from(is_wrong);
        self.expected_wrong += 1.0 - (-self.rate * age).exp();
        if is_stale && !is_in_flight {
            self.call(list, caller);
        }
    }

    fn random_list(&mut self) -> usize {
        let weights = || (1..=self.load.lists).map(|rank| 1.0 / rank as f64);
        let mut point = self.dice.random_range(0.0..weights().sum::<f64>());
        let found = weights().position(|weight| {
            point -= weight;
            point < 0.0
        });
        found.unwrap_or(0)
    }

    fn call(&mut self, list: usize, caller: usize) {
        self.upstream_calls += 1;
        let latency = LATENCY * self.dice.random_range(0.5..1.5);
        self.calls.push(Call { list, caller, sent: self.now, received: self.now + latency });
    }

    /// Stores the responses that have been received by now.
    fn end_calls(&mut self) {
        let now = self.now;
        let mut ended: Vec<_> = self.calls.extract_if(.., |call| call.received <= now).collect();
        ended.sort_by(|one, other| one.received.total_cmp(&other.received));
        for Call { list, caller, sent, received } in ended {
            self.grants[caller] = sent + GRANT_TTL;
            if self.entries[list].as_ref().is_some_and(|entry| entry.sent >= sent) {
                continue;
            }
            let version = self.world.version(list, f64::midpoint(sent, received));
            let ttl = self.ttl() * self.dice.random_range(0.9..1.0);
            let counters = Arc::new(AnswerCounters::new(Duration::from_secs_f64(ttl)));
            self.entries[list] = Some(Entry { sent, version, ttl, counters: Arc::clone(&counters) });
            let observation = Observation {
                digest: self.digest(list, caller, version),
                caller: self.names.callers[caller],
                sent: self.at(sent),
                received: self.at(received),
            };
            self.staleness.look(&self.names.keys[list], &observation, counters);
        }
    }

    fn digest(&mut self, list: usize, caller: usize, version: usize) -> [u8; 32] {
        self.responses += 1;
        let view = match self.load.first {
            First::LimitedView if caller == 0 && list % 3 != 2 => 1,
            First::Timestamp if caller == 0 => 1 + self.responses,
            _ => 0,
        };
        let mut digest = [0; 32];
        digest[..4].copy_from_slice(&(version as u32).to_le_bytes());
        digest[4..8].copy_from_slice(&(view as u32).to_le_bytes());
        digest
    }
}
