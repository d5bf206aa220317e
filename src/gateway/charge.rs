//! What a request takes of the memory budget, and the class in which its connection competes for it.

use std::time::Duration;

use http::request::Parts;
use tokio::time::timeout;

use super::Connection;
use super::cache_request::ClientIdentity;
use super::memory::Memory;
use crate::budget::{Charge, ConnectionClass, Purpose};
use crate::cache::grants::CallerScope;
use crate::clock::Clock;
use crate::request::BypassReason;
use crate::request::caller::{self, Caller, Credential};
use crate::request::decide::head_size;
use crate::upstream::gate::Class;

/// What a request in progress takes, in bytes: its state. Measured.
const REQUEST: usize = 16 * 1024;

/// What a request takes that is refused for want of memory, in bytes. Measured.
const REFUSAL: usize = 8 * 1024;

/// What may have come of a body before it is read, in bytes: a stream's window in HTTP/2, the kernel's receive buffer in
/// HTTP/1.
const UNREAD_BODY: usize = 64 * 1024;

/// What a field of a head takes besides its text, in bytes.
const FIELD: usize = 64;

/// Charges a request to the memory budget, until it is answered. Its head counts, for it is read apart in HTTP/2, and copied
/// where it is sent on. `None` if its client may not have so much: known callers wait until their deadline, others do not.
pub(super) async fn of_request(
    head: &Parts,
    has_body: bool,
    connection: &Connection,
    limit: impl FnOnce() -> Duration,
) -> Option<Charge> {
    let of_body = if has_body { UNREAD_BODY } else { 0 };
    let bytes = REQUEST + of_body + head_size(head) + FIELD * head.headers.len();
    let account = &connection.account;
    match account.try_charge(Purpose::Requests, bytes) {
        None if account.class() == ConnectionClass::Known => {
            let room = account.wait(Purpose::Requests, bytes);
            timeout(limit(), room).await.ok().flatten()
        }
        charge => charge,
    }
}

/// Raises a connection's class before a request on it is charged. A signature counts only once it is verified, so the first
/// signed request of a connection counts as one of an unknown caller.
pub(super) fn classify_head(
    head: &Parts,
    connection: &Connection,
    recognise: impl FnOnce(&Credential) -> Caller,
    known_by: (&Memory, &Clock),
) {
    if connection.account.class() == ConnectionClass::Known {
        return;
    }
    match caller::token(&head.headers) {
        Ok(token) => classify(connection, recognise(&Credential::Token(token.clone())), None, known_by),
        Err(BypassReason::NoCredential) => {}
        Err(_) => connection.account.raise(ConnectionClass::Unknown, None),
    }
}

/// Raises a connection's class to that of the caller whose request has been answered.
pub(super) fn classify_client(
    connection: &Connection,
    client_identity: &ClientIdentity,
    caller_scope: Option<&CallerScope>,
    known_by: (&Memory, &Clock),
) {
    if let Some(caller) = client_identity.caller() {
        classify(connection, caller, caller_scope, known_by);
    }
}

/// Raises a connection's class to that of a caller.
fn classify(
    connection: &Connection,
    caller: Caller,
    caller_scope: Option<&CallerScope>,
    (memory, clock): (&Memory, &Clock),
) {
    if connection.account.class() < ConnectionClass::Known {
        let is_known = memory.class(Some(caller), caller_scope, clock.now()) != Class::Unknown;
        let class = if is_known { ConnectionClass::Known } else { ConnectionClass::Unknown };
        connection.account.raise(class, is_known.then_some(caller));
    }
}

/// Charges the refusal of a request. It takes memory, too, until it is read.
pub(super) fn of_refusal(connection: &Connection) -> Charge {
    connection.account.charge(Purpose::Requests, REFUSAL)
}
