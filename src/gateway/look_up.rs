//! What memory has for a question, as far as the one who asks may know: an answer to give at once, one
//! to give while it is asked for again, or nothing before upstream has been asked.

use std::sync::Arc;
use std::time::{Duration, Instant};

use http::Response;

use super::{Asked, Gateway, Question};
use crate::cache::entry::Entry;
use crate::cache::freshness::Freshness;
use crate::cache::grants::Standing;
use crate::cache::store::Slot;
use crate::reply::body::Content;
use crate::reply::compose::{self, CacheStatus, Forward};
use crate::telemetry::outcome::Outcome;
use crate::telemetry::record::Record;

/// What memory has for a question.
pub(super) enum LookUp {
    /// An answer to give at once, and why that may be.
    Given(Arc<Entry>, Memory),
    /// A stale answer to give at once, while what is in the slot is asked for again.
    Refresh(Arc<Entry>, Slot),
    /// Nothing to be given before upstream has been asked.
    Ask {
        /// Where the answer is going to be kept.
        slot: Slot,
        /// Whether there is an old one, as far as this caller may know.
        why: Forward,
        /// The old one, to ask whether it still holds.
        before: Option<Arc<Entry>>,
        /// Whether the old one will do if upstream is slow.
        is_patient: bool,
    },
}

/// Why an answer is given from memory.
#[derive(Clone, Copy)]
pub(super) enum Memory {
    /// It is fresh.
    Fresh,
    /// It is upstream's no from just now.
    Negative,
    /// It is a refusal from just now, which is said again for so long.
    Denied(Duration),
    /// It is stale, and is being asked for again.
    Revalidating,
    /// It is stale, and upstream is left alone for a while.
    Paused,
}

impl Memory {
    fn outcome(self) -> Outcome {
        match self {
            Self::Fresh => Outcome::Hit,
            Self::Negative => Outcome::Negative,
            Self::Denied(_) => Outcome::Denied,
            Self::Revalidating => Outcome::Revalidating,
            Self::Paused => Outcome::Paused,
        }
    }
}

impl Asked {
    /// Whether an answer is fresh, and fresh enough for who asks.
    fn accepts(&self, entry: &Entry, now: Instant) -> bool {
        match entry.life().freshness(now) {
            Freshness::Fresh { left } => self.wish.accepts(entry.life().age(now), left),
            Freshness::WhileRevalidate | Freshness::IfError | Freshness::Gone => false,
        }
    }
}

impl Gateway {
    /// Looks up what may be given to this caller without asking upstream.
    pub(super) fn look_up(&self, question: &Question, now: Instant) -> LookUp {
        let caller = question.asked.grantee.caller;
        let standing = self.grants.standing(&question.asked.grantee, now);
        match standing {
            Standing::Denied { refusal, left } => return LookUp::Given(refusal, Memory::Denied(left)),
            Standing::Granted => return self.look_into(question, self.store.slot(&question.asked.key, caller), now),
            Standing::Lapsed | Standing::Unproved => {}
        }
        // Alone, and without a word on what there is: upstream has to speak first. Where it has just
        // failed to, that is excused for a while.
        let slot = Slot { owner: Some(caller), key: Arc::clone(&question.asked.key) };
        if matches!(standing, Standing::Lapsed)
            && question.asked.wish.takes_stale()
            && self.pauses.hold_slot(&slot, now)
        {
            let kept_in = self.store.slot(&question.asked.key, caller);
            if let Some(entry) = self.store.get(&kept_in).filter(|entry| entry.life().freshness(now) != Freshness::Gone)
            {
                return LookUp::Given(entry, Memory::Paused);
            }
        }
        LookUp::Ask { slot, why: Forward::Miss, before: None, is_patient: false }
    }

    /// The fresh answer to what is asked, for a caller who may be given it at once.
    pub(super) fn fresh(&self, asked: &Asked, now: Instant) -> Option<Arc<Entry>> {
        if !self.grants.stands(&asked.grantee, now) {
            return None;
        }
        let entry = self.store.get(&self.store.slot(&asked.key, asked.grantee.caller))?;
        asked.accepts(&entry, now).then_some(entry)
    }

    /// Looks into a slot, for a caller who may see what is there.
    fn look_into(&self, question: &Question, slot: Slot, now: Instant) -> LookUp {
        let wish = question.asked.wish;
        let accepted = |entry: &Entry| question.asked.accepts(entry, now);
        let entry = match self.store.get(&slot) {
            Some(entry) if accepted(&entry) => return LookUp::Given(entry, Memory::Fresh),
            entry => entry,
        };
        // Nothing displaces what is fresh. But of what is not, upstream's latest word counts: where that
        // was no, or an answer that can't be kept, nothing older is given unless upstream fails.
        let is_later = |no: &Arc<Entry>| entry.as_ref().is_none_or(|entry| entry.life().sent < no.life().sent);
        let no = self.store.negative(&slot).filter(is_later);
        if let Some(no) = no.as_ref().filter(|no| accepted(no)) {
            return LookUp::Given(Arc::clone(no), Memory::Negative);
        }
        let takes_stale = wish.takes_stale() && no.is_none() && self.store.uncacheable(&slot, now).is_none();
        let mut is_patient = false;
        if takes_stale && let Some(entry) = &entry {
            match entry.life().freshness(now) {
                Freshness::Gone => {}
                _ if self.pauses.hold(&slot, &question.asked.grantee, now) => {
                    return LookUp::Given(Arc::clone(entry), Memory::Paused);
                }
                Freshness::WhileRevalidate => return LookUp::Refresh(Arc::clone(entry), slot),
                Freshness::Fresh { .. } | Freshness::IfError => is_patient = true,
            }
        }
        let why = match entry.as_ref().map(|entry| entry.life().freshness(now)) {
            None => Forward::Miss,
            Some(Freshness::Fresh { .. }) => Forward::Request,
            Some(_) => Forward::Stale,
        };
        LookUp::Ask { slot, why, before: entry, is_patient }
    }

    /// An answer from memory.
    pub(super) fn remembered(
        &self,
        entry: &Entry,
        memory: Memory,
        now: Instant,
        record: &mut Record,
    ) -> Response<Content> {
        let outcome = memory.outcome();
        entry.hit();
        record.answered(outcome, "");
        let ttl = match memory {
            Memory::Denied(left) => {
                self.metrics.denial("memory");
                i64::try_from(left.as_secs()).unwrap_or(i64::MAX)
            }
            _ => entry.life().seconds_left(now),
        };
        let mut response = compose::from_entry(entry, now);
        let detail = (outcome != Outcome::Hit).then_some(outcome.as_str());
        CacheStatus::Hit { ttl, detail }.add_to(response.headers_mut());
        response
    }
}
