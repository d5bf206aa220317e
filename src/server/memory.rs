//! Charges what one connection holds of the memory budget: a fixed amount while it is open, more for a large head, and
//! more for a large send buffer in the kernel. No connection is closed here.
//!
//! hyper's read buffer grows with the largest head and never shrinks. So a connection that has read a large head gets a
//! new buffer when it is idle (`activity.rs` decides when, `renew.rs` does it).

use std::io;

use crate::budget::{Account, Charge, Purpose};
use crate::net::{Accepted, Buffers};

/// The kernel's send buffer of a new connection, in bytes as set. Linux allocates twice that (socket(7)), and holds it
/// for a client that reads nothing.
pub(super) const SEND_BUFFER: usize = 8 * 1024;

/// The send buffer while the client reads a large response. With a larger one, a slow reader could seem to make no
/// progress for a long time.
const LARGE_SEND_BUFFER: usize = 64 * 1024;

/// The kernel's buffers of a new connection. The receive buffer holds bytes that the gateway has not read.
pub(super) const BUFFERS: Buffers = Buffers { send: SEND_BUFFER, receive: 32 * 1024 };

/// Up to this size in bytes, a head is included in the charge for the connection.
const SMALL_HEAD: usize = 16 * 1024;

/// The charge for an open connection in bytes: its state and buffers when idle, and the kernel's send buffer. Measured.
pub(super) const CONNECTION: usize = 16 * 1024 + 2 * SEND_BUFFER;

/// The additional charge for an HTTP/2 connection and for a TLS connection: state, and encrypted bytes that are not
/// sent. Measured.
pub(super) const HTTP2: usize = 24 * 1024;
pub(super) const TLS: usize = 32 * 1024;

/// How many bytes one byte of an HTTP/2 field section may take after decoding: an indexed field of one byte (RFC 7541
/// §6.1) becomes an entry of this size. Measured: 57 bytes.
const FIELD_OF_ONE_BYTE: usize = 70;

/// How many bytes of HTTP/2 heads are read at once; the second value if the budget has no room for the decoded size of
/// the first. Then their requests start before more is read. It is not 0, because otherwise a client could not open its
/// windows.
const HEADS_AT_ONCE: usize = 4 * 1024;
const HEADS_WITHOUT_ROOM: usize = 512;

/// A socket whose send buffer can be enlarged.
pub(super) trait SendBuffer {
    /// `bytes` as for [`SEND_BUFFER`].
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

/// The charge for the kernel's send buffer.
pub(super) struct SocketMemory {
    account: Account,
    large: Option<Charge>,
}

impl SocketMemory {
    pub(super) fn new(account: Account) -> Self {
        Self { account, large: None }
    }

    /// Enlarges the send buffer when it is full. Returns false if it is already large or the budget has no room: then
    /// the response is written in smaller steps.
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

/// The charge for heads that are being read: the HTTP/1 buffer, and what h2 collects and decodes.
pub(super) struct HeadMemory {
    account: Account,
    /// For a buffer larger than [`SMALL_HEAD`].
    buffer: Option<Charge>,
    /// HTTP/1: the used bytes of the buffer.
    read: usize,
    /// HTTP/2: decoded heads whose requests may not have been charged yet.
    decoded: Option<Charge>,
    trailers: Option<Charge>,
}

impl HeadMemory {
    pub(super) fn new(account: Account) -> Self {
        Self { account, buffer: None, read: 0, decoded: None, trailers: None }
    }

    /// HTTP/1: how many more bytes of a head may be read. `None` if the budget has no room for a larger buffer now.
    pub(super) fn room(&mut self) -> Option<usize> {
        let size = self.buffer.as_ref().map_or(SMALL_HEAD, Charge::bytes);
        if self.read < size {
            return Some(size - self.read);
        }
        // The buffer doubles when it is full.
        self.grow_to(2 * size).then(|| 2 * size - self.read)
    }

    /// HTTP/1: bytes of a head were read.
    pub(super) fn record_read(&mut self, bytes: usize) {
        self.read += bytes;
    }

    /// HTTP/1: the head is complete. The buffer keeps its size.
    pub(super) fn head_finished(&mut self) {
        self.read = 0;
    }

    pub(super) fn is_large(&self) -> bool {
        self.buffer.is_some()
    }

    pub(super) fn free_buffer(&mut self) {
        self.buffer = None;
    }

    /// HTTP/2: whether h2 may collect this many bytes of an incomplete head.
    pub(super) fn may_collect(&mut self, unfinished: usize) -> bool {
        if unfinished <= SMALL_HEAD {
            self.free_buffer();
            return true;
        }
        self.buffer.as_ref().is_some_and(|buffer| buffer.bytes() >= unfinished)
            || self.grow_to(unfinished.next_power_of_two())
    }

    /// HTTP/2: how many bytes of complete heads may be read now. Their decoded size is charged only after decoding.
    pub(super) fn heads_at_once(&self) -> usize {
        let is_short = self.account.shortage(Purpose::Requests, HEADS_AT_ONCE * FIELD_OF_ONE_BYTE).is_some();
        if is_short { HEADS_WITHOUT_ROOM } else { HEADS_AT_ONCE }
    }

    /// HTTP/2: heads of this size are decoded. Returns whether their requests have to start before more is read.
    pub(super) fn charge_decoded(&mut self, bytes: usize) -> bool {
        let account = &self.account;
        let decoded = self.decoded.get_or_insert_with(|| account.charge(Purpose::Heads, 0));
        decoded.add(bytes * FIELD_OF_ONE_BYTE);
        decoded.bytes() >= HEADS_WITHOUT_ROOM * FIELD_OF_ONE_BYTE
    }

    /// HTTP/2: whether there are decoded heads whose requests may not have started.
    pub(super) fn has_decoded(&self) -> bool {
        self.decoded.is_some()
    }

    /// HTTP/2: the requests of all decoded heads have started and are charged.
    pub(super) fn requests_started(&mut self) {
        self.decoded = None;
    }

    /// HTTP/2: charges trailer sections; `bytes` is their size in total. h2 keeps their fields until the body before
    /// them is read, so they are charged until no request is in progress. Returns false if the budget has no room.
    pub(super) fn charge_trailers(&mut self, bytes: usize) -> bool {
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

    /// Records the size that was set.
    #[derive(Default)]
    struct ChargedSocket(Cell<usize>);

    impl SendBuffer for ChargedSocket {
        fn set_send_buffer(&self, bytes: usize) -> io::Result<()> {
            self.0.set(bytes);
            Ok(())
        }
    }

    #[test]
    fn a_small_head_is_not_charged_and_a_large_one_is_charged_for_its_buffer() {
        let budget = Budget::new(1024 * KIB);
        let mut head = HeadMemory::new(known(&budget));
        assert_eq!(head.room(), Some(SMALL_HEAD));
        head.record_read(SMALL_HEAD);
        assert_eq!((budget.used(), head.is_large()), (0, false));
        for (room, charged) in [(16 * KIB, 32 * KIB), (32 * KIB, 64 * KIB), (64 * KIB, 128 * KIB)] {
            assert_eq!(head.room(), Some(room));
            head.record_read(room);
            assert_eq!(budget.used_for(Purpose::Heads), charged);
        }
        // The next head is small, but the buffer is not.
        head.head_finished();
        assert!(head.room() == Some(128 * KIB) && head.is_large());
        head.free_buffer();
        assert_eq!((budget.used(), head.is_large()), (0, false));
    }

    #[test]
    fn a_head_is_read_only_while_the_budget_has_room_for_its_buffer() {
        let budget = Budget::new(64 * KIB);
        let mut head = HeadMemory::new(known(&budget));
        head.record_read(SMALL_HEAD);
        assert_eq!(head.room(), Some(16 * KIB));
        head.record_read(16 * KIB);
        assert_eq!(head.room(), None);
        assert_eq!(budget.used(), 32 * KIB);
        budget.resize(128 * KIB);
        assert_eq!(head.room(), Some(32 * KIB));
    }

    #[test]
    fn an_unfinished_http2_head_is_charged_while_it_is_large() {
        let budget = Budget::new(128 * KIB);
        let mut head = HeadMemory::new(known(&budget));
        for (unfinished, expected, charged) in [
            (0, true, 0),
            (SMALL_HEAD, true, 0),
            (17 * KIB, true, 32 * KIB),
            (33 * KIB, true, 64 * KIB),
            (65 * KIB, false, 64 * KIB),
            (1, true, 0),
        ] {
            assert_eq!(head.may_collect(unfinished), expected, "{unfinished}");
            assert_eq!(budget.used(), charged, "{unfinished}");
        }
    }

    #[test]
    fn http2_heads_are_charged_by_decoded_size_until_their_requests_start() {
        let budget = Budget::new(2 * HEADS_AT_ONCE * FIELD_OF_ONE_BYTE);
        let mut head = HeadMemory::new(known(&budget));
        assert_eq!(head.heads_at_once(), HEADS_AT_ONCE);
        assert!(!head.charge_decoded(HEADS_WITHOUT_ROOM - 1));
        assert!(head.charge_decoded(1));
        assert!(head.charge_decoded(HEADS_AT_ONCE));
        assert_eq!(budget.used_for(Purpose::Heads), (HEADS_AT_ONCE + HEADS_WITHOUT_ROOM) * FIELD_OF_ONE_BYTE);
        assert_eq!(head.heads_at_once(), HEADS_WITHOUT_ROOM);
        head.requests_started();
        assert_eq!((budget.used(), head.heads_at_once()), (0, HEADS_AT_ONCE));
    }

    #[test]
    fn trailer_sections_are_charged_by_their_maximum_decoded_size() {
        let budget = Budget::new(1024 * KIB);
        let mut head = HeadMemory::new(known(&budget));
        for (bytes, expected, charged) in
            [(0, true, 0), (KIB, true, KIB), (2 * KIB, true, 2 * KIB), (20 * KIB, false, 2 * KIB)]
        {
            assert_eq!(head.charge_trailers(bytes), expected, "{bytes}");
            head.free_buffer();
            assert_eq!(budget.used_for(Purpose::Heads), charged * FIELD_OF_ONE_BYTE);
        }
        assert!(head.charge_trailers(0));
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
