//! The fields of a completed request, as the access log and the tail show them. They are listed once, here.

use std::time::Duration;

/// Calls the macro `$with` with `name = value` for each field, in their order. `tail::Field` and `tracing` know the types
/// of the values; without a value, a field is left out.
macro_rules! with_fields {
    ($with:ident, $request:expr, $description:expr) => {
        $with! {
            request_id = $request.request_id,
            upstream_request_id = $description.upstream_id.as_deref(),
            trace_id = $description.trace.as_ref().map(|trace| trace.context.trace_id.to_string()),
            span_id = $description.span_id(),
            client = tracing::field::display($description.client),
            caller = $request.caller.as_ref().map(crate::request::digest::ShortDigest::as_str),
            user_agent = $description.heading.agent.as_deref(),
            method = $description.method,
            path = &*$description.heading.path,
            operation = $request.operation,
            key = $request.key.as_ref().map(crate::request::digest::ShortDigest::as_str),
            result = $request.outcome.into_str(),
            miss = $request.miss.map(<&str>::from),
            detail = $request.detail,
            failure = $request.failure,
            status = $request.status.map(|status| status.as_u16()),
            ttfb_ms = $description.head_after.map($crate::telemetry::fields::milliseconds),
            upstream_ms = $description.upstream_took.map($crate::telemetry::fields::milliseconds),
            total_ms = $crate::telemetry::fields::milliseconds($request.took),
            bytes = $request.sent_bytes,
            complete = $request.is_complete,
        }
    };
}

pub(super) use with_fields;

/// Rounded down to microseconds, which keeps the number short.
#[allow(clippy::cast_precision_loss)]
pub(super) fn milliseconds(duration: Duration) -> f64 {
    duration.as_micros() as f64 / 1e3
}
