//! The `error_code` of upstream's error bodies, and whose code it is.

use serde::Deserialize;

/// Reads the `error_code` of an error body: `{"error_code": "WKS.…", "error_msg": "…"}`. None if the body is no
/// such object, or has the field twice.
pub(crate) fn error_code(body: &[u8]) -> Option<String> {
    #[derive(Deserialize)]
    struct ErrorBody {
        error_code: String,
    }
    serde_json::from_slice::<ErrorBody>(body).ok().map(|error| error.error_code)
}

/// Whether the body has a code of the service itself, like `WKS.00211302`. Such an error comes from behind the API gateway,
/// which has accepted the credential. The codes of the API gateway begin with `APIGW.` or `APIG.`. What looks like neither is
/// taken for the API gateway's.
pub(crate) fn is_services_own(body: &[u8]) -> bool {
    error_code(body).is_some_and(|code| {
        code.split_once('.').is_some_and(|(service, number)| {
            let is_service = !service.is_empty() && service.bytes().all(|byte| byte.is_ascii_uppercase());
            is_service && !number.is_empty() && !service.starts_with("APIG")
        })
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_code_that_can_be_read_and_is_not_the_api_gateways_is_the_services_own() {
        for (body, expected) in [
            (r#"{"error_code":"WKS.00211302","error_msg":"x"}"#, true),
            (r#"{"error_code":"APIGW.0301"}"#, false),
            (r#"{"error_code":"APIG.0612"}"#, false),
            (r#"{"error_code":"WKS.1","error_code":"APIGW.0301"}"#, false),
            (r#"{"error_code":"apigw.0301"}"#, false),
            (r#"{"error_code":" APIGW.0301"}"#, false),
            (r#"{"error_code":"APIGW"}"#, false),
            (r#"{"error_code":"WKS."}"#, false),
            (r#"{"error_code":".1"}"#, false),
            (r#"{"error_code":""}"#, false),
            (r#"{"error_code":1}"#, false),
            (r#"{"error_msg":"x"}"#, false),
            ("<html>", false),
            ("", false),
        ] {
            assert_eq!(is_services_own(body.as_bytes()), expected, "{body}");
        }
    }
}
