//! The request target: translates it from HTTP/2, checks that it is for this gateway, and removes a base URL's path
//! prefix.
//!
//! A request for another host must not be relayed: the gateway is not a forward proxy.

use std::net::SocketAddr;

use http::header::{COOKIE, HOST};
use http::request::Parts;
use http::uri::{Authority, Scheme};
use http::{HeaderValue, Method, Uri, Version};

use crate::catalogue::Catalogue;

/// Why a request is not for this gateway.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Misdirected {
    /// The method is CONNECT.
    Connect,
    /// The target is the URL of another host.
    ForeignHost,
    /// `Host` is invalid, is missing in HTTP/1.1, or is present twice.
    Host,
}

/// Brings an HTTP/2 head into the form of HTTP/1, which the rest of the gateway and upstream read. `:authority` becomes
/// `Host` (RFC 9113 §8.3.1); a different `Host` stays beside it, so that there are two. `Cookie` fields are joined to
/// one (§8.2.3).
pub fn translate(head: &mut Parts) {
    if head.version != Version::HTTP_2 || head.method == Method::CONNECT {
        return;
    }
    if let Some(authority) = head.uri.authority().and_then(|host| HeaderValue::from_str(host.as_str()).ok()) {
        if head.headers.get(HOST).is_none_or(|host| *host != authority) {
            head.headers.append(HOST, authority);
        }
        head.uri = head.uri.path_and_query().cloned().map(Uri::from).unwrap_or_default();
    }
    let mut cookies: Vec<&[u8]> = head.headers.get_all(COOKIE).iter().map(HeaderValue::as_bytes).collect();
    if cookies.len() > 1 {
        // With an empty one at its end, the value would end with a blank.
        cookies.retain(|cookie| !cookie.is_empty());
        if let Ok(cookies) = HeaderValue::from_bytes(&cookies.join(&b"; "[..])) {
            head.headers.insert(COOKIE, cookies);
        }
    }
}

/// Checks that a request is for this gateway. A target in absolute form may name the address that the client has
/// connected to, or an upstream service, for clients that are configured to use the gateway as an HTTP proxy.
pub fn check(head: &Parts, local: SocketAddr, catalogue: &Catalogue) -> Result<(), Misdirected> {
    if head.method == Method::CONNECT {
        return Err(Misdirected::Connect);
    }
    let mut hosts = head.headers.get_all(HOST).iter();
    match (hosts.next(), hosts.next()) {
        (Some(host), None) if is_host(host) => {}
        (None, None) if head.version < Version::HTTP_11 => {}
        _ => return Err(Misdirected::Host),
    }
    match head.uri.authority() {
        Some(authority) if !is_ours(authority, head.uri.scheme(), local, catalogue) => Err(Misdirected::ForeignHost),
        _ => Ok(()),
    }
}

/// Removes the prefix that a client's base URL has put before the path. A signature covers the original path.
pub(crate) fn rebase(head: &mut Parts, prefixes: &[impl AsRef<str>], catalogue: &Catalogue) {
    if let Some(rebased) = rebased(&head.uri, prefixes, catalogue) {
        head.uri = rebased;
    }
}

/// The URI without the prefix, or `None` if nothing changes. The longest matching prefix is removed once, unless the
/// path is an operation's. Several leading slashes become one, because the base URL `http://gateway/` and the path
/// `/v2` make `//v2`. The rest stays byte for byte.
pub fn rebased(uri: &Uri, prefixes: &[impl AsRef<str>], catalogue: &Catalogue) -> Option<Uri> {
    let received = uri.path();
    let path = one_slash(received);
    let without = |prefix: &str| path.strip_prefix(prefix).filter(|rest| rest.starts_with('/'));
    let rest = prefixes.iter().filter_map(|prefix| without(prefix.as_ref())).min_by_key(|rest| rest.len());
    let path = match rest {
        Some(rest) if catalogue.operation(path).is_none() => one_slash(rest),
        _ => path,
    };
    if path.len() == received.len() {
        return None;
    }
    let query = uri.query().map(|query| format!("?{query}")).unwrap_or_default();
    let mut parts = uri.clone().into_parts();
    parts.path_and_query = Some(format!("{path}{query}").parse().ok()?);
    Uri::from_parts(parts).ok()
}

/// The path with one leading slash.
fn one_slash(path: &str) -> &str {
    let more = path.bytes().take_while(|&byte| byte == b'/').count().saturating_sub(1);
    &path[more..]
}

/// Whether a `Host` is valid. It must not be empty (RFC 9110 §4.2.1).
fn is_host(host: &HeaderValue) -> bool {
    // Most are a name or an IPv4 address, with or without a port. Parsing the others takes a copy.
    let is_name = |byte: &u8| byte.is_ascii_alphanumeric() || b"-.".contains(byte);
    let mut parts = host.as_bytes().splitn(2, |&byte| byte == b':');
    let name = parts.next().unwrap_or_default();
    let is_port = |port: &[u8]| (1..5).contains(&port.len()) && port.iter().all(u8::is_ascii_digit) && !name.is_empty();
    let is_plain = !name.is_empty() && name.iter().all(is_name) && parts.next().is_none_or(is_port);
    let is_valid = |host: Authority| !host.as_str().contains('@') && !host.host().is_empty();
    is_plain || Authority::try_from(host.as_bytes()).is_ok_and(is_valid)
}

fn is_ours(authority: &Authority, scheme: Option<&Scheme>, local: SocketAddr, catalogue: &Catalogue) -> bool {
    let port = authority.port_u16().unwrap_or(if scheme == Some(&Scheme::HTTPS) { 443 } else { 80 });
    let host = authority.host();
    let is_local = port == local.port()
        && (host.eq_ignore_ascii_case("localhost")
            || host.trim_matches(['[', ']']).parse() == Ok(local.ip().to_canonical()));
    is_local || catalogue.services().any(|service| catalogue.origin(service).authority() == authority)
}

#[cfg(test)]
mod tests {
    use http::Request;

    use super::*;
    use crate::catalogue::Origin;

    #[test]
    fn only_the_gateways_address_and_upstreams_are_accepted() {
        let origin = |host| Origin::new(Scheme::HTTPS, Authority::from_static(host));
        let catalogue = Catalogue::new(origin("w.example"), origin("a.example"), Vec::new());
        let check_at = |port: u16, method: Method, uri: &str| {
            let request = Request::builder().method(method).uri(uri).header(HOST, "any").body(());
            check(&request.unwrap().into_parts().0, SocketAddr::from(([127, 0, 0, 1], port)), &catalogue)
        };
        let check = |method: Method, uri: &str| check_at(8080, method, uri);
        for ours in ["/v2/p/products", "*", "http://127.0.0.1:8080/", "http://LOCALHOST:8080/x", "http://a.example/v1"]
        {
            assert_eq!(check(Method::GET, ours), Ok(()), "{ours}");
        }
        for foreign in
            ["http://127.0.0.1/", "http://example.com:8080/", "http://w.example:81/", "http://user@w.example/"]
        {
            assert_eq!(check(Method::GET, foreign), Err(Misdirected::ForeignHost), "{foreign}");
        }
        for (port, uri) in [(80, "http://127.0.0.1/"), (443, "https://127.0.0.1/"), (8080, "https://127.0.0.1:8080/")] {
            assert_eq!(check_at(port, Method::GET, uri), Ok(()), "{uri}");
        }
        for (port, uri) in [(443, "http://127.0.0.1/"), (80, "https://127.0.0.1/")] {
            assert_eq!(check_at(port, Method::GET, uri), Err(Misdirected::ForeignHost), "{uri}");
        }
        assert_eq!(check(Method::CONNECT, "w.example:443"), Err(Misdirected::Connect));
    }

    #[test]
    fn a_request_has_exactly_one_valid_host_unless_it_is_http_1_0() {
        let catalogue = Catalogue::for_tests(Vec::new());
        for (version, hosts, is_valid) in [
            (Version::HTTP_11, &["g.example"][..], true),
            (Version::HTTP_11, &["g-1:8080"], true),
            (Version::HTTP_11, &["127.0.0.1:65535"], true),
            (Version::HTTP_11, &["[::1]:8080"], true),
            (Version::HTTP_10, &[], true),
            (Version::HTTP_11, &[], false),
            (Version::HTTP_2, &[], false),
            (Version::HTTP_10, &["g", "g"], false),
            (Version::HTTP_11, &["g", "g"], false),
            (Version::HTTP_11, &[""], false),
            (Version::HTTP_11, &[":80"], false),
            (Version::HTTP_11, &[":65535"], false),
            (Version::HTTP_11, &["user@g"], false),
            (Version::HTTP_11, &["g h"], false),
            (Version::HTTP_11, &["g:8 0"], false),
        ] {
            let mut head = Request::builder().version(version).uri("/").body(()).unwrap().into_parts().0;
            for host in hosts {
                head.headers.append(HOST, HeaderValue::from_static(host));
            }
            let expected = if is_valid { Ok(()) } else { Err(Misdirected::Host) };
            let local = SocketAddr::from(([127, 0, 0, 1], 8080));
            assert_eq!(check(&head, local, &catalogue), expected, "{version:?} {hosts:?}");
        }
    }

    #[test]
    fn a_base_urls_prefix_is_removed_once() {
        let mut catalogue = Catalogue::for_tests(Vec::new());
        let template = "/workspace/own/{id}".parse().unwrap();
        let listed = catalogue.operations()[0].as_ref().clone();
        catalogue.add(crate::catalogue::Operation { name: "Own".into(), template, ..listed }).unwrap();
        let prefixes = ["/workspace", "/a", "/a/b"];
        for (received, expected) in [
            ("/v2/p/products?a=//b", None),
            ("//v2/p/products?a=//b", Some("/v2/p/products?a=//b")),
            ("///v2//p/", Some("/v2//p/")),
            ("/workspace/v2/p", Some("/v2/p")),
            ("/workspace//v2/p/?", Some("/v2/p/?")),
            ("//workspace/v2/p", Some("/v2/p")),
            ("/workspace/workspace/v2/p", Some("/workspace/v2/p")),
            ("/a/v2", Some("/v2")),
            ("/a/b/v2", Some("/v2")),
            ("/a/bc/v2", Some("/bc/v2")),
            ("/workspace/", Some("/")),
            ("//", Some("/")),
            ("/workspace", None),
            ("/workspace?/v2", None),
            ("/workspaces/v2", None),
            ("/Workspace/v2", None),
            ("/%77orkspace/v2", None),
            ("/v2/workspace/p", None),
            ("/workspace/own/1", None),
            ("/workspace/own/1/2", Some("/own/1/2")),
            ("http://h:1/workspace/v2?a", Some("http://h:1/v2?a")),
            ("http://h//v2", Some("http://h/v2")),
            ("http://h", None),
            ("*", None),
        ] {
            let mut head = Request::builder().uri(received).body(()).unwrap().into_parts().0;
            let before = head.uri.clone();
            rebase(&mut head, &prefixes, &catalogue);
            assert_eq!(head.uri.to_string(), expected.unwrap_or(&before.to_string()), "{received}");
        }
        let none: [&str; 0] = [];
        assert_eq!(rebased(&Uri::from_static("/workspace/v2"), &none, &catalogue), None);
        assert_eq!(rebased(&Uri::from_static("//v2"), &none, &catalogue).unwrap(), "/v2");
    }

    #[test]
    fn http2_is_translated_to_http1() {
        let translated = |version, uri: &str, headers: &[(&'static str, &'static str)]| {
            let mut head = Request::builder().version(version).uri(uri).body(()).unwrap().into_parts().0;
            for &(name, value) in headers {
                head.headers.append(name, HeaderValue::from_static(value));
            }
            translate(&mut head);
            let all = |name| head.headers.get_all(name).iter().map(|value| value.to_str().unwrap()).collect::<Vec<_>>();
            format!("{} {:?} {:?}", head.uri, all(HOST), all(COOKIE))
        };
        let two = Version::HTTP_2;
        assert_eq!(translated(two, "http://g:1/x?a=1", &[]), r#"/x?a=1 ["g:1"] []"#);
        assert_eq!(translated(two, "http://g", &[("host", "g")]), r#"/ ["g"] []"#);
        assert_eq!(translated(two, "http://g/", &[("host", "other")]), r#"/ ["other", "g"] []"#);
        assert_eq!(translated(two, "/x", &[("host", "g")]), r#"/x ["g"] []"#);
        let cookies = [("cookie", "a=1"), ("cookie", "b=2; c=3")];
        assert_eq!(translated(two, "http://g/", &cookies), r#"/ ["g"] ["a=1; b=2; c=3"]"#);
        let empty = [("cookie", "a=1"), ("cookie", "")];
        assert_eq!(translated(two, "http://g/", &empty), r#"/ ["g"] ["a=1"]"#);
        let untouched = translated(Version::HTTP_11, "http://g/", &cookies);
        assert_eq!(untouched, r#"http://g/ [] ["a=1", "b=2; c=3"]"#);
    }
}
