//! The looks at one cache key: which digest upstream's response had, and until when. Decides which differences count
//! as changes.

use std::collections::VecDeque;
use std::sync::Arc;

use super::answers::AnswerCounters;
use super::row::{LeftOut, Row};
use super::settled::Settled;
use crate::request::caller::Caller;

/// The most runs of a key.
pub(super) const MAX_RUNS: usize = 64;
/// Fewer looks at a scope within [`super::WINDOW`] that can be compared with another one at the same key are too little
/// evidence.
pub(super) const MIN_LOOKS: usize = 20;
/// The half-life of the number of answers by which keys of a scope are compared, in seconds.
const ACTIVITY_HALF_LIFE: f64 = 3600.0;
/// The most responses of a run whose answers are not settled.
const MAX_UNSETTLED: usize = 8;
/// The most digests of a key that are remembered after they were retracted: enough for sixteen odd callers in turn.
const MAX_RETRACTED: usize = 32;
/// A caller is odd if so many of its digests were retracted, and none of them has come again.
const NEVER_REPEATED: usize = 2;
/// A digest that several callers have seen for so long is not retracted by a single other one. In seconds.
const ESTABLISHED: f64 = 300.0;
/// The most callers of a scope that are known to be odd.
const MAX_ODD: usize = 16;
/// How long an odd caller is remembered after it was last seen to be odd, in seconds.
const ODD_FOR: f64 = 24.0 * 3600.0;
/// After this time without a look by another caller, an odd caller's looks count again. In seconds.
const ALONE_AFTER: f64 = 3600.0;

/// A successful response of upstream to a call for a cache key. Times are in seconds.
#[derive(Clone, Copy, Debug)]
pub(super) struct Look {
    pub(super) digest: u64,
    pub(super) caller: Caller,
    pub(super) sent: f64,
    pub(super) received: f64,
}

/// A stored response, and the answers that are made from it.
#[derive(Clone, Debug)]
pub(super) struct StoredResponse {
    pub(super) sent: f64,
    pub(super) counters: Arc<AnswerCounters>,
}

/// The callers of a run: the first two.
#[derive(Clone, Debug)]
struct RunCallers {
    first: Caller,
    second: Option<Caller>,
}

impl RunCallers {
    fn add(&mut self, caller: Caller) {
        if !self.has(caller) {
            self.second.get_or_insert(caller);
        }
    }

    fn has(&self, caller: Caller) -> bool {
        self.first == caller || self.second == Some(caller)
    }

    /// The caller, if there is only one.
    fn only(&self) -> Option<Caller> {
        self.second.is_none().then_some(self.first)
    }

    fn iter(&self) -> impl Iterator<Item = Caller> {
        std::iter::once(self.first).chain(self.second)
    }
}

/// Consecutive looks with one digest.
#[derive(Clone, Debug)]
pub(super) struct Run {
    digest: u64,
    looks: u32,
    callers: RunCallers,
    /// When the first response was received, and the last request was sent.
    pub(super) first_received: f64,
    pub(super) last_sent: f64,
    /// The responses since the last look that has confirmed the earlier ones.
    pub(super) unsettled: Vec<StoredResponse>,
}

impl Run {
    fn settle(&mut self, settled: &mut Settled) {
        for response in self.unsettled.drain(..) {
            settled.add(response.sent, &response.counters);
        }
    }

    fn push(&mut self, response: StoredResponse) {
        if self.unsettled.len() == MAX_UNSETTLED {
            // It is not known whether its answers were right, so they do not count.
            self.unsettled.remove(0);
        }
        self.unsettled.push(response);
    }
}

/// A digest that was retracted, and a caller that has seen it.
#[derive(Debug)]
struct Retracted {
    digest: u64,
    caller: Caller,
    /// Whether the caller has seen it again since.
    has_returned: bool,
}

/// Callers of a scope whose bodies always differ.
#[derive(Debug, Default)]
pub(super) struct OddCallers(Vec<(Caller, f64)>);

impl OddCallers {
    pub(super) fn mark(&mut self, caller: Caller, now: f64) {
        self.0.retain(|(odd, until)| *odd != caller && *until > now);
        if self.0.len() == MAX_ODD {
            self.0.remove(0);
        }
        self.0.push((caller, now + ODD_FOR));
    }

    pub(super) fn contains(&self, caller: Caller, now: f64) -> bool {
        self.0.iter().any(|(odd, until)| *odd == caller && *until > now)
    }
}

/// How many differences a scope has had, and how many of them were none in the end.
#[derive(Debug, Default)]
pub(super) struct Differences {
    all: f64,
    retracted: f64,
}

impl Differences {
    /// The probability that a new difference is a change.
    pub(super) fn reliability(&self) -> f64 {
        (self.all - self.retracted + 1.0).max(0.0) / (self.all + 2.0)
    }

    fn add_difference(&mut self) {
        if self.all >= 100.0 {
            (self.all, self.retracted) = (self.all / 2.0, self.retracted / 2.0);
        }
        self.all += 1.0;
    }

    /// So many of the differences are of a list that is left out, so they do not count.
    fn forget(&mut self, count: usize) {
        self.all = (self.all - count as f64).max(self.retracted);
    }

    /// So many of the differences were no change.
    pub(super) fn retract(&mut self, count: usize) {
        self.retracted += count as f64;
    }
}

/// What the looks at all keys of a scope say together.
#[derive(Debug, Default)]
pub(super) struct ScopeFindings {
    pub(super) odd_callers: OddCallers,
    pub(super) differences: Differences,
    pub(super) settled: Settled,
}

/// The runs of a key, oldest first. No digest has two of them.
#[derive(Debug, Default)]
pub(super) struct KeyHistory {
    pub(super) runs: VecDeque<Run>,
    /// The times of the latest looks that count, oldest first: at most [`MIN_LOOKS`] and the one before them.
    recent: VecDeque<f64>,
    /// Oldest first.
    retracted: VecDeque<Retracted>,
    pub(super) row: Row,
    /// Why it is not judged, until a digest comes again.
    pub(super) left_out: Option<LeftOut>,
    /// When the latest look was sent, whether it counts or not.
    last_sent: f64,
    /// The answers from responses before the latest one, with exponentially falling weights.
    answers: f64,
    /// The answers from the latest response.
    latest: Option<Arc<AnswerCounters>>,
}

/// What is known about a key between two looks.
pub(super) enum Span<'h> {
    Unchanged {
        from: f64,
        to: f64,
    },
    /// It has changed at least once. The answers of these responses are doubtful.
    Changed {
        from: f64,
        to: f64,
        responses: Vec<&'h StoredResponse>,
    },
    /// Nothing is known after `from`.
    Pending {
        from: f64,
        responses: Vec<&'h StoredResponse>,
    },
}

impl KeyHistory {
    /// Adds a look. Looks may arrive out of order: one that was sent before the latest one is ignored.
    pub(super) fn look(&mut self, look: Look, counters: Arc<AnswerCounters>, findings: &mut ScopeFindings) {
        let ScopeFindings { odd_callers, differences, settled } = findings;
        if look.sent < self.last_sent {
            return;
        }
        self.answers = self.activity(look.sent);
        self.last_sent = look.sent;
        self.latest = Some(Arc::clone(&counters));
        let response = StoredResponse { sent: look.sent, counters };
        let is_odd = odd_callers.contains(look.caller, look.sent);
        let is_own_view = self.note_own_view(look);
        if (is_odd || is_own_view) && self.runs.back().is_some_and(|last| look.sent - last.last_sent > ALONE_AFTER) {
            self.runs.clear();
            self.recent.clear();
        }
        match self.runs.iter().rposition(|run| run.digest == look.digest) {
            Some(index) => {
                if self.is_outvoted(index, look.caller) {
                    self.remove(index);
                    return self.ignore(response);
                }
                let between = self.runs.len() - index - 1;
                if between > 0 {
                    // Those of a list that is left out do not count.
                    differences.retract(if self.left_out.is_none() { between } else { 0 });
                    self.retract_after(index, look.caller, settled);
                }
                self.row.add_equal(look.caller, look.sent);
                self.left_out = None;
                let run = &mut self.runs[index];
                run.settle(settled);
                run.looks += 1;
                run.callers.add(look.caller);
                run.last_sent = look.sent;
                run.push(response);
            }
            None => {
                if !self.runs.is_empty() {
                    if is_odd || is_own_view {
                        return self.ignore(response);
                    }
                    if self.never_repeats(look.caller) {
                        odd_callers.mark(look.caller, look.sent);
                        return self.ignore(response);
                    }
                    if self.left_out.is_none() {
                        differences.add_difference();
                    }
                }
                self.row.add_different(look.caller, look.sent);
                self.runs.push_back(Run {
                    digest: look.digest,
                    looks: 1,
                    callers: RunCallers { first: look.caller, second: None },
                    first_received: look.received,
                    last_sent: look.sent,
                    unsettled: vec![response],
                });
            }
        }
        if self.recent.len() > MIN_LOOKS {
            self.recent.pop_front();
        }
        self.recent.push_back(look.sent);
    }

    /// How many answers were made from the responses of this key lately. Keys with few make room for others.
    pub(super) fn activity(&self, now: f64) -> f64 {
        let latest = self.latest.as_ref().map_or(0.0, |counters| counters.total() as f64);
        (self.answers + latest) * (-(now - self.last_sent).max(0.0) / ACTIVITY_HALF_LIFE).exp2()
    }

    /// About how many answers were made in the last hour, if their rate has been constant.
    pub(super) fn answers_of_last_hour(&self, now: f64) -> f64 {
        self.activity(now) * std::f64::consts::LN_2 * 3600.0 / ACTIVITY_HALF_LIFE
    }

    /// Leaves the list out from now on, because its latest looks were all different.
    pub(super) fn leave_out(&mut self, reason: LeftOut, differences: &mut Differences) {
        if self.left_out.is_none() {
            differences.forget(self.row.looks() - 1);
        }
        self.left_out = self.left_out.max(Some(reason));
    }

    /// When the first response with the latest digest was received, and the latest looks.
    pub(super) fn latest(&self) -> Option<(f64, &Row)> {
        self.runs.back().map(|run| (run.first_received, &self.row))
    }

    /// The digest of a run has returned. What was seen since was no change, because upstream's answer is what it was
    /// before. Either it has changed and has changed back, or some callers see something else than others.
    fn retract_after(&mut self, index: usize, caller: Caller, settled: &mut Settled) {
        let mut retracted: Vec<_> = self.runs.drain(index + 1..).collect();
        retracted.iter_mut().for_each(|run| run.settle(settled));
        let returned = &self.runs[index].callers;
        for run in retracted {
            let digest = run.digest;
            for caller in run.callers.iter().filter(|one| *one != caller && !returned.has(*one)) {
                if self.retracted.iter().any(|known| known.digest == digest && known.caller == caller) {
                    continue;
                }
                if self.retracted.len() == MAX_RETRACTED {
                    self.retracted.pop_front();
                }
                self.retracted.push_back(Retracted { digest, caller, has_returned: false });
            }
        }
    }

    /// Whether the digest of a run was seen by this caller alone, while several others have seen another one since, for
    /// some time.
    fn is_outvoted(&self, index: usize, caller: Caller) -> bool {
        let is_established = |run: &Run| {
            run.callers.only().is_none()
                && !run.callers.has(caller)
                && run.last_sent - run.first_received >= ESTABLISHED
        };
        self.runs[index].callers.only() == Some(caller) && self.runs.range(index + 1..).any(is_established)
    }

    /// Removes a run. Its answers are judged with those of the run before.
    fn remove(&mut self, index: usize) {
        let removed = self.runs.remove(index);
        let before = index.checked_sub(1).and_then(|index| self.runs.get_mut(index));
        if let (Some(removed), Some(before)) = (removed, before) {
            removed.unsettled.into_iter().for_each(|response| before.push(response));
        }
    }

    /// Whether a caller sees a digest again that it has seen before and that was retracted: it has a view of its own.
    /// Notes that.
    fn note_own_view(&mut self, look: Look) -> bool {
        let known = self.retracted.iter_mut().find(|it| it.digest == look.digest && it.caller == look.caller);
        known.map(|known| known.has_returned = true).is_some()
    }

    /// Whether a caller sees something else each time, while the digests of others return.
    fn never_repeats(&self, caller: Caller) -> bool {
        self.retracted.iter().filter(|known| known.caller == caller && !known.has_returned).count() >= NEVER_REPEATED
    }

    /// Ignores a look. The answers that are made from its response are judged with those of the last run.
    fn ignore(&mut self, response: StoredResponse) {
        if let Some(last) = self.runs.back_mut() {
            last.push(response);
        }
    }

    /// Forgets runs that ended before a time, and the oldest ones beyond a number, but not the last one. Returns until
    /// when looks are missing because there were too many.
    pub(super) fn limit(&mut self, most: usize, time: f64) -> Option<f64> {
        while self.runs.len() > 1 && self.runs[1].first_received < time {
            self.runs.pop_front();
        }
        let surplus = self.runs.len().saturating_sub(most);
        self.runs.drain(..surplus);
        self.runs.front().filter(|_| surplus > 0).map(|first| first.first_received)
    }

    pub(super) fn first_look(&self) -> f64 {
        self.runs.front().map_or(0.0, |first| first.first_received)
    }

    pub(super) fn last_look(&self) -> f64 {
        self.last_sent
    }

    /// Whether there are differences that no second look has confirmed yet.
    pub(super) fn is_suspected(&self) -> bool {
        (1..self.runs.len()).any(|index| !self.is_confirmed(index))
    }

    /// Whether a second look has confirmed the change to this run: one by another caller, or one by a caller that has
    /// seen what was before.
    fn is_confirmed(&self, index: usize) -> bool {
        let run = &self.runs[index];
        run.callers.only().is_none_or(|one| run.looks > 1 && self.runs.range(..index).any(|it| it.callers.has(one)))
    }

    /// The number of looks since a time that can be compared with an earlier one since then, up to [`MIN_LOOKS`].
    pub(super) fn compared_since(&self, time: f64) -> usize {
        self.recent.iter().filter(|sent| **sent >= time).count().saturating_sub(1)
    }

    /// What the looks say. `counts_all`: whether differences count that no second look has confirmed yet.
    pub(super) fn spans(&self, counts_all: bool) -> Vec<Span<'_>> {
        let mut spans = Vec::with_capacity(2 * self.runs.len());
        let Some(first) = self.runs.front() else {
            return spans;
        };
        let mut current = first;
        let mut responses: Vec<_> = first.unsettled.iter().collect();
        for (index, run) in self.runs.iter().enumerate().skip(1) {
            if counts_all || self.is_confirmed(index) {
                spans.push(Span::Unchanged { from: current.first_received, to: current.last_sent });
                let responses = std::mem::take(&mut responses);
                spans.push(Span::Changed { from: current.last_sent, to: run.first_received, responses });
                current = run;
            }
            responses.extend(&run.unsettled);
        }
        spans.push(Span::Unchanged { from: current.first_received, to: current.last_sent });
        spans.push(Span::Pending { from: current.last_sent, responses });
        spans
    }
}
