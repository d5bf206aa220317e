//! The metrics in the OpenMetrics text format, version 1.0. The prometheus crate writes only Prometheus' own format.
//!
//! The formats differ in few things: the name of a counter's family has no `_total`, bounds of buckets are floats, quotes
//! in help texts are escaped, exemplars may follow the buckets, and the text has an end.

use std::fmt::{self, Write};
use std::time::SystemTime;

use prometheus::proto::{Metric, MetricFamily, MetricType};

use super::exemplars::Exemplar;
use super::metrics::Metrics;

/// Of a response in this format.
pub(crate) const CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// The family that has exemplars.
const DURATIONS: &str = "workspace_gateway_request_duration_seconds";

impl Metrics {
    /// All metrics, with exemplars of the requests since this was called first.
    ///
    /// # Errors
    /// If a family cannot be written, which would be a mistake in `metrics.rs`.
    pub(crate) fn encode_open_metrics(&self) -> Result<String, fmt::Error> {
        self.exemplars.want();
        encode(&self.gather(), |family, series, bucket| {
            // Labels are sorted by name.
            let [operation, result] = series.get_label() else { return None };
            let is_duration = family == DURATIONS;
            is_duration.then(|| self.exemplars.of(operation.value(), result.value(), bucket)).flatten()
        })
    }
}

/// `exemplar` returns the exemplar of a histogram's bucket, by the family's name, the series and the bucket's number.
fn encode(
    families: &[MetricFamily],
    exemplar: impl Fn(&str, &Metric, usize) -> Option<Exemplar>,
) -> Result<String, fmt::Error> {
    let mut text = String::new();
    for family in families {
        let name = family.name();
        let (base, kind) = match family.get_field_type() {
            MetricType::COUNTER => match name.strip_suffix("_total") {
                Some(base) => (base, "counter"),
                None => (name, "unknown"),
            },
            MetricType::GAUGE => (name, "gauge"),
            MetricType::HISTOGRAM => (name, "histogram"),
            MetricType::SUMMARY | MetricType::UNTYPED => (name, "unknown"),
        };
        writeln!(text, "# HELP {base} {}\n# TYPE {base} {kind}", escape(family.help()))?;
        for series in family.get_metric() {
            match family.get_field_type() {
                MetricType::HISTOGRAM => {
                    histogram(&mut text, name, series, |bucket| exemplar(name, series, bucket))?;
                }
                MetricType::COUNTER => {
                    writeln!(text, "{name}{} {}", Labels(series, None), series.get_counter().get_value())?;
                }
                _ => writeln!(text, "{name}{} {}", Labels(series, None), series.get_gauge().get_value())?,
            }
        }
    }
    text.push_str("# EOF\n");
    Ok(text)
}

fn histogram(
    text: &mut String,
    name: &str,
    series: &Metric,
    exemplar: impl Fn(usize) -> Option<Exemplar>,
) -> fmt::Result {
    let histogram = series.get_histogram();
    let finite = histogram.get_bucket().iter().map(|bucket| (bucket.upper_bound(), bucket.cumulative_count()));
    let all = finite.chain([(f64::INFINITY, histogram.get_sample_count())]);
    for (number, (bound, count)) in all.enumerate() {
        let bound = match bound {
            f64::INFINITY => "+Inf".to_owned(),
            bound if bound.fract() == 0.0 => format!("{bound:.1}"),
            bound => bound.to_string(),
        };
        write!(text, "{name}_bucket{} {count}", Labels(series, Some(&bound)))?;
        if let Some(Exemplar { trace_id, value, at }) = exemplar(number) {
            let at = at.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs_f64();
            write!(text, " # {{trace_id=\"{trace_id}\"}} {value} {at:.3}")?;
        }
        text.push('\n');
    }
    let (labels, sum) = (Labels(series, None), histogram.get_sample_sum());
    writeln!(text, "{name}_sum{labels} {sum}\n{name}_count{labels} {}", histogram.get_sample_count())
}

/// The labels of a series, and the bound of a bucket.
struct Labels<'m>(&'m Metric, Option<&'m str>);

impl fmt::Display for Labels<'_> {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let own = self.0.get_label().iter().map(|label| (label.name(), label.value()));
        let mut separator = '{';
        for (name, value) in own.chain(self.1.map(|bound| ("le", bound))) {
            write!(formatter, "{separator}{name}=\"{}\"", escape(value))?;
            separator = ',';
        }
        if separator == ',' { formatter.write_char('}') } else { Ok(()) }
    }
}

fn escape(text: &str) -> String {
    text.replace('\\', "\\\\").replace('\n', "\\n").replace('"', "\\\"")
}

/// Whether the value of an `Accept` field (RFC 9110, section 12.5.1) prefers this format to Prometheus' own.
pub(crate) fn is_preferred(accept: &str) -> bool {
    let (mut own, mut other) = (0.0_f32, 0.0_f32);
    for range in accept.split(',') {
        let mut parts = range.split(';').map(str::trim);
        let kind = parts.next().unwrap_or_default();
        let (mut quality, mut is_known) = (1.0, true);
        for (name, value) in parts.filter_map(|part| part.split_once('=')) {
            match name {
                "q" => quality = value.parse().unwrap_or(0.0),
                "version" => is_known = value == "1.0.0",
                _ => {}
            }
        }
        if kind.eq_ignore_ascii_case("application/openmetrics-text") && is_known {
            own = own.max(quality);
        } else if ["text/plain", "text/*", "*/*"].contains(&kind) {
            other = other.max(quality);
        }
    }
    own > 0.0 && own >= other
}

#[cfg(test)]
mod tests {
    use prometheus::{Encoder, HistogramOpts, HistogramVec, IntCounterVec, IntGauge, Opts, Registry, TextEncoder};

    use super::*;
    use crate::request::trace::TraceContext;

    #[test]
    fn each_family_is_written_as_the_specification_says() {
        let registry = Registry::new();
        let counter = IntCounterVec::new(Opts::new("a_total", "Calls, \"all\".\nOf\\one kind."), &["kind"]).unwrap();
        let gauge = IntGauge::new("b", "Open.").unwrap();
        let durations =
            HistogramVec::new(HistogramOpts::new("c_seconds", "Long.").buckets(vec![50e-6, 2.0]), &["kind"]);
        let durations = durations.unwrap();
        registry.register(Box::new(counter.clone())).unwrap();
        registry.register(Box::new(gauge.clone())).unwrap();
        registry.register(Box::new(durations.clone())).unwrap();
        counter.with_label_values(&["x\"y"]).inc();
        gauge.set(-3);
        durations.with_label_values(&["z"]).observe(1.5);
        let families = registry.gather();
        let trace_id = TraceContext::parse("00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01").unwrap().trace_id;
        let at = SystemTime::UNIX_EPOCH + std::time::Duration::from_millis(1_234_567);
        let exemplar = |name: &str, series: &Metric, bucket| {
            let is_it = name == "c_seconds" && series.get_label()[0].value() == "z" && bucket == 1;
            is_it.then_some(Exemplar { trace_id, value: 1.5, at })
        };
        let expected = "\
            # HELP a Calls, \\\"all\\\".\\nOf\\\\one kind.\n# TYPE a counter\na_total{kind=\"x\\\"y\"} 1\n\
            # HELP b Open.\n# TYPE b gauge\nb -3\n\
            # HELP c_seconds Long.\n# TYPE c_seconds histogram\n\
            c_seconds_bucket{kind=\"z\",le=\"0.00005\"} 0\n\
            c_seconds_bucket{kind=\"z\",le=\"2.0\"} 1 # {trace_id=\"4bf92f3577b34da6a3ce929d0e0e4736\"} 1.5 1234.567\n\
            c_seconds_bucket{kind=\"z\",le=\"+Inf\"} 1\n\
            c_seconds_sum{kind=\"z\"} 1.5\nc_seconds_count{kind=\"z\"} 1\n# EOF\n";
        assert_eq!(encode(&families, exemplar).unwrap(), expected);
        // As many series as in the other format.
        let mut other = Vec::new();
        TextEncoder::new().encode(&families, &mut other).unwrap();
        let series = |text: &str| text.lines().filter(|line| !line.starts_with('#')).count();
        assert_eq!(series(&String::from_utf8(other).unwrap()), series(expected));
    }

    #[test]
    fn the_format_is_used_only_if_it_is_asked_for() {
        let prometheus = "application/openmetrics-text;version=1.0.0;q=0.5,application/openmetrics-text;version=0.0.1;\
                          q=0.4,text/plain;version=0.0.4;q=0.3,*/*;q=0.2";
        for (accept, expected) in [
            (prometheus, true),
            ("application/openmetrics-text", true),
            ("Application/OpenMetrics-Text; version=1.0.0", true),
            ("application/openmetrics-text; version=0.0.1", false),
            ("application/openmetrics-text;q=0", false),
            ("application/openmetrics-text;q=0.2,text/plain;q=0.3", false),
            ("application/openmetrics-text;q=x", false),
            ("*/*", false),
            ("text/plain", false),
            ("", false),
        ] {
            assert_eq!(is_preferred(accept), expected, "{accept}");
        }
    }
}
