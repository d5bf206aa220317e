//! Parses, verifies and makes signatures with access keys. Pure: the time is an argument. Secrets must not leave this
//! module.
//!
//! The SDKs and Terraform sign with `SDK-HMAC-SHA256`. The gateway verifies such a signature with a configured access
//! key, and signs the request anew for upstream's host. Other schemes are recognised as signatures, but never verified.
//!
//! ```text
//! authorization   parses Authorization            canonical   the canonical request, which is signed
//! key             one access key: sign, verify    ring        all configured keys: find the key, verify the request
//! date            X-Sdk-Date                      binding     whether an unverified signature may be valid upstream
//! repeated        verify a request again with another date
//! ```

mod authorization;
mod binding;
mod canonical;
mod date;
mod key;
mod repeated;
pub(crate) mod ring;
#[cfg(test)]
mod tests;

use http::HeaderName;

pub use authorization::{Authorization, has_signature};
pub use binding::{Binding, RelayChanges};
pub use canonical::{Payload, SignedTarget, canonical_request, string_to_sign};
pub use date::{parse as parse_date, show as show_date};
pub use key::{AccessKey, Projects};
pub use repeated::RepeatedRequest;

/// The only scheme that is verified and made here.
pub const SCHEME: &str = "SDK-HMAC-SHA256";

/// When a request was signed.
pub(crate) const X_SDK_DATE: HeaderName = HeaderName::from_static("x-sdk-date");

/// The SHA-256 of the body as the client states it, or `UNSIGNED-PAYLOAD`.
pub(crate) const X_SDK_CONTENT_SHA256: HeaderName = HeaderName::from_static("x-sdk-content-sha256");

/// Sent with temporary access keys.
pub(crate) const X_SECURITY_TOKEN: HeaderName = HeaderName::from_static("x-security-token");

pub const X_PROJECT_ID: HeaderName = HeaderName::from_static("x-project-id");
