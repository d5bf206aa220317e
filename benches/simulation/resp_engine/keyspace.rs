//! What an engine has: values by key, and when they expire. Pure: the time is given.

use std::collections::BTreeMap;
use std::time::Duration;

/// The value of a key is of another type than the command is for.
pub(super) struct WrongType;

pub(super) type Hash = BTreeMap<Vec<u8>, Vec<u8>>;

/// Milliseconds since 1970, and a sequence number.
pub(super) type StreamId = (u64, u64);

/// A stream is trimmed by so many entries at a time, as `stream-node-max-entries` says.
const NODE: usize = 100;

#[derive(Clone, Default)]
pub(super) struct Stream {
    last: StreamId,
    /// The fields and values of each entry.
    pub(super) entries: BTreeMap<StreamId, Vec<Vec<u8>>>,
}

#[derive(Clone)]
enum Value {
    Text(Vec<u8>),
    Hash(Hash),
    Stream(Stream),
}

#[derive(Clone)]
struct Entry {
    value: Value,
    /// In milliseconds since 1970. It is still there in this millisecond.
    expires: Option<u64>,
}

#[derive(Clone, Default)]
pub(super) struct Keyspace {
    entries: BTreeMap<Vec<u8>, Entry>,
    /// The time since 1970.
    pub(super) now: Duration,
}

impl Keyspace {
    pub(super) fn millis(&self) -> u64 {
        u64::try_from(self.now.as_millis()).unwrap_or(u64::MAX)
    }

    fn entry(&mut self, key: &[u8]) -> Option<&mut Entry> {
        let now = self.millis();
        if self.entries.get(key)?.expires.is_some_and(|expires| now > expires) {
            self.entries.remove(key);
        }
        self.entries.get_mut(key)
    }

    pub(super) fn has(&mut self, key: &[u8]) -> bool {
        self.entry(key).is_some()
    }

    pub(super) fn text(&mut self, key: &[u8]) -> Result<Option<&[u8]>, WrongType> {
        match self.entry(key).map(|entry| &entry.value) {
            Some(Value::Text(text)) => Ok(Some(text)),
            Some(_) => Err(WrongType),
            None => Ok(None),
        }
    }

    pub(super) fn hash(&mut self, key: &[u8]) -> Result<Option<&Hash>, WrongType> {
        match self.entry(key).map(|entry| &entry.value) {
            Some(Value::Hash(hash)) => Ok(Some(hash)),
            Some(_) => Err(WrongType),
            None => Ok(None),
        }
    }

    /// Changes a hash, which may be empty before. A hash without fields does not stay.
    pub(super) fn change_hash<T>(&mut self, key: &[u8], change: impl FnOnce(&mut Hash) -> T) -> Result<T, WrongType> {
        if !self.has(key) {
            self.put(key, Value::Hash(Hash::new()), None);
        }
        let Some(Entry { value: Value::Hash(hash), .. }) = self.entry(key) else { return Err(WrongType) };
        let changed = change(hash);
        if hash.is_empty() {
            self.entries.remove(key);
        }
        Ok(changed)
    }

    pub(super) fn stream(&mut self, key: &[u8]) -> Result<Option<&Stream>, WrongType> {
        match self.entry(key).map(|entry| &entry.value) {
            Some(Value::Stream(stream)) => Ok(Some(stream)),
            Some(_) => Err(WrongType),
            None => Ok(None),
        }
    }

    /// Adds an entry to a stream, and trims it to about `max` entries. Returns the id of the entry.
    pub(super) fn append(&mut self, key: &[u8], entry: Vec<Vec<u8>>, max: usize) -> Result<StreamId, WrongType> {
        let now = self.millis();
        if !self.has(key) {
            self.put(key, Value::Stream(Stream::default()), None);
        }
        let Some(Entry { value: Value::Stream(stream), .. }) = self.entry(key) else { return Err(WrongType) };
        stream.last = if now > stream.last.0 { (now, 0) } else { (stream.last.0, stream.last.1 + 1) };
        stream.entries.insert(stream.last, entry);
        if stream.entries.len() >= max + NODE {
            (0..NODE).for_each(|_| drop(stream.entries.pop_first()));
        }
        Ok(stream.last)
    }

    pub(super) fn trim_streams(&mut self, keep: usize) {
        for entry in self.entries.values_mut() {
            if let Value::Stream(stream) = &mut entry.value {
                while stream.entries.len() > keep {
                    stream.entries.pop_first();
                }
            }
        }
    }

    /// `lifetime`: in milliseconds.
    pub(super) fn set(&mut self, key: &[u8], text: &[u8], lifetime: u64) {
        let expires = self.millis().saturating_add(lifetime);
        self.put(key, Value::Text(text.to_vec()), Some(expires));
    }

    fn put(&mut self, key: &[u8], value: Value, expires: Option<u64>) {
        self.entries.insert(key.to_vec(), Entry { value, expires });
    }

    /// Whether there was such a key.
    pub(super) fn remove(&mut self, key: &[u8]) -> bool {
        self.has(key) && self.entries.remove(key).is_some()
    }

    /// Lets a key expire after so many milliseconds. Returns whether there is such a key.
    pub(super) fn expire(&mut self, key: &[u8], lifetime: u64) -> bool {
        let expires = self.millis().saturating_add(lifetime);
        self.entry(key).is_some_and(|entry| {
            entry.expires = Some(expires);
            true
        })
    }

    /// How many milliseconds a key is still there: -1 if it does not expire, -2 if there is none.
    pub(super) fn left(&mut self, key: &[u8]) -> i64 {
        let now = self.millis();
        let Some(entry) = self.entry(key) else { return -2 };
        entry.expires.map_or(-1, |expires| i64::try_from(expires.saturating_sub(now)).unwrap_or(i64::MAX))
    }

    pub(super) fn retain(&mut self, keeps: impl Fn(&[u8]) -> bool) {
        self.entries.retain(|key, _| keeps(key));
    }

    /// The keys that have not expired.
    pub(super) fn keys(&self) -> Vec<String> {
        let now = self.millis();
        let there = self.entries.iter().filter(|(_, entry)| entry.expires.is_none_or(|expires| now <= expires));
        there.map(|(key, _)| String::from_utf8_lossy(key).into_owned()).collect()
    }
}
