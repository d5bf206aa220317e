//! File descriptors: how many this process may have, and how many of them are left for the connections of clients.

use std::fmt;
use std::io;

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use super::accept::MAX_WATCHING;
use super::waiting::MAX_WAITING;
use crate::config::Config;

/// For the listeners, the log, files that are read, timers and polling.
const FILES: u64 = 32;

/// Raises the limit of open files to the highest that this process may have.
///
/// # Errors
/// If the system refuses that. The limit is as it was then.
pub fn raise_open_files() -> io::Result<()> {
    let Rlimit { maximum, .. } = getrlimit(Resource::Nofile);
    Ok(setrlimit(Resource::Nofile, Rlimit { current: maximum, maximum })?)
}

/// How many files this process may have open. None: as many as it likes.
fn open_files() -> Option<u64> {
    getrlimit(Resource::Nofile).current
}

/// How many connections clients may have open, by the settings and by the limit of open files.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ConnectionLimit {
    /// `limits.max_connections`.
    pub setting: usize,
    /// What is in force.
    pub effective: usize,
    /// How many files may be open.
    pub open_files: Option<u64>,
    /// How many of them are kept for upstream, the other listeners and files.
    pub reserve: u64,
}

impl ConnectionLimit {
    /// In this process, by the limit that it has now.
    pub(super) fn of_this_process(config: &Config) -> Self {
        Self::new(config, open_files())
    }

    /// In a process that is started from here and raises its limit.
    pub fn after_raising(config: &Config) -> Self {
        Self::new(config, getrlimit(Resource::Nofile).maximum)
    }

    /// By settings, where so many files may be open. Upstream may have its calls for product lists and as many for what is
    /// relayed, to each service. At most three quarters are kept for all that, so that clients have some in any case.
    fn new(config: &Config, open_files: Option<u64>) -> Self {
        let (setting, services) = (config.settings.limits.max_connections.0, config.catalogue.services().count());
        let calls = (config.settings.upstream.max_calls.0 as u64).saturating_mul(2 * services as u64);
        let listeners = (2 * MAX_WATCHING + 3 * MAX_WAITING) as u64;
        let needed = calls.saturating_add(listeners + FILES);
        let reserve = open_files.map_or(needed, |limit| needed.min(limit / 4 * 3));
        let left = open_files.map_or(usize::MAX, |limit| usize::try_from(limit - reserve).unwrap_or(usize::MAX));
        Self { setting, effective: setting.min(left).max(1), open_files, reserve }
    }

    /// Whether it is lower than the setting.
    pub fn is_reduced(&self) -> bool {
        self.effective < self.setting
    }
}

impl fmt::Display for ConnectionLimit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { setting, effective, open_files, reserve } = self;
        match open_files {
            Some(limit) if self.is_reduced() => write!(
                f,
                "limits.max_connections is reduced from {setting} to {effective}: {limit} files may be open, and {reserve} \
                 of them are kept for upstream, probes and files"
            ),
            _ => write!(f, "limits.max_connections is {setting}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn limit(settings: &str, open_files: Option<u64>) -> ConnectionLimit {
        let config = Config::from_layers("f", &format!("region = \"r\"\n{settings}"), &[]).unwrap();
        ConnectionLimit::new(&config, open_files)
    }

    #[test]
    fn connections_are_what_open_files_leave_after_upstream_and_the_other_listeners() {
        // 2 services, 2 × 128 calls to each; 2 × 64 on the other listeners; 3 × 32 that wait; 32 files.
        let reserve = 512 + 128 + 96 + 32;
        for (open_files, effective) in [
            (None, 4096),
            (Some(65_536), 4096),
            (Some(4096 + reserve), 4096),
            (Some(4095 + reserve), 4095),
            (Some(1024), 256),
        ] {
            let limit = limit("", open_files);
            assert_eq!((limit.effective, limit.reserve), (effective, reserve), "{open_files:?}");
            assert_eq!(limit.is_reduced(), effective < 4096);
        }
        assert_eq!(limit("[upstream]\nmax_calls = 1", Some(1024)).effective, 1024 - 4 - 256);
        assert_eq!(limit("[limits]\nmax_connections = 7", Some(1024)).effective, 7);
    }

    #[test]
    fn a_quarter_of_the_open_files_is_for_clients_whatever_the_others_need() {
        for (open_files, effective) in [(400, 100), (8, 2), (1, 1), (0, 1)] {
            assert_eq!(limit("[upstream]\nmax_calls = 1000000", Some(open_files)).effective, effective, "{open_files}");
        }
    }

    #[test]
    fn what_is_reduced_says_by_what() {
        assert_eq!(
            limit("", Some(1024)).to_string(),
            "limits.max_connections is reduced from 4096 to 256: 1024 files may be open, and 768 of them are kept for upstream, \
             probes and files"
        );
        assert_eq!(limit("", None).to_string(), "limits.max_connections is 4096");
    }
}
