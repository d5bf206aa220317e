//! One request and its answer, wrapped so that their beginning, progress and end are noted.

use std::convert::Infallible;
use std::future::{Future, poll_fn};
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use http::{Request, Response, StatusCode};
use http_body::{Body, Frame, SizeHint};
use hyper::body::Incoming;
use prometheus::IntCounterVec;
use tokio::time::{Sleep, sleep};

use super::pulse::{Cause, Pulse};

/// An answer goes to HTTP/2 in pieces of this size, each when there is room for it; so what is at hand is not
/// handed over whole to wait there for a client that has no room, and every piece shows that it moves.
const PIECE: usize = 16 * 1024;

/// What HTTP/1 allows too, by hyper's own limit.
const MAX_FIELDS: usize = 100;

/// A request's body. Its end, or its being given up, is noted.
pub(super) struct Upload {
    incoming: Incoming,
    _half: Option<Half>,
}

/// A part of an exchange that isn't over.
struct Half(Arc<Pulse>);

impl Drop for Half {
    fn drop(&mut self) {
        self.0.ends();
    }
}

/// An answer that isn't over, or not even begun.
struct Answering {
    half: Half,
    over: bool,
    /// In HTTP/2, where a client can take back a request and leave the connection open.
    is_http2: bool,
}

impl Drop for Answering {
    fn drop(&mut self) {
        if self.is_http2 {
            self.half.0.answered(self.over);
        }
    }
}

/// Has a request of a connection answered.
pub(super) fn exchange<A, F, B>(
    pulse: &Arc<Pulse>,
    is_http2: bool,
    request: Request<Incoming>,
    answer: &A,
) -> impl Future<Output = Result<Response<Answer<B>>, Infallible>> + Send + use<A, F, B>
where
    A: Fn(Request<Upload>) -> F,
    F: Future<Output = Response<B>> + Send,
    B: Body<Data = Bytes> + Send,
{
    let has_body = !request.body().is_end_stream();
    pulse.begins(1 + usize::from(has_body));
    if !is_http2 {
        pulse.head_is_whole();
    }
    let half = || Half(Arc::clone(pulse));
    let answering = Answering { half: half(), over: false, is_http2 };
    let too_many = is_http2 && request.headers().len() > MAX_FIELDS;
    let request = request.map(|incoming| Upload { incoming, _half: has_body.then(half) });
    let answered = (!too_many).then(|| answer(request));
    async move {
        let response = match answered {
            Some(answered) => answered.await.map(Some),
            None => {
                let mut response = Response::new(None);
                *response.status_mut() = StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE;
                response
            }
        };
        Ok(response.map(|body| Answer::new(body, answering)))
    }
}

impl Body for Upload {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        Pin::new(&mut self.get_mut().incoming).poll_frame(context)
    }

    fn is_end_stream(&self) -> bool {
        self.incoming.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.incoming.size_hint()
    }
}

/// An answer's body.
pub(super) struct Answer<B> {
    body: Option<B>,
    /// What is left of a frame that was too large.
    rest: Bytes,
    answering: Answering,
    /// In HTTP/2.
    progress: Option<Arc<Progress>>,
}

impl<B: Body<Data = Bytes>> Answer<B> {
    fn new(body: Option<B>, answering: Answering) -> Self {
        let progress = PROGRESS.try_with(Arc::clone).ok();
        let mut answer = Self { body, rest: Bytes::new(), answering, progress };
        answer.note(true);
        answer
    }

    /// Whether it is the client now who is waited for.
    fn note(&mut self, is_clients_turn: bool) {
        let is_over = self.rest.is_empty() && self.body.as_ref().is_none_or(Body::is_end_stream);
        self.answering.over |= is_over;
        if let Some(progress) = &self.progress {
            progress.note(is_clients_turn);
        }
    }

    /// The next piece of what is left. The last one is a copy: it may wait for its client while the rest of what it
    /// is a part of is let go.
    fn piece(&mut self) -> Bytes {
        if self.rest.len() > PIECE {
            return self.rest.split_to(PIECE);
        }
        Bytes::copy_from_slice(&std::mem::take(&mut self.rest))
    }
}

impl<B: Body<Data = Bytes> + Unpin> Body for Answer<B> {
    type Data = Bytes;
    type Error = B::Error;

    fn poll_frame(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, B::Error>>> {
        let this = self.get_mut();
        let frame = if this.rest.is_empty() {
            let Some(body) = &mut this.body else { return Poll::Ready(None) };
            let Poll::Ready(frame) = Pin::new(body).poll_frame(context) else {
                this.note(false);
                return Poll::Pending;
            };
            match frame.map(|frame| frame.map(Frame::into_data)) {
                Some(Ok(Ok(data))) if this.progress.is_some() && data.len() > PIECE => {
                    this.rest = data;
                    Some(Ok(Frame::data(this.piece())))
                }
                Some(Ok(Ok(data))) => Some(Ok(Frame::data(data))),
                Some(Ok(Err(other))) => Some(Ok(other)),
                Some(Err(error)) => {
                    // Upstream's doing as a rule; nobody has taken anything back.
                    this.answering.over = true;
                    Some(Err(error))
                }
                None => {
                    this.answering.over = true;
                    None
                }
            }
        } else {
            Some(Ok(Frame::data(this.piece())))
        };
        this.note(true);
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.rest.is_empty() && self.body.as_ref().is_none_or(Body::is_end_stream)
    }

    fn size_hint(&self) -> SizeHint {
        let mut hint = self.body.as_ref().map_or(SizeHint::with_exact(0), Body::size_hint);
        let rest = self.rest.len() as u64;
        if let Some(upper) = hint.upper() {
            hint.set_upper(upper + rest);
        }
        hint.set_lower(hint.lower() + rest);
        hint
    }
}

tokio::task_local! {
    /// Of the stream whose task this is.
    static PROGRESS: Arc<Progress>;
}

/// How an answer in HTTP/2 gets on: how many pieces were taken, if it is the client who is waited for.
struct Progress(AtomicUsize);

impl Progress {
    /// Whoever is waited for, it is not the client.
    const OURS: usize = 0;

    fn note(&self, is_clients_turn: bool) {
        let taken = self.0.load(Ordering::Relaxed);
        // The lowest bit tells whose turn it is; the rest counts.
        self.0.store(if is_clients_turn { (taken | 1) + 2 } else { taken & !1 }, Ordering::Relaxed);
    }

    fn clients_turn(&self) -> Option<usize> {
        Some(self.0.load(Ordering::Relaxed)).filter(|taken| taken & 1 == 1)
    }
}

/// Runs the streams of a connection in HTTP/2, each in a task, and gives up those whose client makes no room for the
/// next piece. The connection itself knows nothing of that, for others may be moving on it.
#[derive(Clone)]
pub(super) struct Streams {
    pub(super) write: Duration,
    pub(super) dropped: Option<IntCounterVec>,
}

impl<F> hyper::rt::Executor<F> for Streams
where
    F: Future + Send + 'static,
    F::Output: Send,
{
    fn execute(&self, stream: F) {
        let Self { write, dropped } = self.clone();
        tokio::spawn(async move {
            if run(stream, write).await.is_none() {
                tracing::debug!("stream ended early: its answer is not read");
                if let Some(dropped) = dropped {
                    dropped.with_label_values(&[Cause::Write.as_str()]).inc();
                }
            }
        });
    }
}

/// Runs a stream; none if its client kept it waiting for so long. Given up, it is reset.
async fn run<F: Future>(stream: F, limit: Duration) -> Option<F::Output> {
    let progress = Arc::new(Progress(AtomicUsize::new(Progress::OURS)));
    let mut stream = pin!(PROGRESS.scope(Arc::clone(&progress), stream));
    let mut waiting: Option<(usize, Pin<Box<Sleep>>)> = None;
    poll_fn(|context| {
        if let Poll::Ready(output) = stream.as_mut().poll(context) {
            return Poll::Ready(Some(output));
        }
        let Some(taken) = progress.clients_turn() else {
            waiting = None;
            return Poll::Pending;
        };
        if waiting.as_ref().is_none_or(|&(then, _)| then != taken) {
            waiting = Some((taken, Box::pin(sleep(limit))));
        }
        if let Some((_, timer)) = &mut waiting {
            ready!(timer.as_mut().poll(context));
            return Poll::Ready(None);
        }
        Poll::Pending
    })
    .await
}
