//! The errors that the gateway answers itself after it has read only a request's head.

use http::StatusCode;

use super::target::Misdirected;
use super::validate::Invalid;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Rejection {
    /// The request line and the header fields are larger than the limit, in bytes.
    HeadTooLarge { limit: usize },
    /// Two servers may read the head in different ways, or it has too many parts.
    Invalid(Invalid),
    /// The request is addressed to another server.
    Misdirected(Misdirected),
    /// The request has passed this gateway before.
    Loop,
    /// The path belongs to no service.
    NoSuchApi,
}

impl From<Invalid> for Rejection {
    fn from(invalid: Invalid) -> Self {
        Self::Invalid(invalid)
    }
}

impl Rejection {
    /// The name in the log and in `explain`.
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::HeadTooLarge { .. } => "head-too-large",
            Self::Invalid(invalid) => invalid.into_str(),
            Self::Misdirected(Misdirected::Connect) => "connect-method",
            Self::Misdirected(Misdirected::ForeignHost) => "foreign-host",
            Self::Misdirected(Misdirected::Host) => "host",
            Self::Loop => "loop",
            Self::NoSuchApi => "no-such-api",
        }
    }

    pub(crate) fn status(self) -> StatusCode {
        match self {
            Self::HeadTooLarge { .. } => StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE,
            Self::Invalid(invalid) => invalid.status(),
            Self::Misdirected(_) => StatusCode::BAD_REQUEST,
            Self::Loop => StatusCode::LOOP_DETECTED,
            Self::NoSuchApi => StatusCode::NOT_FOUND,
        }
    }

    /// What is wrong and what is allowed, for people.
    pub(crate) fn describe(self) -> String {
        match self {
            Self::HeadTooLarge { limit } => {
                format!("request line and headers are larger than {limit} bytes (limits.max_head_size)")
            }
            Self::Invalid(invalid) => invalid.describe(),
            Self::Misdirected(Misdirected::Connect) => {
                "CONNECT is not supported: this is not a forward proxy".to_owned()
            }
            Self::Misdirected(Misdirected::ForeignHost) => {
                "the request is for another host, and this is not a forward proxy: expected a path, or the URL of this \
                 gateway or of one of its upstream services"
                    .to_owned()
            }
            Self::Misdirected(Misdirected::Host) => {
                "expected exactly one Host header with a valid host (RFC 9112 §3.2)".to_owned()
            }
            Self::Loop => "loop detected: an upstream URL leads back to this gateway".to_owned(),
            Self::NoSuchApi => {
                "The API does not exist or has not been published in the environment: expected a path under /v1, /v2 \
                 or /v3"
                    .to_owned()
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use strum::VariantArray;

    use super::*;

    #[test]
    fn each_rejection_has_its_status_and_its_own_name_and_description() {
        let misdirected = [Misdirected::Connect, Misdirected::ForeignHost, Misdirected::Host];
        let invalid = Invalid::VARIANTS.iter().map(|&invalid| (Rejection::Invalid(invalid), invalid.status().as_u16()));
        let all: Vec<_> = [
            (Rejection::HeadTooLarge { limit: 1_000 }, 431),
            (Rejection::Invalid(Invalid::Trace), 405),
            (Rejection::Invalid(Invalid::TransferEncoding), 501),
            (Rejection::Invalid(Invalid::Token), 400),
            (Rejection::Loop, 508),
            (Rejection::NoSuchApi, 404),
        ]
        .into_iter()
        .chain(misdirected.map(|misdirected| (Rejection::Misdirected(misdirected), 400)))
        .chain(invalid)
        .collect();
        assert!(all.iter().all(|(rejection, status)| rejection.status().as_u16() == *status));
        let names: HashSet<&str> = all.iter().map(|(rejection, _)| rejection.as_str()).collect();
        let descriptions: HashSet<String> = all.iter().map(|(rejection, _)| rejection.describe()).collect();
        assert_eq!((names.len(), descriptions.len()), (6 + Invalid::VARIANTS.len(), 6 + Invalid::VARIANTS.len()));
    }
}
