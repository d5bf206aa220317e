//! How the replies of the engine are read.

use std::time::{Duration, Instant};

use bytes::Bytes;
use redis::Value;

use super::{Fault, Fresh, LAST_TICKET, LEASE, OF_PROCESS, PREFIX, UNSHARED, millis};
use crate::cache::second_tier::{Incarnation, Lease, LeaseState, LookUp, LookedUp, Name, Order, Place, Ticket};

/// What a look-up has asked for.
pub(in crate::fleet) struct Wanted<'p> {
    pub(in crate::fleet) look_up: LookUp<'p>,
    pub(in crate::fleet) lease: Option<Lease>,
    pub(in crate::fleet) fresh: Fresh,
    /// The longest record, in bytes.
    pub(in crate::fleet) max_record: usize,
}

impl Wanted<'_> {
    /// Reads the replies. `drawn` is when they came: a time that is too late makes ages too high, not too low.
    ///
    /// # Errors
    /// If they are not answers to the commands, or an error that concerns the connection.
    pub(in crate::fleet) fn read(
        &self,
        replies: Vec<Value>,
        drawn: Instant,
        connection: u64,
    ) -> Result<LookedUp, Fault> {
        let places = self.look_up.places;
        let (of_lease, of_records) =
            (3 * usize::from(self.lease.is_some()), places.len() * usize::from(self.look_up.wants_records));
        if replies.len() != of_lease + of_records + 5 {
            return Err(Fault::Reply);
        }
        first_fault(&replies)?;
        let mut replies = replies.into_iter();
        let lease: Vec<Value> = replies.by_ref().take(of_lease).collect();
        let values: Vec<Value> = replies.by_ref().take(of_records).collect();
        let (Some(_), Some(control), Some(ticket), Some(time), Some(echo)) =
            (replies.next(), replies.next(), replies.next(), replies.next(), replies.next())
        else {
            return Err(Fault::Reply);
        };
        if text(&echo) != Some(self.fresh.nonce.to_string().as_bytes()) {
            return Err(Fault::Reply);
        }
        let lease = self.lease.map_or(LeaseState::None, |wanted| read_lease(wanted, &lease));
        let time = read_time(&time).ok_or(Fault::Reply)?;
        let nothing = LookedUp { records: vec![None; places.len()], lease, time, ..LookedUp::default() };
        let Value::Array(control) = control else { return Ok(nothing) };
        let [incarnation, voided @ ..] = &control[..] else { return Err(Fault::Reply) };
        if voided.len() != places.iter().map(|place| place.sets.len()).sum::<usize>() {
            return Err(Fault::Reply);
        }
        // Without it there is no valid record.
        let Some(incarnation) = text(incarnation).and_then(|bytes| bytes.try_into().ok()) else { return Ok(nothing) };
        let ticket = match ticket {
            Value::Int(number) => u64::try_from(number).ok().filter(|number| (1..=LAST_TICKET).contains(number)),
            _ => None,
        };
        let order = |number| Order { incarnation, number };
        let ticket = ticket.map(|number| Ticket { order: order(number), time, drawn, connection });
        let mut records = nothing.records;
        let mut voided = voided.iter();
        for ((place, value), record) in places.iter().zip(values).zip(&mut records) {
            let voided: Vec<&Value> = voided.by_ref().take(place.sets.len()).collect();
            *record = self.read_record(value, incarnation, place, &voided);
        }
        Ok(LookedUp { records, ticket, lease, time, as_of: 0 })
    }

    fn read_record(
        &self,
        value: Value,
        incarnation: Incarnation,
        place: &Place,
        voided: &[&Value],
    ) -> Option<(Order, Bytes)> {
        debug_assert_eq!(voided.len(), place.sets.len());
        let value = into_bytes(value).filter(|value| (PREFIX + 1..=PREFIX + self.max_record).contains(&value.len()))?;
        let number = digits(&value[16..PREFIX])?;
        let is_after = |voided: &&Value| match voided {
            Value::Nil => true,
            voided => text(voided).and_then(|text| digits(text.get(..16)?)).is_some_and(|voided| voided < number),
        };
        let is_valid = value[..16] == incarnation && voided.iter().all(is_after);
        is_valid.then(|| (Order { incarnation, number }, value.slice(PREFIX..)))
    }
}

/// A lease that was asked for, from the replies to SET, GET and PTTL.
fn read_lease(wanted: Lease, replies: &[Value]) -> LeaseState {
    match replies {
        [Value::Okay, _, _] => LeaseState::Held(wanted),
        [Value::SimpleString(done), _, _] if done == "OK" => LeaseState::Held(wanted),
        // It has ended between the commands.
        [Value::Nil, Value::Nil, _] | [Value::Nil, Value::BulkString(_), Value::Int(-2)] => LeaseState::Elsewhere,
        [Value::Nil, Value::BulkString(held), Value::Int(left)] => match &held[..] {
            UNSHARED => LeaseState::Unshared,
            // No gateway has given it so long, or for ever. It might never end.
            _ if u64::try_from(*left).map_or(true, |left| left > millis(LEASE)) => LeaseState::None,
            held if held.starts_with(&wanted.holder[..OF_PROCESS]) => LeaseState::Here,
            _ => LeaseState::Elsewhere,
        },
        // Also if the key is no lease.
        _ => LeaseState::None,
    }
}

/// A notice in the log.
#[derive(Debug, PartialEq, Eq)]
pub(in crate::fleet) struct LogEntry {
    pub(in crate::fleet) incarnation: Incarnation,
    pub(in crate::fleet) number: u64,
    /// The last ticket that it voids, if it voids a set.
    pub(in crate::fleet) ticket: u64,
    pub(in crate::fleet) voids: Option<Name>,
    pub(in crate::fleet) sealed: Bytes,
    /// When it was told, by the clock of the engine, as the time since 1970.
    pub(in crate::fleet) told_at: Duration,
}

/// What a poll has asked for.
pub(in crate::fleet) struct PollReplies {
    pub(in crate::fleet) fresh: Fresh,
}

/// What a poll has found.
#[derive(Debug, PartialEq, Eq)]
pub(in crate::fleet) struct Polled {
    pub(in crate::fleet) incarnation: Incarnation,
    /// The number of the last notice when the log was read, at least.
    pub(in crate::fleet) last: u64,
    /// Those of this incarnation, in their order.
    pub(in crate::fleet) entries: Vec<LogEntry>,
    /// What the clock of the engine showed, as the time since 1970.
    pub(in crate::fleet) time: Duration,
    /// Where to read on, if there was anything.
    pub(in crate::fleet) next: Option<String>,
    /// Whether the batch was full.
    pub(in crate::fleet) is_full: bool,
    /// The last ticket. `None` if the engine accepts nothing.
    pub(in crate::fleet) ticket: Option<u64>,
}

impl PollReplies {
    /// Reads the replies.
    ///
    /// # Errors
    /// If they are not answers to the commands, or an error. An engine without memory has a log nevertheless.
    pub(in crate::fleet) fn read(&self, replies: &[Value]) -> Result<Polled, Fault> {
        let [role, set, control, log, ticket, time, echo] = replies else { return Err(Fault::Reply) };
        read_role(role)?;
        first_fault(replies)?;
        if text(echo) != Some(self.fresh.nonce.to_string().as_bytes()) {
            return Err(Fault::Reply);
        }
        for reply in [control, log] {
            if let Value::ServerError(error) = reply {
                return Err(Fault::of_server(error));
            }
        }
        let ticket = match (set, ticket) {
            (Value::Int(_), Value::Int(ticket)) => u64::try_from(*ticket).ok(),
            _ => None,
        };
        let Value::Array(control) = control else { return Err(Fault::Reply) };
        let [incarnation, last] = &control[..] else { return Err(Fault::Reply) };
        // An engine without memory cannot begin one.
        let missing = if ticket.is_none() { Fault::Full } else { Fault::Reply };
        let incarnation = text(incarnation).and_then(|bytes| bytes.try_into().ok()).ok_or(missing)?;
        let last = match last {
            Value::Nil => 0,
            last => text(last).and_then(digits).ok_or(Fault::Reply)?,
        };
        let Value::Array(log) = log else { return Err(Fault::Reply) };
        let mut entries = Vec::with_capacity(log.len());
        let mut next = None;
        for entry in log {
            let Value::Array(parts) = entry else { return Err(Fault::Reply) };
            let [id, Value::Array(fields)] = &parts[..] else { return Err(Fault::Reply) };
            let (millis, sequence) = text(id).and_then(read_id).ok_or(Fault::Reply)?;
            next = Some(after(millis, sequence));
            // What is no notice leaves a gap in the numbers, unless it is another incarnation's.
            entries.extend(read_entry(millis, fields).filter(|entry| entry.incarnation == incarnation));
        }
        let time = read_time(time).ok_or(Fault::Reply)?;
        Ok(Polled { incarnation, last, entries, time, next, is_full: log.len() >= super::BATCH, ticket })
    }
}

fn read_entry(millis: u64, fields: &[Value]) -> Option<LogEntry> {
    let [i, incarnation, n, number, t, ticket, s, voids, m, sealed] = fields else { return None };
    if [i, n, t, s, m].map(text) != [Some(&b"i"[..]), Some(b"n"), Some(b"t"), Some(b"s"), Some(b"m")] {
        return None;
    }
    let voids = match text(voids)? {
        b"" => None,
        hex => Some(unhex(hex)?),
    };
    Some(LogEntry {
        incarnation: text(incarnation)?.try_into().ok()?,
        number: text(number).and_then(digits)?,
        ticket: text(ticket).and_then(digits)?,
        voids,
        sealed: Bytes::copy_from_slice(text(sealed)?),
        told_at: Duration::from_millis(millis),
    })
}

/// The milliseconds since 1970, and the sequence number, of an id of a stream.
fn read_id(id: &[u8]) -> Option<(u64, u64)> {
    let (millis, sequence) = std::str::from_utf8(id).ok()?.split_once('-')?;
    Some((millis.parse().ok()?, sequence.parse().ok()?))
}

/// The first id after this one.
fn after(millis: u64, sequence: u64) -> String {
    match sequence.checked_add(1) {
        Some(sequence) => format!("{millis}-{sequence}"),
        None => format!("{}-0", millis.saturating_add(1)),
    }
}

/// # Errors
/// The first error that concerns the connection.
pub(in crate::fleet) fn first_fault(replies: &[Value]) -> Result<(), Fault> {
    for reply in replies {
        if let Value::ServerError(error) = reply
            && let fault = Fault::of_server(error)
            && fault.ends_link()
        {
            return Err(fault);
        }
    }
    Ok(())
}

/// Whether a script has done what it should.
///
/// # Errors
/// If it has failed.
pub(in crate::fleet) fn read_done(reply: &Value) -> Result<bool, Fault> {
    match reply {
        Value::Int(done @ (0 | 1)) => Ok(*done == 1),
        Value::ServerError(error) => Err(Fault::of_server(error)),
        _ => Err(Fault::Reply),
    }
}

/// Whether a notice is in the log now, and the last ticket that it voids. Otherwise another gateway has told it already.
///
/// # Errors
/// If the script has failed.
pub(in crate::fleet) fn read_told(reply: &Value) -> Result<(bool, Order), Fault> {
    match reply {
        Value::ServerError(error) => Err(Fault::of_server(error)),
        Value::Array(parts) => match &parts[..] {
            [Value::Int(done @ (0 | 1)), Value::Int(number), incarnation] => {
                let number = u64::try_from(*number).map_err(|_| Fault::Reply)?;
                let incarnation = text(incarnation).and_then(|bytes| bytes.try_into().ok()).ok_or(Fault::Reply)?;
                Ok((*done == 1, Order { incarnation, number }))
            }
            _ => Err(Fault::Reply),
        },
        _ => Err(Fault::Reply),
    }
}

/// Whether keys were deleted, or were not there.
///
/// # Errors
/// If the command has failed.
pub(in crate::fleet) fn read_deleted(reply: &Value) -> Result<(), Fault> {
    match reply {
        Value::Int(_) => Ok(()),
        Value::ServerError(error) => Err(Fault::of_server(error)),
        _ => Err(Fault::Reply),
    }
}

/// For each name, whether another gateway knows it: there is a record, or a lease with another holder than `own`. Or an
/// error that concerns this name alone.
///
/// # Errors
/// If a reply is an error that concerns the connection, or no reply to these commands.
pub(in crate::fleet) fn read_known(replies: &[Value], own: Incarnation) -> Result<Vec<Result<bool, Fault>>, Fault> {
    first_fault(replies)?;
    let (pairs, rest) = replies.as_chunks::<2>();
    if !rest.is_empty() {
        return Err(Fault::Reply);
    }
    let is_known = |pair: &[Value; 2]| match pair {
        [Value::ServerError(error), _] | [_, Value::ServerError(error)] => Ok(Err(Fault::of_server(error))),
        [Value::Int(records), Value::BulkString(holder)] => {
            Ok(Ok(*records > 0 || !holder.is_empty() && **holder != own[..OF_PROCESS]))
        }
        _ => Err(Fault::Reply),
    };
    pairs.iter().map(is_known).collect()
}

/// Whether the node is a master.
///
/// # Errors
/// If it is not, or the reply to `ROLE` is none.
pub(in crate::fleet) fn read_role(reply: &Value) -> Result<(), Fault> {
    match reply {
        Value::ServerError(error) => Err(Fault::of_server(error)),
        _ => match role(reply) {
            Some(b"master") => Ok(()),
            Some(b"slave" | b"sentinel") => Err(Fault::NotMaster),
            _ => Err(Fault::Reply),
        },
    }
}

/// What a node says that it is, in its reply to `ROLE`.
pub(in crate::fleet) fn role(reply: &Value) -> Option<&[u8]> {
    match reply {
        Value::Array(parts) => parts.first().and_then(text),
        _ => None,
    }
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

fn unhex(text: &[u8]) -> Option<Name> {
    let mut name = Name::default();
    if text.len() != 2 * name.len() {
        return None;
    }
    for (byte, digits) in name.iter_mut().zip(text.chunks_exact(2)) {
        *byte = u8::from_str_radix(std::str::from_utf8(digits).ok()?, 16).ok()?;
    }
    Some(name)
}

/// Seconds and microseconds since 1970.
fn read_time(value: &Value) -> Option<Duration> {
    let Value::Array(parts) = value else { return None };
    let [seconds, micros] = &parts[..] else { return None };
    let micros = digits(text(micros)?).filter(|micros| *micros < 1_000_000)?;
    Duration::from_secs(digits(text(seconds)?)?).checked_add(Duration::from_micros(micros))
}
