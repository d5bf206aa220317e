//! Signatures with access keys: reading, verifying and making them. Pure: the time is an argument, and no
//! secret leaves this room.
//!
//! `SDK-HMAC-SHA256` is what the SDKs and Terraform sign with. It is verified with a key of the ring that the
//! operator has configured, and what is then sent upstream is signed anew, for the host it is sent to. Other
//! schemes are recognised as signatures and never verified.
//!
//! ```text
//! authorization   what the header says          canonical   what is signed, in one spelling
//! key             one access key: sign, verify   ring        all of them: whose signature is this, and is it good
//! date            X-Sdk-Date                     binding     whether a signature survives being relayed
//! ```

mod authorization;
mod binding;
mod canonical;
mod date;
mod key;
pub(crate) mod ring;
#[cfg(test)]
mod tests;

use http::HeaderName;

pub use authorization::{Authorization, has_signature};
pub use binding::{Binding, RelayChanges};
pub use canonical::{Payload, SignedTarget, canonical_request, string_to_sign};
pub use date::{parse as parse_date, show as show_date};
pub use key::{AccessKey, Projects};

/// The scheme that is verified and made here.
pub const SCHEME: &str = "SDK-HMAC-SHA256";

/// When a request was signed.
pub(crate) const X_SDK_DATE: HeaderName = HeaderName::from_static("x-sdk-date");

/// What stands for the body's hash in what is signed, where the client says it.
pub(crate) const X_SDK_CONTENT_SHA256: HeaderName = HeaderName::from_static("x-sdk-content-sha256");

/// The other half of temporary credentials.
pub(crate) const X_SECURITY_TOKEN: HeaderName = HeaderName::from_static("x-security-token");

/// The project that a signed request is about.
pub const X_PROJECT_ID: HeaderName = HeaderName::from_static("x-project-id");
