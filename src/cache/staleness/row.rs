//! Finds the lists whose responses always differ, as if each body contained a timestamp. Says nothing about single
//! differences: that is [`super::history`].
//!
//! A list whose responses never repeat cannot show whether it changes, or contains a timestamp. If it is private, its
//! caller is odd after eight different responses in a row. A shared list is compared with the others of its scope. It is
//! left out if its latest eight looks were all different and of at most four callers, while another list was unchanged
//! for another caller. It is judged again when a digest comes again. Its callers do not become odd, so their looks at
//! other lists still count.

use std::collections::VecDeque;

use crate::request::caller::Caller;

/// After so many new digests in a row, a list may be one whose bodies always differ.
pub(super) const ALWAYS_DIFFERENT: usize = 8;
/// A list with more callers among its latest looks is judged in any case.
const MAX_CALLERS: usize = 4;
/// The part of the time of a row for which another list must have been unchanged. A whole catalogue that changes so
/// fast that eight looks differ does not stay the same for so long.
const UNCHANGED_PART: f64 = 0.75;

/// Why a list is not judged: its latest looks were all different, while a list of another caller was unchanged.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum LeftOut {
    /// All responses to its callers differ, at any list of the scope. So the cause may be the callers.
    OddCallers,
    /// A caller has had equal responses at another list of the scope. So it is the list that changes.
    ChangingList,
}

/// The latest looks at a key, if their digests were all new, and the callers whose looks were not. A look whose digest
/// is not new ends a row. The callers of earlier looks do not count: tokens expire.
#[derive(Debug, Default)]
pub(super) struct Row {
    /// How many looks in a row had new digests.
    looks: usize,
    /// Who made the latest [`ALWAYS_DIFFERENT`] of them, and when they were sent, oldest first.
    latest: VecDeque<(Caller, f64)>,
    /// Who has last had the latest digest again, and when, oldest first. Each caller once, and one more than
    /// [`MAX_CALLERS`]: so a caller that is not in the row of another key is among them, if there is one.
    repeaters: VecDeque<(Caller, f64)>,
}

impl Row {
    pub(super) fn add_different(&mut self, caller: Caller, sent: f64) {
        self.looks += 1;
        self.repeaters.clear();
        if self.latest.len() == ALWAYS_DIFFERENT {
            self.latest.pop_front();
        }
        self.latest.push_back((caller, sent));
    }

    pub(super) fn add_equal(&mut self, caller: Caller, sent: f64) {
        (self.looks, self.latest) = (0, VecDeque::new());
        self.repeaters.retain(|(known, _)| *known != caller);
        if self.repeaters.len() > MAX_CALLERS {
            self.repeaters.pop_front();
        }
        self.repeaters.push_back((caller, sent));
    }

    /// How many looks in a row had new digests.
    pub(super) fn looks(&self) -> usize {
        self.looks
    }

    pub(super) fn is_always_different(&self) -> bool {
        self.looks >= ALWAYS_DIFFERENT
    }

    /// Compares the row with other lists of its scope: for each, when the first response with its latest digest was
    /// received, and its row.
    pub(super) fn compare<'r>(&self, others: impl Iterator<Item = (f64, &'r Self)>) -> Option<LeftOut> {
        let (Some((_, begin)), Some((_, end))) = (self.latest.front(), self.latest.back()) else { return None };
        let mut callers: Vec<Caller> = Vec::with_capacity(ALWAYS_DIFFERENT);
        for (caller, _) in &self.latest {
            if !callers.contains(caller) {
                callers.push(*caller);
            }
        }
        if !self.is_always_different() || callers.len() > MAX_CALLERS {
            return None;
        }
        let unchanged_until = begin + UNCHANGED_PART * (end - begin);
        let (mut is_unusual, mut has_equal) = (false, false);
        for (first_received, other) in others {
            for (caller, sent) in &other.repeaters {
                if callers.contains(caller) {
                    has_equal |= sent >= begin;
                } else {
                    is_unusual |= first_received <= *begin && *sent >= unchanged_until;
                }
            }
        }
        is_unusual.then_some(if has_equal { LeftOut::ChangingList } else { LeftOut::OddCallers })
    }
}
