//! Access keys: how a gateway is told of them, and what their owners do with them.

use std::fmt::Write as _;

use workspace_gateway::simulator::AccessKey;

/// The settings of a gateway that knows these.
pub fn key_ring<'k>(keys: impl IntoIterator<Item = &'k AccessKey>) -> String {
    let mut settings = String::new();
    for AccessKey { id, secret, security_token } in keys {
        write!(settings, "[[access_key]]\nid = \"{id}\"\nsecret = \"{secret}\"\n").unwrap();
        if let Some(token) = security_token {
            writeln!(settings, "security_token = \"{token}\"").unwrap();
        }
    }
    settings
}
