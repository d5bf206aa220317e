//! Every metric family, with what a rise means. Values that something else already knows (entries,
//! bytes, waiters) are read when Prometheus asks.

use std::sync::Arc;
use std::time::Duration;

use http::StatusCode;
use prometheus::core::{Collector, Desc};
use prometheus::proto::MetricFamily;
use prometheus::{
    HistogramOpts, HistogramVec, IntCounter, IntCounterVec, IntGauge, IntGaugeVec, Opts, Registry, TextEncoder,
};

use super::figures::Figures;
use super::outcome::Outcome;
use super::status::status_label;
use crate::cache::admission::Unstorable;
use crate::cache::grants::Proof;
use crate::cache::pauses::Cause;
use crate::cache::store::Usage;
use crate::catalogue::Service;
use crate::request::BypassReason;
use crate::signing::ring::Refusal;

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
    /// How often no more client connections were accepted.
    pub accept_pauses: IntCounter,
    pub(super) requests: IntCounterVec,
    pub(super) durations: HistogramVec,
    bypasses: IntCounterVec,
    unstored: IntCounterVec,
    proofs: IntCounterVec,
    denials: IntCounterVec,
    signatures: IntCounterVec,
    /// New leaders, after the one before was refused.
    pub elections: IntCounter,
    /// Answers asked for again though nobody waited.
    pub refreshes: IntCounter,
    pauses: IntCounterVec,
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
                 cause. A rise of `keepalive-timeout`: clients that leave connections open. Of `head-timeout`, \
                 `write-timeout`, `resets` or `farewell`: clients that are cut off, broken, or mean harm. Of `handshake`: \
                 clients that don't trust the certificate, have none of their own, or speak plain HTTP where TLS is spoken.",
                &["cause"],
            )?,
            accept_pauses: IntCounter::new(
                "workspace_gateway_accept_pauses_total",
                "How often limits.max_connections were open, so that new ones had to wait. A rise: clients that open \
                 one per call or leave them open, or a flood.",
            )?,
            requests: counters(
                "workspace_gateway_requests_total",
                "Requests by operation, result and status. More `hit` and `coalesced`: the gateway helps. More `miss`: \
                 new questions, new callers, or entries evicted. More `stale` or `paused`: upstream fails or \
                 throttles. More `patience`: it is slow. More `revalidating`: stale answers, each asked for again. More \
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
            unstored: counters(
                "workspace_gateway_unstored_answers_total",
                "Answers that were passed on and not kept, by reason. A rise of `status`: upstream fails. \
                 A rise of another: upstream's answers have changed.",
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
                 `unknown-key` or `signature-bound-here`: keys in use that are not configured. More `key-held`: upstream \
                 refuses a configured key. More of the others: clients whose secret or clock is wrong.",
                &["result"],
            )?,
            elections: IntCounter::new(
                "workspace_gateway_elections_total",
                "New leaders of a shared upstream call, after the one before was refused or throttled. A rise: callers \
                 whose credential dies while they have a grant.",
            )?,
            refreshes: IntCounter::new(
                "workspace_gateway_refreshes_total",
                "Stale answers that were given at once and asked for again in the background. A rise: more questions \
                 that are asked less often than every cache.ttl.",
            )?,
            pauses: counters(
                "workspace_gateway_pauses_total",
                "Failed calls after which upstream is left alone for a while, where there is something stale to give. \
                 `failure`: it gave no answer, or a 5xx. `throttled`: 429; a rise: the quota is used up. `unavailable`: \
                 503 that says when to ask again.",
                &["cause"],
            )?,
            upstream_requests: counters(
                "workspace_gateway_upstream_requests_total",
                "Calls to upstream by service and status, or how they failed. A rise of 429: the quota is used up. A \
                 rise of `connect`, `tls`, `first-byte`, `timeout`, `idle` or `broken`: upstream or the network is in trouble. Of \
                 `abandoned`: clients hang up on what passes through.",
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
        let families: [Box<dyn Collector>; 20] = [
            Box::new(self.in_flight.clone()),
            Box::new(self.connections.clone()),
            Box::new(self.connections_ended.clone()),
            Box::new(self.accept_pauses.clone()),
            Box::new(self.requests.clone()),
            Box::new(self.durations.clone()),
            Box::new(self.bypasses.clone()),
            Box::new(self.unstored.clone()),
            Box::new(self.proofs.clone()),
            Box::new(self.denials.clone()),
            Box::new(self.signatures.clone()),
            Box::new(self.elections.clone()),
            Box::new(self.refreshes.clone()),
            Box::new(self.pauses.clone()),
            Box::new(self.upstream_requests.clone()),
            Box::new(self.upstream_durations.clone()),
            Box::new(self.upstream_in_flight.clone()),
            Box::new(self.upstream_retries.clone()),
            Box::new(self.evictions.clone()),
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
        begin(&self.bypasses, BypassReason::ALL.map(BypassReason::as_str));
        begin(&self.unstored, Unstorable::ALL.map(Unstorable::as_str));
        begin(&self.proofs, Proof::ALL.map(Proof::as_str));
        begin(&self.signatures, ["verified", "unknown-key", "signature-bound-here"]);
        begin(&self.signatures, Refusal::ALL.map(Refusal::as_str));
        begin(&self.pauses, Cause::ALL.map(Cause::as_str));
        begin(&self.denials, ["upstream", "memory"]);
        begin(
            &self.connections_ended,
            ["head-timeout", "keepalive-timeout", "write-timeout", "resets", "farewell", "handshake"],
        );
        begin(&self.evictions, ["size", "expired"]);
        for service in Service::ALL {
            self.upstream_durations.with_label_values(&[service.as_str()]);
            self.upstream_in_flight.with_label_values(&[service.as_str()]);
            self.upstream_retries.with_label_values(&[service.as_str()]);
        }
    }

    /// Adds the gauges of what is in use, which are read when Prometheus asks.
    ///
    /// # Errors
    /// If they were added before.
    pub fn watch(&self, usage: impl Fn() -> InUse + Send + Sync + 'static) -> prometheus::Result<()> {
        let gauges: Vec<(IntGauge, Reading)> = vec![
            (
                IntGauge::new(
                    "workspace_gateway_entries",
                    "Entries in the cache, fresh or not. A rise: more different questions.",
                )?,
                |usage| usage.store.entries,
            ),
            (
                IntGauge::new(
                    "workspace_gateway_entries_bytes",
                    "Bytes that entries hold, estimated. Near cache.max_size, entries are evicted.",
                )?,
                |usage| usage.store.bytes,
            ),
            (
                IntGauge::new(
                    "workspace_gateway_uncacheable_keys",
                    "Questions whose answers could not be kept lately, so that nobody waits for another's. A rise: \
                     see workspace_gateway_unstored_answers_total.",
                )?,
                |usage| usage.store.uncacheable,
            ),
            (
                IntGauge::new(
                    "workspace_gateway_private_scopes",
                    "Operations in a project in which nothing is shared, because callers were given different answers \
                     to one question. Anything but 0: set sharing = \"caller\" for the operation, or find out why.",
                )?,
                |usage| usage.store.private_scopes as u64,
            ),
            (
                IntGauge::new(
                    "workspace_gateway_grants",
                    "Callers that may be answered from memory, each in one operation and project. Near half of \
                     grants.max_grants, the least recently used may have to be proved again.",
                )?,
                |usage| usage.grants as u64,
            ),
            (
                IntGauge::new(
                    "workspace_gateway_coalesced_waiters",
                    "Requests that wait for an upstream call another request began. A rise: a stampede that upstream \
                     is spared.",
                )?,
                |usage| usage.waiting as u64,
            ),
            (
                IntGauge::new(
                    "workspace_gateway_bypassing",
                    "Whether the cache is switched off (mode): 1, or 0. A rise: somebody has, and nothing is answered from \
                     memory until it is switched on again.",
                )?,
                |usage| u64::from(usage.is_bypassing),
            ),
        ];
        self.registry.register(Box::new(Watched { gauges, usage }))
    }

    pub(super) fn register(&self, family: Box<dyn Collector>) -> prometheus::Result<()> {
        self.registry.register(family)
    }

    /// Counts a request that is over.
    pub fn request(&self, operation: &str, outcome: Outcome, status: Option<StatusCode>, took: Duration) {
        let result = outcome.as_str();
        let status = status.map_or("none", status_label);
        self.requests.with_label_values(&[operation, result, status]).inc();
        self.durations.with_label_values(&[operation, result]).observe(took.as_secs_f64());
    }

    /// Counts a request for an operation that is forwarded as it is.
    pub fn bypass(&self, reason: BypassReason) {
        self.bypasses.with_label_values(&[reason.as_str()]).inc();
    }

    /// Counts a request that is signed and has no token, and what became of the signature.
    pub fn signature(&self, result: &'static str) {
        self.signatures.with_label_values(&[result]).inc();
    }

    /// Counts an answer that is passed on and not kept.
    pub fn unstored(&self, reason: Unstorable) {
        self.unstored.with_label_values(&[reason.as_str()]).inc();
    }

    /// Counts a call by which upstream has proved a caller.
    pub fn proof(&self, proof: Proof) {
        self.proofs.with_label_values(&[proof.as_str()]).inc();
    }

    /// Counts a failed call after which upstream is left alone for a while.
    pub fn pause(&self, cause: Cause) {
        self.pauses.with_label_values(&[cause.as_str()]).inc();
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
    pub fn figures(&self) -> Figures {
        Figures::new(self.registry.gather())
    }

    /// Everything in Prometheus' text format.
    ///
    /// # Errors
    /// If a family can't be written, which would be a mistake in this file.
    pub fn encode(&self) -> prometheus::Result<String> {
        TextEncoder::new().encode_to_string(&self.registry.gather())
    }
}

/// What is in use at a moment.
#[derive(Default)]
pub struct InUse {
    /// What is kept.
    pub store: Usage,
    /// How many grants live.
    pub grants: usize,
    /// How many requests wait for a flight that another began.
    pub waiting: usize,
    /// Whether the cache is switched off.
    pub is_bypassing: bool,
}

/// What a gauge shows of what is in use.
type Reading = fn(&InUse) -> u64;

/// The gauges of what is in use.
struct Watched<F> {
    gauges: Vec<(IntGauge, Reading)>,
    usage: F,
}

impl<F: Fn() -> InUse + Send + Sync> Collector for Watched<F> {
    fn desc(&self) -> Vec<&Desc> {
        self.gauges.iter().flat_map(|(gauge, _)| gauge.desc()).collect()
    }

    fn collect(&self) -> Vec<MetricFamily> {
        let usage = (self.usage)();
        for (gauge, read) in &self.gauges {
            gauge.set(i64::try_from(read(&usage)).unwrap_or(i64::MAX));
        }
        self.gauges.iter().flat_map(|(gauge, _)| gauge.collect()).collect()
    }
}

fn counters(name: &str, help: &str, labels: &[&str]) -> prometheus::Result<IntCounterVec> {
    IntCounterVec::new(Opts::new(name, help), labels)
}

fn histograms(name: &str, help: &str, labels: &[&str]) -> prometheus::Result<HistogramVec> {
    HistogramVec::new(HistogramOpts::new(name, help).buckets(BUCKETS.to_vec()), labels)
}
