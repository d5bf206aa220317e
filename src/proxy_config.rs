//! Selects the route to upstream: a direct connection, or the proxy that the environment names.
//!
//! `HTTPS_PROXY` and `NO_PROXY` belong to the machine, not to this program, so they are not settings. They are read
//! once, at start. The URL of a proxy may contain a password. No message and no `Debug` output may contain it. This
//! file opens no connections: [`crate::upstream`] does.

use std::borrow::Cow;
use std::ffi::OsString;
use std::fmt;
use std::net::IpAddr;

use http::uri::Authority;
use http::{HeaderValue, Uri};
use hyper_util::client::proxy::matcher::{Intercept, Matcher};
use percent_encoding::percent_decode_str;
use thiserror::Error;

/// The names of each variable. The first one that is set and not empty is used, as curl does.
const PROXY: [&str; 2] = ["https_proxy", "HTTPS_PROXY"];
const NO_PROXY: [&str; 2] = ["no_proxy", "NO_PROXY"];

/// The routes to all upstreams. By default all connections are direct.
#[derive(Clone, Debug, Default)]
pub struct ProxyConfig {
    proxy: Option<Proxy>,
    direct: Vec<NoProxy>,
}

/// An HTTP proxy for tunnels (RFC 9110 §9.3.6), with the credentials for it.
#[derive(Clone)]
pub struct Proxy(Intercept);

/// An entry of `NO_PROXY`.
#[derive(Clone, Debug)]
enum NoProxy {
    Everything,
    /// A domain with its subdomains, an address or a network; on one port or on all ports.
    Hosts(String, Option<u16>),
}

/// The route to one upstream.
#[derive(Clone, Copy, Debug)]
pub enum ProxyRoute<'a> {
    /// No proxy is configured.
    Direct,
    /// `NO_PROXY` contains the host.
    NoProxy,
    /// The upstream uses http, so it is on this machine or in a service mesh. Such connections use no tunnel.
    Plaintext,
    Through(&'a Proxy),
}

/// A proxy URL that is malformed or not supported.
#[derive(Debug, Error)]
#[error(
    "{variable}: {shown:?} is not allowed: expected the URL of an HTTP proxy, http://HOST:PORT or https://HOST:PORT, \
     optionally with USER:PASSWORD@ before the host; percent-encode all characters in it but A-Z a-z 0-9 - . _ ~ \
     (%40 for @)"
)]
pub struct InvalidProxy {
    variable: &'static str,
    shown: String,
}

impl ProxyConfig {
    /// Reads the variables. An empty variable counts as not set, because templates often produce empty values.
    ///
    /// # Errors
    /// If the proxy URL is malformed or not supported. The gateway must not silently connect without the proxy.
    pub fn read(environment: impl Fn(&str) -> Option<OsString>) -> Result<Self, InvalidProxy> {
        let first = |names: [&'static str; 2]| {
            let mut set = names.into_iter().filter_map(|name| Some((name, environment(name)?)));
            set.find(|(_, value)| !value.is_empty())
        };
        let proxy = first(PROXY).map(|(variable, value)| {
            let text = value.to_string_lossy();
            parse_proxy(&text).ok_or_else(|| InvalidProxy { variable, shown: without_secrets(&text) })
        });
        let list = first(NO_PROXY).map(|(_, value)| value.to_string_lossy().into_owned()).unwrap_or_default();
        let entries = list.split(|c: char| c == ',' || c.is_whitespace()).filter(|entry| !entry.is_empty());
        Ok(Self { proxy: proxy.transpose()?, direct: entries.map(parse_no_proxy_entry).collect() })
    }

    pub fn route_to(&self, authority: &Authority, is_plaintext: bool) -> ProxyRoute<'_> {
        match &self.proxy {
            None => ProxyRoute::Direct,
            Some(_) if is_plaintext => ProxyRoute::Plaintext,
            Some(_) if self.is_exempt(authority) => ProxyRoute::NoProxy,
            Some(proxy) => ProxyRoute::Through(proxy),
        }
    }

    pub fn has_proxy(&self) -> bool {
        self.proxy.is_some()
    }

    /// hyper-util compares names, addresses and networks. It does not support ports, and its `*` does not match
    /// addresses.
    fn is_exempt(&self, authority: &Authority) -> bool {
        let port = authority.port_u16().unwrap_or(443);
        let host = Uri::builder().scheme("https").authority(authority.host()).path_and_query("/").build();
        self.direct.iter().any(|exempt| match exempt {
            NoProxy::Everything => true,
            NoProxy::Hosts(_, Some(only)) if *only != port => false,
            NoProxy::Hosts(hosts, _) => {
                let matcher = Matcher::builder().https("http://proxy").no(hosts).build();
                host.as_ref().is_ok_and(|host| matcher.intercept(host).is_none())
            }
        })
    }
}

impl Proxy {
    /// The URI of the proxy, without credentials.
    pub fn uri(&self) -> &Uri {
        self.0.uri()
    }

    /// The value for `Proxy-Authorization`.
    pub fn credentials(&self) -> Option<&HeaderValue> {
        self.0.basic_auth()
    }
}

/// Parses the URL of a proxy. hyper-util accepts almost any text, and a part that it ignores may be half of a password.
fn parse_proxy(text: &str) -> Option<Proxy> {
    let text = if text.contains("://") { Cow::Borrowed(text) } else { Cow::Owned(format!("http://{text}")) };
    let uri = text.parse::<Uri>().ok().filter(|_| !text.contains('#'))?;
    if !matches!(uri.scheme_str(), Some("http" | "https")) || uri.path() != "/" || uri.query().is_some() {
        return None;
    }
    let (user, host) = match uri.authority()?.as_str().split_once('@') {
        Some((user, host)) => (user, host.parse::<Authority>().ok()?),
        None => ("", uri.authority()?.clone()),
    };
    let is_text = percent_decode_str(user).decode_utf8().is_ok();
    let is_port = match host.as_str().strip_prefix(host.host())? {
        "" => true,
        _ => host.port_u16().is_some_and(|port| port > 0),
    };
    if host.host().is_empty() || host.as_str().contains('@') || !is_text || !is_port {
        return None;
    }
    let any_host = Uri::from_static("https://upstream");
    Matcher::builder().https(&*text).build().intercept(&any_host).map(Proxy)
}

/// Parses an entry of `NO_PROXY`: `*`, `host`, `.host`, `*.host`, an address or a network. All but `*` and a network
/// may have a port.
fn parse_no_proxy_entry(entry: &str) -> NoProxy {
    let is_address = entry.parse::<IpAddr>().is_ok() || entry.contains('/');
    let with_port = entry.rsplit_once(':').filter(|_| !is_address);
    let with_port = with_port.and_then(|(hosts, port)| Some((hosts, Some(port.parse().ok()?))));
    let (hosts, port) = with_port.unwrap_or((entry, None));
    match hosts.trim_matches(['[', ']']) {
        "*" if port.is_none() => NoProxy::Everything,
        hosts => NoProxy::Hosts(hosts.strip_prefix('*').unwrap_or(hosts).to_owned(), port),
    }
}

/// Schemes that an error message may show. Any other scheme may be a part of a password.
const SCHEMES: [&str; 7] = ["http", "https", "ftp", "socks4", "socks4a", "socks5", "socks5h"];

/// An invalid value as a message may show it. If the host is missing or a character is not escaped, almost any part may
/// belong to a password. So only a known scheme remains, and an end that is exactly a host and a port.
fn without_secrets(text: &str) -> String {
    let (scheme, rest) = text.split_once("://").map_or((None, text), |(scheme, rest)| (Some(scheme), rest));
    let separator = match scheme {
        Some(scheme) if !SCHEMES.iter().any(|known| known.eq_ignore_ascii_case(scheme)) => return "…".to_owned(),
        Some(_) => "://",
        None => "",
    };
    let scheme = scheme.unwrap_or_default();
    let (user, end) = rest.rsplit_once('@').map_or((None, rest), |(user, end)| (Some(user), end));
    match (user, port_of(end)) {
        (None, Some(_)) => text.to_owned(),
        // Without a port, this may be the end of a password.
        (Some(_), Some(Some(_))) => format!("{scheme}{separator}…@{end}"),
        _ => format!("{scheme}{separator}…"),
    }
}

/// `None` if the text is not exactly a host with an optional port. Else the port, if there is one.
fn port_of(end: &str) -> Option<Option<u16>> {
    let is_name = |c: char| c.is_ascii_alphanumeric() || "-._".contains(c);
    let is_address = |c: char| c.is_ascii_hexdigit() || ":.".contains(c);
    let after_host = match end.strip_prefix('[') {
        Some(rest) => rest.trim_start_matches(is_address).strip_prefix(']')?,
        None => end.trim_start_matches(is_name),
    };
    match after_host.strip_prefix(':') {
        Some(port) => port.parse().ok().map(Some),
        None => after_host.is_empty().then_some(None),
    }
}

impl fmt::Display for Proxy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let uri = self.uri();
        write!(f, "{}://{}", uri.scheme_str().unwrap_or_default(), uri.authority().map_or("", Authority::as_str))
    }
}

impl fmt::Debug for Proxy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl fmt::Display for ProxyRoute<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Direct => f.write_str("directly"),
            Self::NoProxy => f.write_str("directly (NO_PROXY)"),
            Self::Plaintext => f.write_str("directly (no proxy for http)"),
            Self::Through(proxy) => write!(f, "through the proxy {proxy} (HTTPS_PROXY)"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn proxy_config(variables: &[(&str, &str)]) -> Result<ProxyConfig, String> {
        let find = |name: &str| variables.iter().find(|(known, _)| *known == name).map(|(_, value)| value.into());
        ProxyConfig::read(find).map_err(|wrong| wrong.to_string())
    }

    fn route(proxy_config: &ProxyConfig, host: &'static str) -> String {
        proxy_config.route_to(&Authority::from_static(host), false).to_string()
    }

    #[test]
    fn the_first_variable_that_is_set_is_used() {
        for (variables, proxy) in [
            (&[][..], None),
            (&[("HTTPS_PROXY", "")], None),
            (&[("HTTP_PROXY", "http://a"), ("ALL_PROXY", "http://a")], None),
            (&[("HTTPS_PROXY", "http://a:1")], Some("http://a:1")),
            (&[("HTTPS_PROXY", "http://a:1"), ("https_proxy", "http://b:2/")], Some("http://b:2")),
            (&[("HTTPS_PROXY", "http://a:1"), ("https_proxy", "")], Some("http://a:1")),
            (&[("https_proxy", "a.corp:3128")], Some("http://a.corp:3128")),
            (&[("https_proxy", "HTTPS://[::1]:3128")], Some("https://[::1]:3128")),
        ] {
            let expected = proxy.map_or("directly".to_owned(), |at| format!("through the proxy {at} (HTTPS_PROXY)"));
            assert_eq!(route(&proxy_config(variables).unwrap(), "w.example"), expected, "{variables:?}");
        }
    }

    #[test]
    fn credentials_are_decoded_and_never_shown() {
        for (url, credentials) in [
            ("http://proxy", None),
            ("http://user:secret@proxy:3128", Some("Basic dXNlcjpzZWNyZXQ=")),
            ("user:secret@proxy", Some("Basic dXNlcjpzZWNyZXQ=")),
            ("http://user@proxy", Some("Basic dXNlcjo=")),
            // me@corp, and s:e/c#r?e%t ä
            ("http://me%40corp:s%3Ae%2Fc%23r%3Fe%25t%20%C3%A4@proxy", Some("Basic bWVAY29ycDpzOmUvYyNyP2UldCDDpA==")),
        ] {
            let proxy_config = proxy_config(&[("https_proxy", url)]).unwrap();
            let ProxyRoute::Through(proxy) = proxy_config.route_to(&Authority::from_static("w.example"), false) else {
                panic!()
            };
            assert_eq!(proxy.credentials().map(|value| value.to_str().unwrap()), credentials, "{url}");
            let shown = format!("{proxy_config:?} {proxy} {:?} {:?}", proxy.uri(), proxy.credentials());
            for secret in ["user", "secret", "corp", "dXNl"] {
                assert!(!shown.contains(secret), "{shown}");
            }
        }
    }

    #[test]
    fn a_proxy_that_cannot_be_used_is_refused_without_its_password() {
        for (url, shown) in [
            ("socks5://user:secret@proxy:1080", "\"socks5://…@proxy:1080\""),
            ("SOCKS5://user:secret@[::1]:1080", "\"SOCKS5://…@[::1]:1080\""),
            ("ftp://proxy", "\"ftp://proxy\""),
            ("ftp://[::1]:21", "\"ftp://[::1]:21\""),
            ("http://", "\"http://\""),
            ("http://:3128", "\"http://:3128\""),
            ("http://proxy:0", "\"http://proxy:0\""),
            ("http://user:secret", "\"http://…\""),
            ("user:secret", "\"…\""),
            // Text after a colon may be a password if it is not a port.
            ("http://proxy:99999", "\"http://…\""),
            ("http://secret/path", "\"http://…\""),
            ("http://proxy:3128/?password=secret", "\"http://…\""),
            ("http://proxy:3128/#secret", "\"http://…\""),
            ("http://user:sec#ret", "\"http://…\""),
            ("http://user:sec#ret@proxy", "\"http://…\""),
            ("http://user:sec/ret@proxy:3128", "\"http://…@proxy:3128\""),
            ("http://user:12/secret@proxy:3128", "\"http://…@proxy:3128\""),
            ("http://user:sec@ret@proxy:3128", "\"http://…@proxy:3128\""),
            ("http://user:%ffsecret@proxy:3128", "\"http://…@proxy:3128\""),
            // The host is missing, and this is the end of the password.
            ("http://user:p ss@secret", "\"http://…\""),
            ("http://user:p#ss@secret:word", "\"http://…\""),
            ("http://proxy:3128/?password=p@secret", "\"http://…\""),
            ("http://user:secret@", "\"http://…\""),
            ("http://user:secret@proxy:3128/path", "\"http://…\""),
            ("http://user:secret%40proxy", "\"http://…\""),
            ("user:secret%40proxy", "\"…\""),
            ("user:se cret@proxy:3128", "\"…@proxy:3128\""),
            ("user:secret://word@proxy:3128", "\"…\""),
            ("secret://proxy:3128", "\"…\""),
            ("secr\u{e9}t", "\"…\""),
        ] {
            for variable in PROXY {
                let error = proxy_config(&[(variable, url)]).unwrap_err();
                assert!(error.starts_with(&format!("{variable}: {shown} is not allowed: expected the URL")), "{error}");
                assert!(["cret", "secr", "word"].iter().all(|part| !error.contains(part)), "{error}");
            }
        }
    }

    #[test]
    fn hosts_in_no_proxy_are_reached_directly() {
        let covers = |list: &str, host: &'static str| {
            let proxy_config = proxy_config(&[("https_proxy", "http://proxy"), ("NO_PROXY", list)]).unwrap();
            match route(&proxy_config, host).as_str() {
                "directly (NO_PROXY)" => true,
                "through the proxy http://proxy (HTTPS_PROXY)" => false,
                other => panic!("{other}"),
            }
        };
        for (list, covered, others) in [
            (
                "w.example",
                &["w.example", "W.EXAMPLE:8443", "a.w.example"][..],
                &["aw.example", "example", "1.2.3.4"][..],
            ),
            (".example", &["w.example", "a.w.example:1"], &["w.example.org", "wexample"]),
            ("*.example", &["w.example"], &["w.example.org"]),
            ("a, ,b  c,", &["a", "b", "c"], &["d"]),
            ("*", &["w.example", "1.2.3.4:5", "[::1]"], &[]),
            ("a,*", &["w.example"], &[]),
            ("w.example:8443", &["w.example:8443", "a.w.example:8443"], &["w.example", "w.example:84"]),
            (".example:443", &["w.example", "w.example:443"], &["w.example:8443"]),
            (
                "10.0.0.0/8,fd00::/8",
                &["10.1.2.3", "10.1.2.3:8443", "[fd00::1]:1"],
                &["11.1.2.3", "[fe00::1]", "w.example"],
            ),
            ("1.2.3.4,::1", &["1.2.3.4", "[::1]", "[::1]:8443"], &["1.2.3.5", "[::2]"]),
            ("1.2.3.4:5,[::1]:5,[::2]", &["1.2.3.4:5", "[::1]:5", "[::2]:5"], &["1.2.3.4", "[::1]:6", "[::3]:5"]),
            ("", &[], &["w.example"]),
        ] {
            for host in covered {
                assert!(covers(list, host), "{list:?} {host}");
            }
            for host in others {
                assert!(!covers(list, host), "{list:?} {host}");
            }
        }
        let both = proxy_config(&[("https_proxy", "http://proxy"), ("NO_PROXY", "a"), ("no_proxy", "b")]).unwrap();
        assert_eq!(route(&both, "b"), "directly (NO_PROXY)");
        assert_ne!(route(&both, "a"), "directly (NO_PROXY)");
    }

    #[test]
    fn a_plaintext_upstream_is_reached_directly() {
        let proxy_config = proxy_config(&[("https_proxy", "http://proxy")]).unwrap();
        let route = proxy_config.route_to(&Authority::from_static("w.example"), true);
        assert_eq!(route.to_string(), "directly (no proxy for http)");
    }
}
