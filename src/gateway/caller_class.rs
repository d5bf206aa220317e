//! The class of a caller, which decides the order in which calls are sent, and how relayed responses make a caller
//! known.
//!
//! A proof makes its caller known ([`super::settle`]). So does a relayed 2xx to GET, POST, PUT, PATCH or DELETE below a
//! project, if its body has no `error_code`. Other methods must not count: some services answer OPTIONS or HEAD without
//! checking the token. A 401 makes the caller unknown again. The class shows nobody an entry.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Instant;

use bytes::{Bytes, BytesMut};
use http::request::Parts;
use http::{Method, Response, StatusCode};
use http_body::{Body, Frame, SizeHint};
use http_body_util::BodyExt;
use tokio::runtime::Handle;

use super::memory::Memory;
use super::{ActiveConfig, CacheRequest};
use crate::budget::{Account, Purpose};
use crate::cache::admission;
use crate::cache::grants::{CallerScope, GrantState};
use crate::cache::known_callers::{KnownBy, KnownCallers};
use crate::clock::Clock;
use crate::request::caller::Caller;
use crate::request::route;
use crate::stream::{BoxError, StreamBody, nothing, peek};
use crate::upstream::gate::Class;
use crate::upstream::{MAX_PEEK, PEEK_TIMEOUT};

impl Memory {
    /// The class in which a caller's call waits for its turn.
    pub(super) fn class(&self, caller: Option<Caller>, caller_scope: Option<&CallerScope>, now: Instant) -> Class {
        let is_granted = |caller_scope| {
            let grant_state = self.grants.grant_state(caller_scope, now);
            matches!(grant_state, GrantState::Granted | GrantState::Lapsed { .. })
        };
        if caller_scope.is_some_and(is_granted) {
            return Class::Proved;
        }
        match caller.and_then(|caller| self.known_callers.get(&caller, now)) {
            Some(KnownBy::Proof) => Class::Proved,
            Some(KnownBy::Relay) => Class::Relayed,
            None => Class::Unknown,
        }
    }

    /// The class in which a call for a request waits for its turn.
    pub(super) fn class_of(&self, request: &CacheRequest, now: Instant) -> Class {
        let caller_scope = &request.lookup.caller_scope;
        self.class(Some(caller_scope.caller), Some(caller_scope), now)
    }

    /// Makes the caller known if the relayed response shows that upstream accepted it. The body is observed as it
    /// passes, and is not delayed.
    pub(super) fn make_known(
        &self,
        active: &ActiveConfig,
        caller: Caller,
        account: &Account,
        clock: &Clock,
        head: &Parts,
        response: Response<StreamBody>,
    ) -> Response<StreamBody> {
        let is_known = || self.known_callers.get(&caller, clock.now()).is_some();
        if !accepts_caller(active, head, response.status()) || is_known() {
            return response;
        }
        let known_callers = Arc::clone(&self.known_callers);
        let (account, clock, deadline) = (account.clone(), clock.clone(), clock.timer_now() + PEEK_TIMEOUT);
        let check = AcceptanceCheck { known_callers, caller, account, beginning: BytesMut::new(), clock, deadline };
        response.map(|body| check.observe(body))
    }
}

/// Whether a response with this status to this request shows that upstream accepted the caller, unless its body is an
/// error.
pub(super) fn accepts_caller(active: &ActiveConfig, head: &Parts, status: StatusCode) -> bool {
    let methods = [Method::GET, Method::POST, Method::PUT, Method::PATCH, Method::DELETE];
    status.is_success() && methods.contains(&head.method) && route::is_below_project(&active.catalogue, head.uri.path())
}

/// Makes a caller known unless the beginning of a body has an error code.
struct AcceptanceCheck {
    known_callers: Arc<KnownCallers>,
    caller: Caller,
    account: Account,
    beginning: BytesMut,
    clock: Clock,
    /// At this time the check is decided by what has arrived.
    deadline: tokio::time::Instant,
}

impl AcceptanceCheck {
    /// Observes a body as it passes. A body longer than [`MAX_PEEK`] is not observed: only a complete JSON body counts
    /// as an error.
    fn observe(self, body: StreamBody) -> StreamBody {
        if body.is_end_stream() || body.size_hint().lower() > MAX_PEEK as u64 {
            self.decide();
            return body;
        }
        ObservedBody { body, check: Some(self) }.boxed_unsync()
    }

    /// Whether more data cannot change the decision: there is too much already, or it is not the beginning of a JSON
    /// object.
    fn has_enough(&self) -> bool {
        let first = self.beginning.trim_ascii_start().first();
        self.beginning.len() >= MAX_PEEK || first.is_some_and(|&first| first != b'{')
    }

    fn decide(self) {
        if !admission::has_error_code(&self.beginning) {
            self.known_callers.relayed(self.caller);
        }
    }
}

/// A body whose beginning is collected for the check. If it is dropped early, a task reads on until the deadline, if
/// the memory budget has room for that.
struct ObservedBody {
    body: StreamBody,
    check: Option<AcceptanceCheck>,
}

impl Body for ObservedBody {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        let this = self.get_mut();
        let frame = ready!(Pin::new(&mut this.body).poll_frame(context));
        if let Some(mut check) = this.check.take() {
            let data = frame.as_ref().and_then(|frame| frame.as_ref().ok()?.data_ref());
            check.beginning.extend_from_slice(data.map_or(b"", |data| data));
            let has_ended = this.body.is_end_stream() || frame.is_none();
            match &frame {
                // The missing part could have had an error code.
                Some(Err(_)) => {}
                _ if has_ended || check.has_enough() || check.clock.timer_now() >= check.deadline => check.decide(),
                _ => this.check = Some(check),
            }
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

impl Drop for ObservedBody {
    fn drop(&mut self) {
        let (Some(mut check), Ok(runtime)) = (self.check.take(), Handle::try_current()) else { return };
        let body = std::mem::replace(&mut self.body, nothing());
        let Some(charge) = check.account.try_charge_spare(Purpose::Responses, MAX_PEEK) else { return };
        runtime.spawn(async move {
            let _charge = charge;
            let left = MAX_PEEK.saturating_sub(check.beginning.len());
            let (more, _) = peek(body, left, check.deadline.saturating_duration_since(check.clock.timer_now())).await;
            check.beginning.extend_from_slice(&more);
            check.decide();
        });
    }
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;
    use http_body_util::Full;
    use tokio::sync::mpsc;

    use super::*;
    use crate::budget::Budget;
    use crate::request::caller::Callers;
    use crate::stream::stream;

    /// A body whose parts arrive when the test sends them.
    struct ChannelBody(mpsc::Receiver<&'static str>);

    impl Body for ChannelBody {
        type Data = Bytes;
        type Error = BoxError;

        fn poll_frame(
            mut self: Pin<&mut Self>,
            context: &mut Context<'_>,
        ) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
            self.0.poll_recv(context).map(|part| part.map(|part| Ok(Frame::data(Bytes::from(part)))))
        }
    }

    struct Fixture {
        known_callers: Arc<KnownCallers>,
        caller: Caller,
    }

    impl Fixture {
        fn new() -> Self {
            let caller = Callers::new([1; 32]).of_token(&HeaderValue::from_static("t"));
            Self { known_callers: Arc::default(), caller }
        }

        fn observe(&self, body: StreamBody) -> StreamBody {
            let (known_callers, clock) = (Arc::clone(&self.known_callers), Clock::System);
            let deadline = clock.timer_now() + PEEK_TIMEOUT;
            let account = Account::open(&Budget::new(1 << 20), None);
            let (caller, beginning) = (self.caller, BytesMut::new());
            AcceptanceCheck { known_callers, caller, account, beginning, clock, deadline }.observe(body)
        }

        fn is_known(&self) -> bool {
            self.known_callers.get(&self.caller, Clock::System.now()).is_some()
        }
    }

    #[tokio::test]
    async fn a_body_without_an_error_code_makes_its_caller_known_at_its_end() {
        for (text, expected) in [("[]", true), ("{\"error_code\":null}", true), ("{\"error_code\":\"WKS.1\"}", false)] {
            let fixture = Fixture::new();
            let body = fixture.observe(stream(Full::new(Bytes::from(text))));
            assert_eq!(body.collect().await.unwrap().to_bytes(), text);
            assert_eq!(fixture.is_known(), expected, "{text}");
        }
    }

    #[tokio::test]
    async fn each_part_is_passed_on_at_once_and_the_last_one_decides() {
        let (fixture, (parts, receiver)) = (Fixture::new(), mpsc::channel(2));
        let mut body = fixture.observe(stream(ChannelBody(receiver)));
        for part in ["{\"a\":1,", "\"b\":2}"] {
            parts.send(part).await.unwrap();
            assert_eq!(body.frame().await.unwrap().unwrap().into_data().unwrap(), part);
            assert!(!fixture.is_known());
        }
        drop(parts);
        assert!(body.frame().await.is_none() && fixture.is_known());
    }

    #[tokio::test]
    async fn a_body_that_cannot_be_an_error_decides_at_once() {
        let (fixture, (parts, receiver)) = (Fixture::new(), mpsc::channel(2));
        let mut body = fixture.observe(stream(ChannelBody(receiver)));
        parts.send(" [{").await.unwrap();
        body.frame().await.unwrap().unwrap();
        assert!(fixture.is_known());

        let fixture = Fixture::new();
        let long = format!("{{\"a\":\"{}\"}}", "x".repeat(MAX_PEEK));
        let _body = fixture.observe(stream(Full::new(Bytes::from(long))));
        assert!(fixture.is_known());
    }

    #[tokio::test(start_paused = true)]
    async fn a_body_that_is_dropped_early_is_read_on_until_the_deadline() {
        for (rest, expected) in [("1}", true), ("1,\"error_code\":\"WKS.1\"}", false)] {
            let (fixture, (parts, receiver)) = (Fixture::new(), mpsc::channel(2));
            let mut body = fixture.observe(stream(ChannelBody(receiver)));
            parts.send("{\"a\":").await.unwrap();
            body.frame().await.unwrap().unwrap();
            drop(body);
            parts.send(rest).await.unwrap();
            drop(parts.clone());
            assert!(!fixture.is_known());
            drop(parts);
            // Time passes when there is nothing else to do.
            tokio::time::sleep(PEEK_TIMEOUT).await;
            assert_eq!(fixture.is_known(), expected, "{rest}");
        }
    }
}
