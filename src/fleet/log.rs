//! How far the log has been read, and whether notices are missing. Pure.

use super::commands::Polled;
use crate::cache::second_tier::Incarnation;

/// Where the log begins.
const BEGIN: &str = "-";

/// Each link is read from the beginning of the log: another master may have another one.
pub(super) struct LogPosition {
    /// The incarnation, and the number of the next notice. It outlasts links.
    next: Option<(Incarnation, u64)>,
    /// Where to read on, by the ids of the stream.
    from: String,
    /// Whether this link's first batch has been read.
    has_begun: bool,
}

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
        Self { next: None, from: BEGIN.to_owned(), has_begun: false }
    }
}

impl LogPosition {
    pub(super) fn from(&self) -> &str {
        &self.from
    }

    /// There is a new link.
    pub(super) fn restart(&mut self) {
        (self.from, self.has_begun) = (BEGIN.to_owned(), false);
    }

    /// Reads a batch. `None`: the engine has lost its data since this link was opened, and maybe notices that other gateways
    /// had told it, and that have not been read here.
    pub(super) fn advance(&mut self, polled: &Polled) -> Option<Progress> {
        let is_same = self.next.is_none_or(|(incarnation, _)| incarnation == polled.incarnation);
        if self.has_begun && !is_same {
            return None;
        }
        let first = polled.entries.first().map_or(polled.last + 1, |entry| entry.number);
        let mut has_gap = false;
        let mut next = match self.next {
            Some((_, next)) if self.has_begun => next,
            before => {
                // What this process has not read of the log is not there any more.
                let expected = before.map(|(_, next)| if is_same { next } else { 1 });
                has_gap = expected.is_some_and(|expected| first > expected);
                first
            }
        };
        for entry in &polled.entries {
            has_gap |= entry.number > next;
            next = next.max(entry.number + 1);
        }
        let mut is_whole = next > polled.last;
        if !is_whole && !polled.is_full {
            // The log itself was lost, or has been cut off meanwhile.
            (has_gap, next, is_whole) = (true, polled.last + 1, true);
        }
        if let Some(from) = &polled.next {
            self.from.clone_from(from);
        }
        (self.next, self.has_begun) = (Some((polled.incarnation, next)), true);
        Some(Progress { is_whole, has_gap })
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use bytes::Bytes;

    use super::*;
    use crate::fleet::commands::LogEntry;

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
        Polled { incarnation: [incarnation; 16], last, entries, time: Duration::ZERO, next, is_full }
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
                position.restart();
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
            Some(batch(1, 5..=9, 12, true)),
            Some(batch(1, 10..=12, 12, false)),
            Some(batch(1, [], 12, false)),
            // One that was told between the two commands.
            Some(batch(1, [13, 14], 13, false)),
        ]);
        assert_eq!(read, [MORE, GOOD, GOOD, GOOD]);
    }

    #[test]
    fn missing_notices_are_a_gap() {
        assert_eq!(progress([Some(batch(1, [1, 2, 4], 4, false))]), [GAP], "within a batch");
        assert_eq!(progress([Some(batch(1, [1], 1, false)), Some(batch(1, [3], 3, false))]), [GOOD, GAP]);
        assert_eq!(progress([Some(batch(1, [1], 1, false)), Some(batch(1, [], 2, false))]), [GOOD, GAP], "no log");
        let new_link = [Some(batch(1, [1, 2], 2, false)), None, Some(batch(1, [4], 4, false))];
        assert_eq!(progress(new_link), [GOOD, GAP], "cut off while away");
        assert_eq!(progress([Some(batch(1, [1], 1, false)), None, Some(batch(2, [2], 2, false))]), [GOOD, GAP]);
    }

    #[test]
    fn another_master_that_is_behind_is_read_from_the_beginning() {
        let behind =
            [Some(batch(1, 1..=5, 5, false)), None, Some(batch(1, 1..=3, 3, false)), Some(batch(1, [4], 4, false))];
        assert_eq!(progress(behind), [GOOD; 3]);
    }

    #[test]
    fn an_engine_that_was_emptied_is_read_on_a_new_link_only() {
        let emptied = || Some(batch(2, [1], 1, false));
        let mut position = LogPosition::default();
        let batches = [Some(batch(1, 1..=5, 5, false)), emptied(), emptied(), None, emptied()];
        assert_eq!(read(&mut position, batches), [Some(GOOD), None, None, Some(GOOD)]);
    }
}
