//! Waiting for the result of a flight: until it is there, until something stale is given instead, until the request
//! may make a call of its own, or until its deadline.

use std::pin::Pin;
use std::time::Duration;

use tokio::time::{Sleep, sleep};

use super::fetch_result::FetchResult;
use crate::cache::flights::{FlightOutcome, Waiter};
use crate::cache::store::CacheKey;
use crate::catalogue::Service;
use crate::request::caller::Caller;
use crate::upstream::successes::Successes;

/// How much longer a request waits than its call may take. So a call that is sent at once has upstream's whole time,
/// and its failure is known before the request's own deadline.
pub(super) const DEADLINE_MARGIN: Duration = Duration::from_secs(1);

/// How long one request waits, for however many flights.
pub(super) struct Timers {
    deadline: Pin<Box<Sleep>>,
    stale_if_slow: Option<Pin<Box<Sleep>>>,
}

/// How waiting has ended.
pub(super) enum WaitOutcome {
    /// The flight has a result, or was lost.
    Ended(Option<FlightOutcome<FetchResult>>),
    /// StaleIfSlow has ended, and the flight goes on. This is told once.
    StaleIfSlow,
    /// All calls of the flight are slow while upstream answers others: the request may make another call.
    MayLead,
    /// The request's own deadline has come.
    OutOfTime,
}

/// Who may make another call, and what tells whether upstream is slow for that flight only.
pub(super) struct AnotherCall<'g> {
    pub(super) caller: Caller,
    pub(super) service: Service,
    pub(super) successes: &'g Successes,
    /// Whether the request may make a call for all who wait.
    pub(super) may_lead: &'g (dyn Fn() -> bool + Sync),
}

impl Timers {
    /// From now on.
    pub(super) fn begin(deadline: Duration, stale_if_slow: Duration) -> Self {
        Self { deadline: Box::pin(sleep(deadline)), stale_if_slow: Some(Box::pin(sleep(stale_if_slow))) }
    }

    /// Waits for a flight. StaleIfSlow counts only for those who could be given something else; the others may make
    /// another call if there is another.
    pub(super) async fn wait_for(
        &mut self,
        waiter: &mut Waiter<CacheKey, FetchResult>,
        has_stale: bool,
        another: AnotherCall<'_>,
    ) -> WaitOutcome {
        let has_stale = has_stale && self.stale_if_slow.is_some();
        let mut slow = waiter.slowness();
        let may_lead = async {
            loop {
                let sent = slow.all_slow(another.caller).await;
                tokio::select! {
                    biased;
                    () = slow.changed() => {}
                    () = another.successes.listed_since(another.service, sent) => {
                        if (another.may_lead)() {
                            return;
                        }
                        slow.changed().await;
                    }
                }
            }
        };
        let stale_if_slow = async {
            match &mut self.stale_if_slow {
                Some(stale_if_slow) if has_stale => stale_if_slow.await,
                _ => std::future::pending().await,
            }
        };
        tokio::select! {
            biased;
            result = waiter.result() => WaitOutcome::Ended(result),
            () = &mut self.deadline => WaitOutcome::OutOfTime,
            () = stale_if_slow => {
                self.stale_if_slow = None;
                WaitOutcome::StaleIfSlow
            }
            () = may_lead, if !has_stale => WaitOutcome::MayLead,
        }
    }

    /// Waits for the rest of a refusal whose head has come.
    pub(super) async fn wait_for_whole(&mut self, waiter: &mut Waiter<CacheKey, FetchResult>) -> WaitOutcome {
        tokio::select! {
            biased;
            result = waiter.whole_result() => WaitOutcome::Ended(result),
            () = &mut self.deadline => WaitOutcome::OutOfTime,
        }
    }
}
