//! The header fields of a request: lines. What the gateway reads of them is what a simpler reader finds, and what it sends on has
//! nothing that belongs to one connection.

#![no_main]

use std::collections::HashSet;
use std::future::{Future, ready};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::pin::pin;
use std::sync::LazyLock;
use std::task::{Context, Poll, Waker};

use bytes::Bytes;
use http::header::{AUTHORIZATION, CONNECTION, CONTENT_LENGTH, HOST, IF_NONE_MATCH, ORIGIN, TE, TRAILER, VIA};
use http::request::Parts;
use http::{HeaderMap, HeaderName, HeaderValue, Request, Version};
use http_body_util::{BodyExt, Full};
use libfuzzer_sys::fuzz_target;
use workspace_gateway::testing::admin::admit;
use workspace_gateway::testing::catalogue::{Forwarded, Operation};
use workspace_gateway::testing::config::Config;
use workspace_gateway::testing::request::forwarded::select;
use workspace_gateway::testing::request::hop::{Via, strip_request};
use workspace_gateway::testing::request::precondition::is_current;
use workspace_gateway::testing::request::request_directives::RequestDirectives;
use workspace_gateway::testing::request::trace::TraceContext;
use workspace_gateway::testing::request::trailers::Trimmed;
use workspace_gateway::testing::request::{target, validate};
use workspace_gateway::testing::signing::{Binding, RelayChanges};
use workspace_gateway_fuzz::{REGION, has_directive, read_response};

/// Those that a proxy must not send on (RFC 9110 §7.6.1), and what the gateway has met itself.
const OF_CONNECTION: [&str; 10] = [
    "connection",
    "keep-alive",
    "proxy-connection",
    "proxy-authenticate",
    "proxy-authorization",
    "te",
    "transfer-encoding",
    "upgrade",
    "http2-settings",
    "expect",
];
const CREDENTIALS: [&str; 5] = ["authorization", "x-auth-token", "cookie", "x-security-token", "proxy-authorization"];
const ADMIN: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 9091);
const ADMIN_TOKEN: &str = "S3cr3tS3cr3tS3cr3t";

static CONFIG: LazyLock<Config> = LazyLock::new(|| {
    let text = format!("{REGION}\n[listen]\nadmin_token = \"{ADMIN_TOKEN}\"");
    Config::from_layers("f", &text, &[]).unwrap()
});
static FORWARDS_ALL: LazyLock<Operation> = LazyLock::new(|| {
    let operation = (*CONFIG.catalogue.operations()[0]).clone();
    Operation { forwarded: Forwarded::All, ..operation }
});

/// The texts of a field.
fn texts<'h>(headers: &'h HeaderMap, name: &HeaderName) -> Vec<&'h [u8]> {
    headers.get_all(name).iter().map(HeaderValue::as_bytes).collect()
}

/// The members of a list without quoted strings.
fn members<'h>(headers: &'h HeaderMap, name: &HeaderName) -> Vec<&'h [u8]> {
    texts(headers, name).into_iter().flat_map(|text| text.split(|byte| *byte == b',')).map(<[u8]>::trim_ascii).collect()
}

/// A `traceparent` by its form (W3C Trace Context §3.2): the ids and the flags.
fn trace(text: &[u8]) -> Option<(&[u8], &[u8], u8)> {
    let is_text = text.iter().all(|byte| matches!(byte, b'\t' | b' '..=b'~'));
    let is_hex = |text: &[u8]| text.iter().all(|byte| byte.is_ascii_digit() || (b'a'..=b'f').contains(byte));
    let dashes = [2, 35, 52].map(|place| text.get(place).copied());
    let parts = [text.get(..2)?, text.get(3..35)?, text.get(36..52)?, text.get(53..55)?];
    let is_known = if parts[0] == b"00" { text.len() == 55 } else { text.get(55).is_none_or(|byte| *byte == b'-') };
    let is_valid =
        is_text && dashes == [Some(b'-'); 3] && parts.iter().all(|part| is_hex(part)) && parts[0] != b"ff" && is_known;
    let is_zero = |text: &[u8]| text.iter().all(|byte| *byte == b'0');
    let flags = u8::from_str_radix(std::str::from_utf8(parts[3]).ok()?, 16).ok()?;
    (is_valid && !is_zero(parts[1]) && !is_zero(parts[2])).then_some((parts[1], parts[2], flags & 3))
}

fn check_trace(headers: &HeaderMap) {
    let all = texts(headers, &HeaderName::from_static("traceparent"));
    let expected = if let [one] = all[..] { trace(one) } else { None };
    let read = TraceContext::read(headers);
    assert_eq!(read.is_some(), expected.is_some(), "{all:?}");
    if let (Some(read), Some((trace, span, flags))) = (read, expected) {
        let again = read.traceparent().unwrap();
        let flags = format!("{flags:02x}");
        assert_eq!(again.as_bytes(), [b"00", trace, span, flags.as_bytes()].join(&b'-'));
        assert_eq!(
            TraceContext::read(&HeaderMap::from_iter([(HeaderName::from_static("traceparent"), again)])),
            Some(read)
        );
    }
}

fn check_directives(headers: &HeaderMap) {
    let read = RequestDirectives::read(headers);
    let says = |name| has_directive(headers, name);
    match &read {
        Err(_) => assert_ne!(says("no-store"), Some(false)),
        Ok(read) => {
            let is_strict = read.no_cache;
            assert!(is_strict || says("no-store") != Some(true), "{headers:?}");
            assert!(is_strict || says("no-cache") != Some(true), "{headers:?}");
            assert!(!read.only_if_cached || says("only-if-cached") != Some(false));
            assert!(!is_strict || !read.takes_stale());
        }
    }
    let mut malformed = headers.clone();
    malformed.append("cache-control", HeaderValue::from_static("="));
    assert!(RequestDirectives::read(&malformed).is_ok_and(|read| read.no_cache));
}

fn check_strip(headers: &HeaderMap) {
    let mut stripped = headers.clone();
    strip_request(&mut stripped);
    let named: HashSet<Vec<u8>> = members(headers, &CONNECTION).into_iter().map(<[u8]>::to_ascii_lowercase).collect();
    let is_removed =
        |name: &HeaderName| OF_CONNECTION.contains(&name.as_str()) || named.contains(name.as_str().as_bytes());
    for name in headers.keys().filter(|name| ![TE, TRAILER].contains(name)) {
        let expected = if is_removed(name) { Vec::new() } else { texts(headers, name) };
        assert_eq!(texts(&stripped, name), expected, "{name}");
    }
    assert!(stripped.keys().all(|name| headers.contains_key(name)));
    let reads_trailers = members(headers, &TE).iter().any(|member| member.eq_ignore_ascii_case(b"trailers"));
    let left: &[&[u8]] = if reads_trailers { &[b"trailers"] } else { &[] };
    assert_eq!(texts(&stripped, &TE), left);
    let announced: Vec<Vec<u8>> = members(headers, &TRAILER).into_iter().map(<[u8]>::to_ascii_lowercase).collect();
    assert!(members(&stripped, &TRAILER).iter().all(|name| announced.contains(&name.to_vec())));
}

/// The fields as a trailer section: what is sent on is a part of it, and says nothing of framing, routing or callers.
fn check_trailers(headers: &HeaderMap) {
    let sent = Full::new(Bytes::new()).with_trailers(ready(Some(Ok(headers.clone()))));
    let collected = pin!(Trimmed(sent).collect()).poll(&mut Context::from_waker(Waker::noop()));
    let Poll::Ready(Ok(collected)) = collected else { panic!("the body is there") };
    for (name, _) in collected.trailers().into_iter().flatten() {
        let dashed = name.as_str().replace('_', "-");
        let is_other = CREDENTIALS.contains(&&*dashed) || OF_CONNECTION.contains(&&*dashed);
        assert!(!is_other && !["content-length", "host", "via"].contains(&&*dashed), "{name}");
        assert_eq!(texts(collected.trailers().unwrap(), name), texts(headers, name));
    }
}

fn check_via(headers: &HeaderMap) {
    let via = Via::new(7);
    let own = b"workspace-gateway-00000007";
    let is_named = texts(headers, &VIA)
        .iter()
        .any(|value| value.to_ascii_lowercase().windows(own.len()).any(|window| window == own));
    assert!(is_named || !via.is_in(headers));
    let trail = via.trail(headers).to_str().unwrap().to_owned();
    let hops: Vec<&str> = trail.split(", ").collect();
    assert!(hops.len() <= 9 && hops.last() == Some(&"1.1 workspace-gateway-00000007"), "{trail}");
    let is_gateway = |hop: &&str| {
        hop.strip_prefix("1.1 workspace-gateway-")
            .is_some_and(|it| it.len() == 8 && u32::from_str_radix(it, 16).is_ok())
    };
    assert!(hops.iter().all(is_gateway), "{trail}");
    for version in [Version::HTTP_10, Version::HTTP_11, Version::HTTP_2] {
        let mut passed = headers.clone();
        via.add_to(&mut passed, version);
        assert!(via.is_in(&passed));
    }
}

fn check_conditions(headers: &HeaderMap) {
    for tag in [&b"\"a\""[..], b"W/\"a\"", b"\"a,b\""] {
        let response = HeaderMap::from_iter([("etag".parse().unwrap(), HeaderValue::from_bytes(tag).unwrap())]);
        let conditions = texts(headers, &IF_NONE_MATCH);
        let weak = |tag: &[u8]| tag.strip_prefix(b"W/").unwrap_or(tag).to_vec();
        let opaque = weak(tag);
        let is_named = |list: &&[u8]| list.windows(opaque.len()).any(|window| window == opaque) || list.contains(&b'*');
        let is_current = is_current(headers, &response);
        assert!(!is_current || conditions.iter().any(is_named), "{conditions:?}");
        let is_one = |list: &&[u8]| weak(list) == opaque || **list == *b"*";
        assert!(is_current || !conditions.iter().any(is_one), "{conditions:?}");
    }
}

fn head(headers: &HeaderMap, version: Version, uri: &'static str) -> Parts {
    let mut head = Request::builder().version(version).uri(uri).body(()).unwrap().into_parts().0;
    head.headers = headers.clone();
    head
}

fn check_validation(headers: &HeaderMap) {
    for version in [Version::HTTP_11, Version::HTTP_2] {
        let mut head = head(headers, version, "/v2/p/products");
        let has_blanks = |value: &HeaderValue| value.as_bytes().trim_ascii() != value.as_bytes();
        let is_refused = version == Version::HTTP_2 && headers.values().any(has_blanks);
        if validate::normalize(&mut head).is_err() {
            continue;
        }
        assert!(!is_refused && !head.headers.values().any(has_blanks));
        let first = head.headers.clone();
        assert!(validate::normalize(&mut head).is_ok() && head.headers == first, "once is enough");
        if validate::check(&head, &CONFIG.catalogue).is_err() {
            continue;
        }
        let count =
            |name: &str| head.headers.iter().filter(|(other, _)| other.as_str().replace('_', "-") == name).count();
        assert!(count("x-auth-token") <= 1 && count("content-length") <= 1 && count("transfer-encoding") <= 1);
        assert!(head.headers.len() <= validate::MAX_FIELDS);
        let lists = [CONNECTION, VIA, IF_NONE_MATCH];
        assert!(lists.iter().map(|name| members(&head.headers, name).len()).sum::<usize>() <= validate::MAX_MEMBERS);
        let lengths = texts(headers, &CONTENT_LENGTH);
        assert!(lengths.iter().all(|length| length.trim_ascii() == lengths[0].trim_ascii()));
        let is_host = target::check(&head, ADMIN, &CONFIG.catalogue).is_ok();
        assert!(!is_host || texts(&head.headers, &HOST).len() == 1);
    }
}

fn check_selection(headers: &HeaderMap) {
    let mut stripped = headers.clone();
    strip_request(&mut stripped);
    for name in select(&FORWARDS_ALL, &stripped).keys() {
        let name = name.as_str();
        assert!(!CREDENTIALS.contains(&name) && !OF_CONNECTION.contains(&name), "{name}");
        assert!(!["host", "content-length", "via", "x-sdk-date", "x-project-id"].contains(&name), "{name}");
    }
}

/// The admin listener: without a token nobody but a program of this machine, and with one nobody without it.
fn check_admin(headers: &HeaderMap) {
    let is_admitted = |uri, token| admit(&head(headers, Version::HTTP_11, uri), ADMIN, token).is_ok();
    let hosts = texts(headers, &HOST);
    if is_admitted("/status", None) {
        let [host] = hosts[..] else { panic!("{hosts:?}") };
        let host = String::from_utf8(host.to_ascii_lowercase()).unwrap();
        let name = host.split(']').next().filter(|name| name.starts_with('['));
        let name = name.or(host.split(':').next()).unwrap_or_default();
        let has_only = |bytes: &[u8]| name.bytes().all(|byte| bytes.contains(&byte));
        // All addresses of the loopback network, and all spellings of ::1.
        let is_address =
            name.starts_with("127.") && has_only(b"0123456789.") || name.starts_with('[') && has_only(b"[:01.");
        assert!(name == "localhost" || is_address, "{host}");
        for origin in texts(headers, &ORIGIN) {
            let origin = String::from_utf8(origin.to_ascii_lowercase()).unwrap();
            assert!([format!("http://{host}"), format!("https://{host}")].contains(&origin), "{origin}");
        }
    }
    if is_admitted("/status", CONFIG.admin_token.as_ref()) {
        let all = texts(headers, &AUTHORIZATION);
        assert!(all.len() == 1 && all[0].ends_with(ADMIN_TOKEN.as_bytes()));
    }
}

/// A scheme that signs nothing is no signature, and any other is one.
fn check_binding(headers: &HeaderMap) {
    let is_signature = |value: &&[u8]| {
        let text = String::from_utf8_lossy(value).to_ascii_lowercase();
        let scheme = text.split_ascii_whitespace().next().unwrap_or_default();
        let is_scheme = scheme.starts_with("sdk-") || scheme.contains("hmac");
        (is_scheme || text.contains("signature="), text.contains("signedheaders"))
    };
    let signatures: Vec<_> = texts(headers, &AUTHORIZATION).iter().map(is_signature).collect();
    let binding = Binding::of(headers, "upstream", &RelayChanges::default());
    if signatures.iter().all(|(is_signature, has_list)| !is_signature && !has_list) {
        assert_eq!(binding, Binding::Unsigned);
    }
    if signatures.iter().any(|(is_signature, has_list)| *is_signature && !has_list) {
        assert_eq!(binding, Binding::Bound, "its fields are not known");
    }
}

fuzz_target!(|input: &[u8]| {
    let (headers, _) = read_response(input);
    check_trace(&headers);
    check_directives(&headers);
    check_strip(&headers);
    check_trailers(&headers);
    check_via(&headers);
    check_conditions(&headers);
    check_validation(&headers);
    check_selection(&headers);
    check_admin(&headers);
    check_binding(&headers);
});
