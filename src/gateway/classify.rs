//! The class of a connection: without a credential, of unknown callers, or of a known caller. Connections compete for
//! the memory budget by class. A class is only raised here, never lowered.

use http::request::Parts;

use super::Connection;
use super::cache_request::ClientIdentity;
use super::memory::Memory;
use crate::budget::ConnectionClass;
use crate::cache::grants::CallerScope;
use crate::clock::Clock;
use crate::request::BypassReason;
use crate::request::caller::{self, Caller, Credential};
use crate::telemetry::record::RequestRecord;
use crate::upstream::gate::Class;

/// Raises the class by the head of a request, before the request is charged. A signature counts only after it is
/// verified, so the first signed request of a connection counts as one of an unknown caller.
pub(super) fn by_head(
    head: &Parts,
    connection: &Connection,
    recognise: impl FnOnce(&Credential) -> Caller,
    memory: &Memory,
    clock: &Clock,
) {
    if connection.account.class() == ConnectionClass::Known {
        return;
    }
    match caller::token(&head.headers) {
        Ok(token) => by_caller(connection, recognise(&Credential::Token(token.clone())), None, memory, clock),
        Err(BypassReason::NoCredential) => {}
        Err(_) => connection.account.raise(ConnectionClass::Unknown, None),
    }
}

/// Raises the class by the client whose request has been answered. Tells the record whether upstream has accepted it.
pub(super) fn by_client(
    connection: &Connection,
    client_identity: &ClientIdentity,
    caller_scope: Option<&CallerScope>,
    memory: &Memory,
    clock: &Clock,
    record: &RequestRecord,
) {
    if let Some(caller) = client_identity.caller() {
        by_caller(connection, caller, caller_scope, memory, clock);
        record.accept_caller_if(caller, || is_known(caller, caller_scope, memory, clock));
    }
}

fn is_known(caller: Caller, caller_scope: Option<&CallerScope>, memory: &Memory, clock: &Clock) -> bool {
    memory.class(Some(caller), caller_scope, clock.now()) != Class::Unknown
}

fn by_caller(
    connection: &Connection,
    caller: Caller,
    caller_scope: Option<&CallerScope>,
    memory: &Memory,
    clock: &Clock,
) {
    if connection.account.class() < ConnectionClass::Known {
        let is_known = is_known(caller, caller_scope, memory, clock);
        let class = if is_known { ConnectionClass::Known } else { ConnectionClass::Unknown };
        connection.account.raise(class, is_known.then_some(caller));
    }
}
