//! An answer that is kept: its body byte for byte, its head made ready, and its life.

use bytes::Bytes;
use http::header::{AGE, CONTENT_LENGTH, SET_COOKIE};
use http::{HeaderMap, HeaderValue};

use super::freshness::Life;
use crate::request::{X_REQUEST_ID, copied};

/// A kept answer. Its status is 200.
#[derive(Debug)]
pub struct Entry {
    head: HeaderMap,
    body: Bytes,
    life: Life,
}

impl Entry {
    /// Makes an entry of an answer's end-to-end headers and its whole body.
    ///
    /// Both are copied: off the wire they are slices of a read buffer, which would be held whole for
    /// as long as the entry lives, and counted by nobody.
    pub fn new(head: &HeaderMap, body: &[u8], life: Life) -> Self {
        // These belong to one answer, or are told anew with each.
        let told_anew = [SET_COOKIE, X_REQUEST_ID, AGE, CONTENT_LENGTH];
        let kept = head.iter().filter(|(name, _)| !told_anew.contains(name));
        let mut head: HeaderMap = HeaderMap::with_capacity(head.len());
        for (name, value) in kept {
            head.append(name, copied(value));
        }
        head.insert(CONTENT_LENGTH, HeaderValue::from(body.len()));
        Self { head, body: Bytes::copy_from_slice(body), life }
    }

    /// The headers every answer made of this entry has.
    pub fn head(&self) -> &HeaderMap {
        &self.head
    }

    /// The body, as upstream sent it.
    pub fn body(&self) -> &Bytes {
        &self.body
    }

    /// Its life.
    pub fn life(&self) -> Life {
        self.life
    }

    /// Bytes of memory it holds, roughly.
    pub fn size(&self) -> usize {
        let head: usize = self.head.iter().map(|(name, value)| name.as_str().len() + value.len()).sum();
        size_of::<Self>() + head + self.body.len()
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::clock::Clock;

    #[test]
    fn an_entry_holds_no_read_buffer() {
        let buffer = Bytes::from(vec![b'x'; 1 << 20]);
        let mut head = HeaderMap::new();
        head.append("x-a", HeaderValue::from_maybe_shared(buffer.slice(..9)).unwrap());
        head.append("x-a", HeaderValue::from_static("second"));
        head.append(SET_COOKIE, HeaderValue::from_static("a=1"));
        let life = Life { sent: Clock::System.now(), initial_age: Duration::ZERO, ttl: Duration::ZERO };
        let entry = Entry::new(&head, &buffer.slice(..5), life);
        drop(head);
        assert!(buffer.is_unique(), "the entry holds on to the buffer");
        assert_eq!(entry.body(), "xxxxx");
        let values: Vec<_> = entry.head().get_all("x-a").iter().collect();
        assert_eq!(values, ["xxxxxxxxx", "second"]);
        assert!(!entry.head().contains_key(SET_COOKIE));
    }
}
