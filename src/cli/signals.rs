//! Signal handling: SIGTERM and SIGINT stop the gateway, SIGHUP reloads the settings (`reload.rs`), and some others are
//! ignored. No other signal may end the process by accident.

use std::io;

use nix::sys::signal::{SigSet, Signal as Name};
use tokio::signal::unix::{Signal, SignalKind, signal};

/// Signals that would end the process by default. SIGXFSZ is sent when the log file reaches the process's file size
/// limit. The write then fails instead.
const IGNORED: [Name; 3] = [Name::SIGUSR1, Name::SIGUSR2, Name::SIGXFSZ];

/// Unblocks all signals. The parent process may have blocked some, such as SIGTERM, and the mask is inherited
/// (execve(2)). Must be called before the process has other threads, because each inherits the mask.
pub(super) fn unblock() {
    // This cannot fail, because the arguments are valid (pthread_sigmask(3)).
    let _ = SigSet::empty().thread_set_mask();
}

/// Ignores the signals in `IGNORED` while the process runs.
///
/// # Errors
/// If a handler can't be set.
pub(super) fn ignore() -> io::Result<()> {
    for name in IGNORED {
        // tokio's handler stays installed after the drop.
        drop(signal(SignalKind::from_raw(name as i32))?);
    }
    Ok(())
}

/// SIGTERM and SIGINT (Ctrl-C). Once this exists, they no longer kill the process.
pub(super) struct StopSignals {
    terminate: Signal,
    interrupt: Signal,
}

impl StopSignals {
    pub(super) fn new() -> io::Result<Self> {
        Ok(Self { terminate: signal(SignalKind::terminate())?, interrupt: signal(SignalKind::interrupt())? })
    }

    /// Waits for the next signal.
    pub(super) async fn received(&mut self) {
        tokio::select! {
            _ = self.terminate.recv() => {}
            _ = self.interrupt.recv() => {}
        }
    }
}
