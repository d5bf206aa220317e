//! One client sends invented tokens as fast as it can. The others lend and borrow proofs meanwhile, and the memory of the engine
//! is bounded.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use http::StatusCode;
use tokio::task::JoinSet;
use tokio::time::{MissedTickBehavior, interval, sleep};

use super::engine::Engine;
use super::limits::{Limits, tell};
use super::world::{IN_SYNC, INVENTED, Member, PROOFS_STORED, Services, millis, now, tokens};

const TIME: Duration = Duration::from_secs(10);
/// The requests of the client at a time.
const IN_FLIGHT: usize = 64;
const CLIENT: [u8; 4] = [192, 0, 2, 1];
/// In this time one proof is lent by each of two gateways, and two are borrowed by the third one.
const PACE: Duration = Duration::from_millis(100);
/// How much the engine may need, in MiB: for 4,096 voided sets, 4,096 notices, and the leases of a second.
const MOST_MEMORY: f64 = 16.0;
/// First requests without an upstream call, in percent.
const LEAST: f64 = 95.0;

const TOLD: &str = "workspace_gateway_fleet_told_total";
const LOOK_UPS: &str = "workspace_gateway_fleet_lookup_seconds_count";

/// How often a proof was borrowed when it was needed.
#[derive(Default)]
struct Borrowed {
    of: usize,
    borrowed: usize,
    failed: usize,
}

impl Borrowed {
    /// The first request of a caller at a gateway.
    async fn ask(&mut self, member: &Arc<Member>, token: &str) {
        let status = member.ask(token, "list").await;
        self.failed += usize::from(status != Some(StatusCode::OK));
        self.of += 1;
        self.borrowed += usize::from(!member.has_called_with(token));
    }

    fn report(&self, limits: &mut Limits, what: &str) {
        limits.at_least(&format!("{what} (%)"), 100.0 * self.borrowed as f64 / self.of.max(1) as f64, LEAST);
        limits.at_most(&format!("  of {}, answers that are no 200", self.of), self.failed as f64, 0.0);
    }
}

pub(crate) async fn measure(limits: &mut Limits) {
    println!("a client with invented tokens at one of three gateways, {} s long", TIME.as_secs());
    let engine = Engine::start().await;
    let services = Services::new(Duration::from_millis(1));
    let mut members = Member::fleet(&services, &engine.settings(), 3).await;
    let (third, second, attacked) =
        (members.pop().expect("three"), members.pop().expect("two"), members.pop().expect("one"));
    let old = tokens("old", 400);
    second.prove(&old, "list").await;
    let before = engine.used_memory().await;

    let (is_over, denied) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
    let mut clients = JoinSet::new();
    let connection = Arc::new(attacked.connection_of(CLIENT));
    for number in 0..IN_FLIGHT {
        let (attacked, connection) = (Arc::clone(&attacked), Arc::clone(&connection));
        let (is_over, denied) = (Arc::clone(&is_over), Arc::clone(&denied));
        clients.spawn(async move {
            for token in 0.. {
                if is_over.load(Ordering::Relaxed) {
                    return;
                }
                let status = attacked.ask_over(&connection, &format!("{INVENTED}{number}-{token}"), "list").await;
                denied.fetch_add(usize::from(status == Some(StatusCode::UNAUTHORIZED)), Ordering::Relaxed);
            }
        });
    }

    let begun = now();
    let (mut most, mut rounds, mut unsynced) = (before, 0, [0; 3]);
    let (mut kept, mut at_attacked, mut of_attacked, mut of_other) =
        (Borrowed::default(), Borrowed::default(), Borrowed::default(), Borrowed::default());
    let mut ticks = interval(PACE);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    while now() - begun < TIME {
        ticks.tick().await;
        for (lender, name, borrowed) in [(&attacked, "a", &mut of_attacked), (&second, "b", &mut of_other)] {
            let (token, stored) = (format!("{name}-{rounds}"), lender.metric(PROOFS_STORED));
            if lender.ask(&token, "list").await != Some(StatusCode::OK) {
                borrowed.failed += 1;
                continue;
            }
            // It is lent when the engine has it.
            for _ in 0..100 {
                if lender.metric(PROOFS_STORED) > stored {
                    break;
                }
                sleep(Duration::from_millis(1)).await;
            }
            borrowed.ask(&third, &token).await;
        }
        kept.ask(&third, &old[rounds]).await;
        at_attacked.ask(&attacked, &old[rounds]).await;
        for (count, member) in unsynced.iter_mut().zip([&attacked, &second, &third]) {
            *count += usize::from(member.metric(IN_SYNC) < 1.0);
        }
        most = most.max(engine.used_memory().await);
        rounds += 1;
    }
    let took = millis(now() - begun) / 1e3;
    is_over.store(true, Ordering::Relaxed);
    clients.join_all().await;
    sleep(Duration::from_secs(2)).await;
    tell(
        "  invented tokens that were denied, per second",
        &format!("{:.0}", denied.load(Ordering::Relaxed) as f64 / took),
    );
    tell(
        "  engine: memory before, most, 2 s after (MiB)",
        &format!("{before:.2}, {most:.2}, {:.2}", engine.used_memory().await),
    );
    tell("  rounds, and how often each gateway was out of sync", &format!("{rounds}, {unsynced:?}"));
    tell("  notices of the attacked gateway", &format!("{:?}", attacked.series(TOLD)));
    tell("  look-ups of the attacked gateway", &format!("{:?}", attacked.series(LOOK_UPS)));
    tell("  look-ups of the third gateway", &format!("{:?}", third.series(LOOK_UPS)));
    kept.report(limits, "proofs from before that are borrowed");
    at_attacked.report(limits, "the same at the attacked gateway");
    of_other.report(limits, "new proofs of another gateway that are borrowed");
    of_attacked.report(limits, "new proofs of the attacked gateway that are borrowed");
    limits.at_most("engine: memory that was added (MiB)", most - before, MOST_MEMORY);
}
