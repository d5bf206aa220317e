//! The metric families that Prometheus gets, as an `ExportMetricsServiceRequest` of OTLP 1. They have the same names and
//! labels there. All sums are cumulative since the start of the process.

use std::time::SystemTime;

use prometheus::proto::{LabelPair, Metric, MetricFamily, MetricType};

use super::common::{nanoseconds, write_text};
use super::protobuf::Message;
use super::resource::Resource;

/// The code of `AGGREGATION_TEMPORALITY_CUMULATIVE`.
const CUMULATIVE: u64 = 2;

/// The times of a data point.
#[derive(Clone, Copy)]
pub(super) struct Times {
    pub(super) started: SystemTime,
    pub(super) now: SystemTime,
}

pub(super) fn request(families: &[MetricFamily], times: Times, resource: &Resource) -> Vec<u8> {
    Message::of(|request| {
        request.message(1, |resource_metrics| {
            resource_metrics.message(1, |message| resource.write(message));
            resource_metrics.message(2, |scope_metrics| {
                scope_metrics.message(1, Resource::write_scope);
                for family in families {
                    scope_metrics.message(2, |message| write_family(message, family, times));
                }
            });
        });
    })
}

fn write_family(message: &mut Message, family: &MetricFamily, times: Times) {
    message.bytes(1, family.name().as_bytes());
    message.bytes(2, family.help().as_bytes());
    message.bytes(3, unit(family.name()).as_bytes());
    let metrics = family.get_metric();
    match family.get_field_type() {
        MetricType::COUNTER => message.message(7, |sum| {
            for metric in metrics {
                sum.message(1, |point| write_number(point, metric, metric.get_counter().get_value(), times));
            }
            sum.number(2, CUMULATIVE);
            sum.number(3, 1);
        }),
        MetricType::HISTOGRAM => message.message(9, |histogram| {
            for metric in metrics {
                histogram.message(1, |point| write_histogram(point, metric, times));
            }
            histogram.number(2, CUMULATIVE);
        }),
        MetricType::GAUGE | MetricType::UNTYPED | MetricType::SUMMARY => message.message(5, |gauge| {
            for metric in metrics {
                gauge.message(1, |point| write_number(point, metric, metric.get_gauge().get_value(), times));
            }
        }),
    }
}

/// The unit that is in the name of a family, in UCUM. Empty if there is none there: for the unit "1", Prometheus and the
/// Collector append `_ratio` to the name of a gauge, and rules would not find it.
fn unit(name: &str) -> &'static str {
    let name = name.strip_suffix("_total").unwrap_or(name);
    match name.rsplit('_').next() {
        Some("seconds") => "s",
        Some("bytes") => "By",
        _ => "",
    }
}

fn write_number(point: &mut Message, metric: &Metric, value: f64, times: Times) {
    write_labels(point, 7, metric.get_label());
    point.fixed64(2, nanoseconds(times.started));
    point.fixed64(3, nanoseconds(times.now));
    point.double(4, value);
}

fn write_histogram(point: &mut Message, metric: &Metric, times: Times) {
    let histogram = metric.get_histogram();
    write_labels(point, 9, metric.get_label());
    point.fixed64(2, nanoseconds(times.started));
    point.fixed64(3, nanoseconds(times.now));
    let buckets = histogram.get_bucket();
    let cumulative: Vec<u64> = buckets.iter().map(|bucket| bucket.cumulative_count()).collect();
    let count = histogram.get_sample_count().max(cumulative.last().copied().unwrap_or_default());
    point.fixed64(4, count);
    point.double(5, histogram.get_sample_sum());
    let all = cumulative.iter().copied().chain([count]);
    let below = std::iter::once(0).chain(cumulative.iter().copied());
    point.packed(6, all.zip(below).map(|(to, from)| to.saturating_sub(from)));
    point.packed(7, buckets.iter().map(|bucket| bucket.upper_bound().to_bits()));
}

fn write_labels(point: &mut Message, field: u32, labels: &[LabelPair]) {
    for label in labels {
        write_text(point, field, label.name(), label.value());
    }
}
