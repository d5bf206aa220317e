//! The supervisor's watchdog (sd_watchdog_enabled(3)): the gateway has to tell that it is alive, or it is killed and started
//! again. It does so only after it has answered a request on its metrics listener, by the threads that serve clients. A
//! timer of its own would go on when these hang.

use std::env;
use std::net::SocketAddr;
use std::time::Duration;

use tokio::task::spawn_blocking;
use tokio::time::{MissedTickBehavior, interval};

use super::health;
use super::supervisor::Supervisor;

/// How many times the gateway is asked in the time that the watchdog allows. So two requests may fail in a row.
const TIMES: u32 = 3;

/// How often the supervisor wants to be told, if it does.
pub(super) fn limit() -> Option<Duration> {
    let limit = sd_notify::watchdog_enabled().filter(|limit| !limit.is_zero());
    if limit.is_none()
        && let Some(given) = env::var_os("WATCHDOG_USEC").filter(|given| !given.is_empty())
    {
        tracing::debug!(WATCHDOG_USEC = %given.display(), "no watchdog: no number of microseconds, or another process's");
    }
    limit
}

/// Tells the supervisor that the gateway is alive as long as its metrics listener answers. Never ends.
pub(super) async fn run(supervisor: Supervisor, limit: Duration, metrics: SocketAddr) {
    let period = (limit / TIMES).max(Duration::from_millis(1));
    let mut times = interval(period);
    times.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        times.tick().await;
        match health::is_alive(metrics, period).await {
            Ok(()) => {
                let supervisor = supervisor.clone();
                // Apart, for it may have to wait for the supervisor.
                let _ = spawn_blocking(move || supervisor.alive()).await;
            }
            Err(error) => tracing::warn!(%error, "the watchdog is not told that the gateway is alive"),
        }
    }
}
