//! The configured access keys. Finds the key of a signed request and verifies the signature.
//!
//! A request that names a known key and fails here must not be sent upstream.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use constant_time_eq::constant_time_eq;
use http::header::{AUTHORIZATION, VIA};
use http::{HeaderMap, HeaderValue, Method};
use ring::digest::{SHA256, digest};
use strum::{IntoStaticStr, VariantArray};

use super::authorization::words;
use super::key::{AccessKey, Unsignable};
use super::{Authorization, Payload, SignedTarget, X_SDK_CONTENT_SHA256, X_SDK_DATE, canonical_request, date};

/// The largest difference between the client's and the gateway's clock.
const MAX_SKEW: Duration = Duration::from_secs(15 * 60);

/// The configured access keys, by id.
#[derive(Debug, Default)]
pub struct KeyRing {
    keys: HashMap<String, Arc<AccessKey>>,
}

/// The configured key that a request names. It proves nothing until the signature is verified.
pub struct Claim {
    pub key: Arc<AccessKey>,
}

/// A claim with a valid date and the key's security token. The signature is not verified yet.
pub struct ExaminedClaim<'h> {
    key: Arc<AccessKey>,
    headers: &'h HeaderMap,
    authorization: Authorization<'h>,
    date: &'h str,
}

/// A request whose signature is valid.
#[derive(Clone, Debug)]
pub struct VerifiedRequest {
    pub key: Arc<AccessKey>,
    pub(super) covered: String,
    pub(super) payload: Payload,
}

/// Why a request that names a configured key is refused and not sent upstream.
#[derive(Clone, Copy, Debug, PartialEq, Eq, IntoStaticStr, VariantArray)]
#[strum(const_into_str, serialize_all = "kebab-case")]
pub enum SignatureRejection {
    /// `Authorization` is present twice, or has another form than the clients' one.
    #[strum(serialize = "signature-malformed")]
    Malformed,
    /// `X-Sdk-Date` is missing, invalid, or present twice.
    #[strum(serialize = "signature-date")]
    Date,
    /// `X-Sdk-Date` is more than [`MAX_SKEW`] from the gateway's clock.
    #[strum(serialize = "signature-skew")]
    Skew,
    /// `X-Security-Token` is not the key's, or the key has none.
    SecurityToken,
    /// `X-Sdk-Content-Sha256` is not the body's hash.
    #[strum(serialize = "signature-content")]
    Content,
    /// A signed header is missing or present twice.
    #[strum(serialize = "signature-coverage")]
    Coverage,
    /// The signature is not the one that the key makes for this request.
    #[strum(serialize = "signature-wrong")]
    Signature,
    /// The signature is valid, but the key is not configured for this project, or the path is ambiguous.
    #[strum(serialize = "key-project")]
    Project,
    /// The key breaker has suspended the key, because upstream has refused its signatures.
    #[strum(serialize = "key-suspended")]
    Suspended,
}

impl SignatureRejection {
    /// What is wrong and what to do, for people.
    pub fn describe(self) -> &'static str {
        match self {
            Self::Malformed => {
                "expected one Authorization of the form SDK-HMAC-SHA256 Access=…, SignedHeaders=…, Signature=…, with \
                 sorted header names in lower case"
            }
            Self::Date => "expected one X-Sdk-Date of the form 20261122T120000Z, in UTC",
            Self::Skew => "X-Sdk-Date differs from the gateway's clock by more than 15 minutes: synchronize the clocks",
            Self::SecurityToken => {
                "X-Security-Token is not the one that is configured for this access key: temporary access keys have one, \
                 permanent ones have none"
            }
            Self::Content => "X-Sdk-Content-Sha256 is not the SHA-256 of the body",
            Self::Coverage => "a header that the signature covers is missing or present twice",
            Self::Signature => {
                "the signature is not valid for this request with the configured secret of this access key: compare the \
                 secrets and the canonical requests (workspace-gateway explain shows the one of a GET)"
            }
            Self::Project => {
                "the access key is not configured for this project (access_key.projects), or the path is ambiguous: for a \
                 key with projects, each path segment must be 1 to 255 characters of A-Z a-z 0-9 - . _ ~, and not . or .."
            }
            Self::Suspended => {
                "upstream has refused this access key several times in a row, so the gateway does not use it for now, to \
                 keep upstream from locking it: check its secret in the gateway's configuration, and the clock"
            }
        }
    }
}

/// The payload of a request, from its body.
///
/// # Errors
/// If `X-Sdk-Content-Sha256` is not the hash of the body. It is ignored if the body is empty.
pub(crate) fn payload(headers: &HeaderMap, body: &[u8]) -> Result<Payload, SignatureRejection> {
    let payload = Payload::of(body);
    let stated = headers.get(X_SDK_CONTENT_SHA256).filter(|_| !body.is_empty());
    if stated.is_some_and(|hash| !constant_time_eq(hash.as_bytes(), payload.as_str().as_bytes())) {
        return Err(SignatureRejection::Content);
    }
    Ok(payload)
}

/// Whether the client has not signed the body.
pub(crate) fn leaves_body_unsigned(headers: &HeaderMap) -> bool {
    headers.get(X_SDK_CONTENT_SHA256).is_some_and(|hash| hash == Payload::UNSIGNED)
}

impl KeyRing {
    /// The ids must be unique.
    pub fn new(keys: impl IntoIterator<Item = AccessKey>) -> Self {
        Self { keys: keys.into_iter().map(|key| (key.id().to_owned(), Arc::new(key))).collect() }
    }

    /// The keys, in no particular order.
    pub fn keys(&self) -> impl Iterator<Item = &Arc<AccessKey>> {
        self.keys.values()
    }

    /// The configured key that a request names in any of its `Authorization` headers.
    pub fn claim(&self, headers: &HeaderMap) -> Option<Claim> {
        if self.keys.is_empty() {
            return None;
        }
        let mut ids = headers.get_all(AUTHORIZATION).iter().flat_map(words);
        ids.find_map(|id| self.keys.get(id)).map(|key| Claim { key: Arc::clone(key) })
    }
}

impl Claim {
    /// Checks what does not need the body.
    pub fn examine(self, headers: &HeaderMap, now: SystemTime) -> Result<ExaminedClaim<'_>, SignatureRejection> {
        let authorization = single(headers, &AUTHORIZATION).and_then(Authorization::read);
        let authorization = authorization.ok_or(SignatureRejection::Malformed)?;
        let text = single(headers, &X_SDK_DATE).and_then(|date| date.to_str().ok()).ok_or(SignatureRejection::Date)?;
        let date = date::parse(text).ok_or(SignatureRejection::Date)?;
        if !is_near(date, now) {
            return Err(SignatureRejection::Skew);
        }
        if !self.key.matches_security_token(headers) {
            return Err(SignatureRejection::SecurityToken);
        }
        Ok(ExaminedClaim { key: self.key, headers, authorization, date: text })
    }
}

impl ExaminedClaim<'_> {
    /// Verifies the signature for the target as the client sent it.
    pub fn verify(
        self,
        method: &Method,
        target: SignedTarget<'_>,
        payload: Payload,
    ) -> Result<VerifiedRequest, SignatureRejection> {
        let covered = self.authorization.signed_headers;
        let canonical =
            canonical_request(method, target, self.headers, covered, &payload).ok_or(SignatureRejection::Coverage)?;
        if !self.key.has_signed(self.authorization.signature, self.date, &digest(&SHA256, &canonical)) {
            return Err(SignatureRejection::Signature);
        }
        Ok(VerifiedRequest { key: self.key, covered: covered.to_owned(), payload })
    }

    /// Verifies the signature, and that the key may be used in the project of the path. `project` is `None` if the path
    /// is ambiguous.
    pub fn admit(
        self,
        method: &Method,
        target: SignedTarget<'_>,
        payload: Payload,
        project: Option<&str>,
    ) -> Result<VerifiedRequest, SignatureRejection> {
        let headers = self.headers;
        let signed = self.verify(method, target, payload)?;
        if signed.key.allows_project(project, headers) { Ok(signed) } else { Err(SignatureRejection::Project) }
    }
}

impl VerifiedRequest {
    /// A request without a body that the gateway itself makes with a configured key.
    pub fn made_here(key: Arc<AccessKey>) -> Self {
        Self { key, covered: String::new(), payload: Payload::of(b"") }
    }

    /// The names of the headers that the client's signature covers.
    pub fn covered(&self) -> impl Iterator<Item = &str> {
        self.covered.split(';')
    }

    /// Signs the request anew in its present form. The signature covers the same headers as the client's, and `Host`.
    ///
    /// # Errors
    /// If a covered header is no longer present.
    pub fn renew(
        &self,
        method: &Method,
        target: SignedTarget<'_>,
        headers: &mut HeaderMap,
        now: SystemTime,
    ) -> Result<(), Unsignable> {
        // `Via` cannot be covered, because every hop adds to it.
        let covered = self.covered.split(';').filter(|name| *name != VIA.as_str());
        self.key.sign(method, target, headers, covered, &self.payload, now)
    }
}

/// Whether the date of a signature is near enough to the gateway's clock.
pub(super) fn is_near(date: SystemTime, now: SystemTime) -> bool {
    now.duration_since(date).unwrap_or_else(|ahead| ahead.duration()) <= MAX_SKEW
}

/// The value of a header that is present exactly once.
fn single<'h>(headers: &'h HeaderMap, name: &http::HeaderName) -> Option<&'h HeaderValue> {
    let mut values = headers.get_all(name).iter();
    values.next().filter(|_| values.next().is_none())
}
