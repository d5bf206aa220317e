//! One record per request: begun when its head has arrived, filled in along the path, and written
//! down once when it is dropped: at the end of the answer's body, or when the client hangs up.

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

/// What the access log's events are from, by which they can be told from others.
const ACCESS: &str = "workspace_gateway::access";

/// Upstream's ids have 32 characters; what is much longer is none and stays out of the log.
const LONGEST_ID: usize = 128;

/// Some way above the longest path of a product list, whose project id may have 255 characters.
const LONGEST_PATH: usize = 300;

/// How many bytes of a `User-Agent` are logged: as much as tells a client and its version.
const LONGEST_AGENT: usize = 128;

/// What takes longer is slow, to its answer's end.
const SLOW: Duration = Duration::from_secs(1);

/// What is known of a request while it is being answered.
pub struct RequestRecord {
    metrics: Arc<Metrics>,
    clock: Clock,
    begun: Instant,
    request_id: RequestId,
    operation: Label,
    /// What it is counted in, where that is known from the beginning.
    series: Option<Arc<HitSeries>>,
    outcome: Outcome,
    /// Why it was not answered from memory at first.
    miss: Option<Miss>,
    /// A digest of its cache key, if one was read.
    key: Option<ShortDigest>,
    detail: &'static str,
    /// Why its call, or the gateway, has failed.
    failure: Option<&'static str>,
    status: Option<StatusCode>,
    sent_bytes: u64,
    complete: bool,
    /// Only if it is logged.
    line: Option<Box<LogFields>>,
}

/// What only the log tells.
struct LogFields {
    client: IpAddr,
    heading: Arc<Heading>,
    method: &'static str,
    upstream_id: Option<String>,
    trace: Option<Trace>,
    /// Where upstream was asked as a part of that.
    span: Option<u64>,
    upstream_took: Option<Duration>,
    head_after: Option<Duration>,
}

/// What the log tells of a request whose head has been read, and of each that has the same head.
#[derive(Clone)]
pub struct Heading {
    path: Box<str>,
    agent: Option<Box<str>>,
    caller: Option<ShortDigest>,
}

/// What is said of a request.
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
    /// Begins the record of a request of a client at an address.
    pub fn begin(metrics: Arc<Metrics>, clock: Clock, request_id: RequestId, head: &Parts, client: IpAddr) -> Self {
        let line = is_logged().then(|| {
            let agent = head.headers.get(USER_AGENT).filter(|agent| !agent.is_empty());
            let agent = agent.map(|agent| readable(agent.as_bytes(), LONGEST_AGENT));
            let heading = Heading { path: readable(head.uri.path().as_bytes(), LONGEST_PATH), agent, caller: None };
            let mut line = LogFields::new(client, Arc::new(heading), method_name(&head.method));
            line.trace = Trace::read(&head.headers);
            line
        });
        Self::of(metrics, clock, request_id, line)
    }

    /// The record of a GET, begun now, that is known to be a hit. It has the heading of the hit before.
    pub fn begin_hit(
        metrics: Arc<Metrics>,
        clock: Clock,
        request_id: RequestId,
        (heading, client): (Option<&Arc<Heading>>, IpAddr),
        (operation, series, key): (&Operation, &Arc<HitSeries>, Option<ShortDigest>),
    ) -> Self {
        let line = heading.filter(|_| is_logged()).map(|heading| LogFields::new(client, Arc::clone(heading), "GET"));
        let mut record = Self::of(metrics, clock, request_id, line);
        record.is_for(operation);
        record.series = Some(Arc::clone(series));
        record.key = key;
        record.answered(Outcome::Hit, "");
        record.head(StatusCode::OK);
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

    /// The id this gateway gave the request.
    pub fn request_id(&self) -> &str {
        self.request_id.as_str()
    }

    /// What is logged of its head, if anything is.
    pub fn heading(&self) -> Option<&Arc<Heading>> {
        self.line.as_ref().map(|line| &line.heading)
    }

    /// How it is being answered.
    pub fn outcome(&self) -> Outcome {
        self.outcome
    }

    /// How upstream is to be told of the trace that the request is a part of, if what is left of its headers names one.
    pub fn traced(&mut self, headers: &HeaderMap) -> Option<HeaderValue> {
        let span = self.request_id.span();
        let told = Trace::read(headers)?.continued(span);
        if let Some(line) = &mut self.line {
            line.span = told.is_some().then_some(span);
        }
        told
    }

    /// The id upstream gave the answer, which is the one the client sees then.
    pub fn upstream_id(&mut self, id: Option<&HeaderValue>) {
        if let Some(line) = &mut self.line {
            let id = id.and_then(|id| id.to_str().ok()).filter(|id| !id.is_empty() && id.len() <= LONGEST_ID);
            line.upstream_id = id.map(str::to_owned);
        }
    }

    /// Who asks: a caller with this digest.
    pub fn asked_by(&mut self, caller: impl FnOnce() -> ShortDigest) {
        if let Some(line) = &mut self.line {
            Arc::make_mut(&mut line.heading).caller.get_or_insert_with(caller);
        }
    }

    /// It asks for this operation.
    pub fn is_for(&mut self, operation: &Operation) {
        self.operation = Label::Shared(Arc::clone(&operation.name));
    }

    /// It is for this service, and none of the operations.
    pub fn passes_to(&mut self, service: Service) {
        self.operation = Label::Fixed(service.as_str());
    }

    /// How it is being answered, and the reason where there is one.
    pub fn answered(&mut self, outcome: Outcome, detail: &'static str) {
        self.outcome = outcome;
        self.detail = detail;
    }

    /// Why upstream has to be asked first. If it is looked up again, the last reason counts.
    pub fn missed(&mut self, miss: Miss, key: impl FnOnce() -> ShortDigest) {
        self.miss = Some(miss);
        self.key.get_or_insert_with(key);
    }

    /// Its answer is kept under the key of this digest, and takes no call.
    pub fn is_kept_under(&mut self, key: ShortDigest) {
        self.key = Some(key);
        self.upstream_took(None);
    }

    /// The digest of its cache key, if one was read.
    pub fn key(&self) -> Option<ShortDigest> {
        self.key
    }

    /// How long the call took that it is answered by: to its whole answer, or to the head of what is relayed.
    pub fn upstream_took(&mut self, took: Option<Duration>) {
        if let Some(line) = &mut self.line {
            line.upstream_took = took;
        }
    }

    /// What more there is to say of it.
    pub fn because(&mut self, detail: &'static str) {
        self.detail = detail;
    }

    /// Its call, or the gateway, has failed in the named way. Where it is bypassed, the reason for that is said, too.
    pub fn failed(&mut self, failure: &'static str) {
        self.failure = Some(failure);
        if self.outcome != Outcome::Bypass {
            self.detail = failure;
        }
    }

    /// In what way its call, or the gateway, has failed, if so.
    pub fn failure(&self) -> Option<&'static str> {
        self.failure
    }

    /// Whether upstream or the gateway has failed, or the client has not been given all of its answer.
    fn has_failed(&self) -> bool {
        let is_error = self.status.is_none_or(|status| status.is_server_error());
        is_error || self.failure.is_some() || self.outcome == Outcome::Stale || !self.complete
    }

    /// The answer's head is ready.
    pub fn head(&mut self, status: StatusCode) {
        self.status = Some(status);
        if let Some(line) = &mut self.line {
            line.head_after = Some(self.clock.timer_now().saturating_duration_since(self.begun));
        }
    }

    /// Part of the answer's body was handed to the connection.
    pub fn sent(&mut self, bytes: usize) {
        self.sent_bytes += bytes as u64;
    }

    /// All of the answer's body was handed to the connection.
    pub fn is_whole(&mut self) {
        self.complete = true;
    }
}

impl Drop for RequestRecord {
    fn drop(&mut self) {
        let took = self.clock.timer_now().saturating_duration_since(self.begun);
        // Without a head the client left before there was one, whatever was under way for it.
        let outcome = if self.status.is_some() { self.outcome } else { Outcome::Aborted };
        self.metrics.in_flight.dec();
        let operation = self.operation.as_str();
        let miss = self.miss.filter(|_| outcome.may_be_a_miss());
        if let Some(miss) = miss {
            self.metrics.missed(operation, miss);
        }
        match &self.series {
            Some(series) => series.count(took),
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

/// Whether the log may tell of a request that begins now.
pub(crate) fn is_logged() -> bool {
    logs::access() != AccessLog::Off && tracing::enabled!(target: ACCESS, Level::INFO)
}

/// Whether a request that is over has a line.
fn has_line(access: AccessLog, took: Duration, has_failed: bool) -> bool {
    match access {
        AccessLog::All => true,
        AccessLog::SlowAndFailed => has_failed || took > SLOW,
        AccessLog::Off => false,
    }
}

/// Microseconds are enough, and shorter to read than a float's every digit.
#[allow(clippy::cast_precision_loss)]
fn milliseconds(duration: Duration) -> f64 {
    duration.as_micros() as f64 / 1e3
}

/// A method that is not in the standard is a client's own text, and stays out of the log.
fn method_name(method: &Method) -> &'static str {
    let standard = ["GET", "HEAD", "POST", "PUT", "DELETE", "PATCH", "OPTIONS", "TRACE", "CONNECT"];
    standard.into_iter().find(|name| method == name).unwrap_or("other")
}

/// The beginning of a client's own text, in at most so many bytes. What is not printable ASCII is escaped.
fn readable(text: &[u8], longest: usize) -> Box<str> {
    let mut readable = String::with_capacity(text.len().min(longest));
    for &byte in text {
        let shown: String = match byte {
            b' '..=b'~' => char::from(byte).into(),
            _ => byte.escape_ascii().map(char::from).collect(),
        };
        if readable.len() + shown.len() > longest {
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
    fn a_clients_own_text_is_cut_and_shows_no_control_character() {
        assert_eq!(&*readable(b"curl/8.5.0 (a \"b\")", 128), "curl/8.5.0 (a \"b\")");
        assert_eq!(&*readable(b"a\tb\x1b[31m\xc3\xa9", 128), "a\\tb\\x1b[31m\\xc3\\xa9");
        assert_eq!(readable(&[b'x'; 500], LONGEST_AGENT).len(), LONGEST_AGENT);
        assert_eq!(readable(&[0xe9; 500], LONGEST_AGENT).len(), LONGEST_AGENT, "as it is shown");
    }

    #[test]
    fn what_has_taken_long_or_has_failed_has_a_line_unless_none_has() {
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
    fn a_record_takes_no_more_than_before_it_told_so_much() {
        // It is a part of each connection that answers known heads.
        assert!(size_of::<RequestRecord>() <= 256, "{}", size_of::<RequestRecord>());
    }
}
