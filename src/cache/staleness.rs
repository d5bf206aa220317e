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
//! A difference counts when a second look sees its digest too: by another caller, or by a caller that has seen the
//! previous one. Before that, it counts with the probability that earlier differences in its scope were not retracted. A
//! digest that returns retracts what was between ([`history`]). From then on:
//!
//! - A caller that sees a retracted digest again has another view of the list. These looks do not count.
//! - A caller that has had two retracted digests, and sees a third one, is *odd* in its scope: as if each of its bodies
//!   contained a timestamp. Its new digests do not count for a day.
//!
//! Numbers of callers decide nothing, because one user may have several tokens. There is one exception: a digest that
//! several callers have seen for five minutes is not retracted by one that only a single caller has seen. If callers get
//! alternating responses, the scope becomes private ([`super::divergence`]), and what was seen before is forgotten.
//!
//! Lists whose responses always differ are left out ([`row`]): their answers are not among those that can be judged. If
//! all bodies of their callers may contain a timestamp, the other lists decide the ratio and the ttl alone, because one
//! caller must not be able to change them. If a caller has had equal responses elsewhere, it is the list that changes,
//! and its answers are probably stale: so if they are more than a tenth of the answers, the ratio is unknown, and the
//! ttl moves to `cache.ttl`. Lists that only an odd caller has looked at are not judged either.
//!
//! # The ttl
//!
//! Each scope has its own ([`scope_ttls`]), from its own looks and answers. It is first chosen after an hour of evidence.
//! The metrics show its mean over the recent answers of all scopes.
//!
//! # Limits
//!
//! At most 64 keys of a scope, 256 scopes, 2,048 keys and 64 runs of a key are kept: 0.3 KB for each run and up to 2.2 KB
//! more for each key, at most about 18 MB. Keys larger than 1 KiB are not measured, so their sum is at most 2 MiB.
//! If a scope has more keys, the one with the fewest answers makes room for a new one. If there are more scopes, or more
//! keys in all, it is the scope with the fewest answers, or a key of the scope with the most keys. Answers of other keys
//! are not judged, and neither are those of a key with one look. An estimate takes about 1 ms for a scope in which
//! changes are rare, and at most about 0.6 s of CPU time for all scopes of an operation, because the steps of the
//! simulation are limited. A scope for which they are not enough is left out. If more than a tenth of the answers are
//! left out, the ratio is unknown. One estimate is made at a time, at most one a minute for each operation.
//! [`Staleness::refresh`] must not be called on a thread of the async runtime.

mod answers;
mod dice;
mod history;
mod looks;
mod measure;
mod posterior;
mod row;
mod scope_ttls;
mod settled;
#[cfg(test)]
mod tests;
mod ttl_control;

use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

pub use self::answers::AnswerCounters;
use self::history::Look;
use self::looks::Looks;
use self::measure::{Estimator, Measurement};
use self::scope_ttls::{MeanOfScopes, ScopeTtls};
use super::cache_key::CacheKey;
use super::divergence::Observation;
use crate::catalogue::Operation;
use crate::random::HashMap;
use crate::request::key::Scope;
use crate::sync::Mutex;

/// The most scopes. Beyond this the least active one is forgotten: its ttl is the configured one again.
const MAX_SCOPES: usize = 256;
/// Larger keys, in bytes, are not measured: they would take memory that no budget counts.
const MAX_KEY_SIZE: usize = 1024;
/// How far back looks are used, in seconds.
const WINDOW: f64 = 3.0 * 3600.0;
/// The least time between two estimates.
const ESTIMATE_TTL: Duration = Duration::from_secs(60);
/// The least time between two estimates that nobody looks at, if the ttl does not depend on them.
const UNSEEN_ESTIMATE_TTL: Duration = Duration::from_secs(600);
/// After this time an estimate says nothing about the last hour.
const LONGEST_USE: Duration = Duration::from_secs(3600);
/// The most projects that are shown.
const MAX_PROJECTS: usize = 20;

/// How many of the answers that were given from memory in the last hour differed from upstream's.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct StaleAnswers {
    /// The share of wrong answers, from 0 to 1, and its 95% interval.
    pub ratio: f64,
    pub lower: f64,
    pub upper: f64,
}

/// The answers of an operation or of one of its projects, or means over them.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Answers {
    /// How many answers of the last hour could be judged.
    pub answers: f64,
    /// `None` if there is too little evidence.
    pub stale: Option<StaleAnswers>,
    /// How often a list changes per hour, averaged over about a week. `None` before the first hour of evidence.
    pub changes_per_hour: Option<f64>,
}

/// What is known about one of the projects of an operation.
#[derive(Clone, Debug)]
pub struct ProjectStaleness {
    /// In short form.
    pub project: String,
    pub answers: Answers,
    /// The ttl in force. If the project has several scopes: its mean over recent answers.
    pub ttl: Duration,
}

/// What is known about an operation.
#[derive(Clone, Debug)]
pub struct OperationStaleness {
    pub all: Answers,
    /// The mean ttl in force over recent answers.
    pub ttl: Duration,
    /// Those with the most answers come first.
    pub projects: Vec<ProjectStaleness>,
}

/// Who needs an estimate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EstimateUse {
    /// Operators: it is shown.
    Display,
    /// The gateway, which makes a fetch: the ttl may depend on it.
    Fetch,
}

/// What is known about an operation, and when it was computed.
#[derive(Default)]
struct OperationState {
    measurement: Option<(Instant, Arc<Measurement>)>,
    refresh_begun: Option<Instant>,
}

/// The looks at upstream's responses, and what they say.
#[derive(Default)]
pub struct Staleness {
    /// Times are counted from here: the first one that was seen.
    begin: OnceLock<Instant>,
    looks: Mutex<Looks>,
    operations: Mutex<HashMap<Arc<str>, OperationState>>,
    ttls: Mutex<ScopeTtls>,
    /// Held while an estimate is made, so that estimates use at most one core.
    estimating: Mutex<()>,
}

impl Staleness {
    fn seconds(&self, at: Instant) -> f64 {
        at.saturating_duration_since(*self.begin.get_or_init(|| at)).as_secs_f64()
    }

    /// Adds a successful response of upstream, which has been stored. `counters` count the answers that are made from it.
    pub fn look(&self, cache_key: &CacheKey, observation: &Observation, counters: Arc<AnswerCounters>) {
        if cache_key.key.size() > MAX_KEY_SIZE {
            return;
        }
        let mut digest = [0; 8];
        digest.copy_from_slice(&observation.digest[..8]);
        let look = Look {
            digest: u64::from_le_bytes(digest),
            caller: observation.caller,
            sent: self.seconds(observation.sent),
            received: self.seconds(observation.received),
        };
        self.looks.lock().add(cache_key, look, counters);
    }

    /// What was known about an operation when the last estimate was finished, if that is less than an hour ago. It makes
    /// no estimate.
    pub fn of_operation(&self, operation: &Operation, now: Instant) -> OperationStaleness {
        let measured = self.with_operation(operation, |state| state.measured_within(LONGEST_USE, now).map(Arc::clone));
        let measured = measured.unwrap_or_default();
        let seconds = self.seconds(now);
        let mut ttls = self.ttls.lock();
        let mut with_mean = |answers: Answers, project_id: Option<&str>| {
            let MeanOfScopes { ttl, changes_per_hour } = ttls.mean(operation, project_id, seconds);
            (Answers { changes_per_hour, ..answers }, in_force(ttl, operation))
        };
        let (all, ttl) = with_mean(measured.all, None);
        let shown = measured.projects.iter().take(MAX_PROJECTS).map(|known| {
            let (answers, ttl) = with_mean(known.answers, Some(&known.project_id));
            ProjectStaleness { project: known.project.clone(), answers, ttl }
        });
        let projects = shown.collect();
        OperationStaleness { all, ttl, projects }
    }

    /// Whether [`Self::refresh`] should be called now: the last estimate is old, and none has begun recently.
    pub fn begin_refresh(&self, operation: &Operation, estimate_use: EstimateUse, now: Instant) -> bool {
        let is_seldom = estimate_use == EstimateUse::Fetch && operation.adaptive_ttl.is_none();
        let age = if is_seldom { UNSEEN_ESTIMATE_TTL } else { ESTIMATE_TTL };
        self.with_operation(operation, |state| {
            let has_begun = state.refresh_begun.is_some_and(|at| now.saturating_duration_since(at) < age);
            let begins = !has_begun && state.measured_within(age, now).is_none();
            if begins {
                state.refresh_begun = Some(now);
            }
            begins
        })
    }

    /// Makes an estimate if the last one is older than a minute. It may take about a second, and waits while another
    /// thread makes one.
    pub fn refresh(&self, operation: &Operation, now: Instant) {
        let _estimating = self.estimating.lock();
        if self.with_operation(operation, |state| state.measured_within(ESTIMATE_TTL, now).is_some()) {
            return;
        }
        let seconds = self.seconds(now);
        let measurement = Arc::new(self.measure(operation, seconds));
        self.ttls.lock().add(operation, seconds, &measurement.scopes);
        self.with_operation(operation, |state| state.measurement = Some((now, measurement)));
    }

    fn measure(&self, operation: &Operation, now: f64) -> Measurement {
        let is_of_operation = |scope: &&Scope| **scope.operation() == *operation;
        let mut scopes: Vec<Scope> = self.looks.lock().scopes.keys().filter(is_of_operation).cloned().collect();
        // The seeds depend on the order.
        scopes.sort_by(|one, other| one.path().cmp(other.path()));
        let mut estimator = Estimator::new(scopes.len(), now);
        for scope in scopes {
            // The lock of the looks is held for one scope at a time, and not while draws are made.
            let collected = self.looks.lock().scopes.get(&scope).map(|state| measure::collect(&scope, state, now));
            if let Some(collected) = collected {
                estimator.add(collected);
            }
        }
        estimator.finish()
    }

    /// The ttl of a scope: chosen by the estimates if its operation has an adaptive ttl, else the configured one. It
    /// makes no new estimate.
    pub fn ttl(&self, scope: &Scope, now: Instant) -> Duration {
        let operation = scope.operation();
        if operation.adaptive_ttl.is_none() {
            return operation.ttl;
        }
        in_force(self.ttls.lock().ttl(scope, operation, self.seconds(now)), operation)
    }

    /// Forgets the looks at shared entries of a scope that has become private, or of all scopes of its operation:
    /// different callers have got different lists.
    pub(super) fn forget_shared(&self, is_private: impl Fn(&Scope) -> bool) {
        self.looks.lock().forget_shared(is_private);
    }

    fn with_operation<T>(&self, operation: &Operation, then: impl FnOnce(&mut OperationState) -> T) -> T {
        // Operations come from the catalogue, so there are few.
        then(self.operations.lock().entry(Arc::clone(&operation.name)).or_default())
    }
}

/// A chosen ttl. One that is not valid becomes the configured one.
fn in_force(seconds: f64, operation: &Operation) -> Duration {
    Duration::try_from_secs_f64(seconds).unwrap_or(operation.ttl)
}

impl OperationState {
    /// The last measurement, if it is not older than this.
    fn measured_within(&self, age: Duration, now: Instant) -> Option<&Arc<Measurement>> {
        let (at, measurement) = self.measurement.as_ref()?;
        (now.saturating_duration_since(*at) < age).then_some(measurement)
    }
}
