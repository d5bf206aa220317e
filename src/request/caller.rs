//! Who asks: the credential that a request presents, and the caller it stands for.
//!
//! What is remembered of a caller is a keyed hash, with a key that lives and dies with this process.
//! A raw credential is kept in two places only: in the memory of the connection it came by, and in the
//! flight that presents it.

use std::fmt;
use std::sync::{Mutex, PoisonError};

use constant_time_eq::constant_time_eq;
use http::header::{AUTHORIZATION, HOST};
use http::{HeaderMap, HeaderName, HeaderValue};

use super::{BypassReason, copied};

/// The header that carries a token.
pub const X_AUTH_TOKEN: HeaderName = HeaderName::from_static("x-auth-token");

/// The credential of a request. With a token, whatever `Authorization` says besides is not it.
///
/// # Errors
/// Why the request has none that counts: nothing else here could be trusted.
pub fn credential(headers: &HeaderMap) -> Result<&HeaderValue, BypassReason> {
    let mut tokens = headers.get_all(X_AUTH_TOKEN).iter();
    match (tokens.next(), tokens.next()) {
        (Some(_), Some(_)) => Err(BypassReason::RepeatedCredential),
        (Some(token), None) if !is_blank(token) => Ok(token),
        _ if has_signature(headers) => Err(BypassReason::UnverifiedSignature),
        _ => Err(BypassReason::NoCredential),
    }
}

/// Whether the request carries a signature that covers another `Host` than the upstream's.
///
/// Relayed, it is bound to fail there, and failures lock the access key: such a signature must
/// never be sent on.
pub fn signature_is_bound_elsewhere(headers: &HeaderMap, upstream_authority: &str) -> bool {
    let covers_host = headers.get_all(AUTHORIZATION).iter().any(covers_host);
    // Byte for byte: the signature covers the Host as typed, and upstream will see its own spelling.
    covers_host && headers.get(HOST).is_none_or(|host| host != upstream_authority)
}

/// Whether there is a token that is not blank.
pub fn has_token(headers: &HeaderMap) -> bool {
    headers.get_all(X_AUTH_TOKEN).iter().any(|value| !is_blank(value))
}

/// Whether there is an `Authorization` that is not blank.
pub fn has_signature(headers: &HeaderMap) -> bool {
    headers.get_all(AUTHORIZATION).iter().any(|value| !is_blank(value))
}

/// Whether a signature covers `Host`: `… SignedHeaders=content-type;host;x-sdk-date, Signature=…`,
/// whatever the algorithm is called. One whose list can't be found is taken to cover it.
fn covers_host(authorization: &HeaderValue) -> bool {
    let text = String::from_utf8_lossy(authorization.as_bytes()).to_ascii_lowercase();
    let list = text.split_once("signedheaders").and_then(|(_, rest)| rest.trim_start().strip_prefix('='));
    match list {
        Some(list) => {
            let list = list.split(',').next().unwrap_or_default();
            list.split([';', ' ', '\t']).any(|name| name == "host")
        }
        // Bearer, Basic and their like sign nothing.
        None => {
            let scheme = text.split_ascii_whitespace().next().unwrap_or_default();
            scheme.starts_with("sdk-") || scheme.contains("hmac") || text.contains("signature=")
        }
    }
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

    /// The caller that a token stands for.
    pub fn of_token(&self, token: &HeaderValue) -> Caller {
        Caller(*blake3::keyed_hash(&self.key, token.as_bytes()).as_bytes())
    }
}

impl Callers {
    /// The same, quickly where a connection repeats its last credential, as they mostly do.
    pub fn recognise(&self, token: &HeaderValue, last: &LastCredential) -> Caller {
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
            assert_eq!(credential(&headers).map(HeaderValue::as_bytes), Ok(&b"t"[..]));
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
        ] {
            assert_eq!(credential(&headers(pairs)), Err(reason), "{pairs:?}");
        }
    }

    #[test]
    fn a_signature_over_another_host_is_recognised() {
        let signed = "SDK-HMAC-SHA256 Access=A, SignedHeaders=content-type;host;x-sdk-date, Signature=00";
        let unsigned = "SDK-HMAC-SHA256 Access=A, SignedHeaders=accept;x-sdk-date, Signature=00";
        let bound = |authorization, host| {
            signature_is_bound_elsewhere(
                &headers(&[("authorization", authorization), ("host", host)]),
                "upstream.example",
            )
        };
        assert!(bound(signed, "127.0.0.1:8080"));
        assert!(bound("X Access=A,SignedHeaders=Host,Signature=00", "127.0.0.1:8080"));
        assert!(bound("SDK-HMAC-SHA256\tSignedHeaders = content-type;host , Access=A", "127.0.0.1:8080"));
        assert!(bound("SDK-HMAC-SHA256 Access=A, Signature=00", "127.0.0.1:8080"));
        assert!(bound(signed, "Upstream.Example"));
        assert!(!bound(signed, "upstream.example"));
        assert!(!bound("Bearer eyJ.aaHmAcbb.signature", "127.0.0.1:8080"));
        assert!(!bound(unsigned, "127.0.0.1:8080"));
    }

    #[test]
    fn a_connection_that_changes_its_credential_changes_its_caller() {
        let callers = Callers::new([1; 32]);
        let last = LastCredential::default();
        for token in ["token-a", "token-a", "token-b", "token-bb", "token-a", ""] {
            let token = HeaderValue::from_static(token);
            assert_eq!(callers.recognise(&token, &last), callers.of_token(&token));
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
