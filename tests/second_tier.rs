//! A second tier behind the cache: when it is asked, what of it is shown to whom, and that nobody depends on it.

use std::collections::HashMap;
use std::future::{Future, pending};
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use http::StatusCode;
use tokio::sync::mpsc::UnboundedReceiver;
use workspace_gateway::testing::cache::second_tier::SecondTier;
use workspace_gateway::testing::cache::store::PurgeSelection;
use workspace_gateway::testing::clock::{Clock, ManualClock};
use workspace_gateway::testing::gateway::Gateway;
use workspace_gateway::testing::random::Random;
use workspace_gateway::testing::request::key::RequestKey;

use crate::support::{Call, Reply, Scripted, ask_with, config, within};

const PROOF: &str = "/v2/PROJECT/products?limit=1";
const LIST: &str = "/v2/PROJECT/products?os_type=Linux";
const OTHER: &str = "/v2/PROJECT/products?os_type=Windows";
const THIRD: &str = "/v2/PROJECT/products?os_type=Other";
const PRODUCTS: &str = r#"{"products":["from upstream"]}"#;

/// A tier in memory.
#[derive(Default)]
struct Shelf {
    records: Mutex<HashMap<String, Bytes>>,
    asked: Mutex<usize>,
    hangs: bool,
}

impl SecondTier for Shelf {
    fn get<'a>(&'a self, key: &'a RequestKey) -> Pin<Box<dyn Future<Output = Option<Bytes>> + Send + 'a>> {
        *self.asked.lock().unwrap() += 1;
        let record = self.records.lock().unwrap().get(&format!("{key:?}")).cloned();
        if self.hangs { Box::pin(pending()) } else { Box::pin(async { record }) }
    }

    fn put(&self, key: &RequestKey, record: Bytes) {
        self.records.lock().unwrap().insert(format!("{key:?}"), record);
    }
}

/// A gateway with a tier, and its upstream.
struct Bench {
    gateway: Arc<Gateway>,
    calls: UnboundedReceiver<Call>,
}

impl Bench {
    fn new(shelf: &Arc<Shelf>, clock: &ManualClock) -> Self {
        let (upstream, calls) = Scripted::new();
        let settings = "[cache]\nttl = \"5m\"\nttl_jitter = \"0%\"\nstale_while_revalidate = \"0s\"";
        let config = config("http://127.0.0.1:1", "http://127.0.0.1:1", settings);
        let (tier, clock) = (Arc::clone(shelf) as Arc<dyn SecondTier>, Clock::Manual(clock.clone()));
        Self { gateway: Gateway::behind((upstream, Some(tier)), &config, clock, Random::System).unwrap(), calls }
    }

    /// What a caller is answered if upstream is asked nothing.
    async fn ask(&mut self, token: &str, path: &str, headers: &[(&str, &str)]) -> Reply {
        let reply = within(ask_with(&self.gateway, token, path, headers)).await;
        assert!(self.calls.try_recv().is_err(), "upstream was asked");
        reply
    }

    /// What a caller is answered if upstream answers with this.
    async fn fetch(&mut self, token: &'static str, path: &'static str, headers: &'static [(&str, &str)]) -> Reply {
        let gateway = Arc::clone(&self.gateway);
        let asking = tokio::spawn(async move { ask_with(&gateway, token, path, headers).await });
        within(self.calls.recv()).await.unwrap().answer(StatusCode::OK, PRODUCTS);
        within(asking).await.unwrap()
    }
}

/// Two gateways of which the first has stored an answer, and has told the tier of it.
async fn two() -> (Arc<Shelf>, Bench, Bench, ManualClock) {
    let (shelf, clock) = (Arc::<Shelf>::default(), ManualClock::default());
    let (mut first, second) = (Bench::new(&shelf, &clock), Bench::new(&shelf, &clock));
    first.fetch("one", LIST, &[]).await;
    (shelf, first, second, clock)
}

#[tokio::test]
async fn a_caller_with_a_grant_is_given_what_another_gateway_has_stored_and_its_age() {
    let (shelf, _first, mut second, clock) = two().await;
    second.fetch("two", PROOF, &[]).await;
    clock.advance(Duration::from_secs(100));
    let reply = second.ask("two", LIST, &[]).await;
    // Clocks may differ by 5 s, and no answer looks younger than it is.
    assert_eq!((reply.status(), reply.text(), reply.header("age")), (StatusCode::OK, PRODUCTS, "105"));
    let asked = *shelf.asked.lock().unwrap();
    // From then on it is a hit in memory.
    assert!(second.ask("two", LIST, &[]).await.is_hit());
    assert_eq!(*shelf.asked.lock().unwrap(), asked);
}

#[tokio::test]
async fn a_caller_without_a_grant_is_shown_nothing_of_it() {
    let (shelf, _first, mut second, _clock) = two().await;
    let asked = *shelf.asked.lock().unwrap();
    let reply = second.fetch("two", LIST, &[]).await;
    assert!(reply.cache_status().contains("; fwd-status=200"), "{}", reply.cache_status());
    assert_eq!(*shelf.asked.lock().unwrap(), asked);
}

#[tokio::test]
async fn what_is_too_old_or_not_wanted_from_a_cache_is_asked_of_upstream() {
    let cases: [(u64, &'static [(&str, &str)]); 3] =
        [(0, &[("cache-control", "no-cache")]), (1, &[("cache-control", "max-age=0")]), (300, &[])];
    for (seconds, headers) in cases {
        let (_shelf, _first, mut second, clock) = two().await;
        clock.advance(Duration::from_secs(seconds));
        second.fetch("two", PROOF, &[]).await;
        second.fetch("two", LIST, headers).await;
    }
}

#[tokio::test]
async fn nothing_from_before_a_purge_comes_back() {
    let (_shelf, mut first, mut second, clock) = two().await;
    second.fetch("two", PROOF, &[]).await;
    clock.advance(Duration::from_secs(1));
    second.gateway.purge(&PurgeSelection::default());
    second.fetch("two", LIST, &[]).await;
    // What was stored elsewhere after it does, once that is sure.
    first.fetch("one", THIRD, &[]).await;
    second.fetch("two", THIRD, &[]).await;
    clock.advance(Duration::from_secs(6));
    first.fetch("one", OTHER, &[]).await;
    assert_eq!(second.ask("two", OTHER, &[]).await.text(), PRODUCTS);
}

#[tokio::test]
async fn a_record_of_another_key_or_that_is_damaged_is_none() {
    let (shelf, mut first, mut second, clock) = two().await;
    first.fetch("one", OTHER, &[]).await;
    second.fetch("two", PROOF, &[]).await;
    assert_eq!(second.ask("two", LIST, &[]).await.text(), PRODUCTS);
    let of = |part| {
        let records = shelf.records.lock().unwrap();
        let (key, record) = records.iter().find(|(key, _)| key.contains(part)).unwrap();
        (key.clone(), record.clone())
    };
    let ((place, good), (_, other)) = (of("Linux"), of("Windows"));
    let damaged = [
        other,
        good.slice(..good.len() - 1),
        [&[good[0] + 1], &good[1..]].concat().into(),
        vec![0xff; 1 << 20].into(),
        Bytes::new(),
    ];
    for record in damaged {
        shelf.records.lock().unwrap().insert(place.clone(), record);
        let mut third = Bench::new(&shelf, &clock);
        third.fetch("three", PROOF, &[]).await;
        third.fetch("three", LIST, &[]).await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_tier_that_hangs_costs_a_request_eight_milliseconds() {
    let shelf = Arc::new(Shelf { hangs: true, ..Shelf::default() });
    let mut bench = Bench::new(&shelf, &ManualClock::default());
    bench.fetch("one", PROOF, &[]).await;
    let begun = Clock::System.timer_now();
    let gateway = Arc::clone(&bench.gateway);
    let asking = tokio::spawn(async move { ask_with(&gateway, "one", LIST, &[]).await });
    let call = bench.calls.recv().await.unwrap();
    let took = Clock::System.timer_now() - begun;
    assert!((Duration::from_millis(8)..=Duration::from_millis(9)).contains(&took), "{took:?}");
    assert_eq!(*shelf.asked.lock().unwrap(), 1);
    call.answer(StatusCode::OK, PRODUCTS);
    assert_eq!(asking.await.unwrap().text(), PRODUCTS);
}
