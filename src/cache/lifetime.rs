//! Reads what the headers of a response say about its age and lifetime (RFC 9111 §4.2 and §5, RFC 5861). The
//! configuration applies only where upstream says nothing. Pure.
//!
//! A value that cannot be parsed makes a response stale, never fresh. If upstream sends no freshness lifetime, two
//! rules differ from the RFCs. First, the configured `stale_while_revalidate` applies. Second, `Date` is not compared
//! with the clock of this machine: the clock of a sidecar may be wrong, and this alone must not disable the cache.

use std::time::{Duration, Instant, SystemTime};

use http::header::{AGE, DATE, EXPIRES};
use http::{HeaderMap, HeaderName};

use super::freshness::{FreshnessInfo, Lifetime};
use crate::request::directives::{self, Directives};

/// The resolution of dates in headers.
const RESOLUTION: Duration = Duration::from_secs(1);

#[derive(Clone, Copy, Debug)]
pub struct ResponseTimes {
    /// When the request was sent.
    pub sent: Instant,
    /// When the response was complete.
    pub received: Instant,
    /// The wall-clock time of `received`.
    pub date: SystemTime,
}

/// Whether upstream forbids to share a response or to use it again without validation. True if the directives cannot be
/// parsed.
pub fn forbids_storing(headers: &HeaderMap) -> bool {
    reserved_fields(headers).is_none_or(|fields| !fields.is_empty())
}

/// The fields that `private` or `no-cache` names (RFC 9111 §5.2.2.4 and §5.2.2.7). Without these fields, the response
/// may be stored for its own caller only. `None` if it must not be stored at all, or if the directives cannot be
/// parsed.
pub(crate) fn reserved_fields(headers: &HeaderMap) -> Option<Vec<HeaderName>> {
    let directives = Directives::read(headers).ok()?;
    if directives.has("no-store") {
        return None;
    }
    let mut fields = Vec::new();
    for argument in ["private", "no-cache"].iter().flat_map(|name| directives.arguments(name)) {
        let before = fields.len();
        for name in argument?.split(',').map(str::trim).filter(|name| !name.is_empty()) {
            fields.push(HeaderName::from_bytes(name.as_bytes()).ok()?);
        }
        // A directive that names no field covers the whole response.
        if fields.len() == before {
            return None;
        }
    }
    Some(fields)
}

/// The value of `Age`, or zero if the field is absent. `None` if it cannot be parsed.
pub fn age(headers: &HeaderMap) -> Option<Duration> {
    match headers.contains_key(AGE) {
        true => directives::seconds(single(headers, &AGE)?),
        false => Some(Duration::ZERO),
    }
}

/// The freshness information of a response that may be stored.
pub fn freshness_info(headers: &HeaderMap, times: ResponseTimes, configured: Lifetime) -> FreshnessInfo {
    let given_age = age(headers).unwrap_or_default();
    let unreadable = FreshnessInfo { sent: times.sent, initial_age: given_age, lifetime: Lifetime::default() };
    let Ok(directives) = Directives::read(headers) else { return unreadable };
    let explicit = explicit_ttl(headers, &directives, times.date);
    let initial_age = match explicit {
        Some(_) => given_age.max(apparent_age(headers, times)),
        None => given_age,
    };
    let window = |name, otherwise| match directives.seconds(name) {
        Ok(given) => given.unwrap_or(otherwise),
        Err(_) => Duration::ZERO,
    };
    // RFC 9111 §4.2.4: these directives forbid a stale response in all cases.
    let is_strict = ["must-revalidate", "proxy-revalidate", "s-maxage"].iter().any(|name| directives.has(name));
    let lifetime = if is_strict {
        Lifetime { ttl: explicit.unwrap_or(configured.ttl), ..Lifetime::default() }
    } else {
        let default_window = if explicit.is_none() { configured.stale_while_revalidate } else { Duration::ZERO };
        Lifetime {
            ttl: explicit.unwrap_or(configured.ttl),
            stale_while_revalidate: window("stale-while-revalidate", default_window),
            stale_if_error: window("stale-if-error", configured.stale_if_error),
        }
    };
    FreshnessInfo { sent: times.sent, initial_age, lifetime }
}

/// The freshness lifetime that upstream sends. `None` if it sends none. Zero if it cannot be parsed.
fn explicit_ttl(headers: &HeaderMap, directives: &Directives, received: SystemTime) -> Option<Duration> {
    for name in ["s-maxage", "max-age"] {
        match directives.seconds(name) {
            Ok(None) => {}
            Ok(Some(_)) if headers.contains_key(DATE) && date(headers, &DATE).is_none() => return Some(Duration::ZERO),
            Ok(Some(seconds)) => return Some(seconds),
            Err(_) => return Some(Duration::ZERO),
        }
    }
    if !headers.contains_key(EXPIRES) {
        return None;
    }
    let begins = if headers.contains_key(DATE) { date(headers, &DATE) } else { Some(received) };
    let span = date(headers, &EXPIRES).zip(begins).and_then(|(ends, begins)| ends.duration_since(begins).ok());
    Some(span.unwrap_or_default())
}

/// The apparent age by `Date`, which has a resolution of one second. The response delay is subtracted, because the age
/// is counted from the time of the request.
fn apparent_age(headers: &HeaderMap, times: ResponseTimes) -> Duration {
    let made = date(headers, &DATE).and_then(|made| times.date.duration_since(made + RESOLUTION).ok());
    made.unwrap_or_default().saturating_sub(times.received.saturating_duration_since(times.sent))
}

fn date(headers: &HeaderMap, name: &HeaderName) -> Option<SystemTime> {
    httpdate::parse_http_date(single(headers, name)?).ok()
}

/// The value of a header that must occur exactly once.
fn single<'h>(headers: &'h HeaderMap, name: &HeaderName) -> Option<&'h str> {
    let mut values = headers.get_all(name).iter();
    let value = values.next()?.to_str().ok()?;
    values.next().is_none().then_some(value)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::Clock;

    const SECOND: Duration = Duration::from_secs(1);
    const CONFIGURED: Lifetime = Lifetime {
        ttl: Duration::from_secs(300),
        stale_while_revalidate: Duration::from_secs(600),
        stale_if_error: Duration::from_secs(3600),
    };
    /// When the responses are received. The requests were sent two seconds earlier.
    const RECEIVED: &str = "Sun, 06 Nov 1994 08:49:37 GMT";

    fn headers(fields: &[(&str, &str)]) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for (name, value) in fields {
            headers.append(HeaderName::from_bytes(name.as_bytes()).unwrap(), value.parse().unwrap());
        }
        headers
    }

    /// The initial age, the ttl and the two stale windows, in seconds.
    fn info(fields: &[(&str, &str)]) -> [u64; 4] {
        let sent = Clock::System.now();
        let date = httpdate::parse_http_date(RECEIVED).unwrap();
        let info = super::freshness_info(
            &headers(fields),
            ResponseTimes { sent, received: sent + 2 * SECOND, date },
            CONFIGURED,
        );
        let Lifetime { ttl, stale_while_revalidate, stale_if_error } = info.lifetime;
        [info.initial_age, ttl, stale_while_revalidate, stale_if_error].map(|span| span.as_secs())
    }

    #[test]
    fn the_configuration_applies_where_upstream_says_nothing() {
        assert_eq!(info(&[]), [0, 300, 600, 3600]);
        assert_eq!(info(&[("age", "7"), ("cache-control", "public")]), [7, 300, 600, 3600]);
        // A wrong clock changes nothing in this case.
        assert_eq!(info(&[("date", "Sun, 06 Nov 1994 07:49:37 GMT")]), [0, 300, 600, 3600]);
    }

    #[test]
    fn the_headers_of_upstream_take_precedence() {
        for (control, expected) in [
            ("max-age=60", [0, 60, 0, 3600]),
            ("max-age=60, s-maxage=5", [0, 5, 0, 0]),
            ("max-age=60, stale-while-revalidate=7, stale-if-error=9", [0, 60, 7, 9]),
            ("stale-while-revalidate=7, stale-if-error=9", [0, 300, 7, 9]),
            ("max-age=60, stale-if-error=9, must-revalidate", [0, 60, 0, 0]),
            ("must-revalidate", [0, 300, 0, 0]),
            ("proxy-revalidate, max-age=1", [0, 1, 0, 0]),
            ("max-age=0", [0, 0, 0, 3600]),
        ] {
            assert_eq!(info(&[("cache-control", control)]), expected, "{control}");
        }
    }

    #[test]
    fn values_that_cannot_be_parsed_make_a_response_stale() {
        for (control, expected) in [
            ("max-age=x", [0, 0, 0, 3600]),
            ("max-age", [0, 0, 0, 3600]),
            ("max-age=1, max-age=2", [0, 0, 0, 3600]),
            ("s-maxage=-1, max-age=60", [0, 0, 0, 0]),
            ("max-age=60, stale-while-revalidate=x, stale-if-error=1.5", [0, 60, 0, 0]),
            ("max-age=60, a=\"", [0, 0, 0, 0]),
        ] {
            assert_eq!(info(&[("cache-control", control)]), expected, "{control}");
        }
        assert_eq!(info(&[("cache-control", "max-age=60"), ("date", "yesterday")]), [0, 0, 0, 3600]);
    }

    #[test]
    fn expires_is_counted_from_date() {
        let in_a_minute = ("expires", "Sun, 06 Nov 1994 08:50:37 GMT");
        assert_eq!(info(&[in_a_minute]), [0, 60, 0, 3600]);
        assert_eq!(info(&[in_a_minute, ("date", "Sun, 06 Nov 1994 08:49:17 GMT")]), [17, 80, 0, 3600]);
        assert_eq!(info(&[in_a_minute, ("cache-control", "max-age=5")]), [0, 5, 0, 3600]);
        assert_eq!(info(&[in_a_minute, ("date", "Sun, 06 Nov 1994 09:49:37 GMT")]), [0, 0, 0, 3600]);
        for wrong in ["0", "-1", "soon", ""] {
            assert_eq!(info(&[("expires", wrong)]), [0, 0, 0, 3600], "{wrong}");
        }
        assert_eq!(info(&[in_a_minute, in_a_minute]), [0, 0, 0, 3600]);
        assert_eq!(info(&[in_a_minute, ("date", "x")]), [0, 0, 0, 3600]);
    }

    #[test]
    fn the_larger_age_by_age_or_date_counts_if_upstream_sends_a_lifetime() {
        let date = ("date", "Sun, 06 Nov 1994 08:49:07 GMT");
        let control = ("cache-control", "max-age=60");
        assert_eq!(info(&[control, date]), [27, 60, 0, 3600]);
        assert_eq!(info(&[control, date, ("age", "40")]), [40, 60, 0, 3600]);
        assert_eq!(info(&[control, ("date", "Sun, 06 Nov 1994 09:49:07 GMT")]), [0, 60, 0, 3600]);
    }

    #[test]
    fn an_age_is_one_number_in_one_field() {
        let age = |fields: &[(&str, &str)]| super::age(&headers(fields));
        assert_eq!((age(&[]), age(&[("age", "7")])), (Some(Duration::ZERO), Some(7 * SECOND)));
        for wrong in ["+7", "", "1, 2", "-1", "7s"] {
            assert_eq!(age(&[("age", wrong)]), None, "{wrong}");
        }
        assert_eq!(age(&[("age", "1"), ("age", "1")]), None);
    }

    #[test]
    fn storing_is_forbidden_by_directives_and_by_what_cannot_be_parsed() {
        for control in [
            "no-store",
            "private",
            "No-Cache",
            "max-age=60, private=\"set-cookie\"",
            "no-cache=\"x\"",
            "\"",
            "max-age=60, a=\"",
        ] {
            assert!(forbids_storing(&headers(&[("cache-control", control)])), "{control}");
        }
        assert!(forbids_storing(&headers(&[("pragma", "no-cache")])));
        for fields in [&[("cache-control", "max-age=60, must-revalidate")][..], &[("expires", "0")], &[]] {
            assert!(!forbids_storing(&headers(fields)), "{fields:?}");
        }
    }

    #[test]
    fn private_and_no_cache_name_the_reserved_fields() {
        let names = |control: &str| {
            let fields = reserved_fields(&headers(&[("cache-control", control)]))?;
            Some(fields.iter().map(ToString::to_string).collect::<Vec<_>>().join(" "))
        };
        for (control, expected) in [
            ("max-age=60", Some("")),
            ("private=\"X-One, x-two\", no-cache=x-three", Some("x-one x-two x-three")),
            ("private=\",x-one,\"", Some("x-one")),
            ("private", None),
            ("no-cache", None),
            ("private=\"\"", None),
            ("private=\" , \"", None),
            ("private=\"x one\"", None),
            ("private=\"x-one\", private", None),
            ("private=\"x-one\", no-store", None),
            ("no-cache=\"x-one", None),
        ] {
            assert_eq!(names(control).as_deref(), expected, "{control}");
        }
        assert_eq!(reserved_fields(&headers(&[("pragma", "no-cache")])), None);
    }
}
