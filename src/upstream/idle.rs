//! Streams that may take as long as they like, provided that something moves.

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

/// Waits for something, as long as no pause between parts that move is longer than the limit.
pub(super) async fn while_it_moves<F: Future>(awaited: F, moved: &Notify, limit: Duration) -> Option<F::Output> {
    let mut awaited = pin!(awaited);
    loop {
        tokio::select! {
            output = &mut awaited => return Some(output),
            () = moved.notified() => {}
            () = sleep(limit) => return None,
        }
    }
}

/// A body that tells whenever a part of it has moved.
pub(super) struct WatchedBody<B> {
    inner: B,
    moved: Arc<Notify>,
}

impl<B> WatchedBody<B> {
    pub(super) fn new(inner: B, moved: Arc<Notify>) -> Self {
        Self { inner, moved }
    }
}

impl<B: Body<Data = Bytes> + Unpin> Body for WatchedBody<B> {
    type Data = Bytes;
    type Error = B::Error;

    fn poll_frame(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, B::Error>>> {
        let this = self.get_mut();
        let frame = ready!(Pin::new(&mut this.inner).poll_frame(context));
        this.moved.notify_one();
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.inner.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.inner.size_hint()
    }
}

/// A body that fails when its next part is too long in coming. Time during which nobody asks for
/// one does not count: whoever reads slowly keeps the other side waiting, within TCP's bounds.
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
    async fn parts_that_keep_coming_may_take_for_ever_and_a_pause_may_not() {
        let (parts, receiver) = mpsc::channel(1);
        let mut body = IdleLimited::new(Parts(receiver), Duration::from_secs(60));
        for _ in 0..10 {
            advance(Duration::from_secs(59)).await;
            parts.send(Bytes::from_static(b"x")).await.unwrap();
            body.frame().await.unwrap().unwrap();
        }
        let paused = Clock::System.timer_now();
        // Bounded, for a paused clock that no timer moves stands still for ever.
        let frame = timeout(Duration::from_secs(3600), body.frame()).await.unwrap();
        let error = frame.unwrap().unwrap_err();
        assert_eq!(error.downcast_ref::<UpstreamError>(), Some(&UpstreamError::Idle));
        assert_eq!((Clock::System.timer_now() - paused).as_secs(), 60);
    }

    #[tokio::test(start_paused = true)]
    async fn whoever_keeps_moving_is_waited_for() {
        let moved = Notify::new();
        let limit = Duration::from_secs(60);
        let waiting = while_it_moves(std::future::pending::<()>(), &moved, limit);
        let moving = async {
            for _ in 0..10 {
                sleep(Duration::from_secs(59)).await;
                moved.notify_one();
            }
        };
        let begun = Clock::System.timer_now();
        let (given_up, ()) = tokio::join!(waiting, moving);
        assert_eq!((given_up, (Clock::System.timer_now() - begun).as_secs()), (None, 10 * 59 + 60));
    }

    #[tokio::test]
    async fn every_part_is_told() {
        let moved = Arc::new(Notify::new());
        let (parts, receiver) = mpsc::channel(1);
        let mut body = WatchedBody::new(Parts(receiver), Arc::clone(&moved));
        parts.send(Bytes::from_static(b"x")).await.unwrap();
        body.frame().await.unwrap().unwrap();
        moved.notified().await;
    }
}
