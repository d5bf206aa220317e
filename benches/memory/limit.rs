//! The test under a memory limit. The program runs in a memory cgroup with the settings and limits of `deploy/`, a full
//! cache and a slow upstream, under each load alone and under all loads together.
//!
//! It passes if
//!
//! - the program is never killed,
//! - 99 % of the hits of a granted caller on another connection take at most 50 ms,
//! - that caller's misses take at most twice as long as without a load, and
//! - 30 s after the load, the process uses at most 1.3 times the memory of before.
//!
//! The short run only reports these targets. It fails beyond the wider bounds `SHORT`.

use std::time::Duration;

use tokio::task::JoinSet;
use tokio::time::sleep;

use crate::cgroup::Cgroup;
use crate::deployed::Deployment;
use crate::gateway::Gateway;
use crate::loads::client::{Target, token};
use crate::loads::{self, LOADS, Load, Running, expect};
use crate::upstream::Upstream;
use crate::victim::{Measurement, Taken, Victim};

/// The delay of upstream.
const UPSTREAM: Duration = Duration::from_millis(300);

/// The bounds of a round. Beyond them it fails. `None` is not checked.
struct Bounds {
    /// The percentage of hits, and the longest time that they may take.
    hit: Option<(usize, Duration)>,
    /// The slowest miss, as a multiple of the slowest one without a load.
    miss: Option<u32>,
    /// The memory `GONE` after a load, in percent of that before.
    left: usize,
}

const TARGETS: Bounds = Bounds { hit: Some((99, Duration::from_millis(50))), miss: Some(2), left: 130 };

/// The bounds of the short run. Two cores run the gateway, upstream and all loads, so latency depends more on the
/// machine: the median of hits was 1.2 s in one run of all loads and 4.5 s in the next. Some uploads that upstream does
/// not read are still in flight when memory is compared, and use up to 40 MiB.
const SHORT: Bounds = Bounds { hit: None, miss: None, left: 200 };

/// How long the victim is measured without a load.
const CALM: Duration = Duration::from_secs(3);

/// The time between a load and the comparison of memory.
const GONE: Duration = Duration::from_secs(30);

/// The duration of a load.
struct Spans {
    alone: Duration,
    together: Duration,
    /// Whether each load has its own process and its own comparison of memory. If not, all loads of a deployment share
    /// a process, memory is compared after the last one, and only the smaller deployment also gets the loads one by
    /// one.
    are_apart: bool,
}

/// Tests both deployments. Returns whether all loads have passed.
pub(crate) async fn judge(is_short: bool, only: Option<&str>) -> bool {
    if let Err(reason) = Cgroup::new(None) {
        let must = std::env::var("CI").is_ok_and(|ci| ci == "true");
        println!("{}: {reason}; root is required", if must { "FAILED" } else { "SKIPPED" });
        return !must;
    }
    let spans = |alone, together| [alone, together].map(Duration::from_secs);
    let [alone, together] = if is_short { spans(5, 20) } else { spans(20, 60) };
    let spans = Spans { alone, together, are_apart: !is_short };
    let upstream = Upstream::start(UPSTREAM).await;
    println!(
        "MiB, ms. peak: of what the limit counts, including sockets. misses: the slowest, without a load, and directly from upstream"
    );
    println!(
        "{:>11}{:>21}{:>6}{:>7}{:>7}{:>7}{:>7}{:>6}{:>6}{:>7}{:>8}{:>8}{:>8}",
        "", "load", "limit", "peak", "before", "after", "hits", "p50", "p99", "misses", "slowest", "without", "direct"
    );
    let mut passed = true;
    for deployment in Deployment::all() {
        passed &= judge_one(&deployment, &spans, &upstream, only).await;
    }
    passed
}

async fn judge_one(deployment: &Deployment, spans: &Spans, upstream: &Upstream, only: Option<&str>) -> bool {
    // With a TLS listener, every load uses TLS.
    let all: Vec<Load> = LOADS.into_iter().filter(|load| !load.tls).collect();
    let each = all.iter().map(|load| (load.name, std::slice::from_ref(load), spans.alone));
    let each = each.filter(|_| spans.are_apart || !deployment.has_tls() || only.is_some());
    let rounds = each.chain([("all-together", &all[..], spans.together)]);
    let (mut passed, mut bench) = (true, None);
    for (name, loads, span) in rounds.filter(|(name, ..)| only.is_none_or(|only| only == *name)) {
        let mut staged: Stage = match bench.take() {
            Some(staged) => staged,
            None => Stage::set(deployment, upstream).await,
        };
        let is_compared = spans.are_apart || name == "all-together" || only.is_some();
        let figures = staged.round(name, loads, span, is_compared.then_some(GONE)).await;
        let failures = figures.failures(if spans.are_apart { &TARGETS } else { &SHORT });
        let above = figures.failures(&TARGETS).into_iter().filter(|above| !failures.contains(above));
        above.for_each(|above| println!("ABOVE THE TARGET: {}, {name}: {above}", deployment.name));
        failures.iter().for_each(|failure| println!("FAILED: {}, {name}: {failure}", deployment.name));
        passed &= failures.is_empty();
        bench = (!spans.are_apart && !staged.gateway.has_ended()).then_some(staged);
    }
    passed
}

/// A gateway under a limit, with a full cache, and the victim.
struct Stage<'a> {
    deployment: &'a Deployment,
    // Before the gateway: fields are dropped in this order, and the victim uses the gateway.
    victim: Victim,
    gateway: Gateway,
    /// MiB of resident memory before any load.
    before: usize,
    /// The slowest miss without a load.
    calm: Duration,
}

impl<'a> Stage<'a> {
    async fn set(deployment: &'a Deployment, upstream: &Upstream) -> Self {
        let cgroup = Cgroup::new(Some(deployment.limit)).expect("one could be made before");
        let gateway = Gateway::with(upstream, deployment.has_tls(), &deployment.settings, Some(cgroup));
        let target = gateway.target();
        fill(&target).await;
        loads::prime(&target).await;
        let victim = Victim::begin(&target, upstream.address);
        // The first requests connect and prove the victim.
        sleep(Duration::from_secs(1)).await;
        victim.take();
        sleep(CALM).await;
        let calm = victim.take().misses.percentile(100);
        let before = gateway.memory().resident / 1024;
        Self { deployment, victim, gateway, before, calm }
    }

    fn was_killed(&mut self) -> bool {
        self.gateway.cgroup().map_or(0, Cgroup::kills) > 0 || self.gateway.has_ended()
    }

    /// Runs one load or all loads, and prints a row of the table.
    async fn round(
        &mut self,
        name: &str,
        loads: &[Load],
        span: Duration,
        compared: Option<Duration>,
    ) -> MetricsSnapshot {
        let target = self.gateway.target();
        // Discards what the previous load has delayed.
        sleep(Duration::from_secs(1)).await;
        self.victim.take();
        let running: Vec<_> = loads.iter().map(|load| Running::begin(load, &target, true)).collect();
        sleep(span).await;
        let Measurement { hits, misses, direct, wrong } = self.victim.take();
        drop(running);
        if let Some(gone) = compared {
            sleep(gone).await;
        }
        let kills = self.gateway.cgroup().map_or(0, Cgroup::kills);
        let peak = self.gateway.cgroup().map_or(0, Cgroup::peak) / 1024;
        let after = self.gateway.memory().resident / 1024;
        let [p50, p99] = [50, 99].map(|percent| hits.percentile(percent));
        let slowest = misses.percentile(100);
        println!(
            "{:>11}{name:>21}{:>6}{peak:>7}{:>7}{:>7}{:>7}{:>6}{:>6}{:>7}{:>8}{:>8}{:>8}",
            self.deployment.name,
            self.deployment.limit >> 20,
            self.before,
            compared.map_or("-".to_owned(), |_| after.to_string()),
            hits.count(),
            p50.as_millis(),
            p99.as_millis(),
            misses.count(),
            slowest.as_millis(),
            self.calm.as_millis(),
            direct.percentile(100).as_millis(),
        );
        MetricsSnapshot {
            is_killed: self.was_killed(),
            kills,
            hits,
            slowest,
            calm: self.calm,
            before: self.before,
            after: compared.map(|_| after),
            wrong,
        }
    }
}

/// The measurements of a round.
struct MetricsSnapshot {
    is_killed: bool,
    kills: usize,
    hits: Taken,
    slowest: Duration,
    calm: Duration,
    before: usize,
    /// `None` if memory was not compared.
    after: Option<usize>,
    /// The first wrong response.
    wrong: Option<String>,
}

impl MetricsSnapshot {
    /// What exceeds these bounds.
    fn failures(&self, bounds: &Bounds) -> Vec<String> {
        if self.is_killed {
            return vec![format!("the process was killed (OOM kills: {})", self.kills)];
        }
        let mut failures = Vec::new();
        if let Some((percent, most)) = bounds.hit {
            let taken = self.hits.percentile(percent);
            if taken > most {
                failures.push(format!("{percent} hits in 100 took up to {} ms", taken.as_millis()));
            }
        }
        if bounds.miss.is_some_and(|times| self.slowest > self.calm * times) {
            let [slowest, calm] = [self.slowest, self.calm].map(|taken| taken.as_millis());
            failures.push(format!("a miss took {slowest} ms, {calm} ms without a load"));
        }
        if let Some(after) = self.after.filter(|after| after * 100 > self.before * bounds.left) {
            failures.push(format!("{after} MiB are left, and {} MiB were there before", self.before));
        }
        if !failures.is_empty() {
            failures.extend(self.wrong.iter().map(|wrong| format!("the first wrong response: {wrong}")));
        }
        failures
    }
}

/// Fills the cache with lists of 1 MiB.
async fn fill(target: &Target) {
    let mut filling = JoinSet::new();
    for part in 0..16 {
        let target = target.clone();
        filling.spawn(async move {
            let mut stream = target.connect().await.expect("a connection");
            for number in 0..5 {
                let path = format!("/v2/p/products?offset={}", (1 << 20) + 1 + part * 5 + number);
                expect(&mut stream, &path, &token("good")).await;
            }
        });
    }
    while let Some(filled) = filling.join_next().await {
        filled.expect("the cache is filled");
    }
}
