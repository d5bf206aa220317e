//! What upstream says of its limits: header fields, an empty line, and a body. A limit that is written again as a field of the
//! API gateway is read as the same one.

#![no_main]

use std::time::Duration;

use http::{HeaderMap, HeaderName, HeaderValue};
use libfuzzer_sys::fuzz_target;
use workspace_gateway::testing::upstream::quota::{ToldLimit, told_limits};
use workspace_gateway_fuzz::{read_response, within_memory};

const MAX_LIMITS: usize = 8;
/// A unit of the gateway's own field is at most a day, and its number has 32 bits.
const LONGEST: Duration = Duration::from_secs(u32::MAX as u64 * 24 * 60 * 60);
/// Lists of the longest fields and bodies that are read at all (4 KiB).
const MEMORY: usize = 2 << 20;

fn check(limits: &[ToldLimit], body: &[u8]) {
    assert!(limits.len() <= MAX_LIMITS, "{limits:?}");
    assert!(limits.is_sorted_by_key(|limit| !limit.has_refused), "refusals come first: {limits:?}");
    for limit in limits {
        assert!(!limit.has_refused || !body.is_empty(), "{limit:?}");
        if let Some(quota) = limit.quota {
            assert!(quota.calls > 0 && !quota.window.is_zero() && quota.window <= LONGEST, "{limit:?}");
            assert_eq!(quota.window.subsec_nanos(), 0, "{limit:?}");
        }
        assert!(limit.reset.is_none_or(|reset| reset <= Duration::from_secs(u32::MAX.into())), "{limit:?}");
        assert!(!limit.has_refused || limit.reset.is_none(), "{limit:?}");
    }
}

/// The limit as a field of the API gateway. `None` if that cannot say it.
fn written(limit: &ToldLimit) -> Option<HeaderMap> {
    let policy: &str = limit.policy?.into();
    let mut text = limit.remaining.map(|remaining| format!("remain:{remaining},")).unwrap_or_default();
    let quota = limit.quota?;
    let seconds = u32::try_from(quota.window.as_secs()).ok()?;
    text += &format!("limit:{},time:{seconds} second", quota.calls);
    let name = HeaderName::try_from(format!("x-apig-ratelimit-{policy}")).unwrap();
    Some(HeaderMap::from_iter([(name, HeaderValue::try_from(text).unwrap())]))
}

fuzz_target!(|input: &[u8]| {
    let (headers, body) = read_response(input);
    let limits = within_memory(MEMORY, || told_limits(&headers, body));
    check(&limits, body);
    assert_eq!(limits, told_limits(&headers, body));
    for limit in &limits {
        let again = written(limit).map(|headers| told_limits(&headers, b""));
        let same = ToldLimit { has_refused: false, reset: None, ..*limit };
        assert!(again.is_none_or(|again| again == [same]), "{limit:?}");
    }
    // Without a body there is no refusal.
    let without = told_limits(&headers, b"");
    check(&without, b"");
    assert!(without.iter().all(|limit| !limit.has_refused));
});
