//! Who may use the admin listener.
//!
//! On loopback, every user of this machine may, but no web page in a browser on this machine. A web page can make the
//! browser send requests to any address. If the page gives its own host name the address of this machine (DNS
//! rebinding), it can also read the responses. But it cannot choose the `Host` of these requests, and cannot remove the
//! `Origin`. On other addresses, and wherever a token is configured, a request must have the token.

use std::net::{IpAddr, SocketAddr};

use http::header::{AUTHORIZATION, CONNECTION, HOST, HeaderName, ORIGIN, WWW_AUTHENTICATE};
use http::request::Parts;
use http::uri::Authority;
use http::{HeaderMap, HeaderValue, StatusCode};

use super::{Page, text};
use crate::config::secret::AdminToken;

/// Whether a request comes from a page of the same site (Fetch Metadata).
const SEC_FETCH_SITE: HeaderName = HeaderName::from_static("sec-fetch-site");

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AccessDenied {
    /// `Host` is another host.
    Host,
    /// A web page has sent the request.
    Origin,
    /// The listener's address is not loopback, and no token is configured.
    Open,
    /// The request does not have the token.
    Token,
}

impl AccessDenied {
    /// The sentence of the event, for the operator.
    pub(super) fn describe(self) -> &'static str {
        match self {
            Self::Host => "a request to the admin listener had the Host of another machine",
            Self::Origin => "a web page of another site sent a request to the admin listener",
            Self::Open => {
                "a request to the admin listener came to an address other than loopback, and no token is configured"
            }
            Self::Token => "a request to the admin listener had a wrong token",
        }
    }

    /// The response closes the connection: the listener has few, and the operator must get one.
    pub(super) fn page(self) -> Page {
        let mut page = self.response();
        page.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
        page
    }

    fn response(self) -> Page {
        let forbidden = |message: &str| text(StatusCode::FORBIDDEN, format!("refused: {message}"));
        match self {
            Self::Host => forbidden(
                "expected a Host of this machine, such as localhost or 127.0.0.1; clients use the proxy listener \
                 (listen.proxy)",
            ),
            Self::Origin => forbidden("expected no Origin but that of this listener"),
            Self::Open => {
                forbidden("expected a connection to a loopback address, because listen.admin_token is not set")
            }
            Self::Token => {
                let mut page =
                    text(StatusCode::UNAUTHORIZED, "refused: expected Authorization: Bearer with listen.admin_token");
                page.headers_mut().insert(WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
                page
            }
        }
    }
}

/// Checks a request to the listener with the address `local`.
///
/// # Errors
/// Why it is refused.
pub fn admit(head: &Parts, local: SocketAddr, token: Option<&AdminToken>) -> Result<(), AccessDenied> {
    if token.is_none() && !local.ip().to_canonical().is_loopback() {
        return Err(AccessDenied::Open);
    }
    let host = requested_host(head).ok_or(AccessDenied::Host)?;
    // On other addresses the names of this machine are not known here, and the token keeps web pages out.
    if local.ip().to_canonical().is_loopback() && !is_this_machine(&host) {
        return Err(AccessDenied::Host);
    }
    let is_document = head.uri.path() == "/";
    if !is_own_origin(&head.headers, &host) || !(is_document || is_own_site(&head.headers)) {
        return Err(AccessDenied::Origin);
    }
    match token {
        // The page itself has no figures. It asks the user for the token.
        Some(token) if !is_document && !has_token(&head.headers, token) => Err(AccessDenied::Token),
        _ => Ok(()),
    }
}

/// The host of the request, if `Host` is there once and the target names no other host.
fn requested_host(head: &Parts) -> Option<Authority> {
    let mut hosts = head.headers.get_all(HOST).iter();
    let (Some(host), None) = (hosts.next(), hosts.next()) else { return None };
    let host: Authority = host.to_str().ok().filter(|host| !host.contains('@'))?.parse().ok()?;
    head.uri.authority().is_none_or(|authority| *authority == host).then_some(host)
}

fn is_this_machine(authority: &Authority) -> bool {
    let host = authority.host();
    host.eq_ignore_ascii_case("localhost")
        || host.trim_matches(['[', ']']).parse::<IpAddr>().is_ok_and(|address| address.is_loopback())
}

/// Whether no web page sent the request, or only a page of this listener.
fn is_own_origin(headers: &HeaderMap, host: &Authority) -> bool {
    headers.get_all(ORIGIN).iter().all(|origin| {
        let origin = origin.to_str().ok();
        let authority = origin.and_then(|origin| origin.strip_prefix("http://").or(origin.strip_prefix("https://")));
        authority.is_some_and(|authority| authority.eq_ignore_ascii_case(host.as_str()))
    })
}

fn is_own_site(headers: &HeaderMap) -> bool {
    headers.get_all(SEC_FETCH_SITE).iter().all(|site| site == "same-origin" || site == "none")
}

fn has_token(headers: &HeaderMap, token: &AdminToken) -> bool {
    let mut values = headers.get_all(AUTHORIZATION).iter();
    let (Some(value), None) = (values.next(), values.next()) else { return false };
    let value = value.as_bytes();
    // RFC 9110 §11.1: the scheme is case-insensitive.
    let (scheme, given) = value.split_at(value.len().min("bearer ".len()));
    scheme.eq_ignore_ascii_case(b"bearer ") && token.is(given.trim_ascii())
}

#[cfg(test)]
mod tests {
    use http::Request;

    use super::*;
    use crate::config::Config;

    const HERE: &str = "127.0.0.1:9091";
    const ELSEWHERE: &str = "10.0.0.7:9091";

    fn admitted(
        local: &str,
        target: &str,
        pairs: &[(&str, &str)],
        token: Option<&AdminToken>,
    ) -> Result<(), AccessDenied> {
        let mut request = Request::builder().uri(target);
        for (name, value) in pairs {
            request = request.header(*name, *value);
        }
        admit(&request.body(()).unwrap().into_parts().0, local.parse().unwrap(), token)
    }

    fn token() -> AdminToken {
        let text = "region = \"r\"\n[listen]\nadmin_token = \"0123456789abcdef\"";
        Config::from_layers("f", text, &[]).unwrap().admin_token.unwrap()
    }

    #[test]
    fn on_loopback_this_machine_is_admitted_and_no_web_page() {
        let from = |pairs: &[(&str, &str)]| admitted(HERE, "/status", pairs, None);
        for host in ["127.0.0.1:9091", "localhost", "LOCALHOST:1", "[::1]:9091", "127.8.8.8"] {
            let http = format!("http://{host}");
            assert_eq!(from(&[("host", host)]), Ok(()), "{host}");
            assert_eq!(from(&[("host", host), ("origin", &http)]), Ok(()), "{host}");
            assert_eq!(from(&[("host", host), ("origin", &http), ("sec-fetch-site", "same-origin")]), Ok(()));
            for origin in
                ["http://evil.example", "null", "", "http://localhost.evil.example", "https://localhost:2", host]
            {
                assert_eq!(from(&[("host", host), ("origin", origin)]), Err(AccessDenied::Origin), "{host} {origin}");
            }
            for site in ["cross-site", "same-site", ""] {
                assert_eq!(from(&[("host", host), ("sec-fetch-site", site)]), Err(AccessDenied::Origin), "{site}");
            }
        }
        for host in
            ["evil.example:9091", "10.0.0.1", "localhost.evil.example", "127.0.0.1.evil.example", "", "user@localhost"]
        {
            assert_eq!(from(&[("host", host)]), Err(AccessDenied::Host), "{host}");
        }
        assert_eq!(from(&[]), Err(AccessDenied::Host));
        assert_eq!(from(&[("host", "localhost"), ("host", "localhost")]), Err(AccessDenied::Host));
        let absolute = |target: &str| admitted(HERE, target, &[("host", "localhost")], None);
        assert_eq!(absolute("http://evil.example/status"), Err(AccessDenied::Host));
        assert_eq!(absolute("http://localhost/status"), Ok(()));
    }

    #[test]
    fn a_link_on_another_site_may_only_open_the_page() {
        let link = |target: &str| admitted(HERE, target, &[("host", HERE), ("sec-fetch-site", "cross-site")], None);
        assert_eq!(link("/"), Ok(()));
        for target in ["/status", "/cache/purge?all=true", "/config", "//"] {
            assert_eq!(link(target), Err(AccessDenied::Origin), "{target}");
        }
    }

    #[test]
    fn on_other_addresses_only_a_request_with_the_token_is_admitted() {
        let token = token();
        let from = |local: &str, target: &str, values: &[&str]| {
            let host = [("host", "gateway.internal:9091")];
            let here = [("host", "localhost")];
            let host = if local == HERE { here } else { host };
            let pairs: Vec<_> = host.into_iter().chain(values.iter().map(|value| ("authorization", *value))).collect();
            admitted(local, target, &pairs, Some(&token))
        };
        for local in [HERE, ELSEWHERE] {
            assert_eq!(from(local, "/", &[]), Ok(()));
            for good in ["Bearer 0123456789abcdef", "bearer  0123456789abcdef "] {
                assert_eq!(from(local, "/status", &[good]), Ok(()), "{good}");
            }
            for bad in ["", "Bearer", "Bearer ", "Bearer 0123456789abcde", "Basic 0123456789abcdef", "0123456789abcdef"]
            {
                assert_eq!(from(local, "/status", &[bad]), Err(AccessDenied::Token), "{bad}");
            }
            assert_eq!(from(local, "/status", &[]), Err(AccessDenied::Token));
            assert_eq!(from(local, "/status", &["Bearer 0123456789abcdef"; 2]), Err(AccessDenied::Token));
        }
        let no_token = admitted(ELSEWHERE, "/status", &[("host", "localhost")], None);
        assert_eq!(no_token, Err(AccessDenied::Open));
        assert_eq!(admitted("[::ffff:127.0.0.1]:1", "/status", &[("host", "localhost")], None), Ok(()));
    }
}
