//! What happened in a sequence, and how a response is compared with the expected one.

use std::fmt;

use super::super::domain::{CacheRequest, Ms, RequestDirectives, RequestId, UpstreamResult, is_list};
use super::super::rules::{Reply, ReplyKind};
use super::super::scripted_upstream::UpstreamRequest;
use super::super::settings::Settings;
use super::super::steps::Step;

#[derive(Clone, Debug)]
pub struct ClientResponse {
    pub request: CacheRequest,
    /// By timers.
    pub waited: Ms,
    /// By the time of rules.
    pub at: Ms,
    pub status: u16,
    pub body: String,
    /// In seconds.
    pub retry_after: Option<u64>,
    pub(super) cache_status: String,
    pub(super) has_cookie: bool,
}

impl ClientResponse {
    /// The product list of a 200, or the one that a 304 confirms.
    pub fn list(&self) -> Option<String> {
        match self.status {
            200 => Some(&self.body).filter(|body| is_list(body)).cloned(),
            304 => self.request.if_none_match.map(|version| version.list(self.request.key)),
            _ => None,
        }
    }

    fn contains(&self, word: &str) -> bool {
        self.cache_status.contains(word)
    }

    /// Whether `Cache-Status` says that it came from the cache.
    pub fn is_hit(&self) -> bool {
        self.contains("; hit")
    }

    /// In seconds, from `Cache-Status`.
    fn ttl(&self) -> Option<i64> {
        self.parameter("ttl=")?.parse().ok()
    }

    pub fn detail(&self) -> Option<&str> {
        self.parameter("detail=")
    }

    fn parameter(&self, name: &str) -> Option<&str> {
        self.cache_status.split("; ").find_map(|parameter| parameter.strip_prefix(name))
    }
}

/// For the report of a failure.
pub(super) enum Event {
    Step(Step),
    Request(CacheRequest),
    Completed(RequestId, UpstreamResult),
    /// The head of a refusal.
    HeadDelivered(RequestId, UpstreamResult),
    Disconnected(RequestId),
    Started(UpstreamRequest),
    Relayed(UpstreamRequest),
    Response(ClientResponse),
}

impl fmt::Display for Event {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Step(step) => write!(f, "{step:?}"),
            Self::Request(request @ CacheRequest { id, caller, key, is_direct, is_unsafe, spelling, .. }) => {
                let path = match (is_direct, is_unsafe) {
                    (_, true) => ", with an unsafe method",
                    (true, false) => "",
                    (false, false) => ", through another gateway",
                };
                write!(f, "    #{id} (caller {caller}, key {key}{path}, {spelling:?}) arrives")?;
                request.headers().try_for_each(|(name, value)| write!(f, ", {name}: {value}"))
            }
            Self::Completed(id, result) => write!(f, "    the call of #{id} completes: {result:?}"),
            Self::HeadDelivered(id, result) => write!(f, "    the head of the call of #{id} completes: {result:?}"),
            Self::Disconnected(id) => write!(f, "    #{id} disconnects"),
            Self::Started(UpstreamRequest { id, validator, .. }) => {
                write!(f, "    #{id} starts a call")?;
                validator.map_or(Ok(()), |version| write!(f, ", If-None-Match: {}", version.to_tag()))
            }
            Self::Relayed(UpstreamRequest { id, .. }) => write!(f, "    #{id} is relayed"),
            Self::Response(response) => {
                let ClientResponse { request, status, body, cache_status, .. } = response;
                write!(
                    f,
                    "    #{} (caller {}) is answered: {status} {body} [{cache_status}]",
                    request.id, request.caller
                )
            }
        }
    }
}

pub fn check_reply(response: &ClientResponse, reply: &Reply, settings: &Settings) -> Result<(), &'static str> {
    if response.status != reply.status {
        return Err("wrong status");
    }
    match &reply.body {
        Some(body) if *body != response.body => return Err("wrong body"),
        None if !response.body.contains(r#""error_msg":"workspace-gateway: "#) => {
            return Err("not an error of the gateway");
        }
        _ => {}
    }
    // A relayed response has no deadline.
    let is_streamed = matches!(reply.kind, ReplyKind::Relayed | ReplyKind::PassedThrough);
    if response.waited > settings.longest_wait() && !is_streamed {
        return Err("after the deadline");
    }
    if response.has_cookie && !is_streamed && reply.kind != ReplyKind::Fetched {
        return Err("has the Set-Cookie of another response");
    }
    let is_hit = matches!(
        reply.kind,
        ReplyKind::Hit(_)
            | ReplyKind::HitAfterProof(_)
            | ReplyKind::Negative(_)
            | ReplyKind::Backoff(_)
            | ReplyKind::Revalidating(_)
            | ReplyKind::Denied
    );
    if response.is_hit() != is_hit {
        return Err("Cache-Status is wrong about the hit");
    }
    if let ReplyKind::Hit(left)
    | ReplyKind::HitAfterProof(left)
    | ReplyKind::Negative(left)
    | ReplyKind::Backoff(left)
    | ReplyKind::Revalidating(left) = reply.kind
        && response.ttl().is_none_or(|ttl| (ttl >= 0) != (left > 0) || (ttl * 1000 - left).abs() > 1000)
    {
        return Err("Cache-Status has a wrong ttl");
    }
    let is_described_correctly = match reply.kind {
        ReplyKind::Hit(_) => response.detail().is_none(),
        ReplyKind::HitAfterProof(_) => response.detail() == Some("coalesced"),
        ReplyKind::Negative(_) => response.detail() == Some("negative"),
        ReplyKind::Backoff(_) => response.detail() == Some("backoff"),
        ReplyKind::Revalidating(_) => response.detail() == Some("revalidating"),
        ReplyKind::StaleIfSlow => response.contains("; fwd=stale") && response.detail() == Some("stale-if-slow"),
        ReplyKind::StaleOnError => {
            (response.contains("; fwd=stale") || response.contains("; fwd=request"))
                && response.detail() != Some("stale-if-slow")
        }
        ReplyKind::Collapsed => response.contains("; collapsed"),
        ReplyKind::PassedThrough => response.cache_status.is_empty(),
        ReplyKind::Relayed if response.request.directives == RequestDirectives::NoStore => {
            response.detail() == Some("client-no-store")
        }
        ReplyKind::Relayed => response.contains("; fwd=bypass"),
        ReplyKind::Fetched => !response.contains("; collapsed"),
        ReplyKind::Held => response.body.contains("APIGW.0308") && response.retry_after.is_some_and(|after| after > 0),
        ReplyKind::Denied | ReplyKind::TimedOut | ReplyKind::NotCached | ReplyKind::Ambiguous => true,
    };
    if is_described_correctly { Ok(()) } else { Err("Cache-Status is wrong about the source") }
}
