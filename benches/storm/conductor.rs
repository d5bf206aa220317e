//! Has upstream be anything but well: its weather, its catalogue, and whom it knows, each changing on its own.
//!
//! Every change is written down before it is made, and what it replaces is crossed out after.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use http::StatusCode;
use rand::rngs::SmallRng;
use rand::{RngExt, SeedableRng};
use tokio::sync::watch;
use workspace_gateway::testing::clock::Clock;

use super::lock;
use super::settings::{ANSWER_TIMEOUT, PATIENCE};
use super::world::{Journal, Weather, World};

/// Goes on until told to stop, and leaves upstream well.
pub(crate) async fn conduct(world: Arc<World>, journal: Arc<Mutex<Journal>>, seed: u64, stop: watch::Receiver<bool>) {
    let stopped = || async {
        // It fails only if nobody can say so any more.
        let _ = stop.clone().wait_for(|&stop| stop).await;
    };
    let conductor = Conductor { world: &world, journal: &journal };
    let [weather, catalogue, standing] = [1, 2, 3].map(|part| SmallRng::seed_from_u64(seed ^ (part << 32)));
    tokio::join!(
        conductor.changes_weather(weather, stopped()),
        conductor.changes_catalogue(catalogue, stopped()),
        conductor.changes_standings(standing, stopped()),
    );
}

struct Conductor<'a> {
    world: &'a World,
    journal: &'a Mutex<Journal>,
}

impl Conductor<'_> {
    /// All kinds of bad weather in turn, each time in another order, with fine weather between.
    async fn changes_weather(&self, mut dice: SmallRng, stopped: impl Future<Output = ()>) {
        let mut stopped = std::pin::pin!(stopped);
        let mut ahead = Vec::new();
        loop {
            if ahead.is_empty() {
                ahead = self.bad_weather(&mut dice);
            }
            for weather in [ahead.swap_remove(dice.random_range(0..ahead.len())), Weather::Healthy] {
                // Upstream may not have these one day, and have them the next.
                self.world.give_headers(dice.random_bool(0.5));
                self.world.simulator.tag_lists(dice.random_bool(0.5));
                self.turn(weather).await;
                // One in ten outlasts everything that is stale.
                let longest = if dice.random_ratio(1, 10) { 5_000 } else { 1_000 };
                tokio::select! {
                    () = &mut stopped => return self.turn(Weather::Healthy).await,
                    () = pause(&mut dice, 150, longest) => {}
                }
            }
        }
    }

    fn bad_weather(&self, dice: &mut SmallRng) -> Vec<Weather> {
        const FAILURES: [StatusCode; 4] = [
            StatusCode::INTERNAL_SERVER_ERROR,
            StatusCode::BAD_GATEWAY,
            StatusCode::SERVICE_UNAVAILABLE,
            StatusCode::GATEWAY_TIMEOUT,
        ];
        vec![
            Weather::Slow,
            Weather::Stuck,
            Weather::Failing(FAILURES[dice.random_range(0..FAILURES.len())]),
            Weather::Throttling,
            Weather::ThrottlingOne(dice.random_range(0..self.world.callers.len())),
            Weather::Resetting,
            Weather::Truncating,
            Weather::Dead,
            Weather::Dead,
        ]
    }

    /// Changes the weather.
    async fn turn(&self, weather: Weather) {
        let simulator = &self.world.simulator;
        let before = {
            let mut journal = lock(self.journal);
            let before = journal.weather.latest();
            journal.weather.begin(weather, Clock::System.now());
            before
        };
        match before {
            Weather::Healthy => {}
            Weather::Slow | Weather::Stuck => simulator.delay(Duration::ZERO),
            Weather::Failing(_) => simulator.fail_with(None),
            Weather::Throttling => simulator.throttle(None),
            Weather::ThrottlingOne(caller) => simulator.throttle_token(&self.world.callers[caller].token, false),
            Weather::Resetting => simulator.reset_connection(false),
            Weather::Truncating => simulator.truncate(false),
            Weather::Dead => simulator.come_back().expect("its addresses were kept"),
        }
        match weather {
            Weather::Healthy => {}
            Weather::Slow => simulator.delay(PATIENCE + Duration::from_millis(200)),
            Weather::Stuck => simulator.delay(3 * ANSWER_TIMEOUT),
            Weather::Failing(status) => simulator.fail_with(Some(status)),
            Weather::Throttling => simulator.throttle(Some(0)),
            Weather::ThrottlingOne(caller) => simulator.throttle_token(&self.world.callers[caller].token, true),
            Weather::Resetting => simulator.reset_connection(true),
            Weather::Truncating => simulator.truncate(true),
            Weather::Dead => simulator.shut_down().await,
        }
        lock(self.journal).weather.settle(Clock::System.now());
    }

    async fn changes_catalogue(&self, mut dice: SmallRng, stopped: impl Future<Output = ()>) {
        let mut stopped = std::pin::pin!(stopped);
        loop {
            tokio::select! {
                () = &mut stopped => break,
                () = pause(&mut dice, 100, 900) => {}
            }
            let version = &mut lock(self.journal).version;
            version.begin(version.latest() + 1, Clock::System.now());
            self.world.simulator.change_catalogue();
            version.settle(Clock::System.now());
        }
    }

    /// Tokens are revoked, expire or lose their permission, and are good again.
    async fn changes_standings(&self, mut dice: SmallRng, stopped: impl Future<Output = ()>) {
        let mut stopped = std::pin::pin!(stopped);
        let simulator = &self.world.simulator;
        loop {
            tokio::select! {
                () = &mut stopped => break,
                () = pause(&mut dice, 20, 300) => {}
            }
            let caller = dice.random_range(0..self.world.callers.len() - 1);
            let standing = &mut lock(self.journal).standing[caller];
            let is_good = !standing.latest();
            // Most are good at any time.
            if !is_good && dice.random_ratio(2, 3) {
                continue;
            }
            standing.begin(is_good, Clock::System.now());
            let token = &self.world.callers[caller].token;
            match dice.random_range(0..3) {
                _ if is_good => simulator.restore(token),
                0 => simulator.revoke(token),
                1 => simulator.expire(token),
                _ => simulator.deny(token),
            }
            standing.settle(Clock::System.now());
        }
    }
}

async fn pause(dice: &mut SmallRng, least: u64, most: u64) {
    tokio::time::sleep(Duration::from_millis(dice.random_range(least..most))).await;
}
