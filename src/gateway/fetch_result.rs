//! What comes of a call to upstream, for everyone who waits for it.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{Response, StatusCode};
use strum::{IntoStaticStr, VariantArray};

use crate::cache::admission::Verdict;
use crate::cache::freshness::Life;
use crate::cache::grants::Proof;
use crate::cache::store::Epoch;
use crate::cache::unstorable::Unstorable;
use crate::request::caller::Caller;
use crate::upstream::UpstreamError;

/// Why a call is made beside or after another caller's call for the same question.
#[derive(Clone, Copy, PartialEq, Eq, IntoStaticStr, VariantArray)]
#[strum(const_into_str, serialize_all = "kebab-case")]
pub(super) enum Additional {
    /// The calls under way are slow.
    Slow,
    /// The call before was answered with a 5xx.
    Failed,
}

/// A whole answer, and what was made of it.
pub(super) struct FetchedResponse {
    pub(super) response: Response<Bytes>,
    /// The status that upstream gave: 304, where the answer is the one that it was asked about.
    pub(super) said: StatusCode,
    pub(super) life: Life,
    /// Whether upstream has told the answer's age in a way that can be read.
    pub(super) age_is_known: bool,
    pub(super) verdict: Verdict,
    /// What the answer has proved, if it is a proof.
    pub(super) proof: Option<Proof>,
    /// Why it was not kept, if it wasn't.
    pub(super) not_kept: Option<Unstorable>,
}

/// What has come of a call, for everyone who waits.
#[derive(Clone)]
pub(super) enum FetchResult {
    /// Nothing was sent: what was wanted has become known between the look-up and the departure, or the leader would
    /// have had to wait for a limit of its own.
    NotSent,
    /// Nothing was sent: the leader's access key is held.
    Suspended {
        /// Whose request was to be sent.
        leader: Caller,
    },
    /// Upstream refused the leader's credential. The body of that answer is still to come, for the leader's caller.
    Refused {
        /// Whose request was sent.
        leader: Caller,
    },
    /// Upstream answered, or failed to.
    Sent {
        /// Whose request was sent.
        leader: Caller,
        /// Between which purges it was sent.
        epoch: Epoch,
        /// What came of it.
        answer: Result<Arc<FetchedResponse>, UpstreamError>,
        /// How long that took, if anything was sent.
        took: Option<Duration>,
        /// If it is a failure: whether its cause lies outside the gateway
        /// (see [`Fetcher::is_outside`](super::fetcher::Fetcher::is_outside)).
        is_outside: bool,
        /// Whether it is a failure that another caller's call may not meet: upstream has answered such a call meanwhile.
        may_repeat: bool,
    },
}

impl FetchResult {
    /// That nothing was sent because of a failure inside the gateway.
    pub(super) fn unsent(leader: Caller, epoch: Epoch, error: UpstreamError) -> Self {
        Self::Sent { leader, epoch, answer: Err(error), took: None, is_outside: false, may_repeat: false }
    }

    /// Whether it is a refusal of this caller whose body is still to come.
    pub(super) fn is_refusal_of(&self, caller: Caller) -> bool {
        matches!(self, Self::Refused { leader } if *leader == caller)
    }

    /// Whether it is what everybody has waited for, so that no other call for it is needed.
    pub(super) fn serves_all(&self) -> bool {
        let Self::Sent { answer: Ok(answer), .. } = self else { return false };
        match answer.verdict {
            Verdict::Proof(Ok(_)) => answer.proof != Some(Proof::Late),
            Verdict::Negative => true,
            _ => false,
        }
    }
}
