//! Why a call to upstream failed, as one word for metrics and logs. [`super::UpstreamError`] has the details.

use strum::{IntoStaticStr, VariantArray};

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, IntoStaticStr, VariantArray)]
#[strum(const_into_str, serialize_all = "kebab-case")]
pub enum Failure {
    /// There is no connection to upstream, or it took too long.
    Connect,
    /// The TLS handshake failed.
    Tls,
    /// The gateway, its host or its configuration prevented the call.
    Local,
    /// The response head did not arrive within `upstream.first_byte_timeout`.
    FirstByte,
    /// The response did not end within `upstream.answer_timeout`.
    Timeout,
    /// The deadline of the request passed before the timeout of the call that it waits for.
    Deadline,
    /// There was no data in either direction for `upstream.idle_timeout`.
    Idle,
    /// The call waited too long for a call slot.
    Busy,
    /// Upstream's quota is used up, so the call was not sent.
    Throttled,
    /// The client's body was incomplete or malformed.
    Upload,
    /// The client sent its body too slowly.
    UploadSlow,
    /// The connection broke, or the response was incomplete or malformed.
    Broken,
    /// The body of a 401 or 403 did not end within the limits.
    RefusalIncomplete,
    /// The response is larger than `cache.max_body_size`.
    TooLarge,
    /// The memory budget has no room for the response.
    Memory,
}

impl Failure {
    /// The reason as text for an operator.
    pub fn describe(self) -> &'static str {
        match self {
            Self::Connect => "cannot connect",
            Self::Tls => "the TLS handshake failed",
            Self::Local => "the gateway could not make the call",
            Self::FirstByte => "no response in time",
            Self::Timeout => "no complete response in time",
            Self::Deadline => "the deadline of the request passed",
            Self::Idle => "no data in either direction for too long",
            Self::Busy => "too many calls to upstream",
            Self::Throttled => "upstream's quota is used up",
            Self::Upload => "the client's body was incomplete or malformed",
            Self::UploadSlow => "the client sent its body too slowly",
            Self::Broken => "the connection broke, or the response was incomplete or malformed",
            Self::RefusalIncomplete => "the body of a 401 or 403 did not end in time",
            Self::TooLarge => "the response is too large",
            Self::Memory => "the memory budget has no room for the response",
        }
    }

    /// Whether the client or the gateway may have caused the failure, so that it says nothing about the service.
    pub fn is_inside(self) -> bool {
        matches!(
            self,
            Self::Deadline | Self::Idle | Self::Busy | Self::Throttled | Self::Upload | Self::UploadSlow | Self::Local
        )
    }

    /// Whether there was no connection to the service.
    pub fn is_unreached(self) -> bool {
        matches!(self, Self::Connect | Self::Tls)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn each_failure_has_its_own_description() {
        let descriptions: HashSet<&str> = Failure::VARIANTS.iter().map(|failure| failure.describe()).collect();
        assert_eq!(descriptions.len(), Failure::VARIANTS.len());
    }
}
