//! One request and its answer, wrapped so that their beginning, progress and end are noted.

use std::convert::Infallible;
use std::future::{Future, poll_fn};
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use http::{Request, Response};
use http_body::{Body, Frame, SizeHint};
use hyper::body::Incoming;
use prometheus::IntCounterVec;
use tokio::time::{Sleep, sleep};

use super::activity::{ConnectionActivity, EndCause, Stalled};
use super::half_closed::ReadSide;
use super::uploads::{AcceptedUpload, Uploads};
use crate::stream::BoxError;

/// An answer goes to HTTP/2 in pieces of this size, each when there is room for it; so what is at hand is not
/// handed over whole to wait there for a client that has no room, and every piece shows that it moves.
const PIECE: usize = 16 * 1024;

/// A request's body. Its end, or its being given up, is noted.
pub(super) struct TrackedRequestBody {
    incoming: Incoming,
    has_ended: bool,
    half: Option<Half>,
    /// In HTTP/2.
    accepted: Option<AcceptedUpload>,
    is_http2: bool,
}

impl Drop for TrackedRequestBody {
    fn drop(&mut self) {
        // What is left of it will still come. To whoever does not know that, it would be the next request.
        if let Some(half) = &self.half
            && !self.has_ended
            && !self.incoming.is_end_stream()
        {
            half.0.leaves_body();
        }
    }
}

/// A part of an exchange that isn't over.
struct Half(Arc<ConnectionActivity>);

impl Drop for Half {
    fn drop(&mut self) {
        self.0.ends();
    }
}

/// An answer that isn't over, or not even begun.
struct ResponseTracker {
    half: Half,
    over: bool,
    /// In HTTP/2, where a client can take back a request and leave the connection open.
    is_http2: bool,
}

impl Drop for ResponseTracker {
    fn drop(&mut self) {
        if self.is_http2 {
            self.half.0.answered(self.over);
        } else {
            self.half.0.read_side().owes_answer(false);
        }
    }
}

/// Has a request of a connection answered. There are `uploads` in HTTP/2.
pub(super) fn exchange<A, F, B>(
    activity: &Arc<ConnectionActivity>,
    uploads: Option<&Arc<Uploads>>,
    request: Request<Incoming>,
    answer: &A,
) -> impl Future<Output = Result<Response<TrackedResponseBody<B>>, Infallible>> + Send + use<A, F, B>
where
    A: Fn(Request<TrackedRequestBody>) -> F,
    F: Future<Output = Response<B>> + Send,
    B: Body<Data = Bytes> + Send,
{
    let (has_body, is_http2) = (!request.body().is_end_stream(), uploads.is_some());
    activity.begins(1 + usize::from(has_body));
    if is_http2 {
        activity.accepts();
    } else {
        activity.head_is_whole();
        activity.read_side().owes_answer(true);
    }
    let half = || Half(Arc::clone(activity));
    let answering = ResponseTracker { half: half(), over: false, is_http2 };
    let accepted = uploads.filter(|_| has_body).and_then(|uploads| uploads.accepted(request.headers()));
    let unanswered = accepted.as_ref().and_then(AcceptedUpload::unanswered);
    let half = has_body.then(half);
    let request = request.map(|incoming| TrackedRequestBody { incoming, has_ended: false, half, accepted, is_http2 });
    let answered = answer(request);
    async move {
        let answered = answered.await;
        drop(unanswered);
        Ok(answered.map(|body| TrackedResponseBody::new(body, answering)))
    }
}

impl Body for TrackedRequestBody {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        let this = self.get_mut();
        let read_side = this.half.as_ref().filter(|_| !this.is_http2).map(|half| half.0.read_side());
        let was_closed = read_side.is_some_and(ReadSide::is_closed);
        let Poll::Ready(frame) = Pin::new(&mut this.incoming).poll_frame(context) else {
            if let Some(accepted) = &mut this.accepted {
                accepted.awaits_body();
            }
            if let Some(read_side) = read_side {
                read_side.body_pends(was_closed, context);
            }
            return Poll::Pending;
        };
        this.has_ended |= frame.is_none();
        if let Some(accepted) = &mut this.accepted {
            let data = frame.as_ref().and_then(|frame| frame.as_ref().ok()?.data_ref());
            // A frame without data tells nothing of the client: it may still wait.
            if data.is_none_or(|data| !data.is_empty()) {
                accepted.has_body();
            }
            if let Some(trailers) = frame.as_ref().and_then(|frame| frame.as_ref().ok()?.trailers_ref()) {
                accepted.check(trailers)?;
            }
        }
        Poll::Ready(frame.map(|frame| frame.map_err(Into::into)))
    }

    fn is_end_stream(&self) -> bool {
        self.incoming.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.incoming.size_hint()
    }
}

/// An answer's body.
pub(super) struct TrackedResponseBody<B> {
    body: B,
    /// What is left of a frame that was too large.
    rest: Bytes,
    answering: ResponseTracker,
    /// In HTTP/2.
    progress: Option<Arc<StreamProgress>>,
}

impl<B: Body<Data = Bytes>> TrackedResponseBody<B> {
    fn new(body: B, answering: ResponseTracker) -> Self {
        let progress = PROGRESS.try_with(Arc::clone).ok();
        let mut answer = Self { body, rest: Bytes::new(), answering, progress };
        answer.note(true);
        answer
    }

    /// Whether it is the client now who is waited for.
    fn note(&mut self, is_clients_turn: bool) {
        let is_over = self.rest.is_empty() && self.body.is_end_stream();
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

impl<B: Body<Data = Bytes> + Unpin> Body for TrackedResponseBody<B> {
    type Data = Bytes;
    type Error = B::Error;

    fn poll_frame(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, B::Error>>> {
        let this = self.get_mut();
        // hyper would take all that is at hand and hold it for a client of HTTP/1 that does not read.
        if !this.answering.is_http2 {
            ready!(this.answering.half.0.poll_unblocked(context));
        }
        let frame = if this.rest.is_empty() {
            let Poll::Ready(frame) = Pin::new(&mut this.body).poll_frame(context) else {
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
        self.rest.is_empty() && self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        let mut hint = self.body.size_hint();
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
    static PROGRESS: Arc<StreamProgress>;
}

/// How an answer in HTTP/2 gets on: how many pieces were taken, if it is the client who is waited for.
struct StreamProgress(AtomicUsize);

impl StreamProgress {
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
    pub(super) activity: Arc<ConnectionActivity>,
}

impl<F> hyper::rt::Executor<F> for Streams
where
    F: Future + Send + 'static,
    F::Output: Send,
{
    fn execute(&self, stream: F) {
        let Self { write, dropped, activity } = self.clone();
        // Apart: moved into other futures it would take its size several times.
        let stream = Box::pin(stream);
        tokio::spawn(async move {
            if run(stream, write, &activity).await.is_none() {
                tracing::debug!("stream ended early: its answer is not read");
                if let Some(dropped) = dropped {
                    dropped.with_label_values(&[EndCause::Write.into_str()]).inc();
                }
            }
        });
    }
}

/// A request whose task has not begun. However that ends, it is noted.
struct Beginning(Arc<ConnectionActivity>);

impl Drop for Beginning {
    fn drop(&mut self) {
        self.0.has_begun();
    }
}

/// Runs a stream; none if its client kept it waiting for so long. FlightOutcome up, it is reset.
async fn run<F: Future + Unpin>(stream: F, limit: Duration, activity: &Arc<ConnectionActivity>) -> Option<F::Output> {
    let progress = Arc::new(StreamProgress(AtomicUsize::new(StreamProgress::OURS)));
    let mut stream = pin!(PROGRESS.scope(Arc::clone(&progress), stream));
    let mut waiting: Option<(usize, Pin<Box<Sleep>>, Stalled)> = None;
    let mut beginning = Some(Beginning(Arc::clone(activity)));
    poll_fn(|context| {
        let polled = stream.as_mut().poll(context);
        beginning = None;
        if let Poll::Ready(output) = polled {
            return Poll::Ready(Some(output));
        }
        let Some(taken) = progress.clients_turn() else {
            waiting = None;
            return Poll::Pending;
        };
        if waiting.as_ref().is_none_or(|&(then, ..)| then != taken) {
            let has_read = waiting.is_some();
            waiting = Some((taken, Box::pin(sleep(limit)), activity.stalls(has_read)));
        }
        if let Some((_, timer, _)) = &mut waiting {
            ready!(timer.as_mut().poll(context));
            return Poll::Ready(None);
        }
        Poll::Pending
    })
    .await
}
