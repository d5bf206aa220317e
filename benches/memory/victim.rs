//! A caller that does no harm, beside a load: it has hits on one connection, at a steady pace, and misses on another. On a
//! third it asks upstream directly, which shows how long a miss takes on this machine at best.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;

use tokio::time::{interval, sleep, timeout};
use workspace_gateway::testing::clock::Clock;

use crate::loads::LIST;
use crate::loads::client::{Stream, Target, ask, get, token};

/// How often it asks for a hit, and how long it rests between two misses.
const PACE: Duration = Duration::from_millis(20);
const REST: Duration = Duration::from_millis(200);

/// How long it waits for an answer. One that comes later, is wrong or breaks off has taken this long.
pub(crate) const PATIENCE: Duration = Duration::from_secs(5);

/// How long answers have taken.
#[derive(Default)]
struct Seen {
    hits: Mutex<Vec<Duration>>,
    misses: Mutex<Vec<Duration>>,
    direct: Mutex<Vec<Duration>>,
    /// The first answer that was wrong, and why.
    wrong: Mutex<Option<String>>,
    has_ended: AtomicBool,
}

/// The caller, until this is dropped.
pub(crate) struct Victim {
    seen: Arc<Seen>,
    thread: Option<JoinHandle<()>>,
}

/// What was seen in a time.
pub(crate) struct Sight {
    pub(crate) hits: Taken,
    pub(crate) misses: Taken,
    /// What upstream answered directly.
    pub(crate) direct: Taken,
    /// The first answer that was wrong.
    pub(crate) wrong: Option<String>,
}

/// Of the answers of a time: how many, and how long one took, sorted.
pub(crate) struct Taken(Vec<Duration>);

impl Victim {
    /// In a thread of its own, or it would wait for the load on this side, too.
    pub(crate) fn begin(target: &Target, upstream: SocketAddr) -> Self {
        let seen = Arc::<Seen>::default();
        let thread = std::thread::spawn({
            let (seen, target) = (Arc::clone(&seen), target.clone());
            let upstream = Target { address: upstream, tls: None };
            move || {
                let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
                let misses = calls(&target, "workspace-gateway; fwd=", &seen.misses, &seen);
                let direct = calls(&upstream, "content-type: application/json", &seen.direct, &seen);
                runtime.block_on(async { tokio::join!(hits(&target, &seen), misses, direct) });
            }
        });
        Self { seen, thread: Some(thread) }
    }

    /// What it has seen since it was asked last.
    pub(crate) fn take(&self) -> Sight {
        let [hits, misses, direct] = [&self.seen.hits, &self.seen.misses, &self.seen.direct].map(|taken| {
            let mut taken = std::mem::take(&mut *taken.lock().expect("nobody panics with it"));
            taken.sort_unstable();
            Taken(taken)
        });
        let wrong = self.seen.wrong.lock().expect("nobody panics with it").take();
        Sight { hits, misses, direct, wrong }
    }
}

impl Drop for Victim {
    fn drop(&mut self) {
        self.seen.has_ended.store(true, Ordering::Relaxed);
        let _ = self.thread.take().map(JoinHandle::join);
    }
}

impl Taken {
    pub(crate) fn count(&self) -> usize {
        self.0.len()
    }

    /// What so many in a hundred have not exceeded; what nobody waits for if there is none.
    pub(crate) fn percentile(&self, percent: usize) -> Duration {
        let place = (self.0.len() * percent / 100).min(self.0.len().saturating_sub(1));
        self.0.get(place).copied().unwrap_or(PATIENCE)
    }
}

async fn hits(target: &Target, seen: &Seen) {
    let (mut stream, request) = (None, get(LIST, &token("victim"), ""));
    let mut pace = interval(PACE);
    while !seen.has_ended.load(Ordering::Relaxed) {
        // From when it was due: a slow answer delays those that follow.
        let due = pace.tick().await;
        let is_good = seen.judge(good(&mut stream, target, &request, "workspace-gateway; hit").await);
        let taken = if is_good { Clock::System.timer_now().saturating_duration_since(due) } else { PATIENCE };
        seen.hits.lock().expect("nobody panics with it").push(taken);
    }
}

/// Asks each time for another list. A 200 with this in its head is expected.
async fn calls(target: &Target, expected: &str, taken: &Mutex<Vec<Duration>>, seen: &Seen) {
    let mut stream = None;
    for number in 2_000.. {
        if seen.has_ended.load(Ordering::Relaxed) {
            return;
        }
        let request = get(&format!("/v2/p/products?offset={number}"), &token("victim"), "");
        let asked = Clock::System.timer_now();
        let is_good = seen.judge(good(&mut stream, target, &request, expected).await);
        let time = if is_good { Clock::System.timer_now().saturating_duration_since(asked) } else { PATIENCE };
        taken.lock().expect("nobody panics with it").push(time);
        sleep(REST).await;
    }
}

impl Seen {
    fn judge(&self, answered: Result<(), String>) -> bool {
        let Err(wrong) = answered else { return true };
        self.wrong.lock().expect("nobody panics with it").get_or_insert(wrong);
        false
    }
}

/// Asks, on a new connection if there is none. A 200 with this in its head is expected.
async fn good(stream: &mut Option<Stream>, target: &Target, request: &str, expected: &str) -> Result<(), String> {
    let asking = async {
        let mut open = match stream.take() {
            Some(open) => open,
            None => target.connect().await?,
        };
        let (head, _) = ask(&mut open, request).await?;
        *stream = Some(open);
        std::io::Result::Ok(head)
    };
    match timeout(PATIENCE, asking).await {
        Ok(Ok(head)) if head.starts_with("HTTP/1.1 200") && head.contains(expected) => Ok(()),
        Ok(Ok(head)) => Err(format!("{expected}: {head}")),
        Ok(Err(error)) => Err(format!("{expected}: {error}")),
        Err(_) => Err(format!("{expected}: no answer in {} s", PATIENCE.as_secs())),
    }
}
