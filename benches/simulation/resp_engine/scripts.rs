//! What each script of `src/fleet/commands.rs` does, line by line. Pure.

use workspace_gateway::testing::fleet::{RELEASE, RENEW, STORE, TELL};

use super::commands::{Data, Effect};
use super::wire::Reply;

/// More voided sets than these are halved.
const MAX_VOIDED: i64 = 4096;

/// A script that runs. `Err` is the error that has ended it. What was written before stays.
struct Script<'d> {
    data: &'d mut Data,
    /// After its first write, a script may also write without memory, because it cannot be undone.
    has_written: bool,
}

/// `None` if the script is unknown.
pub(super) fn run(data: &mut Data, script: &[u8], keys: &[&[u8]], arguments: &[&[u8]]) -> Option<Reply> {
    let mut redis = Script { data, has_written: false };
    let ran = match (keys, arguments) {
        (&[control, record, lease, ref marker @ ..], &[incarnation, number, lifetime, sealed, holder])
            if script == STORE.as_bytes() && marker.len() < 2 =>
        {
            let marker = marker.first().copied();
            redis.store([control, record, lease], marker, [incarnation, number, lifetime, sealed, holder])
        }
        (&[control, log], &[incarnation, set, id, sealed, entries, grants]) if script == TELL.as_bytes() => {
            redis.tell([control, log], [incarnation, set, id, sealed], [entries, grants])
        }
        (&[lease], &[holder, lifetime]) if script == RENEW.as_bytes() => redis.renew(lease, holder, lifetime),
        (&[lease], &[holder, unshared]) if script == RELEASE.as_bytes() => redis.release(lease, holder, unshared),
        _ => return None,
    };
    Some(ran.unwrap_or_else(|error| error))
}

impl Script<'_> {
    fn call(&mut self, parts: &[&[u8]]) -> Result<Reply, Reply> {
        let reply = self.data.call(parts, self.data.is_full && !self.has_written);
        if let Reply::Error(_) = reply {
            return Err(reply);
        }
        self.has_written |= parts.first().is_some_and(|command| Effect::of(command) != Effect::Reads);
        Ok(reply)
    }

    /// A text. `None` if it is nil.
    fn text(&mut self, parts: &[&[u8]]) -> Result<Option<Vec<u8>>, Reply> {
        match self.call(parts)? {
            Reply::Bulk(text) => Ok(Some(text)),
            _ => Ok(None),
        }
    }

    fn number(&mut self, parts: &[&[u8]]) -> Result<i64, Reply> {
        match self.call(parts)? {
            Reply::Int(number) => Ok(number),
            _ => Ok(0),
        }
    }

    fn store(
        &mut self,
        [control, record, lease]: [&[u8]; 3],
        marker: Option<&[u8]>,
        [incarnation, number, lifetime, sealed, holder]: [&[u8]; 5],
    ) -> Result<Reply, Reply> {
        if !holder.is_empty() && self.text(&[b"GET", lease])?.as_deref() == Some(holder) {
            self.call(&[b"DEL", lease])?;
        }
        if self.text(&[b"HGET", control, b"i"])?.as_deref() != Some(incarnation) {
            return Ok(Reply::Int(0));
        }
        let there = self.text(&[b"GETRANGE", record, b"0", b"31"])?.unwrap_or_default();
        let (of, order) = there.split_at(there.len().min(16));
        if of == incarnation && order >= number {
            return Ok(Reply::Int(0));
        }
        self.call(&[b"SET", record, &[incarnation, number, sealed].concat(), b"PX", lifetime])?;
        if let Some(marker) = marker {
            self.call(&[b"SET", marker, b"", b"PX", lifetime])?;
        }
        Ok(Reply::Int(1))
    }

    fn tell(
        &mut self,
        [control, log]: [&[u8]; 2],
        [incarnation, set, id, sealed]: [&[u8]; 4],
        everything: [&[u8]; 2],
    ) -> Result<Reply, Reply> {
        if self.number(&[b"HEXISTS", control, b"i"])? == 0 {
            self.call(&[b"DEL", control, log])?;
            self.call(&[b"HSET", control, b"i", incarnation])?;
        }
        let mut ticket = 0;
        if !set.is_empty() {
            if let Some(there) = self.text(&[b"HGET", control, set])?
                && let Some((number, by)) = there.split_at_checked(16)
                && by == id
            {
                let number = std::str::from_utf8(number).ok().and_then(|number| number.parse().ok());
                let incarnation = self.call(&[b"HGET", control, b"i"])?;
                return Ok(Reply::Array(vec![Reply::Int(0), Reply::Int(number.unwrap_or_default()), incarnation]));
            }
            if self.number(&[b"HLEN", control])? > MAX_VOIDED {
                self.forget_older_half(control, everything)?;
            }
            ticket = self.number(&[b"HINCRBY", control, b"t", b"1"])?;
            self.call(&[b"HSET", control, set, &[format!("{ticket:016}").as_bytes(), id].concat()])?;
        }
        let number = self.number(&[b"HINCRBY", control, b"n", b"1"])?.to_string();
        let incarnation = self.text(&[b"HGET", control, b"i"])?.unwrap_or_default();
        let shown = ticket.to_string();
        let id = [&b"XADD"[..], log, b"MAXLEN", b"~", b"4096", b"*"];
        let order = [&b"i"[..], &incarnation, b"n", number.as_bytes(), b"t", shown.as_bytes()];
        self.call(&[&id[..], &order, &[b"s", set, b"m", sealed]].concat())?;
        Ok(Reply::Array(vec![Reply::Int(1), Reply::Int(ticket), Reply::Bulk(incarnation)]))
    }

    fn forget_older_half(&mut self, control: &[u8], everything: [&[u8]; 2]) -> Result<(), Reply> {
        let Reply::Array(all) = self.call(&[b"HGETALL", control])? else { return Ok(()) };
        let mut voided: Vec<(Vec<u8>, Vec<u8>)> = Vec::new();
        for pair in all.chunks_exact(2) {
            if let [Reply::Bulk(set), Reply::Bulk(value)] = pair
                && set.len() == 32
            {
                voided.push((value[..value.len().min(16)].to_vec(), set.clone()));
            }
        }
        voided.sort();
        voided.truncate(voided.len() / 2);
        for (_, set) in &voided {
            self.call(&[b"HDEL", control, set])?;
        }
        let last = voided.last().map_or(&b""[..], |(ticket, _)| ticket);
        for all in everything {
            if self.text(&[b"HGET", control, all])?.is_none() {
                self.call(&[b"HSET", control, all, last])?;
            }
        }
        Ok(())
    }

    fn renew(&mut self, lease: &[u8], holder: &[u8], lifetime: &[u8]) -> Result<Reply, Reply> {
        if self.text(&[b"GET", lease])?.as_deref() != Some(holder) {
            return Ok(Reply::Int(0));
        }
        self.call(&[b"PEXPIRE", lease, lifetime])?;
        Ok(Reply::Int(1))
    }

    fn release(&mut self, lease: &[u8], holder: &[u8], unshared: &[u8]) -> Result<Reply, Reply> {
        if self.text(&[b"GET", lease])?.as_deref() != Some(holder) {
            return Ok(Reply::Int(0));
        }
        if unshared.is_empty() {
            self.call(&[b"DEL", lease])?;
        } else {
            self.call(&[b"SET", lease, b"-", b"PX", unshared])?;
        }
        Ok(Reply::Int(1))
    }
}
