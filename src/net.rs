//! TCP sockets and names: listening, accepting, connecting and resolving. Nothing else opens a socket, so that a simulated network
//! can take its place. Exceptions are the demo and the simulator, which are the gateway's peers, and the supervisor's socket
//! (`cli/supervisor.rs`). Sockets that are handed down come from `cli/inherit.rs`.

mod accepted;
mod connector;
mod listener;

pub(crate) use accepted::{Accepted, Reset};
pub(crate) use connector::{Connector, Stream, SystemResolver, connect, connector};
pub(crate) use listener::{Listener, listens};

/// How large the kernel's buffers of a connection may be, in bytes as they are set: Linux takes twice that (socket(7)).
#[derive(Clone, Copy)]
pub(crate) struct Buffers {
    pub(crate) send: usize,
    pub(crate) receive: usize,
}
