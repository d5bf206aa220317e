//! What an answer means: for the caller who asked, for the others who want the same, and for the
//! cache. A status alone proves nothing: the services document errors against 200, so only a whole
//! JSON body with `products` and without `error_code` counts, or what else an operation asks for
//! (`cache/body.rs`).
//!
//! Until upstream's own caching directives are obeyed in full, an answer that has any is passed on
//! and not kept.

use std::time::Duration;

use bytes::Bytes;
use http::header::{AGE, CACHE_CONTROL, EXPIRES, PRAGMA, VARY};
use http::{HeaderMap, HeaderName, Response};

use super::body;
use crate::catalogue::BodyCheck;

/// What an answer means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// An answer, such as a product list: upstream has proved the caller. Whether it may be kept is another question.
    Proof(Result<(), Unstorable>),
    /// A 200 that is none, which nobody else should be given.
    NoList(Unstorable),
    /// The credential was refused.
    Denial,
    /// It depends on who asked, or in what way: too large a token, say.
    Personal,
    /// There is no such thing, whoever asks.
    Negative,
    /// Asked too often, by this caller or by all: which of them is not said.
    Throttled,
    /// Upstream failed.
    Failure,
}

/// Why an answer is not kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unstorable {
    /// Not a 200.
    Status,
    /// A 200 that is not JSON, or no JSON object where a field is asked for.
    NotJson,
    /// JSON, but no product list, or what else the operation's body check asks for.
    NotProducts,
    /// `Cache-Control`, `Expires` or `Pragma`.
    CacheDirectives,
    /// It varies on more than the key fixes.
    Vary,
    /// An `Age` that is not a number of seconds.
    BadAge,
    /// Too large to hold.
    TooLarge,
}

impl Unstorable {
    /// All of them, for tables and tests.
    pub const ALL: [Self; 7] = [
        Self::Status,
        Self::NotJson,
        Self::NotProducts,
        Self::CacheDirectives,
        Self::Vary,
        Self::BadAge,
        Self::TooLarge,
    ];

    /// The name used alike as metric label, log field and `Cache-Status` detail.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Status => "status",
            Self::NotJson => "not-json",
            Self::NotProducts => "not-products",
            Self::CacheDirectives => "cache-directives",
            Self::Vary => "vary",
            Self::BadAge => "bad-age",
            Self::TooLarge => "too-large",
        }
    }
}

/// Says what a whole answer means, given what the operation asks of a body. `is_fixed` says which request headers are the same for everyone
/// who asks under one key; on those an answer may vary.
pub fn judge(answer: &Response<Bytes>, check: &BodyCheck, is_fixed: impl Fn(&HeaderName) -> bool) -> Verdict {
    match answer.status().as_u16() {
        200 => match body::check(answer.body(), check) {
            Ok(()) => Verdict::Proof(check_headers(answer.headers(), is_fixed)),
            Err(reason) => Verdict::NoList(reason),
        },
        401 | 403 => Verdict::Denial,
        400 | 404 | 405 => Verdict::Negative,
        // 508: the trail of gateways that this very request has come through.
        429 => Verdict::Throttled,
        500..=507 | 509..=599 => Verdict::Failure,
        _ => Verdict::Personal,
    }
}

fn check_headers(headers: &HeaderMap, is_fixed: impl Fn(&HeaderName) -> bool) -> Result<(), Unstorable> {
    if [CACHE_CONTROL, EXPIRES, PRAGMA].iter().any(|name| headers.contains_key(name)) {
        return Err(Unstorable::CacheDirectives);
    }
    if !varies_on(headers).all(|name| name.is_some_and(|name| is_fixed(&name))) {
        return Err(Unstorable::Vary);
    }
    age(headers).map(|_| ()).ok_or(Unstorable::BadAge)
}

/// The names in `Vary`; `None` for what is none, `*` above all.
fn varies_on(headers: &HeaderMap) -> impl Iterator<Item = Option<HeaderName>> {
    let names = headers.get_all(VARY).iter().flat_map(|value| value.as_bytes().split(|&byte| byte == b','));
    let names = names.map(<[u8]>::trim_ascii).filter(|name| !name.is_empty());
    // `*` is a valid header name by its characters.
    names.map(|name| HeaderName::from_bytes(name).ok().filter(|name| name != "*"))
}

/// How old an answer was when it came: its `Age`, zero without one. `None` if that can't be read.
pub fn age(headers: &HeaderMap) -> Option<Duration> {
    let mut values = headers.get_all(AGE).iter();
    let Some(value) = values.next() else { return Some(Duration::ZERO) };
    let seconds = value.to_str().ok()?;
    // `parse` would take a sign as well.
    let is_number = values.next().is_none() && seconds.bytes().all(|byte| byte.is_ascii_digit());
    is_number.then(|| seconds.parse().ok()).flatten().map(Duration::from_secs)
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
        super::judge(answer, &BodyCheck::Field("products".into()), |name| name == "accept")
    }

    #[test]
    fn a_product_list_is_proof_and_kept() {
        for body in [r#"{"products":[]}"#, r#"{"total_count":1,"products":{"product_id":"p"}}"#] {
            assert_eq!(judge(&answer(200, &[], body)), Verdict::Proof(Ok(())), "{body}");
        }
        let list = r#"{"products":[]}"#;
        assert_eq!(judge(&answer(200, &[("vary", "Accept,, accept")], list)), Verdict::Proof(Ok(())));
        let aged = answer(200, &[("age", "7")], list);
        assert_eq!((judge(&aged), age(aged.headers())), (Verdict::Proof(Ok(())), Some(Duration::from_secs(7))));
    }

    #[test]
    fn proof_is_proof_even_where_it_may_not_be_kept() {
        for (name, value, reason) in [
            ("cache-control", "max-age=60", Unstorable::CacheDirectives),
            ("expires", "0", Unstorable::CacheDirectives),
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
