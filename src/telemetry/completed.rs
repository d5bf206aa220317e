//! A completed request, as the sinks get it. It has nothing secret: credentials are digests, and the path has no query.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use http::header::USER_AGENT;
use http::{HeaderMap, StatusCode, Version};
use tokio::time::Instant;

use super::outcome::Outcome;
use super::text::{shown_agent, shown_path};
use crate::cache::miss::Miss;
use crate::request::digest::ShortDigest;
use crate::request::trace::TraceContext;

/// A request whose response has ended, or whose client has disconnected.
pub(super) struct CompletedRequest<'r> {
    /// The id that this gateway gave the request.
    pub(super) request_id: &'r str,
    /// The value of the label `operation`.
    pub(super) operation: &'r str,
    pub(super) outcome: Outcome,
    pub(super) miss: Option<Miss>,
    pub(super) caller: Option<ShortDigest>,
    /// Digest of its cache key.
    pub(super) key: Option<ShortDigest>,
    pub(super) detail: Option<&'static str>,
    /// How its upstream call, or the gateway, has failed.
    pub(super) failure: Option<&'static str>,
    /// `None` if the client disconnected before there was a response.
    pub(super) status: Option<StatusCode>,
    /// When it ended.
    pub(super) ended: Instant,
    pub(super) took: Duration,
    /// Bytes of the response's body.
    pub(super) sent_bytes: u64,
    pub(super) is_complete: bool,
    /// `None` if no sink needed it when the request began.
    pub(super) description: Option<&'r Description>,
}

/// What only some sinks need, for one request at a time. It has nothing secret.
pub(super) struct Description {
    pub(super) client: IpAddr,
    pub(super) heading: Arc<Heading>,
    pub(super) method: &'static str,
    pub(super) version: Version,
    pub(super) upstream_id: Option<String>,
    pub(super) trace: Option<RequestTrace>,
    /// The duration of the upstream call.
    pub(super) upstream_took: Option<Duration>,
    /// From the head of the request to that of the response.
    pub(super) head_after: Option<Duration>,
}

/// The trace that a request is in.
#[derive(Clone)]
pub(super) struct RequestTrace {
    /// The span of the request.
    pub(super) context: TraceContext,
    /// The span in the client's `traceparent`.
    pub(super) parent: Option<u64>,
    /// Whether upstream has got the id of the span as a parent id.
    pub(super) is_forwarded: bool,
    /// Whether the span is exported.
    pub(super) is_exported: bool,
    /// The call of another request that has answered this one.
    pub(super) link: Option<TraceContext>,
    /// The template of the path, if the request is for an operation and the span is exported.
    pub(super) template: Option<String>,
}

/// The part of the description that is the same for all requests with the same head.
#[derive(Clone)]
pub struct Heading {
    pub(super) path: Box<str>,
    pub(super) agent: Option<Box<str>>,
}

impl Heading {
    pub(crate) fn new(path: &str, headers: &HeaderMap) -> Self {
        let agent = headers.get(USER_AGENT).filter(|agent| !agent.is_empty());
        Self { path: shown_path(path), agent: agent.map(|agent| shown_agent(agent.as_bytes())) }
    }
}

impl CompletedRequest<'_> {
    /// Whether upstream or the gateway has failed, or the client did not get the whole response.
    pub(super) fn has_failed(&self) -> bool {
        let is_error = self.status.is_none_or(|status| status.is_server_error());
        is_error || self.failure.is_some() || self.outcome == Outcome::Stale || !self.is_complete
    }
}

impl Description {
    /// The id of the span, if anything else knows it.
    pub(super) fn span_id(&self) -> Option<String> {
        let trace = self.trace.as_ref().filter(|trace| trace.is_forwarded || trace.is_exported);
        trace.map(|trace| format!("{:016x}", trace.context.span_id))
    }

    pub(super) fn new(
        client: IpAddr,
        heading: Arc<Heading>,
        (method, version): (&'static str, Version),
        trace: Option<RequestTrace>,
    ) -> Box<Self> {
        Box::new(Self {
            client,
            heading,
            method,
            version,
            upstream_id: None,
            trace,
            upstream_took: None,
            head_after: None,
        })
    }
}
