//! What the gateway says to the engine. Pure.
//!
//! All keys of a fleet are in one hash slot, so each script is atomic, also in a cluster. `ID` names the fleet's secret:
//! gateways with another secret are another fleet.
//!
//! ```text
//! wg2:{NAME}:ID:c        control, a hash: i, the incarnation; t, the last ticket; n, the number of the last notice in the
//!                        log; and for each voided set (32 hex digits) the last ticket by then (16 digits), and the id of
//!                        the notice
//! wg2:{NAME}:ID:r:HEX    a record: the incarnation (16 bytes), the ticket (16 digits), and what is sealed; or a marker,
//!                        which is empty
//! wg2:{NAME}:ID:l:HEX    a lease: its holder, or - if the last call with it had no response for others
//! wg2:{NAME}:ID:log      the log, a stream: i, the incarnation; n, the number; t and s, the ticket and the voided set, if
//!                        there is one; m, the notice
//! ```
//!
//! Incarnation, ticket, number and voided sets are in one hash, so that none of them can be evicted alone. Without the
//! hash, every record is void. A ticket counts up. It is no time.
//!
//! - `replies`: what the replies mean.
//! - `fault`: what errors mean.

mod fault;
mod replies;

use std::time::Duration;

use redis::{Cmd, Pipeline, cmd, pipe};

pub(crate) use self::fault::Fault;
pub(super) use self::replies::{
    LogEntry, PollReplies, Polled, Wanted, first_fault, read_deleted, read_done, read_known, read_role, read_told, role,
};
use crate::cache::second_tier::{Incarnation, Lease, LookUp, Name, NewRecord, Order};

/// The length of what is before a sealed record.
const PREFIX: usize = 32;
/// Tickets have 16 digits in records, so that scripts can compare them as texts.
const LAST_TICKET: u64 = 9_999_999_999_999_999;
/// How long a lease lasts, unless it is renewed. No gateway gives one a longer time.
const LEASE: Duration = Duration::from_secs(1);
/// So many bytes of the holder of a lease are the same for all leases of a process.
pub(super) const OF_PROCESS: usize = 8;
/// In a lease: the last call had no response for others.
const UNSHARED: &[u8] = b"-";
/// How many notices are read at a time. `framing.rs` accepts no reply with many more.
pub(super) const BATCH: usize = 32;

pub const STORE: &str = "if ARGV[5] ~= '' and redis.call('GET', KEYS[3]) == ARGV[5] then redis.call('DEL', KEYS[3]) end
if redis.call('HGET', KEYS[1], 'i') ~= ARGV[1] then return 0 end
local there = redis.call('GETRANGE', KEYS[2], 0, 31)
if string.sub(there, 1, 16) == ARGV[1] and string.sub(there, 17, 32) >= ARGV[2] then return 0 end
redis.call('SET', KEYS[2], ARGV[1] .. ARGV[2] .. ARGV[4], 'PX', ARGV[3])
if KEYS[4] then redis.call('SET', KEYS[4], '', 'PX', ARGV[3]) end
return 1";

/// With more voided sets than 4,096, the older half is forgotten: everything is void that has a ticket from then.
pub const TELL: &str = "if redis.call('HEXISTS', KEYS[1], 'i') == 0 then
  redis.call('DEL', KEYS[1], KEYS[2])
  redis.call('HSET', KEYS[1], 'i', ARGV[1])
end
local ticket = 0
if ARGV[2] ~= '' then
  local there = redis.call('HGET', KEYS[1], ARGV[2])
  if there and string.sub(there, 17) == ARGV[3] then
    return { 0, tonumber(string.sub(there, 1, 16)), redis.call('HGET', KEYS[1], 'i') }
  end
  if redis.call('HLEN', KEYS[1]) > 4096 then
    local all, voided = redis.call('HGETALL', KEYS[1]), {}
    for at = 1, #all, 2 do
      if #all[at] == 32 then voided[#voided + 1] = string.sub(all[at + 1], 1, 16) .. all[at] end
    end
    table.sort(voided)
    local last = ''
    for at = 1, #voided / 2 do
      last = string.sub(voided[at], 1, 16)
      redis.call('HDEL', KEYS[1], string.sub(voided[at], 17))
    end
    for _, everything in ipairs({ ARGV[5], ARGV[6] }) do
      if not redis.call('HGET', KEYS[1], everything) then redis.call('HSET', KEYS[1], everything, last) end
    end
  end
  ticket = redis.call('HINCRBY', KEYS[1], 't', 1)
  redis.call('HSET', KEYS[1], ARGV[2], string.format('%016d', ticket) .. ARGV[3])
end
local number = redis.call('HINCRBY', KEYS[1], 'n', 1)
local incarnation = redis.call('HGET', KEYS[1], 'i')
redis.call('XADD', KEYS[2], 'MAXLEN', '~', '4096', '*',
  'i', incarnation, 'n', number, 't', ticket, 's', ARGV[2], 'm', ARGV[4])
return { 1, ticket, incarnation }";

pub const RENEW: &str = "if redis.call('GET', KEYS[1]) ~= ARGV[1] then return 0 end
redis.call('PEXPIRE', KEYS[1], ARGV[2])
return 1";

pub const RELEASE: &str = "if redis.call('GET', KEYS[1]) ~= ARGV[1] then return 0 end
if ARGV[2] == '' then redis.call('DEL', KEYS[1]) else redis.call('SET', KEYS[1], '-', 'PX', ARGV[2]) end
return 1";

/// The names of a fleet's keys.
#[derive(Clone)]
pub(super) struct Keys {
    prefix: String,
    control: String,
    log: String,
    /// The sets of all entries, and of all grants.
    everything: [Name; 2],
}

/// A notice as it is told.
#[derive(Clone, Copy)]
pub(super) struct Told<'n> {
    pub(super) voids: Option<Name>,
    /// What differs between all notices.
    pub(super) id: &'n str,
    pub(super) sealed: &'n [u8],
    /// Used if the engine has none.
    pub(super) incarnation: Incarnation,
}

/// Which incarnation and nonce a command has.
#[derive(Clone, Copy)]
pub(super) struct Fresh {
    /// Used if the engine has none.
    pub(super) incarnation: Incarnation,
    /// The engine repeats it. So it is noticed if replies belong to other commands.
    pub(super) nonce: u64,
}

impl Keys {
    pub(super) fn new(name: &str, id: Name, everything: [Name; 2]) -> Self {
        let prefix = format!("wg2:{{{name}}}:{}:", hex(&id[..4]));
        Self { control: format!("{prefix}c"), log: format!("{prefix}log"), prefix, everything }
    }

    pub(super) fn prefix(&self) -> &str {
        &self.prefix
    }

    fn record(&self, name: &Name) -> String {
        format!("{}r:{}", self.prefix, hex(name))
    }

    fn lease(&self, name: &Name) -> String {
        format!("{}l:{}", self.prefix, hex(name))
    }

    /// Looks up records, and draws a ticket. `lease` is the one to take, with this holder.
    pub(super) fn look_up(&self, it: LookUp<'_>, lease: Option<Lease>, fresh: Fresh, max_record: usize) -> Pipeline {
        let mut commands = pipe();
        if let Some(Lease { name, holder }) = lease {
            let lease = self.lease(&name);
            commands.cmd("SET").arg(&lease).arg(&holder[..]).arg("NX").arg("PX").arg(millis(LEASE));
            commands.cmd("GET").arg(&lease);
            commands.cmd("PTTL").arg(&lease);
        }
        for place in it.places.iter().filter(|_| it.wants_records) {
            commands.cmd("GETRANGE").arg(self.record(&place.record)).arg(0).arg(PREFIX + max_record);
        }
        commands.cmd("HSETNX").arg(&self.control).arg("i").arg(&fresh.incarnation[..]);
        // After the records. Otherwise a record could be from before what voids it.
        let sets: Vec<String> = it.places.iter().flat_map(|place| &place.sets).map(|set| hex(set)).collect();
        commands.cmd("HMGET").arg(&self.control).arg("i").arg(&sets[..]);
        commands.cmd("HINCRBY").arg(&self.control).arg("t").arg(1);
        commands.cmd("TIME");
        commands.cmd("ECHO").arg(fresh.nonce);
        commands
    }

    /// Reads the log from this position. It writes, too: an engine that accepts nothing cannot be told anything.
    pub(super) fn poll(&self, from: &str, fresh: Fresh) -> Pipeline {
        let mut commands = pipe();
        commands.cmd("ROLE");
        commands.cmd("HSETNX").arg(&self.control).arg("i").arg(&fresh.incarnation[..]);
        // Before the log: what is told between the two is read, too.
        commands.cmd("HMGET").arg(&self.control).arg("i").arg("n");
        commands.cmd("XRANGE").arg(&self.log).arg(from).arg("+").arg("COUNT").arg(BATCH);
        commands.cmd("HINCRBY").arg(&self.control).arg("t").arg(1);
        commands.cmd("TIME");
        commands.cmd("ECHO").arg(fresh.nonce);
        commands
    }

    pub(super) fn store(&self, record: &NewRecord) -> Cmd {
        let Order { incarnation, number } = record.ticket.order;
        let mut command = cmd("EVAL");
        // Without a lease or a marker, the key in its place is not used.
        let lease = record.lease.map_or_else(|| self.control.clone(), |lease| self.lease(&lease.name));
        let marker = record.marker.map(|marker| self.record(&marker));
        command.arg(STORE).arg(3 + usize::from(marker.is_some()));
        command.arg(&self.control).arg(self.record(&record.place.record)).arg(lease).arg(marker);
        command.arg(&incarnation[..]).arg(format!("{number:016}")).arg(millis(record.lifetime)).arg(&record.sealed[..]);
        command.arg(record.lease.as_ref().map_or(&b""[..], |lease| &lease.holder));
        command
    }

    pub(super) fn tell(&self, told: Told<'_>) -> Cmd {
        let set = told.voids.map(|name| hex(&name)).unwrap_or_default();
        let mut command = cmd("EVAL");
        command.arg(TELL).arg(2).arg(&self.control).arg(&self.log).arg(&told.incarnation[..]).arg(set).arg(told.id);
        command.arg(told.sealed).arg(self.everything.map(|name| hex(&name)).as_slice());
        command
    }

    /// Asks for each of these names whether there is a record, and who has the lease.
    pub(super) fn are_known<'n>(&self, names: impl Iterator<Item = &'n Name>) -> Pipeline {
        let mut commands = pipe();
        for name in names {
            commands.cmd("EXISTS").arg(self.record(name));
            commands.cmd("GETRANGE").arg(self.lease(name)).arg(0).arg(OF_PROCESS - 1);
        }
        commands
    }

    pub(super) fn renew(&self, lease: &Lease) -> Cmd {
        let mut command = cmd("EVAL");
        command.arg(RENEW).arg(1).arg(self.lease(&lease.name)).arg(&lease.holder[..]).arg(millis(LEASE));
        command
    }

    pub(super) fn renew_all(&self, leases: &[Lease]) -> Pipeline {
        let mut commands = pipe();
        for lease in leases {
            commands.add_command(self.renew(lease));
        }
        commands
    }

    pub(super) fn release(&self, lease: &Lease, unshared: Option<Duration>) -> Cmd {
        let mut command = cmd("EVAL");
        command.arg(RELEASE).arg(1).arg(self.lease(&lease.name)).arg(&lease.holder[..]);
        command.arg(unshared.map(|span| millis(span).to_string()).unwrap_or_default());
        command
    }

    /// Makes everything void even if the engine has no memory left.
    pub(super) fn void_without_memory(&self) -> Cmd {
        let mut command = cmd("DEL");
        command.arg(&self.control);
        command
    }

    /// The commands that scripts run only if there are many voided sets.
    pub(super) fn rare(&self) -> Pipeline {
        let mut commands = pipe();
        commands.cmd("HGETALL").arg(&self.control);
        commands.cmd("HDEL").arg(&self.control).arg("t");
        commands
    }

    /// Names that no gateway uses otherwise, to try commands with.
    pub(super) fn scratch(&self) -> Self {
        let prefix = format!("{}test:", self.prefix);
        Self { control: format!("{prefix}c"), log: format!("{prefix}log"), prefix, everything: self.everything }
    }

    /// Deletes everything, if these are the only records and leases.
    pub(super) fn delete_all(&self, names: &[Name]) -> Cmd {
        let mut command = cmd("DEL");
        command.arg(&self.control).arg(&self.log);
        for name in names {
            command.arg(self.record(name)).arg(self.lease(name));
        }
        command
    }

    /// Which node has the keys: another node of a cluster says so in its error.
    pub(super) fn find(&self) -> Cmd {
        let mut command = cmd("HMGET");
        command.arg(&self.control).arg("i");
        command
    }
}

fn millis(span: Duration) -> u64 {
    u64::try_from(span.as_millis()).unwrap_or(u64::MAX).max(1)
}

pub(super) fn hex(name: &[u8]) -> String {
    name.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests;
