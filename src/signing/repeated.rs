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

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use http::HeaderValue;
    use http::header::{AUTHORIZATION, HOST};

    use super::*;
    use crate::signing::{Authorization, Payload, Projects};

    const TARGET: SignedTarget<'_> = SignedTarget { path: "/v2/p/products", query: Some("limit=1") };

    fn key(token: Option<&'static str>) -> Arc<AccessKey> {
        let token = token.map(HeaderValue::from_static);
        Arc::new(AccessKey::new("AK".to_owned(), b"secret", token, Projects::Any))
    }

    /// The headers of a request that the key has signed at a time. The signature covers these headers, too.
    fn signed(key: &AccessKey, covered: &[&'static str], at: SystemTime) -> HeaderMap {
        let mut headers = HeaderMap::from_iter([(HOST, HeaderValue::from_static("gateway"))]);
        for &name in covered {
            headers.insert(name, HeaderValue::from_static("v"));
        }
        key.sign(&Method::GET, TARGET, &mut headers, covered.iter().copied(), &Payload::of(b""), at).unwrap();
        headers
    }

    fn signature(headers: &HeaderMap) -> &str {
        Authorization::read(&headers[AUTHORIZATION]).unwrap().signature
    }

    /// What is kept of a signed request, if these headers are covered, joined with `;`.
    fn repeated(key: &Arc<AccessKey>, headers: &HeaderMap, covered: &str) -> Option<RepeatedRequest> {
        let (key, covered) = (Arc::clone(key), covered.to_owned());
        let verified = VerifiedRequest { key, covered, payload: Payload::of(b"") };
        RepeatedRequest::of(&verified, &Method::GET, TARGET, headers)
    }

    #[test]
    fn a_repeated_request_is_verified_by_its_date_and_signature() {
        let at = SystemTime::UNIX_EPOCH + Duration::from_secs(1_800_000_000);
        let later = at + Duration::from_secs(60);
        for (token, covered) in [(None, &[][..]), (None, &["accept"]), (Some("TOKEN"), &[])] {
            let key = key(token);
            let (first, again) = (signed(&key, covered, at), signed(&key, covered, later));
            let names = Authorization::read(&first[AUTHORIZATION]).unwrap().signed_headers;
            let repeated = repeated(&key, &first, names).unwrap();
            let dates = [&first, &again].map(|headers| headers[X_SDK_DATE].to_str().unwrap());
            assert!(repeated.verify(signature(&again), dates[1], later), "{names}");
            assert!(!repeated.verify(signature(&first), dates[1], later), "another signature");
            assert!(!repeated.verify(signature(&again), dates[0], later), "another date");
            assert!(!repeated.verify(signature(&again), dates[1], later + Duration::from_secs(901)), "an old date");
            // The canonical request after the date: three line ends, the names, the payload and the token's name.
            let token_line = if token.is_some() { "x-security-token:\n".len() } else { 0 };
            assert_eq!(repeated.size(), size_of::<RepeatedRequest>() + 3 + names.len() + 64 + token_line);
            assert!(Arc::ptr_eq(&repeated.key, &key));
            assert_eq!(format!("{repeated:?}"), "RepeatedRequest(AccessKey(AK))");
        }
    }

    #[test]
    fn a_request_is_not_kept_without_its_date_or_with_another_header_after_it() {
        let key = key(None);
        let headers = signed(&key, &["x-trace"], SystemTime::UNIX_EPOCH);
        assert!(repeated(&key, &headers, "host;x-sdk-date;x-trace").is_none());
        assert!(repeated(&key, &headers, "host").is_none());
        assert!(repeated(&key, &headers, "host;x-missing;x-sdk-date").is_none());
        assert!(repeated(&key, &headers, "host;x-sdk-date").is_some());
    }
}
