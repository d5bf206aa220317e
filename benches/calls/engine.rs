//! An engine in memory that gateways share, on simulated time. It has records and leases. Nothing becomes void, because
//! nobody is denied and nothing is purged.

use std::collections::HashMap;
use std::pin::Pin;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use bytes::Bytes;
use tokio::time::sleep;
use workspace_gateway::testing::cache::second_tier::{
    Lease, LeaseState, LookUp, LookedUp, Name, NewRecord, Notice, NoticeKind, Order, Place, SecondTier, Ticket,
};
use workspace_gateway::testing::clock::Clock;

/// How long a look-up takes.
const LATENCY: Duration = Duration::from_millis(1);
/// What its clock shows at the beginning, as the time since 1970.
const EPOCH: Duration = Duration::from_secs(1_800_000_000);

struct Record {
    order: Order,
    sealed: Bytes,
    ends: Instant,
}

enum Held {
    /// A gateway renews it until it gives it back.
    By([u8; 16]),
    /// The last call had no response for others.
    Unshared(Instant),
}

#[derive(Default)]
struct State {
    tickets: u64,
    records: HashMap<Name, Record>,
    leases: HashMap<Name, Held>,
}

pub(crate) struct Engine {
    begun: Instant,
    state: Mutex<State>,
    /// How many notices about what has become void it was told.
    pub(crate) voided: AtomicUsize,
}

impl Engine {
    pub(crate) fn new() -> Arc<Self> {
        Arc::new(Self { begun: Clock::System.now(), state: Mutex::default(), voided: AtomicUsize::new(0) })
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn order(&self, number: u64) -> Order {
        Order { incarnation: [1; 16], number }
    }

    fn take_lease(&mut self, name: Name, now: Instant) -> LeaseState {
        match self.leases.get(&name) {
            Some(Held::By(_)) => LeaseState::Elsewhere,
            Some(Held::Unshared(until)) if now < *until => LeaseState::Unshared,
            Some(Held::Unshared(_)) | None => {
                let holder = u128::from(self.tickets).to_le_bytes();
                self.leases.insert(name, Held::By(holder));
                LeaseState::Held(Lease { name, holder })
            }
        }
    }

    fn give_back(&mut self, lease: Lease, unshared_until: Option<Instant>) {
        if matches!(self.leases.get(&lease.name), Some(Held::By(holder)) if *holder == lease.holder) {
            match unshared_until {
                Some(until) => self.leases.insert(lease.name, Held::Unshared(until)),
                None => self.leases.remove(&lease.name),
            };
        }
    }
}

impl SecondTier for Engine {
    fn look_up<'a>(&'a self, look_up: LookUp<'a>) -> Pin<Box<dyn Future<Output = Option<LookedUp>> + Send + 'a>> {
        Box::pin(async move {
            sleep(LATENCY / 2).await;
            let looked_up = {
                let (mut state, now) = (self.state(), Clock::System.now());
                state.tickets += 1;
                let (order, time) = (state.order(state.tickets), EPOCH + (now - self.begun));
                let records = look_up.places.iter().map(|place| {
                    let record = state.records.get(&place.record).filter(|_| look_up.wants_records)?;
                    (now < record.ends).then(|| (record.order, record.sealed.clone()))
                });
                let records = records.collect();
                let ticket = Some(Ticket { order, time, drawn: now, connection: 1 });
                let lease = look_up.lease.map_or(LeaseState::None, |name| state.take_lease(name, now));
                LookedUp { records, ticket, lease, time, as_of: 0 }
            };
            sleep(LATENCY / 2).await;
            Some(looked_up)
        })
    }

    fn is_current(&self, _: &Place, _: Order, _: u64) -> bool {
        true
    }

    fn store(&self, NewRecord { place, ticket, sealed, lifetime, lease, .. }: NewRecord) {
        let (mut state, now) = (self.state(), Clock::System.now());
        lease.into_iter().for_each(|lease| state.give_back(lease, None));
        let order = ticket.order;
        if state.records.get(&place.record).is_none_or(|there| there.order.number < order.number) {
            state.records.insert(place.record, Record { order, sealed, ends: now + lifetime });
        }
    }

    fn release(&self, lease: Lease, unshared: Option<Duration>) {
        let until = unshared.map(|span| Clock::System.now() + span);
        self.state().give_back(lease, until);
    }

    fn tell(&self, notice: Notice) {
        self.voided.fetch_add(usize::from(notice.kind != NoticeKind::Hint), Ordering::Relaxed);
    }
}
