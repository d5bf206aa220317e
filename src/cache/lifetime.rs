//! What upstream itself says of an answer's life (RFC 9111 §4.2 and §5, RFC 5861). Whatever it says
//! counts, and the configuration where it says nothing. Pure.
//!
//! What can't be read makes an answer stale, never fresh. Two things differ from the RFCs, both of them
//! where upstream has given no lifetime of its own: only then are the configured windows for stale
//! answers open, and only then is `Date` not held against this machine's clock. (Clocks of sidecars are
//! wrong at times; that alone must not switch the cache off.)

use std::time::{Duration, Instant, SystemTime};

use http::header::{AGE, DATE, EXPIRES};
use http::{HeaderMap, HeaderName};

use super::freshness::{Life, Lifetime};
use crate::request::directives::{self, Directives};

/// Of dates in headers.
const RESOLUTION: Duration = Duration::from_secs(1);

/// When an answer was asked for, and when it had come.
#[derive(Clone, Copy, Debug)]
pub(crate) struct ResponseTimes {
    /// When the request was sent.
    pub sent: Instant,
    /// When the answer was there, whole.
    pub received: Instant,
    /// The same by the calendar.
    pub date: SystemTime,
}

/// Whether upstream says that an answer must not be kept to be shared, or not be given again without asking.
/// Directives that can't be read might.
pub(crate) fn forbids_keeping(headers: &HeaderMap) -> bool {
    reserved(headers).is_none_or(|fields| !fields.is_empty())
}

/// The fields that an answer's `private` or `no-cache` names (RFC 9111 §5.2.2.4 and §5.2.2.7): without them it can be
/// kept for the caller who asked alone. `None` if it must not be kept for anyone, or if what it says can't be read.
pub(crate) fn reserved(headers: &HeaderMap) -> Option<Vec<HeaderName>> {
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
        // Nothing named is the same as everything.
        if fields.len() == before {
            return None;
        }
    }
    Some(fields)
}

/// How old an answer was when it came: its `Age`, zero without one. `None` if that can't be read.
pub(crate) fn age(headers: &HeaderMap) -> Option<Duration> {
    match headers.contains_key(AGE) {
        true => directives::seconds(single(headers, &AGE)?),
        false => Some(Duration::ZERO),
    }
}

/// The life of an answer that may be kept.
pub(crate) fn life(headers: &HeaderMap, times: ResponseTimes, configured: Lifetime) -> Life {
    let given_age = age(headers).unwrap_or_default();
    let unreadable = Life { sent: times.sent, initial_age: given_age, lifetime: Lifetime::default() };
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
    // RFC 9111 §4.2.4: these forbid giving it stale, whatever comes.
    let is_strict = ["must-revalidate", "proxy-revalidate", "s-maxage"].iter().any(|name| directives.has(name));
    let lifetime = if is_strict {
        Lifetime { ttl: explicit.unwrap_or(configured.ttl), ..Lifetime::default() }
    } else {
        let no_word = if explicit.is_none() { configured.stale_while_revalidate } else { Duration::ZERO };
        Lifetime {
            ttl: explicit.unwrap_or(configured.ttl),
            stale_while_revalidate: window("stale-while-revalidate", no_word),
            stale_if_error: window("stale-if-error", configured.stale_if_error),
        }
    };
    Life { sent: times.sent, initial_age, lifetime }
}

/// How long upstream says that an answer is fresh, from age zero; `None` if it doesn't.
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

/// How old an answer looks by its `Date`, which doesn't tell parts of a second. What it took to come
/// counts already, for its age is counted from when it was asked for.
fn apparent_age(headers: &HeaderMap, times: ResponseTimes) -> Duration {
    let made = date(headers, &DATE).and_then(|made| times.date.duration_since(made + RESOLUTION).ok());
    made.unwrap_or_default().saturating_sub(times.received.saturating_duration_since(times.sent))
}

fn date(headers: &HeaderMap, name: &HeaderName) -> Option<SystemTime> {
    httpdate::parse_http_date(single(headers, name)?).ok()
}

/// The value of a header that is there once.
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
    /// When the answers here come; they were asked for two seconds before.
    const RECEIVED: &str = "Sun, 06 Nov 1994 08:49:37 GMT";

    fn headers(fields: &[(&str, &str)]) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for (name, value) in fields {
            headers.append(HeaderName::from_bytes(name.as_bytes()).unwrap(), value.parse().unwrap());
        }
        headers
    }

    /// Initial age, ttl and the two windows, in seconds.
    fn life(fields: &[(&str, &str)]) -> [u64; 4] {
        let sent = Clock::System.now();
        let date = httpdate::parse_http_date(RECEIVED).unwrap();
        let life = super::life(&headers(fields), ResponseTimes { sent, received: sent + 2 * SECOND, date }, CONFIGURED);
        let Lifetime { ttl, stale_while_revalidate, stale_if_error } = life.lifetime;
        [life.initial_age, ttl, stale_while_revalidate, stale_if_error].map(|span| span.as_secs())
    }

    #[test]
    fn where_upstream_says_nothing_the_configuration_counts() {
        assert_eq!(life(&[]), [0, 300, 600, 3600]);
        assert_eq!(life(&[("age", "7"), ("cache-control", "public")]), [7, 300, 600, 3600]);
        // A clock that is wrong changes nothing there.
        assert_eq!(life(&[("date", "Sun, 06 Nov 1994 07:49:37 GMT")]), [0, 300, 600, 3600]);
    }

    #[test]
    fn what_upstream_says_wins() {
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
            assert_eq!(life(&[("cache-control", control)]), expected, "{control}");
        }
    }

    #[test]
    fn what_cannot_be_read_is_stale() {
        for (control, expected) in [
            ("max-age=x", [0, 0, 0, 3600]),
            ("max-age", [0, 0, 0, 3600]),
            ("max-age=1, max-age=2", [0, 0, 0, 3600]),
            ("s-maxage=-1, max-age=60", [0, 0, 0, 0]),
            ("max-age=60, stale-while-revalidate=x, stale-if-error=1.5", [0, 60, 0, 0]),
            ("max-age=60, a=\"", [0, 0, 0, 0]),
        ] {
            assert_eq!(life(&[("cache-control", control)]), expected, "{control}");
        }
        assert_eq!(life(&[("cache-control", "max-age=60"), ("date", "yesterday")]), [0, 0, 0, 3600]);
    }

    #[test]
    fn expires_counts_from_date() {
        let in_a_minute = ("expires", "Sun, 06 Nov 1994 08:50:37 GMT");
        assert_eq!(life(&[in_a_minute]), [0, 60, 0, 3600]);
        assert_eq!(life(&[in_a_minute, ("date", "Sun, 06 Nov 1994 08:49:17 GMT")]), [17, 80, 0, 3600]);
        assert_eq!(life(&[in_a_minute, ("cache-control", "max-age=5")]), [0, 5, 0, 3600]);
        assert_eq!(life(&[in_a_minute, ("date", "Sun, 06 Nov 1994 09:49:37 GMT")]), [0, 0, 0, 3600]);
        for wrong in ["0", "-1", "soon", ""] {
            assert_eq!(life(&[("expires", wrong)]), [0, 0, 0, 3600], "{wrong}");
        }
        assert_eq!(life(&[in_a_minute, in_a_minute]), [0, 0, 0, 3600]);
        assert_eq!(life(&[in_a_minute, ("date", "x")]), [0, 0, 0, 3600]);
    }

    #[test]
    fn the_older_of_age_and_date_counts_where_upstream_gives_a_lifetime() {
        let date = ("date", "Sun, 06 Nov 1994 08:49:07 GMT");
        let control = ("cache-control", "max-age=60");
        assert_eq!(life(&[control, date]), [27, 60, 0, 3600]);
        assert_eq!(life(&[control, date, ("age", "40")]), [40, 60, 0, 3600]);
        assert_eq!(life(&[control, ("date", "Sun, 06 Nov 1994 09:49:07 GMT")]), [0, 60, 0, 3600]);
    }

    #[test]
    fn an_age_is_a_number_said_once() {
        let age = |fields: &[(&str, &str)]| super::age(&headers(fields));
        assert_eq!((age(&[]), age(&[("age", "7")])), (Some(Duration::ZERO), Some(7 * SECOND)));
        for wrong in ["+7", "", "1, 2", "-1", "7s"] {
            assert_eq!(age(&[("age", wrong)]), None, "{wrong}");
        }
        assert_eq!(age(&[("age", "1"), ("age", "1")]), None);
    }

    #[test]
    fn what_must_not_be_kept_is_said_so() {
        for control in [
            "no-store",
            "private",
            "No-Cache",
            "max-age=60, private=\"set-cookie\"",
            "no-cache=\"x\"",
            "\"",
            "max-age=60, a=\"",
        ] {
            assert!(forbids_keeping(&headers(&[("cache-control", control)])), "{control}");
        }
        assert!(forbids_keeping(&headers(&[("pragma", "no-cache")])));
        for fields in [&[("cache-control", "max-age=60, must-revalidate")][..], &[("expires", "0")], &[]] {
            assert!(!forbids_keeping(&headers(fields)), "{fields:?}");
        }
    }

    #[test]
    fn what_is_reserved_for_one_caller_is_named() {
        let names = |control: &str| {
            let fields = reserved(&headers(&[("cache-control", control)]))?;
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
        assert_eq!(reserved(&headers(&[("pragma", "no-cache")])), None);
    }
}
