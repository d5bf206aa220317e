//! What a request's signature is worth here, and what would have been signed: for a person who compares.

use std::time::SystemTime;

use http::header::AUTHORIZATION;
use http::{HeaderMap, Method, Uri};
use serde::Serialize;

use crate::request::BypassReason;
use crate::request::caller::{self, Credential};
use crate::signing::ring::{KeyRing, Refusal};
use crate::signing::{Authorization, Payload, Target, X_SECURITY_TOKEN, canonical_request};

/// The signature of a request.
#[derive(Debug, Serialize)]
pub(super) struct Signature {
    /// Which key, if it is configured here.
    #[serde(skip_serializing_if = "Option::is_none")]
    access_key: Option<String>,
    pub(super) result: &'static str,
    pub(super) because: String,
    /// What the signature is made of, for a GET without a body, line by line.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    canonical_request: Vec<String>,
}

/// What a request presents.
pub(super) struct Presented {
    pub(super) credential: Result<Credential, BypassReason>,
    /// Why it is answered 401 or 403 here, if its signature is refused.
    pub(super) refusal: Option<Refusal>,
    pub(super) signature: Option<Signature>,
}

/// Says who asks for a path, as `serve` does; what is signed is what was typed. The request has no body.
pub(super) fn identify(keys: &KeyRing, headers: &HeaderMap, typed: &Uri, project: &str, date: SystemTime) -> Presented {
    let reason = match caller::token(headers) {
        Ok(token) => {
            let credential = Ok(Credential::Token(token.clone()));
            return Presented { credential, refusal: None, signature: None };
        }
        Err(reason) => reason,
    };
    let plain = |signature| Presented { credential: Err(reason), refusal: None, signature };
    if reason != BypassReason::UnverifiedSignature {
        return plain(None);
    }
    let Some(claim) = keys.claim(headers) else {
        let (access_key, because) = (None, reason.describe().to_owned());
        return plain(Some(Signature { access_key, result: "unknown-key", because, canonical_request: Vec::new() }));
    };
    let id = claim.key.id().to_owned();
    let verified = claim
        .examine(headers, date)
        .and_then(|examined| examined.verify(&Method::GET, Target::from(typed), Payload::of(b"")))
        .and_then(|signed| if signed.key.may_ask(project, headers) { Ok(signed) } else { Err(Refusal::Project) });
    let refusal = verified.as_ref().err().copied();
    let signature = Signature {
        access_key: Some(id),
        result: refusal.map_or("verified", Refusal::as_str),
        because: refusal
            .map_or("the key is configured here, and has signed this request", Refusal::describe)
            .to_owned(),
        canonical_request: canonical(headers, typed),
    };
    let credential = verified.map(|signed| Credential::Signed(signed.into())).map_err(|_| reason);
    Presented { credential, refusal, signature: Some(signature) }
}

/// What is signed, but for the security token.
fn canonical(headers: &HeaderMap, typed: &Uri) -> Vec<String> {
    let said = headers.get(AUTHORIZATION).and_then(Authorization::read);
    let Some(said) = said else { return Vec::new() };
    let text = canonical_request(&Method::GET, Target::from(typed), headers, said.signed_headers, &Payload::of(b""));
    let hidden = format!("{X_SECURITY_TOKEN}:");
    let show = |line: &str| if line.starts_with(&hidden) { format!("{hidden}(not shown)") } else { line.to_owned() };
    text.map(|text| String::from_utf8_lossy(&text).lines().map(show).collect()).unwrap_or_default()
}

impl Signature {
    /// Line by line, for a person.
    pub(super) fn lines(&self) -> impl Iterator<Item = (&'static str, &str)> {
        let key = self.access_key.iter().map(|id| ("access key", id.as_str()));
        let canonical = self.canonical_request.iter().enumerate();
        let canonical = canonical.map(|(index, line)| (if index == 0 { "what is signed" } else { "" }, line.as_str()));
        key.chain(canonical)
    }
}
