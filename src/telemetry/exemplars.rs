//! Exemplars: for each bucket of the request durations, the trace of the latest sampled request (OpenMetrics 1.0, section
//! "Exemplars"). They lead from a slow bucket to a trace.
//!
//! They are kept only after somebody has asked for metrics in the OpenMetrics format, because nothing else shows them.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::SystemTime;

use super::completed::CompletedRequest;
use super::families::BUCKETS;
use super::outcome::Outcome;
use crate::request::trace::TraceId;
use crate::sync::Mutex;

#[derive(Default)]
pub(super) struct Exemplars {
    are_wanted: AtomicBool,
    /// By the labels of the series: operation and result. Both have few values.
    kept: Mutex<HashMap<Box<str>, HashMap<Outcome, SeriesExemplars>>>,
}

/// One place for each bucket; the last one has no upper bound.
type SeriesExemplars = [Option<Exemplar>; BUCKETS.len() + 1];

#[derive(Clone, Copy, Debug)]
pub(super) struct Exemplar {
    pub(super) trace_id: TraceId,
    /// In seconds.
    pub(super) value: f64,
    pub(super) at: SystemTime,
}

impl Exemplars {
    pub(super) fn are_wanted(&self) -> bool {
        self.are_wanted.load(Ordering::Relaxed)
    }

    /// From now on exemplars are kept.
    pub(super) fn want(&self) {
        self.are_wanted.store(true, Ordering::Relaxed);
    }

    /// Keeps the trace of a completed request, if it is sampled.
    pub(super) fn keep(&self, request: &CompletedRequest<'_>, date: impl FnOnce() -> SystemTime) {
        let trace = request.description.and_then(|description| description.trace.as_ref());
        let Some(trace) = trace.filter(|trace| trace.context.is_sampled() && self.are_wanted()) else { return };
        let value = request.took.as_secs_f64();
        let bucket = BUCKETS.iter().take_while(|&&bound| value > bound).count();
        let exemplar = Exemplar { trace_id: trace.context.trace_id, value, at: date() };
        // A request does not wait for another one or for a scrape. Then it leaves no exemplar.
        let Some(mut kept) = self.kept.try_lock() else { return };
        let of_operation = match kept.get_mut(request.operation) {
            Some(of_operation) => of_operation,
            None => kept.entry(request.operation.into()).or_default(),
        };
        of_operation.entry(request.outcome).or_default()[bucket] = Some(exemplar);
    }

    /// The exemplar of a bucket of the series with these labels.
    pub(super) fn of(&self, operation: &str, result: &str, bucket: usize) -> Option<Exemplar> {
        let kept = self.kept.lock();
        let (_, series) = kept.get(operation)?.iter().find(|(outcome, _)| outcome.into_str() == result)?;
        *series.get(bucket)?
    }
}
