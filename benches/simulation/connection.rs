//! The connections of the simulated network: two pipes, and a stream for each side.

use std::collections::VecDeque;
use std::io::{self, Error};
use std::net::{IpAddr, SocketAddr};
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::{Instant, Sleep, sleep_until};
use workspace_gateway::testing::clock::Clock;
use workspace_gateway::testing::net::SimulatedStream;

use super::lock;
use super::net::SimulatedNet;

/// How many bytes the kernels of both sides hold in one direction.
const WINDOW: usize = 64 * 1024;
/// Errors of Linux.
const EPIPE: i32 = 32;
const ECONNRESET: i32 = 104;

/// Both directions of a connection. A direction has the number of the side that reads it.
pub(crate) struct Pipes {
    number: u64,
    addresses: [SocketAddr; 2],
    delay: [Duration; 2],
    pipes: [Pipe; 2],
    is_reset: bool,
}

#[derive(Default)]
struct Pipe {
    pieces: VecDeque<(Instant, Vec<u8>)>,
    bytes: usize,
    /// When the end arrives, if the sender has closed.
    end: Option<Instant>,
    /// Whether the reader has closed, so that bytes reset the connection.
    is_unread: bool,
    /// Whether bytes were read.
    has_begun: bool,
    reader: Option<Waker>,
    writer: Option<Waker>,
}

impl Pipe {
    /// When the next bytes arrive, or the end.
    fn next(&self) -> Option<Instant> {
        self.pieces.front().map(|(at, _)| *at).or(self.end)
    }
}

impl Pipes {
    pub(crate) fn new(number: u64, addresses: [SocketAddr; 2], delay: [Duration; 2]) -> Self {
        Self { number, addresses, delay, pipes: Default::default(), is_reset: false }
    }

    pub(crate) fn hosts(&self) -> [IpAddr; 2] {
        self.addresses.map(|address| address.ip())
    }

    pub(crate) fn reset(this: &Mutex<Self>) {
        let mut pipes = lock(this);
        pipes.is_reset = true;
        let wakers: Vec<_> = pipes.pipes.iter_mut().flat_map(|pipe| [pipe.reader.take(), pipe.writer.take()]).collect();
        drop(pipes);
        wakers.into_iter().flatten().for_each(Waker::wake);
    }
}

/// One side of a connection.
pub(crate) struct Stream {
    net: SimulatedNet,
    pipes: Arc<Mutex<Pipes>>,
    side: usize,
    timer: Option<Pin<Box<Sleep>>>,
    /// Whether [`SimulatedStream::poll_reset`] was called.
    has_ended: bool,
}

impl Stream {
    pub(crate) fn new(net: &SimulatedNet, pipes: &Arc<Mutex<Pipes>>, side: usize) -> Self {
        Self { net: net.clone(), pipes: Arc::clone(pipes), side, timer: None, has_ended: false }
    }

    /// Waits until this time.
    fn poll_until(&mut self, at: Instant, context: &mut Context<'_>) -> Poll<()> {
        let timer = self.timer.get_or_insert_with(|| Box::pin(sleep_until(at)));
        if timer.deadline() != at {
            timer.as_mut().reset(at);
        }
        timer.as_mut().poll(context)
    }
}

impl AsyncRead for Stream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = &mut *self;
        if this.has_ended {
            return Poll::Ready(Ok(()));
        }
        let shared = Arc::clone(&this.pipes);
        let mut pipes = lock(&shared);
        if pipes.is_reset {
            return Poll::Ready(Err(Error::from_raw_os_error(ECONNRESET)));
        }
        let hosts = pipes.hosts();
        let (now, number) = (Clock::System.timer_now(), pipes.number);
        let pipe = &mut pipes.pipes[this.side];
        let Some(at) = pipe.next() else {
            pipe.reader = Some(context.waker().clone());
            return Poll::Pending;
        };
        if this.net.poll_mended(hosts, context).is_pending() {
            return Poll::Pending;
        }
        if at > now {
            // A reset must wake the reader, too.
            pipe.reader = Some(context.waker().clone());
            drop(pipes);
            if this.poll_until(at, context).is_pending() {
                return Poll::Pending;
            }
            pipes = lock(&shared);
        }
        let pipe = &mut pipes.pipes[this.side];
        let mut read = Vec::new();
        while let Some((at, bytes)) = pipe.pieces.front_mut()
            && *at <= now.max(Clock::System.timer_now())
            && buffer.remaining() > 0
        {
            pipe.has_begun = true;
            let count = bytes.len().min(buffer.remaining());
            buffer.put_slice(&bytes[..count]);
            read.extend_from_slice(&bytes[..count]);
            bytes.drain(..count);
            pipe.bytes -= count;
            if bytes.is_empty() {
                pipe.pieces.pop_front();
            }
        }
        let writer = pipe.writer.take();
        drop(pipes);
        writer.into_iter().for_each(Waker::wake);
        let [from, to] = hosts;
        this.net.arrived(&format!("{from}-{to} {number}.{}", this.side), &read);
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Stream {
    fn poll_write(self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let mut pipes = lock(&self.pipes);
        let (side, delay) = (1 - self.side, pipes.delay[1 - self.side] + self.net.delay(pipes.hosts()));
        if pipes.is_reset {
            return Poll::Ready(Err(Error::from_raw_os_error(EPIPE)));
        }
        let pipe = &mut pipes.pipes[side];
        if pipe.end.is_some() {
            return Poll::Ready(Err(Error::from_raw_os_error(EPIPE)));
        }
        if pipe.is_unread {
            let shared = Arc::clone(&self.pipes);
            drop(pipes);
            Pipes::reset(&shared);
            return Poll::Ready(Err(Error::from_raw_os_error(ECONNRESET)));
        }
        let count = bytes.len().min(WINDOW - pipe.bytes);
        if bytes.is_empty() {
            return Poll::Ready(Ok(0));
        }
        if count == 0 {
            pipe.writer = Some(context.waker().clone());
            return Poll::Pending;
        }
        // Bytes do not overtake earlier ones.
        let earliest = pipe.pieces.back().map(|(at, _)| *at);
        let at = earliest.into_iter().fold(Clock::System.timer_now() + delay, Instant::max);
        pipe.pieces.push_back((at, bytes[..count].to_vec()));
        pipe.bytes += count;
        let reader = pipe.reader.take();
        drop(pipes);
        reader.into_iter().for_each(Waker::wake);
        Poll::Ready(Ok(count))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.close();
        Poll::Ready(Ok(()))
    }
}

impl Stream {
    /// Closes the sending side.
    fn close(&self) {
        let mut pipes = lock(&self.pipes);
        let (side, delay) = (1 - self.side, pipes.delay[1 - self.side] + self.net.delay(pipes.hosts()));
        let pipe = &mut pipes.pipes[side];
        if pipe.end.is_none() {
            let last = pipe.pieces.back().map(|(at, _)| *at);
            pipe.end = Some(last.into_iter().fold(Clock::System.timer_now() + delay, Instant::max));
        }
        let reader = pipe.reader.take();
        drop(pipes);
        reader.into_iter().for_each(Waker::wake);
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        self.close();
        let mut pipes = lock(&self.pipes);
        let mine = &mut pipes.pipes[self.side];
        mine.is_unread = true;
        let has_unread = !mine.pieces.is_empty();
        let writer = mine.writer.take();
        drop(pipes);
        if has_unread {
            Pipes::reset(&self.pipes);
        }
        writer.into_iter().for_each(Waker::wake);
    }
}

impl SimulatedStream for Stream {
    fn local_addr(&self) -> SocketAddr {
        lock(&self.pipes).addresses[self.side]
    }

    fn peer_addr(&self) -> SocketAddr {
        lock(&self.pipes).addresses[1 - self.side]
    }

    fn is_silent(&self) -> bool {
        let pipes = lock(&self.pipes);
        let pipe = &pipes.pipes[self.side];
        let has_arrived = pipe.next().is_some_and(|at| at <= Clock::System.timer_now());
        !pipes.is_reset && !pipe.has_begun && !has_arrived
    }

    fn poll_reset(&mut self, context: &mut Context<'_>) -> Poll<()> {
        self.has_ended = true;
        let mut pipes = lock(&self.pipes);
        if pipes.is_reset {
            return Poll::Ready(());
        }
        pipes.pipes[self.side].reader = Some(context.waker().clone());
        Poll::Pending
    }
}
