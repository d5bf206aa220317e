//! What upstream says of a response: header fields, an empty line, and a body. Nothing that a simple reader finds to be
//! forbidden may be stored, and what is malformed is never fresh.

#![no_main]

use std::time::{Duration, SystemTime};

use http::{HeaderMap, HeaderValue};
use libfuzzer_sys::fuzz_target;
use serde_json::Value;
use workspace_gateway::testing::cache::response::{Lifetime, ResponseTimes, check, forbids_storing, freshness_info};
use workspace_gateway::testing::catalogue::BodyCheck;
use workspace_gateway::testing::clock::Clock;
use workspace_gateway_fuzz::{read_response, within_memory};

const MEMORY: usize = 1 << 20;
const SECOND: Duration = Duration::from_secs(1);
/// The largest number of seconds that is read.
const LONGEST: Duration = Duration::from_secs(u32::MAX as u64);
/// Settings, unlike anything in a response.
const CONFIGURED: Lifetime =
    Lifetime { ttl: Duration::from_millis(1), stale_while_revalidate: SECOND, stale_if_error: SECOND };

/// Whether a directive is there, for a reader that knows no quoted strings. `None` if there are some, or other odd text.
fn has(headers: &HeaderMap, name: &str) -> Option<bool> {
    let values: Option<Vec<&str>> = headers.get_all("cache-control").iter().map(|it| it.to_str().ok()).collect();
    let values = values.filter(|values| !values.iter().any(|value| value.contains('"')))?;
    let mut parts = values.iter().flat_map(|value| value.split(','));
    Some(parts.any(|part| part.split('=').next().is_some_and(|it| it.trim().eq_ignore_ascii_case(name))))
}

fn check_headers(headers: &HeaderMap) {
    for name in ["no-store", "private", "no-cache"] {
        assert!(has(headers, name) != Some(true) || forbids_storing(headers), "{name}: {headers:?}");
    }
    let sent = Clock::System.now();
    let times = ResponseTimes { sent, received: sent + SECOND, date: SystemTime::UNIX_EPOCH + LONGEST };
    let info = freshness_info(headers, times, CONFIGURED);
    let Lifetime { ttl, stale_while_revalidate, stale_if_error } = info.lifetime;
    for window in [stale_while_revalidate, stale_if_error] {
        assert!(window <= LONGEST, "{info:?}");
    }
    let is_strict = ["must-revalidate", "proxy-revalidate", "s-maxage"].iter().any(|it| has(headers, it) == Some(true));
    assert!(!is_strict || (stale_while_revalidate + stale_if_error).is_zero(), "{headers:?}: {info:?}");
    let says = |name| has(headers, name) != Some(false) || headers.contains_key("expires");
    assert!(ttl == CONFIGURED.ttl || ttl.is_zero() || says("max-age") || says("s-maxage"), "{headers:?}: {info:?}");
    for later in [Duration::ZERO, SECOND, LONGEST] {
        let _ = (info.freshness(sent + later), info.seconds_left(sent + later));
    }
    // An unreadable directive beside the others makes the response stale.
    let mut with_another = headers.clone();
    with_another.append("cache-control", HeaderValue::from_static("="));
    assert!(forbids_storing(&with_another) && freshness_info(&with_another, times, CONFIGURED).lifetime.ttl.is_zero());
}

fn check_body(body: &[u8]) {
    let products = BodyCheck::Field("products".into());
    let is_list = within_memory(MEMORY, || check(body, &products).is_ok());
    let Ok(value) = serde_json::from_slice::<Value>(body) else {
        // Its parser allows 127 levels and these numbers only.
        let is_deep = body.iter().filter(|byte| b"[{".contains(byte)).count() > 126;
        let has_number = body.iter().any(u8::is_ascii_digit);
        assert!(!is_list || is_deep || has_number, "not JSON");
        return;
    };
    let is_there = |name: &str| value.get(name).is_some_and(|it| !it.is_null());
    // Of two fields with one name, the other parser takes the last one.
    assert!(!is_list || is_there("products") && !is_there("error_code"), "{value}");
}

fuzz_target!(|input: &[u8]| {
    let (headers, body) = read_response(input);
    check_headers(&headers);
    check_body(body);
});
