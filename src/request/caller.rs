//! The credential of a request, and the caller that it identifies.
//!
//! The gateway remembers a caller only by a keyed hash. Its key is random and exists only in this process, or is derived
//! from the secret of the snapshot. A raw credential must be
//! kept nowhere but in its request and in the flight that sends it.

use std::fmt;
use std::hash::{Hash, Hasher};
use std::sync::Arc;

use http::{HeaderMap, HeaderName, HeaderValue};

use super::fingerprint::{Fingerprint, Fingerprints};
use super::{BypassReason, copied};
use crate::signing::has_signature;
use crate::signing::ring::VerifiedRequest;
use crate::sync::Mutex;

pub const X_AUTH_TOKEN: HeaderName = HeaderName::from_static("x-auth-token");

/// What authenticates a request.
#[derive(Clone)]
pub enum Credential {
    /// A token. Only upstream can validate it.
    Token(HeaderValue),
    /// A signature with an access key, verified by this gateway.
    Signed(Arc<VerifiedRequest>),
}

impl fmt::Debug for Credential {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Token(_) => f.write_str("Token(…)"),
            Self::Signed(signed) => signed.key.fmt(f),
        }
    }
}

impl Credential {
    /// A copy that may live longer than its request: it does not keep the read buffer in memory.
    pub fn kept(&self) -> Self {
        match self {
            Self::Token(token) => Self::Token(copied(token)),
            Self::Signed(_) => self.clone(),
        }
    }

    pub fn token(&self) -> Option<&HeaderValue> {
        match self {
            Self::Token(token) => Some(token),
            Self::Signed(_) => None,
        }
    }

    pub fn signed(&self) -> Option<&VerifiedRequest> {
        match self {
            Self::Token(_) => None,
            Self::Signed(signed) => Some(signed),
        }
    }
}

/// The token of a request. If there is one, it is the credential, and `Authorization` is not.
///
/// # Errors
/// Why there is no token. With [`BypassReason::UnverifiedSignature`] the signature may still be verified.
pub fn token(headers: &HeaderMap) -> Result<&HeaderValue, BypassReason> {
    // `validate` has ensured that there is at most one token, without blanks around it.
    match headers.get(X_AUTH_TOKEN) {
        Some(token) if !token.is_empty() => Ok(token),
        _ if has_signature(headers) => Err(BypassReason::UnverifiedSignature),
        _ => Err(BypassReason::NoCredential),
    }
}

pub(crate) fn has_token(headers: &HeaderMap) -> bool {
    token(headers).is_ok()
}

/// A caller, identified by a keyed hash of its credential.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Caller([u8; 32]);

impl Hash for Caller {
    fn hash<H: Hasher>(&self, state: &mut H) {
        // The bytes are a keyed hash, so nobody can choose callers that have the first eight in common.
        state.write(&self.0[..8]);
    }
}

impl fmt::Debug for Caller {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // The hash must not be logged. Logs have a digest of it, which means nothing outside this process.
        f.write_str("Caller(…)")
    }
}

impl Caller {
    /// For another keyed hash only.
    pub(super) fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }

    /// For a sealed record only.
    pub(crate) fn to_sealed(self) -> [u8; 32] {
        self.0
    }

    /// A caller from a sealed record.
    pub(crate) fn from_sealed(hash: [u8; 32]) -> Self {
        Self(hash)
    }
}

/// Computes the caller of a credential.
pub struct Callers {
    key: [u8; 32],
}

impl Callers {
    /// The key must be random and secret.
    pub fn new(key: [u8; 32]) -> Self {
        Self { key }
    }

    pub fn of(&self, credential: &Credential) -> Caller {
        match credential {
            Credential::Token(token) => self.of_token(token),
            // The NUL separates access keys from tokens, which cannot contain it.
            Credential::Signed(signed) => self.of_bytes(&[b"\0", &signed.key.fingerprint()[..]].concat()),
        }
    }

    pub fn of_token(&self, token: &HeaderValue) -> Caller {
        self.of_bytes(token.as_bytes())
    }

    fn of_bytes(&self, bytes: &[u8]) -> Caller {
        Caller(*blake3::keyed_hash(&self.key, bytes).as_bytes())
    }

    /// The caller of a credential. Most connections repeat their last token: it is recognised by its fingerprint, which
    /// takes a fifth of the time of the keyed hash.
    pub fn recognise(&self, credential: &Credential, fingerprints: &Fingerprints, last: &LastCredential) -> Caller {
        let Credential::Token(token) = credential else { return self.of(credential) };
        let fingerprint = fingerprints.of(token.as_bytes());
        let mut last = last.0.lock();
        match *last {
            Some((known, caller)) if known == fingerprint => caller,
            _ => {
                let caller = self.of_token(token);
                *last = Some((fingerprint, caller));
                caller
            }
        }
    }
}

/// The last token of a connection, as a keyed fingerprint, and its caller. The token itself would take several KiB for
/// each idle connection.
#[derive(Default)]
pub struct LastCredential(Mutex<Option<(Fingerprint, Caller)>>);

impl fmt::Debug for Callers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Callers(…)")
    }
}

#[cfg(test)]
mod tests {
    use std::hash::{BuildHasher, RandomState};

    use super::*;
    use crate::signing::{AccessKey, Projects};

    fn headers(pairs: &[(&'static str, &'static str)]) -> HeaderMap {
        pairs.iter().map(|&(name, value)| (HeaderName::from_static(name), HeaderValue::from_static(value))).collect()
    }

    #[test]
    fn a_token_is_the_credential_even_beside_a_signature() {
        for others in [&[][..], &[("authorization", "")], &[("authorization", "SDK-HMAC-SHA256 Access=A")]] {
            let mut headers = headers(others);
            headers.insert(X_AUTH_TOKEN, HeaderValue::from_static("t"));
            assert_eq!(token(&headers).map(HeaderValue::as_bytes), Ok(&b"t"[..]));
            assert!(has_token(&headers));
        }
    }

    #[test]
    fn a_request_without_a_token_has_none() {
        for (pairs, reason) in [
            (&[][..], BypassReason::NoCredential),
            (&[("x-auth-token", "")], BypassReason::NoCredential),
            (&[("authorization", " ")], BypassReason::NoCredential),
            (&[("authorization", "SDK-HMAC-SHA256 Access=A")], BypassReason::UnverifiedSignature),
        ] {
            assert_eq!(token(&headers(pairs)), Err(reason), "{pairs:?}");
            assert!(!has_token(&headers(pairs)));
        }
    }

    #[test]
    fn a_connection_that_changes_its_credential_changes_its_caller() {
        let (callers, fingerprints) = (Callers::new([1; 32]), Fingerprints::new([1; 32]));
        let last = LastCredential::default();
        for token in ["token-a", "token-a", "token-b", "token-bb", "token-a", ""] {
            let token = Credential::Token(HeaderValue::from_static(token));
            assert_eq!(callers.recognise(&token, &fingerprints, &last), callers.of(&token));
        }
    }

    #[test]
    fn callers_differ_by_token_and_by_process_and_debug_texts_show_nothing() {
        let (one, other) = (Callers::new([1; 32]), Callers::new([2; 32]));
        let (a, b) = (HeaderValue::from_static("token-a"), HeaderValue::from_static("token-b"));
        assert_eq!(one.of_token(&a), one.of_token(&a));
        assert_ne!(one.of_token(&a), one.of_token(&b));
        assert_ne!(one.of_token(&a), other.of_token(&a));
        assert_eq!(format!("{:?} {one:?}", one.of_token(&a)), "Caller(…) Callers(…)");
        assert_eq!(Caller::from_sealed(one.of_token(&a).to_sealed()), one.of_token(&a));
        let credential = Credential::Token(a.clone());
        assert_eq!(format!("{credential:?}"), "Token(…)");
        assert!(credential.token() == Some(&a) && credential.signed().is_none());
    }

    #[test]
    fn another_secret_of_an_access_key_is_another_caller() {
        let credential = |secret| {
            let key = AccessKey::new("AK".to_owned(), secret, None, Projects::Any);
            Credential::Signed(Arc::new(VerifiedRequest::made_here(Arc::new(key))))
        };
        let (one, other) = (credential(b"one"), credential(b"other"));
        let callers = Callers::new([1; 32]);
        let hasher = RandomState::new();
        assert_eq!(callers.of(&one), callers.of(&credential(b"one")));
        assert_ne!(callers.of(&one), callers.of(&other));
        assert_ne!(hasher.hash_one(callers.of(&one)), hasher.hash_one(callers.of(&other)));
        assert!(one.token().is_none() && one.signed().is_some());
        assert_eq!(format!("{one:?}"), "AccessKey(AK)");
    }
}
