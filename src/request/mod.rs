//! Pure functions that read a request's head: its route, its caller and its cache key.
//!
//! Nothing here waits, reads a clock or touches a socket, so `serve`, `explain` and the property tests run the same
//! code. What these functions do not fully understand becomes a [`BypassReason`], never a guess.

pub(crate) mod caller;
pub(crate) mod decide;
pub(crate) mod digest;
pub(crate) mod directives;
pub(crate) mod fingerprint;
pub(crate) mod forwarded;
pub(crate) mod half_close;
pub(crate) mod hop;
pub(crate) mod id;
pub(crate) mod key;
pub(crate) mod options;
pub(crate) mod peer;
pub(crate) mod precondition;
pub(crate) mod query;
pub(crate) mod rejection;
pub(crate) mod request_directives;
pub(crate) mod route;
pub(crate) mod target;
pub(crate) mod trace;
pub(crate) mod trailers;
pub(crate) mod validate;

use http::HeaderValue;
use strum::{IntoStaticStr, VariantArray};

/// The request id. Each response has its own; it is never stored.
pub(crate) const X_REQUEST_ID: http::HeaderName = http::HeaderName::from_static("x-request-id");
/// How the cache handled a request (RFC 9211).
pub(crate) const CACHE_STATUS: http::HeaderName = http::HeaderName::from_static("cache-status");

/// Copies a header value, so that it does not keep the whole read buffer in memory.
pub(crate) fn copied(value: &HeaderValue) -> HeaderValue {
    // Cannot fail: the bytes are those of a valid value.
    HeaderValue::from_bytes(value.as_bytes()).unwrap_or(HeaderValue::from_static(""))
}

/// Why a request for an operation is relayed unchanged, and its response not stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, IntoStaticStr, VariantArray)]
#[strum(const_into_str, serialize_all = "kebab-case")]
pub enum BypassReason {
    /// An operator has switched the cache off.
    Mode,
    NoCredential,
    /// The only credential is a signature that this gateway cannot verify.
    UnverifiedSignature,
    /// The project id does not match `[A-Za-z0-9_-]{1,255}`.
    ProjectId,
    /// Another captured path segment may have more than one spelling or meaning.
    PathSegment,
    /// `X-Project-Id` does not equal the project in the path.
    ProjectMismatch,
    /// A keyed header is present more than once.
    RepeatedHeader,
    /// A GET or HEAD with a body.
    Body,
    /// `Range` or `If-Range`.
    Range,
    /// `Cache-Control: no-store`.
    ClientNoStore,
    /// A query parameter is present more than once.
    RepeatedParameter,
    /// A `+` in the query. Some servers decode it as a space.
    Plus,
    /// A `;` in the query. Some servers take it for a separator.
    Semicolon,
    /// A malformed percent-escape, or bytes that are not UTF-8 after decoding.
    Encoding,
    /// A control character in the query.
    ControlCharacter,
    /// A query parameter without a name or without `=`.
    MalformedParameter,
    /// The canonical query is longer than 16 KiB.
    LongQuery,
    /// The response was too large to hold. It was requested again and streamed.
    TooLarge,
}

impl BypassReason {
    /// A description for people.
    pub fn describe(self) -> &'static str {
        match self {
            Self::Mode => "the cache is switched off (mode = \"bypass\")",
            Self::NoCredential => "the request has neither X-Auth-Token nor a signature",
            Self::UnverifiedSignature => {
                "the signature is by an access key that is not configured here, or its scheme is not SDK-HMAC-SHA256"
            }
            Self::ProjectId => "the project id is not 1 to 255 characters of A-Z a-z 0-9 _ -",
            Self::PathSegment => "a path segment is not 1 to 255 characters of A-Z a-z 0-9 - . _ ~, or is . or ..",
            Self::ProjectMismatch => "X-Project-Id is not the project in the path",
            Self::RepeatedHeader => "a header that is part of the cache key is present more than once",
            Self::Body => "the request has a body",
            Self::Range => "the request has Range or If-Range",
            Self::ClientNoStore => "the request has Cache-Control: no-store",
            Self::RepeatedParameter => "a query parameter is present more than once",
            Self::Plus => "the query has a '+', which some servers decode as a space",
            Self::Semicolon => "the query has a ';', which some servers take for a separator",
            Self::Encoding => {
                "the query has a malformed percent-escape, unescaped bytes outside ASCII, or is not UTF-8"
            }
            Self::ControlCharacter => "the query has a control character",
            Self::LongQuery => "the query is longer than 16 KiB after escaping",
            Self::MalformedParameter => "a query parameter has no name or no '='",
            Self::TooLarge => "the response was too large to hold, so it was streamed",
        }
    }
}
