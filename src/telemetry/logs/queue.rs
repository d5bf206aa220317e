//! The queue between whoever logs and the one thread that writes to the log's target. Whoever logs never waits for the
//! target: a line that finds no room is dropped and counted.

use std::collections::VecDeque;
use std::io::{self, ErrorKind, Write};
use std::thread;
use std::time::Duration;

use crate::sync::{Condvar, Mutex, MutexGuard};

/// How many bytes wait to be written at most, each line with [`OVERHEAD`].
pub(crate) const CAPACITY: usize = 1 << 20;

/// What a line takes beside its text, in bytes: its place in the queue and what the allocator rounds up.
const OVERHEAD: usize = 64;

/// How long the writer waits where the target is non-blocking and takes nothing (EAGAIN).
const PAUSE: Duration = Duration::from_millis(10);

/// Lines that wait to be written.
#[derive(Default)]
pub(super) struct Queue {
    state: Mutex<QueueState>,
    filled: Condvar,
    emptied: Condvar,
}

#[derive(Default)]
struct QueueState {
    lines: VecDeque<Box<[u8]>>,
    /// What the lines take, and the one that is being written.
    bytes: usize,
    /// How many lines have not been written, in all.
    dropped: u64,
    /// How many of them the log has not told of.
    untold: u64,
    /// Whether the writer waits for a line.
    is_idle: bool,
}

impl QueueState {
    fn drop_line(&mut self) {
        self.dropped += 1;
        self.untold += 1;
    }
}

impl Queue {
    /// Queues a whole line, with its end, or drops it.
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

    /// How many lines have been dropped so far.
    pub(super) fn dropped(&self) -> u64 {
        self.state().dropped
    }

    /// Waits until everything is written, but no longer than this. Says whether it is.
    pub(super) fn wait_until_written(&self, limit: Duration) -> bool {
        let mut state = self.state();
        self.emptied.wait_while_for(&mut state, |state| state.bytes > 0, limit);
        state.bytes == 0
    }

    /// Writes each line to a target, for ever. `tell` logs how many lines have been dropped: when a line could be written
    /// and half of the queue is free again.
    pub(super) fn write_to(&self, mut target: impl Write, tell: impl Fn(u64)) {
        let mut is_within_line = false;
        loop {
            let line = self.next();
            let written = write(&mut target, &line, &mut is_within_line);
            let untold = self.untold(&line, written.is_ok());
            if untold > 0 {
                tell(untold);
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

    /// Notes what came of a line. Returns how many dropped lines there are to tell of now.
    fn untold(&self, line: &[u8], is_written: bool) -> u64 {
        let mut state = self.state();
        if !is_written {
            state.drop_line();
        }
        let has_room = state.bytes - (line.len() + OVERHEAD) <= CAPACITY / 2;
        if is_written && has_room { std::mem::take(&mut state.untold) } else { 0 }
    }

    /// Gives back the room of a line, after what there was to tell has been queued: the process must not end before that.
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

/// Writes a line. One that an error has cut short is ended first, so that the next one is whole.
fn write(target: &mut impl Write, line: &[u8], is_within_line: &mut bool) -> io::Result<()> {
    if *is_within_line {
        write_all(target, b"\n", is_within_line)?;
        *is_within_line = false;
    }
    write_all(target, line, is_within_line)
}

/// Writes all of it, unless that fails. Sets `is_within_line` if only a part could be written.
fn write_all(target: &mut impl Write, mut rest: &[u8], is_within_line: &mut bool) -> io::Result<()> {
    let whole = rest.len();
    while !rest.is_empty() {
        match target.write(rest) {
            Ok(0) => break,
            Ok(written) => rest = &rest[written..],
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) if error.kind() == ErrorKind::WouldBlock => thread::sleep(PAUSE),
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

    /// Takes what it has room for, step by step.
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

    /// Handles the next line as the writer would. Returns how many dropped lines there are to tell of.
    fn handle(queue: &Queue, is_written: bool) -> u64 {
        let line = queue.next();
        let untold = queue.untold(&line, is_written);
        queue.done(&line);
        untold
    }

    #[test]
    fn lines_beyond_the_capacity_are_dropped_and_counted() {
        let queue = Queue::default();
        let line = [b'x'; 1_024 - OVERHEAD];
        for _ in 0..1_027 {
            queue.push(&line);
        }
        assert_eq!((queue.dropped(), queue.state().bytes), (3, CAPACITY));
        assert_eq!(handle(&queue, true), 0);
        queue.push(&line);
        assert_eq!(queue.dropped(), 3);
        let told: Vec<u64> = (0..1_024).map(|_| handle(&queue, true)).filter(|told| *told > 0).collect();
        assert_eq!((told, queue.state().bytes), (vec![3], 0));
    }

    #[test]
    fn a_line_that_cannot_be_written_is_dropped_and_told_of_after_one_that_can() {
        let queue = Queue::default();
        for _ in 0..3 {
            queue.push(b"line\n");
        }
        let told = [false, false, true].map(|is_written| handle(&queue, is_written));
        assert_eq!((told, queue.dropped()), ([0, 0, 2], 2));
    }

    #[test]
    fn a_line_after_one_that_was_cut_short_is_whole() {
        let full = || Err(io::Error::from(ErrorKind::StorageFull));
        let steps = [Ok(3), full(), full(), Ok(1), full()];
        let (mut target, mut is_within_line) = (LogTarget { steps: steps.into(), taken: Vec::new() }, false);
        let written = [b"first\n", b"other\n", b"third\n", b"whole\n"]
            .map(|line| write(&mut target, line, &mut is_within_line).is_ok());
        assert_eq!(written, [false, false, false, true]);
        assert_eq!(target.taken, b"fir\nwhole\n");
    }

    #[test]
    fn a_line_goes_on_where_a_target_that_does_not_block_took_a_part() {
        let steps = [Ok(3), Err(ErrorKind::WouldBlock.into()), Err(ErrorKind::Interrupted.into()), Ok(1)];
        let (mut target, mut is_within_line) = (LogTarget { steps: steps.into(), taken: Vec::new() }, false);
        assert!(write(&mut target, b"line\n", &mut is_within_line).is_ok());
        assert_eq!((target.taken.as_slice(), is_within_line), (b"line\n".as_slice(), false));
    }
}
