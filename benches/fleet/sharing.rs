//! How many upstream calls sixteen gateways make for what one of them knows: callers that another gateway has proved, and
//! one question of a thousand clients after a purge.

use std::sync::Arc;
use std::time::Duration;

use http::StatusCode;
use tokio::task::JoinSet;
use tokio::time::{sleep, sleep_until};

use workspace_gateway::testing::cache::store::PurgeSelection;

use super::engine::Engine;
use super::limits::{Limits, tell};
use super::world::{IN_SYNC, Member, Services, millis, now, tokens};

const GATEWAYS: usize = 16;
const CLIENTS: usize = 1_000;
/// They ask within this time. All gateways and clients are on one machine here, so it is busy meanwhile.
const ARRIVAL: Duration = Duration::from_millis(500);
/// The time of an upstream call: longer than that, and shorter than `cache.stale_if_slow`.
const LATENCY: Duration = Duration::from_millis(800);
const RUNS: usize = 5;
/// A run in which the machine was too busy for a gateway to stay in sync says nothing. Of more than so many, each counts.
const MOST_STARVED: f64 = 3.0;

const CLAIMS: &str = "workspace_gateway_fleet_claims_total";
const LOOK_UPS: &str = "workspace_gateway_fleet_lookup_seconds_count";

pub(crate) async fn measure(limits: &mut Limits) {
    println!("{GATEWAYS} gateways, {CLIENTS} callers that one of them has proved, the worst of {RUNS} runs");
    let engine = Engine::start().await;
    let services = Services::new(Duration::from_millis(1));
    let members = Member::fleet(&services, &engine.settings(), GATEWAYS).await;
    let (mut stampedes, mut firsts): (Vec<f64>, Vec<f64>) = (Vec::new(), Vec::new());
    let mut starved = 0.0;
    for run in 0.. {
        services.set_latency(Duration::from_millis(1));
        let callers = tokens(&format!("run-{run}"), CLIENTS);
        members[run % GATEWAYS].prove(&callers, "list").await;

        // A gateway that has begun after that, and has one request of each tenth caller.
        let new = Member::fleet(&services, &engine.settings(), 1).await.remove(0);
        let some: Vec<String> = callers.iter().step_by(10).cloned().collect();
        new.ask_all(&some, "list").await;
        let first = new.calls() as f64;
        drop(new);

        members[run % GATEWAYS].gateway.purge(&PurgeSelection::default());
        for member in &members {
            while member.gateway.entries().next().is_some() {
                sleep(Duration::from_millis(1)).await;
            }
        }
        services.set_latency(LATENCY);
        let before: usize = members.iter().map(|member| member.calls()).sum();
        let (slowest, are_in_sync) = tokio::join!(stampede(&members, &callers), stay_in_sync(&members));
        let calls = members.iter().map(|member| member.calls()).sum::<usize>() - before;
        let sync = if are_in_sync { "" } else { ", a gateway was out of sync" };
        tell("  one question: calls, and the slowest client", &format!("{calls}, {slowest:.0} ms{sync}"));
        if !are_in_sync && starved < MOST_STARVED {
            starved += 1.0;
            continue;
        }
        firsts.push(first);
        stampedes.push(calls as f64);
        if calls > 1 {
            let leader = members.iter().max_by_key(|member| member.calls()).expect("sixteen");
            tell("  claims of the one with the most calls", &format!("{:?}", leader.series(CLAIMS)));
            tell("  its look-ups", &format!("{:?}", leader.series(LOOK_UPS)));
        }
        if stampedes.len() == RUNS {
            break;
        }
    }
    let worst = |figures: &[f64]| figures.iter().copied().fold(0.0, f64::max);
    limits.at_most("first requests at a new gateway: upstream calls", worst(&firsts), 0.0);
    limits.at_most("one question after a purge: upstream calls", worst(&stampedes), 1.0);
}

/// Returns whether all are in sync for as long as a question takes.
async fn stay_in_sync(members: &[Arc<Member>]) -> bool {
    let (begun, mut are_in_sync) = (now(), true);
    while now() - begun < ARRIVAL + LATENCY {
        are_in_sync &= members.iter().all(|member| member.metric(IN_SYNC) == 1.0);
        sleep(Duration::from_millis(100)).await;
    }
    are_in_sync
}

/// Returns how long the slowest client waited, in ms.
async fn stampede(members: &[Arc<Member>], callers: &[String]) -> f64 {
    let begun = now();
    let mut clients = JoinSet::new();
    for (number, caller) in callers.iter().enumerate() {
        let (member, caller) = (Arc::clone(&members[number % members.len()]), caller.clone());
        clients.spawn(async move {
            sleep_until(begun + ARRIVAL.mul_f64(number as f64 / CLIENTS as f64)).await;
            let begun = now();
            assert_eq!(member.ask(&caller, "list").await, Some(StatusCode::OK));
            millis(now() - begun)
        });
    }
    clients.join_all().await.into_iter().fold(0.0, f64::max)
}
