//! What the gateway saves: what it has answered from memory, and the calls and waiting time that this saved. Computed
//! only from what `/metrics` shows, so that the same sums can be done there.

use strum::VariantArray;

use super::metrics::Metrics;
use super::outcome::Outcome;
use super::series::{HistogramSnapshot, Series};

/// The families that tell how requests were answered, each at one moment.
pub(crate) struct RequestSeries {
    pub(crate) requests: Series,
    durations: Series,
    fetches: Series,
}

impl RequestSeries {
    pub(crate) fn of(metrics: &Metrics) -> Self {
        Self {
            requests: Series::of(&metrics.requests),
            durations: Series::of(&metrics.durations),
            fetches: Series::of(&metrics.fetches),
        }
    }

    /// How many requests have ended with a chosen outcome.
    pub(crate) fn count(&self, is_chosen: fn(Outcome) -> bool) -> u64 {
        let sums = self.requests.by("result", &[]);
        results(is_chosen).filter_map(|result| sums.get(result)).sum()
    }

    /// The durations of requests with these labels whose outcome is chosen.
    pub(crate) fn durations(&self, labels: &[(&str, &str)], is_chosen: fn(Outcome) -> bool) -> HistogramSnapshot {
        self.durations.histogram(labels, "result", |result| results(is_chosen).any(|chosen| chosen == result))
    }
}

/// The values of the label `result` for the chosen outcomes.
fn results(is_chosen: fn(Outcome) -> bool) -> impl Iterator<Item = &'static str> {
    Outcome::VARIANTS.iter().filter(move |&&outcome| is_chosen(outcome)).map(|outcome| outcome.into_str())
}

/// All requests for operations since the start. Those that were relayed unchanged, refused (by the gateway, or by
/// upstream and again from memory) or aborted by their client do not count.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Savings {
    pub answered: u64,
    /// How many of them were answered from memory at once.
    pub hits: u64,
    /// How many of them were answered by the call of another request.
    pub coalesced: u64,
    /// Calls that upstream got for them.
    pub upstream_calls: u64,
    /// How much sooner hits and coalesced requests were answered than calls are, in total, in seconds. `None` until there
    /// was a call.
    pub seconds_saved: Option<f64>,
}

impl Savings {
    pub(crate) fn of(series: &RequestSeries) -> Self {
        Self {
            answered: series.count(Outcome::is_answer),
            hits: series.count(Outcome::is_hit),
            coalesced: series.count(|outcome| outcome == Outcome::Coalesced),
            upstream_calls: series.fetches.sum(&[]),
            seconds_saved: seconds_saved(series),
        }
    }

    /// The share of hits; `None` until something was answered.
    #[allow(clippy::cast_precision_loss)]
    pub(crate) fn hit_ratio(&self) -> Option<f64> {
        (self.answered > 0).then(|| self.hits as f64 / self.answered as f64)
    }

    /// Never negative: where clients gave up, upstream may have got more calls than there were responses.
    pub(crate) fn calls_saved(&self) -> u64 {
        self.answered.saturating_sub(self.upstream_calls)
    }
}

/// Summed by operation, because upstream may be slow in one and fast in another.
#[allow(clippy::cast_precision_loss)]
fn seconds_saved(series: &RequestSeries) -> Option<f64> {
    let operations = series.fetches.by("operation", &[]);
    let saved = operations.keys().filter_map(|operation| {
        let labels = [("operation", operation.as_str())];
        let call = series.durations(&labels, |outcome| matches!(outcome, Outcome::Miss | Outcome::Expired)).mean()?;
        let without_call = series.durations(&labels, Outcome::saves_a_call);
        Some(without_call.count as f64 * call - without_call.sum)
    });
    saved.fold(None, |sum: Option<f64>, saved| Some(sum.unwrap_or_default() + saved))
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::time::Duration;

    use http::StatusCode;

    use super::*;
    use crate::catalogue::Catalogue;

    #[test]
    fn savings_are_computed_from_the_metrics() {
        let (metrics, catalogue) = (Metrics::new().unwrap(), Catalogue::for_tests(Vec::new()));
        metrics.start_operations(catalogue.operations());
        let savings = || Savings::of(&RequestSeries::of(&metrics));
        let nothing = Savings { answered: 0, hits: 0, coalesced: 0, upstream_calls: 0, seconds_saved: None };
        assert_eq!((savings(), nothing.hit_ratio()), (nothing, None));
        let count = |operation: &str, outcome, times: u32, took| {
            (0..times)
                .for_each(|_| metrics.request(operation, outcome, Some(StatusCode::OK), Duration::from_millis(took)));
        };
        let find = |name: &str| Arc::clone(catalogue.operations().iter().find(|known| *known.name == *name).unwrap());
        count("ListProducts", Outcome::Miss, 2, 500);
        (0..3).for_each(|_| metrics.fetch(&find("ListProducts")));
        count("ListProducts", Outcome::Hit, 8, 250);
        count("ListProducts", Outcome::Coalesced, 2, 250);
        count("ListProduct", Outcome::Negative, 3, 250);
        for uncounted in [Outcome::Denied, Outcome::Bypass, Outcome::Refused, Outcome::Aborted] {
            count("ListProducts", uncounted, 100, 9_000);
        }
        count("workspace", Outcome::PassThrough, 100, 9_000);
        let savings = savings();
        // ListProduct had no call to compare its hits with.
        let expected = Savings { answered: 15, hits: 11, coalesced: 2, upstream_calls: 3, seconds_saved: Some(2.5) };
        assert_eq!(savings, expected);
        assert_eq!((savings.hit_ratio(), savings.calls_saved()), (Some(11.0 / 15.0), 12));
    }
}
