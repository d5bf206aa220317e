//! How long entries and grants are used.

use std::time::Duration;

use super::settings::{BACKOFF, DENIAL_TTL, JITTER, STALE_IF_SLOW};

#[derive(Clone, Copy)]
pub(crate) struct Lifetimes {
    pub(crate) ttl: Duration,
    pub(crate) stale_while_revalidate: Duration,
    pub(crate) stale_if_error: Duration,
    pub(crate) grant_ttl: Duration,
    pub(crate) outage_grace: Duration,
}

impl Lifetimes {
    /// The largest age of a stale response.
    pub(crate) fn max_age(&self) -> Duration {
        self.ttl + self.stale_while_revalidate.max(self.stale_if_error)
    }

    /// The tables `grants` and `cache`. `cache` is the last one, so that a caller can add to it.
    pub(crate) fn toml(&self) -> String {
        let ms = |span: Duration| format!("\"{}ms\"", span.as_millis());
        let Self { ttl, stale_while_revalidate, stale_if_error, grant_ttl, outage_grace } = *self;
        let [ttl, stale_while_revalidate, stale_if_error] = [ttl, stale_while_revalidate, stale_if_error].map(ms);
        let [backoff, stale_if_slow] = [BACKOFF, STALE_IF_SLOW].map(ms);
        let [grant_ttl, outage_grace, denial_ttl] = [grant_ttl, outage_grace, DENIAL_TTL].map(ms);
        format!(
            r#"
        [grants]
        grant_ttl = {grant_ttl}
        outage_grace = {outage_grace}
        denial_ttl = {denial_ttl}

        [cache]
        ttl = {ttl}
        ttl_jitter = "{JITTER}%"
        stale_while_revalidate = {stale_while_revalidate}
        stale_if_error = {stale_if_error}
        negative_ttl = {backoff}
        backoff = {backoff}
        stale_if_slow = {stale_if_slow}
        "#
        )
    }
}
