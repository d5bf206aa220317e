//! The decision: what is to be done with a request, by its head, the facts of its connection and the settings in force.
//!
//! `serve` does what is decided here, `explain` shows it, and the fast path remembers it for a head that comes again. Nothing
//! here waits, reads a clock or looks at what is stored, so a head is decided alike each time. What cannot be decided
//! without the body or the stored answers comes after: whether a signature is valid, and what the caller may be given.

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

/// What of the settings in force a decision depends on.
#[derive(Clone, Copy)]
pub struct Rules<'a> {
    /// Which operations there are, and which paths belong to which service.
    pub catalogue: &'a Catalogue,
    /// What a client's base URL may have in front of the paths.
    pub path_prefixes: &'a [PathPrefix],
    /// The access keys whose signatures are verified.
    pub keys: &'a KeyRing,
    /// By which a loop is seen.
    pub via: &'a Via,
    /// How large a request line with its header fields may be, in bytes.
    pub max_head_size: usize,
    /// Whether an operator has switched the cache off.
    pub is_bypassing: bool,
}

/// What is known of a request besides its head.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Facts {
    /// The address that the request came in by.
    pub local: SocketAddr,
    /// Whether a body follows the head.
    pub has_body: bool,
}

/// What is to be done with a request that is not rejected.
#[expect(clippy::large_enum_variant, reason = "nearly all are plans, and a box would cost each of them an allocation")]
pub(crate) enum Decision {
    /// Answer it with the methods that the gateway relays.
    AnswerOptions,
    /// Look up an answer, or relay it to a service.
    Proceed(Plan),
}

/// What is to be done with a request for a service.
pub(crate) struct Plan {
    /// Who would answer it.
    pub service: Service,
    /// What it presents to show who asks.
    pub presentation: Presentation,
    /// How it is answered.
    pub action: Action,
}

/// What a request presents to show who asks.
pub(crate) struct Presentation {
    /// Its credential, or why it has none that counts.
    pub credential: Result<PresentedCredential, BypassReason>,
    /// The target as its client has typed and signed it.
    pub typed: Uri,
    /// What becomes of `AuthorizationAction` if the request is relayed.
    pub authorization: AuthorizationAction,
}

/// A credential that is presented. Whether it is worth anything is not decided here.
pub(crate) enum PresentedCredential {
    /// A token, which upstream judges.
    Token(HeaderValue),
    /// A signature that claims a configured access key, and has to be verified before anything else is done.
    Signature(Claim),
}

/// How a request is answered.
pub(crate) enum Action {
    /// From memory if its caller may be given what is there, else by a call for this key.
    LookupResult {
        /// What is asked.
        key: RequestKey,
        /// What the client demands of a cache.
        directives: RequestDirectives,
    },
    /// By relaying it, though it asks for an operation.
    Bypass(Bypass),
    /// By relaying it.
    PassThrough,
}

/// Why a request for an operation is relayed.
pub(crate) struct Bypass {
    /// The operation.
    pub operation: Arc<Operation>,
    /// What is in the way of an answer from memory.
    pub reason: BypassReason,
    /// What else is.
    pub others: Vec<BypassReason>,
    /// Where its credential would count, if that can be told.
    pub scope: Option<Scope>,
    /// What would be asked, if that can be told.
    pub key: Option<RequestKey>,
}

impl Action {
    /// The operation that is asked for, if it is one.
    pub(crate) fn operation(&self) -> Option<&Arc<Operation>> {
        match self {
            Self::LookupResult { key, .. } => Some(key.operation()),
            Self::Bypass(bypass) => Some(&bypass.operation),
            Self::PassThrough => None,
        }
    }
}

/// What becomes of the `AuthorizationAction` of a request that is relayed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum AuthorizationAction {
    /// It is sent as it came, if there is one.
    Kept,
    /// It is sent as it came, a signature that nobody has verified and that may be valid upstream.
    Unverified,
    /// It is not sent: there is a token, and a signature that cannot be valid upstream, or that claims a configured key.
    Dropped,
    /// The request is signed anew, once the signature is verified.
    Renewed,
    /// The request is answered 401: its only credential is a signature that cannot be valid upstream, and that is not by a
    /// configured key, so that nobody can sign the request anew.
    Bound,
}

/// Decides what to do with a request whose head is in the form of [`validate::normalize`]. Brings the head into the form in
/// which it is relayed.
///
/// # Errors
/// Why it is answered with an error.
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
    let typed = head.uri.clone();
    target::rebase(head, rules.path_prefixes, rules.catalogue);
    let removed = hop::strip_request(&mut head.headers);
    let changes = RelayChanges { path: typed.path() != head.uri.path(), removed };

    let credential = presented(&head.headers, rules.keys);
    let (service, action) = match route::find(rules.catalogue, &head.method, head.uri.path()) {
        Route::Unknown => return Err(Rejection::NoSuchApi),
        Route::PassThrough(service) => (service, Action::PassThrough),
        Route::Operation(operation, place) => {
            (operation.service, look_up(head, operation, place, credential.as_ref().err().copied(), facts, rules))
        }
    };
    let origin = rules.catalogue.origin(service);
    let authorization = authorization(&head.headers, &credential, origin, &changes, rules.keys);
    Ok(Decision::Proceed(Plan { service, presentation: Presentation { credential, typed, authorization }, action }))
}

/// The size of a request line with its header fields, framing included, in bytes.
pub(crate) fn head_size(head: &Parts) -> usize {
    let target = head.uri.path_and_query().map_or(0, |target| target.as_str().len());
    let fields: usize = head.headers.iter().map(|(name, value)| name.as_str().len() + value.len() + 4).sum();
    head.method.as_str().len() + target + fields
}

fn presented(headers: &HeaderMap, keys: &KeyRing) -> Result<PresentedCredential, BypassReason> {
    match caller::token(headers) {
        Ok(token) => Ok(PresentedCredential::Token(token.clone())),
        Err(reason @ BypassReason::UnverifiedSignature) => {
            keys.claim(headers).map(PresentedCredential::Signature).ok_or(reason)
        }
        Err(reason) => Err(reason),
    }
}

/// Looks an operation's answer up, unless something is in the way.
fn look_up(
    head: &Parts,
    operation: &Arc<Operation>,
    place: PathMatch<'_>,
    no_credential: Option<BypassReason>,
    facts: Facts,
    rules: Rules<'_>,
) -> Action {
    let key = RequestKey::read(rules.catalogue, operation, place, head.uri.query(), &head.headers, facts.has_body);
    let directives = RequestDirectives::read(&head.headers);
    let mode = rules.is_bypassing.then_some(BypassReason::Mode);
    let of_key = key.as_ref().err().copied();
    let mut reasons = [mode, no_credential, of_key, directives.as_ref().err().copied()].into_iter().flatten();
    match (reasons.next(), key, directives) {
        (None, Ok(key), Ok(directives)) => Action::LookupResult { key, directives },
        (Some(reason), key, _) | (None, key @ Err(reason), _) | (None, key, Err(reason)) => {
            let key = key.ok();
            let scope = match &key {
                Some(key) => Some(key.scope().clone()),
                None => Scope::read(rules.catalogue, operation, place).ok(),
            };
            let others = reasons.collect();
            Action::Bypass(Bypass { operation: Arc::clone(operation), reason, others, scope, key })
        }
    }
}

fn authorization(
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
