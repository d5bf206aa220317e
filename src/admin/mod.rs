//! The two listeners beside the proxy: the metrics listener, for probes and Prometheus, and the admin listener, for the
//! operator. The metrics listener must not show a secret or change anything, because everyone may use it.

mod counts;
mod document;
mod entries;
mod explain;
mod fleet_status;
mod guard;
mod history;
mod operator;
mod probes;
mod purge;
mod quota_status;
mod status;
mod tail;

use bytes::Bytes;
use http::header::{ALLOW, CACHE_CONTROL, CONTENT_TYPE, REFERRER_POLICY, X_CONTENT_TYPE_OPTIONS, X_FRAME_OPTIONS};
use http::{HeaderName, HeaderValue, Method, Response, StatusCode};
use http_body_util::{Either, Full};

use crate::gateway::Gateway;

// For fuzz targets.
pub use guard::admit;
pub(crate) use operator::Operator;
pub(crate) use probes::Probes;

type Page = Response<Full<Bytes>>;

/// A page, or the live tail.
pub(crate) type AdminBody = Either<Full<Bytes>, tail::Tail>;

/// Headers of every response: it must not be stored, its type must not be guessed, and other sites must not show or
/// load it.
const ALWAYS: [(HeaderName, &str); 5] = [
    (CACHE_CONTROL, "no-store"),
    (X_CONTENT_TYPE_OPTIONS, "nosniff"),
    (X_FRAME_OPTIONS, "DENY"),
    (REFERRER_POLICY, "no-referrer"),
    (HeaderName::from_static("cross-origin-resource-policy"), "same-origin"),
];

/// Reads a query, or a form, as each page does that has one. Returns their statuses, and whether the live tail accepts it.
/// For fuzz targets: not in an asynchronous function.
pub fn read_query(gateway: &Gateway, query: &str) -> ([StatusCode; 4], bool) {
    let pages = [entries::page, explain::page, history::page, purge::page].map(|page| page(gateway, query).status());
    (pages, tail::filter(query, gateway.active().catalogue()).is_ok())
}

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
        Err(error) => text(StatusCode::INTERNAL_SERVER_ERROR, format!("cannot write the response: {error}")),
    }
}

/// A path of a listener.
struct Endpoint<H> {
    path: &'static str,
    /// The methods, as in the header `Allow`.
    allow: &'static str,
    /// What it is for, in a few words.
    help: &'static str,
    handler: H,
}

const READ: &str = "GET, HEAD";

/// The handler for a request.
///
/// # Errors
/// 404 with the list of all endpoints, or 405.
fn find<'e, H>(endpoints: &'e [Endpoint<H>], path: &str, method: &Method) -> Result<&'e H, Box<Page>> {
    let Some(endpoint) = endpoints.iter().find(|endpoint| endpoint.path == path) else {
        let list = endpoints.iter().map(|Endpoint { path, allow, help, .. }| format!("\n{path} ({allow}): {help}"));
        let list = list.collect::<String>();
        let message = format!("no such page: expected one of{list}\nClients use the proxy listener (listen.proxy).");
        return Err(Box::new(text(StatusCode::NOT_FOUND, message)));
    };
    if endpoint.allow.split(", ").any(|allowed| method == allowed) {
        return Ok(&endpoint.handler);
    }
    let allow = endpoint.allow;
    let mut page = text(StatusCode::METHOD_NOT_ALLOWED, format!("method not allowed: expected {allow}"));
    page.headers_mut().insert(ALLOW, HeaderValue::from_static(allow));
    Err(Box::new(page))
}
