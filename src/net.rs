//! TCP sockets and name resolution: listening, accepting, connecting and resolving. No other part opens sockets, so a
//! simulated network can replace this one. The exceptions are the demo and the simulator, which are peers of the
//! gateway, and the socket of the supervisor (`cli/supervisor.rs`). Inherited sockets come from `cli/inherit.rs`.

mod accepted;
mod connector;
mod listener;

pub(crate) use accepted::{Accepted, Reset};
pub(crate) use connector::{Connector, Stream, SystemResolver, connect, connector, dial};
pub(crate) use listener::{Listener, listens};

/// The sizes of the kernel's socket buffers, in bytes. Linux doubles the values that are set (socket(7)).
#[derive(Clone, Copy)]
pub(crate) struct Buffers {
    pub(crate) send: usize,
    pub(crate) receive: usize,
}
