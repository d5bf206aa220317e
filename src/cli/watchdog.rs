//! The supervisor's watchdog (sd_watchdog_enabled(3)): without regular messages the supervisor restarts the gateway. A
//! message must be sent only after a request to the metrics listener was answered. A timer alone would continue when
//! the threads that serve clients hang.

use std::env;
use std::net::SocketAddr;
use std::time::Duration;

use tokio::task::spawn_blocking;
use tokio::time::{MissedTickBehavior, interval};

use super::health;
use super::supervisor::Supervisor;

/// The number of checks within the watchdog's time. So two checks in a row may fail.
const CHECKS: u32 = 3;

/// The watchdog's time (`WATCHDOG_USEC`), if it is enabled for this process.
pub(super) fn limit() -> Option<Duration> {
    let limit = sd_notify::watchdog_enabled().filter(|limit| !limit.is_zero());
    if limit.is_none()
        && let Some(given) = env::var_os("WATCHDOG_USEC").filter(|given| !given.is_empty())
    {
        tracing::debug!(WATCHDOG_USEC = %given.display(), "watchdog disabled: invalid, or for another process");
    }
    limit
}

/// Notifies the supervisor while the metrics listener answers. Never ends.
pub(super) async fn run(supervisor: Supervisor, limit: Duration, metrics: SocketAddr) {
    let period = (limit / CHECKS).max(Duration::from_millis(1));
    let mut ticks = interval(period);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        match health::check_alive(metrics, period).await {
            Ok(()) => {
                let supervisor = supervisor.clone();
                // Sending may block for up to a second.
                let _ = spawn_blocking(move || supervisor.alive()).await;
            }
            Err(error) => tracing::warn!(%error, "watchdog notification skipped: the gateway does not answer"),
        }
    }
}
