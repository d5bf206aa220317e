//! File descriptors: how many the process may open, and how many of them client connections may use. No connection is
//! closed here.

use std::fmt;
use std::io;

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use super::accept::MAX_INTERNAL_CONNECTIONS;
use super::waiting::MAX_WAITING;
use crate::config::Config;

/// For the listeners, the log, files that are read, timers and polling.
const FILES: u64 = 32;

/// Raises the soft limit of open files to the hard limit.
///
/// # Errors
/// If the system refuses. Then the limit is unchanged.
pub fn raise_open_files() -> io::Result<()> {
    let Rlimit { maximum, .. } = getrlimit(Resource::Nofile);
    Ok(setrlimit(Resource::Nofile, Rlimit { current: maximum, maximum })?)
}

/// The soft limit. `None`: unlimited.
fn open_files() -> Option<u64> {
    getrlimit(Resource::Nofile).current
}

/// How many client connections may be open.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ConnectionLimit {
    /// `limits.max_connections`.
    pub setting: usize,
    /// The limit in force.
    pub effective: usize,
    /// `None`: unlimited.
    pub open_files: Option<u64>,
    /// Descriptors that are reserved for upstream, the internal listeners and files.
    pub reserve: u64,
}

impl ConnectionLimit {
    /// With the current soft limit.
    pub(super) fn of_this_process(config: &Config) -> Self {
        Self::new(config, open_files())
    }

    /// For a process that is started from here and raises its soft limit.
    pub fn after_raising(config: &Config) -> Self {
        Self::new(config, getrlimit(Resource::Nofile).maximum)
    }

    /// For each service, upstream needs `upstream.max_calls` descriptors for product lists and as many for relayed
    /// requests. At most three quarters of all descriptors are reserved, so that some are left for clients.
    fn new(config: &Config, open_files: Option<u64>) -> Self {
        let (setting, services) = (config.settings.limits.max_connections.0, config.catalogue.services().count());
        let calls = (config.settings.upstream.max_calls.0 as u64).saturating_mul(2 * services as u64);
        let listeners = (2 * MAX_INTERNAL_CONNECTIONS + 3 * MAX_WAITING) as u64;
        let needed = calls.saturating_add(listeners + FILES);
        let reserve = open_files.map_or(needed, |limit| needed.min(limit / 4 * 3));
        let left = open_files.map_or(usize::MAX, |limit| usize::try_from(limit - reserve).unwrap_or(usize::MAX));
        Self { setting, effective: setting.min(left).max(1), open_files, reserve }
    }

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
                "limits.max_connections is reduced from {setting} to {effective}: the open file limit is {limit}, and \
                 {reserve} of these are reserved for upstream, probes and files"
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
    fn client_connections_get_what_upstream_and_internal_listeners_leave_of_the_open_file_limit() {
        // 2 services, 2 × 128 calls to each; 2 × 64 connections on the internal listeners; 3 × 32 waiting connections;
        // 32 files.
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
    fn clients_get_at_least_a_quarter_of_the_open_file_limit() {
        for (open_files, effective) in [(400, 100), (8, 2), (1, 1), (0, 1)] {
            assert_eq!(limit("[upstream]\nmax_calls = 1000000", Some(open_files)).effective, effective, "{open_files}");
        }
    }

    #[test]
    fn a_reduced_limit_names_its_reason() {
        assert_eq!(
            limit("", Some(1024)).to_string(),
            "limits.max_connections is reduced from 4096 to 256: the open file limit is 1024, and 768 of these are \
             reserved for upstream, probes and files"
        );
        assert_eq!(limit("", None).to_string(), "limits.max_connections is 4096");
    }
}
