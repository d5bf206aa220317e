//! Two heads, of which the fast path takes the second one for the first one. hyper and the full path must read them as the
//! same request, but for the values of the varying fields, and these as the fast path does. hyper and the fast path must
//! find the same end of a head.
//!
//! The input has two parts: a head, and edits that make the second head of it.

#![no_main]

use std::sync::LazyLock;

use http::request::Parts;
use http::{HeaderName, HeaderValue, Request, Version};
use libfuzzer_sys::fuzz_target;
use workspace_gateway::testing::config::Config;
use workspace_gateway::testing::fast_path::{HeadScanner, is_repeatable, split_head, split_parsed_head};
use workspace_gateway::testing::request::validate;
use workspace_gateway_fuzz::{REGION, Reading, edit, join, read_request, split, write_seeds};

static CONFIG: LazyLock<Config> = LazyLock::new(|| Config::from_layers("f", REGION, &[]).unwrap());

/// Reads bytes as the connection does, and asserts that hyper and the fast path find the same end of the head. `None` if hyper
/// reads no request of HTTP/1.1 without a body that ends with the bytes.
fn read(bytes: &[u8]) -> Option<Parts> {
    let reading = read_request(bytes);
    // Before a request there may be blank lines, which hyper skips. The gateway does not look for a head after these.
    if !bytes.starts_with(b"GET ") {
        return None;
    }
    let end = HeadScanner::default().end(bytes);
    match reading {
        Reading::Request { head, has_body: false, rest } => {
            assert_eq!(end, Some(bytes.len() - rest), "where the head ends");
            (rest == 0 && head.version == Version::HTTP_11).then_some(*head)
        }
        Reading::Request { has_body: true, .. } | Reading::Fails => None,
        Reading::Waits => {
            assert_eq!(end, None, "hyper waits for the end of the head");
            None
        }
    }
}

/// The lines of a head as the fields of HTTP/2, where a value may have blanks around it.
fn read_as_http2(head: &[u8]) -> Option<Parts> {
    let mut lines = head.split(|byte| *byte == b'\n').map(|line| line.strip_suffix(b"\r").unwrap_or(line));
    let target = lines.next()?.split(|byte| *byte == b' ').nth(1)?;
    let mut request = Request::builder().uri(target).version(Version::HTTP_2);
    for line in lines.filter(|line| !line.is_empty()) {
        let (name, value) = line.split_at(line.iter().position(|byte| *byte == b':')?);
        let (name, value) = (HeaderName::from_bytes(name).ok()?, HeaderValue::from_bytes(&value[1..]).ok()?);
        request.headers_mut()?.append(name, value);
    }
    Some(request.body(()).ok()?.into_parts().0)
}

/// The head as the full path takes it. `None` if it rejects the request, or the fast path must not remember it.
fn accepted(mut head: Parts) -> Option<Parts> {
    validate::normalize(&mut head).ok()?;
    validate::check(&head, &CONFIG.catalogue).ok()?;
    is_repeatable(&head).then_some(head)
}

/// Whether the fast path looks at these bytes at all.
fn is_looked_at(bytes: &[u8]) -> bool {
    bytes.starts_with(b"GET ") && bytes.ends_with(b"\r\n\r\n")
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
    let (known_head, sent_head) = (read(known), read(&sent));
    if is_looked_at(known)
        && is_looked_at(&sent)
        && let Some(known_head) = known_head.and_then(accepted)
        && let (Some(known), Some(of_sent)) = (split_head(known), split_head(&sent))
        && known.0 == of_sent.0
    {
        let sent = sent_head.and_then(accepted).expect("the fast path answers what the full path refuses");
        compare(&known_head, &sent, &of_sent.1);
    }
    if let (Some(known), Some(sent)) = (read_as_http2(known), read_as_http2(&sent))
        && let (Some(split_known), Some(of_sent)) = (split_parsed_head(&known), split_parsed_head(&sent))
        && split_known.0 == of_sent.0
        && let Some(known) = accepted(known.clone())
    {
        let accepted = accepted(sent.clone()).expect("the fast path answers what the full path refuses");
        compare(&known, &accepted, &of_sent.1);
    }
});
