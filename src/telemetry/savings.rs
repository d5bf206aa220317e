//! Whether the gateway helps: what it has answered from memory, and what that has spared upstream and its callers.
//! Made of nothing but what `/metrics` shows, so that whoever does the same sums there comes to the same.

use strum::VariantArray;

use super::metrics_snapshot::MetricsSnapshot;
use super::outcome::Outcome;

const REQUESTS: &str = "workspace_gateway_requests_total";
const DURATIONS: &str = "workspace_gateway_request_duration_seconds";
const FETCHES: &str = "workspace_gateway_fetches_total";

/// What came of all requests for the operations since the start. Those that were forwarded as they are, refused (by
/// upstream and again from memory, or here), or given up by their client don't count.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Savings {
    /// Requests that were answered.
    pub answered: u64,
    /// Those of them that were answered from memory at once.
    pub hits: u64,
    /// Calls that upstream got for them.
    pub upstream_calls: u64,
    /// How much sooner hits were answered than calls are, together, in seconds. Unknown until there was a call.
    pub seconds_saved: Option<f64>,
}

impl Savings {
    /// What the figures amount to.
    pub(crate) fn of(snapshot: &MetricsSnapshot) -> Self {
        let results = snapshot.by(REQUESTS, "result", &[]);
        let sum = |is_meant: fn(Outcome) -> bool| -> u64 {
            let meant = Outcome::VARIANTS.iter().copied().filter(|&outcome| is_meant(outcome));
            meant.filter_map(|outcome| results.get(outcome.into_str())).sum()
        };
        Self {
            answered: sum(Outcome::is_answer),
            hits: sum(Outcome::is_hit),
            upstream_calls: snapshot.sum(FETCHES, &[]),
            seconds_saved: seconds_saved(snapshot),
        }
    }

    /// The share of hits; unknown until something was answered.
    #[allow(clippy::cast_precision_loss)]
    pub(crate) fn hit_ratio(&self) -> Option<f64> {
        (self.answered > 0).then(|| self.hits as f64 / self.answered as f64)
    }

    /// Calls that upstream was spared. (It may have got more than there were answers, where clients gave up.)
    pub(crate) fn calls_saved(&self) -> u64 {
        self.answered.saturating_sub(self.upstream_calls)
    }
}

/// By operation, for upstream may be slow in one and fast in another.
#[allow(clippy::cast_precision_loss)]
fn seconds_saved(snapshot: &MetricsSnapshot) -> Option<f64> {
    let operations = snapshot.by(FETCHES, "operation", &[]);
    let saved = operations.keys().filter_map(|operation| {
        let histogram = |is_meant: fn(Outcome) -> bool| {
            let is_chosen = |result: &str| {
                Outcome::VARIANTS.iter().copied().any(|outcome| is_meant(outcome) && outcome.into_str() == result)
            };
            snapshot.histogram(DURATIONS, &[("operation", operation)], "result", is_chosen)
        };
        let asked = histogram(|outcome| matches!(outcome, Outcome::Miss | Outcome::Expired)).mean()?;
        let hits = histogram(Outcome::is_hit);
        Some(hits.count as f64 * asked - hits.sum)
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
    use crate::telemetry::fetches::Fetches;
    use crate::telemetry::metrics::Metrics;

    #[test]
    fn it_is_what_the_figures_amount_to() {
        let (metrics, catalogue) = (Metrics::new().unwrap(), Catalogue::for_tests(Vec::new()));
        let fetches = Fetches::new(&metrics).unwrap();
        fetches.begin(catalogue.operations());
        let nothing = Savings { answered: 0, hits: 0, upstream_calls: 0, seconds_saved: None };
        assert_eq!((Savings::of(&metrics.snapshot()), nothing.hit_ratio()), (nothing, None));
        let count = |operation: &str, outcome, times: u32, took| {
            (0..times)
                .for_each(|_| metrics.request(operation, outcome, Some(StatusCode::OK), Duration::from_millis(took)));
        };
        let find = |name: &str| Arc::clone(catalogue.operations().iter().find(|known| *known.name == *name).unwrap());
        count("ListProducts", Outcome::Miss, 2, 500);
        (0..3).for_each(|_| fetches.count(&find("ListProducts")));
        count("ListProducts", Outcome::Hit, 8, 250);
        count("ListProducts", Outcome::Coalesced, 2, 500);
        count("ListProduct", Outcome::Negative, 3, 250);
        for none in [Outcome::Denied, Outcome::Bypass, Outcome::Refused, Outcome::Aborted] {
            count("ListProducts", none, 100, 9_000);
        }
        count("workspace", Outcome::PassThrough, 100, 9_000);
        let savings = Savings::of(&metrics.snapshot());
        // What was never asked for can't be compared.
        assert_eq!(savings, Savings { answered: 15, hits: 11, upstream_calls: 3, seconds_saved: Some(2.0) });
        assert_eq!((savings.hit_ratio(), savings.calls_saved()), (Some(11.0 / 15.0), 12));
    }
}
