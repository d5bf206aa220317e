//! The spans that are exported to OpenTelemetry: which requests have them, and the queue to the exporter (`otlp`).
//!
//! A span is made when what it describes has ended. Of a request that is not sampled, only its `traceparent` is read. The queue is
//! bounded, and a span that does not fit is dropped and counted: no request waits for the exporter.

mod call;
mod request;
mod sampler;
mod span;

use prometheus::IntCounter;
use tokio::sync::mpsc;

pub(crate) use call::{CallSpan, CallTarget};
pub(crate) use sampler::Sampler;
pub(crate) use span::{Attribute, Span, SpanKind};

use crate::clock::Clock;
use crate::request::id::RequestId;
use crate::request::trace::TraceContext;

/// Decides which requests have spans, and passes the spans to the exporter.
pub(crate) struct Tracer {
    sampler: Sampler,
    queue: mpsc::Sender<Span>,
    /// Counts the spans that did not fit.
    dropped: IntCounter,
    clock: Clock,
}

impl Tracer {
    /// A tracer, and the end of its queue that the exporter reads. The queue has room for `capacity` spans.
    pub(crate) fn new(
        sampler: Sampler,
        capacity: usize,
        dropped: IntCounter,
        clock: Clock,
    ) -> (Self, mpsc::Receiver<Span>) {
        let (queue, spans) = mpsc::channel(capacity);
        (Self { sampler, queue, dropped, clock }, spans)
    }

    fn export(&self, span: Span) {
        if self.queue.try_send(span).is_err() {
            self.dropped.inc();
        }
    }
}

/// A method as the semantic conventions write it: one that is not known is `_OTHER`.
fn conventional(method: &'static str) -> &'static str {
    if method == "other" { "_OTHER" } else { method }
}

/// The span of a request, which is a child of the span in its `traceparent`. A request without one begins a trace if it
/// is sampled. `None` if the request is in no trace.
pub(crate) fn context_of(
    tracer: Option<&Tracer>,
    parent: Option<TraceContext>,
    request: &RequestId,
) -> Option<TraceContext> {
    let continued = parent.map(|parent| parent.with_span(request.span()));
    let Some(Tracer { sampler, .. }) = tracer else { return continued };
    match continued {
        Some(context) => Some(context.with_sampled(sampler.samples_child(&context))),
        None if sampler.samples_root(request.span()) => Some(TraceContext::begin(request).with_sampled(true)),
        None => None,
    }
}
