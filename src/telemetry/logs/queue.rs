//! The queue between the threads that log and the thread that writes to the log's target. Logging never waits for the
//! target: if the queue is full, a line is dropped and counted.

use std::collections::VecDeque;
use std::io::{self, ErrorKind, Write};
use std::thread;
use std::time::Duration;

use crate::sync::{Condvar, Mutex, MutexGuard};

/// How many bytes the queue holds at most, with [`OVERHEAD`] for each line.
pub(crate) const CAPACITY: usize = 1 << 20;

/// Bytes that a line takes besides its text: its place in the queue, and what the allocator rounds up.
const OVERHEAD: usize = 64;

/// How long the writer waits when a non-blocking target takes nothing (EAGAIN).
const RETRY_INTERVAL: Duration = Duration::from_millis(10);

#[derive(Default)]
pub(super) struct Queue {
    state: Mutex<QueueState>,
    filled: Condvar,
    emptied: Condvar,
}

#[derive(Default)]
struct QueueState {
    lines: VecDeque<Box<[u8]>>,
    /// Bytes of all lines and of the line that is being written.
    bytes: usize,
    /// Lines that were dropped or could not be written, since the start.
    dropped: u64,
    /// How many of them the log has not reported yet.
    unreported: u64,
    /// Whether the writer waits for a line.
    is_idle: bool,
}

impl QueueState {
    fn drop_line(&mut self) {
        self.dropped += 1;
        self.unreported += 1;
    }
}

impl Queue {
    /// Queues or drops a line. The line must have its line end.
    pub(super) fn push(&self, line: &[u8]) {
        let cost = line.len() + OVERHEAD;
        let mut state = self.state();
        if state.bytes + cost > CAPACITY {
            state.drop_line();
            return;
        }
        state.bytes += cost;
        state.lines.push_back(line.into());
        if std::mem::take(&mut state.is_idle) {
            self.filled.notify_one();
        }
    }

    pub(super) fn dropped(&self) -> u64 {
        self.state().dropped
    }

    /// Whether lines were dropped that the log has not reported yet, or the queue is half full.
    pub(super) fn is_stalled(&self) -> bool {
        let state = self.state();
        state.unreported > 0 || state.bytes > CAPACITY / 2
    }

    /// Waits until everything is written, at most until the limit. Returns whether everything is written.
    pub(super) fn wait_until_written(&self, limit: Duration) -> bool {
        let mut state = self.state();
        self.emptied.wait_while_for(&mut state, |state| state.bytes > 0, limit);
        state.bytes == 0
    }

    /// Writes each line to a target, and never returns. `report` logs the number of dropped lines, once a line could be
    /// written and half of the queue is free again.
    pub(super) fn write_to(&self, mut target: impl Write, report: impl Fn(u64)) {
        let mut is_within_line = false;
        loop {
            let line = self.next();
            let written = write(&mut target, &line, &mut is_within_line);
            let unreported = self.take_unreported(&line, written.is_ok());
            if unreported > 0 {
                report(unreported);
            }
            self.done(&line);
        }
    }

    fn next(&self) -> Box<[u8]> {
        let mut state = self.state();
        loop {
            if let Some(line) = state.lines.pop_front() {
                return line;
            }
            state.is_idle = true;
            self.filled.wait(&mut state);
        }
    }

    /// Counts the line as dropped if it is not written. Returns how many dropped lines to report now.
    fn take_unreported(&self, line: &[u8], is_written: bool) -> u64 {
        let mut state = self.state();
        if !is_written {
            state.drop_line();
        }
        let has_room = state.bytes - (line.len() + OVERHEAD) <= CAPACITY / 2;
        if is_written && has_room { std::mem::take(&mut state.unreported) } else { 0 }
    }

    /// Frees the room of a line. A report must be queued before this, because the process may end when the queue is
    /// empty.
    fn done(&self, line: &[u8]) {
        let mut state = self.state();
        state.bytes -= line.len() + OVERHEAD;
        if state.bytes == 0 {
            self.emptied.notify_all();
        }
    }

    fn state(&self) -> MutexGuard<'_, QueueState> {
        self.state.lock()
    }
}

/// Writes a line. If an error has cut the previous line short, its end is written first.
fn write(target: &mut impl Write, line: &[u8], is_within_line: &mut bool) -> io::Result<()> {
    if *is_within_line {
        write_all(target, b"\n", is_within_line)?;
        *is_within_line = false;
    }
    write_all(target, line, is_within_line)
}

/// Writes everything, or fails. Sets `is_within_line` if only a part was written.
fn write_all(target: &mut impl Write, mut rest: &[u8], is_within_line: &mut bool) -> io::Result<()> {
    let whole = rest.len();
    while !rest.is_empty() {
        match target.write(rest) {
            Ok(0) => break,
            Ok(written) => rest = &rest[written..],
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) if error.kind() == ErrorKind::WouldBlock => thread::sleep(RETRY_INTERVAL),
            Err(error) => {
                *is_within_line |= rest.len() < whole;
                return Err(error);
            }
        }
    }
    if rest.is_empty() {
        return Ok(());
    }
    *is_within_line |= rest.len() < whole;
    Err(ErrorKind::WriteZero.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Takes as many bytes as its next step says.
    struct LogTarget {
        steps: VecDeque<io::Result<usize>>,
        taken: Vec<u8>,
    }

    impl Write for LogTarget {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            let taken = self.steps.pop_front().unwrap_or(Ok(bytes.len()))?.min(bytes.len());
            self.taken.extend_from_slice(&bytes[..taken]);
            Ok(taken)
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    /// Handles the next line as the writer does. Returns how many dropped lines to report.
    fn handle(queue: &Queue, is_written: bool) -> u64 {
        let line = queue.next();
        let unreported = queue.take_unreported(&line, is_written);
        queue.done(&line);
        unreported
    }

    #[test]
    fn lines_beyond_the_capacity_are_dropped_and_counted() {
        let queue = Queue::default();
        let line = [b'x'; 1_024 - OVERHEAD];
        for _ in 0..1_027 {
            queue.push(&line);
        }
        assert_eq!((queue.dropped(), queue.state().bytes), (3, CAPACITY));
        assert!(queue.is_stalled());
        assert_eq!(handle(&queue, true), 0);
        queue.push(&line);
        assert_eq!(queue.dropped(), 3);
        let reports: Vec<u64> = (0..1_024).map(|_| handle(&queue, true)).filter(|lines| *lines > 0).collect();
        assert_eq!((reports, queue.state().bytes), (vec![3], 0));
        assert!(!queue.is_stalled());
    }

    #[test]
    fn lines_that_cannot_be_written_are_reported_after_a_line_that_can() {
        let queue = Queue::default();
        for _ in 0..3 {
            queue.push(b"line\n");
        }
        let reports = [false, false, true].map(|is_written| handle(&queue, is_written));
        assert_eq!((reports, queue.dropped()), ([0, 0, 2], 2));
    }

    #[test]
    fn the_line_after_a_line_that_was_cut_short_is_whole() {
        let full = || Err(io::Error::from(ErrorKind::StorageFull));
        let steps = [Ok(3), full(), full(), Ok(1), full()];
        let (mut target, mut is_within_line) = (LogTarget { steps: steps.into(), taken: Vec::new() }, false);
        let written = [b"first\n", b"other\n", b"third\n", b"whole\n"]
            .map(|line| write(&mut target, line, &mut is_within_line).is_ok());
        assert_eq!(written, [false, false, false, true]);
        assert_eq!(target.taken, b"fir\nwhole\n");
    }

    #[test]
    fn the_rest_of_a_line_is_written_after_a_non_blocking_target_took_a_part() {
        let steps = [Ok(3), Err(ErrorKind::WouldBlock.into()), Err(ErrorKind::Interrupted.into()), Ok(1)];
        let (mut target, mut is_within_line) = (LogTarget { steps: steps.into(), taken: Vec::new() }, false);
        assert!(write(&mut target, b"line\n", &mut is_within_line).is_ok());
        assert_eq!((target.taken.as_slice(), is_within_line), (b"line\n".as_slice(), false));
    }
}
