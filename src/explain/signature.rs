//! Verifies a request's signature as `serve` does, and shows the canonical request, so that people can compare it with
//! the client's. Security tokens must not be shown.

use std::time::SystemTime;

use http::Uri;
use http::header::AUTHORIZATION;
use http::request::Parts;
use serde::Serialize;

use crate::request::BypassReason;
use crate::request::caller::Credential;
use crate::request::decide;
use crate::signing::ring::SignatureRejection;
use crate::signing::{AccessKey, Authorization, Payload, SignedTarget, X_SECURITY_TOKEN, canonical_request};

#[derive(Debug, Serialize)]
pub(super) struct Signature {
    /// The id of the key, if it is configured here.
    #[serde(skip_serializing_if = "Option::is_none")]
    access_key: Option<String>,
    pub(super) result: &'static str,
    pub(super) because: String,
    /// The lines of the canonical request of a GET without a body.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    canonical_request: Vec<String>,
}

/// The result of authentication.
pub(super) struct Authentication {
    pub(super) credential: Option<Credential>,
    /// Why the request is answered 401 or 403 here.
    pub(super) refusal: Option<SignatureRejection>,
    pub(super) signature: Option<Signature>,
}

/// Authenticates a request without a body. A signature covers the URI as it was received.
pub(super) fn authenticate(
    presented: Result<decide::PresentedCredential, BypassReason>,
    head: &Parts,
    received_uri: &Uri,
    project: Option<&str>,
    date: SystemTime,
    is_suspended: impl FnOnce(&AccessKey) -> bool,
) -> Authentication {
    let none = Authentication { credential: None, refusal: None, signature: None };
    let claim = match presented {
        Ok(decide::PresentedCredential::Token(token)) => {
            return Authentication { credential: Some(Credential::Token(token)), ..none };
        }
        Ok(decide::PresentedCredential::Signature(claim)) => claim,
        Err(reason @ BypassReason::UnverifiedSignature) => {
            let (access_key, because) = (None, reason.describe().to_owned());
            let signature = Signature { access_key, result: "unknown-key", because, canonical_request: Vec::new() };
            return Authentication { signature: Some(signature), ..none };
        }
        Err(_) => return none,
    };
    let id = claim.key.id().to_owned();
    let verified = claim
        .examine(&head.headers, date)
        .and_then(|examined| examined.admit(&head.method, SignedTarget::from(received_uri), Payload::of(b""), project))
        .and_then(|signed| if is_suspended(&signed.key) { Err(SignatureRejection::Suspended) } else { Ok(signed) });
    let refusal = verified.as_ref().err().copied();
    let signature = Signature {
        access_key: Some(id),
        result: refusal.map_or("verified", |refusal| refusal.into_str()),
        because: refusal
            .map_or("the key is configured here, and its signature is valid", SignatureRejection::describe)
            .to_owned(),
        canonical_request: canonical_lines(head, received_uri),
    };
    let credential = verified.ok().map(|signed| Credential::Signed(signed.into()));
    Authentication { credential, refusal, signature: Some(signature) }
}

/// The lines of the canonical request. The security token is replaced.
fn canonical_lines(head: &Parts, received_uri: &Uri) -> Vec<String> {
    let Parts { method, headers, .. } = head;
    let authorization = headers.get(AUTHORIZATION).and_then(Authorization::read);
    let Some(Authorization { signed_headers, .. }) = authorization else { return Vec::new() };
    let text = canonical_request(method, SignedTarget::from(received_uri), headers, signed_headers, &Payload::of(b""));
    let hidden = format!("{X_SECURITY_TOKEN}:");
    let show = |line: &str| if line.starts_with(&hidden) { format!("{hidden}(not shown)") } else { line.to_owned() };
    text.map(|text| String::from_utf8_lossy(&text).lines().map(show).collect()).unwrap_or_default()
}

impl Signature {
    /// Labelled lines for people.
    pub(super) fn lines(&self) -> impl Iterator<Item = (&'static str, &str)> {
        let key = self.access_key.iter().map(|id| ("access key", id.as_str()));
        let canonical = self.canonical_request.iter().enumerate();
        let canonical = canonical.map(|(index, line)| (if index == 0 { "signed text" } else { "" }, line.as_str()));
        key.chain(canonical)
    }
}
