//! One record per request: begun when its head has arrived, filled in along the path, and written
//! down once when it is dropped: at the end of the answer's body, or when the client hangs up.

use std::sync::Arc;
use std::time::{Duration, Instant};

use http::request::Parts;
use http::{HeaderMap, HeaderValue, Method, StatusCode};
use tracing::Level;

use super::metrics::Metrics;
use super::outcome::Outcome;
use super::repeats::Series;
use crate::catalogue::{Operation, Service};
use crate::clock::Clock;
use crate::request::id::RequestId;
use crate::request::trace::Trace;

/// What the access log's events are from, by which they can be told from others.
const ACCESS: &str = "workspace_gateway::access";

/// Upstream's ids have 32 characters; what is much longer is none and stays out of the log.
const LONGEST_ID: usize = 128;

/// Some way above the longest path of a product list, whose project id may have 255 characters.
const LONGEST_PATH: usize = 300;

/// What is known of a request while it is being answered.
pub struct Record {
    metrics: Arc<Metrics>,
    clock: Clock,
    begun: Instant,
    request_id: RequestId,
    upstream_id: String,
    trace: Option<Trace>,
    /// Where upstream was asked as a part of that.
    span: Option<u64>,
    method: &'static str,
    /// Only if it is logged.
    path: Option<Arc<str>>,
    operation: Label,
    /// What it is counted in, where that is known from the beginning.
    series: Option<Arc<Series>>,
    outcome: Outcome,
    detail: &'static str,
    status: Option<StatusCode>,
    head_after: Option<Duration>,
    sent_bytes: u64,
    whole: bool,
}

/// What is said of a request.
enum Label {
    Fixed(&'static str),
    Shared(Arc<str>),
}

impl Label {
    fn as_str(&self) -> &str {
        match self {
            Self::Fixed(name) => name,
            Self::Shared(name) => name,
        }
    }
}

impl Record {
    /// Begins the record of a request.
    pub fn begin(metrics: Arc<Metrics>, clock: Clock, request_id: RequestId, head: &Parts) -> Self {
        let path = is_logged().then(|| shortened(head.uri.path()));
        let begun = clock.now();
        let mut record = Self::of(metrics, clock, begun, request_id, method_name(&head.method), path);
        record.trace = Trace::read(&head.headers);
        record
    }

    /// The record of a GET, begun now, that is a hit because such a one was before.
    pub fn repeat(
        metrics: Arc<Metrics>,
        clock: Clock,
        now: Instant,
        request_id: RequestId,
        (path, operation, series): (Option<&Arc<str>>, &Operation, &Arc<Series>),
    ) -> Self {
        let mut record = Self::of(metrics, clock, now, request_id, "GET", path.cloned());
        record.is_for(operation);
        record.series = Some(Arc::clone(series));
        record.answered(Outcome::Hit, "");
        record.head(StatusCode::OK);
        record
    }

    fn of(
        metrics: Arc<Metrics>,
        clock: Clock,
        begun: Instant,
        request_id: RequestId,
        method: &'static str,
        path: Option<Arc<str>>,
    ) -> Self {
        metrics.in_flight.inc();
        Self {
            metrics,
            clock,
            begun,
            request_id,
            upstream_id: String::new(),
            trace: None,
            span: None,
            method,
            path,
            operation: Label::Fixed("none"),
            series: None,
            outcome: Outcome::Aborted,
            detail: "",
            status: None,
            head_after: None,
            sent_bytes: 0,
            whole: false,
        }
    }

    /// The id this gateway gave the request.
    pub fn request_id(&self) -> &str {
        self.request_id.as_str()
    }

    /// What is logged of its path, if anything is.
    pub fn path(&self) -> Option<&Arc<str>> {
        self.path.as_ref()
    }

    /// How it is being answered.
    pub fn outcome(&self) -> Outcome {
        self.outcome
    }

    /// How upstream is to be told of the trace that the request is a part of, if what is left of its headers names one.
    pub fn traced(&mut self, headers: &HeaderMap) -> Option<HeaderValue> {
        let span = self.request_id.span();
        let told = Trace::read(headers)?.continued(span);
        self.span = told.is_some().then_some(span);
        told
    }

    /// The id upstream gave the answer, which is the one the client sees then.
    pub fn upstream_id(&mut self, id: Option<&HeaderValue>) {
        let id = id.and_then(|id| id.to_str().ok()).filter(|id| id.len() <= LONGEST_ID);
        self.upstream_id = id.unwrap_or_default().to_owned();
    }

    /// It asks for this operation.
    pub fn is_for(&mut self, operation: &Operation) {
        self.operation = Label::Shared(Arc::clone(&operation.name));
    }

    /// It is for this service, and none of the operations.
    pub fn passes_to(&mut self, service: Service) {
        self.operation = Label::Fixed(service.as_str());
    }

    /// How it is being answered, and the reason where there is one.
    pub fn answered(&mut self, outcome: Outcome, detail: &'static str) {
        self.outcome = outcome;
        self.detail = detail;
    }

    /// What more there is to say of it.
    pub fn because(&mut self, detail: &'static str) {
        self.detail = detail;
    }

    /// The answer's head is ready.
    pub fn head(&mut self, status: StatusCode) {
        self.status = Some(status);
        // Only the log tells.
        self.head_after = self.path.is_some().then(|| self.clock.now().saturating_duration_since(self.begun));
    }

    /// Part of the answer's body was handed to the connection.
    pub fn sent(&mut self, bytes: usize) {
        self.sent_bytes += bytes as u64;
    }

    /// All of the answer's body was handed to the connection.
    pub fn is_whole(&mut self) {
        self.whole = true;
    }
}

impl Drop for Record {
    fn drop(&mut self) {
        let took = self.clock.now().saturating_duration_since(self.begun);
        // Without a head the client left before there was one, whatever was under way for it.
        let outcome = if self.status.is_some() { self.outcome } else { Outcome::Aborted };
        self.metrics.in_flight.dec();
        let operation = self.operation.as_str();
        match &self.series {
            Some(series) => series.count(took),
            None => self.metrics.request(operation, outcome, self.status, took),
        }
        let Some(path) = &self.path else { return };
        tracing::info!(
            target: ACCESS,
            request_id = self.request_id.as_str(),
            upstream_request_id = self.upstream_id,
            trace_id = self.trace.as_ref().map(Trace::id),
            span_id = self.span.map(|span| format!("{span:016x}")),
            method = self.method,
            path = &**path,
            operation,
            result = outcome.as_str(),
            detail = self.detail,
            status = self.status.map_or(0, |status| status.as_u16()),
            head_ms = self.head_after.map(milliseconds),
            total_ms = milliseconds(took),
            bytes = self.sent_bytes,
            whole = self.whole,
            "request",
        );
    }
}

/// Whether the log tells of each request at present.
pub fn is_logged() -> bool {
    tracing::enabled!(target: ACCESS, Level::INFO)
}

/// Microseconds are enough, and shorter to read than a float's every digit.
#[allow(clippy::cast_precision_loss)]
fn milliseconds(duration: Duration) -> f64 {
    duration.as_micros() as f64 / 1e3
}

/// A method that is not in the standard is a client's own text, and stays out of the log.
fn method_name(method: &Method) -> &'static str {
    let standard = ["GET", "HEAD", "POST", "PUT", "DELETE", "PATCH", "OPTIONS", "TRACE", "CONNECT"];
    standard.into_iter().find(|name| method == name).unwrap_or("other")
}

/// A path as it may be logged: no query, and no longer than any that means something.
fn shortened(path: &str) -> Arc<str> {
    path.char_indices().nth(LONGEST_PATH).map_or(path, |(end, _)| &path[..end]).into()
}
