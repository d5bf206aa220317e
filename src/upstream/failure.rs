//! Why a call to upstream has failed, in one word each. [`super::UpstreamError`] has the particulars.

use strum::{IntoStaticStr, VariantArray};

/// Why a call has failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, IntoStaticStr, VariantArray)]
#[strum(const_into_str, serialize_all = "kebab-case")]
pub enum Failure {
    /// Upstream was not reached, or not in time.
    Connect,
    /// Its TLS has failed.
    Tls,
    /// The gateway, its host or its settings prevented the call.
    Local,
    /// The answer did not begin in time.
    FirstByte,
    /// The answer did not end in time.
    Timeout,
    /// The request's own time has passed, though its call still had some.
    Deadline,
    /// Nothing moved in either direction for too long.
    Idle,
    /// The call's turn did not come in time.
    Busy,
    /// The client's body broke off, or was no HTTP.
    Upload,
    /// The client sent its body too slowly.
    UploadSlow,
    /// The connection or the answer broke off, or was no HTTP.
    Broken,
    /// A 401 or 403 did not end in bounds.
    RefusalIncomplete,
    /// The answer is too large to hold.
    TooLarge,
    /// The memory budget has no room for the answer.
    Memory,
}

impl Failure {
    /// The same for a person.
    pub fn describe(self) -> &'static str {
        match self {
            Self::Connect => "cannot connect",
            Self::Tls => "TLS failed",
            Self::Local => "the gateway could not make the call",
            Self::FirstByte => "no response in time",
            Self::Timeout => "no complete response in time",
            Self::Deadline => "the time of the request has passed",
            Self::Idle => "nothing moved for too long",
            Self::Busy => "too many calls are under way",
            Self::Upload => "the client's body broke off",
            Self::UploadSlow => "the client sent its body too slowly",
            Self::Broken => "the connection broke or the response is malformed",
            Self::RefusalIncomplete => "a refusal was incomplete",
            Self::TooLarge => "the response is too large to hold",
            Self::Memory => "no memory for the response",
        }
    }

    /// Whether it tells nothing of the service: it may be the client's doing, or the gateway's own.
    pub fn is_inside(self) -> bool {
        matches!(self, Self::Deadline | Self::Idle | Self::Busy | Self::Upload | Self::UploadSlow | Self::Local)
    }

    /// Whether the service could not even be reached.
    pub fn is_unreached(self) -> bool {
        matches!(self, Self::Connect | Self::Tls)
    }
}
