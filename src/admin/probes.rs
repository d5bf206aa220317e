//! `/metrics`, `/healthz` and `/readyz`: may be seen by anyone.

use std::sync::Arc;

use http::{Method, Request, StatusCode};
use tokio::sync::watch;

use super::{Page, not_allowed, not_found, page, text};
use crate::budget::Budget;
use crate::telemetry::metrics::Metrics;

/// What probes and Prometheus see.
pub(crate) struct Probes {
    metrics: Arc<Metrics>,
    budget: Arc<Budget>,
    draining: watch::Receiver<bool>,
}

impl Probes {
    /// Of a gateway with these metrics, which drains when told so.
    pub(crate) fn new(metrics: Arc<Metrics>, budget: Arc<Budget>, draining: watch::Receiver<bool>) -> Self {
        Self { metrics, budget, draining }
    }

    /// Answers a request.
    pub(crate) fn answer<B>(&self, request: &Request<B>) -> Page {
        let answer: fn(&Self) -> Page = match request.uri().path() {
            "/metrics" => Self::metrics,
            "/healthz" => |_| text(StatusCode::OK, "ok"),
            "/readyz" => Self::ready,
            _ => return not_found("/metrics, /healthz or /readyz"),
        };
        match *request.method() {
            Method::GET | Method::HEAD => answer(self),
            _ => not_allowed("GET, HEAD"),
        }
    }

    fn metrics(&self) -> Page {
        match self.metrics.encode() {
            Ok(metrics) => page(StatusCode::OK, prometheus::TEXT_FORMAT, metrics),
            Err(error) => text(StatusCode::INTERNAL_SERVER_ERROR, format!("cannot write the metrics: {error}")),
        }
    }

    /// Ready from the first moment on, upstream or not: an unreachable upstream is answered for, and
    /// taking the gateway out would not mend it.
    fn ready(&self) -> Page {
        if *self.draining.borrow() {
            return text(StatusCode::SERVICE_UNAVAILABLE, "draining");
        }
        // Known callers are still served, so that this takes nobody's traffic away.
        let words =
            if self.budget.is_reached() { "ready; the memory budget is reached (limits.memory)" } else { "ready" };
        text(StatusCode::OK, words)
    }
}
