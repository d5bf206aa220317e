//! What the gateway says to the engine, and how it reads the replies. Pure.
//!
//! All keys of a fleet are in one hash slot, so each script is atomic, also in a cluster:
//!
//! ```text
//! wg1:{NAME}:c       a hash: i, the incarnation; t, the last ticket; for each voided set the last ticket by then, and
//!                    the same in a for all records
//! wg1:{NAME}:e:ID    a record: the incarnation (16 bytes), the ticket (16 digits), and what is sealed
//! ```
//!
//! Incarnation and ticket are in one hash, so that none of them can be evicted alone. Without the hash, every record is
//! void. A ticket counts up. It is no time.

use std::time::{Duration, Instant};

use bytes::Bytes;
use redis::{Cmd, Pipeline, ServerError, Value, cmd, pipe};
use strum::{IntoStaticStr, VariantArray};

use crate::cache::second_tier::{Incarnation, LookedUp, Order, Place, Ticket, Voided};

/// Why the engine is not used, or a command had no effect. The label of a metric.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, IntoStaticStr, VariantArray)]
#[strum(const_into_str, serialize_all = "kebab-case")]
pub(crate) enum Fault {
    /// No connection, or it was closed.
    Connection,
    /// No reply in time.
    Silent,
    /// The password, a certificate or a right is missing.
    Denied,
    /// The gateway does not accept its certificate.
    Tls,
    /// It is a replica, or does not serve the hash slot.
    NotMaster,
    /// It loads its data.
    Loading,
    /// It has no memory left for new data.
    Full,
    /// A reply that is not an answer to the command.
    Reply,
    /// Another error.
    Error,
    /// It has lost data: an old backup was restored, or a replica that was behind has become the master.
    WentBack,
    /// The settings, or the files that they name, are unusable.
    Settings,
}

impl Fault {
    fn of_code(code: &str, text: &str) -> Self {
        // Scripts put the code of an inner error into their text.
        let has = |word: &str| code == word || text.contains(word);
        match code {
            "NOAUTH" | "WRONGPASS" | "NOPERM" => Self::Denied,
            _ if has("NOPERM") || text.contains("ACL failure") => Self::Denied,
            "MOVED" | "ASK" | "CLUSTERDOWN" | "MASTERDOWN" => Self::NotMaster,
            _ if has("READONLY") => Self::NotMaster,
            "LOADING" => Self::Loading,
            _ if has("OOM") => Self::Full,
            _ => Self::Error,
        }
    }

    pub(super) fn of_server(error: &ServerError) -> Self {
        Self::of_code(error.code(), error.details().unwrap_or_default())
    }

    pub(super) fn of(error: &redis::RedisError) -> Self {
        match error.kind() {
            // The crate takes each error before the first command for this.
            redis::ErrorKind::AuthenticationFailed if error.to_string().contains("max number of clients") => {
                Self::Error
            }
            redis::ErrorKind::AuthenticationFailed => Self::Denied,
            redis::ErrorKind::Parse | redis::ErrorKind::UnexpectedReturnType => Self::Reply,
            redis::ErrorKind::Io if error.is_timeout() => Self::Silent,
            redis::ErrorKind::Io => Self::Connection,
            _ => match error.code() {
                Some(code) => Self::of_code(code, error.detail().unwrap_or_default()),
                None => Self::Error,
            },
        }
    }

    /// For an operator.
    pub(crate) fn describe(self) -> &'static str {
        match self {
            Self::Connection => "there is no connection to it",
            Self::Silent => "it does not answer in time",
            Self::Denied => "it refuses the user, the password, the certificate or a command",
            Self::Tls => "the gateway does not accept its certificate",
            Self::NotMaster => "the node is not the master of the keys",
            Self::Loading => "it is loading its data",
            Self::Full => "it has no memory left",
            Self::Reply => "it sends replies that are no answers",
            Self::Error => "it answers with an error",
            Self::WentBack => "it has lost data",
            Self::Settings => "the settings or files for it are unusable",
        }
    }

    /// Whether the connection is of no use any more.
    pub(super) fn ends_link(self) -> bool {
        !matches!(self, Self::Full | Self::Error)
    }
}

/// The names of a fleet's keys.
#[derive(Clone)]
pub(super) struct Keys {
    prefix: String,
    control: String,
}

/// The field of the control hash that voids all records.
const EVERYTHING: &str = "a";

/// The length of what is before a sealed record.
const PREFIX: usize = 32;
/// Tickets have 16 digits in records, so that scripts can compare them as texts.
const LAST_TICKET: u64 = 9_999_999_999_999_999;

const STORE: &str = "if redis.call('HGET', KEYS[1], 'i') ~= ARGV[1] then return 0 end
local there = redis.call('GETRANGE', KEYS[2], 0, 31)
if string.sub(there, 1, 16) == ARGV[1] and string.sub(there, 17, 32) >= ARGV[2] then return 0 end
redis.call('SET', KEYS[2], ARGV[1] .. ARGV[2] .. ARGV[4], 'PX', ARGV[3])
return 1";

/// With more sets than this, another incarnation begins, which voids everything.
const VOID: &str = "if redis.call('HLEN', KEYS[1]) > 1024 or redis.call('HEXISTS', KEYS[1], 'i') == 0 then
  redis.call('DEL', KEYS[1])
  redis.call('HSET', KEYS[1], 'i', ARGV[1])
else
  redis.call('HSET', KEYS[1], ARGV[2], redis.call('HINCRBY', KEYS[1], 't', 1))
end
return 1";

/// A look-up, and what is needed to read its reply.
pub(super) struct LookUp<'p> {
    pub(super) place: &'p Place,
    pub(super) wants_record: bool,
    /// Used if the engine has none.
    pub(super) incarnation: Incarnation,
    /// The engine repeats it. So it is noticed if replies belong to other commands.
    pub(super) nonce: u64,
    /// The longest record, in bytes.
    pub(super) max_record: usize,
}

impl Keys {
    pub(super) fn new(name: &str) -> Self {
        let prefix = format!("wg1:{{{name}}}:");
        Self { control: format!("{prefix}c"), prefix }
    }

    fn entry(&self, place: &Place) -> String {
        format!("{}e:{}", self.prefix, hex(&place.record))
    }

    pub(super) fn look_up(&self, it: &LookUp<'_>) -> Pipeline {
        let mut commands = pipe();
        if it.wants_record {
            commands.cmd("GETRANGE").arg(self.entry(it.place)).arg(0).arg(PREFIX + it.max_record);
        }
        commands.cmd("HSETNX").arg(&self.control).arg("i").arg(&it.incarnation[..]);
        // After the record. Otherwise the record could be from before what voids it.
        let sets = it.place.sets.map(|set| hex(&set));
        commands.cmd("HMGET").arg(&self.control).arg("i").arg(EVERYTHING).arg(sets.as_slice());
        commands.cmd("HINCRBY").arg(&self.control).arg("t").arg(1);
        commands.cmd("TIME");
        commands.cmd("ECHO").arg(it.nonce);
        commands
    }

    pub(super) fn store(&self, place: &Place, ticket: &Ticket, record: &[u8], lifetime: Duration) -> Cmd {
        let Order { incarnation, number } = ticket.order;
        let mut command = cmd("EVAL");
        command.arg(STORE).arg(2).arg(&self.control).arg(self.entry(place)).arg(&incarnation[..]);
        command.arg(format!("{number:016}")).arg(millis(lifetime)).arg(record);
        command
    }

    /// `incarnation` is used if another one has to begin.
    pub(super) fn void(&self, voided: Voided, incarnation: Incarnation) -> Cmd {
        let set = match voided {
            Voided::Everything => EVERYTHING.to_owned(),
            Voided::Set(name) => hex(&name),
        };
        let mut command = cmd("EVAL");
        command.arg(VOID).arg(1).arg(&self.control).arg(&incarnation[..]).arg(set);
        command
    }

    /// Makes everything void even if the engine has no memory left.
    pub(super) fn void_without_memory(&self) -> Cmd {
        let mut command = cmd("DEL");
        command.arg(&self.control);
        command
    }

    pub(super) fn delete(&self, place: &Place) -> Cmd {
        let mut command = cmd("DEL");
        command.arg(self.entry(place));
        command
    }

    /// Which node has the keys: another node of a cluster says so in its error.
    pub(super) fn find(&self) -> Cmd {
        let mut command = cmd("HMGET");
        command.arg(&self.control).arg("i");
        command
    }
}

impl LookUp<'_> {
    /// Reads the replies. `drawn` is when the commands were sent.
    ///
    /// # Errors
    /// If they are not answers to the commands, or an error that concerns the connection.
    pub(super) fn read(&self, replies: Vec<Value>, drawn: Instant, connection: u64) -> Result<LookedUp, Fault> {
        let mut replies = replies.into_iter();
        let value = if self.wants_record { Some(replies.next().ok_or(Fault::Reply)?) } else { None };
        let (Some(set), Some(control), Some(ticket), Some(time), Some(echo), None) =
            (replies.next(), replies.next(), replies.next(), replies.next(), replies.next(), replies.next())
        else {
            return Err(Fault::Reply);
        };
        for reply in value.iter().chain([&set, &control, &ticket, &time, &echo]) {
            if let Value::ServerError(error) = reply
                && let fault = Fault::of_server(error)
                && fault.ends_link()
            {
                return Err(fault);
            }
        }
        if text(&echo) != Some(self.nonce.to_string().as_bytes()) {
            return Err(Fault::Reply);
        }
        let time = read_time(&time).ok_or(Fault::Reply)?;
        let Value::Array(control) = control else { return Ok(LookedUp { time, ..LookedUp::default() }) };
        let [incarnation, voided @ ..] = &control[..] else { return Err(Fault::Reply) };
        if voided.len() != 1 + self.place.sets.len() {
            return Err(Fault::Reply);
        }
        // Without it there is no valid record.
        let Some(incarnation) = text(incarnation).and_then(|bytes| bytes.try_into().ok()) else {
            return Ok(LookedUp { time, ..LookedUp::default() });
        };
        let order = |number| Order { incarnation, number };
        let ticket = match ticket {
            Value::Int(number) => u64::try_from(number).ok().filter(|number| (1..=LAST_TICKET).contains(number)),
            _ => None,
        };
        let ticket = ticket.map(|number| Ticket { order: order(number), time, drawn, connection });
        let is_after = |number: u64, voided: &Value| match voided {
            Value::Nil => true,
            voided => text(voided).and_then(digits).is_some_and(|voided| voided < number),
        };
        let record = value
            .and_then(into_bytes)
            .filter(|value| (PREFIX + 1..=PREFIX + self.max_record).contains(&value.len()))
            .and_then(|value| {
                let number = digits(&value[16..PREFIX])?;
                let is_valid = value[..16] == incarnation && voided.iter().all(|voided| is_after(number, voided));
                is_valid.then(|| (order(number), value.slice(PREFIX..)))
            });
        Ok(LookedUp { record, ticket, time })
    }
}

/// Whether a script has done what it should.
///
/// # Errors
/// If it has failed.
pub(super) fn read_done(reply: &Value) -> Result<bool, Fault> {
    match reply {
        Value::Int(done @ (0 | 1)) => Ok(*done == 1),
        Value::ServerError(error) => Err(Fault::of_server(error)),
        _ => Err(Fault::Reply),
    }
}

/// Whether keys were deleted, or were not there.
///
/// # Errors
/// If the command has failed.
pub(super) fn read_deleted(reply: &Value) -> Result<(), Fault> {
    match reply {
        Value::Int(_) => Ok(()),
        Value::ServerError(error) => Err(Fault::of_server(error)),
        _ => Err(Fault::Reply),
    }
}

/// Whether the node is a master.
///
/// # Errors
/// If it is not, or the reply to `ROLE` is none.
pub(super) fn read_role(reply: &Value) -> Result<(), Fault> {
    match reply {
        Value::ServerError(error) => Err(Fault::of_server(error)),
        Value::Array(parts) => match parts.first().and_then(text) {
            Some(b"master") => Ok(()),
            Some(b"slave" | b"sentinel") => Err(Fault::NotMaster),
            _ => Err(Fault::Reply),
        },
        _ => Err(Fault::Reply),
    }
}

fn millis(span: Duration) -> u64 {
    u64::try_from(span.as_millis()).unwrap_or(u64::MAX).max(1)
}

fn hex(name: &[u8]) -> String {
    name.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn text(value: &Value) -> Option<&[u8]> {
    match value {
        Value::BulkString(text) => Some(text),
        Value::SimpleString(text) => Some(text.as_bytes()),
        _ => None,
    }
}

fn into_bytes(value: Value) -> Option<Bytes> {
    match value {
        Value::BulkString(text) => Some(text.into()),
        _ => None,
    }
}

fn digits(text: &[u8]) -> Option<u64> {
    let is_number = !text.is_empty() && text.len() <= 19 && text.iter().all(u8::is_ascii_digit);
    is_number.then(|| std::str::from_utf8(text).ok()?.parse().ok())?
}

/// Seconds and microseconds since 1970.
fn read_time(value: &Value) -> Option<Duration> {
    let Value::Array(parts) = value else { return None };
    let [seconds, micros] = &parts[..] else { return None };
    let micros = digits(text(micros)?).filter(|micros| *micros < 1_000_000)?;
    Duration::from_secs(digits(text(seconds)?)?).checked_add(Duration::from_micros(micros))
}

#[cfg(test)]
mod tests;
