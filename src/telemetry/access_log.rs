//! The access log: one line for each completed request, or only for slow and failed ones.

use std::time::Duration;

use tracing::Level;

use super::completed::CompletedRequest;
use super::fields::with_fields;
use super::logs;
use crate::config::AccessLog;

/// The target of access log lines, which tells them from other lines.
const ACCESS: &str = "workspace_gateway::access";

/// A request that takes longer, to the end of its response, is slow.
const SLOW: Duration = Duration::from_secs(1);

/// Whether a request that begins now may be logged.
pub(super) fn is_on() -> bool {
    logs::access() != AccessLog::Off && tracing::enabled!(target: ACCESS, Level::INFO)
}

pub(super) fn write(request: &CompletedRequest<'_>) {
    let Some(description) = request.description.filter(|_| is_on()) else { return };
    if !has_line(logs::access(), request.took, request.has_failed()) {
        return;
    }
    macro_rules! log {
        ($($name:ident = $value:expr,)*) => { tracing::info!(target: ACCESS, $($name = $value,)* "request") };
    }
    with_fields!(log, request, description);
}

/// Whether a completed request is logged.
fn has_line(access: AccessLog, took: Duration, has_failed: bool) -> bool {
    match access {
        AccessLog::All => true,
        AccessLog::SlowAndFailed => has_failed || took > SLOW,
        AccessLog::Off => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slow_and_failed_requests_are_logged_unless_the_access_log_is_off() {
        let (fast, slow) = (SLOW, SLOW + Duration::from_millis(1));
        for (access, expected) in [
            (AccessLog::All, [true; 4]),
            (AccessLog::SlowAndFailed, [false, true, true, true]),
            (AccessLog::Off, [false; 4]),
        ] {
            let cases = [(fast, false), (fast, true), (slow, false), (slow, true)];
            assert_eq!(cases.map(|(took, failed)| has_line(access, took, failed)), expected, "{access:?}");
        }
    }
}
