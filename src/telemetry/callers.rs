//! What each caller has done: requests, hits, refusals, and when. A caller is shown by the keyed digest that the log has.
//!
//! The table is bounded, and what it forgets first is what has not been seen for longest. Callers that upstream has
//! accepted have a table of their own: credentials that somebody invents displace only each other. A hit on the fast path
//! counts without a look-up or a lock, because the remembered head has the counts of its caller.

use std::cmp::Reverse;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use http::StatusCode;
use serde::Serialize;
use tokio::time::Instant;

use super::completed::CompletedRequest;
use super::text::{MAX_AGENT, shown_agent};
use crate::random::HashMap;
use crate::request::caller::Caller;
use crate::request::digest::ShortDigest;
use crate::sync::Mutex;

/// How many callers are remembered: so many that upstream has accepted, and so many others. They take about 0.7 MB.
const MAX_CALLERS: usize = 1_000;

/// Callers that were refused within this time come first.
const RECENT: Duration = Duration::from_secs(300);

pub struct CallerCounts {
    id: ShortDigest,
    /// The id of its access key, which is no secret. `None` for a token.
    access_key: Option<Box<str>>,
    is_accepted: AtomicBool,
    is_forgotten: AtomicBool,
    hits: AtomicU64,
    /// Requests that were no hits.
    others: AtomicU64,
    refusals: AtomicU64,
    last_seen: Second,
    last_refused: Second,
    /// The beginning of the last `User-Agent`, as it came.
    agent: Mutex<Option<Box<[u8]>>>,
}

/// A second since the start of the table, plus one; 0 is never.
#[derive(Default)]
struct Second(AtomicU64);

impl Second {
    fn set(&self, second: u64) {
        // Many hits in one second then only read it.
        if self.0.load(Ordering::Relaxed) != second {
            self.0.store(second, Ordering::Relaxed);
        }
    }

    /// In seconds.
    fn ago(&self, now: u64) -> Option<u64> {
        let second = Some(self.0.load(Ordering::Relaxed)).filter(|&second| second > 0)?;
        Some(now.saturating_sub(second))
    }
}

/// What the table says of a caller, for `/status`.
#[derive(Debug, Serialize)]
pub(crate) struct CallerRow {
    id: String,
    access_key: Option<String>,
    /// Escaped.
    user_agent: Option<String>,
    /// Whether upstream has accepted it.
    is_accepted: bool,
    requests: u64,
    hits: u64,
    /// Responses with 401 or 403, of upstream or of the gateway.
    refusals: u64,
    /// How long ago.
    last_seen_seconds: u64,
    last_refusal_seconds: Option<u64>,
}

pub(crate) struct CallerTable {
    started: Instant,
    callers: Mutex<Callers>,
}

#[derive(Default)]
struct Callers {
    accepted: HashMap<Caller, Arc<CallerCounts>>,
    others: HashMap<Caller, Arc<CallerCounts>>,
}

impl CallerCounts {
    fn new(id: ShortDigest, access_key: Option<&str>) -> Self {
        Self {
            id,
            access_key: access_key.map(Into::into),
            is_accepted: AtomicBool::new(false),
            is_forgotten: AtomicBool::new(false),
            hits: AtomicU64::new(0),
            others: AtomicU64::new(0),
            refusals: AtomicU64::new(0),
            last_seen: Second::default(),
            last_refused: Second::default(),
            agent: Mutex::default(),
        }
    }

    pub(crate) fn id(&self) -> ShortDigest {
        self.id
    }

    /// Whether the table does not have it any more.
    pub(crate) fn is_forgotten(&self) -> bool {
        self.is_forgotten.load(Ordering::Relaxed)
    }

    fn set_agent(&self, agent: Option<&[u8]>) {
        let agent = agent.map(|agent| &agent[..agent.len().min(MAX_AGENT)]);
        let mut known = self.agent.lock();
        if known.as_deref() != agent {
            *known = agent.map(Into::into);
        }
    }

    fn requests(&self) -> u64 {
        self.hits.load(Ordering::Relaxed) + self.others.load(Ordering::Relaxed)
    }

    /// The place among the rows: how long ago it was refused in the last minutes, and how long ago it was seen.
    fn rank(&self, now: u64) -> (u64, u64, Reverse<u64>, ShortDigest) {
        let refused = self.last_refused.ago(now).filter(|ago| *ago <= RECENT.as_secs()).unwrap_or(u64::MAX);
        (refused, self.last_seen.ago(now).unwrap_or(u64::MAX), Reverse(self.requests()), self.id)
    }

    fn row(&self, now: u64) -> CallerRow {
        CallerRow {
            id: self.id.as_str().to_owned(),
            access_key: self.access_key.as_deref().map(str::to_owned),
            user_agent: self.agent.lock().as_deref().map(|agent| shown_agent(agent).into()),
            is_accepted: self.is_accepted.load(Ordering::Relaxed),
            requests: self.requests(),
            hits: self.hits.load(Ordering::Relaxed),
            refusals: self.refusals.load(Ordering::Relaxed),
            last_seen_seconds: self.last_seen.ago(now).unwrap_or_default(),
            last_refusal_seconds: self.last_refused.ago(now),
        }
    }
}

impl CallerTable {
    pub(super) fn new(started: Instant) -> Self {
        Self { started, callers: Mutex::default() }
    }

    fn second(&self, time: Instant) -> u64 {
        time.saturating_duration_since(self.started).as_secs() + 1
    }

    /// The counts of a caller whose request has come. `id` makes the digest of a new caller.
    pub(crate) fn seen(
        &self,
        caller: Caller,
        id: impl FnOnce() -> ShortDigest,
        access_key: Option<&str>,
        agent: Option<&[u8]>,
        now: Instant,
    ) -> Arc<CallerCounts> {
        let mut callers = self.callers.lock();
        let counts = match callers.accepted.get(&caller).or_else(|| callers.others.get(&caller)) {
            Some(known) => Arc::clone(known),
            None => {
                let new = Arc::new(CallerCounts::new(id(), access_key));
                make_room(&mut callers.others);
                callers.others.insert(caller, Arc::clone(&new));
                new
            }
        };
        counts.last_seen.set(self.second(now));
        drop(callers);
        counts.set_agent(agent);
        counts
    }

    /// Keeps a caller among the accepted ones, if upstream has accepted it. `is_known` is only asked once.
    pub(crate) fn accept_if(&self, caller: Caller, counts: &CallerCounts, is_known: impl FnOnce() -> bool) {
        if counts.is_accepted.load(Ordering::Relaxed) || !is_known() {
            return;
        }
        counts.is_accepted.store(true, Ordering::Relaxed);
        let mut callers = self.callers.lock();
        // Its counts are others if the table has forgotten it meanwhile.
        if let Some(known) = callers.others.remove(&caller) {
            known.is_accepted.store(true, Ordering::Relaxed);
            make_room(&mut callers.accepted);
            callers.accepted.insert(caller, known);
        }
    }

    /// Counts a completed request of a caller.
    pub(super) fn count(&self, caller: &CallerCounts, request: &CompletedRequest<'_>) {
        let second = self.second(request.ended);
        let count = if request.outcome.is_hit() { &caller.hits } else { &caller.others };
        count.fetch_add(1, Ordering::Relaxed);
        caller.last_seen.set(second);
        if matches!(request.status, Some(StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN)) {
            caller.refusals.fetch_add(1, Ordering::Relaxed);
            caller.last_refused.set(second);
        }
    }

    /// At most `limit` callers, and how many are remembered. Those that were refused in the last minutes come first, then
    /// those that were seen last. If there are too many, half of the rows are for callers that upstream has accepted:
    /// invented tokens must not hide them.
    pub(crate) fn rows(&self, limit: usize, now: Instant) -> (Vec<CallerRow>, usize) {
        let now = self.second(now);
        let callers = self.callers.lock();
        let [mut accepted, mut others] = [&callers.accepted, &callers.others].map(|callers| {
            let ranked = callers.values().map(|counts| (counts.rank(now), Arc::clone(counts)));
            ranked.collect::<Vec<_>>()
        });
        drop(callers);
        let total = accepted.len() + others.len();
        for callers in [&mut accepted, &mut others] {
            callers.sort_unstable_by_key(|(rank, _)| *rank);
        }
        others.truncate((limit / 2).max(limit.saturating_sub(accepted.len())));
        accepted.truncate(limit - others.len());
        accepted.append(&mut others);
        accepted.sort_unstable_by_key(|(rank, _)| *rank);
        (accepted.iter().map(|(_, counts)| counts.row(now)).collect(), total)
    }
}

/// If a table is full, removes the half that was not seen for longest; of those that were seen in the same second, the ones
/// with fewer requests.
fn make_room(callers: &mut HashMap<Caller, Arc<CallerCounts>>) {
    if callers.len() < MAX_CALLERS {
        return;
    }
    let rank = |counts: &CallerCounts| (counts.last_seen.0.load(Ordering::Relaxed), counts.requests());
    let mut all: Vec<_> = callers.iter().map(|(caller, counts)| (rank(counts), *caller)).collect();
    let (oldest, _, _) = all.select_nth_unstable_by_key(MAX_CALLERS / 2, |(rank, _)| *rank);
    for (_, caller) in oldest {
        if let Some(counts) = callers.remove(caller) {
            counts.is_forgotten.store(true, Ordering::Relaxed);
        }
    }
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;

    use super::*;
    use crate::clock::Clock;
    use crate::request::caller::Callers as CallersOf;
    use crate::request::digest::Digests;

    struct Fixture {
        table: CallerTable,
        start: Instant,
        callers: CallersOf,
        digests: Digests,
    }

    impl Fixture {
        fn new() -> Self {
            let start = Clock::System.timer_now();
            let (callers, digests) = (CallersOf::new([1; 32]), Digests::new([1; 32], [2; 32]));
            Self { table: CallerTable::new(start), start, callers, digests }
        }

        /// A request of this token at this second.
        fn request(&self, token: &str, second: u64, agent: &[u8]) -> (Caller, Arc<CallerCounts>) {
            let caller = self.callers.of_token(&HeaderValue::from_str(token).unwrap());
            let now = self.start + Duration::from_secs(second);
            let counts = self.table.seen(caller, || self.digests.of_caller(caller), None, Some(agent), now);
            (caller, counts)
        }

        fn rows(&self, limit: usize, second: u64) -> (Vec<CallerRow>, usize) {
            self.table.rows(limit, self.start + Duration::from_secs(second))
        }
    }

    #[test]
    fn invented_tokens_displace_no_accepted_caller() {
        let fixture = Fixture::new();
        let (caller, counts) = fixture.request("accepted", 0, b"a");
        fixture.table.accept_if(caller, &counts, || false);
        fixture.table.accept_if(caller, &counts, || true);
        for number in 0..100_000 {
            fixture.request(&format!("invented-{number}"), 1 + number / 1_000, b"b");
        }
        let (rows, total) = fixture.rows(usize::MAX, 101);
        assert!((MAX_CALLERS / 2..=MAX_CALLERS + 1).contains(&total), "{total}");
        let accepted: Vec<_> = rows.iter().filter(|row| row.is_accepted).collect();
        assert_eq!((accepted.len(), &accepted[0].id), (1, &counts.id.as_str().to_owned()));
        assert_eq!(accepted[0].last_seen_seconds, 101);
        // They were refused, and are too many for the rows.
        for number in 99_900..100_000 {
            let (_, counts) = fixture.request(&format!("invented-{number}"), 100, b"b");
            counts.last_refused.set(fixture.table.second(fixture.start + Duration::from_secs(100)));
        }
        let (rows, _) = fixture.rows(50, 101);
        assert_eq!((rows.len(), rows.iter().filter(|row| row.is_accepted).count()), (50, 1));
        assert!(rows[..49].iter().all(|row| row.last_refusal_seconds == Some(1)), "the refused ones come first");
    }

    #[test]
    fn a_caller_that_is_seen_again_stays_and_the_table_of_accepted_ones_is_bounded() {
        let fixture = Fixture::new();
        let (_, steady) = fixture.request("steady", 0, b"a");
        for number in 0..10_000_u64 {
            let second = number / 100;
            let (caller, counts) = fixture.request(&format!("token-{number}"), second, b"b");
            fixture.table.accept_if(caller, &counts, || number % 2 == 0);
            // As the fast path does: without a look-up.
            steady.last_seen.set(second + 1);
        }
        let (rows, total) = fixture.rows(usize::MAX, 100);
        assert!(total <= 2 * MAX_CALLERS, "{total}");
        assert!(rows.iter().any(|row| row.id == steady.id.as_str()));
    }

    #[test]
    fn a_row_has_the_beginning_of_the_last_agent_escaped() {
        let fixture = Fixture::new();
        fixture.request("t", 0, b"one/1");
        fixture.request("t", 0, b"<b>\n\x1b[31m");
        assert_eq!(fixture.rows(9, 0).0[0].user_agent.as_deref(), Some("<b>\\n\\x1b[31m"));
        let (_, counts) = fixture.request("t", 0, &[b'a'; 64 * 1024]);
        assert_eq!(counts.agent.lock().as_deref().map(<[u8]>::len), Some(MAX_AGENT));
        assert_eq!(fixture.rows(9, 0).0[0].user_agent.as_deref().map(str::len), Some(MAX_AGENT));
    }
}
