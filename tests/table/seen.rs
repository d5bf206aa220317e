//! What an answer shows: whose bytes it is made of, and whether its headers go with them.

use super::behaviours::{BEFORE, Behaviour, NEW, NEXT, OLD};
use super::rules::{Answer, Body};
use crate::support::wire::Answered;
use crate::support::without_key;

/// What a 304 has to say (RFC 9110 §15.4.5), and what every answer here has.
const OF_NOT_MODIFIED: [&str; 10] = [
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

/// What an answer shows. `of`: whose headers it may have, if it is upstream's own.
pub(super) fn seen(answered: &Answered, behaviour: &Behaviour, of: &str, calls: usize) -> Result<Answer, String> {
    let wrong = |what: &str| Err(format!("{what}: {answered:?}"));
    let Some(id) = answered.header("x-request-id")? else { return wrong("no X-Request-Id") };
    let is_new_id = id.len() == 32 && id.bytes().all(|byte| byte.is_ascii_hexdigit());
    if !is_new_id && id != format!("id-{of}") {
        return wrong("the X-Request-Id of another answer");
    }
    let session = answered.header("set-cookie")?;
    let is_upstreams = session.is_some();
    if session.is_some_and(|session| session != format!("session={of}")) {
        return wrong("the cookie of another answer");
    }
    if answered.header("x-ratelimit-remaining")? != is_upstreams.then_some(of) {
        return wrong("some headers of upstream's answer, and some not");
    }
    // A 304 is made of an answer: it has nothing of it but what it has to say again, and its id.
    let has_more = answered.headers.iter().any(|(name, _)| !OF_NOT_MODIFIED.contains(&name.as_str()));
    if answered.status == 304 && !is_upstreams && (has_more || answered.header("etag")?.is_none()) {
        return wrong("not what a 304 says");
    }
    if is_upstreams == is_new_id && (is_upstreams || answered.status != 304) {
        return wrong("not the X-Request-Id of this answer");
    }
    let body = answered.body.as_slice();
    let body = match body {
        [] => Body::Empty,
        _ if !answered.is_whole => Body::Cut,
        body if body == OLD.as_bytes() => Body::Old,
        body if body == NEXT.as_bytes() => Body::Next,
        body if body == BEFORE.as_bytes() => Body::Before,
        body if body == behaviour.body => Body::New,
        body => Body::Own(own_word(body, id).ok_or_else(|| format!("whose body is it: {answered:?}"))?),
    };
    if body == Body::Cut && !behaviour.body.starts_with(&answered.body) {
        return wrong("not the beginning of upstream's body");
    }
    if !answered.is_whole && body == Body::Empty {
        return wrong("no body");
    }
    let own = matches!(body, Body::Own(_));
    if own && answered.header("content-type")? != Some("application/json") {
        return wrong("not said to be JSON");
    }
    let cache_status = match answered.header("cache-status")? {
        None => String::new(),
        Some(text) => without_key(text.strip_prefix("workspace-gateway; ").ok_or("another cache")?).0,
    };
    let age = answered.header("age")?.map(|age| age.parse().map_err(|_| "an Age that is none")).transpose()?;
    // An error that has just come is of no age, whether it says so or not.
    let is_list = [OLD, NEW, NEXT].iter().any(|list| list.as_bytes() == answered.body) || answered.status == 304;
    let has_age = cache_status.contains("hit") || (is_list && !cache_status.contains("bypass"));
    if !has_age && age.is_some_and(|age: u64| age != 0) {
        return wrong("an Age of its own");
    }
    let age = age.filter(|_| has_age);
    Ok(Answer { status: answered.status, body, cache_status, age, is_upstreams, calls })
}

/// The reason in the gateway's own words, if it is an error of its own in upstream's shape.
fn own_word(body: &[u8], id: &str) -> Option<&'static str> {
    let json: serde_json::Value = serde_json::from_slice(body).ok()?;
    let message = json["error_msg"].as_str()?.strip_prefix("workspace-gateway: ")?;
    let words = [
        ("cannot connect", "connect"),
        ("TLS failed", "tls"),
        ("no answer begun in time", "first-byte"),
        ("no whole answer in time", "timeout"),
        ("nothing moved for too long", "idle"),
        ("the answer broke off", "broken"),
        ("only-if-cached", "only-if-cached"),
        ("upstream refused the request with 401", "refusal-incomplete"),
    ];
    let (_, word) = words.into_iter().find(|(said, _)| message.contains(said))?;
    let code = if word == "refusal-incomplete" { "APIGW.0301" } else { "APIGW.0201" };
    (json["error_code"] == code && json["request_id"] == id).then_some(word)
}
