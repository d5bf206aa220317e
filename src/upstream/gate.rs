//! The gate before upstream: how many calls may be under way at a time, and whose turn it is.
//!
//! Three bounds, and each is a queue in order of arrival: a caller's own, that of all strangers
//! together, and the service's. They are passed in this order, so that who asks for too much waits
//! behind itself alone and holds no place that others could use. A stranger is a caller whom upstream
//! has not proved: tokens can be made up without end, so all of them together never get more than half.
//!
//! It knows no time: whoever gives up waiting drops the future, and nothing is left of it.

use std::collections::HashMap;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use http_body_util::BodyExt;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::catalogue::Service;
use crate::request::caller::Caller;
use crate::stream::{BoxError, StreamBody};

/// How many calls may be under way to one service.
#[derive(Clone, Copy, Debug)]
pub struct Bounds {
    /// At all.
    pub calls: usize,
    /// Of one caller.
    pub per_caller: usize,
}

/// How many calls there are to one service.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    /// Those that have been let through.
    pub under_way: usize,
    /// Those that wait for their turn.
    pub queued: usize,
}

/// The gate before all services. What goes through one of its sides is not bounded by another.
pub struct Gate {
    bounds: Bounds,
    /// As many as the catalogue has services, at most.
    sides: Mutex<HashMap<Service, Arc<Side>>>,
}

impl Gate {
    /// With the same bounds for each service.
    pub fn new(bounds: Bounds) -> Self {
        Self { bounds, sides: Mutex::default() }
    }

    /// Waits for the turn of a caller's call; those without a credential are one caller. May be given
    /// up at any time.
    pub async fn enter(&self, service: Service, caller: impl Into<Option<Caller>>, is_known: bool) -> Permit {
        let side = self.side(service);
        let place = Place::take(&side, caller.into());
        // None of them is ever closed, so there is no turn that doesn't come.
        let own = Arc::clone(&place.turns).acquire_owned().await.ok();
        let strangers = match is_known {
            true => None,
            false => Arc::clone(&side.strangers).acquire_owned().await.ok(),
        };
        let service = Arc::clone(&side.calls).acquire_owned().await.ok();
        Permit { _turns: [service, strangers, own], _place: place }
    }

    /// Whether a caller has as many calls under way as it may, so that another has to wait for these.
    pub fn is_full_for(&self, service: Service, caller: Caller) -> bool {
        let side = self.side(service);
        side.callers().get(&Some(caller)).is_some_and(|own| own.turns.available_permits() == 0)
    }

    /// How many calls there are to a service.
    pub fn usage(&self, service: Service) -> Usage {
        let side = self.side(service);
        let present: usize = side.callers().values().map(|place| place.calls).sum();
        let under_way = side.bounds.calls.saturating_sub(side.calls.available_permits());
        Usage { under_way, queued: present.saturating_sub(under_way) }
    }

    /// The services of which there has been a call so far.
    pub fn services(&self) -> Vec<Service> {
        self.sides().keys().copied().collect()
    }

    fn side(&self, service: Service) -> Arc<Side> {
        let new = || Arc::new(Side::new(self.bounds));
        Arc::clone(self.sides().entry(service).or_insert_with(new))
    }

    fn sides(&self) -> MutexGuard<'_, HashMap<Service, Arc<Side>>> {
        self.sides.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The right to one call, until it is dropped.
#[must_use = "the call is under way as long as this is held"]
pub struct Permit {
    _turns: [Option<OwnedSemaphorePermit>; 3],
    // Last, for a place is given up when nothing is held there any more.
    _place: Place,
}

impl Permit {
    /// A body whose end, or whose being given up, ends the call.
    pub fn hold(self, body: StreamBody) -> StreamBody {
        Held { body, permit: Some(self) }.boxed_unsync()
    }
}

struct Held {
    body: StreamBody,
    permit: Option<Permit>,
}

impl Body for Held {
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

/// The gate before one service.
struct Side {
    bounds: Bounds,
    calls: Arc<Semaphore>,
    strangers: Arc<Semaphore>,
    /// The callers that have calls under way or queued, and no others.
    callers: Mutex<HashMap<Option<Caller>, Turns>>,
}

/// Where one caller's calls wait for one another.
struct Turns {
    turns: Arc<Semaphore>,
    /// How many are under way or queued.
    calls: usize,
}

impl Side {
    fn new(bounds: Bounds) -> Self {
        let semaphore = |permits: usize| Arc::new(Semaphore::new(permits.min(Semaphore::MAX_PERMITS)));
        Self {
            bounds,
            calls: semaphore(bounds.calls),
            strangers: semaphore(bounds.calls.div_ceil(2)),
            callers: Mutex::default(),
        }
    }

    fn callers(&self) -> MutexGuard<'_, HashMap<Option<Caller>, Turns>> {
        self.callers.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A call's place among those of its caller.
struct Place {
    side: Arc<Side>,
    caller: Option<Caller>,
    turns: Arc<Semaphore>,
}

impl Place {
    fn take(side: &Arc<Side>, caller: Option<Caller>) -> Self {
        let mut callers = side.callers();
        let own = callers
            .entry(caller)
            .or_insert_with(|| Turns { turns: Arc::new(Semaphore::new(side.bounds.per_caller)), calls: 0 });
        own.calls += 1;
        Self { side: Arc::clone(side), caller, turns: Arc::clone(&own.turns) }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut callers = self.side.callers();
        if let Some(own) = callers.get_mut(&self.caller) {
            own.calls -= 1;
            if own.calls == 0 {
                callers.remove(&self.caller);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::future::Future;
    use std::task::Waker;

    use http::HeaderValue;

    use super::*;
    use crate::request::caller::Callers;

    const WORKSPACE: Service = Service::Workspace;

    fn caller(name: &str) -> Caller {
        Callers::new([1; 32]).of_token(&HeaderValue::from_str(name).unwrap())
    }

    fn gate(calls: usize, per_caller: usize) -> Gate {
        Gate::new(Bounds { calls, per_caller })
    }

    fn usage(under_way: usize, queued: usize) -> Usage {
        Usage { under_way, queued }
    }

    /// A call that has come to the gate.
    type Entering<'g> = Pin<Box<dyn Future<Output = Permit> + 'g>>;

    /// Has a call come to the gate. It is in the queue when this returns, or through.
    fn come(gate: &Gate, caller: impl Into<Option<Caller>>, is_known: bool) -> Result<Permit, Entering<'_>> {
        let caller = caller.into();
        let mut entering: Entering = Box::pin(gate.enter(WORKSPACE, caller, is_known));
        through(&mut entering).ok_or(entering)
    }

    /// Whether it is a queued call's turn.
    fn through(entering: &mut Entering) -> Option<Permit> {
        match entering.as_mut().poll(&mut Context::from_waker(Waker::noop())) {
            Poll::Ready(permit) => Some(permit),
            Poll::Pending => None,
        }
    }

    #[test]
    fn a_caller_that_loops_delays_itself_alone() {
        let gate = gate(4, 2);
        let mut looping: Vec<_> = (0..1000).map(|_| come(&gate, caller("looping"), true)).collect();
        assert_eq!(looping.iter().filter(|call| call.is_ok()).count(), 2);
        assert_eq!(gate.usage(WORKSPACE), usage(2, 998));
        let others = [come(&gate, caller("other"), true), come(&gate, None, true)];
        assert!(others.iter().all(Result::is_ok));
        // In order of arrival among its own, as one ends.
        drop(looping.remove(0));
        let Err(third) = &mut looping[1] else { panic!("three of one caller") };
        let third = through(third);
        assert!(third.is_some());
        let Err(fourth) = &mut looping[2] else { panic!("four of one caller") };
        assert!(through(fourth).is_none());
    }

    #[test]
    fn strangers_never_get_all_of_it() {
        let gate = gate(5, 2);
        let names: Vec<String> = (0..100).map(|number| number.to_string()).collect();
        let strangers: Vec<_> = names.iter().map(|name| come(&gate, caller(name), false)).collect();
        assert_eq!(strangers.iter().filter(|call| call.is_ok()).count(), 3);
        let known: Vec<_> = (0..3).map(|_| come(&gate, caller("known"), true)).collect();
        assert_eq!(known.iter().filter(|call| call.is_ok()).count(), 2);
        assert_eq!(gate.usage(WORKSPACE), usage(5, 98));
    }

    #[test]
    fn whoever_came_first_is_let_through_first() {
        let gate = gate(1, 1);
        let first = come(&gate, caller("a"), true);
        let mut queued: Vec<_> = ["b", "c"].map(|name| come(&gate, caller(name), true)).into();
        drop(first);
        let Err(late) = &mut queued[1] else { panic!("two at a time") };
        assert!(through(late).is_none());
        let Err(early) = &mut queued[0] else { panic!("two at a time") };
        let early = through(early);
        assert!(early.is_some());
        drop(early);
        let Err(late) = &mut queued[1] else { panic!("two at a time") };
        assert!(through(late).is_some());
    }

    #[test]
    fn whoever_gives_up_leaves_nothing_behind() {
        let gate = gate(2, 1);
        // One waits for its own turn, one for the strangers', one for the service's.
        let own = come(&gate, caller("a"), true);
        let stranger = come(&gate, caller("b"), false);
        let given_up =
            [come(&gate, caller("a"), true), come(&gate, caller("c"), false), come(&gate, caller("d"), true)];
        assert!(given_up.iter().all(Result::is_err));
        assert_eq!(gate.usage(WORKSPACE), usage(2, 3));
        drop(given_up);
        assert_eq!(gate.usage(WORKSPACE), usage(2, 0));
        // Also when its turn has come and it doesn't look.
        let unaware = [come(&gate, caller("e"), true), come(&gate, caller("e"), true)];
        drop((own, stranger));
        drop(unaware);
        assert!(gate.side(WORKSPACE).callers().is_empty());
        assert_eq!(gate.usage(WORKSPACE), usage(0, 0));
        assert!(come(&gate, caller("a"), false).is_ok());
    }

    #[test]
    fn no_caller_is_remembered_once_its_calls_are_over() {
        let gate = gate(64, 4);
        let names: Vec<String> = (0..1000).map(|number| number.to_string()).collect();
        let calls: Vec<_> =
            names.iter().flat_map(|name| [true, false].map(|known| come(&gate, caller(name), known))).collect();
        assert_eq!(gate.side(WORKSPACE).callers().len(), 1000);
        drop(calls);
        assert!(gate.side(WORKSPACE).callers().is_empty());
        assert_eq!(gate.side(WORKSPACE).calls.available_permits(), 64);
        assert_eq!(gate.side(WORKSPACE).strangers.available_permits(), 32);
    }

    #[test]
    fn the_services_do_not_wait_for_each_other() {
        let gate = gate(1, 1);
        let _held = come(&gate, caller("a"), true);
        let mut entering: Entering = Box::pin(gate.enter(Service::AppStream, caller("a"), true));
        assert!(through(&mut entering).is_some());
        assert_eq!((gate.usage(WORKSPACE), gate.usage(Service::AppStream)), (usage(1, 0), usage(0, 0)));
    }
}
