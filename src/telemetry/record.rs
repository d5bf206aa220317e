//! One record per request. It begins when the head of the request has arrived and is filled in along the path. It is
//! dropped at the end of the response's body, or when the client disconnects. Then the [`Sinks`] get the
//! [`CompletedRequest`], once.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use http::request::Parts;
use http::{HeaderMap, HeaderValue, StatusCode, Version};
use tokio::time::Instant;

use super::callers::CallerCounts;
use super::completed::{CompletedRequest, Description, Heading, RequestTrace};
use super::outcome::Outcome;
use super::requests::HitSeries;
use super::sinks::Sinks;
use super::text::method_name;
use super::traces;
use crate::cache::miss::Miss;
use crate::catalogue::{Operation, Service};
use crate::clock::Clock;
use crate::request::caller::Caller;
use crate::request::digest::ShortDigest;
use crate::request::id::RequestId;
use crate::request::trace::TraceContext;

/// Longer request ids of upstream are left out. Its ids have 32 characters.
const MAX_ID: usize = 128;

pub struct RequestRecord {
    sinks: Arc<Sinks>,
    clock: Clock,
    begun: Instant,
    request_id: RequestId,
    operation: Label,
    /// The series that count it, for a known hit.
    series: Option<Arc<HitSeries>>,
    outcome: Outcome,
    caller: Option<Arc<CallerCounts>>,
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
    /// `None` if no sink needs it.
    description: Option<Box<Description>>,
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

impl RequestRecord {
    pub fn begin(sinks: Arc<Sinks>, clock: Clock, request_id: RequestId, head: &Parts, client: IpAddr) -> Self {
        let parent = || TraceContext::read(&head.headers);
        let description = description(&sinks, &request_id, parent, |trace| {
            let heading = Arc::new(Heading::new(head.uri.path(), &head.headers));
            Some(Description::new(client, heading, (method_name(&head.method), head.version), trace))
        });
        Self::of(sinks, clock, request_id, description)
    }

    /// Begins the record of a GET that is known to be a hit. It has the heading of the earlier request with the same
    /// head. `traceparent` and the version are those of this request.
    pub fn begin_hit(
        sinks: Arc<Sinks>,
        clock: Clock,
        request_id: RequestId,
        (heading, client, version, traceparent): (Option<&Arc<Heading>>, IpAddr, Version, Option<&str>),
        (operation, series, key): (&Operation, &Arc<HitSeries>, Option<ShortDigest>),
        caller: Option<&Arc<CallerCounts>>,
    ) -> Self {
        let parent = || traceparent.and_then(TraceContext::parse);
        let description = description(&sinks, &request_id, parent, |trace| {
            Some(Description::new(client, Arc::clone(heading?), ("GET", version), trace))
        });
        let mut record = Self::of(sinks, clock, request_id, description);
        record.set_operation(operation);
        record.series = Some(Arc::clone(series));
        record.key = key;
        record.caller = caller.cloned();
        record.set_outcome(Outcome::Hit, "");
        record
    }

    fn of(sinks: Arc<Sinks>, clock: Clock, request_id: RequestId, description: Option<Box<Description>>) -> Self {
        sinks.begin();
        Self {
            begun: clock.timer_now(),
            sinks,
            clock,
            request_id,
            operation: Label::Fixed("none"),
            series: None,
            outcome: Outcome::Aborted,
            caller: None,
            miss: None,
            key: None,
            detail: "",
            failure: None,
            status: None,
            sent_bytes: 0,
            complete: false,
            description,
        }
    }

    /// The id that this gateway gave the request.
    pub fn request_id(&self) -> &str {
        self.request_id.as_str()
    }

    /// `None` if no sink needs it.
    pub fn heading(&self) -> Option<&Arc<Heading>> {
        self.description.as_ref().map(|description| &description.heading)
    }

    /// The value of the label `operation`.
    pub fn operation(&self) -> &str {
        self.operation.as_str()
    }

    pub fn outcome(&self) -> Outcome {
        self.outcome
    }

    /// The span of the request, for its upstream calls. These are its headers. `None` if it is in no trace.
    pub fn forward_trace(&mut self, headers: &HeaderMap) -> Option<TraceContext> {
        if let Some(exported) = self.exported_trace() {
            return Some(exported);
        }
        let tracer = self.sinks.tracer().map(|tracer| &**tracer);
        let context = traces::context_of(tracer, TraceContext::read(headers), &self.request_id)?;
        if let Some(trace) = self.trace_mut() {
            trace.is_forwarded = true;
        }
        Some(context)
    }

    /// The span of the request, if it is exported.
    pub fn exported_trace(&self) -> Option<TraceContext> {
        let trace = self.description.as_ref()?.trace.as_ref();
        trace.filter(|trace| trace.is_exported).map(|trace| trace.context)
    }

    fn trace_mut(&mut self) -> Option<&mut RequestTrace> {
        self.description.as_mut()?.trace.as_mut()
    }

    /// Another request's call has answered this one. `call` is its span.
    pub fn link_to(&mut self, call: TraceContext) {
        if let Some(trace) = self.trace_mut() {
            trace.link = Some(call);
        }
    }

    /// Upstream's request id of the response. The client gets this id instead of the gateway's.
    pub fn set_upstream_id(&mut self, id: Option<&HeaderValue>) {
        if let Some(description) = &mut self.description {
            let id = id.and_then(|id| id.to_str().ok()).filter(|id| !id.is_empty() && id.len() <= MAX_ID);
            description.upstream_id = id.map(str::to_owned);
        }
    }

    /// The caller of the request, if it has one. Its counts get the request when it has ended.
    pub fn set_caller(&mut self, caller: Option<Arc<CallerCounts>>) {
        self.caller = caller;
    }

    /// Remembers the caller among those that upstream has accepted, if it is known.
    pub fn accept_caller_if(&self, caller: Caller, is_known: impl FnOnce() -> bool) {
        if let Some(counts) = &self.caller {
            self.sinks.callers().accept_if(caller, counts, is_known);
        }
    }

    pub fn caller(&self) -> Option<&Arc<CallerCounts>> {
        self.caller.as_ref()
    }

    pub fn set_operation(&mut self, operation: &Operation) {
        if let Some(trace) = self.trace_mut().filter(|trace| trace.is_exported) {
            trace.template = Some(operation.template.to_string());
        }
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
        if let Some(description) = &mut self.description {
            description.upstream_took = took;
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

    /// The response's head is ready.
    pub fn set_status(&mut self, status: StatusCode) {
        self.status = Some(status);
        if let Some(description) = &mut self.description {
            description.head_after = Some(self.clock.timer_now().saturating_duration_since(self.begun));
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
        // Without a response head, the client disconnected before there was one.
        let outcome = if self.status.is_some() { self.outcome } else { Outcome::Aborted };
        let ended = self.clock.timer_now();
        let request = CompletedRequest {
            request_id: self.request_id.as_str(),
            operation: self.operation.as_str(),
            outcome,
            miss: self.miss.filter(|_| outcome.may_be_a_miss()),
            caller: self.caller.as_ref().map(|caller| caller.id()),
            key: self.key,
            detail: Some(self.detail).filter(|detail| !detail.is_empty()),
            failure: self.failure,
            status: self.status,
            ended,
            took: ended.saturating_duration_since(self.begun),
            sent_bytes: self.sent_bytes,
            is_complete: self.complete,
            description: self.description.as_deref(),
        };
        self.sinks.end(&request, self.series.as_deref(), self.caller.as_deref());
    }
}

/// The description of a request that begins, if a sink needs it. `parent` reads the `traceparent`.
fn description(
    sinks: &Sinks,
    request_id: &RequestId,
    parent: impl FnOnce() -> Option<TraceContext>,
    describe: impl FnOnce(Option<RequestTrace>) -> Option<Box<Description>>,
) -> Option<Box<Description>> {
    if !sinks.may_need_description() {
        return None;
    }
    let (tracer, parent) = (sinks.tracer().map(|tracer| &**tracer), parent());
    let trace = traces::context_of(tracer, parent, request_id).map(|context| RequestTrace {
        context,
        parent: parent.map(|parent| parent.span_id),
        is_forwarded: false,
        is_exported: tracer.is_some() && context.is_sampled(),
        link: None,
        template: None,
    });
    let is_sampled = trace.as_ref().is_some_and(|trace| trace.context.is_sampled());
    if sinks.describe_all() || is_sampled && sinks.describe_sampled() { describe(trace) } else { None }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_takes_at_most_256_bytes() {
        // Each connection that answers known heads has one.
        assert!(size_of::<RequestRecord>() <= 256, "{}", size_of::<RequestRecord>());
    }
}
