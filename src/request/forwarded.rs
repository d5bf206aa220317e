//! Selects the request headers that are sent upstream although they are not part of the key.
//!
//! Credentials, hop-by-hop headers and headers that the gateway sets itself must never be among them, whatever is
//! configured ([`crate::catalogue::headers`]). Responses that may depend on such headers are stored for their caller
//! alone ([`Operation::unshareable`]).

use http::HeaderMap;

use super::copied;
use crate::catalogue::headers::is_configurable;
use crate::catalogue::{Forwarded, Operation};

/// The hop-by-hop headers must have been removed before, including those that `Connection` names.
pub fn select(operation: &Operation, headers: &HeaderMap) -> HeaderMap {
    let mut selected = HeaderMap::new();
    let is_configured = |name| match &operation.forwarded {
        Forwarded::Named(names) => names.contains(name),
        Forwarded::All => true,
    };
    if operation.forwarded == Forwarded::none() {
        return selected;
    }
    for (name, value) in headers {
        if is_configured(name) && is_configurable(name) && !operation.keyed_headers.contains(name) {
            selected.append(name.clone(), copied(value));
        }
    }
    selected
}

#[cfg(test)]
mod tests {
    use http::{HeaderName, HeaderValue};

    use super::*;
    use crate::catalogue::Service;

    fn selected(forwarded: Forwarded, sent: &[&'static str]) -> Vec<String> {
        let path = "/v2/{project_id}/zones".parse().unwrap();
        let keyed = vec![HeaderName::from_static("x-language")];
        let operation = Operation { forwarded, ..Operation::new("Zones", Service::Workspace, path, keyed) };
        let mut headers = HeaderMap::new();
        for name in sent {
            headers.append(HeaderName::from_static(name), HeaderValue::from_static("v"));
        }
        select(&operation, &headers).keys().map(ToString::to_string).collect()
    }

    #[test]
    fn only_configured_headers_are_forwarded() {
        let sent = ["x-a", "x-b", "x-language"];
        assert_eq!(selected(Forwarded::none(), &sent), [""; 0]);
        assert_eq!(selected(Forwarded::Named([HeaderName::from_static("x-b")].into()), &sent), ["x-b"]);
        assert_eq!(selected(Forwarded::All, &sent), ["x-a", "x-b"]);
    }

    #[test]
    fn some_headers_are_never_forwarded_even_if_configured() {
        let never = [
            "x-auth-token",
            "authorization",
            "cookie",
            "proxy-authorization",
            "x-security-token",
            "x-subject-token",
            "x-any-other-token",
            "x-sdk-date",
            "x-sdk-content-sha256",
            "host",
            "accept",
            "accept-encoding",
            "user-agent",
            "via",
            "x-request-id",
            "x-project-id",
            "content-type",
            "content-length",
            "content-encoding",
            "range",
            "if-range",
            "if-none-match",
            "if-modified-since",
            "cache-control",
            "pragma",
            "expect",
            "connection",
            "keep-alive",
            "proxy-connection",
            "te",
            "trailer",
            "transfer-encoding",
            "upgrade",
        ];
        assert_eq!(selected(Forwarded::All, &never), [""; 0]);
        let named = never.map(HeaderName::from_static).into();
        assert_eq!(selected(Forwarded::Named(named), &never), [""; 0]);
    }
}
