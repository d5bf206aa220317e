//! Which request headers an operator may configure as keyed or forwarded headers. Credentials and headers that the
//! gateway sets itself must not be among them.

use http::HeaderName;

/// Credentials, or parts of them.
const CREDENTIALS: [&str; 7] =
    ["authorization", "cookie", "cookie2", "set-cookie", "x-sdk-date", "x-sdk-content-sha256", "apikey"];

/// Headers besides credentials that are never copied from a client's request: the gateway sets them itself, or they are
/// hop-by-hop, or they are about a request body or the client's cache.
const RESERVED: [&[&str]; 4] = [
    &["host", "accept", "accept-encoding", "user-agent", "via", "x-request-id", "x-project-id"],
    &["range", "cache-control", "pragma", "expect", "max-forwards"],
    &["connection", "keep-alive", "te", "trailer", "transfer-encoding", "upgrade", "http2-settings"],
    &["age", "date", "www-authenticate"],
];

/// Name prefixes of such headers: `Content-Length`, `If-None-Match`, `Proxy-Authorization`.
const RESERVED_PREFIXES: [&str; 3] = ["content-", "if-", "proxy-"];

/// Name suffixes of other credentials, such as `X-Auth-Token` and `X-Api-Key`.
const CREDENTIAL_SUFFIXES: [&str; 2] = ["-token", "-key"];

/// Whether a header is a credential, or may be one.
pub(crate) fn is_credential(name: &HeaderName) -> bool {
    let name = with_dashes(name);
    CREDENTIALS.contains(&&*name) || CREDENTIAL_SUFFIXES.iter().any(|suffix| name.ends_with(suffix))
}

/// The name as servers read it that take `_` for `-`.
fn with_dashes(name: &HeaderName) -> String {
    name.as_str().replace('_', "-")
}

/// Whether an operator may configure the header.
pub(crate) fn is_configurable(name: &HeaderName) -> bool {
    let is_credential = is_credential(name);
    let name = with_dashes(name);
    let is_reserved = RESERVED.iter().any(|names| names.contains(&&*name))
        || RESERVED_PREFIXES.iter().any(|prefix| name.starts_with(prefix));
    !is_credential && !is_reserved
}

/// Whether a header is for tracing (W3C Trace Context), so that no response depends on it.
pub(crate) fn is_trace(name: &HeaderName) -> bool {
    name == "traceparent" || name == "tracestate"
}
