//! Measures how often answers from memory are wrong: the share of the answers of the last hour that differed from what
//! upstream would have said at that moment. Pure: the time is an argument.
//!
//! # Evidence
//!
//! A *look* is a successful response of upstream to a call for a cache key, whatever the call was made for: a proof, a
//! renewal, a refresh or a miss. If two looks have the same digest, upstream's answer did not change between them, and
//! all answers from the first response were right. (A catalogue that changes and changes back between two looks is not
//! noticed.) If the digests differ, there was a change at an unknown time between the looks. The answers up to it were
//! right, and those after it were wrong. Nothing is known yet about the answers after the last look.
//!
//! So most answers are known to be right. The others are *doubtful*: how many of them were wrong depends on when the
//! change was, and on their own times. Each stored response counts its answers by age ([`AnswerCounters`]). An answer of
//! age `a` is wrong if the change came within `a` after the look.
//!
//! # Why the looks are not a random sample
//!
//! The share of looks that differ from the stored response says nothing about the share of wrong answers. Looks happen
//! when entries expire and grants lapse: at greater ages than most answers, and more often for callers and lists that
//! are seldom asked for. So looks only say when there were changes, and answers are weighted by their own ages.
//!
//! # Estimate
//!
//! The changes between the looks are drawn from their posterior distribution ([`posterior`]), 300 times, from a fixed
//! seed. Each draw gives a number of wrong answers. Their mean is the estimate, and their quantiles are the interval. It
//! contains what is not known: when each change was, which lists it affected, and the changes after the last look. A
//! catalogue often changes as a whole, so all lists of a scope are judged together: each look narrows down the time of a
//! change, whatever list it is for.
//!
//! # What counts as a change
//!
//! A difference counts when a second look confirms it: by another caller, or by a caller that has seen the previous
//! digest. A digest that returns retracts what was between. A caller that sees something else than others (a limited
//! view, a timestamp in each body) is *odd* in its scope: its looks do not count ([`history`]). Callers that get
//! alternating responses are the task of [`super::divergence`]. Before it is confirmed, a difference counts with the
//! probability that earlier ones in its scope were confirmed.
//!
//! # Limits
//!
//! At most 64 keys of a scope, 256 scopes, 2,048 keys and 64 runs of a key are kept: 0.3 KB for each run, at most 5 MB.
//! Answers of further keys are not judged. An estimate takes about 3 ms for a scope in which changes are rare, and at
//! most about 0.2 s if there are many. It is made at most once a minute for each operation.

mod answers;
mod dice;
mod history;
mod measure;
mod posterior;
mod settled;
#[cfg(test)]
mod tests;
mod ttl_control;

use std::collections::HashMap;
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

pub use self::answers::AnswerCounters;
use self::history::{Differences, KeyHistory, Look, MAX_RUNS, OddCallers};
use self::measure::Measurement;
use self::settled::Settled;
use self::ttl_control::TtlControl;
use super::cache_key::CacheKey;
use super::divergence::Observation;
use crate::catalogue::Operation;
use crate::request::key::Scope;
use crate::sync::Mutex;

/// The most scopes, the most keys of a scope, and the most keys.
const MAX_SCOPES: usize = 256;
const MAX_KEYS_OF_SCOPE: usize = 64;
const MAX_KEYS: usize = 2048;
/// If there are more runs, a key keeps only its latest ones.
const MANY_RUNS: usize = 8192;
const FEW_RUNS: usize = 4;
/// How far back looks are used, in seconds.
const WINDOW: f64 = 3.0 * 3600.0;
/// An estimate is used for this time.
const ESTIMATE_TTL: Duration = Duration::from_secs(60);

/// How many of the answers that were given from memory in the last hour differed from upstream's.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct StaleAnswers {
    /// The share of wrong answers, from 0 to 1, and its 95% interval.
    pub ratio: f64,
    pub lower: f64,
    pub upper: f64,
}

/// The answers of an operation or of one of its projects.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Answers {
    /// How many answers of the last hour could be judged.
    pub answers: f64,
    /// `None` if there is too little evidence.
    pub stale: Option<StaleAnswers>,
    /// How often a list changes per hour, averaged over the last hour (for a project) or over about a week (for an
    /// operation).
    pub changes_per_hour: Option<f64>,
}

/// What is known about an operation.
#[derive(Clone, Debug, Default)]
pub struct OperationStaleness {
    pub all: Answers,
    /// By project, in short form. Those with the most answers come first.
    pub projects: Vec<(String, Answers)>,
}

/// The looks of a scope.
#[derive(Default)]
struct ScopeState {
    keys: HashMap<CacheKey, KeyHistory>,
    settled: Settled,
    odd_callers: OddCallers,
    differences: Differences,
    /// Answers before this time are not judged, because looks of that time were dropped. In seconds.
    judged_from: f64,
    last_look: f64,
}

/// What is known about an operation, and when it was computed.
#[derive(Default)]
struct OperationState {
    measurement: Option<(Instant, Arc<Measurement>)>,
    refresh_begun: Option<Instant>,
    control: TtlControl,
}

#[derive(Default)]
struct State {
    scopes: HashMap<Scope, ScopeState>,
    keys: usize,
    runs: usize,
}

/// The looks at upstream's responses, and what they say.
#[derive(Default)]
pub struct Staleness {
    /// Times are counted from here: the first one that was seen.
    begin: OnceLock<Instant>,
    state: Mutex<State>,
    operations: Mutex<HashMap<Arc<str>, OperationState>>,
}

impl Staleness {
    fn seconds(&self, at: Instant) -> f64 {
        at.saturating_duration_since(*self.begin.get_or_init(|| at)).as_secs_f64()
    }

    /// Adds a successful response of upstream, which has been stored. `counters` count the answers that are made from it.
    pub fn look(&self, cache_key: &CacheKey, observation: &Observation, counters: Arc<AnswerCounters>) {
        let mut digest = [0; 8];
        digest.copy_from_slice(&observation.digest[..8]);
        let look = Look {
            digest: u64::from_le_bytes(digest),
            caller: observation.caller,
            sent: self.seconds(observation.sent),
            received: self.seconds(observation.received),
        };
        self.state.lock().add(cache_key, look, counters);
    }

    /// What is known about an operation. It is computed again if it is older than a minute.
    pub fn of_operation(&self, operation: &Operation, now: Instant) -> OperationStaleness {
        let measurement = self.measurement(operation, now);
        let changes_per_hour = self.with_operation(operation, |state| state.control.changes_per_hour());
        let mut known = measurement.known.clone();
        known.all.changes_per_hour = changes_per_hour;
        known
    }

    /// Whether [`Self::refresh`] should be called now: the last estimate and the last such answer are older than a minute.
    pub fn begin_refresh(&self, operation: &Operation, now: Instant) -> bool {
        self.with_operation(operation, |state| {
            let is_recent = |at: Instant| now.saturating_duration_since(at) < ESTIMATE_TTL;
            let begins = state.recent(now).is_none() && !state.refresh_begun.is_some_and(is_recent);
            if begins {
                state.refresh_begun = Some(now);
            }
            begins
        })
    }

    /// Makes an estimate if the last one is older than a minute.
    pub fn refresh(&self, operation: &Operation, now: Instant) {
        self.measurement(operation, now);
    }

    /// The ttl of an operation: chosen by the last estimate if the operation has an adaptive ttl, else the configured
    /// one. It makes no new estimate.
    pub fn ttl(&self, operation: &Operation, now: Instant) -> Duration {
        let Some(adaptive) = &operation.adaptive_ttl else {
            return operation.ttl;
        };
        let now_seconds = self.seconds(now);
        let ttl = self.with_operation(operation, |state| {
            let hour = state.measurement.as_ref().and_then(|(_, measurement)| measurement.hour);
            state.control.ttl(now_seconds, adaptive, operation.ttl.as_secs_f64(), hour.as_ref())
        });
        Duration::try_from_secs_f64(ttl).unwrap_or(operation.ttl)
    }

    fn measurement(&self, operation: &Operation, now: Instant) -> Arc<Measurement> {
        if let Some(recent) = self.with_operation(operation, |state| state.recent(now)) {
            return recent;
        }
        let seconds = self.seconds(now);
        // The lock of the looks is not held while the estimate is made.
        let collected = measure::collect(&self.state.lock().scopes, operation, seconds);
        let measurement = Arc::new(measure::measure(collected, seconds));
        self.with_operation(operation, |state| {
            if let Some(hour) = &measurement.hour {
                state.control.add(seconds, hour);
            }
            // Another thread may have made a later one.
            if state.measurement.as_ref().is_none_or(|(at, _)| *at <= now) {
                state.measurement = Some((now, Arc::clone(&measurement)));
            }
        });
        measurement
    }

    fn with_operation<T>(&self, operation: &Operation, then: impl FnOnce(&mut OperationState) -> T) -> T {
        // Operations come from the catalogue, so there are few.
        then(self.operations.lock().entry(Arc::clone(&operation.name)).or_default())
    }
}

impl OperationState {
    fn recent(&self, now: Instant) -> Option<Arc<Measurement>> {
        let (at, measurement) = self.measurement.as_ref()?;
        (now.saturating_duration_since(*at) < ESTIMATE_TTL).then(|| Arc::clone(measurement))
    }
}

impl State {
    fn add(&mut self, cache_key: &CacheKey, look: Look, counters: Arc<AnswerCounters>) {
        let scope = cache_key.key.scope();
        if !self.scopes.get(scope).is_some_and(|state| state.keys.contains_key(cache_key))
            && !self.has_room(scope, look.sent)
        {
            return;
        }
        let ScopeState { keys, settled, odd_callers, differences, judged_from, last_look } =
            self.scopes.entry(scope.clone()).or_default();
        let key = keys.entry(cache_key.clone()).or_insert_with(|| {
            self.keys += 1;
            KeyHistory::default()
        });
        *last_look = look.sent;
        let before = key.runs.len();
        key.look(look, counters, odd_callers, differences, settled);
        let most = if self.runs >= MANY_RUNS { FEW_RUNS } else { MAX_RUNS };
        if let Some(dropped) = key.limit(most, look.sent - WINDOW) {
            *judged_from = judged_from.max(dropped);
        }
        self.runs = self.runs + key.runs.len() - before;
    }

    /// Whether there is room for another key of this scope. Keys and scopes without a look within [`WINDOW`] make room.
    fn has_room(&mut self, scope: &Scope, now: f64) -> bool {
        let is_full = |state: &Self| {
            let in_scope = state.scopes.get(scope).map_or(0, |scope| scope.keys.len());
            let is_new = !state.scopes.contains_key(scope);
            in_scope >= MAX_KEYS_OF_SCOPE || state.keys >= MAX_KEYS || is_new && state.scopes.len() >= MAX_SCOPES
        };
        if is_full(self) {
            self.scopes.retain(|_, scope| now - scope.last_look < WINDOW);
            for scope in self.scopes.values_mut() {
                scope.keys.retain(|_, key| key.last_look().is_some_and(|last| now - last < WINDOW));
            }
            let keys = || self.scopes.values().flat_map(|scope| scope.keys.values());
            (self.keys, self.runs) = (keys().count(), keys().map(|key| key.runs.len()).sum());
        }
        !is_full(self)
    }
}
