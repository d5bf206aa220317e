//! What a client wishes of a cache (RFC 9111 §5.2.1). Pure: ages are told.

use std::time::Duration;

use http::HeaderMap;
use http::header::{CACHE_CONTROL, PRAGMA};

use super::BypassReason;
use super::directives::Directives;

/// The wishes of one request. `max-stale` is not among them: what is given stale, and for how long, is
/// the operator's decision. Directives that nobody knows wish for nothing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RequestDirectives {
    /// To be answered by upstream: by a call that is sent after this.
    pub no_cache: bool,
    /// To be answered from memory or not at all.
    pub only_if_cached: bool,
    /// For nothing older.
    max_age: Option<Duration>,
    /// For something that stays fresh for so long.
    min_fresh: Option<Duration>,
}

impl RequestDirectives {
    /// Reads the wishes of a request. What can't be read is taken for the strictest wish.
    ///
    /// # Errors
    /// If the request says that its answer must not be kept.
    pub fn read(headers: &HeaderMap) -> Result<Self, BypassReason> {
        // Hardly any client has wishes.
        if !headers.contains_key(CACHE_CONTROL) && !headers.contains_key(PRAGMA) {
            return Ok(Self::default());
        }
        let strictest = Self { no_cache: true, ..Self::default() };
        let Ok(directives) = Directives::read(headers) else { return Ok(strictest) };
        if directives.has("no-store") {
            return Err(BypassReason::ClientNoStore);
        }
        let only_if_cached = directives.has("only-if-cached");
        let wish = match (directives.seconds("max-age"), directives.seconds("min-fresh")) {
            (Ok(max_age), Ok(min_fresh)) => Self {
                no_cache: directives.has("no-cache") || max_age == Some(Duration::ZERO),
                max_age,
                min_fresh,
                only_if_cached,
            },
            _ => Self { only_if_cached, ..strictest },
        };
        Ok(wish)
    }

    /// Whether not every fresh answer will do.
    pub fn limits_age(&self) -> bool {
        self.max_age.is_some() || self.min_fresh.is_some()
    }

    /// Whether an answer of this age will do, which stays fresh for so long.
    pub fn accepts(&self, age: Duration, left: Duration) -> bool {
        !self.no_cache && self.accepts_age(age) && self.min_fresh.is_none_or(|min_fresh| left >= min_fresh)
    }

    /// Whether an answer is young enough.
    pub fn accepts_age(&self, age: Duration) -> bool {
        self.max_age.is_none_or(|max_age| age <= max_age)
    }

    /// Whether a stale answer will do though upstream hasn't failed.
    pub fn takes_stale(&self) -> bool {
        !self.no_cache && self.max_age.is_none() && self.min_fresh.is_none()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wish(value: &'static str) -> Result<RequestDirectives, BypassReason> {
        let mut headers = HeaderMap::new();
        headers.insert(CACHE_CONTROL, value.parse().unwrap());
        RequestDirectives::read(&headers)
    }

    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn without_wishes_anything_fresh_will_do() {
        for nothing in [RequestDirectives::read(&HeaderMap::new()), wish("max-stale=60, unheard-of, stale-if-error=1")]
        {
            let wish = nothing.unwrap();
            assert!(wish == RequestDirectives::default() && wish.accepts(SECOND, Duration::ZERO) && wish.takes_stale());
        }
    }

    #[test]
    fn the_strictest_wish_is_upstreams_own_answer() {
        for strict in ["no-cache", "max-age=0", "max-age=x", "min-fresh=-1", "max-age=1, max-age=2", "a=\"b"] {
            let wish = wish(strict).unwrap();
            assert!(wish.no_cache && !wish.accepts(Duration::ZERO, SECOND) && !wish.takes_stale(), "{strict}");
        }
        let mut headers = HeaderMap::new();
        headers.insert(PRAGMA, "no-cache".parse().unwrap());
        assert!(RequestDirectives::read(&headers).unwrap().no_cache);
        assert!(wish("only-if-cached, max-age=x").unwrap().only_if_cached);
    }

    #[test]
    fn ages_are_held_against_the_wish() {
        let wish = wish("max-age=60, min-fresh=5").unwrap();
        assert!(wish.accepts(60 * SECOND, 5 * SECOND) && !wish.takes_stale() && !wish.no_cache);
        assert!(!wish.accepts(61 * SECOND, 5 * SECOND) && !wish.accepts(SECOND, 4 * SECOND));
    }

    #[test]
    fn no_store_bypasses() {
        assert_eq!(wish("max-age=1, No-Store"), Err(BypassReason::ClientNoStore));
    }
}
