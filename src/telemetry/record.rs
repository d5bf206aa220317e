//! One record per request. It begins when the head of the request has arrived and is filled in along the path. When it
//! is dropped, at the end of the response's body or when the client disconnects, the request is counted and logged
//! once.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use http::header::USER_AGENT;
use http::request::Parts;
use http::{HeaderMap, HeaderValue, Method, StatusCode};
use tokio::time::Instant;
use tracing::Level;

use super::hit_series::HitSeries;
use super::logs;
use super::metrics::Metrics;
use super::outcome::Outcome;
use crate::cache::miss::Miss;
use crate::catalogue::{Operation, Service};
use crate::clock::Clock;
use crate::config::AccessLog;
use crate::request::digest::ShortDigest;
use crate::request::id::RequestId;
use crate::request::trace::Trace;

/// The target of access log lines, which tells them from other lines.
const ACCESS: &str = "workspace_gateway::access";

/// Longer request ids of upstream are not logged. Its ids have 32 characters.
const MAX_ID: usize = 128;

/// How many bytes of a path are logged. The path of a product list is shorter, even with a project id of 255
/// characters.
const MAX_PATH: usize = 300;

/// How many bytes of a `User-Agent` are logged: enough for the name and version of a client.
const MAX_AGENT: usize = 128;

/// A request that takes longer, to the end of its response, is slow.
const SLOW: Duration = Duration::from_secs(1);

pub struct RequestRecord {
    metrics: Arc<Metrics>,
    clock: Clock,
    begun: Instant,
    request_id: RequestId,
    operation: Label,
    /// The series that count it, for a known hit.
    series: Option<Arc<HitSeries>>,
    outcome: Outcome,
    /// Why it was not answered from memory at once.
    miss: Option<Miss>,
    /// Digest of its cache key, if it has one.
    key: Option<ShortDigest>,
    detail: &'static str,
    /// How its upstream call, or the gateway, has failed.
    failure: Option<&'static str>,
    status: Option<StatusCode>,
    sent_bytes: u64,
    complete: bool,
    /// `None` if the request is not logged.
    line: Option<Box<LogFields>>,
}

/// Fields that only the log needs.
struct LogFields {
    client: IpAddr,
    heading: Arc<Heading>,
    method: &'static str,
    upstream_id: Option<String>,
    trace: Option<Trace>,
    /// The parent id that upstream got with the trace.
    span: Option<u64>,
    upstream_took: Option<Duration>,
    head_after: Option<Duration>,
}

/// Log fields that are the same for all requests with the same head.
#[derive(Clone)]
pub struct Heading {
    path: Box<str>,
    agent: Option<Box<str>>,
    caller: Option<ShortDigest>,
}

/// The value of the label `operation`.
enum Label {
    Fixed(&'static str),
    Shared(Arc<str>),
}

impl Label {
    fn as_str(&self) -> &str {
        match self {
            Self::Fixed(name) => name,
            Self::Shared(name) => name,
        }
    }
}

impl LogFields {
    fn new(client: IpAddr, heading: Arc<Heading>, method: &'static str) -> Box<Self> {
        Box::new(Self {
            client,
            heading,
            method,
            upstream_id: None,
            trace: None,
            span: None,
            upstream_took: None,
            head_after: None,
        })
    }
}

impl RequestRecord {
    pub fn begin(metrics: Arc<Metrics>, clock: Clock, request_id: RequestId, head: &Parts, client: IpAddr) -> Self {
        let line = is_logged().then(|| {
            let agent = head.headers.get(USER_AGENT).filter(|agent| !agent.is_empty());
            let agent = agent.map(|agent| readable(agent.as_bytes(), MAX_AGENT));
            let heading = Heading { path: readable(head.uri.path().as_bytes(), MAX_PATH), agent, caller: None };
            let mut line = LogFields::new(client, Arc::new(heading), method_name(&head.method));
            line.trace = Trace::read(&head.headers);
            line
        });
        Self::of(metrics, clock, request_id, line)
    }

    /// Begins the record of a GET that is known to be a hit. It has the heading of the earlier request with the same
    /// head. `traceparent` is that of this request.
    pub fn begin_hit(
        metrics: Arc<Metrics>,
        clock: Clock,
        request_id: RequestId,
        (heading, client, traceparent): (Option<&Arc<Heading>>, IpAddr, Option<&str>),
        (operation, series, key): (&Operation, &Arc<HitSeries>, Option<ShortDigest>),
    ) -> Self {
        let line = heading.filter(|_| is_logged()).map(|heading| {
            let mut line = LogFields::new(client, Arc::clone(heading), "GET");
            line.trace = traceparent.and_then(Trace::parse);
            line
        });
        let mut record = Self::of(metrics, clock, request_id, line);
        record.set_operation(operation);
        record.series = Some(Arc::clone(series));
        record.key = key;
        record.set_outcome(Outcome::Hit, "");
        record
    }

    fn of(metrics: Arc<Metrics>, clock: Clock, request_id: RequestId, line: Option<Box<LogFields>>) -> Self {
        metrics.in_flight.inc();
        Self {
            begun: clock.timer_now(),
            metrics,
            clock,
            request_id,
            operation: Label::Fixed("none"),
            series: None,
            outcome: Outcome::Aborted,
            miss: None,
            key: None,
            detail: "",
            failure: None,
            status: None,
            sent_bytes: 0,
            complete: false,
            line,
        }
    }

    /// The id that this gateway gave the request.
    pub fn request_id(&self) -> &str {
        self.request_id.as_str()
    }

    /// `None` if the request is not logged.
    pub fn heading(&self) -> Option<&Arc<Heading>> {
        self.line.as_ref().map(|line| &line.heading)
    }

    /// The value of the label `operation`.
    pub fn operation(&self) -> &str {
        self.operation.as_str()
    }

    pub fn outcome(&self) -> Outcome {
        self.outcome
    }

    /// The `traceparent` for upstream, if these headers have a valid one.
    pub fn forward_trace(&mut self, headers: &HeaderMap) -> Option<HeaderValue> {
        let span = self.request_id.span();
        let traceparent = Trace::read(headers)?.continued(span);
        if let Some(line) = &mut self.line {
            line.span = traceparent.is_some().then_some(span);
        }
        traceparent
    }

    /// Upstream's request id of the response. The client gets this id instead of the gateway's.
    pub fn set_upstream_id(&mut self, id: Option<&HeaderValue>) {
        if let Some(line) = &mut self.line {
            let id = id.and_then(|id| id.to_str().ok()).filter(|id| !id.is_empty() && id.len() <= MAX_ID);
            line.upstream_id = id.map(str::to_owned);
        }
    }

    pub fn set_caller(&mut self, caller: impl FnOnce() -> ShortDigest) {
        if let Some(line) = &mut self.line {
            Arc::make_mut(&mut line.heading).caller.get_or_insert_with(caller);
        }
    }

    pub fn set_operation(&mut self, operation: &Operation) {
        self.operation = Label::Shared(Arc::clone(&operation.name));
    }

    /// The request is for no operation, and passes through to this service.
    pub fn set_pass_through(&mut self, service: Service) {
        self.operation = Label::Fixed(service.as_str());
    }

    /// `detail` is the reason, or empty.
    pub fn set_outcome(&mut self, outcome: Outcome, detail: &'static str) {
        self.outcome = outcome;
        self.detail = detail;
    }

    /// If the cache is looked up again, the last reason counts.
    pub fn set_miss(&mut self, miss: Miss, key: impl FnOnce() -> ShortDigest) {
        self.miss = Some(miss);
        self.key.get_or_insert_with(key);
    }

    /// The response comes from the entry with this key, without a call.
    pub fn set_stored_key(&mut self, key: ShortDigest) {
        self.key = Some(key);
        self.set_upstream_time(None);
    }

    pub fn key(&self) -> Option<ShortDigest> {
        self.key
    }

    /// How long the upstream call took: to the end of its response, or to the head if the response is relayed.
    pub fn set_upstream_time(&mut self, took: Option<Duration>) {
        if let Some(line) = &mut self.line {
            line.upstream_took = took;
        }
    }

    pub fn set_detail(&mut self, detail: &'static str) {
        self.detail = detail;
    }

    pub fn detail(&self) -> &'static str {
        self.detail
    }

    /// The upstream call, or the gateway, has failed in the named way. The detail of a bypass stays the reason to
    /// bypass.
    pub fn set_failure(&mut self, failure: &'static str) {
        self.failure = Some(failure);
        if self.outcome != Outcome::Bypass {
            self.detail = failure;
        }
    }

    pub fn failure(&self) -> Option<&'static str> {
        self.failure
    }

    /// Whether upstream or the gateway has failed, or the client did not get the whole response.
    fn has_failed(&self) -> bool {
        let is_error = self.status.is_none_or(|status| status.is_server_error());
        is_error || self.failure.is_some() || self.outcome == Outcome::Stale || !self.complete
    }

    /// The response's head is ready.
    pub fn set_status(&mut self, status: StatusCode) {
        self.status = Some(status);
        if let Some(line) = &mut self.line {
            line.head_after = Some(self.clock.timer_now().saturating_duration_since(self.begun));
        }
    }

    /// A part of the response's body was passed to the connection.
    pub fn add_sent(&mut self, bytes: usize) {
        self.sent_bytes += bytes as u64;
    }

    /// All of the response's body was passed to the connection.
    pub fn set_complete(&mut self) {
        self.complete = true;
    }
}

impl Drop for RequestRecord {
    fn drop(&mut self) {
        let took = self.clock.timer_now().saturating_duration_since(self.begun);
        // Without a response head, the client disconnected before there was one.
        let outcome = if self.status.is_some() { self.outcome } else { Outcome::Aborted };
        self.metrics.in_flight.dec();
        let operation = self.operation.as_str();
        let miss = self.miss.filter(|_| outcome.may_be_a_miss());
        if let Some(miss) = miss {
            self.metrics.missed(operation, miss);
        }
        match &self.series {
            Some(series) => series.count(&self.metrics, operation, self.status, took),
            None => self.metrics.request(operation, outcome, self.status, took),
        }
        let Some(line) = &self.line else { return };
        if !has_line(logs::access(), took, self.has_failed()) {
            return;
        }
        tracing::info!(
            target: ACCESS,
            request_id = self.request_id.as_str(),
            upstream_request_id = line.upstream_id,
            trace_id = line.trace.as_ref().map(Trace::id),
            span_id = line.span.map(|span| format!("{span:016x}")),
            client = %line.client,
            caller = line.heading.caller.as_ref().map(ShortDigest::as_str),
            user_agent = line.heading.agent.as_deref(),
            method = line.method,
            path = &*line.heading.path,
            operation,
            key = self.key.as_ref().map(ShortDigest::as_str),
            result = outcome.into_str(),
            miss = miss.map(<&str>::from),
            detail = Some(self.detail).filter(|detail| !detail.is_empty()),
            failure = self.failure,
            status = self.status.map(|status| status.as_u16()),
            ttfb_ms = line.head_after.map(milliseconds),
            upstream_ms = line.upstream_took.map(milliseconds),
            total_ms = milliseconds(took),
            bytes = self.sent_bytes,
            complete = self.complete,
            "request",
        );
    }
}

/// Whether a request that begins now may be logged.
pub(crate) fn is_logged() -> bool {
    logs::access() != AccessLog::Off && tracing::enabled!(target: ACCESS, Level::INFO)
}

/// Whether a request that has ended is logged.
fn has_line(access: AccessLog, took: Duration, has_failed: bool) -> bool {
    match access {
        AccessLog::All => true,
        AccessLog::SlowAndFailed => has_failed || took > SLOW,
        AccessLog::Off => false,
    }
}

/// Rounded down to microseconds, which keeps the number short.
#[allow(clippy::cast_precision_loss)]
fn milliseconds(duration: Duration) -> f64 {
    duration.as_micros() as f64 / 1e3
}

/// A method that is not in the standard may be any text of the client's, and is not logged.
fn method_name(method: &Method) -> &'static str {
    let standard = ["GET", "HEAD", "POST", "PUT", "DELETE", "PATCH", "OPTIONS", "TRACE", "CONNECT"];
    standard.into_iter().find(|name| method == name).unwrap_or("other")
}

/// The beginning of a client's text, in at most `max` bytes. Bytes that are not printable ASCII are escaped.
fn readable(text: &[u8], max: usize) -> Box<str> {
    let mut readable = String::with_capacity(text.len().min(max));
    for &byte in text {
        let shown: String = match byte {
            b' '..=b'~' => char::from(byte).into(),
            _ => byte.escape_ascii().map(char::from).collect(),
        };
        if readable.len() + shown.len() > max {
            break;
        }
        readable += &shown;
    }
    readable.into_boxed_str()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_clients_text_is_cut_and_shows_no_control_character() {
        assert_eq!(&*readable(b"curl/8.5.0 (a \"b\")", 128), "curl/8.5.0 (a \"b\")");
        assert_eq!(&*readable(b"a\tb\x1b[31m\xc3\xa9", 128), "a\\tb\\x1b[31m\\xc3\\xa9");
        assert_eq!(readable(&[b'x'; 500], MAX_AGENT).len(), MAX_AGENT);
        assert_eq!(readable(&[0xe9; 500], MAX_AGENT).len(), MAX_AGENT, "as it is shown");
    }

    #[test]
    fn slow_and_failed_requests_are_logged_unless_the_access_log_is_off() {
        let (fast, slow) = (SLOW, SLOW + Duration::from_millis(1));
        for (access, expected) in [
            (AccessLog::All, [true; 4]),
            (AccessLog::SlowAndFailed, [false, true, true, true]),
            (AccessLog::Off, [false; 4]),
        ] {
            let cases = [(fast, false), (fast, true), (slow, false), (slow, true)];
            assert_eq!(cases.map(|(took, failed)| has_line(access, took, failed)), expected, "{access:?}");
        }
    }

    #[test]
    fn a_record_takes_at_most_256_bytes() {
        // Each connection that answers known heads has one.
        assert!(size_of::<RequestRecord>() <= 256, "{}", size_of::<RequestRecord>());
    }
}
