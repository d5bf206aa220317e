//! The error responses of the services, with documented statuses, codes and messages.
//!
//! The API gateway in front of the services uses `APIGW.` codes and repeats the request id in the body. The services
//! use `WKS.` codes and do not repeat it.

use std::borrow::Cow;

use bytes::Bytes;
use http::StatusCode;
use serde::Serialize;

#[derive(Clone, Debug, PartialEq)]
pub(super) struct ErrorReply {
    pub(super) status: StatusCode,
    code: &'static str,
    message: Cow<'static, str>,
}

const fn refusal(status: StatusCode, code: &'static str, message: &'static str) -> ErrorReply {
    ErrorReply { status, code, message: Cow::Borrowed(message) }
}

pub(super) const NO_TOKEN: ErrorReply =
    refusal(StatusCode::UNAUTHORIZED, "APIGW.0301", "Incorrect IAM authentication information: x-auth-token not found");
pub(super) const UNKNOWN_TOKEN: ErrorReply =
    refusal(StatusCode::UNAUTHORIZED, "APIGW.0301", "Incorrect IAM authentication information: decrypt token fail");
pub(super) const EXPIRED_TOKEN: ErrorReply = refusal(
    StatusCode::UNAUTHORIZED,
    "APIGW.0301",
    "Incorrect IAM authentication information: token expires, expires_at: 2024-01-10T08:00:00.000000Z",
);
pub(super) const BAD_SIGNATURE: ErrorReply = refusal(
    StatusCode::UNAUTHORIZED,
    "APIGW.0301",
    "Incorrect IAM authentication information: verify aksk signature fail",
);
pub(super) const EXPIRED_SIGNATURE: ErrorReply = refusal(
    StatusCode::UNAUTHORIZED,
    "APIGW.0301",
    "Incorrect IAM authentication information: calc aksk signature fail:signature expired",
);
pub(super) const LOCKED: ErrorReply = refusal(
    StatusCode::UNAUTHORIZED,
    "APIGW.0301",
    "Incorrect IAM authentication information: AK access failed to reach the limit,forbidden",
);
pub(super) const REVOKED_TOKEN: ErrorReply =
    refusal(StatusCode::UNAUTHORIZED, "APIGW.0307", "The token must be updated");
pub(super) const DENIED: ErrorReply =
    refusal(StatusCode::FORBIDDEN, "APIGW.0302", "The IAM user is not authorized to access the API");
/// The token is valid for another project. The service rejects it, not the API gateway.
pub(super) const OTHER_PROJECT: ErrorReply =
    refusal(StatusCode::FORBIDDEN, "WKS.00081102", "No operation permissions on the project");
pub(super) const THROTTLED: ErrorReply =
    refusal(StatusCode::TOO_MANY_REQUESTS, "APIGW.0308", "The throttling threshold has been reached");
/// A 429 without a body.
pub(super) const SILENT: ErrorReply = refusal(StatusCode::TOO_MANY_REQUESTS, "", "");
pub(super) const NO_SUCH_API: ErrorReply =
    refusal(StatusCode::NOT_FOUND, "APIGW.0101", "The API does not exist or has not been published in the environment");

pub(super) fn bad_parameter(name: &str) -> ErrorReply {
    let message = Cow::Owned(format!("Invalid parameter: {name}"));
    ErrorReply { status: StatusCode::BAD_REQUEST, code: "WKS.00211102", message }
}

/// A 429 whose text names a limit.
pub(super) fn throttled(message: String) -> ErrorReply {
    ErrorReply { message: Cow::Owned(message), ..THROTTLED }
}

/// The documented error for a status, if nothing more specific is known.
pub(super) fn of_status(status: StatusCode) -> ErrorReply {
    let (code, message) = match status.as_u16() {
        400 => ("WKS.00211102", "Invalid parameter"),
        401 => return UNKNOWN_TOKEN,
        403 => return DENIED,
        404 => ("WKS.00211902", "The resource does not exist"),
        405 => ("WKS.00000405", "The method is not allowed"),
        413 => ("APIGW.0201", "Request entity too large"),
        414 => ("APIGW.0201", "Request URI too large"),
        429 => return THROTTLED,
        494 => ("APIGW.0201", "Request headers too large"),
        500 => ("WKS.00211401", "Internal service error"),
        502 => ("APIGW.0201", "Backend unavailable"),
        503 => ("WKS.00050902", "The service is unavailable"),
        504 => ("APIGW.0201", "Backend timeout"),
        _ => ("APIGW.0601", "Internal server error"),
    };
    refusal(status, code, message)
}

#[derive(Serialize)]
struct SimulatedErrorBody<'a> {
    error_code: &'a str,
    error_msg: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    request_id: Option<&'a str>,
}

impl ErrorReply {
    /// The JSON body; empty if the status is not an error, or there is no error code.
    pub(super) fn body(&self, request_id: &str) -> Bytes {
        let is_error = self.status.is_client_error() || self.status.is_server_error();
        if !is_error || self.code.is_empty() {
            return Bytes::new();
        }
        let request_id = self.code.starts_with("APIGW.").then_some(request_id);
        let body = SimulatedErrorBody { error_code: self.code, error_msg: &self.message, request_id };
        // This cannot fail: all values are strings.
        serde_json::to_vec(&body).unwrap_or_default().into()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_api_gateway_repeats_the_request_id() {
        let text = |refusal: ErrorReply| String::from_utf8(refusal.body("id-1").to_vec()).unwrap();
        assert_eq!(
            text(REVOKED_TOKEN),
            r#"{"error_code":"APIGW.0307","error_msg":"The token must be updated","request_id":"id-1"}"#
        );
        assert_eq!(
            text(bad_parameter("limit")),
            r#"{"error_code":"WKS.00211102","error_msg":"Invalid parameter: limit"}"#
        );
    }

    #[test]
    fn only_error_statuses_have_a_body() {
        for code in (200..600).filter_map(|code| StatusCode::from_u16(code).ok()) {
            let refusal = of_status(code);
            assert_eq!(refusal.status, code);
            assert_eq!(!refusal.body("id").is_empty(), code.as_u16() >= 400, "{code}");
        }
    }
}
