//! The interface of a second cache tier: what a tier must do. The gateway's steps are in `gateway/second_tier.rs`.
//!
//! Records are sealed ([`crate::seal`]), so a tier can withhold or replay them, but neither read nor forge them. It
//! orders them by tickets, not by clocks: a record counts from when its ticket was drawn, which is before its request
//! was sent.

use std::future::Future;
use std::pin::Pin;
use std::time::{Duration, Instant};

use bytes::Bytes;

/// The name of a record, or of a set of records. It is a keyed hash, which says nothing about a key.
pub type Name = [u8; 16];

/// The tier's memory from when it was empty. After a loss of data it has another incarnation.
pub type Incarnation = [u8; 16];

/// Where a record is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Place {
    pub record: Name,
    /// The sets that the record is in: its operation, its project, and its scope.
    pub sets: [Name; 3],
}

/// The place of a record in the order of all records of a tier.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Order {
    pub incarnation: Incarnation,
    pub number: u64,
}

/// The right to store the response to a call that is sent after it was drawn.
#[derive(Clone, Debug)]
pub struct Ticket {
    pub order: Order,
    /// What the clock of the tier showed, as the time since 1970.
    pub time: Duration,
    /// When that was, by the clock of this process.
    pub drawn: Instant,
    /// The connection to the tier. On another connection the ticket is invalid: the tier may have lost data meanwhile.
    pub connection: u64,
}

/// What a look-up has found.
#[derive(Debug, Default)]
pub struct LookedUp {
    /// A record that has not been voided. It is not opened yet, so it may be anything.
    pub record: Option<(Order, Bytes)>,
    /// `None` if the tier accepts no record now.
    pub ticket: Option<Ticket>,
    /// What the clock of the tier showed, as the time since 1970.
    pub time: Duration,
}

/// The records that become void.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Voided {
    Everything,
    Set(Name),
}

/// A store of shared entries of other processes, and of this one before a restart.
pub trait SecondTier: Send + Sync {
    /// Draws a ticket, and looks up a record if `wants_record`. The gateway waits at most 8 ms for it.
    fn look_up<'a>(
        &'a self,
        place: &'a Place,
        wants_record: bool,
    ) -> Pin<Box<dyn Future<Output = Option<LookedUp>> + Send + 'a>>;

    /// Stores a record, unless one with a later ticket is there. It is useful for `lifetime`. It returns immediately.
    fn store(&self, place: &Place, ticket: &Ticket, record: Bytes, lifetime: Duration);

    /// Makes the records void whose tickets have been drawn by now. It returns immediately, and no look-up that begins
    /// later finds such a record.
    fn void(&self, voided: Voided);
}
