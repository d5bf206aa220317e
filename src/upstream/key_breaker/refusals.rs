//! How many calls with an access key upstream has refused in a row, at this gateway and at the others of its fleet. Pure.
//!
//! Each process numbers its refusals. Of each process two numbers are known: its latest refusal, and its latest one that an
//! acceptance has ended. Both only grow, so it does not matter in which order, or how often, they are told.

use std::iter;

use serde::{Deserialize, Serialize};

/// A random number that a process draws when it starts.
pub(crate) type ProcessId = u64;

/// The most processes that are remembered for a key.
const MAX_PROCESSES: usize = 64;
/// The most that a gateway can tell: these, and itself.
const MAX_TOLD: usize = MAX_PROCESSES + 1;
/// The places of gateways without a refusal that counts. The others come after them.
pub(super) const PLACES: u32 = 8;

/// The refusals of a process.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct OfProcess {
    process: ProcessId,
    latest: u64,
    ended: u64,
}

impl OfProcess {
    fn new(process: ProcessId) -> Self {
        Self { process, latest: 0, ended: 0 }
    }

    fn in_a_row(&self) -> u64 {
        self.latest.saturating_sub(self.ended)
    }
}

#[derive(Debug)]
pub(super) struct Refusals {
    own: OfProcess,
    others: Vec<OfProcess>,
}

impl Refusals {
    pub(super) fn new(own: ProcessId) -> Self {
        Self { own: OfProcess::new(own), others: Vec::new() }
    }

    fn all(&self) -> impl Iterator<Item = &OfProcess> {
        iter::once(&self.own).chain(&self.others)
    }

    pub(super) fn in_a_row(&self) -> u32 {
        let sum = self.all().fold(0_u64, |sum, it| sum.saturating_add(it.in_a_row()));
        u32::try_from(sum).unwrap_or(u32::MAX)
    }

    /// Upstream has refused a call of this process.
    pub(super) fn add_own(&mut self) {
        self.own.latest += 1;
    }

    /// Upstream has accepted a call of this process that was sent after all known refusals.
    pub(super) fn end_all(&mut self) {
        iter::once(&mut self.own).chain(&mut self.others).for_each(|it| it.ended = it.latest.max(it.ended));
    }

    /// What is known of each process, this one first.
    pub(super) fn known(&self) -> Vec<OfProcess> {
        self.all().filter(|it| it.latest > 0).copied().collect()
    }

    /// Another gateway has told a refusal, and the others that it knows. Its own one is the first. Returns how many are new,
    /// and whether its own one counts.
    pub(super) fn told_refusal(&mut self, told: &[OfProcess]) -> (u64, bool) {
        self.end(told.iter().map(|it| (it.process, it.ended)));
        let (mut new, mut counts) = (0_u64, false);
        for (index, OfProcess { process, latest, .. }) in told.iter().take(MAX_TOLD).enumerate() {
            let Some(known) = self.of(*process) else { continue };
            new = new.saturating_add(latest.saturating_sub(known.latest.max(known.ended)));
            known.latest = known.latest.max(*latest);
            counts |= index == 0 && *latest > known.ended;
        }
        (new, counts)
    }

    /// Another gateway has told that upstream has accepted a call which was sent after these refusals. Returns whether
    /// they are all that are known here.
    pub(super) fn told_acceptance(&mut self, told: &[OfProcess]) -> bool {
        self.end(told.iter().map(|it| (it.process, it.latest)));
        let is_named = |it: &OfProcess| told.iter().any(|told| told.process == it.process && told.latest >= it.latest);
        self.all().filter(|it| it.latest > 0).all(is_named)
    }

    /// An acceptance has ended these refusals.
    fn end(&mut self, ended: impl Iterator<Item = (ProcessId, u64)>) {
        for (process, number) in ended.take(MAX_TOLD) {
            let known = if process == self.own.process { Some(&mut self.own) } else { self.of(process) };
            if let Some(known) = known {
                known.ended = known.ended.max(number);
            }
        }
    }

    /// The place of this gateway among those that try a suspended key again, one after the other: first those without a
    /// refusal that counts, in places that they choose at random, and then the others by their numbers.
    pub(super) fn place(&self) -> u32 {
        if self.own.in_a_row() == 0 {
            return u32::try_from(self.own.process % u64::from(PLACES)).unwrap_or_default();
        }
        let before = self.others.iter().filter(|it| it.in_a_row() > 0 && it.process < self.own.process).count();
        PLACES.saturating_add(u32::try_from(before).unwrap_or(PLACES))
    }

    /// `None` for this process, and if there are too many processes. Those whose refusals have ended make room: if one of
    /// them is told again, the key may be suspended without need.
    fn of(&mut self, process: ProcessId) -> Option<&mut OfProcess> {
        if process == self.own.process {
            return None;
        }
        let index = match self.others.iter().position(|it| it.process == process) {
            Some(index) => index,
            None => {
                if self.others.len() >= MAX_PROCESSES {
                    let ended = self.others.iter().position(|it| it.in_a_row() == 0)?;
                    self.others.remove(ended);
                }
                self.others.push(OfProcess::new(process));
                self.others.len() - 1
            }
        };
        self.others.get_mut(index)
    }
}
