//! The metrics listener: `/metrics`, `/healthz` and `/readyz`. Everyone may use it. So it must not show a secret.

use std::sync::Arc;

use http::{Request, StatusCode};
use tokio::sync::watch;

use super::{Endpoint, Page, READ, find, page, text};
use crate::budget::Budget;
use crate::telemetry::metrics::Metrics;

type ProbeHandler = fn(&Probes) -> Page;

const ENDPOINTS: [Endpoint<ProbeHandler>; 3] = [
    Endpoint { path: "/metrics", allow: READ, help: "the metrics, for Prometheus", handler: Probes::metrics },
    Endpoint {
        path: "/healthz",
        allow: READ,
        help: "200 while the process runs",
        handler: |_| text(StatusCode::OK, "ok"),
    },
    Endpoint {
        path: "/readyz",
        allow: READ,
        help: "200 while the gateway takes requests, 503 while it shuts down",
        handler: Probes::ready,
    },
];

pub(crate) struct Probes {
    metrics: Arc<Metrics>,
    budget: Arc<Budget>,
    draining: watch::Receiver<bool>,
}

impl Probes {
    pub(crate) fn new(metrics: Arc<Metrics>, budget: Arc<Budget>, draining: watch::Receiver<bool>) -> Self {
        Self { metrics, budget, draining }
    }

    pub(crate) fn answer<B>(&self, request: &Request<B>) -> Page {
        find(&ENDPOINTS, request.uri().path(), request.method()).map_or_else(|error| *error, |handler| handler(self))
    }

    fn metrics(&self) -> Page {
        match self.metrics.encode() {
            Ok(metrics) => page(StatusCode::OK, prometheus::TEXT_FORMAT, metrics),
            Err(error) => text(StatusCode::INTERNAL_SERVER_ERROR, format!("cannot write the metrics: {error}")),
        }
    }

    /// Ready from the start, whether upstream can be reached or not. While it cannot, the gateway still answers, and
    /// taking it out of service would not help.
    fn ready(&self) -> Page {
        if *self.draining.borrow() {
            return text(StatusCode::SERVICE_UNAVAILABLE, "draining");
        }
        // Known callers are still served when the budget is reached. So this must not take traffic away.
        let answer =
            if self.budget.is_reached() { "ready; the memory budget is reached (limits.memory)" } else { "ready" };
        text(StatusCode::OK, answer)
    }
}
