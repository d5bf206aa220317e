//! The gateway's settings in the storm. Lifetimes are so short that each ends many times in a minute.

use std::time::Duration;

use crate::loads;

pub(crate) const TTL: Duration = Duration::from_millis(400);
pub(crate) const STALE_WHILE_REVALIDATE: Duration = Duration::from_millis(600);
pub(crate) const STALE_IF_ERROR: Duration = Duration::from_millis(3_000);
/// `ttl_jitter`, in percent.
pub(crate) const JITTER: u32 = 10;
pub(crate) const BACKOFF: Duration = Duration::from_millis(250);
pub(crate) const STALE_IF_SLOW: Duration = Duration::from_millis(200);
pub(crate) const GRANT_TTL: Duration = Duration::from_millis(1_500);
pub(crate) const OUTAGE_GRACE: Duration = Duration::from_millis(4_000);
pub(crate) const DENIAL_TTL: Duration = Duration::from_millis(200);
pub(crate) const ANSWER_TIMEOUT: Duration = Duration::from_millis(1_500);

/// The largest age of a stale response.
pub(crate) fn max_age() -> Duration {
    TTL + STALE_WHILE_REVALIDATE.max(STALE_IF_ERROR)
}

/// `Retry-After` of upstream, in whole seconds.
pub(crate) const RETRY_AFTER: Duration = Duration::from_secs(1);

pub(crate) fn toml(workspace: &str, appstream: &str) -> String {
    let ms = |span: Duration| format!("\"{}ms\"", span.as_millis());
    let [ttl, answer_timeout] = [TTL, ANSWER_TIMEOUT].map(ms);
    let [stale_while_revalidate, stale_if_error] = [STALE_WHILE_REVALIDATE, STALE_IF_ERROR].map(ms);
    let [negative_ttl, stale_if_slow] = [BACKOFF, STALE_IF_SLOW].map(ms);
    let [grant_ttl, outage_grace, denial_ttl] = [GRANT_TTL, OUTAGE_GRACE, DENIAL_TTL].map(ms);
    format!(
        r#"
        [listen]
        proxy = "127.0.0.1:0"
        metrics = "127.0.0.1:0"
        admin = "127.0.0.1:0"

        [upstream]
        workspace_url = "{workspace}"
        appstream_url = "{appstream}"
        connect_timeout = {answer_timeout}
        first_byte_timeout = {answer_timeout}
        answer_timeout = {answer_timeout}
        idle_timeout = {answer_timeout}
        connection_max_age = "3s"
        max_calls = 40
        max_calls_per_caller = 10

        [cache]
        ttl = {ttl}
        ttl_jitter = "{JITTER}%"
        stale_while_revalidate = {stale_while_revalidate}
        stale_if_error = {stale_if_error}
        negative_ttl = {negative_ttl}
        backoff = {negative_ttl}
        stale_if_slow = {stale_if_slow}

        [grants]
        grant_ttl = {grant_ttl}
        outage_grace = {outage_grace}
        denial_ttl = {denial_ttl}

        # The loads reach this limit.
        [limits]
        memory = "64MiB"

        # Callers of this operation get different lists.
        [[operation]]
        name = "ListProduct"
        sharing = "caller"
        {}
        "#,
        loads::settings()
    )
}
