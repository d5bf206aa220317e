//! `/status`: the state of the gateway at a moment, in JSON, for the status page. Its figures are those of `/metrics`.
//! It must not show a credential: callers are keyed digests.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use http::StatusCode;
use serde::Serialize;
use strum::VariantArray;

use super::counts::{Counts, by, gauge};
use super::fleet_status::FleetSummary;
use super::quota_status::{QuotaPolicySummary, QuotaSummary};
use super::{Page, json};
use crate::cache::staleness::{Answers, OperationStaleness, ProjectStaleness};
use crate::catalogue::{Operation, Service};
use crate::config::Mode;
use crate::gateway::{ActiveConfig, Gateway};
use crate::telemetry::callers::CallerRow;
use crate::telemetry::conditions::Condition;
use crate::telemetry::events::RecordedEvent;
use crate::telemetry::logs;
use crate::telemetry::metrics::Metrics;
use crate::telemetry::outcome::Outcome;
use crate::telemetry::savings::{RequestSeries, Savings};
use crate::telemetry::series::{HistogramSnapshot, Series};

/// How many callers are listed.
const MAX_CALLER_ROWS: usize = 200;

#[derive(Serialize)]
struct Status {
    version: &'static str,
    time_ms: u64,
    uptime_seconds: f64,
    mode: Mode,
    /// Where clients connect.
    proxy: String,
    log_level: Option<String>,
    /// What is wrong now, the worst first.
    conditions: Vec<ConditionSummary>,
    savings: SavingsSummary,
    requests: Requests,
    latency: Latency,
    cache: CacheSummary,
    memory: MemorySummary,
    callers: CallersSummary,
    staleness: Vec<StalenessSummary>,
    keep_warm: KeepWarmSummary,
    upstream: Vec<UpstreamSummary>,
    quotas: Vec<QuotaSummary>,
    quota_policies: BTreeMap<&'static str, QuotaPolicySummary>,
    /// `None` without `fleet.engine`.
    fleet: Option<FleetSummary>,
    misses: Counts,
    unstored: Counts,
    bypasses: Counts,
    backoffs: Counts,
    events: Vec<EventSummary>,
}

#[derive(Serialize)]
struct ConditionSummary {
    cause: &'static str,
    severity: &'static str,
    service: Option<&'static str>,
    what: String,
    advice: &'static str,
    since_seconds: Option<f64>,
    until_seconds: Option<f64>,
}

#[derive(Serialize)]
struct SavingsSummary {
    answered: u64,
    hits: u64,
    coalesced: u64,
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
    /// By class: `2xx` to `5xx`, or `none` if the client disconnected before there was one.
    statuses: Counts,
    operations: Vec<OperationResults>,
}

#[derive(Serialize)]
struct OperationResults {
    operation: String,
    results: Counts,
    misses: Counts,
    bypasses: Counts,
    latency: Percentiles,
}

/// In seconds, since the start; `None` without such a request.
#[derive(Serialize)]
struct Percentiles {
    hits50: Option<f64>,
    hits99: Option<f64>,
    others50: Option<f64>,
    others99: Option<f64>,
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
struct CacheSummary {
    entries: u64,
    bytes: u64,
    max_bytes: u64,
    evictions: Counts,
    uncacheable_keys: u64,
    private_scopes: u64,
    refreshes: u64,
}

/// What is held for clients, without the cache.
#[derive(Serialize)]
struct MemorySummary {
    used_bytes: u64,
    budget_bytes: u64,
    refusals: u64,
}

#[derive(Serialize)]
struct CallersSummary {
    grants: u64,
    max_grants: usize,
    proofs: Counts,
    denials: Counts,
    signatures: Counts,
    /// How many callers have counts.
    remembered: usize,
    by_id: Vec<CallerRow>,
}

/// The answers from memory in the last hour that differed from upstream's.
#[derive(Serialize)]
struct StalenessSummary {
    operation: String,
    #[serde(flatten)]
    all: AnswersSummary,
    ttl_seconds: f64,
    /// Those with the most answers come first.
    projects: Vec<ProjectAnswers>,
}

#[derive(Serialize)]
struct ProjectAnswers {
    project: String,
    #[serde(flatten)]
    all: AnswersSummary,
    ttl_seconds: f64,
}

/// `ratio` and the ends of its interval are `None` while there is too little evidence.
#[derive(Serialize)]
struct AnswersSummary {
    answers: u64,
    ratio: Option<f64>,
    lower: Option<f64>,
    upper: Option<f64>,
    changes_per_hour: Option<f64>,
}

#[derive(Serialize)]
struct KeepWarmSummary {
    cache_keys: usize,
    calls: Counts,
}

#[derive(Serialize)]
struct UpstreamSummary {
    service: &'static str,
    url: String,
    requests: Counts,
    in_flight: u64,
    queued: u64,
    retries: u64,
    count: u64,
    seconds: f64,
    health: ServiceHealth,
}

#[derive(Serialize)]
struct ServiceHealth {
    state: &'static str,
    since_seconds: Option<f64>,
    last_answer_seconds: Option<f64>,
    last_failure: Option<&'static str>,
}

#[derive(Serialize)]
struct EventSummary {
    kind: &'static str,
    is_bad: bool,
    what: String,
    operation: Option<String>,
    project: Option<String>,
    first_ms: u64,
    last_ms: u64,
    count: u64,
}

pub(super) fn page(gateway: &Gateway, proxy: SocketAddr) -> Page {
    json(StatusCode::OK, &status(gateway, proxy))
}

fn status(gateway: &Gateway, proxy: SocketAddr) -> Status {
    let (active, metrics) = (gateway.active(), gateway.metrics());
    metrics.refresh();
    let series = RequestSeries::of(metrics);
    let (by_id, remembered) = gateway.observer().caller_rows(MAX_CALLER_ROWS);
    Status {
        version: env!("CARGO_PKG_VERSION"),
        time_ms: milliseconds(gateway.date()),
        uptime_seconds: gateway.observer().uptime().as_secs_f64(),
        mode: gateway.mode(),
        proxy: format!("{}://{proxy}", if active.settings().listen.has_tls() { "https" } else { "http" }),
        log_level: logs::level().map(|level| level.to_string()),
        conditions: gateway.conditions().into_iter().map(|it| condition(it, gateway.now())).collect(),
        savings: savings(&series),
        requests: Requests {
            in_flight: gauge(&metrics.in_flight),
            connections: gauge(&metrics.connections),
            results: Outcome::VARIANTS
                .iter()
                .map(|outcome| outcome.into_str())
                .map(|result| (result.to_owned(), series.requests.sum(&[("result", result)])))
                .collect(),
            statuses: statuses(&series),
            operations: operations(metrics, &series),
        },
        latency: latency(&series),
        cache: CacheSummary {
            entries: gauge(&metrics.entries),
            bytes: gauge(&metrics.entries_bytes),
            max_bytes: active.settings().cache.max_size.0,
            evictions: by(&metrics.evictions, "cause"),
            uncacheable_keys: gauge(&metrics.uncacheable_keys),
            private_scopes: gauge(&metrics.private_scopes),
            refreshes: metrics.refreshes.get(),
        },
        memory: MemorySummary {
            used_bytes: Series::of(&metrics.memory_used_bytes).sum(&[]),
            budget_bytes: gauge(&metrics.memory_budget_bytes),
            refusals: metrics.memory_refusals.get(),
        },
        callers: CallersSummary {
            grants: gauge(&metrics.grants),
            max_grants: active.settings().grants.max_grants.0,
            proofs: by(&metrics.proofs, "result"),
            denials: by(&metrics.denials, "source"),
            signatures: by(&metrics.signatures, "result"),
            remembered,
            by_id,
        },
        staleness: gateway.staleness().into_iter().map(staleness).collect(),
        keep_warm: KeepWarmSummary {
            cache_keys: active.keep_warm().len(),
            calls: by(&metrics.keep_warm_calls, "result"),
        },
        upstream: active.catalogue().services().map(|service| upstream(gateway, &active, service)).collect(),
        quotas: gateway.limits().into_iter().flat_map(|(service, states)| QuotaSummary::of(service, states)).collect(),
        quota_policies: QuotaPolicySummary::of(metrics),
        fleet: gateway
            .fleet_state()
            .zip(gateway.fleet_keys())
            .map(|(state, keys)| FleetSummary::of(metrics, state, keys)),
        misses: by(&metrics.misses, "reason"),
        unstored: by(&metrics.unstored, "reason"),
        bypasses: by(&metrics.bypasses, "reason"),
        backoffs: by(&metrics.backoffs, "cause"),
        events: gateway.observer().events().recent().into_iter().map(event).collect(),
    }
}

fn condition(known: Condition, now: Instant) -> ConditionSummary {
    ConditionSummary {
        cause: known.cause.into_str(),
        severity: known.severity.into_str(),
        service: known.service.map(Service::as_str),
        what: known.what,
        advice: known.advice,
        since_seconds: known.since.map(|since| now.saturating_duration_since(since).as_secs_f64()),
        until_seconds: known.until.map(|until| until.as_secs_f64()),
    }
}

fn savings(series: &RequestSeries) -> SavingsSummary {
    let savings = Savings::of(series);
    SavingsSummary {
        answered: savings.answered,
        hits: savings.hits,
        coalesced: savings.coalesced,
        hit_ratio: savings.hit_ratio(),
        upstream_calls: savings.upstream_calls,
        calls_saved: savings.calls_saved(),
        seconds_saved: savings.seconds_saved,
    }
}

fn statuses(series: &RequestSeries) -> Counts {
    let mut classes = Counts::from(["2xx", "3xx", "4xx", "5xx"].map(|class| (class.to_owned(), 0)));
    for (status, requests) in series.requests.by("status", &[]) {
        let digit = status.chars().next().filter(char::is_ascii_digit);
        *classes.entry(digit.map_or(status, |digit| format!("{digit}xx"))).or_default() += requests;
    }
    classes
}

fn operations(metrics: &Metrics, series: &RequestSeries) -> Vec<OperationResults> {
    let (misses, bypasses) = (Series::of(&metrics.misses), Series::of(&metrics.bypasses));
    let of_operation = |operation: String| {
        let labels = [("operation", operation.as_str())];
        let hits = series.durations(&labels, Outcome::is_hit);
        let others = series.durations(&labels, Outcome::has_waited);
        OperationResults {
            results: series.requests.by("result", &labels),
            misses: misses.by("reason", &labels),
            bypasses: bypasses.by("reason", &labels),
            latency: Percentiles {
                hits50: hits.quantile(0.5),
                hits99: hits.quantile(0.99),
                others50: others.quantile(0.5),
                others99: others.quantile(0.99),
            },
            operation,
        }
    };
    by(&metrics.fetches, "operation").into_keys().map(of_operation).collect()
}

fn staleness((operation, known): (Arc<Operation>, OperationStaleness)) -> StalenessSummary {
    let project = |known: ProjectStaleness| ProjectAnswers {
        project: known.project,
        all: answers(known.answers),
        ttl_seconds: known.ttl.as_secs_f64(),
    };
    StalenessSummary {
        operation: operation.name.to_string(),
        all: answers(known.all),
        ttl_seconds: known.ttl.as_secs_f64(),
        projects: known.projects.into_iter().map(project).collect(),
    }
}

fn answers(known: Answers) -> AnswersSummary {
    AnswersSummary {
        answers: known.answers.round() as u64,
        ratio: known.stale.map(|stale| stale.ratio),
        lower: known.stale.map(|stale| stale.lower),
        upper: known.stale.map(|stale| stale.upper),
        changes_per_hour: known.changes_per_hour,
    }
}

/// Of requests for operations that were answered from memory or by a call for the cache.
fn latency(series: &RequestSeries) -> Latency {
    let hits = series.durations(&[], Outcome::is_hit);
    let others = series.durations(&[], Outcome::has_waited);
    let durations = |histogram: HistogramSnapshot| Durations {
        count: histogram.count,
        sum: histogram.sum,
        buckets: histogram.buckets,
    };
    Latency { bounds: hits.bounds.clone(), hits: durations(hits), others: durations(others) }
}

fn upstream(gateway: &Gateway, active: &ActiveConfig, service: Service) -> UpstreamSummary {
    let (metrics, of_service) = (gateway.metrics(), [("service", service.as_str())]);
    let durations = Series::of(&metrics.upstream_durations).histogram(&of_service, "service", |_| true);
    let (now, health) = (gateway.now(), gateway.observer().health(service));
    let ago = |then| now.saturating_duration_since(then).as_secs_f64();
    UpstreamSummary {
        service: service.as_str(),
        url: active.catalogue().origin(service).to_string(),
        requests: Series::of(&metrics.upstream_requests).by("status", &of_service),
        in_flight: Series::of(&metrics.upstream_in_flight).sum(&of_service),
        queued: Series::of(&metrics.upstream_calls_queued).sum(&of_service),
        retries: Series::of(&metrics.upstream_retries).sum(&of_service),
        count: durations.count,
        seconds: durations.sum,
        health: ServiceHealth {
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

fn event(recorded: RecordedEvent) -> EventSummary {
    EventSummary {
        kind: recorded.event.into_str(),
        is_bad: recorded.event.is_bad(),
        what: recorded.what.into_owned(),
        operation: recorded.operation.map(|operation| operation.to_string()),
        project: recorded.project,
        first_ms: milliseconds(recorded.first),
        last_ms: milliseconds(recorded.last),
        count: recorded.count,
    }
}

/// Since 1970.
fn milliseconds(date: SystemTime) -> u64 {
    let since = date.duration_since(SystemTime::UNIX_EPOCH).unwrap_or(Duration::ZERO);
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}
