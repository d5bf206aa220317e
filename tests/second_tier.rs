//! A second cache tier: when the gateway uses it, and who gets its records. A failure of the tier must not fail a
//! request.

use std::collections::HashMap;
use std::future::{Future, pending};
use std::path::Path;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::StatusCode;
use tokio::sync::mpsc::UnboundedReceiver;
use workspace_gateway::testing::cache::second_tier::{
    Lease, LookUp, LookedUp, Name, NewRecord, Notice, Order, Place, RecordKind, SecondTier, Ticket,
};
use workspace_gateway::testing::cache::store::PurgeSelection;
use workspace_gateway::testing::clock::{Clock, ManualClock};
use workspace_gateway::testing::config::Config;
use workspace_gateway::testing::gateway::Gateway;
use workspace_gateway::testing::random::Random;

use crate::support::process::folder;
use crate::support::{Call, Reply, Scripted, config, get_in_process_with, within};

const PROOF: &str = "/v2/PROJECT/products?limit=1";
const LIST: &str = "/v2/PROJECT/products?os_type=Linux";
const OTHER: &str = "/v2/PROJECT/products?os_type=Windows";
const THIRD: &str = "/v2/PROJECT/products?os_type=Other";
const PRODUCTS: &str = r#"{"products":["from upstream"]}"#;

/// Where the clock of the tier begins, as the time since 1970.
const EPOCH: Duration = Duration::from_secs(1_800_000_000);

/// A tier in memory, with a clock of its own.
#[derive(Default)]
struct MemoryTier {
    clock: ManualClock,
    begun: Mutex<Option<Instant>>,
    state: Mutex<State>,
    hangs: bool,
}

#[derive(Default)]
struct State {
    records: HashMap<Name, Record>,
    voided: HashMap<Name, u64>,
    tickets: u64,
    /// The names that each look-up wanted records of, without those that wanted none.
    lookups: Vec<Vec<Name>>,
}

#[derive(Clone)]
struct Record {
    place: Place,
    order: Order,
    sealed: Bytes,
    kind: RecordKind,
}

impl MemoryTier {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap()
    }
}

impl SecondTier for MemoryTier {
    fn look_up<'a>(&'a self, look_up: LookUp<'a>) -> Pin<Box<dyn Future<Output = Option<LookedUp>> + Send + 'a>> {
        if self.hangs {
            return Box::pin(pending());
        }
        let mut state = self.state();
        if look_up.wants_records {
            state.lookups.push(look_up.places.iter().map(|place| place.record).collect());
        }
        state.tickets += 1;
        let now = Clock::Manual(self.clock.clone()).now();
        let begun = *self.begun.lock().unwrap().get_or_insert(now);
        let time = EPOCH + (now - begun);
        let order = Order { incarnation: [1; 16], number: state.tickets };
        let found = |place: &Place| {
            let Record { order, sealed, .. } = state.records.get(&place.record).filter(|_| look_up.wants_records)?;
            let is_void = |set: &Name| state.voided.get(set).is_some_and(|voided| *voided >= order.number);
            (!place.sets.iter().any(is_void)).then(|| (*order, sealed.clone()))
        };
        let records = look_up.places.iter().map(found).collect();
        let ticket = Some(Ticket { order, time, drawn: now, connection: 0 });
        Box::pin(async move { Some(LookedUp { records, ticket, time, ..LookedUp::default() }) })
    }

    fn is_current(&self, _: &Place, _: Order, _: u64) -> bool {
        true
    }

    fn store(&self, NewRecord { place, ticket, sealed, kind, .. }: NewRecord) {
        self.state().records.insert(place.record, Record { place, order: ticket.order, sealed, kind });
    }

    fn release(&self, _: Lease, _: Option<Duration>) {}

    fn tell(&self, notice: Notice) {
        let mut state = self.state();
        let tickets = state.tickets;
        if let Some(set) = notice.voids {
            state.voided.insert(set, tickets);
        }
    }
}

/// A gateway with a second tier, and the calls to its upstream.
struct Bench {
    gateway: Arc<Gateway>,
    calls: UnboundedReceiver<Call>,
}

impl Bench {
    fn new(tier: &Arc<MemoryTier>, clock: &ManualClock) -> Self {
        let (upstream, calls) = Scripted::new();
        let (tier, config, clock) = Self::parts(tier, clock);
        Self { gateway: Gateway::with_second_tier(upstream, tier, &config, clock, Random::System).unwrap(), calls }
    }

    /// With what the snapshot has, if there is one.
    async fn with_snapshot(tier: &Arc<MemoryTier>, clock: &ManualClock, path: &Path) -> Self {
        let (upstream, calls) = Scripted::new();
        let (tier, config, clock) = Self::parts(tier, clock);
        let gateway =
            Gateway::with_second_tier_and_snapshot(upstream, tier, path, &config, clock, Random::System).unwrap();
        gateway.restore_snapshot().await;
        Self { gateway, calls }
    }

    fn parts(tier: &Arc<MemoryTier>, clock: &ManualClock) -> ((Arc<dyn SecondTier>, [u8; 32]), Config, Clock) {
        let settings = "[cache]\nttl = \"5m\"\nttl_jitter = \"0%\"\nstale_while_revalidate = \"0s\"";
        let config = config("http://127.0.0.1:1", "http://127.0.0.1:1", settings);
        ((Arc::clone(tier) as Arc<dyn SecondTier>, [7; 32]), config, Clock::Manual(clock.clone()))
    }

    /// Panics if the request goes upstream.
    async fn get(&mut self, token: &str, path: &str, headers: &[(&str, &str)]) -> Reply {
        let reply = within(get_in_process_with(&self.gateway, token, path, headers)).await;
        assert!(self.calls.try_recv().is_err(), "the request went upstream");
        reply
    }

    /// The request goes upstream, which returns [`PRODUCTS`].
    async fn fetch(&mut self, token: &'static str, path: &'static str, headers: &'static [(&str, &str)]) -> Reply {
        let gateway = Arc::clone(&self.gateway);
        let pending = tokio::spawn(async move { get_in_process_with(&gateway, token, path, headers).await });
        within(self.calls.recv()).await.unwrap().answer(StatusCode::OK, PRODUCTS);
        within(pending).await.unwrap()
    }
}

/// Two gateways. The first has stored a response, also in the tier.
async fn two_gateways() -> (Arc<MemoryTier>, Bench, Bench, ManualClock) {
    let clock = ManualClock::default();
    let tier = Arc::new(MemoryTier { clock: clock.clone(), ..MemoryTier::default() });
    let (mut first, second) = (Bench::new(&tier, &clock), Bench::new(&tier, &clock));
    first.fetch("one", LIST, &[]).await;
    (tier, first, second, clock)
}

#[tokio::test]
async fn a_granted_caller_gets_what_another_gateway_has_stored_with_its_age() {
    let (tier, _first, mut second, clock) = two_gateways().await;
    second.fetch("two", PROOF, &[]).await;
    clock.advance(Duration::from_secs(100));
    let reply = second.get("two", LIST, &[]).await;
    // Clocks may differ by 5 s. The age must not be too low.
    assert_eq!((reply.status(), reply.text(), reply.header("age")), (StatusCode::OK, PRODUCTS, "105"));
    assert!(reply.cache_status().ends_with("; detail=fleet"), "{}", reply.cache_status());
    let lookups = tier.state().lookups.len();
    // After that it is a hit in memory.
    assert!(second.get("two", LIST, &[]).await.is_hit());
    assert_eq!(tier.state().lookups.len(), lookups);
}

#[tokio::test]
async fn a_caller_without_a_grant_gets_no_response_from_the_tier() {
    let (tier, _first, mut second, _clock) = two_gateways().await;
    let reply = second.fetch("two", LIST, &[]).await;
    assert!(reply.cache_status().contains("; fwd-status=200"), "{}", reply.cache_status());
    // Its own proof was looked up, too, and nobody else's.
    let state = tier.state();
    let proofs = state.records.values().filter(|record| record.kind == RecordKind::Grant);
    let [of_first, of_second] = &state.lookups[..] else { panic!("{:?}", state.lookups) };
    assert_eq!((of_first.len(), of_second.len(), proofs.count()), (2, 2, 2));
    assert_ne!(of_first[0], of_second[0], "the proofs of two callers");
    assert_eq!(of_first[1], of_second[1], "the list");
}

#[tokio::test]
async fn a_caller_without_a_grant_brings_nothing_into_memory() {
    let (_tier, _first, mut second, _clock) = two_gateways().await;
    let gateway = Arc::clone(&second.gateway);
    let pending = tokio::spawn(async move { get_in_process_with(&gateway, "two", LIST, &[]).await });
    within(second.calls.recv()).await.unwrap().answer(StatusCode::UNAUTHORIZED, "{}");
    assert_eq!(within(pending).await.unwrap().status(), StatusCode::UNAUTHORIZED);
    assert_eq!(second.gateway.entries().count(), 0);
}

#[tokio::test]
async fn requests_that_no_record_satisfies_go_upstream() {
    let cases: [(u64, &'static [(&str, &str)]); 3] =
        [(0, &[("cache-control", "no-cache")]), (1, &[("cache-control", "max-age=0")]), (300, &[])];
    for (seconds, headers) in cases {
        let (_tier, _first, mut second, clock) = two_gateways().await;
        clock.advance(Duration::from_secs(seconds));
        second.fetch("two", PROOF, &[]).await;
        second.fetch("two", LIST, headers).await;
    }
}

#[tokio::test]
async fn records_from_before_a_purge_are_not_used() {
    let (_tier, mut first, mut second, clock) = two_gateways().await;
    second.fetch("two", PROOF, &[]).await;
    clock.advance(Duration::from_secs(1));
    second.gateway.purge(&PurgeSelection::default());
    second.fetch("two", LIST, &[]).await;
    // Those of calls that were sent after it are used. Their tickets show that, so it does not matter that clocks of two
    // machines may differ by 5 s.
    first.fetch("one", THIRD, &[]).await;
    assert_eq!(second.get("two", THIRD, &[]).await.text(), PRODUCTS);
}

#[tokio::test]
async fn a_lapsed_caller_gets_no_copy_that_may_be_from_after_the_end_of_its_grant() {
    let (_tier, mut first, mut second, clock) = two_gateways().await;
    second.fetch("lapsed", PROOF, &[]).await;
    // Its grant ends after 300 s. The list is requested 2 s later. A copy of it seems up to 5 s older than it is.
    clock.advance(Duration::from_secs(302));
    first.fetch("one", OTHER, &[]).await;
    second.fetch("two", PROOF, &[]).await;
    assert!(second.get("two", OTHER, &[]).await.cache_status().ends_with("; detail=fleet"));
    let gateway = Arc::clone(&second.gateway);
    let pending = tokio::spawn(async move { get_in_process_with(&gateway, "lapsed", OTHER, &[]).await });
    within(second.calls.recv()).await.unwrap().answer(StatusCode::SERVICE_UNAVAILABLE, "{}");
    let reply = within(pending).await.unwrap();
    assert_eq!(reply.status(), StatusCode::SERVICE_UNAVAILABLE, "{}", reply.cache_status());
}

#[tokio::test]
async fn a_lapsed_caller_gets_a_copy_that_is_from_before_the_end_of_its_grant_if_its_call_fails() {
    let (_tier, _first, mut second, clock) = two_gateways().await;
    second.fetch("lapsed", PROOF, &[]).await;
    clock.advance(Duration::from_secs(301));
    let gateway = Arc::clone(&second.gateway);
    let pending = tokio::spawn(async move { get_in_process_with(&gateway, "lapsed", LIST, &[]).await });
    within(second.calls.recv()).await.unwrap().answer(StatusCode::SERVICE_UNAVAILABLE, "{}");
    let reply = within(pending).await.unwrap();
    assert_eq!((reply.status(), reply.text()), (StatusCode::OK, PRODUCTS), "{}", reply.cache_status());
    assert!(reply.cache_status().contains("fwd=stale; fwd-status=503"), "{}", reply.cache_status());
}

#[tokio::test]
async fn after_a_restart_without_the_tier_a_lapsed_caller_gets_no_copy_from_the_snapshot() {
    let clock = ManualClock::default();
    let tier = Arc::new(MemoryTier { clock: clock.clone(), ..MemoryTier::default() });
    let path = folder("second-tier-snapshot").join("snapshot");
    let mut first = Bench::new(&tier, &clock);
    let mut second = Bench::with_snapshot(&tier, &clock, &path).await;
    second.fetch("lapsed", LIST, &[]).await;
    // Its grant ends after 300 s. The list is requested 2 s later. Its copy seems up to 5 s older.
    clock.advance(Duration::from_secs(302));
    first.fetch("one", OTHER, &[]).await;
    second.fetch("two", PROOF, &[]).await;
    assert!(second.get("two", OTHER, &[]).await.cache_status().ends_with("; detail=fleet"));
    second.gateway.end_snapshot().await;
    drop(second);
    let empty = Arc::new(MemoryTier { clock: clock.clone(), ..MemoryTier::default() });
    let mut restarted = Bench::with_snapshot(&empty, &clock, &path).await;
    for (path, expected) in [(OTHER, StatusCode::SERVICE_UNAVAILABLE), (LIST, StatusCode::OK)] {
        let gateway = Arc::clone(&restarted.gateway);
        let pending = tokio::spawn(async move { get_in_process_with(&gateway, "lapsed", path, &[]).await });
        within(restarted.calls.recv()).await.unwrap().answer(StatusCode::SERVICE_UNAVAILABLE, "{}");
        let reply = within(pending).await.unwrap();
        assert_eq!(reply.status(), expected, "{path}: {}", reply.cache_status());
    }
}

#[tokio::test]
async fn damaged_records_and_records_of_other_keys_are_ignored() {
    let (tier, mut first, mut second, clock) = two_gateways().await;
    first.fetch("one", OTHER, &[]).await;
    second.fetch("two", PROOF, &[]).await;
    assert_eq!(second.get("two", LIST, &[]).await.text(), PRODUCTS);
    // In the order in which they were stored: PROOF by the second gateway is the last.
    let mut records: Vec<_> = tier.state().records.values().cloned().collect();
    records.retain(|record| record.kind == RecordKind::Entry);
    records.sort_by_key(|record| record.order.number);
    let [Record { place, order, sealed: good, kind }, Record { order: other_order, sealed: other, .. }, _] =
        &records[..]
    else {
        panic!("expected three entries, got {}", records.len());
    };
    let damaged = [
        other.clone(),
        good.slice(..good.len() - 1),
        [&[good[0] + 1], &good[1..]].concat().into(),
        vec![0xff; 1 << 20].into(),
        Bytes::new(),
    ];
    let with_order = |record| (*order, record);
    let replayed = [(*other_order, good.clone()), (Order { incarnation: [2; 16], ..*order }, good.clone())];
    for (order, sealed) in damaged.map(with_order).into_iter().chain(replayed) {
        let record = Record { place: place.clone(), order, sealed, kind: *kind };
        tier.state().records.insert(place.record, record);
        let mut third = Bench::new(&tier, &clock);
        third.fetch("three", PROOF, &[]).await;
        third.fetch("three", LIST, &[]).await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_tier_that_hangs_delays_a_request_by_eight_milliseconds() {
    let tier = Arc::new(MemoryTier { hangs: true, ..MemoryTier::default() });
    let mut bench = Bench::new(&tier, &ManualClock::default());
    bench.fetch("one", PROOF, &[]).await;
    let start = Clock::System.timer_now();
    let gateway = Arc::clone(&bench.gateway);
    let pending = tokio::spawn(async move { get_in_process_with(&gateway, "one", LIST, &[]).await });
    let call = bench.calls.recv().await.unwrap();
    let delay = Clock::System.timer_now() - start;
    assert!((Duration::from_millis(8)..=Duration::from_millis(9)).contains(&delay), "{delay:?}");
    call.answer(StatusCode::OK, PRODUCTS);
    assert_eq!(pending.await.unwrap().text(), PRODUCTS);
}
