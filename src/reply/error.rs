//! Answers that the gateway makes itself because something went wrong, in upstream's own shape:
//! `error_code`, `error_msg`, `request_id`.
//!
//! Each problem has somebody to blame (the client, upstream, us), and one match turns it into a
//! status and words. The words say who speaks, what is wrong and what to do, and never repeat a
//! credential.

use bytes::Bytes;
use http::header::{ALLOW, CONTENT_TYPE};
use http::{HeaderValue, Response, StatusCode};
use serde_json::json;

use super::body::Content;
use crate::request::rejection::Rejection;
use crate::request::validate::{ALLOWED_METHODS, Invalid};
use crate::signing::ring::SignatureRejection;
use crate::upstream::UpstreamError;

/// What went wrong.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Problem {
    /// Its head alone is a reason not to answer it.
    Rejected(Rejection),
    /// The request's only credential is a signature that can't be verified here, and couldn't be valid upstream.
    SignatureBoundHere,
    /// The request is signed with a known access key, and not as it should be.
    Signature(SignatureRejection),
    /// A signed body that is too large to be verified.
    BodyTooLarge {
        /// What is allowed, in bytes.
        limit: usize,
    },
    /// A signed body that doesn't come to its end, or not in time.
    BodyIncomplete,
    /// The client wants an answer from memory or none, and there is none.
    NotCached,
    /// Upstream gave no whole answer.
    Upstream(UpstreamError),
    /// The memory budget has no room for the request.
    NoMemory,
    /// The gateway failed at its own work.
    Internal,
}

/// Whose fault a problem is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Blame {
    /// The client's.
    Client,
    /// Upstream's, or the network's on the way there.
    Upstream,
    /// This gateway's.
    Gateway,
}

impl Problem {
    /// Whose fault it is.
    pub(crate) fn blame(&self) -> Blame {
        match self {
            Self::Rejected(_)
            | Self::SignatureBoundHere
            | Self::Signature(_)
            | Self::BodyTooLarge { .. }
            | Self::BodyIncomplete
            | Self::NotCached => Blame::Client,
            Self::Upstream(UpstreamError::Upload(_) | UpstreamError::UploadSlow) => Blame::Client,
            Self::Upstream(UpstreamError::Busy | UpstreamError::Local(_)) | Self::NoMemory | Self::Internal => {
                Blame::Gateway
            }
            Self::Upstream(_) => Blame::Upstream,
        }
    }

    /// The name used alike as log field and `Cache-Status` detail.
    pub(crate) fn as_str(&self) -> &'static str {
        match self {
            Self::Rejected(rejection) => rejection.as_str(),
            Self::SignatureBoundHere => "signature-bound-here",
            Self::Signature(refusal) => refusal.into_str(),
            Self::BodyTooLarge { .. } => "body-too-large",
            Self::BodyIncomplete => "body-incomplete",
            Self::NotCached => "only-if-cached",
            Self::Upstream(error) => error.failure().into_str(),
            Self::NoMemory => "memory",
            Self::Internal => "internal",
        }
    }

    /// Status, upstream's code for the like, and words.
    fn say(&self) -> (StatusCode, &'static str, String) {
        match self {
            Self::Rejected(rejection) => {
                let code = if *rejection == Rejection::NoSuchApi { "APIGW.0101" } else { "APIGW.0201" };
                (rejection.status(), code, rejection.describe())
            }
            Self::SignatureBoundHere => (
                StatusCode::UNAUTHORIZED,
                "APIGW.0301",
                "Incorrect IAM authentication information: verify aksk signature fail: the signature is over this \
                 gateway's address, or a path or header that is not sent on as it is, so that it cannot be valid \
                 upstream; and the access key is not configured here, or this is not SDK-HMAC-SHA256, so that the request \
                 cannot be signed anew. It was not sent on. Add the key to the gateway's configuration \
                 ([[access_key]]), or send an X-Auth-Token"
                    .to_owned(),
            ),
            Self::Signature(refusal) => say_refusal(*refusal),
            Self::BodyTooLarge { limit } => (
                StatusCode::PAYLOAD_TOO_LARGE,
                "APIGW.0201",
                format!(
                    "the body of a request that is signed is read before it is sent on: expected at most {limit} bytes"
                ),
            ),
            Self::BodyIncomplete => (
                StatusCode::REQUEST_TIMEOUT,
                "APIGW.0201",
                "the body of a request that is signed is read before it is sent on, and it has not come to its end in \
                 time"
                    .to_owned(),
            ),
            Self::NotCached => (
                StatusCode::GATEWAY_TIMEOUT,
                "APIGW.0201",
                "there is no answer in memory that this caller may be given now, and the request says Cache-Control: \
                 only-if-cached, so upstream was not asked"
                    .to_owned(),
            ),
            Self::Upstream(error) => say_upstream(error),
            Self::NoMemory => (
                StatusCode::SERVICE_UNAVAILABLE,
                "APIGW.0201",
                "the gateway has no memory for another request now (limits.memory): try again later".to_owned(),
            ),
            Self::Internal => {
                (StatusCode::INTERNAL_SERVER_ERROR, "APIGW.0601", "the gateway failed; its log has more".to_owned())
            }
        }
    }

    /// The answer to give.
    pub(crate) fn response(&self, request_id: &str) -> Response<Content> {
        let (status, code, words) = self.say();
        let message = format!("workspace-gateway: {words}");
        let body = json!({ "error_code": code, "error_msg": message, "request_id": request_id });
        let mut response = Response::new(Content::from(Bytes::from(body.to_string())));
        *response.status_mut() = status;
        response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
        if *self == Self::Rejected(Rejection::Invalid(Invalid::Trace)) {
            response.headers_mut().insert(ALLOW, HeaderValue::from_static(ALLOWED_METHODS));
        }
        response
    }
}

/// In the words that upstream has for the like, and what is wrong.
fn say_refusal(refusal: SignatureRejection) -> (StatusCode, &'static str, String) {
    let upstreams = match refusal {
        SignatureRejection::Project => return (StatusCode::FORBIDDEN, "APIGW.0302", refusal.describe().to_owned()),
        SignatureRejection::Skew => "calc aksk signature fail:signature expired",
        SignatureRejection::Suspended => "AK access failed to reach the limit,forbidden",
        _ => "verify aksk signature fail",
    };
    let words = format!("Incorrect IAM authentication information: {upstreams}: {}", refusal.describe());
    (StatusCode::UNAUTHORIZED, "APIGW.0301", words)
}

fn say_upstream(error: &UpstreamError) -> (StatusCode, &'static str, String) {
    let status = match error {
        // Upstream's codes for a 503 blame IAM or the service, which have not even been asked.
        UpstreamError::Busy | UpstreamError::Local(_) => {
            return (StatusCode::SERVICE_UNAVAILABLE, "APIGW.0201", error.to_string());
        }
        UpstreamError::RefusalIncomplete(status) => {
            let code = if *status == StatusCode::FORBIDDEN { "APIGW.0302" } else { "APIGW.0301" };
            return (*status, code, error.to_string());
        }
        UpstreamError::Upload(_) => return (StatusCode::BAD_REQUEST, "APIGW.0201", error.to_string()),
        UpstreamError::UploadSlow => return (StatusCode::REQUEST_TIMEOUT, "APIGW.0201", error.to_string()),
        UpstreamError::FirstByte | UpstreamError::Timeout | UpstreamError::Deadline | UpstreamError::Idle => {
            StatusCode::GATEWAY_TIMEOUT
        }
        UpstreamError::Connect(_)
        | UpstreamError::Unreachable(_)
        | UpstreamError::Tls(_)
        | UpstreamError::Broken(_)
        | UpstreamError::HeadTooLarge(_)
        | UpstreamError::TooLarge(_)
        | UpstreamError::NoMemory(_) => StatusCode::BAD_GATEWAY,
    };
    let kind = if status == StatusCode::GATEWAY_TIMEOUT { "Backend timeout" } else { "Backend unavailable" };
    (status, "APIGW.0201", format!("{kind}: {error}"))
}
