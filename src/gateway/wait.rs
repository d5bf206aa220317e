//! Waiting for the result of a flight. The wait ends with the result, after `stale_if_slow`, when the request may start
//! an additional call, or at the request's deadline. Nothing is decided here about the response.

use std::pin::Pin;
use std::time::{Duration, Instant};

use tokio::time::{Sleep, sleep};

use super::CacheRequest;
use super::fetch_result::FetchResult;
use super::fetcher::Fetcher;
use crate::cache::flights::{FlightOutcome, Waiter};
use crate::cache::grants::CallerScope;
use crate::cache::store::CacheKey;
use crate::clock::Clock;
use crate::upstream::gate::Class;

/// How much longer a request waits than its call may take. So a call that is sent immediately has all of
/// `answer_timeout`, and its failure is known before the request's own deadline.
pub(super) const DEADLINE_MARGIN: Duration = Duration::from_secs(1);

/// The timers of one request, for all flights that it waits for.
pub(super) struct Timers {
    deadline: Pin<Box<Sleep>>,
    stale_if_slow: Option<Pin<Box<Sleep>>>,
}

pub(super) enum WaitOutcome {
    /// The flight has a result. `None` if it ended without one.
    Ended(Option<FlightOutcome<FetchResult>>),
    /// `stale_if_slow` has passed, and the flight goes on. This is returned once.
    StaleIfSlow,
    /// All calls of the flight are slow, and upstream answers other calls: the request may start an additional call.
    MayStartCall,
    /// The request's own deadline is reached.
    DeadlineReached,
}

pub(super) enum ProofWaitOutcome {
    /// The call has ended, with a proof or without.
    Ended,
    /// `stale_if_slow` has passed.
    TooSlow,
    /// The request's own deadline is reached.
    DeadlineReached,
}

/// What decides whether a waiter may start an additional call.
pub(super) struct AdditionalCall<'g> {
    pub(super) request: &'g CacheRequest,
    pub(super) class: Class,
    pub(super) fetcher: &'g Fetcher,
    pub(super) clock: &'g Clock,
    /// Whether the request still needs a call for all waiters of its flight.
    pub(super) is_needed: &'g (dyn Fn() -> bool + Sync),
}

impl AdditionalCall<'_> {
    /// Waits until upstream has answered a call for a list that was sent after the calls of the flight, and the caller's
    /// call would not wait for its own calls, for a limit of its own or for its access key.
    async fn may_start(&self, mut sent: Instant) {
        let Self { request, class, fetcher, clock, is_needed } = *self;
        loop {
            fetcher.successes.listed_since(request.lookup.key.operation().service, sent).await;
            fetcher.ready_to_lead(request, class).await;
            if is_needed() {
                return;
            }
            // A later list may have proved the caller.
            sent = clock.now();
        }
    }
}

impl Timers {
    pub(super) fn begin(deadline: Duration, stale_if_slow: Duration) -> Self {
        Self { deadline: Box::pin(sleep(deadline)), stale_if_slow: Some(Box::pin(sleep(stale_if_slow))) }
    }

    /// Waits for a flight. Only a request that can get a stale entry is released after `stale_if_slow`. Only the others
    /// may start an additional call.
    pub(super) async fn wait_for(
        &mut self,
        waiter: &mut Waiter<CacheKey, FetchResult>,
        has_stale: bool,
        additional: AdditionalCall<'_>,
    ) -> WaitOutcome {
        let has_stale = has_stale && self.stale_if_slow.is_some();
        let mut slow = waiter.slowness();
        let may_start = async {
            loop {
                let sent = slow.all_slow(additional.request.lookup.caller_scope.caller).await;
                tokio::select! {
                    biased;
                    () = slow.changed() => {}
                    () = additional.may_start(sent) => return,
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
            () = &mut self.deadline => WaitOutcome::DeadlineReached,
            () = stale_if_slow => {
                self.stale_if_slow = None;
                WaitOutcome::StaleIfSlow
            }
            () = may_start, if !has_stale => WaitOutcome::MayStartCall,
        }
    }

    /// Waits for a call that may prove the caller, at most for `stale_if_slow`. The request's deadline is later by as
    /// much: if it then makes its own call, that must have all of `answer_timeout`.
    pub(super) async fn wait_for_proof(
        &mut self,
        waiter: &mut Waiter<CallerScope, ()>,
        clock: &Clock,
    ) -> ProofWaitOutcome {
        let Some(stale_if_slow) = &mut self.stale_if_slow else { return ProofWaitOutcome::TooSlow };
        let begun = clock.timer_now();
        let outcome = tokio::select! {
            biased;
            _ = waiter.result() => ProofWaitOutcome::Ended,
            () = &mut self.deadline => return ProofWaitOutcome::DeadlineReached,
            () = stale_if_slow => {
                self.stale_if_slow = None;
                ProofWaitOutcome::TooSlow
            }
        };
        let deadline = self.deadline.deadline() + clock.timer_now().saturating_duration_since(begun);
        self.deadline.as_mut().reset(deadline);
        outcome
    }

    /// Waits for the complete response after a refusal was announced by its head.
    pub(super) async fn wait_for_complete(&mut self, waiter: &mut Waiter<CacheKey, FetchResult>) -> WaitOutcome {
        tokio::select! {
            biased;
            result = waiter.final_result() => WaitOutcome::Ended(result),
            () = &mut self.deadline => WaitOutcome::DeadlineReached,
        }
    }
}
