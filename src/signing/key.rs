//! One access key: what it signs, and what it may be used for.

use std::fmt;
use std::time::SystemTime;

use constant_time_eq::constant_time_eq;
use http::header::{AUTHORIZATION, HOST};
use http::{HeaderMap, HeaderValue, Method};
use ring::hmac;
use thiserror::Error;

use super::canonical::hex;
use super::{
    Authorization, Payload, SCHEME, SignedTarget, X_PROJECT_ID, X_SDK_DATE, X_SECURITY_TOKEN, canonical_request, date,
    string_to_sign,
};

/// The projects that a key may be used for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Projects {
    /// Whatever upstream lets it.
    Any,
    /// These.
    These(Vec<String>),
}

/// An access key with its secret. Shows nobody more than its id.
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

/// A request can't be signed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[error("a header that should be signed is missing, or there twice")]
pub struct Unsignable;

impl AccessKey {
    /// A key of which everything is known.
    pub fn new(id: String, secret: &[u8], security_token: Option<HeaderValue>, projects: Projects) -> Self {
        // Parts are framed by their lengths, so that no two keys have one fingerprint.
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

    /// Its id, which is public.
    pub fn id(&self) -> &str {
        &self.id
    }

    /// What tells this credential from others, with the same id too. As secret as the key.
    pub fn fingerprint(&self) -> &[u8; 32] {
        &self.fingerprint
    }

    /// Whether it may be used for a request in a project; `None` if nobody can be sure which that is.
    pub fn may_ask(&self, project: Option<&str>, headers: &HeaderMap) -> bool {
        match (&self.projects, project) {
            (Projects::Any, _) => true,
            (Projects::These(_), None) => false,
            (Projects::These(projects), Some(project)) => {
                projects.iter().any(|known| known == project)
                    && headers.get_all(X_PROJECT_ID).iter().all(|named| named == project)
            }
        }
    }

    /// Whether a request presents the other half of temporary credentials, or rightly none.
    pub(super) fn goes_with(&self, headers: &HeaderMap) -> bool {
        let mut tokens = headers.get_all(X_SECURITY_TOKEN).iter();
        match (&self.security_token, tokens.next(), tokens.next()) {
            (None, None, _) => true,
            (Some(known), Some(token), None) => constant_time_eq(known.as_bytes(), token.as_bytes()),
            _ => false,
        }
    }

    /// Whether the signature is this key's, over just this.
    pub(super) fn has_signed(&self, signature: &str, date: &str, canonical_request: &[u8]) -> bool {
        constant_time_eq(self.signature(date, canonical_request).as_bytes(), signature.as_bytes())
    }

    fn signature(&self, date: &str, canonical_request: &[u8]) -> String {
        hex(hmac::sign(&self.hmac, string_to_sign(date, canonical_request).as_bytes()).as_ref())
    }

    /// Signs a request that is complete but for this: its date, the security token, these headers with `Host`,
    /// and its body.
    ///
    /// # Errors
    /// If a header to be covered isn't there just once.
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
        let signature = self.signature(&date, &canonical);
        let said = Authorization { access: &self.id, signed_headers: &names, signature: &signature };
        let mut value = HeaderValue::try_from(said.to_string()).map_err(|_| Unsignable)?;
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
    fn credentials_that_differ_have_different_fingerprints() {
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
    fn nothing_shows_a_secret() {
        let key = key("id", "the-secret", Some("the-token"));
        assert_eq!(format!("{key:?}"), "AccessKey(id)");
        let mut headers = HeaderMap::from_iter([(HOST, HeaderValue::from_static("h"))]);
        let target = SignedTarget { path: "/", query: None };
        key.sign(&Method::GET, target, &mut headers, [], &Payload::of(b""), SystemTime::UNIX_EPOCH).unwrap();
        let shown = format!("{headers:?}");
        assert!(!shown.contains("the-token") && !shown.contains("Signature"), "{shown}");
    }

    #[test]
    fn permanent_credentials_send_no_token() {
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
    fn a_key_is_for_its_projects() {
        let of = |projects: &[&str]| {
            let projects = Projects::These(projects.iter().map(ToString::to_string).collect());
            AccessKey::new("a".to_owned(), b"b", None, projects)
        };
        let (none, named) = (HeaderMap::new(), HeaderMap::from_iter([(X_PROJECT_ID, HeaderValue::from_static("p"))]));
        assert!(key("a", "b", None).may_ask(Some(""), &named) && key("a", "b", None).may_ask(None, &named));
        for (project, may) in
            [(Some("p"), true), (Some("q"), true), (Some("r"), false), (Some(""), false), (None, false)]
        {
            assert_eq!(of(&["p", "q"]).may_ask(project, &none), may, "{project:?}");
        }
        assert!(of(&["p", "q"]).may_ask(Some("p"), &named) && !of(&["p", "q"]).may_ask(Some("q"), &named));
        assert!(!of(&[]).may_ask(Some("p"), &none));
    }
}
