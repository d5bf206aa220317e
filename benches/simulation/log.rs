//! The log of the process, which all gateways share, and its reader, who may stall. Lines are written by a thread on the
//! machine's time, so how many are dropped may differ between runs, and nothing that is compared shows it.

use std::io::{self, Write};
use std::sync::{Condvar, Mutex, PoisonError};

use workspace_gateway::testing::config::Config;
use workspace_gateway::testing::telemetry::logs::{LogGuard, begin_to, is_stalled};

use super::lock;
use super::settings::toml;

static READER: Reader = Reader { is_stalled: Mutex::new(false), changed: Condvar::new() };

struct Reader {
    is_stalled: Mutex<bool>,
    changed: Condvar,
}

impl Write for &'static Reader {
    fn write(&mut self, lines: &[u8]) -> io::Result<usize> {
        let wait = self.changed.wait_while(lock(&self.is_stalled), |is_stalled| *is_stalled);
        drop(wait.unwrap_or_else(PoisonError::into_inner));
        Ok(lines.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// The reader stalls if it has read so far, and the other way round. Returns whether it stalls now.
pub(crate) fn toggle() -> bool {
    let is_stalled = &mut *lock(&READER.is_stalled);
    *is_stalled = !*is_stalled;
    READER.changed.notify_all();
    *is_stalled
}

/// The reader reads, as at the beginning of each run.
pub(crate) fn go_on() {
    *lock(&READER.is_stalled) = false;
    READER.changed.notify_all();
}

/// The log of a process that has begun.
pub(crate) struct Log(LogGuard);

impl Log {
    pub(crate) fn begin() -> Self {
        let urls = ["http://10.0.1.1:80", "http://10.0.1.1:81"].map(str::to_owned);
        let config = Config::from_layers("log.toml", &toml(&urls, None, None, 1), &[]).expect("valid settings");
        Self(begin_to(&READER, &config.settings.log).expect("a thread"))
    }

    /// What is left is read. Returns whether the log works then.
    pub(crate) fn end(self) -> bool {
        go_on();
        // Waits until all is written.
        drop(self.0);
        !is_stalled()
    }
}
