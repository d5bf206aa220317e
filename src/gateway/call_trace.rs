//! The trace of a call to upstream: its span, if that is exported, and the `traceparent` that upstream gets.

use http::HeaderValue;

use super::observer::Observer;
use crate::request::id::{RequestId, RequestIds};
use crate::request::trace::TraceContext;
use crate::telemetry::traces::{CallSpan, CallTarget, context_of};

/// What a call continues.
#[derive(Clone, Copy)]
pub(super) enum CallTrace {
    /// Nothing: neither the client nor the gateway has begun a trace.
    None,
    /// The span of the request that the call is made for.
    OfRequest(TraceContext),
    /// A trace that begins with the call, because the gateway makes it without a request.
    Own(TraceContext),
}

/// A call that begins.
pub(super) struct TracedCall {
    /// `None` if it is not exported.
    pub(super) span: Option<CallSpan>,
    /// What upstream gets as its parent.
    context: Option<TraceContext>,
}

impl CallTrace {
    /// Of a call that the gateway makes without a request. `id` is that of the call.
    pub(super) fn own(observer: &Observer, id: &RequestId) -> Self {
        let tracer = observer.sinks.tracer().map(|tracer| &**tracer);
        context_of(tracer, None, id).map_or(Self::None, Self::Own)
    }

    /// Begins a call.
    pub(super) fn begin<'t>(
        self,
        observer: &Observer,
        ids: &RequestIds,
        target: impl FnOnce() -> CallTarget<'t>,
    ) -> TracedCall {
        let (context, parent) = match self {
            Self::None => return TracedCall { span: None, context: None },
            Self::OfRequest(request) => (request, Some(request.span_id)),
            Self::Own(call) => (call, None),
        };
        let Some(tracer) = observer.sinks.tracer().filter(|_| context.is_sampled()) else {
            return TracedCall { span: None, context: Some(context) };
        };
        // A request can have several calls.
        let context = if parent.is_some() { context.with_span(ids.next().span()) } else { context };
        let span = CallSpan::begin(tracer, context, parent, target());
        TracedCall { span: Some(span), context: Some(context) }
    }
}

impl From<Option<TraceContext>> for CallTrace {
    fn from(request: Option<TraceContext>) -> Self {
        request.map_or(Self::None, Self::OfRequest)
    }
}

impl TracedCall {
    pub(super) fn traceparent(&self) -> Option<HeaderValue> {
        self.context.and_then(|context| context.traceparent())
    }

    /// The span of the call, for links to it. `None` if it is not exported.
    pub(super) fn exported(&self) -> Option<TraceContext> {
        self.context.filter(|_| self.span.is_some())
    }
}
