//! Chooses a ttl by the measured share of stale answers. Pure: the time is an argument.
//!
//! If lists change at the rate λ, the expected share of stale answers is λ times the mean age of the answers, as long
//! as it is small. So each hour gives one measurement of λ: the stale ratio divided by the mean age of the answers. Lists
//! count by their answers, and hours by the part of them that lies between looks. The ttl follows from λ, from
//! `max_stale`, and from the measured proportion of age and ttl, which depends on traffic and on proofs.
//!
//! Changes are rare events, so a long memory is needed. But a catalogue may begin or cease to change. So there are
//! three memories, and the longest one that does not contradict a shorter one counts.

use crate::catalogue::AdaptiveTtl;

/// The time constants of the memories, in hours. The shortest is first.
const MEMORIES: [f64; 3] = [6.0, 24.0, 168.0];
/// How many standard deviations the changes in a shorter memory may differ from what a longer one predicts.
const CONTRADICTION: f64 = 4.0;
/// The longest time between two updates that counts, in hours.
const LONGEST_STEP: f64 = 2.0;
/// The longest time in which the change is assumed to have happened that is added to those counted, in hours.
const MAX_PRIOR: f64 = 2.0;

/// What is known about the answers of the last hour. Times are in seconds.
#[derive(Clone, Copy, Debug)]
pub(super) struct HourOfAnswers {
    /// The share of stale answers.
    pub(super) ratio: f64,
    pub(super) mean_age: f64,
    /// The mean ttl of the responses that the answers were made from.
    pub(super) mean_ttl: f64,
    /// For which part of the hour there is evidence, from 0 to 1.
    pub(super) evidence: f64,
}

impl HourOfAnswers {
    /// How often a list changed per hour. Lists count by their answers.
    pub(super) fn changes_per_hour(&self) -> f64 {
        -(-self.ratio.min(0.999)).ln_1p() / (self.mean_age.max(0.001) / 3600.0)
    }
}

/// Changes of a list, and the hours in which they were counted, with exponentially falling weights.
#[derive(Clone, Copy, Debug, Default)]
struct Memory {
    changes: f64,
    hours: f64,
}

#[derive(Debug, Default)]
pub(super) struct TtlControl {
    memories: [Memory; 3],
    /// The mean age of answers divided by their ttl.
    age_per_ttl: Option<f64>,
    /// The ttl in force in seconds, and when it was set in hours.
    chosen: Option<(f64, f64)>,
    /// When the last hour was added to the memories, in hours. At first: when there was enough evidence for the first
    /// time.
    added: Option<f64>,
}

impl TtlControl {
    /// The rate at which lists change, per hour. One change is added: so the expected ratio of the rate and its estimate
    /// is at most 1, and the mean share of stale answers is not above `max_stale`. `prior` is the time in which that
    /// change happened, in hours.
    fn rate(&self, prior: f64) -> f64 {
        let rate_of = |memory: &Memory| (memory.changes + 1.0) / (memory.hours + prior);
        let contradicts = |longer: &Memory, shorter: &Memory| {
            let expected = longer.changes / longer.hours.max(1.0) * shorter.hours;
            // The weights fall, so the variance is half of the mean.
            let variance = (expected.max(shorter.changes) / 2.0).max(0.25);
            (shorter.changes - expected).abs() > CONTRADICTION * variance.sqrt()
        };
        let [short, middle, long] = &self.memories;
        if !contradicts(long, middle) && !contradicts(long, short) {
            rate_of(long)
        } else if !contradicts(middle, short) {
            rate_of(middle)
        } else {
            rate_of(short)
        }
    }

    /// How often a list changes per hour, by all that is remembered. `None` before the first hour.
    pub(super) fn changes_per_hour(&self) -> Option<f64> {
        let long = &self.memories[2];
        (long.hours > 0.0).then(|| long.changes / long.hours)
    }

    /// Adds the answers of an hour, if an hour has passed since the last one was added, or since there was enough
    /// evidence for the first time. Little is known in the first minutes: the caller of a first difference may be odd.
    pub(super) fn add(&mut self, now: f64, hour: &HourOfAnswers) {
        let now = now / 3600.0;
        let step = now - *self.added.get_or_insert(now);
        if step < 1.0 || hour.mean_age <= 0.0 {
            return;
        }
        self.added = Some(now);
        for (memory, constant) in self.memories.iter_mut().zip(MEMORIES) {
            let keep = (-step / constant).exp();
            memory.changes = memory.changes * keep + hour.changes_per_hour() * hour.evidence;
            memory.hours = memory.hours * keep + hour.evidence;
        }
        let proportion = (hour.mean_age / hour.mean_ttl).clamp(0.02, 2.0);
        self.age_per_ttl = Some(self.age_per_ttl.map_or(proportion, |known| known + (proportion - known) / 3.0));
    }

    /// The ttl in force from now on, in seconds. `fallback` is the ttl while there is too little evidence.
    pub(super) fn ttl(&mut self, now: f64, settings: &AdaptiveTtl, fallback: f64, is_measured: bool) -> f64 {
        let now = now / 3600.0;
        let min = settings.min.as_secs_f64();
        let max = settings.max.as_secs_f64().max(min);
        let fallback = fallback.clamp(min, max);
        let target = match self.age_per_ttl {
            Some(age_per_ttl) if is_measured => {
                // Before anything is known, the fallback is taken to be right, with the weight of one change.
                let prior = (age_per_ttl * fallback / 3600.0 / settings.max_stale).min(MAX_PRIOR);
                3600.0 * settings.max_stale / self.rate(prior) / age_per_ttl
            }
            _ => fallback,
        };
        let ttl = match self.chosen {
            None => fallback,
            Some((ttl, at)) => {
                let factor = (now - at).clamp(0.0, LONGEST_STEP).exp2();
                target.clamp(ttl / factor, ttl * factor)
            }
        };
        let ttl = ttl.clamp(min, max);
        self.chosen = Some((ttl, now));
        ttl
    }
}
