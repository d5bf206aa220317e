//! Headers that belong to one connection (RFC 9110 §7.6.1), and the `Via` trail that shows a loop.

use http::header::{
    CONNECTION, EXPECT, PROXY_AUTHENTICATE, PROXY_AUTHORIZATION, TE, TRAILER, TRANSFER_ENCODING, UPGRADE, VIA,
};
use http::{HeaderMap, HeaderName, HeaderValue};

const KEEP_ALIVE: HeaderName = HeaderName::from_static("keep-alive");
const PROXY_CONNECTION: HeaderName = HeaderName::from_static("proxy-connection");

/// Removes the hop-by-hop headers, those that `Connection` names included. `Expect` goes with
/// them: it was met on this side of the gateway.
pub fn strip(headers: &mut HeaderMap) {
    let named: Vec<HeaderName> = headers
        .get_all(CONNECTION)
        .iter()
        .flat_map(|value| value.as_bytes().split(|&byte| byte == b','))
        .filter_map(|name| HeaderName::from_bytes(name.trim_ascii()).ok())
        .collect();
    for name in named.iter().chain(&[
        CONNECTION,
        KEEP_ALIVE,
        PROXY_CONNECTION,
        PROXY_AUTHENTICATE,
        PROXY_AUTHORIZATION,
        TE,
        TRAILER,
        TRANSFER_ENCODING,
        UPGRADE,
        EXPECT,
    ]) {
        headers.remove(name);
    }
}

/// This gateway's own entry in `Via`. The name ends in a number of this process, so that a chain of
/// gateways is told from a loop.
#[derive(Clone, Debug)]
pub struct Via {
    pseudonym: String,
    value: HeaderValue,
}

impl Via {
    /// With the number that tells this process from others.
    pub fn new(instance: u32) -> Self {
        let pseudonym = format!("workspace-gateway-{instance:08x}");
        // A token of letters, digits and dashes is always a valid header value.
        let value = HeaderValue::try_from(format!("1.1 {pseudonym}"))
            .unwrap_or(HeaderValue::from_static("1.1 workspace-gateway"));
        Self { pseudonym, value }
    }

    /// The value to send.
    pub fn value(&self) -> &HeaderValue {
        &self.value
    }

    /// Adds this hop to the trail.
    pub fn add_to(&self, headers: &mut HeaderMap) {
        headers.append(VIA, self.value.clone());
    }

    /// Whether a request has been here before.
    pub fn is_in(&self, headers: &HeaderMap) -> bool {
        headers
            .get_all(VIA)
            .iter()
            .flat_map(|value| value.as_bytes().split(|&byte| byte == b','))
            .filter_map(|hop| hop.split(u8::is_ascii_whitespace).filter(|word| !word.is_empty()).nth(1))
            .any(|received_by| received_by.eq_ignore_ascii_case(self.pseudonym.as_bytes()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_belongs_to_a_connection_stays_there() {
        let mut headers = HeaderMap::new();
        for (name, value) in [
            ("connection", "close, X-Auth-Token"),
            ("connection", " x-custom ,, not a name"),
            ("keep-alive", "timeout=5"),
            ("te", "trailers"),
            ("transfer-encoding", "chunked"),
            ("upgrade", "websocket"),
            ("expect", "100-continue"),
            ("proxy-authorization", "Basic x"),
            ("x-auth-token", "t"),
            ("x-custom", "1"),
            ("accept", "*/*"),
        ] {
            headers.append(HeaderName::from_static(name), HeaderValue::from_static(value));
        }
        strip(&mut headers);
        assert_eq!(headers.keys().map(HeaderName::as_str).collect::<Vec<_>>(), ["accept"]);
    }

    #[test]
    fn a_loop_is_seen_and_a_chain_is_not() {
        let via = Via::new(7);
        let trail = |value: &str| {
            let mut headers = HeaderMap::new();
            headers.insert(VIA, HeaderValue::from_str(value).unwrap());
            via.is_in(&headers)
        };
        assert!(trail("1.1 workspace-gateway-00000007"));
        assert!(trail("1.0 fred, 1.1  Workspace-Gateway-00000007 (comment), 1.1 p"));
        assert!(!trail("1.1 workspace-gateway-00000008"));
        assert!(!trail("1.1 workspace-gateway"));
        assert!(!trail("workspace-gateway-00000007"));
    }
}
