//! The gateways' settings in the storm.

use std::ops::Range;
use std::time::Duration;

pub(crate) use super::lifetimes::Lifetimes;

use crate::loads;

/// Those of the single gateway. So short that each ends many times in a minute.
pub(crate) const ALONE: Lifetimes = Lifetimes {
    ttl: Duration::from_millis(400),
    stale_while_revalidate: Duration::from_millis(600),
    stale_if_error: Duration::from_millis(3_000),
    grant_ttl: Duration::from_millis(1_500),
    outage_grace: Duration::from_millis(4_000),
};

/// Those of the fleet. Longer than `fleet.sync`: otherwise what is told would have ended anyway.
pub(crate) const FLEET: Lifetimes = Lifetimes {
    ttl: Duration::from_millis(2_500),
    stale_while_revalidate: Duration::from_millis(1_000),
    stale_if_error: Duration::from_millis(4_000),
    grant_ttl: Duration::from_millis(5_000),
    outage_grace: Duration::from_millis(8_000),
};

/// `fleet.sync`, by default.
pub(crate) const SYNC: Duration = Duration::from_secs(1);
/// `fleet.budget`, for a machine where clients and upstream take the processors, too. Otherwise the gateways would work without
/// the engine most of the time.
pub(crate) const BUDGET: Duration = Duration::from_millis(200);
/// `ttl_jitter`, in percent.
pub(crate) const JITTER: u32 = 10;
pub(crate) const BACKOFF: Duration = Duration::from_millis(250);
pub(crate) const STALE_IF_SLOW: Duration = Duration::from_millis(200);
pub(crate) const DENIAL_TTL: Duration = Duration::from_millis(200);
pub(crate) const ANSWER_TIMEOUT: Duration = Duration::from_millis(1_500);

/// How late a response may be on this busy machine, after its deadline.
pub(crate) const SLACK: Duration = Duration::from_secs(1);
/// How long it may take until the gateway notices that a connection is closed.
pub(crate) const NOTICE: Duration = Duration::from_millis(250);
/// How long a client waits before its next request.
pub(crate) const THINK: Range<Duration> = Duration::from_millis(10)..Duration::from_millis(200);
/// Faults and changes take this many times as long as stated.
pub(crate) const SCALE: u64 = 1;

/// `Retry-After` of upstream, in whole seconds.
pub(crate) const RETRY_AFTER: Duration = Duration::from_secs(1);

pub(crate) fn toml([workspace, appstream]: &[String; 2], lifetimes: &Lifetimes) -> String {
    let ms = |span: Duration| format!("\"{}ms\"", span.as_millis());
    let answer_timeout = ms(ANSWER_TIMEOUT);
    let cache_and_grants = lifetimes.toml();
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

        {cache_and_grants}

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
