//! Closes client connections while the memory budget has no room, and records events when such a shortage starts and
//! ends. Which connections are closed is decided in `registry.rs` and `shed.rs`.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::{Instant, sleep, timeout};

use super::registry::Registry;
use crate::budget::Shortage;
use crate::clock::Clock;
use crate::gateway::Gateway;
use crate::telemetry::events::{Event, NewEvent};

/// The interval between two choices of connections. Choosing among 4,096 connections takes a few percent of a core at
/// this interval.
const SHED_INTERVAL: Duration = Duration::from_millis(10);

/// For this long, no charge must be refused before the budget counts as available again.
const QUIET: Duration = Duration::from_secs(1);

/// A shortage that has not ended.
struct Shortfall {
    since: Instant,
    /// How many charges had been refused before it started.
    refused: usize,
}

/// Runs until it is aborted.
pub(super) async fn run(gateway: Arc<Gateway>, clients: Arc<Registry>, clock: Clock) {
    let budget = Arc::clone(gateway.budget());
    let mut reached: Option<Shortfall> = None;
    loop {
        let short = match &reached {
            None => budget.shortages().await,
            Some(_) => timeout(QUIET, budget.shortages()).await.unwrap_or_default(),
        };
        let now = clock.timer_now();
        let is_reached = budget.is_reached() || short.iter().any(|(shortage, _)| *shortage == Shortage::Budget);
        reached = match reached {
            None if is_reached => {
                let what = "memory budget reached (limits.memory): connections are closed and requests are refused";
                gateway.observer().record_event(NewEvent::new(Event::MemoryReached, what));
                // The current requests for memory were already counted as refused.
                Some(Shortfall { since: now, refused: budget.refused().saturating_sub(short.len()) })
            }
            Some(Shortfall { since, refused }) if !is_reached && short.is_empty() => {
                let refused = u64::try_from(budget.refused().saturating_sub(refused)).unwrap_or(u64::MAX);
                let what = "memory budget available again (limits.memory)";
                let free = NewEvent::new(Event::MemoryFree, what);
                gateway.observer().record_event(free.after(now.saturating_duration_since(since), refused));
                None
            }
            reached => reached,
        };
        for (shortage, bytes) in short {
            clients.shed_bytes(shortage, bytes, now);
        }
        sleep(SHED_INTERVAL).await;
    }
}
