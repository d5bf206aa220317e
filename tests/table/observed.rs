//! What a response shows: the source of its body, and whether its headers have the same source.

use super::behaviours::{BEFORE, Behaviour, NEW, NEXT, OLD};
use super::rules::{Body, Response};
use crate::support::wire::WireResponse;
use crate::support::without_key;

/// The header fields of a 304 (RFC 9110 §15.4.5), and those of every response here.
const NOT_MODIFIED_HEADERS: [&str; 10] = [
    "age",
    "cache-control",
    "cache-status",
    "connection",
    "content-location",
    "date",
    "etag",
    "expires",
    "vary",
    "x-request-id",
];

/// What a response shows. `origin` names the response whose headers it may have, if it is upstream's own.
pub(super) fn observe(
    wire: &WireResponse,
    behaviour: &Behaviour,
    origin: &str,
    calls: usize,
) -> Result<Response, String> {
    let wrong = |what: &str| Err(format!("{what}: {wire:?}"));
    let Some(id) = wire.header("x-request-id")? else { return wrong("no X-Request-Id") };
    let is_new_id = id.len() == 32 && id.bytes().all(|byte| byte.is_ascii_hexdigit());
    if !is_new_id && id != format!("id-{origin}") {
        return wrong("the X-Request-Id of another response");
    }
    let session = wire.header("set-cookie")?;
    let is_from_upstream = session.is_some();
    if session.is_some_and(|session| session != format!("session={origin}")) {
        return wrong("the Set-Cookie of another response");
    }
    if wire.header("x-ratelimit-remaining")? != is_from_upstream.then_some(origin) {
        return wrong("only some of the headers of upstream's response");
    }
    // A 304 has only the fields that must be repeated, and its own request id.
    let has_more = wire.headers.iter().any(|(name, _)| !NOT_MODIFIED_HEADERS.contains(&name.as_str()));
    if wire.status == 304 && !is_from_upstream && (has_more || wire.header("etag")?.is_none()) {
        return wrong("wrong header fields of a 304");
    }
    if is_from_upstream == is_new_id && (is_from_upstream || wire.status != 304) {
        return wrong("not the X-Request-Id of this response");
    }
    let body = wire.body.as_slice();
    let body = match body {
        [] => Body::Empty,
        _ if !wire.is_complete => Body::Cut,
        body if body == OLD.as_bytes() => Body::Old,
        body if body == NEXT.as_bytes() => Body::Next,
        body if body == BEFORE.as_bytes() => Body::Before,
        body if body == behaviour.body => Body::New,
        body => Body::Own(own_reason(body, id).ok_or_else(|| format!("unknown body: {wire:?}"))?),
    };
    if body == Body::Cut && !behaviour.body.starts_with(&wire.body) {
        return wrong("not the beginning of upstream's body");
    }
    if !wire.is_complete && body == Body::Empty {
        return wrong("no body");
    }
    let own = matches!(body, Body::Own(_));
    if own && wire.header("content-type")? != Some("application/json") {
        return wrong("wrong Content-Type");
    }
    let cache_status = match wire.header("cache-status")? {
        None => String::new(),
        Some(text) => {
            without_key(text.strip_prefix("workspace-gateway; ").ok_or("the Cache-Status of another cache")?).0
        }
    };
    let age = wire.header("age")?.map(|age| age.parse().map_err(|_| "a malformed Age")).transpose()?;
    // A new error may have an `Age` of 0.
    let is_list = [OLD, NEW, NEXT].iter().any(|list| list.as_bytes() == wire.body) || wire.status == 304;
    let has_age = cache_status.contains("hit") || (is_list && !cache_status.contains("bypass"));
    if !has_age && age.is_some_and(|age: u64| age != 0) {
        return wrong("an unexpected Age");
    }
    let age = age.filter(|_| has_age);
    Ok(Response { status: wire.status, body, cache_status, age, is_from_upstream, calls })
}

/// The reason of an error of the gateway.
fn own_reason(body: &[u8], id: &str) -> Option<&'static str> {
    let json: serde_json::Value = serde_json::from_slice(body).ok()?;
    let message = json["error_msg"].as_str()?.strip_prefix("workspace-gateway: ")?;
    let reasons = [
        ("cannot connect", "connect"),
        ("TLS handshake failed", "tls"),
        ("no response header in time", "first-byte"),
        ("no complete response in time", "timeout"),
        ("no data in either direction for too long", "idle"),
        ("the response is incomplete or malformed", "broken"),
        ("the response header is too large", "broken"),
        ("only-if-cached", "only-if-cached"),
        ("upstream refused the request with 401", "refusal-incomplete"),
    ];
    let (_, reason) = reasons.into_iter().find(|(text, _)| message.contains(text))?;
    let code = if reason == "refusal-incomplete" { "APIGW.0301" } else { "APIGW.0201" };
    (json["error_code"] == code && json["request_id"] == id).then_some(reason)
}
