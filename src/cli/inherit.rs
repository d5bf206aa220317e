//! Takes over sockets that a supervisor passes (sd_listen_fds(3)). They stay open while the gateway restarts, so that
//! no connection is refused meanwhile. Sockets for another process must not be used.

use std::env;
use std::process;

use listenfd::ListenFd;

use crate::server::{Inherited, NAMES};

/// Takes over the sockets that the environment names, and removes these variables from the environment. Must be called
/// before the process has other threads.
///
/// # Errors
/// If a socket is unusable, or it is not clear which listener it is for.
pub(super) fn sockets() -> Result<Inherited, String> {
    let mut inherited = Inherited::default();
    let [fds, pid, names] = ["LISTEN_FDS", "LISTEN_PID", "LISTEN_FDNAMES"].map(variable);
    let Some(fds) = fds else { return Ok(inherited) };
    // Without LISTEN_PID the sockets are taken: a program that forks cannot know the pid when it sets the variables.
    if pid.as_ref().is_some_and(|pid| *pid != process::id().to_string()) {
        tracing::debug!(LISTEN_PID = pid, "LISTEN_FDS ignored: it is for another process");
        return Ok(inherited);
    }
    let names = assign(&fds, names.as_deref())?;
    let mut sockets = ListenFd::from_env();
    for (index, name) in names.iter().enumerate() {
        let socket = sockets.take_tcp_listener(index).map_err(|error| format!("LISTEN_FDS: {name}: {error}"))?;
        let socket = socket.ok_or_else(|| format!("LISTEN_FDS: {name}: no such socket"))?;
        inherited.add(name, socket).map_err(|error| format!("LISTEN_FDS: {error}"))?;
    }
    Ok(inherited)
}

/// A variable that is set but empty counts as not set.
fn variable(name: &str) -> Option<String> {
    env::var_os(name).filter(|value| !value.is_empty()).map(|value| value.to_string_lossy().into_owned())
}

fn assign(fds: &str, names: Option<&str>) -> Result<Vec<String>, String> {
    let expected = NAMES.join(", ");
    let not_a_number = || format!("LISTEN_FDS: {fds:?} is not allowed: expected a number of sockets");
    let number: usize = fds.parse().map_err(|_| not_a_number())?;
    let Some(names) = names else {
        let all = NAMES.get(..number).ok_or_else(|| {
            format!("LISTEN_FDS: {number} sockets without names in LISTEN_FDNAMES: expected at most {expected}")
        })?;
        return Ok(all.iter().map(ToString::to_string).collect());
    };
    let wrong = |what: &str| format!("LISTEN_FDNAMES: {names:?} is not allowed: {what} (systemd: FileDescriptorName=)");
    let all: Vec<String> = names.split(':').map(str::to_owned).collect();
    if all.len() != number {
        return Err(wrong(&format!("expected one name for each of {number} sockets")));
    }
    for (index, name) in all.iter().enumerate() {
        if !NAMES.contains(&name.as_str()) {
            return Err(wrong(&format!("expected names from {expected}")));
        }
        if all[..index].contains(name) {
            return Err(wrong("expected each name once"));
        }
    }
    Ok(all)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sockets_are_assigned_by_name_or_else_by_order() {
        assert_eq!(assign("0", None).unwrap(), Vec::<String>::new());
        assert_eq!(assign("2", None).unwrap(), ["proxy", "metrics"]);
        assert_eq!(assign("3", None).unwrap(), NAMES);
        assert_eq!(assign("2", Some("admin:proxy")).unwrap(), ["admin", "proxy"]);
    }

    #[test]
    fn an_unclear_assignment_is_an_error() {
        for (fds, names, expected) in [
            ("x", None, "LISTEN_FDS: \"x\" is not allowed: expected a number of sockets"),
            ("-1", None, "expected a number of sockets"),
            (
                "4",
                None,
                "LISTEN_FDS: 4 sockets without names in LISTEN_FDNAMES: expected at most proxy, metrics, admin",
            ),
            ("99999999999", None, "expected at most proxy, metrics, admin"),
            ("1", Some("proxy:metrics"), "expected one name for each of 1 sockets"),
            (
                "1",
                Some("gateway.socket"),
                "LISTEN_FDNAMES: \"gateway.socket\" is not allowed: expected names from proxy, metrics",
            ),
            ("2", Some("proxy:"), "FileDescriptorName="),
            ("2", Some("proxy:proxy"), "expected each name once"),
        ] {
            let error = assign(fds, names).unwrap_err();
            assert!(error.contains(expected), "{fds} {names:?}: {error}");
        }
    }
}
