//! Which request headers an operator may let decide an answer, and which never go upstream because a
//! client has sent them.

use http::HeaderName;

/// A credential, or a part of one.
const CREDENTIALS: [&str; 7] =
    ["authorization", "cookie", "cookie2", "set-cookie", "x-sdk-date", "x-sdk-content-sha256", "apikey"];

/// Besides credentials, never taken over from a client by name: one hop's own, about a body that isn't
/// there, about what the client has cached, or what the gateway says itself.
const RESERVED: [&[&str]; 4] = [
    &["host", "accept", "accept-encoding", "user-agent", "via", "x-request-id", "x-project-id"],
    &["range", "cache-control", "pragma", "expect", "max-forwards"],
    &["connection", "keep-alive", "te", "trailer", "transfer-encoding", "upgrade", "http2-settings"],
    &["age", "date", "www-authenticate"],
];

/// Families of the same: `Content-Length`, `If-None-Match`, `Proxy-Authorization`.
const RESERVED_PREFIXES: [&str; 3] = ["content-", "if-", "proxy-"];

/// What other credentials are called: `X-Auth-Token`, `X-Api-Key` and whatever comes next.
const CREDENTIAL_SUFFIXES: [&str; 2] = ["-token", "-key"];

/// Whether a header is a credential, or may be one.
pub(crate) fn is_credential(name: &HeaderName) -> bool {
    let name = as_read(name);
    CREDENTIALS.contains(&&*name) || CREDENTIAL_SUFFIXES.iter().any(|suffix| name.ends_with(suffix))
}

/// To some servers `_` is `-`.
fn as_read(name: &HeaderName) -> String {
    name.as_str().replace('_', "-")
}

/// Whether a header is neither a credential nor the gateway's own affair, so that an operator may
/// name it.
pub(crate) fn is_open(name: &HeaderName) -> bool {
    let is_credential = is_credential(name);
    let name = as_read(name);
    let is_reserved = RESERVED.iter().any(|names| names.contains(&&*name))
        || RESERVED_PREFIXES.iter().any(|prefix| name.starts_with(prefix));
    !is_credential && !is_reserved
}

/// Whether a header names a request for those who trace it (W3C Trace Context), so that no service
/// answers by it.
pub(crate) fn is_trace(name: &HeaderName) -> bool {
    name == "traceparent" || name == "tracestate"
}
