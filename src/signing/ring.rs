//! The key ring: the access keys that the operator has configured, and whose signature a request carries.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use constant_time_eq::constant_time_eq;
use http::header::{AUTHORIZATION, VIA};
use http::{HeaderMap, HeaderValue, Method};
use strum::{IntoStaticStr, VariantArray};

use super::authorization::words;
use super::key::{AccessKey, Unsignable};
use super::{Authorization, Payload, SignedTarget, X_SDK_CONTENT_SHA256, X_SDK_DATE, canonical_request, date};

/// How far a client's clock may be off.
const MAX_SKEW: Duration = Duration::from_secs(15 * 60);

/// The access keys that are known here.
#[derive(Debug, Default)]
pub struct KeyRing {
    keys: HashMap<String, Arc<AccessKey>>,
}

/// A request that says it is signed with a key of the ring. Anyone can say so.
pub struct Claim {
    /// The key.
    pub key: Arc<AccessKey>,
}

/// A claim that is well put: the date is about now, and the security token is the key's.
pub struct Examined<'h> {
    key: Arc<AccessKey>,
    headers: &'h HeaderMap,
    said: Authorization<'h>,
    date: &'h str,
}

/// A request whose signature is good.
#[derive(Clone, Debug)]
pub struct VerifiedRequest {
    /// Whose it is.
    pub key: Arc<AccessKey>,
    covered: String,
    payload: Payload,
}

/// Why a request that claims a known key is refused here, and not sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq, IntoStaticStr, VariantArray)]
#[strum(const_into_str, serialize_all = "kebab-case")]
pub enum SignatureRejection {
    /// `Authorization` is there twice, or not spelled as clients do.
    #[strum(serialize = "signature-malformed")]
    Malformed,
    /// `X-Sdk-Date` is missing, there twice, or no date.
    #[strum(serialize = "signature-date")]
    Date,
    /// It is too far from the time here.
    #[strum(serialize = "signature-skew")]
    Skew,
    /// `X-Security-Token` is not the one that goes with the key, or shouldn't be there.
    SecurityToken,
    /// `X-Sdk-Content-Sha256` is not the body's hash.
    #[strum(serialize = "signature-content")]
    Content,
    /// A header that is signed is missing, or there twice.
    #[strum(serialize = "signature-coverage")]
    Coverage,
    /// The signature is not this key's, over this request.
    #[strum(serialize = "signature-wrong")]
    Signature,
    /// The key is good, and not for this project, or the path may be read as one of another project.
    #[strum(serialize = "key-project")]
    Project,
    /// Upstream has refused what this key has signed, and it is not presented again for a while.
    #[strum(serialize = "key-suspended")]
    Suspended,
}

impl SignatureRejection {
    /// The same for a person: what is wrong, and what to do.
    pub fn describe(self) -> &'static str {
        match self {
            Self::Malformed => {
                "expected one Authorization of the form SDK-HMAC-SHA256 Access=…, SignedHeaders=…, Signature=…, with the \
                 names in lower case and in order"
            }
            Self::Date => "expected one X-Sdk-Date of the form 20261122T120000Z, in UTC",
            Self::Skew => "X-Sdk-Date is more than 15 minutes from the gateway's clock: set the clocks right",
            Self::SecurityToken => {
                "X-Security-Token is not the one that is configured for this access key: temporary credentials have \
                 one, permanent ones have none"
            }
            Self::Content => "X-Sdk-Content-Sha256 is not the SHA-256 of the body",
            Self::Coverage => "a header that the signature covers is missing, or there twice",
            Self::Signature => {
                "the signature is not the one that the secret configured for this access key makes of this request: \
                 compare the secrets, and what is signed (workspace-gateway explain shows that of a GET)"
            }
            Self::Project => {
                "the gateway's configuration doesn't have this project among those of this access key (access_key.projects), \
                 or the path may be read as another: for such a key each segment of a path has to be 1 to 255 of A-Z a-z 0-9 \
                 - . _ ~, and not . or .."
            }
            Self::Suspended => {
                "upstream has refused what was signed with this access key several times in a row, so that it is not used \
                 for now, or it would be locked: check its secret in the gateway's configuration, and the clock"
            }
        }
    }
}

/// What is signed with a key, and not yet said to be good: the body's part.
///
/// # Errors
/// If the client says that the body has another hash than it has.
pub(crate) fn payload(headers: &HeaderMap, body: &[u8]) -> Result<Payload, SignatureRejection> {
    let payload = Payload::of(body);
    let said = headers.get(X_SDK_CONTENT_SHA256).filter(|_| !body.is_empty());
    if said.is_some_and(|said| !constant_time_eq(said.as_bytes(), payload.as_str().as_bytes())) {
        return Err(SignatureRejection::Content);
    }
    Ok(payload)
}

/// Whether the client says that its body is not signed.
pub(crate) fn leaves_body_unsigned(headers: &HeaderMap) -> bool {
    headers.get(X_SDK_CONTENT_SHA256).is_some_and(|said| said == Payload::UNSIGNED)
}

impl KeyRing {
    /// With these keys. No two may have one id.
    pub fn new(keys: impl IntoIterator<Item = AccessKey>) -> Self {
        Self { keys: keys.into_iter().map(|key| (key.id().to_owned(), Arc::new(key))).collect() }
    }

    /// Its keys, in no order.
    pub fn keys(&self) -> impl Iterator<Item = &Arc<AccessKey>> {
        self.keys.values()
    }

    /// The known key that a request claims to be signed with.
    pub fn claim(&self, headers: &HeaderMap) -> Option<Claim> {
        if self.keys.is_empty() {
            return None;
        }
        let mut ids = headers.get_all(AUTHORIZATION).iter().flat_map(words);
        ids.find_map(|id| self.keys.get(id)).map(|key| Claim { key: Arc::clone(key) })
    }
}

impl Claim {
    /// Looks at what can be told without the body.
    ///
    /// # Errors
    /// Why the request is refused.
    pub fn examine(self, headers: &HeaderMap, now: SystemTime) -> Result<Examined<'_>, SignatureRejection> {
        let said = only(headers, &AUTHORIZATION).and_then(Authorization::read).ok_or(SignatureRejection::Malformed)?;
        let text = only(headers, &X_SDK_DATE).and_then(|date| date.to_str().ok()).ok_or(SignatureRejection::Date)?;
        let date = date::parse(text).ok_or(SignatureRejection::Date)?;
        let skew = now.duration_since(date).unwrap_or_else(|ahead| ahead.duration());
        if skew > MAX_SKEW {
            return Err(SignatureRejection::Skew);
        }
        if !self.key.goes_with(headers) {
            return Err(SignatureRejection::SecurityToken);
        }
        Ok(Examined { key: self.key, headers, said, date: text })
    }
}

impl Examined<'_> {
    /// Says whether the signature is good for a request that was sent to a target, as its client typed it.
    ///
    /// # Errors
    /// Why the request is refused.
    pub fn verify(
        self,
        method: &Method,
        target: SignedTarget<'_>,
        payload: Payload,
    ) -> Result<VerifiedRequest, SignatureRejection> {
        let covered = self.said.signed_headers;
        let canonical =
            canonical_request(method, target, self.headers, covered, &payload).ok_or(SignatureRejection::Coverage)?;
        if !self.key.has_signed(self.said.signature, self.date, &canonical) {
            return Err(SignatureRejection::Signature);
        }
        Ok(VerifiedRequest { key: self.key, covered: covered.to_owned(), payload })
    }

    /// The same, and says whether the key may be used in the project that the path is about; `None` if nobody can be sure
    /// which that is.
    ///
    /// # Errors
    /// Why the request is refused.
    pub fn admit(
        self,
        method: &Method,
        target: SignedTarget<'_>,
        payload: Payload,
        project: Option<&str>,
    ) -> Result<VerifiedRequest, SignatureRejection> {
        let headers = self.headers;
        let signed = self.verify(method, target, payload)?;
        if signed.key.may_ask(project, headers) { Ok(signed) } else { Err(SignatureRejection::Project) }
    }
}

impl VerifiedRequest {
    /// Signs the request anew, as it is now: what its client has covered, and `Host`.
    ///
    /// # Errors
    /// If something that was covered is not there any more.
    pub fn renew(
        &self,
        method: &Method,
        target: SignedTarget<'_>,
        headers: &mut HeaderMap,
        now: SystemTime,
    ) -> Result<(), Unsignable> {
        // The trail grows on its way.
        let covered = self.covered.split(';').filter(|name| *name != VIA.as_str());
        self.key.sign(method, target, headers, covered, &self.payload, now)
    }
}

/// The value of a header that is there once.
fn only<'h>(headers: &'h HeaderMap, name: &http::HeaderName) -> Option<&'h HeaderValue> {
    let mut values = headers.get_all(name).iter();
    values.next().filter(|_| values.next().is_none())
}
