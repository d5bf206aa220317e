//! How far the log of an engine has been read, whether notices are missing, and whether it is still the same engine. Pure.
//!
//! Each link is read from the beginning of the log: another master may have another one. Nothing is missing if the log has all
//! notices from the first one on, or all from the last one on that was read before. That one must be the same, not only have
//! the same number: a master that was behind gives the number to another notice.

use std::time::Duration;

use super::commands::{LogEntry, Polled};
use crate::cache::second_tier::Incarnation;

/// Where the log begins.
const BEGIN: &str = "-";

pub(super) struct LogPosition {
    /// The last notice that was read. It outlasts links.
    last: Option<NoticeId>,
    /// Where to read on, by the ids of the stream.
    from: String,
    /// That of this link.
    incarnation: Option<Incarnation>,
    /// Whether the engine has got its incarnation since the link was opened.
    has_begun: bool,
    /// The number of the next notice. `None` if nothing has been read on this link.
    next: Option<u64>,
    /// Whether notices before the first one of this link may be missing.
    is_cut: bool,
}

/// What identifies a notice in a log.
type NoticeId = (u64, Duration, blake3::Hash);

/// What a batch has shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Progress {
    /// All that had been told when the batch was asked for has been read.
    pub(super) is_whole: bool,
    /// Notices have been lost.
    pub(super) has_gap: bool,
}

impl Default for LogPosition {
    fn default() -> Self {
        Self { last: None, from: BEGIN.to_owned(), incarnation: None, has_begun: false, next: None, is_cut: false }
    }
}

impl LogPosition {
    pub(super) fn from(&self) -> &str {
        &self.from
    }

    /// Whether this process has read a notice.
    pub(super) fn has_read(&self) -> bool {
        self.last.is_some()
    }

    /// Returns whether this is the incarnation that the engine has had since the link was opened. An engine without memory
    /// for it has none at first.
    pub(super) fn note_incarnation(&mut self, incarnation: Incarnation) -> bool {
        self.has_begun |= self.incarnation.is_none();
        *self.incarnation.get_or_insert(incarnation) == incarnation
    }

    /// Whether the engine has an incarnation since the last call of this, and had none when the link was opened. There may
    /// have been another one, whose notices nobody has told again yet.
    pub(super) fn take_begun(&mut self) -> bool {
        std::mem::take(&mut self.has_begun)
    }

    /// There is a new link to an engine with this incarnation, if it is known.
    pub(super) fn restart(&mut self, incarnation: Option<Incarnation>) {
        *self = Self { last: self.last, incarnation, ..Self::default() };
    }

    /// Reads a batch. `None`: the engine has lost its data since this link was opened, and maybe notices that other gateways
    /// had told it, and that have not been read here.
    pub(super) fn advance(&mut self, polled: &Polled) -> Option<Progress> {
        if !self.note_incarnation(polled.incarnation) {
            return None;
        }
        if polled.entries.is_empty() && polled.is_full {
            // Those of an earlier incarnation.
            polled.next.iter().for_each(|from| self.from.clone_from(from));
            return Some(Progress { is_whole: false, has_gap: false });
        }
        let first = polled.entries.first().map_or(polled.last + 1, |entry| entry.number);
        let mut next = self.next.unwrap_or_else(|| {
            self.is_cut = first > 1;
            first
        });
        let mut has_gap = false;
        for entry in &polled.entries {
            has_gap |= entry.number > next;
            next = next.max(entry.number + 1);
            self.is_cut &= self.last != Some(id(entry));
        }
        let mut is_whole = next > polled.last;
        if !is_whole && !polled.is_full {
            // The log itself was lost, or has been cut off meanwhile.
            (has_gap, next, is_whole) = (true, polled.last + 1, true);
        }
        if is_whole {
            has_gap |= std::mem::take(&mut self.is_cut);
            self.last = polled.entries.last().map(id).or(self.last);
        }
        polled.next.iter().for_each(|from| self.from.clone_from(from));
        self.next = Some(next);
        Some(Progress { is_whole, has_gap })
    }
}

fn id(entry: &LogEntry) -> NoticeId {
    (entry.number, entry.told_at, blake3::hash(&entry.sealed))
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;

    fn batch(incarnation: u8, numbers: impl IntoIterator<Item = u64>, last: u64, is_full: bool) -> Polled {
        let entry = |number| LogEntry {
            incarnation: [incarnation; 16],
            number,
            ticket: 0,
            voids: None,
            sealed: Bytes::new(),
            told_at: Duration::ZERO,
        };
        let entries: Vec<LogEntry> = numbers.into_iter().map(entry).collect();
        let next = entries.last().map(|entry| format!("{}-1", entry.number));
        Polled { incarnation: [incarnation; 16], last, entries, time: Duration::ZERO, next, is_full, ticket: Some(1) }
    }

    /// The progress of each batch. `None`: there is a new link.
    fn progress(batches: impl IntoIterator<Item = Option<Polled>>) -> Vec<(bool, bool)> {
        let mut position = LogPosition::default();
        read(&mut position, batches).into_iter().map(Option::unwrap).collect()
    }

    fn read(
        position: &mut LogPosition,
        batches: impl IntoIterator<Item = Option<Polled>>,
    ) -> Vec<Option<(bool, bool)>> {
        let mut read = Vec::new();
        for batch in batches {
            let Some(batch) = batch else {
                position.restart(None);
                continue;
            };
            read.push(position.advance(&batch).map(|Progress { is_whole, has_gap }| (is_whole, has_gap)));
        }
        read
    }

    const GOOD: (bool, bool) = (true, false);
    const GAP: (bool, bool) = (true, true);
    const MORE: (bool, bool) = (false, false);

    #[test]
    fn notices_are_read_in_batches_until_the_log_is_whole() {
        let read = progress([
            Some(batch(1, 1..=5, 8, true)),
            Some(batch(1, 6..=8, 8, false)),
            Some(batch(1, [], 8, false)),
            // One that was told between the two commands.
            Some(batch(1, [9, 10], 9, false)),
        ]);
        assert_eq!(read, [MORE, GOOD, GOOD, GOOD]);
    }

    #[test]
    fn notices_of_an_earlier_incarnation_are_passed_over() {
        let mut earlier = batch(2, [], 1, true);
        earlier.next = Some("7-1".to_owned());
        let mut position = LogPosition::default();
        assert_eq!(read(&mut position, [Some(earlier)]), [Some(MORE)]);
        assert_eq!(position.from(), "7-1");
        assert_eq!(read(&mut position, [Some(batch(2, [1], 1, false))]), [Some(GOOD)]);
    }

    #[test]
    fn missing_notices_are_a_gap() {
        assert_eq!(progress([Some(batch(1, [1, 2, 4], 4, false))]), [GAP], "within a batch");
        assert_eq!(progress([Some(batch(1, [1], 1, false)), Some(batch(1, [3], 3, false))]), [GOOD, GAP]);
        assert_eq!(progress([Some(batch(1, [1], 1, false)), Some(batch(1, [], 2, false))]), [GOOD, GAP], "no log");
        let new_link = |numbers: Vec<u64>| [Some(batch(1, [1, 2], 2, false)), None, Some(batch(1, numbers, 4, false))];
        assert_eq!(progress(new_link(vec![4])), [GOOD, GAP], "cut off while away");
        assert_eq!(progress(new_link(vec![3, 4])), [GOOD, GAP], "nobody knows whether 2 is the same");
        assert_eq!(progress(new_link(vec![2, 3, 4])), [GOOD, GOOD]);
        assert_eq!(progress([Some(batch(1, [1], 1, false)), None, Some(batch(2, [2], 2, false))]), [GOOD, GAP]);
        // Something may have been proved before the first link.
        assert_eq!(progress([Some(batch(1, [2], 2, false))]), [GAP]);
        assert_eq!(progress([Some(batch(1, [], 2, false))]), [GAP]);
        assert_eq!(progress([Some(batch(1, [], 0, false))]), [GOOD]);
    }

    #[test]
    fn a_master_that_was_behind_is_read_from_the_beginning() {
        let behind =
            [Some(batch(1, 1..=5, 5, false)), None, Some(batch(1, 1..=3, 3, false)), Some(batch(1, [4], 4, false))];
        assert_eq!(progress(behind), [GOOD; 3]);
        // Its fifth notice is another one, and its first one is not there any more.
        let mut other = batch(1, 4..=6, 6, false);
        other.entries[1].sealed = Bytes::from_static(b"other");
        assert_eq!(progress([Some(batch(1, 1..=5, 5, false)), None, Some(other)]), [GOOD, GAP]);
        // The same in two batches.
        let same =
            [Some(batch(1, 1..=5, 5, false)), None, Some(batch(1, 2..=4, 6, true)), Some(batch(1, 5..=6, 6, false))];
        assert_eq!(progress(same), [GOOD, MORE, GOOD]);
    }

    #[test]
    fn an_engine_that_was_emptied_is_read_on_a_new_link_only() {
        let emptied = || Some(batch(2, [1], 1, false));
        let mut position = LogPosition::default();
        let batches = [Some(batch(1, 1..=5, 5, false)), emptied(), emptied(), None, emptied()];
        assert_eq!(read(&mut position, batches), [Some(GOOD), None, None, Some(GOOD)]);
        // Also if that was before the first batch.
        position.restart(Some([2; 16]));
        assert_eq!(read(&mut position, [Some(batch(3, [], 0, false))]), [None]);
    }

    #[test]
    fn an_engine_that_is_emptied_after_it_was_told_a_notice_is_noticed() {
        let mut position = LogPosition::default();
        position.restart(None);
        assert!(position.note_incarnation([1; 16]) && position.take_begun() && !position.take_begun());
        assert!(!position.note_incarnation([2; 16]) && !position.take_begun());
        assert_eq!(read(&mut position, [Some(batch(2, [1], 1, false))]), [None]);
        position.restart(Some([2; 16]));
        assert!(position.note_incarnation([2; 16]) && !position.take_begun());
    }
}
