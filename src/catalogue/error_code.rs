//! Reads the `error_code` of upstream's error bodies: is it the service's, or the API gateway's?

use serde::Deserialize;
use serde::de::DeserializeOwned;

/// Reads the code of an error body: `{"error_code": "WKS.…", "error_msg": "…"}`. `None` if the body is not such an
/// object, or has the field twice.
pub(crate) fn error_code(body: &[u8]) -> Option<String> {
    #[derive(Deserialize)]
    struct ErrorBody {
        error_code: String,
    }
    read_object::<ErrorBody>(body).map(|error| error.error_code)
}

/// Reads a struct from a JSON object. serde_json would also take an array of its fields for it, and bytes that are not
/// UTF-8 in the fields that the struct does not have.
pub(crate) fn read_object<T: DeserializeOwned>(body: &[u8]) -> Option<T> {
    let text = std::str::from_utf8(body).ok()?;
    let is_object = text.trim_ascii_start().starts_with('{');
    is_object.then(|| serde_json::from_str(text).ok()).flatten()
}

/// Whether the body has a code of the service itself, such as `WKS.00211302`. Then the API gateway in front of the
/// service has accepted the credential. The API gateway's own codes begin with `APIGW.` or `APIG.`. Codes of any other
/// form count as the API gateway's.
pub fn is_services_own(body: &[u8]) -> bool {
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
    fn only_a_well_formed_code_that_is_not_the_api_gateways_is_the_services_own() {
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
            (r#"["WKS.1"]"#, false),
            ("<html>", false),
            ("", false),
        ] {
            assert_eq!(is_services_own(body.as_bytes()), expected, "{body}");
        }
        assert!(!is_services_own(b"{\"error_code\":\"WKS.1\",\"error_msg\":\"\xff\"}"), "not UTF-8");
    }
}
