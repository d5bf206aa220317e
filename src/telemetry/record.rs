//! One record per request: begun when its head has arrived, filled in along the path, and written
//! down once when it is dropped: at the end of the answer's body, or when the client hangs up.

use std::sync::Arc;
use std::time::{Duration, Instant};

use http::request::Parts;
use http::{HeaderValue, Method, StatusCode};

use super::metrics::Metrics;
use super::outcome::Outcome;
use crate::catalogue::{Operation, Service};
use crate::clock::Clock;

/// Upstream's ids have 32 characters; what is much longer is none and stays out of the log.
const LONGEST_ID: usize = 128;

/// Some way above the longest path of a product list, whose project id may have 255 characters.
const LONGEST_PATH: usize = 300;

/// What is known of a request while it is being answered.
pub struct Record {
    metrics: Arc<Metrics>,
    clock: Clock,
    begun: Instant,
    request_id: String,
    upstream_id: String,
    method: &'static str,
    path: String,
    operation: Label,
    outcome: Outcome,
    detail: &'static str,
    status: Option<StatusCode>,
    head_after: Option<Duration>,
    sent_bytes: u64,
    whole: bool,
}

/// What a request is counted under.
enum Label {
    Fixed(&'static str),
    Operation(Arc<str>),
}

impl Label {
    fn as_str(&self) -> &str {
        match self {
            Self::Fixed(name) => name,
            Self::Operation(name) => name,
        }
    }
}

impl Record {
    /// Begins the record of a request.
    pub fn begin(metrics: Arc<Metrics>, clock: Clock, request_id: String, head: &Parts) -> Self {
        metrics.in_flight.inc();
        let begun = clock.now();
        Self {
            metrics,
            clock,
            begun,
            request_id,
            upstream_id: String::new(),
            method: method_name(&head.method),
            path: shortened(head.uri.path()),
            operation: Label::Fixed("none"),
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
        &self.request_id
    }

    /// The id upstream gave the answer, which is the one the client sees then.
    pub fn upstream_id(&mut self, id: Option<&HeaderValue>) {
        let id = id.and_then(|id| id.to_str().ok()).filter(|id| id.len() <= LONGEST_ID);
        self.upstream_id = id.unwrap_or_default().to_owned();
    }

    /// It asks for this operation.
    pub fn is_for(&mut self, operation: &Operation) {
        self.operation = Label::Operation(Arc::clone(&operation.name));
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
        self.head_after = Some(self.clock.now().saturating_duration_since(self.begun));
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
        self.metrics.request(operation, outcome, self.status, took);
        tracing::info!(
            target: "workspace_gateway::access",
            request_id = self.request_id,
            upstream_request_id = self.upstream_id,
            method = self.method,
            path = self.path,
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
fn shortened(path: &str) -> String {
    path.chars().take(LONGEST_PATH).collect()
}
