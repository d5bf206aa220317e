//! Decides what a complete response means: for its caller, for the callers that wait for the same response, and for the
//! cache.
//!
//! A status alone proves nothing: the services document errors with status 200. So a 200 counts only if its body passes
//! the check of its operation (`cache/body.rs`): by default, complete JSON with `products` and without `error_code`.

use bytes::Bytes;
use http::header::VARY;
use http::{HeaderMap, HeaderName, Response, StatusCode};

use super::unstorable::Unstorable;
use super::{body, lifetime};
use crate::catalogue::BodyCheck;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// A valid 200, such as a product list: it proves the caller. The result says whether it may be stored.
    Proof(Result<Audience, Unstorable>),
    /// A 200 whose body does not pass the check. No other caller may get it.
    InvalidBody(Unstorable),
    /// Upstream refused the credential.
    Denial,
    /// The response depends on the caller or on its request headers, for example a 431 for a long token.
    Personal,
    /// A 400, 404 or 405: the same for every caller.
    Negative,
    /// A 429. It does not say whether this caller or all callers together sent too many requests.
    Throttled,
    /// A 5xx other than 508.
    Failure,
}

/// Who may see a stored response.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Audience {
    /// All callers with a grant.
    All,
    /// The caller of the request: upstream says that the response varies on the credential. The gateway assumes this
    /// for all responses of the operation.
    Caller,
}

/// How the gateway treats a request header that a response varies on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum VaryRole {
    /// All requests with the same key send the same value.
    Fixed,
    /// The header identifies the caller.
    Credential,
    /// Clients may send any value.
    Free,
}

/// Classifies a complete response. `is_private` says whether it would be stored for its caller only. `role` classifies
/// the request headers that `Vary` names.
pub fn classify(
    response: &Response<Bytes>,
    check: &BodyCheck,
    is_private: bool,
    role: impl Fn(&HeaderName) -> VaryRole,
) -> Verdict {
    match response.status().as_u16() {
        200 => match body::check(response.body(), check) {
            Ok(()) => Verdict::Proof(check_headers(response.headers(), is_private, &role)),
            Err(reason) => Verdict::InvalidBody(reason),
        },
        401 | 403 => Verdict::Denial,
        // If its headers limit it to one caller, or cannot be parsed, it is not a statement for every caller.
        _ if is_negative(response.status()) => match check_headers(response.headers(), is_private, &role) {
            Ok(Audience::All) => Verdict::Negative,
            _ => Verdict::Personal,
        },
        429 => Verdict::Throttled,
        // A 508 (loop detected) is about the gateways that this one request has passed.
        500..=507 | 509..=599 => Verdict::Failure,
        _ => Verdict::Personal,
    }
}

/// Whether a status says that the resource or method does not exist.
pub(crate) fn is_negative(status: StatusCode) -> bool {
    matches!(status.as_u16(), 400 | 404 | 405)
}

fn check_headers(
    headers: &HeaderMap,
    is_private: bool,
    role: impl Fn(&HeaderName) -> VaryRole,
) -> Result<Audience, Unstorable> {
    let reserved = lifetime::reserved_fields(headers).ok_or(Unstorable::CacheDirectives)?;
    let mut audience = Audience::All;
    for name in varies_on(headers) {
        match name.map_or(VaryRole::Free, |name| role(&name)) {
            VaryRole::Fixed => {}
            VaryRole::Credential => audience = Audience::Caller,
            VaryRole::Free => return Err(Unstorable::Vary),
        }
    }
    // Reserved fields can be left out only of an entry that is stored for one caller.
    if !reserved.is_empty() && !is_private && audience == Audience::All {
        return Err(Unstorable::CacheDirectives);
    }
    lifetime::age(headers).map(|_| audience).ok_or(Unstorable::BadAge)
}

/// Whether `Vary` names the credential, whatever else the headers say about storing the response.
pub(crate) fn varies_on_credential(headers: &HeaderMap, role: impl Fn(&HeaderName) -> VaryRole) -> bool {
    varies_on(headers).flatten().any(|name| role(&name) == VaryRole::Credential)
}

/// Whether a body contains an `error_code`, whatever the status is. False if the body is not complete JSON.
pub fn has_error_code(body: &[u8]) -> bool {
    body::has_error_code(body)
}

/// The header names in `Vary`. `None` stands for `*` and for members that are not valid names.
fn varies_on(headers: &HeaderMap) -> impl Iterator<Item = Option<HeaderName>> {
    let names = headers.get_all(VARY).iter().flat_map(|value| value.as_bytes().split(|&byte| byte == b','));
    let names = names.map(<[u8]>::trim_ascii).filter(|name| !name.is_empty());
    // The parser of header names accepts `*`.
    names.map(|name| HeaderName::from_bytes(name).ok().filter(|name| name != "*"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn response(status: u16, headers: &[(&str, &str)], body: &'static str) -> Response<Bytes> {
        let mut builder = Response::builder().status(status);
        for (name, value) in headers {
            builder = builder.header(*name, *value);
        }
        builder.body(Bytes::from_static(body.as_bytes())).unwrap()
    }

    fn classify(response: &Response<Bytes>) -> Verdict {
        judge_for(response, false)
    }

    fn judge_for(response: &Response<Bytes>, is_private: bool) -> Verdict {
        super::classify(response, &BodyCheck::Field("products".into()), is_private, |name| match name.as_str() {
            "accept" => VaryRole::Fixed,
            "x-auth-token" => VaryRole::Credential,
            _ => VaryRole::Free,
        })
    }

    #[test]
    fn a_product_list_is_a_proof_and_is_stored() {
        for body in [r#"{"products":[]}"#, r#"{"total_count":1,"products":{"product_id":"p"}}"#] {
            assert_eq!(classify(&response(200, &[], body)), Verdict::Proof(Ok(Audience::All)), "{body}");
        }
        let list = r#"{"products":[]}"#;
        assert_eq!(classify(&response(200, &[("vary", "Accept,, accept")], list)), Verdict::Proof(Ok(Audience::All)));
        assert_eq!(
            classify(&response(200, &[("age", "7"), ("cache-control", "max-age=1")], list)),
            Verdict::Proof(Ok(Audience::All))
        );
        let varying = response(200, &[("vary", "accept, X-Auth-Token")], list);
        assert_eq!(classify(&varying), Verdict::Proof(Ok(Audience::Caller)));
    }

    #[test]
    fn a_product_list_that_may_not_be_stored_is_still_a_proof() {
        for (name, value, reason) in [
            ("cache-control", "max-age=60, no-store", Unstorable::CacheDirectives),
            ("cache-control", "private=\"", Unstorable::CacheDirectives),
            ("pragma", "no-cache", Unstorable::CacheDirectives),
            ("vary", "x-auth-token, cookie", Unstorable::Vary),
            ("vary", "*", Unstorable::Vary),
            ("vary", "accept, cookie", Unstorable::Vary),
            ("vary", "accept, a b", Unstorable::Vary),
            ("age", "+7", Unstorable::BadAge),
            ("age", "", Unstorable::BadAge),
            ("age", "1, 2", Unstorable::BadAge),
        ] {
            let verdict = classify(&response(200, &[(name, value)], r#"{"products":[]}"#));
            assert_eq!(verdict, Verdict::Proof(Err(reason)), "{name}: {value}");
        }
        let twice = response(200, &[("age", "1"), ("age", "1")], r#"{"products":[]}"#);
        assert_eq!(classify(&twice), Verdict::Proof(Err(Unstorable::BadAge)));
    }

    #[test]
    fn a_response_with_reserved_fields_is_stored_only_for_its_caller_or_not_at_all() {
        let list = r#"{"products":[]}"#;
        let reserving = response(200, &[("cache-control", "private=\"x-own\"")], list);
        assert_eq!(judge_for(&reserving, false), Verdict::Proof(Err(Unstorable::CacheDirectives)));
        assert_eq!(judge_for(&reserving, true), Verdict::Proof(Ok(Audience::All)));
        let varying = response(200, &[("cache-control", "no-cache=\"x-own\""), ("vary", "x-auth-token")], list);
        assert_eq!(
            judge_for(&varying, false),
            Verdict::Proof(Ok(Audience::Caller)),
            "it will be stored for its caller only"
        );
        let private = response(200, &[("cache-control", "private")], list);
        assert_eq!(judge_for(&private, true), Verdict::Proof(Err(Unstorable::CacheDirectives)));
    }

    #[test]
    fn a_status_alone_proves_nothing() {
        for (body, reason) in [
            ("", Unstorable::NotJson),
            ("<html>", Unstorable::NotJson),
            (r#"{"products":[]"#, Unstorable::NotJson),
            (r#"{"products":[]}x"#, Unstorable::NotJson),
            ("[]", Unstorable::NotJson),
            ("[1,null]", Unstorable::NotJson),
            (r#"{"error_code":"WKS.00211401","error_msg":"x"}"#, Unstorable::NotProducts),
            (r#"{"error_code":"WKS.00211401","products":[]}"#, Unstorable::NotProducts),
            (r#"{"products":null}"#, Unstorable::NotProducts),
        ] {
            assert_eq!(classify(&response(200, &[], body)), Verdict::InvalidBody(reason), "{body}");
        }
    }

    #[test]
    fn for_every_other_status_the_body_does_not_matter() {
        for (verdict, statuses) in [
            (Verdict::Denial, &[401, 403][..]),
            (Verdict::Negative, &[400, 404, 405]),
            (Verdict::Throttled, &[429]),
            (Verdict::Failure, &[500, 502, 503, 504, 599]),
            (Verdict::Personal, &[201, 203, 204, 206, 301, 304, 402, 407, 409, 413, 414, 431, 494, 508, 600]),
        ] {
            for &status in statuses {
                assert_eq!(classify(&response(status, &[], r#"{"products":[]}"#)), verdict, "{status}");
            }
        }
    }
}
