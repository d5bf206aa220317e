//! The ways to answer a request, named once for metrics and logs.

use strum::{IntoStaticStr, VariantArray};

/// How a request was answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, IntoStaticStr, VariantArray)]
#[strum(const_into_str, serialize_all = "kebab-case")]
pub enum Outcome {
    /// From memory.
    Hit,
    /// From upstream; nothing was stored.
    Miss,
    /// From upstream; what was stored had expired, or was not wanted.
    Expired,
    /// From an upstream call that another request had begun.
    Coalesced,
    /// From memory, though the answer or the grant is no longer fresh: upstream has failed.
    Stale,
    /// From memory, though it is no longer fresh: it is being asked for again.
    Revalidating,
    /// From memory, though it is no longer fresh: upstream has failed just before, or wishes to be left alone.
    Backoff,
    /// From memory, though it is no longer fresh: upstream is slow.
    StaleIfSlow,
    /// From memory: upstream's 400, 404 or 405 from just before.
    Negative,
    /// From memory: upstream's refusal from just before.
    Denied,
    /// Forwarded as it is, though it is one of the operations.
    Bypass,
    /// Forwarded, as everything that is not one of the operations.
    PassThrough,
    /// By the gateway itself, which did not send it on.
    Refused,
    /// Not at all: the client hung up first.
    Aborted,
}

impl Outcome {
    /// Whether it helps who asks: given from memory, without waiting for a call. (A refusal that is given again is a hit, too,
    /// to `Cache-Status`. But a loop with a dead credential is nobody's benefit, and would be most of it.)
    pub fn is_hit(self) -> bool {
        matches!(self, Self::Hit | Self::Revalidating | Self::Backoff | Self::Negative)
    }

    /// Whether it is an answer to one of the operations in which the cache had its part.
    pub fn is_answer(self) -> bool {
        let was_asked = matches!(self, Self::Miss | Self::Expired | Self::Coalesced | Self::Stale | Self::StaleIfSlow);
        self.is_hit() || was_asked
    }

    /// Whether upstream was to be asked first for it, if it is a request for an operation.
    pub fn may_be_a_miss(self) -> bool {
        let was_asked = matches!(self, Self::Miss | Self::Expired | Self::Coalesced | Self::Stale | Self::StaleIfSlow);
        was_asked || matches!(self, Self::Refused | Self::Aborted)
    }
}
