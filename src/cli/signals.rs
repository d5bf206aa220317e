//! What signals do: SIGTERM and SIGINT stop the gateway, SIGHUP has it read its settings again (`reload.rs`), and those
//! that mean nothing to it are ignored.

use std::io;

use nix::sys::signal::{SigSet, Signal as Name};
use tokio::signal::unix::{Signal, SignalKind, signal};

/// Signals that would end the process, though they mean nothing to it. SIGXFSZ comes when the log's file is as large as
/// the process may make it; the write then fails.
const IGNORED: [Name; 3] = [Name::SIGUSR1, Name::SIGUSR2, Name::SIGXFSZ];

/// Lets all signals through. A program that starts this one may have blocked some, SIGTERM among them, and the mask is
/// inherited (execve(2)). To be called while there are no threads: each inherits the mask as well.
pub(super) fn unblock() {
    // It cannot fail: the mask is valid, and what to do with it, too (pthread_sigmask(3)).
    let _ = SigSet::empty().thread_set_mask();
}

/// Has the signals that mean nothing do nothing, for as long as the process lives.
///
/// # Errors
/// If a handler can't be set.
pub(super) fn ignore() -> io::Result<()> {
    for name in IGNORED {
        // tokio's handler stays though nobody waits for the signal.
        drop(signal(SignalKind::from_raw(name as i32))?);
    }
    Ok(())
}

/// SIGTERM and Ctrl-C. From its making on, they no longer kill the process.
pub(super) struct StopSignals {
    terminate: Signal,
    interrupt: Signal,
}

impl StopSignals {
    pub(super) fn new() -> io::Result<Self> {
        Ok(Self { terminate: signal(SignalKind::terminate())?, interrupt: signal(SignalKind::interrupt())? })
    }

    /// Resolves on the next of them.
    pub(super) async fn received(&mut self) {
        tokio::select! {
            _ = self.terminate.recv() => {}
            _ = self.interrupt.recv() => {}
        }
    }
}
