//! The gateways' settings in the storm.

use std::ops::Range;
use std::time::Duration;

use crate::loads;

/// How long entries and grants are used.
#[derive(Clone, Copy)]
pub(crate) struct Lifetimes {
    pub(crate) ttl: Duration,
    pub(crate) stale_while_revalidate: Duration,
    pub(crate) stale_if_error: Duration,
    pub(crate) grant_ttl: Duration,
    pub(crate) outage_grace: Duration,
}

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

impl Lifetimes {
    /// The largest age of a stale response.
    pub(crate) fn max_age(&self) -> Duration {
        self.ttl + self.stale_while_revalidate.max(self.stale_if_error)
    }
}

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
    let Lifetimes { ttl, stale_while_revalidate, stale_if_error, grant_ttl, outage_grace } = *lifetimes;
    let [ttl, answer_timeout] = [ttl, ANSWER_TIMEOUT].map(ms);
    let [stale_while_revalidate, stale_if_error] = [stale_while_revalidate, stale_if_error].map(ms);
    let [negative_ttl, stale_if_slow] = [BACKOFF, STALE_IF_SLOW].map(ms);
    let [grant_ttl, outage_grace, denial_ttl] = [grant_ttl, outage_grace, DENIAL_TTL].map(ms);
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
