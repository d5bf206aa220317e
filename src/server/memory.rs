//! What one connection holds of the memory budget: a fixed amount while it is open, more for a large head, and more for a
//! large send buffer in the kernel.
//!
//! hyper reads into a buffer that grows with the largest head and never shrinks, so a connection that has read one is
//! given a new buffer when it is idle (`pulse.rs` tells when, `renew.rs` does it).

use std::io;

use crate::budget::{Account, Charge, Purpose};
use crate::net::{Accepted, Buffers};

/// The kernel's send buffer of a new connection, in bytes as they are set: Linux takes twice that (socket(7)), and holds so
/// much for a client that reads nothing.
pub(super) const SEND_BUFFER: usize = 8 * 1024;

/// The same where the client reads a large response. More would let a slow reader seem to stand still for long.
const LARGE_SEND_BUFFER: usize = 64 * 1024;

/// The buffers of new connections. The receive buffer holds what has come and is not read yet.
pub(super) const BUFFERS: Buffers = Buffers { send: SEND_BUFFER, receive: 32 * 1024 };

/// How much of a head costs nothing beyond what a connection is charged.
const SMALL_HEAD: usize = 16 * 1024;

/// What an open connection takes, in bytes: its state and buffers when it is idle, and the send buffer in the kernel.
/// Measured.
pub(super) const CONNECTION: usize = 16 * 1024 + 2 * SEND_BUFFER;

/// What one in HTTP/2 takes besides, and one with TLS: its state, and what is encrypted and not sent. Measured.
pub(super) const HTTP2: usize = 24 * 1024;
pub(super) const TLS: usize = 32 * 1024;

/// What one byte of a head or a trailer section in HTTP/2 may take once it is decoded: an indexed field of one byte (RFC 7541
/// §6.1) is kept as an entry of this size. Measured: 57 bytes.
const FIELD_OF_ONE_BYTE: usize = 70;

/// How many bytes of heads in HTTP/2 are read at once, and how many if the client may not have what they may be decoded to.
/// Then their requests begin before more is read. Without any, a client could not say that it has read its answers.
const HEADS_AT_ONCE: usize = 4 * 1024;
const HEADS_WITHOUT_ROOM: usize = 512;

/// A socket whose send buffer can be made larger.
pub(super) trait SendBuffer {
    /// Sets its size in bytes.
    ///
    /// # Errors
    /// If the kernel refuses.
    fn set_send_buffer(&self, bytes: usize) -> io::Result<()>;
}

impl SendBuffer for Accepted {
    fn set_send_buffer(&self, bytes: usize) -> io::Result<()> {
        self.set_send_buffer(bytes)
    }
}

/// The send buffer in the kernel.
pub(super) struct SocketMemory {
    account: Account,
    large: Option<Charge>,
}

impl SocketMemory {
    pub(super) fn new(account: Account) -> Self {
        Self { account, large: None }
    }

    /// Makes the buffer larger, for it is full. False if it is large already, or the budget has no room: then the response
    /// goes on in smaller steps.
    pub(super) fn enlarge(&mut self, socket: &impl SendBuffer) -> bool {
        if self.large.is_some() {
            return false;
        }
        let more = 2 * (LARGE_SEND_BUFFER - SEND_BUFFER);
        self.large = self.account.try_charge_spare(Purpose::Sockets, more);
        if self.large.is_some() && socket.set_send_buffer(LARGE_SEND_BUFFER).is_err() {
            self.large = None;
        }
        self.large.is_some()
    }
}

/// The heads that are being read: the buffer of HTTP/1, and what h2 collects and decodes.
pub(super) struct HeadMemory {
    account: Account,
    /// For a buffer that is larger than a connection is charged for.
    buffer: Option<Charge>,
    /// HTTP/1: how much of the buffer is filled.
    read: usize,
    /// HTTP/2: heads that were decoded, and whose requests may not have been charged yet.
    decoded: Option<Charge>,
    trailers: Option<Charge>,
}

impl HeadMemory {
    pub(super) fn new(account: Account) -> Self {
        Self { account, buffer: None, read: 0, decoded: None, trailers: None }
    }

    /// HTTP/1: how many more bytes of a head may be read. `None` if the client may not have a larger buffer now.
    pub(super) fn room(&mut self) -> Option<usize> {
        let size = self.buffer.as_ref().map_or(SMALL_HEAD, Charge::bytes);
        if self.read < size {
            return Some(size - self.read);
        }
        // The buffer doubles whenever it is full.
        self.grow_to(2 * size).then(|| 2 * size - self.read)
    }

    /// HTTP/1: so many more bytes of a head were read.
    pub(super) fn reads(&mut self, bytes: usize) {
        self.read += bytes;
    }

    /// HTTP/1: no head is being read. The buffer is as large as it was.
    pub(super) fn head_is_whole(&mut self) {
        self.read = 0;
    }

    /// Whether the buffer has become large.
    pub(super) fn is_large(&self) -> bool {
        self.buffer.is_some()
    }

    /// The buffer is gone.
    pub(super) fn is_freed(&mut self) {
        self.buffer = None;
    }

    /// HTTP/2: whether h2 may collect so much of an unfinished head.
    pub(super) fn may_collect(&mut self, unfinished: usize) -> bool {
        if unfinished <= SMALL_HEAD {
            self.is_freed();
            return true;
        }
        self.buffer.as_ref().is_some_and(|buffer| buffer.bytes() >= unfinished)
            || self.grow_to(unfinished.next_power_of_two())
    }

    /// HTTP/2: how many bytes of whole heads may be read now. What they are decoded to is charged only when they have been.
    pub(super) fn heads_at_once(&self) -> usize {
        let is_short = self.account.shortage(Purpose::Requests, HEADS_AT_ONCE * FIELD_OF_ONE_BYTE).is_some();
        if is_short { HEADS_WITHOUT_ROOM } else { HEADS_AT_ONCE }
    }

    /// HTTP/2: heads of so many bytes are decoded. Says whether their requests have to begin before more is read.
    pub(super) fn decodes(&mut self, bytes: usize) -> bool {
        let account = &self.account;
        let decoded = self.decoded.get_or_insert_with(|| account.charge(Purpose::Heads, 0));
        decoded.add(bytes * FIELD_OF_ONE_BYTE);
        decoded.bytes() >= HEADS_WITHOUT_ROOM * FIELD_OF_ONE_BYTE
    }

    /// HTTP/2: whether heads were decoded whose requests may not have begun.
    pub(super) fn has_decoded(&self) -> bool {
        self.decoded.is_some()
    }

    /// HTTP/2: the requests whose heads were decoded have begun, and are charged.
    pub(super) fn requests_have_begun(&mut self) {
        self.decoded = None;
    }

    /// HTTP/2: so many bytes of trailer sections have come in all. h2 keeps their fields until the body before them is read,
    /// so they are charged until no request is under way. False if the client may not have so many.
    pub(super) fn trailers(&mut self, bytes: usize) -> bool {
        if bytes == 0 {
            self.trailers = None;
            return true;
        }
        let account = &self.account;
        let trailers = self.trailers.get_or_insert_with(|| account.charge(Purpose::Heads, 0));
        let more = (bytes * FIELD_OF_ONE_BYTE).saturating_sub(trailers.bytes());
        more == 0 || trailers.grow(more)
    }

    fn grow_to(&mut self, bytes: usize) -> bool {
        match &mut self.buffer {
            Some(buffer) => buffer.grow(bytes - buffer.bytes()),
            None => {
                self.buffer = self.account.try_charge(Purpose::Heads, bytes);
                self.buffer.is_some()
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;
    use std::sync::Arc;

    use super::*;
    use crate::budget::{Budget, ConnectionClass};

    const KIB: usize = 1024;

    /// The account of a connection that may have half of the budget.
    fn known(budget: &Arc<Budget>) -> Account {
        let account = Account::open(budget, None);
        account.raise(ConnectionClass::Known, None);
        account
    }

    /// Tells what was set.
    #[derive(Default)]
    struct ChargedSocket(Cell<usize>);

    impl SendBuffer for ChargedSocket {
        fn set_send_buffer(&self, bytes: usize) -> io::Result<()> {
            self.0.set(bytes);
            Ok(())
        }
    }

    #[test]
    fn a_small_head_costs_nothing_and_a_large_one_what_its_buffer_takes() {
        let budget = Budget::new(1024 * KIB);
        let mut head = HeadMemory::new(known(&budget));
        assert_eq!(head.room(), Some(SMALL_HEAD));
        head.reads(SMALL_HEAD);
        assert_eq!((budget.used(), head.is_large()), (0, false));
        for (room, held) in [(16 * KIB, 32 * KIB), (32 * KIB, 64 * KIB), (64 * KIB, 128 * KIB)] {
            assert_eq!(head.room(), Some(room));
            head.reads(room);
            assert_eq!(budget.used_for(Purpose::Heads), held);
        }
        // The next head is small, but the buffer is not.
        head.head_is_whole();
        assert!(head.room() == Some(128 * KIB) && head.is_large());
        head.is_freed();
        assert_eq!((budget.used(), head.is_large()), (0, false));
    }

    #[test]
    fn a_head_is_read_on_only_while_its_client_may_have_the_buffer() {
        let budget = Budget::new(64 * KIB);
        let mut head = HeadMemory::new(known(&budget));
        head.reads(SMALL_HEAD);
        assert_eq!(head.room(), Some(16 * KIB));
        head.reads(16 * KIB);
        assert_eq!(head.room(), None);
        assert_eq!(budget.used(), 32 * KIB);
        budget.resize(128 * KIB);
        assert_eq!(head.room(), Some(32 * KIB));
    }

    #[test]
    fn an_unfinished_head_of_http2_is_charged_as_long_as_it_is_large() {
        let budget = Budget::new(128 * KIB);
        let mut head = HeadMemory::new(known(&budget));
        for (unfinished, may, held) in [
            (0, true, 0),
            (SMALL_HEAD, true, 0),
            (17 * KIB, true, 32 * KIB),
            (33 * KIB, true, 64 * KIB),
            (65 * KIB, false, 64 * KIB),
            (1, true, 0),
        ] {
            assert_eq!(head.may_collect(unfinished), may, "{unfinished}");
            assert_eq!(budget.used(), held, "{unfinished}");
        }
    }

    #[test]
    fn heads_of_http2_are_charged_as_decoded_until_their_requests_begin() {
        let budget = Budget::new(2 * HEADS_AT_ONCE * FIELD_OF_ONE_BYTE);
        let mut head = HeadMemory::new(known(&budget));
        assert_eq!(head.heads_at_once(), HEADS_AT_ONCE);
        assert!(!head.decodes(HEADS_WITHOUT_ROOM - 1));
        assert!(head.decodes(1));
        assert!(head.decodes(HEADS_AT_ONCE));
        assert_eq!(budget.used_for(Purpose::Heads), (HEADS_AT_ONCE + HEADS_WITHOUT_ROOM) * FIELD_OF_ONE_BYTE);
        assert_eq!(head.heads_at_once(), HEADS_WITHOUT_ROOM);
        head.requests_have_begun();
        assert_eq!((budget.used(), head.heads_at_once()), (0, HEADS_AT_ONCE));
    }

    #[test]
    fn trailer_sections_are_charged_by_what_they_may_take_once_decoded() {
        let budget = Budget::new(1024 * KIB);
        let mut head = HeadMemory::new(known(&budget));
        for (bytes, may, charged) in
            [(0, true, 0), (KIB, true, KIB), (2 * KIB, true, 2 * KIB), (20 * KIB, false, 2 * KIB)]
        {
            assert_eq!(head.trailers(bytes), may, "{bytes}");
            head.is_freed();
            assert_eq!(budget.used_for(Purpose::Heads), charged * FIELD_OF_ONE_BYTE);
        }
        assert!(head.trailers(0));
        assert_eq!(budget.used(), 0);
    }

    #[test]
    fn a_send_buffer_grows_once_and_only_while_half_of_the_budget_is_free() {
        let budget = Budget::new(512 * KIB);
        let (socket, another) = (ChargedSocket::default(), ChargedSocket::default());
        let mut memory = SocketMemory::new(known(&budget));
        assert!(memory.enlarge(&socket));
        assert_eq!((socket.0.get(), budget.used_for(Purpose::Sockets)), (64 * KIB, 112 * KIB));
        assert!(!memory.enlarge(&socket));
        let _half = budget.charge(Purpose::Heads, 256 * KIB);
        assert!(!SocketMemory::new(known(&budget)).enlarge(&another));
        assert_eq!(another.0.get(), 0);
        drop(memory);
        assert_eq!(budget.used_for(Purpose::Sockets), 0);
    }
}
