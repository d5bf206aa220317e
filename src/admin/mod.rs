//! The two listeners beside the proxy: probes and metrics, which change nothing and hold no secret,
//! and the operator's, which is for this machine, or for who shows a token.

mod document;
mod entries;
mod explain;
mod guard;
mod operator;
mod probes;
mod purge;
mod status;

use bytes::Bytes;
use http::header::{ALLOW, CACHE_CONTROL, CONTENT_TYPE, REFERRER_POLICY, X_CONTENT_TYPE_OPTIONS, X_FRAME_OPTIONS};
use http::{HeaderName, HeaderValue, Response, StatusCode};
use http_body_util::Full;

pub(crate) use operator::Operator;
pub(crate) use probes::Probes;

type Page = Response<Full<Bytes>>;

/// What every answer says: it is of this moment, what it says it is, and nothing for other sites to show, load or be told of.
const ALWAYS: [(HeaderName, &str); 5] = [
    (CACHE_CONTROL, "no-store"),
    (X_CONTENT_TYPE_OPTIONS, "nosniff"),
    (X_FRAME_OPTIONS, "DENY"),
    (REFERRER_POLICY, "no-referrer"),
    (HeaderName::from_static("cross-origin-resource-policy"), "same-origin"),
];

fn page(status: StatusCode, content_type: &'static str, text: impl Into<Bytes>) -> Page {
    let mut page = Response::new(Full::new(text.into()));
    *page.status_mut() = status;
    let headers = page.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static(content_type));
    for (name, value) in ALWAYS {
        headers.insert(name, HeaderValue::from_static(value));
    }
    page
}

fn text(status: StatusCode, text: impl Into<String>) -> Page {
    page(status, "text/plain; charset=utf-8", text.into() + "\n")
}

fn json(status: StatusCode, value: &impl serde::Serialize) -> Page {
    match serde_json::to_string_pretty(value) {
        Ok(body) => page(status, "application/json", body + "\n"),
        Err(error) => text(StatusCode::INTERNAL_SERVER_ERROR, format!("cannot write the answer: {error}")),
    }
}

fn not_found(pages: &str) -> Page {
    text(StatusCode::NOT_FOUND, format!("no such page: expected {pages}"))
}

fn not_allowed(methods: &'static str) -> Page {
    let mut page = text(StatusCode::METHOD_NOT_ALLOWED, format!("method not allowed: expected {methods}"));
    page.headers_mut().insert(ALLOW, HeaderValue::from_static(methods));
    page
}
