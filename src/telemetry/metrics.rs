//! Every metric family of the gateway. Each is declared once, with its handle, name, labels, the series that exist from
//! the start, and a help text that says what a rise means. Label values come from enums and from the catalogue, never
//! from a request.

use std::sync::Arc;
use std::time::Duration;

use prometheus::proto::MetricFamily;
use prometheus::{Gauge, GaugeVec, HistogramVec, IntCounter, IntCounterVec, IntGauge, IntGaugeVec, TextEncoder};
use strum::VariantArray;

use super::exemplars::Exemplars;
use super::families::{each, families, pairs, start_at_zero};
use super::outcome::{ClaimResult, KeepWarmResult, Reload, SnapshotResult};
use crate::cache::backoffs::BackoffCause;
use crate::cache::grants::{Proof, RenewalResult};
use crate::cache::miss::Miss;
use crate::cache::second_tier::{NoticeKind, RecordKind};
use crate::cache::unstorable::Unstorable;
use crate::catalogue::{Operation, QuotaPolicy, Service};
use crate::fleet::{Fault, LookUpResult, StoreResult, TellResult};
use crate::request::BypassReason;
use crate::seal::Unreadable;
use crate::signing::ring::SignatureRejection;
use crate::sync::Mutex;

/// Copies values from another part of the gateway into metrics. `sources.rs` has these functions.
type Source = Box<dyn Fn(&Metrics) + Send + Sync>;

families! {
    /// The metrics of one gateway.
    pub struct Metrics {
        sources: Mutex<Vec<Source>>,
        pub(super) exemplars: Exemplars,
    }

    condition: IntGaugeVec = "workspace_gateway_condition" ["cause", "severity"],
        "1 while the status page shows this problem with this severity, else 0: whether something is wrong, and what. \
         Anything but 0: the status page has the details and says what to do.";
    in_flight: IntGauge = "workspace_gateway_requests_in_flight" [],
        "Requests whose response has not ended. A rise without more traffic: upstream or clients are slower.";
    connections: IntGauge = "workspace_gateway_connections" [],
        "Open client connections. A steady rise: clients open one connection per request, or do not close connections.";
    connections_ended: IntCounterVec = "workspace_gateway_connections_ended_total" ["cause"]
        { [
            ["header-timeout"], ["keepalive-timeout"], ["write-timeout"], ["half-close"], ["resets"],
            ["close-timeout"], ["handshake"], ["shed"],
        ] },
        "Client connections that the gateway has closed, by cause; with `write-timeout` also single streams in \
         HTTP/2. A rise of `keepalive-timeout`: clients leave connections open. Of `header-timeout`, `write-timeout`, \
         `resets` or `close-timeout`: clients are cut off, broken or hostile. Of `handshake`: clients do not trust \
         the certificate, have no client certificate, or speak plain HTTP on a TLS listener. Of `shed`: \
         limits.max_connections, file descriptors or limits.memory are used up.";
    certificate_not_after: IntGauge = "workspace_gateway_tls_certificate_not_after_seconds" [],
        "When the certificate in listen.cert_file expires, or a CA certificate in that file if that is earlier, as \
         Unix time in seconds; 0 without TLS, -1 if it cannot be read. Near the present or in the past: renew the \
         certificate.";
    accept_pauses: IntCounter = "workspace_gateway_accept_pauses_total" [],
        "Client connections that arrived while limits.max_connections were open, and had to wait until another one was \
         closed. A rise: clients open one connection per request or do not close connections, or there is a flood.";
    accept_errors: IntCounterVec = "workspace_gateway_accept_errors_total" ["listener"]
        { [["proxy"], ["metrics"], ["admin"]] },
        "Connections that could not be accepted, by listener. A rise: this process or its host has no file descriptor \
         or no memory left; the log says which.";
    requests: IntCounterVec = "workspace_gateway_requests_total" ["operation", "result", "status"],
        "Requests that have ended, by operation, result and status. More `hit` and `coalesced`: the gateway saves \
         calls. More `miss`: new cache keys, new callers, or evicted entries. More `stale` or `backoff`: upstream \
         fails or throttles. More `stale-if-slow`: upstream is slow. More `revalidating`: stale responses are served \
         while they are refreshed. More `negative`: upstream answers 400, 404 or 405. More `denied`: a client repeats \
         requests with a refused credential. More `bypass`: see workspace_gateway_bypasses_total. More `aborted`: \
         clients disconnect before the response.";
    durations: HistogramVec = "workspace_gateway_request_duration_seconds" ["operation", "result"],
        "From the head of a request to the end of its response, in seconds. A rise of `hit`: this machine is short of \
         CPU. A rise of `miss`: upstream is slower.";
    fast_path_hits: IntCounter = "workspace_gateway_fast_path_hits_total" [],
        "Hits on the fast path: requests whose head is the same as an earlier one, but for a trace, a request id, a \
         signature and its date, or If-None-Match, so that it is not interpreted again. \
         workspace_gateway_requests_total counts them, too. A rise: clients repeat their requests. Far fewer than all \
         hits: clients put something else that is new into each request, or listen.fast_path is false.";
    bypasses: IntCounterVec = "workspace_gateway_bypasses_total" ["operation", "reason"],
        "Requests for an operation that were relayed unchanged, by reason. A rise: clients send requests that \
         cannot be answered from memory.";
    misses: IntCounterVec = "workspace_gateway_misses_total" ["operation", "reason"],
        "Requests for an operation that could not be answered from memory at once, by reason. Requests that wait for \
         another request's call count, too. A rise of `no-entry`: new cache keys, or evicted entries. Of `expired`: a \
         short cache.ttl. Of `no-grant` or `grant-lapsed`: new credentials, or a short grants.grant_ttl. Of \
         `needs-confirmation`: unsafe methods. Of `private` or `uncacheable`: upstream's responses have changed. Of \
         the others: clients send cache directives.";
    unstored: IntCounterVec = "workspace_gateway_unstored_responses_total" ["reason"] { each::<Unstorable>() },
        "Responses that were passed on and not stored, by reason. A rise of `status`: upstream fails. Of `denied`: \
         credentials are refused. Of `late`, `outdated`, `purged` or `invalidated`: something changed while the call \
         was in flight. Of `memory`: the memory budget is used up. Of another: upstream's responses have changed.";
    proofs: IntCounterVec = "workspace_gateway_proofs_total" ["result"] { each::<Proof>() },
        "Calls that proved a caller. `granted`: the caller had no grant; a rise: new credentials, or grants that \
         lapse between requests. `renewed`: the caller had a grant. `late`: the caller was denied after the call was \
         sent, so that the proof does not count.";
    renewals: IntCounterVec = "workspace_gateway_renewals_total" ["result"] { each::<RenewalResult>() },
        "Calls that were made to renew a grant before its end, so that its caller does not wait. A rise of `failed`: \
         upstream fails or refuses credentials while clients are still answered from memory.";
    keep_warm_calls: IntCounterVec = "workspace_gateway_keep_warm_calls_total" ["result"] { each::<KeepWarmResult>() },
        "Calls that the gateway made without a request, for [[keep_warm]]. `workspace-gateway check` prints how many to \
         expect. A rise of `failed`: upstream fails, or does not answer a configured request with a product list. Of \
         `refused`: upstream refuses a configured access key, or the key has no permission in a project.";
    keep_warm_stopped_keys: IntGauge = "workspace_gateway_keep_warm_stopped_keys" [],
        "Access keys with which the gateway keeps nothing warm, because upstream refused a call ([[keep_warm]]): one of \
         its own, or the signature of a client's. Anything but 0: correct the key or its projects. It begins again when \
         upstream accepts the key for a client.";
    denials: IntCounterVec = "workspace_gateway_denials_total" ["source"] { [["upstream"], ["memory"]] },
        "Refused credentials. `upstream`: upstream answered 401 or 403; a rise: expired or revoked credentials are in \
         use. `memory`: the gateway repeated that response without a call; a rise: a client keeps sending a refused \
         credential.";
    signatures: IntCounterVec = "workspace_gateway_signatures_total" ["result"]
        { [["verified"], ["unknown-key"], ["signature-bound-here"]].into_iter().chain(each::<SignatureRejection>()) },
        "Requests that are signed with an access key and have no token, by the result of the signature check. More \
         `unknown-key` or `signature-bound-here`: keys are in use that are not configured. More `key-suspended`: \
         upstream refuses a configured key. More of the others: a client has a wrong secret or a wrong clock.";
    elections: IntCounter = "workspace_gateway_elections_total" [],
        "New leaders of a shared upstream call, after upstream refused or throttled the previous leader. A rise: \
         credentials expire or are revoked while they have a grant.";
    additional_calls: IntCounterVec = "workspace_gateway_additional_calls_total" ["reason"] { [["slow"], ["failed"]] },
        "Further calls for a cache key, with another caller's credential, while upstream answered other product \
         lists. `slow`: the calls in flight were slow. `failed`: the previous call was answered with a 5xx. A rise: \
         upstream is slow or fails for some callers only.";
    refreshes: IntCounter = "workspace_gateway_refreshes_total" [],
        "Stale responses that were served at once and refreshed in the background. A rise: more cache keys are \
         requested less often than every cache.ttl.";
    backoffs: IntCounterVec = "workspace_gateway_backoffs_total" ["cause"] { each::<BackoffCause>() },
        "Failed calls after which the gateway backs off: for a while it serves stale responses without calling \
         upstream. `failure`: no response, or a 5xx. `throttled`: 429; a rise: the quota is used up. `unavailable`: \
         503 with Retry-After.";
    fetches: IntCounterVec = "workspace_gateway_fetches_total" ["operation"],
        "Calls to upstream for an operation: to fill the cache, to refresh a stale response, and for callers without \
         a grant; requests that are relayed unchanged do not count. Requests answered minus these are the upstream \
         calls saved. A rise: new cache keys or callers, evicted entries, or responses that cannot be stored.";
    upstream_requests: IntCounterVec = "workspace_gateway_upstream_requests_total" ["service", "status"]
        // An alert needs the rate of the first of these.
        { Service::ALL.map(|service| [service.as_str(), "local"]) },
        "Calls to upstream by service, and by status or kind of failure. A rise of 429: the quota is used up. A rise \
         of `connect`, `tls`, `first-byte`, `timeout`, `idle` or `broken`: upstream or the network fails. Of `local`: \
         the cause is this gateway, its host or its settings. Of `abandoned`: clients disconnect while their requests \
         are relayed.";
    upstream_durations: HistogramVec = "workspace_gateway_upstream_duration_seconds" ["service"]
        { Service::ALL.map(|service| [service.as_str()]) },
        "From sending a call to upstream to the end of its response (of relayed requests: to its head), in seconds. \
         A rise: upstream is slower.";
    upstream_in_flight: IntGaugeVec = "workspace_gateway_upstream_requests_in_flight" ["service"]
        { Service::ALL.map(|service| [service.as_str()]) },
        "Calls to upstream that have no response yet. A rise: upstream is slower, or requests have more different \
         cache keys.";
    upstream_retries: IntCounterVec = "workspace_gateway_upstream_retries_total" ["service"]
        { Service::ALL.map(|service| [service.as_str()]) },
        "Calls that were repeated because the connection closed before there was a response. A rise: upstream, or \
         something on the way to it, closes connections that are in use.";
    upstream_calls: IntGaugeVec = "workspace_gateway_upstream_calls" ["service", "kind"],
        "Calls to upstream that have a call slot. Those of kind `relay` have it until the body of their response \
         ends. Near upstream.max_calls, further calls are queued.";
    upstream_calls_queued: IntGaugeVec = "workspace_gateway_upstream_calls_queued" ["service", "kind"],
        "Calls to upstream that wait for a call slot or for a quota. A rise: upstream is slower, one caller makes more \
         than upstream.max_calls_per_caller calls at a time, callers without a proof make more than half of \
         upstream.max_calls, or a quota is used up (workspace_gateway_quota_waiting).";
    upstream_calls_by_class: IntGaugeVec = "workspace_gateway_upstream_calls_by_class" ["kind", "class"],
        "Calls to upstream that have a call slot, by the class of their caller: `proved`, `relayed` (upstream \
         answered a relayed request successfully) or `unknown`, or `half-closed` if the client has closed its \
         sending side, or `keep-warm` if the gateway itself makes the call. A rise of `unknown`: invented or expired tokens, or requests without a credential.";
    upstream_calls_queued_by_class: IntGaugeVec = "workspace_gateway_upstream_calls_queued_by_class" ["kind", "class"],
        "Calls to upstream that wait for a call slot or for a quota, by the class of their caller. A rise of `proved`: \
         upstream.max_calls is too low, upstream is too slow, or a quota is too small, for the number of callers.";
    entries: IntGauge = "workspace_gateway_entries" [],
        "Entries in the cache, fresh or stale. A rise: more different cache keys.";
    entries_bytes: IntGauge = "workspace_gateway_entries_bytes" [],
        "Bytes that entries take, estimated. Near cache.max_size, entries are evicted.";
    evictions: IntCounterVec = "workspace_gateway_evictions_total" ["cause"] { [["size"], ["expired"]] },
        "Entries that were removed. A rise of `size`: cache.max_size is too small for the requests. Of `expired`: the \
         entries expired long ago, and no client requested them again.";
    uncacheable_keys: IntGauge = "workspace_gateway_uncacheable_keys" [],
        "Cache keys whose responses could not be stored lately, so that requests are not coalesced. A rise: see \
         workspace_gateway_unstored_responses_total.";
    private_scopes: IntGauge = "workspace_gateway_private_scopes" [],
        "Operations in a project in which nothing is shared, because callers got different responses to the same \
         request. An operation that is private in all projects counts once. Anything but 0: find out why, or set \
         sharing = \"caller\" for the operation.";
    grants: IntGauge = "workspace_gateway_grants" [],
        "Callers that may be answered from memory, each in one operation and project. Counted in steps: grants that \
         are used or made at that moment may be counted twice or not at all. Near half of grants.max_grants, the \
         least recently used grants may be dropped, and their callers need a new proof.";
    coalesced_waiters: IntGauge = "workspace_gateway_coalesced_waiters" [],
        "Requests that wait for a call that another request began. A rise: many clients send the same request at the \
         same time, and upstream gets one call.";
    bypassing: IntGauge = "workspace_gateway_bypassing" [],
        "1 while the cache is switched off (mode = bypass), else 0. A rise: an operator has switched it off, and \
         nothing is answered from memory until it is switched on again.";
    quota_calls: GaugeVec = "workspace_gateway_quota_calls" ["service", "policy"],
        "The calls that upstream accepts in a window, by the policy of the limit; of several limits, that with the \
         fewest calls left. NaN: no limit is known. A rise: upstream has raised it; the `quota` event says which one.";
    quota_remaining: GaugeVec = "workspace_gateway_quota_remaining" ["service", "policy"],
        "The calls that may be sent now of the limit of workspace_gateway_quota_calls. Near 0: calls wait, and requests \
         may get a 429.";
    quota_refusals: IntCounterVec = "workspace_gateway_quota_refusals_total" ["policy", "source"]
        { QuotaPolicy::VARIANTS.iter().flat_map(|policy| ["upstream", "gateway"].map(|source| [policy.into_str(), source])) },
        "Calls that a limit prevented. `upstream`: upstream answered 429 and named the policy; a rise: others use the \
         same quota. `gateway`: the gateway did not send the call, because its turn did not come in time; a rise: \
         clients need more calls than the quota allows.";
    snapshot_writes: IntCounterVec = "workspace_gateway_snapshot_writes_total" ["result"]
        { each::<SnapshotResult>() },
        "Attempts to write the file of cache.snapshot, by result. A rise of `failed`: the file system is full, read-only \
         or hangs; the log says which. Of `revoked`: purges, invalidations or denials are frequent. Of `not-owner`: \
         another process uses the same file.";
    fleet_lookups: IntCounterVec = "workspace_gateway_fleet_lookups_total" ["result"] { each::<LookUpResult>() },
        "Look-ups in the engine of fleet.engine, by result; `ticket` if only the right to store was wanted. A rise of \
         `late`, `failed` or `skipped`: the engine is slow or not in use, and requests go on without it.";
    fleet_lookup_durations: HistogramVec = "workspace_gateway_fleet_lookup_seconds" ["result"],
        "How long look-ups in the engine took, in seconds, by result, without those that were skipped. A rise: the engine or the \
         network is slower. None takes much longer than fleet.budget.";
    fleet_stores: IntCounterVec = "workspace_gateway_fleet_stores_total" ["kind", "result"] { pairs::<RecordKind, StoreResult>() },
        "Records for the engine, by kind and result. A rise of `failed`: the engine has no memory left, or lacks a right. Of \
         `too-large`: see fleet.max_body_size.";
    fleet_faults: IntCounterVec = "workspace_gateway_fleet_faults_total" ["cause"] { each::<Fault>() },
        "Faults of the engine, by cause. A rise of `full`: it has no memory left. Of `went-back`: it has lost data, and \
         all of it is void. Of others: links end or cannot be opened, and it is not in use while this goes on.";
    fleet_lost: IntGauge = "workspace_gateway_fleet_lost" [],
        "1 while there is a fleet.engine and it is not in use, else 0. Anything but 0: this gateway works alone.";
    fleet_to_tell: IntGauge = "workspace_gateway_fleet_to_tell" [],
        "Denials, purges, invalidations and private scopes that the engine has not received. Until it has, nothing that they \
         concern is looked up there. Anything but 0 for long: other gateways do not know of them.";
    fleet_in_sync: IntGauge = "workspace_gateway_fleet_in_sync" [],
        "1 while this gateway knows what other gateways have told, else 0. Anything but 1 with a fleet.engine: it does not \
         rely on what others have proved.";
    fleet_sync_age: Gauge = "workspace_gateway_fleet_sync_age_seconds" [],
        "For how long this gateway has not been in sync with the fleet, in seconds. 0 in sync, and without a fleet. A rise: \
         see workspace_gateway_fleet_faults_total.";
    fleet_told: IntCounterVec = "workspace_gateway_fleet_told_total" ["kind", "result"]
        { pairs::<NoticeKind, TellResult>() },
        "Notices for other gateways, by kind and result. A rise of `failed`: the engine has no memory left, or lacks a \
         right. Of `stranger`: unknown credentials are refused, which concerns no other gateway.";
    fleet_missed: IntCounter = "workspace_gateway_fleet_missed_total" [],
        "How often notices of other gateways were lost. Each time all entries are removed and all grants count as lapsed. \
         A rise: the engine evicts its keys, or another release or program writes there.";
    fleet_claims: IntCounterVec = "workspace_gateway_fleet_claims_total" ["result"] { each::<ClaimResult>() },
        "Calls that the gateways of a fleet make for each other, by what became of them here. A rise of \
         `took-over`: gateways stop or hang during calls. Of `alone`: the engine is not in use.";
    unreadable_records: IntCounterVec = "workspace_gateway_unreadable_records_total" ["reason"]
        { each::<Unreadable>() },
        "Records of a snapshot or of a second tier that could not be opened, by reason. A rise of `damaged`: somebody \
         else writes there. Of `secret` or `version`: they are from a gateway with another secret or release. Of \
         `too-large`: cache.max_body_size was lowered.";
    quota_wait: HistogramVec = "workspace_gateway_quota_wait_seconds" ["policy"] { each::<QuotaPolicy>() },
        "How long limits have held back calls for which a client waits, in seconds, by the policy of the last limit. \
         Calls that were not held back do not count, and neither does the wait for a call slot. A rise: clients need \
         more calls than the quota allows.";
    quota_waiting: IntGaugeVec = "workspace_gateway_quota_waiting" ["service", "policy"],
        "Calls that a limit holds back now, with those for which no client waits. A rise: more calls are needed than \
         the quota allows.";
    stale_answers_ratio: GaugeVec = "workspace_gateway_stale_answers_ratio" ["operation"],
        "The share of the answers from memory in the last hour that differed from what upstream would have said, from \
         0 to 1. NaN while there is too little evidence. A rise: the lists change more often, or cache.ttl is longer.";
    stale_answers_ratio_lower: GaugeVec = "workspace_gateway_stale_answers_ratio_lower" ["operation"],
        "The lower end of the 95% interval of workspace_gateway_stale_answers_ratio. A rise above what you accept: \
         choose a shorter cache.ttl.";
    stale_answers_ratio_upper: GaugeVec = "workspace_gateway_stale_answers_ratio_upper" ["operation"],
        "The upper end of the 95% interval of workspace_gateway_stale_answers_ratio. A rise without one of the lower \
         end: there are fewer calls to upstream, so that less is known.";
    changes_per_hour: GaugeVec = "workspace_gateway_changes_per_hour" ["operation"],
        "How often a list changes, averaged over about a week and over the projects by their recent answers. NaN in \
         the first hour and while there is too little evidence. A rise: upstream changes its lists more often.";
    ttl_seconds: GaugeVec = "workspace_gateway_ttl_seconds" ["operation"],
        "How long responses stay fresh if upstream says nothing else, before ttl_jitter. It is cache.ttl, or chosen \
         for each project by the share of stale answers: then this is its mean over recent answers, and /status has \
         that of each project. A rise: lists change less often.";
    memory_budget_bytes: IntGauge = "workspace_gateway_memory_budget_bytes" [],
        "Bytes that the gateway may hold for clients, without the cache: limits.memory, or a default from the memory \
         limit of its cgroup. A rise: the settings have changed.";
    memory_used_bytes: IntGaugeVec = "workspace_gateway_memory_used_bytes" ["purpose"],
        "Bytes of the memory budget that are in use, by purpose. Near workspace_gateway_memory_budget_bytes, \
         connections are closed and requests are refused.";
    memory_refusals: IntCounter = "workspace_gateway_memory_refusals_total" [],
        "Times that the memory budget had no room. A rise: clients send, or leave unread, more than the gateway may \
         hold; see workspace_gateway_memory_used_bytes for the purpose.";
    log_lines_dropped: IntCounter = "workspace_gateway_log_lines_dropped_total" [],
        "Log lines that were dropped. A rise: the reader of the log is too slow or has stopped, the disk is full, or \
         the pipe is closed.";
    reloads: IntCounterVec = "workspace_gateway_reloads_total" ["result"] { each::<Reload>() },
        "Configuration reloads, on a signal or because a file had changed. A rise of `refused`: there is a mistake in \
         the configuration, the log names it, and the previous settings stay in force.";
    last_reload_successful: IntGauge = "workspace_gateway_last_reload_successful" [],
        "1 if the configuration that was read last is valid, else 0. Anything but 1: there is a mistake in the \
         configuration, and a restart would end with exit status 2.";
    otlp_spans: IntCounterVec = "workspace_gateway_otlp_spans_total" ["result"],
        "Spans for OpenTelemetry. A rise of `queue-full`: the receiver is slow, or otlp.max_queue or otlp.sampling_rate do \
         not fit the number of requests. Of `failed`: see workspace_gateway_otlp_exports_total.";
    otlp_exports: IntCounterVec = "workspace_gateway_otlp_exports_total" ["signal", "result"],
        "Exports of `traces` and `metrics` to OpenTelemetry. A rise of anything but `exported`: the receiver cannot be \
         reached, hangs or refuses them; the event otlp-failed says why.";
    build_info: IntGaugeVec = "workspace_gateway_build_info" ["version"],
        "Always 1; the label is the version that is running.";
}

impl Metrics {
    /// # Errors
    /// If two families have the same name.
    pub fn new() -> prometheus::Result<Arc<Self>> {
        let metrics = Self::register_all()?;
        metrics.build_info.with_label_values(&[env!("CARGO_PKG_VERSION")]).set(1);
        metrics.last_reload_successful.set(1);
        // Memory, CPU seconds, descriptors and threads of this process, from /proc.
        #[cfg(target_os = "linux")]
        metrics.registry.register(Box::new(prometheus::process_collector::ProcessCollector::for_self()))?;
        Ok(Arc::new(metrics))
    }

    /// Creates the series for the fetches, misses and bypasses of these operations, with the value zero.
    pub fn start_operations(&self, operations: &[Arc<Operation>]) {
        for name in operations.iter().map(|operation| &*operation.name) {
            start_at_zero(&self.fetches, [[name]]);
            start_at_zero(&self.misses, Miss::VARIANTS.iter().map(|miss| [name, miss.into_str()]));
            start_at_zero(&self.bypasses, BypassReason::VARIANTS.iter().map(|reason| [name, reason.into_str()]));
        }
    }

    /// Counts a request for an operation that is relayed unchanged.
    pub fn bypass(&self, operation: &str, reason: BypassReason) {
        self.bypasses.with_label_values(&[operation, reason.into_str()]).inc();
    }

    /// Counts a request that is signed and has no token, by the result of the signature check.
    pub fn signature(&self, result: &'static str) {
        self.signatures.with_label_values(&[result]).inc();
    }
    /// Counts a call for an operation. A relayed request is no such call.
    pub fn fetch(&self, operation: &Operation) {
        self.fetches.with_label_values(&[&*operation.name]).inc();
    }

    /// Counts a response that is passed on and not stored.
    pub fn unstored(&self, reason: Unstorable) {
        self.unstored.with_label_values(&[reason.into_str()]).inc();
    }

    /// Counts a call that proved a caller.
    pub fn proof(&self, proof: Proof) {
        self.proofs.with_label_values(&[proof.into_str()]).inc();
    }

    /// Counts a call that a limit has prevented. `source`: who refused it.
    pub(crate) fn quota_refused(&self, policy: QuotaPolicy, source: &'static str) {
        self.quota_refusals.with_label_values(&[policy.into_str(), source]).inc();
    }

    /// Counts an attempt to write the snapshot.
    pub(crate) fn snapshot(&self, result: SnapshotResult) {
        self.snapshot_writes.with_label_values(&[result.into_str()]).inc();
    }

    /// Counts a record that could not be opened.
    pub(crate) fn unreadable_record(&self, reason: Unreadable) {
        self.unreadable_records.with_label_values(&[reason.into_str()]).inc();
    }

    /// Records how long limits have held back each call for which a client waits.
    pub(crate) fn quota_wait_recorder(&self) -> impl Fn(QuotaPolicy, Duration) + Send + Sync + 'static {
        let waits = self.quota_wait.clone();
        move |policy, time| waits.with_label_values(&[policy.into_str()]).observe(time.as_secs_f64())
    }

    /// Counts a call that was made to renew a grant.
    pub fn renewal(&self, result: RenewalResult) {
        self.renewals.with_label_values(&[result.into_str()]).inc();
    }

    /// Counts a call of keep warm.
    pub fn kept_warm(&self, result: KeepWarmResult) {
        self.keep_warm_calls.with_label_values(&[result.into_str()]).inc();
    }

    /// Counts a failed call after which the gateway backs off.
    pub fn backoff(&self, cause: BackoffCause) {
        self.backoffs.with_label_values(&[cause.into_str()]).inc();
    }

    /// Counts a refused credential. `source` is `upstream`, or `memory` if the gateway repeated a refusal.
    pub fn denial(&self, source: &'static str) {
        self.denials.with_label_values(&[source]).inc();
    }

    /// Counts removed entries, by cause.
    pub fn eviction_counter(&self) -> impl Fn(&'static str) + Send + Sync + 'static {
        let evictions = self.evictions.clone();
        move |cause| evictions.with_label_values(&[cause]).inc()
    }

    /// Counts calls that are retried.
    pub fn retry_counter(&self) -> impl Fn(Service) + Send + Sync + 'static {
        let retries = self.upstream_retries.clone();
        move |service| retries.with_label_values(&[service.as_str()]).inc()
    }

    /// Updates the metrics whose values are in other parts of the gateway.
    pub fn refresh(&self) {
        // One thread at a time: two would add the same difference to a counter.
        self.sources.lock().iter().for_each(|source| source(self));
    }

    /// Adds a function that [`Self::refresh`] calls.
    pub(super) fn add_source(&self, source: impl Fn(&Self) + Send + Sync + 'static) {
        self.sources.lock().push(Box::new(source));
    }

    pub fn reload(&self, result: Reload) {
        self.reloads.with_label_values(&[result.into_str()]).inc();
        self.last_reload_successful.set(i64::from(result != Reload::Refused));
    }

    /// All metrics in Prometheus' text format.
    ///
    /// # Errors
    /// If a family cannot be written, which would be a mistake in this file.
    pub fn encode(&self) -> prometheus::Result<String> {
        TextEncoder::new().encode_to_string(&self.gather())
    }

    /// All series at present.
    pub(crate) fn gather(&self) -> Vec<MetricFamily> {
        self.refresh();
        self.registry.gather()
    }
}
