//! Who may ask the operator's listener for anything.
//!
//! On loopback, whoever is on this machine; and no web page that a browser on this machine shows. A page can have the
//! browser send requests anywhere, and by giving its own name this machine's address (DNS rebinding) it can read the
//! answers. But it can't choose the `Host` that is sent then, nor leave out the `Origin`. Elsewhere, and wherever a
//! token is configured, only who shows that.

use std::net::{IpAddr, SocketAddr};

use http::header::{AUTHORIZATION, CONNECTION, HOST, HeaderName, ORIGIN, WWW_AUTHENTICATE};
use http::request::Parts;
use http::uri::Authority;
use http::{HeaderMap, HeaderValue, StatusCode};

use super::{Page, text};
use crate::config::secret::AdminToken;

/// What a browser says of where a request comes from (Fetch Metadata).
const SEC_FETCH_SITE: HeaderName = HeaderName::from_static("sec-fetch-site");

/// Why somebody may not ask.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum AccessDenied {
    /// The request names another host.
    Host,
    /// A web page has sent it.
    Origin,
    /// It comes from elsewhere, and nothing has been configured that it could show.
    Open,
    /// It doesn't show the token.
    Token,
}

impl AccessDenied {
    /// For who may ask.
    pub(super) fn in_words(self) -> &'static str {
        match self {
            Self::Host => "the admin listener was asked by the name of another host",
            Self::Origin => "a web page of another site has asked the admin listener",
            Self::Open => "the admin listener was asked from elsewhere, without a token to show",
            Self::Token => "the admin listener was shown a wrong token",
        }
    }

    /// The connection ends with it: there are few, and whoever may ask is to get one.
    pub(super) fn page(self) -> Page {
        let mut page = self.say();
        page.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
        page
    }

    fn say(self) -> Page {
        let forbidden = |message: &str| text(StatusCode::FORBIDDEN, format!("refused: {message}"));
        match self {
            Self::Host => forbidden("expected a Host of this machine, such as localhost or 127.0.0.1"),
            Self::Origin => forbidden("expected no Origin but this listener's own: other sites may not ask"),
            Self::Open => forbidden("expected a connection on loopback, for there is no listen.admin_token"),
            Self::Token => {
                let mut page =
                    text(StatusCode::UNAUTHORIZED, "refused: expected Authorization: Bearer, and listen.admin_token");
                page.headers_mut().insert(WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
                page
            }
        }
    }
}

/// Lets a request in that came by the address `local`, or says why not.
///
/// # Errors
/// Why not.
pub(super) fn admit(head: &Parts, local: SocketAddr, token: Option<&AdminToken>) -> Result<(), AccessDenied> {
    if token.is_none() && !local.ip().to_canonical().is_loopback() {
        return Err(AccessDenied::Open);
    }
    let named = host(head).ok_or(AccessDenied::Host)?;
    // Elsewhere this machine has names that nobody has told, and a page that has given it its own has no token.
    if local.ip().to_canonical().is_loopback() && !is_this_machine(&named) {
        return Err(AccessDenied::Host);
    }
    let is_document = head.uri.path() == "/";
    if !is_own_origin(&head.headers, &named) || !(is_document || is_own_site(&head.headers)) {
        return Err(AccessDenied::Origin);
    }
    match token {
        // The page itself says nothing, and asks for the token.
        Some(token) if !is_document && !shows(&head.headers, token) => Err(AccessDenied::Token),
        _ => Ok(()),
    }
}

/// The host that a request names, if it names one, and no other.
fn host(head: &Parts) -> Option<Authority> {
    let mut named = head.headers.get_all(HOST).iter();
    let (Some(host), None) = (named.next(), named.next()) else { return None };
    let host: Authority = host.to_str().ok().filter(|host| !host.contains('@'))?.parse().ok()?;
    head.uri.authority().is_none_or(|authority| *authority == host).then_some(host)
}

fn is_this_machine(authority: &Authority) -> bool {
    let host = authority.host();
    host.eq_ignore_ascii_case("localhost")
        || host.trim_matches(['[', ']']).parse::<IpAddr>().is_ok_and(|address| address.is_loopback())
}

/// Whether a request was sent by no web page, or by one that came from here.
fn is_own_origin(headers: &HeaderMap, host: &Authority) -> bool {
    headers.get_all(ORIGIN).iter().all(|origin| {
        let origin = origin.to_str().ok();
        let named = origin.and_then(|origin| origin.strip_prefix("http://").or(origin.strip_prefix("https://")));
        named.is_some_and(|named| named.eq_ignore_ascii_case(host.as_str()))
    })
}

fn is_own_site(headers: &HeaderMap) -> bool {
    headers.get_all(SEC_FETCH_SITE).iter().all(|site| site == "same-origin" || site == "none")
}

fn shows(headers: &HeaderMap, token: &AdminToken) -> bool {
    let mut shown = headers.get_all(AUTHORIZATION).iter();
    let (Some(shown), None) = (shown.next(), shown.next()) else { return false };
    let shown = shown.as_bytes();
    // RFC 9110 §11.1: the scheme in any case.
    let (scheme, given) = shown.split_at(shown.len().min("bearer ".len()));
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
    fn on_loopback_only_this_machine_and_no_web_page() {
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
    fn a_link_may_lead_to_the_page_and_to_nothing_else() {
        let link = |target: &str| admitted(HERE, target, &[("host", HERE), ("sec-fetch-site", "cross-site")], None);
        assert_eq!(link("/"), Ok(()));
        for target in ["/status", "/cache/purge?all=true", "/config", "//"] {
            assert_eq!(link(target), Err(AccessDenied::Origin), "{target}");
        }
    }

    #[test]
    fn elsewhere_only_who_shows_the_token() {
        let token = token();
        let from = |local: &str, target: &str, shown: &[&str]| {
            let host = [("host", "gateway.internal:9091")];
            let here = [("host", "localhost")];
            let host = if local == HERE { here } else { host };
            let pairs: Vec<_> = host.into_iter().chain(shown.iter().map(|shown| ("authorization", *shown))).collect();
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
        let nobody = admitted(ELSEWHERE, "/status", &[("host", "localhost")], None);
        assert_eq!(nobody, Err(AccessDenied::Open));
        assert_eq!(admitted("[::ffff:127.0.0.1]:1", "/status", &[("host", "localhost")], None), Ok(()));
    }
}
