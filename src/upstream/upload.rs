//! The minimum rate of an upload. A client that sends almost nothing must not occupy a call slot.

use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use tokio::time::{Instant, Sleep, sleep};

use super::UpstreamError;
use crate::clock::Clock;
use crate::stream::BoxError;

/// How much waiting time is measured before the rate is checked.
const WINDOW: Duration = Duration::from_secs(10);

/// How many bytes must arrive in a window: 1 KiB/s.
const MIN_BYTES: usize = 10 * 1024;

/// A body that fails with [`UpstreamError::UploadSlow`] if it arrives at less than 1 KiB/s over 10 s. Only the time
/// during which the gateway waits for the client counts. If upstream does not read, this is not the client's fault.
pub(super) struct MinRate<B> {
    inner: B,
    /// The bytes that arrived in this window.
    bytes: usize,
    /// The waiting time in this window, without the current wait.
    waited: Duration,
    /// The start of the current wait, on the clock of the timers, and the timer for the end of the window.
    waiting: Option<(Instant, Pin<Box<Sleep>>)>,
}

impl<B> MinRate<B> {
    pub(super) fn new(inner: B) -> Self {
        Self { inner, bytes: 0, waited: Duration::ZERO, waiting: None }
    }
}

impl<B> Body for MinRate<B>
where
    B: Body<Data = Bytes> + Unpin,
    B::Error: Into<BoxError>,
{
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        let this = self.get_mut();
        if let Poll::Ready(frame) = Pin::new(&mut this.inner).poll_frame(context) {
            if let Some((since, _)) = this.waiting.take() {
                this.waited = (this.waited + Clock::System.timer_now().saturating_duration_since(since)).min(WINDOW);
            }
            let data = frame.as_ref().and_then(|frame| frame.as_ref().ok()?.data_ref());
            this.bytes += data.map_or(0, Bytes::len);
            return Poll::Ready(frame.map(|frame| frame.map_err(Into::into)));
        }
        loop {
            let left = WINDOW.saturating_sub(this.waited);
            let (_, timer) = this.waiting.get_or_insert_with(|| (Clock::System.timer_now(), Box::pin(sleep(left))));
            if timer.as_mut().poll(context).is_pending() {
                return Poll::Pending;
            }
            if this.bytes < MIN_BYTES {
                return Poll::Ready(Some(Err(UpstreamError::UploadSlow.into())));
            }
            (this.bytes, this.waited, this.waiting) = (0, Duration::ZERO, None);
        }
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

    const SECOND: Duration = Duration::from_secs(1);

    /// A body whose frames arrive when they are sent to the channel.
    struct Parts(mpsc::UnboundedReceiver<usize>);

    impl Body for Parts {
        type Data = Bytes;
        type Error = BoxError;

        fn poll_frame(
            mut self: Pin<&mut Self>,
            context: &mut Context<'_>,
        ) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
            self.0.poll_recv(context).map(|part| part.map(|size| Ok(Frame::data(Bytes::from(vec![0; size])))))
        }
    }

    fn body() -> (mpsc::UnboundedSender<usize>, MinRate<Parts>) {
        let (parts, receiver) = mpsc::unbounded_channel();
        (parts, MinRate::new(Parts(receiver)))
    }

    /// Sends a part each second and reads it when it arrives. Returns after how many seconds the body fails, if it
    /// does.
    async fn fails_after(size: usize, seconds: u32) -> Option<u32> {
        let (parts, mut body) = body();
        for second in 1..=seconds {
            // The gateway waits for the body during this second.
            match timeout(SECOND, body.frame()).await {
                Ok(frame) => {
                    let error = frame.unwrap().unwrap_err();
                    assert_eq!(error.downcast_ref(), Some(&UpstreamError::UploadSlow));
                    return Some(second);
                }
                Err(_) if size > 0 => {
                    parts.send(size).unwrap();
                    body.frame().await.unwrap().unwrap();
                }
                Err(_) => {}
            }
        }
        None
    }

    #[tokio::test(start_paused = true)]
    async fn an_upload_below_1_kib_per_second_fails_within_10_s() {
        for size in [0, 1, 900] {
            assert_eq!(fails_after(size, 20).await, Some(10), "{size}");
        }
        assert_eq!(fails_after(1200, 100).await, None);
    }

    #[tokio::test(start_paused = true)]
    async fn an_upload_that_stops_after_a_good_beginning_fails_in_the_next_10_s() {
        let (parts, mut body) = body();
        parts.send(1 << 20).unwrap();
        body.frame().await.unwrap().unwrap();
        let start = Clock::System.timer_now();
        body.frame().await.unwrap().unwrap_err();
        assert_eq!(Clock::System.timer_now() - start, 2 * WINDOW);
    }

    #[tokio::test(start_paused = true)]
    async fn time_during_which_the_body_is_not_read_does_not_count() {
        let (parts, mut body) = body();
        for _ in 0..100 {
            advance(WINDOW).await;
            parts.send(1).unwrap();
            body.frame().await.unwrap().unwrap();
        }
        let start = Clock::System.timer_now();
        body.frame().await.unwrap().unwrap_err();
        assert_eq!(Clock::System.timer_now() - start, WINDOW);
    }
}
