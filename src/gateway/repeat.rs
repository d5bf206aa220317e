//! The short way: a request whose head has come before, byte for byte, asks what it asked then, and isn't read again.
//! It begins where memory is looked up; if there is no fresh answer for its caller, it goes the whole way after all.
//!
//! What is remembered of a head is what reading it tells, each time the same. Nothing that is decided anew for each
//! request is skipped: the mode, the grant, what is kept, whether it is fresh. No credential is remembered, and no
//! signed request, for a signature counts for a while only.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError, Weak};

use bytes::Bytes;
use http::request::Parts;

use super::{Asked, Connection, Gateway, Live, Question};
use crate::config::Mode;
use crate::reply::compose;
use crate::request::caller::Credential;
use crate::request::head::{self, Fingerprint};
use crate::telemetry::record::{self, Record};
use crate::telemetry::repeats::Series;

/// What a longer key would take is better spent on others.
const MAX_KEY: usize = 512;

/// What reading a head has told.
pub(super) struct Known {
    asked: Arc<Asked>,
    /// For the log, if there was one.
    path: Option<Arc<str>>,
    /// By which settings it was read.
    live: Weak<Live>,
    /// By which address it came in.
    local: SocketAddr,
    series: Arc<Series>,
}

/// What a connection has heard and not yet asked.
#[derive(Default)]
pub(super) struct Hearing(Mutex<Heard>);

#[derive(Clone, Copy, Default)]
enum Heard {
    /// Nothing.
    #[default]
    Nothing,
    /// A whole head, and its fingerprint if it came in one piece.
    Head(Option<Fingerprint>),
    /// A request that more may belong to than its head, or nobody knows what.
    More,
}

impl Connection {
    /// Notes that a whole head has come and is going to be read. Its fingerprint is told if it came in one piece.
    pub fn hears(&self, head: Option<Fingerprint>) {
        *self.hearing.0.lock().unwrap_or_else(PoisonError::into_inner) = Heard::Head(head);
    }

    /// Notes that from now on it isn't known which bytes a request was read from. What looked like a whole head may not
    /// have been one (blank lines before a request are not), and is not to be taken for the request that follows it.
    pub fn loses_track(&self) {
        *self.hearing.0.lock().unwrap_or_else(PoisonError::into_inner) = Heard::More;
    }

    /// Whether what comes next begins a request, for each head that has come has become one, and was all of it.
    pub fn is_between_requests(&self) -> bool {
        matches!(*self.hearing.0.lock().unwrap_or_else(PoisonError::into_inner), Heard::Nothing)
    }

    /// The fingerprint of the request that was read now, if it would ask for the same if it came again.
    pub(super) fn asks(&self, head: &Parts, has_body: bool) -> Option<Fingerprint> {
        let mut heard = self.hearing.0.lock().unwrap_or_else(PoisonError::into_inner);
        let Heard::Head(fingerprint) = *heard else { return None };
        *heard = if has_body || !head::is_all(head) { Heard::More } else { Heard::Nothing };
        fingerprint.filter(|_| !has_body && head::is_repeatable(head))
    }
}

impl Gateway {
    /// The fingerprint of a head.
    pub fn fingerprint(&self, head: &[u8]) -> Fingerprint {
        self.fingerprints.of(head)
    }

    /// Remembers what a head asks, if that was answered as it may be again.
    pub(super) fn learn(&self, head: Fingerprint, question: &Question, record: &Record, connection: &Connection) {
        let Question { live, credential: Credential::Token(_), asked } = question else { return };
        if asked.key.size() <= MAX_KEY {
            let (asked, path, live) = (Arc::clone(asked), record.path().cloned(), Arc::downgrade(live));
            let series = self.repeats.of(&self.metrics, asked.key.operation());
            self.heads.insert(head, Arc::new(Known { asked, path, live, local: connection.local, series }));
        }
    }

    /// Answers a request whose head has come before: writes the answer's head, and gives its body and the request's record.
    /// None if it has not come before, or has to go the whole way.
    pub fn repeat(&self, head: &Fingerprint, connection: &Connection, text: &mut Vec<u8>) -> Option<(Bytes, Record)> {
        let known = self.heads.get(head)?;
        // The log may have begun to tell of requests since.
        if known.path.is_none() && record::is_logged() {
            return None;
        }
        if !self.is_in_force(&known.live) || known.local != connection.local || self.mode() == Mode::Bypass {
            return None;
        }
        let now = self.clock.now();
        let entry = self.fresh(&known.asked, now)?;
        entry.hit();
        let (metrics, clock) = (Arc::clone(&self.metrics), self.clock.clone());
        let what = (known.path.as_ref(), &**known.asked.key.operation(), &known.series);
        let record = Record::repeat(metrics, clock, now, self.request_ids.next(), what);
        compose::write_hit(&entry, now, record.request_id(), text);
        Some((entry.body().clone(), record))
    }
}
