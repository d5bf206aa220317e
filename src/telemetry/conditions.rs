//! What is wrong now, for the operator. This is the only place that decides it: the status page, `/status`, the
//! metric `workspace_gateway_condition` and the log show it.
//! Pure: the time and all facts are arguments.

use std::cmp::Reverse;
use std::time::{Duration, Instant, SystemTime};

use strum::{IntoStaticStr, VariantArray};

use super::health::Health;
use super::history::Recent;
use crate::catalogue::Service;
use crate::upstream::Failure;
use crate::upstream::quota::LimitState;

/// What can be wrong. The worst come first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, IntoStaticStr, VariantArray)]
#[strum(const_into_str, serialize_all = "kebab-case")]
pub enum Cause {
    /// No call to a service has succeeded since the start.
    UpstreamNeverAnswered,
    /// The latest call to a service has failed.
    UpstreamFailing,
    /// Calls fail in the gateway or its host.
    LocalFailures,
    /// A service has refused every credential since the start.
    NothingAccepted,
    /// Access keys are not used, because upstream refuses them.
    KeySuspended,
    /// The certificate of the listener for clients has ended.
    CertificateEnded,
    /// The memory budget has no room for unknown callers.
    MemoryReached,
    /// Clients get responses with a 5xx.
    Errors,
    /// The cache is switched off.
    Bypassed,
    /// Upstream limits calls.
    Throttled,
    /// The configuration that was read last has a mistake.
    ReloadRefused,
    /// The engine that gateways share is not in use.
    FleetLost,
    /// This gateway does not know what the others have told.
    FleetOutOfSync,
    /// The certificate of the listener for clients ends soon, or its end is unknown.
    CertificateEnds,
    /// A client repeats a refused credential.
    DenialsRepeated,
    /// Keep warm does not use an access key.
    KeepWarmStopped,
    /// Nothing is shared somewhere.
    PrivateScopes,
    /// Entries are evicted because the cache is full.
    CacheFull,
    /// Lines of the log are dropped, or will be soon.
    LogStalled,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, IntoStaticStr, VariantArray)]
#[strum(const_into_str, serialize_all = "kebab-case")]
pub enum Severity {
    Warning,
    Critical,
}

#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Condition {
    pub cause: Cause,
    pub severity: Severity,
    /// If it concerns one service.
    pub service: Option<Service>,
    /// A sentence without its full stop.
    pub what: String,
    /// What to do.
    pub advice: &'static str,
    /// `None` if only [`super::condition_tracker`] knows it.
    pub since: Option<Instant>,
    /// How long until it ends by itself, or until something happens.
    pub until: Option<Duration>,
}

/// What the decision depends on.
pub(crate) struct ConditionFacts {
    pub now: Instant,
    pub date: SystemTime,
    pub services: Vec<ServiceFacts>,
    pub is_bypassing: bool,
    pub is_memory_reached: bool,
    pub fleet: Option<FleetFacts>,
    /// As in the metric: Unix time in seconds, 0 without TLS, -1 if it cannot be read.
    pub certificate_not_after: i64,
    /// When the latest configuration was refused, and why.
    pub refused_reload: Option<(Instant, String)>,
    /// How many lines of the log were dropped, if its reader stalls.
    pub stalled_log: Option<u64>,
    pub last_minute: Recent,
    pub last_five_minutes: Recent,
    /// The ids of access keys that are not used, because upstream refuses them.
    pub suspended_keys: Vec<String>,
    pub keep_warm_stopped_keys: u64,
    pub private_scopes: usize,
}

pub(crate) struct ServiceFacts {
    pub service: Service,
    pub origin: String,
    pub health: Option<Health>,
    /// Why the latest call without a response has failed.
    pub error: Option<String>,
    /// The latest failure in the gateway itself.
    pub local_failure: Option<(Instant, String)>,
    /// How many calls upstream has accepted, and refused with 401 or 403, and how many have failed because of it: with a 5xx
    /// or without a complete response.
    pub accepted: u64,
    pub refused: u64,
    pub failed: u64,
    pub limits: Vec<LimitState>,
    /// When upstream last throttled a call.
    pub throttled: Option<Instant>,
}

pub(crate) struct FleetFacts {
    /// The state of the engine, in words.
    pub state: &'static str,
    pub is_lost: bool,
    pub is_in_sync: bool,
    pub sync_age: Duration,
}

/// For how long a single throttled call or local failure counts.
const REMEMBERED: Duration = Duration::from_secs(60);

/// A limit that is used up for a shorter time only spreads calls.
const SHORTEST_WAIT: Duration = Duration::from_secs(1);

/// A certificate that ends within this time has to be renewed.
const RENEWAL: Duration = Duration::from_secs(14 * 24 * 60 * 60);

/// So many refused calls, without an accepted one, are no client's mistake alone.
const MANY_REFUSALS: u64 = 5;

/// So many failed calls, without any other, are no accident.
const MANY_FAILURES: u64 = 3;

/// So many repeated refusals in a minute come from a client that does not stop.
const MANY_REPETITIONS: u64 = 10;

/// Fewer responses with a 5xx in a minute are no condition.
const MANY_ERRORS: u64 = 3;

impl ServiceFacts {
    fn name(&self) -> &'static str {
        self.service.as_str()
    }
}

impl Condition {
    pub(crate) fn id(&self) -> (Cause, Option<Service>) {
        (self.cause, self.service)
    }

    fn new(cause: Cause, severity: Severity, what: String, advice: &'static str) -> Self {
        Self { cause, severity, service: None, what, advice, since: None, until: None }
    }

    fn critical(cause: Cause, what: String, advice: &'static str) -> Self {
        Self::new(cause, Severity::Critical, what, advice)
    }

    fn warning(cause: Cause, what: String, advice: &'static str) -> Self {
        Self::new(cause, Severity::Warning, what, advice)
    }

    fn of(self, service: Service) -> Self {
        Self { service: Some(service), ..self }
    }

    fn since(self, since: Instant) -> Self {
        Self { since: Some(since), ..self }
    }

    fn until(self, until: Duration) -> Self {
        Self { until: Some(until), ..self }
    }
}

/// All that is wrong, the worst first. Empty if nothing is.
pub(crate) fn conditions(facts: &ConditionFacts) -> Vec<Condition> {
    let mut found: Vec<Condition> = facts.services.iter().flat_map(|service| of_service(service, facts.now)).collect();
    found.extend(of_clients(facts));
    found.extend(of_operation(facts));
    found.extend(facts.fleet.as_ref().and_then(|fleet| of_fleet(fleet, facts.now)));
    found.extend(of_certificate(facts.certificate_not_after, facts.date));
    found.sort_by_key(|condition| (Reverse(condition.severity), condition.cause));
    found
}

fn of_service(service: &ServiceFacts, now: Instant) -> Vec<Condition> {
    let (name, origin) = (service.name(), &service.origin);
    let mut found = Vec::new();
    if let Some(health) = service.health.filter(|health| health.is_failing) {
        let is_status = |failure: &&str| failure.starts_with('5');
        let why = match (health.last_failure.filter(is_status), &service.error) {
            (Some(status), _) => format!("it answers {status}"),
            (None, Some(error)) => error.clone(),
            (None, None) => health.last_failure.unwrap_or("the call has failed").to_owned(),
        };
        let condition = if health.last_answer.is_none() {
            never_answered(service, &why)
        } else {
            let (calls, have) = if health.failures == 1 { ("call", "has") } else { ("calls", "have") };
            let what = format!("{name} is failing: {why}; {} {calls} {have} failed", health.failures);
            let advice = "Callers with a grant get stale responses. See the status of the service, and the log";
            // The next call may succeed.
            let severity = if health.failures == 1 { Severity::Warning } else { Severity::Critical };
            Condition::new(Cause::UpstreamFailing, severity, what, advice)
        };
        found.push(condition.of(service.service).since(health.since));
    } else if service.accepted + service.refused == 0 && service.failed >= MANY_FAILURES {
        // The health of a service counts only calls of proved callers, and those without a connection.
        found.push(never_answered(service, &format!("{} calls have failed", service.failed)).of(service.service));
    }
    if let Some((at, error)) = &service.local_failure
        && now.saturating_duration_since(*at) < REMEMBERED
    {
        let what = format!("calls to {name} fail in the gateway itself: {error}");
        let advice = "Correct what the error names: files, file descriptors, memory or permissions";
        found.push(Condition::critical(Cause::LocalFailures, what, advice).of(service.service));
    }
    if service.accepted == 0 && service.refused >= MANY_REFUSALS {
        let what = format!("{name} ({origin}) has refused all {} calls since the start (401 or 403)", service.refused);
        let advice = "Check that the region is that of the tokens, and the clock of this machine";
        found.push(Condition::critical(Cause::NothingAccepted, what, advice).of(service.service));
    }
    found.extend(throttled(service, now));
    found
}

fn never_answered(service: &ServiceFacts, why: &str) -> Condition {
    let (name, origin) = (service.name(), &service.origin);
    let what = format!("no call to {name} ({origin}) has succeeded since the start: {why}");
    let has_tls_failed = service.health.is_some_and(|health| health.last_failure == Some(Failure::Tls.into_str()));
    let advice = match has_tls_failed {
        // The error says what to do.
        true => "Try: workspace-gateway check --probe, which shows the certificates",
        false => "Check region, upstream.workspace_url and upstream.appstream_url: workspace-gateway check --probe",
    };
    Condition::critical(Cause::UpstreamNeverAnswered, what, advice)
}

fn throttled(service: &ServiceFacts, now: Instant) -> Vec<Condition> {
    const ADVICE: &str = "Requests wait, or get a 429 or stale responses. Raise cache.ttl, or have the quota raised";
    let name = service.name();
    let used_up = service.limits.iter().filter(|limit| limit.remaining == 0 && limit.free_in >= SHORTEST_WAIT);
    let by_limit = used_up.map(|limit| {
        let of = limit.operation.as_ref().map(|operation| format!(" of {operation}")).unwrap_or_default();
        let what = format!("{name} limits calls: policy {}{of}, {} is used up", limit.policy.into_str(), limit.quota);
        Condition::warning(Cause::Throttled, what, ADVICE).of(service.service).until(limit.free_in)
    });
    let found: Vec<Condition> = by_limit.collect();
    match service.throttled.filter(|at| found.is_empty() && now.saturating_duration_since(*at) < REMEMBERED) {
        None => found,
        Some(_) => {
            let what =
                format!("{name} throttles calls (429, or 503 with Retry-After), or has done so in the last minute");
            vec![Condition::warning(Cause::Throttled, what, ADVICE).of(service.service)]
        }
    }
}

/// What clients do, or notice.
fn of_clients(facts: &ConditionFacts) -> Vec<Condition> {
    let mut found = Vec::new();
    let Recent { requests, errors, repeated_denials, .. } = facts.last_minute;
    if errors >= MANY_ERRORS {
        let severity = if errors * 10 >= requests { Severity::Critical } else { Severity::Warning };
        let what = format!("{errors} of {requests} responses in the last minute were errors (5xx)");
        let advice = "The access log names them: result, detail and failure";
        found.push(Condition::new(Cause::Errors, severity, what, advice));
    }
    if repeated_denials >= MANY_REPETITIONS {
        let what = format!(
            "a client repeats a credential that upstream has refused: {repeated_denials} requests in the last minute"
        );
        let advice = "Find the client in Callers by id or in the access log (result=denied), and renew its credential";
        found.push(Condition::warning(Cause::DenialsRepeated, what, advice));
    }
    if facts.is_memory_reached {
        let what = "the memory budget is reached (limits.memory): connections are closed and requests are refused";
        let advice = "Find the purpose and the client that use it, or raise limits.memory";
        found.push(Condition::critical(Cause::MemoryReached, what.to_owned(), advice));
    }
    found
}

/// What the operator has done, or has to do.
fn of_operation(facts: &ConditionFacts) -> Vec<Condition> {
    let mut found = Vec::new();
    if facts.is_bypassing {
        let what = "the cache is switched off (mode = bypass): every request is relayed, and nothing is stored";
        found.push(Condition::warning(Cause::Bypassed, what.to_owned(), "Switch it on again: PUT cache to /mode"));
    }
    if let Some((at, error)) = &facts.refused_reload {
        let what = format!("the configuration has a mistake, and the previous one stays in force: {error}");
        let advice = "Correct it: a restart would end with exit code 2";
        found.push(Condition::warning(Cause::ReloadRefused, what, advice).since(*at));
    }
    if !facts.suspended_keys.is_empty() {
        let keys = facts.suspended_keys.join(", ");
        let what = format!("access keys are suspended, because upstream refuses their signatures: {keys}");
        let advice = "Check their secrets and the clock of this machine. SIGHUP gives each one more try";
        found.push(Condition::critical(Cause::KeySuspended, what, advice));
    }
    if facts.keep_warm_stopped_keys > 0 {
        let keys = facts.keep_warm_stopped_keys;
        let what = format!("keep warm does not use {keys} access key(s), because upstream has refused a call");
        let advice = "Correct the secret, the role or keep_warm.projects";
        found.push(Condition::warning(Cause::KeepWarmStopped, what, advice));
    }
    if facts.private_scopes > 0 {
        let scopes = facts.private_scopes;
        let what = format!("nothing is shared in {scopes} scope(s), because callers got different responses");
        let advice = "If intended, set sharing = \"caller\" for the operation; if not, purge it";
        found.push(Condition::warning(Cause::PrivateScopes, what, advice));
    }
    if facts.last_five_minutes.evictions > 0 {
        let evictions = facts.last_five_minutes.evictions;
        let what = format!("the cache is full: {evictions} entries were evicted in the last five minutes");
        found.push(Condition::warning(Cause::CacheFull, what, "Raise cache.max_size"));
    }
    if let Some(dropped) = facts.stalled_log {
        let lines = match dropped {
            0 => "lines wait to be written, and will be dropped soon".to_owned(),
            _ => format!("{dropped} lines were dropped so far"),
        };
        let what = format!("the reader of the log has stopped or is too slow: {lines}");
        let advice = "See what reads the log of this process, and whether its disk is full";
        found.push(Condition::warning(Cause::LogStalled, what, advice));
    }
    found
}

fn of_fleet(fleet: &FleetFacts, now: Instant) -> Option<Condition> {
    if fleet.is_lost {
        let what = format!("the engine of the fleet is not in use, and this gateway works alone: {}", fleet.state);
        let advice = "The event fleet-lost in the log has the error. Try: workspace-gateway check --fleet";
        return Some(Condition::warning(Cause::FleetLost, what, advice));
    }
    (!fleet.is_in_sync).then(|| {
        let what = "this gateway does not know what the others of its fleet have told";
        let advice = "Callers that only other gateways have proved are proved here again";
        let condition = Condition::warning(Cause::FleetOutOfSync, what.to_owned(), advice);
        Condition { since: now.checked_sub(fleet.sync_age), ..condition }
    })
}

fn of_certificate(not_after: i64, date: SystemTime) -> Option<Condition> {
    const ADVICE: &str = "Renew listen.cert_file. It is read again within seconds";
    let Ok(seconds) = u64::try_from(not_after) else {
        let what = "the end of the certificate for clients (listen.cert_file) cannot be read";
        return Some(Condition::warning(Cause::CertificateEnds, what.to_owned(), ADVICE));
    };
    let end = SystemTime::UNIX_EPOCH.checked_add(Duration::from_secs(seconds)).filter(|_| seconds > 0)?;
    let shown = humantime::format_rfc3339_seconds(end);
    match end.duration_since(date) {
        Err(_) => {
            let what = format!("the certificate for clients (listen.cert_file) ended on {shown}: clients refuse it");
            Some(Condition::critical(Cause::CertificateEnded, what, ADVICE))
        }
        Ok(left) if left < RENEWAL => {
            let what = format!("the certificate for clients (listen.cert_file) ends on {shown}");
            Some(Condition::warning(Cause::CertificateEnds, what, ADVICE).until(left))
        }
        Ok(_) => None,
    }
}

#[cfg(test)]
mod tests;
