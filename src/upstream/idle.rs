//! Idle limits: a relayed stream may take any time in total, but not be without data for longer than the limit.

use std::future::Future;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use tokio::sync::Notify;
use tokio::time::{Sleep, sleep};

use super::UpstreamError;
use crate::stream::BoxError;

/// Waits for a future. Returns `None` if the limit passes without a notification of progress.
pub(super) async fn with_idle_limit<F: Future>(future: F, progress: &Notify, limit: Duration) -> Option<F::Output> {
    let mut future = pin!(future);
    loop {
        tokio::select! {
            biased;
            output = &mut future => return Some(output),
            () = progress.notified() => {}
            () = sleep(limit) => return None,
        }
    }
}

/// A body that notifies for each frame that is read from it.
pub(super) struct WatchedBody<B> {
    inner: B,
    progress: Arc<Notify>,
}

impl<B> WatchedBody<B> {
    pub(super) fn new(inner: B, progress: Arc<Notify>) -> Self {
        Self { inner, progress }
    }
}

impl<B: Body<Data = Bytes> + Unpin> Body for WatchedBody<B> {
    type Data = Bytes;
    type Error = B::Error;

    fn poll_frame(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, B::Error>>> {
        let this = self.get_mut();
        let frame = ready!(Pin::new(&mut this.inner).poll_frame(context));
        this.progress.notify_one();
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.inner.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.inner.size_hint()
    }
}

/// A body that fails with [`UpstreamError::Idle`] if its next frame takes longer than the limit. Time during which no
/// frame is requested does not count: a slow reader delays the sender through TCP flow control.
pub(super) struct IdleLimited<B> {
    inner: B,
    limit: Duration,
    waiting: Option<Pin<Box<Sleep>>>,
}

impl<B> IdleLimited<B> {
    pub(super) fn new(inner: B, limit: Duration) -> Self {
        Self { inner, limit, waiting: None }
    }
}

impl<B> Body for IdleLimited<B>
where
    B: Body<Data = Bytes> + Unpin,
    B::Error: Into<BoxError>,
{
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        let this = self.get_mut();
        if let Poll::Ready(frame) = Pin::new(&mut this.inner).poll_frame(context) {
            this.waiting = None;
            return Poll::Ready(frame.map(|frame| frame.map_err(Into::into)));
        }
        let waiting = this.waiting.get_or_insert_with(|| Box::pin(sleep(this.limit)));
        ready!(waiting.as_mut().poll(context));
        Poll::Ready(Some(Err(UpstreamError::Idle.into())))
    }

    fn is_end_stream(&self) -> bool {
        self.inner.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.inner.size_hint()
    }
}

#[cfg(test)]
mod tests {
    use http_body_util::BodyExt;
    use tokio::sync::mpsc;
    use tokio::time::{advance, timeout};

    use super::*;
    use crate::clock::Clock;

    struct Parts(mpsc::Receiver<Bytes>);

    impl Body for Parts {
        type Data = Bytes;
        type Error = std::convert::Infallible;

        fn poll_frame(
            mut self: Pin<&mut Self>,
            context: &mut Context<'_>,
        ) -> Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
            self.0.poll_recv(context).map(|part| part.map(|part| Ok(Frame::data(part))))
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_body_may_take_any_time_in_total_but_not_be_idle_for_longer_than_the_limit() {
        let (parts, receiver) = mpsc::channel(1);
        let mut body = IdleLimited::new(Parts(receiver), Duration::from_secs(60));
        for _ in 0..10 {
            advance(Duration::from_secs(59)).await;
            parts.send(Bytes::from_static(b"x")).await.unwrap();
            body.frame().await.unwrap().unwrap();
        }
        let start = Clock::System.timer_now();
        // With a timeout, because without a timer the paused clock would never advance.
        let frame = timeout(Duration::from_secs(3600), body.frame()).await.unwrap();
        let error = frame.unwrap().unwrap_err();
        assert_eq!(error.downcast_ref::<UpstreamError>(), Some(&UpstreamError::Idle));
        assert_eq!((Clock::System.timer_now() - start).as_secs(), 60);
    }

    #[tokio::test(start_paused = true)]
    async fn progress_restarts_the_idle_limit() {
        let progress = Notify::new();
        let limit = Duration::from_secs(60);
        let waiting = with_idle_limit(std::future::pending::<()>(), &progress, limit);
        let notifying = async {
            for _ in 0..10 {
                sleep(Duration::from_secs(59)).await;
                progress.notify_one();
            }
        };
        let start = Clock::System.timer_now();
        let (output, ()) = tokio::join!(waiting, notifying);
        assert_eq!((output, (Clock::System.timer_now() - start).as_secs()), (None, 10 * 59 + 60));
    }

    #[tokio::test]
    async fn each_frame_is_notified() {
        let progress = Arc::new(Notify::new());
        let (parts, receiver) = mpsc::channel(1);
        let mut body = WatchedBody::new(Parts(receiver), Arc::clone(&progress));
        parts.send(Bytes::from_static(b"x")).await.unwrap();
        body.frame().await.unwrap().unwrap();
        progress.notified().await;
    }
}
