//! An answer that is kept: its body byte for byte, its head made ready, and its life.

use bytes::Bytes;
use http::header::{AGE, CONTENT_LENGTH, SET_COOKIE};
use http::{HeaderMap, HeaderValue};

use super::freshness::Life;
use crate::request::X_REQUEST_ID;

/// A kept answer. Its status is 200.
#[derive(Debug)]
pub struct Entry {
    head: HeaderMap,
    body: Bytes,
    life: Life,
}

impl Entry {
    /// Makes an entry of an answer's end-to-end headers and its whole body.
    pub fn new(mut head: HeaderMap, body: Bytes, life: Life) -> Self {
        // These belong to one answer, or are told anew with each.
        for name in [SET_COOKIE, X_REQUEST_ID, AGE] {
            head.remove(name);
        }
        head.insert(CONTENT_LENGTH, HeaderValue::from(body.len()));
        Self { head, body, life }
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
