//! How many calls with an access key upstream has refused in a row, at this gateway and at the others of its fleet. Pure.
//!
//! Each process numbers its refusals. Of each process two numbers are known: its latest refusal, and its latest one that an
//! acceptance has ended. Both only grow, so it does not matter in which order, or how often, they are told.

use std::iter;

/// A random number that a process draws when it starts.
pub(crate) type ProcessId = u64;

/// The most processes that are remembered for a key.
const MAX_PROCESSES: usize = 64;
/// The places of gateways without a refusal that counts. The others come after them.
pub(super) const PLACES: u32 = 8;

#[derive(Clone, Copy, Debug)]
struct OfProcess {
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

    /// Upstream has refused a call of this process. Returns the number of the refusal.
    pub(super) fn add_own(&mut self) -> u64 {
        self.own.latest += 1;
        self.own.latest
    }

    /// Upstream has accepted a call of this process that was sent after all known refusals.
    pub(super) fn end_all(&mut self) {
        iter::once(&mut self.own).chain(&mut self.others).for_each(|it| it.ended = it.latest.max(it.ended));
    }

    /// The latest refusal of each process.
    pub(super) fn latest(&self) -> Vec<(ProcessId, u64)> {
        self.all().filter(|it| it.latest > 0).map(|it| (it.process, it.latest)).collect()
    }

    /// A process has told its refusal with this number. Returns how many refusals are new, and whether this one counts.
    pub(super) fn told_refusal(&mut self, process: ProcessId, number: u64) -> (u64, bool) {
        let Some(known) = self.of(process) else { return (0, false) };
        let new = number.saturating_sub(known.latest.max(known.ended));
        known.latest = known.latest.max(number);
        (new, number > known.ended)
    }

    /// Another gateway has told that upstream has accepted a call which was sent after these refusals. Returns whether
    /// they are all that are known here.
    pub(super) fn told_acceptance(&mut self, latest: &[(ProcessId, u64)]) -> bool {
        for (process, number) in latest.iter().take(MAX_PROCESSES) {
            let known = if *process == self.own.process { Some(&mut self.own) } else { self.of(*process) };
            if let Some(known) = known {
                known.ended = known.ended.max(*number);
            }
        }
        let is_named =
            |it: &OfProcess| latest.iter().any(|(process, number)| *process == it.process && *number >= it.latest);
        self.all().filter(|it| it.latest > 0).all(is_named)
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
