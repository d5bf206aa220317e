//! Removes hop-by-hop headers (RFC 9110 §7.6.1), and adds and reads `Via`, which detects loops (§7.6.3).

use std::collections::HashSet;

use http::header::{CONNECTION, EXPECT, PROXY_AUTHENTICATE, PROXY_AUTHORIZATION, TE, TRANSFER_ENCODING, UPGRADE, VIA};
use http::{HeaderMap, HeaderName, HeaderValue, Version};

use super::trailers;

/// How long the sender keeps an idle connection (RFC 2068 §19.7.1.1; RFC 9110 only mentions it).
pub(crate) const KEEP_ALIVE: HeaderName = HeaderName::from_static("keep-alive");
/// Requests an upgrade from HTTP/1.1 to HTTP/2, which is not supported.
const HTTP2_SETTINGS: HeaderName = HeaderName::from_static("http2-settings");
const PROXY_CONNECTION: HeaderName = HeaderName::from_static("proxy-connection");

/// Removes the hop-by-hop headers and those that `Connection` names, and returns the latter. Removes `Expect` too,
/// because the gateway has met it. `Trailer` keeps the names of fields that are relayed (RFC 9110 §6.5.1).
pub fn strip(headers: &mut HeaderMap) -> HashSet<HeaderName> {
    let named: HashSet<HeaderName> = headers
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
        TRANSFER_ENCODING,
        UPGRADE,
        HTTP2_SETTINGS,
        EXPECT,
    ]) {
        headers.remove(name);
    }
    trailers::announce(headers);
    named
}

/// Like [`strip`], for a request. Keeps `TE: trailers`, because trailer sections are relayed.
pub fn strip_request(headers: &mut HeaderMap) -> HashSet<HeaderName> {
    let reads_trailers = trailers::are_accepted(headers);
    let named = strip(headers);
    if reads_trailers {
        headers.insert(TE, HeaderValue::from_static("trailers"));
    }
    named
}

/// The prefix of every gateway's pseudonym in `Via`.
const NAME: &str = "workspace-gateway-";

/// The most gateways before this one that are named to upstream. A longer chain is a loop or a misconfiguration.
const MAX_GATEWAYS: usize = 8;

/// This gateway's entry in `Via`. The pseudonym ends in a number of this process, which distinguishes a loop from a
/// chain of gateways.
#[derive(Clone, Debug)]
pub struct Via {
    pseudonym: String,
    value: HeaderValue,
    value_1_0: HeaderValue,
    value_2_0: HeaderValue,
}

impl Via {
    /// The number should differ between processes.
    pub fn new(instance: u32) -> Self {
        let pseudonym = format!("{NAME}{instance:08x}");
        // Cannot fail: letters, digits and dashes are a valid header value.
        let value = |version| {
            HeaderValue::try_from(format!("{version} {pseudonym}"))
                .unwrap_or(HeaderValue::from_static("1.1 workspace-gateway"))
        };
        Self { value: value("1.1"), value_1_0: value("1.0"), value_2_0: value("2.0"), pseudonym }
    }

    /// The `Via` of a request that is built from a key: the gateways of this kind that the client's request has passed,
    /// and this one. Other hops are not sent, because a client could write anything there.
    pub fn trail(&self, headers: &HeaderMap) -> HeaderValue {
        let gateways = received_by(headers).filter(|name| is_pseudonym(name)).take(MAX_GATEWAYS);
        let mut trail: Vec<u8> = gateways.flat_map(|name| [b"1.1 ", name, b", "].concat()).collect();
        trail.extend_from_slice(self.value.as_bytes());
        HeaderValue::from_bytes(&trail).unwrap_or_else(|_| self.value.clone())
    }

    /// Whether a `Via` names only this gateway, so that nothing in it comes from the client.
    pub fn is_own(&self, trail: &HeaderValue) -> bool {
        *trail == self.value
    }

    /// Adds this hop to a message that was received in an HTTP version.
    pub fn add_to(&self, headers: &mut HeaderMap, received: Version) {
        let value = match received {
            Version::HTTP_10 => &self.value_1_0,
            Version::HTTP_2 => &self.value_2_0,
            _ => &self.value,
        };
        headers.append(VIA, value.clone());
    }

    /// Whether the request has passed this gateway before.
    pub fn is_in(&self, headers: &HeaderMap) -> bool {
        received_by(headers).any(|name| name.eq_ignore_ascii_case(self.pseudonym.as_bytes()))
    }
}

/// The recipients that `Via` names.
fn received_by(headers: &HeaderMap) -> impl Iterator<Item = &[u8]> {
    let hops = headers.get_all(VIA).iter().flat_map(|value| value.as_bytes().split(|&byte| byte == b','));
    hops.filter_map(|hop| hop.split(u8::is_ascii_whitespace).filter(|word| !word.is_empty()).nth(1))
}

fn is_pseudonym(name: &[u8]) -> bool {
    let instance = name.strip_prefix(NAME.as_bytes());
    instance.is_some_and(|digits| digits.len() == 8 && digits.iter().all(u8::is_ascii_hexdigit))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hop_by_hop_headers_are_removed() {
        let mut headers = HeaderMap::new();
        for (name, value) in [
            ("connection", "close, X-Auth-Token"),
            ("connection", " x-custom ,, not a name"),
            ("keep-alive", "timeout=5"),
            ("te", "trailers"),
            ("transfer-encoding", "chunked"),
            ("upgrade", "websocket"),
            ("http2-settings", "AAMAAABkAAQAAP__"),
            ("expect", "100-continue"),
            ("proxy-authorization", "Basic x"),
            ("x-auth-token", "t"),
            ("x-custom", "1"),
            ("accept", "*/*"),
        ] {
            headers.append(HeaderName::from_static(name), HeaderValue::from_static(value));
        }
        let mut of_request = headers.clone();
        let named = ["close", "x-auth-token", "x-custom"].map(HeaderName::from_static);
        assert_eq!(strip(&mut headers), named.clone().into());
        assert_eq!(headers.keys().map(HeaderName::as_str).collect::<Vec<_>>(), ["accept"]);
        assert_eq!(strip_request(&mut of_request), named.into());
        headers.insert(TE, HeaderValue::from_static("trailers"));
        assert_eq!(of_request, headers);
    }

    #[test]
    fn via_has_the_version_in_which_a_message_was_received() {
        for (version, expected) in [(Version::HTTP_10, "1.0"), (Version::HTTP_11, "1.1"), (Version::HTTP_2, "2.0")] {
            let mut headers = HeaderMap::new();
            Via::new(7).add_to(&mut headers, version);
            assert_eq!(headers[VIA], format!("{expected} workspace-gateway-00000007"));
        }
    }

    #[test]
    fn via_of_a_keyed_request_names_only_gateways() {
        let trail = |value: &str| {
            let mut headers = HeaderMap::new();
            headers.insert(VIA, HeaderValue::from_str(value).unwrap());
            Via::new(7).trail(&headers).to_str().unwrap().to_owned()
        };
        assert_eq!(trail("1.1 fred"), "1.1 workspace-gateway-00000007");
        assert!(Via::new(7).is_own(&trail("1.1 fred").parse().unwrap()));
        assert!(!Via::new(7).is_own(&trail("1.1 workspace-gateway-0000000a").parse().unwrap()));
        assert_eq!(
            trail("1.0 fred, 1.1 workspace-gateway-0000000a (x), 1.1 workspace-gateway-evil"),
            "1.1 workspace-gateway-0000000a, 1.1 workspace-gateway-00000007"
        );
        let endless = "1.1 workspace-gateway-0000000a,".repeat(1000);
        assert_eq!(trail(&endless).split(',').count(), MAX_GATEWAYS + 1);
    }

    #[test]
    fn a_loop_is_detected_and_a_chain_is_not_a_loop() {
        let via = Via::new(7);
        let is_loop = |value: &str| {
            let mut headers = HeaderMap::new();
            headers.insert(VIA, HeaderValue::from_str(value).unwrap());
            via.is_in(&headers)
        };
        assert!(is_loop("1.1 workspace-gateway-00000007"));
        assert!(is_loop("1.0 fred, 1.1  Workspace-Gateway-00000007 (comment), 1.1 p"));
        assert!(!is_loop("1.1 workspace-gateway-00000008"));
        assert!(!is_loop("1.1 workspace-gateway"));
        assert!(!is_loop("workspace-gateway-00000007"));
    }
}
