//! The interface of a second cache tier: what a tier must do. The gateway's steps are in `gateway/second_tier.rs`.
//!
//! A tier has records, leases, and a log of notices. Records and notices are sealed ([`crate::seal`]), so a tier can
//! withhold or replay them, but neither read nor forge them. It orders records by tickets, not by clocks: a record counts
//! from when its ticket was drawn, which is before its request was sent. A notice voids the records of one set whose
//! tickets were drawn before it, and every gateway reads it in the log.

use std::future::Future;
use std::pin::Pin;
use std::time::{Duration, Instant};

use bytes::Bytes;
use strum::{IntoStaticStr, VariantArray};

/// The name of a record, a set of records, or a lease. It is a keyed hash, which says nothing about a key.
pub type Name = [u8; 16];

/// The tier's memory from when it was empty. After a loss of data it has another incarnation.
pub type Incarnation = [u8; 16];

/// Where a record is.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Place {
    pub record: Name,
    /// The sets that the record is in.
    pub sets: Box<[Name]>,
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

/// What is wanted of a tier before a call. A ticket is always drawn.
#[derive(Clone, Copy, Debug)]
pub struct LookUp<'p> {
    /// Nothing is looked up if one of them may have a record that is void without the tier's knowledge.
    pub places: &'p [Place],
    /// Whether the records of these places are wanted.
    pub wants_records: bool,
    /// The lease to take, if nobody has it.
    pub lease: Option<Name>,
}

/// What a look-up has found.
#[derive(Debug, Default)]
pub struct LookedUp {
    /// For each place, a record that has not been voided. It is not opened yet, so it may be anything.
    pub records: Vec<Option<(Order, Bytes)>>,
    /// `None` if the tier accepts no record now.
    pub ticket: Option<Ticket>,
    pub lease: LeaseState,
    /// What the clock of the tier showed, as the time since 1970.
    pub time: Duration,
    /// For [`SecondTier::is_current`].
    pub as_of: u64,
}

/// The right to make a call for all gateways. It is only for efficiency: two gateways may have one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Lease {
    pub name: Name,
    /// Differs between all leases of all processes.
    pub holder: [u8; 16],
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum LeaseState {
    /// None was wanted, or the tier gives none now.
    #[default]
    None,
    /// The gateway has it until it stores a record with it, or releases it.
    Held(Lease),
    /// Another call of this process has it.
    Here,
    /// Another gateway has it.
    Elsewhere,
    /// The last call with it had no response for others.
    Unshared,
}

/// A record to store.
#[derive(Debug)]
pub struct NewRecord {
    pub place: Place,
    pub ticket: Ticket,
    pub sealed: Bytes,
    /// How long it is useful.
    pub lifetime: Duration,
    pub kind: RecordKind,
    /// A name that exists as long as the record, for [`Notice::if_known`].
    pub marker: Option<Name>,
    /// Released when the record is stored, or cannot be.
    pub lease: Option<Lease>,
}

/// What is in a record.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, IntoStaticStr, VariantArray)]
#[strum(const_into_str, serialize_all = "kebab-case")]
pub enum RecordKind {
    Entry,
    Grant,
    /// What trials of an access key have shown.
    AccessKey,
}

/// What all gateways of a tier must know.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Notice {
    /// The set whose records become void. `None` for a hint, which may be lost.
    pub voids: Option<Name>,
    pub kind: NoticeKind,
    pub sealed: Bytes,
    /// If not empty, it is told only if the tier has a record, a marker or a lease with one of these names.
    pub if_known: Box<[Name]>,
}

/// Which records a notice can void.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, IntoStaticStr, VariantArray)]
#[strum(const_into_str, serialize_all = "kebab-case")]
pub enum NoticeKind {
    Entries,
    Grants,
    Hint,
}

/// A store of shared entries and proofs of other processes, and of this one before a restart.
pub trait SecondTier: Send + Sync {
    /// Draws a ticket, and looks up what is wanted. The gateway waits at most 8 ms for it.
    fn look_up<'a>(&'a self, look_up: LookUp<'a>) -> Pin<Box<dyn Future<Output = Option<LookedUp>> + Send + 'a>>;

    /// Whether a record that a look-up has found is still valid: no notice that has been read or told voids it. Otherwise it
    /// must not be used.
    fn is_current(&self, place: &Place, order: Order, as_of: u64) -> bool;

    /// Stores a record, unless one with a later ticket is there. It returns immediately.
    fn store(&self, record: NewRecord);

    /// Releases a lease. Without a response for others, other gateways make their own calls for the duration.
    fn release(&self, lease: Lease, unshared: Option<Duration>);

    /// Tells all gateways. If it voids a set, the records of the set whose tickets have been drawn by now become void. It
    /// returns immediately, and no look-up that begins later finds such a record.
    fn tell(&self, notice: Notice);
}

/// Reads the log of a tier.
pub trait LogReader: Send + Sync {
    /// Another gateway has told this, so long ago by the clock of the tier.
    ///
    /// # Errors
    /// If it cannot be read. Then this gateway does not know what has become void.
    fn told(&self, voids: Option<Name>, sealed: &Bytes, age: Duration) -> Result<(), Unread>;

    /// Notices have been lost. All that other gateways may have voided must not be used any more.
    fn missed(&self);
}

/// A notice that this process cannot read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Unread;
