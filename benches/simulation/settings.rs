//! The gateways' settings in the simulation. Simulated time is cheap, so they are closer to the defaults than the storm's.

use std::fmt::Write;
use std::ops::Range;
use std::path::Path;
use std::time::Duration;

pub(crate) use super::lifetimes::Lifetimes;

pub(crate) const LIFETIMES: Lifetimes = Lifetimes {
    ttl: Duration::from_secs(20),
    stale_while_revalidate: Duration::from_secs(20),
    stale_if_error: Duration::from_secs(90),
    grant_ttl: Duration::from_secs(45),
    outage_grace: Duration::from_secs(120),
};

/// `fleet.sync`, by default.
pub(crate) const SYNC: Duration = Duration::from_secs(1);
/// `ttl_jitter`, in percent.
pub(crate) const JITTER: u32 = 10;
pub(crate) const BACKOFF: Duration = Duration::from_secs(2);
pub(crate) const STALE_IF_SLOW: Duration = Duration::from_millis(500);
pub(crate) const DENIAL_TTL: Duration = Duration::from_secs(2);
pub(crate) const ANSWER_TIMEOUT: Duration = Duration::from_secs(5);
/// `Retry-After` of upstream, in whole seconds.
pub(crate) const RETRY_AFTER: Duration = Duration::from_secs(3);

/// How late a response may be after its deadline: the delays of the network.
pub(crate) const SLACK: Duration = Duration::from_millis(50);
/// How long it may take until the gateway notices that a connection is closed.
pub(crate) const NOTICE: Duration = Duration::from_millis(50);
/// How long a client waits before its next request.
pub(crate) const THINK: Range<Duration> = Duration::from_millis(100)..Duration::from_secs(8);
/// Faults and changes take this many times as long as in the storm.
pub(crate) const SCALE: u64 = 15;

/// `engine`: the address of the fleet's engine, if there is a fleet.
pub(crate) fn toml(
    [workspace, appstream]: &[String; 2],
    engine: Option<&str>,
    snapshot: Option<&Path>,
    max_calls: usize,
) -> String {
    let ms = |span: Duration| format!("\"{}ms\"", span.as_millis());
    let answer_timeout = ms(ANSWER_TIMEOUT);
    let cache_and_grants = LIFETIMES.toml();
    let snapshot = snapshot.map(|path| format!("snapshot = {path:?}")).unwrap_or_default();
    let mut settings = format!(
        r#"
        [listen]
        proxy = "0.0.0.0:8080"
        metrics = "127.0.0.1:9090"
        admin = "127.0.0.1:9091"
        insecure_plaintext = true

        [upstream]
        workspace_url = "{workspace}"
        appstream_url = "{appstream}"
        connect_timeout = {answer_timeout}
        first_byte_timeout = {answer_timeout}
        answer_timeout = {answer_timeout}
        idle_timeout = {answer_timeout}
        connection_max_age = "60s"
        max_calls = {max_calls}
        max_calls_per_caller = 10

        {cache_and_grants}
        {snapshot}

        [limits]
        memory = "8MiB"

        # Callers of this operation get different lists.
        [[operation]]
        name = "ListProduct"
        sharing = "caller"
        "#
    );
    if let Some(engine) = engine {
        let secret = "s".repeat(43);
        _ = write!(
            settings,
            "\n[fleet]\nengine = \"redis://{engine}\"\nsecret = \"{secret}\"\ninsecure_plaintext = true\nbudget = \"8ms\"\n"
        );
    }
    settings
}
