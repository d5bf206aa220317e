//! The trials of access keys, one at a time for all gateways of a fleet: upstream counts the refused signatures of all of
//! them. A call is a trial if this gateway does not know that upstream accepts the secret.
//!
//! Who makes a trial has a lease in the second tier, and leaves there what the trial has shown. The next gateway reads it
//! when it takes the lease, so it knows of all refusals before it sends its call. Without a tier that answers, each gateway
//! makes trials of its own, and hints tell the others.

use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::time::timeout;

use super::message::VERSION;
use super::observer::Observer;
use super::tier::{HeldLease, Names, Tier, access_key_context, passed_since, service_name, written};
use crate::cache::second_tier::{LeaseState, LookUp, NewRecord, Place, RecordKind, SecondTier, Ticket};
use crate::catalogue::{Catalogue, Service};
use crate::clock::Clock;
use crate::seal::Unreadable;
use crate::upstream::key_breaker::{KeyNews, KeyPermit, own_upstream};

/// While another gateway makes a trial: how long until the next look-up.
pub(super) const PAUSE: Duration = Duration::from_millis(30);

/// How long the tier keeps a refusal at most. Hints and memory keep it for longer.
const REFUSED_LIFETIME: Duration = Duration::from_secs(2 * 3600);
/// Long enough for those that wait for the trial. Upstream may refuse the secret later.
const ACCEPTED_LIFETIME: Duration = Duration::from_secs(10);

/// What trials need of the second tier.
pub(super) struct KeyTrials {
    store: Arc<dyn SecondTier>,
    names: Names,
    time_limit: Duration,
    clock: Clock,
}

/// A permit to use an access key for a call, and what the call needs if it is a trial.
pub(super) struct KeyTurn {
    pub(super) permit: KeyPermit,
    pub(super) trial: Option<KeyTrial>,
}

/// The right to make a trial for all gateways. If it is dropped, the trial has shown nothing.
pub(super) struct KeyTrial {
    held: HeldLease,
    ticket: Option<Ticket>,
    place: Place,
}

/// Whether this gateway may make a trial now.
pub(super) enum TrialRight {
    Ours(KeyTrial),
    Elsewhere,
    /// The tier does not say. Then it may.
    Unknown,
}

impl KeyTrials {
    pub(super) fn new(tier: &Tier, clock: Clock) -> Self {
        let Tier { store, names, time_limit, .. } = tier;
        Self { store: Arc::clone(store), names: names.clone(), time_limit: *time_limit, clock }
    }

    /// Takes the lease for a trial. Returns what earlier trials have shown, too, and when.
    pub(super) async fn begin(
        &self,
        id: &str,
        service: Service,
        (catalogue, observer): (&Catalogue, &Observer),
    ) -> (TrialRight, Option<(KeyNews, Instant)>) {
        let own_upstream = own_upstream(service).map(|service| service_name(service, catalogue.origin(service)));
        let place = self.names.access_key_place(id, own_upstream.as_deref());
        let look_up = LookUp { places: std::slice::from_ref(&place), wants_records: true, lease: Some(place.record) };
        let Ok(Some(looked_up)) = timeout(self.time_limit, self.store.look_up(look_up)).await else {
            return (TrialRight::Unknown, None);
        };
        let shown = looked_up.records.into_iter().next().flatten().and_then(|(order, sealed)| {
            let opened = self.names.open(&access_key_context(&place, order), &sealed);
            let read = opened.and_then(|(written, record)| Ok((written, decode(&record)?)));
            let (written, news) = read.inspect_err(|reason| observer.metrics.unreadable_record(*reason)).ok()?;
            let at = self.clock.now().checked_sub(passed_since(&written, looked_up.time, &self.clock)?.longest)?;
            (news.access_key() == id).then_some((news, at))
        });
        let right = match looked_up.lease {
            LeaseState::Held(lease) => {
                let held = HeldLease::new(lease, &self.store);
                TrialRight::Ours(KeyTrial { held, ticket: looked_up.ticket, place })
            }
            LeaseState::Here | LeaseState::Elsewhere => TrialRight::Elsewhere,
            LeaseState::None | LeaseState::Unshared => TrialRight::Unknown,
        };
        (right, shown)
    }

    /// Ends a trial that has shown something.
    pub(super) fn end(&self, trial: KeyTrial, news: &KeyNews) {
        let KeyTrial { mut held, ticket, place } = trial;
        if let Some(ticket) = ticket
            && let Some((_, written)) = written(&ticket, &self.clock)
            && let Some(record) = encode(news)
            && let Some(sealed) = self.names.seal(&access_key_context(&place, ticket.order), &written, &record)
        {
            let lifetime = if news.is_accepted() { ACCEPTED_LIFETIME } else { REFUSED_LIFETIME };
            let (kind, lease) = (RecordKind::AccessKey, held.take());
            self.store.store(NewRecord { place, ticket, sealed, lifetime, kind, marker: None, lease });
        }
    }
}

pub(super) fn encode(news: &KeyNews) -> Option<Vec<u8>> {
    postcard::to_extend(news, vec![VERSION]).ok()
}

pub(super) fn decode(record: &[u8]) -> Result<KeyNews, Unreadable> {
    match record.split_first() {
        Some((&VERSION, news)) => postcard::from_bytes(news).map_err(|_| Unreadable::Damaged),
        _ => Err(Unreadable::Version),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_of_another_version_or_of_something_else_is_unreadable() {
        for (record, expected) in [
            (&[][..], Unreadable::Version),
            (&[VERSION + 1, 0], Unreadable::Version),
            (&[VERSION, 0xff], Unreadable::Damaged),
        ] {
            assert_eq!(decode(record).err(), Some(expected), "{record:?}");
        }
    }
}
