//! Spans as an `ExportTraceServiceRequest` of OTLP 1.

use super::common::{nanoseconds, saturated, write_number, write_text};
use super::protobuf::Message;
use super::resource::Resource;
use crate::request::trace::TraceContext;
use crate::telemetry::traces::{Attribute, Span, SpanKind};

/// The flags of a span beside those of its trace: whether it is known that the parent, or the linked span, is in another
/// process, and whether it is.
const KNOWS_REMOTE: u32 = 0x100;
const IS_REMOTE: u32 = 0x200;

/// The codes of `Span.SpanKind` and of `Status.StatusCode`.
const SERVER: u64 = 2;
const CLIENT: u64 = 3;
const ERROR: u64 = 2;

pub(super) fn request(spans: &[Span], resource: &Resource) -> Vec<u8> {
    Message::of(|request| {
        request.message(1, |resource_spans| {
            resource_spans.message(1, |message| resource.write(message));
            resource_spans.message(2, |scope_spans| {
                scope_spans.message(1, Resource::write_scope);
                for span in spans {
                    scope_spans.message(2, |message| write_span(message, span, resource));
                }
            });
        });
    })
}

fn write_span(message: &mut Message, span: &Span, resource: &Resource) {
    let Span { kind, context, parent, name, end, duration, attributes, link, is_error } = span;
    message.bytes(1, &context.trace_id.bytes());
    message.bytes(2, &context.span_id.to_be_bytes());
    if let Some(parent) = parent {
        message.bytes(4, &parent.to_be_bytes());
    }
    message.bytes(5, name.as_bytes());
    message.number(6, if *kind == SpanKind::Server { SERVER } else { CLIENT });
    let end = nanoseconds(*end);
    message.fixed64(7, end.saturating_sub(saturated(*duration)));
    message.fixed64(8, end);
    for (name, value) in attributes {
        write_attribute(message, 9, name, value);
    }
    if *kind == SpanKind::Server {
        resource.write_listener(message, 9);
    }
    if let Some(link) = link {
        message.message(13, |message| write_link(message, link));
    }
    if *is_error {
        message.message(15, |status| status.number(3, ERROR));
    }
    let remote = if *kind == SpanKind::Server && parent.is_some() { IS_REMOTE } else { 0 };
    message.fixed32(16, u32::from(context.flags()) | KNOWS_REMOTE | remote);
}

/// A link to a call of this process.
fn write_link(message: &mut Message, link: &TraceContext) {
    message.bytes(1, &link.trace_id.bytes());
    message.bytes(2, &link.span_id.to_be_bytes());
    message.fixed32(6, u32::from(link.flags()) | KNOWS_REMOTE);
}

fn write_attribute(message: &mut Message, field: u32, name: &str, value: &Attribute) {
    match value {
        Attribute::Text(text) => write_text(message, field, name, text),
        Attribute::Number(number) => write_number(message, field, name, *number),
    }
}
