//! Makes the estimate of an operation from the looks of its scopes.

use std::collections::BTreeMap;

use super::answers::AnswerBin;
use super::history::{KeyHistory, MIN_LOOKS, Span, StoredResponse};
use super::looks::ScopeState;
use super::posterior::{Doubtful, Evidence};
use super::row::LeftOut;
use super::settled::Totals;
use super::ttl_control::HourOfAnswers;
use super::{Answers, StaleAnswers, WINDOW};
use crate::request::key::Scope;

/// The answers of this time are judged, in seconds.
const JUDGED: f64 = 3600.0;
const DRAWS: usize = 300;
/// The interval is from this quantile to its complement.
const QUANTILE: f64 = 0.025;
/// Fewer answers are too little evidence.
const MIN_ANSWERS: f64 = 20.0;
/// The most steps of the simulation for all scopes of an operation. Each scope gets an equal part, and what is left by
/// those before it. About 10 ns each.
const MAX_WORK: usize = 60_000_000;
/// If more than this share of the answers is in scopes for which there were not enough steps, or from lists that are left
/// out because they change all the time, the ratio is unknown.
const MAX_LEFT_OUT: f64 = 0.1;

/// The answers of the last hour in a scope.
#[derive(Debug)]
pub(super) struct ScopeMeasurement {
    pub(super) scope: Scope,
    pub(super) answers: f64,
    /// `None` if there is too little evidence.
    pub(super) hour: Option<HourOfAnswers>,
}

/// The answers of the last hour in a project.
#[derive(Debug)]
pub(super) struct ProjectMeasurement {
    pub(super) project_id: String,
    /// For display.
    pub(super) project: String,
    pub(super) answers: Answers,
}

/// What is known about the answers of an operation. Rates of changes are not filled in.
#[derive(Debug, Default)]
pub(super) struct Measurement {
    pub(super) all: Answers,
    /// Those with the most answers come first.
    pub(super) projects: Vec<ProjectMeasurement>,
    pub(super) scopes: Vec<ScopeMeasurement>,
}

/// What is needed from the looks of a scope.
pub(super) struct Collected {
    scope: Scope,
    /// The evidence if unconfirmed differences are changes, and if not. The latter only if there are any.
    variants: [Option<Variant>; 2],
    /// The share of the draws that are made from the first variant.
    reliability: f64,
    /// The number of looks within [`WINDOW`] that can be compared with another one.
    looks: usize,
    /// For which part of the last hour there is evidence.
    evidence: f64,
    /// The answers of the last hour from lists that change all the time, about.
    left_out: f64,
}

#[derive(Default)]
struct Variant {
    evidence: Evidence,
    totals: Totals,
}

/// Copies what is needed from the looks of a scope.
pub(super) fn collect(scope: &Scope, state: &ScopeState, now: f64) -> Collected {
    let since = (now - JUDGED).max(state.judged_from);
    // Nothing is known about a list after a single look. If its answers counted, they would count with the prior.
    let is_compared = |key: &&KeyHistory| key.left_out.is_none() && key.compared_since(now - WINDOW) > 0;
    let mut keys: Vec<&KeyHistory> = state.keys.values().filter(is_compared).collect();
    // In the order of time, because that of the map is random.
    keys.sort_by(|one, other| one.first_look().total_cmp(&other.first_look()));
    let variant = |counts_all| {
        let mut variant = Variant { totals: state.findings.settled.since(since), ..Variant::default() };
        keys.iter().for_each(|key| variant.add(key, counts_all, since, now));
        variant
    };
    let is_suspected = keys.iter().any(|key| key.is_suspected());
    let changing = state.keys.values().filter(|key| key.left_out == Some(LeftOut::ChangingList));
    let all = variant(true);
    Collected {
        scope: scope.clone(),
        evidence: all.known_since(now - JUDGED) / JUDGED,
        variants: [Some(all), is_suspected.then(|| variant(false))],
        reliability: if is_suspected { state.findings.differences.reliability() } else { 1.0 },
        looks: keys.iter().map(|key| key.compared_since(now - WINDOW)).sum(),
        left_out: changing.map(|key| key.answers_of_last_hour(now)).sum(),
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
                Span::Changed { from, to, .. } if from < now - WINDOW || from >= to => continue,
                Span::Pending { from, .. } if from >= now => continue,
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

    /// For how many seconds since a time looks say of some list whether it has changed.
    fn known_since(&self, time: f64) -> f64 {
        let Evidence { unchanged, changed, .. } = &self.evidence;
        let mut spans: Vec<_> = unchanged.iter().chain(changed).collect();
        spans.sort_by(|one, other| one.0.total_cmp(&other.0));
        let (mut known, mut end) = (0.0, time);
        for &&(from, to) in &spans {
            known += (to - from.max(end)).max(0.0);
            end = end.max(to);
        }
        known
    }
}

impl Totals {
    /// The answers of a doubtful response from `since` to `end`, which are added to the totals. `None` if there are none.
    fn judge(&mut self, response: &StoredResponse, end: f64, since: f64) -> Option<(f64, Vec<AnswerBin>)> {
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
    looks: usize,
    /// The most of a scope.
    evidence: f64,
    /// The answers in scopes for which there were not enough steps, and from lists that change all the time.
    left_out: f64,
}

impl Default for Sums {
    fn default() -> Self {
        Self { draws: vec![0.0; DRAWS], totals: Totals::default(), looks: 0, evidence: 0.0, left_out: 0.0 }
    }
}

impl Sums {
    fn add(&mut self, Drawn { draws, totals, looks, evidence, left_out }: &Drawn) {
        self.left_out += left_out;
        let Some(draws) = draws else {
            self.left_out += totals.answers;
            return;
        };
        self.draws.iter_mut().zip(draws).for_each(|(sum, wrong)| *sum += wrong);
        self.totals.add(*totals);
        self.looks += looks;
        self.evidence = self.evidence.max(*evidence);
    }

    fn hour(&self) -> Option<HourOfAnswers> {
        let Totals { answers, age, ttl } = self.totals;
        let is_enough = answers >= MIN_ANSWERS
            && self.looks >= MIN_LOOKS
            && self.left_out <= MAX_LEFT_OUT * (answers + self.left_out);
        let ratio = (self.draws.iter().sum::<f64>() / DRAWS as f64 / answers).min(1.0);
        let (mean_age, mean_ttl, evidence) = (age / answers, ttl / answers, self.evidence);
        is_enough.then_some(HourOfAnswers { ratio, mean_age, mean_ttl, evidence })
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
            // The mean of a skewed distribution may lie beyond its quantiles.
            lower: ((quantile(QUANTILE) - 0.5) / answers * (1.0 - edge)).clamp(0.0, hour.ratio),
            upper: ((quantile(1.0 - QUANTILE) + 0.5) / answers * (1.0 + edge)).clamp(hour.ratio, 1.0),
        };
        Answers { answers, stale: Some(stale), changes_per_hour: None }
    }
}

/// What was drawn for a scope.
struct Drawn {
    /// `None` if there were not enough steps.
    draws: Option<Vec<f64>>,
    totals: Totals,
    looks: usize,
    evidence: f64,
    left_out: f64,
}

impl Collected {
    /// Draws the numbers of wrong answers. Subtracts the steps that it takes from `budget`.
    fn draw(self, now: f64, seed: u64, budget: &mut usize) -> Drawn {
        let Self { variants, reliability, looks, evidence, left_out, .. } = self;
        let first = (reliability * DRAWS as f64).round() as usize;
        let mut variants: Vec<_> = variants.into_iter().zip([first, DRAWS - first]).collect();
        variants.retain(|(variant, count)| variant.is_some() && *count > 0);
        let mut left = variants.len();
        let (mut draws, mut totals) = (Some(Vec::with_capacity(DRAWS)), Totals::default());
        for (variant, count) in variants {
            let Some(variant) = variant else { continue };
            totals.add(variant.totals.times(count as f64 / DRAWS as f64));
            let mut part = *budget / left;
            (*budget, left) = (*budget - part, left - 1);
            let drawn = variant.evidence.draw(count, now, seed, &mut part);
            *budget += part;
            draws = draws.zip(drawn).map(|(mut draws, drawn)| {
                draws.extend(drawn);
                draws
            });
        }
        Drawn { draws, totals, looks, evidence, left_out }
    }
}

/// Makes the estimate of an operation, scope by scope.
pub(super) struct Estimator {
    now: f64,
    all: Sums,
    /// By project id, with the form for display.
    projects: BTreeMap<String, (String, Sums)>,
    scopes: Vec<ScopeMeasurement>,
    /// The seed of the next scope.
    seed: u64,
    /// The scopes and the steps that are left.
    scopes_left: usize,
    work: usize,
}

impl Estimator {
    pub(super) fn new(scopes: usize, now: f64) -> Self {
        Self::with_steps(scopes, now, MAX_WORK)
    }

    /// With another number of steps than [`MAX_WORK`].
    pub(super) fn with_steps(scopes: usize, now: f64, work: usize) -> Self {
        let (projects, measured) = (BTreeMap::new(), Vec::with_capacity(scopes));
        Self { now, all: Sums::default(), projects, scopes: measured, seed: 0, scopes_left: scopes, work }
    }

    pub(super) fn add(&mut self, collected: Collected) {
        let mut part = self.work / self.scopes_left.max(1);
        self.work -= part;
        self.scopes_left = self.scopes_left.saturating_sub(1);
        let scope = collected.scope.clone();
        let drawn = collected.draw(self.now, self.seed, &mut part);
        self.work += part;
        self.seed += 1;
        self.all.add(&drawn);
        let project = self.projects.entry(scope.project_id().to_owned());
        project.or_insert_with(|| (scope.project_in_short(), Sums::default())).1.add(&drawn);
        let mut alone = Sums::default();
        alone.add(&drawn);
        self.scopes.push(ScopeMeasurement { answers: alone.totals.answers, hour: alone.hour(), scope });
    }

    pub(super) fn finish(self) -> Measurement {
        let of_project = |(project_id, (project, sums)): (String, (String, Sums))| {
            let answers = sums.result();
            ProjectMeasurement { project_id, project, answers }
        };
        let mut projects: Vec<_> = self.projects.into_iter().map(of_project).collect();
        projects.sort_by(|one, other| other.answers.answers.total_cmp(&one.answers.answers));
        Measurement { all: self.all.result(), projects, scopes: self.scopes }
    }
}
