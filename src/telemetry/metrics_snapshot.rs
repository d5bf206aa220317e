//! What the metrics say at a moment, by name: for those who show figures and must not show others than `/metrics`.

use std::collections::BTreeMap;

use prometheus::proto::{Metric, MetricFamily};

/// All families, as they were at one moment.
pub struct MetricsSnapshot(Vec<MetricFamily>);

/// How durations are spread: how many there are, their sum in seconds, and how many are not above each bound.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct HistogramSnapshot {
    /// How many there are.
    pub count: u64,
    /// In seconds.
    pub sum: f64,
    /// In seconds.
    pub bounds: Vec<f64>,
    /// Cumulative.
    pub buckets: Vec<u64>,
}

impl HistogramSnapshot {
    /// Seconds of one, on average; none if there is none.
    pub fn mean(&self) -> Option<f64> {
        #[allow(clippy::cast_precision_loss)]
        let count = self.count as f64;
        (self.count > 0).then(|| self.sum / count)
    }
}

impl MetricsSnapshot {
    pub(super) fn new(families: Vec<MetricFamily>) -> Self {
        Self(families)
    }

    /// The sum of a family's counters, or gauges, that have these labels among theirs.
    pub fn sum(&self, name: &str, labels: &[(&str, &str)]) -> u64 {
        self.series(name).filter(|series| has(series, labels)).map(value).sum()
    }

    /// The same for each value of one more label.
    pub fn by(&self, name: &str, label: &str, labels: &[(&str, &str)]) -> BTreeMap<String, u64> {
        let mut sums = BTreeMap::new();
        for series in self.series(name).filter(|series| has(series, labels)) {
            if let Some(value_of_label) = get(series, label) {
                *sums.entry(value_of_label.to_owned()).or_default() += value(series);
            }
        }
        sums
    }

    /// How the durations of a family are spread, of those series that are chosen by the value of a label.
    pub fn histogram(
        &self,
        name: &str,
        labels: &[(&str, &str)],
        label: &str,
        is_chosen: impl Fn(&str) -> bool,
    ) -> HistogramSnapshot {
        let mut total = HistogramSnapshot::default();
        for series in self.series(name).filter(|series| has(series, labels)) {
            let histogram = series.get_histogram();
            if total.bounds.is_empty() {
                total.bounds = histogram.get_bucket().iter().map(prometheus::proto::Bucket::upper_bound).collect();
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

    fn series(&self, name: &str) -> impl Iterator<Item = &Metric> {
        self.0.iter().filter(move |family| family.name() == name).flat_map(MetricFamily::get_metric)
    }
}

fn get<'m>(series: &'m Metric, label: &str) -> Option<&'m str> {
    series.get_label().iter().find(|pair| pair.name() == label).map(prometheus::proto::LabelPair::value)
}

fn has(series: &Metric, labels: &[(&str, &str)]) -> bool {
    labels.iter().all(|&(name, value)| get(series, name) == Some(value))
}

/// What a series of a counter or gauge says. All of them count things.
#[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)]
fn value(series: &Metric) -> u64 {
    // The one that it isn't says zero.
    (series.get_counter().get_value() + series.get_gauge().get_value()).max(0.0) as u64
}
