//! The error responses of the gateway, in upstream's JSON format: `error_code`, `error_msg`, `request_id`.
//!
//! One match gives each error a status, a code of upstream's and a message. The message names the gateway, and says
//! what is wrong and what to do. It must not contain a credential or other bytes of the request.

use bytes::Bytes;
use http::header::{ALLOW, CONTENT_TYPE, RETRY_AFTER};
use http::{HeaderValue, Response, StatusCode};
use serde_json::json;

use super::body::Content;
use crate::request::rejection::Rejection;
use crate::request::validate::{ALLOWED_METHODS, Invalid};
use crate::signing::ring::SignatureRejection;
use crate::upstream::UpstreamError;

/// Why the gateway answers a request with an error.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum RequestError {
    /// The head of the request is invalid or not allowed.
    Rejected(Rejection),
    /// The only credential is a signature that the gateway cannot verify and that cannot be valid upstream.
    SignatureBoundToGateway,
    /// The signature with a configured access key was rejected.
    Signature(SignatureRejection),
    /// The signed body is too large to be verified.
    BodyTooLarge {
        /// In bytes.
        limit: usize,
    },
    /// The signed body did not arrive completely in time.
    BodyIncomplete,
    /// `only-if-cached`, and there is no entry that the caller may get.
    NotCached,
    Upstream(UpstreamError),
    NoMemory,
    /// A bug or an unexpected state of the gateway.
    Internal,
}

/// Who caused an error.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ErrorSource {
    Client,
    /// Upstream, or the network on the way there.
    Upstream,
    Gateway,
}

impl RequestError {
    pub(crate) fn error_source(&self) -> ErrorSource {
        match self {
            Self::Rejected(_)
            | Self::SignatureBoundToGateway
            | Self::Signature(_)
            | Self::BodyTooLarge { .. }
            | Self::BodyIncomplete
            | Self::NotCached => ErrorSource::Client,
            Self::Upstream(UpstreamError::Upload(_) | UpstreamError::UploadSlow) => ErrorSource::Client,
            Self::Upstream(UpstreamError::Busy | UpstreamError::Throttled { .. } | UpstreamError::Local(_))
            | Self::NoMemory
            | Self::Internal => ErrorSource::Gateway,
            Self::Upstream(_) => ErrorSource::Upstream,
        }
    }

    /// The name for the log and for the `Cache-Status` detail.
    pub(crate) fn as_str(&self) -> &'static str {
        match self {
            Self::Rejected(rejection) => rejection.as_str(),
            Self::SignatureBoundToGateway => "signature-bound-here",
            Self::Signature(rejection) => rejection.into_str(),
            Self::BodyTooLarge { .. } => "body-too-large",
            Self::BodyIncomplete => "body-incomplete",
            Self::NotCached => "only-if-cached",
            Self::Upstream(error) => error.failure().into_str(),
            Self::NoMemory => "memory",
            Self::Internal => "internal",
        }
    }

    /// The status, upstream's error code for such an error, and the message.
    fn describe(&self) -> (StatusCode, &'static str, String) {
        match self {
            Self::Rejected(rejection) => {
                let code = if *rejection == Rejection::NoSuchApi { "APIGW.0101" } else { "APIGW.0201" };
                (rejection.status(), code, rejection.describe())
            }
            Self::SignatureBoundToGateway => (
                StatusCode::UNAUTHORIZED,
                "APIGW.0301",
                "Incorrect IAM authentication information: verify aksk signature fail: the signature covers this \
                 gateway's address, or a path or header that the gateway changes, so it cannot be valid upstream. The \
                 access key is not configured here, or the algorithm is not SDK-HMAC-SHA256, so the gateway cannot \
                 sign the request itself. The request was not relayed. Add the key to the gateway's configuration \
                 ([[access_key]]), or send an X-Auth-Token"
                    .to_owned(),
            ),
            Self::Signature(rejection) => describe_rejection(*rejection),
            Self::BodyTooLarge { limit } => (
                StatusCode::PAYLOAD_TOO_LARGE,
                "APIGW.0201",
                format!(
                    "the body of a signed request is too large to verify its signature: expected at most {limit} bytes"
                ),
            ),
            Self::BodyIncomplete => (
                StatusCode::REQUEST_TIMEOUT,
                "APIGW.0201",
                "the gateway reads the whole body of a signed request to verify its signature, and the body did not \
                 arrive completely in time"
                    .to_owned(),
            ),
            Self::NotCached => (
                StatusCode::GATEWAY_TIMEOUT,
                "APIGW.0201",
                "no stored response is available to this caller, and the request has Cache-Control: only-if-cached, so \
                 upstream was not called"
                    .to_owned(),
            ),
            Self::Upstream(error) => describe_upstream_error(error),
            Self::NoMemory => (
                StatusCode::SERVICE_UNAVAILABLE,
                "APIGW.0201",
                "the memory budget has no room for another request (limits.memory): try again later".to_owned(),
            ),
            Self::Internal => {
                (StatusCode::INTERNAL_SERVER_ERROR, "APIGW.0601", "internal gateway error: see its log".to_owned())
            }
        }
    }

    pub(crate) fn response(&self, request_id: &str) -> Response<Content> {
        let (status, code, text) = self.describe();
        let message = format!("workspace-gateway: {text}");
        let body = json!({ "error_code": code, "error_msg": message, "request_id": request_id });
        let mut response = Response::new(Content::from(Bytes::from(body.to_string())));
        *response.status_mut() = status;
        response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
        if *self == Self::Rejected(Rejection::Invalid(Invalid::Trace)) {
            response.headers_mut().insert(ALLOW, HeaderValue::from_static(ALLOWED_METHODS));
        }
        if let Self::Upstream(UpstreamError::Throttled { retry_after, .. }) = self {
            response.headers_mut().insert(RETRY_AFTER, HeaderValue::from(*retry_after));
        }
        response
    }
}

/// The message begins with upstream's text for such an error.
fn describe_rejection(rejection: SignatureRejection) -> (StatusCode, &'static str, String) {
    let upstream_text = match rejection {
        SignatureRejection::Project => return (StatusCode::FORBIDDEN, "APIGW.0302", rejection.describe().to_owned()),
        SignatureRejection::Skew => "calc aksk signature fail:signature expired",
        SignatureRejection::Suspended => "AK access failed to reach the limit,forbidden",
        _ => "verify aksk signature fail",
    };
    let text = format!("Incorrect IAM authentication information: {upstream_text}: {}", rejection.describe());
    (StatusCode::UNAUTHORIZED, "APIGW.0301", text)
}

fn describe_upstream_error(error: &UpstreamError) -> (StatusCode, &'static str, String) {
    let status = match error {
        // Upstream's own codes for a 503 would mean that IAM or the service failed, and neither was called.
        UpstreamError::Busy | UpstreamError::Local(_) => {
            return (StatusCode::SERVICE_UNAVAILABLE, "APIGW.0201", error.to_string());
        }
        UpstreamError::Throttled { .. } => return (StatusCode::TOO_MANY_REQUESTS, "APIGW.0308", error.to_string()),
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
