//! The result of a fetch, which all waiters of its flight get. Which waiter may use it is decided in `release.rs`.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{Response, StatusCode};
use strum::{IntoStaticStr, VariantArray};

use crate::cache::admission::Verdict;
use crate::cache::freshness::FreshnessInfo;
use crate::cache::grants::Proof;
use crate::cache::store::Epoch;
use crate::cache::unstorable::Unstorable;
use crate::request::caller::Caller;
use crate::request::trace::TraceContext;
use crate::upstream::UpstreamError;

/// What a call is for.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum FetchPurpose {
    /// A request.
    Response,
    /// The refresh of a stale entry. No request waits for it at first.
    Refresh,
    /// A request whose flight has another call, or had one.
    Additional(AdditionalCallReason),
    /// The renewal of a grant that ends soon. No request waits for it.
    Renewal,
    /// To keep a response and its caller's grant from ending. The gateway makes it without a request.
    KeepWarm,
}

impl FetchPurpose {
    /// Whether the call is made for its caller alone: a good response is kept for everybody, and anything else concerns
    /// only the caller.
    pub(super) fn is_for_caller_alone(self) -> bool {
        matches!(self, Self::Renewal | Self::KeepWarm)
    }

    /// For the span of the call.
    pub(super) fn into_str(self) -> &'static str {
        match self {
            Self::Response => "response",
            Self::Refresh => "refresh",
            Self::Additional(_) => "additional",
            Self::Renewal => "renewal",
            Self::KeepWarm => "keep-warm",
        }
    }
}

/// Why a call is made beside or after another caller's call for the same key. The label of a metric.
#[derive(Clone, Copy, PartialEq, Eq, IntoStaticStr, VariantArray)]
#[strum(const_into_str, serialize_all = "kebab-case")]
pub(super) enum AdditionalCallReason {
    /// All calls in flight are slow.
    Slow,
    /// The previous call was answered with a 5xx.
    Failed,
}

/// A complete response, and what the gateway made of it.
pub(super) struct FetchedResponse {
    pub(super) response: Response<Bytes>,
    /// 304 if `response` is a revalidated entry.
    pub(super) upstream_status: StatusCode,
    pub(super) freshness_info: FreshnessInfo,
    /// Whether `Age` is absent or can be parsed.
    pub(super) age_is_known: bool,
    pub(super) verdict: Verdict,
    /// `None` if the response is no proof.
    pub(super) proof: Option<Proof>,
    /// `None` if the response was stored.
    pub(super) not_stored: Option<Unstorable>,
}

#[derive(Clone)]
pub(super) enum FetchResult {
    /// No call was made. The entry was stored after the waiters looked it up, or the leader has reached a limit of its
    /// own and must not lead a shared fetch.
    NotSent {
        /// When the leader's fetch began, if upstream has throttled its call, so that it may be sent only once more.
        throttled: Option<tokio::time::Instant>,
    },
    /// No call was made: the second tier had the entry.
    InSecondTier,
    /// No call was made: the leader's access key is suspended.
    Suspended { leader: Caller },
    /// Upstream refused the leader's credential. The body of that response is still to come, for the leader's caller.
    Refused { leader: Caller },
    /// The call has ended, with a response or with an error.
    Sent {
        leader: Caller,
        /// The purge epoch in which the request was sent.
        epoch: Epoch,
        response: Result<Arc<FetchedResponse>, UpstreamError>,
        /// `None` if the call failed before it was sent.
        duration: Option<Duration>,
        /// If the call failed: whether the cause lies outside the gateway
        /// (see [`Fetcher::is_external_failure`](super::fetcher::Fetcher::is_external_failure)).
        is_external: bool,
        /// Whether upstream answered with a 5xx, and meanwhile answered another caller's call successfully. So another
        /// caller may retry.
        may_retry: bool,
        /// The span of the call, if it is exported.
        span: Option<TraceContext>,
    },
}

impl FetchResult {
    /// A failure inside the gateway, before the call was sent.
    pub(super) fn failed_before_sending(leader: Caller, epoch: Epoch, error: UpstreamError) -> Self {
        let (response, is_external, may_retry) = (Err(error), false, false);
        Self::Sent { leader, epoch, response, duration: None, is_external, may_retry, span: None }
    }

    /// Whether upstream refused this caller, and the body of that response is still to come.
    pub(super) fn is_refusal_of(&self, caller: Caller) -> bool {
        matches!(self, Self::Refused { leader } if *leader == caller)
    }

    /// Whether the result ends the flight: all waiters can use it, and no other call is needed.
    pub(super) fn serves_all(&self) -> bool {
        let Self::Sent { response: Ok(fetched), .. } = self else { return false };
        match fetched.verdict {
            Verdict::Proof(Ok(_)) => fetched.proof != Some(Proof::Late),
            Verdict::Negative => true,
            _ => false,
        }
    }
}
