//! The sockets that a supervisor hands down (sd_listen_fds(3)): they are open before the gateway is, and stay open
//! when it is not, so that nobody who connects meanwhile is refused.

use std::env;
use std::process;

use listenfd::ListenFd;

use crate::server::{Inherited, NAMES};

/// Takes over what the environment tells of, and takes that out of the environment. To be asked while there are no
/// threads.
///
/// # Errors
/// If a socket can't be used, or it is not clear what for.
pub(super) fn sockets() -> Result<Inherited, String> {
    let mut inherited = Inherited::default();
    let [fds, pid, names] = ["LISTEN_FDS", "LISTEN_PID", "LISTEN_FDNAMES"].map(given);
    let Some(fds) = fds else { return Ok(inherited) };
    // Whoever sets the variables for a program that goes on as another one, or forks, can't say whom they are for.
    if pid.as_ref().is_some_and(|pid| *pid != process::id().to_string()) {
        tracing::debug!(LISTEN_PID = pid, "no sockets: those that LISTEN_FDS tells of are another process's");
        return Ok(inherited);
    }
    let names = assign(&fds, names.as_deref())?;
    let mut sockets = ListenFd::from_env();
    for (index, name) in names.iter().enumerate() {
        let socket = sockets.take_tcp_listener(index).map_err(|error| format!("LISTEN_FDS: {name}: {error}"))?;
        let socket = socket.ok_or_else(|| format!("LISTEN_FDS: {name}: no such socket"))?;
        inherited.add(name, socket).map_err(|wrong| format!("LISTEN_FDS: {wrong}"))?;
    }
    Ok(inherited)
}

/// A variable, where it has a value.
fn given(name: &str) -> Option<String> {
    env::var_os(name).filter(|value| !value.is_empty()).map(|value| value.to_string_lossy().into_owned())
}

/// Which listener each of so many sockets is for.
fn assign(fds: &str, names: Option<&str>) -> Result<Vec<String>, String> {
    let expected = NAMES.join(", ");
    let number = || format!("LISTEN_FDS: {fds:?} is not allowed: expected a number of sockets");
    let number: usize = fds.parse().map_err(|_| number())?;
    let Some(names) = names else {
        let all = NAMES.get(..number).ok_or_else(|| {
            format!("LISTEN_FDS: {number} sockets without names in LISTEN_FDNAMES: expected at most {expected}")
        })?;
        return Ok(all.iter().map(ToString::to_string).collect());
    };
    let wrong = |what: &str| format!("LISTEN_FDNAMES: {names:?} is not allowed: {what} (systemd: FileDescriptorName=)");
    let all: Vec<String> = names.split(':').map(str::to_owned).collect();
    if all.len() != number {
        return Err(wrong(&format!("expected a name for each of {number} sockets")));
    }
    for (index, name) in all.iter().enumerate() {
        if !NAMES.contains(&name.as_str()) {
            return Err(wrong(&format!("expected of {expected}")));
        }
        if all[..index].contains(name) {
            return Err(wrong("expected each once"));
        }
    }
    Ok(all)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sockets_go_by_their_names_or_else_by_their_order() {
        assert_eq!(assign("0", None).unwrap(), Vec::<String>::new());
        assert_eq!(assign("2", None).unwrap(), ["proxy", "metrics"]);
        assert_eq!(assign("3", None).unwrap(), NAMES);
        assert_eq!(assign("2", Some("admin:proxy")).unwrap(), ["admin", "proxy"]);
    }

    #[test]
    fn what_is_not_clear_is_an_error_that_says_so() {
        for (fds, names, expected) in [
            ("x", None, "LISTEN_FDS: \"x\" is not allowed: expected a number of sockets"),
            ("-1", None, "expected a number of sockets"),
            (
                "4",
                None,
                "LISTEN_FDS: 4 sockets without names in LISTEN_FDNAMES: expected at most proxy, metrics, admin",
            ),
            ("99999999999", None, "expected at most proxy, metrics, admin"),
            ("1", Some("proxy:metrics"), "expected a name for each of 1 sockets"),
            (
                "1",
                Some("gateway.socket"),
                "LISTEN_FDNAMES: \"gateway.socket\" is not allowed: expected of proxy, metrics",
            ),
            ("2", Some("proxy:"), "FileDescriptorName="),
            ("2", Some("proxy:proxy"), "expected each once"),
        ] {
            let error = assign(fds, names).unwrap_err();
            assert!(error.contains(expected), "{fds} {names:?}: {error}");
        }
    }
}
