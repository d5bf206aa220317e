//! An answer that is kept: its body byte for byte, its head made ready, and its life.

use bytes::Bytes;
use http::header::{AGE, CONTENT_LENGTH, SET_COOKIE};
use http::{HeaderMap, HeaderValue, Response, StatusCode};

use super::freshness::Life;
use super::tripwire::Views;
use crate::request::{X_REQUEST_ID, copied};

/// A kept answer.
#[derive(Debug)]
pub struct Entry {
    status: StatusCode,
    head: HeaderMap,
    body: Bytes,
    life: Life,
    /// The answers that led up to this one.
    pub(super) views: Views,
}

impl Entry {
    /// Makes an entry of a whole answer with end-to-end headers only.
    ///
    /// Head and body are copied: off the wire they are slices of a read buffer, which would be held whole
    /// for as long as the entry lives, and counted by nobody.
    pub fn new(answer: &Response<Bytes>, life: Life) -> Self {
        let (head, body) = (answer.headers(), answer.body());
        // These belong to one answer, or are told anew with each.
        let told_anew = [SET_COOKIE, X_REQUEST_ID, AGE, CONTENT_LENGTH];
        let kept = head.iter().filter(|(name, _)| !told_anew.contains(name));
        let mut head: HeaderMap = HeaderMap::with_capacity(head.len());
        for (name, value) in kept {
            head.append(name, copied(value));
        }
        head.insert(CONTENT_LENGTH, HeaderValue::from(body.len()));
        Self { status: answer.status(), head, body: Bytes::copy_from_slice(body), life, views: Views::default() }
    }

    /// Its status.
    pub fn status(&self) -> StatusCode {
        self.status
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
        size_of::<Self>() + head + self.body.len() + self.views.size()
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
        let mut answer = Response::new(buffer.slice(..5));
        let head = answer.headers_mut();
        head.append("x-a", HeaderValue::from_maybe_shared(buffer.slice(..9)).unwrap());
        head.append("x-a", HeaderValue::from_static("second"));
        head.append(SET_COOKIE, HeaderValue::from_static("a=1"));
        let none = Duration::ZERO;
        let life = Life { sent: Clock::System.now(), initial_age: none, ttl: none, stale_if_error: none };
        let entry = Entry::new(&answer, life);
        drop(answer);
        assert!(buffer.is_unique(), "the entry holds on to the buffer");
        assert_eq!(entry.body(), "xxxxx");
        let values: Vec<_> = entry.head().get_all("x-a").iter().collect();
        assert_eq!(values, ["xxxxxxxxx", "second"]);
        assert!(!entry.head().contains_key(SET_COOKIE));
    }
}
