//! Who asks: the credential that a request presents, and the caller it stands for.
//!
//! What is remembered of a caller is a keyed hash, with a key that lives and dies with this process. A raw credential is
//! kept only by the request that has it and by the flight that presents it.

use std::fmt;
use std::sync::Arc;

use http::{HeaderMap, HeaderName, HeaderValue};

use super::fingerprint::{Fingerprint, Fingerprints};
use super::{BypassReason, copied};
use crate::signing::has_signature;
use crate::signing::ring::VerifiedRequest;
use crate::sync::Mutex;

/// The header that carries a token.
pub const X_AUTH_TOKEN: HeaderName = HeaderName::from_static("x-auth-token");

/// What a request presents to show who asks.
#[derive(Clone)]
pub enum Credential {
    /// A token. Upstream says what it is worth.
    Token(HeaderValue),
    /// An access key, by a signature that this gateway has verified.
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
    /// The same, to be kept for longer than its request: it doesn't hold on to the read buffer that it came in.
    pub fn kept(&self) -> Self {
        match self {
            Self::Token(token) => Self::Token(copied(token)),
            Self::Signed(_) => self.clone(),
        }
    }

    /// The token, if it is one.
    pub fn token(&self) -> Option<&HeaderValue> {
        match self {
            Self::Token(token) => Some(token),
            Self::Signed(_) => None,
        }
    }

    /// The signature, if it is one.
    pub fn signed(&self) -> Option<&VerifiedRequest> {
        match self {
            Self::Token(_) => None,
            Self::Signed(signed) => Some(signed),
        }
    }
}

/// The token of a request. With one, whatever `Authorization` says besides is not its credential.
///
/// # Errors
/// Why the request has none that counts. A signature may count for more, once it is verified.
pub fn token(headers: &HeaderMap) -> Result<&HeaderValue, BypassReason> {
    // There is one at most, and no blanks around it (see `validate`).
    match headers.get(X_AUTH_TOKEN) {
        Some(token) if !token.is_empty() => Ok(token),
        _ if has_signature(headers) => Err(BypassReason::UnverifiedSignature),
        _ => Err(BypassReason::NoCredential),
    }
}

/// Whether there is a token that is not blank.
pub(crate) fn has_token(headers: &HeaderMap) -> bool {
    token(headers).is_ok()
}

/// A caller, known by a keyed hash of its credential.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Caller([u8; 32]);

impl fmt::Debug for Caller {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // The hash itself stays out of logs: they have a digest of it, which tells nothing outside this process.
        f.write_str("Caller(…)")
    }
}

impl Caller {
    /// The hash, to be hashed again.
    pub(super) fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }
}

/// Turns credentials into callers.
pub struct Callers {
    key: [u8; 32],
}

impl Callers {
    /// With a key that should be random and told to nobody.
    pub fn new(key: [u8; 32]) -> Self {
        Self { key }
    }

    /// The caller that a credential stands for.
    pub fn of(&self, credential: &Credential) -> Caller {
        match credential {
            Credential::Token(token) => self.of_token(token),
            // No token has a NUL in it.
            Credential::Signed(signed) => self.of_bytes(&[b"\0", &signed.key.fingerprint()[..]].concat()),
        }
    }

    /// The caller that a token stands for.
    pub fn of_token(&self, token: &HeaderValue) -> Caller {
        self.of_bytes(token.as_bytes())
    }

    fn of_bytes(&self, bytes: &[u8]) -> Caller {
        Caller(*blake3::keyed_hash(&self.key, bytes).as_bytes())
    }

    /// The caller of a credential, quickly where a connection repeats its last token, as they mostly do: a fingerprint
    /// takes a fifth of the time.
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

/// A connection's memory of the token that came last, as a keyed fingerprint, and whose that was. The token itself would
/// take several KiB for each idle connection.
#[derive(Default)]
pub struct LastCredential(Mutex<Option<(Fingerprint, Caller)>>);

impl fmt::Debug for Callers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Callers(…)")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(pairs: &[(&'static str, &'static str)]) -> HeaderMap {
        pairs.iter().map(|&(name, value)| (HeaderName::from_static(name), HeaderValue::from_static(value))).collect()
    }

    #[test]
    fn a_single_token_is_the_credential() {
        for others in [&[][..], &[("authorization", "")], &[("authorization", "SDK-HMAC-SHA256 Access=A")]] {
            let mut headers = headers(others);
            headers.insert(X_AUTH_TOKEN, HeaderValue::from_static("t"));
            assert_eq!(token(&headers).map(HeaderValue::as_bytes), Ok(&b"t"[..]));
        }
    }

    #[test]
    fn anything_else_is_no_credential() {
        for (pairs, reason) in [
            (&[][..], BypassReason::NoCredential),
            (&[("x-auth-token", "")], BypassReason::NoCredential),
            (&[("authorization", " ")], BypassReason::NoCredential),
            (&[("authorization", "SDK-HMAC-SHA256 Access=A")], BypassReason::UnverifiedSignature),
        ] {
            assert_eq!(token(&headers(pairs)), Err(reason), "{pairs:?}");
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
    fn callers_differ_by_token_and_by_process_and_show_nothing() {
        let (one, other) = (Callers::new([1; 32]), Callers::new([2; 32]));
        let (a, b) = (HeaderValue::from_static("token-a"), HeaderValue::from_static("token-b"));
        assert_eq!(one.of_token(&a), one.of_token(&a));
        assert_ne!(one.of_token(&a), one.of_token(&b));
        assert_ne!(one.of_token(&a), other.of_token(&a));
        assert_eq!(format!("{:?} {one:?}", one.of_token(&a)), "Caller(…) Callers(…)");
    }
}
