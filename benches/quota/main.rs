//! Judges the quota ledger in simulated time: how many calls upstream refuses, how much of a quota is used, and how long
//! requests wait, with a demand of ten times the quota.
//!
//! `cargo bench --bench quota` takes about a minute. It fails if a figure is beyond its limit. The gateway is the real
//! one. Upstream is simulated: it counts calls in fixed windows, which do not begin when the gateway's calls do.

#![allow(unreachable_pub, missing_docs, clippy::expect_used)]

mod world;

use std::collections::BTreeMap;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, Instant};

use http::StatusCode;
use tokio::task::JoinSet;
use tokio::time::sleep;
use workspace_gateway::testing::catalogue::{Quota, QuotaPolicy};
use workspace_gateway::testing::clock::Clock;

use crate::world::{Answer, LATENCY, World, lock, quota};

const SECOND: Duration = Duration::from_secs(1);
const MINUTE: Duration = Duration::from_secs(60);
/// `upstream.answer_timeout`, by default, and the margin of requests.
const DEADLINE: Duration = Duration::from_secs(36);
/// The callers of a load.
const CALLERS: usize = 20;
const OVERLOAD: f64 = 10.0;

fn main() -> ExitCode {
    if !std::env::args().any(|argument| argument == "--bench") {
        println!("not a test: run cargo bench --bench quota");
        return ExitCode::SUCCESS;
    }
    // `--bench 4 8` runs some scenes only.
    let chosen: Vec<usize> = std::env::args().filter_map(|argument| argument.parse().ok()).collect();
    let mut judge = Judge::default();
    for scene in (0..11).filter(|scene| chosen.is_empty() || chosen.contains(scene)) {
        // A runtime for each scene: its time begins anew.
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build();
        runtime.expect("a runtime").block_on(run(scene, &mut judge));
    }
    if judge.has_failed { ExitCode::FAILURE } else { ExitCode::SUCCESS }
}

async fn run(scene: usize, judge: &mut Judge) {
    let (ip, user, api) = (quota(5, SECOND), quota(200, 5 * MINUTE), quota(2000, MINUTE));
    match scene {
        0 => overload(judge, "ip 5/s", &[(QuotaPolicy::Ip, ip)], 5.0, 3 * MINUTE).await,
        1 => {
            // Each caller has a quota of its own.
            let rate = 200.0 / 300.0 * CALLERS as f64;
            overload(judge, "user 200/5 min", &[(QuotaPolicy::User, user)], rate, 15 * MINUTE).await;
        }
        2 => overload(judge, "api 2000/min", &[(QuotaPolicy::Api, api)], 2000.0 / 60.0, 4 * MINUTE).await,
        3 => {
            let all = [(QuotaPolicy::Ip, ip), (QuotaPolicy::User, user), (QuotaPolicy::Api, api)];
            overload(judge, "all together", &all, 5.0, 10 * MINUTE).await;
        }
        4 => invented_tokens(judge).await,
        5 => pass_through(judge).await,
        6 => one_users_limit(judge).await,
        7 => terraform(judge).await,
        8 => changed_limit(judge, QuotaPolicy::Ip, [5, 3], SECOND, CALLERS).await,
        9 => changed_limit(judge, QuotaPolicy::User, [20, 12], 30 * SECOND, 4).await,
        _ => changed_limit(judge, QuotaPolicy::Api, [200, 120], 20 * SECOND, CALLERS).await,
    }
}

/// Prints figures, and whether they are within their limits.
#[derive(Default)]
struct Judge {
    has_failed: bool,
}

impl Judge {
    fn check(&mut self, what: &str, figure: f64, limit: f64, is_within: bool) {
        let verdict = if is_within { "" } else { "   FAILED" };
        self.has_failed |= !is_within;
        println!("  {what:<66}{figure:>9.2}   limit {limit:.2}{verdict}");
    }

    fn at_most(&mut self, what: &str, figure: f64, limit: f64) {
        self.check(what, figure, limit, figure <= limit);
    }

    fn at_least(&mut self, what: &str, figure: f64, limit: f64) {
        self.check(what, figure, limit, figure >= limit);
    }
}

/// When the gateway knew a limit: for a limit of all callers, when the second caller had met it.
fn known_at(world: &World, policy: QuotaPolicy, token: Option<&str>) -> Option<Instant> {
    let state = lock(&world.upstream);
    let mut refused: Vec<_> = state.calls.iter().filter(|call| call.refused_by == Some(policy)).collect();
    refused.sort_by_key(|call| call.answered);
    let refused: Vec<_> = refused.into_iter().filter(|call| token.is_none_or(|token| call.token == token)).collect();
    let first = refused.first()?;
    if policy.is_shared() {
        refused.iter().find(|call| call.token != first.token).map(|call| call.answered)
    } else {
        Some(first.answered)
    }
}

/// The calls that were sent after their limit was known, and refused by it.
fn late_refusals(world: &World, policy: QuotaPolicy) -> usize {
    let tokens: Vec<Option<String>> = match policy.is_shared() {
        true => vec![None],
        false => (0..CALLERS).map(|caller| Some(format!("caller-{caller}"))).collect(),
    };
    let of = |token: &Option<String>| {
        let known = known_at(world, policy, token.as_deref());
        let state = lock(&world.upstream);
        let is_own = |call: &&world::AnsweredCall| token.as_ref().is_none_or(|token| call.token == *token);
        let late = |call: &&world::AnsweredCall| {
            call.refused_by == Some(policy) && known.is_some_and(|known| call.sent >= known)
        };
        state.calls.iter().filter(is_own).filter(late).count()
    };
    tokens.iter().map(of).sum()
}

fn seconds(times: impl Iterator<Item = Duration>) -> Vec<f64> {
    let mut seconds: Vec<_> = times.map(|time| time.as_secs_f64()).collect();
    seconds.sort_by(f64::total_cmp);
    seconds
}

fn median(sorted: &[f64]) -> f64 {
    sorted.get(sorted.len() / 2).copied().unwrap_or(0.0)
}

/// Demand of ten times what the limits allow, `allowed` calls per second.
async fn overload(judge: &mut Judge, name: &str, limits: &[(QuotaPolicy, Quota)], allowed: f64, time: Duration) {
    let world = World::new("");
    world.prove(CALLERS).await;
    for (policy, quota) in limits {
        world.limit(*policy, *quota);
    }
    let begun = Clock::System.now();
    world.load(0..CALLERS, allowed * OVERLOAD, time).await;
    let took = Clock::System.now() - begun;
    println!("{name}: {CALLERS} callers, {} requests in {time:?}", lock(&world.answers).len());
    for (policy, _) in limits {
        let (_, refused) = lock(&world.upstream).counts(*policy);
        println!("  refusals of policy {policy:?}: {refused}");
        judge.at_most(
            "calls that upstream refused after the limit was known",
            late_refusals(&world, *policy) as f64,
            0.0,
        );
    }
    let answers = lock(&world.answers).clone();
    let ok = answers.iter().filter(|answer| answer.status == StatusCode::OK).count() as f64;
    // What the limits allow while there is demand. An oracle knows each limit when it has been met, and answers as many.
    let window = limits.iter().map(|(_, quota)| quota.window).max().unwrap_or_default();
    let span = took.min(time + DEADLINE);
    let oracle = (allowed * span.as_secs_f64()).floor();
    judge.at_least("answered, share of what the quota allows (%)", ok / oracle * 100.0, 95.0);
    let refused = answers.iter().filter(|answer| answer.status == StatusCode::TOO_MANY_REQUESTS).count() as f64;
    let others = answers.len() as f64 - ok - refused;
    judge.at_most("answers that are neither 200 nor 429", others, 0.0);
    let waits = seconds(answers.iter().map(|answer| answer.waited));
    judge.at_most("longest wait (s)", *waits.last().unwrap_or(&0.0), window.max(DEADLINE).as_secs_f64() + 1.0);
    // By caller: the mean wait of the requests that were answered.
    let mut by_caller: BTreeMap<usize, (f64, usize)> = BTreeMap::new();
    for answer in answers.iter().filter(|answer| answer.status == StatusCode::OK) {
        let (sum, count) = by_caller.entry(answer.caller).or_default();
        (*sum, *count) = (*sum + answer.waited.as_secs_f64(), *count + 1);
    }
    let mut means: Vec<_> = by_caller.values().map(|(sum, count)| sum / *count as f64).collect();
    means.sort_by(f64::total_cmp);
    judge.at_most("slowest caller ÷ median caller", means.last().unwrap_or(&0.0) / median(&means), 2.0);
    judge.at_least("callers with an answer", by_caller.len() as f64, CALLERS as f64);
    let early = answers.iter().filter(|answer| answer.status == StatusCode::TOO_MANY_REQUESTS);
    let untold = early.filter(|answer| answer.retry_after.is_none()).count();
    judge.at_most("429s without Retry-After", untold as f64, 0.0);
}

/// A caller asks for a list each second. Returns its waits, sorted.
async fn poll(world: &World, caller: usize, count: usize) -> Vec<f64> {
    let connection = world.connection();
    let mut waits = Vec::new();
    for number in 0..count {
        let begun = Clock::System.now();
        world.ask(&connection, caller, &format!("poll-{number}")).await;
        waits.push(Clock::System.now() - begun);
        sleep(SECOND.saturating_sub(Clock::System.now() - begun)).await;
    }
    seconds(waits.into_iter())
}

async fn invented_tokens(judge: &mut Judge) {
    println!("1,000 invented tokens against one proved caller, ip 5/s");
    let mut longest = Vec::new();
    for invented in [0_usize, 1000] {
        let world = World::new("");
        world.prove(1).await;
        world.limit(QuotaPolicy::Ip, quota(5, SECOND));
        let mut flood = JoinSet::new();
        for number in 0..invented {
            let world = world.clone();
            flood.spawn(async move {
                let connection = world.connection();
                loop {
                    world.send(&connection, 1 + number, &format!("invented-{number}"), world::LISTS).await;
                    sleep(SECOND).await;
                }
            });
        }
        // The gateway learns the limit when the proved caller meets it.
        poll(&world, 0, 5).await;
        lock(&world.answers).clear();
        let waits = poll(&world, 0, 60).await;
        let own: Vec<Answer> = lock(&world.answers).iter().filter(|answer| answer.caller == 0).cloned().collect();
        let failed = own.iter().filter(|answer| answer.status != StatusCode::OK).count();
        judge.at_most("requests of the proved caller that fail", failed as f64, 0.0);
        longest.push(*waits.last().expect("waits"));
        flood.shutdown().await;
    }
    judge.at_most("its longest wait (s), alone + one call", longest[1], longest[0] + LATENCY.as_secs_f64());
}

async fn pass_through(judge: &mut Judge) {
    println!("one client polls pass-through at ten times ip 10/s, others ask for lists at ten times");
    let world = World::new("");
    world.prove(CALLERS).await;
    world.limit(QuotaPolicy::Ip, quota(10, SECOND));
    let mut relays = JoinSet::new();
    for _ in 0..30 {
        let world = world.clone();
        relays.spawn(async move {
            let connection = world.connection();
            loop {
                world.relay(&connection, 0).await;
            }
        });
    }
    sleep(5 * SECOND).await;
    let begun = Clock::System.now();
    world.load(1..CALLERS, 100.0, MINUTE).await;
    let span = (Clock::System.now() - begun).as_secs_f64();
    relays.shutdown().await;
    let state = lock(&world.upstream);
    let accepted = state.calls.iter().filter(|call| call.sent >= begun && call.refused_by.is_none());
    let (lists, all) = (accepted.clone().filter(|call| !call.is_relayed).count() as f64, accepted.count() as f64);
    // A call counts for 2 % longer than the window, so that no window has too many. So 98 % of the quota can be used.
    judge.at_least("share of product lists in the quota (%)", lists / (10.0 * span) * 100.0, 50.0 * 0.98 * 0.99);
    judge.at_least("share of product lists in the calls (%)", lists / all * 100.0, 49.9);
}

async fn one_users_limit(judge: &mut Judge) {
    println!("user 200/5 min: one caller asks at ten times, another at half");
    let world = World::new("");
    world.prove(2).await;
    world.limit(QuotaPolicy::User, quota(200, 5 * MINUTE));
    tokio::join!(world.load(0..1, 200.0 / 300.0 * OVERLOAD, 10 * MINUTE), world.load(1..2, 100.0 / 300.0, 10 * MINUTE));
    let answers = lock(&world.answers).clone();
    let waits = seconds(answers.iter().filter(|answer| answer.caller == 1).map(|answer| answer.waited));
    judge.at_most("longest wait of the other (s)", *waits.last().expect("waits"), LATENCY.as_secs_f64() + 0.01);
}

async fn terraform(judge: &mut Judge) {
    println!("22 Terraform pages at once, user 200/5 min with 150 used");
    let world = World::new("");
    world.prove(1).await;
    world.limit(QuotaPolicy::User, quota(200, 5 * MINUTE));
    let connection = Arc::new(world.connection());
    for number in 0..150 {
        world.ask(&connection, 0, &format!("before-{number}")).await;
    }
    let mut pages = JoinSet::new();
    lock(&world.answers).clear();
    for page in 0..22 {
        let (world, connection) = (world.clone(), Arc::clone(&connection));
        pages.spawn(async move { world.ask(&connection, 0, &format!("page-{page}")).await });
    }
    pages.join_all().await;
    let answers = lock(&world.answers).clone();
    let ok = answers.iter().filter(|answer| answer.status == StatusCode::OK).count();
    judge.at_least("answered", ok as f64, 22.0);
    let waits = seconds(answers.iter().map(|answer| answer.waited));
    judge.at_most("longest wait (s)", *waits.last().expect("waits"), 5.0);
}

/// A limit changes from the first number of calls in a window to the second, and back, each after two minutes.
async fn changed_limit(judge: &mut Judge, policy: QuotaPolicy, calls: [u32; 2], window: Duration, callers: usize) {
    let [first, lowered_to] = calls;
    println!(
        "{policy:?} {first}/{window:?}, then {lowered_to}, then {first}, each for two minutes, with ten times the demand"
    );
    let world = World::new("");
    world.prove(callers).await;
    world.limit(policy, quota(first, window));
    let changes = async {
        let mut changed = Vec::new();
        for calls in [lowered_to, first] {
            sleep(2 * MINUTE).await;
            changed.push(Clock::System.now());
            world.limit(policy, quota(calls, window));
        }
        changed
    };
    // Limits of users are as many as there are callers.
    let limits = if policy.is_shared() { 1.0 } else { callers as f64 };
    let demand = f64::from(first) / window.as_secs_f64() * limits * OVERLOAD;
    let (changed, ()) = tokio::join!(changes, world.load(0..callers, demand, 6 * MINUTE));
    let state = lock(&world.upstream);
    let (lowered, raised) = (changed[0], changed[1]);
    // Calls that are in flight when the first of them is refused cannot know of the change.
    let refused_in = |from: Instant, to: Instant| {
        let refused =
            state.calls.iter().filter(|call| call.refused_by.is_some() && call.sent >= from && call.sent < to);
        let mut first = BTreeMap::new();
        for call in refused.clone() {
            let known = first.entry(limit_of(policy, call)).or_insert(call.answered);
            *known = call.answered.min(*known);
        }
        let late = refused.clone().filter(|call| call.sent >= first[limit_of(policy, call)]).count();
        (refused.count() as f64 / limits, late as f64)
    };
    for (change, (all, late)) in
        [("lowered", refused_in(lowered, raised)), ("raised", refused_in(raised, Clock::System.now()))]
    {
        // Of policy api, more than one are in flight.
        let most = if policy == QuotaPolicy::Api { 5.0 } else { 1.0 };
        judge.at_most(&format!("refused after it was {change}, for each limit"), all, most);
        judge.at_most(&format!("of these, sent after it was known that it was {change}"), late, 0.0);
    }
}

/// Whose limit has refused a call.
fn limit_of(policy: QuotaPolicy, call: &world::AnsweredCall) -> &str {
    if policy.is_shared() { "" } else { &call.token }
}
