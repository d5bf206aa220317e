//! The state of the model: engines, gateways, calls, and what the property needs to know besides. It is small, so that
//! millions of states fit into memory. States that differ in the names of gateways only are one state.

/// A set of denials, one bit each.
pub(crate) type Denials = u8;

pub(crate) const MAX_GATEWAYS: usize = 3;
/// Calls of one gateway that are in flight, or whose record is on its way.
pub(crate) const MAX_CALLS: usize = 3;
/// Denials in all. Their numbers begin with 0.
pub(crate) const MAX_DENIALS: u8 = 3;
/// A void names its denial, or none.
pub(crate) const NOBODY: u8 = u8::MAX;

/// The sets of grants that a denial voids.
pub(crate) const SCOPE: usize = 0;
pub(crate) const SERVICE: usize = 1;

/// A field of the control hash.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct Void {
    pub(crate) ticket: u8,
    pub(crate) denial: u8,
}

/// The record of the grant. There is one caller in one scope.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct Record {
    pub(crate) incarnation: u8,
    pub(crate) ticket: u8,
    /// The denials that the proof is older than.
    pub(crate) old: Denials,
}

/// An engine's data.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct Engine {
    /// 0 if the control hash is missing.
    pub(crate) incarnation: u8,
    pub(crate) ticket: u8,
    pub(crate) voids: [Void; 2],
    /// The ticket of the void of all grants.
    pub(crate) all: u8,
    pub(crate) record: Option<Record>,
    /// The number of the last entry of the log, according to the control hash.
    pub(crate) last_number: u8,
    /// The number of the first entry that is still in the log; one more than the last number if none is.
    pub(crate) first_number: u8,
    /// Three bits for each number of an entry in the log: the history in which it was written, or 0. They stand for the
    /// identity of the entry. Only kept if the log can be lost; else 0.
    pub(crate) histories: u64,
    /// The history of this engine. A failover begins another one.
    pub(crate) history: u8,
    /// The denials in the log.
    pub(crate) log: Denials,
    /// The denial in the last entry.
    pub(crate) last: u8,
    /// The tickets of the denials in the log. Only a broken rule reads them; else 0.
    pub(crate) log_tickets: [u8; MAX_DENIALS as usize],
    /// It accepts no writes.
    pub(crate) is_full: bool,
    /// The denials that have been told here, and of these the ones that were told long enough ago.
    pub(crate) told: Denials,
    pub(crate) due: Denials,
}

impl Engine {
    pub(crate) const EMPTY: Engine = Engine {
        incarnation: 0,
        ticket: 0,
        voids: [Void { ticket: 0, denial: NOBODY }; 2],
        all: 0,
        record: None,
        last_number: 0,
        first_number: 1,
        histories: 0,
        history: 1,
        log: 0,
        last: NOBODY,
        log_tickets: [0; MAX_DENIALS as usize],
        is_full: false,
        told: 0,
        due: 0,
    };
}

/// Where a gateway's link leads to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) enum Link {
    /// To the master.
    Master,
    /// To a master that has been replaced and does not know it.
    Isolated,
    /// Broken. It will be there again before others have settled.
    Broken,
    /// Broken for longer.
    CutOff,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) enum Phase {
    InFlight,
    /// The call has proved its caller, and the record is on its way to the engine.
    Storing,
}

/// A call to upstream, in the order of departure within its gateway.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct Call {
    pub(crate) phase: Phase,
    /// 0 without one.
    pub(crate) ticket: u8,
    pub(crate) incarnation: u8,
    /// Whether the ticket is one of the isolated master.
    pub(crate) is_isolated: bool,
    pub(crate) is_late: bool,
    /// The denials that its proof is older than, for others and for its own gateway.
    pub(crate) old: Denials,
    pub(crate) old_here: Denials,
}

/// What a gateway has read of the log, on its way to the gateway.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct Poll {
    pub(crate) denials: Denials,
    pub(crate) tickets: [u8; MAX_DENIALS as usize],
    pub(crate) last_number: u8,
    pub(crate) history: u8,
    pub(crate) has_gap: bool,
    pub(crate) is_other_incarnation: bool,
    /// Whether the engine accepted the write in it.
    pub(crate) is_accepted: bool,
    /// Whether it was sent too long ago.
    pub(crate) is_overdue: bool,
    /// The denials that had been told there when the engine answered.
    pub(crate) told: Denials,
}

/// A grant in memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct Grant {
    pub(crate) old: Denials,
    /// Only a broken rule reads it; else 0.
    pub(crate) ticket: u8,
}

/// The reply to a look-up that has found a valid record, on its way to the gateway.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct LookUp {
    pub(crate) grant: Grant,
    /// Whether a notice was applied since it was sent.
    pub(crate) is_outdated: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct Gateway {
    pub(crate) link: Link,
    /// The incarnation and the last number of the log that it has seen. 0 after its start.
    pub(crate) incarnation: u8,
    pub(crate) position: u8,
    /// The history in which the last entry that it has read was written.
    pub(crate) history: u8,
    /// The largest ticket of the last link. Only `WentBack` reads it; else 0.
    pub(crate) last_ticket: u8,
    pub(crate) has_settled: bool,
    /// Whether a whole poll was sent recently.
    pub(crate) is_fresh: bool,
    /// The denials that had been told when the engine answered the last whole poll.
    pub(crate) seen: Denials,
    /// The denials in entries of the log that it has not asked for yet.
    pub(crate) unread: Denials,
    pub(crate) poll: Option<Poll>,
    pub(crate) look_up: Option<LookUp>,
    /// The denials that it knows: its own ones, and what it has read.
    pub(crate) known: Denials,
    /// Of these, its own ones. Only a broken rule reads them; else 0.
    pub(crate) own_denials: Denials,
    /// The denial of each set that it has learnt of last. Only read if not all are told again; else `NOBODY`.
    pub(crate) newest: [u8; 2],
    /// Its denials that it has not told yet, and of these the ones of a caller that had no grant here.
    pub(crate) pending: Denials,
    /// What it still has to tell again. Only a broken rule leaves any; else 0.
    pub(crate) untold_again: Denials,
    pub(crate) strangers: Denials,
    pub(crate) own: Option<Grant>,
    pub(crate) borrowed: Option<Grant>,
    /// Whether the caller has, or had, a grant here that no denial has ended.
    pub(crate) is_known_caller: bool,
    pub(crate) calls: [Option<Call>; MAX_CALLS],
}

impl Gateway {
    /// A process that has just begun.
    pub(crate) const NEW: Gateway = Gateway {
        link: Link::CutOff,
        incarnation: 0,
        position: 0,
        history: 0,
        last_ticket: 0,
        has_settled: false,
        is_fresh: false,
        seen: 0,
        unread: 0,
        poll: None,
        look_up: None,
        known: 0,
        own_denials: 0,
        newest: [NOBODY; 2],
        pending: 0,
        untold_again: 0,
        strangers: 0,
        own: None,
        borrowed: None,
        is_known_caller: false,
        calls: [None; MAX_CALLS],
    };

    /// By rule 10.
    pub(crate) fn is_in_sync(&self) -> bool {
        self.has_settled && self.is_fresh
    }

    pub(crate) fn is_linked(&self) -> bool {
        matches!(self.link, Link::Master | Link::Isolated)
    }

    pub(crate) fn has_call_in_flight(&self) -> bool {
        self.calls.iter().flatten().any(|call| call.phase == Phase::InFlight)
    }

    /// Removes a call. The order of the others remains.
    pub(crate) fn remove_call(&mut self, place: usize) {
        self.calls[place..].rotate_left(1);
        self.calls[MAX_CALLS - 1] = None;
    }
}

/// How often what may happen.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct Budget {
    pub(crate) calls: u8,
    pub(crate) faults: u8,
    /// Links that break by themselves.
    pub(crate) breaks: u8,
    /// Copies of the master's data: to the replica, or as a backup.
    pub(crate) copies: u8,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct State {
    pub(crate) master: Engine,
    pub(crate) isolated: Option<Engine>,
    /// What a failover, or a restored backup, begins with.
    pub(crate) copy: Engine,
    pub(crate) gateways: [Gateway; MAX_GATEWAYS],
    pub(crate) next_incarnation: u8,
    pub(crate) next_history: u8,
    pub(crate) denials: u8,
    /// The denials of a whole service.
    pub(crate) of_service: Denials,
    /// The denials that were due at a master.
    pub(crate) was_due: Denials,
    /// Whether the engine has been full for so long that pending denials are due.
    pub(crate) is_full_for_long: bool,
    /// Whether the isolated master has been replaced for so long that it is out of use where Sentinels are asked.
    pub(crate) is_isolation_known: bool,
    pub(crate) left: Budget,
}

impl State {
    /// All gateways are in sync with an empty engine.
    pub(crate) fn first(gateways: usize, left: Budget) -> State {
        let engine = Engine { incarnation: 1, ..Engine::EMPTY };
        let new = Gateway { link: Link::Master, incarnation: 1, has_settled: true, is_fresh: true, ..Gateway::NEW };
        let mut all = [Gateway::NEW; MAX_GATEWAYS];
        all[..gateways].fill(new);
        State {
            master: engine,
            isolated: None,
            copy: engine,
            gateways: all,
            next_incarnation: 2,
            next_history: 2,
            denials: 0,
            of_service: 0,
            was_due: 0,
            is_full_for_long: false,
            is_isolation_known: false,
            left,
        }
    }

    /// The engine that a gateway is linked to.
    pub(crate) fn engine(&mut self, gateway: usize) -> Option<&mut Engine> {
        match self.gateways[gateway].link {
            Link::Master => Some(&mut self.master),
            Link::Isolated => self.isolated.as_mut(),
            Link::Broken | Link::CutOff => None,
        }
    }

    /// What the master writes from now on is known to no other one.
    pub(crate) fn begin_history(&mut self) {
        self.master.history = self.next_history;
        self.next_history += 1;
    }

    /// Whether nothing can be violated any more: no call can be denied, and no proof is older than a denial.
    pub(crate) fn is_over(&self) -> bool {
        let record = |engine: &Engine| engine.record.map_or(0, |record| record.old);
        let old = self.gateways.iter().fold(record(&self.master) | record(&self.copy), |old, gateway| {
            let grants = gateway.own.iter().chain(&gateway.borrowed).fold(0, |old, grant| old | grant.old);
            let calls = gateway.calls.iter().flatten().fold(0, |old, call| old | call.old | call.old_here);
            old | grants | calls | gateway.look_up.map_or(0, |look_up| look_up.grant.old)
        });
        let old = old | self.isolated.as_ref().map_or(0, record);
        old == 0 && self.left.calls == 0 && !self.gateways.iter().any(Gateway::has_call_in_flight)
    }

    pub(crate) fn set_of(&self, denial: u8) -> usize {
        if self.of_service & (1 << denial) == 0 { SCOPE } else { SERVICE }
    }

    /// Sorts the gateways. Returns where each one was before.
    pub(crate) fn sort(&mut self, gateways: usize) -> [usize; MAX_GATEWAYS] {
        let before = self.gateways;
        let mut order: [usize; MAX_GATEWAYS] = std::array::from_fn(|place| place);
        order[..gateways].sort_by_key(|place| before[*place]);
        self.gateways = order.map(|place| before[place]);
        order
    }
}

/// The denials of a set.
pub(crate) fn each(denials: Denials) -> impl Iterator<Item = u8> {
    (0..MAX_DENIALS).filter(move |denial| denials & (1 << denial) != 0)
}
