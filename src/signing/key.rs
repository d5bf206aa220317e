//! One access key: it makes and checks signatures, and has the projects that it may be used for. The secret must not be
//! shown.

use std::fmt;
use std::time::SystemTime;

use constant_time_eq::constant_time_eq;
use http::header::{AUTHORIZATION, HOST};
use http::{HeaderMap, HeaderValue, Method};
use ring::digest::{Digest, SHA256, digest};
use ring::hmac;
use thiserror::Error;

use super::canonical::{hex, string_to_sign_of_hash};
use super::{
    Authorization, Payload, SCHEME, SignedTarget, X_PROJECT_ID, X_SDK_DATE, X_SECURITY_TOKEN, canonical_request, date,
};

/// The projects that a key may be used for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Projects {
    /// All that upstream allows.
    Any,
    These(Vec<String>),
}

/// An access key with its secret. `Debug` shows only the id.
pub struct AccessKey {
    id: String,
    hmac: hmac::Key,
    security_token: Option<HeaderValue>,
    projects: Projects,
    fingerprint: [u8; 32],
}

impl fmt::Debug for AccessKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "AccessKey({})", self.id)
    }
}

/// A request cannot be signed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[error("a header to be signed is missing or present twice")]
pub struct Unsignable;

impl AccessKey {
    pub fn new(id: String, secret: &[u8], security_token: Option<HeaderValue>, projects: Projects) -> Self {
        // The lengths are hashed too, so that two keys cannot have one fingerprint by concatenation.
        let mut hasher = blake3::Hasher::new();
        let token = security_token.as_ref().map_or(&b""[..], HeaderValue::as_bytes);
        for part in [id.as_bytes(), secret, token] {
            hasher.update(&(part.len() as u64).to_le_bytes()).update(part);
        }
        let security_token = security_token.map(|mut token| {
            token.set_sensitive(true);
            token
        });
        let fingerprint = *hasher.finalize().as_bytes();
        Self { id, hmac: hmac::Key::new(hmac::HMAC_SHA256, secret), security_token, projects, fingerprint }
    }

    /// The id is public.
    pub fn id(&self) -> &str {
        &self.id
    }

    /// Identifies the credential: another secret or security token under the same id has another fingerprint. As secret
    /// as the key.
    pub fn fingerprint(&self) -> &[u8; 32] {
        &self.fingerprint
    }

    /// Whether the key may be used in a project. `project` is `None` if the path is ambiguous; then only a key without
    /// a list of projects may be used.
    pub fn allows_project(&self, project: Option<&str>, headers: &HeaderMap) -> bool {
        match (&self.projects, project) {
            (Projects::Any, _) => true,
            (Projects::These(_), None) => false,
            (Projects::These(projects), Some(project)) => {
                projects.iter().any(|known| known == project)
                    && headers.get_all(X_PROJECT_ID).iter().all(|named| named == project)
            }
        }
    }

    /// Whether `X-Security-Token` is the key's. A permanent key has none.
    pub(super) fn matches_security_token(&self, headers: &HeaderMap) -> bool {
        let mut tokens = headers.get_all(X_SECURITY_TOKEN).iter();
        match (&self.security_token, tokens.next(), tokens.next()) {
            (None, None, _) => true,
            (Some(known), Some(token), None) => constant_time_eq(known.as_bytes(), token.as_bytes()),
            _ => false,
        }
    }

    pub(super) fn security_token(&self) -> Option<&HeaderValue> {
        self.security_token.as_ref()
    }

    /// Whether this is the key's signature of a canonical request with this SHA-256.
    pub(super) fn has_signed(&self, signature: &str, date: &str, hash: &Digest) -> bool {
        constant_time_eq(self.signature(date, hash).as_bytes(), signature.as_bytes())
    }

    fn signature(&self, date: &str, hash: &Digest) -> String {
        hex(hmac::sign(&self.hmac, string_to_sign_of_hash(date, hash).as_bytes()).as_ref())
    }

    /// Signs a request. Sets `X-Sdk-Date`, `X-Security-Token` and `Authorization`; everything else must be complete.
    /// The signature covers the given headers, `Host`, the two that are set, and the payload.
    ///
    /// # Errors
    /// If a covered header is missing or present twice.
    pub fn sign<'n>(
        &self,
        method: &Method,
        target: SignedTarget<'_>,
        headers: &mut HeaderMap,
        covered: impl IntoIterator<Item = &'n str>,
        payload: &Payload,
        date: SystemTime,
    ) -> Result<(), Unsignable> {
        let (date, [signed_at, token_name]) = (date::show(date), [X_SDK_DATE, X_SECURITY_TOKEN]);
        headers.insert(&signed_at, HeaderValue::try_from(&date).map_err(|_| Unsignable)?);
        let mut names: Vec<&str> = covered.into_iter().collect();
        names.extend([HOST.as_str(), signed_at.as_str()]);
        match &self.security_token {
            Some(token) => {
                headers.insert(&token_name, token.clone());
                names.push(token_name.as_str());
            }
            None => {
                headers.remove(&token_name);
            }
        }
        names.sort_unstable();
        names.dedup();
        let names = names.join(";");
        let canonical = canonical_request(method, target, headers, &names, payload).ok_or(Unsignable)?;
        let signature = self.signature(&date, &digest(&SHA256, &canonical));
        let authorization = Authorization { access: &self.id, signed_headers: &names, signature: &signature };
        let mut value = HeaderValue::try_from(authorization.to_string()).map_err(|_| Unsignable)?;
        value.set_sensitive(true);
        headers.insert(AUTHORIZATION, value);
        Ok(())
    }
}

impl fmt::Display for Authorization<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { access, signed_headers, signature } = self;
        write!(f, "{SCHEME} Access={access}, SignedHeaders={signed_headers}, Signature={signature}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(id: &str, secret: &str, token: Option<&'static str>) -> AccessKey {
        AccessKey::new(id.to_owned(), secret.as_bytes(), token.map(HeaderValue::from_static), Projects::Any)
    }

    #[test]
    fn different_credentials_have_different_fingerprints() {
        let keys = [
            key("a", "bc", None),
            key("ab", "c", None),
            key("a", "b", Some("c")),
            key("a", "bd", None),
            key("a", "b", None),
            key("a", "b", Some("d")),
            key("c", "b", None),
        ];
        for (index, one) in keys.iter().enumerate() {
            assert!(keys[..index].iter().all(|other| other.fingerprint() != one.fingerprint()), "{index}");
        }
        assert_eq!(key("a", "b", None).fingerprint(), key("a", "b", None).fingerprint());
    }

    #[test]
    fn debug_output_shows_no_secret() {
        let key = key("id", "the-secret", Some("the-token"));
        assert_eq!(format!("{key:?}"), "AccessKey(id)");
        let mut headers = HeaderMap::from_iter([(HOST, HeaderValue::from_static("h"))]);
        let target = SignedTarget { path: "/", query: None };
        key.sign(&Method::GET, target, &mut headers, [], &Payload::of(b""), SystemTime::UNIX_EPOCH).unwrap();
        let shown = format!("{headers:?}");
        assert!(!shown.contains("the-token") && !shown.contains("Signature"), "{shown}");
    }

    #[test]
    fn a_permanent_key_sends_no_security_token() {
        let mut headers = HeaderMap::from_iter([
            (HOST, HeaderValue::from_static("h")),
            (X_SECURITY_TOKEN, HeaderValue::from_static("of another")),
        ]);
        let target = SignedTarget { path: "/", query: None };
        let key = key("id", "secret", None);
        key.sign(&Method::GET, target, &mut headers, [], &Payload::of(b""), SystemTime::UNIX_EPOCH).unwrap();
        assert!(!headers.contains_key(X_SECURITY_TOKEN), "{headers:?}");
    }

    #[test]
    fn a_key_with_projects_is_used_only_for_them() {
        let of = |projects: &[&str]| {
            let projects = Projects::These(projects.iter().map(ToString::to_string).collect());
            AccessKey::new("a".to_owned(), b"b", None, projects)
        };
        let (none, named) = (HeaderMap::new(), HeaderMap::from_iter([(X_PROJECT_ID, HeaderValue::from_static("p"))]));
        assert!(
            key("a", "b", None).allows_project(Some(""), &named) && key("a", "b", None).allows_project(None, &named)
        );
        for (project, may) in
            [(Some("p"), true), (Some("q"), true), (Some("r"), false), (Some(""), false), (None, false)]
        {
            assert_eq!(of(&["p", "q"]).allows_project(project, &none), may, "{project:?}");
        }
        assert!(
            of(&["p", "q"]).allows_project(Some("p"), &named) && !of(&["p", "q"]).allows_project(Some("q"), &named)
        );
        assert!(!of(&[]).allows_project(Some("p"), &none));
    }
}
