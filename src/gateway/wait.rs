//! Waiting for a flight: until it lands, until patience ends, until time is up.

use std::pin::Pin;
use std::time::Duration;

use tokio::time::{Sleep, sleep};

use super::fetch::Landing;
use crate::cache::flights::Passenger;
use crate::cache::store::Slot;

/// How long one request waits, for however many flights.
pub(super) struct Timers {
    deadline: Pin<Box<Sleep>>,
    patience: Option<Pin<Box<Sleep>>>,
}

/// How waiting has ended.
pub(super) enum Waited {
    /// The flight has landed, or was lost.
    Landed(Option<Landing>),
    /// Patience has, and the flight goes on. This is told once.
    OutOfPatience,
    /// The request's own time is up.
    OutOfTime,
}

impl Timers {
    /// From now on.
    pub(super) fn begin(deadline: Duration, patience: Duration) -> Self {
        Self { deadline: Box::pin(sleep(deadline)), patience: Some(Box::pin(sleep(patience))) }
    }

    /// Waits aboard a flight. Patience counts only for those who could be given something else.
    pub(super) async fn wait_for(&mut self, passenger: &mut Passenger<Slot, Landing>, is_patient: bool) -> Waited {
        let patience = async {
            match &mut self.patience {
                Some(patience) if is_patient => patience.await,
                _ => std::future::pending().await,
            }
        };
        tokio::select! {
            biased;
            landing = passenger.arrive() => Waited::Landed(landing),
            () = &mut self.deadline => Waited::OutOfTime,
            () = patience => {
                self.patience = None;
                Waited::OutOfPatience
            }
        }
    }
}
