//! Who asks, and what: the values that the steps of a request hand on.

use std::sync::Arc;

use super::ActiveConfig;
use crate::budget::Account;
use crate::cache::grants::CallerScope;
use crate::request::caller::{Caller, Credential};
use crate::request::decide::AuthorizationAction;
use crate::request::half_close::HalfClose;
use crate::request::key::{RequestKey, Scope};
use crate::request::request_directives::RequestDirectives;
use crate::upstream::gate::GateClient;

/// Who asks, and how.
pub(super) struct ClientIdentity {
    /// What was in force when the request came.
    pub(super) active: Arc<ActiveConfig>,
    /// A credential that counts, and whose it is.
    pub(super) identity: Option<(Credential, Caller)>,
    /// With whom the request shares what is bounded.
    pub(super) client: GateClient,
    /// Where what is held for the request is charged.
    pub(super) account: Account,
    /// Of the connection that the request came by.
    pub(super) half_close: Arc<HalfClose>,
    /// What becomes of `AuthorizationAction` if the request is relayed.
    pub(super) authorization: AuthorizationAction,
}

impl ClientIdentity {
    /// The caller, if it is known who asks.
    pub(super) fn caller(&self) -> Option<Caller> {
        self.identity.as_ref().map(|(_, caller)| *caller)
    }

    /// What is asked, if it is known who asks.
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

    /// Who asks where.
    pub(super) fn caller_scope(&self, scope: Scope) -> Option<CallerScope> {
        self.caller().map(|caller| CallerScope { caller, scope })
    }
}

/// Who asks for what, and with what wishes.
#[derive(Clone)]
pub(super) struct CacheRequest {
    /// What was in force when it was asked.
    pub(super) active: Arc<ActiveConfig>,
    pub(super) credential: Credential,
    pub(super) client: GateClient,
    /// Where an answer that is read for it is charged.
    pub(super) account: Account,
    /// Of the connection that it came by.
    pub(super) half_close: Arc<HalfClose>,
    pub(super) lookup: Arc<Lookup>,
}

/// What is asked by whom, without the credential.
pub(super) struct Lookup {
    pub(super) caller_scope: CallerScope,
    pub(super) key: Arc<RequestKey>,
    pub(super) directives: RequestDirectives,
}
