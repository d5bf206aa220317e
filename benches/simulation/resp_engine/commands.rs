//! What each command does. Pure.

use std::collections::BTreeSet;

use rand::rngs::SmallRng;
use rand::{RngExt, SeedableRng};

use super::keyspace::{Keyspace, StreamId, WrongType};
use super::scripts;
use super::wire::Reply;

const NOT_AN_INTEGER: &str = "ERR value is not an integer or out of range";
const FULL: &str = "OOM command not allowed when used memory > 'maxmemory'.";
const READ_ONLY: &str = "READONLY You can't write against a read only replica.";
const WRONG_TYPE: &str = "WRONGTYPE Operation against a key holding the wrong kind of value";

/// What an engine has, and what it refuses.
pub(super) struct Data {
    pub(super) keyspace: Keyspace,
    pub(super) is_replica: bool,
    pub(super) is_full: bool,
    pub(super) unexpected: BTreeSet<String>,
    dice: SmallRng,
}

#[derive(Clone, Copy, PartialEq)]
pub(super) enum Effect {
    Reads,
    Writes,
    /// It writes, and may need more memory.
    Grows,
}

impl Effect {
    pub(super) fn of(command: &[u8]) -> Self {
        match command {
            b"SET" | b"HSET" | b"HSETNX" | b"HINCRBY" | b"XADD" => Self::Grows,
            b"DEL" | b"HDEL" | b"PEXPIRE" => Self::Writes,
            _ => Self::Reads,
        }
    }
}

impl Data {
    pub(super) fn new(seed: u64) -> Self {
        Self {
            keyspace: Keyspace::default(),
            is_replica: false,
            is_full: false,
            unexpected: BTreeSet::new(),
            dice: SmallRng::seed_from_u64(seed),
        }
    }

    /// Whether a die with so many sides shows its first one.
    pub(super) fn roll(&mut self, sides: u32) -> bool {
        self.dice.random_ratio(1, sides)
    }

    pub(super) fn evict(&mut self, number: usize) -> usize {
        let mut records = self.keyspace.keys();
        records.retain(|key| key.contains(":r:"));
        let number = number.min(records.len());
        for _ in 0..number {
            let record = records.swap_remove(self.dice.random_range(0..records.len()));
            self.keyspace.remove(record.as_bytes());
        }
        number
    }

    pub(super) fn note_unexpected(&mut self, text: &[u8]) {
        let text = String::from_utf8_lossy(text.get(..200).unwrap_or(text));
        self.unexpected.insert(text.into_owned());
    }

    /// Runs what a client has sent.
    pub(super) fn run(&mut self, parts: &[&[u8]]) -> Reply {
        match *parts {
            [b"EVAL", script, number, ref rest @ ..] => {
                let number = integer(number).ok().and_then(|number| usize::try_from(number).ok());
                let split = number.and_then(|number| rest.split_at_checked(number));
                let ran = split.and_then(|(keys, arguments)| scripts::run(self, script, keys, arguments));
                ran.unwrap_or_else(|| self.unknown("script", parts))
            }
            _ => self.call(parts, self.is_full),
        }
    }

    /// Runs a command. `is_full`: it must not need more memory.
    pub(super) fn call(&mut self, parts: &[&[u8]], is_full: bool) -> Reply {
        match Effect::of(parts.first().copied().unwrap_or_default()) {
            Effect::Grows | Effect::Writes if self.is_replica => Reply::error(READ_ONLY),
            Effect::Grows if is_full => Reply::error(FULL),
            _ => match self.execute(parts) {
                Ok(Some(reply)) | Err(reply) => reply,
                Ok(None) => self.unknown("command", parts),
            },
        }
    }

    fn unknown(&mut self, what: &str, parts: &[&[u8]]) -> Reply {
        self.note_unexpected(&parts.join(&b' '));
        Reply::Error(format!("ERR unknown {what}"))
    }

    /// `None`: `src/fleet` sends no such command.
    fn execute(&mut self, parts: &[&[u8]]) -> Result<Option<Reply>, Reply> {
        let data = &mut self.keyspace;
        Ok(Some(match *parts {
            [b"SET", key, _, b"NX", b"PX", _] if data.has(key) => Reply::Nil,
            [b"SET", key, value, b"NX", b"PX", lifetime] | [b"SET", key, value, b"PX", lifetime] => {
                let Some(lifetime) = positive(lifetime)? else { return Ok(None) };
                data.set(key, value, lifetime);
                Reply::Okay
            }
            [b"GET", key] => Reply::of(data.text(key)?),
            [b"GETRANGE", key, b"0", last] => {
                let Ok(last) = usize::try_from(integer(last)?) else { return Ok(None) };
                let text = data.text(key)?.unwrap_or_default();
                Reply::bulk(text.get(..=last).unwrap_or(text))
            }
            [b"PTTL", key] => Reply::Int(data.left(key)),
            [b"PEXPIRE", key, lifetime] => {
                let Some(lifetime) = positive(lifetime)? else { return Ok(None) };
                Reply::Int(data.expire(key, lifetime).into())
            }
            [b"EXISTS", ref keys @ ..] => Reply::count(keys.iter().filter(|key| data.has(key)).count()),
            [b"DEL", ref keys @ ..] => Reply::count(keys.iter().filter(|key| data.remove(key)).count()),
            [b"HGET", key, field] => Reply::of(data.hash(key)?.and_then(|hash| hash.get(field)).map(Vec::as_slice)),
            [b"HMGET", key, ref fields @ ..] => {
                let hash = data.hash(key)?;
                let value = |field: &&[u8]| Reply::of(hash.and_then(|hash| hash.get(*field)).map(Vec::as_slice));
                Reply::Array(fields.iter().map(value).collect())
            }
            [b"HGETALL", key] => {
                let pairs = data.hash(key)?.into_iter().flatten();
                Reply::Array(pairs.flat_map(|(field, value)| [Reply::bulk(field), Reply::bulk(value)]).collect())
            }
            [b"HEXISTS", key, field] => Reply::Int(data.hash(key)?.is_some_and(|hash| hash.contains_key(field)).into()),
            [b"HLEN", key] => Reply::count(data.hash(key)?.map_or(0, |hash| hash.len())),
            [b"HSETNX", key, field, value] => data.change_hash(key, |hash| {
                let is_new = !hash.contains_key(field);
                hash.entry(field.to_vec()).or_insert_with(|| value.to_vec());
                Reply::Int(is_new.into())
            })?,
            [b"HSET", key, field, value] => {
                data.change_hash(key, |hash| Reply::Int(hash.insert(field.to_vec(), value.to_vec()).is_none().into()))?
            }
            [b"HDEL", key, ref fields @ ..] => data.change_hash(key, |hash| {
                Reply::count(fields.iter().filter(|field| hash.remove(**field).is_some()).count())
            })?,
            [b"HINCRBY", key, field, by] => {
                let by = integer(by)?;
                data.change_hash(key, |hash| {
                    let number = hash.get(field).map_or(Ok(0), |value| integer(value));
                    let number = number.map_err(|_| Reply::error("ERR hash value is not an integer"))?;
                    let overflow = || Reply::error("ERR increment or decrement would overflow");
                    let number = number.checked_add(by).ok_or_else(overflow)?;
                    hash.insert(field.to_vec(), number.to_string().into_bytes());
                    Ok::<_, Reply>(Reply::Int(number))
                })??
            }
            [b"XADD", key, b"MAXLEN", b"~", max, b"*", ref entry @ ..] => {
                let Ok(max) = usize::try_from(integer(max)?) else { return Ok(None) };
                let id = data.append(key, entry.iter().map(|part| part.to_vec()).collect(), max)?;
                Reply::Bulk(shown(id))
            }
            [b"XRANGE", key, from, b"+", b"COUNT", count] => {
                let Some(from) = stream_id(from) else { return Ok(None) };
                let Some(count) = positive(count)? else { return Ok(None) };
                let entries = data.stream(key)?.into_iter().flat_map(|stream| stream.entries.range(from..));
                let entry = |(id, entry): (&StreamId, &Vec<Vec<u8>>)| {
                    let parts = entry.iter().map(|part| Reply::bulk(part)).collect();
                    Reply::Array(vec![Reply::Bulk(shown(*id)), Reply::Array(parts)])
                };
                Reply::Array(entries.take(usize::try_from(count).unwrap_or(usize::MAX)).map(entry).collect())
            }
            [b"TIME"] => {
                let parts = [data.now.as_secs(), data.now.subsec_micros().into()];
                Reply::Array(parts.map(|part| Reply::Bulk(part.to_string().into_bytes())).to_vec())
            }
            [b"ECHO", text] => Reply::bulk(text),
            [b"ROLE"] if self.is_replica => {
                let link = [Reply::bulk(b"127.0.0.1"), Reply::Int(1), Reply::bulk(b"connect"), Reply::Int(-1)];
                Reply::Array([Reply::bulk(b"slave")].into_iter().chain(link).collect())
            }
            [b"ROLE"] => Reply::Array(vec![Reply::bulk(b"master"), Reply::Int(0), Reply::Array(Vec::new())]),
            _ => return Ok(None),
        }))
    }
}

impl From<WrongType> for Reply {
    fn from(_: WrongType) -> Self {
        Self::error(WRONG_TYPE)
    }
}

fn integer(text: &[u8]) -> Result<i64, Reply> {
    let number = std::str::from_utf8(text).ok().and_then(|text| text.parse().ok());
    // Without leading zeros, and without a plus.
    let number = number.filter(|number: &i64| number.to_string().as_bytes() == text);
    number.ok_or_else(|| Reply::error(NOT_AN_INTEGER))
}

fn positive(text: &[u8]) -> Result<Option<u64>, Reply> {
    Ok(u64::try_from(integer(text)?).ok().filter(|number| *number > 0))
}

fn shown((millis, sequence): StreamId) -> Vec<u8> {
    format!("{millis}-{sequence}").into_bytes()
}

fn stream_id(text: &[u8]) -> Option<StreamId> {
    if text == b"-" {
        return Some((0, 0));
    }
    let (millis, sequence) = std::str::from_utf8(text).ok()?.split_once('-')?;
    Some((millis.parse().ok()?, sequence.parse().ok()?))
}
