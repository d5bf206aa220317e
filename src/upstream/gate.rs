//! The gate before upstream: it limits the number of concurrent calls and queues the others.
//!
//! [`schedule`] decides which call is next, and does no I/O. This file implements the waiting. A call has a ticket as
//! long as its [`Permit`], or the future that waits for one, exists. A call that stops waiting drops the future. Then
//! its ticket must be removed everywhere.

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

/// How many calls to one service may have a call slot at a time.
#[derive(Clone, Copy, Debug)]
pub(crate) struct GateLimits {
    /// In total: the number of call slots.
    pub calls: usize,
    /// Of one caller, including those that wait for calls of other callers.
    pub per_caller: usize,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct GateUsage {
    /// The calls that have a slot.
    pub under_way: usize,
    /// The calls that wait for a slot.
    pub queued: usize,
}

/// The order in which calls are served. The first class is served first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, IntoStaticStr, VariantArray)]
#[strum(const_into_str, serialize_all = "kebab-case")]
pub(crate) enum Class {
    /// A product list has proved the caller within the last hour.
    Proved,
    /// Upstream has successfully answered a relayed request of the caller below a project, but no product list has
    /// proved it.
    Relayed,
    /// Neither. The number of such callers is unlimited, because anyone can invent tokens.
    Unknown,
    /// The client has closed its sending side and may have disconnected. This applies to callers of all kinds.
    HalfClosed,
    /// The gateway itself makes the call, to keep a response warm. No client waits for it.
    KeepWarm,
}

/// The client that makes a call.
#[derive(Clone, Copy, Debug)]
pub(crate) struct GateClient {
    /// `None` without a token and without a signature that the gateway verifies.
    pub caller: Option<Caller>,
    /// `None` if clients are not distinguished by address.
    pub peer: Option<Peer>,
    /// A unique number of the connection within this process.
    pub connection: u64,
}

/// A caller, a peer address or a connection. Each client is up to three parties, and the slots of each are counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Party {
    Caller(Caller),
    Peer(Peer),
    Connection(u64),
}

impl GateClient {
    /// The party that [`GateLimits::per_caller`] applies to: the caller, or the connection if there is no caller.
    fn identity(&self) -> Party {
        self.caller.map_or(Party::Connection(self.connection), Party::Caller)
    }

    fn parties(&self) -> impl Iterator<Item = Party> {
        let (caller, peer) = (self.caller.map(Party::Caller), self.peer.map(Party::Peer));
        [caller, peer, Some(Party::Connection(self.connection))].into_iter().flatten()
    }

    /// The parties by which the clients of a class are distinguished. The first is one that a client cannot invent.
    fn path(&self, class: Class) -> Vec<Party> {
        let connection = Party::Connection(self.connection);
        let peer = self.peer.map(Party::Peer);
        let path = match class {
            Class::Proved | Class::Relayed => [Some(self.identity()), peer, Some(connection)],
            Class::Unknown | Class::HalfClosed | Class::KeepWarm => [peer, Some(connection), Some(self.identity())],
        };
        path.into_iter().flatten().collect()
    }
}

/// Identifies a call. Tickets are numbered in order of arrival.
type Ticket = u64;

/// The gate before all services. The limits apply to each service separately.
pub(crate) struct Gate {
    limits: GateLimits,
    /// At most one for each service of the catalogue.
    service_gates: Mutex<HashMap<Service, Arc<ServiceGate>>>,
}

impl Gate {
    pub(crate) fn new(limits: GateLimits) -> Self {
        Self { limits, service_gates: Mutex::default() }
    }

    /// Waits for a call slot. The future may be dropped at any time.
    pub(crate) async fn enter(&self, service: Service, client: GateClient, class: Class) -> Permit {
        let service_gate = self.service_gate(service);
        let (start, started) = oneshot::channel();
        let ticket = {
            let mut state = service_gate.state();
            let ticket = state.schedule.add(client, class);
            state.waiting.insert(ticket, start);
            state.start_calls();
            ticket
        };
        let permit = Permit { service_gate, ticket };
        // The sender is dropped only after it has sent, or together with this permit. So this cannot fail.
        let _ = started.await;
        permit
    }

    /// As [`Gate::enter`], for a client that may close its sending side, or has done so. A call of such a client waits
    /// in the class [`Class::HalfClosed`]. If it already has a slot, it is moved to that class if there is room, and
    /// else waits for another slot.
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
            if let Some(permit) = entered.filter(|permit| half_close.may_keep_slot(permit.half_close_handler())) {
                return permit;
            }
        }
        self.enter(service, client, Class::HalfClosed).await
    }

    /// Whether another call of a client would have to wait because of calls that the client already has.
    pub(crate) fn has_to_wait(&self, service: Service, client: GateClient) -> bool {
        self.service_gate(service).state().schedule.has_to_wait(client)
    }

    pub(crate) fn usage(&self, service: Service, class: Class) -> GateUsage {
        self.service_gate(service).state().schedule.usage(class)
    }

    /// The services to which there has been a call.
    pub(crate) fn services(&self) -> Vec<Service> {
        self.service_gates().keys().copied().collect()
    }

    fn service_gate(&self, service: Service) -> Arc<ServiceGate> {
        let new = || {
            let state = ServiceGateState { schedule: Schedule::new(self.limits), waiting: HashMap::new() };
            Arc::new(ServiceGate(Mutex::new(state)))
        };
        Arc::clone(self.service_gates().entry(service).or_insert_with(new))
    }

    fn service_gates(&self) -> MutexGuard<'_, HashMap<Service, Arc<ServiceGate>>> {
        self.service_gates.lock()
    }
}

struct ServiceGate(Mutex<ServiceGateState>);

struct ServiceGateState {
    schedule: Schedule,
    /// Notifies waiting calls that they have a slot.
    waiting: HashMap<Ticket, oneshot::Sender<()>>,
}

impl ServiceGate {
    fn state(&self) -> MutexGuard<'_, ServiceGateState> {
        self.0.lock()
    }
}

impl ServiceGateState {
    /// Starts all calls that can have a slot.
    fn start_calls(&mut self) {
        while let Some(ticket) = self.schedule.start_next() {
            if let Some(start) = self.waiting.remove(&ticket) {
                // If the receiver was just dropped, its permit will take the lock and pass the slot on.
                let _ = start.send(());
            }
        }
    }
}

/// A call slot, or a place in the queue until the slot is assigned. Dropping it ends the call.
#[must_use = "the call is under way as long as this is held"]
pub(crate) struct Permit {
    service_gate: Arc<ServiceGate>,
    ticket: Ticket,
}

impl Permit {
    /// Returns a closure that moves this call to [`Class::HalfClosed`]. The closure returns `false` if the slot must be
    /// released.
    fn half_close_handler(&self) -> impl Fn() -> bool + Send + 'static {
        let (service_gate, ticket) = (Arc::downgrade(&self.service_gate), self.ticket);
        move || {
            service_gate.upgrade().is_none_or(|service_gate| {
                let mut state = service_gate.state();
                let may_keep_slot = state.schedule.move_to_half_closed(ticket);
                state.start_calls();
                may_keep_slot
            })
        }
    }

    /// Returns a body that ends the call when it ends or is dropped.
    pub(crate) fn hold(self, body: StreamBody) -> StreamBody {
        PermittedBody { body, permit: Some(self) }.boxed_unsync()
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        let mut state = self.service_gate.state();
        state.waiting.remove(&self.ticket);
        state.schedule.remove(self.ticket);
        state.start_calls();
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
        // The reader of the last frame may never poll again.
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
