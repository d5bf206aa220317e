//! The status page: one document with its style and script. It has no figures and no secret in it. It loads them from
//! the listener that served it, and must load nothing from anywhere else.

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use bytes::Bytes;
use http::header::CONTENT_SECURITY_POLICY;
use http::{HeaderValue, StatusCode};

use super::{Page, page};

const HTML: &str = include_str!("page/page.html");
const STYLE: &str = include_str!("page/page.css");
/// In the order in which they use each other.
const SCRIPT: &str = concat!(
    include_str!("page/format.js"),
    include_str!("page/charts.js"),
    include_str!("page/tables.js"),
    include_str!("page/quotas.js"),
    include_str!("page/conditions.js"),
    include_str!("page/callers.js"),
    include_str!("page/tail.js"),
    include_str!("page/explain.js"),
    include_str!("page/page.js"),
);

pub(super) struct Document {
    html: Bytes,
    policy: HeaderValue,
}

impl Document {
    pub(super) fn new() -> Self {
        let html = HTML.replace("/*STYLE*/", STYLE).replace("/*SCRIPT*/", SCRIPT);
        // The browser applies exactly this style and runs exactly this script, whatever else gets into the page.
        let hash = |text: &str| BASE64_STANDARD.encode(ring::digest::digest(&ring::digest::SHA256, text.as_bytes()));
        let policy = format!(
            "default-src 'none'; style-src 'sha256-{}'; script-src 'sha256-{}'; connect-src 'self'; img-src data:; \
             base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
            hash(STYLE),
            hash(SCRIPT),
        );
        // If the policy were no valid header value, nothing may be loaded at all.
        let policy = HeaderValue::try_from(policy).unwrap_or(HeaderValue::from_static("default-src 'none'"));
        Self { html: html.into(), policy }
    }

    pub(super) fn page(&self) -> Page {
        let mut page = page(StatusCode::OK, "text/html; charset=utf-8", self.html.clone());
        page.headers_mut().insert(CONTENT_SECURITY_POLICY, self.policy.clone());
        page
    }
}
