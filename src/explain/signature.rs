//! What a request's signature is worth here, and what would have been signed: for a person who compares.

use std::time::SystemTime;

use http::Uri;
use http::header::AUTHORIZATION;
use http::request::Parts;
use serde::Serialize;

use crate::request::BypassReason;
use crate::request::caller::Credential;
use crate::request::decide;
use crate::signing::ring::SignatureRejection;
use crate::signing::{Authorization, Payload, SignedTarget, X_SECURITY_TOKEN, canonical_request};

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
pub(super) struct SignatureInput {
    pub(super) credential: Option<Credential>,
    /// Why it is answered 401 or 403 here, if its signature is refused.
    pub(super) refusal: Option<SignatureRejection>,
    pub(super) signature: Option<Signature>,
}

/// Verifies a signature, as `serve` does; what is signed is what was typed. The request has no body.
pub(super) fn judge(
    presented: Result<decide::PresentedCredential, BypassReason>,
    head: &Parts,
    typed: &Uri,
    project: Option<&str>,
    date: SystemTime,
) -> SignatureInput {
    let none = SignatureInput { credential: None, refusal: None, signature: None };
    let claim = match presented {
        Ok(decide::PresentedCredential::Token(token)) => {
            return SignatureInput { credential: Some(Credential::Token(token)), ..none };
        }
        Ok(decide::PresentedCredential::Signature(claim)) => claim,
        Err(reason @ BypassReason::UnverifiedSignature) => {
            let (access_key, because) = (None, reason.describe().to_owned());
            let signature = Signature { access_key, result: "unknown-key", because, canonical_request: Vec::new() };
            return SignatureInput { signature: Some(signature), ..none };
        }
        Err(_) => return none,
    };
    let id = claim.key.id().to_owned();
    let verified = claim
        .examine(&head.headers, date)
        .and_then(|examined| examined.admit(&head.method, SignedTarget::from(typed), Payload::of(b""), project));
    let refusal = verified.as_ref().err().copied();
    let signature = Signature {
        access_key: Some(id),
        result: refusal.map_or("verified", |refusal| refusal.into_str()),
        because: refusal
            .map_or("the key is configured here, and has signed this request", SignatureRejection::describe)
            .to_owned(),
        canonical_request: canonical(head, typed),
    };
    let credential = verified.ok().map(|signed| Credential::Signed(signed.into()));
    SignatureInput { credential, refusal, signature: Some(signature) }
}

/// What is signed, but for the security token.
fn canonical(head: &Parts, typed: &Uri) -> Vec<String> {
    let Parts { method, headers, .. } = head;
    let said = headers.get(AUTHORIZATION).and_then(Authorization::read);
    let Some(said) = said else { return Vec::new() };
    let text = canonical_request(method, SignedTarget::from(typed), headers, said.signed_headers, &Payload::of(b""));
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
