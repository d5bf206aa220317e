//! What happens while the memory budget has no room: connections of clients are closed, and the operator is told when that
//! begins and ends. Which connections these are is in `registry.rs` and `shed.rs`.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::{Instant, sleep, timeout};

use super::registry::Registry;
use crate::budget::Shortage;
use crate::clock::Clock;
use crate::gateway::Gateway;
use crate::telemetry::events::{Event, NewEvent};

/// How long the gateway waits before it looks again which connections to close: choosing among 4,096 takes a few per cent
/// of a core then.
const SHED_INTERVAL: Duration = Duration::from_millis(10);

/// How long nothing must have been refused for lack of memory before the budget counts as free again.
const QUIET: Duration = Duration::from_secs(1);

/// A shortage that goes on.
struct Shortfall {
    since: Instant,
    /// How many charges had been refused before.
    refused: usize,
}

/// Closes connections of clients whenever the memory budget has no room for what is needed.
pub(super) async fn run(gateway: Arc<Gateway>, clients: Arc<Registry>, clock: Clock) {
    let budget = Arc::clone(gateway.budget());
    let mut reached: Option<Shortfall> = None;
    loop {
        let short = match &reached {
            None => budget.runs_short().await,
            Some(_) => timeout(QUIET, budget.runs_short()).await.unwrap_or_default(),
        };
        let now = clock.timer_now();
        let is_reached = budget.is_reached() || short.iter().any(|(shortage, _)| *shortage == Shortage::Budget);
        reached = match reached {
            None if is_reached => {
                let what = "the memory budget is reached (limits.memory): connections are closed and requests refused";
                gateway.observer().record_event(NewEvent::new(Event::MemoryReached, what));
                // What is noted now has been refused by now.
                Some(Shortfall { since: now, refused: budget.refused().saturating_sub(short.len()) })
            }
            Some(Shortfall { since, refused }) if !is_reached && short.is_empty() => {
                let refused = u64::try_from(budget.refused().saturating_sub(refused)).unwrap_or(u64::MAX);
                let what = "the memory budget has room again (limits.memory)";
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
