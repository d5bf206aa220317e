//! What an answer means: for the caller who asked, for the others who want the same, and for the
//! cache. A status alone proves nothing: the services document errors against 200, so only a whole
//! JSON body with `products` and without `error_code` counts, or what else an operation asks for
//! (`cache/body.rs`).

use bytes::Bytes;
use http::header::VARY;
use http::{HeaderMap, HeaderName, Response, StatusCode};

use super::unstorable::Unstorable;
use super::{body, lifetime};
use crate::catalogue::BodyCheck;

/// What an answer means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// An answer, such as a product list: upstream has proved the caller. Whether it may be kept is
    /// another question.
    Proof(Result<Audience, Unstorable>),
    /// A 200 that is none, which nobody else should be given.
    NoList(Unstorable),
    /// The credential was refused.
    Denial,
    /// It depends on who asked, or in what way: too large a token, say.
    Personal,
    /// There is no such thing, whoever asks.
    Negative,
    /// Lookup too often, by this caller or by all: which of them is not said.
    Throttled,
    /// Upstream failed.
    Failure,
}

/// For whom an answer may be kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Audience {
    /// For all who are proved.
    All,
    /// For the caller who asked: upstream says that it varies on the credential. So do all answers to its operation.
    Caller,
}

/// What a request header is to an answer that varies on it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum CallerRole {
    /// The same for everyone who asks under one key.
    Fixed,
    /// What callers are told apart by.
    Credential,
    /// Anything a client may send.
    Free,
}

/// Says what a whole answer means, given what the operation asks of a body, and whether the answer is going to be
/// kept for its caller alone. `role` says what request headers are to an answer that varies on them.
pub(crate) fn judge(
    answer: &Response<Bytes>,
    check: &BodyCheck,
    is_alone: bool,
    role: impl Fn(&HeaderName) -> CallerRole,
) -> Verdict {
    match answer.status().as_u16() {
        200 => match body::check(answer.body(), check) {
            Ok(()) => Verdict::Proof(check_headers(answer.headers(), is_alone, &role)),
            Err(reason) => Verdict::NoList(reason),
        },
        401 | 403 => Verdict::Denial,
        // Said to be about the one who asked, it is; likewise if what it says of that can't be read.
        _ if is_negative(answer.status()) => match check_headers(answer.headers(), is_alone, &role) {
            Ok(Audience::All) => Verdict::Negative,
            _ => Verdict::Personal,
        },
        // 508: the trail of gateways that this very request has come through.
        429 => Verdict::Throttled,
        500..=507 | 509..=599 => Verdict::Failure,
        _ => Verdict::Personal,
    }
}

/// Whether a status says that there is no such thing.
pub(crate) fn is_negative(status: StatusCode) -> bool {
    matches!(status.as_u16(), 400 | 404 | 405)
}

fn check_headers(
    headers: &HeaderMap,
    is_alone: bool,
    role: impl Fn(&HeaderName) -> CallerRole,
) -> Result<Audience, Unstorable> {
    let reserved = lifetime::reserved(headers).ok_or(Unstorable::CacheDirectives)?;
    let mut audience = Audience::All;
    for name in varies_on(headers) {
        match name.map_or(CallerRole::Free, |name| role(&name)) {
            CallerRole::Fixed => {}
            CallerRole::Credential => audience = Audience::Caller,
            CallerRole::Free => return Err(Unstorable::Vary),
        }
    }
    // What is reserved for one caller can be left out only where it is kept for that one alone.
    if !reserved.is_empty() && !is_alone && audience == Audience::All {
        return Err(Unstorable::CacheDirectives);
    }
    lifetime::age(headers).map(|_| audience).ok_or(Unstorable::BadAge)
}

/// Whether upstream says that an answer varies on the credential, whatever else it says of keeping it.
pub(crate) fn varies_on_credential(headers: &HeaderMap, role: impl Fn(&HeaderName) -> CallerRole) -> bool {
    varies_on(headers).flatten().any(|name| role(&name) == CallerRole::Credential)
}

/// Whether a body tells of an error, though its status may not. False where it is not whole JSON.
pub(crate) fn tells_error(body: &[u8]) -> bool {
    body::has_error_code(body)
}

/// The names in `Vary`; `None` for what is none, `*` above all.
fn varies_on(headers: &HeaderMap) -> impl Iterator<Item = Option<HeaderName>> {
    let names = headers.get_all(VARY).iter().flat_map(|value| value.as_bytes().split(|&byte| byte == b','));
    let names = names.map(<[u8]>::trim_ascii).filter(|name| !name.is_empty());
    // `*` is a valid header name by its characters.
    names.map(|name| HeaderName::from_bytes(name).ok().filter(|name| name != "*"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answer(status: u16, headers: &[(&str, &str)], body: &'static str) -> Response<Bytes> {
        let mut builder = Response::builder().status(status);
        for (name, value) in headers {
            builder = builder.header(*name, *value);
        }
        builder.body(Bytes::from_static(body.as_bytes())).unwrap()
    }

    fn judge(answer: &Response<Bytes>) -> Verdict {
        judge_for(answer, false)
    }

    fn judge_for(answer: &Response<Bytes>, is_alone: bool) -> Verdict {
        super::judge(answer, &BodyCheck::Field("products".into()), is_alone, |name| match name.as_str() {
            "accept" => CallerRole::Fixed,
            "x-auth-token" => CallerRole::Credential,
            _ => CallerRole::Free,
        })
    }

    #[test]
    fn a_product_list_is_proof_and_kept() {
        for body in [r#"{"products":[]}"#, r#"{"total_count":1,"products":{"product_id":"p"}}"#] {
            assert_eq!(judge(&answer(200, &[], body)), Verdict::Proof(Ok(Audience::All)), "{body}");
        }
        let list = r#"{"products":[]}"#;
        assert_eq!(judge(&answer(200, &[("vary", "Accept,, accept")], list)), Verdict::Proof(Ok(Audience::All)));
        assert_eq!(
            judge(&answer(200, &[("age", "7"), ("cache-control", "max-age=1")], list)),
            Verdict::Proof(Ok(Audience::All))
        );
        let personal = answer(200, &[("vary", "accept, X-Auth-Token")], list);
        assert_eq!(judge(&personal), Verdict::Proof(Ok(Audience::Caller)));
    }

    #[test]
    fn proof_is_proof_even_where_it_may_not_be_kept() {
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
            let verdict = judge(&answer(200, &[(name, value)], r#"{"products":[]}"#));
            assert_eq!(verdict, Verdict::Proof(Err(reason)), "{name}: {value}");
        }
        let twice = answer(200, &[("age", "1"), ("age", "1")], r#"{"products":[]}"#);
        assert_eq!(judge(&twice), Verdict::Proof(Err(Unstorable::BadAge)));
    }

    #[test]
    fn what_reserves_headers_is_kept_for_its_caller_alone_or_for_nobody() {
        let list = r#"{"products":[]}"#;
        let reserving = answer(200, &[("cache-control", "private=\"x-own\"")], list);
        assert_eq!(judge_for(&reserving, false), Verdict::Proof(Err(Unstorable::CacheDirectives)));
        assert_eq!(judge_for(&reserving, true), Verdict::Proof(Ok(Audience::All)));
        let varying = answer(200, &[("cache-control", "no-cache=\"x-own\""), ("vary", "x-auth-token")], list);
        assert_eq!(judge_for(&varying, false), Verdict::Proof(Ok(Audience::Caller)), "it is going to be alone");
        let private = answer(200, &[("cache-control", "private")], list);
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
            assert_eq!(judge(&answer(200, &[], body)), Verdict::NoList(reason), "{body}");
        }
    }

    #[test]
    fn every_other_status_has_its_meaning_whatever_the_body() {
        for (verdict, statuses) in [
            (Verdict::Denial, &[401, 403][..]),
            (Verdict::Negative, &[400, 404, 405]),
            (Verdict::Throttled, &[429]),
            (Verdict::Failure, &[500, 502, 503, 504, 599]),
            (Verdict::Personal, &[201, 203, 204, 206, 301, 304, 402, 407, 409, 413, 414, 431, 494, 508, 600]),
        ] {
            for &status in statuses {
                assert_eq!(judge(&answer(status, &[], r#"{"products":[]}"#)), verdict, "{status}");
            }
        }
    }
}
