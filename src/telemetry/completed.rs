//! A completed request, as the sinks get it. It has nothing secret: credentials are digests, and the path has no query.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use http::StatusCode;
use tokio::time::Instant;

use super::outcome::Outcome;
use crate::cache::miss::Miss;
use crate::request::digest::ShortDigest;
use crate::request::trace::Trace;

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
    pub(super) upstream_id: Option<String>,
    pub(super) trace: Option<Trace>,
    /// The parent id that upstream got with the trace.
    pub(super) span: Option<u64>,
    /// The duration of the upstream call.
    pub(super) upstream_took: Option<Duration>,
    /// From the head of the request to that of the response.
    pub(super) head_after: Option<Duration>,
}

/// The part of the description that is the same for all requests with the same head.
#[derive(Clone)]
pub struct Heading {
    pub(super) path: Box<str>,
    pub(super) agent: Option<Box<str>>,
}

impl CompletedRequest<'_> {
    /// Whether upstream or the gateway has failed, or the client did not get the whole response.
    pub(super) fn has_failed(&self) -> bool {
        let is_error = self.status.is_none_or(|status| status.is_server_error());
        is_error || self.failure.is_some() || self.outcome == Outcome::Stale || !self.is_complete
    }
}

impl Description {
    pub(super) fn new(client: IpAddr, heading: Arc<Heading>, method: &'static str) -> Box<Self> {
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
