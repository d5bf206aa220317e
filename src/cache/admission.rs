//! Which answers may be kept. A status alone proves nothing: the services document errors against
//! 200, so only a whole JSON body with `products` and without `error_code` counts.
//!
//! Until upstream's own caching directives are obeyed in full, an answer that has any is passed on
//! and not kept.

use std::time::Duration;

use bytes::Bytes;
use http::header::{AGE, CACHE_CONTROL, EXPIRES, PRAGMA, VARY};
use http::{HeaderMap, HeaderName, Response, StatusCode};
use serde::Deserialize;
use serde::de::IgnoredAny;

/// Why an answer is not kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unstorable {
    /// Not a 200.
    Status,
    /// A 200 that is not JSON, or not a JSON object.
    NotJson,
    /// JSON, but no product list.
    NotProducts,
    /// `Cache-Control`, `Expires` or `Pragma`.
    CacheDirectives,
    /// It varies on more than the key fixes.
    Vary,
    /// An `Age` that is not a number of seconds.
    BadAge,
}

impl Unstorable {
    /// All of them, for tables and tests.
    pub const ALL: [Self; 6] =
        [Self::Status, Self::NotJson, Self::NotProducts, Self::CacheDirectives, Self::Vary, Self::BadAge];

    /// The name used alike as metric label, log field and `Cache-Status` detail.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Status => "status",
            Self::NotJson => "not-json",
            Self::NotProducts => "not-products",
            Self::CacheDirectives => "cache-directives",
            Self::Vary => "vary",
            Self::BadAge => "bad-age",
        }
    }
}

/// Decides whether a whole answer may be kept. `is_fixed` says which
/// request headers are the same for everyone who asks under one key; on those an answer may vary.
///
/// # Errors
/// The reason why it may not.
pub fn admit(answer: &Response<Bytes>, is_fixed: impl Fn(&HeaderName) -> bool) -> Result<(), Unstorable> {
    let headers = answer.headers();
    if answer.status() != StatusCode::OK {
        return Err(Unstorable::Status);
    }
    if [CACHE_CONTROL, EXPIRES, PRAGMA].iter().any(|name| headers.contains_key(name)) {
        return Err(Unstorable::CacheDirectives);
    }
    if !varies_on(headers).all(|name| name.is_some_and(|name| is_fixed(&name))) {
        return Err(Unstorable::Vary);
    }
    if age(headers).is_none() {
        return Err(Unstorable::BadAge);
    }
    check_body(answer.body())
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

/// Reads the body once from end to end, so that a truncated one can't pass, and keeps nothing.
fn check_body(body: &[u8]) -> Result<(), Unstorable> {
    #[derive(Deserialize)]
    struct ProductList {
        products: Option<IgnoredAny>,
        error_code: Option<IgnoredAny>,
    }
    // An array would do for a struct, too.
    if !body.trim_ascii_start().starts_with(b"{") {
        return Err(Unstorable::NotJson);
    }
    let list: ProductList = serde_json::from_slice(body).map_err(|_| Unstorable::NotJson)?;
    match (list.products, list.error_code) {
        (Some(_), None) => Ok(()),
        _ => Err(Unstorable::NotProducts),
    }
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

    fn admit(answer: &Response<Bytes>) -> Result<(), Unstorable> {
        super::admit(answer, |name| name == "accept")
    }

    #[test]
    fn a_product_list_is_kept() {
        for body in [r#"{"products":[]}"#, r#"{"total_count":1,"products":{"product_id":"p"}}"#] {
            assert_eq!(admit(&answer(200, &[], body)), Ok(()), "{body}");
        }
        assert_eq!(admit(&answer(200, &[("vary", "Accept,, accept")], r#"{"products":[]}"#)), Ok(()));
        let aged = answer(200, &[("age", "7")], r#"{"products":[]}"#);
        assert_eq!((admit(&aged), age(aged.headers())), (Ok(()), Some(Duration::from_secs(7))));
    }

    #[test]
    fn anything_else_is_not() {
        let list = r#"{"products":[]}"#;
        for (answer, reason) in [
            (answer(203, &[], list), Unstorable::Status),
            (answer(401, &[], list), Unstorable::Status),
            (answer(200, &[], ""), Unstorable::NotJson),
            (answer(200, &[], "<html>"), Unstorable::NotJson),
            (answer(200, &[], r#"{"products":[]"#), Unstorable::NotJson),
            (answer(200, &[], r#"{"products":[]}x"#), Unstorable::NotJson),
            (answer(200, &[], "[]"), Unstorable::NotJson),
            (answer(200, &[], "[1,null]"), Unstorable::NotJson),
            (answer(200, &[], r#"{"error_code":"WKS.00211401","error_msg":"x"}"#), Unstorable::NotProducts),
            (answer(200, &[], r#"{"error_code":"WKS.00211401","products":[]}"#), Unstorable::NotProducts),
            (answer(200, &[], r#"{"products":null}"#), Unstorable::NotProducts),
            (answer(200, &[("cache-control", "max-age=60")], list), Unstorable::CacheDirectives),
            (answer(200, &[("expires", "0")], list), Unstorable::CacheDirectives),
            (answer(200, &[("vary", "*")], list), Unstorable::Vary),
            (answer(200, &[("vary", "accept, cookie")], list), Unstorable::Vary),
            (answer(200, &[("vary", "accept"), ("vary", "a b")], list), Unstorable::Vary),
            (answer(200, &[("age", "+7")], list), Unstorable::BadAge),
            (answer(200, &[("age", "")], list), Unstorable::BadAge),
            (answer(200, &[("age", "1"), ("age", "2")], list), Unstorable::BadAge),
        ] {
            assert_eq!(admit(&answer), Err(reason), "{answer:?}");
        }
    }
}
