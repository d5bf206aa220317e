//! Which callers upstream knows, for the order in which their calls are served: what makes a caller known.
//!
//! A product list that proves a caller does ([`super::settle`]), and so does a relayed answer: a 2xx to GET, POST, PUT,
//! PATCH or DELETE below a project whose body has no `error_code`. Other methods say nothing of a token: some services
//! answer OPTIONS or HEAD without looking at it. A 401 makes the caller unknown again.

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

use super::ActiveConfig;
use super::memory::Memory;
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
    /// In which class a caller's call waits for its turn.
    pub(super) fn class(&self, caller: Option<Caller>, caller_scope: Option<&CallerScope>, now: Instant) -> Class {
        let is_granted = |caller_scope| {
            let grant_state = self.grants.grant_state(caller_scope, now);
            matches!(grant_state, GrantState::Granted | GrantState::Grace { .. })
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

    /// Has a relayed answer make its caller known, if it is such an answer. Its body is looked at as it passes, and is not
    /// delayed.
    pub(super) fn make_known(
        &self,
        active: &ActiveConfig,
        (caller, account, clock): (Caller, &Account, &Clock),
        head: &Parts,
        response: Response<StreamBody>,
    ) -> Response<StreamBody> {
        let is_known = || self.known_callers.get(&caller, clock.now()).is_some();
        if !tells_of_caller(active, head, response.status()) || is_known() {
            return response;
        }
        let known = Arc::clone(&self.known_callers);
        let (clock, until) = (clock.clone(), clock.timer_now() + PEEK_TIMEOUT);
        let look = Look { known, caller, account: account.clone(), beginning: BytesMut::new(), clock, until };
        response.map(|body| look.observe(body))
    }
}

/// Whether an answer to such a request, of such a status, tells that upstream has accepted the caller.
pub(super) fn tells_of_caller(active: &ActiveConfig, head: &Parts, status: StatusCode) -> bool {
    let methods = [Method::GET, Method::POST, Method::PUT, Method::PATCH, Method::DELETE];
    status.is_success() && methods.contains(&head.method) && route::is_below_project(&active.catalogue, head.uri.path())
}

/// A decision about a caller that waits for the beginning of a body.
struct Look {
    known: Arc<KnownCallers>,
    caller: Caller,
    account: Account,
    beginning: BytesMut,
    clock: Clock,
    /// When it is decided by what has come until then.
    until: tokio::time::Instant,
}

impl Look {
    /// Looks at a body as it passes, unless it is decided already: only a whole body that is no longer than what is looked
    /// at can tell of an error.
    fn observe(self, body: StreamBody) -> StreamBody {
        if body.is_end_stream() || body.size_hint().lower() > MAX_PEEK as u64 {
            self.decide();
            return body;
        }
        Observed { body, look: Some(self) }.boxed_unsync()
    }

    /// Whether more would change nothing: so much has come that it is decided, or what has come is not the beginning of a JSON
    /// object.
    fn has_enough(&self) -> bool {
        let first = self.beginning.trim_ascii_start().first();
        self.beginning.len() >= MAX_PEEK || first.is_some_and(|&first| first != b'{')
    }

    /// Makes the caller known, unless the body tells of an error.
    fn decide(self) {
        if !admission::tells_error(&self.beginning) {
            self.known.relayed(self.caller);
        }
    }
}

/// A body whose beginning is looked at. If it is given up early, it is read on for that, for [`PEEK_TIMEOUT`] at most, and
/// only if the memory budget has room for it.
struct Observed {
    body: StreamBody,
    look: Option<Look>,
}

impl Body for Observed {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        let this = self.get_mut();
        let frame = ready!(Pin::new(&mut this.body).poll_frame(context));
        if let Some(mut look) = this.look.take() {
            let data = frame.as_ref().and_then(|frame| frame.as_ref().ok()?.data_ref());
            look.beginning.extend_from_slice(data.map_or(b"", |data| data));
            let is_over = this.body.is_end_stream() || frame.is_none();
            match &frame {
                // What is missing may have told of an error.
                Some(Err(_)) => {}
                _ if is_over || look.has_enough() || look.clock.timer_now() >= look.until => look.decide(),
                _ => this.look = Some(look),
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

impl Drop for Observed {
    fn drop(&mut self) {
        let (Some(mut look), Ok(runtime)) = (self.look.take(), Handle::try_current()) else { return };
        let body = std::mem::replace(&mut self.body, nothing());
        let Some(charge) = look.account.try_charge_spare(Purpose::Responses, MAX_PEEK) else { return };
        runtime.spawn(async move {
            let _charge = charge;
            let left = MAX_PEEK.saturating_sub(look.beginning.len());
            let (more, _) = peek(body, left, look.until.saturating_duration_since(look.clock.timer_now())).await;
            look.beginning.extend_from_slice(&more);
            look.decide();
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

    /// A body whose parts come when they are sent.
    struct Sent(mpsc::Receiver<&'static str>);

    impl Body for Sent {
        type Data = Bytes;
        type Error = BoxError;

        fn poll_frame(
            mut self: Pin<&mut Self>,
            context: &mut Context<'_>,
        ) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
            self.0.poll_recv(context).map(|part| part.map(|part| Ok(Frame::data(Bytes::from(part)))))
        }
    }

    struct Bench {
        known: Arc<KnownCallers>,
        caller: Caller,
    }

    impl Bench {
        fn new() -> Self {
            let caller = Callers::new([1; 32]).of_token(&HeaderValue::from_static("t"));
            Self { known: Arc::default(), caller }
        }

        fn observe(&self, body: StreamBody) -> StreamBody {
            let (known, clock, until) =
                (Arc::clone(&self.known), Clock::System, Clock::System.timer_now() + PEEK_TIMEOUT);
            let account = Account::open(&Budget::new(1 << 20), None);
            let look = Look { known, caller: self.caller, account, beginning: BytesMut::new(), clock, until };
            look.observe(body)
        }

        fn is_known(&self) -> bool {
            self.known.get(&self.caller, Clock::System.now()).is_some()
        }
    }

    #[tokio::test]
    async fn a_body_makes_known_at_its_end_unless_it_tells_of_an_error() {
        for (text, expected) in [("[]", true), ("{\"error_code\":null}", true), ("{\"error_code\":\"WKS.1\"}", false)] {
            let bench = Bench::new();
            let body = bench.observe(stream(Full::new(Bytes::from(text))));
            assert_eq!(body.collect().await.unwrap().to_bytes(), text);
            assert_eq!(bench.is_known(), expected, "{text}");
        }
    }

    #[tokio::test]
    async fn parts_pass_at_once_and_the_last_one_decides() {
        let (bench, (parts, receiver)) = (Bench::new(), mpsc::channel(2));
        let mut body = bench.observe(stream(Sent(receiver)));
        for part in ["{\"a\":1,", "\"b\":2}"] {
            parts.send(part).await.unwrap();
            assert_eq!(body.frame().await.unwrap().unwrap().into_data().unwrap(), part);
            assert!(!bench.is_known());
        }
        drop(parts);
        assert!(body.frame().await.is_none() && bench.is_known());
    }

    #[tokio::test]
    async fn what_cannot_be_an_error_is_not_collected() {
        let (bench, (parts, receiver)) = (Bench::new(), mpsc::channel(2));
        let mut body = bench.observe(stream(Sent(receiver)));
        parts.send(" [{").await.unwrap();
        body.frame().await.unwrap().unwrap();
        assert!(bench.is_known());

        let bench = Bench::new();
        let long = format!("{{\"a\":\"{}\"}}", "x".repeat(MAX_PEEK));
        let _body = bench.observe(stream(Full::new(Bytes::from(long))));
        assert!(bench.is_known());
    }

    #[tokio::test(start_paused = true)]
    async fn a_body_that_is_given_up_is_read_on_for_a_moment() {
        for (rest, expected) in [("1}", true), ("1,\"error_code\":\"WKS.1\"}", false)] {
            let (bench, (parts, receiver)) = (Bench::new(), mpsc::channel(2));
            let mut body = bench.observe(stream(Sent(receiver)));
            parts.send("{\"a\":").await.unwrap();
            body.frame().await.unwrap().unwrap();
            drop(body);
            parts.send(rest).await.unwrap();
            drop(parts.clone());
            assert!(!bench.is_known());
            drop(parts);
            // Time passes when there is nothing else to do.
            tokio::time::sleep(PEEK_TIMEOUT).await;
            assert_eq!(bench.is_known(), expected, "{rest}");
        }
    }
}
