//! The rules of the protocol, and a switch for each part of them.
//!
//! 1. A gateway draws a ticket before it sends a call. After a proof it stores a record of the grant with this ticket,
//!    and with the incarnation of the engine's control hash. Readers use a record only in its incarnation, and only if
//!    its ticket is larger than that of each void of its sets: all grants, the scope, the service.
//! 2. A ticket counts only on the link on which it was drawn.
//! 3. A denial ends the grants at its gateway at once. Then the gateway tells it: in one step the engine draws a
//!    ticket, voids the set of the denial with it, counts the entry, and appends it to the log. If the void is the
//!    denial's already, it does nothing. While the engine is away the denial is pending.
//! 4. The denial of a caller without a grant at its gateway is told only if the engine has a record of the caller, or
//!    the lease of a call that may prove it. The lease ends when the record is stored.
//! 5. Each gateway polls the log: on a new link from its beginning, then from the last entry that it has read.
//! 6. A denial that it did not know ends own and borrowed grants, and marks calls in flight as late, whatever their
//!    tickets are.
//! 7. A gateway borrows from a record only if no denial was pending when the look-up was sent, and if since then none
//!    has arrived or was read, and no gap was seen.
//! 8. On each new link, before anything else, a gateway tells again all denials that it knows: its own, and those that
//!    it has read. The last one of each set is not enough.
//! 9. A borrowed grant counts only in sync.
//! 10. A gateway is in sync if it sent its last whole poll at most `fleet.sync` ago, the engine accepted a write in
//!     it, `settle` has passed since the link was opened, and Sentinels, if there are any, named this engine as the
//!     master at most `fleet.sync` ago.
//! 11. At a gap, own and borrowed grants become lapsed, calls in flight are marked as late, and look-ups in flight
//!     find nothing. A gap is: entries are missing by their numbers; the first link of a process; a link in another
//!     incarnation than the last one, and a poll that shows another one ends the link; a new link whose log does not
//!     contain the entry that was read last (the same identity and number).
//! 12. On a new link whose ticket is not larger than the last one, all grants are voided. The rules above need no such
//!     rule; it is one for entries.

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Rule {
    /// 1: the ticket of a record was drawn before the call was sent, not when the record is stored.
    DrawsBeforeCall,
    /// 1: a record is stored only if the incarnation is that of its ticket.
    StoresInIncarnation,
    /// 1: a record is stored only if no later one is there.
    StoresIfLatest,
    /// A record counts only in its incarnation.
    ReadsIncarnation,
    /// A record counts only if its ticket is larger than that of the void of its scope, and of its service.
    ReadsVoidOfScope,
    ReadsVoidOfService,
    /// The void of all grants stands for voids that are removed because there are too many.
    RaisesFloor,
    /// 2: a ticket counts only on the link on which it was drawn.
    TicketBoundToLink,
    /// 3: a denial ends the grants at its own gateway at once, and makes earlier calls late.
    DeniesAtOnce,
    DeniesEarlierCalls,
    /// 3: what cannot be told is kept.
    KeepsPending,
    /// 3: a denial voids what has earlier tickets.
    TellsVoid,
    /// 4: the denial of a stranger is told if there is a record.
    TellsStrangersOfRecord,
    /// 4: the denial of a stranger is told if another gateway is about to prove the caller.
    TellsStrangersOfLease,
    /// 5: a notice is written to the log, and read there.
    ReadsLog,
    /// 5: on a new link the log is read from its beginning.
    ReadsFromBeginning,
    /// 5: a notice that is known is not applied again.
    AppliesOnce,
    /// 6: what a notice ends.
    EndsOwn,
    EndsBorrowed,
    MarksLate,
    /// 6: whatever the tickets are.
    IgnoresTickets,
    /// 7: nothing is borrowed if a notice was applied since the look-up was sent.
    ChecksApplied,
    /// 7: no look-up is sent while a denial has to be told.
    ChecksPending,
    /// 8: known denials are told again on a new link.
    TellsAgain,
    /// 8: also those that it has only read of.
    TellsAgainRead,
    /// 8: before any look-up, and before others have settled.
    TellsAgainFirst,
    /// 8: all of them, not the last one of each set.
    TellsAgainAll,
    /// 9: a borrowed grant counts only in sync.
    BorrowedNeedsSync,
    /// 10: a poll counts from its sending.
    CountsFromSending,
    /// 10: a gateway without recent polls is out of sync.
    SyncExpires,
    /// 10: a poll counts only if the engine accepts writes.
    NeedsWrite,
    /// 10: a gateway settles on each new link.
    Settles,
    /// 10: Sentinels name this engine as the master.
    AsksSentinels,
    /// 11: what a gap ends.
    GapEndsOwn,
    GapEndsBorrowed,
    GapMarksLate,
    GapEndsLookUps,
    /// 11: entries that are missing by their numbers are a gap.
    NumbersShowGap,
    /// 11: another incarnation is a gap.
    IncarnationShowsGap,
    /// 11: and so a poll that shows another incarnation ends the link.
    IncarnationEndsLink,
    /// 11: and it ends borrowed grants.
    IncarnationEndsBorrowed,
    /// 11: the first link of a process is a gap.
    FirstLinkIsGap,
    /// 11: a new link is a gap if the entry that was read last is not in the log any more.
    LastEntryShowsGap,
    /// 12: all grants are voided on a new link whose ticket is not larger than the last one, or in another incarnation.
    WentBack,
}

use Rule::*;

impl Rule {
    pub(crate) const ALL: [Rule; 44] = [
        DrawsBeforeCall,
        StoresInIncarnation,
        StoresIfLatest,
        ReadsIncarnation,
        ReadsVoidOfScope,
        ReadsVoidOfService,
        TicketBoundToLink,
        DeniesAtOnce,
        DeniesEarlierCalls,
        KeepsPending,
        TellsVoid,
        TellsStrangersOfRecord,
        TellsStrangersOfLease,
        ReadsLog,
        ReadsFromBeginning,
        AppliesOnce,
        EndsOwn,
        EndsBorrowed,
        MarksLate,
        IgnoresTickets,
        ChecksApplied,
        ChecksPending,
        TellsAgain,
        TellsAgainRead,
        TellsAgainFirst,
        TellsAgainAll,
        BorrowedNeedsSync,
        CountsFromSending,
        SyncExpires,
        NeedsWrite,
        Settles,
        AsksSentinels,
        GapEndsOwn,
        GapEndsBorrowed,
        GapMarksLate,
        GapEndsLookUps,
        NumbersShowGap,
        IncarnationShowsGap,
        IncarnationEndsLink,
        IncarnationEndsBorrowed,
        FirstLinkIsGap,
        RaisesFloor,
        LastEntryShowsGap,
        WentBack,
    ];
}

/// The rules in force.
#[derive(Clone, Copy)]
pub(crate) struct Rules(u64);

impl Rules {
    /// All but `WentBack`. That rule voids what the lack of others would leave valid, so that they seem not to be
    /// needed, but it does so only as long as few tickets are drawn.
    pub(crate) fn protocol() -> Rules {
        Rules::everything().without(WentBack)
    }

    pub(crate) fn everything() -> Rules {
        Rules(Rule::ALL.iter().fold(0, |rules, rule| rules | 1 << *rule as u8))
    }

    pub(crate) fn without(self, rule: Rule) -> Rules {
        Rules(self.0 & !(1 << rule as u8))
    }

    pub(crate) fn has(self, rule: Rule) -> bool {
        self.0 & (1 << rule as u8) != 0
    }
}
