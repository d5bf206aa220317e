//! Wraps one request and its response, so that their start, progress and end are recorded. Bytes are not changed here.

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

use super::activity::{ConnectionActivity, EndCause, StalledResponse};
use super::half_closed::ReadSide;
use super::uploads::{AcceptedUpload, Uploads};
use crate::stream::BoxError;

/// Responses are passed to hyper's HTTP/2 in pieces of this size in bytes, each when the flow-control window has room.
/// So hyper does not hold a whole body for a client whose window is closed, and every piece shows progress.
const PIECE: usize = 16 * 1024;

/// The largest last piece of a response in HTTP/2, in bytes.
const LAST_PIECE: usize = 1024;

/// The body of a request. Its end is recorded, also when it is dropped before its end.
pub(super) struct TrackedRequestBody {
    incoming: Incoming,
    has_ended: bool,
    half: Option<ExchangeHalf>,
    /// Set for an HTTP/2 request with a body, if `uploads` has accepted it.
    accepted: Option<AcceptedUpload>,
    is_http2: bool,
}

impl Drop for TrackedRequestBody {
    fn drop(&mut self) {
        // The rest of the body still arrives. It must not be taken for the next request.
        if let Some(half) = &self.half
            && !self.has_ended
            && !self.incoming.is_end_stream()
        {
            half.0.body_left_unread();
        }
    }
}

/// One half of an exchange, the request body or the response, that has not finished.
struct ExchangeHalf(Arc<ConnectionActivity>);

impl Drop for ExchangeHalf {
    fn drop(&mut self) {
        self.0.half_finished();
    }
}

/// A response that is not complete, or has not started.
struct ResponseTracker {
    half: ExchangeHalf,
    is_complete: bool,
    /// In HTTP/2, a client can cancel a request and keep the connection open.
    is_http2: bool,
}

impl Drop for ResponseTracker {
    fn drop(&mut self) {
        if self.is_http2 {
            self.half.0.stream_finished(self.is_complete);
        } else {
            self.half.0.read_side().set_owes_response(false);
        }
    }
}

/// Handles the requests of one connection. It is implemented for closures.
pub(super) trait RequestHandler: Send + Unpin + 'static {
    type Future: Future<Output = Response<Self::Body>> + Send + 'static;
    type Body: Body<Data = Bytes, Error: Into<BoxError>> + Unpin + Send + 'static;

    fn handle(&self, request: Request<TrackedRequestBody>) -> Self::Future;
}

impl<H, F, B> RequestHandler for H
where
    H: Fn(Request<TrackedRequestBody>) -> F + Send + Unpin + 'static,
    F: Future<Output = Response<B>> + Send + 'static,
    B: Body<Data = Bytes, Error: Into<BoxError>> + Unpin + Send + 'static,
{
    type Future = F;
    type Body = B;

    fn handle(&self, request: Request<TrackedRequestBody>) -> F {
        self(request)
    }
}

/// Answers a request. `uploads` is set in HTTP/2.
pub(super) fn exchange<H: RequestHandler>(
    activity: &Arc<ConnectionActivity>,
    uploads: Option<&Arc<Uploads>>,
    request: Request<Incoming>,
    handler: &H,
) -> impl Future<Output = Result<Response<TrackedResponseBody<H::Body>>, Infallible>> + Send + use<H> {
    let (has_body, is_http2) = (!request.body().is_end_stream(), uploads.is_some());
    activity.request_started(1 + usize::from(has_body));
    if is_http2 {
        activity.request_accepted();
    } else {
        activity.head_finished();
        activity.read_side().set_owes_response(true);
    }
    let new_half = || ExchangeHalf(Arc::clone(activity));
    let tracker = ResponseTracker { half: new_half(), is_complete: false, is_http2 };
    let accepted = uploads.filter(|_| has_body).and_then(|uploads| uploads.accept(request.headers()));
    let unanswered = accepted.as_ref().and_then(AcceptedUpload::unanswered);
    let half = has_body.then(new_half);
    let request = request.map(|incoming| TrackedRequestBody { incoming, has_ended: false, half, accepted, is_http2 });
    let response = handler.handle(request);
    async move {
        let response = response.await;
        drop(unanswered);
        Ok(response.map(|body| TrackedResponseBody::new(body, tracker)))
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
                accepted.body_awaited();
            }
            if let Some(read_side) = read_side {
                read_side.body_pending(was_closed, context);
            }
            return Poll::Pending;
        };
        this.has_ended |= frame.is_none();
        if let Some(accepted) = &mut this.accepted {
            let data = frame.as_ref().and_then(|frame| frame.as_ref().ok()?.data_ref());
            // An empty DATA frame proves nothing: the client may still wait for a 100.
            if data.is_none_or(|data| !data.is_empty()) {
                accepted.body_received();
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

pub(super) struct TrackedResponseBody<B> {
    body: B,
    /// The rest of a frame that was larger than a piece.
    remaining: Bytes,
    tracker: ResponseTracker,
}

impl<B: Body<Data = Bytes>> TrackedResponseBody<B> {
    fn new(body: B, tracker: ResponseTracker) -> Self {
        let mut this = Self { body, remaining: Bytes::new(), tracker };
        this.record_progress(true);
        this
    }

    /// Records progress, and whether the client has to make the next step.
    fn record_progress(&mut self, waits_for_client: bool) {
        self.tracker.is_complete |= self.remaining.is_empty() && self.body.is_end_stream();
        if self.tracker.is_http2 {
            // hyper polls the body in the task of its stream. If it did not, nothing would limit how long a client reads.
            let recorded = PROGRESS.try_with(|progress| progress.record(waits_for_client));
            debug_assert!(recorded.is_ok(), "a body is polled outside the task of its stream");
        }
    }

    /// The next piece of the rest. The last one is small and is copied. It may wait for the client after the stream's task
    /// has ended: then nothing limits how long, and nothing charges it.
    fn piece(&mut self) -> Bytes {
        if self.remaining.len() > LAST_PIECE {
            return self.remaining.split_to(PIECE.min(self.remaining.len() - LAST_PIECE));
        }
        Bytes::copy_from_slice(&std::mem::take(&mut self.remaining))
    }
}

impl<B: Body<Data = Bytes> + Unpin> Body for TrackedResponseBody<B> {
    type Data = Bytes;
    type Error = B::Error;

    fn poll_frame(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, B::Error>>> {
        let this = self.get_mut();
        // hyper would take everything that is available and hold it for an HTTP/1 client that does not read.
        if !this.tracker.is_http2 {
            ready!(this.tracker.half.0.poll_unblocked(context));
        }
        let frame = if this.remaining.is_empty() {
            let Poll::Ready(frame) = Pin::new(&mut this.body).poll_frame(context) else {
                this.record_progress(false);
                return Poll::Pending;
            };
            match frame.map(|frame| frame.map(Frame::into_data)) {
                Some(Ok(Ok(data))) if this.tracker.is_http2 && data.len() > LAST_PIECE => {
                    this.remaining = data;
                    Some(Ok(Frame::data(this.piece())))
                }
                Some(Ok(Ok(data))) => Some(Ok(Frame::data(data))),
                Some(Ok(Err(other))) => Some(Ok(other)),
                Some(Err(error)) => {
                    // Usually an upstream failure; the client has cancelled nothing.
                    this.tracker.is_complete = true;
                    Some(Err(error))
                }
                None => {
                    this.tracker.is_complete = true;
                    None
                }
            }
        } else {
            Some(Ok(Frame::data(this.piece())))
        };
        this.record_progress(true);
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.remaining.is_empty() && self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        let mut hint = self.body.size_hint();
        let remaining = self.remaining.len() as u64;
        if let Some(upper) = hint.upper() {
            hint.set_upper(upper + remaining);
        }
        hint.set_lower(hint.lower() + remaining);
        hint
    }
}

tokio::task_local! {
    /// Set in the task of a stream.
    static PROGRESS: StreamProgress;
}

/// The progress of an HTTP/2 response: the number of pieces that hyper has taken, and in the lowest bit whether the
/// client has to make the next step.
struct StreamProgress(AtomicUsize);

impl StreamProgress {
    /// The gateway has to make the next step.
    const NOT_WAITING: usize = 0;

    fn record(&self, waits_for_client: bool) {
        let taken = self.0.load(Ordering::Relaxed);
        self.0.store(if waits_for_client { (taken | 1) + 2 } else { taken & !1 }, Ordering::Relaxed);
    }

    fn pieces_taken_while_waiting(&self) -> Option<usize> {
        Some(self.0.load(Ordering::Relaxed)).filter(|taken| taken & 1 == 1)
    }
}

/// Runs each stream of an HTTP/2 connection in a task, and resets streams whose client does not open the window for the
/// next piece. The connection itself cannot detect that, because other streams may make progress.
#[derive(Clone)]
pub(super) struct Streams {
    pub(super) write: Duration,
    pub(super) connections_ended: Option<IntCounterVec>,
    pub(super) activity: Arc<ConnectionActivity>,
}

impl<F> hyper::rt::Executor<F> for Streams
where
    F: Future + Send + 'static,
    F::Output: Send,
{
    fn execute(&self, stream: F) {
        let Self { write, connections_ended, activity } = self.clone();
        // Boxed: moving it into other futures would take its size several times.
        let stream = Box::pin(stream);
        tokio::spawn(async move {
            if run(stream, write, &activity).await.is_none() {
                tracing::debug!("stream reset: the client does not read the response");
                if let Some(connections_ended) = connections_ended {
                    connections_ended.with_label_values(&[EndCause::Write.into_str()]).inc();
                }
            }
        });
    }
}

/// A request whose task has not started. When this is dropped, the start is recorded, even if the task never ran.
struct TaskStart(Arc<ConnectionActivity>);

impl Drop for TaskStart {
    fn drop(&mut self) {
        self.0.request_task_started();
    }
}

/// Runs a stream. Returns `None` if the client did not read for `limit`; dropping the stream then resets it.
async fn run<F: Future + Unpin>(stream: F, limit: Duration, activity: &Arc<ConnectionActivity>) -> Option<F::Output> {
    let mut stream = pin!(stream);
    let mut waiting: Option<(usize, Pin<Box<Sleep>>, StalledResponse)> = None;
    let mut task_start = Some(TaskStart(Arc::clone(activity)));
    let run = poll_fn(|context| {
        let polled = stream.as_mut().poll(context);
        task_start = None;
        if let Poll::Ready(output) = polled {
            return Poll::Ready(Some(output));
        }
        let Some(taken) = PROGRESS.with(StreamProgress::pieces_taken_while_waiting) else {
            waiting = None;
            return Poll::Pending;
        };
        if waiting.as_ref().is_none_or(|&(then, ..)| then != taken) {
            let has_read = waiting.is_some();
            waiting = Some((taken, Box::pin(sleep(limit)), activity.response_stalled(has_read)));
        }
        if let Some((_, timer, _)) = &mut waiting {
            ready!(timer.as_mut().poll(context));
            return Poll::Ready(None);
        }
        Poll::Pending
    });
    PROGRESS.scope(StreamProgress(AtomicUsize::new(StreamProgress::NOT_WAITING)), run).await
}
