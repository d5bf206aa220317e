//! The gate before upstream: how many calls may be under way at a time, and whose turn it is.
//!
//! Whose turn it is decides [`schedule`], which is pure. Here is what waits: a call has its ticket as long as its
//! [`Permit`] or the future that waits for one lives. Whoever gives up waiting drops the future, and nothing is left of
//! it.

mod fair_queue;
mod schedule;

use std::collections::HashMap;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use http_body_util::BodyExt;
use strum::{IntoStaticStr, VariantArray};
use tokio::sync::oneshot;

use crate::catalogue::Service;
use crate::request::caller::Caller;
use crate::request::half_close::HalfClose;
use crate::request::peer::Peer;
use crate::stream::{BoxError, StreamBody};
use crate::sync::{Mutex, MutexGuard};
use schedule::Schedule;

/// How many calls may be under way to one service.
#[derive(Clone, Copy, Debug)]
pub(crate) struct GateLimits {
    /// At all.
    pub calls: usize,
    /// Of one caller, with those that wait for others than itself.
    pub per_caller: usize,
}

/// How many calls there are to one service.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct GateUsage {
    /// Those that have been let through.
    pub under_way: usize,
    /// Those that wait for their turn.
    pub queued: usize,
}

/// The order in which calls are served. The first class is served first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, IntoStaticStr, VariantArray)]
#[strum(const_into_str, serialize_all = "kebab-case")]
pub(crate) enum Class {
    /// A product list has proved it lately.
    Proved,
    /// Upstream has answered it well below a project, but no product list has proved it lately.
    Relayed,
    /// Neither. Tokens can be invented without end, so there may be any number of these.
    Unknown,
    /// Whoever it is, the client has closed its sending side, and may have gone.
    HalfClosed,
}

/// Whose call it is.
#[derive(Clone, Copy, Debug)]
pub(crate) struct GateClient {
    /// `None` without a token and without a signature that is verified here.
    pub caller: Option<Caller>,
    /// `None` where clients are not told apart by address.
    pub peer: Option<Peer>,
    /// A number that no other connection of this process has.
    pub connection: u64,
}

/// One of the parties that a client is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Party {
    Caller(Caller),
    Peer(Peer),
    Connection(u64),
}

impl GateClient {
    /// Who is bounded by [`GateLimits::per_caller`]: the caller, or without one the connection.
    fn identity(&self) -> Party {
        self.caller.map_or(Party::Connection(self.connection), Party::Caller)
    }

    /// The parties, each once.
    fn parties(&self) -> impl Iterator<Item = Party> {
        let (caller, peer) = (self.caller.map(Party::Caller), self.peer.map(Party::Peer));
        [caller, peer, Some(Party::Connection(self.connection))].into_iter().flatten()
    }

    /// By what clients of a class are told apart: first by what cannot be made up at will.
    fn path(&self, class: Class) -> Vec<Party> {
        let connection = Party::Connection(self.connection);
        let peer = self.peer.map(Party::Peer);
        let path = match class {
            Class::Proved | Class::Relayed => [Some(self.identity()), peer, Some(connection)],
            Class::Unknown | Class::HalfClosed => [peer, Some(connection), Some(self.identity())],
        };
        path.into_iter().flatten().collect()
    }
}

/// The number of a call, in order of arrival.
type Ticket = u64;

/// The gate before all services. What goes through one of its sides is not bounded by another.
pub(crate) struct Gate {
    bounds: GateLimits,
    /// As many as the catalogue has services, at most.
    sides: Mutex<HashMap<Service, Arc<Side>>>,
}

impl Gate {
    /// With the same bounds for each service.
    pub(crate) fn new(bounds: GateLimits) -> Self {
        Self { bounds, sides: Mutex::default() }
    }

    /// Waits for the turn of a client's call. May be given up at any time.
    pub(crate) async fn enter(&self, service: Service, client: GateClient, class: Class) -> Permit {
        let side = self.side(service);
        let (turn, begun) = oneshot::channel();
        let ticket = {
            let mut side = side.state();
            let ticket = side.schedule.arrive(client, class);
            side.waiting.insert(ticket, turn);
            side.grant();
            ticket
        };
        let permit = Permit { side, ticket };
        // The sender is kept until the turn comes, so there is no turn that doesn't come.
        let _ = begun.await;
        permit
    }

    /// The same for a client that may close its sending side meanwhile, or has. Then the call waits with all such calls, and
    /// if it has its turn already it is counted among them, as far as they have room.
    pub(crate) async fn enter_unless_closed(
        &self,
        service: Service,
        client: GateClient,
        class: Class,
        half_close: &HalfClose,
    ) -> Permit {
        if !half_close.is_closed() {
            let entered = tokio::select! {
                biased;
                permit = self.enter(service, client, class) => Some(permit),
                () = half_close.closed() => None,
            };
            if let Some(permit) = entered.filter(|permit| half_close.holds(permit.gives_way())) {
                return permit;
            }
        }
        self.enter(service, client, Class::HalfClosed).await
    }

    /// Whether another call of a client would have to wait because of calls that the client has already.
    pub(crate) fn has_to_wait(&self, service: Service, client: GateClient) -> bool {
        self.side(service).state().schedule.has_to_wait(client)
    }

    /// How many calls of a class there are to a service.
    pub(crate) fn usage(&self, service: Service, class: Class) -> GateUsage {
        self.side(service).state().schedule.usage(class)
    }

    /// The services of which there has been a call so far.
    pub(crate) fn services(&self) -> Vec<Service> {
        self.sides().keys().copied().collect()
    }

    fn side(&self, service: Service) -> Arc<Side> {
        let new =
            || Arc::new(Side(Mutex::new(SideState { schedule: Schedule::new(self.bounds), waiting: HashMap::new() })));
        Arc::clone(self.sides().entry(service).or_insert_with(new))
    }

    fn sides(&self) -> MutexGuard<'_, HashMap<Service, Arc<Side>>> {
        self.sides.lock()
    }
}

/// The gate before one service.
struct Side(Mutex<SideState>);

struct SideState {
    schedule: Schedule,
    /// What tells those that wait that their turn has come.
    waiting: HashMap<Ticket, oneshot::Sender<()>>,
}

impl Side {
    fn state(&self) -> MutexGuard<'_, SideState> {
        self.0.lock()
    }
}

impl SideState {
    /// Grants what can be granted.
    fn grant(&mut self) {
        while let Some(ticket) = self.schedule.grant() {
            if let Some(turn) = self.waiting.remove(&ticket) {
                // One that has just given up waiting leaves as soon as it gets the lock, and others get its slot.
                let _ = turn.send(());
            }
        }
    }
}

/// The right to one call, until it is dropped; or, before that is granted, a place in the queue.
#[must_use = "the call is under way as long as this is held"]
pub(crate) struct Permit {
    side: Arc<Side>,
    ticket: Ticket,
}

impl Permit {
    /// Returns a closure that moves this call to the class of those whose client has closed its sending side. The closure
    /// returns `false` if the slot must be released.
    fn gives_way(&self) -> impl Fn() -> bool + Send + 'static {
        let (side, ticket) = (Arc::downgrade(&self.side), self.ticket);
        move || {
            side.upgrade().is_none_or(|side| {
                let mut side = side.state();
                let gives_way = side.schedule.give_way(ticket);
                side.grant();
                gives_way
            })
        }
    }

    /// A body whose end, or whose being given up, ends the call.
    pub(crate) fn hold(self, body: StreamBody) -> StreamBody {
        PermittedBody { body, permit: Some(self) }.boxed_unsync()
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        let mut side = self.side.state();
        side.waiting.remove(&self.ticket);
        side.schedule.leave(self.ticket);
        side.grant();
    }
}

struct PermittedBody {
    body: StreamBody,
    permit: Option<Permit>,
}

impl Body for PermittedBody {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        let this = self.get_mut();
        let frame = ready!(Pin::new(&mut this.body).poll_frame(context));
        // Whoever has the last part may never ask whether there is another.
        if this.body.is_end_stream() || !matches!(frame, Some(Ok(_))) {
            this.permit = None;
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

#[cfg(test)]
mod tests;
