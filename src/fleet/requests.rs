//! What requests do with the engine: look-ups before calls, records after them, and leases. No request waits longer than
//! `fleet.budget`.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::timeout;

use super::commands::{Fault, Wanted, read_done};
use super::link::Link;
use super::{Fleet, LookUpResult, MAX_LIFETIME, MAX_STORED_KIB, StoreResult, TellResult};
use crate::cache::second_tier::{
    Lease, LeaseState, LookUp, LookedUp, NewRecord, Notice, Order, Place, SecondTier, Ticket,
};

/// How long other gateways do not wait for a call whose response is too large for the engine.
const UNSHARED_AFTER_TOO_LARGE: Duration = Duration::from_secs(60);

impl Fleet {
    /// Looks up, without a time limit. `as_of`: the number of the last notice when nothing that concerns the places waited.
    pub(super) async fn ask(&self, link: &Link, look_up: LookUp<'_>, as_of: u64) -> Result<LookedUp, Fault> {
        let fresh = self.next();
        let lease = look_up.lease.map(|name| Lease { name, holder: self.new_holder(fresh.nonce) });
        let max_record = self.config.max_record();
        // It is released if there is no reply in time.
        let taking = lease.map(|lease| Taking { fleet: self, link, lease, is_decided: false });
        let commands = self.keys.look_up(look_up, lease, fresh, max_record);
        let replies = link.look_ups.send_all(&commands).await?;
        let wanted = Wanted { look_up, lease, fresh, max_record };
        let looked_up = LookedUp { as_of, ..wanted.read(replies, self.machine.clock.now(), link.number)? };
        if let Some(mut taking) = taking {
            taking.is_decided = true;
            if let LeaseState::Held(lease) = looked_up.lease {
                self.leases.lock().insert(lease.name, lease);
            }
        }
        if let Some(Ticket { order, .. }) = looked_up.ticket {
            self.note_latest(order);
        }
        Ok(looked_up)
    }

    pub(super) fn note_latest(&self, order: Order) {
        let mut latest = self.latest.lock();
        let is_later = |latest: &Order| latest.incarnation != order.incarnation || latest.number < order.number;
        if latest.as_ref().is_none_or(is_later) {
            *latest = Some(order);
        }
    }

    async fn look_up_in_time(&self, look_up: LookUp<'_>) -> (LookUpResult, Option<LookedUp>) {
        // In this order: who gets the place of one that was late sees whether that has opened the breaker.
        let Ok(_permit) = self.in_flight.try_acquire() else { return (LookUpResult::Skipped, None) };
        // Before the check: what is added after it makes the look-up outdated.
        let as_of = self.notices.lock().serial();
        let Some(link) = self.usable(look_up.places) else { return (LookUpResult::Skipped, None) };
        match timeout(self.config.budget, self.ask(&link, look_up, as_of)).await {
            Ok(Ok(looked_up)) => {
                link.breaker.lock().answered();
                if looked_up.ticket.is_none() {
                    self.watcher.faulted(Fault::Full);
                }
                let has_record = looked_up.records.iter().any(Option::is_some);
                let result = match (look_up.wants_records, has_record) {
                    (false, _) => LookUpResult::Ticket,
                    (true, true) => LookUpResult::Record,
                    (true, false) => LookUpResult::None,
                };
                (result, Some(looked_up))
            }
            Ok(Err(fault)) => {
                if fault.ends_link() {
                    link.fail(fault);
                }
                (LookUpResult::Failed, None)
            }
            Err(_) => {
                let opens = link.breaker.lock().missed();
                if opens {
                    self.report();
                    // So that the task asks the engine often from now on.
                    self.to_tell.notify_one();
                }
                (LookUpResult::Late, None)
            }
        }
    }

    /// Sends the release of a lease, whose result does not matter: it ends on its own.
    fn send_release(&self, link: &Link, lease: Lease, unshared: Option<Duration>) {
        let (command, sender) = (self.keys.release(&lease, unshared), link.writes.sender());
        tokio::spawn(async move { sender.send(&command).await });
    }

    /// Renews a lease no longer.
    pub(super) fn forget(&self, lease: &Lease) {
        let mut leases = self.leases.lock();
        if leases.get(&lease.name) == Some(lease) {
            leases.remove(&lease.name);
        }
    }
}

/// A lease that is being taken. Nobody knows whether it was taken until the reply has been read.
struct Taking<'f> {
    fleet: &'f Fleet,
    link: &'f Link,
    lease: Lease,
    is_decided: bool,
}

impl Drop for Taking<'_> {
    fn drop(&mut self) {
        if !self.is_decided {
            self.fleet.send_release(self.link, self.lease, None);
        }
    }
}

impl SecondTier for Fleet {
    fn look_up<'a>(&'a self, look_up: LookUp<'a>) -> Pin<Box<dyn Future<Output = Option<LookedUp>> + Send + 'a>> {
        Box::pin(async move {
            let begun = self.machine.clock.timer_now();
            let (result, looked_up) = self.look_up_in_time(look_up).await;
            self.watcher.looked_up(result, self.machine.clock.timer_now() - begun);
            looked_up
        })
    }

    fn is_current(&self, place: &Place, order: Order, as_of: u64) -> bool {
        self.notices.lock().is_current(place, order, as_of)
    }

    fn store(&self, record: NewRecord) {
        let (lease, kind) = (record.lease, record.kind);
        let give_up = |result: StoreResult| {
            // With too large a body, others need not wait for one another.
            let unshared = (result == StoreResult::TooLarge).then_some(UNSHARED_AFTER_TOO_LARGE);
            lease.into_iter().for_each(|lease| self.release(lease, unshared));
            self.watcher.stored(kind, result);
        };
        if record.sealed.len() > self.config.max_record() {
            return give_up(StoreResult::TooLarge);
        }
        let link = self.usable(std::slice::from_ref(&record.place));
        let link = link.filter(|link| link.number == record.ticket.connection);
        let size =
            u32::try_from(record.sealed.len() / 1024 + 1).map_or(MAX_STORED_KIB, |size| size.min(MAX_STORED_KIB));
        let (Some(link), Ok(permit)) = (link, Arc::clone(&self.stores).try_acquire_many_owned(size)) else {
            return give_up(StoreResult::Skipped);
        };
        lease.iter().for_each(|lease| self.forget(lease));
        let record = NewRecord { lifetime: record.lifetime.min(MAX_LIFETIME), ..record };
        let command = self.keys.store(&record);
        let (kind, watcher) = (record.kind, Arc::clone(&self.watcher));
        tokio::spawn(async move {
            let _permit = permit;
            let result = link.writes.send(&command).await.and_then(|reply| read_done(&reply));
            watcher.stored(
                kind,
                match result {
                    Ok(true) => StoreResult::Stored,
                    Ok(false) => StoreResult::Outdated,
                    Err(fault) => {
                        if fault.ends_link() {
                            link.fail(fault);
                        }
                        StoreResult::Failed
                    }
                },
            );
        });
    }

    fn release(&self, lease: Lease, unshared: Option<Duration>) {
        self.forget(&lease);
        if let Ok(link) = &*self.link.read() {
            self.send_release(link, lease, unshared);
        }
    }

    fn tell(&self, notice: Notice) {
        let kind = notice.kind;
        if self.notices.lock().add(notice) {
            self.watcher.told(kind, TellResult::Dropped);
        }
        self.to_tell.notify_one();
    }
}
