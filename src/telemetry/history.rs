//! One hour of what the charts of the status page show, in samples of ten seconds. The gateway takes them whether or not
//! anybody looks. A request pays nothing for them, and their memory is fixed: 360 samples of 80 bytes.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use serde::Serialize;

use super::metrics::Metrics;
use super::outcome::Outcome;
use super::savings::RequestSeries;
use super::series::{HistogramSnapshot, Series};

pub(crate) const SAMPLE_INTERVAL: Duration = Duration::from_secs(10);

const MAX_SAMPLES: usize = 360;

/// What has happened from one moment to another. Both are in seconds since the start, with the time in which the machine
/// was suspended. Percentiles are in seconds, from the buckets of the histograms; `None` without such a request.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub(crate) struct Sample {
    /// The first one since the start has 1.
    pub number: u32,
    pub begin: f64,
    pub end: f64,
    /// Answered from memory.
    pub hits: u32,
    /// Other answers to requests for operations.
    pub others: u32,
    /// All other requests.
    pub passed: u32,
    /// Responses with a 5xx, whoever made it.
    pub errors: u32,
    /// Refusals that were repeated from memory.
    pub repeated_denials: u32,
    /// Entries that were evicted because the cache was full.
    pub evictions: u32,
    pub hits50: Option<f32>,
    pub hits99: Option<f32>,
    pub others50: Option<f32>,
    pub others99: Option<f32>,
}

/// Totals since the start.
#[derive(Clone, Debug, Default)]
pub(crate) struct Totals {
    hits: u64,
    others: u64,
    passed: u64,
    errors: u64,
    repeated_denials: u64,
    evictions: u64,
    hit_times: HistogramSnapshot,
    other_times: HistogramSnapshot,
}

impl Totals {
    pub(crate) fn of(metrics: &Metrics) -> Self {
        let series = RequestSeries::of(metrics);
        let (all, answered) = (series.requests.sum(&[]), series.count(Outcome::is_answer));
        let hits = series.count(Outcome::is_hit);
        let by_status = series.requests.by("status", &[]);
        Self {
            hits,
            others: answered.saturating_sub(hits),
            passed: all.saturating_sub(answered),
            errors: by_status.iter().filter(|(status, _)| status.starts_with('5')).map(|(_, requests)| requests).sum(),
            repeated_denials: Series::of(&metrics.denials).sum(&[("source", "memory")]),
            evictions: Series::of(&metrics.evictions).sum(&[("cause", "size")]),
            hit_times: series.durations(&[], Outcome::is_hit),
            other_times: series.durations(&[], Outcome::has_waited),
        }
    }
}

/// What has happened in a time that ends now.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Recent {
    pub requests: u64,
    pub errors: u64,
    pub repeated_denials: u64,
    pub evictions: u64,
}

pub(crate) struct History {
    started: Instant,
    last: Instant,
    totals: Totals,
    /// The oldest first.
    samples: VecDeque<Sample>,
    taken: u32,
}

impl History {
    pub(crate) fn new(now: Instant) -> Self {
        let samples = VecDeque::with_capacity(MAX_SAMPLES);
        Self { started: now, last: now, totals: Totals::default(), samples, taken: 0 }
    }

    /// Adds what has happened since the previous sample.
    pub(crate) fn take(&mut self, totals: Totals, now: Instant) {
        let before = std::mem::replace(&mut self.totals, totals);
        let difference =
            |of: fn(&Totals) -> u64| u32::try_from(of(&self.totals).saturating_sub(of(&before))).unwrap_or(u32::MAX);
        let hit_times = self.totals.hit_times.since(&before.hit_times);
        let other_times = self.totals.other_times.since(&before.other_times);
        #[allow(clippy::cast_possible_truncation)]
        let quantile = |times: &HistogramSnapshot, part| times.quantile(part).map(|seconds| seconds as f32);
        self.taken = self.taken.saturating_add(1);
        let sample = Sample {
            number: self.taken,
            begin: self.age(self.last),
            end: self.age(now),
            hits: difference(|totals| totals.hits),
            others: difference(|totals| totals.others),
            passed: difference(|totals| totals.passed),
            errors: difference(|totals| totals.errors),
            repeated_denials: difference(|totals| totals.repeated_denials),
            evictions: difference(|totals| totals.evictions),
            hits50: quantile(&hit_times, 0.5),
            hits99: quantile(&hit_times, 0.99),
            others50: quantile(&other_times, 0.5),
            others99: quantile(&other_times, 0.99),
        };
        if self.samples.len() == MAX_SAMPLES {
            self.samples.pop_front();
        }
        self.samples.push_back(sample);
        self.last = now;
    }

    /// The samples with a greater number, the oldest first.
    pub(crate) fn after(&self, number: u32) -> Vec<Sample> {
        self.samples.iter().filter(|sample| sample.number > number).copied().collect()
    }

    /// The seconds from the start to a moment.
    pub(crate) fn age(&self, at: Instant) -> f64 {
        at.saturating_duration_since(self.started).as_secs_f64()
    }

    /// The sums of the samples that end within this time.
    pub(crate) fn recent(&self, time: Duration, now: Instant) -> Recent {
        let begin = self.age(now) - time.as_secs_f64();
        let samples = self.samples.iter().rev().take_while(|sample| sample.end > begin);
        samples.fold(Recent::default(), |sum, sample| Recent {
            requests: sum.requests + [sample.hits, sample.others, sample.passed].map(u64::from).iter().sum::<u64>(),
            errors: sum.errors + u64::from(sample.errors),
            repeated_denials: sum.repeated_denials + u64::from(sample.repeated_denials),
            evictions: sum.evictions + u64::from(sample.evictions),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::{Clock, ManualClock};

    /// Totals with so many hits within 100 µs and others within 1 s.
    fn totals(hits: u64, others: u64, passed: u64) -> Totals {
        let times = |bound, count| HistogramSnapshot { count, sum: 0.0, bounds: vec![bound], buckets: vec![count] };
        let (hit_times, other_times) = (times(100e-6, hits), times(1.0, others));
        Totals {
            hits,
            others,
            passed,
            hit_times,
            other_times,
            errors: passed,
            repeated_denials: hits,
            evictions: others,
        }
    }

    #[test]
    fn a_sample_has_what_happened_since_the_one_before() {
        let clock = ManualClock::default();
        let now = || Clock::Manual(clock.clone()).now();
        let mut history = History::new(now());
        clock.advance(SAMPLE_INTERVAL);
        history.take(totals(100, 10, 1), now());
        clock.advance(2 * SAMPLE_INTERVAL);
        history.take(totals(100, 12, 1), now());
        let [first, second] = history.after(0).try_into().unwrap();
        assert_eq!((first.begin, first.end, second.begin, second.end), (0.0, 10.0, 10.0, 30.0));
        assert_eq!((first.hits, first.others, first.passed, second.hits, second.others), (100, 10, 1, 0, 2));
        assert_eq!((first.hits50, second.hits50, second.others50), (Some(50e-6), None, Some(0.5)));
        assert_eq!(history.after(1), [second]);
        let recent = history.recent(SAMPLE_INTERVAL, now());
        assert_eq!(recent, Recent { requests: 2, errors: 0, repeated_denials: 0, evictions: 2 });
        assert_eq!(history.recent(6 * SAMPLE_INTERVAL, now()).requests, 113);
        clock.advance(SAMPLE_INTERVAL);
        assert_eq!(history.recent(SAMPLE_INTERVAL, now()), Recent::default());
    }

    #[test]
    fn an_hour_is_kept_in_fixed_memory() {
        let clock = ManualClock::default();
        let now = || Clock::Manual(clock.clone()).now();
        let mut history = History::new(now());
        let capacity = history.samples.capacity();
        for hits in 1..=1_000 {
            clock.advance(SAMPLE_INTERVAL);
            history.take(totals(hits, 0, 0), now());
        }
        let samples = history.after(0);
        assert_eq!((samples.len(), samples[0].number, samples[0].end), (MAX_SAMPLES, 641, 6_410.0));
        assert_eq!(history.samples.capacity(), capacity);
        assert_eq!(size_of::<Sample>(), 80, "the first lines of this file state it");
    }
}
