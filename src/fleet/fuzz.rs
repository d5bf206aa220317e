//! Reads what an engine sends without a connection, for `tests/fuzz`. No part of the gateway uses it.

use std::time::{Duration, Instant};

use bytes::Bytes;
use redis::Value;

use super::commands::{Fresh, LogEntry, PollReplies, Polled, Wanted, read_done, read_known, read_role, read_told};
use super::dialer::moved_to;
use super::framing::Framing;
use super::log::{LogPosition, Progress};
use crate::cache::second_tier::{Incarnation, Lease, LookUp, LookedUp, Name, Order};

/// How many elements the bounds for what an engine may send count in these pieces. `None` if they refuse them. `largest`: the
/// longest bulk string, in bytes.
pub fn counted<'p>(largest: u64, pieces: impl IntoIterator<Item = &'p [u8]>) -> Option<u64> {
    let mut framing = Framing::new(largest);
    let all = framing.elements_left();
    pieces.into_iter().all(|piece| framing.accepts(piece)).then(|| all - framing.elements_left())
}

/// What the replies to a look-up mean. `None` if they are not answers to it. `now` is when they came.
pub fn look_up(
    (look_up, lease): (LookUp<'_>, Option<Lease>),
    nonce: u64,
    max_record: usize,
    replies: Vec<Value>,
    now: Instant,
) -> Option<LookedUp> {
    let fresh = Fresh { incarnation: Incarnation::default(), nonce };
    Wanted { look_up, lease, fresh, max_record }.read(replies, now, 0).ok()
}

/// A notice in the log.
#[derive(Debug, PartialEq, Eq)]
pub struct ReadNotice {
    pub number: u64,
    pub ticket: u64,
    pub voids: Option<Name>,
    pub sealed: Bytes,
    pub told_at: Duration,
}

/// What the replies to a poll mean.
#[derive(Debug, PartialEq, Eq)]
pub struct ReadLog {
    pub incarnation: Incarnation,
    pub last: u64,
    pub notices: Vec<ReadNotice>,
    /// Whether all has been read, and whether notices are missing. `None` if the engine has lost its data.
    pub progress: Option<(bool, bool)>,
    /// Where the next poll reads on.
    pub from: String,
}

/// Reads a log, poll after poll.
#[derive(Default)]
pub struct LogFollower(LogPosition);

impl LogFollower {
    /// There is a new link.
    pub fn restart(&mut self) {
        self.0.restart(None);
    }

    /// What the replies to a poll mean. `None` if they are not answers to it.
    pub fn poll(&mut self, nonce: u64, replies: &[Value]) -> Option<ReadLog> {
        let fresh = Fresh { incarnation: Incarnation::default(), nonce };
        let polled = PollReplies { fresh }.read(replies).ok()?;
        let progress = self.0.advance(&polled).map(|Progress { is_whole, has_gap }| (is_whole, has_gap));
        let Polled { incarnation, last, entries, .. } = polled;
        let notice = |LogEntry { number, ticket, voids, sealed, told_at, .. }| ReadNotice {
            number,
            ticket,
            voids,
            sealed,
            told_at,
        };
        let notices = entries.into_iter().map(notice).collect();
        Some(ReadLog { incarnation, last, notices, progress, from: self.0.from().to_owned() })
    }
}

/// For each pair of replies, whether another gateway knows the name. `None` if one is no answer, or an error.
pub fn known(replies: &[Value], own: Incarnation) -> Option<Vec<bool>> {
    read_known(replies, own).ok()?.into_iter().map(Result::ok).collect()
}

/// What the reply to a script means: whether a notice was added, and its place. `None` if it is no answer.
pub fn told(reply: &Value) -> Option<(bool, Order)> {
    read_told(reply).ok()
}

/// What the reply to the other scripts means.
pub fn done(reply: &Value) -> Option<bool> {
    read_done(reply).ok()
}

/// The host and the port to which an error `MOVED` of the node `here` with the port 1 points.
pub fn moved(details: &str) -> Option<(String, u16)> {
    moved_to(details, &("here".to_owned(), 1))
}

/// Whether a node says that it is a master.
pub fn is_master(reply: &Value) -> bool {
    read_role(reply).is_ok()
}
