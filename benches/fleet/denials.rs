//! How long a token that was denied at one gateway is accepted at another one, which has borrowed its proof: while both have
//! the engine, and if the other one is cut off from it just before.

use std::sync::Arc;
use std::time::Duration;

use http::StatusCode;
use tokio::time::{interval, sleep};

use super::engine::{Engine, Line, Relay};
use super::limits::{Limits, tell};
use super::world::{Member, Services, TO_TELL, millis, now, tokens};

const TOKENS: usize = 1_000;
/// The time of an upstream call.
const LATENCY: Duration = Duration::from_millis(5);
/// How long denied tokens are asked for at most.
const PATIENCE: Duration = Duration::from_secs(10);
/// The limit of `fleet.sync`, and the aim, in s.
const LATEST: f64 = 1.0;
/// A gateway that is cut off is out of sync after `fleet.sync` (1 s). Its last answers are on their way then.
const LATEST_CUT_OFF: f64 = 1.5;

/// How long between two denials. All at once without it.
type Pause = Option<Duration>;
const PACES: [(&str, Pause); 2] = [("in 3 s", Some(Duration::from_millis(3))), ("at once", None)];

pub(crate) async fn measure(limits: &mut Limits) {
    println!(
        "{TOKENS} tokens that are denied at one gateway, and asked for at another one that has borrowed their proofs"
    );
    for (name, pause) in PACES {
        let worlds = World::new(&format!("told {name}")).await;
        let seen = worlds.deny(pause).await;
        seen.report(limits, &format!("denied {name}"), LATEST);
    }
    for (name, pause) in PACES {
        let worlds = World::new(&format!("cut {name}")).await;
        let before = worlds.second.calls();
        worlds.relay.set(Line::Silent);
        let seen = worlds.deny(pause).await;
        seen.report(limits, &format!("the same while cut off, denied {name}"), LATEST_CUT_OFF);
        limits.at_least(
            "  calls of the gateway that is cut off",
            (worlds.second.calls() - before) as f64,
            TOKENS as f64,
        );
        // And tokens that were not denied are accepted.
        assert_eq!(worlds.second.ask(&worlds.kept, "list").await, Some(StatusCode::OK));
    }
}

struct World {
    services: Arc<Services>,
    first: Arc<Member>,
    second: Arc<Member>,
    relay: Relay,
    callers: Vec<String>,
    /// One that is not denied.
    kept: String,
    _engine: Engine,
}

impl World {
    async fn new(name: &str) -> Self {
        let engine = Engine::start().await;
        let relay = Relay::start(&engine).await;
        let services = Services::new(LATENCY);
        let first = Arc::new(Member::new(&services, &engine.settings(), true));
        let second = Arc::new(Member::new(&services, &relay.settings(), true));
        first.until_in_sync().await;
        second.until_in_sync().await;
        let callers = tokens(&name.replace(' ', "-"), TOKENS);
        let kept = "kept".to_owned();
        for tokens in [&callers[..], std::slice::from_ref(&kept)] {
            first.prove(tokens, "list").await;
            second.ask_all(tokens, "list").await;
        }
        // Whatever else it has proved itself, it did not borrow.
        let borrowed = TOKENS + 1 - second.calls();
        tell("  borrowed proofs", &format!("{borrowed} of {}", TOKENS + 1));
        Self { services, first, second, relay, callers, kept, _engine: engine }
    }

    /// Denies the tokens at the first gateway, and asks the second one for each of them until it refuses it.
    async fn deny(&self, pause: Pause) -> Seen {
        let denying = async {
            let mut ticks = pause.map(interval);
            for token in &self.callers {
                if let Some(ticks) = &mut ticks {
                    ticks.tick().await;
                }
                self.services.revoke(token);
                let (first, token) = (Arc::clone(&self.first), token.clone());
                tokio::spawn(async move {
                    // A gateway with too many requests answers some of them with 503.
                    while first.ask(&token, &format!("denied-{token}")).await != Some(StatusCode::UNAUTHORIZED) {
                        sleep(Duration::from_millis(1)).await;
                    }
                });
            }
        };
        let (begun, mut seen) = (now(), Seen::default());
        let watching = async {
            let mut open: Vec<&String> = self.callers.iter().collect();
            while !open.is_empty() && now() - begun < PATIENCE {
                let mut still = Vec::new();
                for token in open {
                    // Denied at the first gateway; the second one has not asked by then, because it is not asked.
                    let Some(refused) = self.services.refused(token) else {
                        still.push(token);
                        continue;
                    };
                    let asked = now();
                    match self.second.ask(token, "list").await {
                        Some(StatusCode::OK) => {
                            seen.answer(asked.saturating_duration_since(refused));
                            still.push(token);
                        }
                        Some(StatusCode::UNAUTHORIZED) => {}
                        _ => seen.wrong += 1,
                    }
                }
                open = still;
                sleep(Duration::from_millis(1)).await;
            }
            seen.never = open.len();
        };
        // How long after the last denial the engine knows all of them.
        let telling = async {
            while self.callers.iter().any(|token| self.services.refused(token).is_none()) {
                sleep(Duration::from_millis(5)).await;
            }
            let denied = now();
            self.first.until(TO_TELL, |waiting| waiting == 0.0).await;
            now() - denied
        };
        let ((), (), told) = tokio::join!(denying, watching, telling);
        seen.told = told;
        seen
    }
}

/// What the second gateway has answered.
#[derive(Default)]
struct Seen {
    /// Requests that were accepted after the token was denied.
    accepted: usize,
    latest: Duration,
    wrong: usize,
    /// How long after the last denial the engine knew all of them.
    told: Duration,
    /// Tokens that were accepted to the end.
    never: usize,
}

impl Seen {
    fn answer(&mut self, after: Duration) {
        self.accepted += 1;
        self.latest = self.latest.max(after);
    }

    fn report(&self, limits: &mut Limits, what: &str, latest: f64) {
        limits.at_most(&format!("{what}: last answer after (s)"), millis(self.latest) / 1e3, latest);
        limits.at_most("  tokens that were not refused within 10 s", self.never as f64, 0.0);
        limits.at_most("  answers that are neither 200 nor 401", self.wrong as f64, 0.0);
        tell("  the engine knew all of them after the last one (s)", &format!("{:.2}", millis(self.told) / 1e3));
        limits.at_least("  answers after the denial", self.accepted as f64, 1.0);
    }
}
