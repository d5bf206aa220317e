//! The client of a request and what it asks for: values that the steps of a request pass on. They decide nothing.

use std::sync::Arc;

use super::ActiveConfig;
use crate::budget::Account;
use crate::cache::grants::CallerScope;
use crate::request::caller::{Caller, Credential};
use crate::request::decide::AuthorizationAction;
use crate::request::half_close::HalfClose;
use crate::request::key::{RequestKey, Scope};
use crate::request::request_directives::RequestDirectives;
use crate::upstream::gate::{CallKind, Class, GateCall, GateClient};

/// The client of a request, after its credential has been read and its signature verified.
pub(super) struct ClientIdentity {
    /// The settings that were in force when the request came.
    pub(super) active: Arc<ActiveConfig>,
    /// `None` without a credential, or with a signature that is not verified.
    pub(super) identity: Option<(Credential, Caller)>,
    /// Whose share of the call slots the request uses.
    pub(super) client: GateClient,
    pub(super) account: Account,
    pub(super) half_close: Arc<HalfClose>,
    /// What happens to `Authorization` if the request is relayed.
    pub(super) authorization: AuthorizationAction,
}

impl ClientIdentity {
    pub(super) fn caller(&self) -> Option<Caller> {
        self.identity.as_ref().map(|(_, caller)| *caller)
    }

    /// `None` without an identity.
    pub(super) fn request(&self, key: RequestKey, directives: RequestDirectives) -> Option<CacheRequest> {
        let (credential, caller) = self.identity.clone()?;
        let caller_scope = CallerScope { caller, scope: key.scope().clone() };
        Some(CacheRequest {
            active: Arc::clone(&self.active),
            credential,
            client: self.client,
            account: self.account.clone(),
            half_close: Arc::clone(&self.half_close),
            lookup: Arc::new(Lookup { caller_scope, key: Arc::new(key), directives }),
        })
    }

    pub(super) fn caller_scope(&self, scope: Scope) -> Option<CallerScope> {
        self.caller().map(|caller| CallerScope { caller, scope })
    }
}

/// A request that is answered from memory or by a fetch.
#[derive(Clone)]
pub(super) struct CacheRequest {
    /// The settings that were in force when the request came.
    pub(super) active: Arc<ActiveConfig>,
    pub(super) credential: Credential,
    pub(super) client: GateClient,
    /// A response that is read for the request is charged here.
    pub(super) account: Account,
    pub(super) half_close: Arc<HalfClose>,
    pub(super) lookup: Arc<Lookup>,
}

impl CacheRequest {
    /// What the gate must know of a call for this request.
    pub(super) fn gate_call(&self, class: Class) -> GateCall {
        let Lookup { caller_scope, key, .. } = &*self.lookup;
        let api = Some(Arc::clone(&key.operation().name));
        GateCall {
            client: self.client,
            class,
            caller: Some(caller_scope.caller),
            api,
            kind: CallKind::List,
            max_wait: self.active.answer_timeout,
        }
    }
}

/// The part of the request that the look-up needs. It has no credential, so the fast path may remember it.
pub(super) struct Lookup {
    pub(super) caller_scope: CallerScope,
    pub(super) key: Arc<RequestKey>,
    pub(super) directives: RequestDirectives,
}
