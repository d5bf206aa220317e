//! Every metric family, with what a rise means. Values that something else already knows (entries,
//! bytes, waiters) are read when Prometheus asks.

use std::sync::Arc;
use std::time::Duration;

use http::StatusCode;
use prometheus::core::Collector;
use prometheus::{
    HistogramOpts, HistogramVec, IntCounter, IntCounterVec, IntGauge, IntGaugeVec, Opts, Registry, TextEncoder,
};
use strum::VariantArray;

use super::logs::DroppedLines;
use super::metrics_snapshot::MetricsSnapshot;
use super::outcome::Outcome;
use super::status::status_label;
use crate::cache::backoffs::BackoffCause;
use crate::cache::grants::Proof;
use crate::cache::miss::Miss;
use crate::cache::unstorable::Unstorable;
use crate::catalogue::{Operation, Service};
use crate::request::BypassReason;
use crate::signing::ring::SignatureRejection;

/// From a hit in memory (50 µs) to an upstream at its limits (60 s), in seconds.
const BUCKETS: [f64; 19] = [
    50e-6, 100e-6, 250e-6, 500e-6, 1e-3, 2.5e-3, 5e-3, 10e-3, 25e-3, 50e-3, 100e-3, 250e-3, 500e-3, 1.0, 2.5, 5.0,
    10.0, 30.0, 60.0,
];

/// The metrics of one gateway.
pub struct Metrics {
    registry: Registry,
    /// Requests whose answer is not finished.
    pub in_flight: IntGauge,
    /// Open client connections.
    pub connections: IntGauge,
    /// Client connections that were ended here, by cause.
    pub connections_ended: IntCounterVec,
    /// When the certificate for clients ends, as Unix time in seconds; 0 without TLS.
    pub certificate_not_after: IntGauge,
    /// How often a client connection had to wait for room.
    pub accept_pauses: IntCounter,
    /// Connections that could not be accepted, by listener.
    pub accept_errors: IntCounterVec,
    pub(super) requests: IntCounterVec,
    pub(super) durations: HistogramVec,
    bypasses: IntCounterVec,
    misses: IntCounterVec,
    unstored: IntCounterVec,
    proofs: IntCounterVec,
    denials: IntCounterVec,
    signatures: IntCounterVec,
    /// New leaders, after the one before was refused.
    pub elections: IntCounter,
    /// Calls for a question beside or after another caller's, because upstream answered others meanwhile.
    pub additional_calls: IntCounterVec,
    /// Answers asked for again though nobody waited.
    pub refreshes: IntCounter,
    backoffs: IntCounterVec,
    pub(super) upstream_requests: IntCounterVec,
    pub(super) upstream_durations: HistogramVec,
    pub(super) upstream_in_flight: IntGaugeVec,
    upstream_retries: IntCounterVec,
    evictions: IntCounterVec,
}

impl Metrics {
    /// All families, registered.
    ///
    /// # Errors
    /// Only if two families had one name.
    pub fn new() -> prometheus::Result<Arc<Self>> {
        let registry = Registry::new();
        let metrics = Self {
            in_flight: IntGauge::new(
                "workspace_gateway_requests_in_flight",
                "Requests whose answer is not finished. A rise without more traffic: upstream or clients are slower.",
            )?,
            connections: IntGauge::new(
                "workspace_gateway_connections",
                "Open client connections. A steady rise: clients that open one per call, or leave them open.",
            )?,
            connections_ended: counters(
                "workspace_gateway_connections_ended_total",
                "Client connections (of `write-timeout` also single streams in HTTP/2) that the gateway has ended, by \
                 cause. A rise of `keepalive-timeout`: clients that leave connections open. Of `header-timeout`, \
                 `write-timeout`, `resets` or `shutdown-timeout`: clients that are cut off, broken, or mean harm. Of `handshake`: \
                 clients that don't trust the certificate, have none of their own, or speak plain HTTP where TLS is spoken. \
                 Of `shed`: limits.max_connections, file descriptors or limits.memory are used up.",
                &["cause"],
            )?,
            certificate_not_after: IntGauge::new(
                "workspace_gateway_tls_certificate_not_after_seconds",
                "When the certificate in listen.cert_file ends, or one of its authorities in that file if that ends sooner, as \
                 Unix time in seconds; 0 without TLS. Near the present, or before it: it has to be renewed.",
            )?,
            accept_pauses: IntCounter::new(
                "workspace_gateway_accept_pauses_total",
                "Client connections that came while limits.max_connections were open, so that they had to wait until another \
                 was closed. A rise: clients that open one per call or leave them open, or a flood.",
            )?,
            accept_errors: counters(
                "workspace_gateway_accept_errors_total",
                "Connections that could not be accepted, by listener. A rise: this process, or its host, has no file \
                 descriptor or no memory left; the log says which.",
                &["listener"],
            )?,
            requests: counters(
                "workspace_gateway_requests_total",
                "Requests by operation, result and status. More `hit` and `coalesced`: the gateway helps. More `miss`: \
                 new questions, new callers, or entries evicted. More `stale` or `backoff`: upstream fails or \
                 throttles. More `stale-if-slow`: it is slow. More `revalidating`: stale answers, each asked for again. More \
                 `negative`: upstream says 400, 404 or 405. More `denied`: a loop with a dead credential. More `bypass`: see workspace_gateway_bypasses_total. More \
                 `aborted`: clients give up waiting.",
                &["operation", "result", "status"],
            )?,
            durations: histograms(
                "workspace_gateway_request_duration_seconds",
                "From a request's head to its answer's end, in seconds. A rise of `hit`: this machine is short of CPU. \
                 A rise of `miss`: upstream is slower.",
                &["operation", "result"],
            )?,
            bypasses: counters(
                "workspace_gateway_bypasses_total",
                "Requests for an operation that were forwarded as they are, by reason. A rise: clients ask in a way \
                 that cannot be answered from memory.",
                &["reason"],
            )?,
            misses: counters(
                "workspace_gateway_misses_total",
                "Requests for an operation that could not be answered from memory at once, by reason; each that waits for \
                 another's call counts. A rise of `no-entry`: new questions, or entries evicted. Of `expired`: a short cache.ttl. Of `no-grant` or \
                 `grant-lapsed`: new credentials, or a short grants.grant_ttl. Of `needs-confirmation`: unsafe methods. Of \
                 `private` or `uncacheable`: upstream's answers have changed. Of the others: clients with directives.",
                &["operation", "reason"],
            )?,
            unstored: counters(
                "workspace_gateway_unstored_responses_total",
                "Answers that were passed on and not kept, by reason. A rise of `status`: upstream fails. Of `denied`: \
                 credentials are refused. Of `late`, `outdated`, `purged` or `invalidated`: something has changed while \
                 answers were on their way. Of `memory`: the budget is used up. Of another: upstream's answers have changed.",
                &["reason"],
            )?,
            proofs: counters(
                "workspace_gateway_proofs_total",
                "Calls by which upstream has proved a caller. `granted`: one that had no grant; a rise: new \
                 credentials, or grants that lapse between calls. `renewed`: one that had. `late`: one that was denied \
                 meanwhile, so that it counts for nothing.",
                &["result"],
            )?,
            denials: counters(
                "workspace_gateway_denials_total",
                "Refused credentials. `upstream`: by a 401 or 403; a rise: expired or revoked ones in use. `memory`: \
                 given again without asking; a rise: a loop with a dead one.",
                &["source"],
            )?,
            signatures: counters(
                "workspace_gateway_signatures_total",
                "Requests signed with an access key and without a token, by what became of the signature. More \
                 `unknown-key` or `signature-bound-here`: keys in use that are not configured. More `key-suspended`: upstream \
                 refuses a configured key. More of the others: clients whose secret or clock is wrong.",
                &["result"],
            )?,
            elections: IntCounter::new(
                "workspace_gateway_elections_total",
                "New leaders of a shared upstream call, after the one before was refused or throttled. A rise: callers \
                 whose credential dies while they have a grant.",
            )?,
            additional_calls: counters(
                "workspace_gateway_additional_calls_total",
                "Calls for a question with another caller's credential, while upstream answered other product lists \
                 well. `slow`: the calls under way were slow. `failed`: the call before was answered with a 5xx. A rise: \
                 upstream is slow or fails for some callers only.",
                &["reason"],
            )?,
            refreshes: IntCounter::new(
                "workspace_gateway_refreshes_total",
                "Stale answers that were given at once and asked for again in the background. A rise: more questions \
                 that are asked less often than every cache.ttl.",
            )?,
            backoffs: counters(
                "workspace_gateway_backoffs_total",
                "Failed calls after which their callers, or all, do not ask again for a while, where there is something stale. \
                 `failure`: it gave no answer, or a 5xx. `throttled`: 429; a rise: the quota is used up. `unavailable`: \
                 503 that says when to ask again.",
                &["cause"],
            )?,
            upstream_requests: counters(
                "workspace_gateway_upstream_requests_total",
                "Calls to upstream by service and status, or how they failed. A rise of 429: the quota is used up. A \
                 rise of `connect`, `tls`, `first-byte`, `timeout`, `idle` or `broken`: upstream or the network is in trouble. Of \
                 `local`: this gateway, its host or its settings. Of `abandoned`: clients hang up on what passes through.",
                &["service", "status"],
            )?,
            upstream_durations: histograms(
                "workspace_gateway_upstream_duration_seconds",
                "From asking upstream to its whole answer (pass-through: to its head), in seconds. A rise: upstream \
                 is slower.",
                &["service"],
            )?,
            upstream_in_flight: IntGaugeVec::new(
                Opts::new(
                    "workspace_gateway_upstream_requests_in_flight",
                    "Calls to upstream that have no answer yet. A rise: upstream is slower, or questions differ more.",
                ),
                &["service"],
            )?,
            upstream_retries: counters(
                "workspace_gateway_upstream_retries_total",
                "Calls that were made once more, because a connection broke before there was an answer. A rise: \
                 upstream, or something on the way there, closes connections that are in use.",
                &["service"],
            )?,
            evictions: counters(
                "workspace_gateway_evictions_total",
                "Entries that had to go. A rise of `size`: cache.max_size is too small for what is asked. Of \
                 `expired`: long expired, and nobody asked again.",
                &["cause"],
            )?,
            registry,
        };
        metrics.register_all()?;
        metrics.begin_at_zero();
        Ok(Arc::new(metrics))
    }

    fn register_all(&self) -> prometheus::Result<()> {
        let build = IntGaugeVec::new(
            Opts::new("workspace_gateway_build_info", "Always 1; the labels tell what is running."),
            &["version"],
        )?;
        build.with_label_values(&[env!("CARGO_PKG_VERSION")]).set(1);
        let families: [Box<dyn Collector>; 25] = [
            Box::new(self.in_flight.clone()),
            Box::new(self.connections.clone()),
            Box::new(self.connections_ended.clone()),
            Box::new(self.certificate_not_after.clone()),
            Box::new(self.accept_pauses.clone()),
            Box::new(self.accept_errors.clone()),
            Box::new(self.requests.clone()),
            Box::new(self.durations.clone()),
            Box::new(self.bypasses.clone()),
            Box::new(self.misses.clone()),
            Box::new(self.unstored.clone()),
            Box::new(self.proofs.clone()),
            Box::new(self.denials.clone()),
            Box::new(self.signatures.clone()),
            Box::new(self.elections.clone()),
            Box::new(self.additional_calls.clone()),
            Box::new(self.refreshes.clone()),
            Box::new(self.backoffs.clone()),
            Box::new(self.upstream_requests.clone()),
            Box::new(self.upstream_durations.clone()),
            Box::new(self.upstream_in_flight.clone()),
            Box::new(self.upstream_retries.clone()),
            Box::new(self.evictions.clone()),
            Box::new(DroppedLines::new()?),
            Box::new(build),
        ];
        families.into_iter().try_for_each(|family| self.registry.register(family))?;
        // Memory, CPU seconds, descriptors and threads of this process, where /proc tells them.
        #[cfg(target_os = "linux")]
        self.registry.register(Box::new(prometheus::process_collector::ProcessCollector::for_self()))?;
        Ok(())
    }

    /// A series that appears with its first event can't show a rate from zero.
    fn begin_at_zero(&self) {
        fn begin(counters: &IntCounterVec, labels: impl IntoIterator<Item = &'static str>) {
            labels.into_iter().for_each(|label| drop(counters.with_label_values(&[label])));
        }
        begin(&self.bypasses, BypassReason::VARIANTS.iter().map(BypassReason::into_str));
        begin(&self.unstored, Unstorable::VARIANTS.iter().map(Unstorable::into_str));
        begin(&self.proofs, Proof::VARIANTS.iter().map(Proof::into_str));
        begin(&self.signatures, ["verified", "unknown-key", "signature-bound-here"]);
        begin(&self.signatures, SignatureRejection::VARIANTS.iter().map(SignatureRejection::into_str));
        begin(&self.backoffs, BackoffCause::VARIANTS.iter().map(BackoffCause::into_str));
        begin(&self.denials, ["upstream", "memory"]);
        begin(&self.additional_calls, ["slow", "failed"]);
        begin(
            &self.connections_ended,
            ["header-timeout", "keepalive-timeout", "write-timeout", "resets", "shutdown-timeout", "handshake", "shed"],
        );
        begin(&self.accept_errors, ["proxy", "metrics", "admin"]);
        begin(&self.evictions, ["size", "expired"]);
        for service in Service::ALL {
            self.upstream_durations.with_label_values(&[service.as_str()]);
            self.upstream_in_flight.with_label_values(&[service.as_str()]);
            // An alert is waiting for the first of these.
            self.upstream_requests.with_label_values(&[service.as_str(), "local"]);
            self.upstream_retries.with_label_values(&[service.as_str()]);
        }
    }

    pub(crate) fn register(&self, family: Box<dyn Collector>) -> prometheus::Result<()> {
        self.registry.register(family)
    }

    /// Counts a request that is over.
    pub fn request(&self, operation: &str, outcome: Outcome, status: Option<StatusCode>, took: Duration) {
        let result = outcome.into_str();
        let status = status.map_or("none", status_label);
        self.requests.with_label_values(&[operation, result, status]).inc();
        self.durations.with_label_values(&[operation, result]).observe(took.as_secs_f64());
    }

    /// Counts a request for an operation that is forwarded as it is.
    pub fn bypass(&self, reason: BypassReason) {
        self.bypasses.with_label_values(&[reason.into_str()]).inc();
    }

    /// Counts a request that is signed and has no token, and what became of the signature.
    pub fn signature(&self, result: &'static str) {
        self.signatures.with_label_values(&[result]).inc();
    }

    /// Counts the misses of these operations from zero on.
    pub fn begin_misses(&self, operations: &[Arc<Operation>]) {
        for operation in operations {
            for &miss in Miss::VARIANTS {
                self.misses.with_label_values(&[&*operation.name, miss.into_str()]);
            }
        }
    }

    /// Counts a request for an operation that was not answered from memory.
    pub(super) fn missed(&self, operation: &str, miss: Miss) {
        self.misses.with_label_values(&[operation, miss.into_str()]).inc();
    }

    /// Counts an answer that is passed on and not kept.
    pub fn unstored(&self, reason: Unstorable) {
        self.unstored.with_label_values(&[reason.into_str()]).inc();
    }

    /// Counts a call by which upstream has proved a caller.
    pub fn proof(&self, proof: Proof) {
        self.proofs.with_label_values(&[proof.into_str()]).inc();
    }

    /// Counts a failed call after which upstream is left alone for a while.
    pub fn pause(&self, cause: BackoffCause) {
        self.backoffs.with_label_values(&[cause.into_str()]).inc();
    }

    /// Counts a refused credential: refused by `upstream`, or from `memory`.
    pub fn denial(&self, source: &'static str) {
        self.denials.with_label_values(&[source]).inc();
    }

    /// Counts entries that had to go, by cause.
    pub fn eviction_counter(&self) -> impl Fn(&'static str) + Send + Sync + 'static {
        let evictions = self.evictions.clone();
        move |cause| evictions.with_label_values(&[cause]).inc()
    }

    /// Counts calls that are made once more.
    pub fn retry_counter(&self) -> impl Fn(Service) + Send + Sync + 'static {
        let retries = self.upstream_retries.clone();
        move |service| retries.with_label_values(&[service.as_str()]).inc()
    }

    /// Everything as it is now, to be read by name.
    pub fn snapshot(&self) -> MetricsSnapshot {
        MetricsSnapshot::new(self.registry.gather())
    }

    /// Everything in Prometheus' text format.
    ///
    /// # Errors
    /// If a family can't be written, which would be a mistake in this file.
    pub fn encode(&self) -> prometheus::Result<String> {
        TextEncoder::new().encode_to_string(&self.registry.gather())
    }
}

fn counters(name: &str, help: &str, labels: &[&str]) -> prometheus::Result<IntCounterVec> {
    IntCounterVec::new(Opts::new(name, help), labels)
}

fn histograms(name: &str, help: &str, labels: &[&str]) -> prometheus::Result<HistogramVec> {
    HistogramVec::new(HistogramOpts::new(name, help).buckets(BUCKETS.to_vec()), labels)
}
