//! The client's `Cache-Control` (RFC 9111 §5.2.1). Pure: ages are arguments.

use std::time::Duration;

use http::HeaderMap;
use http::header::{CACHE_CONTROL, PRAGMA};

use super::BypassReason;
use super::directives::Directives;

/// The cache directives of a request. `max-stale` is ignored, because the operator decides what is served stale and for
/// how long. Unknown directives are ignored, too.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RequestDirectives {
    /// Only a response to a call that is sent after this request will do. Also set by `max-age=0`.
    pub no_cache: bool,
    /// No call may be made for this request (RFC 9111 §5.2.1.7).
    pub only_if_cached: bool,
    max_age: Option<Duration>,
    min_fresh: Option<Duration>,
}

impl RequestDirectives {
    /// Malformed directives count as `no-cache`, the strictest one.
    ///
    /// # Errors
    /// [`BypassReason::ClientNoStore`] if the request has `no-store`.
    pub fn read(headers: &HeaderMap) -> Result<Self, BypassReason> {
        // Most requests have no directives.
        if !headers.contains_key(CACHE_CONTROL) && !headers.contains_key(PRAGMA) {
            return Ok(Self::default());
        }
        let strictest = Self { no_cache: true, ..Self::default() };
        let Ok(directives) = Directives::read(headers) else { return Ok(strictest) };
        if directives.has("no-store") {
            return Err(BypassReason::ClientNoStore);
        }
        let only_if_cached = directives.has("only-if-cached");
        let read = match (directives.seconds("max-age"), directives.seconds("min-fresh")) {
            (Ok(max_age), Ok(min_fresh)) => Self {
                no_cache: directives.has("no-cache") || max_age == Some(Duration::ZERO),
                max_age,
                min_fresh,
                only_if_cached,
            },
            _ => Self { only_if_cached, ..strictest },
        };
        Ok(read)
    }

    /// Whether the client accepts only some fresh responses: it has sent `max-age` or `min-fresh`.
    pub fn limits_age(&self) -> bool {
        self.max_age.is_some() || self.min_fresh.is_some()
    }

    /// Whether the client accepts a stored response of this age that stays fresh for `left`.
    pub fn accepts(&self, age: Duration, left: Duration) -> bool {
        !self.no_cache && self.accepts_age(age) && self.min_fresh.is_none_or(|min_fresh| left >= min_fresh)
    }

    pub fn accepts_age(&self, age: Duration) -> bool {
        self.max_age.is_none_or(|max_age| age <= max_age)
    }

    /// Whether the client accepts a stale response although upstream has not failed.
    pub fn takes_stale(&self) -> bool {
        !self.no_cache && self.max_age.is_none() && self.min_fresh.is_none()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(value: &'static str) -> Result<RequestDirectives, BypassReason> {
        let mut headers = HeaderMap::new();
        headers.insert(CACHE_CONTROL, value.parse().unwrap());
        RequestDirectives::read(&headers)
    }

    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn without_directives_any_fresh_response_is_accepted() {
        for none in [RequestDirectives::read(&HeaderMap::new()), read("max-stale=60, unknown, stale-if-error=1")] {
            let directives = none.unwrap();
            assert_eq!(directives, RequestDirectives::default());
            assert!(directives.accepts(SECOND, Duration::ZERO) && directives.takes_stale() && !directives.limits_age());
        }
    }

    #[test]
    fn malformed_directives_and_max_age_0_count_as_no_cache() {
        for strict in ["no-cache", "max-age=0", "max-age=x", "min-fresh=-1", "max-age=1, max-age=2", "a=\"b"] {
            let directives = read(strict).unwrap();
            let is_accepted = directives.accepts(Duration::ZERO, SECOND) || directives.takes_stale();
            assert!(directives.no_cache && !is_accepted, "{strict}");
        }
        let mut headers = HeaderMap::new();
        headers.insert(PRAGMA, "no-cache".parse().unwrap());
        assert!(RequestDirectives::read(&headers).unwrap().no_cache);
        assert!(read("only-if-cached, max-age=x").unwrap().only_if_cached);
    }

    #[test]
    fn max_age_and_min_fresh_limit_what_is_accepted() {
        let directives = read("max-age=60, min-fresh=5").unwrap();
        assert!(directives.accepts(60 * SECOND, 5 * SECOND) && !directives.takes_stale() && !directives.no_cache);
        assert!(!directives.accepts(61 * SECOND, 5 * SECOND) && !directives.accepts(SECOND, 4 * SECOND));
        for one in ["max-age=60", "min-fresh=5"] {
            let directives = read(one).unwrap();
            assert!(directives.limits_age() && !directives.takes_stale(), "{one}");
        }
    }

    #[test]
    fn no_store_bypasses() {
        assert_eq!(read("max-age=1, No-Store"), Err(BypassReason::ClientNoStore));
    }
}
