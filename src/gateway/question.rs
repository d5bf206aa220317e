//! Who asks, and what: the values that the steps of a request hand on.

use std::sync::Arc;

use super::Live;
use crate::budget::Account;
use crate::cache::grants::Grantee;
use crate::request::caller::{Caller, Credential};
use crate::request::decide::Authorization;
use crate::request::half_close::HalfClose;
use crate::request::key::{Key, Scope};
use crate::request::wish::Wish;
use crate::upstream::gate::Client;

/// Who asks, and how.
pub(super) struct Asker {
    /// What was in force when the request came.
    pub(super) live: Arc<Live>,
    /// A credential that counts, and whose it is.
    pub(super) identity: Option<(Credential, Caller)>,
    /// With whom the request shares what is bounded.
    pub(super) client: Client,
    /// Where what is held for the request is charged.
    pub(super) account: Account,
    /// Of the connection that the request came by.
    pub(super) half_close: Arc<HalfClose>,
    /// What becomes of `Authorization` if the request is relayed.
    pub(super) authorization: Authorization,
}

impl Asker {
    /// The caller, if it is known who asks.
    pub(super) fn caller(&self) -> Option<Caller> {
        self.identity.as_ref().map(|(_, caller)| *caller)
    }

    /// What is asked, if it is known who asks.
    pub(super) fn question(&self, key: Key, wish: Wish) -> Option<Question> {
        let (credential, caller) = self.identity.clone()?;
        let grantee = Grantee { caller, scope: key.scope().clone() };
        Some(Question {
            live: Arc::clone(&self.live),
            credential,
            client: self.client,
            account: self.account.clone(),
            half_close: Arc::clone(&self.half_close),
            asked: Arc::new(Asked { grantee, key: Arc::new(key), wish }),
        })
    }

    /// Who asks where.
    pub(super) fn grantee(&self, scope: Scope) -> Option<Grantee> {
        self.caller().map(|caller| Grantee { caller, scope })
    }
}

/// Who asks for what, and with what wishes.
#[derive(Clone)]
pub(super) struct Question {
    /// What was in force when it was asked.
    pub(super) live: Arc<Live>,
    pub(super) credential: Credential,
    pub(super) client: Client,
    /// Where an answer that is read for it is charged.
    pub(super) account: Account,
    /// Of the connection that it came by.
    pub(super) half_close: Arc<HalfClose>,
    pub(super) asked: Arc<Asked>,
}

/// What is asked by whom, without the credential.
pub(super) struct Asked {
    pub(super) grantee: Grantee,
    pub(super) key: Arc<Key>,
    pub(super) wish: Wish,
}
