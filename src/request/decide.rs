//! Decides what to do with a request, from its head, the facts of its connection and the active settings.
//!
//! `serve` carries the decision out, `explain` shows it, and the fast path remembers it for a repeated head. Nothing
//! here waits, reads a clock or looks at stored responses, so the same head always gets the same decision.
//!
//! Two things are decided later: whether a signature is valid, which may need the body, and which stored response the
//! caller may see.

use std::net::SocketAddr;
use std::sync::Arc;

use http::request::Parts;
use http::{HeaderMap, HeaderValue, Uri};

use super::BypassReason;
use super::caller;
use super::hop::{self, Via};
use super::key::{RequestKey, Scope};
use super::options;
use super::rejection::Rejection;
use super::request_directives::RequestDirectives;
use super::route::{self, Route};
use super::target;
use super::validate;
use crate::catalogue::prefix::PathPrefix;
use crate::catalogue::{Catalogue, Operation, Origin, PathMatch, Service};
use crate::signing::ring::{Claim, KeyRing};
use crate::signing::{Binding, RelayChanges};

/// The settings that a decision depends on.
#[derive(Clone, Copy)]
pub struct Rules<'a> {
    pub catalogue: &'a Catalogue,
    /// The prefixes that a client's base URL may put before a path. They are removed.
    pub path_prefixes: &'a [PathPrefix],
    /// The access keys whose signatures the gateway verifies.
    pub keys: &'a KeyRing,
    /// This gateway's entry in `Via`, which detects loops (RFC 9110 §7.6.3).
    pub via: &'a Via,
    /// The maximum size of a request line with its header fields, in bytes.
    pub max_head_size: usize,
    /// Whether an operator has switched the cache off.
    pub is_bypassing: bool,
}

/// The facts about a request that its head does not have.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Facts {
    /// The gateway's address that the client has connected to.
    pub local: SocketAddr,
    /// Whether a body follows the head.
    pub has_body: bool,
}

/// What to do with a request that is not rejected.
#[expect(clippy::large_enum_variant, reason = "nearly all are plans, and a box would cost each of them an allocation")]
pub(crate) enum Decision {
    /// Answer it with the methods that the gateway relays.
    AnswerOptions,
    /// Answer it from memory or from an upstream service.
    Proceed(Plan),
}

/// What to do with a request for a service.
pub(crate) struct Plan {
    pub service: Service,
    pub presentation: Presentation,
    pub action: Action,
}

/// What a request presents to authenticate its caller.
pub(crate) struct Presentation {
    /// The credential, or why the request has none that the gateway can use.
    pub credential: Result<PresentedCredential, BypassReason>,
    /// The URI as the client sent it, before a path prefix was removed. A signature covers this one.
    pub received_uri: Uri,
    /// What to do with `Authorization` if the request is relayed.
    pub authorization: AuthorizationAction,
}

/// A credential that has not been validated yet.
pub(crate) enum PresentedCredential {
    /// A token. Only upstream can validate it.
    Token(HeaderValue),
    /// A signature that names a configured access key. It must be verified before anything else is done.
    Signature(Claim),
}

/// How to answer a request.
pub(crate) enum Action {
    /// From memory if the caller may see what is stored under the key, else by a call for this key.
    LookUp { key: RequestKey, directives: RequestDirectives },
    /// By relaying it, although it is a request for an operation.
    Bypass(Bypass),
    /// By relaying it. It is not a request for an operation.
    PassThrough,
}

/// Why a request for an operation is relayed.
pub(crate) struct Bypass {
    pub operation: Arc<Operation>,
    /// The first reason. This one is recorded.
    pub reason: BypassReason,
    /// Further reasons, which only `explain` shows.
    pub others: Vec<BypassReason>,
    /// The scope of the request, if it has a valid one.
    pub scope: Option<Scope>,
    /// The key of the request, if it has a valid one.
    pub key: Option<RequestKey>,
}

impl Action {
    pub(crate) fn operation(&self) -> Option<&Arc<Operation>> {
        match self {
            Self::LookUp { key, .. } => Some(key.operation()),
            Self::Bypass(bypass) => Some(&bypass.operation),
            Self::PassThrough => None,
        }
    }
}

/// What happens to the `Authorization` header of a relayed request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum AuthorizationAction {
    /// It is relayed unchanged, if there is one.
    Kept,
    /// It is relayed unchanged. It is a signature that the gateway cannot verify and that may be valid upstream.
    Unverified,
    /// It is removed. The request has a token, and a signature that is invalid upstream or names a configured key.
    Dropped,
    /// The request is signed anew for upstream after its signature has been verified.
    Renewed,
    /// The request is answered 401. Its only credential is a signature that is bound to the gateway's address or path,
    /// so it is invalid upstream. Its key is not configured, so the gateway cannot sign the request anew.
    Bound,
}

/// Decides what to do with a request. The head must have been normalized ([`validate::normalize`]). This function
/// changes the head to the form in which it is relayed.
///
/// # Errors
/// Why the gateway rejects the request.
pub(crate) fn decide(head: &mut Parts, facts: Facts, rules: Rules<'_>) -> Result<Decision, Rejection> {
    if head_size(head) > rules.max_head_size {
        return Err(Rejection::HeadTooLarge { limit: rules.max_head_size });
    }
    validate::check(head, rules.catalogue)?;
    target::check(head, facts.local, rules.catalogue).map_err(Rejection::Misdirected)?;
    if rules.via.is_in(&head.headers) {
        return Err(Rejection::Loop);
    }
    if options::ends_here(head) {
        return Ok(Decision::AnswerOptions);
    }
    let received_uri = head.uri.clone();
    target::rebase(head, rules.path_prefixes, rules.catalogue);
    let removed = hop::strip_request(&mut head.headers);
    let changes = RelayChanges { path: received_uri.path() != head.uri.path(), removed };

    let credential = presented_credential(&head.headers, rules.keys);
    let (service, action) = match route::find(rules.catalogue, &head.method, head.uri.path()) {
        Route::Unknown => return Err(Rejection::NoSuchApi),
        Route::PassThrough(service) => (service, Action::PassThrough),
        Route::Operation(operation, path_match) => {
            let no_credential = credential.as_ref().err().copied();
            (operation.service, look_up_or_bypass(head, operation, path_match, no_credential, facts, rules))
        }
    };
    let origin = rules.catalogue.origin(service);
    let authorization = authorization_action(&head.headers, &credential, origin, &changes, rules.keys);
    let presentation = Presentation { credential, received_uri, authorization };
    Ok(Decision::Proceed(Plan { service, presentation, action }))
}

/// Whether a request is for no operation, so that it is relayed or gets a 404.
pub(crate) fn is_for_none(decision: &Result<Decision, Rejection>) -> bool {
    match decision {
        Ok(Decision::Proceed(plan)) => plan.action.operation().is_none(),
        Ok(Decision::AnswerOptions) => false,
        Err(rejection) => matches!(rejection, Rejection::NoSuchApi),
    }
}

/// The size of a request line with its header fields, in bytes. Four bytes of framing count for each field.
pub(crate) fn head_size(head: &Parts) -> usize {
    let target = head.uri.path_and_query().map_or(0, |target| target.as_str().len());
    let fields: usize = head.headers.iter().map(|(name, value)| name.as_str().len() + value.len() + 4).sum();
    head.method.as_str().len() + target + fields
}

fn presented_credential(headers: &HeaderMap, keys: &KeyRing) -> Result<PresentedCredential, BypassReason> {
    match caller::token(headers) {
        Ok(token) => Ok(PresentedCredential::Token(token.clone())),
        Err(reason @ BypassReason::UnverifiedSignature) => {
            keys.claim(headers).map(PresentedCredential::Signature).ok_or(reason)
        }
        Err(reason) => Err(reason),
    }
}

/// Decides that a request for an operation is looked up, unless there is a reason to bypass.
fn look_up_or_bypass(
    head: &Parts,
    operation: &Arc<Operation>,
    path_match: PathMatch<'_>,
    no_credential: Option<BypassReason>,
    facts: Facts,
    rules: Rules<'_>,
) -> Action {
    let key = RequestKey::read(rules.catalogue, operation, path_match, head.uri.query(), &head.headers, facts.has_body);
    let directives = RequestDirectives::read(&head.headers);
    let mode = rules.is_bypassing.then_some(BypassReason::Mode);
    let (no_key, no_store) = (key.as_ref().err().copied(), directives.as_ref().err().copied());
    let mut reasons = [mode, no_credential, no_key, no_store].into_iter().flatten();
    match (reasons.next(), key, directives) {
        (None, Ok(key), Ok(directives)) => Action::LookUp { key, directives },
        (Some(reason), key, _) | (None, key @ Err(reason), _) | (None, key, Err(reason)) => {
            let key = key.ok();
            let scope = match &key {
                Some(key) => Some(key.scope().clone()),
                None => Scope::read(rules.catalogue, operation, path_match).ok(),
            };
            let others = reasons.collect();
            Action::Bypass(Bypass { operation: Arc::clone(operation), reason, others, scope, key })
        }
    }
}

fn authorization_action(
    headers: &HeaderMap,
    credential: &Result<PresentedCredential, BypassReason>,
    origin: &Origin,
    changes: &RelayChanges,
    keys: &KeyRing,
) -> AuthorizationAction {
    let binding = || Binding::of(headers, origin.authority().as_str(), changes);
    match credential {
        Ok(PresentedCredential::Signature(_)) => AuthorizationAction::Renewed,
        Ok(PresentedCredential::Token(_)) if binding() == Binding::Bound || keys.claim(headers).is_some() => {
            AuthorizationAction::Dropped
        }
        Ok(PresentedCredential::Token(_)) => AuthorizationAction::Kept,
        Err(_) => match binding() {
            Binding::Unsigned => AuthorizationAction::Kept,
            Binding::Free => AuthorizationAction::Unverified,
            Binding::Bound => AuthorizationAction::Bound,
        },
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use http::Request;
    use http::header::HOST;
    use strum::VariantArray;

    use super::*;
    use crate::signing::{AccessKey, Projects};

    const GATEWAY: &str = "127.0.0.1:8080";
    const TOKEN: (&str, &str) = ("x-auth-token", "T");

    fn signature(key: &str, signed_headers: &str) -> String {
        format!("SDK-HMAC-SHA256 Access={key}, SignedHeaders={signed_headers}, Signature=0")
    }

    /// Decides a request such as `GET /v2/p/products`, and describes the decision in a few words. `Host` is added.
    fn decided(request_line: &str, fields: &[(&str, &str)], has_body: bool, is_bypassing: bool) -> String {
        let key = AccessKey::new("CONFIGURED".to_owned(), b"secret", None, Projects::Any);
        let rules = Rules {
            catalogue: &Catalogue::for_tests(Vec::new()),
            path_prefixes: &["/workspace".to_owned().try_into().unwrap()],
            keys: &KeyRing::new([key]),
            via: &Via::new(7),
            max_head_size: 1_000,
            is_bypassing,
        };
        let (method, target) = request_line.split_once(' ').unwrap();
        let request = Request::builder().method(method).uri(target).header(HOST, GATEWAY);
        let request = fields.iter().fold(request, |request, &(name, value)| request.header(name, value));
        let (mut head, ()) = request.body(()).unwrap().into_parts();
        let decision = decide(&mut head, Facts { local: GATEWAY.parse().unwrap(), has_body }, rules);
        let is_for_none = is_for_none(&decision);
        let described = describe(decision);
        let expected = described.starts_with("pass through") || described == "reject no-such-api";
        assert_eq!(is_for_none, expected, "{described}");
        described
    }

    fn describe(decision: Result<Decision, Rejection>) -> String {
        let plan = match decision {
            Ok(Decision::Proceed(plan)) => plan,
            Ok(Decision::AnswerOptions) => return "answer OPTIONS".to_owned(),
            Err(rejection) => return format!("reject {}", rejection.as_str()),
        };
        let action = match plan.action {
            Action::LookUp { key, .. } => format!("look up {}", key.operation().name),
            Action::Bypass(Bypass { reason, others, .. }) => [&[reason], &others[..]]
                .concat()
                .iter()
                .fold("bypass".to_owned(), |text, reason| format!("{text} {}", reason.into_str())),
            Action::PassThrough => format!("pass through to {}", plan.service.as_str()),
        };
        format!("{action}, authorization {:?}", plan.presentation.authorization)
    }

    #[test]
    fn a_head_has_one_decision() {
        let (known, unknown) = (signature("CONFIGURED", "host"), signature("OTHER", "x-sdk-date"));
        let (known, unknown) = (("authorization", &*known), ("authorization", &*unknown));
        let bound = signature("OTHER", "host;x-sdk-date");
        let bound = ("authorization", &*bound);
        // The request line takes 17 bytes, and the fields take 22 and 16 besides the token.
        let (longest, too_long) = ("a".repeat(945), "a".repeat(946));
        for (request_line, fields, expected) in [
            ("GET /v2/p/products", &[TOKEN][..], "look up ListProducts, authorization Kept"),
            ("HEAD /v1/p/product", &[TOKEN], "look up ListProduct, authorization Kept"),
            ("GET /workspace/v2/p/products", &[TOKEN], "look up ListProducts, authorization Kept"),
            ("GET /v2/p/products", &[known], "look up ListProducts, authorization Renewed"),
            ("GET /v2/p/products", &[TOKEN, known], "look up ListProducts, authorization Dropped"),
            ("GET /v2/p/products", &[TOKEN, bound], "look up ListProducts, authorization Dropped"),
            ("GET /v2/p/products", &[TOKEN, unknown], "look up ListProducts, authorization Kept"),
            ("GET /v2/p/products", &[], "bypass no-credential, authorization Kept"),
            ("GET /v2/p/products", &[unknown], "bypass unverified-signature, authorization Unverified"),
            ("GET /v2/p/products", &[bound], "bypass unverified-signature, authorization Bound"),
            ("GET /workspace/v2/p/products", &[unknown], "bypass unverified-signature, authorization Bound"),
            (
                "GET /v2/p/products",
                &[TOKEN, ("cache-control", "no-store")],
                "bypass client-no-store, authorization Kept",
            ),
            ("GET /v2/p/products", &[("range", "bytes=0-1")], "bypass no-credential range, authorization Kept"),
            ("GET /v2/p/products?a+b=1", &[TOKEN], "bypass plus, authorization Kept"),
            ("POST /v2/p/products", &[TOKEN], "pass through to workspace, authorization Kept"),
            ("GET /v2/p/desktops", &[], "pass through to workspace, authorization Kept"),
            ("GET /v1/p/app-groups", &[known], "pass through to appstream, authorization Renewed"),
            ("OPTIONS *", &[], "answer OPTIONS"),
            ("OPTIONS /v2/p/desktops", &[("max-forwards", "0")], "answer OPTIONS"),
            ("GET /nowhere", &[TOKEN], "reject no-such-api"),
            ("GET http://other.example/v2/p/products", &[TOKEN], "reject foreign-host"),
            ("GET /v2/p/products", &[TOKEN, TOKEN], "reject token-field"),
            ("GET /v2/p/products", &[("via", "1.1 workspace-gateway-00000007")], "reject loop"),
            ("GET /v2/p/products", &[("x-auth-token", &longest)], "look up ListProducts, authorization Kept"),
            ("GET /v2/p/products", &[("x-auth-token", &too_long)], "reject head-too-large"),
        ] {
            assert_eq!(decided(request_line, fields, false, false), expected, "{request_line} {fields:?}");
        }
    }

    #[test]
    fn each_reason_to_bypass_has_its_own_description() {
        let reasons = BypassReason::VARIANTS;
        let descriptions: HashSet<&str> = reasons.iter().map(|reason| reason.describe()).collect();
        assert_eq!(descriptions.len(), reasons.len());
    }

    #[test]
    fn a_body_and_the_mode_are_reasons_to_bypass() {
        for (has_body, is_bypassing, expected) in [
            (true, false, "bypass body, authorization Kept"),
            (false, true, "bypass mode, authorization Kept"),
            (true, true, "bypass mode body, authorization Kept"),
        ] {
            assert_eq!(decided("GET /v2/p/products", &[TOKEN], has_body, is_bypassing), expected);
        }
    }
}
