//! What a new call would wait for. Nothing changes here.

use std::collections::BTreeSet;

use strum::VariantArray;

use super::super::deadlines::Deadlines;
use super::super::pace::Pace;
use super::super::{Class, GateClient};
use super::{CLIENT_CLASSES, CallerCalls, Schedule};
use crate::upstream::quota::{Draw, LimitKind, Share};

impl CallerCalls {
    /// The queued calls that go before a new one of a class. Those of lower classes may be held back for longer.
    pub(super) fn queued_before(&self, class: Class) -> u32 {
        self.queued[..=class as usize].iter().sum()
    }
}

impl Schedule {
    /// Whether another call of a caller would have to wait for its own calls: the caller has reached its limit or one
    /// of upstream's for it, or holds half of all slots while other calls wait. Or it is not proved, and a limit of all
    /// callers holds back only such callers. Peer address and connection do not count, because many callers may share
    /// them.
    pub(in crate::upstream::gate) fn has_to_wait(
        &self,
        client: GateClient,
        class: Class,
        draw: &Draw,
        pace: &dyn Pace,
    ) -> bool {
        let calls = self.callers.get(&client.identity());
        let queued = calls.map_or(0, |calls| calls.queued_before(class));
        let is_held = || pace.hold(draw, LimitKind::Own, queued).is_some();
        let is_held_by_shared = |draw: &Draw| pace.hold(draw, LimitKind::Shared, 0).is_some();
        let proved = || Draw { share: Share::Known, is_proved: true, ..draw.clone() };
        let waits_longer = || !draw.is_proved && is_held_by_shared(draw) && !is_held_by_shared(&proved());
        // Those that wait already go first, also if a limit has just become free.
        let do_others_wait = calls.is_some_and(|calls| !calls.at_caller_limit.iter().all(BTreeSet::is_empty));
        let is_full = do_others_wait || calls.is_some_and(|calls| calls.admitted >= self.limits.per_caller);
        let is_heavy = || self.heavy.contains(&client.identity());
        let is_waited_for = || CLIENT_CLASSES.iter().any(|class| self.queues[*class as usize].queue.waiting() > 0);
        is_full || is_waited_for() && is_heavy() || is_held() || waits_longer()
    }

    /// The calls of the same caller that wait, and those of all callers that go before a new one of a class. Unknown
    /// callers have a share of their own, so only such calls go before theirs.
    pub(in crate::upstream::gate) fn before(&self, client: GateClient, class: Class) -> [Deadlines; 2] {
        let own = self.callers.get(&client.identity()).map(|own| &own.deadlines);
        let goes_before = |other: Class| match class {
            Class::Unknown | Class::HalfClosed => matches!(other, Class::Unknown | Class::HalfClosed),
            _ => true,
        };
        let before = Class::VARIANTS.iter().filter(|other| **other <= class && goes_before(**other));
        let all = before.map(|other| &self.queues[*other as usize].deadlines);
        [Deadlines::of_all(own.into_iter()), Deadlines::of_all(all)]
    }
}
