//! The metrics listener: `/metrics`, `/healthz` and `/readyz`. Everyone may use it. So it must not show a secret.

use std::sync::Arc;

use http::header::ACCEPT;
use http::{HeaderMap, Request, StatusCode};
use tokio::sync::watch;

use super::{Endpoint, Page, READ, find, page, text};
use crate::budget::Budget;
use crate::telemetry::metrics::Metrics;
use crate::telemetry::open_metrics;

type ProbeHandler = fn(&Probes, &HeaderMap) -> Page;

const ENDPOINTS: [Endpoint<ProbeHandler>; 3] = [
    Endpoint { path: "/metrics", allow: READ, help: "the metrics, for Prometheus", handler: Probes::metrics },
    Endpoint {
        path: "/healthz",
        allow: READ,
        help: "200 while the process runs",
        handler: |_, _| text(StatusCode::OK, "ok"),
    },
    Endpoint {
        path: "/readyz",
        allow: READ,
        help: "200 while the gateway takes requests, 503 while it shuts down",
        handler: |probes, _| probes.ready(),
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
        let handler = find(&ENDPOINTS, request.uri().path(), request.method());
        handler.map_or_else(|error| *error, |handler| handler(self, request.headers()))
    }

    /// In the OpenMetrics format if the request prefers it, else in Prometheus' own.
    fn metrics(&self, headers: &HeaderMap) -> Page {
        let accept = headers.get_all(ACCEPT).iter().filter_map(|value| value.to_str().ok());
        let (content_type, metrics) = if open_metrics::is_preferred(&accept.collect::<Vec<_>>().join(",")) {
            (open_metrics::CONTENT_TYPE, self.metrics.encode_open_metrics().map_err(|error| error.to_string()))
        } else {
            (prometheus::TEXT_FORMAT, self.metrics.encode().map_err(|error| error.to_string()))
        };
        match metrics {
            Ok(metrics) => page(StatusCode::OK, content_type, metrics),
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
