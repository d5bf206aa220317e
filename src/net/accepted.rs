//! The connection of a client.

use std::io::{self, IoSlice};
use std::mem::MaybeUninit;
use std::net::SocketAddr;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use socket2::SockRef;
use tokio::io::{AsyncRead, AsyncWrite, Interest, ReadBuf};
use tokio::net::TcpStream;
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};

use super::SimulatedStream;

/// Detects that a client disconnects after it has closed its sending side.
pub(crate) trait Reset {
    /// Waits for a reset. After the first call no data can be read.
    fn poll_reset(&mut self, context: &mut Context<'_>) -> Poll<()>;
}

pub(crate) enum Accepted {
    System(Socket),
    Simulated(Box<dyn SimulatedStream>),
}

/// A socket in two halves. After the client has closed its sending side, there is nothing more to read. Then the reading
/// half waits for a reset.
pub(crate) struct Socket {
    /// `None` after [`Reset::poll_reset`] has been called.
    reader: Option<OwnedReadHalf>,
    writer: OwnedWriteHalf,
    reset: Option<Pin<Box<dyn Future<Output = ()> + Send>>>,
}

impl Accepted {
    pub(super) fn new(stream: TcpStream) -> Self {
        let (reader, writer) = stream.into_split();
        Self::System(Socket { reader: Some(reader), writer, reset: None })
    }

    /// The address that the client has connected to.
    ///
    /// # Errors
    /// If the connection is closed.
    pub(crate) fn local_addr(&self) -> io::Result<SocketAddr> {
        match self {
            Self::System(socket) => socket.writer.local_addr(),
            Self::Simulated(stream) => Ok(stream.local_addr()),
        }
    }

    /// The client's address.
    ///
    /// # Errors
    /// If the connection is closed.
    pub(crate) fn peer_addr(&self) -> io::Result<SocketAddr> {
        match self {
            Self::System(socket) => socket.writer.peer_addr(),
            Self::Simulated(stream) => Ok(stream.peer_addr()),
        }
    }

    /// Disables Nagle's algorithm, so that small writes do not wait for the client's delayed acknowledgement.
    ///
    /// # Errors
    /// If the connection is closed.
    pub(crate) fn set_nodelay(&self) -> io::Result<()> {
        match self {
            Self::System(socket) => socket.writer.as_ref().set_nodelay(true),
            Self::Simulated(_) => Ok(()),
        }
    }

    /// Sets the size of the kernel's send buffer, in bytes. The buffer of a simulated connection does not change.
    ///
    /// # Errors
    /// If the connection is closed.
    pub(crate) fn set_send_buffer(&self, bytes: usize) -> io::Result<()> {
        match self {
            Self::System(socket) => SockRef::from(socket.writer.as_ref()).set_send_buffer_size(bytes),
            Self::Simulated(_) => Ok(()),
        }
    }

    /// Whether the client is connected and has sent no data so far.
    pub(crate) fn is_silent(&self) -> bool {
        match self {
            Self::System(socket) => {
                // This asks the kernel, because the runtime reports a new socket as readable until the first read.
                let peeked = SockRef::from(socket.writer.as_ref()).peek(&mut [MaybeUninit::uninit()]);
                peeked.is_err_and(|error| error.kind() == io::ErrorKind::WouldBlock)
            }
            Self::Simulated(stream) => stream.is_silent(),
        }
    }
}

impl Reset for Socket {
    fn poll_reset(&mut self, context: &mut Context<'_>) -> Poll<()> {
        if let Some(reader) = self.reader.take() {
            // A read cannot detect a reset here: it returns the end of the stream each time.
            self.reset = Some(Box::pin(async move { _ = reader.ready(Interest::ERROR).await }));
        }
        let Some(reset) = &mut self.reset else { return Poll::Pending };
        ready!(reset.as_mut().poll(context));
        self.reset = None;
        Poll::Ready(())
    }
}

impl Reset for Accepted {
    fn poll_reset(&mut self, context: &mut Context<'_>) -> Poll<()> {
        match self {
            Self::System(socket) => socket.poll_reset(context),
            Self::Simulated(stream) => stream.poll_reset(context),
        }
    }
}

impl AsyncRead for Accepted {
    fn poll_read(self: Pin<&mut Self>, context: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::System(socket) => match &mut socket.reader {
                Some(reader) => Pin::new(reader).poll_read(context, buffer),
                None => Poll::Ready(Ok(())),
            },
            Self::Simulated(stream) => Pin::new(stream).poll_read(context, buffer),
        }
    }
}

impl AsyncWrite for Accepted {
    fn poll_write(self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::System(socket) => Pin::new(&mut socket.writer).poll_write(context, bytes),
            Self::Simulated(stream) => Pin::new(stream).poll_write(context, bytes),
        }
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        parts: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::System(socket) => Pin::new(&mut socket.writer).poll_write_vectored(context, parts),
            Self::Simulated(stream) => Pin::new(stream).poll_write_vectored(context, parts),
        }
    }

    fn is_write_vectored(&self) -> bool {
        match self {
            Self::System(socket) => socket.writer.is_write_vectored(),
            Self::Simulated(stream) => stream.is_write_vectored(),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::System(socket) => Pin::new(&mut socket.writer).poll_flush(context),
            Self::Simulated(stream) => Pin::new(stream).poll_flush(context),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::System(socket) => Pin::new(&mut socket.writer).poll_shutdown(context),
            Self::Simulated(stream) => Pin::new(stream).poll_shutdown(context),
        }
    }
}
