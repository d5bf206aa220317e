//! Figures of metrics for `/status`.

use std::collections::BTreeMap;

use prometheus::IntGauge;
use prometheus::core::Collector;

use crate::telemetry::series::Series;

/// Numbers by the value of one label.
pub(super) type Counts = BTreeMap<String, u64>;

pub(super) fn gauge(gauge: &IntGauge) -> u64 {
    u64::try_from(gauge.get()).unwrap_or(0)
}

pub(super) fn by(family: &impl Collector, label: &str) -> Counts {
    Series::of(family).by(label, &[])
}
