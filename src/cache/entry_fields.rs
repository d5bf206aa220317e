//! Which headers of a response an entry has, and which of them callers other than its own may get.

use http::{HeaderMap, HeaderName, HeaderValue};

/// The headers of shared entries: they describe the resource. Any other header may be about the caller of the request
/// (its remaining quota, its session, a new token), so no other caller gets it.
const SHAREABLE: [&str; 24] = [
    "cache-control",
    "cache-status",
    "content-disposition",
    "content-encoding",
    "content-language",
    "content-security-policy",
    "content-type",
    "cross-origin-resource-policy",
    "date",
    "etag",
    "expires",
    "last-modified",
    "link",
    "permissions-policy",
    "pragma",
    "referrer-policy",
    "server",
    "strict-transport-security",
    "vary",
    "via",
    "www-authenticate",
    "x-content-type-options",
    "x-frame-options",
    "x-xss-protection",
];

/// The headers that are about one response. They are in no entry. An entry that belongs to one caller has all other
/// headers, except those that the response reserves ([`super::lifetime::reserved_fields`]).
const OF_ONE_RESPONSE: [&str; 4] = ["age", "retry-after", "set-cookie", "x-request-id"];

/// Prefixes of further headers of this kind: those that tell the remaining quota.
const QUOTAS: [&str; 3] = ["ratelimit", "x-ratelimit", "x-apig-"];

/// The headers of a response that callers other than its own may get.
pub(crate) fn shareable(head: &HeaderMap) -> impl Iterator<Item = (&HeaderName, &HeaderValue)> {
    head.iter().filter(|(name, _)| SHAREABLE.contains(&name.as_str()))
}

/// Whether no entry has this header.
pub(super) fn is_of_one_response(name: &HeaderName) -> bool {
    OF_ONE_RESPONSE.contains(&name.as_str()) || QUOTAS.iter().any(|prefix| name.as_str().starts_with(prefix))
}
