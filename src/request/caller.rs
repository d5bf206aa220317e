//! Who asks: the credential that a request presents, and the caller it stands for.
//!
//! What is remembered of a caller is a keyed hash, with a key that lives and dies with this process.
//! A raw credential is kept in two places only: in the memory of the connection it came by, and in the
//! flight that presents it.

use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};

use constant_time_eq::constant_time_eq;
use http::{HeaderMap, HeaderName, HeaderValue};

use super::{BypassReason, copied};
use crate::signing::has_signature;
use crate::signing::ring::Signed;

/// The header that carries a token.
pub const X_AUTH_TOKEN: HeaderName = HeaderName::from_static("x-auth-token");

/// What a request presents to show who asks.
#[derive(Clone)]
pub enum Credential {
    /// A token. Upstream says what it is worth.
    Token(HeaderValue),
    /// An access key, by a signature that this gateway has verified.
    Signed(Arc<Signed>),
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
    pub fn signed(&self) -> Option<&Signed> {
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
    let mut tokens = headers.get_all(X_AUTH_TOKEN).iter();
    match (tokens.next(), tokens.next()) {
        // Several blank ones are none.
        (Some(_), Some(_)) if has_token(headers) => Err(BypassReason::RepeatedCredential),
        (Some(token), None) if !is_blank(token) => Ok(token),
        _ if has_signature(headers) => Err(BypassReason::UnverifiedSignature),
        _ => Err(BypassReason::NoCredential),
    }
}

/// Whether there is a token that is not blank.
pub fn has_token(headers: &HeaderMap) -> bool {
    headers.get_all(X_AUTH_TOKEN).iter().any(|value| !is_blank(value))
}

fn is_blank(value: &HeaderValue) -> bool {
    value.as_bytes().iter().all(u8::is_ascii_whitespace)
}

/// A caller, known by a keyed hash of its credential.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Caller([u8; 32]);

impl fmt::Debug for Caller {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Even the hash stays out of logs: it would tell which requests share a credential.
        f.write_str("Caller(…)")
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

    /// The caller of a credential, quickly where a connection repeats its last token, as they mostly do.
    pub fn recognise(&self, credential: &Credential, last: &LastCredential) -> Caller {
        let Credential::Token(token) = credential else { return self.of(credential) };
        let mut last = last.0.lock().unwrap_or_else(PoisonError::into_inner);
        // In constant time: a connection may be a proxy's and have carried somebody else before.
        if let Some((known, caller)) = last.as_ref()
            && constant_time_eq(known.as_bytes(), token.as_bytes())
        {
            return *caller;
        }
        let caller = self.of_token(token);
        *last = Some((copied(token), caller));
        caller
    }
}

/// A connection's memory of the credential it presented last, and whose that was. It ends with the
/// connection and can't be printed.
#[derive(Default)]
pub struct LastCredential(Mutex<Option<(HeaderValue, Caller)>>);

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
            (&[("x-auth-token", "  ")], BypassReason::NoCredential),
            (&[("authorization", " ")], BypassReason::NoCredential),
            (&[("authorization", "SDK-HMAC-SHA256 Access=A")], BypassReason::UnverifiedSignature),
            (&[("x-auth-token", "t"), ("x-auth-token", "t")], BypassReason::RepeatedCredential),
            (&[("x-auth-token", ""), ("x-auth-token", "t")], BypassReason::RepeatedCredential),
            (&[("x-auth-token", ""), ("x-auth-token", "")], BypassReason::NoCredential),
        ] {
            assert_eq!(token(&headers(pairs)), Err(reason), "{pairs:?}");
        }
    }

    #[test]
    fn a_connection_that_changes_its_credential_changes_its_caller() {
        let callers = Callers::new([1; 32]);
        let last = LastCredential::default();
        for token in ["token-a", "token-a", "token-b", "token-bb", "token-a", ""] {
            let token = Credential::Token(HeaderValue::from_static(token));
            assert_eq!(callers.recognise(&token, &last), callers.of(&token));
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
