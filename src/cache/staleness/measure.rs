//! Makes the estimate of an operation from the looks of its scopes.

use std::collections::{BTreeMap, HashMap};

use super::history::{KeyHistory, Span, StoredResponse};
use super::posterior::{Doubtful, Evidence};
use super::settled::Totals;
use super::ttl_control::HourOfAnswers;
use super::{Answers, OperationStaleness, ScopeState, StaleAnswers, WINDOW};
use crate::catalogue::Operation;
use crate::request::key::Scope;

/// The answers of this time are judged, in seconds.
const JUDGED: f64 = 3600.0;
const DRAWS: usize = 300;
/// The interval is from this quantile to its complement.
const QUANTILE: f64 = 0.025;
/// Fewer answers or looks are too little evidence.
const MIN_ANSWERS: f64 = 20.0;
const MIN_LOOKS: f64 = 20.0;
/// The most projects that are shown.
const MAX_PROJECTS: usize = 20;

/// What is known about the answers of an operation.
#[derive(Debug, Default)]
pub(super) struct Measurement {
    pub(super) known: OperationStaleness,
    /// `None` if there is too little evidence.
    pub(super) hour: Option<HourOfAnswers>,
}

/// What is needed from the looks of a scope.
pub(super) struct Collected {
    project: String,
    /// The evidence if unconfirmed differences are changes, and if not. The latter only if there are any.
    variants: [Option<Variant>; 2],
    /// The share of the draws that are made from the first variant.
    reliability: f64,
    looks: f64,
}

#[derive(Default)]
struct Variant {
    evidence: Evidence,
    totals: Totals,
}

/// Copies what is needed from the looks of an operation.
pub(super) fn collect(scopes: &HashMap<Scope, ScopeState>, operation: &Operation, now: f64) -> Vec<Collected> {
    let mut collected: Vec<_> = scopes
        .iter()
        .filter(|(scope, _)| **scope.operation() == *operation)
        .map(|(scope, state)| (scope.path(), collect_scope(scope, state, now)))
        .collect();
    // The seeds depend on the order.
    collected.sort_by_key(|(path, _)| *path);
    collected.into_iter().map(|(_, collected)| collected).collect()
}

fn collect_scope(scope: &Scope, state: &ScopeState, now: f64) -> Collected {
    let since = (now - JUDGED).max(state.judged_from);
    let mut keys: Vec<&KeyHistory> = state.keys.values().collect();
    // In the order of time, because that of the map is random.
    keys.sort_by(|one, other| one.first_look().total_cmp(&other.first_look()));
    let variant = |counts_all| {
        let mut variant = Variant { totals: state.settled.since(since), ..Variant::default() };
        keys.iter().for_each(|key| variant.add(key, counts_all, since, now));
        variant
    };
    let is_suspected = keys.iter().any(|key| key.is_suspected());
    Collected {
        project: scope.project_in_short(),
        variants: [Some(variant(true)), is_suspected.then(|| variant(false))],
        reliability: if is_suspected { state.differences.reliability() } else { 1.0 },
        looks: keys.iter().map(|key| key.looks()).sum(),
    }
}

impl Variant {
    fn add(&mut self, key: &KeyHistory, counts_all: bool, since: f64, now: f64) {
        let Self { evidence, totals } = self;
        evidence.lists += 1;
        for span in key.spans(counts_all) {
            let (from, to, is_changed, responses) = match span {
                Span::Unchanged { from, to } => {
                    let from = from.max(now - WINDOW);
                    if from < to {
                        evidence.unchanged.push((from, to));
                    }
                    continue;
                }
                Span::Changed { from, .. } if from < now - WINDOW => continue,
                Span::Changed { from, to, responses } => {
                    evidence.changed.push((from, to));
                    (from, to, true, responses)
                }
                Span::Pending { from, responses } => (from, now, false, responses),
            };
            // No answer was made from a response after the next one had come.
            let ends: Vec<f64> = responses.iter().skip(1).map(|next| next.sent).chain([to]).collect();
            let judged = responses.into_iter().zip(ends).filter_map(|(it, end)| totals.judge(it, end, since));
            let responses: Vec<_> = judged.collect();
            if !responses.is_empty() {
                evidence.doubtful.push(Doubtful { from, to, is_changed, responses });
            }
        }
    }
}

impl Totals {
    /// The answers of a doubtful response from `since` to `end`, which are added to the totals. `None` if there are none.
    fn judge(
        &mut self,
        response: &StoredResponse,
        end: f64,
        since: f64,
    ) -> Option<(f64, Vec<super::answers::Answers>)> {
        let StoredResponse { sent, counters } = response;
        let mut answers: Vec<_> = counters.by_time(*sent).map(|answers| answers.until(end)).collect();
        answers.retain(|answers| answers.middle() > since);
        for answers in &answers {
            let count = f64::from(answers.count);
            self.add(Self { answers: count, age: count * (answers.middle() - sent), ttl: count * counters.ttl() });
        }
        (!answers.is_empty()).then_some((*sent, answers))
    }
}

/// The sums over some scopes.
struct Sums {
    draws: Vec<f64>,
    totals: Totals,
    looks: f64,
}

impl Default for Sums {
    fn default() -> Self {
        Self { draws: vec![0.0; DRAWS], totals: Totals::default(), looks: 0.0 }
    }
}

impl Sums {
    fn add(&mut self, draws: &[f64], totals: Totals, looks: f64) {
        self.draws.iter_mut().zip(draws).for_each(|(sum, wrong)| *sum += wrong);
        self.totals.add(totals);
        self.looks += looks;
    }

    fn hour(&self) -> Option<HourOfAnswers> {
        let Totals { answers, age, ttl } = self.totals;
        let is_enough = answers >= MIN_ANSWERS && self.looks >= MIN_LOOKS;
        let ratio = self.draws.iter().sum::<f64>() / DRAWS as f64 / answers;
        is_enough.then(|| HourOfAnswers { ratio, mean_age: age / answers, mean_ttl: ttl / answers })
    }

    fn result(mut self) -> Answers {
        let answers = self.totals.answers;
        let Some(hour) = self.hour() else {
            return Answers { answers, ..Answers::default() };
        };
        self.draws.sort_by(f64::total_cmp);
        let quantile = |quantile: f64| self.draws[((quantile * DRAWS as f64) as usize).min(DRAWS - 1)];
        // Answers are counted in bins and minutes. So it is not known of all of them whether they lie in the hour.
        let edge = (hour.mean_ttl / super::answers::REGULAR as f64 + 60.0) / 3.0 / JUDGED;
        let stale = StaleAnswers {
            ratio: hour.ratio,
            lower: ((quantile(QUANTILE) - 0.5) / answers * (1.0 - edge)).max(0.0),
            upper: ((quantile(1.0 - QUANTILE) + 0.5) / answers * (1.0 + edge)).min(1.0),
        };
        Answers { answers, stale: Some(stale), changes_per_hour: Some(hour.changes_per_hour()) }
    }
}

/// Makes the estimate. This takes milliseconds for each scope.
pub(super) fn measure(scopes: Vec<Collected>, now: f64) -> Measurement {
    let mut all = Sums::default();
    let mut projects: BTreeMap<String, Sums> = BTreeMap::new();
    for (seed, Collected { project, variants, reliability, looks }) in (0..).zip(scopes) {
        let first = (reliability * DRAWS as f64).round() as usize;
        let (mut draws, mut totals) = (Vec::with_capacity(DRAWS), Totals::default());
        for (variant, count) in variants.into_iter().zip([first, DRAWS - first]) {
            if let Some(variant) = variant
                && count > 0
            {
                draws.extend(variant.evidence.draw(count, now, seed));
                totals.add(variant.totals.times(count as f64 / DRAWS as f64));
            }
        }
        all.add(&draws, totals, looks);
        projects.entry(project).or_default().add(&draws, totals, looks);
    }
    let hour = all.hour();
    let mut projects: Vec<_> = projects.into_iter().map(|(project, sums)| (project, sums.result())).collect();
    projects.sort_by(|(_, one), (_, other)| other.answers.total_cmp(&one.answers));
    projects.truncate(MAX_PROJECTS);
    Measurement { known: OperationStaleness { all: all.result(), projects }, hour }
}
