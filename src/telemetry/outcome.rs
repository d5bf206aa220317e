//! The ways in which a request can be answered. Metrics, the access log and `Cache-Status` use these names.

use strum::{IntoStaticStr, VariantArray};

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, IntoStaticStr, VariantArray)]
#[strum(const_into_str, serialize_all = "kebab-case")]
pub enum Outcome {
    /// From memory, fresh.
    Hit,
    /// From upstream; nothing was stored, or the caller had no grant.
    Miss,
    /// From upstream; the stored response had expired, or the client did not accept it.
    Expired,
    /// From an upstream call that another request had begun, or from memory after such a call had proved the caller.
    Coalesced,
    /// From the second tier, where another gateway or an earlier process has stored it.
    Fleet,
    /// From memory, although the response or the grant is stale: the upstream call has failed.
    Stale,
    /// From memory, stale, while the response is refreshed in the background.
    Revalidating,
    /// From memory, stale, without a call: the gateway backs off after a failure, a 429 or a 503.
    Backoff,
    /// From memory, stale: the upstream call is slow.
    StaleIfSlow,
    /// From memory: a recent 400, 404 or 405 of upstream.
    Negative,
    /// From memory: a recent 401 or 403 of upstream.
    Denied,
    /// Relayed unchanged, although the request is for an operation.
    Bypass,
    /// Relayed, because the request is for no operation.
    PassThrough,
    /// By the gateway itself, without a call.
    Refused,
    /// The client disconnected before there was a response.
    Aborted,
}

/// What has become of a span that was to be exported.
#[derive(Clone, Copy, Debug, PartialEq, Eq, IntoStaticStr, VariantArray)]
#[strum(const_into_str, serialize_all = "kebab-case")]
pub enum SpanResult {
    Exported,
    /// The queue had no room.
    QueueFull,
    /// The export has failed, or the receiver has rejected the span.
    Failed,
}

/// What is exported to OpenTelemetry.
#[derive(Clone, Copy, Debug, PartialEq, Eq, IntoStaticStr, VariantArray)]
#[strum(const_into_str, serialize_all = "kebab-case")]
pub enum Signal {
    Traces,
    Metrics,
}

/// Why an export has failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, IntoStaticStr, VariantArray)]
#[strum(const_into_str, serialize_all = "kebab-case")]
pub enum ExportFault {
    /// The receiver cannot be reached, or the connection has ended.
    Unreachable,
    /// There was no answer in time.
    Timeout,
    /// The receiver refuses exports for a while.
    Busy,
    /// The receiver refuses the export.
    Refused,
}

/// How an attempt to write the snapshot has ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, IntoStaticStr, VariantArray)]
#[strum(const_into_str, serialize_all = "kebab-case")]
pub enum SnapshotResult {
    Written,
    /// Something was revoked meanwhile.
    Revoked,
    /// A process that was started later writes it.
    NotOwner,
    Failed,
}

/// What has become of a call that gateways of a fleet make for each other.
#[derive(Clone, Copy, Debug, PartialEq, Eq, IntoStaticStr, VariantArray)]
#[strum(const_into_str, serialize_all = "kebab-case")]
pub enum ClaimResult {
    /// This gateway has called upstream for all of them.
    Led,
    /// Another one had called upstream already, or has done so meanwhile.
    Answered,
    /// Another one has begun the call and has not ended it, so this one has called upstream.
    TookOver,
    /// Nobody waits for it any more, or nobody has waited for it here.
    Dropped,
    /// The call is not for others, or the engine is not in use.
    Alone,
}

/// What a configuration reload leads to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, IntoStaticStr, VariantArray)]
#[strum(const_into_str, serialize_all = "kebab-case")]
pub enum Reload {
    /// Other settings are in force.
    Applied,
    /// There is a mistake in the configuration, and nothing has changed.
    Refused,
    /// No setting that can change at run time is different.
    Unchanged,
}

/// How a call of keep warm has ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, IntoStaticStr, VariantArray)]
#[strum(const_into_str, serialize_all = "kebab-case")]
pub enum KeepWarmResult {
    /// The caller has a grant with a later end.
    Proved,
    /// There was no response, or it proves nothing.
    Failed,
    /// Upstream answered 401 or 403.
    Refused,
}

impl Outcome {
    /// Whether the response came from memory without waiting for a call. `Denied` does not count, although
    /// `Cache-Status` calls it a hit: one client that repeats a refused credential could be most of the hits.
    pub fn is_hit(self) -> bool {
        matches!(self, Self::Hit | Self::Fleet | Self::Revalidating | Self::Backoff | Self::Negative)
    }

    /// Whether the answer took no upstream call of its own.
    pub fn saves_a_call(self) -> bool {
        self.is_hit() || self == Self::Coalesced
    }

    /// Whether the request was for an operation and was answered from memory or by a call for the cache.
    pub fn is_answer(self) -> bool {
        self.is_hit() || self.has_waited()
    }

    /// Whether a request for an operation may have waited for a call.
    pub fn may_be_a_miss(self) -> bool {
        self.has_waited() || matches!(self, Self::Refused | Self::Aborted)
    }

    /// Whether it was answered, and not from memory at once.
    pub fn has_waited(self) -> bool {
        matches!(self, Self::Miss | Self::Expired | Self::Coalesced | Self::Stale | Self::StaleIfSlow)
    }
}
