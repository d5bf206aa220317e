//! The only place that opens sockets: it listens, connects and resolves names. So a simulated network can take its place.
//!
//! (Sockets that are handed down come from `cli/inherit.rs`, and a supervisor's is `cli/supervisor.rs`'s.)

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
