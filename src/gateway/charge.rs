//! Charging requests to the memory budget. The class of a connection is decided in `classify.rs`.

use std::time::Duration;

use http::request::Parts;
use tokio::time::timeout;

use super::Connection;
use crate::budget::{Account, Charge, ConnectionClass, Purpose};
use crate::request::decide::head_size;

/// The state of a request in progress, in bytes. Measured.
const REQUEST_SIZE: usize = 16 * 1024;

/// The state of a request that is refused because there is no memory for it, in bytes. Measured.
const REFUSAL_SIZE: usize = 8 * 1024;

/// The expected size of a product list, in bytes: a complete one has some 45 KB. The charge of a larger one grows while it is read.
const RESPONSE_SIZE: usize = 64 * 1024;

/// The part of a body that may arrive before the gateway reads it, in bytes: the window of an HTTP/2 stream, or the
/// kernel's receive buffer in HTTP/1.
const UNREAD_BODY_SIZE: usize = 64 * 1024;

/// The overhead of a header field besides its text, in bytes.
const FIELD_OVERHEAD: usize = 64;

/// Charges a request until its response has ended. The head counts too: HTTP/2 decodes it into a copy, and relaying
/// copies it. If the budget has no room, known callers wait for up to `limit`; for others the result is `None` at once.
pub(super) async fn for_request(
    head: &Parts,
    has_body: bool,
    connection: &Connection,
    limit: impl FnOnce() -> Duration,
) -> Option<Charge> {
    let body_size = if has_body { UNREAD_BODY_SIZE } else { 0 };
    let bytes = REQUEST_SIZE + body_size + head_size(head) + FIELD_OVERHEAD * head.headers.len();
    let account = &connection.account;
    match account.try_charge(Purpose::Requests, bytes) {
        None if account.class() == ConnectionClass::Known => {
            let room = account.wait(Purpose::Requests, bytes);
            timeout(limit(), room).await.ok().flatten()
        }
        charge => charge,
    }
}

/// Charges a request without a body that the fast path may answer, until its response has ended. `None` if little of the
/// budget is free. Then the full path charges the request.
pub(super) fn for_known_request(head_size: usize, connection: &Connection) -> Option<Charge> {
    connection.account.try_charge_spare(Purpose::Requests, REQUEST_SIZE + head_size)
}

/// Charges the response to a call. If the client may not have the memory, and `may_grow`, the charge grows when the response
/// arrives: one that has no room then is streamed.
pub(super) fn for_response(account: &Account, may_grow: impl FnOnce() -> bool) -> Option<Charge> {
    let charge = account.try_charge(Purpose::Responses, RESPONSE_SIZE);
    charge.or_else(|| may_grow().then(|| account.charge(Purpose::Responses, 0)))
}

/// Charges the response to a refused request, until the client has read it. This cannot fail.
pub(super) fn for_refusal(connection: &Connection) -> Charge {
    connection.account.charge(Purpose::Requests, REFUSAL_SIZE)
}
