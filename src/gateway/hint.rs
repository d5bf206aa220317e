//! Hints: what a gateway tells the other gateways of its fleet about upstream. Values only: `take_hint.rs` has what a hint
//! changes there.
//!
//! A hint concerns when upstream is called, never who may see what. So nothing depends on it: a lost hint costs calls to
//! upstream, and one that comes late, twice or in another order does no harm. Times are spans that are counted from when
//! the hint is told. `message.rs` has the version of the format.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use http::{HeaderMap, HeaderName, HeaderValue};
use serde::{Deserialize, Serialize};

use crate::cache::backoffs::BackoffCause;
use crate::cache::grants::CallerScope;
use crate::cache::record;
use crate::catalogue::{Catalogue, Service};
use crate::request::key::{RequestKey, Scope};
use crate::upstream::key_breaker::KeyNews;
use crate::upstream::quota::LimitNews;

/// What one gateway tells the others. It has the hash of a credential, so it must be sealed before it leaves the
/// process, and must not be logged.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hint(pub(super) HintKind);

#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum HintKind {
    Backoff(BackoffHint),
    AccessKey(AccessKeyHint),
    Limit(LimitHint),
}

/// A failed call of a granted caller has begun a backoff.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct BackoffHint {
    pub(super) caller: [u8; 32],
    pub(super) place: BackoffPlace,
    pub(super) span: Duration,
}

#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum BackoffPlace {
    /// The failure says nothing about other callers.
    Caller(ScopeHint),
    Shared(BackoffCause, KeyHint),
}

#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct ScopeHint {
    path: String,
    digest: [u8; 32],
}

#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct KeyHint {
    scope: ScopeHint,
    query: String,
    headers: Vec<(String, Vec<u8>)>,
}

/// Upstream has accepted or refused an access key.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct AccessKeyHint {
    /// If it is an operator's own upstream.
    pub(super) upstream: Option<ServiceHint>,
    pub(super) news: KeyNews,
}

/// A call has shown something about a limit of upstream.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct LimitHint {
    pub(super) service: ServiceHint,
    pub(super) news: LimitNews,
}

#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct ServiceHint {
    name: String,
    origin: String,
}

impl fmt::Debug for Hint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self.0 {
            HintKind::Backoff(_) => "Hint::Backoff(…)",
            HintKind::AccessKey(_) => "Hint::AccessKey(…)",
            HintKind::Limit(_) => "Hint::Limit(…)",
        })
    }
}

impl Hint {
    /// A backoff of one caller in its scope.
    pub(super) fn caller_backoff(caller_scope: &CallerScope, span: Duration) -> Self {
        Self::backoff(caller_scope, BackoffPlace::Caller(ScopeHint::of(&caller_scope.scope)), span)
    }

    /// A backoff that may concern all callers. The key must be shared.
    pub(super) fn shared_backoff(
        caller_scope: &CallerScope,
        cause: BackoffCause,
        key: &RequestKey,
        span: Duration,
    ) -> Self {
        Self::backoff(caller_scope, BackoffPlace::Shared(cause, KeyHint::of(key)), span)
    }

    /// What a call has shown about an access key.
    pub(super) fn access_key(own_upstream: Option<Service>, news: KeyNews, catalogue: &Catalogue) -> Self {
        let upstream = own_upstream.map(|service| ServiceHint::of(service, catalogue));
        Self(HintKind::AccessKey(AccessKeyHint { upstream, news }))
    }

    /// What a call has shown about a limit of upstream.
    pub(super) fn limit(service: Service, news: LimitNews, catalogue: &Catalogue) -> Self {
        Self(HintKind::Limit(LimitHint { service: ServiceHint::of(service, catalogue), news }))
    }

    fn backoff(caller_scope: &CallerScope, place: BackoffPlace, span: Duration) -> Self {
        Self(HintKind::Backoff(BackoffHint { caller: caller_scope.caller.to_sealed(), place, span }))
    }
}

impl ServiceHint {
    fn of(service: Service, catalogue: &Catalogue) -> Self {
        Self { name: service.as_str().to_owned(), origin: catalogue.origin(service).to_string() }
    }

    /// `None` if there is no such service here.
    pub(super) fn find(&self, catalogue: &Catalogue) -> Option<Service> {
        let is_same =
            |service: &Service| service.as_str() == self.name && catalogue.origin(*service).to_string() == self.origin;
        catalogue.services().find(is_same)
    }
}

impl ScopeHint {
    fn of(scope: &Scope) -> Self {
        Self { path: scope.path().to_owned(), digest: record::scope_digest(scope) }
    }

    /// `None` if there is no such scope here.
    pub(super) fn find(&self, catalogue: &Catalogue) -> Option<Scope> {
        record::find_scope(catalogue, &self.path, &self.digest)
    }
}

impl KeyHint {
    fn of(key: &RequestKey) -> Self {
        let headers = key.headers().iter();
        Self {
            scope: ScopeHint::of(key.scope()),
            query: key.query().to_owned(),
            headers: headers.map(|(name, value)| (name.as_str().to_owned(), value.as_bytes().to_vec())).collect(),
        }
    }

    /// `None` if no request has this key here.
    pub(super) fn find(&self, catalogue: &Catalogue) -> Option<RequestKey> {
        let (operation, path_match) = catalogue.operation(&self.scope.path)?;
        let mut fields = HeaderMap::new();
        for (name, value) in &self.headers {
            let name = HeaderName::from_bytes(name.as_bytes()).ok()?;
            fields.try_append(name, HeaderValue::from_bytes(value).ok()?).ok()?;
        }
        let key = RequestKey::read(catalogue, operation, path_match, Some(&self.query), &fields, false).ok()?;
        (record::scope_digest(key.scope()) == self.scope.digest).then_some(key)
    }
}

/// Takes the hints of this gateway, seals them and tells them. It is called where a request waits, so it must not block.
pub type HintSink = Arc<dyn Fn(Hint) + Send + Sync>;

/// Where hints go. Without a fleet there is no sink, and no hint is made.
#[derive(Clone, Default)]
pub(super) struct Hints(Option<HintSink>);

impl Hints {
    pub(super) fn new(sink: Option<HintSink>) -> Self {
        Self(sink)
    }

    /// Tells a hint. It is made only if somebody takes it.
    pub(super) fn tell(&self, hint: impl FnOnce() -> Hint) {
        if let Some(sink) = &self.0 {
            sink(hint());
        }
    }
}
