//! The live tail: completed requests, as they end, for the few operators that read it. Whether the access log is on does
//! not matter. While nobody reads, a request costs one read of an atomic.
//!
//! Requests never wait for a reader. Each reader has a queue of fixed length; what does not fit is dropped and counted.

use std::fmt::Display;
use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::{Duration, SystemTime};

use http::StatusCode;
use serde::Serialize;
use tokio::sync::mpsc;
use tracing::field::DisplayValue;

use super::completed::{CompletedRequest, Description};
use super::fields::with_fields;
use super::outcome::Outcome;
use crate::clock::Clock;
use crate::request::digest::ShortDigest;
use crate::sync::RwLock;

/// How many readers there may be.
pub(crate) const MAX_READERS: usize = 4;

/// How many events wait for a reader. An event has at most about 2 KiB, so all queues together have at most 2 MiB.
pub(crate) const MAX_WAITING: usize = 256;

/// Which requests a reader wants. An empty list, or nothing, is all of them.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct TailFilter {
    /// Values of the label `operation`.
    pub operations: Vec<String>,
    pub results: Vec<Outcome>,
    pub statuses: Vec<StatusFilter>,
    /// The digest of a caller.
    pub caller: Option<String>,
    pub client: Option<IpAddr>,
    /// They take longer than this.
    pub slow: Option<Duration>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum StatusFilter {
    /// Its first digit.
    Class(u16),
    Is(u16),
    /// The client disconnected before there was a response.
    None,
}

impl StatusFilter {
    fn takes(self, status: Option<StatusCode>) -> bool {
        let status = status.map(|status| status.as_u16());
        match self {
            Self::Class(digit) => status.is_some_and(|status| status / 100 == digit),
            Self::Is(wanted) => status == Some(wanted),
            Self::None => status.is_none(),
        }
    }
}

impl TailFilter {
    fn takes(&self, request: &CompletedRequest<'_>, client: IpAddr) -> bool {
        let Self { operations, results, statuses, caller, slow, .. } = self;
        (operations.is_empty() || operations.iter().any(|wanted| wanted == request.operation))
            && (results.is_empty() || results.contains(&request.outcome))
            && (statuses.is_empty() || statuses.iter().any(|wanted| wanted.takes(request.status)))
            && caller.as_deref().is_none_or(|wanted| request.caller.as_ref().map(ShortDigest::as_str) == Some(wanted))
            && self.client.is_none_or(|wanted| wanted.to_canonical() == client.to_canonical())
            && slow.is_none_or(|slow| request.took > slow)
    }
}

pub(crate) struct Tail {
    clock: Clock,
    reader_count: AtomicUsize,
    queues: RwLock<Vec<Arc<Queue>>>,
}

struct Queue {
    filter: TailFilter,
    events: mpsc::Sender<Queued>,
    /// So many were dropped since the last one that fitted.
    dropped: AtomicU64,
}

/// A request in a queue.
struct Queued {
    /// So many were dropped before it.
    dropped: u64,
    request: Arc<str>,
}

/// What a reader gets next.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum TailEvent {
    /// A request, as JSON in one line.
    Request(Arc<str>),
    /// So many requests were dropped here, because the reader was too slow.
    Dropped(u64),
}

/// A reader of the tail. Its place is free again when it is dropped.
pub(crate) struct TailReader {
    tail: Arc<Tail>,
    queue: Arc<Queue>,
    events: mpsc::Receiver<Queued>,
    /// A request that comes after what was dropped before it.
    waiting: Option<TailEvent>,
}

impl Tail {
    pub(super) fn new(clock: Clock) -> Self {
        Self { clock, reader_count: AtomicUsize::new(0), queues: RwLock::default() }
    }

    /// Whether somebody reads.
    pub(super) fn is_read(&self) -> bool {
        self.reader_count.load(Ordering::Relaxed) > 0
    }

    /// Begins to read. `None` if there are [`MAX_READERS`].
    pub(crate) fn read(self: &Arc<Self>, filter: TailFilter) -> Option<TailReader> {
        let (sender, events) = mpsc::channel(MAX_WAITING);
        let queue = Arc::new(Queue { filter, events: sender, dropped: AtomicU64::new(0) });
        let mut queues = self.queues.write();
        if queues.len() >= MAX_READERS {
            return None;
        }
        queues.push(Arc::clone(&queue));
        self.reader_count.store(queues.len(), Ordering::Relaxed);
        Some(TailReader { tail: Arc::clone(self), queue, events, waiting: None })
    }

    /// Passes a request to those who want it. A request that began before somebody read has no description, and is left
    /// out.
    pub(super) fn send(&self, request: &CompletedRequest<'_>) {
        let Some(description) = request.description.filter(|_| self.is_read()) else { return };
        let mut event = None;
        for queue in self.queues.read().iter().filter(|queue| queue.filter.takes(request, description.client)) {
            let event =
                event.get_or_insert_with(|| -> Arc<str> { to_json(request, description, self.clock.date()).into() });
            let dropped = queue.dropped.swap(0, Ordering::Relaxed);
            if queue.events.try_send(Queued { dropped, request: Arc::clone(event) }).is_err() {
                queue.dropped.fetch_add(dropped + 1, Ordering::Relaxed);
            }
        }
    }
}

impl TailReader {
    /// Waits for the next event. What was dropped is told before what came later.
    pub(crate) async fn next(&mut self) -> TailEvent {
        if let Some(event) = self.waiting.take().or_else(|| self.dropped()) {
            return event;
        }
        match self.events.recv().await {
            Some(queued) => self.event(queued),
            // Cannot happen: `self` has the queue with the sender.
            None => std::future::pending().await,
        }
    }

    /// The next event that is there already.
    pub(crate) fn try_next(&mut self) -> Option<TailEvent> {
        if let Some(event) = self.waiting.take() {
            return Some(event);
        }
        match self.events.try_recv() {
            Ok(queued) => Some(self.event(queued)),
            Err(_) => self.dropped(),
        }
    }

    /// What was dropped before a request, if anything was, and else the request.
    fn event(&mut self, Queued { dropped, request }: Queued) -> TailEvent {
        if dropped == 0 {
            return TailEvent::Request(request);
        }
        self.waiting = Some(TailEvent::Request(request));
        TailEvent::Dropped(dropped)
    }

    /// What was dropped at the end of the queue, when that has been read.
    fn dropped(&self) -> Option<TailEvent> {
        if !self.events.is_empty() || self.queue.dropped.load(Ordering::Relaxed) == 0 {
            return None;
        }
        let dropped = self.queue.dropped.swap(0, Ordering::Relaxed);
        (dropped > 0).then_some(TailEvent::Dropped(dropped))
    }
}

impl Drop for TailReader {
    fn drop(&mut self) {
        let mut queues = self.tail.queues.write();
        queues.retain(|queue| !Arc::ptr_eq(queue, &self.queue));
        self.tail.reader_count.store(queues.len(), Ordering::Relaxed);
    }
}

/// A request as JSON, in one line: JSON has no line breaks within strings.
fn to_json(request: &CompletedRequest<'_>, description: &Description, date: SystemTime) -> String {
    let since = date.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    let mut text = format!("{{\"time_ms\":{}", since.as_millis());
    macro_rules! add {
        ($($name:ident = $value:expr,)*) => { $( add(&mut text, stringify!($name), &$value); )* };
    }
    with_fields!(add, request, description);
    text + "}"
}

fn add(text: &mut String, name: &str, value: &impl Field) {
    let Some(json) = value.to_json() else { return };
    *text += ",\"";
    *text += name;
    *text += "\":";
    *text += &json;
}

/// A value of a field. `None` if the field is left out.
trait Field {
    fn to_json(&self) -> Option<String>;
}

fn json(value: &(impl Serialize + ?Sized)) -> Option<String> {
    serde_json::to_string(value).ok()
}

macro_rules! plain_fields {
    ($($type:ty)*) => { $(impl Field for $type {
        fn to_json(&self) -> Option<String> {
            json(self)
        }
    })* };
}

plain_fields! { bool f64 u16 u64 &str String }

impl<T: Field> Field for Option<T> {
    fn to_json(&self) -> Option<String> {
        self.as_ref().and_then(Field::to_json)
    }
}

impl<T: Display> Field for DisplayValue<T> {
    fn to_json(&self) -> Option<String> {
        json(&format!("{self:?}"))
    }
}

#[cfg(test)]
mod tests {
    use http::{HeaderMap, Version};

    use super::super::completed::Heading;
    use super::*;

    #[test]
    fn what_was_dropped_is_told_in_its_place() {
        let clock = Clock::System;
        let tail = Arc::new(Tail::new(clock.clone()));
        let mut reader = tail.read(TailFilter::default()).unwrap();
        let heading = Arc::new(Heading::new("/", &HeaderMap::new()));
        let description = Description::new([127, 0, 0, 1].into(), heading, ("GET", Version::HTTP_11), None);
        let send = |id: &str| {
            tail.send(&CompletedRequest {
                request_id: id,
                operation: "none",
                outcome: Outcome::Refused,
                miss: None,
                caller: None,
                key: None,
                detail: None,
                failure: None,
                status: Some(StatusCode::NOT_FOUND),
                ended: clock.timer_now(),
                took: Duration::ZERO,
                sent_bytes: 0,
                is_complete: true,
                description: Some(&description),
            });
        };
        (0..MAX_WAITING + 3).for_each(|_| send("before"));
        assert!(matches!(reader.try_next(), Some(TailEvent::Request(_))));
        // There is room for one.
        ["after", "last"].into_iter().for_each(send);
        let mut events = std::iter::from_fn(|| reader.try_next());
        let is = |event: Option<TailEvent>, id: &str| matches!(event, Some(TailEvent::Request(json)) if json.contains(&format!("\"request_id\":\"{id}\"")));
        assert!((1..MAX_WAITING).all(|_| is(events.next(), "before")));
        assert_eq!(events.next(), Some(TailEvent::Dropped(3)));
        assert!(is(events.next(), "after"));
        assert_eq!((events.next(), events.next()), (Some(TailEvent::Dropped(1)), None));
    }
}
