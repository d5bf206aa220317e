//! The access log: one line for each completed request, or only for slow and failed ones.

use std::time::Duration;

use tracing::Level;

use super::completed::CompletedRequest;
use super::logs;
use crate::config::AccessLog;
use crate::request::digest::ShortDigest;

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
    let trace = description.trace.as_ref();
    let span = trace.filter(|trace| trace.is_forwarded || trace.is_exported);
    tracing::info!(
        target: ACCESS,
        request_id = request.request_id,
        upstream_request_id = description.upstream_id,
        trace_id = trace.map(|trace| trace.context.trace_id.to_string()),
        span_id = span.map(|trace| format!("{:016x}", trace.context.span_id)),
        client = %description.client,
        caller = description.heading.caller.as_ref().map(ShortDigest::as_str),
        user_agent = description.heading.agent.as_deref(),
        method = description.method,
        path = &*description.heading.path,
        operation = request.operation,
        key = request.key.as_ref().map(ShortDigest::as_str),
        result = request.outcome.into_str(),
        miss = request.miss.map(<&str>::from),
        detail = request.detail,
        failure = request.failure,
        status = request.status.map(|status| status.as_u16()),
        ttfb_ms = description.head_after.map(milliseconds),
        upstream_ms = description.upstream_took.map(milliseconds),
        total_ms = milliseconds(request.took),
        bytes = request.sent_bytes,
        complete = request.is_complete,
        "request",
    );
}

/// Whether a completed request is logged.
fn has_line(access: AccessLog, took: Duration, has_failed: bool) -> bool {
    match access {
        AccessLog::All => true,
        AccessLog::SlowAndFailed => has_failed || took > SLOW,
        AccessLog::Off => false,
    }
}

/// Rounded down to microseconds, which keeps the number short.
#[allow(clippy::cast_precision_loss)]
fn milliseconds(duration: Duration) -> f64 {
    duration.as_micros() as f64 / 1e3
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
