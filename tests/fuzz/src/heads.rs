//! Two heads, of which the fast path takes the second one for the first one. hyper must read them as the same request, but
//! for the values of the varying fields, and these as the fast path does.
//!
//! The input has two parts: a head, and edits that make the second head of it.

#![no_main]

use http::request::Parts;
use http::{HeaderName, HeaderValue, Request, Version};
use libfuzzer_sys::fuzz_target;
use workspace_gateway::testing::fast_path::{split_head, split_parsed_head};
use workspace_gateway_fuzz::{edit, join, split, write_seeds};

/// As many as hyper reads.
const MAX_FIELDS: usize = 100;

/// The head as hyper reads it. `None` if it is no GET of HTTP/1.1, or does not end with the bytes.
fn read(head: &[u8]) -> Option<Parts> {
    let mut fields = [httparse::EMPTY_HEADER; MAX_FIELDS];
    let mut parsed = httparse::Request::new(&mut fields);
    let is_whole = parsed.parse(head) == Ok(httparse::Status::Complete(head.len()));
    if !is_whole || parsed.method != Some("GET") || parsed.version != Some(1) {
        return None;
    }
    let mut request = Request::builder().uri(parsed.path?).version(Version::HTTP_2);
    let headers = request.headers_mut()?;
    for field in &*parsed.headers {
        headers.append(HeaderName::from_bytes(field.name.as_bytes()).ok()?, HeaderValue::from_bytes(field.value).ok()?);
    }
    Some(request.body(()).ok()?.into_parts().0)
}

/// Nothing reads these on the fast path, so that a second one may come before the one that varies.
const UNREAD: [&str; 2] = ["tracestate", "x-request-id"];

/// Asserts that two heads are the same request but for varying values, and that the second one has these.
fn compare(known: &Parts, sent: &Parts, varying: &[(&str, &str)]) {
    assert_eq!((&known.uri, known.headers.len()), (&sent.uri, sent.headers.len()));
    let is_value = |name: &str, field: &HeaderValue, value: &str| match name {
        // Of this field only the end varies.
        "authorization" => field.as_bytes().ends_with(value.as_bytes()),
        _ => field.as_bytes() == value.as_bytes(),
    };
    for (name, value) in varying.iter().filter(|(name, _)| !UNREAD.contains(name)) {
        let fields: Vec<_> = sent.headers.get_all(*name).iter().collect();
        assert!(fields.len() == 1 && is_value(name, fields[0], value), "{name}");
    }
    let mut rest = varying.to_vec();
    for ((name, before), (other, after)) in known.headers.iter().zip(&sent.headers) {
        assert_eq!(name, other);
        if before == after {
            continue;
        }
        let found = rest.iter().position(|(varying, value)| name == varying && is_value(varying, after, value));
        let (_, value) = rest.remove(found.unwrap_or_else(|| panic!("{name} differs")));
        if name == "authorization" {
            let constant = &after.as_bytes()[..after.len() - value.len()];
            assert!(before.as_bytes().starts_with(constant), "{name}");
        }
    }
}

fn seeds() -> Vec<(&'static str, Vec<u8>)> {
    let head = |lines: &str| format!("GET /v2/p/products?limit=5 HTTP/1.1\r\nhost: h\r\n{lines}\r\n").into_bytes();
    let seed = |lines: &str| join(&[head(lines), vec![1, 70, 0, 1]]);
    vec![
        ("trace", seed("x-auth-token: t\r\ntraceparent: 00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01\r\n")),
        ("signed", seed("X-Sdk-Date: 20261130T120000Z\r\nAuthorization: SDK-HMAC-SHA256 Access=A, Signature=0a1b\r\n")),
        ("condition", seed("X-Auth-Token: t\r\nIf-None-Match: \"abc\"\r\nX-Request-Id: 1\r\ntracestate: a=b,c=d\r\n")),
        ("twice", seed("traceparent: a\r\nTRACESTATE:\tb \r\ntracestate: b\r\nif-none-match:*\r\n")),
    ]
}

fuzz_target!(init: write_seeds(seeds), |input: &[u8]| {
    let [known, script, ..] = split(input)[..] else { return };
    let mut sent = known.to_vec();
    edit(&mut sent, script);
    let Some(known_head) = read(known) else { return };
    if let (Some(known), Some(of_sent)) = (split_head(known), split_head(&sent))
        && known.0 == of_sent.0
    {
        let sent = read(&sent).expect("the fast path answers what hyper refuses");
        compare(&known_head, &sent, &of_sent.1);
    }
    if let Some(sent_head) = read(&sent)
        && let (Some(known), Some(of_sent)) = (split_parsed_head(&known_head), split_parsed_head(&sent_head))
        && known.0 == of_sent.0
    {
        compare(&known_head, &sent_head, &of_sent.1);
    }
});
