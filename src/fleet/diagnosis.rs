//! What an operator should look at if a node cannot be used: what it seems to be, by its first answer. Pure.

use redis::Value;

use super::commands::{Fault, role};

/// What a peer is whose first bytes are no reply.
pub(super) fn of_bytes(first: &[u8]) -> &'static str {
    // A TLS record: an alert or a handshake message (RFC 8446 §5.1).
    if matches!(first, [0x15 | 0x16, 0x03, ..]) {
        "it answers in TLS: expected rediss://, rediss-sentinel:// or rediss-cluster:// in fleet.engine"
    } else if first.starts_with(b"HTTP/") {
        "it answers in HTTP: it is no Valkey or Redis"
    } else {
        "it sends something that is no reply of a Valkey or Redis"
    }
}

/// Why a node does not answer the first command. `is_tls`: whether the gateway uses TLS.
pub(super) fn of_first_command(fault: Fault, is_tls: bool) -> Option<&'static str> {
    match fault {
        Fault::Connection if !is_tls => {
            Some("it closes the connection at the first command: does its port expect TLS (rediss…://)?")
        }
        Fault::Silent if !is_tls => {
            Some("it does not answer the first command: does its port expect TLS (rediss…://)?")
        }
        _ => None,
    }
}

/// Why the TLS handshake with a node does not end, or fails without an error of TLS.
pub(super) const NO_HANDSHAKE: &str =
    "it does not answer in TLS: does its port expect plaintext (redis://, redis-sentinel:// or redis-cluster://)?";

/// Why a node is no master, by its reply to `ROLE`.
pub(super) fn of_role(reply: &Value) -> Option<&'static str> {
    match reply {
        Value::ServerError(error) => of_error(error),
        _ => match role(reply)? {
            b"slave" => Some("it is a replica: expected its master, the Sentinels or the cluster in fleet.engine"),
            b"sentinel" => Some("it is a Sentinel: expected redis-sentinel://HOST:PORT/MASTER in fleet.engine"),
            _ => None,
        },
    }
}

/// What an error of the engine says that only its code tells.
pub(super) fn of_error(error: &redis::ServerError) -> Option<&'static str> {
    (error.code() == "NOAUTH").then_some("a password is needed: set fleet.password")
}

/// Why a Sentinel names no master, by its reply.
pub(super) fn of_sentinel(reply: &Value, master: &str) -> String {
    match reply {
        Value::Nil => format!("this Sentinel does not know the master {master:?}"),
        Value::ServerError(error) if error.code() == "NOAUTH" => {
            "this Sentinel wants a password: Sentinels are asked without one".to_owned()
        }
        Value::ServerError(_) => "it is no Sentinel, because it refuses the command SENTINEL".to_owned(),
        _ => "its answer names no master".to_owned(),
    }
}
