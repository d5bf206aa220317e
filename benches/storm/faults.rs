//! Injects faults into upstream. Its condition, its catalogue and its tokens change independently.
//!
//! The journal gets the new value before a change, and the end of the old value after it.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use http::StatusCode;
use rand::rngs::SmallRng;
use rand::{RngExt, SeedableRng};
use tokio::sync::watch;
use workspace_gateway::testing::cache::store::PurgeSelection;
use workspace_gateway::testing::clock::Clock;

use super::endpoint::Endpoint;
use super::lock;
use super::settings::{ANSWER_TIMEOUT, SCALE, STALE_IF_SLOW};
use super::world::{Condition, Journal, PROJECTS, Purge, World, project_id};

/// Runs until `stop` is true. Upstream is healthy afterwards.
pub(crate) async fn inject(world: Arc<World>, journal: Arc<Mutex<Journal>>, seed: u64, stop: watch::Receiver<bool>) {
    let stopped = || async {
        // It fails only if the sender is dropped.
        let _ = stop.clone().wait_for(|&stop| stop).await;
    };
    let injector = Injector { world: &world, journal: &journal };
    let [condition, catalogue, token_states] = [1, 2, 3].map(|part| SmallRng::seed_from_u64(seed ^ (part << 32)));
    tokio::join!(
        injector.change_condition(condition, stopped()),
        injector.change_catalogue(catalogue, stopped()),
        injector.change_tokens(token_states, stopped()),
    );
}

struct Injector<'a> {
    world: &'a World,
    journal: &'a Mutex<Journal>,
}

impl Injector<'_> {
    /// All faults in turn, each round in another order. Upstream is healthy between two faults.
    async fn change_condition(&self, mut dice: SmallRng, stopped: impl Future<Output = ()>) {
        let mut stopped = std::pin::pin!(stopped);
        let mut ahead = Vec::new();
        loop {
            if ahead.is_empty() {
                ahead = self.faults(&mut dice);
            }
            for condition in [ahead.swap_remove(dice.random_range(0..ahead.len())), Condition::Healthy] {
                // These change independently of the condition.
                self.world.give_headers(dice.random_bool(0.5));
                self.world.simulator.send_etags(dice.random_bool(0.5));
                self.set_condition(condition).await;
                // One in ten lasts longer than any stale entry.
                let longest = if dice.random_ratio(1, 10) { 5_000 } else { 1_000 };
                tokio::select! {
                    biased;
                    () = &mut stopped => return self.set_condition(Condition::Healthy).await,
                    () = pause(&mut dice, 150 * SCALE, longest * SCALE) => {}
                }
            }
        }
    }

    fn faults(&self, dice: &mut SmallRng) -> Vec<Condition> {
        const FAILURES: [StatusCode; 4] = [
            StatusCode::INTERNAL_SERVER_ERROR,
            StatusCode::BAD_GATEWAY,
            StatusCode::SERVICE_UNAVAILABLE,
            StatusCode::GATEWAY_TIMEOUT,
        ];
        vec![
            Condition::Slow,
            Condition::Stuck,
            Condition::Failing(FAILURES[dice.random_range(0..FAILURES.len())]),
            Condition::Throttling,
            Condition::ThrottlingOne(dice.random_range(0..self.world.callers.len())),
            Condition::Resetting,
            Condition::Truncating,
            Condition::Dead,
            Condition::Dead,
        ]
    }

    async fn set_condition(&self, condition: Condition) {
        let simulator = &self.world.simulator;
        let before = {
            let mut journal = lock(self.journal);
            let before = journal.condition.latest();
            journal.condition.begin(condition, Clock::System.now());
            before
        };
        match before {
            // Only the link of a gateway is cut off.
            Condition::Healthy | Condition::CutOff | Condition::Exhausted => {}
            Condition::Slow | Condition::Stuck => simulator.delay(Duration::ZERO),
            Condition::Failing(_) => simulator.fail_with(None),
            Condition::Throttling => simulator.throttle(None),
            Condition::ThrottlingOne(caller) => simulator.throttle_token(&self.world.callers[caller].token, false),
            Condition::Resetting => simulator.reset_connections(false),
            Condition::Truncating => simulator.truncate(false),
            Condition::Dead => simulator.restart().expect("the addresses are reserved"),
        }
        match condition {
            Condition::Healthy | Condition::CutOff | Condition::Exhausted => {}
            Condition::Slow => simulator.delay(STALE_IF_SLOW + Duration::from_millis(200)),
            Condition::Stuck => simulator.delay(3 * ANSWER_TIMEOUT),
            Condition::Failing(status) => simulator.fail_with(Some(status)),
            Condition::Throttling => simulator.throttle(Some(0)),
            Condition::ThrottlingOne(caller) => simulator.throttle_token(&self.world.callers[caller].token, true),
            Condition::Resetting => simulator.reset_connections(true),
            Condition::Truncating => simulator.truncate(true),
            Condition::Dead => simulator.shut_down().await,
        }
        lock(self.journal).condition.settle(Clock::System.now());
    }

    async fn change_catalogue(&self, mut dice: SmallRng, stopped: impl Future<Output = ()>) {
        let mut stopped = std::pin::pin!(stopped);
        loop {
            tokio::select! {
                    biased;
                () = &mut stopped => break,
                () = pause(&mut dice, 100 * SCALE, 900 * SCALE) => {}
            }
            change_catalogue(self.world, self.journal);
        }
    }

    /// Tokens are revoked, expire or lose their permission, and become valid again.
    async fn change_tokens(&self, mut dice: SmallRng, stopped: impl Future<Output = ()>) {
        let mut stopped = std::pin::pin!(stopped);
        loop {
            tokio::select! {
                    biased;
                () = &mut stopped => break,
                () = pause(&mut dice, 20 * SCALE, 300 * SCALE) => {}
            }
            let caller = dice.random_range(0..self.world.callers.len() - 1);
            let is_good = !lock(self.journal).token_states[caller].latest();
            // At any time most tokens are valid.
            if !is_good && dice.random_ratio(2, 3) {
                continue;
            }
            change_token(self.world, self.journal, caller, is_good, &mut dice);
        }
    }
}

pub(crate) fn change_catalogue(world: &World, journal: &Mutex<Journal>) {
    // The journal is locked meanwhile, so nobody sees it without the new value.
    let versions = &mut lock(journal).versions;
    let before = Clock::System.now();
    versions.begin(world.simulator.change_catalogue(), before);
    versions.settle(Clock::System.now());
}

/// A token becomes valid, or is revoked, expires or loses its permission.
pub(crate) fn change_token(world: &World, journal: &Mutex<Journal>, caller: usize, is_good: bool, dice: &mut SmallRng) {
    let token_states = &mut lock(journal).token_states[caller];
    token_states.begin(is_good, Clock::System.now());
    let token = &world.callers[caller].token;
    match dice.random_range(0..3) {
        _ if is_good => world.simulator.restore(token),
        0 => world.simulator.revoke(token),
        1 => world.simulator.expire(token),
        _ => world.simulator.deny(token),
    }
    token_states.settle(Clock::System.now());
}

/// Purges at gateways of a fleet, until `stop` is true.
pub(crate) async fn purge(
    gateways: Arc<[Endpoint]>,
    journal: Arc<Mutex<Journal>>,
    mut dice: SmallRng,
    mut stop: watch::Receiver<bool>,
) {
    loop {
        tokio::select! {
                    biased;
            _ = stop.wait_for(|&stop| stop) => break,
            () = pause(&mut dice, 1_000 * SCALE, 3_000 * SCALE) => {}
        }
        let gateway = dice.random_range(0..gateways.len());
        let project = dice.random_ratio(2, 3).then(|| dice.random_range(0..PROJECTS));
        purge_at(&gateways, &journal, gateway, project);
    }
}

/// Purges a gateway of a fleet: what it has of a project, or all.
pub(crate) fn purge_at(gateways: &[Endpoint], journal: &Mutex<Journal>, gateway: usize, project: Option<usize>) {
    let Some(member) = gateways[gateway].member() else { return };
    let begun = Clock::System.now();
    member.purge(&PurgeSelection { project_id: project.map(project_id), ..PurgeSelection::default() });
    let ended = Some(Clock::System.now());
    let told = gateways[gateway].told();
    lock(journal).purges.push(Purge { gateway, project, begun, ended, told, is_lost: false });
}

pub(crate) async fn pause(dice: &mut SmallRng, least: u64, most: u64) {
    tokio::time::sleep(Duration::from_millis(dice.random_range(least..most))).await;
}
