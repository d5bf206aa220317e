//! The series of one metric family at one moment, for figures that must be the same as those of `/metrics`. Nothing
//! here creates a series.

use std::collections::BTreeMap;

use prometheus::core::Collector;
use prometheus::proto::{Bucket, LabelPair, Metric, MetricFamily};

pub(crate) struct Series(Vec<Metric>);

/// A distribution of durations in seconds.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct HistogramSnapshot {
    pub(crate) count: u64,
    pub(crate) sum: f64,
    pub(crate) bounds: Vec<f64>,
    /// How many durations are at most as long as each bound.
    pub(crate) buckets: Vec<u64>,
}

impl HistogramSnapshot {
    /// In seconds; `None` if there is no duration.
    pub(crate) fn mean(&self) -> Option<f64> {
        #[allow(clippy::cast_precision_loss)]
        let count = self.count as f64;
        (self.count > 0).then(|| self.sum / count)
    }

    /// What was added since an earlier snapshot of the same histograms. Before the first duration there are no buckets.
    pub(crate) fn since(&self, before: &Self) -> Self {
        let earlier = before.buckets.iter().copied().chain(std::iter::repeat(0));
        Self {
            count: self.count.saturating_sub(before.count),
            sum: self.sum - before.sum,
            bounds: self.bounds.clone(),
            buckets: self.buckets.iter().zip(earlier).map(|(now, before)| now.saturating_sub(before)).collect(),
        }
    }

    /// In seconds, as Prometheus' `histogram_quantile` computes it: linear within a bucket, and at most the largest bound.
    /// `None` if there is no duration.
    #[allow(clippy::cast_precision_loss)]
    pub(crate) fn quantile(&self, part: f64) -> Option<f64> {
        let rank = part * self.count as f64;
        let (mut lower, mut before) = (0.0, 0);
        for (&bound, &below) in self.bounds.iter().zip(&self.buckets).filter(|_| self.count > 0) {
            if below as f64 >= rank {
                let inside = below.saturating_sub(before);
                let part = if inside > 0 { (rank - before as f64) / inside as f64 } else { 1.0 };
                return Some(lower + (bound - lower) * part);
            }
            (lower, before) = (bound, below);
        }
        self.bounds.last().copied().filter(|_| self.count > 0)
    }
}

impl Series {
    pub(crate) fn of(family: &impl Collector) -> Self {
        Self(family.collect().iter_mut().flat_map(MetricFamily::take_metric).collect())
    }

    /// The sum of the counters or gauges that have these labels among theirs.
    pub(crate) fn sum(&self, labels: &[(&str, &str)]) -> u64 {
        self.with(labels).map(value).sum()
    }

    /// The same for each value of one more label.
    pub(crate) fn by(&self, label: &str, labels: &[(&str, &str)]) -> BTreeMap<String, u64> {
        let mut sums = BTreeMap::new();
        for series in self.with(labels) {
            if let Some(value_of_label) = get(series, label) {
                *sums.entry(value_of_label.to_owned()).or_default() += value(series);
            }
        }
        sums
    }

    /// The sum of the histograms that have these labels, and for which `is_chosen` accepts the value of `label`.
    pub(crate) fn histogram(
        &self,
        labels: &[(&str, &str)],
        label: &str,
        is_chosen: impl Fn(&str) -> bool,
    ) -> HistogramSnapshot {
        let mut total = HistogramSnapshot::default();
        for series in self.with(labels) {
            let histogram = series.get_histogram();
            if total.bounds.is_empty() {
                total.bounds = histogram.get_bucket().iter().map(Bucket::upper_bound).collect();
                total.buckets = vec![0; total.bounds.len()];
            }
            if !get(series, label).is_some_and(&is_chosen) {
                continue;
            }
            total.count += histogram.get_sample_count();
            total.sum += histogram.get_sample_sum();
            for (sum, bucket) in total.buckets.iter_mut().zip(histogram.get_bucket()) {
                *sum += bucket.cumulative_count();
            }
        }
        total
    }

    fn with(&self, labels: &[(&str, &str)]) -> impl Iterator<Item = &Metric> {
        self.0.iter().filter(|series| labels.iter().all(|&(name, value)| get(series, name) == Some(value)))
    }
}

fn get<'m>(series: &'m Metric, label: &str) -> Option<&'m str> {
    series.get_label().iter().find(|pair| pair.name() == label).map(LabelPair::value)
}

#[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)]
fn value(series: &Metric) -> u64 {
    // A series is one of the two, and the other value is 0.
    (series.get_counter().get_value() + series.get_gauge().get_value()).max(0.0) as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_quantile_is_between_the_bounds_of_its_bucket() {
        let times = |buckets: [u64; 3], count| HistogramSnapshot {
            count,
            sum: 0.0,
            bounds: vec![1.0, 2.0, 4.0],
            buckets: buckets.to_vec(),
        };
        for (buckets, count, part, expected) in [
            ([0, 0, 0], 0, 0.5, None),
            ([10, 10, 10], 10, 0.5, Some(0.5)),
            ([5, 10, 10], 10, 0.5, Some(1.0)),
            ([0, 5, 10], 10, 0.99, Some(3.96)),
            ([0, 0, 0], 3, 0.5, Some(4.0)),
        ] {
            let found = times(buckets, count).quantile(part);
            let is_close = found.zip(expected).is_some_and(|(found, expected)| (found - expected).abs() < 1e-9);
            assert!(is_close || found == expected, "{buckets:?}, {part}: {found:?}");
        }
        let since = times([5, 10, 10], 10).since(&times([5, 5, 5], 5));
        assert_eq!((since.count, since.quantile(0.5), since.buckets), (5, Some(1.5), vec![0, 5, 5]));
        assert_eq!(times([1, 1, 1], 1).since(&HistogramSnapshot::default()).buckets, [1, 1, 1]);
    }
}
