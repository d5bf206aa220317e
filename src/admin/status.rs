//! What there is to know of the gateway at a moment, in JSON: what the status page shows. MetricsSnapshot are those of `/metrics`.
//! Nothing in it tells who the callers are.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::{Duration, SystemTime};

use http::StatusCode;
use serde::Serialize;
use strum::VariantArray;

use super::{Page, json};
use crate::catalogue::Service;
use crate::config::Mode;
use crate::gateway::{ActiveConfig, Gateway};
use crate::telemetry::events::EventRow;
use crate::telemetry::logs;
use crate::telemetry::metrics_snapshot::{HistogramSnapshot, MetricsSnapshot};
use crate::telemetry::outcome::Outcome;
use crate::telemetry::savings::Savings;

/// Numbers by what they count.
type Counts = BTreeMap<String, u64>;

#[derive(Serialize)]
struct Status {
    version: &'static str,
    time_ms: u64,
    uptime_seconds: f64,
    mode: Mode,
    /// Where clients connect.
    proxy: String,
    log_level: Option<String>,
    helping: Helping,
    requests: Requests,
    latency: Latency,
    cache: Cache,
    memory: Memory,
    callers: Callers,
    upstream: Vec<Upstream>,
    misses: Counts,
    unstored: Counts,
    bypasses: Counts,
    backoffs: Counts,
    events: Vec<Happened>,
}

#[derive(Serialize)]
struct Helping {
    answered: u64,
    hits: u64,
    hit_ratio: Option<f64>,
    upstream_calls: u64,
    calls_saved: u64,
    seconds_saved: Option<f64>,
}

#[derive(Serialize)]
struct Requests {
    in_flight: u64,
    connections: u64,
    results: Counts,
    operations: Vec<OfOperation>,
}

#[derive(Serialize)]
struct OfOperation {
    operation: String,
    results: Counts,
}

#[derive(Serialize)]
struct Latency {
    bounds: Vec<f64>,
    hits: Durations,
    others: Durations,
}

#[derive(Serialize)]
struct Durations {
    count: u64,
    sum: f64,
    buckets: Vec<u64>,
}

#[derive(Serialize)]
struct Cache {
    entries: u64,
    bytes: u64,
    max_bytes: u64,
    evictions: Counts,
    uncacheable_keys: u64,
    private_scopes: u64,
    refreshes: u64,
}

/// What is held for clients, the cache apart.
#[derive(Serialize)]
struct Memory {
    used_bytes: u64,
    budget_bytes: u64,
    refusals: u64,
}

#[derive(Serialize)]
struct Callers {
    grants: u64,
    max_grants: usize,
    proofs: Counts,
    denials: Counts,
    signatures: Counts,
}

#[derive(Serialize)]
struct Upstream {
    service: &'static str,
    url: String,
    requests: Counts,
    in_flight: u64,
    queued: u64,
    retries: u64,
    count: u64,
    seconds: f64,
    health: Healthy,
}

#[derive(Serialize)]
struct Healthy {
    state: &'static str,
    since_seconds: Option<f64>,
    last_answer_seconds: Option<f64>,
    last_failure: Option<&'static str>,
}

#[derive(Serialize)]
struct Happened {
    kind: &'static str,
    is_bad: bool,
    what: String,
    operation: Option<String>,
    project: Option<String>,
    first_ms: u64,
    last_ms: u64,
    count: u64,
}

/// All of it.
pub(super) fn page(gateway: &Gateway, proxy: SocketAddr) -> Page {
    json(StatusCode::OK, &status(gateway, proxy))
}

fn status(gateway: &Gateway, proxy: SocketAddr) -> Status {
    let (active, snapshot) = (gateway.active(), gateway.metrics().snapshot());
    let sum = |name: &str| snapshot.sum(&family(name), &[]);
    let by = |name: &str, label: &str| snapshot.by(&family(name), label, &[]);
    Status {
        version: env!("CARGO_PKG_VERSION"),
        time_ms: milliseconds(gateway.date()),
        uptime_seconds: gateway.observer().uptime().as_secs_f64(),
        mode: gateway.mode(),
        proxy: format!("{}://{proxy}", if active.settings().listen.has_tls() { "https" } else { "http" }),
        log_level: logs::level().map(|level| level.to_string()),
        helping: helping(&snapshot),
        requests: Requests {
            in_flight: sum("requests_in_flight"),
            connections: sum("connections"),
            results: Outcome::VARIANTS
                .into_iter()
                .map(|outcome| outcome.into_str())
                .map(|result| (result.to_owned(), snapshot.sum(&family("requests_total"), &[("result", result)])))
                .collect(),
            operations: by("fetches_total", "operation")
                .into_keys()
                .map(|name| of_operation(&snapshot, name))
                .collect(),
        },
        latency: latency(&snapshot),
        cache: Cache {
            entries: sum("entries"),
            bytes: sum("entries_bytes"),
            max_bytes: active.settings().cache.max_size.0,
            evictions: by("evictions_total", "cause"),
            uncacheable_keys: sum("uncacheable_keys"),
            private_scopes: sum("private_scopes"),
            refreshes: sum("refreshes_total"),
        },
        memory: Memory {
            used_bytes: sum("memory_used_bytes"),
            budget_bytes: sum("memory_budget_bytes"),
            refusals: sum("memory_refusals_total"),
        },
        callers: Callers {
            grants: sum("grants"),
            max_grants: active.settings().grants.max_grants.0,
            proofs: by("proofs_total", "result"),
            denials: by("denials_total", "source"),
            signatures: by("signatures_total", "result"),
        },
        upstream: active.catalogue().services().map(|service| upstream(gateway, &active, &snapshot, service)).collect(),
        misses: by("misses_total", "reason"),
        unstored: by("unstored_responses_total", "reason"),
        bypasses: by("bypasses_total", "reason"),
        backoffs: by("backoffs_total", "cause"),
        events: gateway.observer().events().recent().into_iter().map(happened).collect(),
    }
}

fn family(name: &str) -> String {
    format!("workspace_gateway_{name}")
}

fn helping(snapshot: &MetricsSnapshot) -> Helping {
    let savings = Savings::of(snapshot);
    Helping {
        answered: savings.answered,
        hits: savings.hits,
        hit_ratio: savings.hit_ratio(),
        upstream_calls: savings.upstream_calls,
        calls_saved: savings.calls_saved(),
        seconds_saved: savings.seconds_saved,
    }
}

fn of_operation(snapshot: &MetricsSnapshot, operation: String) -> OfOperation {
    let results = snapshot.by(&family("requests_total"), "result", &[("operation", &operation)]);
    OfOperation { operation, results }
}

/// Of the operations, as far as the cache had its part.
fn latency(snapshot: &MetricsSnapshot) -> Latency {
    let histogram = |is_meant: fn(Outcome) -> bool| {
        let is_chosen =
            |result: &str| Outcome::VARIANTS.iter().copied().any(|it| is_meant(it) && it.into_str() == result);
        snapshot.histogram(&family("request_duration_seconds"), &[], "result", is_chosen)
    };
    let hits = histogram(Outcome::is_hit);
    let others = histogram(|outcome| outcome.is_answer() && !outcome.is_hit());
    let durations = |histogram: HistogramSnapshot| Durations {
        count: histogram.count,
        sum: histogram.sum,
        buckets: histogram.buckets,
    };
    Latency { bounds: hits.bounds.clone(), hits: durations(hits), others: durations(others) }
}

fn upstream(gateway: &Gateway, active: &ActiveConfig, snapshot: &MetricsSnapshot, service: Service) -> Upstream {
    let of_service = [("service", service.as_str())];
    let histogram = snapshot.histogram(&family("upstream_duration_seconds"), &of_service, "service", |_| true);
    let sum = |name: &str| snapshot.sum(&family(name), &of_service);
    let (now, health) = (gateway.now(), gateway.observer().health(service));
    let ago = |then| now.saturating_duration_since(then).as_secs_f64();
    Upstream {
        service: service.as_str(),
        url: active.catalogue().origin(service).to_string(),
        requests: snapshot.by(&family("upstream_requests_total"), "status", &of_service),
        in_flight: sum("upstream_requests_in_flight"),
        queued: sum("upstream_calls_queued"),
        retries: sum("upstream_retries_total"),
        count: histogram.count,
        seconds: histogram.sum,
        health: Healthy {
            state: match health {
                None => "unknown",
                Some(health) if health.is_failing => "failing",
                Some(_) => "good",
            },
            since_seconds: health.map(|health| ago(health.since)),
            last_answer_seconds: health.and_then(|health| health.last_answer).map(ago),
            last_failure: health.and_then(|health| health.last_failure),
        },
    }
}

fn happened(noted: EventRow) -> Happened {
    Happened {
        kind: noted.event.into_str(),
        is_bad: noted.event.is_bad(),
        what: noted.what.into_owned(),
        operation: noted.operation.map(|operation| operation.to_string()),
        project: noted.project,
        first_ms: milliseconds(noted.first),
        last_ms: milliseconds(noted.last),
        count: noted.count,
    }
}

/// Since 1970.
fn milliseconds(date: SystemTime) -> u64 {
    let since = date.duration_since(SystemTime::UNIX_EPOCH).unwrap_or(Duration::ZERO);
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}
