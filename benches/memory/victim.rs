//! A legitimate caller beside a load. It has hits on one connection, at a steady rate, and misses on another. On a
//! third one it calls upstream directly, which shows the shortest possible time of a miss on this machine.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;

use tokio::time::{interval, sleep, timeout};
use workspace_gateway::testing::clock::Clock;

use crate::loads::LIST;
use crate::loads::client::{Stream, Target, exchange, get, token};

/// The interval of hits, and the time between two misses.
const PACE: Duration = Duration::from_millis(20);
const REST: Duration = Duration::from_millis(200);

/// The timeout of a response. A response that is late, wrong or incomplete counts as this long.
pub(crate) const TIMEOUT: Duration = Duration::from_secs(5);

/// The times of responses.
#[derive(Default)]
struct Measurements {
    hits: Mutex<Vec<Duration>>,
    misses: Mutex<Vec<Duration>>,
    direct: Mutex<Vec<Duration>>,
    /// The first wrong response, and the reason.
    wrong: Mutex<Option<String>>,
    has_ended: AtomicBool,
}

/// The running caller. It ends when this is dropped.
pub(crate) struct Victim {
    seen: Arc<Measurements>,
    thread: Option<JoinHandle<()>>,
}

/// The measurements of a span of time.
pub(crate) struct Measurement {
    pub(crate) hits: Taken,
    pub(crate) misses: Taken,
    /// Direct calls to upstream.
    pub(crate) direct: Taken,
    /// The first wrong response.
    pub(crate) wrong: Option<String>,
}

/// The times of the responses, sorted.
pub(crate) struct Taken(Vec<Duration>);

impl Victim {
    /// Runs on its own threads, so that the load's tasks do not delay it.
    pub(crate) fn begin(target: &Target, upstream: SocketAddr) -> Self {
        let seen = Arc::<Measurements>::default();
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

    /// The measurements since the last call.
    pub(crate) fn take(&self) -> Measurement {
        let [hits, misses, direct] = [&self.seen.hits, &self.seen.misses, &self.seen.direct].map(|taken| {
            let mut taken = std::mem::take(&mut *taken.lock().expect("not poisoned"));
            taken.sort_unstable();
            Taken(taken)
        });
        let wrong = self.seen.wrong.lock().expect("not poisoned").take();
        Measurement { hits, misses, direct, wrong }
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

    /// A percentile, or [`TIMEOUT`] if there are no responses.
    pub(crate) fn percentile(&self, percent: usize) -> Duration {
        let place = (self.0.len() * percent / 100).min(self.0.len().saturating_sub(1));
        self.0.get(place).copied().unwrap_or(TIMEOUT)
    }
}

async fn hits(target: &Target, seen: &Measurements) {
    let (mut stream, request) = (None, get(LIST, &token("victim"), ""));
    let mut pace = interval(PACE);
    while !seen.has_ended.load(Ordering::Relaxed) {
        // Measured from the time when it was due: a slow response delays the next requests.
        let due = pace.tick().await;
        let is_good = seen.judge(good(&mut stream, target, &request, "workspace-gateway; hit").await);
        let taken = if is_good { Clock::System.timer_now().saturating_duration_since(due) } else { TIMEOUT };
        seen.hits.lock().expect("not poisoned").push(taken);
    }
}

/// Requests another list each time. Expects a 200 with this text in its head.
async fn calls(target: &Target, expected: &str, taken: &Mutex<Vec<Duration>>, seen: &Measurements) {
    let mut stream = None;
    for number in 2_000.. {
        if seen.has_ended.load(Ordering::Relaxed) {
            return;
        }
        let request = get(&format!("/v2/p/products?offset={number}"), &token("victim"), "");
        let sent = Clock::System.timer_now();
        let is_good = seen.judge(good(&mut stream, target, &request, expected).await);
        let time = if is_good { Clock::System.timer_now().saturating_duration_since(sent) } else { TIMEOUT };
        taken.lock().expect("not poisoned").push(time);
        sleep(REST).await;
    }
}

impl Measurements {
    fn judge(&self, answered: Result<(), String>) -> bool {
        let Err(wrong) = answered else { return true };
        self.wrong.lock().expect("not poisoned").get_or_insert(wrong);
        false
    }
}

/// Sends a request, on a new connection if none is open. Expects a 200 with this text in its head.
async fn good(stream: &mut Option<Stream>, target: &Target, request: &str, expected: &str) -> Result<(), String> {
    let exchange = async {
        let mut open = match stream.take() {
            Some(open) => open,
            None => target.connect().await?,
        };
        let (head, _) = exchange(&mut open, request).await?;
        *stream = Some(open);
        std::io::Result::Ok(head)
    };
    match timeout(TIMEOUT, exchange).await {
        Ok(Ok(head)) if head.starts_with("HTTP/1.1 200") && head.contains(expected) => Ok(()),
        Ok(Ok(head)) => Err(format!("{expected}: {head}")),
        Ok(Err(error)) => Err(format!("{expected}: {error}")),
        Err(_) => Err(format!("{expected}: no response in {} s", TIMEOUT.as_secs())),
    }
}
