//! What requests wait while the engine of a fleet hangs: 20,000 requests at a gateway whose engine is suspended, and at the
//! same time 20,000 at one without a fleet. Half of them are hits in memory, the others go upstream.
//!
//! There are four rounds. Counts must be within their limits in each. Of times the best round counts, because other processes
//! of the machine can only add to them.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use http::StatusCode;
use rustix::process::Signal;
use tokio::task::JoinSet;
use tokio::time::{MissedTickBehavior, interval, sleep};

use super::engine::Engine;
use super::limits::Limits;
use super::world::{LOST, Member, STORED, Services, millis, now};

/// The time of an upstream call.
const LATENCY: Duration = Duration::from_millis(20);
/// So many requests at each gateway, half of them hits.
const REQUESTS: usize = 20_000;
/// Requests that go upstream and arrive together, before the others: more than may wait for the engine.
const AT_ONCE: usize = 160;
/// So many hits, and so many other requests, arrive in each millisecond.
const IN_A_TICK: usize = 2;
const CALLERS: usize = 64;
/// `fleet.budget`, by default.
const BUDGET: Duration = Duration::from_millis(5);
const ROUNDS: usize = 4;

/// The limits of issue "second tier": differences to the gateway without a fleet, in ms. 0.2 ms is the noise of a median.
const MEDIAN: f64 = 0.2;
const SLOWEST: f64 = 10.0;
/// How many requests may wait for the engine, and how long, in ms.
const WAITING: f64 = 128.0;
const LONGEST_WAIT: f64 = 8.0;
/// When the engine must be in use again, in ms.
const BACK: f64 = 1000.0;

pub(crate) async fn measure(limits: &mut Limits) {
    let engine = Engine::start().await;
    let services = Services::new(LATENCY);
    let (alone, member) = (Arc::new(World::new(&services, "")), Arc::new(World::new(&services, &engine.settings())));
    member.until(LOST, |lost| lost < 1.0).await;
    for world in [&alone, &member] {
        for caller in 0..CALLERS {
            world.ask(caller, "hit").await;
        }
        world.clear();
    }
    member.until(STORED, |stored| stored >= 1.0).await;

    println!(
        "{ROUNDS} rounds with {REQUESTS} requests at a gateway whose engine hangs, and at one without a fleet; upstream takes {} ms",
        LATENCY.as_millis()
    );
    let mut rounds = Vec::new();
    for round in 0..ROUNDS {
        rounds.push(measure_round(&engine, [&alone, &member], round, limits).await);
    }
    let best = |figure: fn(&Round) -> [f64; 2]| {
        rounds.iter().map(figure).min_by(|a, b| (a[1] - a[0]).total_cmp(&(b[1] - b[0]))).unwrap_or_default()
    };
    limits.compare("hits, median (ms)", best(|round| round.hits), MEDIAN);
    limits.compare("other requests, median (ms)", best(|round| round.others), MEDIAN);
    limits.compare("all, 99.9th percentile (ms)", best(|round| round.slowest), SLOWEST);
    limits.at_most(
        "mean wait for the engine, with timers in time (ms)",
        best(|round| [0.0, round.wait])[1],
        LONGEST_WAIT,
    );
    limits.at_most("in use again after (ms)", best(|round| [0.0, round.back])[1], BACK);
}

/// The times of a round, in ms. Of two, the first is without a fleet.
struct Round {
    hits: [f64; 2],
    others: [f64; 2],
    slowest: [f64; 2],
    wait: f64,
    back: f64,
}

async fn measure_round(engine: &Engine, worlds: [&Arc<World>; 2], round: usize, limits: &mut Limits) -> Round {
    let [_, member] = worlds;
    let before = [LATE, WAITED].map(|series| member.metric(series));
    engine.signal(Signal::Stop);
    let too_late = load(worlds, round).await;
    let late = member.metric(LATE) - before[0];
    let wait = (member.metric(WAITED) - before[1]) / late.max(1.0) * 1e3 - too_late;
    engine.signal(Signal::Cont);
    let begun = now();
    member.until(LOST, |lost| lost < 1.0).await;
    let back = millis(now() - begun);

    let answers = || worlds.iter().flat_map(|world| world.lock().iter().map(|time| time.is_right).collect::<Vec<_>>());
    limits.at_most("wrong answers", answers().filter(|is_right| !is_right).count() as f64, 0.0);
    limits.at_most("missing answers", (2 * REQUESTS - answers().count()) as f64, 0.0);
    limits.at_most("requests that wait for the engine", late, WAITING);
    // Else nothing was measured.
    limits.at_least("requests that wait for the engine", late, 3.0);
    let hits = worlds.map(|world| at(&world.times(|time| time.is_hit), 0.5));
    let others = worlds.map(|world| at(&world.times(|time| !time.is_hit), 0.5));
    let slowest = worlds.map(|world| at(&world.times(|_| true), 0.999));
    worlds.iter().for_each(|world| world.clear());
    Round { hits, others, slowest, wait, back }
}

/// Sends the same requests to both gateways, at the same times. Returns by how much timers that were set with the first
/// requests have been late on average, in ms: the processors are busy then.
async fn load([alone, member]: [&Arc<World>; 2], round: usize) -> f64 {
    let mut requests = JoinSet::new();
    let mut send = |number: usize, is_hit: bool| {
        // Each is the first one in half of the cases.
        let order = if number.is_multiple_of(2) { [alone, member] } else { [member, alone] };
        for world in order {
            let world = Arc::clone(world);
            requests.spawn(async move {
                let list = if is_hit { "hit".to_owned() } else { format!("{round}-{number}") };
                world.ask(number % CALLERS, &list).await;
            });
        }
    };
    let mut left = [REQUESTS / 2, REQUESTS / 2 - AT_ONCE];
    (0..AT_ONCE).for_each(|number| send(number, false));
    let timers: Vec<_> = (0..AT_ONCE).map(|_| tokio::spawn(lateness())).collect();
    let mut number = AT_ONCE;
    let mut ticks = interval(Duration::from_millis(1));
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    while left != [0, 0] {
        ticks.tick().await;
        for (left, is_hit) in left.iter_mut().zip([true, false]) {
            for _ in 0..IN_A_TICK.min(*left) {
                send(number, is_hit);
                (number, *left) = (number + 1, *left - 1);
            }
        }
    }
    requests.join_all().await;
    let mut too_late = 0.0;
    for timer in timers {
        too_late += timer.await.expect("a timer") / AT_ONCE as f64;
    }
    too_late
}

/// By how much a timer with the budget of a look-up is late, in ms.
async fn lateness() -> f64 {
    let begun = now();
    sleep(BUDGET).await;
    millis(now() - begun - BUDGET)
}

const LATE: &str = "workspace_gateway_fleet_lookup_seconds_count{result=\"late\"}";
const WAITED: &str = "workspace_gateway_fleet_lookup_seconds_sum{result=\"late\"}";

/// How long a request took.
struct Time {
    is_hit: bool,
    is_right: bool,
    took: Duration,
}

/// A gateway, and what its requests took.
struct World {
    member: Member,
    times: Mutex<Vec<Time>>,
}

impl World {
    fn new(services: &Arc<Services>, settings: &str) -> Self {
        Self { member: Member::new(services, settings, false), times: Mutex::default() }
    }

    fn lock(&self) -> MutexGuard<'_, Vec<Time>> {
        self.times.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn clear(&self) {
        self.lock().clear();
    }

    async fn ask(&self, caller: usize, list: &str) {
        let begun = now();
        let status = self.member.ask(&format!("caller-{caller}"), list).await;
        let is_right = status == Some(StatusCode::OK);
        self.lock().push(Time { is_hit: list == "hit", is_right, took: now() - begun });
    }

    /// In ms, sorted.
    fn times(&self, selects: impl Fn(&Time) -> bool) -> Vec<f64> {
        let mut times: Vec<_> = self.lock().iter().filter(|time| selects(time)).map(|time| millis(time.took)).collect();
        times.sort_by(f64::total_cmp);
        times
    }

    fn metric(&self, series: &str) -> f64 {
        self.member.metric(series)
    }

    async fn until(&self, series: &str, is_reached: impl Fn(f64) -> bool) {
        self.member.until(series, is_reached).await;
    }
}

/// The value below which this share is.
fn at(sorted: &[f64], share: f64) -> f64 {
    let place = (sorted.len() as f64 * share) as usize;
    sorted.get(place.min(sorted.len().saturating_sub(1))).copied().unwrap_or_default()
}
