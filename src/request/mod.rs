//! What is asked, and by whom: pure functions from a request's head to a route, a caller and a key.
//!
//! Nothing here waits, reads a clock or touches a socket, so `serve`, `explain` and the property
//! tests run the same code. What these functions don't fully understand becomes a
//! [`BypassReason`], never a guess.

pub(crate) mod caller;
pub(crate) mod condition;
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

/// The header that names one request and its answer; never shared between answers.
pub(crate) const X_REQUEST_ID: http::HeaderName = http::HeaderName::from_static("x-request-id");

/// A copy of a header's value that doesn't hold on to the read buffer it came in.
pub(crate) fn copied(value: &HeaderValue) -> HeaderValue {
    // What was a header's value is one.
    HeaderValue::from_bytes(value.as_bytes()).unwrap_or(HeaderValue::from_static(""))
}

/// Why a request for a known operation is forwarded as it is, and its answer not kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, IntoStaticStr, VariantArray)]
#[strum(const_into_str, serialize_all = "kebab-case")]
pub enum BypassReason {
    /// The operator has switched the cache off.
    Mode,
    /// No credential, or a blank one.
    NoCredential,
    /// The only credential is a signature that this gateway can't verify.
    UnverifiedSignature,
    /// A project id outside `[A-Za-z0-9_-]{1,255}`.
    ProjectId,
    /// Another segment that the path captures may have more than one spelling or meaning.
    PathSegment,
    /// `X-Project-Id` names another project than the path, or the path names none.
    ProjectMismatch,
    /// A header that is part of the key is there more than once.
    RepeatedHeader,
    /// A GET or HEAD with a body.
    Body,
    /// `Range` or `If-Range`.
    Range,
    /// The client says that the answer must not be kept.
    ClientNoStore,
    /// A query parameter is there more than once.
    RepeatedParameter,
    /// A `+` in the query: a space to some servers, a plus to others.
    Plus,
    /// A `;` in the query: a separator to some servers.
    Semicolon,
    /// A bad percent-escape, or bytes that are not UTF-8 once decoded.
    Encoding,
    /// A control character in the query.
    ControlCharacter,
    /// A query parameter without a name or without `=`.
    MalformedParameter,
    /// A query longer than any key should be.
    LongQuery,
    /// The answer was too large to hold; it was asked for again and streamed.
    TooLarge,
}

impl BypassReason {
    /// The same for a person.
    pub fn describe(self) -> &'static str {
        match self {
            Self::Mode => "the cache is switched off (mode = \"bypass\")",
            Self::NoCredential => "neither X-Auth-Token nor a signature: upstream decides, and nothing is kept",
            Self::UnverifiedSignature => {
                "signed with an access key that is not configured here, or in another way than SDK-HMAC-SHA256"
            }
            Self::ProjectId => "the project id is not 1 to 255 of A-Z a-z 0-9 _ -",
            Self::PathSegment => "a segment of the path is not 1 to 255 of A-Z a-z 0-9 - . _ ~, or is . or ..",
            Self::ProjectMismatch => "X-Project-Id names another project than the path, or the path names none",
            Self::RepeatedHeader => "a header that is part of the key is there more than once",
            Self::Body => "the request has a body",
            Self::Range => "the request asks for a range",
            Self::ClientNoStore => "the request says Cache-Control: no-store",
            Self::RepeatedParameter => "a query parameter is there more than once",
            Self::Plus => "the query has a '+', which servers read in two ways",
            Self::Semicolon => "the query has a ';', which servers read in two ways",
            Self::Encoding => "the query has a bad percent-escape, unescaped bytes outside ASCII, or is not UTF-8",
            Self::ControlCharacter => "the query has a control character",
            Self::LongQuery => "the query is longer than 16 KiB once escaped",
            Self::MalformedParameter => "a query parameter has no name or no '='",
            Self::TooLarge => "the answer was too large to hold, so it was streamed",
        }
    }
}
