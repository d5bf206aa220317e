//! A signed request that comes again with another date, and so with another signature. Its canonical request differs in
//! the date alone, so it is not built again: what comes before the date is kept as a state of SHA-256, and what comes
//! after it as text.
//!
//! No credential may be kept here. Of the headers after the date only `X-Security-Token` may be signed, whose value is
//! the key's own.

use std::fmt;
use std::sync::Arc;
use std::time::SystemTime;

use http::{HeaderMap, Method};
use ring::digest::{Context, SHA256};

use super::canonical::{CanonicalPart, write_canonical};
use super::ring::{VerifiedRequest, is_near};
use super::{AccessKey, SignedTarget, X_SDK_DATE, X_SECURITY_TOKEN, date};

/// What verifies the same request with another date.
pub struct RepeatedRequest {
    key: Arc<AccessKey>,
    before_date: Context,
    /// The canonical request after the date, without the value of `X-Security-Token`, which is the key's.
    after_date: Box<[u8]>,
    /// Where that value is missing.
    token_at: Option<usize>,
}

impl fmt::Debug for RepeatedRequest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "RepeatedRequest({:?})", self.key)
    }
}

impl RepeatedRequest {
    /// `None` if the date is not signed, or another header after it.
    pub fn of(
        verified: &VerifiedRequest,
        method: &Method,
        target: SignedTarget<'_>,
        headers: &HeaderMap,
    ) -> Option<Self> {
        let VerifiedRequest { key, covered, payload } = verified;
        let mut before_date = Context::new(&SHA256);
        let (mut after_date, mut token_at) = (Vec::new(), None);
        let (mut is_after, mut may_be_kept) = (false, true);
        write_canonical(method, target, headers, covered, payload, |part| match part {
            CanonicalPart::Value { name, .. } if name == X_SDK_DATE => is_after = true,
            CanonicalPart::Value { name, .. } if is_after && name == X_SECURITY_TOKEN => {
                token_at = Some(after_date.len())
            }
            CanonicalPart::Value { .. } if is_after => may_be_kept = false,
            CanonicalPart::Text(text) if is_after => after_date.extend_from_slice(text),
            CanonicalPart::Text(text) | CanonicalPart::Value { value: text, .. } => before_date.update(text),
        })?;
        let after_date = after_date.into_boxed_slice();
        (is_after && may_be_kept).then(|| Self { key: Arc::clone(key), before_date, after_date, token_at })
    }

    /// The memory that it takes, in bytes.
    pub(crate) fn size(&self) -> usize {
        size_of::<Self>() + self.after_date.len()
    }

    pub(crate) fn key(&self) -> &AccessKey {
        &self.key
    }

    /// Whether the key has signed the request with this `X-Sdk-Date`, and the date is near enough. The rest of the request
    /// must be the same, the rest of `Authorization` included.
    pub fn verify(&self, signature: &str, signed_at: &str, now: SystemTime) -> bool {
        if !date::parse(signed_at).is_some_and(|date| is_near(date, now)) {
            return false;
        }
        let mut hash = self.before_date.clone();
        hash.update(signed_at.as_bytes());
        let (before_token, after_token) = self.after_date.split_at(self.token_at.unwrap_or(0));
        hash.update(before_token);
        if let (Some(_), Some(token)) = (self.token_at, self.key.security_token()) {
            hash.update(token.as_bytes());
        }
        hash.update(after_token);
        self.key.has_signed(signature, signed_at, &hash.finish())
    }
}
