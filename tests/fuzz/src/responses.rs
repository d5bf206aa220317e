//! What upstream says of a response: header fields, an empty line, and a body. Nothing that a simple reader finds to be
//! forbidden may be stored, what is malformed is never fresh, and `Retry-After` and `Age` are what a simple reader finds.

#![no_main]

use std::time::{Duration, SystemTime};

use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, Response};
use libfuzzer_sys::fuzz_target;
use serde_json::Value;
use workspace_gateway::testing::cache::response::{
    Audience, Lifetime, ResponseTimes, VaryRole, Verdict, age, check, classify, forbids_storing, freshness_info,
    has_error_code, retry_after, unbounded_retry_after,
};
use workspace_gateway::testing::catalogue::{BodyCheck, is_services_own};
use workspace_gateway::testing::clock::Clock;
use workspace_gateway_fuzz::{has_directive, read_response, within_memory};

const MEMORY: usize = 1 << 20;
const SECOND: Duration = Duration::from_secs(1);
/// The largest number of seconds that is read.
const LONGEST: Duration = Duration::from_secs(u32::MAX as u64);
/// Settings, unlike anything in a response.
const CONFIGURED: Lifetime =
    Lifetime { ttl: Duration::from_millis(1), stale_while_revalidate: SECOND, stale_if_error: SECOND };

fn check_headers(headers: &HeaderMap) {
    for name in ["no-store", "private", "no-cache"] {
        assert!(has_directive(headers, name) != Some(true) || forbids_storing(headers), "{name}: {headers:?}");
    }
    let sent = Clock::System.now();
    let times = ResponseTimes { sent, received: sent + SECOND, date: SystemTime::UNIX_EPOCH + LONGEST };
    let info = freshness_info(headers, times, CONFIGURED);
    let Lifetime { ttl, stale_while_revalidate, stale_if_error } = info.lifetime;
    for window in [stale_while_revalidate, stale_if_error] {
        assert!(window <= LONGEST, "{info:?}");
    }
    let is_strict =
        ["must-revalidate", "proxy-revalidate", "s-maxage"].iter().any(|it| has_directive(headers, it) == Some(true));
    assert!(!is_strict || (stale_while_revalidate + stale_if_error).is_zero(), "{headers:?}: {info:?}");
    let says = |name| has_directive(headers, name) != Some(false) || headers.contains_key("expires");
    assert!(ttl == CONFIGURED.ttl || ttl.is_zero() || says("max-age") || says("s-maxage"), "{headers:?}: {info:?}");
    for later in [Duration::ZERO, SECOND, LONGEST] {
        let _ = (info.freshness(sent + later), info.seconds_left(sent + later));
    }
    // An unreadable directive beside the others makes the response stale.
    let mut with_another = headers.clone();
    with_another.append("cache-control", HeaderValue::from_static("="));
    assert!(forbids_storing(&with_another) && freshness_info(&with_another, times, CONFIGURED).lifetime.ttl.is_zero());
}

/// The text of a field that is there once.
fn single<'h>(headers: &'h HeaderMap, name: &str) -> Option<&'h str> {
    let all: Vec<_> = headers.get_all(name).iter().collect();
    if let [one] = all[..] { one.to_str().ok() } else { None }
}

/// A number of seconds. One that has more than 32 bits is the largest that has not.
fn seconds(text: &str) -> Option<Duration> {
    let digits = text.trim_start_matches('0');
    let is_number = !text.is_empty() && text.bytes().all(|digit| digit.is_ascii_digit());
    let number = if digits.is_empty() { 0 } else { digits.get(..11).unwrap_or(digits).parse().ok()? };
    is_number.then(|| Duration::from_secs(number).min(LONGEST))
}

fn check_times(headers: &HeaderMap) {
    let now = SystemTime::UNIX_EPOCH + LONGEST / 2;
    let text = single(headers, "retry-after");
    let until = text.and_then(|text| httpdate::parse_http_date(text).ok());
    let left = until.map(|until| until.duration_since(now).unwrap_or_default());
    let expected = text.and_then(seconds).or(left);
    assert_eq!(unbounded_retry_after(headers, now), expected, "{text:?}");
    assert_eq!(retry_after(headers, now), expected.map(|span| span.min(60 * SECOND)), "{text:?}");
    let given =
        if headers.contains_key("age") { single(headers, "age").and_then(seconds) } else { Some(Duration::ZERO) };
    assert_eq!(age(headers), given);
}

/// Another caller gets a response only if nothing in it is against that.
fn check_verdict(headers: &HeaderMap, body: &[u8]) {
    let role = |name: &HeaderName| match name.as_str() {
        "x-auth-token" => VaryRole::Credential,
        "x-language" => VaryRole::Fixed,
        _ => VaryRole::Free,
    };
    let products = BodyCheck::Field("products".into());
    let varies: Vec<Vec<u8>> = headers.get_all("vary").iter().map(|it| it.as_bytes().to_ascii_lowercase()).collect();
    let names = varies.iter().flat_map(|value| value.split(|byte| *byte == b',')).map(<[u8]>::trim_ascii);
    let names: Vec<&[u8]> = names.filter(|name| !name.is_empty()).collect();
    for (status, is_private) in [(200, false), (200, true), (404, false), (401, false), (429, false), (503, false)] {
        let mut response = Response::new(Bytes::copy_from_slice(body));
        *response.status_mut() = status.try_into().unwrap();
        *response.headers_mut() = headers.clone();
        let verdict = classify(&response, &products, is_private, role);
        let is_for_all = match verdict {
            Verdict::Proof(audience) => {
                assert!(status == 200 && check(body, &products).is_ok());
                let Ok(audience) = audience else { continue };
                assert!(names.iter().all(|name| [&b"x-auth-token"[..], b"x-language"].contains(name)), "{names:?}");
                assert!(is_private || audience == Audience::Caller || !forbids_storing(headers));
                audience == Audience::All
            }
            Verdict::InvalidBody(_) => {
                assert!(status == 200 && check(body, &products).is_err());
                false
            }
            Verdict::Negative => {
                assert!(status == 404 && !forbids_storing(headers));
                true
            }
            Verdict::Denial => {
                assert_eq!(status, 401);
                false
            }
            Verdict::Personal | Verdict::Throttled | Verdict::Failure => {
                assert!(status >= 404);
                false
            }
        };
        assert!(!is_for_all || has_directive(headers, "no-store") != Some(true) && age(headers).is_some());
        assert!(!is_for_all || !names.contains(&&b"x-auth-token"[..]));
    }
}

/// Whether the text of a name may be there more than once, or in another spelling.
fn has_twice(body: &[u8]) -> bool {
    let count = |part: &[u8]| body.windows(part.len()).filter(|window| window == &part).count();
    count(b"error_code") > 1 || body.contains(&b'\\')
}

fn check_body(body: &[u8]) {
    let products = BodyCheck::Field("products".into());
    let is_list = within_memory(MEMORY, || check(body, &products).is_ok());
    let is_json = within_memory(MEMORY, || check(body, &BodyCheck::Json).is_ok());
    let is_error = within_memory(MEMORY, || has_error_code(body));
    assert!(check(body, &BodyCheck::None).is_ok() && (is_json || !is_list) && !(is_error && is_json));
    let Ok(value) = serde_json::from_slice::<Value>(body) else {
        // Its parser allows 127 levels and these numbers only.
        let is_deep = body.iter().filter(|byte| b"[{".contains(byte)).count() > 126;
        let has_number = body.iter().any(u8::is_ascii_digit);
        // A refusal need not be UTF-8 to be one.
        let is_text = std::str::from_utf8(body).is_ok();
        let is_own = is_services_own(body);
        assert!(!(is_json || is_error && is_text || is_own) || is_deep || has_number, "not JSON");
        return;
    };
    // The API gateway's own codes must not count as the service's.
    let code = value.get("error_code").and_then(Value::as_str).unwrap_or_default();
    let (service, number) = code.split_once('.').unwrap_or_default();
    let is_service = service.bytes().all(|byte| byte.is_ascii_uppercase()) && !service.starts_with("APIG");
    assert!(!is_services_own(body) || is_service && !service.is_empty() && !number.is_empty(), "{code}");
    let is_there = |name: &str| value.get(name).is_some_and(|it| !it.is_null());
    assert!(is_json || is_there("error_code") || has_twice(body), "{value}");
    assert_eq!(is_error, is_there("error_code") || is_error && has_twice(body), "{value}");
    // Of two fields with one name, the other parser takes the last one.
    assert!(!is_list || is_there("products") && !is_there("error_code"), "{value}");
}

fuzz_target!(|input: &[u8]| {
    let (headers, body) = read_response(input);
    check_headers(&headers);
    check_times(&headers);
    check_verdict(&headers, body);
    check_body(body);
});
