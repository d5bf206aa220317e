//! A sequence in which limits of upstream hold calls back. Time advances to each moment at which the gateway does
//! something, because the model does not know when that is.

use std::time::Duration;

use workspace_gateway::testing::clock::Clock;

use super::super::domain::{Ms, Seconds};
use super::super::rules::paced::{Happened, Seen};
use super::Driver;

/// How long requests may wait after the last step: for three proofs, for their deadline, and for clocks that jumped.
const LONGEST_REST: usize = 20;

impl Driver {
    /// Looks at what the gateway has done after an event, and checks it.
    pub(super) async fn follow(&mut self, event: Happened<'_>) -> Result<(), String> {
        let observed = self.observe().await?;
        let paced = self.paced.as_mut().expect("limits hold calls back");
        let seen = Seen { started: &observed.started, relayed: &observed.relayed, responses: &observed.responses };
        paced.follow(self.now, &event, &seen).map_err(|wrong| format!("RULES: {wrong} (at {})", Seconds(self.now)))?;
        self.check_started(&observed)?;
        match self.paced.as_ref().is_some_and(|paced| paced.is_ambiguous) {
            true => Err(super::AMBIGUOUS.to_owned()),
            false => Ok(()),
        }
    }

    pub(super) async fn pass_paced(&mut self, span: Ms) -> Result<(), String> {
        let end = Clock::System.timer_now() + Duration::from_millis(span);
        loop {
            let is_over = tokio::select! {
                biased;
                () = self.activity.notified() => false,
                () = tokio::time::sleep_until(end) => true,
            };
            self.now = self.timer_now() + self.jumped;
            self.follow(Happened::Other).await?;
            if is_over {
                return Ok(());
            }
        }
    }

    /// After the last step: requests that wait for their turn get it, or reach their deadline.
    pub(super) async fn rest(&mut self) -> Result<(), String> {
        if self.paced.is_none() {
            return Ok(());
        }
        for _ in 0..LONGEST_REST {
            if !self.rules().in_flight().is_empty() || self.waiting().is_empty() {
                break;
            }
            self.pass_paced(5_000).await?;
        }
        Ok(())
    }
}
