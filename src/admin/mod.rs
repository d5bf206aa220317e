//! The two listeners beside the proxy: probes and metrics, which change nothing and hold no secret,
//! and the operator's, which is for this machine only.

mod operator;
mod probes;

use bytes::Bytes;
use http::header::{ALLOW, CONTENT_TYPE};
use http::{HeaderValue, Response, StatusCode};
use http_body_util::Full;

pub use operator::Operator;
pub use probes::Probes;

type Page = Response<Full<Bytes>>;

fn page(status: StatusCode, content_type: &'static str, text: impl Into<Bytes>) -> Page {
    let mut page = Response::new(Full::new(text.into()));
    *page.status_mut() = status;
    page.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(content_type));
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
